//! Going on after the file at the path was replaced, moved or robbed of its log.
//!
//! A file with the same `meta.database_id` and a schema that we know is ours: a copy that was put
//! back, or the original itself. All connections are closed before new ones are opened, because
//! SQLite finds a file's log by its name: two generations of connections under one name would play
//! one file's log into the other. Any other file is left alone, and so is what stands beside it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions as _, Connection as _};

use super::migrate;
use super::place::{Id, Standing};
use super::{Pools, SqliteStore, holder, immediately};
use crate::store::op::said;
use crate::store::{StoreError, op};

/// How often a file that was refused is looked at again.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What the last look at a file that is not ours brought.
#[derive(Default)]
pub(super) struct Refused(Option<(Instant, String)>);

impl SqliteStore {
    /// Returns the connections, opened anew where the file at the path is another one with our
    /// database in it.
    pub(super) async fn pools(&self) -> Result<Arc<Pools>, StoreError> {
        match self.place.look() {
            Standing::Same => Ok(self.opened()),
            Standing::Nothing => {
                Err(self.gone("was moved or deleted while promptmill had it open: put it back"))
            }
            Standing::WithoutLog | Standing::Another(_) => self.reopen().await,
        }
    }

    /// Refuses what was done where the file was replaced meanwhile: it may have been done to the one before.
    pub(super) fn still_there(&self) -> Result<(), StoreError> {
        match self.place.look() {
            Standing::Same => Ok(()),
            _ => Err(self.gone("was moved or replaced while it was written to")),
        }
    }

    fn gone(&self, what: &str) -> StoreError {
        StoreError::Unavailable(format!("{} {what}", self.place.path().display()))
    }

    async fn reopen(&self) -> Result<Arc<Pools>, StoreError> {
        let mut refused = self.reopening.lock().await;
        // Another caller may have done it while this one waited for its turn.
        let standing = self.place.look();
        match standing {
            Standing::Same => return Ok(self.opened()),
            Standing::Nothing => return Err(self.gone("was moved or deleted while promptmill had it open")),
            Standing::WithoutLog | Standing::Another(_) => {}
        }
        if let Some((at, why)) = &refused.0
            && at.elapsed() < LOOK_EVERY
        {
            return Err(StoreError::Unavailable(why.clone()));
        }
        let done = match standing {
            Standing::Another(id) => self.go_on_with(id).await,
            _ => self.save_log().await,
        };
        match done {
            Ok(pools) => {
                *refused = Refused::default();
                Ok(pools)
            }
            Err(error) => {
                let why = match error {
                    StoreError::Unavailable(why) => why,
                    other => other.to_string(),
                };
                *refused = Refused(Some((Instant::now(), why.clone())));
                Err(StoreError::Unavailable(why))
            }
        }
    }

    /// The file is ours, but its log was deleted: we still have it open, so what stands in it is
    /// written into the file. The last connection that is closed does so by itself.
    ///
    /// The last of all processes: one that had the old log open beside another with a new one would
    /// share its index with it, and each would write its own log's pages where the other's belong.
    async fn save_log(&self) -> Result<Arc<Pools>, StoreError> {
        let old = self.opened();
        let id = match self.place.look() {
            Standing::WithoutLog => self.place.file_id(),
            _ => return Err(self.gone("was moved or replaced")),
        };
        if !old.writer.is_closed() {
            self.checkpoint(&old).await?;
            self.close(&old).await;
        }
        // One that stands there anew belongs to whoever was the first after the last.
        if self.place.has_its_index() {
            self.is_nobodys()?;
        }
        self.place.take(id);
        tracing::warn!(
            "{} was deleted while promptmill had it open: what stood in it is in the file, which is opened again",
            self.place.log().display()
        );
        Ok(self.open_anew())
    }

    /// Refuses where another process has the file open still, or where nobody can say.
    fn is_nobodys(&self) -> Result<(), StoreError> {
        let what = match holder::users(&self.place.index()).as_deref() {
            Ok([]) => return Ok(()),
            Ok([other, ..]) => {
                format!(
                    "process {} ({}) has it open still: nothing is done before it has let go",
                    other.pid, other.name
                )
            }
            Err(error) => format!(
                "who else has it open cannot be seen ({error}): stop all that have it open, then start again"
            ),
        };
        Err(self.gone(&format!("lost its log while promptmill had it open, and {what}")))
    }

