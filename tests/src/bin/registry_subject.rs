//! A process with nothing in it but the registry client, for experiments on it: commands come as lines of JSON on
//! standard input, events and answers leave as lines of JSON. It measures itself: threads, descriptors, CPU time, and
//! how long the calls that must not block were blocked.

use std::{
    env, fs,
    io::{self, Write},
    os::fd::AsFd,
    process::ExitCode,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    time::{ClockId, clock_gettime},
};
use serde_json::{Value, json};
use yagent::{
    config::ZookeeperSettings,
    shell::{
        registry::{self, Answer, Change, Identity, Mode, Node, Owned, Registry, RegistryEvent, Request},
        waker::Waker,
    },
};

fn main() -> ExitCode {
    match Subject::start().and_then(Subject::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("registry_subject: {e}");
            ExitCode::FAILURE
        }
    }
}

struct Subject {
    registry: Box<dyn Registry>,
    waker: Waker,
    slowest: Duration,
    /// CPU time of the calls into the client.
    calls: Duration,
    told_closed: bool,
}

impl Subject {
    fn start() -> io::Result<Subject> {
        let argument = env::args().nth(1).ok_or_else(|| io::Error::other("no settings given"))?;
        let settings: Value = serde_json::from_str(&argument)?;
        if settings["log"] == json!(true) {
            log_to_stderr();
        }
        let zookeeper = ZookeeperSettings {
            servers: strings(&settings["servers"]),
            chroot: text(&settings["chroot"]),
            session_timeout: Duration::from_millis(settings["timeout_ms"].as_u64().unwrap_or(6000)),
            auth: settings["auth"].as_str().map(str::to_owned),
        };
        let waker = Waker::new()?;
        let identity = Identity { host_id: text(&settings["host_id"]) };
        let registry = registry::zookeeper(&zookeeper, identity, waker.clone())?;
        Ok(Subject { registry, waker, slowest: Duration::ZERO, calls: Duration::ZERO, told_closed: false })
    }

    fn run(mut self) -> io::Result<()> {
        let stdin = io::stdin();
        let mut lines = Lines::default();
        loop {
            let mut fds = [PollFd::new(&self.waker, PollFlags::IN), PollFd::new(&stdin, PollFlags::IN)];
            poll(&mut fds, None)?;
            let (woken, asked) = (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
            if woken {
                self.waker.drain();
                self.tell_events()?;
            }
            if asked && !lines.fill(&stdin)? {
                return Ok(());
            }
            while let Some(line) = lines.next() {
                self.obey(&serde_json::from_str(&line)?)?;
            }
        }
    }

    fn tell_events(&mut self) -> io::Result<()> {
        while let Some(event) = self.timed(|registry| registry.event()) {
            say(&describe(&event))?;
        }
        if !self.told_closed && self.timed(|registry| registry.closed()) {
            self.told_closed = true;
            say(&json!({"event": "closed"}))?;
        }
        Ok(())
    }

    fn obey(&mut self, command: &Value) -> io::Result<()> {
        match command["do"].as_str() {
            Some("apply") => {
                let changes = list(&command["changes"]).iter().map(change).collect();
                self.timed(|registry| registry.apply(changes));
            }
            Some("claim") => {
                let owned = list(&command["owned"]).iter().map(owned).collect();
                self.timed(|registry| registry.claim(owned));
            }
            Some("request") => {
                for asked in list(&command["requests"]) {
                    let (token, request) = (asked["token"].as_u64().unwrap_or_default(), request(asked)?);
                    self.timed(|registry| registry.request(token, request));
                }
            }
            Some("close") => self.timed(|registry| registry.close()),
            Some("leave") => self.timed(|registry| registry.leave()),
            Some("measure") => {
                let measured = self.measure()?;
                say(&measured)?;
            }
            other => return Err(io::Error::other(format!("unknown command {other:?}"))),
        }
        Ok(())
    }

    fn timed<T>(&mut self, call: impl FnOnce(&dyn Registry) -> T) -> T {
        let (begun, before, cpu) = (Instant::now(), scheduled(), clock(ClockId::ThreadCPUTime));
        let result = call(&*self.registry);
        self.calls += clock(ClockId::ThreadCPUTime).saturating_sub(cpu);
        let blocked = begun.elapsed().saturating_sub(scheduled().saturating_sub(before));
        self.slowest = self.slowest.max(blocked);
        result
    }

    fn measure(&mut self) -> io::Result<Value> {
        let status = self.timed(|registry| registry.status());
        let facts = self.timed(|registry| registry.facts());
        Ok(json!({
            "measured": status,
            "timeout_ms": facts.as_ref().map(|facts| facts.timeout.as_millis() as u64),
            "acknowledged_ms_ago": facts
                .and_then(|facts| facts.acknowledged)
                .map(|at| at.elapsed().as_millis() as u64),
            "threads": threads()?,
            "descriptors": fs::read_dir("/proc/self/fd")?.count().saturating_sub(1),
            "cpu_ms": self.cpu().as_millis() as u64,
            "slowest_call_us": self.slowest.as_micros() as u64,
        }))
    }

    /// CPU time of the client: all of the process but for what this thread spends on being measured.
    fn cpu(&self) -> Duration {
        let others = clock(ClockId::ProcessCPUTime).saturating_sub(clock(ClockId::ThreadCPUTime));
        others + self.calls
    }
}

/// Whole lines of what was read so far.
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    fn fill(&mut self, stdin: &io::Stdin) -> io::Result<bool> {
        let mut chunk = [0; 64 << 10];
        let n = rustix::io::read(stdin.as_fd(), &mut chunk)?;
        self.0.extend_from_slice(&chunk[..n]);
        Ok(n > 0)
    }

