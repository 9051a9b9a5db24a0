//! `yagent switchover` and `yagent failover`: another master, by an operator's wish.
//!
//! A switchover loses nothing and is refused where it would; a forced failover does what it can with what is there.

use std::{process::ExitCode, time::Duration};

use serde_json::{Value, json};

use super::{Failure, Format, ask, askable, confirm, ended, find, list::next, order, progress::Watch};
use crate::{
    cli::{check::print_line, client::Agent, exit},
    core::failover::{MemberReport, ShardReport},
    setup,
};

/// Arguments of `yagent switchover`.
#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct SwitchoverArgs {
    #[command(flatten)]
    common: ChangeArgs,
}

/// Arguments of `yagent failover`.
#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct FailoverArgs {
    #[command(flatten)]
    common: ChangeArgs,
    /// Promote although writes may be lost
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Debug, clap::Args)]
struct ChangeArgs {
    /// Which agent
    #[command(flatten)]
    agent: Agent,
    /// The shard: its id, a member's address, or its port on this host
    shard: String,
    /// The member that is to lead; without it, the best one
    #[arg(long, value_name = "ADDRESS")]
    to: Option<String>,
    /// Don't ask
    #[arg(short, long)]
    yes: bool,
    /// How long to wait for the end, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    wait: u32,
    /// How to print what happens
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nothing may be lost.
    Switchover,
    /// Whatever it costs.
    Force,
}

const WITHOUT_FORCE: &str = "a failover by hand promotes a replica whatever it has: what the master took and the \
                             replica has not got yet is lost, and the master's copy of it is thrown away. Where master \
                             and replica are well, `yagent switchover` does the same and loses nothing. Where the \
                             master is dead, the agents fail over by themselves; `yagent doctor` and `yagent shards \
                             SHARD` say why they have not. If it must be, give --force";

/// Switches over: 0 when it is done, 69 when it is refused, has failed or has not ended in time, 64 when there is no such
/// shard or member, or nobody could be asked.
#[must_use]
pub(in crate::cli) fn switchover(args: &SwitchoverArgs) -> ExitCode {
    ended(change(&args.common, Kind::Switchover), args.common.format, Failure::code)
}

/// Fails over by hand; the exit codes are those of `switchover`, and 64 without `--force`.
#[must_use]
pub(in crate::cli) fn failover(args: &FailoverArgs) -> ExitCode {
    let forced = if args.force {
        change(&args.common, Kind::Force)
    } else {
        Err(Failure::Usage(WITHOUT_FORCE.to_owned()))
    };
    ended(forced, args.common.format, Failure::code)
}

fn change(args: &ChangeArgs, kind: Kind) -> Result<ExitCode, Failure> {
    askable(args.yes)?;
    let shards = ask(&args.agent)?;
    let shard = find(&shards, &args.shard)?;
    let to = target(shard, args.to.as_deref(), kind)?;
    confirm(args.yes, &question(shard, to.map(|to| to.address.as_str()), kind))?;
    let id = setup::random().map_err(|e| Failure::Refused(format!("cannot read random bytes: {e}")))?;
    let to = args.to.as_ref().and(to).map(|to| to.address.as_str());
    order(&args.agent, &request(shard, to, kind, &id))?;
    let limit = Duration::from_secs(args.wait.into());
    let told = |line: &str| {
        if args.format == Format::Table {
            print_line(line);
        }
    };
    let end = Watch::new(shard, id, kind).until_the_end(&args.agent, limit, told)?;
    match args.format {
        Format::Json => print_line(&end.json().to_string()),
        Format::Table if end.done() => print_line(&end.sentence()),
        Format::Table => return Err(Failure::Refused(end.sentence())),
    }
    Ok(if end.done() { ExitCode::SUCCESS } else { ExitCode::from(exit::UNAVAILABLE) })
}

fn request(shard: &ShardReport, to: Option<&str>, kind: Kind, id: &str) -> Value {
    let verb = match kind {
        Kind::Switchover => "switchover",
        Kind::Force => "failover",
    };
    json!({"verb": verb, "shard": shard.id, "to": to, "id": id})
}

/// Whom the wish is about, as far as it can be told from here; the agents decide. `None`: a forced failover to the best
/// one, where none is good.
fn target<'a>(
    shard: &'a ShardReport,
    to: Option<&str>,
    kind: Kind,
) -> Result<Option<&'a MemberReport>, Failure> {
    let master = shard.state.as_ref().map_or("", |state| state.master.as_str());
    let target = match to {
        Some(to) => Some(member(shard, to)?),
        None => next(shard),
    };
    match target {
        Some(target) if target.address == master => {
            Err(Failure::Refused(format!("{master} is the master already")))
        }
        _ if kind == Kind::Force => Ok(target),
        Some(target) => match &target.barred {
            Some(why) => Err(Failure::Refused(format!("{} cannot be promoted: {why}", target.address))),
            None => Ok(Some(target)),
        },
        None => Err(Failure::Refused(format!("no member can be promoted: {}", reasons(shard, master)))),
    }
}

