//! The ledger and the ends of jobs on SQLite: append, settle, release, fill.
//!
//! A batch is a handful of statements inside one `BEGIN IMMEDIATE`, each over JSON rows (see
//! [`row`]): the fence, the results, the ledger. Nobody else can write in between. The fence sees
//! numbers alone: what was said is written into JSON, and read out of it, once.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use sqlx::sqlite::SqliteConnection;

use super::SqliteStore;
use crate::domain::job::{Lease, WorkerId};
use crate::domain::ledger::{Answer, Call, Checkpoint, Release, Settlement};
use crate::store::row::{self, AnswerRow, CallRow, Row};
use crate::store::{StoreError, Written};

/// Jobs on their way to their end, or back.
struct Batch<T> {
    rows: Vec<Arc<T>>,
    worker: WorkerId,
    at: Instant,
}

/// What a worker is to the job whose ledger row it writes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    /// It holds the job.
    InTime,
    /// The job is somebody else's now.
    Late,
    /// The job is done, or was run again.
    Over,
}

impl When {
    /// Returns what the holder of a lease is to a job that is not its own any more.
    fn without_lease(lease: Lease, run: i64, state: &str) -> Self {
        if run == lease.run && state != "done" { Self::Late } else { Self::Over }
    }
}

impl SqliteStore {
    pub(super) async fn append_call(
        &self,
        lease: &Lease,
        call: &Call,
        worker: WorkerId,
    ) -> Result<bool, StoreError> {
        let params = (*lease, call.clone(), Instant::now(), worker);
        self.write(params, |conn, p| Box::pin(append(conn, row::call(&p.0, &p.1, p.2), p.3))).await
    }

    pub(super) async fn keep_parts(&self, parts: &[Arc<Checkpoint>]) -> Result<Vec<Lease>, StoreError> {
        let rows: Vec<Row> = parts.iter().map(|part| row::checkpoint(part)).collect();
        self.write(row::array(&rows), |conn, rows| Box::pin(checkpoint(conn, rows))).await
    }

    pub(super) async fn settle_jobs(
        &self,
        settlements: &[Arc<Settlement>],
        worker: WorkerId,
    ) -> Result<Written, StoreError> {
        let batch = (Batch { rows: settlements.to_vec(), worker, at: Instant::now() }, self.answers_once);
        let written = self.write(batch, |conn, p| Box::pin(settle(conn, &p.0, p.1))).await?;
        self.held.drop(written.done.iter().chain(&written.lost));
        Ok(written)
    }

    pub(super) async fn release_jobs(
        &self,
        releases: &[Arc<Release>],
        worker: WorkerId,
    ) -> Result<Written, StoreError> {
        let batch = Batch { rows: releases.to_vec(), worker, at: Instant::now() };
        let written = self.write(batch, |conn, batch| Box::pin(release(conn, batch))).await?;
        self.held.drop(written.done.iter().chain(&written.lost));
        Ok(written)
    }

    pub(super) async fn fill_result(&self, lease: &Lease, answer: &Answer) -> Result<bool, StoreError> {
        let params = (*lease, row::object(&row::answer(lease, answer, Instant::now())));
        self.write(params, |conn, p| Box::pin(fill(conn, p.0, &p.1))).await
    }
}

async fn append(conn: &mut SqliteConnection, call: CallRow<'_>, worker: WorkerId) -> sqlx::Result<bool> {
    let lease = call.lease();
    let state: Option<(i64, i64, String)> =
        sqlx::query_as("SELECT claims, run, state FROM job_state WHERE job_id = $1")
            .bind(lease.job.0)
            .fetch_optional(&mut *conn)
            .await?;
    let Some((claims, run, state)) = state else { return Ok(true) };
    let late = claims != lease.claim || run != lease.run || state != "running";
    let when = if late { When::without_lease(lease, run, &state) } else { When::InTime };
    if !late {
        sqlx::query("UPDATE job_state SET crashes = 0 WHERE job_id = $1 AND crashes > 0")
            .bind(lease.job.0)
            .execute(&mut *conn)
            .await?;
    }
    ledger(conn, &[call], worker, when).await?;
    Ok(late)
}

