//! The plugin that an author looks at, with the settings of an instance that is not there.

use std::path::{Path, PathBuf};

use crate::plugin::{Backend, Plugin, PluginError, loader};

/// Which plugin, and how an instance of its engine is configured.
#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct SubjectArgs {
    /// The plugin
    #[arg(value_name = "FILE.so")]
    pub(super) file: PathBuf,
    /// A key of the engine's section, or one that the host tells (program, maxmem_mb, …)
    #[arg(long, value_name = "NAME=VALUE", value_parser = setting)]
    pub(super) set: Vec<(String, String)>,
}

fn setting(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    Ok((name.to_ascii_lowercase(), value.to_owned()))
}

/// A loaded plugin and an instance's settings.
#[derive(Debug)]
pub(super) struct Subject {
    pub(super) plugin: Plugin,
    pub(super) settings: Vec<(String, Vec<u8>)>,
}

impl Subject {
    /// Loads it, for an instance on `port` of `host`.
    ///
    /// # Errors
    /// The agent would not load it.
    pub(super) fn load(args: &SubjectArgs, host: &str, port: u16) -> Result<Subject, PluginError> {
        let here = Path::new(".").join(&args.file);
        let plugin = loader::load_file(if args.file.is_absolute() { &args.file } else { &here })?;
        Ok(Subject { plugin, settings: settings(&args.set, host, port) })
    }

    /// The object of one instance.
    ///
    /// # Errors
    /// The plugin refuses the settings.
    pub(super) fn create(&self) -> Result<Backend, PluginError> {
        self.plugin.create(&self.settings)
    }
}

/// What the host would tell, then what was set, which wins.
fn settings(set: &[(String, String)], host: &str, port: u16) -> Vec<(String, Vec<u8>)> {
    let port = port.to_string();
    let told = [
        ("index", "0"),
        ("host", host),
        ("port", &port),
        ("program", "/usr/bin/true"),
        ("maxmem_mb", "64"),
        ("bind", host),
        ("state_dir", "/var/lib/yagent"),
    ];
    let own = set.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    told.into_iter().chain(own).map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec())).collect()
}
