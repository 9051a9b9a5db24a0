//! What is written, what is repaired, what is left alone.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;
use yagent_tests::{
    wait,
    zookeeper::{Kazoo, shared},
};

use crate::subject::{Host, Subject, T, settings, with_timeout};

fn begin(chroot: &str, nonce: &str) -> (Host, Subject, Kazoo) {
    begin_with_timeout(chroot, nonce, T)
}

fn begin_with_timeout(chroot: &str, nonce: &str, timeout: Duration) -> (Host, Subject, Kazoo) {
    let server = shared();
    let host = Host::new("10.0.0.1", "h", nonce);
    let mut subject = Subject::start(&with_timeout(timeout, settings(&[&server.address()], chroot, "h")));
    subject.keep(&host);
    subject.event("synced");
    (host, subject, Kazoo::new(&server.address()))
}

#[test]
fn only_differences_are_written() {
    let (mut host, mut subject, mut kazoo) = begin("/differences", "n");
    host.await_whole(&mut kazoo, "/differences", &mut subject);
    let writes = subject.figure("writes");
    subject.keep(&host);
    let info = format!("{}/info", host.path);
    host.nodes.insert(info.clone(), ("new".into(), false));
    subject.apply(vec![json!({"path": info, "content": "new"})]);
    host.await_whole(&mut kazoo, "/differences", &mut subject);
    assert_eq!(subject.figure("writes"), writes + 1);
}

#[test]
fn what_others_change_or_delete_is_repaired() {
    let (host, mut subject, mut kazoo) = begin("/repair", "n");
    let at = |path: &str| format!("/repair{path}");
    host.await_whole(&mut kazoo, "/repair", &mut subject);
    // Held up, so that the repair does not get in the vandal's way.
    subject.signal(Signal::STOP);
    kazoo.set(&at(&host.path), "vandalised").expect("cannot set");
    kazoo.delete(&at(&host.active)).expect("cannot delete");
    kazoo.delete(&at(&format!("{}/instances", host.path))).expect("cannot delete");
    subject.signal(Signal::CONT);
    let begun = Instant::now();
    host.await_whole(&mut kazoo, "/repair", &mut subject);
    assert!(begun.elapsed() < T * 3, "repaired after {:?}", begun.elapsed());
    kazoo.set(&at(&host.active), "vandalised").expect("cannot set");
    host.await_whole(&mut kazoo, "/repair", &mut subject);
    subject.signal(Signal::STOP);
    kazoo.delete("/repair").expect("cannot delete");
    subject.signal(Signal::CONT);
    host.await_whole(&mut kazoo, "/repair", &mut subject);
    assert_eq!(subject.figure("sessions"), 1);
}

#[test]
fn the_ephemeral_of_our_previous_run_is_taken_over_at_once() {
    let timeout = Duration::from_secs(30);
    let (_, mut before, mut kazoo) = begin_with_timeout("/previous", "first", timeout);
    before.kill();
    let begun = Instant::now();
    let (host, mut subject, _) = begin("/previous", "second");
    assert!(begun.elapsed() < timeout, "it took {:?}: the old session had to expire first", begun.elapsed());
    host.await_whole(&mut kazoo, "/previous", &mut subject);
    assert!(!subject.events_so_far().contains(&"conflict".to_owned()));
}

#[test]
fn another_live_agent_is_told_of_and_never_fought() {
    let server = shared();
    let (theirs, mut first, mut kazoo) = begin("/conflict", "theirs");
    let mut second = Subject::start(&settings(&[&server.address()], "/conflict", "other"));
    let ours = Host::new("10.0.0.1", "other", "ours");
    let begun = Instant::now();
    let mine = vec![json!({"path": ours.active, "content": ours.nodes[&ours.active].0, "ephemeral": true})];
    second.apply(mine);
    let conflict = second.event("conflict");
    assert!(begun.elapsed() >= T, "told after {:?}", begun.elapsed());
    assert_eq!(conflict["path"], ours.active.as_str(), "without the chroot");
    assert!(conflict["holder"].as_str().expect("no holder").contains("theirs"));
    theirs.await_whole(&mut kazoo, "/conflict", &mut first);
    first.close();
    first.event("closed");
    assert_eq!(second.event("conflict over")["path"], ours.active.as_str());
    second.event("synced");
    let session = second.session();
    let tree = kazoo.tree("/conflict").expect("cannot read");
    assert_eq!(tree[&format!("/conflict{}", ours.active)].owner, session);
}

