//! The command line: one file a verb.

mod check;
mod client;
mod demo;
mod fencer;
mod guard;
mod plan;
mod plugin;
mod reload;
mod run;
mod shard;
mod status;
mod stop;

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{CommandFactory, Parser, Subcommand};

/// Exit codes, as sysexits.h has them where it has them.
pub(crate) mod exit {
    /// `status`: something is down; `doctor`: a shard could not fail over.
    pub(crate) const DOWN: u8 = 3;
    /// The verbs that look: the agent cannot be reached.
    pub(crate) const NOT_REACHABLE: u8 = 4;
    /// The command line is wrong.
    pub(crate) const USAGE: u8 = 64;
    /// Something that is needed isn't there.
    pub(crate) const UNAVAILABLE: u8 = 69;
    /// The agent itself failed.
    pub(crate) const INTERNAL: u8 = 70;
    /// The configuration is wrong.
    pub(crate) const CONFIG: u8 = 78;
}

const EXIT_CODES: &str = "Exit codes: 0 fine, 64 wrong usage, 69 something needed is not available, 70 internal \
                          error, 78 bad configuration; of status: 3 something is down; of doctor: 3 a shard could not \
                          fail over; of status, shards, doctor and history: 4 the agent is not reachable";

/// The host agent for memcached and redis instances
#[derive(Debug, Parser)]
#[command(name = "yagent", version, after_help = EXIT_CODES, args_conflicts_with_subcommands = true)]
struct Cli {
    /// Run the agent with this configuration, as `yagent run -c FILE` does
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the agent
    Run(run::RunArgs),
    /// Check a configuration
    Check(check::CheckArgs),
    /// Print what would be started
    Plan(plan::PlanArgs),
    /// Show what a running agent has and how it is
    Status(status::StatusArgs),
    /// Keep masters from taking writes when their leases run out; started by the agent
    #[command(hide = true)]
    Fencer(fencer::FencerArgs),
    /// Stop a running agent; its instances go on serving
    Stop(stop::StopArgs),
    /// Make a running agent read its settings again
    Reload(reload::ReloadArgs),
    /// Show the shards of this host, or the members of one
    Shards(shard::ShardsArgs),
    /// Make another member of a shard its master, without losing a write
    Switchover(shard::SwitchoverArgs),
    /// Make another member of a shard its master, whatever is lost
    Failover(shard::FailoverArgs),
    /// Have no master switched for a while
    Pause(shard::PauseArgs),
    /// End a pause
    Resume(shard::ResumeArgs),
    /// Could each shard fail over right now?
    Doctor(shard::DoctorArgs),
    /// Show when masters changed, and why
    History(shard::HistoryArgs),
    /// Show the agent at work on real caches, in a temporary directory
    Demo(demo::DemoArgs),
    /// Look at plugins
    #[command(subcommand)]
    Plugin(plugin::PluginVerb),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(exit::USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match (cli.verb, cli.config) {
        (Some(verb), _) => verb.run(),
        (None, Some(config)) => run::run(&run::RunArgs { config, guard: false }),
        (None, None) => {
            let _ = Cli::command().print_help();
            ExitCode::from(exit::USAGE)
        }
    }
}

/// One line for people on standard error; where that is gone, nobody is left to tell.
fn eprint_line(text: &str) {
    let _ = writeln!(io::stderr().lock(), "yagent: {text}");
}

impl Verb {
    fn run(self) -> ExitCode {
        match self {
            Verb::Run(args) if args.guard => guard::guard(&args),
            Verb::Run(args) => run::run(&args),
            Verb::Check(args) => check::check(&args),
            Verb::Plan(args) => plan::plan(&args),
            Verb::Status(args) => status::status(&args),
            Verb::Fencer(args) => fencer::fencer(&args),
            Verb::Stop(args) => stop::stop(&args),
            Verb::Reload(args) => reload::reload(&args),
            Verb::Shards(args) => shard::shards(&args),
            Verb::Switchover(args) => shard::switchover(&args),
            Verb::Failover(args) => shard::failover(&args),
            Verb::Pause(args) => shard::pause(&args),
            Verb::Resume(args) => shard::resume(&args),
            Verb::Doctor(args) => shard::doctor(&args),
            Verb::History(args) => shard::history(&args),
            Verb::Demo(args) => demo::demo(&args),
            Verb::Plugin(verb) => plugin::plugin(&verb),
        }
    }
}
