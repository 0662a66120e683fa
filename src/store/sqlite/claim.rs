//! Claims on SQLite: a loose scan over the claim index finds the lanes, on a connection that reads;
//! one `BEGIN IMMEDIATE` takes jobs from them.

use std::collections::HashMap;

use sqlx::Row as _;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::{SqliteStore, text, tools};
use crate::domain::job::{Claimed, JobId, Lease, Raw, Tally};
use crate::domain::ledger::PastCall;
use crate::domain::outcome::Usage;
use crate::domain::tool::PastTool;
use crate::store::lanes::{Cursor, LANES_MAX, Lane, Lanes, PROBE_BYTES, SCANS_MAX, Scan, Take};
use crate::store::{StoreError, Wanted, row};

/// Rows of more bytes together are read by several statements: rows wait in memory twice, as SQLite
/// has them and as we do, until their statement is over.
const READ_BYTES_MAX: i64 = 1024 * 1024;

/// What one transaction is to take.
struct Order {
    worker: i64,
    lanes: Vec<(Take, Lane)>,
    bytes: i64,
    /// Whether the first job is taken however big it is.
    first: bool,
    /// Whether one suspect may be among them.
    suspect: bool,
}

/// A job to be read, the number of its lane, and its size.
type Picked = (i64, i64, i64);

/// A job and the lane that it came from.
struct Taken {
    job: Claimed,
    lane: usize,
}

impl SqliteStore {
    pub(super) async fn claim_jobs(&self, wanted: &Wanted) -> Result<Vec<Claimed>, StoreError> {
        let mut lanes = self.lanes.lock().await;
        // Twice: a statement that is given up may still run for as long as it may take.
        let asking = self.held.asking(self.limit * 2);
        let mut claimed = Vec::new();
        let done = self.claim_into(&mut lanes, wanted, &mut claimed).await;
        if let Err(error) = done {
            lanes.forget();
            // What came before the failure is ours all the same.
            if claimed.is_empty() {
                return Err(error);
            }
            return self.with_ledger(claimed).await;
        }
        let claimed = self.with_ledger(claimed).await?;
        asking.answered();
        Ok(claimed)
    }

    async fn claim_into(
        &self,
        lanes: &mut Lanes,
        wanted: &Wanted,
        claimed: &mut Vec<Claimed>,
    ) -> Result<(), StoreError> {
        if let Some((jobs, claims)) = self.held.known_while_unsure() {
            let known: Vec<(i64, i64)> = jobs.into_iter().zip(claims).collect();
            let params = (wanted.worker.0, row::texts(&known));
            claimed.extend(self.read(params, |conn, p| Box::pin(strays(conn, p.0, &p.1))).await?);
        }
        let mut bytes = wanted.bytes_max - claimed.iter().map(|job| job.bytes).sum::<i64>();
        let (mut scans, mut rooms) = (0, wanted.rooms.clone());
        while claimed.len() < wanted.slots && (bytes > 0 || claimed.is_empty()) {
            if !lanes.usable(wanted) {
                if scans == SCANS_MAX {
                    break;
                }
                scans += 1;
                let params = (wanted.clone(), lanes.cursor.clone());
                lanes.learn(self.read(params, |conn, p| Box::pin(scan(conn, &p.0, &p.1))).await?, wanted);
            }
            let shares = lanes.deal(wanted.slots - claimed.len(), wanted, &mut rooms);
            if shares.is_empty() {
                // Either nothing is left, or what is left has no room: another look finds the same.
                if lanes.whole() && (scans > 0 || (!claimed.is_empty() && lanes.has_jobs())) {
                    break;
                }
                lanes.forget();
                continue;
            }
            let order = Order {
                worker: wanted.worker.0,
                lanes: shares.iter().map(|&take| (take, lanes.lane(take).clone())).collect(),
                bytes,
                first: claimed.is_empty(),
                suspect: wanted.suspect && !claimed.iter().any(|job| job.tally.is_suspect()),
            };
            let taken = self.write(order, |conn, order| Box::pin(take(conn, order))).await?;
            for take in shares {
                let ids = taken.iter().filter(|one| one.lane == take.lane).map(|one| one.job.lease.job.0);
                lanes.took(take, ids.clone().count(), ids.max().unwrap_or(0));
            }
            bytes -= taken.iter().map(|one| one.job.bytes).sum::<i64>();
            claimed.extend(taken.into_iter().map(|one| one.job));
        }
        Ok(())
    }

