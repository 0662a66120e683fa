//! [`Gauge`] on Postgres.

use async_trait::async_trait;
use sqlx::postgres::PgConnection;

use super::PostgresStore;
use crate::store::StoreError;
use crate::store::board::OpenState;
use crate::store::gauges::{Crew, Gauge};

/// Counts what the clause takes along an index.
macro_rules! depth {
    ($where:literal) => {
        concat!(
            "SELECT queue, count(*)
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
impl Gauge for PostgresStore {
    async fn depth(&self, state: OpenState, most: i64) -> Result<Vec<(String, i64)>, StoreError> {
        self.run_on(self.looks.plain(), (state, most), |conn, p| Box::pin(depth(conn, p.0, p.1))).await
    }

    async fn gate_counts(&self, most: i64) -> Result<Vec<(String, String, i64)>, StoreError> {
        self.run_on(self.looks.plain(), most, |conn, most| Box::pin(gate_counts(conn, *most))).await
    }

    async fn crew(&self, most: i64) -> Result<Crew, StoreError> {
        self.run_on(self.looks.plain(), most, |conn, most| Box::pin(crew(conn, *most))).await
    }
}

async fn depth(conn: &mut PgConnection, state: OpenState, most: i64) -> sqlx::Result<Vec<(String, i64)>> {
    // The states stand in the statements: an index over some of the rows is found by them.
    let query = match state {
        OpenState::Pending => {
            sqlx::query_as(depth!("state = 'pending' ORDER BY queue, model, priority DESC"))
        }
        OpenState::Scheduled => sqlx::query_as(depth!("state = 'scheduled' ORDER BY available_at")),
        OpenState::Running => sqlx::query_as(depth!("state = 'running' ORDER BY claimed_by")),
        OpenState::Waiting => sqlx::query_as(depth!("state = 'waiting' ORDER BY queue")),
    };
    query.bind(most).fetch_all(conn).await
}

async fn gate_counts(conn: &mut PgConnection, most: i64) -> sqlx::Result<Vec<(String, String, i64)>> {
    sqlx::query_as(
        "SELECT split_part(scope, ':', 1) AS kind, state, count(*)
           FROM (SELECT scope, state
                   FROM gates
                  LIMIT $1) g
          GROUP BY kind, state",
    )
    .bind(most)
    .fetch_all(conn)
    .await
}

async fn crew(conn: &mut PgConnection, most: i64) -> sqlx::Result<Crew> {
    let (queues, paused, workers) = sqlx::query_as(
        "SELECT count(*), count(*) FILTER (WHERE paused),
                (SELECT count(*) FROM (SELECT FROM workers LIMIT $1) w)
           FROM (SELECT paused
                   FROM queues
                  LIMIT $1) q",
    )
    .bind(most)
    .fetch_one(conn)
    .await?;
    Ok(Crew { queues, paused, workers })
}
