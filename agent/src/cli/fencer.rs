//! `yagent fencer`: started by the agent for its shards' masters; nobody calls it by hand.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;

use super::exit;
use crate::fencer::Fencer;

/// Arguments of `fencer`.
#[derive(Debug, Args)]
pub(super) struct FencerArgs {
    /// The agent's state directory
    #[arg(long, value_name = "DIR")]
    state_dir: PathBuf,
}

/// Works until there is nothing to watch any more.
pub(super) fn run(args: &FencerArgs) -> ExitCode {
    // It must not end with its agent's session.
    let _ = rustix::process::setsid();
    // When memory is short it must be the last to go. Only root may ask for that.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-900");
    match Fencer::new(&args.state_dir).and_then(|fencer| fencer.map_or(Ok(()), |mut fencer| fencer.run())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("fencer: {}: {e}", args.state_dir.display());
            ExitCode::from(exit::INTERNAL)
        }
    }
}