    /// Adds what was already paid for, to the jobs that were claimed before, and notes that all are
    /// given out. Where that fails nobody has them: the next claim gives them.
    async fn with_ledger(&self, mut claimed: Vec<Claimed>) -> Result<Vec<Claimed>, StoreError> {
        let again: Vec<Lease> = claimed.iter().map(|job| job.lease).filter(|lease| lease.claim > 1).collect();
        if !again.is_empty() {
            let (calls, tools) = self.read(again, |conn, leases| Box::pin(past(conn, leases))).await?;
            row::hand_out(&mut claimed, calls);
            row::hand_out_tools(&mut claimed, tools);
        }
        self.held.give(&claimed);
        Ok(claimed)
    }
}

/// Finds the lanes: streams of (queue, model) by hops over the index, then in each its lanes from
/// the highest priority down.
async fn scan(conn: &mut SqliteConnection, wanted: &Wanted, cursor: &Cursor) -> sqlx::Result<Scan> {
    let cap = wanted.slots.max(64);
    let lanes_max = LANES_MAX + wanted.blocked.batches.len();
    let at: Vec<_> =
        cursor.batches.iter().map(|((q, m), (priority, batch))| (q, m, priority, batch)).collect();
    let rows = sqlx::query(
        "WITH RECURSIVE hop(job_id, n) AS (
             SELECT job_id, 1
               FROM (SELECT job_id FROM job_state INDEXED BY job_state_claimable
                      WHERE state = 'pending' AND (queue, model) >= ($1, $2)
                      ORDER BY queue, model, priority DESC, batch DESC
                      LIMIT 1)
              UNION ALL
             SELECT coalesce(
                    (SELECT n.job_id FROM job_state n INDEXED BY job_state_claimable
                      WHERE n.state = 'pending' AND n.queue = s.queue AND n.model > s.model
                      ORDER BY n.model, n.priority DESC, n.batch DESC
                      LIMIT 1),
                    (SELECT n.job_id FROM job_state n INDEXED BY job_state_claimable
                      WHERE n.state = 'pending' AND n.queue > s.queue
                      ORDER BY n.queue, n.model, n.priority DESC, n.batch DESC
                      LIMIT 1)), hop.n + 1
               FROM hop
               JOIN job_state s ON s.job_id = hop.job_id
              WHERE hop.n < $3
         ), stream AS MATERIALIZED (
             SELECT s.queue, s.model, s.priority, s.batch, q.model AS queue_model, q.max_running,
                    NOT coalesce(q.paused, 0)
                    AND ($4 = '[]' OR s.queue IN (SELECT value FROM json_each($4)))
                    AND NOT EXISTS (SELECT 1 FROM json_each($6) b
                                     WHERE b.value ->> 0 = coalesce(p.value, '')
                                       AND b.value ->> 1 IN ('', coalesce(nullif(s.model, ''), q.model, $5))) AS flows
               FROM hop
               JOIN job_state s ON s.job_id = hop.job_id
               LEFT JOIN queues q ON q.name = s.queue
               LEFT JOIN json_each($10) p ON p.key = s.queue
         ), lane(queue, model, priority, batch, n) AS (
             SELECT s.queue, s.model, s.priority,
                    coalesce((SELECT a.value ->> 3 FROM json_each($7) a
                               WHERE a.value ->> 0 = s.queue AND a.value ->> 1 = s.model
                                 AND a.value ->> 2 = s.priority), s.batch), 1
               FROM stream s
              WHERE s.flows
              UNION ALL
             SELECT s.queue, s.model, s.priority, s.batch, lane.n + 1
               FROM lane
               JOIN job_state s ON s.job_id = coalesce(
                    (SELECT n.job_id FROM job_state n INDEXED BY job_state_claimable
                      WHERE n.state = 'pending' AND n.queue = lane.queue AND n.model = lane.model
                        AND n.priority = lane.priority AND n.batch < lane.batch
                      ORDER BY n.batch DESC
                      LIMIT 1),
                    (SELECT n.job_id FROM job_state n INDEXED BY job_state_claimable
                      WHERE n.state = 'pending' AND n.queue = lane.queue AND n.model = lane.model
                        AND n.priority < lane.priority
                      ORDER BY n.priority DESC, n.batch DESC
                      LIMIT 1))
              WHERE lane.n < $8
         )
         SELECT s.queue, s.model, s.queue_model, s.max_running, l.priority, l.batch,
                (SELECT count(*)
                   FROM (SELECT 1 FROM job_state n INDEXED BY job_state_claimable
                          WHERE n.state = 'pending' AND n.queue = l.queue AND n.model = l.model
                            AND n.priority = l.priority AND n.batch = l.batch
                          LIMIT +$9)) AS count
           FROM stream s
           LEFT JOIN lane l ON l.queue = s.queue AND l.model = s.model
          ORDER BY s.queue, s.model, l.priority DESC, l.batch DESC",
    )
    .bind(&cursor.stream.0)
    .bind(&cursor.stream.1)
    .bind(LANES_MAX as i64)
    .bind(row::texts(&wanted.queues))
    .bind(&wanted.default_model)
    .bind(row::texts(&wanted.blocked.doors()))
    .bind(row::texts(&at))
    .bind(lanes_max as i64)
    .bind(cap as i64)
    .bind(row::names(&wanted.profiles))
    .fetch_all(conn)
    .await?;
    scanned(&rows, Scan { lanes_max, cap, ..Scan::default() })
}