    fn next(&mut self) -> Option<String> {
        let end = self.0.iter().position(|byte| *byte == b'\n')?;
        let line = self.0.drain(..=end).collect::<Vec<u8>>();
        Some(String::from_utf8_lossy(&line).into_owned())
    }
}

fn describe(event: &RegistryEvent) -> Value {
    match event {
        RegistryEvent::Connected { server, session, timeout } => json!({
            "event": "connected", "server": server, "session": format!("{session:#x}"),
            "timeout_ms": timeout.as_millis() as u64
        }),
        RegistryEvent::Lost { why } => json!({"event": "lost", "why": why}),
        RegistryEvent::Synced => json!({"event": "synced"}),
        RegistryEvent::Conflict { path, holder } => {
            json!({"event": "conflict", "path": path, "holder": holder})
        }
        RegistryEvent::ConflictOver { path } => json!({"event": "conflict over", "path": path}),
        RegistryEvent::Refused { path, why } => json!({"event": "refused", "path": path, "why": why}),
        RegistryEvent::RefusedOver { path } => json!({"event": "refused over", "path": path}),
        RegistryEvent::Answered { token, answer } => {
            json!({"event": "answered", "token": token, "answer": describe_answer(answer)})
        }
        RegistryEvent::Changed { path } => json!({"event": "changed", "path": path}),
    }
}

fn describe_answer(answer: &Answer) -> Value {
    match answer {
        Answer::Node(found) => json!({"node": found.as_ref().map(|found| json!({
            "content": String::from_utf8_lossy(&found.content), "version": found.version, "owner": found.owner
        }))}),
        Answer::Names(names) => json!({"names": names}),
        Answer::Created => json!("created"),
        Answer::Exists => json!("exists"),
        Answer::Written(version) => json!({"written": version}),
        Answer::Stale => json!("stale"),
        Answer::Deleted => json!("deleted"),
        Answer::Lost => json!("lost"),
        Answer::Refused(why) => json!({"refused": why}),
    }
}

fn request(value: &Value) -> io::Result<Request> {
    let path = text(&value["path"]);
    let content = text(&value["content"]).into_bytes();
    let version = value["version"].as_i64().and_then(|version| i32::try_from(version).ok()).unwrap_or(-1);
    Ok(match value["ask"].as_str() {
        Some("read") => Request::Read { path },
        Some("children") => Request::Children { path },
        Some("create") => Request::Create { path, node: Node { mode: mode(value), content } },
        Some("write") => Request::Write { path, content, version },
        Some("delete") => Request::Delete { path, version },
        other => return Err(io::Error::other(format!("unknown request {other:?}"))),
    })
}

fn mode(value: &Value) -> Mode {
    if value["ephemeral"] == json!(true) { Mode::Ephemeral } else { Mode::Persistent }
}

fn change(value: &Value) -> Change {
    let path = text(&value["path"]);
    let Some(content) = value["content"].as_str() else { return Change::Remove { path } };
    Change::Put { path, node: Node { mode: mode(value), content: content.into() } }
}

fn owned(value: &Value) -> Owned {
    Owned { dir: text(&value["dir"]), prefix: text(&value["prefix"]), suffix: text(&value["suffix"]) }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn strings(value: &Value) -> Vec<String> {
    list(value).iter().map(text).collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn say(value: &Value) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{value}")?;
    out.flush()
}

fn threads() -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for task in fs::read_dir("/proc/self/task")? {
        // A thread may end while the folder is read.
        if let Ok(name) = fs::read_to_string(task?.path().join("comm")) {
            names.push(name.trim_end().to_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn clock(id: ClockId) -> Duration {
    let time = clock_gettime(id);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// How long this thread has run or waited for a processor, which a busy machine may make long; zero where the kernel
/// does not tell.
fn scheduled() -> Duration {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let figures = text.split_ascii_whitespace().take(2);
    Duration::from_nanos(figures.filter_map(|figure| figure.parse::<u64>().ok()).sum())
}

/// Our own lines and none of the library's, as the agent has it.
fn log_to_stderr() {
    struct Stderr;
    impl log::Log for Stderr {
        fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
            metadata.target().starts_with("yagent")
        }
        fn log(&self, record: &log::Record<'_>) {
            if self.enabled(record.metadata()) {
                eprintln!("{} {}", record.level(), record.args());
            }
        }
        fn flush(&self) {}
    }
    if log::set_logger(&Stderr).is_ok() {
        log::set_max_level(log::LevelFilter::Debug);
    }
}
