//! PgBouncer in transaction mode between the daemon and Postgres: each transaction may meet another
//! server connection, and nothing may be left behind on one.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::{Site, address_of, lead, until};
use crate::support::Ground;
use crate::support::private::{free_port, output};

/// A PgBouncer of the test's own.
struct Bouncer {
    home: TempDir,
    port: u16,
    child: Option<Child>,
}

impl Bouncer {
    /// Starts one with three server connections, fewer than the daemon has of its own.
    async fn start(server: SocketAddr, role: &str) -> Self {
        let home = tempfile::Builder::new().prefix("pm").tempdir_in("/tmp").expect("a temporary folder");
        let port = free_port();
        let folder = home.path().display();
        let settings = format!(
            "[databases]\n* = host={} port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = trust\nauth_file = {folder}/users\npool_mode = transaction\n\
             default_pool_size = 3\nignore_startup_parameters = extra_float_digits\nserver_login_retry = 1\n\
             logfile = {folder}/log\n",
            server.ip(),
            server.port(),
        );
        std::fs::write(home.path().join("settings.ini"), settings).expect("the folder is ours");
        std::fs::write(home.path().join("users"), format!("\"{role}\" \"\"\n")).expect("the folder is ours");
        let mut bouncer = Self { home, port, child: None };
        bouncer.run().await;
        bouncer
    }

    async fn run(&mut self) {
        let settings = self.home.path().join("settings.ini");
        // It refuses root.
        let as_nobody = output(Command::new("id").arg("-u")) == "0";
        let mut command = if as_nobody {
            output(Command::new("chown").args(["-R", "nobody"]).arg(self.home.path()));
            let mut command = Command::new("setpriv");
            command.args(["--reuid=nobody", "--clear-groups", "--"]).arg(program());
            command
        } else {
            Command::new(program())
        };
        command.arg("-q").arg(settings).current_dir("/").stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        self.child = Some(command.spawn().expect("pgbouncer starts"));
        let address = SocketAddr::from(([127, 0, 0, 1], self.port));
        until("pgbouncer listens", || std::net::TcpStream::connect(address).is_ok()).await;
    }

    fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.home.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Bouncer {
    fn drop(&mut self) {
        self.kill();
    }
}

fn program() -> &'static Path {
    // Debian keeps it where an ordinary user's path does not lead.
    [Path::new("/usr/sbin/pgbouncer"), Path::new("/usr/bin/pgbouncer")]
        .into_iter()
        .find(|path| path.exists())
        .expect("pgbouncer is not installed: .ci/run installs it (apt-get install pgbouncer)")
}

/// A site whose daemon goes through the pooler.
async fn pooled(ground: &Ground) -> (Site<'_>, Bouncer) {
    let mut site = Site::new(ground).await;
    let schema = ground.schema();
    ground.run(&format!("ALTER ROLE {} SET search_path = {schema}, pg_temp", site.role)).await;
    let bouncer = Bouncer::start(address_of(&ground.url()), &site.role).await;
    let direct = lead(&ground.url(), address_of(&ground.url()), &site.role);
    site.proxy.lead_to(bouncer.address());
    site.mill.set("PROMPTMILL_DATABASE__POOLER", "transaction");
    site.mill.set("PROMPTMILL_DATABASE__DIRECT_URL", &direct);
    site.mill.set("PROMPTMILL_DATABASE__OPERATION_SECONDS", "5");
    (site, bouncer)
}

#[tokio::test]
async fn whole_runs_go_through_a_pooler_in_transaction_mode() {
    let ground = Ground::postgres().await;
    let (site, bouncer) = pooled(&ground).await;
    // A queue with a limit is claimed from in a transaction of its own.
    ground.run("INSERT INTO queues (name, max_running) VALUES ('narrow', 3)").await;
    for job in 0..20 {
        ground
            .run(&format!("INSERT INTO jobs (prompt, queue) VALUES ('{job} [[delay 20ms]]', 'narrow')"))
            .await;
        site.mill.insert(&[&format!("{job} [[delay 30ms]]"), &format!("{job} [[error 529 x1]]")]).await;
    }
    let (one, two) = (site.mill.start(), site.mill.start());
    site.recovers(60).await;
    for daemon in [one, two] {
        let ran = daemon.stop().await;
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        for word in ["failed to", "prepared statement", "the database said"] {
            assert!(!ran.stderr.contains(word), "{}", ran.stderr);
        }
    }
    assert_eq!(site.mill.api.counts().total, 80);
    site.mill.holds().await;
    site.mill.ledger_is_the_stand_ins().await;
    assert_eq!(ground.line("SELECT count(*) FROM workers").await, "0");
    assert!(site.proxy.seen().connections > 0 && !bouncer.log().contains("ERROR"), "{}", bouncer.log());
    drop(bouncer);
    site.close().await;
    ground.close().await;
}

#[tokio::test]
async fn a_pooler_that_is_killed_in_the_middle_costs_no_call() {
    let ground = Ground::postgres().await;
    let (site, mut bouncer) = pooled(&ground).await;
    site.insert(40, "150ms").await;
    let daemon = site.mill.start();
    for asked in [10, 24] {
        site.mill.until_asked(asked).await;
        bouncer.kill();
        site.until_calls_are_over().await;
        bouncer.run().await;
    }
    site.recovers(40).await;
    site.every_job_was_called_once(40).await;
    assert_eq!(daemon.stop().await.code, 0);
    drop(bouncer);
    site.close().await;
    ground.close().await;
}

#[tokio::test]
async fn peoples_commands_go_past_the_pooler() {
    let ground = Ground::postgres().await;
    let (site, bouncer) = pooled(&ground).await;
    ground.run("INSERT INTO queues (name) VALUES ('default')").await;
    let before = site.proxy.seen().connections;
    for args in
        [&["migrate"][..], &["status"], &["pause", "--queue", "default"], &["resume", "--queue", "default"]]
    {
        // Twice: what the first leaves behind meets the second.
        for _ in 0..2 {
            let ran = site.mill.run(args).await;
            assert_eq!(ran.code, 0, "{args:?}: {}", ran.stderr);
        }
    }
    assert_eq!(site.proxy.seen().connections, before);
    drop(bouncer);
    site.close().await;
    ground.close().await;
}
