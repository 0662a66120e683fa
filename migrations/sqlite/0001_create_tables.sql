-- The contract: what people write (jobs), change (job_state, tool_calls, queues, gates) and read (results, calls, views).
-- Times are milliseconds since 1970, UTC. There is no older binary to run beside this.
--
-- Defaults, CHECKs and triggers run in the SQLite library of whoever writes: nothing newer than 3.37 in them, hence
-- julianday() for the time. No foreign keys: the sqlite3 shell leaves them off, so the delete triggers do their work.
-- Triggers must hold with recursive_triggers on and off, and under INSERT OR anything: the OR of a statement also
-- rules the statements inside its triggers, so none of them relies on an OR of its own.

-- "Prml": tells our file from others.
PRAGMA application_id = 1349676396;

-- What you asked. INSERT and DELETE; of a row that is there only metadata is updated, and redacted_at, once: a done job
-- loses prompt, system and params then, and keeps its result and its ledger. All columns are promised.
-- Narrow columns first: those behind a long prompt would be read through all of its pages.
CREATE TABLE jobs (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    queue      TEXT    NOT NULL DEFAULT 'default',
    batch      TEXT,
    key        TEXT    UNIQUE,
    model      TEXT,
    max_tokens INTEGER,
    priority   INTEGER NOT NULL DEFAULT 0,
    run_at     INTEGER NOT NULL DEFAULT (CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER)),
    created_at INTEGER NOT NULL DEFAULT (CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER)),
    prompt     TEXT,
    system     TEXT,
    params     TEXT,
    policy     TEXT,
    metadata   TEXT    CONSTRAINT metadata_is_json CHECK (metadata IS NULL OR json_valid(metadata)),
    redacted_at INTEGER CONSTRAINT redacted_at_is_milliseconds CHECK (redacted_at BETWEEN 100000000000 AND 253402300799999)
) STRICT;

-- The constraints of jobs. A trigger and not CHECKs, because INSERT OR IGNORE (which people use for idempotency)
-- skips a row that fails a CHECK without a word, and because it can say what to do.
CREATE TRIGGER jobs_checked BEFORE INSERT ON jobs BEGIN
    SELECT CASE
        WHEN NEW.redacted_at IS NOT NULL
            THEN RAISE(ABORT, 'nobody_inserts_redacted_jobs: redacted_at says when a done job lost its prompt; leave it out of the INSERT')
        WHEN NEW.params IS NOT NULL AND NOT json_valid(NEW.params)
            THEN RAISE(ABORT, 'params_is_a_json_object: params is not valid JSON; give an object of Messages API fields, or leave it out')
        WHEN NEW.params IS NOT NULL AND json_type(NEW.params) <> 'object'
            THEN RAISE(ABORT, 'params_is_a_json_object: params is JSON, but not an object; give an object of Messages API fields, or leave it out')
        WHEN NEW.policy IS NOT NULL AND NOT json_valid(NEW.policy)
            THEN RAISE(ABORT, 'policy_is_a_json_object: policy is not valid JSON; give an object such as {"max_failures": 3}, or leave it out')
        WHEN NEW.policy IS NOT NULL AND json_type(NEW.policy) <> 'object'
            THEN RAISE(ABORT, 'policy_is_a_json_object: policy is JSON, but not an object; give an object such as {"max_failures": 3}, or leave it out')
        WHEN NEW.prompt IS NULL AND (NEW.params IS NULL OR json_type(NEW.params, '$.messages') IS NULL)
            THEN RAISE(ABORT, 'job_has_one_prompt: the job asks nothing; give prompt, or messages in params')
        WHEN NEW.prompt IS NOT NULL AND NEW.params IS NOT NULL AND json_type(NEW.params, '$.messages') IS NOT NULL
            THEN RAISE(ABORT, 'job_has_one_prompt: both prompt and params.messages are given; leave one out')
        WHEN NEW.system IS NOT NULL AND NEW.params IS NOT NULL AND json_type(NEW.params, '$.system') IS NOT NULL
            THEN RAISE(ABORT, 'said_once: both the column system and params.system are given; leave one out')
        WHEN NEW.model IS NOT NULL AND NEW.params IS NOT NULL AND json_type(NEW.params, '$.model') IS NOT NULL
            THEN RAISE(ABORT, 'said_once: both the column model and params.model are given; leave one out')
        WHEN NEW.max_tokens IS NOT NULL AND NEW.params IS NOT NULL AND json_type(NEW.params, '$.max_tokens') IS NOT NULL
            THEN RAISE(ABORT, 'said_once: both the column max_tokens and params.max_tokens are given; leave one out')
        WHEN NEW.max_tokens < 1
            THEN RAISE(ABORT, 'max_tokens_is_positive: max_tokens is less than 1; give the longest answer in tokens, or leave it out')
        WHEN NEW.run_at NOT BETWEEN 100000000000 AND 253402300799999
            THEN RAISE(ABORT, 'run_at_is_milliseconds: run_at is not in milliseconds since 1970 (seconds? multiply by 1000)')
        WHEN NEW.created_at NOT BETWEEN 100000000000 AND 253402300799999
            THEN RAISE(ABORT, 'created_at_is_milliseconds: created_at is not in milliseconds since 1970; leave it out, it is the time of the INSERT')
        WHEN NEW.priority NOT BETWEEN -2147483648 AND 2147483647
            THEN RAISE(ABORT, 'priority_is_32_bits: priority is not between -2147483648 and 2147483647')
        WHEN length(NEW.queue) > 200 OR length(NEW.batch) > 200 OR length(NEW.model) > 200 OR length(NEW.key) > 500
            THEN RAISE(ABORT, 'names_are_short: queue, batch or model is longer than 200 characters, or key longer than 500; shorten it')
        -- SQLite keeps any bytes as TEXT. In a name they would stop everybody who reads the table; elsewhere they make
        -- one job invalid. A name outside of ASCII is spelt anew by character: only UTF-8 comes out as it was.
        WHEN EXISTS (
             SELECT 1
               FROM (SELECT NEW.queue AS name UNION ALL SELECT NEW.batch UNION ALL SELECT NEW.model UNION ALL SELECT NEW.key)
              WHERE name GLOB '*[^ -~]*'
                AND name <> (SELECT group_concat(char(unicode(substr(name, 1 + a.value * 100 + b.value * 10 + c.value, 1))), '')
                               FROM json_each('[0,1,2,3,4]') a
                              CROSS JOIN json_each('[0,1,2,3,4,5,6,7,8,9]') b
                              CROSS JOIN json_each('[0,1,2,3,4,5,6,7,8,9]') c
                              WHERE a.value * 100 + b.value * 10 + c.value < length(name)))
            THEN RAISE(ABORT, 'names_are_text: queue, batch, model or key holds bytes that are not UTF-8; write it in UTF-8')
        WHEN NEW.metadata IS NOT NULL AND NOT json_valid(NEW.metadata)
            THEN RAISE(ABORT, 'metadata_is_json: metadata is not valid JSON; text needs quotes: "text"')
    END;
