//! What people ask for: switchovers, pauses, restarts.

use std::{process::Output, thread, time::Duration};

use serde_json::Value;
use yagent_tests::{
    cluster::{Cluster, Plan, Role, SESSION, watch::Seen},
    process::Signal,
    wait,
};

use crate::{FAST, IN_FLIGHT, ends_well, fill, keeps_its_master_for, nothing_changes_for, wait_same_keys};

fn shard(cluster: &Cluster) -> String {
    cluster.address(0).to_string()
}

fn switchover(cluster: &Cluster, asked: usize, more: &[&str]) -> Output {
    let shard = shard(cluster);
    let mut words = vec!["switchover", &shard, "--yes"];
    words.extend(more);
    cluster.yagent(asked, &words)
}

fn is_refused(output: &Output, why: &str) {
    let told = String::from_utf8_lossy(&output.stderr).to_lowercase();
    assert!(!output.status.success() && told.contains(why), "not {why}: {output:?}");
}

/// Waits until the master has handed over to a target that takes its time.
fn wait_handed_over(cluster: &Cluster) {
    cluster.watch.wait("it is handed over", |seen| {
        let handed = |it: &Seen| it.node == "state" && !it.content["handover"].is_null();
        wait::check(seen.iter().any(handed), || format!("{:?}", seen.iter().rfind(|it| it.node == "state")))
    });
}

#[test]
fn switchovers_under_load_lose_nothing() {
    let cluster = Plan::new(3).start();
    fill(&cluster, 20);
    let writer = cluster.writer();
    let stubborn: Vec<_> = (0..3).map(|host| cluster.stubborn(host)).collect();
    for round in 0..3 {
        let (old, epoch) = (cluster.master(), cluster.watch.epoch());
        writer.wait_progress(100);
        // Any host may be asked, and any replica may be named.
        let to = cluster.others(&[old])[round % 2];
        let target = cluster.address(to).to_string();
        let output = match round {
            0 => switchover(&cluster, 1, &[]),
            _ => switchover(&cluster, round % 3, &["--to", &target, "--format", "json"]),
        };
        assert!(output.status.success(), "{output:?}");
        let new = cluster.wait_successor(epoch);
        assert_eq!(new.epoch, epoch + 1);
        assert_ne!(cluster.host_of(new.master), old);
        if round > 0 {
            assert_eq!(cluster.host_of(new.master), to);
            let told: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert!(told.to_string().contains("paused_ms"), "{told}");
        }
        writer.wait_ack_by(new.master);
        cluster.wait_steady();
    }
    let mut records = vec![writer.finish()];
    records.extend(stubborn.into_iter().map(|writer| writer.finish()));
    let records: Vec<_> = records.iter().collect();
    cluster.assert_one_master(&records);
    assert_eq!(cluster.lost(&records), Default::default(), "a planned switchover loses nothing");
    assert!(records[0].longest_gap() < FAST, "{:?}", records[0].longest_gap());
}

#[test]
fn a_target_that_does_not_take_over_leaves_the_old_master() {
    let cluster = Plan::new(3).start();
    fill(&cluster, 10);
    let (old, epoch, writer) = (cluster.master(), cluster.watch.epoch(), cluster.writer());
    writer.wait_progress(20);
    let target = cluster.replica();
    cluster.hosts[target].signal(Signal::STOP);
    let output = switchover(&cluster, old, &["--to", &cluster.address(target).to_string()]);
    assert!(!output.status.success(), "{output:?}");
    cluster.hosts[target].signal(Signal::CONT);
    assert_eq!(cluster.wait_steady(), old);
    writer.wait_ack_by(cluster.address(old));
    assert!(cluster.watch.epoch() <= epoch + 2);
    let record = writer.finish();
    cluster.assert_one_master(&[&record]);
    assert!(cluster.lost(&[&record]).is_empty());
}

#[test]
fn a_target_whose_server_dies_costs_nothing() {
    let cluster = Plan::new(3).start();
    fill(&cluster, 10);
    let (old, writer) = (cluster.master(), cluster.writer());
    writer.wait_progress(20);
    let target = cluster.replica();
    // It stands still until its server is dead, so that it cannot be faster.
    cluster.hosts[target].signal(Signal::STOP);
    let asked = thread::scope(|scope| {
        let asked =
            scope.spawn(|| switchover(&cluster, old, &["--to", &cluster.address(target).to_string()]));
        cluster.watch.wait_node("state", "it is handed over", |state| !state["handover"].is_null());
        cluster.crash(target);
        cluster.hosts[target].signal(Signal::CONT);
        asked.join().unwrap()
    });
    // Its new server may have got a copy in time; if not, the old master goes on. The answer says which.
    let master = cluster.wait_steady();
    assert_eq!(master, if asked.status.success() { target } else { old }, "{asked:?}");
    writer.wait_ack_by(cluster.address(master));
    let record = writer.finish();
    cluster.assert_one_master(&[&record]);
    assert!(cluster.lost(&[&record]).is_empty());
}

