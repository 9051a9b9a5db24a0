//! ZooKeeper itself fails.

use std::time::Duration;

use yagent_tests::{
    cluster::{Cluster, Plan, SESSION},
    process::Signal,
    wait,
    zookeeper::Server,
};

use crate::{FAST, ends_well, fill, keeps_its_master_for, nothing_changes_for};

fn leader(servers: &[Server]) -> usize {
    let is_leader = |server: &Server| server.mode().as_deref() == Some("leader");
    wait::until("there is a leader", || servers.iter().position(is_leader).ok_or("none"))
}

#[test]
fn an_ensemble_that_loses_its_leader_loses_no_master() {
    let mut cluster = Plan::new(2).servers(3).start();
    let (epoch, writer) = (cluster.watch.epoch(), cluster.writer());
    writer.wait_progress(20);
    let lost = leader(&cluster.servers);
    cluster.servers[lost].kill();
    nothing_changes_for(&cluster, SESSION * 2);
    writer.wait_progress(20);
    assert!(writer.so_far().longest_gap() < FAST, "{:?}", writer.so_far().longest_gap());
    // And it can still fail over.
    cluster.crash(cluster.master());
    let new = cluster.wait_successor(epoch);
    writer.wait_ack_by(new.master);
    cluster.servers[lost].start_again();
    cluster.wait_steady();
    cluster.assert_one_master(&[&writer.finish()]);
}

/// Takes all of ZooKeeper away.
fn without_zookeeper(cluster: &mut Cluster) {
    cluster.servers[0].kill();
    let master = cluster.master();
    cluster.hosts[master].wait_status("the loss is known", |status| status.registry() != "connected");
}

#[test]
fn without_zookeeper_a_master_that_all_follow_goes_on() {
    let mut cluster = Plan::new(3).start();
    let (master, epoch, writer) = (cluster.master(), cluster.watch.epoch(), cluster.writer());
    writer.wait_progress(20);
    without_zookeeper(&mut cluster);
    wait::lasts(SESSION * 2);
    writer.wait_progress(20);
    cluster.servers[0].start_again();
    assert_eq!(cluster.wait_steady(), master);
    keeps_its_master_for(&cluster, SESSION);
    let record = writer.finish();
    assert!(record.longest_gap() < FAST, "{:?}", record.longest_gap());
    assert!(cluster.watch.epoch() <= epoch + 1, "at most the same one again: {}", cluster.watch.state());
    assert!(cluster.lost(&[&record]).is_empty());
    cluster.assert_one_master(&[&record]);
}

#[test]
fn without_zookeeper_a_master_fenced_for_a_hiccup_goes_on() {
    let mut cluster = Plan::new(3).start();
    let (master, epoch, writer) = (cluster.master(), cluster.watch.epoch(), cluster.writer());
    writer.wait_progress(20);
    without_zookeeper(&mut cluster);
    wait::lasts(SESSION * 2);
    cluster.hosts[master].signal(Signal::STOP);
    cluster.wait_fenced(master);
    cluster.hosts[master].signal(Signal::CONT);
    writer.wait_progress(20);
    assert!(cluster.write(master).is_ok(), "all its replicas follow: nobody else can be the master");
    cluster.servers[0].start_again();
    assert_eq!(cluster.wait_steady(), master);
    let record = writer.finish();
    assert!(cluster.watch.epoch() <= epoch + 1, "at most the same one again: {}", cluster.watch.state());
    assert!(cluster.lost(&[&record]).is_empty());
    cluster.assert_one_master(&[&record]);
}

#[test]
fn without_zookeeper_a_master_that_one_does_not_follow_is_fenced() {
    let mut cluster = Plan::new(3).start();
    fill(&cluster, 10);
    let (master, replica) = (cluster.master(), cluster.replica());
    let writer = cluster.writer();
    writer.wait_progress(20);
    without_zookeeper(&mut cluster);
    cluster.crash_host(replica);
    cluster.wait_fenced(master);
    cluster.hosts[master].wait_alert("shard-fenced");
    let before = writer.count();
    wait::lasts(SESSION);
    assert!(cluster.write(master).is_err(), "it stays fenced");
    assert_eq!(writer.count(), before);
    cluster.hosts[replica].launch();
    cluster.servers[0].start_again();
    assert_eq!(cluster.wait_steady(), master, "who led before has the first claim");
    cluster.hosts[master].wait_status("it takes writes again", |status| !status.fires("shard-fenced"));
    writer.wait_progress(20);
    let record = writer.finish();
    assert!(cluster.lost(&[&record]).is_empty());
    cluster.assert_one_master(&[&record]);
}

/// Somebody took the agents' right to change it.
#[test]
fn a_state_that_may_not_be_written_is_told_of_and_no_write_is_taken_that_nobody_could_know_of() {
    let mut cluster = Plan::new(2).start();
    fill(&cluster, 10);
    let (master, replica) = (cluster.master(), cluster.replica());
    let writer = cluster.writer();
    writer.wait_progress(20);
    let state = cluster.path("state");
    let mut kazoo = cluster.kazoo();
    kazoo.give_rights(&state, &["read", "admin"]).unwrap();
    cluster.crash_host(replica);
    cluster.hosts[master].wait_alert("shard-refused");
    let least = cluster.call(master, &["CONFIG", "GET", "min-replicas-to-write"]).unwrap();
    assert!(least.ends_with('1'), "{least}");
    kazoo.give_rights(&state, &["all"]).unwrap();
    cluster.watch.wait_node("state", "it is alone, and that is recorded", |state| state["solo"] == true);
    cluster.hosts[master].wait_status("it is over", |status| !status.fires("shard-refused"));
    writer.wait_progress(20);
    cluster.hosts[replica].launch();
    assert_eq!(cluster.wait_steady(), master);
    ends_well(&cluster, writer, 0);
}

#[test]
fn without_failsafe_a_master_without_zookeeper_is_fenced() {
    let mut cluster = Plan::new(2).with("redis", "redis_failsafe", 0).start();
    let (master, writer) = (cluster.master(), cluster.writer());
    writer.wait_progress(20);
    without_zookeeper(&mut cluster);
    cluster.wait_fenced(master);
    cluster.servers[0].start_again();
    assert_eq!(cluster.wait_steady(), master);
    writer.wait_progress(20);
    let record = writer.finish();
    assert!(cluster.lost(&[&record]).is_empty());
    cluster.assert_one_master(&[&record]);
}

/// All agents' sessions end at once, when it is back each must find its place again.
#[test]
fn a_master_that_dies_while_zookeeper_is_gone_is_succeeded_when_it_is_back() {
    let mut cluster = Plan::new(2).start();
    fill(&cluster, 10);
    let (old, epoch) = (cluster.master(), cluster.watch.epoch());
    without_zookeeper(&mut cluster);
    cluster.crash(old);
    wait::lasts(SESSION);
    cluster.servers[0].start_again();
    let new = cluster.wait_successor(epoch);
    assert_ne!(cluster.host_of(new.master), old);
    cluster.wait_steady();
    assert_eq!((cluster.keys(0), cluster.keys(1)), (10, 10));
}

#[test]
fn a_zookeeper_that_lost_its_data_is_told_again_who_leads() {
    let mut cluster = Plan::new(2).start();
    fill(&cluster, 10);
    let master = cluster.master();
    cluster.servers[0].wipe();
    wait::lasts(Duration::from_millis(500));
    cluster.servers[0].start_again();
    assert_eq!(cluster.wait_steady(), master, "it has the data and was the master");
    assert_eq!((cluster.keys(0), cluster.keys(1)), (10, 10));
}
