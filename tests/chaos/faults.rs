//! Servers that stop, die, come back, lose their data or their quorum; cut connections; a client that was frozen.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use yagent_tests::{
    wait::{self, lasts},
    zookeeper::{Kazoo, Server, ensemble, shared},
};

use crate::{
    proxy::{Mode, Proxy},
    subject::{Host, Subject, T, settings, with_timeout},
    usually,
};

/// The timeout of a session that must outlive its server: on a busy machine a server that comes back begins to count
/// it down long before it serves.
const PATIENT: Duration = Duration::from_secs(12);

/// A server of its own with a host registered on it.
struct Bench {
    server: Server,
    subject: Subject,
    host: Host,
    kazoo: Kazoo,
}

impl Bench {
    fn new() -> Bench {
        Bench::with_timeout(T)
    }

    /// With a session that lives this long without us.
    fn with_timeout(timeout: Duration) -> Bench {
        let mut bench = Bench::around_with(Server::start(), timeout);
        bench.subject.event("synced");
        bench.whole();
        bench.subject.count_cpu();
        bench
    }

    fn around(server: Server) -> Bench {
        Bench::around_with(server, T)
    }

    fn around_with(server: Server, timeout: Duration) -> Bench {
        let host = Host::new("10.0.0.1", "h", "n");
        let mut subject = Subject::start(&with_timeout(timeout, settings(&[&server.address()], "", "h")));
        subject.keep(&host);
        let kazoo = Kazoo::new(&server.address());
        Bench { server, subject, host, kazoo }
    }

    fn whole(&mut self) {
        self.host.await_whole(&mut self.kazoo, "", &mut self.subject);
    }

    fn whole_and_within_budget(&mut self) {
        self.whole();
        self.subject.check_budget();
    }
}

#[test]
fn a_server_stopped_shortly_keeps_the_session() {
    let mut bench = Bench::with_timeout(PATIENT);
    let session = bench.subject.session();
    bench.server.stop();
    lasts(PATIENT / 2);
    bench.server.cont();
    bench.whole_and_within_budget();
    assert_eq!(bench.subject.session(), session);
}

#[test]
fn a_server_stopped_for_three_timeouts_is_noticed_and_the_tree_comes_back() {
    let mut bench = Bench::new();
    bench.server.stop();
    let stopped = Instant::now();
    bench.subject.event("lost");
    let silence = stopped.elapsed().as_millis() as u64;
    let acknowledged = bench.subject.measure()["acknowledged_ms_ago"].as_u64().expect("no fact");
    assert!(
        acknowledged + 50 >= silence,
        "a request was acknowledged {acknowledged} ms ago by a stopped server"
    );
    assert!(stopped.elapsed() < T * 2, "noticed after {:?}", stopped.elapsed());
    lasts((T * 3).saturating_sub(stopped.elapsed()));
    bench.subject.check_budget();
    bench.server.cont();
    bench.subject.event("connected");
    bench.whole_and_within_budget();
    assert!(bench.subject.figure("cuts") >= 1);
}

#[test]
fn a_killed_server_comes_back_and_the_ephemeral_is_held_throughout() {
    let mut bench = Bench::with_timeout(PATIENT);
    let session = bench.subject.session();
    let writes = bench.subject.figure("writes");
    bench.server.kill();
    bench.subject.event("lost");
    bench.server.start_again();
    bench.subject.event("synced");
    bench.whole_and_within_budget();
    assert_eq!(bench.subject.session(), session, "a new session");
    assert_eq!(bench.subject.figure("writes"), writes, "nothing differed, so nothing was to be written");
}

#[test]
fn a_server_down_for_long_gets_its_old_session_back() {
    let mut bench = Bench::with_timeout(PATIENT);
    let session = bench.subject.session();
    bench.server.kill();
    bench.subject.event("lost");
    lasts(usually(T * 2, Duration::from_secs(12)));
    bench.subject.check_budget();
    bench.server.start_again();
    bench.subject.event("synced");
    bench.whole_and_within_budget();
    assert_eq!(bench.subject.session(), session, "a new session");
}