END;

-- Where each job is: one narrow row a job, made by the trigger on jobs.
-- Promised: job_id to reason. People may update state, priority and available_at.
CREATE TABLE job_state (
    job_id       INTEGER PRIMARY KEY,
    run          INTEGER NOT NULL DEFAULT 1,
    claims       INTEGER NOT NULL DEFAULT 0,
    available_at INTEGER NOT NULL,
    deadline_at  INTEGER,
    priority     INTEGER NOT NULL,
    failures     INTEGER NOT NULL DEFAULT 0,
    state        TEXT    NOT NULL,
    queue        TEXT    NOT NULL,
    batch        TEXT    NOT NULL,             -- '' = none
    model        TEXT    NOT NULL,             -- '' = the queue's, else the default
    reason       TEXT,
    -- The worker's own.
    claimed_by   INTEGER,
    bytes        INTEGER NOT NULL DEFAULT 0,   -- of prompt, system and params
    crashes      INTEGER NOT NULL DEFAULT 0,
    deferrals    INTEGER NOT NULL DEFAULT 0,
    -- 'cancelled' only inside the statement that cancels.
    CONSTRAINT state_is_known CHECK (state IN ('pending', 'scheduled', 'running', 'waiting', 'done', 'cancelled')),
    CONSTRAINT running_has_a_worker CHECK ((state = 'running') = (claimed_by IS NOT NULL) OR state = 'cancelled'),
    CONSTRAINT available_at_is_milliseconds CHECK (available_at BETWEEN 100000000000 AND 253402300799999),
    CONSTRAINT priority_is_32_bits CHECK (priority BETWEEN -2147483648 AND 2147483647)
) STRICT;
-- A lane is (queue, model, batch).
CREATE INDEX job_state_claimable ON job_state (queue, model, priority DESC, batch DESC, job_id) WHERE state = 'pending';
CREATE INDEX job_state_scheduled ON job_state (available_at) WHERE state = 'scheduled';
CREATE INDEX job_state_running   ON job_state (claimed_by, job_id) WHERE state = 'running';
-- For counting them, and for finding those whose calls are all answered.
CREATE INDEX job_state_waiting   ON job_state (queue, job_id) WHERE state = 'waiting';
CREATE INDEX job_state_deadline  ON job_state (deadline_at) WHERE deadline_at IS NOT NULL AND state <> 'done';
CREATE INDEX job_state_batch     ON job_state (batch, state) WHERE batch <> '' AND state <> 'done';

-- What you got: exactly one row a done job. All columns are promised.
-- seq is the rowid: it grows although the newest row is deleted, and costs no second write of a long answer.
CREATE TABLE results (
    job_id        INTEGER NOT NULL CONSTRAINT results_job_id UNIQUE,
    seq           INTEGER PRIMARY KEY AUTOINCREMENT,
    run           INTEGER NOT NULL,
    queue         TEXT    NOT NULL,
    batch         TEXT,
    key           TEXT,
    outcome       TEXT    NOT NULL CONSTRAINT outcome_is_known CHECK (outcome IN (
        'complete', 'truncated', 'refused', 'needs_tool', 'paused', 'empty', 'invalid_output', 'unreviewed',
        'invalid', 'failed', 'expired', 'cancelled', 'quarantined')),
    stop_reason   TEXT,
    stop_sequence TEXT,
    model         TEXT,
    input_tokens                INTEGER NOT NULL DEFAULT 0,
    output_tokens               INTEGER NOT NULL DEFAULT 0,
    cache_creation_input_tokens INTEGER NOT NULL DEFAULT 0,
    cache_read_input_tokens     INTEGER NOT NULL DEFAULT 0,
    calls         INTEGER NOT NULL DEFAULT 0,
    continuations INTEGER NOT NULL DEFAULT 0,
    seams         INTEGER NOT NULL DEFAULT 0,
    failures      INTEGER NOT NULL DEFAULT 0,
    sanitised     INTEGER NOT NULL DEFAULT 0,
    dropped       INTEGER NOT NULL DEFAULT 0,     -- messages that were left out to fit
    error_type    TEXT,
    error_code    TEXT,
    error         TEXT,
    request_id    TEXT,
    started_at    INTEGER,
    finished_at   INTEGER NOT NULL DEFAULT (CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER)),
    stop_details  TEXT CONSTRAINT stop_details_is_json CHECK (stop_details IS NULL OR json_valid(stop_details)),
    text          TEXT,
    content       TEXT CONSTRAINT content_is_json CHECK (content IS NULL OR json_valid(content)),
    output        TEXT CONSTRAINT output_is_json CHECK (output IS NULL OR json_valid(output))
) STRICT;
-- All that batch_progress reads; by seq the newest of a batch are found.
CREATE INDEX results_batch ON results (batch, outcome, seq, input_tokens, output_tokens, cache_creation_input_tokens,
    cache_read_input_tokens, finished_at) WHERE batch IS NOT NULL;
-- What did not go well is found among millions that did, and those do not pay for it.
CREATE INDEX results_not_complete ON results (outcome, seq) WHERE outcome <> 'complete';

-- The ledger: insert-only, one row a call to the API. All columns are promised. content is NULL where results.content holds
-- the same (database.answers_once).
CREATE TABLE calls (
    job_id         INTEGER NOT NULL,
    claim          INTEGER NOT NULL,
    seq            INTEGER NOT NULL,
    run            INTEGER NOT NULL,
    kind           TEXT    NOT NULL CONSTRAINT kind_is_known CHECK (kind IN (
        'ask', 'continue', 'regenerate', 'resume', 'tool', 'repair', 'nudge', 'fallback', 'pause')),
    probe          INTEGER NOT NULL DEFAULT 0 CONSTRAINT probe_is_true_or_false CHECK (probe IN (0, 1)),
    model          TEXT,
    max_tokens     INTEGER,
    messages       INTEGER,
    sent_at        INTEGER,
    first_token_at INTEGER,
    ended_at       INTEGER,
    http_status    INTEGER,
    request_id     TEXT,
    message_id     TEXT,
    stop_reason    TEXT,
    input_tokens                INTEGER NOT NULL DEFAULT 0,
    output_tokens               INTEGER NOT NULL DEFAULT 0,
    cache_creation_input_tokens INTEGER NOT NULL DEFAULT 0,
    cache_read_input_tokens     INTEGER NOT NULL DEFAULT 0,
    partial        INTEGER NOT NULL DEFAULT 0 CONSTRAINT partial_is_true_or_false CHECK (partial IN (0, 1)),
    late           INTEGER NOT NULL DEFAULT 0 CONSTRAINT late_is_true_or_false CHECK (late IN (0, 1)),
    error_type     TEXT,
    error_code     TEXT,
    error          TEXT,
    retry_after_ms INTEGER,
    worker         INTEGER,
    stop_details   TEXT,
    request        TEXT,
    usage          TEXT,
    container      TEXT,
    content        TEXT,
    CONSTRAINT calls_job_id_claim_seq PRIMARY KEY (job_id, claim, seq)
) STRICT;

