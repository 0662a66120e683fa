//! Tool calls on Postgres: what a worker starts itself, and the jobs whose calls are all answered.
//!
//! People answer by a plain UPDATE; the triggers of the schema do the rest.

use sqlx::Row as _;
use sqlx::postgres::{PgConnection, PgRow};

use super::PostgresStore;
use crate::domain::job::{JobId, Lease, WorkerId};
use crate::domain::tool::{Asked, PastTool, ToolCall};
use crate::store::StoreError;
use crate::store::row::{self, ToolAnswer};

/// Whether a fenced write of one job was let through.
enum Fenced {
    Ours,
    Lost,
    /// Somebody else holds the row.
    Locked,
}

impl Fenced {
    fn read(found: &PgRow) -> sqlx::Result<Self> {
        Ok(match (found.try_get("held")?, found.try_get("ours")?) {
            (true, _) => Self::Ours,
            (false, true) => Self::Locked,
            (false, false) => Self::Lost,
        })
    }

    fn went_through(self, lease: &Lease) -> Result<bool, StoreError> {
        match self {
            Self::Ours => Ok(true),
            Self::Lost => Ok(false),
            Self::Locked => Err(StoreError::Locked(format!("job {} is locked by somebody else", lease.job))),
        }
    }
}

/// Locks the job of a lease, `$1` to `$3`, where it is ours and nobody else does.
macro_rules! held {
    () => {
        "WITH held AS MATERIALIZED (
             SELECT job_id FROM job_state
              WHERE job_id = $1 AND claims = $2 AND run = $3 AND state = 'running'
                FOR NO KEY UPDATE SKIP LOCKED
         )"
    };
}

/// Says what became of it.
macro_rules! fenced {
    () => {
        " SELECT EXISTS (SELECT FROM held) AS held,
                 EXISTS (SELECT FROM job_state
                          WHERE job_id = $1 AND claims = $2 AND run = $3 AND state = 'running') AS ours"
    };
}

impl PostgresStore {
    pub(super) async fn open_tool_calls(
        &self,
        lease: &Lease,
        asked: &Asked,
        worker: WorkerId,
    ) -> Result<bool, StoreError> {
        let params = (*lease, asked.claim, asked.seq, row::tools(asked), worker);
        let work = self.run(params, |conn, p| Box::pin(open(conn, &p.0, (p.1, p.2), &p.3, p.4)));
        work.await?.went_through(lease)
    }

    pub(super) async fn answer_tool_call(
        &self,
        lease: &Lease,
        answer: ToolAnswer,
    ) -> Result<bool, StoreError> {
        let work = self.run((*lease, answer), |conn, p| Box::pin(self::answer(conn, &p.0, &p.1)));
        work.await?.went_through(lease)
    }
}

async fn open(
    conn: &mut PgConnection,
    lease: &Lease,
    (claim, seq): (i64, i32),
    tools: &str,
    worker: WorkerId,
) -> sqlx::Result<Fenced> {
    let found = sqlx::query(concat!(
        held!(),
        ", opened AS (
             INSERT INTO tool_calls AS old
                    (job_id, claim, seq, position, run, call_id, name, input, worker, taken_by, taken_at)
             SELECT h.job_id, $4, $5, t.position, $3, t.call_id, t.name, t.input::json, $7::bigint, 'worker ' || $7::bigint, now()
               FROM held h
              CROSS JOIN json_to_recordset($6::json) AS t(position integer, call_id text, name text, input text)
                 ON CONFLICT (job_id, claim, seq, position) DO UPDATE
                SET taken_by = excluded.taken_by, taken_at = excluded.taken_at
              WHERE old.answered_at IS NULL
         )",
        fenced!(),
    ))
    .bind(lease.job.0)
    .bind(lease.claim)
    .bind(lease.run)
    .bind(claim)
    .bind(seq)
    .bind(tools)
    .bind(worker.0)
    .fetch_one(conn)
    .await?;
    Fenced::read(&found)
}

async fn answer(conn: &mut PgConnection, lease: &Lease, answer: &ToolAnswer) -> sqlx::Result<Fenced> {
    let found = sqlx::query(concat!(
        held!(),
        ", answered AS (
             UPDATE tool_calls t
                SET result = $7, result_content = $8::json, is_error = $9, answered_at = now()
               FROM held h
              WHERE t.job_id = h.job_id AND t.claim = $4 AND t.seq = $5 AND t.position = $6 AND t.run = $3
                AND t.answered_at IS NULL
         )",
        fenced!(),
    ))
    .bind(lease.job.0)
    .bind(lease.claim)
    .bind(lease.run)
    .bind(answer.claim)
    .bind(answer.seq)
    .bind(answer.position)
    .bind(&answer.result)
    .bind(&answer.result_content)
    .bind(answer.is_error)
    .fetch_one(conn)
    .await?;
    Fenced::read(&found)
}

/// Makes waiting jobs pending whose calls are all answered.
pub(super) async fn promote_answered(conn: &mut PgConnection, limit: i64) -> sqlx::Result<u64> {
    let done = sqlx::query(
        "WITH answered AS MATERIALIZED (
             SELECT s.job_id FROM job_state s
              WHERE s.state = 'waiting'
                AND NOT EXISTS (SELECT FROM tool_calls t
                                 WHERE t.job_id = s.job_id AND t.run = s.run
                                   AND t.result IS NULL AND t.result_content IS NULL)
              LIMIT $1
                FOR NO KEY UPDATE SKIP LOCKED
         )
         UPDATE job_state
            SET state = 'pending'
          WHERE job_id = ANY (ARRAY(SELECT job_id FROM answered))",
    )
    .bind(limit)
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
}

/// Reads the tool calls of these runs, in the order of the ledger.
pub(super) async fn past(conn: &mut PgConnection, leases: &[Lease]) -> sqlx::Result<Vec<(JobId, PastTool)>> {
    let (jobs, _, runs) = row::columns(leases);
    let rows = sqlx::query(
        "SELECT t.job_id, t.claim, t.seq, t.position, t.call_id, t.name, t.input::text AS input, t.result,
                t.result_content::text AS result_content, t.is_error, t.taken_by IS NOT NULL AS taken
           FROM unnest($1::bigint[], $2::bigint[]) AS d(job_id, run)
          CROSS JOIN LATERAL (
                SELECT * FROM tool_calls
                 WHERE job_id = d.job_id AND run = d.run
                 ORDER BY claim, seq, position
                OFFSET 0) t
          ORDER BY t.job_id, t.claim, t.seq, t.position",
    )
    .bind(jobs)
    .bind(runs)
    .fetch_all(conn)
    .await?;
    rows.iter().map(past_tool).collect()
}

fn past_tool(found: &PgRow) -> sqlx::Result<(JobId, PastTool)> {
    let bytes = |column: &str| -> sqlx::Result<Option<&[u8]>> {
        Ok(found.try_get::<Option<&str>, _>(column)?.map(str::as_bytes))
    };
    let tool = PastTool {
        claim: found.try_get("claim")?,
        seq: found.try_get("seq")?,
        call: ToolCall {
            position: found.try_get("position")?,
            call_id: found.try_get("call_id")?,
            name: found.try_get("name")?,
            input: found.try_get::<Option<String>, _>("input")?.unwrap_or_default(),
        },
        result: row::tool_result(bytes("result")?, bytes("result_content")?, found.try_get("is_error")?),
        taken: found.try_get("taken")?,
    };
    Ok((JobId(found.try_get("job_id")?), tool))
}
