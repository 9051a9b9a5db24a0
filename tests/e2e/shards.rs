//! The verbs about shards: what they refuse, and how they end.

use std::process::Output;

use serde_json::{Value, json};
use yagent_tests::host::Host;

fn ended(output: &Output, code: i32, told: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    assert!(stderr.contains(told), "«{told}» is not in: {stderr}");
}

fn answered(output: &Output) -> Value {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_host_without_peers_has_no_shards() {
    let host = Host::new().redis(1).started();
    assert_eq!(answered(&host.run(&["shards", "--format", "json"])), json!({"shards": []}));
    assert_eq!(answered(&host.run(&["history", "--format", "json"])), json!({"shards": []}));
    assert_eq!(answered(&host.run(&["doctor", "--format", "json"])), json!({"ok": true, "shards": []}));
    assert_eq!(host.status().0["shards"], json!([]));
    for verb in ["shards", "history", "doctor"] {
        let output = host.run(&[verb]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && said.contains("no shards"), "{verb}: {output:?}");
    }
    let port = host.redis_port(0).to_string();
    for words in [
        &["shards", &port][..],
        &["doctor", &port],
        &["switchover", &port, "--yes"],
        &["failover", &port, "--force", "--yes"],
        &["pause", &port, "--for", "30m", "--reason", "maintenance"],
        &["pause", "--host", "--for", "30m", "--reason", "maintenance"],
        &["resume"],
    ] {
        ended(&host.run(words), 64, "no shards");
    }
}

#[test]
fn what_must_be_confirmed_is_not_done_where_nobody_can_be_asked() {
    let host = Host::new().redis(1).started();
    ended(&host.run(&["switchover", "6379"]), 64, "give --yes");
    ended(&host.run(&["failover", "6379", "--force"]), 64, "give --yes");
}

#[test]
fn a_failover_by_hand_needs_force_and_says_why() {
    let host = Host::new();
    host.write_ini();
    for words in [&["failover", "6379"][..], &["failover", "6379", "--yes", "--to", "10.0.0.2"]] {
        ended(&host.run(words), 64, "is lost");
        ended(&host.run(words), 64, "yagent switchover");
    }
}

#[test]
fn a_pause_needs_an_end_and_a_reason() {
    let host = Host::new();
    host.write_ini();
    for (words, told) in [
        (&["pause", "--host"][..], "--for"),
        (&["pause", "--host", "--for", "30m"], "--reason"),
        (&["pause", "--host", "--for", "30", "--reason", "x"], "90s, 30m, 2h"),
        (&["pause", "--host", "--for", "30m", "--reason", " "], "say why"),
        (&["pause", "6379", "--host", "--for", "30m", "--reason", "x"], "cannot be used with"),
    ] {
        ended(&host.run(words), 64, told);
    }
}

#[test]
fn without_an_agent_looks_end_with_4_and_changes_with_69() {
    let host = Host::new();
    host.write_ini();
    for verb in ["shards", "doctor", "history"] {
        ended(&host.run(&[verb]), 4, "cannot reach the agent");
    }
    for words in [
        &["switchover", "6379", "--yes"][..],
        &["failover", "6379", "--force", "--yes"],
        &["pause", "6379", "--for", "90s", "--reason", "x"],
        &["resume", "--host"],
    ] {
        ended(&host.run(words), 69, "cannot reach the agent");
    }
}

#[test]
fn wishes_for_what_is_no_shard_are_refused() {
    let host = Host::new().redis(1).started();
    for request in [
        json!({"verb": "switchover", "shard": "10.9.9.9:1", "id": "w"}),
        json!({"verb": "failover", "shard": "10.9.9.9:1", "to": "10.9.9.8:1", "id": "w"}),
        json!({"verb": "pause", "shard": "10.9.9.9:1", "for_ms": 1000, "reason": "x"}),
        json!({"verb": "resume", "shard": "10.9.9.9:1", "host": true}),
        json!({"verb": "switchover", "shard": "10.9.9.9:1"}),
        json!({"verb": "pause", "shard": "10.9.9.9:1", "for_ms": -1, "reason": "x"}),
    ] {
        let answer = host.ask(&request.to_string());
        assert_eq!(answer["ok"], false, "{request}: {answer}");
        assert!(answer["message"].as_str().is_some_and(|why| !why.is_empty()), "{request}: {answer}");
    }
}
