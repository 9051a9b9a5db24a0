//! Who is promoted, and what happens when that one dies on the way.

use std::fs;

use yagent_tests::{
    cluster::{Cluster, Plan, Role, net::Cut},
    process::{self, Signal},
    wait,
};

use crate::{fill, nothing_changes_for, wait_same_keys};

/// Adds lines to the base configuration of one host's redis; it reads them when it is started.
fn conf(cluster: &Cluster, host: usize, lines: &str) {
    let file = cluster.hosts[host].path().join("redis.conf");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(file, format!("{text}{lines}\n")).unwrap();
}

/// Sets the priority of a host's redis, and waits until its agent has told the others.
fn set_priority(cluster: &Cluster, host: usize, priority: u32) {
    cluster.call(host, &["CONFIG", "SET", "replica-priority", &priority.to_string()]).unwrap();
    let node = format!("members/{}", cluster.address(host));
    cluster.watch.wait_node(&node, "its priority is known", |node| node["priority"] == priority);
}

#[test]
fn the_one_that_has_more_is_promoted_whatever_the_priorities() {
    let cluster = Plan::new(3).start();
    fill(&cluster, 10);
    let (old, epoch) = (cluster.master(), cluster.watch.epoch());
    let rest = cluster.others(&[old]);
    let (behind, ahead) = (rest[0], rest[1]);
    set_priority(&cluster, behind, 1);
    cluster.spaces[behind].cut(&Cut::From(cluster.addresses(&[old])));
    let mut redis = cluster.redis(old).unwrap();
    for number in 0..200 {
        redis.call(&["SET", &format!("more:{number}"), "x"]).unwrap();
    }
    wait::until("the other has it", || {
        wait::check(cluster.keys(ahead) == 210, || cluster.keys(ahead).to_string())
    });
    assert!(cluster.keys(behind) < 210);
    cluster.crash(old);
    let new = cluster.wait_successor(epoch);
    assert_eq!(cluster.host_of(new.master), ahead);
    cluster.heal(behind);
    cluster.wait_steady();
    wait_same_keys(&cluster);
    assert_eq!(cluster.keys(behind), 210);
}

#[test]
fn among_equals_the_priority_decides() {
    let cluster = Plan::new(3).start();
    fill(&cluster, 10);
    let (old, epoch) = (cluster.master(), cluster.watch.epoch());
    let preferred = cluster.others(&[old])[1];
    set_priority(&cluster, preferred, 10);
    cluster.crash(old);
    assert_eq!(cluster.host_of(cluster.wait_successor(epoch).master), preferred);
    cluster.wait_steady();
}

#[test]
fn priority_0_never_leads_and_an_empty_master_does_not_come_back_over_it() {
    let mut cluster = Plan::new(3).start();
    fill(&cluster, 10);
    let (old, epoch) = (cluster.master(), cluster.watch.epoch());
    let rest = cluster.others(&[old]);
    set_priority(&cluster, rest[0], 0);
    set_priority(&cluster, rest[1], 0);
    let restarted = cluster.redis_pid(old);
    cluster.crash(old);
    cluster.hosts[rest[0]].wait_alert("shard-no-");
    wait::until("the old one runs again", || {
        wait::check(cluster.redis_pid(old).is_some_and(|pid| Some(pid) != restarted), || "no".into())
    });
    nothing_changes_for(&cluster, std::time::Duration::from_secs(3));
    assert!(matches!(cluster.role(old), Role::Replica(..)), "{:?}", cluster.role(old));
    assert_eq!((cluster.keys(rest[0]), cluster.keys(rest[1])), (10, 10), "their data are untouched");
    // As soon as one may lead, it does.
    set_priority(&cluster, rest[1], 100);
    let new = cluster.wait_successor(epoch);
    assert_eq!(cluster.host_of(new.master), rest[1]);
    cluster.wait_steady();
    wait_same_keys(&cluster);
    assert_eq!(cluster.keys(old), 10);
    cluster
        .hosts
        .iter_mut()
        .for_each(|host| drop(host.wait_status("no alert is left", |s| !s.fires("shard-no-"))));
}

#[test]
fn a_master_that_reloads_its_data_comes_back_when_nobody_else_may() {
    let cluster = Plan::new(2).start();
    fill(&cluster, 10);
    let (master, epoch, replica) = (cluster.master(), cluster.watch.epoch(), cluster.replica());
    set_priority(&cluster, replica, 0);
    cluster.call(master, &["SAVE"]).unwrap();
    cluster.crash(master);
    let new = cluster.wait_successor(epoch);
    assert_eq!(cluster.host_of(new.master), master);
    cluster.wait_steady();
    assert_eq!((cluster.keys(master), cluster.keys(replica)), (10, 10));
}

