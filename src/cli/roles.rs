//! `promptmill roles`: the SQL of Postgres roles with the least rights.
//!
//! Printed, never run: who may log in, and as what, is for the owner of the database to say.

use super::exit::Exit;
use super::open::Context;
use super::out::{Out, say};

/// Prints the SQL that makes Postgres roles with the least rights, to be read, changed and run by the
/// owner of the database: promptmill roles | psql.
///
/// The roles cannot log in: GRANT them to those that do.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What the names of the roles begin with
    #[arg(long, value_name = "NAME", default_value = "promptmill")]
    prefix: String,
}

/// The names of the roles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleNames {
    /// Owns the schema; nobody logs in as it.
    pub owner: String,
    /// Inserts jobs, and sees their ids and keys.
    pub enqueuer: String,
    /// Reads everything.
    pub reader: String,
    /// Reader that also cancels, retries, pauses and opens gates.
    pub operator: String,
    /// Reads everything: what a tool of a job needs is granted with the tables that it answers in.
    pub tool: String,
    /// The daemon. No DDL.
    pub worker: String,
}

impl RoleNames {
    /// Returns `<prefix>_owner` and so on.
    pub fn with_prefix(prefix: &str) -> Self {
        let name = |role: &str| format!("{prefix}_{role}");
        Self {
            owner: name("owner"),
            enqueuer: name("enqueuer"),
            reader: name("reader"),
            operator: name("operator"),
            tool: name("tool"),
            worker: name("worker"),
        }
    }
}

/// Runs the command.
pub fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let config = context.load()?;
    if config.database.url.file().is_some() {
        say(
            "note: the configured database is a SQLite file, which has no roles; who may write it is all there is",
        );
    }
    let mut out = Out::stdout();
    out.text(&roles_sql(&config.database.store.schema, &RoleNames::with_prefix(&args.prefix)))?;
    out.flush()?;
    Ok(Exit::Good)
}

/// Returns the SQL that makes the roles and gives them their rights on a schema that exists.
pub fn roles_sql(schema: &str, names: &RoleNames) -> String {
    let schema_name = schema;
    let schema = quoted(schema);
    let RoleNames { owner, enqueuer, reader, operator, tool, worker } = names;
    let all = [owner, enqueuer, reader, operator, tool, worker];
    // CREATE ROLE has no IF NOT EXISTS, and this must be safe to run again.
    let create = all.map(|role| {
        let role = quoted(role);
        format!(
            "DO $$ BEGIN CREATE ROLE {role} NOLOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$;\n"
        )
    });
    let create = create.concat();
    let [owner, enqueuer, reader, operator, tool, worker] = all.map(|role| quoted(role));
    format!(
        "-- The roles of promptmill, with the least rights. Run as a superuser, or as one who may create roles
-- and owns the schema, after `promptmill migrate`. Safe to run again. Nobody can log in as one of these:
--   GRANT {worker} TO the_daemon_s_login;
BEGIN;
{create}
-- owner: everything of the schema belongs to it. `promptmill migrate` runs as a member of it.
ALTER SCHEMA {schema} OWNER TO {owner};
DO $$
DECLARE
    thing record;
BEGIN
    FOR thing IN SELECT c.oid::regclass AS name, c.relkind AS kind FROM pg_class c
                  WHERE c.relnamespace = {literal}::regnamespace AND c.relkind IN ('r', 'v')
    LOOP
        EXECUTE format('ALTER %s %s OWNER TO %I', CASE thing.kind WHEN 'v' THEN 'VIEW' ELSE 'TABLE' END, thing.name, {owner_literal});
    END LOOP;
    FOR thing IN SELECT p.oid::regprocedure AS name FROM pg_proc p WHERE p.pronamespace = {literal}::regnamespace
    LOOP
        EXECUTE format('ALTER FUNCTION %s OWNER TO %I', thing.name, {owner_literal});
    END LOOP;
END $$;
REVOKE ALL ON SCHEMA {schema} FROM PUBLIC;
GRANT USAGE ON SCHEMA {schema} TO {enqueuer}, {reader}, {operator}, {tool}, {worker};
-- Every connection proves that it sees the right tables.
GRANT SELECT ON {schema}.meta TO {enqueuer}, {reader}, {operator}, {tool}, {worker};

-- enqueuer: inserts jobs; of those there, sees ids and keys only (ON CONFLICT (key) and RETURNING id need them).
GRANT INSERT (queue, batch, key, prompt, system, model, max_tokens, params, policy, metadata, priority, run_at)
    ON {schema}.jobs TO {enqueuer};
GRANT SELECT (id, key) ON {schema}.jobs TO {enqueuer};

-- reader: reads everything.
GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {reader}, {operator}, {tool}, {worker};

-- operator: cancels, runs again, reprioritises, pauses, opens and closes gates.
GRANT UPDATE (state, priority, available_at) ON {schema}.job_state TO {operator};
GRANT UPDATE (paused, max_running, model, policy) ON {schema}.queues TO {operator};
GRANT INSERT, UPDATE (state, reason, until) ON {schema}.gates TO {operator};

-- worker: the daemon, and the commands of whoever runs it. No DDL, and no way to change what was asked.
GRANT INSERT (queue, batch, key, prompt, system, model, max_tokens, params, policy, metadata, priority, run_at), DELETE
    ON {schema}.jobs TO {worker};
-- Lets it lock rows of jobs; the update itself is refused by a trigger.
GRANT UPDATE (id) ON {schema}.jobs TO {worker};
GRANT UPDATE ON {schema}.job_state TO {worker};
-- A ledger row that came late takes the place of the one that the rescue wrote for it.
GRANT INSERT, UPDATE ON {schema}.results, {schema}.calls, {schema}.queues TO {worker};
GRANT INSERT, UPDATE, DELETE ON {schema}.checkpoints TO {worker};
GRANT INSERT, UPDATE, DELETE ON {schema}.gates TO {worker};
GRANT INSERT, UPDATE, DELETE ON {schema}.workers TO {worker};
COMMIT;

-- Behind a pooler in transaction mode (database.pooler = \"transaction\") connections set nothing themselves. A login does
-- not inherit settings, so this is said to the login role itself:
--   ALTER ROLE the_daemon_s_login SET search_path = {schema}, pg_temp;
",
        literal = literal(schema_name),
        owner_literal = literal(&names.owner),
    )
}

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
    fn odd_names_are_quoted() {
        let sql = roles_sql("My Schema", &RoleNames::with_prefix("p\"m"));
        assert!(sql.contains("GRANT USAGE ON SCHEMA \"My Schema\" TO \"p\"\"m_enqueuer\""), "{sql}");
        assert!(
            !roles_sql("promptmill", &RoleNames::with_prefix("pm"))
                .contains('"'.to_string().repeat(2).as_str())
        );
    }
}