-- Calls of your tools, each found by the ledger's row of the reply that made it (claim, seq). A job that waits for them
-- goes on when each has a result: UPDATE tool_calls SET result = '...' WHERE job_id = ... AND call_id = '...'.
-- People may update result, result_content, is_error, taken_by and taken_at; all columns but worker are promised.
CREATE TABLE tool_calls (
    job_id         INTEGER NOT NULL,
    claim          INTEGER NOT NULL,
    seq            INTEGER NOT NULL,
    position       INTEGER NOT NULL,             -- among the calls of its reply, from 0
    run            INTEGER NOT NULL,
    call_id        TEXT    NOT NULL,
    name           TEXT    NOT NULL,
    is_error       INTEGER NOT NULL DEFAULT 0 CONSTRAINT is_error_is_true_or_false CHECK (is_error IN (0, 1)),
    taken_by       TEXT,                         -- whoever works on it: a tool server's name, or 'worker <id>'
    taken_at       INTEGER CONSTRAINT taken_at_is_milliseconds CHECK (taken_at BETWEEN 100000000000 AND 253402300799999),
    created_at     INTEGER NOT NULL DEFAULT (CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER)),
    answered_at    INTEGER,                      -- set by itself
    worker         INTEGER,                      -- who opened it: tells our rows from other people's
    input          TEXT CONSTRAINT input_is_json CHECK (input IS NULL OR json_valid(input)),
    result         TEXT,                         -- '' is an answer
    result_content TEXT CONSTRAINT result_content_is_a_json_array
        CHECK (result_content IS NULL OR CASE WHEN json_valid(result_content) THEN json_type(result_content) = 'array' ELSE 0 END),
    CONSTRAINT tool_calls_job_id_claim_seq_position PRIMARY KEY (job_id, claim, seq, position),
    CONSTRAINT result_or_result_content CHECK (result IS NULL OR result_content IS NULL)
) STRICT;
CREATE INDEX tool_calls_open ON tool_calls (job_id, run) WHERE result IS NULL AND result_content IS NULL;

-- Text of running streams, each row only what came since the last. The worker's own.
CREATE TABLE checkpoints (
    job_id  INTEGER NOT NULL,
    claim   INTEGER NOT NULL,
    seq     INTEGER NOT NULL,
    part    INTEGER NOT NULL,
    content TEXT    NOT NULL,
    CONSTRAINT checkpoints_job_id_claim_seq_part PRIMARY KEY (job_id, claim, seq, part)
) STRICT;

-- One row a queue, added by the trigger on jobs. All columns are promised.
CREATE TABLE queues (
    name        TEXT    NOT NULL CONSTRAINT queues_name PRIMARY KEY,
    paused      INTEGER NOT NULL DEFAULT 0 CONSTRAINT paused_is_true_or_false CHECK (paused IN (0, 1)),
    max_running INTEGER CONSTRAINT max_running_is_not_negative CHECK (max_running >= 0)
                        CONSTRAINT max_running_is_32_bits CHECK (max_running <= 2147483647),
    model       TEXT,
    policy      TEXT    CONSTRAINT queue_policy_is_a_json_object
        CHECK (policy IS NULL OR CASE WHEN json_valid(policy) THEN json_type(policy) = 'object' ELSE 0 END)
) STRICT;

-- Why nothing flows. Promised: scope, state, reason, until.
-- scope: key:<fingerprint>, model:<profile>/<model>, rate:<fingerprint>/<class>, batch:<queue>/<batch>; in a queue's name
-- % is written %25 and / is written %2F, so that the first slash parts it from the batch, whose name is written as it is.
CREATE TABLE gates (
    scope      TEXT    NOT NULL CONSTRAINT gates_scope PRIMARY KEY,
    state      TEXT    NOT NULL CONSTRAINT gate_state_is_known CHECK (state IN ('flowing', 'blocked', 'probing')),
    reason     TEXT,
    until      INTEGER CONSTRAINT until_is_milliseconds CHECK (until BETWEEN 100000000000 AND 253402300799999),
    counters   TEXT,
    generation INTEGER NOT NULL DEFAULT 0,
    changed_at INTEGER NOT NULL DEFAULT (CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER))
) STRICT;

-- How much may be asked a minute: token buckets that all daemons share, one a limit of a key and model class.
-- scope is that of the class in gates, which says whether it flows at all. What the API names makes the rows. People may
-- update rate and cap: it holds with the next take of each daemon (within a second), until the API names another limit
-- than before. Nobody but the daemons needs level and at; a bucket refills by itself, so that nothing is ever lost.
CREATE TABLE rates (
    scope  TEXT    NOT NULL,
    kind   TEXT    NOT NULL CONSTRAINT rate_kind_is_known CHECK (kind IN ('requests', 'input', 'output')),
    rate   REAL    NOT NULL CONSTRAINT rate_is_positive CHECK (rate BETWEEN 0.001 AND 1e15),   -- a minute
    learnt REAL    NOT NULL,                   -- the rate that was named last
    cap    REAL    CONSTRAINT cap_is_not_negative CHECK (cap BETWEEN 0 AND 1e15),              -- NULL: four seconds' worth
    level  REAL    NOT NULL CONSTRAINT level_is_not_negative CHECK (level BETWEEN 0 AND 1e15),
    at     INTEGER NOT NULL DEFAULT (CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER))
                   CONSTRAINT at_is_milliseconds CHECK (at BETWEEN 100000000000 AND 253402300799999),
    CONSTRAINT rates_scope_kind PRIMARY KEY (scope, kind)
) STRICT;

-- With which account the jobs of a queue are asked, as the daemon has it that said so last: its configuration decides, not
-- these rows, which only let job_overview tell whose gate is whose. queue '' is every queue without a row of its own.
-- key and profile are those of gates.scope; classes, in the row of '', is a JSON object of models and their classes.
CREATE TABLE accounts (
    queue   TEXT NOT NULL CONSTRAINT accounts_queue PRIMARY KEY,
    profile TEXT NOT NULL,
    key     TEXT NOT NULL,
    classes TEXT CONSTRAINT classes_are_json CHECK (classes IS NULL OR json_valid(classes))
) STRICT;