/// A member by its address, or by its host alone.
fn member<'a>(shard: &'a ShardReport, name: &str) -> Result<&'a MemberReport, Failure> {
    let host = |address: &str| address.rsplit_once(':').map(|(host, _)| host.to_owned());
    let named =
        |member: &&MemberReport| member.address == name || host(&member.address).as_deref() == Some(name);
    shard.members.iter().find(named).ok_or_else(|| {
        let members =
            shard.members.iter().map(|member| member.address.as_str()).collect::<Vec<_>>().join(", ");
        Failure::Usage(format!("{name} is no member of shard {}; it has {members}", shard.id))
    })
}

fn reasons(shard: &ShardReport, master: &str) -> String {
    let others = shard.members.iter().filter(|member| member.address != master);
    let told: Vec<String> = others
        .map(|member| format!("{}: {}", member.address, member.barred.as_deref().unwrap_or("not known")))
        .collect();
    if told.is_empty() { "there is no other".to_owned() } else { told.join("; ") }
}

fn question(shard: &ShardReport, to: Option<&str>, kind: Kind) -> String {
    let master = shard.state.as_ref().map_or("nobody", |state| state.master.as_str());
    let to = to.unwrap_or("the best member");
    let question = match kind {
        Kind::Switchover => format!(
            "Shard {}: {to} becomes the master in place of {master}. Writes pause for a moment, nothing is lost, \
             clients of {master} are disconnected.",
            shard.id
        ),
        Kind::Force => format!(
            "Shard {}: {to} becomes the master in place of {master}. WRITES THAT {to} HAS NOT GOT YET ARE LOST.",
            shard.id
        ),
    };
    super::plain(&question)
}

#[cfg(test)]
mod tests {
    use super::{super::samples::shard, *};

    fn named(to: Option<&str>, kind: Kind) -> Result<String, String> {
        let shard = shard(16379);
        let target = target(&shard, to, kind).map_err(|failure| failure.to_string())?;
        Ok(target.map_or_else(|| "nobody".to_owned(), |member| member.address.clone()))
    }

    #[test]
    fn the_best_one_or_the_named_one_is_meant() {
        assert_eq!(named(None, Kind::Switchover).as_deref(), Ok("10.0.0.2:16379"));
        assert_eq!(named(Some("10.0.0.2:16379"), Kind::Switchover).as_deref(), Ok("10.0.0.2:16379"));
        assert_eq!(named(Some("10.0.0.2"), Kind::Switchover).as_deref(), Ok("10.0.0.2:16379"));
    }

    #[test]
    fn one_that_must_not_lead_is_refused_unless_forced() {
        let why = "10.0.0.3:16379 cannot be promoted: its link to the master is down";
        assert_eq!(named(Some("10.0.0.3"), Kind::Switchover), Err(why.to_owned()));
        assert_eq!(named(Some("10.0.0.3"), Kind::Force).as_deref(), Ok("10.0.0.3:16379"));
        let why = "10.0.0.1:16379 is the master already";
        assert_eq!(named(Some("10.0.0.1"), Kind::Force), Err(why.to_owned()));
        let why = named(Some("10.0.0.4"), Kind::Force).unwrap_err();
        assert!(
            why.starts_with("10.0.0.4 is no member of shard 10.0.0.1:16379; it has 10.0.0.1:16379, "),
            "{why}"
        );
    }

    #[test]
    fn where_nobody_can_lead_the_reasons_are_told() {
        let mut shard = shard(16379);
        shard.members[1].next = false;
        shard.members[1].barred = Some("priority 0".to_owned());
        let why = target(&shard, None, Kind::Switchover).unwrap_err().to_string();
        assert_eq!(
            why,
            "no member can be promoted: 10.0.0.2:16379: priority 0; 10.0.0.3:16379: its link to the master is down"
        );
        assert!(target(&shard, None, Kind::Force).unwrap().is_none());
    }

    #[test]
    fn force_must_be_said() {
        let common = ChangeArgs {
            agent: Agent { socket: Some("/no/such/socket".into()), config: None },
            shard: "16379".to_owned(),
            to: None,
            yes: true,
            wait: 1,
            format: Format::Table,
        };
        let code = failover(&FailoverArgs { common, force: false });
        assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::from(exit::USAGE)));
    }
}
