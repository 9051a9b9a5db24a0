//! The verbs about shards: who leads, a change of the leader, pauses, whether a failover would work now.
//!
//! All of them ask the agent of this host. What an operator wishes is put into the shard's state in the registry, and
//! the agent of its master acts on it: each verb does the same on every host of a shard.

mod change;
mod doctor;
mod history;
mod list;
mod pause;
mod progress;
#[cfg(test)]
mod samples;

use std::{
    io::{self, BufRead, IsTerminal, Write},
    process::ExitCode,
    time::Duration,
};

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    check::print_line,
    client::{Agent, Client, NoAnswer},
    eprint_line, exit,
};
use crate::core::failover::ShardReport;

pub(super) use change::{FailoverArgs, SwitchoverArgs, failover, switchover};
pub(super) use doctor::{DoctorArgs, doctor};
pub(super) use history::{HistoryArgs, history};
pub(super) use list::{ShardsArgs, shards};
pub(super) use pause::{PauseArgs, ResumeArgs, pause, resume};

/// How long the agent may take to answer.
const LIMIT: Duration = Duration::from_secs(2);

/// How these verbs print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// Lines for people.
    Table,
    /// One JSON object.
    Json,
}

/// Why a verb did not do its work.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// The command line asks for what there isn't, or must not be done like this.
    #[error("{0}")]
    Usage(String),
    /// The agent or the shard will not, or has not in time.
    #[error("{0}")]
    Refused(String),
    /// The agent does not answer.
    #[error("{0}")]
    Unreachable(#[from] NoAnswer),
}

impl Failure {
    /// The exit code of a verb that changes something.
    fn code(&self) -> u8 {
        match self {
            Failure::Usage(_) => exit::USAGE,
            Failure::Refused(_) | Failure::Unreachable(_) => exit::UNAVAILABLE,
        }
    }

    /// The exit code of a verb that looks, as of `status`.
    fn code_of_a_look(&self) -> u8 {
        match self {
            Failure::Unreachable(_) => exit::NOT_REACHABLE,
            other => other.code(),
        }
    }
}

/// Tells how a verb ended; `code` is that of a failure. A program that reads JSON gets some in any case.
fn ended(outcome: Result<ExitCode, Failure>, format: Format, code: impl Fn(&Failure) -> u8) -> ExitCode {
    outcome.unwrap_or_else(|failure| {
        if format == Format::Json {
            print_line(&json!({"ok": false, "message": failure.to_string()}).to_string());
        }
        eprint_line(&failure.to_string());
        ExitCode::from(code(&failure))
    })
}

/// The agent's answer to `shards`.
#[derive(Debug, Deserialize)]
struct Answer {
    shards: Vec<ShardReport>,
}

/// The shards that this host has a member of.
fn ask(agent: &Agent) -> Result<Vec<ShardReport>, NoAnswer> {
    put(agent, &json!({"verb": "shards"}))
}

/// The one shard with this id, as often as somebody looks on.
fn ask_one(agent: &Agent, id: &str) -> Result<Option<ShardReport>, NoAnswer> {
    Ok(put(agent, &json!({"verb": "shards", "shard": id}))?.pop())
}

fn put(agent: &Agent, question: &Value) -> Result<Vec<ShardReport>, NoAnswer> {
    let client = Client::connect(agent)?;
    let answer = client.ask(question, LIMIT)?;
    Ok(client.read::<Answer>(&answer)?.shards)
}

/// Asks the agent to change something.
fn order(agent: &Agent, request: &Value) -> Result<(), Failure> {
    let outcome = Client::connect(agent)?.order(request, LIMIT)?;
    if outcome.ok { Ok(()) } else { Err(Failure::Refused(outcome.message)) }
}

/// The shard that is meant: by its id, the address of any of its members, or the port of this host's member.
fn find<'a>(shards: &'a [ShardReport], name: &str) -> Result<&'a ShardReport, Failure> {
    if let Some(shard) = shards.iter().find(|shard| shard.id == name) {
        return Ok(shard);
    }
    let port = |shard: &&ShardReport| shard.address.rsplit(':').next() == Some(name);
    let member = |shard: &&ShardReport| shard.members.iter().any(|member| member.address == name);
    let found: Vec<&ShardReport> =
        shards.iter().filter(|shard| shard.address == name || member(shard) || port(shard)).collect();
    match found[..] {
        [shard] => Ok(shard),
        [] if shards.is_empty() => Err(Failure::Usage(NO_SHARDS.to_owned())),
        [] => {
            Err(Failure::Usage(format!("this host has no member of a shard {name}; it has {}", ids(shards))))
        }
        _ => {
            let found = found.iter().map(|shard| shard.id.as_str()).collect::<Vec<_>>().join(", ");
            Err(Failure::Usage(format!("{name} may be any of the shards {found}: give its id")))
        }
    }
}

const NO_SHARDS: &str = "this host has no shards: no redis of it has peers";

fn ids(shards: &[ShardReport]) -> String {
    shards.iter().map(|shard| shard.id.as_str()).collect::<Vec<_>>().join(", ")
}

/// Asks on the terminal whether to go on. Where nobody can be asked, `--yes` must have been given.
fn confirm(yes: bool, question: &str) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    askable(yes)?;
    let mut stderr = io::stderr().lock();
    let _ = write!(stderr, "{question} Go on? [y/N] ").and_then(|()| stderr.flush());
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    if read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes") {
        return Ok(());
    }
    Err(Failure::Refused("nothing was done".to_owned()))
}

/// Refuses what would have to be asked where nobody can be.
fn askable(yes: bool) -> Result<(), Failure> {
    if yes || (io::stdin().is_terminal() && io::stderr().is_terminal()) {
        return Ok(());
    }
    Err(Failure::Usage("there is no terminal to ask for a confirmation: give --yes".to_owned()))
}

/// Agents and servers had a say in these texts; none may move the cursor.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::{samples::shard, *};

    #[test]
    fn a_shard_is_found_by_id_member_or_port() {
        let shards = [shard(16379), shard(16389)];
        for (name, id) in [
            ("10.0.0.1:16379", "10.0.0.1:16379"),
            ("10.0.0.3:16389", "10.0.0.1:16389"),
            ("16379", "10.0.0.1:16379"),
            ("16389", "10.0.0.1:16389"),
        ] {
            assert_eq!(find(&shards, name).unwrap().id, id, "{name}");
        }
    }

    #[test]
    fn what_is_no_shard_is_told_with_those_that_are() {
        let told = find(&[shard(16379)], "6379").unwrap_err();
        assert_eq!(told.to_string(), "this host has no member of a shard 6379; it has 10.0.0.1:16379");
        assert_eq!(told.code(), exit::USAGE);
        assert_eq!(find(&[], "6379").unwrap_err().to_string(), NO_SHARDS);
    }

    #[test]
    fn what_may_be_two_shards_is_none() {
        let mut other = shard(16379);
        other.id = "9.0.0.1:16379".to_owned();
        let told = find(&[shard(16379), other], "16379").unwrap_err().to_string();
        assert_eq!(told, "16379 may be any of the shards 10.0.0.1:16379, 9.0.0.1:16379: give its id");
    }

    #[test]
    fn without_a_terminal_nothing_is_asked() {
        // The tests' standard input may be a terminal; what is asked then is for people to try.
        if !io::stdin().is_terminal() {
            assert_eq!(askable(false).unwrap_err().code(), exit::USAGE);
        }
        assert!(confirm(true, "").is_ok());
    }
}