/// Keeps parts of running streams.
async fn checkpoint(conn: &mut SqliteConnection, parts: &str) -> sqlx::Result<Vec<Lease>> {
    let held: Vec<(i64, i64, i64)> = sqlx::query_as(
        "SELECT DISTINCT s.job_id, s.claims, s.run
           FROM jsonb_each(jsonb($1)) d
          CROSS JOIN job_state s ON s.job_id = d.value ->> 'job_id'
          WHERE s.claims = d.value ->> 'claim' AND s.run = d.value ->> 'run' AND s.state = 'running'",
    )
    .bind(parts)
    .fetch_all(&mut *conn)
    .await?;
    sqlx::query(
        "INSERT INTO checkpoints (job_id, claim, seq, part, content)
         SELECT d.value ->> 'job_id', d.value ->> 'claim', d.value ->> 'seq', d.value ->> 'part',
                d.value ->> 'content'
           FROM jsonb_each(jsonb($1)) d
          CROSS JOIN job_state s ON s.job_id = d.value ->> 'job_id'
          WHERE s.claims = d.value ->> 'claim' AND s.run = d.value ->> 'run' AND s.state = 'running'
            AND NOT EXISTS (SELECT 1 FROM calls c
                             WHERE c.job_id = s.job_id AND c.claim = s.claims AND c.seq = d.value ->> 'seq')
         ON CONFLICT DO NOTHING",
    )
    .bind(parts)
    .execute(conn)
    .await?;
    Ok(row::leases_of(held))
}

/// Ends jobs. `once`: see [`row::last_calls`].
async fn settle(conn: &mut SqliteConnection, batch: &Batch<Settlement>, once: bool) -> sqlx::Result<Written> {
    let leases: Vec<Lease> = batch.rows.iter().map(|end| end.lease).collect();
    let fence: Vec<_> = batch
        .rows
        .iter()
        .map(|end| (end.lease.job.0, end.lease.claim, end.lease.run, end.answer.failures))
        .collect();
    // As one row: each costs a message between two threads.
    let ours: String = sqlx::query_scalar(
        "SELECT json_group_array(json_array(s.job_id, d.value ->> 3))
           FROM jsonb_each(jsonb($1)) d
          CROSS JOIN job_state s ON s.job_id = d.value ->> 0
          WHERE s.claims = d.value ->> 1 AND s.run = d.value ->> 2 AND s.state = 'running'",
    )
    .bind(row::texts(&fence))
    .fetch_one(&mut *conn)
    .await?;
    let hit: Vec<i64> = row::read::<(i64, i32)>(&ours)?.into_iter().map(|(job, _)| job).collect();
    sqlx::query(
        "UPDATE job_state
            SET state = 'done', claimed_by = NULL, reason = NULL, failures = d.value ->> 1
           FROM jsonb_each(jsonb($1)) d
          WHERE job_id = d.value ->> 0",
    )
    .bind(ours)
    .execute(&mut *conn)
    .await?;
    let mut fates = Fates::look(conn, leases, &hit, |state| state == "done").await?;
    let adopted = adoptable(conn, &fates.late(&batch.rows)).await?;
    if !adopted.is_empty() {
        fates.adopt(&adopted);
        adopt(conn, &fates.adopted(&batch.rows)).await?;
    }
    let ended: Vec<AnswerRow<'_>> = fates
        .ended(&batch.rows, |end| end.lease)
        .map(|end| row::answer(&end.lease, &end.answer, batch.at))
        .collect();
    sqlx::query(concat!(
        "INSERT INTO results
                (job_id, run, queue, batch, key, outcome, stop_reason, stop_sequence, model, input_tokens,
                 output_tokens, cache_creation_input_tokens, cache_read_input_tokens, calls, continuations, seams,
                 failures, sanitised, dropped, error_type, error_code, error, request_id, started_at, stop_details,
                 text, content, output)
         SELECT j.id, d.value ->> 'run', j.queue, j.batch, j.key, d.value ->> 'outcome',
                d.value ->> 'stop_reason', d.value ->> 'stop_sequence', d.value ->> 'model',
                d.value ->> 'input_tokens', d.value ->> 'output_tokens',
                d.value ->> 'cache_creation_input_tokens', d.value ->> 'cache_read_input_tokens',
                d.value ->> 'calls', d.value ->> 'continuations', d.value ->> 'seams', d.value ->> 'failures',
                d.value ->> 'sanitised', d.value ->> 'dropped', d.value ->> 'error_type', d.value ->> 'error_code',
                d.value ->> 'error',
                d.value ->> 'request_id', ",
        now!(),
        " - (d.value ->> 'started_ago'), d.value ->> 'stop_details', d.value ->> 'text', d.value ->> 'content',
                d.value ->> 'output'
           FROM jsonb_each(jsonb($1)) d
          CROSS JOIN jobs j ON j.id = d.value ->> 'job_id'",
    ))
    .bind(row::texts(&ended))
    .execute(&mut *conn)
    .await?;
    let calls = row::last_calls(batch.rows.iter().map(|end| &**end), batch.at, once);
    fates.write_calls(conn, calls, batch.worker).await?;
    // Jobs that may have spent what their worker does not know of. What was ended by somebody else is
    // summed up when its worker fills it.
    let recount: BTreeSet<i64> = ended
        .iter()
        .filter(|end| end.claim > 1 || end.calls == 0)
        .map(|end| end.job_id)
        .chain(adopted.into_iter().map(|(job, _)| job))
        .collect();
    if !recount.is_empty() {
        self::recount(conn, &row::texts(&Vec::from_iter(recount))).await?;
    }
    Ok(fates.written)
}

