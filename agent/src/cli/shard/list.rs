//! `yagent shards`: the shards of this host, or the members of one.

use std::{fmt::Write as _, io::Write as _, process::ExitCode};

use comfy_table::{ContentArrangement, Table, presets};
use serde_json::json;

use super::{Failure, Format, NO_SHARDS, ask, ended, find, plain};
use crate::{
    cli::{check::print_line, client::Agent, status::Colour},
    core::failover::{MemberReport, Phase, Role, ShardReport},
};

/// Arguments of `yagent shards`.
#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct ShardsArgs {
    /// Which agent
    #[command(flatten)]
    agent: Agent,
    /// One shard with its members: its id, a member's address, or its port on this host
    shard: Option<String>,
    /// How to print it
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// Prints shards: 0, 4 when the agent cannot be reached, 64 when there is no such shard.
#[must_use]
pub(in crate::cli) fn shards(args: &ShardsArgs) -> ExitCode {
    ended(print(args), args.format, Failure::code_of_a_look)
}

fn print(args: &ShardsArgs) -> Result<ExitCode, Failure> {
    let shards = ask(&args.agent)?;
    let one = args.shard.as_ref().map(|name| find(&shards, name)).transpose()?;
    match (args.format, one) {
        (Format::Json, Some(shard)) => print_line(&json!({"shards": [shard]}).to_string()),
        (Format::Json, None) => print_line(&json!({"shards": shards}).to_string()),
        (Format::Table, Some(shard)) => print_text(&tree(shard)),
        (Format::Table, None) if shards.is_empty() => print_line(NO_SHARDS),
        (Format::Table, None) => print_text(&table(&shards)),
    }
    Ok(ExitCode::SUCCESS)
}

/// Colours go to terminals alone, and not where `NO_COLOR` is set; anstream sees to it.
fn print_text(text: &str) {
    let _ = anstream::stdout().lock().write_all(text.as_bytes());
}

fn table(shards: &[ShardReport]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["shard", "master", "epoch", "phase", "members", "next", "this host"]);
    for shard in shards {
        table.add_row(row(shard));
    }
    let colours = std::iter::once(Colour::Bold).chain(shards.iter().map(colour));
    table.lines().zip(colours).map(|(line, colour)| colour.paint(line.trim_end()) + "\n").collect()
}

fn row(shard: &ShardReport) -> [String; 7] {
    let state = shard.state.as_ref();
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "none".to_owned());
    let present = shard.members.iter().filter(|member| member.node.is_some()).count();
    [
        plain(&shard.id),
        or_none(state.map(|state| plain(&state.master))),
        state.map_or_else(|| "-".to_owned(), |state| state.epoch.to_string()),
        state.map_or("-", |state| phase(state.phase)).to_owned(),
        format!("{present} of {}", shard.members.len()),
        or_none(next(shard).map(|next| plain(&next.address))),
        plain(&shard.stage),
    ]
}

fn colour(shard: &ShardReport) -> Colour {
    match &shard.state {
        Some(state) if state.phase == Phase::Done && shard.hindrances.is_empty() => Colour::Green,
        Some(state) if state.phase == Phase::Done => Colour::Yellow,
        _ => Colour::Red,
    }
}

/// The member that would be promoted.
pub(super) fn next(shard: &ShardReport) -> Option<&MemberReport> {
    shard.members.iter().find(|member| member.next)
}

fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Promoting => "promoting",
        Phase::Done => "done",
        Phase::Released => "released",
    }
}

fn tree(shard: &ShardReport) -> String {
    let mut text = Colour::Bold.paint(&format!("shard {}, {}", plain(&shard.id), head(shard))) + "\n";
    let master = shard.state.as_ref().map_or("", |state| state.master.as_str());
    let (leader, others): (Vec<_>, Vec<_>) =
        shard.members.iter().partition(|member| member.address == master);
    match leader.first() {
        Some(leader) => {
            let _ = writeln!(text, "{}", plain(&format!("{}  {}", leader.address, leading(shard, leader))));
        }
        None => text += &(Colour::Red.paint("no master") + "\n"),
    }
    for (n, member) in others.iter().enumerate() {
        let branch = if n + 1 == others.len() { "└─" } else { "├─" };
        let line = plain(&format!("{branch} {}  {}", member.address, following(member)));
        let colour = match &member.barred {
            None => Colour::Green,
            Some(_) if member.node.is_some() => Colour::Yellow,
            Some(_) => Colour::Red,
        };
        let _ = writeln!(text, "{}", colour.paint(&line));
    }
    text + &foot(shard)
}

/// The shard as a whole.
fn head(shard: &ShardReport) -> String {
    let Some(state) = &shard.state else { return "nobody has led it yet".to_owned() };
    let mut text = format!("epoch {}, {}", state.epoch, phase(state.phase));
    if state.solo {
        text += ", the master is alone: no other member has all of its writes";
    }
    if let Some(intent) = &state.intent {
        let _ = write!(text, ", {} is to lead (asked for by {})", plain(&intent.to), plain(&intent.by));
    }
    text
}