#[test]
fn instances_that_are_no_longer_configured_go_and_those_of_others_stay() {
    let mut kazoo = Kazoo::new(&shared().address());
    let dir = "/prune/ycache/servers/10.0.0.1/instances";
    for name in ["10.0.0.1:9999/info", "10.0.0.1:9998", "10.0.0.10:9999", "10.0.0.1:note"] {
        kazoo.create(&format!("{dir}/{name}"), "old").expect("cannot create");
    }
    let (host, mut subject, _) = begin("/prune", "n");
    let left = |kazoo: &mut Kazoo| -> Vec<String> {
        kazoo
            .tree(dir)
            .expect("cannot read")
            .into_keys()
            .filter(|path| path.contains("99") || path.ends_with("note"))
            .collect()
    };
    let others = [format!("{dir}/10.0.0.10:9999"), format!("{dir}/10.0.0.1:note")];
    wait::until("stale nodes go", || {
        let mut left = left(&mut kazoo);
        left.sort_by_key(|path| path.ends_with("note"));
        wait::check(left == others, || format!("{left:?} are there"))
    });
    let instance = format!("{}/instances/10.0.0.1:11231", host.path);
    subject.apply(vec![json!({"path": instance})]);
    wait::until("a removed instance goes with its figures", || {
        let tree = kazoo.tree(dir).expect("cannot read");
        wait::check(!tree.keys().any(|path| path.contains("11231")), || format!("{:?}", tree.keys()))
    });
    assert!(kazoo.tree(dir).expect("cannot read").contains_key(&others[0]));
}

#[test]
fn with_credentials_nodes_are_writable_by_us_and_readable_by_all() {
    let server = shared();
    let mut with_auth = settings(&[&server.address()], "/auth", "h");
    with_auth["auth"] = "yagent:secret".into();
    let mut subject = Subject::start(&with_auth);
    let host = Host::new("10.0.0.1", "h", "n");
    subject.keep(&host);
    subject.event("synced");
    let mut kazoo = Kazoo::new(&server.address());
    host.await_whole(&mut kazoo, "/auth", &mut subject);
    let tree = kazoo.tree(&format!("/auth{}", host.path)).expect("cannot read");
    for (path, node) in tree {
        assert_eq!(node.acl.len(), 2, "{path}: {:?}", node.acl);
        assert!(node.acl[0].starts_with("digest:yagent:") && node.acl[0].ends_with(":31"), "{:?}", node.acl);
        assert_eq!(node.acl[1], "world:anyone:1");
    }
    let denied = kazoo.set(&format!("/auth{}", host.path), "x").expect_err("anybody may write");
    assert!(denied.contains("NoAuth"), "{denied}");
    // One without the credentials is refused, is told so, and goes on with the rest.
    let mut stranger = Subject::start(&settings(&[&server.address()], "/auth", "h"));
    stranger.apply(vec![
        json!({"path": host.path, "content": "other"}),
        json!({"path": "/auth-open", "content": "x"}),
    ]);
    let event = stranger.event("refused");
    assert!(event["why"].as_str().expect("no reason").contains("NoAuth"), "{event}");
}

#[test]
fn content_that_no_server_takes_is_refused_and_holds_nothing_else_up() {
    let (host, mut subject, mut kazoo) = begin("/large", "n");
    let info = format!("{}/info", host.path);
    subject.apply(vec![json!({"path": info, "content": "x".repeat(1 << 20)})]);
    let event = subject.event("refused");
    assert_eq!(event["path"], info.as_str());
    assert_eq!(subject.figure("behind"), 1);
    subject.apply(vec![json!({"path": info, "content": host.nodes[&info].0})]);
    subject.event("refused over");
    host.await_whole(&mut kazoo, "/large", &mut subject);
    assert_eq!(subject.figure("connections"), 1, "the server was not even asked");
}
