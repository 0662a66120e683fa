//! The SQL that `promptmill roles` prints: who may do what to the tables on Postgres.
//!
//! Printed and never run by us: roles belong to the whole server, and giving rights away is a
//! person's decision. It may be run again at any time, and has to be after a migration.

/// Columns of `jobs` that an enqueuer may write: neither `id` nor `created_at`.
const ENQUEUED: &str =
    "queue, batch, key, prompt, system, model, max_tokens, params, policy, metadata, priority, run_at";

/// Returns the SQL that makes the roles of the tables in `schema`, for a person to read and run with `psql`.
pub fn roles(schema: &str) -> String {
    let schema = quoted(schema);
    let names = ["owner", "enqueuer", "reader", "operator", "tool", "worker"];
    let mut sql = format!(
        "-- Roles of promptmill. Run with psql as a superuser, or as a role that may create roles and owns the tables;
-- again after each `promptmill migrate`. Schema: {schema}.
--
-- None of them can log in. Either lend one to a role of yours:
--     GRANT promptmill_enqueuer TO my_application;
-- or let it log in itself:
--     ALTER ROLE promptmill_worker LOGIN PASSWORD '…';
BEGIN;
"
    );
    for name in names {
        sql.push_str("DO $$ BEGIN CREATE ROLE promptmill_");
        sql.push_str(name);
        sql.push_str(" NOLOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$;\n");
    }
    sql + &owner(&schema) + &grants(&schema)
}

/// The owner has the tables and runs the triggers; nobody works as the owner.
fn owner(schema: &str) -> String {
    format!(
        "
-- Owner: the tables are its own, and their triggers run as it.
GRANT promptmill_owner TO CURRENT_USER;
ALTER SCHEMA {schema} OWNER TO promptmill_owner;
DO $$
DECLARE
    thing text;
BEGIN
    FOR thing IN
        SELECT format('%s %s', CASE c.relkind WHEN 'v' THEN 'VIEW' ELSE 'TABLE' END, c.oid::regclass)
          FROM pg_class c
         WHERE c.relnamespace = {literal}::regnamespace AND c.relkind IN ('r', 'v')
         UNION ALL
        SELECT format('FUNCTION %s', p.oid::regprocedure)
          FROM pg_proc p
         WHERE p.pronamespace = {literal}::regnamespace
    LOOP
        EXECUTE format('ALTER %s OWNER TO promptmill_owner', thing);
    END LOOP;
END $$;
",
        literal = literal(schema),
    )
}

fn grants(schema: &str) -> String {
    format!(
        "
GRANT USAGE ON SCHEMA {schema}
   TO promptmill_enqueuer, promptmill_reader, promptmill_operator, promptmill_tool, promptmill_worker;

-- Enqueuer: puts jobs in, and sees their ids and keys (ON CONFLICT (key) has to).
GRANT INSERT ({ENQUEUED}), SELECT (id, key)
   ON {schema}.jobs TO promptmill_enqueuer;

-- Reader: sees everything.
GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO promptmill_reader, promptmill_operator, promptmill_worker;

-- Operator: a reader who cancels, moves and runs again, and turns queues and gates.
GRANT UPDATE (state, priority, available_at) ON {schema}.job_state TO promptmill_operator;
GRANT INSERT, UPDATE ON {schema}.queues, {schema}.gates TO promptmill_operator;

-- Tool: answers tool calls; in this version there are none to answer.

-- Worker: the daemon, and the commands of whoever runs it. No DDL.
GRANT INSERT ({ENQUEUED}), DELETE
   ON {schema}.jobs TO promptmill_worker;
-- Lets it lock rows of jobs; the update itself is refused by a trigger.
GRANT UPDATE (id) ON {schema}.jobs TO promptmill_worker;
GRANT UPDATE ON {schema}.job_state TO promptmill_worker;
GRANT INSERT, UPDATE ON {schema}.results, {schema}.calls, {schema}.queues TO promptmill_worker;
GRANT INSERT, UPDATE, DELETE ON {schema}.checkpoints, {schema}.gates, {schema}.workers TO promptmill_worker;

-- Counts where a pooler drops what a connection sets for itself, and only for a role that logs in itself:
-- do the same for a role of yours that a daemon logs in with.
ALTER ROLE promptmill_worker SET search_path = {schema}, pg_temp;
COMMIT;
"
    )
}

/// Quotes a name as Postgres wants it, where it has to be.
fn quoted(name: &str) -> String {
    let plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_schema_is_not_quoted_and_an_odd_one_is() {
        assert!(roles("promptmill").contains("GRANT USAGE ON SCHEMA promptmill\n"));
        assert!(roles("My \"Mill\"").contains("GRANT USAGE ON SCHEMA \"My \"\"Mill\"\"\"\n"));
        assert!(roles("it's").contains("'\"it''s\"'::regnamespace"));
    }
}
