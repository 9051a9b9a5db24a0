//! The plugin against real redis servers, started as the plugin itself says.
//!
//! What is expected depends on the server's version, for `YAGENT_TEST_REDIS` may name any: see `program`.
#![allow(clippy::unwrap_used)]

mod program;
mod shard;
mod troubles;

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;
use yagent_abi::{
    raw,
    testing::{Harness, Hook, Told},
};
use yagent_redis::Redis;

/// As 3.2 says it, and as later ones do.
const READY: &str = "eady to accept connections";

/// A running server, killed at the end.
struct Server {
    child: Child,
    port: u16,
    backend: Harness,
    dir: String,
}

impl Server {
    /// Starts a server below `state` and waits until it logs `wanted`.
    fn start_until(state: &Path, conf: &str, redis_args: &str, wanted: &str) -> Self {
        let port = free_port();
        Self::start_at(state, port, conf, redis_args, wanted)
    }

    fn start_at(state: &Path, port: u16, conf: &str, redis_args: &str, wanted: &str) -> Self {
        Self::start_with(backend(state, port, conf, redis_args, &[]), port, wanted)
    }

    fn start_with(mut backend: Harness, port: u16, wanted: &str) -> Self {
        let plan = backend.plan().unwrap();
        let dir = plan.texts("dir")[0].clone();
        std::fs::create_dir_all(&dir).unwrap();
        let mut child = Command::new(&plan.texts("program")[0])
            .args(plan.texts("argv"))
            .current_dir(&plan.texts("cwd")[0])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| {
                panic!("cannot run {}: {error}; install the Debian package redis-server", program::path())
            });
        await_line(&mut child, wanted);
        Self { child, port, backend, dir }
    }

    fn start(state: &Path, conf: &str) -> Self {
        Self::start_until(state, conf, "", READY)
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    }

    fn ask(&mut self, hook: Hook, args: &[(&str, &str)]) -> Result<Told, String> {
        let mut stream = self.connect();
        self.backend.converse(hook, true, args, &mut stream)
    }

    fn health(&mut self) -> (u32, String) {
        self.ask(Hook::Probe, &[]).unwrap().health.unwrap()
    }

    /// Sends inline commands and reads until that many lines have come.
    fn talk(&self, commands: &str, lines: usize) -> Vec<String> {
        talk(&mut self.connect(), commands, lines)
    }

    /// What INFO has in a section.
    fn info(&self, section: &str) -> String {
        let (mut stream, mut text) = (self.connect(), String::new());
        stream.write_all(format!("INFO {section}\r\nQUIT\r\n").as_bytes()).unwrap();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    fn inspect(&mut self) -> Told {
        self.ask(Hook::Inspect, &[]).unwrap()
    }

    /// As [`ask`](Self::ask) for what needs a pause of writes, which a version without says. Whether it has it.
    fn ask_pause(&mut self, hook: Hook, args: &[(&str, &str)]) -> bool {
        let answer = self.ask(hook, args);
        if program::pauses_writes() {
            answer.unwrap();
        } else {
            assert_eq!(answer.unwrap_err(), "unsupported");
        }
        program::pauses_writes()
    }

    /// Inspects until it is so. Replication tells nobody of its progress, so it has to be asked for.
    fn inspect_until(&mut self, what: &str, is_so: impl Fn(&Told) -> bool) -> Told {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let told = self.inspect();
            if is_so(&told) {
                return told;
            }
            assert!(Instant::now() < deadline, "not {what} in time: {told:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn talk(stream: &mut TcpStream, commands: &str, lines: usize) -> Vec<String> {
    stream.write_all(commands.as_bytes()).unwrap();
    let (mut answer, mut buffer) = (String::new(), [0; 4096]);
    while answer.matches("\r\n").count() < lines {
        let len = stream.read(&mut buffer).unwrap();
        assert_ne!(len, 0, "the server closed after {answer}");
        answer += std::str::from_utf8(&buffer[..len]).unwrap();
    }
    answer.lines().map(str::to_owned).collect()
}

fn backend(state: &Path, port: u16, conf: &str, redis_args: &str, more: &[(&str, &str)]) -> Harness {
    let file = state.join(format!("redis-{port}.conf"));
    std::fs::write(&file, conf).unwrap();
    let (port, program) = (port.to_string(), program::path());
    let usual = [
        ("redis_conf", file.to_str().unwrap()),
        ("redis_conf.content", conf),
        ("redis_args", redis_args),
        ("program", &program),
        ("port", &port),
        ("maxmem_mb", "32"),
        ("bind", "127.0.0.1"),
        ("state_dir", state.to_str().unwrap()),
    ];
    let settings: Vec<_> = usual.iter().chain(more).map(|(name, value)| (*name, value.as_bytes())).collect();
    Harness::replicated::<Redis>(&settings).unwrap()
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Waits for a line on the child's standard output, and goes on reading it so that it never blocks.
fn await_line(child: &mut Child, wanted: &str) {
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut seen = Vec::new();
    let found = lines.by_ref().map_while(Result::ok).any(|line| {
        seen.push(line);
        seen.last().is_some_and(|line| line.contains(wanted))
    });
    assert!(found, "redis ended without `{wanted}`:\n{}", seen.join("\n"));
    std::thread::spawn(move || lines.for_each(drop));
}

fn serving() -> (u32, String) {
    (raw::SERVING, String::new())
}

fn state() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn a_conf_made_for_one_server_starts_two_that_share_no_file() {
    let state = state();
    let conf = "daemonize yes\nsupervised systemd\nport 0\nbind 0.0.0.0\npidfile /run/redis/redis-server.pid\n\
                logfile /var/log/redis/redis-server.log\ndir /var/lib/redis\nunixsocket /run/redis/redis.sock\n\
                appendonly yes\nmaxmemory 1gb\nmaxclients 200\n";
    let conf = &format!("{conf}{}", if program::has_aof_folders() { "appenddirname aof\n" } else { "" });
    let mut servers = [Server::start(state.path(), conf), Server::start(state.path(), conf)];
    let mut files = BTreeSet::new();
    let mut count = 0;
    for server in &mut servers {
        assert_eq!(server.health(), serving());
        assert!(server.child.try_wait().unwrap().is_none(), "it is in the foreground");
        assert_eq!(server.talk("SET a 1\r\nSAVE\r\n", 2), ["+OK", "+OK"]);
        assert_eq!(server.talk("CONFIG GET maxmemory\r\n", 5)[4], "33554432");
        assert_eq!(server.backend.plan().unwrap().number("open_files"), Some(328.0));
        for found in std::fs::read_dir(&server.dir).unwrap() {
            files.insert(found.unwrap().path());
            count += 1;
        }
        let of_its_own = |name: String| Path::new(&server.dir).join(name).exists();
        let port = server.port;
        let names = [
            "redis.pid".into(),
            "redis.sock".into(),
            format!("dump-{port}.rdb"),
            format!("appendonly-{port}{}", if program::has_aof_folders() { "" } else { ".aof" }),
        ];
        for name in names {
            assert!(of_its_own(name.clone()), "{name}");
        }
    }
    assert_eq!(files.len(), count, "no file is in both");
}

#[test]
fn the_figures_are_those_of_what_was_done() {
    let state = state();
    let mut server = Server::start(state.path(), "");
    server.talk("SET a 1\r\nMSET b 1 c 1\r\nGET a\r\nGET x\r\nGET y\r\nDEL a\r\nDEL zz\r\n", 8);
    let told = server.ask(Hook::Stats, &[]).unwrap();
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
    assert_eq!((told.number("keys"), told.number("limit_bytes")), (Some(2.0), Some(32.0 * 1_048_576.0)));
    assert!(told.number("bytes") > Some(0.0) && told.number("connections") >= Some(1.0));
    assert_eq!((told.texts("role"), told.texts("version").len()), (vec!["master".to_owned()], 1));
    server.backend.agree_however_cut(Hook::Stats, &[], &told.received).unwrap();
}

#[test]
fn the_password_of_the_conf_is_used_on_a_fresh_connection_only() {
    let state = state();
    let conf = "requirepass \"a b\\x63\"\n";
    password_is_used_on_a_fresh_connection(Server::start(state.path(), conf));
    let mut server = Server::start_until(state.path(), "", "--requirepass 'a bc'", READY);
    assert_eq!(server.health(), serving(), "redis_args are read too");
}

fn password_is_used_on_a_fresh_connection(mut server: Server) {
    let mut stream = server.connect();
    let first = server.backend.converse(Hook::Probe, true, &[], &mut stream).unwrap();
    let second = server.backend.converse(Hook::Probe, false, &[], &mut stream).unwrap();
    assert_eq!((first.health, second.health), (Some(serving()), Some(serving())));
    assert!(
        first.sent.starts_with(b"*2\r\n$4\r\nAUTH\r\n$5\r\na bc\r\n")
            || first.sent.windows(4).any(|at| at == b"a bc")
    );
    assert!(!second.sent.windows(4).any(|at| at == b"AUTH"), "logged in once");
    assert_eq!(server.ask(Hook::Stats, &[]).unwrap().texts("version").len(), 1);
}

#[test]
fn a_password_that_the_server_does_not_ask_for_does_no_harm() {
    let state = state();
    let mut server = Server::start(state.path(), "");
    server.backend = backend(state.path(), server.port, "requirepass gone\n", "", &[]);
    assert_eq!(server.health(), serving());
}

#[test]
fn a_server_out_of_clients_is_full() {
    let state = state();
    let mut server = Server::start(state.path(), "maxclients 1\nrequirepass x\n");
    let kept = server.connect();
    talk(&mut kept.try_clone().unwrap(), "PING\r\n", 1);
    let told = server.ask(Hook::Probe, &[]).unwrap();
    let (code, why) = told.health.unwrap();
    assert_eq!((code, why.starts_with("ERR max number of clients reached (")), (raw::FULL, true), "{why}");
}

#[test]
fn a_busy_server_is_told_and_unstuck() {
    let state = state();
    let mut server = Server::start(state.path(), "lua-time-limit 10\n");
    let mut stuck = server.connect();
    stuck.write_all(b"EVAL \"while true do end\" 0\r\n").unwrap();
    // Until the time limit has passed a script answers nobody, so this waits for the first answer.
    let (code, why) = server.health();
    assert_eq!((code, why.starts_with("BUSY ")), (raw::BUSY, true), "{why}");
    let told = server.ask(Hook::Probe, &[("unstick", "1")]).unwrap();
    assert!(told.sent.windows(4).any(|at| at == b"KILL"));
    let ended = talk(&mut stuck, "", 1);
    assert!(ended[0].starts_with("-ERR Error running script") || ended[0].contains("killed"), "{ended:?}");
    assert_eq!(server.health(), serving());
}

#[test]
fn a_replica_without_its_master_still_answers() {
    let state = state();
    let nobody = free_port();
    let conf = format!("slave-serve-stale-data no\nslaveof 127.0.0.1 {nobody}\n");
    let mut server = Server::start(state.path(), &conf);
    let (code, why) = server.health();
    assert_eq!((code, why.starts_with("MASTERDOWN ")), (raw::SERVING, true), "{why}");
}

#[test]
fn renamed_commands_are_called_by_their_new_names() {
    let state = state();
    let mut server =
        Server::start(state.path(), "rename-command GET \"hidden get\"\nrename-command CLIENT \"\"\n");
    assert_eq!(server.health(), serving());
    let why = server.ask(Hook::Fence, &[("ms", "1000")]).unwrap_err();
    assert_eq!(why, "the configuration took the command CLIENT away");
}

/// What a master and its replica are told, seen from redis itself. `login` is said before anything else; `role` is what
/// ROLE is called.
fn failover(conf: &str, login: &str, role: &str) {
    let state = state();
    let conf = &format!("repl-diskless-sync-delay 0\n{conf}");
    let mut master = Server::start(state.path(), conf);
    let mut replica = Server::start(state.path(), conf);
    let lines = 1 + login.matches('\n').count();
    let say = |server: &Server, command: &str, more: usize| {
        server.talk(&format!("{login}{command}\r\n"), lines + more).split_off(lines - 1)
    };
    assert_eq!(say(&master, "SET a 1", 0), ["+OK"]);

    let port = master.port.to_string();
    replica.ask(Hook::Follow, &[("host", "127.0.0.1"), ("port", &port)]).unwrap();
    replica.inspect_until("linked", |told| told.texts("link") == ["up"] && told.number("keys") == Some(1.0));
    assert_eq!(say(&replica, role, 5)[2..6], ["slave", "$9", "127.0.0.1", &format!(":{port}")]);
    say(&master, "SET b 1", 0);
    let told = replica.inspect_until("moving on", |told| told.number("offset") > Some(0.0));
    assert_eq!(told.texts("role"), ["replica"]);
    assert_eq!(told.texts("master"), [format!("127.0.0.1:{port}")]);
    assert_eq!(
        (told.texts("syncing"), told.texts("loading")),
        (vec!["no".to_owned()], vec!["no".to_owned()])
    );
    assert_eq!(told.number("priority"), Some(100.0));
    assert!(told.number("last_io_s").is_some());
    let history = told.texts("replication_id");
    assert_eq!(history.len(), usize::from(program::has_histories()));
    let answer_alone = told.received.strip_prefix(b"+OK\r\n").unwrap_or(&told.received);
    replica.backend.agree_however_cut(Hook::Inspect, &[], answer_alone).unwrap();

    let address = format!("127.0.0.1:{} online", replica.port);
    let told = master
        .inspect_until("followed", |told| told.texts("replica").iter().any(|one| one.starts_with(&address)));
    assert_eq!((told.texts("role"), told.number("replicas")), (vec!["master".to_owned()], Some(1.0)));
    assert_eq!(told.texts("replication_id"), history);

    fence(&mut master, login, lines);

    replica.ask(Hook::Promote, &[]).unwrap();
    assert_eq!(say(&replica, role, 4)[2], "master");
    assert_eq!(say(&replica, "SET b 1", 0), ["+OK"]);
    let told = replica.inspect();
    assert_eq!((told.texts("role"), told.texts("replication_id2")), (vec!["master".to_owned()], history));
    assert_eq!(told.number("offset2") > Some(0.0), program::has_histories());

    let mut client = master.connect();
    talk(&mut client, &format!("{login}PING\r\n"), lines);
    let port = replica.port.to_string();
    master.ask(Hook::Follow, &[("host", "127.0.0.1"), ("port", &port), ("drop_clients", "1")]).unwrap();
    assert_eq!(client.read(&mut [0; 16]).unwrap(), 0, "its clients are dropped");
    master.inspect_until("linked", |told| told.texts("link") == ["up"]);
    assert!(say(&master, "SET b 1", 0)[0].starts_with("-READONLY "));
}

/// Fenced, a write waits while reads go on; unfenced, it comes through. Where writes alone cannot be paused, nothing is.
fn fence(master: &mut Server, login: &str, lines: usize) {
    let fenced = master.ask_pause(Hook::Fence, &[("ms", "60000")]);
    assert_eq!(master.health(), serving());
    let mut writer = master.connect();
    if lines > 1 {
        talk(&mut writer, login, lines - 1);
    }
    writer.write_all(b"SET b 1\r\n").unwrap();
    if fenced {
        waits(&mut writer);
    }
    master.ask_pause(Hook::Unfence, &[]);
    assert_eq!(talk(&mut writer, "", 1), ["+OK"]);
}

/// What was sent is not answered.
fn waits(writer: &mut TcpStream) {
    writer.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(writer.read(&mut [0; 16]).is_err(), "a fenced master acknowledged a write");
    writer.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
}

#[test]
fn the_orders_of_a_failover_work() {
    failover("", "", "ROLE");
}

#[test]
fn the_orders_of_a_failover_work_with_a_password() {
    failover("requirepass secret\nmasterauth secret\n", "AUTH secret\r\n", "ROLE");
}

#[test]
fn the_orders_of_a_failover_work_by_other_names() {
    let renamed = ["SLAVEOF", "ROLE", "CLIENT", "CONFIG", "INFO", "SCRIPT"];
    let conf: String = renamed.iter().map(|name| format!("rename-command {name} my{name}\n")).collect();
    failover(&conf, "", "myROLE");
}

#[test]
fn orders_without_their_arguments_are_refused() {
    let state = state();
    let mut backend = backend(state.path(), 1, "", "", &[]);
    let mut nowhere = std::io::Cursor::new(Vec::new());
    for (hook, args, why) in [
        (Hook::Follow, &[][..], "argument `host` is not set"),
        (
            Hook::Follow,
            &[("host", "h"), ("port", "x")],
            "argument `port` is `x`: invalid digit found in string",
        ),
        (Hook::Fence, &[("ms", "-1")], "argument `ms` is `-1`: invalid digit found in string"),
        (Hook::Promote, &[("fence_ms", "x")], "argument `fence_ms` is `x`: invalid digit found in string"),
    ] {
        assert_eq!(backend.converse(hook, true, args, &mut nowhere), Err(why.to_owned()));
    }
    assert!(nowhere.into_inner().is_empty(), "nothing was sent");
}
