//! Single requests: by versions, with watches, through cuts and expiries; and a close that leaves the session.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use yagent_tests::{
    wait::{self, lasts},
    zookeeper::{Kazoo, Server, shared},
};

use crate::{
    proxy::{Mode, Proxy},
    subject::{Host, Subject, T, settings},
};

fn read(path: &str) -> Value {
    json!({"ask": "read", "path": path})
}

fn children(path: &str) -> Value {
    json!({"ask": "children", "path": path})
}

fn create(path: &str, content: &str) -> Value {
    json!({"ask": "create", "path": path, "content": content})
}

fn lock(path: &str, content: &str) -> Value {
    json!({"ask": "create", "path": path, "content": content, "ephemeral": true})
}

fn write(path: &str, content: &str, version: i64) -> Value {
    json!({"ask": "write", "path": path, "content": content, "version": version})
}

fn delete(path: &str, version: i64) -> Value {
    json!({"ask": "delete", "path": path, "version": version})
}

fn node(content: &str, version: i64, owner: i64) -> Value {
    json!({"node": {"content": content, "version": version, "owner": owner}})
}

/// A connected subject on the shared server.
fn connected(chroot: &str, host_id: &str) -> Subject {
    connected_to(&shared().address(), chroot, host_id)
}

fn connected_to(server: &str, chroot: &str, host_id: &str) -> Subject {
    let mut subject = Subject::start(&settings(&[server], chroot, host_id));
    subject.event("connected");
    subject
}

fn proxy() -> Proxy {
    Proxy::start(Mode::Relay(shared().address().parse().expect("no address")))
}

fn await_expiry(session: i64) {
    let session = format!("{session:#x}");
    wait::until("the server expires the session", || {
        wait::check(!shared().dump().contains(&session), || format!("{session} is alive"))
    });
}

fn is_there(chroot: &str, path: &str) -> bool {
    let tree = Kazoo::new(&shared().address()).tree(chroot).expect("cannot read");
    tree.contains_key(&format!("{chroot}{path}"))
}

#[test]
fn each_request_is_answered_in_order_and_below_the_chroot() {
    let mut subject = connected("/requests", "h");
    let session = subject.session();
    let burst = [
        (read("/s/state"), json!({"node": null})),
        (children("/s"), json!({"names": null})),
        (create("/s/state", "one"), json!("created")),
        (create("/s/state", "two"), json!("exists")),
        (read("/s/state"), node("one", 0, 0)),
        (write("/s/state", "two", 1), json!("stale")),
        (write("/s/state", "two", 0), json!({"written": 1})),
        (write("/s/gone", "two", 0), json!("stale")),
        (lock("/s/lock", "me"), json!("created")),
        (read("/s/lock"), node("me", 0, session)),
        (delete("/s", -1), json!("stale")),
        (delete("/s/lock", 3), json!("stale")),
        (delete("/s/lock", -1), json!("deleted")),
        (delete("/s/lock", -1), json!("stale")),
        (children("/s"), json!({"names": ["state"]})),
    ];
    subject.request(100, burst.iter().map(|(request, _)| request.clone()).collect());
    for (token, (request, answer)) in (100..).zip(&burst) {
        let event = subject.event("answered");
        assert_eq!((&event["token"], &event["answer"]), (&json!(token), answer), "{request}");
    }
    let found = Kazoo::new(&shared().address()).tree("/requests/s").expect("cannot read");
    assert_eq!(found["/requests/s/state"].content, "two");
    let refused = subject.ask(write("/s/state", &"x".repeat(1 << 20), 1));
    assert!(refused["refused"].is_string(), "{refused}");
    let below = lock("/s/lock", "me");
    assert_eq!(subject.ask(below), json!("created"));
    let refused = subject.ask(create("/s/lock/x", ""));
    assert!(refused["refused"].is_string(), "an ephemeral has no children: {refused}");
    assert_eq!(subject.figure("connections"), 1);
}

#[test]
fn of_two_that_write_the_same_version_one_is_told_that_it_is_stale() {
    let (mut one, mut two) = (connected("/race", "one"), connected("/race", "two"));
    assert_eq!(one.ask(create("/state", "0")), json!("created"));
    for version in 0..50 {
        one.request(0, vec![write("/state", "one", version)]);
        two.request(0, vec![write("/state", "two", version)]);
        let mut answers = [&mut one, &mut two].map(|subject| subject.event("answered")["answer"].take());
        answers.sort_by_key(Value::to_string);
        assert_eq!(answers, [json!("stale"), json!({"written": version + 1})]);
    }
}

