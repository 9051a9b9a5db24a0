//! Processes as `/proc` shows them, and signals to exactly one of them.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    ops::Range,
    path::Path,
};

pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};

use crate::wait;

/// Sends `signal` to `pid`. A process that is already gone is no error.
pub fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// Whether the tests run as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// What `/proc/PID/stat` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// `R`, `S`, `T`, `Z`, ….
    pub state: char,
    /// The parent.
    pub parent: u32,
    /// The session's leader.
    pub session: u32,
    /// User and system CPU time in clock ticks.
    pub cpu_ticks: u64,
    /// When it started, in clock ticks since boot. Pid and start time together name a process for ever.
    pub started: u64,
}

/// The state of `pid`; `None` when it is gone.
pub fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold spaces and parentheses itself.
    let fields: Vec<&str> = text[text.rfind(')')? + 1..].split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some(Stat {
        state: fields.first()?.chars().next()?,
        parent: number(1)? as u32,
        session: number(3)? as u32,
        cpu_ticks: number(11)? + number(12)?,
        started: number(19)?,
    })
}

/// Whether `pid` runs; a zombie does not.
pub fn alive(pid: u32) -> bool {
    stat(pid).is_some_and(|stat| stat.state != 'Z')
}

/// Waits until `pid` runs no more.
pub fn wait_gone(pid: u32) {
    wait::until(&format!("process {pid} ends"), || {
        wait::check(!alive(pid), || format!("{:?} {}", stat(pid), command_line(pid)))
    });
}

/// The command line with spaces between its arguments; empty when it is gone or a zombie.
pub fn command_line(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ").trim_end().to_owned()
}

/// The environment of `pid`, one `NAME=value` a line.
pub fn environment(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', "\n")
}

/// A field of `/proc/PID/status`, such as `Uid` or `VmRSS`.
pub fn status_field(pid: u32, name: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    text.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim().to_owned()))
}

/// The targets of the open descriptors of `pid`.
pub fn descriptors(pid: u32) -> Vec<String> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    entries
        .filter_map(|entry| Some(fs::read_link(entry.ok()?.path()).ok()?.to_string_lossy().into_owned()))
        .collect()
}

/// All processes.
pub fn all() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// The children of `pid`.
pub fn children(pid: u32) -> Vec<u32> {
    all().into_iter().filter(|&child| stat(child).is_some_and(|stat| stat.parent == pid)).collect()
}

/// The processes whose command line, environment or working directory names `dir`.
pub fn tied_to(dir: &Path) -> Vec<u32> {
    let name = dir.to_string_lossy().into_owned();
    let named = |pid: u32| command_line(pid).contains(&name) || environment(pid).contains(&name);
    let works_there =
        |pid: u32| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(dir));
    let me = std::process::id();
    all().into_iter().filter(|&pid| pid != me && alive(pid) && (named(pid) || works_there(pid))).collect()
}

/// Who listens on TCP ports of `range`: pairs of port and pid.
pub fn listeners(range: &Range<u16>) -> BTreeSet<(u16, u32)> {
    let sockets = listening_sockets(range);
    if sockets.is_empty() {
        return BTreeSet::new();
    }
    let mut found = BTreeSet::new();
    for pid in all() {
        for target in descriptors(pid) {
            if let Some(&port) = sockets.get(&target) {
                found.insert((port, pid));
            }
        }
    }
    found
}

/// The listening sockets on ports of `range`, by the name that a descriptor's link has.
fn listening_sockets(range: &Range<u16>) -> HashMap<String, u16> {
    const LISTEN: &str = "0A";
    let mut found = HashMap::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        for line in fs::read_to_string(table).unwrap_or_default().lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let port = fields[1].rsplit(':').next().and_then(|hex| u16::from_str_radix(hex, 16).ok());
            if let Some(port) = port.filter(|port| fields[3] == LISTEN && range.contains(port)) {
                found.insert(format!("socket:[{}]", fields[9]), port);
            }
        }
    }
    found
}