-- The daemons that are there. A worker is dead when its beat stands still.
CREATE TABLE workers (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    beat          INTEGER NOT NULL DEFAULT 0,
    host          TEXT    NOT NULL,
    boot          TEXT    NOT NULL,
    pid           INTEGER NOT NULL,
    pid_started   INTEGER NOT NULL,
    version       TEXT    NOT NULL,
    default_model TEXT,
    started_at    INTEGER NOT NULL DEFAULT (CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER)),
    seen_at       INTEGER NOT NULL DEFAULT (CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER)),
    running       INTEGER NOT NULL DEFAULT 0,
    asleep        INTEGER NOT NULL DEFAULT 0 CONSTRAINT asleep_is_true_or_false CHECK (asleep IN (0, 1))
) STRICT;

-- What people did on the web page or through its API: one row an action, written before it is done, and never taken out.
-- count: how many jobs it is about; once it is done, how many it changed. All columns are promised.
CREATE TABLE audit (
    id     INTEGER PRIMARY KEY AUTOINCREMENT,
    at     INTEGER NOT NULL DEFAULT (CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER)),
    actor  TEXT    NOT NULL,                     -- how they were let in, and from where
    action TEXT    NOT NULL,
    target TEXT    NOT NULL,
    count  INTEGER NOT NULL DEFAULT 1,
    detail TEXT
) STRICT;

-- One row. A binary that knows no version >= schema_min must not run on this schema.
CREATE TABLE meta (
    one            INTEGER NOT NULL DEFAULT 1 CONSTRAINT meta_one PRIMARY KEY CONSTRAINT meta_is_one_row CHECK (one = 1),
    database_id    TEXT    NOT NULL,
    schema_version INTEGER NOT NULL,
    schema_min     INTEGER NOT NULL
) STRICT;
-- A random UUID, version 4.
INSERT INTO meta (database_id, schema_version, schema_min)
SELECT substr(h, 1, 8) || '-' || substr(h, 9, 4) || '-4' || substr(h, 14, 3) || '-'
       || substr('89ab', 1 + abs(random() % 4), 1) || substr(h, 18, 3) || '-' || substr(h, 21, 12), 1, 1
  FROM (SELECT lower(hex(randomblob(16))) AS h);

-- Every key in use. It exists to refuse INSERT OR REPLACE, whose delete fires no trigger and would leave the old
-- job's rows behind.
CREATE TABLE job_keys (
    key    TEXT    NOT NULL PRIMARY KEY,
    job_id INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- A new job: its queue and its state.
CREATE TRIGGER jobs_inserted AFTER INSERT ON jobs BEGIN
    SELECT RAISE(ABORT, 'INSERT OR REPLACE INTO jobs is not possible: use ON CONFLICT (key) DO NOTHING, or DELETE the old job first')
     WHERE EXISTS (SELECT 1 FROM job_state WHERE job_id = NEW.id)
        OR (NEW.key IS NOT NULL AND EXISTS (SELECT 1 FROM job_keys WHERE key = NEW.key));
    -- The sequence is written when the statement ends: here it still is what it was before.
    SELECT RAISE(ABORT, 'ids are never used twice: leave id out of the INSERT, it is generated')
     WHERE NEW.id <= (SELECT seq FROM sqlite_sequence WHERE name = 'jobs');

    INSERT INTO job_keys (key, job_id)
    SELECT NEW.key, NEW.id
     WHERE NEW.key IS NOT NULL;

    INSERT INTO queues (name)
    SELECT NEW.queue
     WHERE NOT EXISTS (SELECT 1 FROM queues WHERE name = NEW.queue);

    INSERT INTO job_state (job_id, queue, batch, model, priority, state, available_at, deadline_at, bytes)
    SELECT NEW.id, NEW.queue, coalesce(NEW.batch, ''),
           coalesce(NEW.model,
                    CASE WHEN json_type(NEW.params, '$.model') = 'text' THEN substr(json_extract(NEW.params, '$.model'), 1, 200) END,
                    ''),
           NEW.priority,
           CASE WHEN NEW.run_at > CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER) THEN 'scheduled' ELSE 'pending' END,
           NEW.run_at,
           max(NEW.created_at, NEW.run_at) + CAST(ROUND(1000 * coalesce(
               (SELECT json_extract(NEW.policy, '$.deadline_seconds')
                WHERE json_type(NEW.policy, '$.deadline_seconds') IN ('integer', 'real')
                  AND json_extract(NEW.policy, '$.deadline_seconds') > 0 AND json_extract(NEW.policy, '$.deadline_seconds') <= 1e10),
               (SELECT json_extract(q.policy, '$.deadline_seconds') FROM queues q
                WHERE q.name = NEW.queue AND json_type(q.policy, '$.deadline_seconds') IN ('integer', 'real')
                  AND json_extract(q.policy, '$.deadline_seconds') > 0 AND json_extract(q.policy, '$.deadline_seconds') <= 1e10))) AS INTEGER),
           coalesce(length(CAST(NEW.prompt AS BLOB)), 0) + coalesce(length(CAST(NEW.system AS BLOB)), 0)
               + coalesce(length(CAST(NEW.params AS BLOB)), 0);
END;

-- A deleted job takes all that belongs to it along.
CREATE TRIGGER jobs_deleted AFTER DELETE ON jobs BEGIN
    DELETE FROM job_state WHERE job_id = OLD.id;
    DELETE FROM results WHERE job_id = OLD.id;
    DELETE FROM calls WHERE job_id = OLD.id;
    DELETE FROM checkpoints WHERE job_id = OLD.id;
    DELETE FROM tool_calls WHERE job_id = OLD.id;
    DELETE FROM job_keys WHERE key = OLD.key;
END;