#[test]
fn no_server_at_the_start_is_told_and_waited_for() {
    let mut bench = Bench::around(Server::down());
    bench.subject.count_cpu();
    bench.subject.event("lost");
    lasts(usually(Duration::from_secs(4), Duration::from_secs(20)));
    assert_eq!(bench.subject.measure()["measured"]["state"], "connecting");
    bench.subject.check_budget();
    bench.server.start_again();
    bench.subject.event("synced");
    bench.whole_and_within_budget();
}

#[test]
fn a_wiped_server_gets_the_whole_tree_again() {
    let mut bench = Bench::new();
    // Transactions that the wiped server will not know.
    for i in 0..50 {
        bench.kazoo.create(&format!("/filler{i}"), "x").expect("cannot create");
    }
    bench.server.wipe();
    bench.subject.event("lost");
    bench.server.start_again();
    bench.subject.event("synced");
    bench.whole_and_within_budget();
    assert_eq!(bench.subject.figure("sessions"), 2);
}

#[test]
fn an_ensemble_may_lose_a_server_after_another_and_its_quorum() {
    let mut servers = ensemble(3);
    let addresses: Vec<String> = servers.iter().map(Server::address).collect();
    let list: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let host = Host::new("10.0.0.1", "h", "n");
    let mut subject = Subject::start(&settings(&list, "", "h"));
    subject.keep(&host);
    subject.event("synced");
    let mut kazoo = Kazoo::new(&addresses.join(","));
    host.await_whole(&mut kazoo, "", &mut subject);
    subject.count_cpu();
    for server in &mut servers {
        server.kill();
        subject.await_answered();
        host.await_whole(&mut kazoo, "", &mut subject);
        server.start_again();
    }
    subject.check_budget();
    // One that has not found back yet has told its loss already, and would not tell the next.
    subject.await_answered();
    host.await_whole(&mut kazoo, "", &mut subject);
    subject.events_so_far();
    servers[0].kill();
    servers[1].kill();
    subject.event("lost");
    lasts(usually(T, Duration::from_secs(12)));
    subject.check_budget();
    servers[0].launch();
    servers[1].launch();
    subject.event("synced");
    host.await_whole(&mut kazoo, "", &mut subject);
    subject.check_budget();
}

#[test]
fn what_a_server_answers_without_its_leader_counts_for_nothing() {
    let servers = ensemble(3);
    let leader = servers.iter().position(|server| server.mode().as_deref() == Some("leader"));
    let leader = leader.expect("no server leads");
    let follower = servers[(leader + 1) % 3].address();
    let mut subject = Subject::start(&with_timeout(PATIENT, settings(&[&follower], "", "h")));
    subject.await_answered();
    servers[leader].stop();
    wait::until("the leader stands still", || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", servers[leader].pid().as_raw_nonzero()));
        wait::check(stat.as_ref().is_ok_and(|stat| stat.contains(") T ")), || format!("{stat:?}"))
    });
    let stopped = Instant::now();
    // The follower notices later than that (`syncLimit`), and goes on until then.
    wait::holds_for(PATIENT / 5, "nothing that was sent since is acknowledged", || {
        let since = stopped.elapsed().as_millis();
        let measured = subject.measure();
        let ago = measured["acknowledged_ms_ago"].as_u64().map(u128::from);
        wait::check(ago.is_some_and(|ago| ago >= since), || format!("{ago:?} ms ago, {since} ms after it"))
    });
    servers[leader].cont();
    subject.await_answered();
}

#[test]
fn restart_after_restart_leaves_nothing_behind() {
    let mut bench = Bench::new();
    let mut recoveries = Vec::new();
    for _ in 0..usually(5, 200) {
        bench.server.kill();
        bench.subject.event("lost");
        bench.server.start_again();
        let back = Instant::now();
        bench.subject.event("synced");
        recoveries.push(back.elapsed());
    }
    bench.whole_and_within_budget();
    recoveries.sort();
    let median = recoveries[recoveries.len() / 2];
    assert!(median < Duration::from_secs(3), "median recovery {median:?} of {recoveries:?}");
}

