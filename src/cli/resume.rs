//! `promptmill resume`: the way back from [`super::pause`], and from a batch that stopped itself.

use super::exit::Exit;
use super::open::Context;
use super::pause::{What, set};
use crate::store::Flow;

/// Lets paused queues flow again, or a batch that was paused or that stopped itself because the API
/// kept refusing its jobs for the same reason.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    what: What,
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    set(&args.what, Flow::Flowing, context).await
}