-- What people may do to a job: first what is refused or a no-op, then what follows from the rest. The worker's own
-- changes also change claims or claimed_by, so they never come here.
CREATE TRIGGER job_state_by_hand BEFORE UPDATE OF state, priority, available_at ON job_state
WHEN NEW.claims = OLD.claims AND NEW.claimed_by IS OLD.claimed_by AND OLD.state <> 'cancelled'
     AND (NEW.state <> OLD.state OR NEW.available_at <> OLD.available_at) BEGIN
    SELECT CASE
        WHEN NEW.state = 'cancelled'
            THEN CASE WHEN OLD.state = 'done' THEN RAISE(IGNORE) END
        WHEN OLD.state = 'done' AND NEW.state = 'pending'
            THEN CASE WHEN EXISTS (SELECT 1 FROM jobs WHERE id = OLD.job_id AND redacted_at IS NOT NULL)
                      THEN RAISE(ABORT, 'the job was redacted: its prompt is gone and cannot run again; insert it anew, or leave such jobs out: AND job_id NOT IN (SELECT id FROM jobs WHERE redacted_at IS NOT NULL)') END
        WHEN OLD.state IN ('pending', 'scheduled') AND NEW.state IN ('pending', 'scheduled')
            THEN CASE WHEN OLD.state = 'pending' AND NEW.state = 'scheduled' AND NEW.available_at <= CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER)
                      THEN RAISE(ABORT, 'the job is pending and due: to schedule it, set available_at to a later time, in milliseconds since 1970') END
        WHEN OLD.state = 'waiting' AND NEW.state = 'pending'
            THEN CASE (SELECT count(*) FROM tool_calls t
                        WHERE t.job_id = OLD.job_id AND t.run = OLD.run AND t.result IS NULL AND t.result_content IS NULL)
                 WHEN 0 THEN NULL
                 WHEN 1 THEN RAISE(ABORT, 'the job waits for 1 tool result: it goes on when its call has one (UPDATE tool_calls SET result = ''...'' WHERE job_id = ... AND call_id = ''...''; open_tool_calls shows it); set state to ''cancelled'' to cancel it')
                 -- A sentence cannot hold a number here.
                 ELSE RAISE(ABORT, 'the job waits for several tool results: it goes on when each of its calls has one (UPDATE tool_calls SET result = ''...'' WHERE job_id = ... AND call_id = ''...''; open_tool_calls shows them); set state to ''cancelled'' to cancel it') END
        WHEN NEW.state = OLD.state
            THEN RAISE(ABORT, 'available_at can be moved only while a job is pending or scheduled; add: AND state IN (''pending'', ''scheduled'')')
        WHEN NEW.state IN ('pending', 'scheduled')
            THEN CASE OLD.state
                 WHEN 'running' THEN RAISE(ABORT, 'a running job cannot be made pending or scheduled: set state to ''cancelled'' to cancel it, then to ''pending'' to run it again')
                 WHEN 'waiting' THEN RAISE(ABORT, 'a waiting job goes on when its tool calls are answered: set state to ''cancelled'' to cancel it')
                 ELSE RAISE(ABORT, 'a done job cannot be made scheduled: set state to ''pending'' to run it again, and available_at to say when') END
        ELSE RAISE(ABORT, 'people can set state only to ''cancelled'', to cancel a job, or to ''pending'', to run a scheduled job now or a done one again')
    END;
END;

CREATE TRIGGER job_state_cancelled AFTER UPDATE OF state ON job_state WHEN NEW.state = 'cancelled' BEGIN
    INSERT INTO results (job_id, run, queue, batch, key, outcome, error_type, error, failures, calls, continuations, started_at,
                         input_tokens, output_tokens, cache_creation_input_tokens, cache_read_input_tokens, request_id)
    SELECT j.id, OLD.run, j.queue, j.batch, j.key, 'cancelled', 'cancelled', 'cancelled while ' || OLD.state, OLD.failures,
           count(c.job_id), coalesce(sum(c.kind IN ('continue', 'regenerate')), 0), min(c.sent_at),
           coalesce(sum(c.input_tokens), 0), coalesce(sum(c.output_tokens), 0),
           coalesce(sum(c.cache_creation_input_tokens), 0), coalesce(sum(c.cache_read_input_tokens), 0),
           (SELECT l.request_id FROM calls l WHERE l.job_id = OLD.job_id AND l.run = OLD.run ORDER BY l.claim DESC, l.seq DESC LIMIT 1)
      FROM jobs j
      LEFT JOIN calls c ON c.job_id = j.id AND c.run = OLD.run
     WHERE j.id = OLD.job_id
     GROUP BY j.id;
    UPDATE job_state
       SET state = 'done', available_at = OLD.available_at, claims = claims + 1, claimed_by = NULL, reason = NULL
     WHERE job_id = OLD.job_id;
    DELETE FROM tool_calls
     WHERE job_id = OLD.job_id AND OLD.state = 'waiting' AND result IS NULL AND result_content IS NULL;
END;

CREATE TRIGGER job_state_run_again AFTER UPDATE OF state ON job_state
WHEN OLD.state = 'done' AND NEW.state = 'pending' AND NEW.claims = OLD.claims AND NEW.claimed_by IS OLD.claimed_by BEGIN
    -- What the ledger left to the result comes back to it.
    UPDATE calls
       SET content = (SELECT r.content FROM results r
                       WHERE r.job_id = OLD.job_id AND r.run = calls.run AND r.request_id IS calls.request_id)
     WHERE job_id = OLD.job_id AND run = OLD.run AND content IS NULL AND error_type IS NULL;
    DELETE FROM results WHERE job_id = OLD.job_id;
    DELETE FROM checkpoints WHERE job_id = OLD.job_id;
    DELETE FROM tool_calls WHERE job_id = OLD.job_id AND result IS NULL AND result_content IS NULL;
    UPDATE job_state
       SET state = CASE WHEN NEW.available_at <> OLD.available_at
                         AND NEW.available_at > CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER)
                        THEN 'scheduled' ELSE 'pending' END,
           available_at = CASE WHEN NEW.available_at <> OLD.available_at THEN NEW.available_at
                               ELSE CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER) END,
           run = run + 1, claims = claims + 1, failures = 0, crashes = 0, deferrals = 0, reason = NULL,
           deadline_at = max(CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER),
                             CASE WHEN NEW.available_at <> OLD.available_at THEN NEW.available_at ELSE 0 END)
               + (SELECT CAST(ROUND(1000 * coalesce(
                  (SELECT json_extract(j.policy, '$.deadline_seconds')
                   WHERE json_type(j.policy, '$.deadline_seconds') IN ('integer', 'real')
                     AND json_extract(j.policy, '$.deadline_seconds') > 0 AND json_extract(j.policy, '$.deadline_seconds') <= 1e10),
                  (SELECT json_extract(q.policy, '$.deadline_seconds') FROM queues q
                   WHERE q.name = j.queue AND json_type(q.policy, '$.deadline_seconds') IN ('integer', 'real')
                     AND json_extract(q.policy, '$.deadline_seconds') > 0 AND json_extract(q.policy, '$.deadline_seconds') <= 1e10))) AS INTEGER)
                    FROM jobs j
                   WHERE j.id = OLD.job_id)
     WHERE job_id = OLD.job_id;
END;

CREATE TRIGGER job_state_moved AFTER UPDATE OF state, available_at ON job_state
WHEN OLD.state IN ('pending', 'scheduled') AND NEW.state IN ('pending', 'scheduled')
     AND NEW.claims = OLD.claims AND NEW.claimed_by IS OLD.claimed_by
     AND (NEW.state <> OLD.state OR NEW.available_at <> OLD.available_at)
     AND (NEW.state = 'scheduled') <> (NEW.available_at > CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER)) BEGIN
    UPDATE job_state
       SET state = CASE WHEN available_at > CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER) AND available_at <> OLD.available_at THEN 'scheduled' ELSE 'pending' END,
           available_at = CASE WHEN available_at <> OLD.available_at THEN available_at ELSE min(available_at, CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER)) END
     WHERE job_id = OLD.job_id;
END;

