//! Claims on Postgres: a loose scan over the claim index finds the lanes, one statement takes jobs
//! from them. A queue with a limit is claimed from alone, while its row is locked.

use std::time::Instant;

use futures_util::{Stream, TryStreamExt as _};
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Connection as _, Executor as _, Row as _};

use super::{PostgresStore, tools};
use crate::domain::job::{Claimed, JobId, Lease, Raw, Tally};
use crate::domain::ledger::PastCall;
use crate::domain::outcome::Usage;
use crate::domain::tool::PastTool;
use crate::store::lanes::{Cursor, LANES_MAX, Lane, Lanes, PROBE_BYTES, SCANS_MAX, Scan, Take};
use crate::store::{StoreError, Wanted, row};

/// What a claim brings of the jobs in `claimed`: the user's row, and the queue's. Put into their order
/// here: the server would sort the wide rows, on its disk where they are large.
macro_rules! wide {
    () => {
        " SELECT c.job_id, c.claims, c.run, c.failures, c.deferrals, c.crashes, c.bytes, c.queue, c.lane,
                 (extract(epoch FROM clock_timestamp() - c.available_at) * 1000)::bigint AS waited_ms,
                 j.batch, j.prompt, j.system, coalesce(j.model, nullif(c.model, '')) AS model, j.max_tokens, j.params::text AS params,
                 j.policy::text AS policy, q.model AS queue_model, q.policy::text AS queue_policy
            FROM claimed c
           CROSS JOIN LATERAL (
                 SELECT batch, prompt, system, model, max_tokens, params, policy FROM jobs
                  WHERE id = c.job_id
                  LIMIT 1) j
            LEFT JOIN queues q ON q.name = c.queue"
    };
}

/// A job and the lane that it came from.
struct Taken {
    job: Claimed,
    lane: usize,
}

/// What one statement is to take.
struct Order {
    worker: i64,
    lanes: Vec<(Take, Lane)>,
    /// The queue's name, where it has a limit.
    limited: Option<String>,
    bytes: i64,
    /// Whether the first job is taken however big it is.
    first: bool,
    /// Whether one suspect may be among them.
    suspect: bool,
}

impl PostgresStore {
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
        if let Some(known) = self.held.known_while_unsure() {
            let params = (wanted.worker.0, known);
            claimed.extend(self.run(params, |conn, p| Box::pin(strays(conn, p.0, &p.1.0, &p.1.1))).await?);
        }
        let mut bytes = wanted.bytes_max - claimed.iter().map(|job| job.bytes).sum::<i64>();
        let (mut scans, mut rooms) = (0, wanted.rooms.clone());
        while claimed.len() < wanted.slots && (bytes > 0 || claimed.is_empty()) {
            if !lanes.usable(wanted) {
                if scans == SCANS_MAX {
                    break;
                }
                scans += 1;
                self.look(lanes, wanted).await?;
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
            for order in orders(lanes, &shares, wanted) {
                let asked: Vec<Take> = order.lanes.iter().map(|(take, _)| *take).collect();
                let suspect = wanted.suspect && !claimed.iter().any(|job| job.tally.is_suspect());
                let order = Order { bytes, first: claimed.is_empty(), suspect, ..order };
                let taken = self.run(order, |conn, order| Box::pin(take(conn, order))).await?;
                for take in asked {
                    let ids = taken.iter().filter(|one| one.lane == take.lane).map(|one| one.job.lease.job.0);
                    lanes.took(take, ids.clone().count(), ids.max().unwrap_or(0));
                }
                bytes -= taken.iter().map(|one| one.job.bytes).sum::<i64>();
                claimed.extend(taken.into_iter().map(|one| one.job));
            }
        }
        Ok(())
    }

    /// Finds out where there are jobs: by a scan, or, where that costs much, in the lanes that are known.
    async fn look(&self, lanes: &mut Lanes, wanted: &Wanted) -> Result<(), StoreError> {
        if let Some(known) = lanes.known(wanted) {
            let params = (known.to_vec(), lanes.cap());
            let counted = self.run(params, |conn, p| Box::pin(recount(conn, &p.0, p.1))).await?;
            if lanes.recount(counted, wanted) {
                return Ok(());
            }
        }
        let began = Instant::now();
        let params = (wanted.clone(), lanes.cursor.clone());
        let found = self.run(params, |conn, p| Box::pin(scan(conn, &p.0, &p.1))).await?;
        lanes.learn(Scan { took: began.elapsed(), ..found }, wanted);
        Ok(())
    }

