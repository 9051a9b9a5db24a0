//! `yagent plugin trust`: an operator's word that ends a plugin's quarantine.

use std::{path::PathBuf, process::ExitCode};

use crate::{
    cli::{
        check::{print_line, print_problems},
        eprint_line, exit,
    },
    config::{self, DEFAULT_FILE},
    shell::quarantine::Quarantine,
};

/// Arguments of `yagent plugin trust`.
#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct TrustArgs {
    /// The engine, as its section is named
    engine: String,
    /// The configuration of the agent
    #[arg(short, long, value_name = "FILE", default_value = DEFAULT_FILE)]
    config: PathBuf,
}

/// 0 when the plugin will be loaded, 69 when that can't be written down.
pub(super) fn trust(args: &TrustArgs) -> ExitCode {
    let engine = &args.engine;
    let state_dir = match config::plugins_wanted(&args.config) {
        Ok(wanted) => wanted.state_dir,
        Err(error) => {
            print_problems(&error.problems);
            return ExitCode::from(exit::CONFIG);
        }
    };
    if engine.is_empty() || engine.contains(['/', '.']) {
        eprint_line(&format!("`{engine}` is no engine's name"));
        return ExitCode::from(exit::USAGE);
    }
    match Quarantine::of(&state_dir).trust(engine) {
        Ok(Some(_)) => print_line(&format!("plugin `{engine}` is trusted: `yagent reload` loads it")),
        Ok(None) => print_line(&format!("plugin `{engine}` was not in quarantine")),
        Err(error) => {
            eprint_line(&format!("cannot write in state_dir {}: {error}", state_dir.display()));
            return ExitCode::from(exit::UNAVAILABLE);
        }
    }
    ExitCode::SUCCESS
}
