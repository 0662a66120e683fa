-- The contract: what people write (jobs), change (job_state, tool_calls, queues, gates) and read (results, calls, views).
-- Run inside one transaction with search_path = <schema>, pg_temp. Nothing here names the schema: the functions
-- keep that search_path. PostgreSQL 13 or newer. There is no older binary to run beside this.
--
-- No foreign keys: they cost the hot path several times its own work. The delete triggers do theirs.

-- One field of a JSON object, or NULL. Plain "->" fails on any text that holds \u0000 or half a surrogate pair,
-- wherever it stands, and a job must not be refused for that: such escapes are made "/" before looking
-- (never a broken escape: "\\u0000" becomes "\/").
CREATE FUNCTION json_field(object json, field text) RETURNS json LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN object::text ~ '\\u(0000|[dD][89a-fA-F])'
                THEN regexp_replace(object::text, '\\u(0000|[dD][89a-fA-F][0-9a-fA-F]{2})', '/', 'g')::json
                ELSE object END -> field
$$;

-- deadline_seconds of a policy, or NULL where it is not a positive number (the worker calls such a job invalid).
CREATE FUNCTION deadline_seconds(policy json) RETURNS double precision LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN f.seconds ~ '^[0-9]{1,12}([.][0-9]{1,9})?([eE][+-]?[0-9]{1,2})?$'
                THEN CASE WHEN f.seconds::numeric > 0 AND f.seconds::numeric <= 10000000000
                          THEN f.seconds::double precision END END
      FROM (SELECT json_field(policy, 'deadline_seconds')::text AS seconds) f
$$;

-- What you asked. INSERT and DELETE; of a row that is there only metadata is updated, and redacted_at, once: a done job
-- loses prompt, system and params then, and keeps its result and its ledger. All columns are promised.
CREATE TABLE jobs (
    id         bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT jobs_id PRIMARY KEY,
    queue      text NOT NULL DEFAULT 'default',
    batch      text,
    key        text CONSTRAINT key_is_unique UNIQUE,
    model      text,
    max_tokens bigint,
    priority   integer NOT NULL DEFAULT 0,
    run_at     timestamptz NOT NULL DEFAULT now(),
    created_at timestamptz NOT NULL DEFAULT now(),
    prompt     text,
    system     text,
    params     json,
    policy     json,
    metadata   jsonb,
    redacted_at timestamptz,
    CONSTRAINT params_is_a_json_object CHECK (json_typeof(params) = 'object'),
    CONSTRAINT policy_is_a_json_object CHECK (json_typeof(policy) = 'object'),
    -- Either prompt or params.messages, not both; nothing of it once it is redacted.
    CONSTRAINT job_has_one_prompt CHECK (CASE
        WHEN redacted_at IS NOT NULL THEN prompt IS NULL AND system IS NULL AND params IS NULL
        WHEN params IS NULL THEN prompt IS NOT NULL
        WHEN json_typeof(params) = 'object' THEN (prompt IS NOT NULL) <> (json_field(params, 'messages') IS NOT NULL)
        ELSE true END),
    -- A column, or the same field of params, not both.
    CONSTRAINT said_once CHECK (CASE
        WHEN params IS NULL OR json_typeof(params) <> 'object' THEN true
        ELSE (system IS NULL OR json_field(params, 'system') IS NULL)
         AND (model IS NULL OR json_field(params, 'model') IS NULL)
         AND (max_tokens IS NULL OR json_field(params, 'max_tokens') IS NULL) END),
    CONSTRAINT max_tokens_is_positive CHECK (max_tokens >= 1),
    CONSTRAINT run_at_is_finite CHECK (run_at >= '0001-01-01 00:00:00+00' AND run_at < '10000-01-01 00:00:00+00'),
    CONSTRAINT created_at_is_finite CHECK (created_at >= '0001-01-01 00:00:00+00' AND created_at < '10000-01-01 00:00:00+00'),
    -- An index entry holds 2,704 bytes.
    CONSTRAINT names_are_short CHECK (length(queue) <= 200 AND length(batch) <= 200 AND length(model) <= 200 AND length(key) <= 500)
) WITH (autovacuum_vacuum_insert_scale_factor = 0.02, autovacuum_vacuum_insert_threshold = 10000,
        autovacuum_freeze_min_age = 0);
-- Written once: frozen with the first look at a page, so that no vacuum has to come back for the history. The same for
-- results and calls.

-- Where each job is: one narrow row a job, made by the trigger on jobs.
-- Promised: job_id to reason. People may update state, priority and available_at.
CREATE TABLE job_state (
    job_id       bigint CONSTRAINT job_state_job_id PRIMARY KEY,
    run          bigint NOT NULL DEFAULT 1,
    claims       bigint NOT NULL DEFAULT 0,
    available_at timestamptz NOT NULL,
    deadline_at  timestamptz,
    priority     integer NOT NULL,
    failures     integer NOT NULL DEFAULT 0,
    state        text COLLATE "C" NOT NULL,
    queue        text COLLATE "C" NOT NULL,
    batch        text COLLATE "C" NOT NULL,       -- '' = none
    model        text COLLATE "C" NOT NULL,       -- '' = the queue's, else the default
    reason       text,
    -- The worker's own.
    claimed_by   bigint,
    bytes        bigint NOT NULL DEFAULT 0,       -- of prompt, system and params
    crashes      integer NOT NULL DEFAULT 0,
    deferrals    integer NOT NULL DEFAULT 0,
    CONSTRAINT state_is_known CHECK (state IN ('pending', 'scheduled', 'running', 'waiting', 'done')),
    CONSTRAINT running_has_a_worker CHECK ((state = 'running') = (claimed_by IS NOT NULL)),
    CONSTRAINT available_at_is_finite CHECK (isfinite(available_at))
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000,
        autovacuum_vacuum_cost_limit = 2000, autovacuum_analyze_scale_factor = 0.05);
