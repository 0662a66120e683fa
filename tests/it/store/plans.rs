//! What a running daemon asks of the database costs the same however much stands in it: the plan of each
//! statement of the worker's, as the store really sends it, on tables with a history.
//!
//! The line is drawn here: nothing reads a table of jobs from end to end, and nothing reads or sorts more of its
//! rows than [`ROWS_MAX`]. A batch is [`BATCH`] jobs; each of the tables holds twenty thousand rows and more.
//! Only what is meant to look at all jobs in one state may read more ([`COUNTING`]), by an index as well.

mod day;
mod grown;
mod page;
mod postgres;
mod seen;
mod sqlite;

/// Jobs of a batch.
const BATCH: usize = 64;

/// Rows that one statement may read or sort at any place: a scan counts up to a batch in each of twenty lanes.
const ROWS_MAX: f64 = 1_500.0;

/// The tables that grow with the work that was done.
const GROWING: [&str; 6] = ["jobs", "job_state", "results", "calls", "tool_calls", "checkpoints"];

/// How statements begin that look at all jobs in one state: what is left, which a drain asks while nothing
/// runs, and which of those that wait for tools are answered, which is asked every five seconds.
const COUNTING: [&str; 2] = ["WITH counted AS (", "WITH answered AS MATERIALIZED ("];

/// The files whose statements a running daemon sends, all of which have to be seen.
const SOURCES: [&str; 8] = ["claim", "write", "upkeep", "tools", "gates", "rates", "clock", "traces"];

/// The sources of one store by their names.
fn sources(database: &str) -> impl Iterator<Item = (&'static str, String)> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store").join(database);
    let source = move |name: &str| std::fs::read_to_string(folder.join(name).with_extension("rs"));
    SOURCES.iter().map(move |name| (*name, source(name).expect("a source")))
}

/// How many statements stand in the sources of one store.
fn written(database: &str) -> usize {
    sources(database).map(|(_, source)| source.matches("sqlx::query").count()).sum()
}

/// Whether a statement stands elsewhere: it opens a connection, or says where a transaction begins and ends.
fn is_frame(sql: &str) -> bool {
    [
        "BEGIN",
        "COMMIT",
        "ROLLBACK",
        "SET ",
        "PRAGMA foreign_keys",
        "PRAGMA journal_mode",
        "PRAGMA data_version",
    ]
    .iter()
    .any(|word| sql.starts_with(word))
        || sql.contains("schema_version")
        || sql.contains("pragma_application_id")
}

/// Says which statement it is.
fn head(sql: &str) -> String {
    let words: Vec<&str> = sql.split_whitespace().collect();
    format!("{} …", words[..words.len().min(24)].join(" "))
}
