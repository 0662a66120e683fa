//! `promptmill roles`: the SQL of Postgres roles with the least rights.
//!
//! Printed, never run: who may log in, and as what, is for the owner of the database to say.

use super::exit::Exit;
use super::open::Context;
use super::out::{Out, say};
use crate::store::roles::roles;

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

/// Runs the command.
pub fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let config = context.load()?;
    if config.database.url.file().is_some() {
        say(
            "note: the configured database is a SQLite file, which has no roles; who may write it is all there is",
        );
    }
    let mut out = Out::stdout();
    out.text(&roles(&config.database.store.schema, &args.prefix))?;
    out.flush()?;
    Ok(Exit::Good)
}