-- Three versions a job, and each leaves dead entries where claims begin to read: vacuumed after 2 % instead of 20, and
-- without long pauses. A claim leaves room on the page for its own end (fillfactor).
-- A lane is (queue, model, batch). "+ 0" keeps the planner off the primary key: ordered by plain job_id it may walk
-- through all of the history instead.
CREATE INDEX job_state_claimable ON job_state (queue, model, priority DESC, batch DESC, (job_id + 0)) WHERE state = 'pending';
CREATE INDEX job_state_scheduled ON job_state (available_at) WHERE state = 'scheduled';
CREATE INDEX job_state_running   ON job_state (claimed_by, job_id) WHERE state = 'running';
-- For counting them, and for finding those whose calls are all answered.
CREATE INDEX job_state_waiting   ON job_state (queue, job_id) WHERE state = 'waiting';
CREATE INDEX job_state_deadline  ON job_state (deadline_at) WHERE deadline_at IS NOT NULL AND state <> 'done';
CREATE INDEX job_state_batch     ON job_state (batch, state, job_id) WHERE batch <> '' AND state <> 'done';

-- What you got: exactly one row a done job. All columns are promised.
CREATE TABLE results (
    job_id        bigint CONSTRAINT results_job_id PRIMARY KEY,
    seq           bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT results_seq UNIQUE,
    run           bigint NOT NULL,
    queue         text NOT NULL,
    batch         text COLLATE "C",
    key           text,
    outcome       text NOT NULL CONSTRAINT outcome_is_known CHECK (outcome IN (
        'complete', 'truncated', 'refused', 'needs_tool', 'paused', 'empty', 'invalid_output', 'unreviewed',
        'invalid', 'failed', 'expired', 'cancelled', 'quarantined')),
    stop_reason   text,
    stop_sequence text,
    model         text,
    input_tokens                bigint NOT NULL DEFAULT 0,
    output_tokens               bigint NOT NULL DEFAULT 0,
    cache_creation_input_tokens bigint NOT NULL DEFAULT 0,
    cache_read_input_tokens     bigint NOT NULL DEFAULT 0,
    calls         integer NOT NULL DEFAULT 0,
    continuations integer NOT NULL DEFAULT 0,
    seams         integer NOT NULL DEFAULT 0,
    failures      integer NOT NULL DEFAULT 0,
    sanitised     integer NOT NULL DEFAULT 0,
    dropped       integer NOT NULL DEFAULT 0,     -- messages that were left out to fit
    error_type    text,
    error_code    text,
    error         text,
    request_id    text,
    started_at    timestamptz,
    finished_at   timestamptz NOT NULL DEFAULT now(),
    stop_details  json,
    text          text,
    content       json,
    output        json
) WITH (autovacuum_vacuum_insert_scale_factor = 0.02, autovacuum_vacuum_insert_threshold = 10000,
        autovacuum_freeze_min_age = 0);
-- batch_progress counts by results_batch alone where vacuum has seen the pages: so it comes after 2 % of new rows.
-- All that batch_progress reads; by seq the newest of a batch are found.
CREATE INDEX results_batch ON results (batch, outcome, seq)
    INCLUDE (input_tokens, output_tokens, cache_creation_input_tokens, cache_read_input_tokens, finished_at)
    WHERE batch IS NOT NULL;
-- What did not go well is found among millions that did, and those do not pay for it.
CREATE INDEX results_not_complete ON results (outcome, seq) WHERE outcome <> 'complete';

-- The ledger: insert-only, one row a call to the API. All columns are promised. content is NULL where results.content holds
-- the same (database.answers_once).
CREATE TABLE calls (
    job_id         bigint NOT NULL,
    claim          bigint NOT NULL,
    seq            integer NOT NULL,
    run            bigint NOT NULL,
    kind           text NOT NULL CONSTRAINT kind_is_known CHECK (kind IN (
        'ask', 'continue', 'regenerate', 'resume', 'tool', 'repair', 'nudge', 'fallback', 'pause')),
    probe          boolean NOT NULL DEFAULT false,
    model          text,
    max_tokens     bigint,
    messages       integer,
    sent_at        timestamptz,
    first_token_at timestamptz,
    ended_at       timestamptz,
    http_status    integer,
    request_id     text,
    message_id     text,
    stop_reason    text,
    input_tokens                bigint NOT NULL DEFAULT 0,
    output_tokens               bigint NOT NULL DEFAULT 0,
    cache_creation_input_tokens bigint NOT NULL DEFAULT 0,
    cache_read_input_tokens     bigint NOT NULL DEFAULT 0,
    partial        boolean NOT NULL DEFAULT false,
    late           boolean NOT NULL DEFAULT false,
    error_type     text,
    error_code     text,
    error          text,
    retry_after_ms bigint,
    worker         bigint,
    stop_details   json,
    request        json,
    usage          json,
    container      json,
    content        json,
    CONSTRAINT calls_job_id_claim_seq PRIMARY KEY (job_id, claim, seq)
) WITH (autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_vacuum_insert_threshold = 10000,
        autovacuum_freeze_min_age = 0);

-- Calls of your tools, each found by the ledger's row of the reply that made it (claim, seq). A job that waits for them
-- goes on when each has a result: UPDATE tool_calls SET result = '...' WHERE job_id = ... AND call_id = '...'.
-- People may update result, result_content, is_error, taken_by and taken_at; all columns but worker are promised.
CREATE TABLE tool_calls (
    job_id         bigint NOT NULL,
    claim          bigint NOT NULL,
    seq            integer NOT NULL,
    position       integer NOT NULL,              -- among the calls of its reply, from 0
    run            bigint NOT NULL,
    call_id        text NOT NULL,
    name           text NOT NULL,
    is_error       boolean NOT NULL DEFAULT false,
    taken_by       text,                          -- whoever works on it: a tool server's name, or 'worker <id>'
    taken_at       timestamptz,
    created_at     timestamptz NOT NULL DEFAULT now(),
    answered_at    timestamptz,                   -- set by itself
    worker         bigint,                        -- who opened it: tells our rows from other people's
    input          json,
    result         text,                          -- '' is an answer
    result_content json CONSTRAINT result_content_is_a_json_array CHECK (json_typeof(result_content) = 'array'),
    CONSTRAINT tool_calls_job_id_claim_seq_position PRIMARY KEY (job_id, claim, seq, position),
    CONSTRAINT result_or_result_content CHECK (result IS NULL OR result_content IS NULL)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000);
-- Each is written when it is made, taken and answered: dead entries in tool_calls_open would be read by every count.
CREATE INDEX tool_calls_open ON tool_calls (job_id, run) WHERE result IS NULL AND result_content IS NULL;

