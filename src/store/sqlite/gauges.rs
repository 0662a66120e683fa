//! [`Gauge`] on SQLite.

use async_trait::async_trait;
use sqlx::Row as _;
use sqlx::sqlite::SqliteConnection;

use super::{SqliteStore, text};
use crate::store::StoreError;
use crate::store::board::OpenState;
use crate::store::gauges::{Crew, Gauge};

/// Counts what the clause takes along an index.
macro_rules! depth {
    ($where:literal) => {
        concat!(
            "SELECT queue, count(*) AS many
               FROM (SELECT queue
                       FROM job_state
                      WHERE ",
            $where,
            "
                      LIMIT $1) s
              GROUP BY queue"
        )
    };
}

#[async_trait]
impl Gauge for SqliteStore {
    async fn depth(&self, state: OpenState, most: i64) -> Result<Vec<(String, i64)>, StoreError> {
        self.read_for_people((state, most), |conn, p| Box::pin(depth(conn, p.0, p.1))).await
    }

    async fn gate_counts(&self, most: i64) -> Result<Vec<(String, String, i64)>, StoreError> {
        self.read_for_people(most, |conn, most| Box::pin(gate_counts(conn, *most))).await
    }

    async fn crew(&self, most: i64) -> Result<Crew, StoreError> {
        self.read_for_people(most, |conn, most| Box::pin(crew(conn, *most))).await
    }
}

async fn depth(conn: &mut SqliteConnection, state: OpenState, most: i64) -> sqlx::Result<Vec<(String, i64)>> {
    // The states stand in the statements: an index over some of the rows is found by them.
    let query = match state {
        OpenState::Pending => sqlx::query(depth!("state = 'pending' ORDER BY queue, model, priority DESC")),
        OpenState::Scheduled => sqlx::query(depth!("state = 'scheduled' ORDER BY available_at")),
        OpenState::Running => sqlx::query(depth!("state = 'running' ORDER BY claimed_by")),
        OpenState::Waiting => sqlx::query(depth!("state = 'waiting' ORDER BY queue")),
    };
    let rows = query.bind(most).fetch_all(conn).await?;
    rows.iter().map(|row| Ok((text(row, "queue")?.unwrap_or_default(), row.try_get("many")?))).collect()
}

async fn gate_counts(conn: &mut SqliteConnection, most: i64) -> sqlx::Result<Vec<(String, String, i64)>> {
    let rows = sqlx::query(
        "SELECT substr(scope, 1, instr(scope, ':') - 1) AS kind, state, count(*) AS many
           FROM (SELECT scope, state
                   FROM gates
                  LIMIT $1) g
          GROUP BY kind, state",
    )
    .bind(most)
    .fetch_all(conn)
    .await?;
    let one = |row| Ok((text(row, "kind")?.unwrap_or_default(), row.try_get("state")?, row.try_get("many")?));
    rows.iter().map(one).collect()
}

async fn crew(conn: &mut SqliteConnection, most: i64) -> sqlx::Result<Crew> {
    let (queues, paused, workers) = sqlx::query_as(
        "SELECT count(*), count(*) FILTER (WHERE paused),
                (SELECT count(*) FROM (SELECT 1 FROM workers LIMIT $1) w)
           FROM (SELECT paused
                   FROM queues
                  LIMIT $1) q",
    )
    .bind(most)
    .fetch_one(conn)
    .await?;
    Ok(Crew { queues, paused, workers })
}