/// Its user may not do what makes a master.
#[test]
fn a_target_whose_server_refuses_gives_the_shard_back_and_lets_others_go_first() {
    let mut cluster = Plan::new(3).start();
    fill(&cluster, 10);
    let (old, writer) = (cluster.master(), cluster.writer());
    writer.wait_progress(20);
    let rest = cluster.others(&[old]);
    let rights = |cluster: &Cluster, rights: &str| {
        assert_eq!(cluster.call(rest[0], &["ACL", "SETUSER", "default", rights]).unwrap(), "OK");
    };
    rights(&cluster, "-slaveof");
    let output = switchover(&cluster, old, &["--to", &cluster.address(rest[0]).to_string()]);
    is_refused(&output, "did not take over");
    assert_eq!(cluster.wait_steady(), old);
    writer.wait_ack_by(cluster.address(old));
    let before = writer.finish();
    cluster.assert_one_master(&[&before]);
    assert!(cluster.lost(&[&before]).is_empty());
    let epoch = cluster.watch.epoch();
    cluster.crash_host(old);
    let new = cluster.wait_successor(epoch);
    assert_eq!(cluster.host_of(new.master), rest[1], "the smaller address would go first");
    rights(&cluster, "+slaveof");
    cluster.hosts[old].launch();
    assert_eq!(cluster.wait_steady(), rest[1]);
}

#[test]
fn a_second_wish_waits_for_nobody_and_is_refused() {
    let cluster = Plan::new(2).start();
    let (old, target) = (cluster.master(), cluster.replica());
    let writer = cluster.writer();
    writer.wait_progress(20);
    cluster.hosts[target].signal(Signal::STOP);
    thread::scope(|scope| {
        let first = scope.spawn(|| switchover(&cluster, old, &[]));
        wait_handed_over(&cluster);
        let second = switchover(&cluster, old, &[]);
        assert!(!second.status.success(), "{second:?}");
        cluster.hosts[target].signal(Signal::CONT);
        first.join().unwrap();
    });
    cluster.wait_steady();
    ends_well(&cluster, writer, 0);
}

#[test]
fn in_a_pause_nothing_is_switched_and_fencing_still_works() {
    let mut cluster = Plan::new(3).start();
    fill(&cluster, 10);
    let shard = shard(&cluster);
    let (old, epoch) = (cluster.master(), cluster.watch.epoch());
    let writer = cluster.writer();
    writer.wait_progress(20);
    let output = cluster.yagent(1, &["pause", &shard, "--for", "5m", "--reason", "a test"]);
    assert!(output.status.success(), "{output:?}");
    cluster.watch.wait_node("pause", "the pause is known", |pause| pause["reason"] == "a test");
    cluster.hosts.iter().for_each(|host| drop(host.wait_alert("shard-paused")));
    is_refused(&switchover(&cluster, old, &[]), "pause");
    cluster.hosts[old].kill9();
    cluster.wait_fenced(old);
    nothing_changes_for(&cluster, SESSION + Duration::from_secs(2));
    let asked = cluster.others(&[old])[0];
    assert!(cluster.yagent(asked, &["resume", &shard]).status.success());
    let new = cluster.wait_successor(epoch);
    assert_ne!(cluster.host_of(new.master), old);
    cluster.hosts[old].launch();
    cluster.wait_steady();
    ends_well(&cluster, writer, 0);
}

#[test]
fn an_agent_that_is_restarted_in_a_pause_keeps_its_master() {
    let mut cluster = Plan::new(2).start();
    fill(&cluster, 10);
    let (shard, master) = (shard(&cluster), cluster.master());
    let writer = cluster.writer();
    writer.wait_progress(20);
    let output = cluster.yagent(master, &["pause", &shard, "--for", "5m", "--reason", "a test"]);
    assert!(output.status.success(), "{output:?}");
    let former = cluster.watch.node("lock")["nonce"].clone();
    cluster.hosts[master].kill9();
    cluster.hosts[master].launch();
    let theirs = |lock: &serde_json::Value| lock["nonce"].is_string() && lock["nonce"] != former;
    cluster.watch.wait_node("lock", "the new agent has it", theirs);
    keeps_its_master_for(&cluster, SESSION + Duration::from_secs(1));
    wait::until("it takes writes", || cluster.write(master));
    assert!(cluster.yagent(master, &["resume", &shard]).status.success());
    assert_eq!(cluster.wait_steady(), master);
    ends_well(&cluster, writer, 0);
}