    /// Another file stands at the path: goes on with it where it holds our database.
    async fn go_on_with(&self, id: Id) -> Result<Arc<Pools>, StoreError> {
        let stale = self.place.has_stale_log();
        self.is_ours(stale).await?;
        let old = self.opened();
        // So that the file before, wherever it is now, needs no log to be whole. It may be gone.
        self.checkpoint(&old).await.ok();
        self.close(&old).await;
        let aside = self.place.put_log_aside().map_err(|error| {
            self.gone(&format!("was replaced, and its old log cannot be put aside: {error}"))
        })?;
        if self.place.look() != Standing::Another(id) {
            return Err(self.gone("was replaced again"));
        }
        let pools = self.open_anew();
        // Only now: until the fence is raised nobody may use the copy.
        if let Err(error) = self.raise_fence(&pools).await {
            self.close(&pools).await;
            return Err(error);
        }
        self.place.take(id);
        let aside = aside.map(|path| format!(" (the log of the file before is {} now)", path.display()));
        tracing::warn!(
            "{} was replaced by another file with the same database in it: going on with that one{}",
            self.place.path().display(),
            aside.unwrap_or_default()
        );
        Ok(pools)
    }

    /// Refuses a file that does not hold our database. A log that belongs to the file before must
    /// not be played into this one by looking at it: then the file is read as if it had none.
    async fn is_ours(&self, stale: bool) -> Result<(), StoreError> {
        let file = self.place.path();
        let mut seen = self.look_at(SqliteConnectOptions::new().immutable(true).read_only(true)).await;
        if !stale && !matches!(seen, Ok(Some(_))) {
            seen = self.look_at(self.options.clone()).await;
        }
        match seen {
            Ok(Some(meta)) if meta.database_id == self.database_id => meta
                .objection(&file.display().to_string())
                .map_or(Ok(()), |objection| Err(StoreError::Unavailable(objection))),
            Ok(_) => Err(self.gone(
                "was replaced by a file that holds another database while promptmill had it open: put back \
                 the original or a copy of it, or stop promptmill and start it again to work on this one",
            )),
            Err(error) => Err(StoreError::Unavailable(format!(
                "{} was replaced, and the new file cannot be read: {error}",
                file.display()
            ))),
        }
    }

    async fn look_at(
        &self,
        options: SqliteConnectOptions,
    ) -> Result<Option<crate::store::migrations::Meta>, StoreError> {
        let mut conn = options.filename(self.place.path()).connect().await.map_err(said)?;
        let meta = migrate::ours(&mut conn).await.map_err(said);
        // All is read; how the connection ends changes nothing.
        drop(conn.close().await);
        meta
    }

    async fn checkpoint(&self, pools: &Pools) -> Result<(), StoreError> {
        op::run(&pools.writer, self.limit, (), |conn, ()| {
            Box::pin(
                async move { sqlx::query("PRAGMA wal_checkpoint(FULL)").fetch_all(conn).await.map(drop) },
            )
        })
        .await
    }

    async fn close(&self, pools: &Pools) {
        for pool in pools.all() {
            // Operations that run have a time limit of their own, and give their connections back.
            pool.close().await;
        }
    }

    /// A copy from an earlier time knows nothing of jobs that were inserted or claimed since. Their
    /// numbers must not be given out again while their answers are under way here: a job of the same
    /// number and claim would get the answer to another prompt. Nor must our own, to another worker.
    async fn raise_fence(&self, pools: &Pools) -> Result<(), StoreError> {
        let held: Vec<_> = self.held.leases().into_iter().map(|(job, claim)| vec![job, claim]).collect();
        let params = (serde_json::json!(held).to_string(), self.enlisted.load(Ordering::Relaxed));
        op::run(&pools.writer, self.limit, params, |conn, params| {
            Box::pin(async move {
                immediately(conn, params, |conn, params| Box::pin(raise(conn, &params.0, params.1))).await
            })
        })
        .await
    }
}

async fn raise(conn: &mut SqliteConnection, held: &str, worker: i64) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE job_state
            SET claims = d.value ->> 1
           FROM jsonb_each(jsonb($1)) d
          WHERE job_state.job_id = d.value ->> 0 AND job_state.claims < d.value ->> 1",
    )
    .bind(held)
    .execute(&mut *conn)
    .await?;
    let job: i64 = sqlx::query_scalar("SELECT coalesce(max(d.value ->> 0), 0) FROM jsonb_each(jsonb($1)) d")
        .bind(held)
        .fetch_one(&mut *conn)
        .await?;
    for (table, id) in [("jobs", job), ("workers", worker)] {
        // A table that nothing was ever inserted into is not listed.
        sqlx::query(
            "INSERT INTO sqlite_sequence (name, seq)
             SELECT $1, 0
              WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = $1)",
        )
        .bind(table)
        .execute(&mut *conn)
        .await?;
        sqlx::query("UPDATE sqlite_sequence SET seq = max(seq, $2) WHERE name = $1")
            .bind(table)
            .bind(id)
            .execute(&mut *conn)
            .await?;
    }
    Ok(())
}