/// Returns which of these answers of lost leases are taken, as (job, claim): where the job is not
/// done and the run is the same.
async fn adoptable(conn: &mut SqliteConnection, late: &[&Settlement]) -> sqlx::Result<Vec<(i64, i64)>> {
    let whole: Vec<_> = late
        .iter()
        .filter(|end| end.answer.outcome.is_an_answer())
        .map(|end| (end.lease.job.0, end.lease.claim, end.lease.run))
        .collect();
    if whole.is_empty() {
        return Ok(Vec::new());
    }
    sqlx::query_as(
        "SELECT s.job_id, min(d.value ->> 1)
           FROM jsonb_each(jsonb($1)) d
          CROSS JOIN job_state s ON s.job_id = d.value ->> 0
          WHERE s.run = d.value ->> 2 AND s.state <> 'done'
          GROUP BY s.job_id",
    )
    .bind(row::texts(&whole))
    .fetch_all(conn)
    .await
}

async fn adopt(conn: &mut SqliteConnection, ends: &[&Settlement]) -> sqlx::Result<()> {
    let failures: Vec<_> = ends.iter().map(|end| (end.lease.job.0, end.answer.failures)).collect();
    sqlx::query(
        "UPDATE job_state
            SET state = 'done', claims = claims + 1, claimed_by = NULL, reason = NULL,
                failures = d.value ->> 1
           FROM jsonb_each(jsonb($1)) d
          WHERE job_id = d.value ->> 0",
    )
    .bind(row::texts(&failures))
    .execute(conn)
    .await
    .map(drop)
}