fn leading(shard: &ShardReport, member: &MemberReport) -> String {
    let mut text = "master".to_owned();
    if let Some(left) = shard.lease_s {
        let _ = write!(text, ", lease for {left:.1} s");
    }
    if shard.lock != member.address {
        let holder = if shard.lock.is_empty() { "nobody" } else { &shard.lock };
        let _ = write!(text, ", the lock is held by {holder}");
    }
    match &member.node {
        Some(node) => {
            let role = if node.role == Role::Master { "" } else { ", the server is none (yet)" };
            let _ =
                write!(text, "{role}, {} keys at offset {}{}", node.keys, node.offset, fencer(node.fencer));
        }
        None => text += ", no agent speaks for it",
    }
    text
}

fn fencer(armed: bool) -> &'static str {
    if armed { "" } else { ", no fencer" }
}

fn following(member: &MemberReport) -> String {
    let mut text = match &member.node {
        None => "no agent speaks for it".to_owned(),
        Some(node) => {
            let mut text = match node.role {
                Role::Master => "a master that should not be",
                Role::Replica if node.syncing => "replica, takes a whole copy",
                Role::Replica if node.link => "replica",
                Role::Replica => "replica, its link is down",
                Role::Unknown => "its server does not answer",
            }
            .to_owned();
            if let Some(lag) = member.lag_bytes {
                let _ = write!(text, ", {lag} bytes behind");
            }
            text + fencer(node.fencer)
        }
    };
    match &member.barred {
        Some(why) => {
            let _ = write!(text, "; would not be promoted: {why}");
        }
        None if member.next => text += "; would be promoted next",
        None => {}
    }
    text
}

fn foot(shard: &ShardReport) -> String {
    let mut text =
        format!("{} here: {}: {}\n", plain(&shard.address), plain(&shard.stage), plain(&shard.sentence));
    let master = shard.state.as_ref().map_or("", |state| state.master.as_str());
    if !master.is_empty() && master != shard.address {
        let _ = writeln!(text, "lease and lags are known on the host of {}", plain(master));
    }
    let pauses = [("", shard.pause.iter()), ("this host is ", shard.host_pause.iter())];
    for (whom, pause) in pauses.into_iter().flat_map(|(whom, pause)| pause.map(move |pause| (whom, pause))) {
        let line = format!(
            "{whom}paused for {} by {}: {}",
            super::pause::spelled(pause.for_ms),
            pause.by,
            pause.reason
        );
        let _ = writeln!(text, "{}", Colour::Yellow.paint(&plain(&line)));
    }
    for why in &shard.hindrances {
        let _ = writeln!(text, "{}", Colour::Red.paint(&format!("could not fail over: {}", plain(why))));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{super::samples::shard, *};

    fn without_colours(text: &str) -> String {
        let text = text.split("\x1b[").enumerate().map(|(n, part)| match part.split_once('m') {
            Some((_, rest)) if n > 0 => rest,
            _ => part,
        });
        text.collect()
    }

    #[test]
    fn a_shard_is_a_tree() {
        let expected = "\
shard 10.0.0.1:16379, epoch 7, done
10.0.0.1:16379  master, lease for 12.3 s, 7 keys at offset 1000
├─ 10.0.0.2:16379  replica, 42 bytes behind; would be promoted next
└─ 10.0.0.3:16379  replica, its link is down; would not be promoted: its link to the master is down
10.0.0.1:16379 here: leading: it leads, two replicas are attached
";
        assert_eq!(without_colours(&tree(&shard(16379))), expected);
        let elsewhere = ShardReport { address: "10.0.0.2:16379".into(), ..shard(16379) };
        let text = without_colours(&tree(&elsewhere));
        assert!(text.contains("\nlease and lags are known on the host of 10.0.0.1:16379\n"), "{text}");
    }

    #[test]
    fn a_shard_in_trouble_says_so() {
        let mut shard = shard(16379);
        shard.hindrances = vec!["no replica\nis attached".to_owned()];
        shard.lock.clear();
        shard.members[0].node = None;
        shard.lease_s = None;
        let text = without_colours(&tree(&shard));
        assert!(text.contains("master, the lock is held by nobody, no agent speaks for it\n"), "{text}");
        assert!(text.ends_with("could not fail over: no replica is attached\n"), "{text}");
        shard.state = None;
        let text = without_colours(&tree(&shard));
        assert!(text.contains("nobody has led it yet\nno master\n├─ 10.0.0.1"), "{text}");
    }

    #[test]
    fn a_row_for_each_shard() {
        let text = without_colours(&table(&[shard(16379), shard(16389)]));
        let lines: Vec<String> =
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(lines[1], "10.0.0.1:16379 10.0.0.1:16379 7 done 3 of 3 10.0.0.2:16379 leading");
        assert_eq!(lines.len(), 3);
    }
}