#[test]
fn a_lock_goes_with_the_session_of_its_holder_and_whoever_read_it_is_told() {
    let (mut holder, mut other) = (connected("/lock", "one"), connected("/lock", "two"));
    assert_eq!(holder.ask(lock("/lock", "one")), json!("created"));
    let session = holder.session();
    assert_eq!(other.ask(lock("/lock", "two")), json!("exists"));
    assert_eq!(other.ask(read("/lock")), node("one", 0, session));
    holder.signal(Signal::STOP);
    let stopped = Instant::now();
    assert_eq!(other.event("changed")["path"], "/lock");
    assert!(stopped.elapsed() >= T / 3, "gone after {:?}", stopped.elapsed());
    assert_eq!(other.ask(lock("/lock", "two")), json!("created"));
    holder.signal(Signal::CONT);
    holder.event("lost");
    holder.event("connected");
    let found = holder.ask(read("/lock"));
    assert_eq!(found["node"]["content"], "two");
    assert_ne!(holder.session(), session);
}

#[test]
fn a_missing_node_that_was_read_is_told_of_when_another_makes_it() {
    let mut subject = connected("/missing", "h");
    let mut kazoo = Kazoo::new(&shared().address());
    assert_eq!(subject.ask(read("/s/lock")), json!({"node": null}));
    assert_eq!(subject.ask(children("/t")), json!({"names": null}));
    kazoo.create("/missing/s/lock", "theirs").expect("cannot create");
    assert_eq!(subject.next(), json!({"event": "changed", "path": "/s/lock"}));
    kazoo.set("/missing/s/lock", "theirs again").expect("cannot set");
    kazoo.create("/missing/t", "").expect("cannot create");
    assert_eq!(subject.next(), json!({"event": "changed", "path": "/t"}), "each reading is told of once");
    assert_eq!(subject.ask(read("/s/lock")), node("theirs again", 1, 0));
    kazoo.delete("/missing/s/lock").expect("cannot delete");
    assert_eq!(subject.next(), json!({"event": "changed", "path": "/s/lock"}));
}

#[test]
fn children_that_were_read_are_told_of_when_they_come_and_go() {
    let (mut subject, mut other) = (connected("/children", "one"), connected("/children", "two"));
    assert_eq!(other.ask(lock("/members/a", "")), json!("created"));
    assert_eq!(subject.ask(children("/members")), json!({"names": ["a"]}));
    assert_eq!(other.ask(write("/members/a", "x", 0)), json!({"written": 1}));
    assert_eq!(other.ask(lock("/members/b", "")), json!("created"));
    assert_eq!(subject.next(), json!({"event": "changed", "path": "/members"}));
    let names = subject.ask(children("/members"));
    assert_eq!(names["names"].as_array().map(Vec::len), Some(2), "{names}");
    other.close();
    assert_eq!(subject.event("changed")["path"], "/members");
}

/// `members/<address>` is kept by the desired tree and read by requests: both see what happens to it.
#[test]
fn a_node_of_the_desired_tree_that_a_request_has_read_serves_both() {
    let mut subject = connected("/both", "h");
    let put = |content: &str| vec![json!({"path": "/members/a", "content": content, "ephemeral": true})];
    subject.apply(put("1"));
    subject.event("synced");
    let session = subject.session();
    assert_eq!(subject.ask(read("/members/a")), node("1", 0, session));
    subject.apply(put("2"));
    assert_eq!(subject.event("changed")["path"], "/members/a", "our own write is told of");
    assert_eq!(subject.ask(read("/members/a")), node("2", 1, session));
    let mut kazoo = Kazoo::new(&shared().address());
    kazoo.set("/both/members/a", "vandalised").expect("cannot set");
    assert_eq!(subject.event("changed")["path"], "/members/a");
    wait::until("the tree repairs it", || {
        let found = subject.ask(read("/members/a"));
        wait::check(found == node("2", 3, session), || found.to_string())
    });
    kazoo.delete("/both/members/a").expect("cannot delete");
    assert_eq!(subject.event("changed")["path"], "/members/a");
    wait::until("the tree makes it again", || {
        let found = subject.ask(read("/members/a"));
        wait::check(found == node("2", 0, session), || found.to_string())
    });
}

#[test]
fn a_node_is_not_written_more_often_for_being_read() {
    let mut subject = connected("/quiet", "h");
    let writes = |subject: &mut Subject| subject.figure("writes");
    for i in 0..20 {
        subject.apply(vec![json!({"path": "/a", "content": i.to_string()})]);
        subject.ask(read("/a"));
    }
    subject.apply(vec![json!({"path": "/a", "content": "last"})]);
    wait::until("the last content is there", || {
        let found = subject.ask(read("/a"));
        wait::check(found["node"]["content"] == "last", || found.to_string())
    });
    let before = writes(&mut subject);
    assert!(before <= 22, "{before} writes");
    lasts(T);
    assert_eq!(writes(&mut subject), before, "what is as desired is left alone");
}