    /// Adds what was already paid for, to the jobs that were claimed before, and notes that all are
    /// given out. Where that fails nobody has them: the next claim gives them.
    async fn with_ledger(&self, mut claimed: Vec<Claimed>) -> Result<Vec<Claimed>, StoreError> {
        let again: Vec<Lease> = claimed.iter().map(|job| job.lease).filter(|lease| lease.claim > 1).collect();
        if !again.is_empty() {
            let (calls, tools) = self.run(again, |conn, leases| Box::pin(past(conn, leases))).await?;
            row::hand_out(&mut claimed, calls);
            row::hand_out_tools(&mut claimed, tools);
        }
        self.held.give(&claimed);
        Ok(claimed)
    }
}

/// One order for all the queues without a limit, and one for each with one.
fn orders(lanes: &Lanes, takes: &[Take], wanted: &Wanted) -> Vec<Order> {
    let mut orders: Vec<Order> = Vec::new();
    for &take in takes {
        let lane = lanes.lane(take).clone();
        let limited = lane.limit.map(|_| lane.queue.clone());
        match orders.iter_mut().find(|order| order.limited == limited) {
            Some(order) => order.lanes.push((take, lane)),
            None => orders.push(Order {
                worker: wanted.worker.0,
                lanes: vec![(take, lane)],
                limited,
                bytes: 0,
                first: false,
                suspect: false,
            }),
        }
    }
    orders
}

/// Finds the lanes: streams of (queue, model) by hops over the index, then in each its lanes from
/// the highest priority down.
async fn scan(conn: &mut PgConnection, wanted: &Wanted, cursor: &Cursor) -> sqlx::Result<Scan> {
    let cap = wanted.slots.max(64);
    let lanes_max = LANES_MAX + wanted.blocked.batches.len();
    let (mut at_queues, mut at_models, mut at_priorities, mut at_batches) = (vec![], vec![], vec![], vec![]);
    for ((queue, model), (priority, batch)) in &cursor.batches {
        at_queues.push(queue.as_str());
        at_models.push(model.as_str());
        at_priorities.push(*priority);
        at_batches.push(batch.as_str());
    }
    let (queues, profiles): (Vec<&str>, Vec<&str>) =
        wanted.profiles.iter().map(|(queue, profile)| (queue.as_str(), profile.as_str())).unzip();
    let (shut_profiles, shut_models): (Vec<&str>, Vec<&str>) = wanted.blocked.doors().into_iter().unzip();
    let rows = sqlx::query(
        "WITH RECURSIVE hop AS (
             (SELECT queue, model FROM job_state
               WHERE state = 'pending' AND (queue, model) >= ($1, $2)
               ORDER BY queue, model
               LIMIT 1)
              UNION ALL
             SELECT n.queue, n.model
               FROM hop h
              CROSS JOIN LATERAL (
                    SELECT queue, model FROM job_state
                     WHERE state = 'pending' AND (queue, model) > (h.queue, h.model)
                     ORDER BY queue, model
                     LIMIT 1) n
         ), stream AS MATERIALIZED (
             SELECT queue, model FROM hop LIMIT $3
         )
         SELECT st.queue, st.model, q.model AS queue_model, q.max_running, l.priority, l.batch, l.count
           FROM stream st
           LEFT JOIN queues q ON q.name = st.queue
           LEFT JOIN unnest($13::text[], $14::text[]) AS p(queue, profile) ON p.queue = st.queue
           LEFT JOIN LATERAL (
                WITH RECURSIVE lane AS (
                    (SELECT top.priority, coalesce(a.batch, top.batch) AS batch
                       FROM (SELECT priority, batch FROM job_state
                              WHERE state = 'pending' AND queue = st.queue AND model = st.model
                              ORDER BY priority DESC, batch DESC
                              LIMIT 1) top
                       LEFT JOIN unnest($7::text[], $8::text[], $9::integer[], $10::text[])
                                 AS a(queue, model, priority, batch)
                              ON a.queue = st.queue AND a.model = st.model AND a.priority = top.priority)
                     UNION ALL
                    SELECT n.priority, n.batch
                      FROM lane
                     CROSS JOIN LATERAL (
                           SELECT priority, batch FROM job_state
                            WHERE state = 'pending' AND queue = st.queue AND model = st.model
                              AND (priority, batch) < (lane.priority, lane.batch)
                            ORDER BY priority DESC, batch DESC
                            LIMIT 1) n
                )
                SELECT lane.priority, lane.batch, c.count
                  FROM (SELECT priority, batch FROM lane LIMIT $11) lane
                 CROSS JOIN LATERAL (
                       SELECT count(*) FROM (
                              SELECT FROM job_state
                               WHERE state = 'pending' AND queue = st.queue AND model = st.model
                                 AND priority = lane.priority AND batch = lane.batch
                               -- In the index's order: else the planner, who counts on finding enough of
                               -- them soon, may read the table from its start, where the done ones are.
                               ORDER BY job_id + 0
                               LIMIT $12) pending) c) l
             ON NOT coalesce(q.paused, false)
            AND (cardinality($4::text[]) = 0 OR st.queue = ANY ($4))
            AND NOT EXISTS (SELECT FROM unnest($6::text[], $15::text[]) AS b(profile, model)
                             WHERE b.profile = coalesce(p.profile, '')
                               AND b.model IN ('', coalesce(nullif(st.model, ''), q.model, $5)))
          ORDER BY st.queue, st.model, l.priority DESC, l.batch DESC",
    )
    .bind(&cursor.stream.0)
    .bind(&cursor.stream.1)
    .bind(LANES_MAX as i64)
    .bind(&wanted.queues)
    .bind(&wanted.default_model)
    .bind(shut_profiles)
    .bind(&at_queues)
    .bind(&at_models)
    .bind(&at_priorities)
    .bind(&at_batches)
    .bind(lanes_max as i64)
    .bind(cap as i64)
    .bind(queues)
    .bind(profiles)
    .bind(shut_models)
    .fetch_all(conn)
    .await?;
    scanned(&rows, Scan { lanes_max, cap, ..Scan::default() })
}

