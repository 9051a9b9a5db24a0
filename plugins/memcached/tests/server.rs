//! The plugin against real memcached servers, started as the plugin itself says.
#![allow(clippy::unwrap_used)]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::Duration,
};

use yagent_abi::{
    raw,
    testing::{Harness, Hook, Told},
};
use yagent_memcached::Memcached;

const PROGRAM: &str = "/usr/bin/memcached";

/// A running server, killed at the end.
struct Server {
    child: Child,
    port: u16,
    backend: Harness,
}

impl Server {
    fn start(mc_args: &str) -> Self {
        // Two of -v make memcached tell on standard error when it listens.
        let port = free_port();
        let mut backend = backend(port, &format!("{mc_args} -vv"));
        let plan = backend.plan().unwrap();
        let mut child = Command::new(&plan.texts("program")[0])
            .args(plan.texts("argv"))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| {
                panic!("cannot run {PROGRAM}: {error}; install the Debian package memcached")
            });
        await_line(&mut child, "server listening");
        Self { child, port, backend }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    }

    fn ask(&mut self, hook: Hook) -> Result<Told, String> {
        let mut stream = self.connect();
        self.backend.converse(hook, true, &[], &mut stream)
    }

    /// Sends lines and reads until `end`.
    fn talk(&self, lines: &str, end: &str) {
        let mut stream = self.connect();
        stream.write_all(lines.as_bytes()).unwrap();
        let (mut answer, mut buffer) = (String::new(), [0; 1024]);
        while !answer.ends_with(end) {
            let len = stream.read(&mut buffer).unwrap();
            assert_ne!(len, 0, "the server closed after {answer}");
            answer += std::str::from_utf8(&buffer[..len]).unwrap();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn backend(port: u16, mc_args: &str) -> Harness {
    Harness::new::<Memcached>(&[
        ("mc_args", mc_args.as_bytes()),
        ("program", PROGRAM.as_bytes()),
        ("port", port.to_string().as_bytes()),
        ("maxmem_mb", b"8"),
        ("bind", b"127.0.0.1"),
    ])
    .unwrap()
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Waits for a line on the child's standard error, and goes on reading it so that it never blocks.
fn await_line(child: &mut Child, wanted: &str) {
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let found = lines.by_ref().map_while(Result::ok).any(|line| line.contains(wanted));
    assert!(found, "memcached ended without `{wanted}`");
    std::thread::spawn(move || lines.for_each(drop));
}

#[test]
fn the_plan_starts_a_server_that_stays_a_child_and_answers() {
    let mut server = Server::start("-u nobody -d -c 100 -o tail_repair_time=7200 slab_reassign");
    let told = server.ask(Hook::Probe).unwrap();
    assert_eq!(told.health, Some((raw::SERVING, String::new())));
    assert!(server.child.try_wait().unwrap().is_none(), "it is in the foreground");
    let plan = server.backend.plan().unwrap();
    assert_eq!(plan.texts("drops_to"), ["nobody"]);
    assert_eq!(plan.number("open_files"), Some(356.0));
}

#[test]
fn the_figures_are_those_of_what_was_done() {
    let mut server = Server::start("-u nobody");
    server.talk(
        "set a 0 0 1\r\nx\r\nset b 0 0 1\r\ny\r\nget a\r\nget c\r\nget d\r\ndelete a\r\ndelete z\r\n",
        "NOT_FOUND\r\n",
    );
    let told = server.ask(Hook::Stats).unwrap();
    for (name, expected) in [
        ("gets", 3.0),
        ("hits", 1.0),
        ("sets", 2.0),
        ("deletes", 2.0),
        ("evictions", 0.0),
        ("expirations", 0.0),
    ] {
        assert_eq!(told.number(name), Some(expected), "{name}");
    }
    assert_eq!((told.number("keys"), told.number("limit_bytes")), (Some(1.0), Some(8.0 * 1_048_576.0)));
    assert!(told.number("bytes") > Some(0.0) && told.number("connections") >= Some(1.0));
    assert_eq!(told.texts("version").len(), 1);
    let answer = told.received;
    server.backend.agree_however_cut(Hook::Stats, &[], &answer).unwrap();
}

#[test]
fn a_hit_and_a_miss_are_answers_on_one_kept_connection() {
    let mut server = Server::start("-u nobody");
    let mut stream = server.connect();
    let miss = server.backend.converse(Hook::Probe, true, &[], &mut stream).unwrap();
    server.talk("set yagent:probe 5 0 11\r\nx\r\nEND\r\nyyy\r\n", "STORED\r\n");
    let hit = server.backend.converse(Hook::Probe, false, &[], &mut stream).unwrap();
    assert_eq!(
        (miss.health, hit.health),
        (Some((raw::SERVING, String::new())), Some((raw::SERVING, String::new())))
    );
    for answer in [miss.received, hit.received] {
        server.backend.agree_however_cut(Hook::Probe, &[], &answer).unwrap();
    }
}

#[test]
fn a_server_out_of_connections_is_full() {
    let mut server = Server::start("-u nobody -t 1 -c 16");
    // The first may be accepted though it is the last; each is kept open until one is turned away.
    let mut kept = Vec::new();
    let found = loop {
        let mut stream = server.connect();
        let told = server.backend.converse(Hook::Probe, true, &[], &mut stream).unwrap();
        kept.push(stream);
        if told.health != Some((raw::SERVING, String::new())) || kept.len() > 100 {
            break told;
        }
    };
    assert_eq!(found.health, Some((raw::FULL, "ERROR Too many open connections".to_owned())));
    server.backend.agree_however_cut(Hook::Probe, &[], &found.received).unwrap();
}

#[test]
fn a_server_that_wants_a_password_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("users");
    std::fs::write(&file, "user:secret\n").unwrap();
    let mut server = Server::start(&format!("-u root -Y {}", file.display()));
    let told = server.ask(Hook::Probe).unwrap();
    assert_eq!(told.health, Some((raw::REFUSED, "CLIENT_ERROR unauthenticated".to_owned())));
    server.backend.agree_however_cut(Hook::Probe, &[], &told.received).unwrap();
}

#[test]
fn what_is_no_memcached_is_wrong() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let answer = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"SSH-2.0-OpenSSH_9.2p1\r\n").unwrap();
        // Held until the other side has seen it: a reset would take the answer with it.
        let _ = stream.read(&mut [0; 64]);
        let _ = stream.read(&mut [0; 64]);
    });
    let mut stream = TcpStream::connect(address).unwrap();
    let told = backend(1, "").converse(Hook::Probe, true, &[], &mut stream).unwrap();
    drop(stream);
    answer.join().unwrap();
    let why = "the answer `SSH-2.0-OpenSSH_9.2p1` is not memcached's".to_owned();
    assert_eq!(told.health, Some((raw::WRONG, why)));
}
