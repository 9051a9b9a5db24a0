//! `yagent pause` and `yagent resume`: no switching for a while.

use std::{
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{Failure, Format, NO_SHARDS, ask, ask_one, ended, find, ids, order};
use crate::{
    cli::{check::print_line, client::Agent},
    core::failover::{PauseNode, ShardReport},
};

/// The longest pause. Whoever wants more asks again.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);
/// The longest reason, in bytes: it must find room in a request and a node.
const REASON_AT_MOST: usize = 500;
/// How long ZooKeeper may take to have it.
const LIMIT: Duration = Duration::from_secs(5);
/// How often it is looked whether it does.
const PACE: Duration = Duration::from_millis(20);

/// What is paused.
#[derive(Clone, Debug, clap::Args)]
#[group(required = false, multiple = false)]
struct Scope {
    /// The shard: its id, a member's address, or its port on this host. May be left out where there is one only
    shard: Option<String>,
    /// All members of this host: they are not promoted, their shards go on
    #[arg(long)]
    host: bool,
}

/// Arguments of `yagent pause`.
#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct PauseArgs {
    /// Which agent
    #[command(flatten)]
    agent: Agent,
    /// What is paused
    #[command(flatten)]
    scope: Scope,
    /// For how long: 90s, 30m, 2h, 1d
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    long: Duration,
    /// Why, for those who will wonder
    #[arg(long, value_parser = reason)]
    reason: String,
}

/// Arguments of `yagent resume`.
#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct ResumeArgs {
    /// Which agent
    #[command(flatten)]
    agent: Agent,
    /// What goes on
    #[command(flatten)]
    scope: Scope,
}

/// Pauses: 0 when it stands in ZooKeeper, 69 when it does not or the agent cannot be asked, 64 when there is no such shard.
#[must_use]
pub(in crate::cli) fn pause(args: &PauseArgs) -> ExitCode {
    let for_ms = u64::try_from(args.long.as_millis()).unwrap_or(u64::MAX);
    let request = |shard: &ShardReport| {
        json!({"verb": "pause", "shard": shard.id, "for_ms": for_ms, "reason": args.reason,
            "host": args.scope.host})
    };
    let done = format!("paused for {}", spelled(for_ms));
    let stands = |pause: Option<&PauseNode>| {
        pause.is_some_and(|pause| pause.for_ms == for_ms && pause.reason == args.reason)
    };
    ended(order_of(&args.agent, &args.scope, request, stands, &done), Format::Table, Failure::code)
}

/// Ends a pause; the exit codes are those of `pause`.
#[must_use]
pub(in crate::cli) fn resume(args: &ResumeArgs) -> ExitCode {
    let request = |shard: &ShardReport| json!({"verb": "resume", "shard": shard.id, "host": args.scope.host});
    ended(
        order_of(&args.agent, &args.scope, request, |pause| pause.is_none(), "goes on"),
        Format::Table,
        Failure::code,
    )
}