fn scanned(rows: &[SqliteRow], mut scan: Scan) -> sqlx::Result<Scan> {
    for found in rows {
        scan.add(found.try_get("queue")?, found.try_get("model")?);
        if let Some(priority) = found.try_get("priority")? {
            let count: i64 = found.try_get("count")?;
            scan.lanes.push(Lane {
                queue: scan.last.0.clone(),
                model: scan.last.1.clone(),
                priority,
                batch: found.try_get("batch")?,
                queue_model: text(found, "queue_model")?,
                limit: found.try_get("max_running")?,
                count: count as usize,
                after: 0,
            });
        }
    }
    Ok(scan)
}

/// Takes jobs from lanes, as far as the queues' limits and the bytes allow.
async fn take(conn: &mut SqliteConnection, order: &Order) -> sqlx::Result<Vec<Taken>> {
    let enlisted: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM workers WHERE id = $1)")
        .bind(order.worker)
        .fetch_one(&mut *conn)
        .await?;
    if !enlisted {
        return Ok(Vec::new());
    }
    let mut rooms: HashMap<&str, i64> = HashMap::new();
    let (mut picked, mut bytes, mut suspect): (Vec<Picked>, _, _) = (Vec::new(), order.bytes, order.suspect);
    for (take, lane) in &order.lanes {
        let room = match rooms.get(lane.queue.as_str()) {
            Some(room) => *room,
            None => room_in(conn, lane).await?,
        };
        // As one row: each costs a message between two threads.
        let jobs: String = sqlx::query_scalar(
            "SELECT json_group_array(json_array(job_id, bytes, crashes >= $7))
               FROM (SELECT job_id, bytes, crashes
                       FROM (SELECT job_id, bytes, crashes FROM job_state INDEXED BY job_state_claimable
                              WHERE state = 'pending' AND queue = $1 AND model = $2 AND priority = $3 AND batch = $4
                                AND job_id > $5 AND (crashes < $7 OR $8)
                              ORDER BY job_id
                              LIMIT +$9)
                      ORDER BY $9 > $6 AND bytes > $10, job_id
                      LIMIT +$6)",
        )
        .bind(&lane.queue)
        .bind(&lane.model)
        .bind(lane.priority)
        .bind(&lane.batch)
        .bind(lane.after)
        .bind((take.jobs as i64).min(room))
        .bind(Tally::SUSPECT)
        .bind(suspect)
        .bind((take.among as i64).min(room))
        .bind(PROBE_BYTES)
        .fetch_one(&mut *conn)
        .await?;
        let before = picked.len();
        for (job, size, suspected) in row::read::<(i64, i64, i64)>(&jobs)? {
            if suspected == 1 && !std::mem::take(&mut suspect) {
                continue;
            }
            if size > bytes && !(order.first && picked.is_empty()) {
                break;
            }
            bytes -= size;
            picked.push((job, take.lane as i64, size));
        }
        rooms.insert(&lane.queue, room - (picked.len() - before) as i64);
    }
    if picked.is_empty() {
        return Ok(Vec::new());
    }
    sqlx::query(
        "UPDATE job_state
            SET state = 'running', claims = claims + 1, claimed_by = $2, reason = NULL
          WHERE job_id IN (SELECT value ->> 0 FROM json_each($1))",
    )
    .bind(row::texts(&picked))
    .bind(order.worker)
    .execute(&mut *conn)
    .await?;
    read(conn, &picked).await
}

