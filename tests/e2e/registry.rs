//! The host's tree in a real ZooKeeper, read back with kazoo: what it says, and what is put right.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde_json::{Value, json};
use yagent_tests::{
    cache::Memcached,
    host::Host,
    process::{self, Signal},
    wait,
    zookeeper::{Kazoo, Server, Znode},
};

pub(crate) const SERVER: &str = "/ycache/servers/127.0.0.1";

/// All nodes at and below a path.
pub(crate) type Tree = BTreeMap<String, Znode>;

fn kazoo(zk: &Server) -> Kazoo {
    Kazoo::new(&zk.address())
}

fn dump(zk: &Server, path: &str) -> Result<Tree, String> {
    kazoo(zk).tree(path)
}

/// A node's content.
fn json(node: &Znode) -> Value {
    serde_json::from_str(&node.content).unwrap_or_else(|why| panic!("not JSON: {why}: {}", node.content))
}

/// Waits until `accept` takes the tree.
pub(crate) fn wait_tree(zk: &Server, what: &str, mut accept: impl FnMut(&Tree) -> bool) -> Tree {
    let mut kazoo = kazoo(zk);
    wait::until(what, || {
        let tree = kazoo.tree("/")?;
        wait::check(accept(&tree), || format!("{tree:#?}")).map(|()| tree)
    })
}

/// Whether the tree holds this host and all its instances, as `status` has them.
pub(crate) fn whole(host: &Host, tree: &Tree) -> bool {
    let status = host.status();
    let session = status.0["registry"]["session"].as_str().unwrap_or_default().to_owned();
    let active = |root: &str| {
        tree.get(&format!("{root}/servers/127.0.0.1/active"))
            .is_some_and(|node| node.owner != 0 && session_name(node.owner) == session)
    };
    let instance = |it: &yagent_tests::status::Instance| {
        tree.get(&instance_path(&it.engine, it.port)).is_some_and(|node| {
            let content = json(node);
            content["state"] == it.state && content["pid"] == it.pid && content["restarts"] == it.restarts
        })
    };
    let instances = status.instances();
    let roots: BTreeSet<&str> = instances.iter().map(|it| root(&it.engine)).collect();
    !instances.is_empty() && roots.into_iter().all(active) && instances.iter().all(instance)
}

fn session_name(owner: i64) -> String {
    format!("{owner:#x}")
}

fn root(engine: &str) -> &'static str {
    if engine == "redis" { "/redis" } else { "/ycache" }
}

pub(crate) fn instance_path(engine: &str, port: u16) -> String {
    format!("{}/servers/127.0.0.1/instances/127.0.0.1:{port}", root(engine))
}

#[test]
fn the_tree_says_what_the_host_has() {
    let zk = Server::start();
    let host = Host::new()
        .memcached(2)
        .redis(1)
        .zookeeper(&zk.address())
        .with("global", "group", "blue")
        .with("global", "priority", 7)
        .with("global", "rack", "r12")
        .started();
    host.wait_registered();
    let tree = wait_tree(&zk, "the tree is whole", |tree| whole(&host, tree));

    let expected: BTreeSet<String> = [(0, "memcached"), (1, "memcached"), (0, "redis")]
        .map(|(index, engine)| {
            let port = if engine == "redis" { host.redis_port(index) } else { host.mc_port(index) };
            instance_path(engine, port)
        })
        .into();
    let instances = tree.keys().filter(|path| path.rsplit('/').nth(1) == Some("instances")).cloned();
    assert_eq!(instances.collect::<BTreeSet<_>>(), expected);

    for (root, engine, count, maxmem) in [("/ycache", "memcached", 2, 64), ("/redis", "redis", 1, 32)] {
        let server = &tree[&format!("{root}/servers/127.0.0.1")];
        assert_eq!(server.owner, 0, "the host's node is persistent");
        let content = json(server);
        let told = |name: &str| content[name].clone();
        assert_eq!(told("v"), 1);
        assert_eq!(
            [told("ip"), told("group"), told("rack"), told("engine")],
            [json!("127.0.0.1"), json!("blue"), json!("r12"), json!(engine)]
        );
        assert_eq!(
            [told("priority"), told("instances"), told("maxmem_mb")],
            [json!(7), json!(count), json!(maxmem)]
        );
    }
}

#[test]
fn an_instances_node_says_what_the_server_says() {
    let zk = Server::start();
    let host = Host::new().memcached(1).zookeeper(&zk.address()).started();
    host.wait_registered();
    let path = instance_path("memcached", host.mc_port(0));
    let own = Memcached::connect(host.mc_port(0)).unwrap().stats().unwrap();
    let tree = wait_tree(&zk, "the version is told", |tree| {
        tree.get(&path).is_some_and(|node| json(node)["version"] == own["version"].as_str())
    });
    let content = json(&tree[&path]);
    assert_eq!(content["engine"], "memcached");
    assert_eq!(content["port"], host.mc_port(0));
    assert_eq!(
        content["maxmem_mb"].as_u64().map(|mb| (mb << 20).to_string()),
        Some(own["limit_maxbytes"].clone())
    );
    assert_eq!(content["pid"].to_string(), own["pid"]);
    assert_eq!(content["state"], "up");
}