CREATE TRIGGER job_state_answered AFTER UPDATE OF state ON job_state
WHEN OLD.state = 'waiting' AND NEW.state = 'pending' AND NEW.claims = OLD.claims AND NEW.claimed_by IS OLD.claimed_by BEGIN
    UPDATE job_state
       SET available_at = CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER), reason = NULL
     WHERE job_id = OLD.job_id;
END;

-- A job that waited for tool results ends without them: by a deadline, or another worker's answer. (A cancel is told by
-- a state of its own.)
CREATE TRIGGER job_state_waits_no_more AFTER UPDATE OF state ON job_state
WHEN OLD.state = 'waiting' AND NEW.state = 'done' BEGIN
    DELETE FROM tool_calls WHERE job_id = OLD.job_id AND result IS NULL AND result_content IS NULL;
END;

-- What people may do to a tool call. A worker that answers one of its running job's own says when; nobody else does.
CREATE TRIGGER tool_calls_by_hand
BEFORE UPDATE OF result, result_content, is_error, taken_by, taken_at, answered_at ON tool_calls BEGIN
    SELECT CASE
        WHEN OLD.result IS NOT NULL OR OLD.result_content IS NOT NULL
            THEN CASE WHEN NEW.result IS NOT OLD.result OR NEW.result_content IS NOT OLD.result_content
                        OR NEW.is_error <> OLD.is_error OR NEW.taken_by IS NOT OLD.taken_by OR NEW.taken_at IS NOT OLD.taken_at
                        OR (OLD.answered_at IS NOT NULL AND NEW.answered_at IS NOT OLD.answered_at)
                      THEN RAISE(ABORT, 'the tool call is answered, and an answered call is not changed; add: AND result IS NULL AND result_content IS NULL') END
        WHEN NEW.result IS NULL AND NEW.result_content IS NULL
            THEN CASE WHEN NEW.answered_at IS NOT NULL
                      THEN RAISE(ABORT, 'answered_at is set by itself when a result is: leave it out') END
        WHEN NEW.answered_at IS NOT NULL
            THEN CASE WHEN NOT EXISTS (SELECT 1 FROM job_state WHERE job_id = OLD.job_id AND run = OLD.run AND state = 'running')
                      THEN RAISE(ABORT, 'answered_at is set by itself when a result is: leave it out') END
        WHEN NOT EXISTS (SELECT 1 FROM job_state WHERE job_id = OLD.job_id AND run = OLD.run AND state = 'waiting')
            THEN RAISE(ABORT, 'the job does not wait for the result of this tool call: only the calls in open_tool_calls are answered')
    END;
END;

-- The last answer sends a waiting job on.
CREATE TRIGGER tool_calls_answered AFTER UPDATE OF result, result_content ON tool_calls
WHEN OLD.result IS NULL AND OLD.result_content IS NULL AND NEW.answered_at IS NULL
     AND (NEW.result IS NOT NULL OR NEW.result_content IS NOT NULL) BEGIN
    UPDATE tool_calls
       SET answered_at = CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER)
     WHERE job_id = NEW.job_id AND claim = NEW.claim AND seq = NEW.seq AND position = NEW.position;
    UPDATE job_state
       SET state = 'pending'
     WHERE job_id = NEW.job_id AND state = 'waiting'
       AND NOT EXISTS (SELECT 1 FROM tool_calls t WHERE t.job_id = NEW.job_id AND t.run = NEW.run AND t.result IS NULL AND t.result_content IS NULL);
END;

-- A running job is taken from its worker: by a cancel, a deadline, the rescue, or another worker's answer. The call
-- that the worker may be making stands in the ledger as lost, with what the checkpoints hold of it, until the worker
-- itself says what became of it: so no call is unknown, whoever dies when.
CREATE TRIGGER job_state_taken_away AFTER UPDATE OF claims ON job_state
WHEN OLD.claimed_by IS NOT NULL AND NEW.claims <> OLD.claims BEGIN
    INSERT INTO calls (job_id, claim, seq, run, kind, model, max_tokens, messages, request, output_tokens,
                       partial, content, ended_at, error_type, error, worker)
    SELECT OLD.job_id, OLD.claims, k.seq, OLD.run, coalesce(json_extract(k.head, '$.kind'), 'ask'),
           json_extract(k.head, '$.model'), json_extract(k.head, '$.max_tokens'), json_extract(k.head, '$.messages'),
           json_extract(k.head, '$.request'), coalesce((length(CAST(k.text AS BLOB)) * 2 + 6) / 7, 0), k.text IS NOT NULL,
           CASE WHEN k.text IS NOT NULL THEN json_array(json_object('type', 'text', 'text', k.text)) END,
           CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER), 'lost',
           'the job was taken from its worker; the call may have been made and paid for', OLD.claimed_by
      FROM (SELECT n.seq,
                   CASE WHEN count(p.part) = max(p.part) + 1 THEN max(p.content) FILTER (WHERE p.part = 0) END AS head,
                   CASE WHEN count(p.part) = max(p.part) + 1 THEN group_concat(p.content, '') FILTER (WHERE p.part > 0) END AS text
              FROM (SELECT 1 + coalesce(max(seq), 0) AS seq FROM calls WHERE job_id = OLD.job_id AND claim = OLD.claims) n
              LEFT JOIN (SELECT seq, part, content FROM checkpoints
                          WHERE job_id = OLD.job_id AND claim = OLD.claims
                          ORDER BY part) p ON p.seq = n.seq) k
     WHERE true
        ON CONFLICT (job_id, claim, seq) DO NOTHING;
    DELETE FROM checkpoints WHERE job_id = OLD.job_id;
    UPDATE results
       SET calls = c.calls, continuations = c.continuations, started_at = c.started_at, input_tokens = c.input_tokens,
           output_tokens = c.output_tokens, cache_creation_input_tokens = c.cache_creation_input_tokens,
           cache_read_input_tokens = c.cache_read_input_tokens
      FROM (SELECT count(*) AS calls, coalesce(sum(kind IN ('continue', 'regenerate')), 0) AS continuations,
                   min(sent_at) AS started_at, coalesce(sum(input_tokens), 0) AS input_tokens,
                   coalesce(sum(output_tokens), 0) AS output_tokens,
                   coalesce(sum(cache_creation_input_tokens), 0) AS cache_creation_input_tokens,
                   coalesce(sum(cache_read_input_tokens), 0) AS cache_read_input_tokens
              FROM calls
             WHERE job_id = OLD.job_id AND run = OLD.run) c
     WHERE results.job_id = OLD.job_id AND results.run = OLD.run;
END;

