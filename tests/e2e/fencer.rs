//! The fencer beside real redis: whatever becomes of the agent, nobody's write is acknowledged long after the lease.
//!
//! The test is the agent: it feeds the leases, or ceases to.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    os::fd::OwnedFd,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType, accept, bind, listen, recv,
    socket_with,
};
use tempfile::TempDir;
use yagent::{
    core::{EngineId, InstanceId, Pid},
    fencer::wire::{Fencing, RETIRE},
    shell::{
        fencer::{Fencer, Means, Unguarded},
        poll::Poll,
    },
};
use yagent_tests::{
    cache::Redis,
    ports::PortBlock,
    process::{self, Signal, alive, signal, wait_gone},
    programs,
    wait::{self, DEADLINE},
};

const LEASE: Duration = Duration::from_millis(500);
const WITHIN: Duration = Duration::from_secs(2);

/// What fences redis, and how it says so.
const PAUSE: (&[u8], &[u8]) = (b"CLIENT PAUSE 3600000 WRITE\r\n", b"+OK\r\n");
const NO_FENCE: (&[u8], &[u8]) = (b"", b"");

struct Server {
    child: Child,
    port: u16,
    _ports: PortBlock,
    _dir: TempDir,
}

impl Server {
    fn redis() -> Server {
        let (ports, dir) = (PortBlock::reserve(1), tempfile::tempdir().unwrap());
        let port = ports.first();
        let mut command = Command::new(programs::redis_server());
        command.args(["--port", &port.to_string(), "--save", "", "--bind", "127.0.0.1", "--dir"]);
        let child = command.arg(dir.path()).stdout(Stdio::null()).spawn().unwrap();
        wait::until("redis answers", || Redis::connect(port)?.call(&["PING"]));
        Server { child, port, _ports: ports, _dir: dir }
    }