#[test]
fn the_info_figures_equal_the_servers_own_stats() {
    let zk = Server::start();
    let host = Host::new().memcached(2).zookeeper(&zk.address()).started();
    let info = format!("{}/info", instance_path("memcached", host.mc_port(0)));
    let figures = |tree: &Tree, path: &str| tree.get(path).map_or(Value::Null, json);
    wait_tree(&zk, "a first sample is published", |tree| figures(tree, &info)["keys"] == 0);
    let mut client = Memcached::connect(host.mc_port(0)).unwrap();
    for index in 0..30 {
        client.set(&format!("key{index}"), "some value").unwrap();
        client.get(&format!("key{index}")).unwrap();
    }
    let tree = wait_tree(&zk, "the figures have caught up", |tree| {
        figures(tree, &info)["windows"]["60"]["hits"] == 30 && figures(tree, &info)["keys"] == 30
    });
    let own = client.stats().unwrap();
    let told = figures(&tree, &info);
    for (name, stat) in [("keys", "curr_items"), ("bytes", "bytes"), ("limit_bytes", "limit_maxbytes")] {
        assert_eq!(told[name].to_string(), own[stat], "{name}");
    }
    assert_eq!(told["version"].as_str(), Some(own["version"].as_str()));
    assert_eq!(told["windows"]["60"]["sets"].to_string(), own["cmd_set"]);

    let host_info = format!("{SERVER}/info");
    let tree = wait_tree(&zk, "the host's sum has caught up", |tree| figures(tree, &host_info)["keys"] == 30);
    assert_eq!(
        figures(&tree, &host_info)["windows"]["60"]["sets"],
        30,
        "the host is the sum of its instances"
    );
}

#[test]
fn a_repair_is_told() {
    let zk = Server::start();
    let host = Host::new().memcached(2).zookeeper(&zk.address()).started();
    host.wait_registered();
    let port = host.mc_port(0);
    let old = host.instance("memcached", port).pid;
    process::signal(old, Signal::KILL);
    let it = host.wait_replaced("memcached", port, old);
    wait_tree(&zk, "the new process is in the tree", |tree| {
        let content = tree.get(&instance_path("memcached", port)).map_or(Value::Null, json);
        content["pid"] == it.pid && content["restarts"] == 1 && content["state"] == "up"
    });
}

#[test]
fn a_clean_stop_takes_the_active_node_along_at_once() {
    let zk = Server::start();
    // Far longer than the test may take: what is gone was not left to expire.
    let mut host =
        Host::new().memcached(1).zookeeper(&zk.address()).with("global", "zoo_session_timeout", 40).started();
    host.wait_registered();
    assert_eq!(host.term().code(), Some(0));
    let tree = dump(&zk, "/ycache").unwrap();
    assert!(!tree.contains_key(&format!("{SERVER}/active")), "{tree:#?}");
    assert!(tree.contains_key(SERVER), "the host's own node stays");
}

#[test]
fn an_agent_killed_and_started_again_takes_its_active_node_over() {
    let zk = Server::start();
    let mut host = Host::new().memcached(2).zookeeper(&zk.address()).started();
    host.wait_registered();
    let before = dump(&zk, SERVER).unwrap()[&format!("{SERVER}/active")].clone();
    let pids = host.status().pids();
    host.kill9();
    host.start();
    host.wait_registered();
    let tree = wait_tree(&zk, "the tree is whole", |tree| whole(&host, tree));
    let after = &tree[&format!("{SERVER}/active")];
    assert_ne!(after.owner, before.owner);
    assert_ne!(json(after)["nonce"], json(&before)["nonce"]);
    assert_eq!(json(after)["host_id"], json(&before)["host_id"]);
    assert_eq!(host.status().pids(), pids);
    assert!(!host.status().fires("address-conflict"));
}

#[test]
fn what_is_deleted_or_changed_by_hand_is_put_right() {
    let zk = Server::start();
    let host = Host::new().memcached(2).zookeeper(&zk.address()).started();
    host.wait_registered();
    wait_tree(&zk, "the tree is whole", |tree| whole(&host, tree));
    let one = instance_path("memcached", host.mc_port(0));
    let other = instance_path("memcached", host.mc_port(1));
    for path in [format!("{SERVER}/active"), one.clone(), "/ycache".to_owned()] {
        // The agent puts nodes back while a deletion of many is still going on, which fails that deletion.
        wait::until(&format!("{path} is deleted"), || kazoo(&zk).delete(&path));
        wait_tree(&zk, &format!("{path} is back"), |tree| whole(&host, tree));
    }
    kazoo(&zk).set(&other, "{\"v\":1,\"state\":\"nonsense\"}").unwrap();
    wait_tree(&zk, "the content is right again", |tree| whole(&host, tree));
}

