//! `yagent plugin`: plugins looked at, tried, begun, and let out of quarantine. One file a verb.

mod cases;
mod check;
mod list;
mod new;

mod subject;
mod trust;
mod tryout;

use std::process::ExitCode;

/// What to do with plugins.
#[derive(Clone, Debug, clap::Subcommand)]
pub(super) enum PluginVerb {
    /// List the plugins that are found, and where it is looked
    List(list::ListArgs),
    /// Check that a plugin keeps the contract, each case in a process of its own
    Check(check::CheckArgs),
    /// Run a plugin's hooks against a live server and print the conversation
    Try(tryout::TryArgs),

    /// Begin a plugin: a working engine, its server and its test
    New(new::NewArgs),
    /// Let a plugin be loaded again that broke the agent
    Trust(trust::TrustArgs),
}

/// Carries a verb out.
pub(super) fn plugin(verb: &PluginVerb) -> ExitCode {
    match verb {
        PluginVerb::List(args) => list::list(args),
        PluginVerb::Check(args) => check::check(args),
        PluginVerb::Try(args) => tryout::tryout(args),

        PluginVerb::New(args) => new::new(args),
        PluginVerb::Trust(args) => trust::trust(args),
    }
}
