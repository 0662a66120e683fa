//! The command line: what `promptmill …` understands, one file a command.
//!
//! Data goes to stdout, words and progress to stderr. A command ends with an [`Exit`]; whatever it
//! asks of the database it asks of [`crate::store::Desk`], so there is no SQL here; only `demo` and
//! `bench` play the user, too.

mod bench;
mod cancel;
pub mod config;
pub mod demo;
pub mod doctor;
mod enqueue;
mod exit;
mod files;
pub(crate) mod gates;
mod health;
mod metrics;
mod migrate;
pub(crate) mod mill;
mod open;
pub(crate) mod out;
mod outside;
mod pause;
mod progress;
mod purge;
pub(crate) mod results;
mod resume;
mod retry;
mod roles;
mod run;
mod show;
mod stand_in;
mod status;
mod watch;
mod web;
mod which;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

pub use exit::{Exit, Stop};
pub use open::{Absent, Context};

/// Takes prompts from a SQL table through the Claude Messages API into a results table.
#[derive(Debug, Parser)]
#[expect(clippy::doc_markdown, reason = "these words are the help text, which knows no backticks")]
#[command(name = "promptmill", version, max_term_width = 110, after_help = AFTER_HELP)]
pub struct Cli {
    /// Configuration file [env: PROMPTMILL_CONFIG=] [default: promptmill.toml here, where it exists]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Write data as JSON, for programs
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const AFTER_HELP: &str = "\
Exit codes: 0 good, 1 failure, 2 usage, 3 configuration, 4 database unreachable, 5 schema,
6 credentials refused, 7 not all that was waited for is complete, 8 jobs left behind a blocked gate.
The database is DATABASE_URL, or database.url of the configuration; sqlite:promptmill.db unless set.";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Take prompts to the API and bring the answers back, until told to stop
    Run(run::RunArgs),
    /// Put prompts into the table
    Enqueue(enqueue::Args),
    /// Show how many jobs are where
    Status(status::Args),
    /// Show the answers
    Results(results::Args),
    /// Tell a job's whole story, call by call
    Show(show::Args),
    /// Cancel jobs that are not done
    Cancel(cancel::Args),
    /// Run jobs again
    Retry(retry::Args),
    /// Erase done jobs with all that belongs to them, or only what they asked
    Purge(purge::Args),
    /// Keep a queue or a batch from being worked on
    Pause(pause::Args),
    /// Let a paused queue or a stopped batch flow again
    Resume(resume::Args),
    /// Show what is stopped and why, block it, or let it flow
    Gates(gates::Args),
    /// Make the tables, or bring them up to date
    Migrate(migrate::Args),
    /// Print the SQL of Postgres roles with the least rights
    Roles(roles::Args),
    /// Show the effective configuration, and where each value came from
    Config(config::ConfigArgs),
    /// Look at everything a run needs, and say what to do about what is amiss
    Doctor(doctor::DoctorArgs),
    /// Ask the daemon on this host whether it lives, or works
    Health(health::Args),
    /// Watch a few hundred prompts being drained, without key or network
    Demo(demo::Args),
    /// Show the web page, without working on jobs
    Web(web::Args),
    /// Serve a stand-in for the Claude API, to test with
    StandIn(stand_in::Args),
    /// Measure what the mill does on this machine and this database
    Bench(Box<bench::Args>),
}

/// How long what still runs may take to end when the process does.
const LAST_MOMENT: Duration = Duration::from_millis(100);

/// Runs the process: reads the command line, does what it says, and reports how it ended.
pub fn main() -> ExitCode {
    crate::failpoint::arm();
    files::leave_no_core();
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            out::say(&format!("promptmill: the runtime cannot start: {error}"));
            return Exit::Failure.into();
        }
    };
    let done = runtime.block_on(dispatch(cli));
    // A name that is being looked up, say, would be waited for.
    runtime.shutdown_timeout(LAST_MOMENT);
    match done {
        Ok(exit) => exit.into(),
        Err(error) => match exit::of(&error) {
            Some(exit) => {
                out::say(&format!("promptmill: {}", exit::sentence(&error)));
                exit.into()
            }
            None => Exit::Good.into(),
        },
    }
}

async fn dispatch(cli: Cli) -> anyhow::Result<Exit> {
    let context = Context::new(cli.config, cli.json);
    match cli.command {
        Command::Run(args) => run::run(&args, &context).await,
        Command::Enqueue(args) => enqueue::run(&args, &context).await,
        Command::Status(args) => status::run(&args, &context).await,
        Command::Results(args) => results::run(&args, &context).await,
        Command::Show(args) => show::run(&args, &context).await,
        Command::Cancel(args) => cancel::run(&args, &context).await,
        Command::Retry(args) => retry::run(&args, &context).await,
        Command::Purge(args) => purge::run(&args, &context).await,
        Command::Pause(args) => pause::run(&args, &context).await,
        Command::Resume(args) => resume::run(&args, &context).await,
        Command::Gates(args) => gates::run(&args, &context).await,
        Command::Migrate(args) => migrate::run(&args, &context).await,
        Command::Roles(args) => roles::run(&args, &context),
        Command::Config(mut args) => {
            args.json |= context.json;
            Ok(Exit::of_code(config::run(args, &context.flags()).await?))
        }
        Command::Doctor(mut args) => {
            args.json |= context.json;
            Ok(Exit::of_code(doctor::run(args, &context.flags(), &outside::World).await?))
        }
        Command::Health(args) => health::run(&args, &context).await,
        Command::Demo(args) => run::demo(args).await.map(|()| Exit::Good),
        Command::Web(args) => web::run(&args, &context).await,
        Command::StandIn(args) => stand_in::run(args).await.map(|()| Exit::Good),
        Command::Bench(args) => Box::pin(bench::run(*args, &context)).await,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