/// Takes the sums of results from the ledger.
async fn recount(conn: &mut SqliteConnection, jobs: &str) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE results AS r
            SET calls = c.calls, continuations = c.continuations, started_at = c.started_at,
                input_tokens = c.input_tokens, output_tokens = c.output_tokens,
                cache_creation_input_tokens = c.cache_creation_input_tokens,
                cache_read_input_tokens = c.cache_read_input_tokens
           FROM (SELECT e.job_id, count(l.job_id) AS calls,
                        coalesce(sum(l.kind IN ('continue', 'regenerate')), 0) AS continuations,
                        min(l.sent_at) AS started_at, coalesce(sum(l.input_tokens), 0) AS input_tokens,
                        coalesce(sum(l.output_tokens), 0) AS output_tokens,
                        coalesce(sum(l.cache_creation_input_tokens), 0) AS cache_creation_input_tokens,
                        coalesce(sum(l.cache_read_input_tokens), 0) AS cache_read_input_tokens
                   FROM json_each($1) d
                  CROSS JOIN results e ON e.job_id = d.value
                   LEFT JOIN calls l ON l.job_id = e.job_id AND l.run = e.run
                  GROUP BY e.job_id) c
          WHERE r.job_id = c.job_id",
    )
    .bind(jobs)
    .execute(conn)
    .await
    .map(drop)
}

/// Whether a job that is put back, `d`, waits for a tool.
macro_rules! unanswered {
    () => {
        "d.value ->> 'asked_claim' IS NOT NULL
         AND EXISTS (SELECT 1 FROM json_each(d.value -> 'tools') t
                  WHERE NOT EXISTS (SELECT 1 FROM tool_calls o
                                     WHERE o.job_id = d.value ->> 'job_id' AND o.claim = d.value ->> 'asked_claim'
                                       AND o.seq = d.value ->> 'asked_seq' AND o.position = t.value ->> 'position'
                                       AND o.answered_at IS NOT NULL))"
    };
}

