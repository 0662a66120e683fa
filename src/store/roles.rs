//! The SQL that `promptmill roles` prints: who may do what to the tables on Postgres.
//!
//! Printed and never run by us: roles belong to the whole server, and giving rights away is a
//! person's decision. It may be run again at any time, and has to be after a migration.

/// Columns of `jobs` that an enqueuer may write: neither `id` nor `created_at`.
const ENQUEUED: &str =
    "queue, batch, key, prompt, system, model, max_tokens, params, policy, metadata, priority, run_at";

const ROLES: [&str; 6] = ["owner", "enqueuer", "reader", "operator", "tool", "worker"];

/// Returns the SQL that makes the roles of the tables in `schema`, for a person to read and run with
/// `psql`. Their names begin with `prefix` and an underscore.
pub fn roles(schema: &str, prefix: &str) -> String {
    let schema = quoted(schema);
    let [owner, enqueuer, reader, operator, tool, worker] =
        ROLES.map(|role| quoted(&format!("{prefix}_{role}")));
    let mut sql = format!(
        "-- Roles of promptmill. Run with psql as a superuser, or as a role that may create roles and owns the tables;
-- again after each `promptmill migrate`. Schema: {schema}.
--
-- None of them can log in. Either lend one to a role of yours:
--     GRANT {enqueuer} TO my_application;
-- or let it log in itself:
--     ALTER ROLE {worker} LOGIN PASSWORD '…';
BEGIN;
-- A change of owner waits for whoever uses the table, and everybody else behind it: then rather not now.
SET LOCAL lock_timeout = '5s';
"
    );
    for role in [&owner, &enqueuer, &reader, &operator, &tool, &worker] {
        sql.push_str("DO $$ BEGIN CREATE ROLE ");
        sql.push_str(role);
        sql.push_str(" NOLOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$;\n");
    }
    sql + &owned(&schema, &owner) + &grants(&schema, [&enqueuer, &reader, &operator, &tool, &worker])
}

/// The owner has the tables and runs the triggers; nobody works as the owner.
fn owned(schema: &str, owner: &str) -> String {
    format!(
        "
-- Owner: the tables are its own, and their triggers run as it.
GRANT {owner} TO CURRENT_USER;
ALTER SCHEMA {schema} OWNER TO {owner};
DO $$
DECLARE
    thing text;
BEGIN
    FOR thing IN
        SELECT format('%s %s', CASE c.relkind WHEN 'v' THEN 'VIEW' ELSE 'TABLE' END, c.oid::regclass)
          FROM pg_class c
         WHERE c.relnamespace = {literal}::regnamespace AND c.relkind IN ('r', 'v')
           AND c.relowner <> {owner_literal}::regrole
         UNION ALL
        SELECT format('FUNCTION %s', p.oid::regprocedure)
          FROM pg_proc p
         WHERE p.pronamespace = {literal}::regnamespace AND p.proowner <> {owner_literal}::regrole
    LOOP
        EXECUTE format('ALTER %s OWNER TO %s', thing, {owner_literal});
    END LOOP;
END $$;
",
        literal = literal(schema),
        owner_literal = literal(owner),
    )
}

fn grants(schema: &str, [enqueuer, reader, operator, tool, worker]: [&str; 5]) -> String {
    format!(
        "
REVOKE ALL ON SCHEMA {schema} FROM PUBLIC;
GRANT USAGE ON SCHEMA {schema}
   TO {enqueuer}, {reader}, {operator}, {tool}, {worker};
-- Every connection of ours proves that it sees the right tables.
GRANT SELECT ON {schema}.meta TO {enqueuer}, {tool};

-- Enqueuer: puts jobs in, and sees their ids and keys (ON CONFLICT (key) has to).
GRANT INSERT ({ENQUEUED}), SELECT (id, key)
   ON {schema}.jobs TO {enqueuer};

-- Reader: sees everything.
GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {reader}, {operator}, {worker};

-- Operator: a reader who cancels, moves and runs again, and turns queues, gates and rates. Who is to erase, too, needs
-- DELETE and UPDATE (redacted_at) on jobs: what the worker has. What is done on the web page is written down, and nobody
-- but the owner takes it out again; how many jobs it changed is known, and set, when it is done. A page of its own logs in as a reader where it only shows, else as an operator who is
-- an enqueuer too, to ask again with changes.
GRANT UPDATE (state, priority, available_at) ON {schema}.job_state TO {operator};
GRANT INSERT, UPDATE ON {schema}.queues, {schema}.gates TO {operator};
GRANT UPDATE (rate, cap) ON {schema}.rates TO {operator};
GRANT INSERT, UPDATE (count) ON {schema}.audit TO {operator}, {worker};

-- Tool: sees the tool calls, and answers them.
GRANT SELECT ON {schema}.open_tool_calls, {schema}.tool_calls TO {tool};
GRANT UPDATE (result, result_content, is_error, taken_by, taken_at) ON {schema}.tool_calls TO {tool};

-- Worker: the daemon, and the commands of whoever runs it. No DDL.
GRANT INSERT ({ENQUEUED}), DELETE
   ON {schema}.jobs TO {worker};
-- Lets it lock rows of jobs, and redact done ones: a trigger takes the prompt along, and refuses all else.
GRANT UPDATE (redacted_at) ON {schema}.jobs TO {worker};
GRANT UPDATE ON {schema}.job_state TO {worker};
GRANT INSERT, UPDATE ON {schema}.results, {schema}.tool_calls, {schema}.queues TO {worker};
GRANT INSERT, UPDATE, DELETE
   ON {schema}.calls, {schema}.checkpoints, {schema}.gates, {schema}.rates, {schema}.accounts, {schema}.workers TO {worker};

-- Counts where a pooler drops what a connection sets for itself, and only for a role that logs in itself:
-- do the same for a role of yours that a daemon logs in with.
ALTER ROLE {worker} SET search_path = {schema}, pg_temp;
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
        assert!(roles("promptmill", "pm").contains("GRANT USAGE ON SCHEMA promptmill\n"));
        assert!(roles("My \"Mill\"", "pm").contains("GRANT USAGE ON SCHEMA \"My \"\"Mill\"\"\"\n"));
        assert!(roles("s", "p\"m").contains("GRANT USAGE ON SCHEMA s\n   TO \"p\"\"m_enqueuer\","));
        assert!(roles("it's", "pm").contains("'\"it''s\"'::regnamespace"));
    }
}