/// Reads claimed jobs, in their order: the users' rows, and their queues'.
async fn read(conn: &mut SqliteConnection, picked: &[Picked]) -> sqlx::Result<Vec<Taken>> {
    let mut taken = Vec::with_capacity(picked.len());
    let mut rest = picked;
    while !rest.is_empty() {
        let mut bytes = 0;
        let fits = |job: &&Picked| {
            bytes += job.2;
            bytes <= READ_BYTES_MAX
        };
        let (now, later) = rest.split_at(rest.iter().take_while(fits).count().max(1));
        rest = later;
        let rows = sqlx::query(concat!(
            "WITH claimed AS MATERIALIZED (
                 SELECT value ->> 0 AS job_id, value ->> 1 AS lane FROM json_each($1)
             )
             SELECT s.job_id, s.claims, s.run, s.failures, s.deferrals, s.crashes, s.bytes, s.queue, c.lane,
                    ",
            now!(),
            " - s.available_at AS waited_ms,
                    j.batch, j.prompt, j.system, coalesce(j.model, nullif(s.model, '')) AS model,
                    j.max_tokens, j.params, j.policy,
                    q.model AS queue_model, q.policy AS queue_policy
               FROM claimed c
              CROSS JOIN job_state s ON s.job_id = c.job_id
              CROSS JOIN jobs j ON j.id = s.job_id
               LEFT JOIN queues q ON q.name = s.queue"
        ))
        .bind(row::texts(now))
        .fetch_all(&mut *conn)
        .await?;
        for found in &rows {
            let lane = found.try_get::<i64, _>("lane")? as usize;
            taken.push(Taken { job: claimed(found)?, lane });
        }
    }
    Ok(taken)
}

/// How many more jobs may run in the lane's queue.
async fn room_in(conn: &mut SqliteConnection, lane: &Lane) -> sqlx::Result<i64> {
    if lane.limit.is_none() {
        return Ok(i64::MAX);
    }
    let room: Option<i64> = sqlx::query_scalar(
        "SELECT q.max_running - (SELECT count(*) FROM job_state WHERE state = 'running' AND queue = $1)
           FROM queues q
          WHERE q.name = $1",
    )
    .bind(&lane.queue)
    .fetch_optional(conn)
    .await?
    .flatten();
    Ok(room.unwrap_or(i64::MAX).max(0))
}

/// Finds jobs that are claimed for this worker although it was never told.
async fn strays(conn: &mut SqliteConnection, worker: i64, known: &str) -> sqlx::Result<Vec<Claimed>> {
    let picked: Vec<Picked> = sqlx::query_as(
        "SELECT job_id, 0, bytes
           FROM job_state
          WHERE state = 'running' AND claimed_by = $1
            AND (job_id, claims) NOT IN (SELECT value ->> 0, value ->> 1 FROM json_each($2))
          ORDER BY job_id",
    )
    .bind(worker)
    .bind(known)
    .fetch_all(&mut *conn)
    .await?;
    Ok(read(conn, &picked).await?.into_iter().map(|one| one.job).collect())
}

