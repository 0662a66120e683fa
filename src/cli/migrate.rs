//! `promptmill migrate`: makes the tables, or brings them up to date, on both databases.

use serde_json::json;

use super::exit::Exit;
use super::open::{Context, open_directly};
use super::out::{Out, say};
use crate::store::{Migrate, migrations};

/// Makes the tables, or brings them up to date. Safe to run again; on Postgres as the schema's owner.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the command.
pub async fn run(_: &Args, context: &Context) -> anyhow::Result<Exit> {
    let config = context.load()?;
    open_directly(&config, Migrate::Now).await?;
    if context.json {
        let mut out = Out::stdout();
        out.line(&json!({"schema_version": migrations::LATEST}).to_string())?;
        out.flush()?;
    }
    say(&format!("{} is at schema version {}", config.database.url, migrations::LATEST));
    Ok(Exit::Good)
}