    fn id(&self) -> InstanceId {
        InstanceId { engine: EngineId(0), port: self.port }
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Clients that write as fast as they can; when the last write was acknowledged.
    fn writes(&self) -> Arc<Mutex<Instant>> {
        let last = Arc::new(Mutex::new(Instant::now()));
        let (noted, mut client) = (last.clone(), Redis::connect(self.port).unwrap());
        thread::spawn(move || {
            while client.call(&["INCR", "writes"]).is_ok() {
                *noted.lock().unwrap() = Instant::now();
            }
        });
        last
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A state directory whose path is longer than a socket's address; its fencer ends with it.
struct Place {
    dir: TempDir,
    fencers: Vec<u32>,
}

impl Place {
    fn new() -> Place {
        let place = Place { dir: tempfile::tempdir().unwrap(), fencers: Vec::new() };
        fs::create_dir_all(place.state_dir()).unwrap();
        place
    }

    fn state_dir(&self) -> PathBuf {
        self.dir.path().join("a-folder-with-a-long-name".repeat(6))
    }

    fn agent(&self) -> Agent {
        let fencer = Fencer::new(self.state_dir(), programs::yagent());
        let (news, fenced, disarmed) = (Vec::new(), Vec::new(), Vec::new());
        Agent { poll: Poll::new().unwrap(), fencer, news, fenced, disarmed }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for pid in &self.fencers {
            signal(*pid, Signal::KILL);
        }
    }
}

struct Agent {
    poll: Poll,
    fencer: Fencer,
    news: Vec<(InstanceId, bool)>,
    fenced: Vec<(InstanceId, Fencing)>,
    disarmed: Vec<String>,
}

impl Agent {
    fn arm(&mut self, server: &Server, fence: (&[u8], &[u8])) {
        let address = SocketAddr::from(([127, 0, 0, 1], server.port));
        self.arm_at(server.id(), server.pid(), address, fence);
    }

    fn arm_at(&mut self, id: InstanceId, pid: u32, address: SocketAddr, fence: (&[u8], &[u8])) {
        let (send, expect, within) = (fence.0.to_vec(), fence.1.to_vec(), WITHIN);
        let means = Means { address, send, expect, within };
        self.fencer.arm(&mut self.poll, id, &format!("redis:{}", id.port), Pid(pid), means);
    }

    /// Armed and acknowledged; the fencer is remembered so that it ends with the test.
    fn stand_by(&mut self, place: &mut Place, server: &Server, fence: (&[u8], &[u8])) -> u32 {
        self.arm(server, fence);
        self.until("a fencer stands by", |agent| agent.news.contains(&(server.id(), true)));
        let pid = self.fencer.pid().unwrap().0;
        place.fencers.push(pid);
        pid
    }

    fn lease(&mut self, server: &Server) -> Instant {
        let until = Instant::now() + LEASE;
        self.fencer.lease(server.id(), Some(until));
        until
    }

    fn turn(&mut self) {
        let mut ready = Vec::new();
        let now = Instant::now();
        let due = self.fencer.next_deadline().map(|at| at.saturating_duration_since(now));
        let longest = Duration::from_millis(20);
        self.poll.wait(due.map_or(longest, |due| due.min(longest)), &mut ready).unwrap();
        for ready in ready {
            self.fencer.ready(&mut self.poll, ready);
        }
        self.fencer.tick(&mut self.poll, Instant::now());
        self.news.extend(std::iter::from_fn(|| self.fencer.news()));
        self.fenced.extend(std::iter::from_fn(|| self.fencer.fenced()));
        self.disarmed.extend(std::iter::from_fn(|| self.fencer.disarmed()));
    }

    fn until(&mut self, what: &str, accept: impl Fn(&Agent) -> bool) {
        let begun = Instant::now();
        while !accept(self) {
            assert!(begun.elapsed() < DEADLINE, "{what}: {:?} {:?}", self.news, self.fenced);
            self.turn();
        }
    }
}

/// Waits for the writes to end and looks at when they did.
fn no_write_after(writes: &Mutex<Instant>, limit: Instant) {
    wait::until("the writes end", || {
        let last = *writes.lock().unwrap();
        wait::check(last.elapsed() > Duration::from_secs(1), || format!("the last {:?} ago", last.elapsed()))
    });
    let last = *writes.lock().unwrap();
    assert!(last <= limit, "{:?} too late", last - limit);
}

fn releases(server: &Server) {
    let mut client = Redis::connect(server.port).unwrap();
    client.call(&["CLIENT", "UNPAUSE"]).unwrap();
    client.call(&["SET", "a", "b"]).unwrap();
}

#[test]
fn a_fed_master_is_left_alone_and_an_unfed_one_is_fenced() {
    let (mut place, server) = (Place::new(), Server::redis());
    let mut agent = place.agent();
    agent.stand_by(&mut place, &server, PAUSE);
    let (writes, begun) = (server.writes(), Instant::now());
    let mut until = agent.lease(&server);
    while begun.elapsed() < 4 * LEASE {
        agent.turn();
        until = agent.lease(&server);
    }
    assert_eq!(agent.fenced, []);
    assert!(writes.lock().unwrap().elapsed() < LEASE);
    // A stopped agent is one that says nothing while its socket stays open.
    no_write_after(&writes, until + WITHIN);
    assert!(Instant::now() >= until);
    agent.until("the agent is told", |agent| agent.fenced.contains(&(server.id(), Fencing::Fenced)));
    agent.lease(&server);
    releases(&server);
    assert!(alive(server.pid()));
}

#[test]
fn a_dead_agents_master_is_fenced_and_the_next_agent_adopts_the_fencer() {
    let (mut place, server) = (Place::new(), Server::redis());
    let mut agent = place.agent();
    let pid = agent.stand_by(&mut place, &server, PAUSE);
    assert_eq!(process::stat(pid).unwrap().session, pid);
    assert_eq!(process::environment(pid), "");
    let (writes, until) = (server.writes(), agent.lease(&server));
    drop(agent);
    no_write_after(&writes, until + WITHIN);

    let mut next = place.agent();
    assert_eq!(next.stand_by(&mut place, &server, PAUSE), pid);
    next.until("it is told", |agent| agent.fenced.contains(&(server.id(), Fencing::Fenced)));
    next.lease(&server);
    releases(&server);
}

#[test]
fn an_agent_that_only_arms_does_not_loosen_the_lease_of_the_one_before() {
    let (mut place, server) = (Place::new(), Server::redis());
    let mut agent = place.agent();
    agent.stand_by(&mut place, &server, PAUSE);
    let (writes, until) = (server.writes(), agent.lease(&server));
    drop(agent);
    place.agent().stand_by(&mut place, &server, PAUSE);
    no_write_after(&writes, until + WITHIN);
}

#[test]
fn a_lease_that_comes_in_the_midst_of_a_fence_ends_in_word_of_the_fence() {
    let (mut place, server) = (Place::new(), Server::redis());
    let mut agent = place.agent();
    agent.stand_by(&mut place, &server, PAUSE);
    agent.lease(&server);
    signal(server.pid(), Signal::STOP);
    agent.until("it is being fenced", |agent| agent.fenced.contains(&(server.id(), Fencing::Begun)));
    agent.fencer.lease(server.id(), Some(Instant::now() + DEADLINE));
    signal(server.pid(), Signal::CONT);
    agent.until("the agent is told", |agent| agent.fenced.contains(&(server.id(), Fencing::Fenced)));
    releases(&server);
}

#[test]
fn a_fencer_that_comes_late_reads_what_it_was_told_before_it_judges() {
    let (mut place, server) = (Place::new(), Server::redis());
    let mut agent = place.agent();
    let pid = agent.stand_by(&mut place, &server, PAUSE);
    let first = agent.lease(&server);
    signal(pid, Signal::STOP);
    agent.until("the lease is over", |_| Instant::now() > first);
    let until = Instant::now() + 3 * LEASE;
    agent.fencer.lease(server.id(), Some(until));
    signal(pid, Signal::CONT);
    agent.until("it is fenced", |agent| !agent.fenced.is_empty());
    assert!(Instant::now() >= until, "by the lease that was over");
}

#[test]
fn what_the_next_agent_does_not_guard_is_let_go() {
    let (mut place, server) = (Place::new(), Server::redis());
    let mut agent = place.agent();
    agent.stand_by(&mut place, &server, PAUSE);
    let (writes, until) = (server.writes(), agent.lease(&server));
    drop(agent);
    let mut next = place.agent();
    next.fencer.let_go(&mut next.poll, format!("redis:{}", server.port), true);
    next.until("the fencer had it", |agent| !agent.disarmed.is_empty());
    next.until("the time for a fence is over", |_| *writes.lock().unwrap() > until + LEASE);
    next.fencer.let_go(&mut next.poll, "redis:1".to_owned(), true);
    assert_eq!(next.disarmed, [format!("redis:{}", server.port)]);
}

#[test]
fn a_master_that_becomes_a_replica_is_left_alone() {
    let (mut place, server) = (Place::new(), Server::redis());
    let mut agent = place.agent();
    agent.stand_by(&mut place, &server, PAUSE);
    let until = agent.lease(&server);
    agent.fencer.lease(server.id(), None);
    agent.until("its lease would have run out", |_| Instant::now() > until + LEASE);
    assert_eq!(agent.fenced, []);
}

#[test]
fn a_stopped_master_is_killed() {
    let (mut place, server) = (Place::new(), Server::redis());
    let mut agent = place.agent();
    agent.stand_by(&mut place, &server, PAUSE);
    signal(server.pid(), Signal::STOP);
    let until = agent.lease(&server);
    drop(agent);
    wait_gone(server.pid());
    assert!(Instant::now() >= until);
}

#[test]
fn a_master_that_knows_no_fence_is_killed() {
    let (mut place, server) = (Place::new(), Server::redis());
    let mut agent = place.agent();
    agent.stand_by(&mut place, &server, NO_FENCE);
    let until = agent.lease(&server);
    agent.until("it is gone", |agent| agent.news.contains(&(server.id(), false)));
    assert!(Instant::now() >= until);
    assert!(!alive(server.pid()));
    assert_eq!(agent.fenced, [(server.id(), Fencing::Killed)]);
}

#[test]
fn a_master_that_refuses_the_fence_is_killed() {
    let (mut place, server) = (Place::new(), Server::redis());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut asked = vec![0; PAUSE.0.len()];
        stream.read_exact(&mut asked).unwrap();
        stream.write_all(b"-ERR unknown command\r\n").unwrap();
    });
    let mut agent = place.agent();
    agent.arm_at(server.id(), server.pid(), address, PAUSE);
    agent.stand_by(&mut place, &server, PAUSE);
    agent.arm_at(server.id(), server.pid(), address, PAUSE);
    agent.lease(&server);
    agent.until("it is gone", |agent| agent.news.contains(&(server.id(), false)));
    assert_eq!(agent.fenced, [(server.id(), Fencing::Begun), (server.id(), Fencing::Killed)]);
}

#[test]
fn a_fencer_that_dies_is_replaced_and_knows_the_lease() {
    replaced(Signal::KILL);
}

#[test]
fn a_fencer_that_hangs_is_replaced_and_knows_the_lease() {
    replaced(Signal::STOP);
}

fn replaced(how: Signal) {
    let (mut place, server) = (Place::new(), Server::redis());
    let mut agent = place.agent();
    let pid = agent.stand_by(&mut place, &server, PAUSE);
    let until = Instant::now() + DEADLINE;
    agent.fencer.lease(server.id(), Some(until));
    signal(pid, how);
    agent.until("the agent knows", |agent| agent.news.last() == Some(&(server.id(), false)));
    let new = agent.stand_by_again(&mut place, &server);
    assert_ne!(new, pid);
    assert!(!alive(pid));
    let (writes, until) = (server.writes(), agent.lease(&server));
    drop(agent);
    no_write_after(&writes, until + WITHIN);
}

impl Agent {
    fn stand_by_again(&mut self, place: &mut Place, server: &Server) -> u32 {
        self.until("a fencer stands by again", |agent| agent.news.last() == Some(&(server.id(), true)));
        let pid = self.fencer.pid().unwrap().0;
        place.fencers.push(pid);
        pid
    }
}

#[test]
fn a_thousand_servers_are_armed_at_once() {
    let (mut place, server) = (Place::new(), Server::redis());
    let mut agent = place.agent();
    agent.stand_by(&mut place, &server, PAUSE);
    let (long, address) = ([b'x'; 1024], SocketAddr::from(([127, 0, 0, 1], server.port)));
    for port in 1..=1000 {
        let id = InstanceId { engine: EngineId(1), port };
        agent.arm_at(id, server.pid(), address, (&long, b"+OK"));
        agent.fencer.lease(id, Some(Instant::now() + DEADLINE));
    }
    agent.until("all are armed", |agent| agent.news.len() >= 1001);
    assert!(agent.news.iter().all(|(_, stands_by)| *stands_by));
}

/// A fencer of another version, as far as it is spoken to.
fn other_fencer(place: &Place) -> OwnedFd {
    let kind = (AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC);
    let other = socket_with(kind.0, kind.1, kind.2, None).unwrap();
    let short = place.dir.path().join("other");
    std::os::unix::fs::symlink(place.state_dir(), &short).unwrap();
    bind(&other, &SocketAddrUnix::new(short.join("fencer-0.0.1.sock")).unwrap()).unwrap();
    listen(&other, 1).unwrap();
    other
}

fn is_spoken_to(other: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(other, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())).unwrap() > 0
}

