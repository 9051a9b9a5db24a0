//! Agents and fencers die or stand still beside servers that are well.

use std::time::Duration;

use yagent_tests::{
    cluster::{Plan, Role},
    process::{self, Signal},
    wait,
};

use crate::{FAST, IN_FLIGHT, fill, keeps_its_master_for, nothing_changes_for};

#[test]
fn an_agent_killed_and_started_again_goes_on_as_if_nothing_had_been() {
    let mut cluster = Plan::new(3).start();
    let (master, epoch, writer) = (cluster.master(), cluster.watch.epoch(), cluster.writer());
    let (redis, fencer) = (cluster.redis_pid(master), cluster.fencer_pid(master));
    writer.wait_progress(20);
    cluster.hosts[master].kill9();
    cluster.hosts[master].start();
    assert_eq!(cluster.wait_steady(), master);
    keeps_its_master_for(&cluster, Duration::from_secs(5));
    assert!(cluster.watch.epoch() <= epoch + 1, "it returns at most once: {}", cluster.watch.state());
    assert_eq!((cluster.redis_pid(master), cluster.fencer_pid(master)), (redis, fencer), "both are adopted");
    let record = writer.finish();
    assert!(record.longest_gap() < FAST, "{:?}", record.longest_gap());
    cluster.assert_one_master(&[&record]);
    assert!(cluster.lost(&[&record]).is_empty());
}

#[test]
fn the_same_with_a_polite_stop() {
    let mut cluster = Plan::new(2).start();
    let (master, epoch, writer) = (cluster.master(), cluster.watch.epoch(), cluster.writer());
    writer.wait_progress(20);
    assert_eq!(cluster.hosts[master].term().code(), Some(0));
    cluster.hosts[master].start();
    assert_eq!(cluster.wait_steady(), master);
    keeps_its_master_for(&cluster, Duration::from_secs(5));
    let record = writer.finish();
    assert!(cluster.watch.epoch() <= epoch + 1, "it returns at most once: {}", cluster.watch.state());
    assert!(record.longest_gap() < FAST, "{:?}", record.longest_gap());
    assert!(cluster.lost(&[&record]).is_empty());
}

#[test]
fn a_master_whose_agent_is_gone_is_fenced_and_succeeded() {
    let mut cluster = Plan::new(3).start();
    fill(&cluster, 10);
    let (old, epoch) = (cluster.master(), cluster.watch.epoch());
    let (writer, stubborn) = (cluster.writer(), cluster.stubborn(old));
    writer.wait_progress(20);
    cluster.hosts[old].kill9();
    cluster.wait_fenced(old);
    assert_eq!(cluster.watch.epoch(), epoch, "it is fenced before it is succeeded");
    let new = cluster.wait_successor(epoch);
    assert_ne!(cluster.host_of(new.master), old);
    writer.wait_ack_by(new.master);
    cluster.hosts[old].start();
    assert_eq!(cluster.address(cluster.wait_steady()), new.master);
    let records = [writer.finish(), stubborn.finish()];
    cluster.assert_one_master(&[&records[0], &records[1]]);
    let lost = cluster.lost(&[&records[0], &records[1]]);
    assert!(lost.len() <= IN_FLIGHT, "{lost:?}");
}

#[test]
fn an_agent_stopped_longer_than_its_session_finds_its_master_succeeded() {
    let cluster = Plan::new(3).start();
    fill(&cluster, 10);
    let (old, epoch) = (cluster.master(), cluster.watch.epoch());
    let (writer, stubborn) = (cluster.writer(), cluster.stubborn(old));
    writer.wait_progress(20);
    cluster.hosts[old].signal(Signal::STOP);
    let new = cluster.wait_successor(epoch);
    assert_ne!(cluster.host_of(new.master), old);
    writer.wait_ack_by(new.master);
    cluster.hosts[old].signal(Signal::CONT);
    assert_eq!(cluster.address(cluster.wait_steady()), new.master);
    assert!(matches!(cluster.role(old), Role::Replica(..)));
    let records = [writer.finish(), stubborn.finish()];
    cluster.assert_one_master(&[&records[0], &records[1]]);
    let lost = cluster.lost(&[&records[0], &records[1]]);
    assert!(lost.len() <= IN_FLIGHT, "{lost:?}");
}

#[test]
fn an_agent_stopped_for_a_moment_keeps_its_shard() {
    let cluster = Plan::new(2).start();
    let (master, writer) = (cluster.master(), cluster.writer());
    writer.wait_progress(20);
    cluster.hosts[master].signal(Signal::STOP);
    wait::lasts(Duration::from_millis(700));
    cluster.hosts[master].signal(Signal::CONT);
    nothing_changes_for(&cluster, Duration::from_secs(5));
    assert_eq!(cluster.wait_steady(), master);
    let record = writer.finish();
    assert!(cluster.lost(&[&record]).is_empty());
    cluster.assert_one_master(&[&record]);
}

#[test]
fn agent_and_fencer_killed_and_started_again() {
    let mut cluster = Plan::new(2).start();
    let (master, epoch, writer) = (cluster.master(), cluster.watch.epoch(), cluster.writer());
    writer.wait_progress(20);
    let fencer = cluster.fencer_pid(master).unwrap();
    cluster.hosts[master].kill9();
    process::signal(fencer, Signal::KILL);
    cluster.hosts[master].start();
    assert_eq!(cluster.wait_steady(), master);
    wait::until("there is a new fencer", || {
        cluster.fencer_pid(master).filter(|pid| *pid != fencer).ok_or("none")
    });
    keeps_its_master_for(&cluster, Duration::from_secs(5));
    assert!(cluster.watch.epoch() <= epoch + 1, "it returns at most once: {}", cluster.watch.state());
    let record = writer.finish();
    assert!(record.longest_gap() < FAST, "{:?}", record.longest_gap());
    assert!(cluster.lost(&[&record]).is_empty());
    cluster.assert_one_master(&[&record]);
}

#[test]
fn a_fencer_that_dies_is_replaced_and_the_new_one_fences() {
    let mut cluster = Plan::new(2).start();
    let (old, epoch) = (cluster.master(), cluster.watch.epoch());
    let fencer = cluster.fencer_pid(old).unwrap();
    process::signal(fencer, Signal::KILL);
    wait::until("there is a new fencer", || {
        cluster.fencer_pid(old).filter(|pid| *pid != fencer).ok_or("none")
    });
    nothing_changes_for(&cluster, Duration::from_secs(2));
    let stubborn = cluster.stubborn(old);
    stubborn.wait_progress(20);
    cluster.hosts[old].kill9();
    cluster.wait_fenced(old);
    assert_eq!(cluster.watch.epoch(), epoch);
    cluster.wait_successor(epoch);
    cluster.assert_one_master(&[&stubborn.finish()]);
}

#[test]
fn the_agent_of_a_replica_may_come_and_go() {
    let mut cluster = Plan::new(2).start();
    let (master, epoch, replica) = (cluster.master(), cluster.watch.epoch(), cluster.replica());
    let writer = cluster.writer();
    cluster.hosts[replica].kill9();
    wait::holds_for(Duration::from_secs(5), "the replica follows", || {
        let right = cluster.role(replica) == Role::Replica(cluster.address(master).to_string(), true);
        wait::check(right && cluster.watch.epoch() == epoch, || format!("{:?}", cluster.role(replica)))
    });
    cluster.hosts[replica].start();
    assert_eq!(cluster.wait_steady(), master);
    let record = writer.finish();
    assert!(cluster.lost(&[&record]).is_empty());
    assert!(record.longest_gap() < FAST, "{:?}", record.longest_gap());
}