#[test]
fn a_failover_by_force_is_done_beside_a_living_master() {
    let cluster = Plan::new(3).start();
    fill(&cluster, 10);
    let (old, epoch, writer) = (cluster.master(), cluster.watch.epoch(), cluster.writer());
    writer.wait_progress(20);
    let shard = shard(&cluster);
    let refused = cluster.yagent(old, &["failover", &shard, "--yes"]);
    assert!(!refused.status.success(), "without --force it is refused: {refused:?}");
    let to = cluster.replica();
    let target = cluster.address(to).to_string();
    let output = cluster.yagent(old, &["failover", &shard, "--force", "--to", &target, "--yes"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(cluster.host_of(cluster.wait_successor(epoch).master), to);
    assert_eq!(cluster.wait_steady(), to);
    let record = writer.finish();
    cluster.assert_one_master(&[&record]);
    let lost = cluster.lost(&[&record]);
    assert!(lost.len() <= IN_FLIGHT, "{lost:?}");
}

/// Each host is taken down with everything on it and started again, as for an upgrade.
#[test]
fn a_rolling_restart_of_all_hosts_loses_nothing() {
    let mut cluster = Plan::new(3).start();
    fill(&cluster, 20);
    let writer = cluster.writer();
    for host in 0..3 {
        writer.wait_progress(50);
        let output = cluster.yagent(host, &["stop", "--all"]);
        assert!(output.status.success(), "{output:?}");
        cluster.hosts[host].wait_ended();
        let rest = cluster.others(&[host]);
        cluster.wait_steady_among(&rest);
        cluster.hosts[host].launch();
        cluster.wait_steady();
        wait_same_keys_soon(&cluster);
    }
    let record = writer.finish();
    wait_same_keys(&cluster);
    cluster.assert_one_master(&[&record]);
    assert!(record.longest_gap() < FAST, "{:?}", record.longest_gap());
    assert_eq!(cluster.lost(&[&record]), Default::default());
    assert!(cluster.keys(0) >= 20);
}

/// The keys that nobody writes any more.
fn wait_same_keys_soon(cluster: &Cluster) {
    for host in 0..3 {
        wait::until("it has the data", || {
            let value = cluster.call(host, &["EXISTS", "data:0"])?;
            wait::check(value == "1", || value)
        });
    }
}

/// The host whose address is the shard's id is taken out, and the others are told one after the other: nobody is a master
/// beside the one that there is, and nothing is lost.
fn the_smallest_address_is_taken_out(master_first: bool) {
    let mut cluster = Plan::new(3).start();
    fill(&cluster, 10);
    if cluster.master() == 0 {
        let (epoch, to) = (cluster.watch.epoch(), cluster.address(1).to_string());
        let output = switchover(&cluster, 0, &["--to", &to]);
        assert!(output.status.success(), "{output:?}");
        cluster.wait_successor(epoch);
        cluster.wait_steady();
    }
    let (master, epoch) = (cluster.master(), cluster.watch.epoch());
    let replica = cluster.others(&[0, master])[0];
    let follows = Role::Replica(cluster.address(master).to_string(), true);
    let writer = cluster.stubborn(master);
    writer.wait_progress(50);

    cluster.hosts[0].ini.set("redis", "peers", "");
    cluster.hosts[0].reload();
    let peers: Vec<String> = cluster.addresses(&[1, 2]).iter().map(ToString::to_string).collect();
    let tell = |cluster: &mut Cluster, host: usize| {
        cluster.hosts[host].ini.set("redis", "peers", peers.join(","));
        cluster.hosts[host].reload();
    };
    let (first, second) = if master_first { (master, replica) } else { (replica, master) };
    tell(&mut cluster, first);
    // Longer than a session and what follows its end, and than a first election waits.
    wait::holds_for(SESSION * 3, "nobody is a master beside it", || {
        let role = cluster.role(replica);
        wait::check(role == follows && cluster.watch.epoch() == epoch, || format!("{role:?}"))
    });
    let state = format!("/redis/shards/{}/state", cluster.address(1));
    tell(&mut cluster, second);
    let mut kazoo = cluster.kazoo();
    let address = cluster.address(master).to_string();
    wait::until("the new shard has its master", || {
        let tree = kazoo.tree(&state)?;
        let content = tree.get(&state).ok_or("it has no state yet")?.content.clone();
        let told: Value = serde_json::from_str(&content).map_err(|error| error.to_string())?;
        wait::check(told["phase"] == "done" && told["master"] == address, || content)
    });
    writer.wait_progress(50);
    assert_eq!(cluster.role(replica), follows);
    let lost = cluster.lost(&[&writer.finish()]);
    assert!(lost.is_empty(), "{lost:?}");
}

#[test]
fn a_shard_that_gets_another_id_keeps_its_master_that_is_told_first() {
    the_smallest_address_is_taken_out(true);
}

#[test]
fn a_shard_that_gets_another_id_keeps_its_master_that_is_told_last() {
    the_smallest_address_is_taken_out(false);
}