#[test]
fn one_that_loads_slowly_is_neither_promoted_nor_killed() {
    let cluster = Plan::new(3).start();
    fill(&cluster, 400);
    let old = cluster.master();
    cluster.call(old, &["SAVE"]).unwrap();
    conf(&cluster, old, "key-load-delay 20000\nloading-process-events-interval-bytes 1024");
    let mut epoch = cluster.watch.epoch();
    let dead = cluster.redis_pid(old);
    cluster.crash(old);
    let first = cluster.wait_successor(epoch);
    epoch = first.epoch;
    let loads = |cluster: &Cluster| cluster.info(old).get("loading").map(String::as_str) == Some("1");
    wait::until("it loads", || wait::check(loads(&cluster), || format!("{:?}", cluster.role(old))));
    let loading = cluster.redis_pid(old);
    assert_ne!(loading, dead);
    cluster.crash(cluster.host_of(first.master));
    let second = cluster.wait_successor(epoch);
    assert_ne!(cluster.host_of(second.master), old);
    assert!(loads(&cluster), "the second failover was while it loaded");
    wait::until("it has loaded", || wait::check(!loads(&cluster), || "it loads".into()));
    assert_eq!(cluster.redis_pid(old), loading, "it was left alone");
    cluster.wait_steady();
    wait_same_keys(&cluster);
    assert_eq!(cluster.keys(old), 400);
}

/// The master's host is cut off; the candidate is hit while it waits for that one to be fenced.
fn candidate_is_hit(hit: impl FnOnce(&mut Cluster, usize)) -> (Cluster, usize, usize) {
    let mut cluster = Plan::new(3).start();
    fill(&cluster, 10);
    let (old, epoch) = (cluster.master(), cluster.watch.epoch());
    let stubborn = [cluster.stubborn(old), cluster.stubborn_neighbour(old)];
    stubborn[1].wait_progress(20);
    cluster.cut_off(old);
    let state =
        cluster.watch.wait_node("state", "a candidate has the lock", |state| state["phase"] == "promoting");
    let candidate = cluster.host_of(state["master"].as_str().unwrap().parse().unwrap());
    assert_ne!(candidate, old);
    hit(&mut cluster, candidate);
    let third = cluster.others(&[old, candidate])[0];
    let new = cluster.wait_successor(epoch);
    assert_eq!(cluster.host_of(new.master), third);
    let records = stubborn.map(|writer| writer.finish());
    cluster.assert_one_master(&[&records[0], &records[1]]);
    cluster.heal(old);
    (cluster, candidate, third)
}

#[test]
fn a_candidate_that_dies_with_the_lock_is_succeeded_by_the_next() {
    let (mut cluster, candidate, third) =
        candidate_is_hit(|cluster, candidate| cluster.crash_host(candidate));
    cluster.hosts[candidate].launch();
    assert_eq!(cluster.wait_steady(), third);
    wait_same_keys(&cluster);
    assert!(cluster.keys(candidate) >= 10);
}

#[test]
fn a_candidate_that_stands_still_with_the_lock_gives_up_when_it_goes_on() {
    let signal_all = |cluster: &Cluster, host: usize, signal: Signal| {
        let all =
            [cluster.hosts[host].pid(), cluster.redis_pid(host).unwrap(), cluster.fencer_pid(host).unwrap()];
        all.iter().for_each(|&pid| process::signal(pid, signal));
    };
    let (cluster, candidate, third) = candidate_is_hit(|cluster, it| signal_all(cluster, it, Signal::STOP));
    let stubborn = cluster.stubborn(candidate);
    signal_all(&cluster, candidate, Signal::CONT);
    assert_eq!(cluster.wait_steady(), third);
    cluster.assert_one_master(&[&stubborn.finish()]);
    wait_same_keys(&cluster);
}

#[test]
fn a_master_that_dies_as_soon_as_it_is_published_is_succeeded_by_the_third() {
    let mut cluster = Plan::new(3).start();
    fill(&cluster, 10);
    let (old, epoch, writer) = (cluster.master(), cluster.watch.epoch(), cluster.writer());
    writer.wait_progress(20);
    cluster.crash(old);
    let first = cluster.wait_successor(epoch);
    let first_host = cluster.host_of(first.master);
    cluster.crash_host(first_host);
    let second = cluster.wait_successor(first.epoch);
    assert_ne!(second.master, first.master);
    let rest = cluster.others(&[first_host]);
    cluster.wait_steady_among(&rest);
    assert!(cluster.keys(cluster.master()) >= 10);
    cluster.hosts[first_host].launch();
    cluster.wait_steady();
    wait_same_keys(&cluster);
    cluster.assert_one_master(&[&writer.finish()]);
}

#[test]
fn a_replica_that_dies_during_a_failover_holds_nothing_up() {
    let cluster = Plan::new(3).start();
    fill(&cluster, 10);
    let (old, epoch) = (cluster.master(), cluster.watch.epoch());
    cluster.cut_off(old);
    let state =
        cluster.watch.wait_node("state", "a candidate has the lock", |state| state["phase"] == "promoting");
    let candidate = cluster.host_of(state["master"].as_str().unwrap().parse().unwrap());
    let third = cluster.others(&[old, candidate])[0];
    cluster.crash(third);
    assert_eq!(cluster.host_of(cluster.wait_successor(epoch).master), candidate);
    cluster.wait_steady_among(&[candidate, third]);
    cluster.heal(old);
    assert_eq!(cluster.wait_steady(), candidate);
    wait_same_keys(&cluster);
    assert_eq!(cluster.keys(third), 10);
}
