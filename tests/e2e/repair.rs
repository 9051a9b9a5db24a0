//! Crashes and hangs of instances: what dies is replaced, what lives is left alone.

use std::{
    fs,
    process::{Command, Stdio},
    time::Duration,
};

use yagent_tests::{
    cache::{Memcached, Redis},
    host::Host,
    process::{self, Signal},
    programs, wait,
};

#[test]
fn a_killed_memcached_is_replaced_and_the_others_are_left_alone() {
    let host = Host::new().memcached(3).started();
    let before = host.status().pids();
    process::signal(before[1], Signal::KILL);
    let it = host.wait_replaced("memcached", host.mc_port(1), before[1]);
    assert_eq!(it.restarts, 1);
    let after = host.status().pids();
    assert_eq!((after[0], after[2]), (before[0], before[2]));
    Memcached::connect(host.mc_port(1)).unwrap().set("a", "b").unwrap();
}

#[test]
fn a_killed_redis_is_replaced() {
    let host = Host::new().redis(2).started();
    let port = host.redis_port(0);
    let old = host.instance("redis", port).pid;
    process::signal(old, Signal::KILL);
    host.wait_replaced("redis", port, old);
    assert_eq!(Redis::connect(port).unwrap().call(&["PING"]).unwrap(), "PONG");
}

#[test]
fn a_stopped_memcached_is_killed_and_replaced() {
    stopped_is_replaced(&Host::new().memcached(2).started(), "memcached");
}

#[test]
fn a_stopped_redis_is_killed_and_replaced() {
    stopped_is_replaced(&Host::new().redis(2).started(), "redis");
}

fn stopped_is_replaced(host: &Host, engine: &str) {
    let before = host.status().instances();
    process::signal(before[0].pid, Signal::STOP);
    host.wait_replaced(engine, before[0].port, before[0].pid);
    assert!(!process::alive(before[0].pid), "the stopped process is gone");
    assert_eq!(host.instance(engine, before[1].port).pid, before[1].pid);
}

#[test]
fn ten_of_twenty_killed_at_once_are_all_replaced() {
    let host = Host::new().memcached(20).started();
    let before = host.status().instances();
    let (doomed, spared) = before.split_at(10);
    doomed.iter().for_each(|it| process::signal(it.pid, Signal::KILL));
    for it in doomed {
        host.wait_replaced("memcached", it.port, it.pid);
    }
    let status = host.status();
    for it in spared {
        assert_eq!(status.instance("memcached", it.port).map(|now| now.pid), Some(it.pid));
    }
}

#[test]
fn a_lost_state_directory_keeps_no_instance_from_coming_back() {
    let host = Host::new().memcached(1).redis(1).started();
    let records = host.state_dir().join("instances");
    fs::remove_dir_all(&records).unwrap();
    let before = host.instance("memcached", host.mc_port(0)).pid;
    process::signal(before, Signal::KILL);
    host.wait_replaced("memcached", host.mc_port(0), before);
    assert!(records.is_dir(), "it is made again");
    // Nor does one in which nothing can be made any more: a file stands in its place.
    fs::remove_dir_all(&records).unwrap();
    fs::write(&records, "").unwrap();
    let before = host.instance("redis", host.redis_port(0)).pid;
    process::signal(before, Signal::KILL);
    host.wait_replaced("redis", host.redis_port(0), before);
}

#[test]
fn an_instance_that_dies_again_and_again_always_comes_back() {
    let host = Host::new().memcached(1).started();
    for round in 1..=6 {
        let it = host.instance("memcached", host.mc_port(0));
        process::signal(it.pid, Signal::KILL);
        assert_eq!(host.wait_replaced("memcached", it.port, it.pid).restarts, round);
    }
}

#[test]
fn a_server_that_cannot_start_is_tried_again_until_it_can() {
    let mut host = Host::new().memcached(1);
    let program = host.path().join("memcached");
    programs::script(&program, "#!/bin/sh\necho no such luck >&2\nexit 1\n");
    host.ini.set("memcached", "mc_fpath", program.display());
    host.launch();
    host.wait_alert("instance-cannot-start");
    let why = host.wait_status("the server's last words are told", |status| {
        status.instances().iter().any(|it| it.why.contains("no such luck"))
    });
    assert_ne!(why.instances()[0].state, "up");
    let real = programs::memcached();
    programs::script(&program, &format!("#!/bin/sh\nexec {} \"$@\"\n", real.display()));
    host.wait_up();
    host.wait_status("the alert is resolved", |status| !status.fires("instance-cannot-start"));
}

#[test]
fn a_zombie_counts_as_dead() {
    let mut host = Host::new().memcached(1);
    let port = host.mc_port(0);
    // A child of this test, which does not reap it before the end: the way some containers' pid 1 behaves.
    let mut foreign = Command::new(programs::memcached())
        .args(["-m", "64", "-l", "127.0.0.1", "-t", "1", "-u", "nobody", "-p", &port.to_string()])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    wait::until("it listens", || Memcached::connect(port).map(drop));
    fs::write(host.path().join("mc_ports"), format!("{port}\n")).unwrap();
    host.start();
    assert_eq!(host.instance("memcached", port).pid, foreign.id(), "it is adopted");
    process::signal(foreign.id(), Signal::KILL);
    host.wait_replaced("memcached", port, foreign.id());
    assert_eq!(process::stat(foreign.id()).map(|stat| stat.state), Some('Z'), "nobody reaped it meanwhile");
    foreign.wait().unwrap();
}

#[test]
fn the_storm_guard_spares_what_hangs_together() {
    let host = Host::new().memcached(8).started();
    let before = host.status().instances();
    let stopped = &before[..6];
    stopped.iter().for_each(|it| process::signal(it.pid, Signal::STOP));
    host.wait_alert("storm-guard");
    let replaced = || {
        let status = host.status();
        let other = |it: &&yagent_tests::status::Instance| {
            status.instance("memcached", it.port).is_none_or(|now| now.pid != it.pid)
        };
        stopped.iter().filter(other).count()
    };
    wait::holds_for(Duration::from_secs(5), "at most a quarter is killed", || {
        wait::check(replaced() <= 2, || format!("{} of 8", replaced()))
    });
    stopped.iter().for_each(|it| process::signal(it.pid, Signal::CONT));
    let after = host.wait_status("the spared serve again", |status| {
        status.instances().iter().all(|it| it.state == "up" && it.health == "serving")
    });
    let kept =
        before.iter().filter(|it| after.instance("memcached", it.port).is_some_and(|now| now.pid == it.pid));
    assert!(kept.count() >= 6, "{after}");
}

#[test]
fn misses_while_the_agent_itself_stood_still_do_not_count() {
    let host = Host::new().memcached(4).started();
    let before = host.status().pids();
    // Longer than probe_timeout times probe_failures, during which nothing could be probed.
    host.signal(Signal::STOP);
    let rest = std::time::Instant::now();
    wait::until("the agent has stood still for a while", || {
        wait::check(rest.elapsed() > Duration::from_secs(5), || "not yet".to_owned())
    });
    host.signal(Signal::CONT);
    host.wait_status("all serve", |status| status.instances().iter().all(|it| it.health == "serving"));
    assert_eq!(host.status().pids(), before);
    assert_eq!(host.status().instances().iter().map(|it| it.restarts).sum::<u64>(), 0);
}
