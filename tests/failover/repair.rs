//! Somebody changes servers or settings by hand.

use std::time::Duration;

use yagent_tests::{
    cluster::{Plan, Role, SESSION},
    wait,
};

use crate::{ends_well, fill, harness::redis_at, nothing_changes_for, wait_same_keys};

#[test]
fn a_replica_made_a_master_by_hand_is_made_a_replica_again() {
    let cluster = Plan::new(3).start();
    fill(&cluster, 10);
    let (master, epoch, rogue) = (cluster.master(), cluster.watch.epoch(), cluster.replica());
    let writer = cluster.writer();
    writer.wait_progress(20);
    cluster.call(rogue, &["REPLICAOF", "NO", "ONE"]).unwrap();
    // What somebody managed to write there until it was noticed is not kept.
    let _ = cluster.call(rogue, &["SET", "stray", "x"]);
    wait::until("it follows again", || match cluster.role(rogue) {
        Role::Replica(of, true) if of == cluster.address(master).to_string() => Ok(()),
        role => Err(format!("{role:?}")),
    });
    assert_eq!((cluster.wait_steady(), cluster.watch.epoch()), (master, epoch));
    ends_well(&cluster, writer, 0);
    assert_eq!(cluster.call(rogue, &["EXISTS", "stray"]).unwrap(), "0");
    assert!(cluster.keys(rogue) > 10);
}

#[test]
fn a_replica_pointed_elsewhere_by_hand_is_pointed_back() {
    let cluster = Plan::new(3).start();
    fill(&cluster, 10);
    let (master, epoch) = (cluster.master(), cluster.watch.epoch());
    let writer = cluster.writer();
    writer.wait_progress(20);
    let rest = cluster.others(&[master]);
    let other = cluster.spaces[rest[1]].address().to_string();
    let port = cluster.address(rest[1]).port().to_string();
    cluster.call(rest[0], &["REPLICAOF", &other, &port]).unwrap();
    wait::until("it follows again", || match cluster.role(rest[0]) {
        Role::Replica(of, true) if of == cluster.address(master).to_string() => Ok(()),
        role => Err(format!("{role:?}")),
    });
    assert_eq!((cluster.wait_steady(), cluster.watch.epoch()), (master, epoch));
    ends_well(&cluster, writer, 0);
}

#[test]
fn a_replica_pointed_out_of_the_shard_by_hand_is_pointed_back() {
    let cluster = Plan::new(2).start();
    fill(&cluster, 10);
    let (master, epoch, replica) = (cluster.master(), cluster.watch.epoch(), cluster.replica());
    let writer = cluster.writer();
    writer.wait_progress(20);
    let stranger = redis_at(&cluster.spaces[master], 7000);
    let (ip, port) = (stranger.address.ip().to_string(), stranger.address.port().to_string());
    cluster.call(replica, &["REPLICAOF", &ip, &port]).unwrap();
    wait::until("it follows again", || match cluster.role(replica) {
        Role::Replica(of, true) if of == cluster.address(master).to_string() => Ok(()),
        role => Err(format!("{role:?}")),
    });
    assert_eq!((cluster.wait_steady(), cluster.watch.epoch()), (master, epoch));
    ends_well(&cluster, writer, 0);
    assert!(cluster.keys(replica) > 10, "it has the data of its shard");
}

/// While its agent was not there, somebody started another server in the place of a replica: a master, with data.
#[test]
fn a_master_started_by_hand_in_a_replicas_place_is_made_a_replica() {
    let mut cluster = Plan::new(3).start();
    fill(&cluster, 10);
    let (master, epoch, rogue) = (cluster.master(), cluster.watch.epoch(), cluster.replica());
    let writer = cluster.writer();
    writer.wait_progress(20);
    cluster.crash_host(rogue);
    let running = redis_at(&cluster.spaces[rogue], cluster.address(rogue).port());
    cluster.call(rogue, &["SET", "stray", "x"]).unwrap();
    cluster.hosts[rogue].launch();
    wait::until("it follows", || match cluster.role(rogue) {
        Role::Replica(of, true) if of == cluster.address(master).to_string() => Ok(()),
        role => Err(format!("{role:?}")),
    });
    assert_eq!((cluster.wait_steady(), cluster.watch.epoch()), (master, epoch));
    ends_well(&cluster, writer, 0);
    assert_eq!(cluster.call(rogue, &["EXISTS", "stray"]).unwrap(), "0");
    drop(running);
}