async fn release(conn: &mut SqliteConnection, batch: &Batch<Release>) -> sqlx::Result<Written> {
    let rows: Vec<Row> = batch.rows.iter().map(|back| row::release(back)).collect();
    let back: Vec<i64> = sqlx::query_scalar(concat!(
        "UPDATE job_state
            SET state = CASE WHEN d.value ->> 'delay_ms' IS NOT NULL THEN 'scheduled'
                             WHEN ",
        unanswered!(),
        " THEN 'waiting' ELSE 'pending' END,
                available_at = coalesce(",
        now!(),
        " + (d.value ->> 'delay_ms'), available_at),
                claimed_by = NULL, failures = d.value ->> 'failures', deferrals = d.value ->> 'deferrals',
                reason = CASE WHEN d.value ->> 'asked_claim' IS NULL OR ",
        unanswered!(),
        " THEN d.value ->> 'reason' END,
                crashes = CASE WHEN d.value ->> 'called' THEN 0 ELSE crashes END
           FROM jsonb_each(jsonb($1)) d
          WHERE job_id = d.value ->> 'job_id' AND claims = d.value ->> 'claim' AND run = d.value ->> 'run'
            AND state = 'running'
         RETURNING job_id",
    ))
    .bind(row::array(&rows))
    .fetch_all(&mut *conn)
    .await?;
    let leases = rows.iter().map(|row| row.lease).collect();
    let before = |state: &str| matches!(state, "pending" | "scheduled" | "waiting");
    let fates = Fates::look(conn, leases, &back, before).await?;
    let calls = batch.rows.iter().filter_map(|back| Some((back.lease, back.call.as_ref()?)));
    let calls = calls.map(|(lease, call)| row::call(&lease, call, batch.at)).collect();
    fates.write_calls(conn, calls, batch.worker).await?;
    open_tools(conn, &row::array(fates.ended(&rows, |row| row.lease)), batch.worker).await?;
    Ok(fates.written)
}

/// Puts down what jobs wait for from now on.
async fn open_tools(conn: &mut SqliteConnection, back: &str, worker: WorkerId) -> sqlx::Result<()> {
    sqlx::query(
        "INSERT INTO tool_calls (job_id, claim, seq, position, run, call_id, name, input, worker)
         SELECT d.value ->> 'job_id', d.value ->> 'asked_claim', d.value ->> 'asked_seq', t.value ->> 'position',
                d.value ->> 'run', t.value ->> 'call_id', t.value ->> 'name', t.value ->> 'input', $2
           FROM json_each($1) d
          CROSS JOIN json_each(d.value, '$.tools') t
          WHERE d.value ->> 'asked_claim' IS NOT NULL
         ON CONFLICT DO NOTHING",
    )
    .bind(back)
    .bind(worker.0)
    .execute(conn)
    .await
    .map(drop)
}

/// What became of the leases of a batch.
struct Fates {
    written: Written,
    /// The results that are written now.
    ended: HashSet<(i64, i64)>,
    /// What each worker is to its job, where the job is there and the row was not written before.
    when: HashMap<(i64, i64), When>,
}

impl Fates {
    /// Sorts the leases, given the jobs whose fence matched.
    ///
    /// `written_before` says whether a state is what the same write left at an earlier try.
    async fn look(
        conn: &mut SqliteConnection,
        all: Vec<Lease>,
        hit: &[i64],
        written_before: fn(&str) -> bool,
    ) -> sqlx::Result<Self> {
        let mut fates = Self { written: Written::default(), ended: HashSet::new(), when: HashMap::new() };
        // As nearly always: a job whose fence matched has one lease in the batch.
        if hit.len() == all.len() {
            fates.ended = all.iter().map(key).collect();
            fates.when = all.iter().map(|lease| (key(lease), When::InTime)).collect();
            fates.written.done = all;
            return Ok(fates);
        }
        let hit: HashSet<i64> = hit.iter().copied().collect();
        let there: Vec<(i64, i64, i64, String)> = sqlx::query_as(
            "SELECT s.job_id, s.claims, s.run, s.state
               FROM jsonb_each(jsonb($1)) d
              CROSS JOIN job_state s ON s.job_id = d.value ->> 'job_id'",
        )
        .bind(row::leases(&all))
        .fetch_all(conn)
        .await?;
        let there: HashMap<i64, (i64, i64, String)> =
            there.into_iter().map(|(job, claims, run, state)| (job, (claims, run, state))).collect();
        for lease in all {
            match there.get(&lease.job.0) {
                Some((claims, run, state))
                    if *claims == lease.claim
                        && *run == lease.run
                        && (hit.contains(&lease.job.0) || written_before(state)) =>
                {
                    // Else it is a second try after a lost answer.
                    if hit.contains(&lease.job.0) {
                        fates.ended.insert(key(&lease));
                        fates.when.insert(key(&lease), When::InTime);
                    }
                    fates.written.done.push(lease);
                }
                Some((_, run, state)) => {
                    fates.when.insert(key(&lease), When::without_lease(lease, *run, state));
                    fates.written.lost.push(lease);
                }
                None => fates.written.lost.push(lease),
            }
        }
        Ok(fates)
    }

    /// Notes that these leases, as (job, claim), brought their jobs' answers although they were lost.
    fn adopt(&mut self, adopted: &[(i64, i64)]) {
        for lease in adopted {
            self.ended.insert(*lease);
            self.when.insert(*lease, When::Over);
        }
        let is_adopted = |lease: &Lease| adopted.contains(&key(lease));
        let taken: Vec<Lease> = self.written.lost.iter().copied().filter(is_adopted).collect();
        self.written.lost.retain(|lease| !is_adopted(lease));
        self.written.done.extend(taken);
    }

    /// Returns those that are written now.
    fn ended<'a, T>(&self, all: &'a [T], lease: fn(&T) -> Lease) -> impl Iterator<Item = &'a T> {
        all.iter().filter(move |one| self.ended.contains(&key(&lease(one))))
    }

    /// Returns the answers that were taken from lost leases.
    fn adopted<'a>(&self, ends: &'a [Arc<Settlement>]) -> Vec<&'a Settlement> {
        let is = |end: &&Arc<Settlement>| self.when.get(&key(&end.lease)) == Some(&When::Over);
        self.ended(ends, |end| end.lease).filter(is).map(|end| &**end).collect()
    }

    /// Returns the answers to jobs that are somebody else's now.
    fn late<'a>(&self, ends: &'a [Arc<Settlement>]) -> Vec<&'a Settlement> {
        let is = |end: &&Arc<Settlement>| self.when.get(&key(&end.lease)) == Some(&When::Late);
        ends.iter().filter(is).map(|end| &**end).collect()
    }

    /// Writes the calls of the jobs that are still there.
    async fn write_calls(
        &self,
        conn: &mut SqliteConnection,
        calls: Vec<CallRow<'_>>,
        worker: WorkerId,
    ) -> sqlx::Result<()> {
        let mut in_time = Vec::with_capacity(calls.len());
        let (mut late, mut over) = (Vec::new(), Vec::new());
        for call in calls {
            let lease = key(&call.lease());
            let said_by_the_result = call.once && self.ended.contains(&lease);
            let call = if said_by_the_result { CallRow { content: None, ..call } } else { call };
            match self.when.get(&lease) {
                Some(When::InTime) => in_time.push(call),
                Some(When::Late) => late.push(call),
                Some(When::Over) => over.push(call),
                None => {}
            }
        }
        for (when, calls) in [(When::InTime, in_time), (When::Late, late), (When::Over, over)] {
            if !calls.is_empty() {
                ledger(conn, &calls, worker, when).await?;
            }
        }
        Ok(())
    }
}

