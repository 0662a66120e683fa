//! Faults: processes that end anywhere, cuts and stalls between the daemon, its database and the API, and
//! what the machine itself does. The real binary, a real server: nothing is lost, nothing is paid twice
//! without being told.

mod api;
mod bite;
mod clock;
mod database;
mod interval;
mod invariants;
mod kill;
mod neighbours;
mod points;
mod poison;
mod pooler;
mod process;
mod schema;
mod soak;
mod sqlite;
mod start;
mod storm;
mod taken;
mod talks;
pub mod work;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::mill::harness::Mill;
use crate::support::proxy::Proxy;
use crate::support::{Ground, server};

pub(crate) use sqlite::Holder as Held;

/// Longest wait for anything that is no recovery.
const STEP_MAX: Duration = Duration::from_mins(1);
/// Longest time from the database's return to the last result. Generous: the machine may be busy.
const RECOVERY_MAX: Duration = Duration::from_secs(20);

/// A mill whose daemon has a role of its own, so that its connections can be told from others, and
/// whose way to the database leads over a proxy.
struct Site<'g> {
    mill: Mill<'g>,
    role: String,
    proxy: Proxy,
}

impl<'g> Site<'g> {
    async fn new(ground: &'g Ground) -> Self {
        Self::with_role(ground, "IN ROLE promptmill_worker").await
    }

    /// Makes the role with these attributes.
    async fn with_role(ground: &'g Ground, attributes: &str) -> Self {
        let mut mill = Mill::new(ground).await;
        let role = format!("{}_d", ground.schema());
        ground.run(&format!("CREATE ROLE {role} LOGIN {attributes}")).await;
        let proxy = Proxy::start(address_of(&ground.url())).await;
        mill.set("DATABASE_URL", &lead(&ground.url(), proxy.address(), &role));
        mill.set("PROMPTMILL_WORKER__CONCURRENCY", "8");
        mill.set("PROMPTMILL_DATABASE__OPERATION_SECONDS", "1");
        mill.knows_a_limit();
        Self { mill, role, proxy }
    }

    /// Inserts so many jobs whose calls take a while.
    async fn insert(&self, jobs: usize, delay: &str) {
        for job in 0..jobs {
            self.mill.insert(&[&format!("[[seed {job}]] [[tokens 20]] [[delay {delay}]]")]).await;
        }
    }

    /// Ends the daemon's sessions that meet a condition; returns how many.
    async fn terminate(&self, condition: &str) -> usize {
        let sql = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{}' AND ({condition})",
            self.role
        );
        self.mill.ground.lines(&sql).await.len()
    }

    /// Waits until a query on the daemon's sessions counts so many.
    async fn until_sessions(&self, condition: &str, count: usize) {
        let sql = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE usename = '{}' AND ({condition})",
            self.role
        );
        self.mill.until(&sql, &count.to_string()).await;
    }

    /// Waits until all of so many jobs are complete, and says how long that took.
    async fn until_complete(&self, jobs: usize) -> Duration {
        let began = Instant::now();
        let sql = "SELECT count(*) FROM results WHERE outcome = 'complete'";
        self.mill.until(sql, &jobs.to_string()).await;
        began.elapsed()
    }

    /// Waits until all of so many jobs are complete, which may take no longer than a recovery.
    async fn recovers(&self, jobs: usize) {
        let took = self.until_complete(jobs).await;
        assert!(took < RECOVERY_MAX, "recovered after {took:?}");
    }

    /// Waits until the calls under way have come to their end at the API.
    async fn until_calls_are_over(&self) {
        until("the running calls go on", || self.mill.api.counts().in_flight == 0).await;
    }

    /// What has to hold after every fault: one result a job, no call more than one a job, all of
    /// them in the ledger, and none of them hung up on.
    async fn every_job_was_called_once(&self, jobs: usize) {
        let ground = self.mill.ground;
        assert_eq!(ground.line("SELECT count(*) FROM results").await, jobs.to_string());
        let counts = self.mill.api.counts();
        assert_eq!((counts.total, counts.hung_up), (jobs as u64, 0), "a call was repeated or broken off");
        self.mill.holds().await;
        self.mill.ledger_is_the_stand_ins().await;
        let stuck = format!(
            "SELECT count(*) FROM pg_stat_activity
              WHERE usename = '{}' AND state LIKE 'idle in transaction%' AND state_change < now() - interval '2 seconds'",
            self.role
        );
        assert_eq!(ground.line(&stuck).await, "0", "a session was left in a transaction");
    }

    /// Takes the role away, once nobody is it any more.
    async fn close(self) {
        self.terminate("TRUE").await;
        self.until_sessions("TRUE", 0).await;
        let role = &self.role;
        self.mill.ground.run(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
    }
}

/// Waits for something that is no row.
async fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + STEP_MAX;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within {STEP_MAX:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Leads the way of a mill's daemons to the database over a proxy.
pub(crate) async fn unplugged(mill: &mut Mill<'_>, ground: &Ground) -> Proxy {
    let proxy = Proxy::start(address_of(&ground.url())).await;
    mill.set("DATABASE_URL", &lead(&ground.url(), proxy.address(), "postgres"));
    proxy
}

/// Where the server of a Postgres URL listens.
fn address_of(url: &str) -> SocketAddr {
    let options = server::options_of(url);
    format!("{}:{}", options.get_host(), options.get_port()).parse().expect("the test server has a number")
}

/// The same URL with another address and user.
fn lead(url: &str, address: SocketAddr, role: &str) -> String {
    let (_, database) = url.rsplit_once('/').expect("a URL with a database");
    format!("postgres://{role}@{address}/{database}")
}