fn claimed(found: &SqliteRow) -> sqlx::Result<Claimed> {
    Ok(Claimed {
        lease: Lease {
            job: JobId(found.try_get("job_id")?),
            claim: found.try_get("claims")?,
            run: found.try_get("run")?,
        },
        queue: text(found, "queue")?.unwrap_or_default(),
        batch: text(found, "batch")?,
        prompt: text(found, "prompt")?,
        system: text(found, "system")?,
        model: text(found, "model")?,
        max_tokens: found.try_get("max_tokens")?,
        params: text(found, "params")?.map(Raw::from),
        policy: text(found, "policy")?,
        queue_model: text(found, "queue_model")?,
        queue_policy: text(found, "queue_policy")?,
        garbled: garbled(found)?,
        bytes: found.try_get("bytes")?,
        waited: row::waited(found.try_get("claims")?, found.try_get("waited_ms")?),
        tally: Tally {
            failures: found.try_get("failures")?,
            deferrals: found.try_get("deferrals")?,
            crashes: found.try_get("crashes")?,
        },
        calls: Vec::new(),
        tools: Vec::new(),
    })
}

/// Returns the first column whose bytes are not UTF-8: what would be sent of it is not what was written.
fn garbled(found: &SqliteRow) -> sqlx::Result<Option<&'static str>> {
    for (column, name) in [
        ("prompt", "prompt"),
        ("system", "system"),
        ("params", "params"),
        ("policy", "policy"),
        ("queue_policy", "queues.policy"),
        ("queue_model", "queues.model"),
    ] {
        let bytes: Option<&[u8]> = found.try_get(column)?;
        if bytes.is_some_and(|bytes| std::str::from_utf8(bytes).is_err()) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// What these runs were through: their calls, and what their tools were asked.
type Past = (Vec<(JobId, PastCall)>, Vec<(JobId, PastTool)>);

async fn past(conn: &mut SqliteConnection, leases: &[Lease]) -> sqlx::Result<Past> {
    let calls = past_calls(conn, leases).await?;
    Ok((calls, tools::past(conn, leases).await?))
}

/// Reads the ledger of these runs, oldest first.
async fn past_calls(conn: &mut SqliteConnection, leases: &[Lease]) -> sqlx::Result<Vec<(JobId, PastCall)>> {
    let rows = sqlx::query(concat!(
        "SELECT c.job_id, c.claim, c.seq, c.kind, c.model, c.max_tokens, c.request, c.stop_reason, c.stop_details,
                c.input_tokens, c.output_tokens, c.cache_creation_input_tokens, c.cache_read_input_tokens,
                CASE WHEN NOT c.late THEN c.content END AS content, c.late, c.container, c.partial, c.error_type, c.request_id, ",
        now!(),
        " - c.sent_at AS sent_ago
           FROM jsonb_each(jsonb($1)) d
          CROSS JOIN calls c ON c.job_id = d.value ->> 'job_id'
          WHERE c.run = d.value ->> 'run'
          ORDER BY c.job_id, c.claim, c.seq",
    ))
    .bind(row::leases(leases))
    .fetch_all(conn)
    .await?;
    rows.iter().map(past_call).collect()
}

fn past_call(found: &SqliteRow) -> sqlx::Result<(JobId, PastCall)> {
    let call = PastCall {
        claim: found.try_get("claim")?,
        seq: found.try_get("seq")?,
        kind: found.try_get("kind")?,
        model: found.try_get("model")?,
        max_tokens: found.try_get("max_tokens")?,
        request: found.try_get("request")?,
        stop_reason: found.try_get("stop_reason")?,
        stop_details: found.try_get("stop_details")?,
        usage: Usage {
            input: found.try_get("input_tokens")?,
            output: found.try_get("output_tokens")?,
            cache_creation: found.try_get("cache_creation_input_tokens")?,
            cache_read: found.try_get("cache_read_input_tokens")?,
        },
        content: found.try_get("content")?,
        container: found.try_get("container")?,
        partial: found.try_get("partial")?,
        late: found.try_get("late")?,
        error_type: found.try_get("error_type")?,
        request_id: found.try_get("request_id")?,
        sent_ago: found.try_get::<Option<i64>, _>("sent_ago")?.map(row::left),
    };
    Ok((JobId(found.try_get("job_id")?), call))
}