fn is_retired(other: &OwnedFd) {
    let told = accept(other).unwrap();
    let mut frame = [0; 64];
    let (_, len) = recv(&told, &mut frame[..], RecvFlags::empty()).unwrap();
    assert_eq!(&frame[..len], RETIRE);
}

#[test]
fn a_fencer_of_another_version_is_retired_once_this_one_stands_by() {
    let (mut place, server) = (Place::new(), Server::redis());
    let other = other_fencer(&place);
    let mut agent = place.agent();
    agent.stand_by(&mut place, &server, PAUSE);
    agent.turn();
    is_retired(&other);
}

#[test]
fn a_server_that_tells_nothing_is_guarded_before_the_fencer_of_another_version_is_retired() {
    let (mut place, server, silent) = (Place::new(), Server::redis(), Server::redis());
    let other = other_fencer(&place);
    let mut agent = place.agent();
    let address = SocketAddr::from(([127, 0, 0, 1], silent.port));
    let (key, pid) = (format!("redis:{}", silent.port), Some(Pid(silent.pid())));
    agent.fencer.await_guard(silent.id(), Unguarded { key, address, within: WITHIN, pid });
    let not_started = InstanceId { engine: EngineId(0), port: 1 };
    let server_to_come = Unguarded { key: "redis:1".to_owned(), address, within: WITHIN, pid: None };
    agent.fencer.await_guard(not_started, server_to_come);
    agent.stand_by(&mut place, &server, PAUSE);
    agent.turn();
    assert!(!is_spoken_to(&other));
    agent.until("the silent one is guarded", |agent| agent.news.contains(&(silent.id(), true)));
    agent.turn();
    is_retired(&other);
    // What the other one did in the end is not known.
    assert!(agent.fenced.contains(&(server.id(), Fencing::Fenced)), "{:?}", agent.fenced);
    // Nobody says that the silent one may take writes: what could have been its lease is over, but not at once.
    wait::holds_for(Duration::from_secs(2), "it lives", || {
        agent.fencer.lease(server.id(), Some(Instant::now() + DEADLINE));
        agent.turn();
        wait::check(alive(silent.pid()), || "it does not".to_owned())
    });
    wait::until("it is killed", || {
        agent.fencer.lease(server.id(), Some(Instant::now() + DEADLINE));
        agent.turn();
        wait::check(!alive(silent.pid()), || "it lives".to_owned())
    });
    assert!(alive(server.pid()));
}

#[test]
fn a_fencer_with_nothing_to_guard_ends() {
    let (mut place, server) = (Place::new(), Server::redis());
    let mut agent = place.agent();
    let pid = agent.stand_by(&mut place, &server, PAUSE);
    drop(agent);
    drop(server);
    wait_gone(pid);
    assert!(
        fs::read_dir(place.state_dir())
            .unwrap()
            .all(|entry| { !entry.unwrap().file_name().to_string_lossy().ends_with(".sock") })
    );
}
