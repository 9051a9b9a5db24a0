//! The network is cut between hosts that are all well.

use std::time::Duration;

use yagent_tests::{
    cluster::{Cluster, FENCE, LEASE, Plan, Role, SESSION},
    wait,
};

use crate::{FAST, fill, nothing_changes_for, wait_same_keys};

/// The master is cut off by `cut`; with applications everywhere, one other takes over, and after `heal` all is one.
fn is_succeeded(cut: impl FnOnce(&Cluster, usize)) {
    let cluster = Plan::new(3).start();
    fill(&cluster, 10);
    let (old, epoch) = (cluster.master(), cluster.watch.epoch());
    let writers = [cluster.writer(), cluster.stubborn(old), cluster.stubborn_neighbour(old)];
    writers.iter().for_each(|writer| writer.wait_progress(20));
    cut(&cluster, old);
    let new = cluster.wait_successor(epoch);
    assert_ne!(cluster.host_of(new.master), old);
    assert_eq!(new.epoch, epoch + 1);
    writers[0].wait_ack_by(new.master);
    assert!(cluster.write(old).is_err(), "the former master takes writes");
    cluster.heal(old);
    assert_eq!(cluster.address(cluster.wait_steady()), new.master);
    assert!(matches!(cluster.role(old), Role::Replica(..)));
    wait_same_keys(&cluster);
    let records = writers.map(|writer| writer.finish());
    cluster.assert_one_master(&[&records[0], &records[1], &records[2]]);
}

#[test]
fn a_master_cut_off_from_everybody_is_fenced_and_succeeded() {
    is_succeeded(Cluster::cut_off);
}

#[test]
fn a_master_cut_off_from_zookeeper_only_is_succeeded() {
    is_succeeded(Cluster::cut_from_zookeeper);
}

/// It can be heard by all and hears nobody.
#[test]
fn a_master_that_hears_nobody_is_succeeded() {
    is_succeeded(Cluster::deafen);
}

/// It hears all and can be heard by nobody.
#[test]
fn a_master_that_nobody_hears_is_succeeded() {
    is_succeeded(Cluster::mute);
}

#[test]
fn a_master_cut_off_stops_within_its_lease() {
    let cluster = Plan::new(3).start();
    let old = cluster.master();
    let neighbour = cluster.stubborn_neighbour(old);
    neighbour.wait_progress(20);
    let begun = yagent_tests::cluster::watch::monotonic();
    cluster.cut_off(old);
    cluster.wait_fenced(old);
    let record = neighbour.finish();
    let last = record.acks.last().unwrap().at.saturating_sub(begun);
    // Some time for a busy machine; the rule itself is asserted by who acknowledges what after whose publication.
    assert!(last < LEASE + FENCE + Duration::from_secs(1), "it took writes for {last:?}");
}

#[test]
fn a_master_cut_off_from_its_replicas_goes_on_alone_and_says_so() {
    let cluster = Plan::new(3).start();
    fill(&cluster, 10);
    let (master, epoch, writer) = (cluster.master(), cluster.watch.epoch(), cluster.writer());
    writer.wait_progress(20);
    cluster.cut_from_peers(master);
    cluster.watch.wait_node("state", "it is alone, and that is recorded", |state| state["solo"] == true);
    writer.wait_progress(20);
    cluster.hosts[master].wait_alert("shard-solo");
    assert_eq!(cluster.master(), master);
    cluster.heal(master);
    assert_eq!(cluster.wait_steady(), master);
    cluster.hosts[master].wait_status("it is over", |status| !status.fires("shard-solo"));
    wait_same_keys(&cluster);
    let record = writer.finish();
    assert_eq!(cluster.watch.epoch(), epoch);
    cluster.assert_one_master(&[&record]);
    assert!(cluster.lost(&[&record]).is_empty());
}

/// What a master wrote alone nobody else has: its replicas must not take over by themselves.
#[test]
fn stale_replicas_of_a_master_that_was_alone_are_promoted_by_force_only() {
    let mut cluster = Plan::new(3).start();
    fill(&cluster, 10);
    let (old, epoch) = (cluster.master(), cluster.watch.epoch());
    let rest = cluster.others(&[old]);
    cluster.cut_from_peers(old);
    cluster.watch.wait_node("state", "it is alone, and that is recorded", |state| state["solo"] == true);
    let heirs = |state: &serde_json::Value| state["heirs"].as_array().is_some_and(|heirs| !heirs.is_empty());
    cluster.watch.wait_node("state", "nobody is its heir", |state| !heirs(state));
    cluster.crash_host(old);
    cluster.heal(old);
    cluster.hosts[rest[0]].wait_alert("shard-no-");
    nothing_changes_for(&cluster, Duration::from_secs(2));
    let shard = cluster.address(old).to_string();
    let output = cluster.yagent(rest[0], &["failover", &shard, "--force", "--yes"]);
    assert!(output.status.success(), "{output:?}");
    let new = cluster.wait_successor(epoch);
    assert!(rest.contains(&cluster.host_of(new.master)));
    cluster.wait_steady_among(&rest);
    assert_eq!(cluster.keys(rest[0]), 10);
}

#[test]
fn a_replica_cut_off_changes_nothing_and_catches_up() {
    let cluster = Plan::new(3).start();
    let (master, epoch, writer) = (cluster.master(), cluster.watch.epoch(), cluster.writer());
    writer.wait_progress(20);
    let replica = cluster.replica();
    cluster.cut_off(replica);
    let rest = cluster.others(&[replica]);
    wait::holds_for(SESSION + Duration::from_secs(2), "the master stays", || {
        wait::check(cluster.watch.epoch() == epoch, || cluster.watch.state().to_string())
    });
    assert_eq!(cluster.wait_steady_among(&rest), master);
    cluster.heal(replica);
    assert_eq!(cluster.wait_steady(), master);
    wait_same_keys(&cluster);
    let record = writer.finish();
    assert!(record.longest_gap() < FAST, "{:?}", record.longest_gap());
    assert!(cluster.lost(&[&record]).is_empty());
    cluster.assert_one_master(&[&record]);
}

#[test]
fn a_replica_cut_off_from_zookeeper_only_goes_on_following() {
    let cluster = Plan::new(2).start();
    let (master, epoch, replica) = (cluster.master(), cluster.watch.epoch(), cluster.replica());
    cluster.cut_from_zookeeper(replica);
    let node = format!("members/{}", cluster.address(replica));
    cluster.watch.wait_node(&node, "its session has expired", serde_json::Value::is_null);
    assert_eq!(cluster.role(replica), Role::Replica(cluster.address(master).to_string(), true));
    cluster.heal(replica);
    assert_eq!((cluster.wait_steady(), cluster.watch.epoch()), (master, epoch));
}
