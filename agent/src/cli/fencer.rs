//! `yagent fencer`: the process beside the agent that fences masters whose lease has run out.

use std::{path::PathBuf, process::ExitCode};

use super::{eprint_line, exit};

/// Arguments of `yagent fencer`.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct FencerArgs {
    /// Where its socket is
    #[arg(long, value_name = "DIR")]
    state_dir: PathBuf,
}

/// Fences until there is nothing to guard.
pub(super) fn fencer(args: &FencerArgs) -> ExitCode {
    match crate::fencer::run(&args.state_dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprint_line(&format!("the fencer of {} ends: {e}", args.state_dir.display()));
            ExitCode::from(exit::UNAVAILABLE)
        }
    }
}
