//! A registry client in a process of its own, and what it must have made of the tree.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use yagent_tests::{
    wait::{self, DEADLINE},
    zookeeper::Kazoo,
};

/// The session timeout of most experiments.
pub(crate) const T: Duration = Duration::from_secs(3);
/// Threads of the client: three of the library, two of ours.
const MOST_THREADS: usize = 5;
/// Descriptors of the client.
const MOST_DESCRIPTORS: u64 = 12;
/// Descriptors of the process that are not the client's: the standard streams and the loop's own waker.
const OTHER_DESCRIPTORS: u64 = 4;

/// What a subject is started with.
pub(crate) fn settings(servers: &[&str], chroot: &str, host_id: &str) -> Value {
    let log = std::env::var_os("YAGENT_TEST_LOG").is_some();
    json!({"servers": servers, "chroot": chroot, "host_id": host_id, "log": log, "timeout_ms": T.as_millis() as u64})
}

/// As `settings` has it, with another session timeout.
pub(crate) fn with_timeout(timeout: Duration, mut settings: Value) -> Value {
    settings["timeout_ms"] = json!(timeout.as_millis() as u64);
    settings
}

/// The process.
pub(crate) struct Subject {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<Value>,
    cpu: (Instant, Duration),
}

impl Subject {
    /// Starts it.
    pub(crate) fn start(settings: &Value) -> Subject {
        Subject::start_under(&[], settings)
    }