#[test]
fn a_master_made_a_replica_by_hand_leaves_the_shard_with_one_master() {
    let cluster = Plan::new(3).start();
    fill(&cluster, 10);
    let (master, writer) = (cluster.master(), cluster.writer());
    let other = cluster.replica();
    let (address, port) =
        (cluster.spaces[other].address().to_string(), cluster.address(other).port().to_string());
    writer.wait_progress(20);
    cluster.call(master, &["REPLICAOF", &address, &port]).unwrap();
    wait::lasts(Duration::from_secs(1));
    let master = cluster.wait_steady();
    writer.wait_ack_by(cluster.address(master));
    wait_same_keys_at_rest(&cluster, writer);
    assert!(cluster.keys(master) >= 10);
}

fn wait_same_keys_at_rest(
    cluster: &yagent_tests::cluster::Cluster,
    writer: yagent_tests::cluster::writer::Writer,
) {
    cluster.assert_one_master(&[&writer.finish()]);
    wait_same_keys(cluster);
}

#[test]
fn a_host_with_other_peers_is_told_of_and_not_promoted() {
    let cluster = Plan::new(3).start();
    fill(&cluster, 10);
    let master = cluster.master();
    // Not the one whose address is the shard's id: it would be of another shard to the others.
    let odd = cluster.others(&[master, 0])[0];
    let right = cluster.others(&[master, odd])[0];
    let peers: Vec<String> = cluster.addresses(&[0, odd]).iter().map(ToString::to_string).collect();
    let mut cluster = cluster;
    let before = cluster.hosts[odd].ini.get("redis", "peers").unwrap().to_owned();
    cluster.hosts[odd].ini.set("redis", "peers", peers.join(","));
    cluster.hosts[odd].reload();
    cluster.hosts[odd].wait_alert("shard-drift");
    // With the odd one preferred in every other way.
    cluster.call(odd, &["CONFIG", "SET", "replica-priority", "1"]).unwrap();
    let epoch = cluster.watch.epoch();
    cluster.crash(master);
    assert_eq!(cluster.host_of(cluster.wait_successor(epoch).master), right);
    cluster.hosts[odd].ini.set("redis", "peers", before);
    cluster.hosts[odd].reload();
    cluster.hosts[odd].wait_status("the drift is over", |status| !status.fires("shard-drift"));
    cluster.wait_steady();
    wait_same_keys(&cluster);
}

#[test]
fn a_password_changed_by_hand_is_no_death() {
    let cluster = Plan::new(2).password("first").start();
    fill(&cluster, 10);
    let (master, epoch) = (cluster.master(), cluster.watch.epoch());
    let pid = cluster.redis_pid(master);
    let mut redis = cluster.redis(master).unwrap();
    redis.call(&["CONFIG", "SET", "requirepass", "second"]).unwrap();
    cluster.hosts[master].wait_alert("instance-unhealthy");
    nothing_changes_for(&cluster, SESSION + Duration::from_secs(2));
    redis.call(&["CONFIG", "SET", "requirepass", "first"]).unwrap();
    cluster.hosts[master].wait_status("it is over", |status| !status.fires("instance-unhealthy"));
    assert_eq!((cluster.wait_steady(), cluster.watch.epoch()), (master, epoch));
    assert_eq!(cluster.redis_pid(master), pid);
    // It still fails over.
    cluster.crash(master);
    cluster.wait_successor(epoch);
    cluster.wait_steady();
    wait_same_keys(&cluster);
    assert_eq!(cluster.keys(master), 10);
}

#[test]
fn a_replica_with_a_wrong_password_is_not_promoted() {
    let cluster = Plan::new(3).password("right").start();
    let (old, epoch) = (cluster.master(), cluster.watch.epoch());
    let rest = cluster.others(&[old]);
    let (wrong, right) = (rest[0], rest[1]);
    cluster.call(wrong, &["CONFIG", "SET", "masterauth", "wrong", "replica-priority", "1"]).unwrap();
    cluster.call(wrong, &["CLIENT", "KILL", "TYPE", "master"]).unwrap();
    wait::until("its link is down", || match cluster.role(wrong) {
        Role::Replica(_, false) => Ok(()),
        role => Err(format!("{role:?}")),
    });
    let mut redis = cluster.redis(old).unwrap();
    for number in 0..50 {
        redis.call(&["SET", &format!("data:{number}"), "x"]).unwrap();
    }
    wait::until("the right one has it", || {
        wait::check(cluster.keys(right) == 50, || cluster.keys(right).to_string())
    });
    cluster.crash(old);
    assert_eq!(cluster.host_of(cluster.wait_successor(epoch).master), right);
    cluster.wait_steady_among(&[old, right]);
    cluster.call(wrong, &["CONFIG", "SET", "masterauth", "right"]).unwrap();
    cluster.wait_steady();
    wait_same_keys(&cluster);
    assert_eq!(cluster.keys(wrong), 50);
}