fn key(lease: &Lease) -> (i64, i64) {
    (lease.job.0, lease.claim)
}

/// Writes rows of the ledger. What stands in place of a call that was not heard of gives way to the
/// call itself, but for content that somebody may have gone on with: the second half of an answer
/// needs its first.
async fn ledger(
    conn: &mut SqliteConnection,
    calls: &[CallRow<'_>],
    worker: WorkerId,
    when: When,
) -> sqlx::Result<()> {
    sqlx::query(concat!(
        "INSERT INTO calls
                (job_id, claim, seq, run, kind, probe, model, max_tokens, messages, sent_at, first_token_at, ended_at,
                 http_status, request_id, message_id, stop_reason, input_tokens, output_tokens,
                 cache_creation_input_tokens, cache_read_input_tokens, partial, late, error_type, error_code, error,
                 retry_after_ms, worker, stop_details, request, usage, container, content)
         SELECT c.value ->> 'job_id', c.value ->> 'claim', c.value ->> 'seq', c.value ->> 'run',
                c.value ->> 'kind', c.value ->> 'probe', c.value ->> 'model', c.value ->> 'max_tokens',
                c.value ->> 'messages', ",
        now!(),
        " - (c.value ->> 'sent_ago'), ",
        now!(),
        " - (c.value ->> 'first_token_ago'), ",
        now!(),
        " - (c.value ->> 'ended_ago'), c.value ->> 'http_status', c.value ->> 'request_id',
                c.value ->> 'message_id', c.value ->> 'stop_reason', c.value ->> 'input_tokens',
                c.value ->> 'output_tokens', c.value ->> 'cache_creation_input_tokens',
                c.value ->> 'cache_read_input_tokens', c.value ->> 'partial', $3, c.value ->> 'error_type',
                c.value ->> 'error_code', c.value ->> 'error', c.value ->> 'retry_after_ms', $2,
                c.value ->> 'stop_details', c.value ->> 'request', c.value ->> 'usage', c.value ->> 'container',
                c.value ->> 'content'
           FROM jsonb_each(jsonb($1)) c
          WHERE true
         ON CONFLICT (job_id, claim, seq) DO UPDATE
            SET kind = excluded.kind, probe = excluded.probe, model = excluded.model,
                max_tokens = excluded.max_tokens, messages = excluded.messages, sent_at = excluded.sent_at,
                first_token_at = excluded.first_token_at, ended_at = excluded.ended_at,
                http_status = excluded.http_status, request_id = excluded.request_id,
                message_id = excluded.message_id, input_tokens = excluded.input_tokens,
                output_tokens = excluded.output_tokens,
                cache_creation_input_tokens = excluded.cache_creation_input_tokens,
                cache_read_input_tokens = excluded.cache_read_input_tokens,
                retry_after_ms = excluded.retry_after_ms, worker = excluded.worker, usage = excluded.usage,
                (late, partial, stop_reason, error_type, error_code, error, stop_details, request, container, content)
                = (SELECT old.late, old.partial, old.stop_reason, old.error_type, old.error_code, old.error,
                          old.stop_details, old.request, old.container, old.content
                     FROM calls old
                    WHERE old.job_id = excluded.job_id AND old.claim = excluded.claim AND old.seq = excluded.seq
                      AND $4 AND old.content IS NOT NULL
                    UNION ALL
                   SELECT excluded.late, excluded.partial, excluded.stop_reason, excluded.error_type,
                          excluded.error_code, excluded.error, excluded.stop_details, excluded.request,
                          excluded.container, excluded.content
                    LIMIT 1)
          WHERE calls.error_type = 'lost'",
    ))
    .bind(row::texts(calls))
    .bind(worker.0)
    .bind(when != When::InTime)
    .bind(when == When::Late)
    .execute(&mut *conn)
    .await?;
    let checkpointed: Vec<_> = calls
        .iter()
        .filter(|call| call.checkpointed)
        .map(|call| (call.job_id, call.claim, call.seq))
        .collect();
    if checkpointed.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "DELETE FROM checkpoints
          WHERE rowid IN (SELECT k.rowid
                            FROM jsonb_each(jsonb($1)) c
                           CROSS JOIN checkpoints k ON k.job_id = c.value ->> 0
                           WHERE k.claim = c.value ->> 1 AND k.seq <= c.value ->> 2)",
    )
    .bind(row::texts(&checkpointed))
    .execute(conn)
    .await
    .map(drop)
}

