//! The master's process dies or stands still; its agent sees it.

use std::{collections::BTreeSet, time::Duration};

use yagent_tests::{
    cluster::{Plan, Role},
    process::{self, Signal},
    wait,
};

use crate::{FAST, IN_FLIGHT, fill, nothing_changes_for, wait_same_keys};

#[test]
fn a_master_that_crashes_is_succeeded_and_comes_back_as_a_replica() {
    let cluster = Plan::new(3).start();
    fill(&cluster, 50);
    let (old, epoch) = (cluster.master(), cluster.watch.epoch());
    let (writer, stubborn) = (cluster.writer(), cluster.stubborn(old));
    writer.wait_progress(50);
    cluster.crash(old);
    let new = cluster.wait_successor(epoch);
    assert_eq!(new.epoch, epoch + 1);
    assert_ne!(cluster.host_of(new.master), old);
    writer.wait_ack_by(new.master);
    let host = cluster.wait_steady();
    assert_eq!(cluster.address(host), new.master);
    cluster.hosts[host].wait_status("its replicas are back", |status| !status.fires("failover/"));
    let log = cluster.hosts[host].log_text();
    for told in ["is the master ", "the shard has its replicas back"] {
        assert!(log.contains(told), "the alert does not tell that it {told}");
    }
    assert!(matches!(cluster.role(old), Role::Replica(..)));
    wait_same_keys(&cluster);
    assert!(cluster.keys(old) >= 50, "the empty one took the data of the others, not they its emptiness");
    let records = [writer.finish(), stubborn.finish()];
    let records = [&records[0], &records[1]];
    cluster.assert_one_master(&records);
    assert!(records[0].longest_gap() < FAST, "{:?}", records[0].longest_gap());
    let lost = cluster.lost(&records);
    assert!(lost.len() <= IN_FLIGHT, "{lost:?}");
    let history = cluster.kazoo().tree(&cluster.path("history")).unwrap();
    let history = &history[&cluster.path("history")].content;
    assert!(history.contains("\"death\"") && history.contains(&new.master.to_string()), "{history}");
}

#[test]
fn one_crash_after_another() {
    let cluster = Plan::new(3).start();
    fill(&cluster, 10);
    let writer = cluster.writer();
    let mut masters = BTreeSet::from([cluster.master()]);
    for _ in 0..4 {
        let epoch = cluster.watch.epoch();
        writer.wait_progress(20);
        cluster.crash(cluster.master());
        let new = cluster.wait_successor(epoch);
        writer.wait_ack_by(new.master);
        masters.insert(cluster.wait_steady());
        wait_same_keys(&cluster);
        assert!(cluster.keys(cluster.master()) >= 10);
    }
    assert!(masters.len() >= 2, "{masters:?}");
    let record = writer.finish();
    cluster.assert_one_master(&[&record]);
    let lost = cluster.lost(&[&record]);
    assert!(lost.len() <= 4 * IN_FLIGHT, "{lost:?}");
}

#[test]
fn a_master_that_is_stopped_and_goes_on_in_time_stays_the_master() {
    let cluster = Plan::new(2).start();
    let (master, writer) = (cluster.master(), cluster.writer());
    let pid = cluster.redis_pid(master).unwrap();
    writer.wait_progress(20);
    process::signal(pid, Signal::STOP);
    wait::lasts(Duration::from_millis(300));
    process::signal(pid, Signal::CONT);
    writer.wait_progress(20);
    nothing_changes_for(&cluster, Duration::from_secs(2));
    assert_eq!(cluster.redis_pid(master), Some(pid));
    let record = writer.finish();
    cluster.assert_one_master(&[&record]);
    assert!(cluster.lost(&[&record]).is_empty());
}

#[test]
fn a_master_that_stays_stopped_is_killed_and_succeeded() {
    let cluster = Plan::new(3).start();
    fill(&cluster, 10);
    let (old, epoch) = (cluster.master(), cluster.watch.epoch());
    let (writer, stubborn) = (cluster.writer(), cluster.stubborn(old));
    let pid = cluster.redis_pid(old).unwrap();
    writer.wait_progress(20);
    process::signal(pid, Signal::STOP);
    let new = cluster.wait_successor(epoch);
    // Whatever continues it now comes too late.
    process::signal(pid, Signal::CONT);
    assert_ne!(cluster.host_of(new.master), old);
    assert!(!process::alive(pid), "nobody is promoted beside a process that could go on");
    writer.wait_ack_by(new.master);
    cluster.wait_steady();
    wait_same_keys(&cluster);
    let records = [writer.finish(), stubborn.finish()];
    cluster.assert_one_master(&[&records[0], &records[1]]);
    let lost = cluster.lost(&[&records[0], &records[1]]);
    assert!(lost.len() <= IN_FLIGHT, "{lost:?}");
}