-- Text of running streams, each row only what came since the last. The worker's own.
CREATE TABLE checkpoints (
    job_id  bigint NOT NULL,
    claim   bigint NOT NULL,
    seq     integer NOT NULL,
    part    integer NOT NULL,
    content text NOT NULL,
    CONSTRAINT checkpoints_job_id_claim_seq_part PRIMARY KEY (job_id, claim, seq, part)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_limit = 2000);
-- Every row is deleted minutes after it came: what counts is how many died, not how many live.

-- One row a queue, added by the trigger on jobs. All columns are promised.
CREATE TABLE queues (
    name        text CONSTRAINT queues_name PRIMARY KEY,
    paused      boolean NOT NULL DEFAULT false,
    max_running integer CONSTRAINT max_running_is_not_negative CHECK (max_running >= 0),
    model       text,
    policy      json CONSTRAINT queue_policy_is_a_json_object CHECK (json_typeof(policy) = 'object')
);

-- Why nothing flows. Promised: scope, state, reason, until.
-- scope: key:<fingerprint>, model:<profile>/<model>, rate:<fingerprint>/<class>, batch:<queue>/<batch>; in a queue's name
-- % is written %25 and / is written %2F, so that the first slash parts it from the batch, whose name is written as it is.
CREATE TABLE gates (
    scope      text CONSTRAINT gates_scope PRIMARY KEY,
    state      text NOT NULL CONSTRAINT gate_state_is_known CHECK (state IN ('flowing', 'blocked', 'probing')),
    reason     text,
    until      timestamptz CONSTRAINT until_is_finite CHECK (isfinite(until)),
    counters   text,
    generation bigint NOT NULL DEFAULT 0,
    changed_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);
-- Few rows, written again and again, as those of rates and workers: with room on their page they need no new index entry.

-- How much may be asked a minute: token buckets that all daemons share, one a limit of a key and model class.
-- scope is that of the class in gates, which says whether it flows at all. What the API names makes the rows. People may
-- update rate and cap: it holds with the next take of each daemon (within a second), until the API names another limit
-- than before. Nobody but the daemons needs level and at; a bucket refills by itself, so that nothing is ever lost.
CREATE TABLE rates (
    scope  text COLLATE "C" NOT NULL,
    kind   text COLLATE "C" NOT NULL CONSTRAINT rate_kind_is_known CHECK (kind IN ('requests', 'input', 'output')),
    rate   double precision NOT NULL CONSTRAINT rate_is_positive CHECK (rate BETWEEN 0.001 AND 1e15),  -- a minute
    learnt double precision NOT NULL,             -- the rate that was named last
    cap    double precision CONSTRAINT cap_is_not_negative CHECK (cap BETWEEN 0 AND 1e15),  -- NULL: four seconds' worth
    level  double precision NOT NULL CONSTRAINT level_is_not_negative CHECK (level BETWEEN 0 AND 1e15),
    at     timestamptz NOT NULL DEFAULT now() CONSTRAINT at_is_finite CHECK (isfinite(at)),
    CONSTRAINT rates_scope_kind PRIMARY KEY (scope, kind)
) WITH (fillfactor = 50);

-- With which account the jobs of a queue are asked, as the daemon has it that said so last: its configuration decides, not
-- these rows, which only let job_overview tell whose gate is whose. queue '' is every queue without a row of its own.
-- key and profile are those of gates.scope; classes, in the row of '', is a JSON object of models and their classes.
CREATE TABLE accounts (
    queue   text NOT NULL CONSTRAINT accounts_queue PRIMARY KEY,
    profile text NOT NULL,
    key     text NOT NULL,
    classes text
);

-- The daemons that are there. A worker is dead when its beat stands still.
CREATE TABLE workers (
    id            bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT workers_id PRIMARY KEY,
    beat          bigint NOT NULL DEFAULT 0,
    host          text NOT NULL,
    boot          text NOT NULL,
    pid           bigint NOT NULL,
    pid_started   bigint NOT NULL,
    version       text NOT NULL,
    default_model text,
    started_at    timestamptz NOT NULL DEFAULT now(),
    seen_at       timestamptz NOT NULL DEFAULT now(),
    running       integer NOT NULL DEFAULT 0,
    asleep        boolean NOT NULL DEFAULT false
) WITH (fillfactor = 50);

-- What people did on the web page or through its API: one row an action, written before it is done, and never taken out.
-- count: how many jobs it is about; once it is done, how many it changed. All columns are promised.
CREATE TABLE audit (
    id     bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT audit_id PRIMARY KEY,
    at     timestamptz NOT NULL DEFAULT now(),
    actor  text NOT NULL,                        -- how they were let in, and from where
    action text NOT NULL,
    target text NOT NULL,
    count  bigint NOT NULL DEFAULT 1,
    detail text
);

-- One row. A binary that knows no version >= schema_min must not run on this schema.
CREATE TABLE meta (
    one            boolean NOT NULL DEFAULT true CONSTRAINT meta_one PRIMARY KEY CONSTRAINT meta_is_one_row CHECK (one),
    database_id    text NOT NULL,
    schema_version integer NOT NULL,
    schema_min     integer NOT NULL
);
INSERT INTO meta (database_id, schema_version, schema_min) VALUES (gen_random_uuid()::text, 1, 1);

-- Refuses from within an expression: costs nothing where it is not reached.
CREATE FUNCTION refuse_row(sentence text) RETURNS bigint LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    RAISE EXCEPTION USING MESSAGE = sentence, ERRCODE = 'check_violation';
END $$;