fn order_of(
    agent: &Agent,
    scope: &Scope,
    request: impl Fn(&ShardReport) -> Value,
    stands: impl Fn(Option<&PauseNode>) -> bool,
    done: &str,
) -> Result<ExitCode, Failure> {
    let shards = ask(agent)?;
    let meant = scope.of(&shards)?;
    // A host has one pause for all its members: any of them sees to it.
    let asked = if scope.host { &meant[..1] } else { &meant[..] };
    for shard in asked {
        order(agent, &request(shard)).map_err(|failure| match failure {
            Failure::Refused(why) => Failure::Refused(format!("shard {}: {why}", shard.id)),
            other => other,
        })?;
        confirm(agent, scope, shard, &stands)?;
    }
    for shard in meant {
        let what =
            if scope.host { format!("member {}", shard.address) } else { format!("shard {}", shard.id) };
        print_line(&format!("{what}: {done}"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Waits until the agent has read from ZooKeeper what was asked for.
fn confirm(
    agent: &Agent,
    scope: &Scope,
    shard: &ShardReport,
    stands: impl Fn(Option<&PauseNode>) -> bool,
) -> Result<(), Failure> {
    let begun = Instant::now();
    loop {
        let now = ask_one(agent, &shard.id)?;
        let pause =
            |shard: &ShardReport| if scope.host { shard.host_pause.clone() } else { shard.pause.clone() };
        if stands(now.as_ref().and_then(pause).as_ref()) {
            return Ok(());
        }
        if begun.elapsed() >= LIMIT {
            let why =
                format!("shard {}: it is not in ZooKeeper after {} s: ask again", shard.id, LIMIT.as_secs());
            return Err(Failure::Refused(why));
        }
        thread::sleep(PACE);
    }
}

impl Scope {
    fn of<'a>(&self, shards: &'a [ShardReport]) -> Result<Vec<&'a ShardReport>, Failure> {
        match (&self.shard, shards) {
            (_, []) => Err(Failure::Usage(NO_SHARDS.to_owned())),
            (Some(name), _) => Ok(vec![find(shards, name)?]),
            (None, _) if self.host => Ok(shards.iter().collect()),
            (None, [shard]) => Ok(vec![shard]),
            (None, _) => Err(Failure::Usage(format!("which shard, or --host? There are {}", ids(shards)))),
        }
    }
}

/// `90s`, `30m`, `2h`, `1d`.
fn duration(text: &str) -> Result<Duration, String> {
    const EXPECTED: &str = "expected a whole number with s, m, h or d behind it, as in 90s, 30m, 2h";
    let units = [('s', 1), ('m', 60), ('h', 3600), ('d', 86_400)];
    let unit = units.iter().find(|(unit, _)| text.ends_with(*unit)).ok_or(EXPECTED)?;
    let number = &text[..text.len() - 1];
    let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    let number: u64 = Some(number).filter(|_| digits).and_then(|n| n.parse().ok()).ok_or(EXPECTED)?;
    let long = Duration::from_secs(number.saturating_mul(unit.1));
    match long {
        Duration::ZERO => Err("a pause of no length".to_owned()),
        long if long > LONGEST => Err("7d at most".to_owned()),
        long => Ok(long),
    }
}

fn reason(text: &str) -> Result<String, String> {
    let text = super::plain(text).trim().to_owned();
    match text.len() {
        0 => Err("say why".to_owned()),
        1..=REASON_AT_MOST => Ok(text),
        _ => Err(format!("{REASON_AT_MOST} bytes at most")),
    }
}

/// Milliseconds in the largest unit that divides them.
pub(super) fn spelled(ms: u64) -> String {
    let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s")];
    let unit = units.iter().find(|(unit, _)| ms > 0 && ms.is_multiple_of(*unit));
    unit.map_or_else(|| format!("{ms}ms"), |(unit, name)| format!("{}{name}", ms / unit))
}

#[cfg(test)]
mod tests {
    use super::{super::samples::shard, *};

    #[test]
    fn durations_have_a_unit() {
        for (text, seconds) in [("90s", 90), ("30m", 1800), ("2h", 7200), ("1d", 86_400), ("7d", 604_800)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
            assert_eq!(spelled(seconds * 1000), text);
        }
        for text in
            ["", "s", "30", "-1m", "+1m", "1.5h", "0s", "8d", "m30", "30 m", "99999999999999999999h", "é"]
        {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_reason_is_one_line() {
        assert_eq!(reason(" new\nkernel "), Ok("new kernel".to_owned()));
        assert!(reason(" \t").is_err() && reason(&"x".repeat(501)).is_err());
    }

    #[test]
    fn a_shard_must_be_named_where_there_are_two() {
        let two = [shard(16379), shard(16389)];
        let scope = |shard: Option<&str>, host| Scope { shard: shard.map(str::to_owned), host };
        let of = |scope: Scope, shards: &[ShardReport]| {
            scope.of(shards).map(|found| found.iter().map(|shard| shard.id.clone()).collect::<Vec<_>>())
        };
        assert_eq!(of(scope(None, false), &two[..1]).unwrap(), ["10.0.0.1:16379"]);
        assert_eq!(of(scope(Some("16389"), false), &two).unwrap(), ["10.0.0.1:16389"]);
        assert_eq!(of(scope(None, true), &two).unwrap().len(), 2);
        let told = of(scope(None, false), &two).unwrap_err().to_string();
        assert_eq!(told, "which shard, or --host? There are 10.0.0.1:16379, 10.0.0.1:16389");
        assert_eq!(of(scope(None, true), &[]).unwrap_err().to_string(), NO_SHARDS);
    }
}