/// All of a host stands still, as a virtual machine does that is being moved, and goes on much later.
#[test]
fn a_host_that_stands_still_longer_than_its_session_finds_itself_succeeded() {
    let cluster = Plan::new(3).start();
    fill(&cluster, 10);
    let (old, epoch) = (cluster.master(), cluster.watch.epoch());
    let (writer, stubborn) = (cluster.writer(), cluster.stubborn(old));
    writer.wait_progress(20);
    let redis = cluster.redis_pid(old).unwrap();
    let fencer = cluster.fencer_pid(old).unwrap();
    let all = [redis, fencer, cluster.hosts[old].pid()];
    all.iter().for_each(|&pid| process::signal(pid, Signal::STOP));
    let new = cluster.wait_successor(epoch);
    writer.wait_ack_by(new.master);
    // The fencer goes on first: which of the processes of a host that goes on as a whole runs first is chance, and
    // nothing on that host can decide it.
    process::signal(fencer, Signal::CONT);
    wait::lasts(Duration::from_millis(50));
    process::signal(redis, Signal::CONT);
    process::signal(cluster.hosts[old].pid(), Signal::CONT);
    assert_eq!(cluster.address(cluster.wait_steady()), new.master);
    let records = [writer.finish(), stubborn.finish()];
    cluster.assert_one_master(&[&records[0], &records[1]]);
}

#[test]
fn a_host_that_vanishes_is_succeeded_when_its_session_has_expired() {
    let mut cluster = Plan::new(3).start();
    fill(&cluster, 10);
    let (old, epoch, writer) = (cluster.master(), cluster.watch.epoch(), cluster.writer());
    writer.wait_progress(20);
    cluster.crash_host(old);
    let new = cluster.wait_successor(epoch);
    assert_ne!(cluster.host_of(new.master), old);
    writer.wait_ack_by(new.master);
    let rest = cluster.others(&[old]);
    cluster.wait_steady_among(&rest);
    cluster.hosts[old].launch();
    assert_eq!(cluster.address(cluster.wait_steady()), new.master);
    wait_same_keys(&cluster);
    assert!(cluster.keys(old) >= 10);
    let record = writer.finish();
    cluster.assert_one_master(&[&record]);
    let lost = cluster.lost(&[&record]);
    assert!(lost.len() <= IN_FLIGHT, "{lost:?}");
}

#[test]
fn master_and_replica_die_at_once_and_the_third_leads() {
    let mut cluster = Plan::new(3).start();
    fill(&cluster, 10);
    let (old, epoch) = (cluster.master(), cluster.watch.epoch());
    let rest = cluster.others(&[old]);
    cluster.crash_host(rest[0]);
    cluster.crash(old);
    let new = cluster.wait_successor(epoch);
    assert_eq!(cluster.host_of(new.master), rest[1]);
    cluster.wait_steady_among(&[old, rest[1]]);
    assert_eq!(cluster.keys(old), 10);
    cluster.hosts[rest[0]].launch();
    assert_eq!(cluster.address(cluster.wait_steady()), new.master);
    wait_same_keys(&cluster);
    assert_eq!(cluster.keys(rest[0]), 10);
}

/// Its own agent must find it gone and its data with it, and not make it the master of nothing.
#[test]
fn a_master_that_dies_with_its_agent_does_not_come_back_empty() {
    let mut cluster = Plan::new(2).start();
    fill(&cluster, 10);
    let (old, epoch) = (cluster.master(), cluster.watch.epoch());
    cluster.crash_host(old);
    cluster.hosts[old].launch();
    let new = cluster.wait_successor(epoch);
    assert_ne!(cluster.host_of(new.master), old, "the empty one");
    cluster.wait_steady();
    wait_same_keys(&cluster);
    assert_eq!(cluster.keys(old), 10);
}