fn scanned(rows: &[PgRow], mut scan: Scan) -> sqlx::Result<Scan> {
    for found in rows {
        scan.add(found.try_get("queue")?, found.try_get("model")?);
        if let Some(priority) = found.try_get("priority")? {
            let count: i64 = found.try_get("count")?;
            scan.lanes.push(Lane {
                queue: scan.last.0.clone(),
                model: scan.last.1.clone(),
                priority,
                batch: found.try_get("batch")?,
                queue_model: found.try_get("queue_model")?,
                limit: found.try_get("max_running")?,
                count: count as usize,
                after: 0,
            });
        }
    }
    Ok(scan)
}

/// Counts what is left in lanes beyond the jobs that were taken. What is dead before them in the index is not
/// looked at.
async fn recount(conn: &mut PgConnection, lanes: &[Lane], cap: usize) -> sqlx::Result<Vec<Lane>> {
    let column = |of: fn(&Lane) -> &str| lanes.iter().map(of).collect::<Vec<&str>>();
    let rows = sqlx::query(
        "SELECT q.model AS queue_model, q.max_running, CASE WHEN q.paused THEN 0 ELSE c.count END AS count
           FROM unnest($1::text[], $2::text[], $3::integer[], $4::text[], $5::bigint[])
                WITH ORDINALITY AS l(queue, model, priority, batch, after, lane)
           LEFT JOIN queues q ON q.name = l.queue
          CROSS JOIN LATERAL (
                SELECT count(*) FROM (
                       SELECT FROM job_state
                        WHERE state = 'pending' AND queue = l.queue AND model = l.model
                          AND priority = l.priority AND batch = l.batch AND job_id + 0 > l.after
                        ORDER BY job_id + 0
                        LIMIT $6) pending) c
          ORDER BY l.lane",
    )
    .bind(column(|lane| &lane.queue))
    .bind(column(|lane| &lane.model))
    .bind(lanes.iter().map(|lane| lane.priority).collect::<Vec<i32>>())
    .bind(column(|lane| &lane.batch))
    .bind(lanes.iter().map(|lane| lane.after).collect::<Vec<i64>>())
    .bind(cap as i64)
    .fetch_all(conn)
    .await?;
    let counted = |(lane, found): (&Lane, &PgRow)| {
        Ok(Lane {
            queue_model: found.try_get("queue_model")?,
            limit: found.try_get("max_running")?,
            count: found.try_get::<i64, _>("count")? as usize,
            ..lane.clone()
        })
    };
    lanes.iter().zip(&rows).map(counted).collect()
}