#[test]
fn instances_that_are_no_longer_configured_leave_the_tree_and_other_hosts_stay() {
    let zk = Server::start();
    let mut host = Host::new().memcached(3).zookeeper(&zk.address()).started();
    host.wait_registered();
    let gone = instance_path("memcached", host.mc_port(2));
    let foreign = "/ycache/servers/10.9.8.7/instances/10.9.8.7:11211";
    kazoo(&zk).create(foreign, "not ours").unwrap();
    wait_tree(&zk, "the tree is whole", |tree| whole(&host, tree) && tree.contains_key(&gone));
    host.ini.set("memcached", "mc_count", 2);
    assert_eq!(host.reload()["ok"], true);
    let tree = wait_tree(&zk, "the third is gone", |tree| !tree.contains_key(&gone) && whole(&host, tree));
    assert!(!tree.keys().any(|path| path.starts_with(&gone)), "also below it");
    assert_eq!(tree[foreign].content, "not ours");

    // One that vanished while the agent was away.
    host.kill9();
    let second = instance_path("memcached", host.mc_port(1));
    let (port, pid) = host.listeners().into_iter().next_back().unwrap();
    assert_eq!(port, host.mc_port(1));
    process::signal(pid, Signal::KILL);
    process::wait_gone(pid);
    host.ini.set("memcached", "mc_count", 1);
    host.start();
    let tree = wait_tree(&zk, "the second is gone", |tree| !tree.contains_key(&second) && whole(&host, tree));
    assert_eq!(tree[foreign].content, "not ours");
}

#[test]
fn nothing_is_written_while_nothing_changes() {
    let zk = Server::start();
    let host = Host::new().memcached(2).zookeeper(&zk.address()).with("global", "statsEnable", 0).started();
    host.wait_registered();
    wait_tree(&zk, "the tree is whole", |tree| whole(&host, tree));
    let writes = || host.status().0["registry"]["writes"].as_u64().unwrap();
    let before = (writes(), dump(&zk, "/ycache").unwrap());
    wait::holds_for(Duration::from_secs(6), "no write is counted", || {
        wait::check(writes() == before.0, || format!("{} writes, then {}", before.0, writes()))
    });
    assert_eq!(dump(&zk, "/ycache").unwrap(), before.1, "the versions are the same");
}

#[test]
fn two_hosts_with_one_address_are_told_of_and_do_not_fight() {
    let zk = Server::start();
    let first = Host::new().memcached(1).zookeeper(&zk.address()).started();
    first.wait_registered();
    let before = dump(&zk, SERVER).unwrap()[&format!("{SERVER}/active")].clone();
    let mut second = Host::new().memcached(1).zookeeper(&zk.address()).started();
    second.wait_alert("address-conflict");
    let after = dump(&zk, SERVER).unwrap()[&format!("{SERVER}/active")].clone();
    assert_eq!(after, before, "the holder keeps its node untouched");
    assert!(!first.status().fires("address-conflict"));

    let mut first = first;
    assert_eq!(first.term().code(), Some(0));
    second.wait_status("the other takes over and the alert ends", |status| {
        !status.fires("address-conflict") && status.registered()
    });
    wait_tree(&zk, "the tree is the second one's", |tree| whole(&second, tree));
    second.term();
}

#[test]
fn with_digest_credentials_only_their_owner_may_write() {
    let zk = Server::start();
    let host = Host::new()
        .memcached(1)
        .zookeeper(&zk.address())
        .with("global", "zoo_auth", "agent:s3cret")
        .started();
    host.wait_registered();
    let tree = wait_tree(&zk, "the tree is whole", |tree| whole(&host, tree));
    let acl = &tree[&instance_path("memcached", host.mc_port(0))].acl;
    let (owners, world): (Vec<_>, Vec<_>) = acl.iter().partition(|entry| entry.starts_with("digest:agent:"));
    assert_eq!((owners.len(), world.len()), (1, 1), "{acl:?}");
    assert_eq!(world[0], "world:anyone:1", "all others may read and nothing else");
}

#[test]
fn a_chroot_and_other_paths_are_settings() {
    let zk = Server::start();
    kazoo(&zk).create("/site/a", "").unwrap();
    let host = Host::new()
        .memcached(1)
        .zookeeper(&format!("{}/site/a", zk.address()))
        .with("memcached", "mc_zoo_root", "/caches")
        .with("memcached", "mc_instance_path", "{root}/all/{ip}:{port}")
        .started();
    host.wait_registered();
    let path = format!("/site/a/caches/all/127.0.0.1:{}", host.mc_port(0));
    let tree = wait_tree(&zk, "the instance is where it should be", |tree| tree.contains_key(&path));
    assert!(tree.contains_key("/site/a/caches/servers/127.0.0.1/active"), "{tree:#?}");
    assert!(!tree.contains_key("/ycache"));
}

#[test]
fn the_file_with_the_address_is_read_where_the_ini_names_none() {
    let zk = Server::start();
    let mut host = Host::new().memcached(1);
    let file = host.path().join("env.ini");
    std::fs::write(&file, format!("[site]\nzookeeper = {}\n", zk.address())).unwrap();
    host.ini.set("global", "zoo_svr", "").set("global", "cf_svr_file", file.display());
    host.start();
    host.wait_registered();
    wait_tree(&zk, "the tree is whole", |tree| whole(&host, tree));
}