-- A new job: its queue, its state, and a knock where a worker sleeps. NOTIFY takes a lock on the whole database at
-- commit, so nobody knocks while all are awake.
CREATE FUNCTION jobs_inserted() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO queues (name)
    SELECT DISTINCT n.queue
      FROM new_jobs n
     WHERE NOT EXISTS (SELECT FROM queues q WHERE q.name = n.queue)
     ORDER BY n.queue
        ON CONFLICT DO NOTHING;

    INSERT INTO job_state (job_id, queue, batch, model, priority, state, available_at, deadline_at, bytes)
    SELECT n.id, n.queue, coalesce(n.batch, ''),
           coalesce(n.model,
                    CASE WHEN json_typeof(json_field(n.params, 'model')) = 'string'
                         THEN left(json_field(n.params, 'model') #>> '{}', 200) END,
                    ''),
           n.priority,
           CASE WHEN n.run_at > clock_timestamp() THEN 'scheduled' ELSE 'pending' END,
           n.run_at,
           greatest(n.created_at, n.run_at)
               + make_interval(secs => coalesce(deadline_seconds(n.policy), deadline_seconds(q.policy))),
           CASE WHEN n.redacted_at IS NULL
                THEN coalesce(octet_length(n.prompt), 0) + coalesce(octet_length(n.system), 0) + coalesce(octet_length(n.params::text), 0)
                ELSE refuse_row('nobody_inserts_redacted_jobs: redacted_at says when a done job lost its prompt; leave it out of the INSERT') END
      FROM new_jobs n
      LEFT JOIN queues q ON q.name = n.queue;

    IF FOUND AND EXISTS (SELECT FROM workers WHERE asleep AND seen_at > now() - interval '5 minutes') THEN
        PERFORM pg_notify(TG_TABLE_SCHEMA, '');
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER jobs_inserted AFTER INSERT ON jobs
    REFERENCING NEW TABLE AS new_jobs FOR EACH STATEMENT EXECUTE FUNCTION jobs_inserted();

-- A deleted job takes all that belongs to it along.
CREATE FUNCTION jobs_deleted() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    -- job_state first: whoever writes anything of a job holds that row.
    DELETE FROM job_state WHERE job_id = ANY (ARRAY(SELECT id FROM old_jobs));
    DELETE FROM results WHERE job_id = ANY (ARRAY(SELECT id FROM old_jobs));
    DELETE FROM calls WHERE job_id = ANY (ARRAY(SELECT id FROM old_jobs));
    DELETE FROM checkpoints WHERE job_id = ANY (ARRAY(SELECT id FROM old_jobs));
    -- Whoever is just now changing one waits for the job_state row, finds it gone, and deletes its own.
    DELETE FROM tool_calls
     WHERE ctid = ANY (ARRAY(SELECT ctid FROM tool_calls
                              WHERE job_id = ANY (ARRAY(SELECT id FROM old_jobs))
                                FOR UPDATE SKIP LOCKED));
    RETURN NULL;
END $$;
CREATE TRIGGER jobs_deleted AFTER DELETE ON jobs
    REFERENCING OLD TABLE AS old_jobs FOR EACH STATEMENT EXECUTE FUNCTION jobs_deleted();

CREATE FUNCTION jobs_truncated() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    TRUNCATE job_state, results, calls, checkpoints, tool_calls;
    RETURN NULL;
END $$;
CREATE TRIGGER jobs_truncated BEFORE TRUNCATE ON jobs FOR EACH STATEMENT EXECUTE FUNCTION jobs_truncated();

-- How many calls a job waits for. A plan that was made while the table was empty must not be kept.
CREATE FUNCTION open_tool_calls_of(job bigint, of_run bigint) RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER
    SET search_path FROM CURRENT SET enable_seqscan = off SET jit = off AS $$
BEGIN
    RETURN (SELECT count(*) FROM tool_calls
             WHERE job_id = job AND run = of_run AND result IS NULL AND result_content IS NULL);
END $$;

-- Nobody is going to answer the calls of a job any more. A row that somebody just now answers is passed by: to wait for
-- it here would be a deadlock, since it waits for the job_state row that is ours. It stays, as an answer in time does.
CREATE FUNCTION forget_open_tool_calls(job bigint) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
    SET search_path FROM CURRENT SET enable_seqscan = off SET jit = off AS $$
BEGIN
    DELETE FROM tool_calls
     WHERE ctid = ANY (ARRAY(SELECT ctid FROM tool_calls
                              WHERE job_id = job AND result IS NULL AND result_content IS NULL
                                FOR UPDATE SKIP LOCKED));
END $$;

-- What people may do to a job. The worker's own changes also change claims or claimed_by, and promotion is told by
-- its time, so they never come here.
CREATE FUNCTION job_state_by_hand() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    right_now timestamptz := clock_timestamp();
    moved boolean := NEW.available_at <> OLD.available_at;
    unanswered bigint;
    gone_at timestamptz;
BEGIN
    IF NEW.state = 'cancelled' THEN
        IF OLD.state = 'done' THEN RETURN NULL; END IF;
        INSERT INTO results (job_id, run, queue, batch, key, outcome, error_type, error, failures, calls, continuations, started_at,
                             input_tokens, output_tokens, cache_creation_input_tokens, cache_read_input_tokens, request_id)
        SELECT j.id, OLD.run, j.queue, j.batch, j.key, 'cancelled', 'cancelled', 'cancelled while ' || OLD.state, OLD.failures, c.*
          FROM jobs j
         CROSS JOIN LATERAL (
               SELECT count(*), count(*) FILTER (WHERE kind IN ('continue', 'regenerate')), min(sent_at),
                      coalesce(sum(input_tokens), 0), coalesce(sum(output_tokens), 0),
                      coalesce(sum(cache_creation_input_tokens), 0), coalesce(sum(cache_read_input_tokens), 0),
                      (array_agg(request_id ORDER BY claim DESC, seq DESC))[1]
                 FROM calls
                WHERE job_id = OLD.job_id AND run = OLD.run) c
         WHERE j.id = OLD.job_id;
        NEW.state := 'done';
        NEW.available_at := OLD.available_at;
        NEW.claims := OLD.claims + 1;
        NEW.claimed_by := NULL;
        NEW.reason := NULL;
    ELSIF NEW.state = OLD.state AND NOT moved THEN
        RETURN NEW;
    ELSIF OLD.state = 'done' AND NEW.state = 'pending' THEN
        SELECT j.redacted_at INTO gone_at FROM jobs j WHERE j.id = OLD.job_id;
        IF gone_at IS NOT NULL THEN
            RAISE EXCEPTION 'job % was redacted at %: its prompt is gone and cannot run again; insert it anew, or leave such jobs out: AND job_id NOT IN (SELECT id FROM jobs WHERE redacted_at IS NOT NULL)',
                OLD.job_id, gone_at USING ERRCODE = 'check_violation';
        END IF;
        -- What the ledger left to the result comes back to it.
        UPDATE calls c
           SET content = r.content
          FROM results r
         WHERE r.job_id = OLD.job_id AND c.job_id = r.job_id AND c.run = r.run AND c.content IS NULL AND c.error_type IS NULL
           AND c.request_id IS NOT DISTINCT FROM r.request_id;
        DELETE FROM results WHERE job_id = OLD.job_id;
        DELETE FROM checkpoints WHERE job_id = OLD.job_id;
        PERFORM forget_open_tool_calls(OLD.job_id);
        IF NOT moved THEN NEW.available_at := right_now; END IF;
        IF NEW.available_at > right_now THEN NEW.state := 'scheduled'; END IF;
        NEW.run := OLD.run + 1;
        NEW.claims := OLD.claims + 1;
        NEW.failures := 0;
        NEW.crashes := 0;
        NEW.deferrals := 0;
        NEW.reason := NULL;
        SELECT greatest(right_now, NEW.available_at)
                   + make_interval(secs => coalesce(deadline_seconds(j.policy), deadline_seconds(q.policy)))
          INTO NEW.deadline_at
          FROM jobs j
          LEFT JOIN queues q ON q.name = j.queue
         WHERE j.id = OLD.job_id;
    ELSIF OLD.state = 'waiting' AND NEW.state = 'pending' THEN
        unanswered := open_tool_calls_of(OLD.job_id, OLD.run);
        IF unanswered > 0 THEN
            RAISE EXCEPTION 'job % waits for % tool %: it goes on when each has one (UPDATE tool_calls SET result = ''...'' WHERE job_id = % AND call_id = ''...''; open_tool_calls shows them); set state to ''cancelled'' to cancel it',
                OLD.job_id, unanswered, CASE unanswered WHEN 1 THEN 'result' ELSE 'results' END, OLD.job_id
                USING ERRCODE = 'check_violation';
        END IF;
        NEW.available_at := right_now;
        NEW.reason := NULL;
    ELSIF OLD.state IN ('pending', 'scheduled') AND NEW.state IN ('pending', 'scheduled') THEN
        IF NEW.state = 'pending' AND NOT moved THEN
            NEW.available_at := least(right_now, OLD.available_at);
        ELSIF NEW.state = 'scheduled' AND OLD.state = 'pending' AND NEW.available_at <= right_now THEN
            RAISE EXCEPTION 'job % is pending and due: to schedule it, set available_at to a later time', OLD.job_id
                USING ERRCODE = 'check_violation';
        END IF;
        NEW.state := CASE WHEN NEW.available_at > right_now THEN 'scheduled' ELSE 'pending' END;
    ELSIF NEW.state = OLD.state THEN
        RAISE EXCEPTION 'job % is %: available_at can be moved only while a job is pending or scheduled; add: AND state IN (''pending'', ''scheduled'')',
            OLD.job_id, OLD.state USING ERRCODE = 'check_violation';
    ELSE
        RAISE EXCEPTION 'job % is % and cannot be made %: set state to ''cancelled'' to cancel a job, or to ''pending'' to run a scheduled job now or a done one again',
            OLD.job_id, OLD.state, NEW.state USING ERRCODE = 'check_violation';
    END IF;

    IF NEW.state = 'pending' AND OLD.state <> 'pending'
       AND EXISTS (SELECT FROM workers WHERE asleep AND seen_at > now() - interval '5 minutes') THEN
        PERFORM pg_notify(TG_TABLE_SCHEMA, '');
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER job_state_by_hand BEFORE UPDATE OF state, priority, available_at ON job_state FOR EACH ROW
    WHEN (NEW.claims = OLD.claims AND NEW.claimed_by IS NOT DISTINCT FROM OLD.claimed_by
          AND (NEW.state <> OLD.state OR NEW.available_at <> OLD.available_at)
          AND NOT (OLD.state = 'scheduled' AND NEW.state = 'pending' AND NEW.available_at <= now()))
    EXECUTE FUNCTION job_state_by_hand();

-- A running job is taken from its worker: by a cancel, a deadline, the rescue, or another worker's answer. The call
-- that the worker may be making stands in the ledger as lost, with what the checkpoints hold of it, until the worker
-- itself says what became of it: so no call is unknown, whoever dies when.
-- A plan that was made while the tables were empty must not be kept: each row would read all of them.
CREATE FUNCTION job_state_taken_away() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT
    SET enable_seqscan = off AS $$
BEGIN
    INSERT INTO calls (job_id, claim, seq, run, kind, model, max_tokens, messages, request, output_tokens,
                       partial, content, ended_at, error_type, error, worker)
    SELECT OLD.job_id, OLD.claims, l.seq, OLD.run, coalesce(k.head ->> 'kind', 'ask'), k.head ->> 'model',
           (k.head ->> 'max_tokens')::bigint, (k.head ->> 'messages')::integer, (k.head ->> 'request')::json,
           coalesce(ceil(octet_length(k.text) / 3.5), 0)::bigint, k.text IS NOT NULL,
           CASE WHEN k.text IS NOT NULL THEN json_build_array(json_build_object('type', 'text', 'text', k.text)) END,
           clock_timestamp(), 'lost', 'the job was taken from its worker; the call may have been made and paid for',
           OLD.claimed_by
      FROM (SELECT 1 + coalesce(max(seq), 0) AS seq FROM calls WHERE job_id = OLD.job_id AND claim = OLD.claims) l
      LEFT JOIN LATERAL (
           SELECT max(content) FILTER (WHERE part = 0)::json AS head,
                  string_agg(content, '' ORDER BY part) FILTER (WHERE part > 0) AS text
             FROM checkpoints
            WHERE job_id = OLD.job_id AND claim = OLD.claims AND seq = l.seq
           HAVING count(*) = max(part) + 1) k ON true
        ON CONFLICT (job_id, claim, seq) DO NOTHING;
    DELETE FROM checkpoints WHERE job_id = OLD.job_id;
    UPDATE results r
       SET calls = c.calls, continuations = c.continuations, started_at = c.started_at, input_tokens = c.input_tokens,
           output_tokens = c.output_tokens, cache_creation_input_tokens = c.cache_creation_input_tokens,
           cache_read_input_tokens = c.cache_read_input_tokens
      FROM (SELECT count(*) AS calls, count(*) FILTER (WHERE kind IN ('continue', 'regenerate')) AS continuations,
                   min(sent_at) AS started_at, coalesce(sum(input_tokens), 0) AS input_tokens,
                   coalesce(sum(output_tokens), 0) AS output_tokens,
                   coalesce(sum(cache_creation_input_tokens), 0) AS cache_creation_input_tokens,
                   coalesce(sum(cache_read_input_tokens), 0) AS cache_read_input_tokens
              FROM calls
             WHERE job_id = OLD.job_id AND run = OLD.run) c
     WHERE r.job_id = OLD.job_id AND r.run = OLD.run;
    RETURN NULL;
END $$;
-- Of no column in particular: the trigger before changes claims where a person changes state.
CREATE TRIGGER job_state_taken_away AFTER UPDATE ON job_state FOR EACH ROW
    WHEN (OLD.claimed_by IS NOT NULL AND NEW.claims <> OLD.claims)
    EXECUTE FUNCTION job_state_taken_away();

-- A job that waited for tool results ends without them: by a cancel, a deadline, or another worker's answer.
CREATE FUNCTION job_state_waits_no_more() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM forget_open_tool_calls(OLD.job_id);
    RETURN NULL;
END $$;
CREATE TRIGGER job_state_waits_no_more AFTER UPDATE ON job_state FOR EACH ROW
    WHEN (OLD.state = 'waiting' AND NEW.state = 'done')
    EXECUTE FUNCTION job_state_waits_no_more();

-- What people may do to a tool call. A worker that answers one of its running job's own says when; nobody else does.
CREATE FUNCTION tool_calls_by_hand() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    job_is text;
BEGIN
    IF OLD.result IS NOT NULL OR OLD.result_content IS NOT NULL THEN
        IF NEW.result IS DISTINCT FROM OLD.result OR NEW.result_content::text IS DISTINCT FROM OLD.result_content::text
           OR NEW.is_error <> OLD.is_error OR NEW.taken_by IS DISTINCT FROM OLD.taken_by
           OR NEW.taken_at IS DISTINCT FROM OLD.taken_at OR NEW.answered_at IS DISTINCT FROM OLD.answered_at THEN
            RAISE EXCEPTION 'tool call % of job % is answered, and an answered call is not changed; add: AND result IS NULL AND result_content IS NULL',
                OLD.call_id, OLD.job_id USING ERRCODE = 'check_violation';
        END IF;
        RETURN NEW;
    END IF;
    IF NEW.result IS NULL AND NEW.result_content IS NULL THEN
        IF NEW.answered_at IS NOT NULL THEN
            RAISE EXCEPTION 'answered_at is set by itself when a result is: leave it out' USING ERRCODE = 'check_violation';
        END IF;
        RETURN NEW;
    END IF;
    SELECT s.state INTO job_is FROM job_state s WHERE s.job_id = OLD.job_id AND s.run = OLD.run;
    IF NEW.answered_at IS NOT NULL THEN
        IF job_is IS DISTINCT FROM 'running' THEN
            RAISE EXCEPTION 'answered_at is set by itself when a result is: leave it out' USING ERRCODE = 'check_violation';
        END IF;
        RETURN NEW;
    END IF;
    IF job_is IS DISTINCT FROM 'waiting' THEN
        RAISE EXCEPTION 'job % does not wait for the result of tool call % (it is %): only the calls in open_tool_calls are answered',
            OLD.job_id, OLD.call_id, coalesce(job_is, 'gone or run again') USING ERRCODE = 'check_violation';
    END IF;
    NEW.answered_at := clock_timestamp();
    RETURN NEW;
END $$;
CREATE TRIGGER tool_calls_by_hand
    BEFORE UPDATE OF result, result_content, is_error, taken_by, taken_at, answered_at ON tool_calls
    FOR EACH ROW EXECUTE FUNCTION tool_calls_by_hand();

-- The last answer sends a waiting job on. Two servers may answer its last two calls at the same moment: whoever counts
-- holds the job_state row, and so sees what the one before has committed. Whoever changes anything of a call keeps the
-- job from being deleted meanwhile; where it was, the call goes too.
-- A plan that was made while the tables were empty must not be kept; and what cannot do without reading a whole table
-- then looks so dear that compiling it, for each row, would cost a thousand times its running.
CREATE FUNCTION tool_calls_changed() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT
    SET enable_seqscan = off SET jit = off AS $$
DECLARE
    job record;
    job_is record;
BEGIN
    -- Everybody locks in the same order.
    FOR job IN
        SELECT n.job_id, bool_or(n.answered_at IS NOT NULL) AS answered FROM new_calls n GROUP BY n.job_id ORDER BY n.job_id
    LOOP
        IF job.answered THEN
            SELECT s.state, s.run INTO job_is FROM job_state s WHERE s.job_id = job.job_id FOR NO KEY UPDATE;
        ELSE
            SELECT s.state, s.run INTO job_is FROM job_state s WHERE s.job_id = job.job_id FOR KEY SHARE;
        END IF;
        IF NOT FOUND THEN
            DELETE FROM tool_calls t USING new_calls n
             WHERE n.job_id = job.job_id
               AND t.job_id = n.job_id AND t.claim = n.claim AND t.seq = n.seq AND t.position = n.position;
        ELSIF job.answered AND job_is.state = 'waiting' AND open_tool_calls_of(job.job_id, job_is.run) = 0 THEN
            UPDATE job_state SET state = 'pending' WHERE job_id = job.job_id;
        END IF;
    END LOOP;
    RETURN NULL;
END $$;
CREATE TRIGGER tool_calls_changed AFTER UPDATE ON tool_calls
    REFERENCING NEW TABLE AS new_calls FOR EACH STATEMENT EXECUTE FUNCTION tool_calls_changed();

CREATE FUNCTION tool_calls_deleted() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    job_is text;
BEGIN
    SELECT s.state INTO job_is FROM job_state s
     WHERE s.job_id = OLD.job_id AND s.run = OLD.run AND s.state IN ('running', 'waiting');
    IF FOUND THEN
        RAISE EXCEPTION 'job % is % and needs its tool calls: answer them, or set its job_state.state to ''cancelled''', OLD.job_id, job_is
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN OLD;
END $$;
CREATE TRIGGER tool_calls_stay_with_their_job BEFORE DELETE ON tool_calls FOR EACH ROW WHEN (pg_trigger_depth() = 0)
    EXECUTE FUNCTION tool_calls_deleted();

-- What nobody may do.
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'check_violation';
END $$;
-- But for the redaction of a done job: UPDATE jobs SET redacted_at = now() WHERE ... takes prompt, system and params
-- along. One that is redacted already is passed by, so that bulk statements work. Whoever runs the job again holds its
-- job_state row: one of the two waits, and finds what the other did.
CREATE FUNCTION jobs_by_hand() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT
    SET enable_seqscan = off AS $$
DECLARE
    job_is text;
BEGIN
    IF NEW.redacted_at IS NULL
       OR (NEW.id, NEW.queue, NEW.batch, NEW.key, NEW.model, NEW.max_tokens, NEW.priority, NEW.run_at, NEW.created_at, NEW.policy::text)
          IS DISTINCT FROM
          (OLD.id, OLD.queue, OLD.batch, OLD.key, OLD.model, OLD.max_tokens, OLD.priority, OLD.run_at, OLD.created_at, OLD.policy::text)
       OR (NEW.prompt IS NOT NULL AND NEW.prompt IS DISTINCT FROM OLD.prompt)
       OR (NEW.system IS NOT NULL AND NEW.system IS DISTINCT FROM OLD.system)
       OR (NEW.params IS NOT NULL AND NEW.params::text IS DISTINCT FROM OLD.params::text) THEN
        RAISE EXCEPTION 'jobs are not changed: cancel this one and insert another (metadata may be updated; priority and available_at stand in job_state; redacted_at, alone, redacts a done job)'
            USING ERRCODE = 'check_violation';
    END IF;
    IF OLD.redacted_at IS NOT NULL THEN RETURN NULL; END IF;
    SELECT s.state INTO job_is FROM job_state s WHERE s.job_id = OLD.id FOR NO KEY UPDATE;
    IF job_is IS DISTINCT FROM 'done' THEN
        RAISE EXCEPTION 'job % is %, and only done jobs are redacted, the others need their prompts: cancel the job first, or add: AND id IN (SELECT job_id FROM results)',
            OLD.id, coalesce(job_is, 'gone') USING ERRCODE = 'check_violation';
    END IF;
    NEW.prompt := NULL;
    NEW.system := NULL;
    NEW.params := NULL;
    NEW.redacted_at := clock_timestamp();
    RETURN NEW;
END $$;
CREATE TRIGGER jobs_are_not_changed
    BEFORE UPDATE OF id, queue, batch, key, model, max_tokens, priority, run_at, created_at, prompt, system, params, policy, redacted_at ON jobs
    FOR EACH ROW EXECUTE FUNCTION jobs_by_hand();
CREATE TRIGGER job_state_is_made_by_jobs BEFORE INSERT ON job_state FOR EACH STATEMENT WHEN (pg_trigger_depth() = 0)
    EXECUTE FUNCTION refuse('job_state rows come with their job: INSERT INTO jobs instead');
CREATE TRIGGER job_state_keeps_its_lane BEFORE UPDATE OF job_id, queue, batch, model, bytes ON job_state
    FOR EACH ROW EXECUTE FUNCTION refuse('job_state repeats what the job says: cancel the job and insert another; only state, priority and available_at may be updated');
CREATE TRIGGER job_state_is_not_truncated BEFORE TRUNCATE ON job_state FOR EACH STATEMENT WHEN (pg_trigger_depth() = 0)
    EXECUTE FUNCTION refuse('job_state rows go with their jobs: TRUNCATE jobs instead');
CREATE TRIGGER results_are_not_truncated BEFORE TRUNCATE ON results FOR EACH STATEMENT WHEN (pg_trigger_depth() = 0)
    EXECUTE FUNCTION refuse('a done job keeps its result: TRUNCATE jobs instead');

CREATE TRIGGER tool_calls_come_with_a_reply BEFORE INSERT ON tool_calls FOR EACH ROW WHEN (NEW.worker IS NULL)
    EXECUTE FUNCTION refuse('tool_calls rows come with the reply of the model that makes the calls: UPDATE them to answer; nobody inserts them');
CREATE TRIGGER tool_calls_are_not_changed
    BEFORE UPDATE OF job_id, claim, seq, position, run, call_id, name, created_at, worker, input ON tool_calls
    FOR EACH ROW EXECUTE FUNCTION refuse('tool calls are not changed: only result, result_content, is_error, taken_by and taken_at may be updated');
CREATE TRIGGER tool_calls_are_not_truncated BEFORE TRUNCATE ON tool_calls FOR EACH STATEMENT WHEN (pg_trigger_depth() = 0)
    EXECUTE FUNCTION refuse('tool calls go with their jobs: TRUNCATE jobs instead');

CREATE FUNCTION job_state_deleted() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF EXISTS (SELECT FROM jobs WHERE id = OLD.job_id) THEN
        RAISE EXCEPTION 'job % exists: its job_state row goes with it; DELETE FROM jobs instead', OLD.job_id
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN OLD;
END $$;
CREATE TRIGGER job_state_goes_with_its_job BEFORE DELETE ON job_state FOR EACH ROW WHEN (pg_trigger_depth() = 0)
    EXECUTE FUNCTION job_state_deleted();

CREATE FUNCTION results_deleted() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF EXISTS (SELECT FROM job_state WHERE job_id = OLD.job_id AND state = 'done') THEN
        RAISE EXCEPTION 'job % is done and keeps its result: DELETE FROM jobs to remove both, or set its job_state.state to ''pending'' to run it again', OLD.job_id
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN OLD;
END $$;
CREATE TRIGGER results_go_with_their_job BEFORE DELETE ON results FOR EACH ROW WHEN (pg_trigger_depth() = 0)
    EXECUTE FUNCTION results_deleted();

-- A gate that a person changes: daemons see it by its generation, which they move themselves.
CREATE FUNCTION gates_by_hand() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    NEW.generation := OLD.generation + 1;
    NEW.changed_at := clock_timestamp();
    IF NEW.state = 'flowing' THEN
        NEW.reason := NULL;
        NEW.until := NULL;
        NEW.counters := NULL;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER gates_by_hand BEFORE UPDATE ON gates FOR EACH ROW WHEN (NEW.generation = OLD.generation)
    EXECUTE FUNCTION gates_by_hand();

-- Else any role could hang them on a table of its own and have them run as the owner.
REVOKE EXECUTE ON FUNCTION jobs_inserted(), jobs_by_hand(), jobs_deleted(), jobs_truncated(), job_state_by_hand(), refuse(),
    job_state_taken_away(), job_state_waits_no_more(), job_state_deleted(), results_deleted(), gates_by_hand(),
    tool_calls_by_hand(), tool_calls_changed(), tool_calls_deleted(), open_tool_calls_of(bigint, bigint),
    forget_open_tool_calls(bigint) FROM PUBLIC;

-- What you are asked: calls of your tools that have no result yet, and whose job waits for it.
CREATE VIEW open_tool_calls AS
SELECT t.job_id, t.claim, t.seq, t.position, s.queue, nullif(s.batch, '') AS batch, t.call_id, t.name, t.input,
       t.taken_by, t.taken_at, t.created_at
  FROM tool_calls t
  JOIN job_state s ON s.job_id = t.job_id AND s.run = t.run
 WHERE t.result IS NULL AND t.result_content IS NULL AND s.state = 'waiting';

-- Each job with where it is and why it waits. No big columns.
CREATE VIEW job_overview AS
SELECT j.id, j.queue, j.batch, j.key, s.state, r.outcome, r.stop_reason,
       coalesce(r.model, m.model) AS model,
       s.priority, s.available_at, s.deadline_at, s.run, s.claims, s.failures,
       CASE WHEN s.state IN ('pending', 'scheduled') THEN
            coalesce(s.reason,
                     (SELECT coalesce(g.reason, g.scope || ' is ' || g.state) FROM gates g
                       WHERE g.state <> 'flowing' AND g.scope LIKE 'key:%'
                         AND g.scope = coalesce('key:' || a.key, g.scope) ORDER BY g.scope LIMIT 1),
                     (SELECT coalesce(g.reason, g.scope || ' is ' || g.state) FROM gates g
                       WHERE g.state <> 'flowing' AND g.scope LIKE 'model:%'
                         AND right(g.scope, length(m.model) + 1) = '/' || m.model
                         AND g.scope = coalesce('model:' || a.profile || '/' || m.model, g.scope) ORDER BY g.scope LIMIT 1),
                     (SELECT coalesce(g.reason, g.scope || ' is ' || g.state) FROM gates g
                       WHERE g.state <> 'flowing'
                         AND g.scope = 'rate:' || a.key || '/' || coalesce(d.classes::json ->> m.model, m.model)),
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
  LEFT JOIN accounts a ON a.queue = CASE WHEN EXISTS (SELECT FROM accounts WHERE queue = j.queue) THEN j.queue ELSE '' END
 CROSS JOIN LATERAL (
       SELECT coalesce(nullif(s.model, ''), q.model, (SELECT w.default_model FROM workers w ORDER BY w.id DESC LIMIT 1)) AS model) m;

-- Each batch: how many jobs are where, how the done ones ended, and what it cost. finished_at: when all were done.
CREATE VIEW batch_progress AS
SELECT batch,
       sum(n)::bigint AS total,
       coalesce(sum(n) FILTER (WHERE state = 'pending'), 0)::bigint AS pending,
       coalesce(sum(n) FILTER (WHERE state = 'scheduled'), 0)::bigint AS scheduled,
       coalesce(sum(n) FILTER (WHERE state = 'running'), 0)::bigint AS running,
       coalesce(sum(n) FILTER (WHERE state = 'waiting'), 0)::bigint AS waiting,
       coalesce(sum(n) FILTER (WHERE state = 'done'), 0)::bigint AS done,
       coalesce(sum(n) FILTER (WHERE outcome = 'complete'), 0)::bigint AS complete,
       coalesce(sum(n) FILTER (WHERE outcome = 'truncated'), 0)::bigint AS truncated,
       coalesce(sum(n) FILTER (WHERE outcome = 'refused'), 0)::bigint AS refused,
       coalesce(sum(n) FILTER (WHERE outcome = 'needs_tool'), 0)::bigint AS needs_tool,
       coalesce(sum(n) FILTER (WHERE outcome = 'paused'), 0)::bigint AS paused,
       coalesce(sum(n) FILTER (WHERE outcome = 'empty'), 0)::bigint AS empty,
       coalesce(sum(n) FILTER (WHERE outcome = 'invalid_output'), 0)::bigint AS invalid_output,
       coalesce(sum(n) FILTER (WHERE outcome = 'unreviewed'), 0)::bigint AS unreviewed,
       coalesce(sum(n) FILTER (WHERE outcome = 'invalid'), 0)::bigint AS invalid,
       coalesce(sum(n) FILTER (WHERE outcome = 'failed'), 0)::bigint AS failed,
       coalesce(sum(n) FILTER (WHERE outcome = 'expired'), 0)::bigint AS expired,
       coalesce(sum(n) FILTER (WHERE outcome = 'cancelled'), 0)::bigint AS cancelled,
       coalesce(sum(n) FILTER (WHERE outcome = 'quarantined'), 0)::bigint AS quarantined,
       sum(input_tokens)::bigint AS input_tokens,
       sum(output_tokens)::bigint AS output_tokens,
       sum(cache_creation_input_tokens)::bigint AS cache_creation_input_tokens,
       sum(cache_read_input_tokens)::bigint AS cache_read_input_tokens,
       CASE WHEN sum(n) = sum(n) FILTER (WHERE state = 'done') THEN max(finished_at) END AS finished_at
  FROM (SELECT batch, state, NULL::text AS outcome, count(*) AS n,
               0 AS input_tokens, 0 AS output_tokens, 0 AS cache_creation_input_tokens, 0 AS cache_read_input_tokens,
               NULL::timestamptz AS finished_at
          FROM job_state
         WHERE batch <> '' AND state <> 'done'
         GROUP BY batch, state
         UNION ALL
        SELECT batch, 'done', outcome, count(*),
               sum(input_tokens), sum(output_tokens), sum(cache_creation_input_tokens), sum(cache_read_input_tokens),
               max(finished_at)
          FROM results
         WHERE batch IS NOT NULL AND batch <> ''
         GROUP BY batch, outcome) part
 GROUP BY batch;