-- What nobody may do, but for the redaction of a done job: UPDATE jobs SET redacted_at = <now> WHERE ... takes prompt,
-- system and params along. One that is redacted already is passed by, so that bulk statements work.
CREATE TRIGGER jobs_are_not_changed
BEFORE UPDATE OF id, queue, batch, key, model, max_tokens, priority, run_at, created_at, prompt, system, params, policy, redacted_at ON jobs BEGIN
    SELECT CASE
        WHEN NEW.redacted_at IS NULL OR NEW.id <> OLD.id OR NEW.queue <> OLD.queue OR NEW.batch IS NOT OLD.batch
             OR NEW.key IS NOT OLD.key OR NEW.model IS NOT OLD.model OR NEW.max_tokens IS NOT OLD.max_tokens
             OR NEW.priority <> OLD.priority OR NEW.run_at <> OLD.run_at OR NEW.created_at <> OLD.created_at
             OR NEW.policy IS NOT OLD.policy
             OR (NEW.prompt IS NOT NULL AND NEW.prompt IS NOT OLD.prompt)
             OR (NEW.system IS NOT NULL AND NEW.system IS NOT OLD.system)
             OR (NEW.params IS NOT NULL AND NEW.params IS NOT OLD.params)
            THEN RAISE(ABORT, 'jobs are not changed: cancel this one and insert another (metadata may be updated; priority and available_at stand in job_state; redacted_at, alone, redacts a done job)')
        WHEN OLD.redacted_at IS NOT NULL AND OLD.prompt IS NULL AND OLD.system IS NULL AND OLD.params IS NULL
            THEN RAISE(IGNORE)
        WHEN NOT EXISTS (SELECT 1 FROM job_state WHERE job_id = OLD.id AND state = 'done')
            THEN RAISE(ABORT, 'only done jobs are redacted, the others need their prompts: cancel the job first, or add: AND id IN (SELECT job_id FROM results)')
    END;
END;
CREATE TRIGGER jobs_redacted AFTER UPDATE OF redacted_at ON jobs
WHEN NEW.prompt IS NOT NULL OR NEW.system IS NOT NULL OR NEW.params IS NOT NULL BEGIN
    UPDATE jobs
       SET prompt = NULL, system = NULL, params = NULL,
           redacted_at = CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER)
     WHERE id = NEW.id;
END;
CREATE TRIGGER job_state_is_made_by_jobs BEFORE INSERT ON job_state
WHEN NOT EXISTS (SELECT 1 FROM jobs WHERE id = NEW.job_id) OR EXISTS (SELECT 1 FROM job_state WHERE job_id = NEW.job_id) BEGIN
    SELECT RAISE(ABORT, 'job_state rows come with their job: INSERT INTO jobs instead');
END;
CREATE TRIGGER job_state_keeps_its_lane BEFORE UPDATE OF job_id, queue, batch, model, bytes ON job_state BEGIN
    SELECT RAISE(ABORT, 'job_state repeats what the job says: cancel the job and insert another; only state, priority and available_at may be updated');
END;
CREATE TRIGGER job_state_goes_with_its_job BEFORE DELETE ON job_state
WHEN EXISTS (SELECT 1 FROM jobs WHERE id = OLD.job_id) BEGIN
    SELECT RAISE(ABORT, 'the job exists: its job_state row goes with it; DELETE FROM jobs instead');
END;
CREATE TRIGGER results_go_with_their_job BEFORE DELETE ON results
WHEN EXISTS (SELECT 1 FROM job_state WHERE job_id = OLD.job_id AND state = 'done') BEGIN
    SELECT RAISE(ABORT, 'a done job keeps its result: DELETE FROM jobs to remove both, or set its job_state.state to ''pending'' to run it again');
END;

CREATE TRIGGER tool_calls_come_with_a_reply BEFORE INSERT ON tool_calls WHEN NEW.worker IS NULL BEGIN
    SELECT RAISE(ABORT, 'tool_calls rows come with the reply of the model that makes the calls: UPDATE them to answer; nobody inserts them');
END;
CREATE TRIGGER tool_calls_are_not_changed
BEFORE UPDATE OF job_id, claim, seq, position, run, call_id, name, created_at, worker, input ON tool_calls BEGIN
    SELECT RAISE(ABORT, 'tool calls are not changed: only result, result_content, is_error, taken_by and taken_at may be updated');
END;
CREATE TRIGGER tool_calls_stay_with_their_job BEFORE DELETE ON tool_calls
WHEN EXISTS (SELECT 1 FROM job_state WHERE job_id = OLD.job_id AND run = OLD.run AND state IN ('running', 'waiting')) BEGIN
    SELECT RAISE(ABORT, 'the job is running or waiting and needs its tool calls: answer them, or set its job_state.state to ''cancelled''');
END;

-- A gate that a person changes: daemons see it by its generation, which they move themselves.
CREATE TRIGGER gates_by_hand AFTER UPDATE ON gates WHEN NEW.generation = OLD.generation BEGIN
    UPDATE gates
       SET generation = generation + 1,
           changed_at = CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER),
           reason = CASE WHEN state <> 'flowing' THEN reason END,
           until = CASE WHEN state <> 'flowing' THEN until END,
           counters = CASE WHEN state <> 'flowing' THEN counters END
     WHERE scope = NEW.scope;
END;

-- What you are asked: calls of your tools that have no result yet, and whose job waits for it.
CREATE VIEW open_tool_calls AS
SELECT t.job_id, t.claim, t.seq, t.position, s.queue, nullif(s.batch, '') AS batch, t.call_id, t.name, t.input,
       t.taken_by, t.taken_at, t.created_at,
       strftime('%Y-%m-%dT%H:%M:%fZ', t.taken_at / 1000.0, 'unixepoch') AS taken_at_text,
       strftime('%Y-%m-%dT%H:%M:%fZ', t.created_at / 1000.0, 'unixepoch') AS created_at_text
  FROM tool_calls t
  JOIN job_state s ON s.job_id = t.job_id AND s.run = t.run
 WHERE t.result IS NULL AND t.result_content IS NULL AND s.state = 'waiting';

