//! `yagent plugin list`: what plugins there are.

use std::{path::PathBuf, process::ExitCode};

use crate::{
    cli::{
        check::{print_line, print_problems},
        exit,
    },
    config,
    plugin::{Plugin, PluginError, loader},
};

/// Arguments of `yagent plugin list`.
#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct ListArgs {
    /// The configuration whose `[plugins] dir` is searched too
    #[arg(short, long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// One JSON object instead of lines
    #[arg(long)]
    pub(super) json: bool,
}

/// 0 when every plugin that was found can be used, 69 otherwise.
pub(super) fn list(args: &ListArgs) -> ExitCode {
    let dir = match args.config.as_deref().map(config::plugins_wanted).transpose() {
        Ok(wanted) => wanted.and_then(|wanted| wanted.dir),
        Err(error) => {
            print_problems(&error.problems);
            return ExitCode::from(exit::CONFIG);
        }
    };
    let dirs = loader::search_path(dir.as_deref());
    let found = loader::list(&dirs);
    if args.json {
        let plugins: Vec<_> = found.iter().map(|(file, plugin)| json(file, plugin)).collect();
        print_line(&serde_json::json!({"searched": dirs, "plugins": plugins}).to_string());
    } else {
        found.iter().for_each(|(file, plugin)| print_line(&line(file, plugin)));
        let dirs: Vec<_> = dirs.iter().map(|dir| dir.display().to_string()).collect();
        print_line(&format!("searched: {}", dirs.join(", ")));
    }
    let fine = found.iter().all(|(_, plugin)| plugin.is_ok());
    if fine { ExitCode::SUCCESS } else { ExitCode::from(exit::UNAVAILABLE) }
}

fn line(file: &std::path::Path, plugin: &Result<Plugin, PluginError>) -> String {
    match plugin {
        Ok(plugin) => {
            let about = plugin.description();
            let (major, minor) = about.abi;
            let failover = if plugin.has_failover() { ", failover" } else { "" };
            format!(
                "{} {} (ABI {major}.{minor}{failover}): {} [{}] {}",
                about.id,
                about.version,
                about.summary,
                about.section,
                file.display()
            )
        }
        Err(error) => format!("refused: {error}"),
    }
}

fn json(file: &std::path::Path, plugin: &Result<Plugin, PluginError>) -> serde_json::Value {
    match plugin {
        Ok(plugin) => {
            let about = plugin.description();
            serde_json::json!({
                "file": file, "id": about.id, "version": about.version, "abi": format!("{}.{}", about.abi.0, about.abi.1),
                "summary": about.summary, "section": about.section, "key_prefix": about.key_prefix,
                "registry_root": about.registry_root, "failover": plugin.has_failover(),
            })
        }
        Err(error) => serde_json::json!({"file": file, "error": error.to_string()}),
    }
}