async fn fill(conn: &mut SqliteConnection, lease: Lease, answer: &str) -> sqlx::Result<bool> {
    sqlx::query(
        "DELETE FROM calls
          WHERE job_id = $1 AND claim = $2 AND error_type = 'lost' AND sent_at IS NULL AND content IS NULL",
    )
    .bind(lease.job.0)
    .bind(lease.claim)
    .execute(&mut *conn)
    .await?;
    let filled = sqlx::query(
        "UPDATE results
            SET text = $3 ->> 'text', content = $3 ->> 'content', model = $3 ->> 'model',
                stop_reason = $3 ->> 'stop_reason', stop_sequence = $3 ->> 'stop_sequence',
                stop_details = $3 ->> 'stop_details', seams = $3 ->> 'seams', sanitised = $3 ->> 'sanitised',
                request_id = (SELECT l.request_id FROM calls l
                               WHERE l.job_id = $1 AND l.run = $2
                               ORDER BY l.claim DESC, l.seq DESC
                               LIMIT 1)
          WHERE job_id = $1 AND run = $2 AND outcome IN ('cancelled', 'expired') AND text IS NULL",
    )
    .bind(lease.job.0)
    .bind(lease.run)
    .bind(answer)
    .execute(&mut *conn)
    .await?;
    let jobs: Vec<i64> = sqlx::query_scalar("SELECT job_id FROM results WHERE job_id = $1 AND run = $2")
        .bind(lease.job.0)
        .bind(lease.run)
        .fetch_all(&mut *conn)
        .await?;
    recount(conn, &row::ids(&jobs)).await?;
    Ok(filled.rows_affected() == 1)
}