/// Takes jobs from lanes: at once, or, from a queue with a limit, while its row is ours.
async fn take(conn: &mut PgConnection, order: &Order) -> sqlx::Result<Vec<Taken>> {
    let Some(queue) = &order.limited else {
        return take_now(conn, order, i64::MAX).await;
    };
    // Behind a pooler each operation is a transaction already.
    let nested = conn.is_in_transaction();
    if !nested {
        conn.execute("BEGIN").await?;
    }
    match take_limited(conn, order, queue).await {
        Ok(taken) if nested => Ok(taken),
        Ok(taken) => {
            conn.execute("COMMIT").await?;
            Ok(taken)
        }
        Err(error) => {
            if !nested {
                conn.execute("ROLLBACK").await?;
            }
            // Somebody else claims there, or a person is changing the queue: the next claim sees to it.
            let locked =
                error.as_database_error().is_some_and(|error| error.code().as_deref() == Some("55P03"));
            if locked { Ok(Vec::new()) } else { Err(error) }
        }
    }
}

async fn take_limited(conn: &mut PgConnection, order: &Order, queue: &str) -> sqlx::Result<Vec<Taken>> {
    conn.execute("SET LOCAL lock_timeout = '100ms'").await?;
    // A count in the statement that waited for the lock would not see what the other one claimed.
    let limit: Option<i32> =
        sqlx::query_scalar("SELECT max_running FROM queues WHERE name = $1 FOR NO KEY UPDATE")
            .bind(queue)
            .fetch_optional(&mut *conn)
            .await?
            .flatten();
    let running: i64 =
        sqlx::query_scalar("SELECT count(*) FROM job_state WHERE state = 'running' AND queue = $1")
            .bind(queue)
            .fetch_one(&mut *conn)
            .await?;
    match limit.map_or(i64::MAX, |limit| i64::from(limit) - running) {
        ..=0 => Ok(Vec::new()),
        room => take_now(conn, order, room).await,
    }
}

async fn take_now(conn: &mut PgConnection, order: &Order, room: i64) -> sqlx::Result<Vec<Taken>> {
    let column = |of: fn(&Lane) -> &str| order.lanes.iter().map(|(_, lane)| of(lane)).collect::<Vec<&str>>();
    let rows = sqlx::query(concat!(
        "WITH lane AS MATERIALIZED (
             SELECT *
               FROM unnest($1::text[], $2::text[], $3::integer[], $4::text[], $5::integer[], $6::bigint[], $7::integer[],
                           $14::integer[])
                    AS l(queue, model, priority, batch, jobs, after, lane, among)
         ), picked AS MATERIALIZED (
             SELECT p.job_id, p.bytes, p.crashes >= $12 AS suspect, l.lane, l.priority
               FROM lane l
              CROSS JOIN LATERAL (
                    SELECT o.job_id, o.bytes, o.crashes
                      FROM (SELECT s.job_id, s.bytes, s.crashes FROM job_state s
                             WHERE s.state = 'pending' AND s.queue = l.queue AND s.model = l.model
                               AND s.priority = l.priority AND s.batch = l.batch AND s.job_id + 0 > l.after
                               AND (s.crashes < $12 OR $13)
                             ORDER BY s.job_id + 0
                             LIMIT l.among
                               FOR NO KEY UPDATE SKIP LOCKED) o
                     ORDER BY l.among > l.jobs AND o.bytes > $15, o.job_id
                     LIMIT l.jobs) p
              WHERE EXISTS (SELECT FROM workers WHERE id = $8)
         ), fit AS MATERIALIZED (
             SELECT job_id, lane
               FROM (SELECT job_id, lane, suspect, row_number() OVER turn AS n, sum(bytes) OVER turn AS total,
                            count(*) FILTER (WHERE suspect) OVER turn AS suspects
                       FROM picked
                     WINDOW turn AS (ORDER BY priority DESC, lane, job_id)) p
              WHERE (total <= $9 OR (n = 1 AND $10)) AND n <= $11 AND (suspects = 1 OR NOT suspect)
         ), claimed AS (
             UPDATE job_state s
                SET state = 'running', claims = s.claims + 1, claimed_by = $8, reason = NULL
               FROM fit f
              WHERE s.job_id = f.job_id AND s.job_id = ANY (ARRAY(SELECT job_id FROM fit))
             RETURNING s.job_id, s.claims, s.run, s.failures, s.deferrals, s.crashes, s.bytes, s.queue,
                       s.model, s.available_at, f.lane
         )",
        wide!(),
    ))
    .bind(column(|lane| &lane.queue))
    .bind(column(|lane| &lane.model))
    .bind(order.lanes.iter().map(|(_, lane)| lane.priority).collect::<Vec<i32>>())
    .bind(column(|lane| &lane.batch))
    .bind(order.lanes.iter().map(|(take, _)| take.jobs as i32).collect::<Vec<i32>>())
    .bind(order.lanes.iter().map(|(_, lane)| lane.after).collect::<Vec<i64>>())
    .bind(order.lanes.iter().map(|(take, _)| take.lane as i32).collect::<Vec<i32>>())
    .bind(order.worker)
    .bind(order.bytes)
    .bind(order.first)
    .bind(room)
    .bind(Tally::SUSPECT)
    .bind(order.suspect)
    .bind(order.lanes.iter().map(|(take, _)| take.among as i32).collect::<Vec<i32>>())
    .bind(PROBE_BYTES)
    .fetch(conn);
    taken(rows).await
}

