//! A new agent finds what runs already: its own instances, the Python agent's, and what is none of its business.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    process::{Command, Stdio},
};

use yagent_tests::{
    cache::Memcached,
    host::Host,
    load::Load,
    process::{self, Signal},
    programs, wait,
};

#[test]
fn an_agent_killed_under_load_is_followed_by_one_that_adopts_everything() {
    let mut host = Host::new().memcached(4).redis(1).started();
    let before = host.listeners();
    let loads: Vec<Load> = (0..4).map(|index| Load::start(host.mc_port(index))).collect();
    loads.iter().for_each(Load::wait_progress);
    for _ in 0..3 {
        host.kill9();
        loads.iter().for_each(Load::wait_progress);
        let status = host.start();
        let told = status.instances().iter().map(|it| (it.port, it.pid)).collect();
        assert_eq!(before, told, "the same processes");
        loads.iter().for_each(Load::wait_progress);
    }
    assert_eq!(host.listeners(), before);
    for load in loads {
        load.stop().expect("the application's connection lives through it all");
    }
}

#[test]
fn adopted_instances_are_looked_after() {
    let mut host = Host::new().memcached(2).started();
    host.kill9();
    let before = host.start().pids();
    process::signal(before[0], Signal::KILL);
    host.wait_replaced("memcached", host.mc_port(0), before[0]);
    process::signal(before[1], Signal::STOP);
    host.wait_replaced("memcached", host.mc_port(1), before[1]);
}

#[test]
fn an_instance_that_died_while_the_agent_was_away_is_started_again() {
    let mut host = Host::new().memcached(2).started();
    let before = host.status().pids();
    host.kill9();
    process::signal(before[0], Signal::KILL);
    process::wait_gone(before[0]);
    let after = host.start().pids();
    assert_ne!(after[0], before[0]);
    assert_eq!(after[1], before[1]);
}

#[test]
fn what_the_python_agent_started_is_adopted_through_its_port_file() {
    let mut host = Host::new().memcached(3);
    let ports: Vec<u16> = (0..2).map(|index| host.mc_port(index)).collect();
    for &port in &ports {
        start_as_the_python_agent_did(&host, port);
    }
    let before = host.listeners();
    fs::write(host.path().join("mc_ports"), format!("# in use\n{}, {}\n\n", ports[0], ports[1])).unwrap();
    host.start();
    let after = host.listeners();
    assert!(after.is_superset(&before), "{before:?} {after:?}");
    assert_eq!(after.len(), 3, "the missing one was started beside them");
}

/// A daemon with pid 1 for its parent, which knows nothing of us.
fn start_as_the_python_agent_did(host: &Host, port: u16) {
    let args = format!("-d -u nobody -l 127.0.0.1 -t 1 -m 64 -p {port}");
    let done = Command::new(programs::memcached())
        .args(args.split(' '))
        .current_dir(host.path())
        .stdin(Stdio::null())
        .status()
        .unwrap();
    assert!(done.success());
    wait::until("it listens", || Memcached::connect(port).map(drop));
}

#[test]
fn a_port_that_somebody_else_holds_is_skipped_and_left_alone() {
    let mut host = Host::new().memcached(2);
    let taken = host.mc_port(0);
    let stranger = TcpListener::bind((Ipv4Addr::LOCALHOST, taken)).unwrap();
    host.launch();
    let status = host.wait_status("two instances run beside the stranger", |status| {
        status.instances().iter().filter(|it| it.state == "up").count() == 2
    });
    let ports: Vec<u16> = status.instances().iter().filter(|it| it.state == "up").map(|it| it.port).collect();
    assert_eq!(ports, [host.mc_port(1), host.mc_port(2)]);
    assert!(status.fires("port-taken"), "{status}");
    wait::until("the ports in use are recorded", || {
        let text = fs::read_to_string(host.path().join("mc_ports")).map_err(|why| why.to_string())?;
        let recorded: Vec<u16> = text.lines().filter_map(|line| line.trim().parse().ok()).collect();
        wait::check(recorded == ports, || text)
    });
    stranger.set_nonblocking(true).unwrap();
    assert!(stranger.local_addr().is_ok_and(|address| address.port() == taken));

    // The recorded ports stay in use, also once the first one is free again.
    drop(stranger);
    let pids: Vec<u32> = status.instances().iter().filter(|it| it.state == "up").map(|it| it.pid).collect();
    host.kill9();
    let again = host.start();
    assert_eq!(
        again.instances().iter().filter(|it| it.state == "up").map(|it| it.pid).collect::<Vec<_>>(),
        pids
    );
}

#[test]
fn a_server_of_another_program_on_a_recorded_port_is_never_killed() {
    let mut host = Host::new().memcached(1);
    let port = host.mc_port(0);
    let mut stranger = Command::new(programs::redis_server())
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""])
        .current_dir(host.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait::until("it listens", || yagent_tests::cache::Redis::connect(port).map(drop));
    fs::write(host.path().join("mc_ports"), format!("{port}\n")).unwrap();
    host.launch();
    host.wait_status("an instance runs elsewhere", |status| {
        status.instances().iter().any(|it| it.state == "up" && it.port != port)
    });
    assert!(stranger.try_wait().unwrap().is_none(), "the stranger lives");
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

#[test]
fn a_server_whose_engine_left_the_file_while_no_agent_ran_is_told_of_and_left_alone() {
    let mut host = Host::new().memcached(1).redis(1).started();
    let before = host.listeners();
    host.kill9();
    host.ini.set("redis", "redis_enabled", 0);
    host.start();
    host.wait_alert(&format!("instance-surplus/redis/{}", host.redis_port(0)));
    assert_eq!(host.listeners(), before);
}