#[test]
fn all_under_way_is_lost_with_the_connection_and_the_next_one_answers_again() {
    let proxy = proxy();
    let mut subject = connected_to(&proxy.address(), "/lost", "h");
    assert_eq!(subject.ask(create("/state", "0")), json!("created"));
    assert_eq!(subject.ask(read("/state")), node("0", 0, 0));
    proxy.freeze(true);
    subject.request(10, (0..20).map(|i| create(&format!("/x{i}"), "")).collect());
    // Something of it is on its way when the connection goes.
    lasts(Duration::from_millis(50));
    proxy.cut();
    let cut = Instant::now();
    let lost = subject.next();
    assert_eq!(lost["event"], "lost");
    for token in 10..30 {
        assert_eq!(subject.next(), json!({"event": "answered", "token": token, "answer": "lost"}));
    }
    assert!(cut.elapsed() < T / 3, "told after {:?}", cut.elapsed());
    subject.request(40, vec![read("/state")]);
    assert_eq!(subject.next(), json!({"event": "answered", "token": 40, "answer": "lost"}));
    proxy.freeze(false);
    assert_eq!(subject.event("connected")["event"], "connected");
    assert_eq!(subject.ask(read("/state")), node("0", 0, 0));
    subject.check_budget();
}

/// The core counts on it: whatever the connection does, each request has one answer, `Lost` only behind a loss, and a
/// create that was answered is there.
#[test]
fn through_cut_after_cut_each_request_has_one_answer() {
    let proxy = proxy();
    let mut subject = connected_to(&proxy.address(), "/cutting", "h");
    let mut created = Vec::new();
    for round in 0..15u64 {
        subject.request(round * 100, (0..50).map(|i| create(&format!("/r{round}-{i}"), "")).collect());
        if round % 5 == 4 {
            proxy.freeze(true);
        }
        proxy.cut();
        let (mut next, mut lost) = (round * 100, false);
        while next < round * 100 + 50 {
            let event = subject.next();
            match (event["event"].as_str(), event["answer"].as_str()) {
                (Some("lost"), _) => lost = true,
                (Some("answered"), Some(answer)) => {
                    assert_eq!(event["token"], next, "{event}");
                    assert!(answer == "created" || lost && answer == "lost", "{event}");
                    if answer == "created" {
                        created.push(format!("/cutting/r{round}-{}", next % 100));
                    }
                    next += 1;
                }
                _ => {}
            }
        }
        proxy.freeze(false);
        if !lost {
            subject.event("lost");
        }
        subject.event("connected");
    }
    let tree = Kazoo::new(&shared().address()).tree("/cutting").expect("cannot read");
    assert!(created.iter().all(|path| tree.contains_key(path)));
    subject.check_budget();
}

#[test]
fn a_request_goes_before_a_tree_that_is_being_written() {
    let mut subject = connected("/busy", "h");
    subject.apply((0..2000).map(|i| json!({"path": format!("/tree/{i}"), "content": "x"})).collect());
    assert_eq!(subject.ask(create("/lock", "me")), json!("created"));
    let behind = subject.figure("behind");
    assert!(behind > 1000, "only {behind} nodes are left to be written");
    wait::until("the tree is written", || {
        let behind = subject.figure("behind");
        wait::check(behind == 0, || format!("{behind} nodes are left"))
    });
    // A removal of many nodes is one step of the tree, and must not be waited for either.
    subject.apply(vec![json!({"path": "/tree"})]);
    assert_eq!(subject.ask(delete("/lock", 0)), json!("deleted"));
    assert_eq!(subject.figure("behind"), 1, "the removal is over already");
}

#[test]
fn with_credentials_requests_make_nodes_that_only_we_may_write() {
    let server = shared();
    let mut with_auth = settings(&[&server.address()], "/request-auth", "h");
    with_auth["auth"] = "yagent:secret".into();
    let mut subject = Subject::start(&with_auth);
    subject.event("connected");
    assert_eq!(subject.ask(create("/s/state", "1")), json!("created"));
    assert_eq!(subject.ask(write("/s/state", "2", 0)), json!({"written": 1}));
    let tree = Kazoo::new(&server.address()).tree("/request-auth/s").expect("cannot read");
    for (path, node) in tree {
        assert!(node.acl[0].starts_with("digest:yagent:") && node.acl[0].ends_with(":31"), "{path}");
    }
    let mut stranger = connected("/request-auth", "other");
    assert_eq!(stranger.ask(read("/s/state")), node("2", 1, 0));
    for request in [write("/s/state", "x", 1), create("/s/x/y", ""), delete("/s/state", 1)] {
        let answer = stranger.ask(request.clone());
        assert!(answer["refused"].as_str().is_some_and(|why| why.contains("NoAuth")), "{request}: {answer}");
    }
    assert_eq!(stranger.figure("connections"), 1);
}

