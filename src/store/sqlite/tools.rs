//! Tool calls on SQLite: what a worker starts itself, and the jobs whose calls are all answered.
//!
//! People answer by a plain UPDATE; the triggers of the schema do the rest.

use sqlx::Row as _;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::{SqliteStore, text};
use crate::domain::job::{JobId, Lease, WorkerId};
use crate::domain::tool::{Asked, PastTool, ToolCall};
use crate::store::StoreError;
use crate::store::row::{self, ToolAnswer};

impl SqliteStore {
    pub(super) async fn open_tool_calls(
        &self,
        lease: &Lease,
        asked: &Asked,
        worker: WorkerId,
    ) -> Result<bool, StoreError> {
        let params = (*lease, asked.claim, asked.seq, row::tools(asked), worker);
        self.write(params, |conn, p| Box::pin(open(conn, &p.0, (p.1, p.2), &p.3, p.4))).await
    }

    pub(super) async fn answer_tool_call(
        &self,
        lease: &Lease,
        answer: ToolAnswer,
    ) -> Result<bool, StoreError> {
        self.write((*lease, answer), |conn, p| Box::pin(self::answer(conn, &p.0, &p.1))).await
    }
}

async fn is_ours(conn: &mut SqliteConnection, lease: &Lease) -> sqlx::Result<bool> {
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM job_state
                         WHERE job_id = $1 AND claims = $2 AND run = $3 AND state = 'running')",
    )
    .bind(lease.job.0)
    .bind(lease.claim)
    .bind(lease.run)
    .fetch_one(conn)
    .await
}

async fn open(
    conn: &mut SqliteConnection,
    lease: &Lease,
    (claim, seq): (i64, i32),
    tools: &str,
    worker: WorkerId,
) -> sqlx::Result<bool> {
    if !is_ours(conn, lease).await? {
        return Ok(false);
    }
    sqlx::query(concat!(
        "INSERT INTO tool_calls
                (job_id, claim, seq, position, run, call_id, name, input, worker, taken_by, taken_at)
         SELECT $1, $2, $3, t.value ->> 'position', $4, t.value ->> 'call_id', t.value ->> 'name',
                t.value ->> 'input', $6, 'worker ' || $6, ",
        now!(),
        " FROM json_each($5) t
          WHERE true
         ON CONFLICT (job_id, claim, seq, position) DO UPDATE
            SET taken_by = excluded.taken_by, taken_at = excluded.taken_at
          WHERE tool_calls.answered_at IS NULL",
    ))
    .bind(lease.job.0)
    .bind(claim)
    .bind(seq)
    .bind(lease.run)
    .bind(tools)
    .bind(worker.0)
    .execute(conn)
    .await?;
    Ok(true)
}

async fn answer(conn: &mut SqliteConnection, lease: &Lease, answer: &ToolAnswer) -> sqlx::Result<bool> {
    if !is_ours(conn, lease).await? {
        return Ok(false);
    }
    sqlx::query(concat!(
        "UPDATE tool_calls
            SET result = $6, result_content = $7, is_error = $8, answered_at = ",
        now!(),
        " WHERE job_id = $1 AND claim = $2 AND seq = $3 AND position = $4 AND run = $5 AND answered_at IS NULL",
    ))
    .bind(lease.job.0)
    .bind(answer.claim)
    .bind(answer.seq)
    .bind(answer.position)
    .bind(lease.run)
    .bind(&answer.result)
    .bind(&answer.result_content)
    .bind(answer.is_error)
    .execute(conn)
    .await?;
    Ok(true)
}

/// The waiting jobs whose calls are all answered.
macro_rules! answered {
    () => {
        "SELECT s.job_id FROM job_state s
          WHERE s.state = 'waiting'
            AND NOT EXISTS (SELECT 1 FROM tool_calls t
                             WHERE t.job_id = s.job_id AND t.run = s.run
                               AND t.result IS NULL AND t.result_content IS NULL)"
    };
}

/// Whether [`promote_answered`] would find anything. Looking costs no lock.
pub(super) async fn is_any_answered(conn: &mut SqliteConnection) -> sqlx::Result<bool> {
    sqlx::query_scalar(concat!("SELECT EXISTS (", answered!(), ")")).fetch_one(conn).await
}

/// Makes waiting jobs pending whose calls are all answered.
pub(super) async fn promote_answered(conn: &mut SqliteConnection, limit: i64) -> sqlx::Result<u64> {
    let done = sqlx::query(concat!(
        "UPDATE job_state
            SET state = 'pending'
          WHERE job_id IN (",
        answered!(),
        " LIMIT +$1)"
    ))
    .bind(limit)
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
}

/// Reads the tool calls of these runs, in the order of the ledger.
pub(super) async fn past(
    conn: &mut SqliteConnection,
    leases: &[Lease],
) -> sqlx::Result<Vec<(JobId, PastTool)>> {
    let rows = sqlx::query(
        "SELECT t.job_id, t.claim, t.seq, t.position, t.call_id, t.name, t.input, t.result, t.result_content,
                t.is_error, t.taken_by IS NOT NULL AS taken
           FROM jsonb_each(jsonb($1)) d
          CROSS JOIN tool_calls t ON t.job_id = d.value ->> 'job_id'
          WHERE t.run = d.value ->> 'run'
          ORDER BY t.job_id, t.claim, t.seq, t.position",
    )
    .bind(row::leases(leases))
    .fetch_all(conn)
    .await?;
    rows.iter().map(past_tool).collect()
}

fn past_tool(found: &SqliteRow) -> sqlx::Result<(JobId, PastTool)> {
    let result = row::tool_result(
        found.try_get("result")?,
        found.try_get("result_content")?,
        found.try_get("is_error")?,
    );
    let tool = PastTool {
        claim: found.try_get("claim")?,
        seq: found.try_get("seq")?,
        call: ToolCall {
            position: found.try_get("position")?,
            call_id: text(found, "call_id")?.unwrap_or_default(),
            name: text(found, "name")?.unwrap_or_default(),
            input: text(found, "input")?.unwrap_or_default(),
        },
        result,
        taken: found.try_get("taken")?,
    };
    Ok((JobId(found.try_get("job_id")?), tool))
}
