//! `yagent doctor`: could each shard fail over right now?

use std::process::ExitCode;

use serde_json::{Value, json};

use super::{Failure, Format, NO_SHARDS, ask, ended, find, list::next, plain};
use crate::{
    cli::{check::print_line, client::Agent, exit},
    core::failover::ShardReport,
};

/// Arguments of `yagent doctor`.
#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct DoctorArgs {
    /// Which agent
    #[command(flatten)]
    agent: Agent,
    /// Only this shard: its id, a member's address, or its port on this host
    shard: Option<String>,
    /// How to print it
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// Examines the shards of this host: 0 when each could fail over, 3 when one could not, 4 when the agent cannot be
/// reached, 64 when there is no such shard.
#[must_use]
pub(in crate::cli) fn doctor(args: &DoctorArgs) -> ExitCode {
    ended(examine(args), args.format, Failure::code_of_a_look)
}

fn examine(args: &DoctorArgs) -> Result<ExitCode, Failure> {
    let shards = ask(&args.agent)?;
    let examined: Vec<&ShardReport> = match &args.shard {
        Some(name) => vec![find(&shards, name)?],
        None => shards.iter().collect(),
    };
    let ok = examined.iter().all(|shard| findings(shard).is_empty());
    match args.format {
        Format::Json => {
            let shards: Vec<Value> = examined.iter().map(|shard| finding(shard)).collect();
            print_line(&json!({"ok": ok, "shards": shards}).to_string());
        }
        Format::Table if examined.is_empty() => print_line(NO_SHARDS),
        Format::Table => examined.iter().for_each(|shard| print_line(&line(shard))),
    }
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::from(exit::DOWN) })
}

/// Why it could not fail over; empty when it could.
fn findings(shard: &ShardReport) -> Vec<String> {
    let mut findings = shard.hindrances.clone();
    if findings.is_empty() && next(shard).is_none() {
        findings.push("nobody would be promoted".to_owned());
    }
    findings
}

fn finding(shard: &ShardReport) -> Value {
    let findings = findings(shard);
    json!({
        "id": shard.id,
        "ok": findings.is_empty(),
        "next": next(shard).map(|member| &member.address),
        "hindrances": findings,
    })
}

fn line(shard: &ShardReport) -> String {
    let findings = findings(shard);
    let told = match next(shard) {
        Some(next) if findings.is_empty() => format!("could fail over, to {}", next.address),
        _ => format!("could NOT fail over: {}", findings.join("; ")),
    };
    plain(&format!("{}: {told}", shard.id))
}

#[cfg(test)]
mod tests {
    use super::{super::samples::shard, *};
    use crate::cli::client::tests::agent_that_says;

    #[test]
    fn it_says_who_would_lead_or_why_nobody() {
        let mut shard = shard(16379);
        assert_eq!(line(&shard), "10.0.0.1:16379: could fail over, to 10.0.0.2:16379");
        shard.members[1].next = false;
        assert_eq!(line(&shard), "10.0.0.1:16379: could NOT fail over: nobody would be promoted");
        shard.hindrances = vec!["it is paused".to_owned(), "no fencer stands by".to_owned()];
        assert_eq!(line(&shard), "10.0.0.1:16379: could NOT fail over: it is paused; no fencer stands by");
        assert_eq!(finding(&shard)["ok"], false);
    }

    #[test]
    fn the_exit_code_tells_it() {
        let told = |code: u8| format!("{:?}", ExitCode::from(code));
        let code = |shards: &[ShardReport], name: Option<&str>| {
            let dir = tempfile::tempdir().unwrap();
            let answer = format!("{}\n", json!({"ok": true, "shards": shards}));
            let (agent, thread) = agent_that_says(dir.path(), &answer);
            let shard = name.map(str::to_owned);
            let code = doctor(&DoctorArgs { agent, shard, format: Format::Json });
            assert_eq!(thread.join().unwrap(), "{\"verb\":\"shards\"}\n");
            format!("{code:?}")
        };
        let mut sick = shard(16389);
        sick.hindrances.push("paused".to_owned());
        assert_eq!(code(&[shard(16379)], None), told(0));
        assert_eq!(code(&[], None), told(0));
        assert_eq!(code(&[shard(16379), sick.clone()], None), told(exit::DOWN));
        assert_eq!(code(&[shard(16379), sick], Some("16379")), told(0));
        assert_eq!(code(&[shard(16379)], Some("1")), told(exit::USAGE));
        let agent = Agent { socket: Some("/no/such/socket".into()), config: None };
        let code = doctor(&DoctorArgs { agent, shard: None, format: Format::Table });
        assert_eq!(format!("{code:?}"), told(exit::NOT_REACHABLE));
    }
}