#[test]
fn a_lease_is_never_older_than_a_sixth_of_the_timeout_and_costs_next_to_nothing() {
    let span = Duration::from_secs(12);
    let mut idle = settings(&[&shared().address()], "/idle", "h");
    idle["timeout_ms"] = (span.as_millis() as u64).into();
    let mut subject = Subject::start(&idle);
    subject.event("connected");
    let age = |subject: &mut Subject| subject.measure()["acknowledged_ms_ago"].as_u64().expect("no fact");
    subject.count_cpu();
    let before = cpu_ms(&mut subject);
    let begun = Instant::now();
    let mut looks = 0;
    while begun.elapsed() < span {
        let age = age(&mut subject);
        assert!(age <= span.as_millis() as u64 / 6, "acknowledged {age} ms ago");
        looks += 1;
        lasts(Duration::from_millis(100));
    }
    let used = cpu_ms(&mut subject) - before;
    assert!(used < 10 + looks * 3, "{used} ms of CPU time, {looks} looks included");
    lasts(span / 20);
    let asked = Instant::now();
    subject.ask(create("/changed", ""));
    let age = age(&mut subject);
    assert!(age <= asked.elapsed().as_millis() as u64 + 1, "a change counts as well: {age} ms");
}

fn cpu_ms(subject: &mut Subject) -> u64 {
    subject.measure()["cpu_ms"].as_u64().expect("no figure")
}

#[test]
fn who_leaves_is_still_there_until_the_session_expires_and_who_closes_is_gone_at_once() {
    let (mut leaver, mut closer) = (connected("/leave", "one"), connected("/leave", "two"));
    let session = leaver.session();
    assert_eq!(leaver.ask(lock("/left", "one")), json!("created"));
    assert_eq!(closer.ask(lock("/closed", "two")), json!("created"));
    leaver.apply(vec![json!({"path": "/last", "content": "words"})]);
    let begun = Instant::now();
    leaver.leave();
    leaver.event("closed");
    let left = begun.elapsed();
    closer.close();
    closer.event("closed");
    assert!(left < Duration::from_secs(1), "it took {left:?}");
    assert!(is_there("/leave", "/left") && !is_there("/leave", "/closed") && is_there("/leave", "/last"));
    assert!(shared().dump().contains(&format!("{session:#x}")), "the session is gone");
    for subject in [&mut leaver, &mut closer] {
        assert_eq!(subject.ask(read("/left")), json!("lost"));
    }
    await_expiry(session);
    assert!(!is_there("/leave", "/left"));
}

#[test]
fn the_next_run_takes_over_what_the_last_one_left() {
    let server = shared();
    let first = Host::new("10.0.0.1", "h", "first");
    let mut before = Subject::start(&settings(&[&server.address()], "/left", "h"));
    before.keep(&first);
    before.event("synced");
    let session = before.session();
    before.leave();
    before.event("closed");
    assert!(is_there("/left", &first.active));
    let host = Host::new("10.0.0.1", "h", "second");
    let mut subject = Subject::start(&settings(&[&server.address()], "/left", "h"));
    subject.keep(&host);
    subject.event("synced");
    assert_ne!(subject.session(), session);
    host.await_whole(&mut Kazoo::new(&server.address()), "/left", &mut subject);
    await_expiry(session);
    host.await_whole(&mut Kazoo::new(&server.address()), "/left", &mut subject);
}

#[test]
fn one_may_leave_in_any_state() {
    let server = Server::start();
    let mut frozen = connected_to(&server.address(), "", "h");
    server.stop();
    frozen.request(1, vec![create("/x", "")]);
    let mut never = Subject::start(&settings(&["127.0.0.1:1"], "", "h"));
    let proxy = proxy();
    let mut cut = connected_to(&proxy.address(), "/anyhow", "h");
    proxy.set(Mode::Close);
    cut.event("lost");
    for subject in [&mut never, &mut cut, &mut frozen] {
        let begun = Instant::now();
        subject.leave();
        subject.event("closed");
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
        wait::until("only the main thread is left", || {
            let threads = subject.measure()["threads"].as_array().expect("no threads").len();
            wait::check(threads == 1, || format!("{threads} threads"))
        });
    }
    server.cont();
}