    /// Starts it under another program.
    pub(crate) fn start_under(prefix: &[&str], settings: &Value) -> Subject {
        let mut words = prefix.to_vec();
        words.push(env!("CARGO_BIN_EXE_registry_subject"));
        let mut child = Command::new(words[0])
            .args(&words[1..])
            .arg(settings.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("cannot start the subject");
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().expect("no pipe"));
        let (tell, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let value = serde_json::from_str(&line).expect("the subject says no JSON");
                if tell.send(value).is_err() {
                    return;
                }
            }
        });
        Subject { child, stdin, lines, cpu: (Instant::now(), Duration::ZERO) }
    }

    fn say(&mut self, command: &Value) {
        let stdin = self.stdin.as_mut().expect("no pipe");
        writeln!(stdin, "{command}").expect("the subject has ended");
    }

    /// Hands changes in.
    pub(crate) fn apply(&mut self, changes: Vec<Value>) {
        self.say(&json!({"do": "apply", "changes": changes}));
    }

    /// Hands the tree of a host in, and which nodes are the host's own.
    pub(crate) fn keep(&mut self, host: &Host) {
        self.apply(host.changes());
        let owned = json!([{"dir": format!("{}/instances", host.path), "prefix": format!("{}:", host.ip), "suffix": ""}]);
        self.say(&json!({"do": "claim", "owned": owned}));
    }

    /// Makes requests in one burst, with tokens from `first` on.
    pub(crate) fn request(&mut self, first: u64, mut requests: Vec<Value>) {
        for (token, request) in (first..).zip(&mut requests) {
            request["token"] = token.into();
        }
        self.say(&json!({"do": "request", "requests": requests}));
    }

    /// Makes a request and waits for its answer. Events before it are passed over.
    pub(crate) fn ask(&mut self, request: Value) -> Value {
        self.request(0, vec![request]);
        self.event("answered")["answer"].take()
    }

    /// Begins a close that leaves the session.
    pub(crate) fn leave(&mut self) {
        self.say(&json!({"do": "leave"}));
    }

    /// Begins a close.
    pub(crate) fn close(&mut self) {
        self.say(&json!({"do": "close"}));
    }

    fn line(&mut self, deadline: Instant) -> Option<Value> {
        match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => panic!("the subject has ended: {:?}", self.child.wait()),
        }
    }

    /// The next line that it says.
    pub(crate) fn next(&mut self) -> Value {
        self.line(Instant::now() + DEADLINE).expect("the subject says nothing")
    }

    /// The next event of this name; others before it are passed over.
    pub(crate) fn event(&mut self, name: &str) -> Value {
        let deadline = Instant::now() + DEADLINE;
        let mut passed = Vec::new();
        while let Some(line) = self.line(deadline) {
            if line["event"] == name {
                return line;
            }
            passed.push(line.to_string());
        }
        panic!("no event {name:?} within {DEADLINE:?}, only {passed:?}");
    }

    /// Events that have come so far, by name.
    pub(crate) fn events_so_far(&mut self) -> Vec<String> {
        let mut names = Vec::new();
        while let Ok(line) = self.lines.try_recv() {
            names.extend(line["event"].as_str().map(str::to_owned));
        }
        names
    }

    /// What it measures of itself. Events before it are passed over.
    pub(crate) fn measure(&mut self) -> Value {
        self.say(&json!({"do": "measure"}));
        let deadline = Instant::now() + DEADLINE;
        while let Some(line) = self.line(deadline) {
            if line.get("measured").is_some() {
                return line;
            }
        }
        panic!("the subject does not answer");
    }

    /// Waits until a request that was sent from now on is answered: the connection of before may have gone unnoticed.
    pub(crate) fn await_answered(&mut self) {
        let begun = Instant::now();
        wait::until("a new request is answered", || {
            let measured = self.measure();
            let sent = measured["acknowledged_ms_ago"].as_u64().map(Duration::from_millis);
            wait::check(sent.is_some_and(|ago| ago < begun.elapsed()), || measured.to_string())
        });
    }

    /// One figure of its status.
    pub(crate) fn figure(&mut self, name: &str) -> u64 {
        self.measure()["measured"][name].as_u64().unwrap_or_else(|| panic!("no figure {name}"))
    }

    /// Its session; 0 without one.
    pub(crate) fn session(&mut self) -> i64 {
        session_of(&self.measure())
    }

    /// Its process.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("cannot signal the subject");
    }

    /// Ends it without a close.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("cannot kill the subject");
        self.child.wait().expect("cannot wait for the subject");
    }

    /// From here on, CPU time is counted.
    pub(crate) fn count_cpu(&mut self) {
        self.cpu = (Instant::now(), cpu(&self.measure()));
    }

    /// Threads, descriptors, CPU time since `count_cpu` and the calls that must not block are within their bounds.
    pub(crate) fn check_budget(&mut self) {
        // A client that is just being replaced shows both for a moment.
        let measured = wait::until("threads and descriptors are within the budget", || {
            let measured = self.measure();
            let within = threads(&measured) <= MOST_THREADS && descriptors(&measured) <= MOST_DESCRIPTORS;
            if within { Ok(measured) } else { Err(measured) }
        });
        let (wall, used) = (self.cpu.0.elapsed(), cpu(&measured).saturating_sub(self.cpu.1));
        let allowed = wall / 5 + Duration::from_millis(200);
        assert!(used < allowed, "{used:?} of CPU time in {wall:?}");
        let slowest = measured["slowest_call_us"].as_u64().expect("no figure");
        assert!(slowest < 250_000, "a call that must not block was blocked for {slowest} us");
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn session_of(measured: &Value) -> i64 {
    let text = measured["measured"]["session"].as_str().unwrap_or_default();
    i64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap_or_default()
}

fn cpu(measured: &Value) -> Duration {
    Duration::from_millis(measured["cpu_ms"].as_u64().expect("no figure"))
}

/// The main thread and a resolver at work are not the client's own.
fn threads(measured: &Value) -> usize {
    let names = measured["threads"].as_array().expect("no threads");
    names.iter().filter(|name| *name != "zk-resolve").count() - 1
}

fn descriptors(measured: &Value) -> u64 {
    measured["descriptors"].as_u64().expect("no figure") - OTHER_DESCRIPTORS
}

/// A host's desired tree, much like the agent's.
#[derive(Clone)]
pub(crate) struct Host {
    pub(crate) ip: String,
    /// Path of its node, below the chroot.
    pub(crate) path: String,
    /// Path of its ephemeral, below the chroot.
    pub(crate) active: String,
    /// Content by path, and whether it is ephemeral.
    pub(crate) nodes: BTreeMap<String, (String, bool)>,
}

impl Host {
    /// A host with three instances.
    pub(crate) fn new(ip: &str, host_id: &str, nonce: &str) -> Host {
        let path = format!("/ycache/servers/{ip}");
        let active = format!("{path}/active");
        let mut nodes = BTreeMap::new();
        nodes.insert(path.clone(), (json!({"v": 1, "group": "default"}).to_string(), false));
        nodes.insert(format!("{path}/info"), (json!({"v": 1, "keys": 5}).to_string(), false));
        nodes.insert(active.clone(), (json!({"host_id": host_id, "nonce": nonce}).to_string(), true));
        for port in [11211, 11221, 11231] {
            let instance = format!("{path}/instances/{ip}:{port}");
            nodes.insert(instance.clone(), (json!({"v": 1, "port": port}).to_string(), false));
            nodes.insert(format!("{instance}/info"), (json!({"v": 1, "keys": port}).to_string(), false));
        }
        Host { ip: ip.to_owned(), path, active, nodes }
    }

    /// The whole tree as changes.
    pub(crate) fn changes(&self) -> Vec<Value> {
        let put = |(path, (content, ephemeral)): (&String, &(String, bool))| json!({"path": path, "content": content, "ephemeral": ephemeral});
        self.nodes.iter().map(put).collect()
    }

    /// Waits until another client sees exactly this tree, the ephemeral owned by the subject's session.
    pub(crate) fn await_whole(&self, kazoo: &mut Kazoo, chroot: &str, subject: &mut Subject) {
        wait::until("the tree is whole", || {
            let measured = subject.measure();
            match measured["measured"]["state"].as_str() {
                Some("connected") => self.compare(kazoo, chroot, session_of(&measured)),
                state => Err(format!("the subject is {state:?}")),
            }
            .map_err(|why| format!("{why}; {measured}"))
        });
    }

    fn compare(&self, kazoo: &mut Kazoo, chroot: &str, session: i64) -> Result<(), String> {
        let found = kazoo.tree(&format!("{chroot}{}", self.path))?;
        for (path, (content, ephemeral)) in &self.nodes {
            let node = found.get(&format!("{chroot}{path}")).ok_or(format!("{path} is missing"))?;
            let owner = if *ephemeral { session } else { 0 };
            if node.content != *content || node.owner != owner {
                return Err(format!("{path} is {node:?}, session {session}"));
            }
        }
        let desired = self.nodes.len() + 1; // and the parent of the instances
        if found.len() == desired {
            Ok(())
        } else {
            Err(format!("{} nodes instead of {desired}", found.len()))
        }
    }
}
