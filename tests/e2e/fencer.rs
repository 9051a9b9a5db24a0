//! The fencer alone: the real process, a real redis, and a test in the agent's place.

use std::{
    os::fd::OwnedFd,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use tempfile::TempDir;
use yagent::fencer::{
    self,
    message::{self, Message, PACKET_AT_MOST},
};
use yagent_tests::{
    cache::Redis,
    ports::PortBlock,
    process::{self, Signal},
    programs, wait,
};

const KEY: u16 = 1;
const PAUSE: &[u8] = b"*4\r\n$6\r\nCLIENT\r\n$5\r\nPAUSE\r\n$7\r\n3600000\r\n$5\r\nWRITE\r\n";
const WITHIN: Duration = Duration::from_secs(1);

struct Bench {
    dir: TempDir,
    port: u16,
    _ports: PortBlock,
    redis: Child,
    fencer: Child,
}

impl Drop for Bench {
    fn drop(&mut self) {
        for child in [&mut self.redis, &mut self.fencer] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn start_fencer(dir: &Path) -> Child {
    let mut command = Command::new(programs::yagent());
    command.arg("fencer").arg("--state-dir").arg(dir).stdin(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

impl Bench {
    fn new() -> Bench {
        let dir = tempfile::Builder::new().prefix("yagent-fencer-").tempdir().unwrap();
        let ports = PortBlock::reserve(1);
        let port = ports.first();
        let mut command = Command::new(programs::redis_server());
        command.args(["--port", &port.to_string(), "--save", "", "--dir"]).arg(dir.path());
        let redis = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        wait::until("redis answers", || Redis::connect(port)?.call(&["PING"]));
        let fencer = start_fencer(dir.path());
        Bench { dir, port, _ports: ports, redis, fencer }
    }

    fn agent(&self) -> Agent {
        let address = SocketAddrUnix::new(self.dir.path().join(fencer::SOCKET)).unwrap();
        let flags = SocketFlags::CLOEXEC;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        wait::until("the fencer listens", || rustix::net::connect(&socket, &address));
        Agent(socket)
    }

    fn arm(&self, agent: &Agent, expect: &[u8]) {
        let pid = self.redis.id();
        let start = fencer::start_of(pid).unwrap();
        let address = ([127, 0, 0, 1], self.port).into();
        agent.say(&Message::Arm { key: KEY, pid, start, address, within: WITHIN, send: PAUSE, expect });
        agent.hears(Message::Armed { key: KEY });
    }

    fn takes_writes(&self) -> bool {
        let address = ([127, 0, 0, 1], self.port).into();
        let client = Redis::connect_to(address, Duration::from_millis(300));
        client.and_then(|mut client| client.call(&["SET", "a", "b"])).is_ok()
    }

    fn reads(&self) -> bool {
        Redis::connect(self.port).and_then(|mut client| client.call(&["GET", "a"])).is_ok()
    }

    fn is_fenced(&self) {
        wait::until("no write is taken", || wait::check(!self.takes_writes(), || "a write was taken".into()));
        assert!(self.reads(), "it lives and is read from");
    }

    fn is_killed(&mut self) {
        let status = self.redis.wait().unwrap();
        assert!(status.to_string().contains("signal: 9"), "{status}");
    }
}

struct Agent(OwnedFd);

impl Agent {
    fn say(&self, message: &Message<'_>) {
        let mut packet = [0; PACKET_AT_MOST];
        let packet = message::encode(message, &mut packet).unwrap();
        assert_eq!(rustix::net::send(&self.0, packet, SendFlags::empty()).unwrap(), packet.len());
    }

    fn hears(&self, expected: Message<'_>) {
        let mut packet = [0; PACKET_AT_MOST];
        let (length, _) = rustix::net::recv(&self.0, &mut packet[..], RecvFlags::empty()).unwrap();
        assert_eq!(message::decode(&packet[..length]), Some(expected));
    }

    fn lease(&self, long: Duration) {
        let until = fencer::monotonic() + u64::try_from(long.as_nanos()).unwrap();
        self.say(&Message::Lease { key: KEY, until });
    }
}

#[test]
fn a_lease_that_runs_out_stops_writes_and_a_new_one_is_waited_for() {
    let bench = Bench::new();
    let agent = bench.agent();
    bench.arm(&agent, b"+OK\r\n");
    assert!(bench.takes_writes());
    agent.lease(Duration::from_millis(200));
    bench.is_fenced();
    // The agent allows writes again and says so to the fencer first.
    agent.lease(Duration::from_secs(600));
    Redis::connect(bench.port).unwrap().call(&["CLIENT", "UNPAUSE"]).unwrap();
    wait::holds_for(Duration::from_secs(1), "writes are taken", || {
        wait::check(bench.takes_writes(), || "no".into())
    });
}

#[test]
fn leases_that_are_fed_in_time_change_nothing() {
    let bench = Bench::new();
    let agent = bench.agent();
    bench.arm(&agent, b"+OK\r\n");
    let mut writer = Redis::connect(bench.port).unwrap();
    wait::holds_for(Duration::from_secs(3), "writes are taken", || {
        agent.lease(Duration::from_secs(1));
        writer.call(&["SET", "a", "b"]).map(|_| ())
    });
}

#[test]
fn it_outlives_its_agent() {
    let bench = Bench::new();
    let agent = bench.agent();
    bench.arm(&agent, b"+OK\r\n");
    agent.lease(Duration::from_millis(500));
    drop(agent);
    bench.is_fenced();
    // The next agent finds it, and what it knows.
    let next = bench.agent();
    bench.arm(&next, b"+OK\r\n");
    next.lease(Duration::from_secs(600));
    Redis::connect(bench.port).unwrap().call(&["CLIENT", "UNPAUSE"]).unwrap();
    assert!(bench.takes_writes());
}

#[test]
fn a_server_that_does_not_answer_is_killed() {
    let mut bench = Bench::new();
    let agent = bench.agent();
    bench.arm(&agent, b"+OK\r\n");
    process::signal(bench.redis.id(), Signal::STOP);
    agent.lease(Duration::from_millis(100));
    bench.is_killed();
}

#[test]
fn a_server_that_answers_otherwise_is_killed() {
    let mut bench = Bench::new();
    let agent = bench.agent();
    bench.arm(&agent, b"+FINE\r\n");
    agent.lease(Duration::from_millis(100));
    bench.is_killed();
}

#[test]
fn without_a_rehearsed_order_the_server_is_killed() {
    let mut bench = Bench::new();
    let agent = bench.agent();
    let pid = bench.redis.id();
    let start = fencer::start_of(pid).unwrap();
    let address = ([127, 0, 0, 1], bench.port).into();
    agent.say(&Message::Arm { key: KEY, pid, start, address, within: WITHIN, send: b"", expect: b"" });
    agent.hears(Message::Armed { key: KEY });
    agent.lease(Duration::from_millis(100));
    bench.is_killed();
}

#[test]
fn another_process_of_the_same_number_is_left_alone() {
    let bench = Bench::new();
    let agent = bench.agent();
    let pid = bench.redis.id();
    let start = fencer::start_of(pid).unwrap() + 1;
    let address = ([127, 0, 0, 1], bench.port).into();
    agent.say(&Message::Arm { key: KEY, pid, start, address, within: WITHIN, send: b"", expect: b"" });
    agent.lease(Duration::from_millis(1));
    // What it answers to the next message shows that it has dealt with these.
    bench.arm(&agent, b"+OK\r\n");
    assert!(bench.takes_writes());
}

#[test]
fn a_directory_has_one_fencer() {
    let bench = Bench::new();
    let agent = bench.agent();
    let status = start_fencer(bench.dir.path()).wait().unwrap();
    assert!(status.success(), "a second one ends by itself: {status}");
    bench.arm(&agent, b"+OK\r\n");
}