-- Each job with where it is and why it waits. No big columns.
CREATE VIEW job_overview AS
SELECT o.*,
       strftime('%Y-%m-%dT%H:%M:%fZ', o.available_at / 1000.0, 'unixepoch') AS available_at_text,
       strftime('%Y-%m-%dT%H:%M:%fZ', o.deadline_at / 1000.0, 'unixepoch') AS deadline_at_text,
       strftime('%Y-%m-%dT%H:%M:%fZ', o.created_at / 1000.0, 'unixepoch') AS created_at_text,
       strftime('%Y-%m-%dT%H:%M:%fZ', o.started_at / 1000.0, 'unixepoch') AS started_at_text,
       strftime('%Y-%m-%dT%H:%M:%fZ', o.finished_at / 1000.0, 'unixepoch') AS finished_at_text,
       strftime('%Y-%m-%dT%H:%M:%fZ', o.redacted_at / 1000.0, 'unixepoch') AS redacted_at_text
  FROM (SELECT j.id, j.queue, j.batch, j.key, s.state, r.outcome, r.stop_reason,
               coalesce(r.model, coalesce(nullif(s.model, ''), q.model, (SELECT w.default_model FROM workers w ORDER BY w.id DESC LIMIT 1))) AS model,
               s.priority, s.available_at, s.deadline_at, s.run, s.claims, s.failures,
               CASE WHEN s.state IN ('pending', 'scheduled') THEN
                    coalesce(s.reason,
                             (SELECT coalesce(g.reason, g.scope || ' is ' || g.state) FROM gates g
                               WHERE g.state <> 'flowing' AND substr(g.scope, 1, 4) = 'key:'
                                 AND g.scope = coalesce('key:' || a.key, g.scope) ORDER BY g.scope LIMIT 1),
                             (SELECT coalesce(g.reason, g.scope || ' is ' || g.state) FROM gates g
                               WHERE g.state <> 'flowing' AND substr(g.scope, 1, 6) = 'model:'
                                 AND substr(g.scope, -length(coalesce(nullif(s.model, ''), q.model, (SELECT w.default_model FROM workers w ORDER BY w.id DESC LIMIT 1))) - 1) = '/' || coalesce(nullif(s.model, ''), q.model, (SELECT w.default_model FROM workers w ORDER BY w.id DESC LIMIT 1))
                                 AND g.scope = coalesce('model:' || a.profile || '/' || coalesce(nullif(s.model, ''), q.model, (SELECT w.default_model FROM workers w ORDER BY w.id DESC LIMIT 1)), g.scope) ORDER BY g.scope LIMIT 1),
                             (SELECT coalesce(g.reason, g.scope || ' is ' || g.state) FROM gates g
                               WHERE g.state <> 'flowing'
                                 AND g.scope = 'rate:' || a.key || '/' || coalesce((SELECT c.value FROM json_each(d.classes) c WHERE c.key = coalesce(nullif(s.model, ''), q.model, (SELECT w.default_model FROM workers w ORDER BY w.id DESC LIMIT 1))), coalesce(nullif(s.model, ''), q.model, (SELECT w.default_model FROM workers w ORDER BY w.id DESC LIMIT 1)))),
                             (SELECT coalesce(g.reason, g.scope || ' is ' || g.state) FROM gates g
                               WHERE g.state <> 'flowing' AND s.batch <> '' AND g.scope = 'batch:' || replace(replace(s.queue, '%', '%25'), '/', '%2F') || '/' || s.batch),
                             CASE WHEN q.paused THEN 'queue paused' END)
                    WHEN s.state = 'waiting' THEN
                    (SELECT 'waits for ' || count(*) || CASE count(*) WHEN 1 THEN ' tool result' ELSE ' tool results' END
                       FROM tool_calls t
                      WHERE t.job_id = s.job_id AND t.run = s.run AND t.result IS NULL AND t.result_content IS NULL)
                    ELSE s.reason END AS reason,
               r.error, r.input_tokens, r.output_tokens, r.cache_creation_input_tokens, r.cache_read_input_tokens,
               j.created_at, r.started_at, r.finished_at, j.redacted_at
          FROM jobs j
          JOIN job_state s ON s.job_id = j.id
          LEFT JOIN results r ON r.job_id = j.id
          LEFT JOIN queues q ON q.name = j.queue
          LEFT JOIN accounts d ON d.queue = ''
          LEFT JOIN accounts a ON a.queue = CASE WHEN EXISTS (SELECT 1 FROM accounts WHERE queue = j.queue) THEN j.queue ELSE '' END) o;

-- Each batch: how many jobs are where, how the done ones ended, and what it cost. finished_at: when all were done.
CREATE VIEW batch_progress AS
SELECT p.*, strftime('%Y-%m-%dT%H:%M:%fZ', p.finished_at / 1000.0, 'unixepoch') AS finished_at_text
  FROM (SELECT batch,
               sum(n) AS total,
               coalesce(sum(n) FILTER (WHERE state = 'pending'), 0) AS pending,
               coalesce(sum(n) FILTER (WHERE state = 'scheduled'), 0) AS scheduled,
               coalesce(sum(n) FILTER (WHERE state = 'running'), 0) AS running,
               coalesce(sum(n) FILTER (WHERE state = 'waiting'), 0) AS waiting,
               coalesce(sum(n) FILTER (WHERE state = 'done'), 0) AS done,
               coalesce(sum(n) FILTER (WHERE outcome = 'complete'), 0) AS complete,
               coalesce(sum(n) FILTER (WHERE outcome = 'truncated'), 0) AS truncated,
               coalesce(sum(n) FILTER (WHERE outcome = 'refused'), 0) AS refused,
               coalesce(sum(n) FILTER (WHERE outcome = 'needs_tool'), 0) AS needs_tool,
               coalesce(sum(n) FILTER (WHERE outcome = 'paused'), 0) AS paused,
               coalesce(sum(n) FILTER (WHERE outcome = 'empty'), 0) AS empty,
               coalesce(sum(n) FILTER (WHERE outcome = 'invalid_output'), 0) AS invalid_output,
               coalesce(sum(n) FILTER (WHERE outcome = 'unreviewed'), 0) AS unreviewed,
               coalesce(sum(n) FILTER (WHERE outcome = 'invalid'), 0) AS invalid,
               coalesce(sum(n) FILTER (WHERE outcome = 'failed'), 0) AS failed,
               coalesce(sum(n) FILTER (WHERE outcome = 'expired'), 0) AS expired,
               coalesce(sum(n) FILTER (WHERE outcome = 'cancelled'), 0) AS cancelled,
               coalesce(sum(n) FILTER (WHERE outcome = 'quarantined'), 0) AS quarantined,
               sum(input_tokens) AS input_tokens,
               sum(output_tokens) AS output_tokens,
               sum(cache_creation_input_tokens) AS cache_creation_input_tokens,
               sum(cache_read_input_tokens) AS cache_read_input_tokens,
               CASE WHEN sum(n) = sum(n) FILTER (WHERE state = 'done') THEN max(finished_at) END AS finished_at
          FROM (SELECT batch, state, NULL AS outcome, count(*) AS n,
                       0 AS input_tokens, 0 AS output_tokens, 0 AS cache_creation_input_tokens, 0 AS cache_read_input_tokens,
                       NULL AS finished_at
                  FROM job_state
                 WHERE batch <> '' AND state <> 'done'
                 GROUP BY batch, state
                 UNION ALL
                SELECT batch, 'done', outcome, count(*),
                       sum(input_tokens), sum(output_tokens), sum(cache_creation_input_tokens), sum(cache_read_input_tokens),
                       max(finished_at)
                  FROM results
                 WHERE batch IS NOT NULL AND batch <> ''
                 GROUP BY batch, outcome)
         GROUP BY batch) p;