/// Reads claimed jobs as they come, so that no two large rows are held as the driver has them, and puts
/// them in order.
async fn taken(mut rows: impl Stream<Item = sqlx::Result<PgRow>> + Unpin) -> sqlx::Result<Vec<Taken>> {
    let mut taken = Vec::new();
    while let Some(found) = rows.try_next().await? {
        taken.push(Taken { lane: found.try_get::<i32, _>("lane")? as usize, job: claimed(&found)? });
    }
    taken.sort_by_key(|one| (one.lane, one.job.lease.job));
    Ok(taken)
}

/// Finds jobs that are claimed for this worker although it was never told.
async fn strays(
    conn: &mut PgConnection,
    worker: i64,
    jobs: &[i64],
    claims: &[i64],
) -> sqlx::Result<Vec<Claimed>> {
    let rows = sqlx::query(concat!(
        "WITH claimed AS (
             SELECT job_id, claims, run, failures, deferrals, crashes, bytes, queue, model, available_at, 0 AS lane
               FROM job_state
              WHERE state = 'running' AND claimed_by = $1
                AND NOT (job_id, claims) IN (SELECT * FROM unnest($2::bigint[], $3::bigint[]))
         )",
        wide!(),
    ))
    .bind(worker)
    .bind(jobs)
    .bind(claims)
    .fetch(conn);
    Ok(taken(rows).await?.into_iter().map(|one| one.job).collect())
}

fn claimed(found: &PgRow) -> sqlx::Result<Claimed> {
    Ok(Claimed {
        lease: Lease {
            job: JobId(found.try_get("job_id")?),
            claim: found.try_get("claims")?,
            run: found.try_get("run")?,
        },
        queue: found.try_get("queue")?,
        batch: found.try_get("batch")?,
        prompt: found.try_get("prompt")?,
        system: found.try_get("system")?,
        model: found.try_get("model")?,
        max_tokens: found.try_get("max_tokens")?,
        params: found.try_get::<Option<String>, _>("params")?.map(Raw::from),
        policy: found.try_get("policy")?,
        queue_model: found.try_get("queue_model")?,
        queue_policy: found.try_get("queue_policy")?,
        garbled: None,
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

/// What these runs were through: their calls, and what their tools were asked.
type Past = (Vec<(JobId, PastCall)>, Vec<(JobId, PastTool)>);

async fn past(conn: &mut PgConnection, leases: &[Lease]) -> sqlx::Result<Past> {
    let calls = past_calls(conn, leases).await?;
    Ok((calls, tools::past(conn, leases).await?))
}

/// Reads the ledger of these runs, oldest first.
async fn past_calls(conn: &mut PgConnection, leases: &[Lease]) -> sqlx::Result<Vec<(JobId, PastCall)>> {
    let (jobs, _, runs) = row::columns(leases);
    let rows = sqlx::query(
        "SELECT c.job_id, c.claim, c.seq, c.kind, c.model, c.max_tokens, c.request::text AS request, c.stop_reason,
                c.stop_details::text AS stop_details, c.input_tokens, c.output_tokens,
                c.cache_creation_input_tokens, c.cache_read_input_tokens,
                CASE WHEN NOT c.late THEN c.content::text END AS content, c.late,
                c.container::text AS container, c.partial, c.error_type, c.request_id,
                floor(extract(epoch FROM now() - c.sent_at) * 1000)::bigint AS sent_ago
           FROM unnest($1::bigint[], $2::bigint[]) AS d(job_id, run)
          CROSS JOIN LATERAL (
                SELECT * FROM calls
                 WHERE job_id = d.job_id AND run = d.run
                 ORDER BY claim, seq
                OFFSET 0) c
          ORDER BY c.job_id, c.claim, c.seq",
    )
    .bind(jobs)
    .bind(runs)
    .fetch_all(conn)
    .await?;
    rows.iter().map(past_call).collect()
}

fn past_call(found: &PgRow) -> sqlx::Result<(JobId, PastCall)> {
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