#[test]
fn cut_after_cut_with_freezes_between_leaves_nothing_behind() {
    let server = shared();
    let proxy = Proxy::start(Mode::Relay(server.address().parse().expect("no address")));
    let host = Host::new("10.0.0.1", "h", "n");
    let mut subject = Subject::start(&settings(&[&proxy.address()], "/cuts", "h"));
    subject.keep(&host);
    subject.event("synced");
    subject.count_cpu();
    for round in 0..usually(20, 200) {
        if round % 5 == 4 {
            proxy.freeze(true);
            subject.event("lost");
            proxy.freeze(false);
        } else {
            proxy.cut();
        }
        subject.event("synced");
    }
    host.await_whole(&mut Kazoo::new(&server.address()), "/cuts", &mut subject);
    subject.check_budget();
}

#[test]
fn a_process_frozen_past_the_timeout_finds_its_session_gone_and_makes_a_new_one() {
    let server = shared();
    let host = Host::new("10.0.0.1", "h", "n");
    let mut subject = Subject::start(&settings(&[&server.address()], "/frozen", "h"));
    subject.keep(&host);
    subject.event("synced");
    let session = format!("{:#x}", subject.session());
    subject.count_cpu();
    subject.signal(Signal::STOP);
    wait::until("the server expires the session", || {
        wait::check(!server.dump().contains(&session), || format!("{session} is alive"))
    });
    // Beyond what the gate allows a call: it must not take its own standstill for the library's.
    lasts(T + Duration::from_secs(5));
    subject.signal(Signal::CONT);
    subject.event("synced");
    host.await_whole(&mut Kazoo::new(&server.address()), "/frozen", &mut subject);
    assert_eq!(subject.figure("sessions"), 2);
    subject.check_budget();
}

#[test]
fn a_close_ends_in_any_state() {
    let frozen = Bench::new();
    frozen.server.stop();
    let mut never = Subject::start(&settings(&["127.0.0.1:1"], "", "h"));
    let mute = Proxy::start(Mode::Mute);
    let mut greeting = Subject::start(&settings(&[&mute.address()], "", "h"));
    wait::until("a session was asked for", || wait::check(mute.accepted() > 0, || "nobody came".into()));
    let silent = Proxy::start(Mode::Session(crate::proxy::Script::Silent));
    let mut introducing = Subject::start(&settings(&[&silent.address()], "", "h"));
    wait::until("the first request was made", || wait::check(silent.accepted() > 0, || "nobody came".into()));
    let mut frozen_subject = frozen.subject;
    for subject in [&mut never, &mut greeting, &mut introducing, &mut frozen_subject] {
        let begun = Instant::now();
        subject.close();
        subject.event("closed");
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
        wait::until("only the main thread is left", || {
            let threads = subject.measure()["threads"].as_array().expect("no threads").len();
            wait::check(threads == 1, || format!("{threads} threads"))
        });
    }
    frozen.server.cont();
}

#[test]
fn a_close_asked_for_during_a_call_that_fails_is_heard() {
    let mut bench = Bench::new();
    bench.server.stop();
    let change = serde_json::json!({"path": format!("{}/info", bench.host.path), "content": "unanswered"});
    bench.subject.apply(vec![change]);
    wait::until("the change is under way", || match bench.subject.figure("behind") {
        0 => Err("nothing is behind"),
        _ => Ok(()),
    });
    bench.subject.close();
    bench.subject.event("closed");
    bench.server.cont();
}

#[test]
fn a_close_takes_the_ephemeral_away_at_once() {
    let server = shared();
    let host = Host::new("10.0.0.1", "h", "n");
    let mut subject = Subject::start(&settings(&[&server.address()], "/closing", "h"));
    subject.keep(&host);
    subject.event("synced");
    let session = format!("{:#x}", subject.session());
    let last = serde_json::json!({"path": format!("{}/info", host.path), "content": "last words"});
    subject.apply(vec![last]);
    subject.close();
    subject.event("closed");
    assert!(!server.dump().contains(&session), "the session still lives");
    let tree = Kazoo::new(&server.address()).tree("/closing").expect("cannot read");
    assert!(!tree.contains_key(&format!("/closing{}", host.active)));
    assert_eq!(tree[&format!("/closing{}/info", host.path)].content, "last words");
}
