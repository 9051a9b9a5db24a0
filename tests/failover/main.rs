//! The failover protocol with real agents, redis servers and ZooKeeper, each on a host of its own in a network of
//! namespaces. What is asserted is read from redis itself, from ZooKeeper, and from applications that write.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "tests")]

mod agents;
mod candidates;
mod cuts;
mod deaths;
mod ensemble;
mod harness;
mod operators;
mod repair;
mod surroundings;

use std::time::Duration;

use yagent_tests::{
    cluster::{Cluster, writer::Writer},
    wait,
};

/// A failover whose cause was seen by the agent beside it is over within this, on a machine that is busy with tests.
/// The usual figure, tens of milliseconds, is the benchmark's matter.
const FAST: Duration = Duration::from_secs(3);

/// What redis may lose when a master is killed: the one write that was acknowledged while the replicas' copy of it was
/// still in the dying process.
const IN_FLIGHT: usize = 3;

/// Some data, and everybody has it.
fn fill(cluster: &Cluster, keys: u64) {
    let master = cluster.master();
    let mut redis = cluster.redis(master).unwrap();
    for number in 0..keys {
        redis.call(&["SET", &format!("data:{number}"), "x"]).unwrap();
    }
    wait_same_keys(cluster);
    for host in 0..cluster.hosts.len() {
        let node = format!("members/{}", cluster.address(host));
        cluster.watch.wait_node(&node, "its agent has seen the data", |node| node["keys"] != 0);
    }
}

/// The application goes on, nothing that was acknowledged to it is lost but `at_most` writes, and none was acknowledged by a
/// former master.
fn ends_well(cluster: &Cluster, writer: Writer, at_most: usize) {
    writer.wait_progress(20);
    let record = writer.finish();
    let lost = cluster.lost(&[&record]);
    assert!(lost.len() <= at_most, "{lost:?}");
    cluster.assert_one_master(&[&record]);
    wait_same_keys(cluster);
}

/// Waits until all hosts have the master's keys.
fn wait_same_keys(cluster: &Cluster) {
    wait::until("all have the master's keys", || {
        let keys: Vec<u64> = (0..cluster.hosts.len()).map(|host| cluster.keys(host)).collect();
        wait::check(keys.iter().all(|it| *it == keys[cluster.master()]), || format!("{keys:?}"))
    });
}

/// Panics when another host's server becomes the master within `span`. The same one may be published again: its agent
/// found its place after a time in which it could not know.
fn keeps_its_master_for(cluster: &Cluster, span: Duration) {
    let master = cluster.master();
    wait::holds_for(span, "the shard keeps its master", || {
        wait::check(cluster.master() == master, || cluster.watch.state().to_string())
    });
}

/// Panics when the master changes within `span`, or is published again.
fn nothing_changes_for(cluster: &Cluster, span: Duration) {
    let (epoch, master) = (cluster.watch.epoch(), cluster.master());
    wait::holds_for(span, "the shard keeps its master", || {
        let state = cluster.watch.state();
        wait::check(cluster.watch.epoch() == epoch && cluster.master() == master, || state.to_string())
    });
}
