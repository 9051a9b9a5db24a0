//! The demo's faults: which instance is killed or stopped, and how long its repair took.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use super::Instance;

/// How long a repaired instance may take to answer the question whether it is back.
const ANSWER_LIMIT: Duration = Duration::from_millis(200);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Crash,
    Hang,
}

struct Fault {
    kind: Kind,
    engine: String,
    port: u16,
    pid: u32,
    at: Instant,
}

/// What was done and what became of it.
#[derive(Default)]
pub(super) struct Faults {
    committed: usize,
    pending: Option<Fault>,
    lines: Vec<String>,
    crashes: Vec<Duration>,
    hangs: Vec<Duration>,
}

impl Faults {
    /// Kills the next instance in turn; every third time it stops one, always the same, since the storm guard spares
    /// the others of so small a host for a minute then.
    pub(super) fn commit(&mut self, instances: &[Instance]) {
        self.committed += 1;
        let kind = if self.committed.is_multiple_of(3) { Kind::Hang } else { Kind::Crash };
        let turn = if kind == Kind::Hang { 0 } else { self.committed % instances.len().max(1) };
        let Some(victim) = instances.get(turn) else { return };
        let Some(pid) = victim.pid else { return };
        let signal = if kind == Kind::Hang { Signal::STOP } else { Signal::KILL };
        if Pid::from_raw(pid.cast_signed()).is_some_and(|pid| kill_process(pid, signal).is_ok()) {
            let (engine, port, at) = (victim.engine.clone(), victim.port, Instant::now());
            self.pending = Some(Fault { kind, engine, port, pid, at });
        }
    }

    /// Whether a repair is awaited.
    pub(super) fn pending(&self) -> bool {
        self.pending.is_some()
    }

    /// Sees whether the instance is back: a new process, that answers. Returns what there is to say.
    pub(super) fn observe(&mut self, instances: &[Instance]) -> Option<String> {
        let fault = self.pending.as_ref()?;
        let now = instances.iter().find(|i| i.engine == fault.engine && i.port == fault.port)?;
        if now.pid.is_none_or(|pid| pid == fault.pid) || !answers(&fault.engine, fault.port) {
            return None;
        }
        let took = fault.at.elapsed();
        let how = match fault.kind {
            Kind::Crash => "killed with kill -9",
            Kind::Hang => "stopped with kill -STOP",
        };
        let line = format!(
            "{}:{} (pid {}) {how}: answered again after {:.1} ms",
            fault.engine,
            fault.port,
            fault.pid,
            took.as_secs_f64() * 1000.0
        );
        match fault.kind {
            Kind::Crash => self.crashes.push(took),
            Kind::Hang => self.hangs.push(took),
        }
        self.pending = None;
        self.lines.push(line.clone());
        Some(line)
    }

    /// The last lines, the newest first.
    pub(super) fn last(&self, count: usize) -> impl Iterator<Item = &String> {
        self.lines.iter().rev().take(count)
    }

    /// One line for the end.
    pub(super) fn summary(&self) -> String {
        let of = |what: &str, times: &[Duration]| match median(times) {
            Some(median) => {
                format!("{} {what} repaired, {:.1} ms by median", times.len(), median.as_secs_f64() * 1000.0)
            }
            None => format!("no {what}"),
        };
        format!("{}; {}", of("crashes", &self.crashes), of("hangs", &self.hangs))
    }
}

pub(super) fn median(times: &[Duration]) -> Option<Duration> {
    let mut sorted = times.to_vec();
    sorted.sort();
    sorted.get(sorted.len() / 2).copied()
}

fn answers(engine: &str, port: u16) -> bool {
    let ask: &[u8] = if engine == "redis" { b"GET x\r\n" } else { b"get x\r\n" };
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let asked = TcpStream::connect_timeout(&address, ANSWER_LIMIT).and_then(|mut stream| {
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        stream.write_all(ask)?;
        stream.read(&mut [0; 16])
    });
    asked.is_ok_and(|count| count > 0)
}
