//! ZooKeeper failing in every way: the caches are looked after all the while, `status` answers, and the tree is whole
//! once it is back.

use std::time::{Duration, Instant};

use yagent_tests::{
    host::Host,
    process::{self, Signal},
    wait,
    zookeeper::Server,
};

use crate::registry::{wait_tree, whole};

/// The session timeout that the hosts of these tests ask for.
const SESSION: Duration = Duration::from_secs(4);

fn registered_host(zk: &Server) -> Host {
    let host = Host::new().memcached(3).redis(1).zookeeper(&zk.address()).started();
    host.wait_registered();
    wait_tree(zk, "the tree is whole", |tree| whole(&host, tree));
    host
}

/// Kills and stops caches while something is wrong with ZooKeeper; they must come back as ever.
fn caches_are_looked_after(host: &Host) {
    let before = host.status().instances();
    process::signal(before[0].pid, Signal::KILL);
    host.wait_replaced(&before[0].engine, before[0].port, before[0].pid);
    let redis = before.iter().find(|it| it.engine == "redis").unwrap();
    process::signal(redis.pid, Signal::KILL);
    host.wait_replaced("redis", redis.port, redis.pid);
}

fn wait_lost(host: &Host) {
    host.wait_status("the loss is known and told", |status| {
        status.registry() != "connected" && status.fires("registry-lost")
    });
}

fn wait_whole_again(zk: &Server, host: &Host) {
    host.wait_registered();
    wait_tree(zk, "the tree is whole again", |tree| whole(host, tree));
    host.wait_status("the alert is over", |status| !status.fires("registry-lost"));
}

/// Polls `status` for `span`; a single answer that does not come fails.
fn status_answers_for(host: &Host, span: Duration) {
    wait::holds_for(span, "status answers", || {
        let status = host.try_status()?;
        wait::check(status.instances().len() == 4, || status.to_string())
    });
}

#[test]
fn a_server_frozen_for_three_session_timeouts() {
    let zk = Server::start();
    let host = registered_host(&zk);
    zk.stop();
    let frozen = Instant::now();
    caches_are_looked_after(&host);
    wait_lost(&host);
    status_answers_for(&host, (3 * SESSION).saturating_sub(frozen.elapsed()));
    caches_are_looked_after(&host);
    zk.cont();
    wait_whole_again(&zk, &host);
}

#[test]
fn a_server_killed_and_started_again() {
    let mut zk = Server::start();
    let host = registered_host(&zk);
    zk.kill();
    wait_lost(&host);
    caches_are_looked_after(&host);
    zk.start_again();
    wait_whole_again(&zk, &host);
}

#[test]
fn a_server_that_lost_all_its_data() {
    let mut zk = Server::start();
    let host = registered_host(&zk);
    zk.wipe();
    wait_lost(&host);
    caches_are_looked_after(&host);
    zk.start_again();
    wait_whole_again(&zk, &host);
}

#[test]
fn no_server_at_the_start() {
    let mut zk = Server::start();
    zk.kill();
    let host = Host::new().memcached(3).redis(1).zookeeper(&zk.address()).started();
    host.wait_alert("registry-lost");
    caches_are_looked_after(&host);
    status_answers_for(&host, SESSION);
    zk.start_again();
    wait_whole_again(&zk, &host);
}

#[test]
fn an_agent_that_is_told_to_stop_while_the_server_is_frozen_stops() {
    let zk = Server::start();
    let mut host = registered_host(&zk);
    let caches = host.listeners();
    zk.stop();
    assert_eq!(host.term().code(), Some(0));
    assert_eq!(host.listeners(), caches);
    zk.cont();
}

#[test]
fn an_agent_frozen_beyond_its_session_registers_again() {
    let zk = Server::start();
    let host = registered_host(&zk);
    let before = host.status().pids();
    host.signal(Signal::STOP);
    wait_tree(&zk, "the session has expired", |tree| !tree.keys().any(|path| path.ends_with("/active")));
    host.signal(Signal::CONT);
    wait_whole_again(&zk, &host);
    assert_eq!(host.status().pids(), before);
}
