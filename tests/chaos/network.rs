//! The network itself: swallowed SYNs, a link that is down, hosts that are not there, a stranger at the gate.

use std::{
    io::{Read, Write},
    net::TcpStream,
    process::Command,
    time::Duration,
};

use yagent_tests::{
    programs::debian,
    wait::{self, lasts},
    zookeeper::{Kazoo, Server, shared},
};

use crate::{
    subject::{Host, Subject, settings},
    usually,
};

/// A network namespace behind a link of its own.
struct Namespace {
    name: String,
    link: String,
    address: String,
}

impl Namespace {
    fn new(index: u8) -> Namespace {
        debian("ip", "iproute2");
        let pid = std::process::id();
        let (name, link) = (format!("yagent-{pid}-{index}"), format!("ya{pid}-{index}"));
        // One of the blocks set aside for tests between networks, so that it is nobody's real address.
        let net = format!("198.18.{}", (pid % 120) as u8 * 2 + index);
        let namespace = Namespace { address: format!("{net}.1"), name, link };
        let Namespace { name, link, address } = &namespace;
        run(&format!("ip netns add {name}"));
        run(&format!("ip link add {link} type veth peer name {link}n netns {name}"));
        run(&format!("ip addr add {address}/30 dev {link}"));
        run(&format!("ip link set {link} up"));
        run(&format!("ip -n {name} link set lo up"));
        run(&format!("ip -n {name} addr add {net}.2/30 dev {link}n"));
        run(&format!("ip -n {name} link set {link}n up"));
        namespace
    }

    fn start(&self, server: &Server, host: &Host) -> Subject {
        let address = format!("{}:{}", self.address, server.port());
        let prefix = ["ip", "netns", "exec", &self.name];
        let mut subject = Subject::start_under(&prefix, &settings(&[&address], "", "h"));
        subject.keep(host);
        subject.event("synced");
        subject.count_cpu();
        subject
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
        // The link goes with the namespace, unless it was never moved there.
        let _ = Command::new("ip").args(["link", "del", &self.link]).output();
    }
}

fn run(line: &str) {
    let words: Vec<&str> = line.split(' ').collect();
    let done = Command::new(words[0]).args(&words[1..]).output().unwrap_or_else(|e| panic!("{line}: {e}"));
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{line}: {said} (this experiment needs root and network namespaces)");
}

fn served_everywhere() -> Server {
    let mut server = Server::down_on("0.0.0.0");
    server.start_again();
    server
}

#[test]
fn a_route_that_swallows_syns_is_survived() {
    debian("nft", "nftables");
    let server = served_everywhere();
    let namespace = Namespace::new(0);
    let host = Host::new("10.0.0.1", "h", "n");
    let mut subject = namespace.start(&server, &host);
    let nft = format!("ip netns exec {} nft", namespace.name);
    run(&format!("{nft} add table inet chaos"));
    run(&format!("{nft} add chain inet chaos out {{ type filter hook output priority 0 ; }}"));
    run(&format!("{nft} add rule inet chaos out tcp dport {} drop", server.port()));
    subject.event("lost");
    lasts(usually(Duration::from_secs(3), Duration::from_secs(20)));
    subject.check_budget();
    run(&format!("{nft} delete table inet chaos"));
    subject.event("synced");
    host.await_whole(&mut Kazoo::new(&server.address()), "", &mut subject);
    subject.check_budget();
}

#[test]
fn a_link_that_goes_down_and_up_is_survived() {
    let server = served_everywhere();
    let namespace = Namespace::new(1);
    let host = Host::new("10.0.0.1", "h", "n");
    let mut subject = namespace.start(&server, &host);
    run(&format!("ip -n {} link set {}n down", namespace.name, namespace.link));
    subject.event("lost");
    lasts(usually(Duration::from_secs(4), Duration::from_secs(20)));
    subject.check_budget();
    run(&format!("ip -n {} link set {}n up", namespace.name, namespace.link));
    subject.event("synced");
    host.await_whole(&mut Kazoo::new(&server.address()), "", &mut subject);
    subject.check_budget();
}

#[test]
fn hosts_that_are_not_there_never_spoil_the_list() {
    let server = shared();
    let host = Host::new("10.0.0.1", "h", "n");
    // No route, no such name, nobody listening; and one good host.
    let list = ["240.0.0.1:2181", "no-such-host.invalid:2181", "127.0.0.1:1", &server.address()];
    let mut subject = Subject::start(&settings(&list, "/unreachable", "h"));
    subject.count_cpu();
    subject.keep(&host);
    subject.event("synced");
    host.await_whole(&mut Kazoo::new(&server.address()), "/unreachable", &mut subject);
    subject.check_budget();
}

/// Ports on which a process listens.
fn listening(pid: i32) -> Vec<u16> {
    debian("ss", "iproute2");
    let listed = Command::new("ss").args(["-Hltnp"]).output().expect("cannot run ss");
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    text.lines()
        .filter(|line| line.contains(&format!("pid={pid},")))
        .filter_map(|line| line.split_ascii_whitespace().nth(3)?.rsplit_once(':')?.1.parse().ok())
        .collect()
}

#[test]
fn a_stranger_at_the_gate_is_turned_away_and_disturbs_nobody() {
    let server = shared();
    let host = Host::new("10.0.0.1", "h", "n");
    let mut subject = Subject::start(&settings(&[&server.address()], "/stranger", "h"));
    subject.keep(&host);
    subject.event("synced");
    subject.count_cpu();
    let ports = wait::until("the gate listens", || {
        let ports = listening(subject.pid().as_raw_pid());
        if ports.len() == 1 { Ok(ports) } else { Err(format!("it listens on {ports:?}")) }
    });
    for _ in 0..20 {
        let mut stranger = TcpStream::connect(("127.0.0.1", ports[0])).expect("the gate's port is closed");
        stranger.set_read_timeout(Some(Duration::from_secs(20))).expect("cannot set a limit");
        // What a client would say first. The write may find the connection closed already.
        let _ = stranger.write_all(&[0, 0, 0, 45]).and_then(|()| stranger.write_all(&[0; 45]));
        let mut answer = Vec::new();
        let _ = stranger.read_to_end(&mut answer);
        assert!(answer.is_empty(), "a stranger was given {answer:?}");
    }
    host.await_whole(&mut Kazoo::new(&server.address()), "/stranger", &mut subject);
    subject.check_budget();
    assert_eq!(subject.figure("connections"), 1);
}
