//! Processes: started, adopted and remembered by a thread of its own, so that neither a slow disk nor fork and exec
//! hold the loop up.
//!
//! The thread `spawner` owns the instances' records, their output files and the port files. Whether a process is ours
//! is decided here and by evidence alone; whether it is wanted is decided in the core.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::{fd::OwnedFd, unix::ffi::OsStrExt, unix::fs::DirBuilderExt, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use procfs::process::{FDTarget, Process};
use rustix::{
    net::{AddressFamily, SocketFlags, SocketType},
    process::{PidfdFlags, Resource, Rlimit},
};
use serde::{Deserialize, Serialize};

use super::{notify, ports, waker::Waker};
use crate::{
    core::{InstanceId, NotStarted, Pid, ProcessState},
    plugin::StartPlan,
};

/// An instance's output file is begun anew at a start when it is larger than this.
const OUTPUT_AT_MOST: u64 = 1 << 20;
/// How much of a dead instance's output is looked at for its last words.
const LAST_WORDS_WITHIN: u64 = 4096;
/// The longest last words.
const LAST_WORDS_AT_MOST: usize = 200;
/// How many open files the agent wants for itself.
const OPEN_FILES: u64 = 1 << 16;
/// How long a list of listeners is good for; it is costly on hosts with many processes.
const LISTENERS_FRESH: Duration = Duration::from_secs(1);
/// How long after a port file could not be written that is tried again.
const WRITE_AGAIN: Duration = Duration::from_secs(5);

/// What the spawner is to start or adopt.
#[derive(Clone, Debug)]
pub struct Start {
    /// Which instance.
    pub id: InstanceId,
    /// Its engine's name.
    pub engine: String,
    /// The address that it listens on; `None`: all.
    pub bind: Option<IpAddr>,
    /// Its port was in use when the agent last wrote them down: a listener with the right executable is ours.
    pub known: bool,
    /// Only adopt it.
    pub adopt_only: bool,
    /// How to start it.
    pub plan: StartPlan,
}

/// What the spawner is to do.
#[derive(Clone, Debug)]
pub enum Job {
    /// Start or adopt an instance.
    Start(Box<Start>),
    /// Find what a dead instance last wrote.
    LastWords(InstanceId, String),
    /// Drop an instance's record.
    Forget(InstanceId, String),
    /// Write a port file.
    WritePorts(PathBuf, Vec<u16>),
}

/// What the spawner did.
#[derive(Debug)]
pub enum Report {
    /// The process is there.
    Started {
        /// Whose.
        id: InstanceId,
        /// The process.
        pid: Pid,
        /// A handle on it that no other process can come by.
        pidfd: OwnedFd,
        /// How long it has been running; `None`: just started.
        adopted: Option<Duration>,
    },
    /// It isn't.
    NotStarted(InstanceId, NotStarted),
    /// What it last wrote; empty where it wrote nothing.
    LastWords(InstanceId, String),
    /// A port file could not be written: path and reason.
    PortsFailed(PathBuf, String),
    /// A port file was written.
    PortsWritten(PathBuf),
}

/// The handle on the thread.
#[derive(Debug)]
pub struct Spawner {
    jobs: mpsc::Sender<Job>,
    reports: mpsc::Receiver<Report>,
}

impl Spawner {
    /// Starts the thread; it keeps its records in `dir`.
    ///
    /// # Errors
    /// When the folder can't be made or the thread not be started.
    pub fn start(dir: PathBuf, waker: Waker) -> io::Result<Spawner> {
        make_records_dir(&dir)?;
        // Two connections an instance are the loop's own need; less than this is no error before it is felt.
        let _ = raise_open_files(OPEN_FILES);
        let boot_id = boot_id()?;
        let (jobs, inbox) = mpsc::channel();
        let (outbox, reports) = mpsc::channel();
        let work = move || {
            let (listeners, outputs, unwritten) = (None, HashMap::new(), HashMap::new());
            let mut worker = Worker { dir, boot_id, listeners, outputs, unwritten };
            while let Some(job) = worker.next(&inbox) {
                let Some(report) = worker.work(job) else { continue };
                if outbox.send(report).is_err() {
                    return;
                }
                waker.wake();
            }
        };
        thread::Builder::new().name("spawner".to_owned()).spawn(work)?;
        Ok(Spawner { jobs, reports })
    }

    /// Hands a job over; never blocks.
    pub fn submit(&self, job: Job) {
        // The thread only ends with this handle.
        let _ = self.jobs.send(job);
    }

    /// The next report, if one is there.
    pub fn report(&self) -> Option<Report> {
        self.reports.try_recv().ok()
    }
}

/// What is written down of a running instance.
#[derive(Serialize, Deserialize)]
struct Record {
    v: u32,
    pid: u32,
    /// The process's start, in clock ticks since the boot; with pid and boot it is unique.
    start_ticks: u64,
    boot_id: String,
    program: String,
}

struct Worker {
    dir: PathBuf,
    boot_id: String,
    listeners: Option<(Instant, HashMap<u16, Vec<Listener>>)>,
    /// Where in its output file each instance's present run begins.
    outputs: HashMap<InstanceId, u64>,
    /// Port files that could not be written, and when to try again.
    unwritten: HashMap<PathBuf, (Vec<u16>, Instant)>,
}

#[derive(Clone, Debug)]
struct Listener {
    pid: Pid,
    program: PathBuf,
}

impl Worker {
    /// What is to be done next: what was handed over, or a port file whose disk may have room by now. `None`: the
    /// agent ends.
    fn next(&mut self, inbox: &mpsc::Receiver<Job>) -> Option<Job> {
        let due = self.unwritten.iter().min_by_key(|(_, (_, at))| *at);
        let Some((path, at)) = due.map(|(path, (_, at))| (path.clone(), *at)) else {
            return inbox.recv().ok();
        };
        match inbox.recv_timeout(at.saturating_duration_since(Instant::now())) {
            Ok(job) => Some(job),
            Err(mpsc::RecvTimeoutError::Disconnected) => None,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let (ports, _) = self.unwritten.remove(&path)?;
                Some(Job::WritePorts(path, ports))
            }
        }
    }

    fn write_ports(&mut self, path: PathBuf, ports: Vec<u16>) -> Report {
        self.unwritten.remove(&path);
        match ports::write(&path, &ports) {
            Ok(()) => Report::PortsWritten(path),
            Err(e) => {
                self.unwritten.insert(path.clone(), (ports, Instant::now() + WRITE_AGAIN));
                Report::PortsFailed(path, e.to_string())
            }
        }
    }

    fn work(&mut self, job: Job) -> Option<Report> {
        match job {
            Job::Start(start) => Some(self.start(&start)),
            Job::LastWords(id, engine) => {
                let words = last_words(&self.path(&engine, id.port, "log"), self.outputs.get(&id).copied());
                Some(Report::LastWords(id, words.unwrap_or_default()))
            }
            Job::Forget(id, engine) => {
                self.outputs.remove(&id);
                let _ = fs::remove_file(self.path(&engine, id.port, "json"));
                None
            }
            Job::WritePorts(path, ports) => Some(self.write_ports(path, ports)),
        }
    }

    fn path(&self, engine: &str, port: u16, kind: &str) -> PathBuf {
        self.dir.join(format!("{engine}-{port}.{kind}"))
    }

    fn start(&mut self, start: &Start) -> Report {
        match self.find_or_spawn(start) {
            Ok((pid, pidfd, adopted)) => {
                self.remember(start, pid);
                Report::Started { id: start.id, pid, pidfd, adopted }
            }
            Err(why) => Report::NotStarted(start.id, why),
        }
    }

    fn find_or_spawn(&mut self, start: &Start) -> Result<(Pid, OwnedFd, Option<Duration>), NotStarted> {
        if let Some(pid) = recorded_process(&self.path(&start.engine, start.id.port, "json"), &self.boot_id)
            && let Some((pidfd, age)) = adopt(pid)
        {
            return Ok((pid, pidfd, Some(age)));
        }
        if port_is_free(start.bind, start.id.port).map_err(NotStarted::Failed)? {
            return if start.adopt_only { Err(NotStarted::Gone) } else { spawn(start, &self.output(start)?) };
        }
        let holders = self.listeners(start.id.port);
        let ours = holders.iter().find(|holder| same_program(&holder.program, &start.plan.program));
        match ours {
            Some(holder) if start.adopt_only => Err(NotStarted::Unrecorded(describe(holder))),
            Some(holder) if start.known => {
                let (pidfd, age) = adopt(holder.pid).ok_or_else(|| taken(&holders))?;
                Ok((holder.pid, pidfd, Some(age)))
            }
            _ if start.adopt_only => Err(NotStarted::Gone),
            _ => Err(taken(&holders)),
        }
    }

    fn remember(&self, start: &Start, pid: Pid) {
        let path = self.path(&start.engine, start.id.port, "json");
        let Some(start_ticks) = start_ticks(pid) else { return };
        let boot_id = self.boot_id.clone();
        let record = Record { v: 1, pid: pid.0, start_ticks, boot_id, program: start.plan.program.clone() };
        let written = serde_json::to_vec(&record).map_err(io::Error::from);
        if let Err(e) = written.and_then(|bytes| ports::replace(&path, &bytes, false)) {
            log::warn!("cannot write record {}: {e}", path.display());
        }
    }

    /// Where the instance's output goes. A state directory that was lost is made again, and one that cannot be written
    /// costs the output: a cache is worth more than its last words.
    fn output(&mut self, start: &Start) -> Result<fs::File, NotStarted> {
        let path = self.path(&start.engine, start.id.port, "log");
        let opened = self.open_output(&path);
        let length = opened.as_ref().ok().and_then(|file| Some(file.metadata().ok()?.len()));
        self.outputs.insert(start.id, length.unwrap_or(0));
        opened.or_else(|e| {
            log::warn!("cannot open output file {}, what is written there is lost: {e}", path.display());
            fs::OpenOptions::new()
                .append(true)
                .open("/dev/null")
                .map_err(|e| NotStarted::Failed(format!("cannot open /dev/null: {e}")))
        })
    }

    fn open_output(&self, path: &Path) -> io::Result<fs::File> {
        let large = fs::metadata(path).is_ok_and(|file| file.len() > OUTPUT_AT_MOST);
        if large {
            let _ = fs::rename(path, path.with_extension("log.1"));
        }
        make_records_dir(&self.dir)?;
        fs::OpenOptions::new().create(true).append(true).open(path)
    }

    fn listeners(&mut self, port: u16) -> Vec<Listener> {
        if self.listeners.as_ref().is_none_or(|(at, _)| at.elapsed() > LISTENERS_FRESH) {
            self.listeners = Some((Instant::now(), all_listeners()));
        }
        self.listeners.as_ref().and_then(|(_, map)| map.get(&port).cloned()).unwrap_or_default()
    }
}

/// The processes that listen, by port; those of other users are seen by root alone.
fn all_listeners() -> HashMap<u16, Vec<Listener>> {
    let tables = [procfs::net::tcp(), procfs::net::tcp6()];
    let listening = tables.into_iter().filter_map(Result::ok).flatten();
    let ports: HashMap<u64, u16> = listening
        .filter(|entry| entry.state == procfs::net::TcpState::Listen)
        .map(|entry| (entry.inode, entry.local_address.port()))
        .collect();
    let mut found: HashMap<u16, Vec<Listener>> = HashMap::new();
    for process in procfs::process::all_processes().into_iter().flatten().filter_map(Result::ok) {
        for port in listens_on(&process, &ports) {
            let (Ok(pid), Ok(program)) = (u32::try_from(process.pid), process.exe()) else { continue };
            let holders = found.entry(port).or_default();
            if !holders.iter().any(|holder| holder.pid == Pid(pid)) {
                holders.push(Listener { pid: Pid(pid), program });
            }
        }
    }
    found
}

fn listens_on(process: &Process, ports: &HashMap<u64, u16>) -> Vec<u16> {
    let Ok(descriptors) = process.fd() else { return Vec::new() };
    let sockets = descriptors.filter_map(Result::ok).filter_map(|fd| match fd.target {
        FDTarget::Socket(inode) => ports.get(&inode).copied(),
        _ => None,
    });
    sockets.collect()
}

fn describe(holder: &Listener) -> String {
    format!("pid {} ({})", holder.pid, holder.program.display())
}

fn taken(holders: &[Listener]) -> NotStarted {
    let holder =
        holders.first().map_or_else(|| "a process that cannot be seen from here".to_owned(), describe);
    NotStarted::PortTaken(holder)
}

/// Whether a running executable is the configured program, also after its file was replaced by an upgrade.
fn same_program(running: &Path, configured: &str) -> bool {
    let running = running.as_os_str().as_bytes();
    let running = running.strip_suffix(b" (deleted)").unwrap_or(running);
    let configured = fs::canonicalize(configured).unwrap_or_else(|_| PathBuf::from(configured));
    configured.as_os_str().as_bytes() == running
}

fn stat(pid: Pid) -> Option<procfs::process::Stat> {
    Process::new(i32::try_from(pid.0).ok()?).ok()?.stat().ok()
}

/// A process's start in clock ticks since the boot; `None` when it is dead, a zombie included.
pub(crate) fn start_ticks(pid: Pid) -> Option<u64> {
    stat(pid).filter(|stat| !matches!(stat.state, 'Z' | 'X' | 'x')).map(|stat| stat.starttime)
}

/// What `/proc` says of a process.
pub fn evidence(pid: Pid) -> ProcessState {
    match stat(pid).map(|stat| stat.state) {
        None => ProcessState::Unknown,
        Some('T') => ProcessState::Stopped,
        Some('Z' | 'X' | 'x') => ProcessState::Zombie,
        Some(_) => ProcessState::Alive,
    }
}

/// A handle on a process that runs already, and its age.
fn adopt(pid: Pid) -> Option<(OwnedFd, Duration)> {
    let before = start_ticks(pid)?;
    let pidfd = pidfd(pid)?;
    // The pid may have passed to another process before the handle was there.
    if start_ticks(pid)? != before {
        return None;
    }
    let up = procfs::Current::current().map(|uptime: procfs::Uptime| uptime.uptime).ok()?;
    let start = before as f64 / rustix::param::clock_ticks_per_second() as f64;
    Some((pidfd, Duration::from_secs_f64((up - start).max(0.0))))
}

/// A handle on a process that no other process can come by.
pub(crate) fn pidfd(pid: Pid) -> Option<OwnedFd> {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid.0).ok()?)?;
    rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()
}

/// Whether a server could bind the port; tried without listening, so that no client sees it.
fn port_is_free(bind: Option<IpAddr>, port: u16) -> Result<bool, String> {
    let address = SocketAddr::new(bind.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), port);
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(|e| format!("cannot make a socket: {e}"))?;
    rustix::net::sockopt::set_socket_reuseaddr(&socket, true)
        .map_err(|e| format!("cannot set up a socket: {e}"))?;
    match rustix::net::bind(&socket, &address) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::ADDRINUSE) => Ok(false),
        Err(rustix::io::Errno::ADDRNOTAVAIL) => Err(format!("{} is no address of this host", address.ip())),
        // Whatever else it is, the server will say it better.
        Err(_) => Ok(true),
    }
}

fn spawn(start: &Start, output: &fs::File) -> Result<(Pid, OwnedFd, Option<Duration>), NotStarted> {
    let plan = &start.plan;
    let failed = |what: &str, e: io::Error| NotStarted::Failed(format!("{what}: {e}"));
    let user = plan_user(&plan.user).map_err(NotStarted::Failed)?;
    for dir in &plan.dirs {
        make_dir(Path::new(dir), user).map_err(|e| failed(&format!("cannot make folder {dir}"), e))?;
    }
    raise_open_files(plan.open_files).map_err(NotStarted::Failed)?;
    let streams =
        || output.try_clone().map(Stdio::from).map_err(|e| failed("cannot share the output file", e));
    let mut command = Command::new(&plan.program);
    command.args(plan.args.iter().map(|arg| OsStr::from_bytes(arg)));
    command.stdin(Stdio::null()).stdout(streams()?).stderr(streams()?);
    command.current_dir(if plan.cwd.is_empty() { "/" } else { &plan.cwd });
    for name in notify::SCRUBBED {
        command.env_remove(name);
    }
    command.envs(plan.env.iter().map(|(name, value)| (name, value)));
    if let Some((uid, gid)) = user {
        command.uid(uid).gid(gid);
    }
    crate::sys::own_session(&mut command);
    let child = command.spawn().map_err(|e| failed(&format!("cannot run {}", plan.program), e))?;
    let pid = Pid(child.id());
    // The kernel would else kill the caches as late as the agent.
    let _ = fs::write(format!("/proc/{pid}/oom_score_adj"), "0");
    let pidfd = pidfd(pid).ok_or_else(|| failed("cannot open a pidfd", io::Error::last_os_error()))?;
    Ok((pid, pidfd, None))
}

fn make_records_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(dir)
}

fn make_dir(dir: &Path, user: Option<(u32, u32)>) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o750).create(dir)?;
    match user {
        Some((uid, gid)) => std::os::unix::fs::chown(dir, Some(uid), Some(gid)),
        None => Ok(()),
    }
}

/// Finds whether who a start plan's program becomes exists, and whether we are able to become it.
///
/// # Errors
/// When it doesn't, or we aren't.
pub fn check_users(plan: &StartPlan) -> Result<(), String> {
    for user in [&plan.user, &plan.drops_to].into_iter().filter(|user| !user.is_empty()) {
        let (uid, _) = find_user(user)?;
        let me = rustix::process::geteuid().as_raw();
        if me != 0 && me != uid {
            return Err(format!("it is to run as user {user}, which only root can do; this is uid {me}"));
        }
    }
    Ok(())
}

/// What a start plan's user means: none where it is empty or who we are already.
fn plan_user(user: &str) -> Result<Option<(u32, u32)>, String> {
    if user.is_empty() {
        return Ok(None);
    }
    let (uid, gid) = find_user(user)?;
    let me = rustix::process::geteuid().as_raw();
    match () {
        () if uid == me => Ok(None),
        () if me == 0 => Ok(Some((uid, gid))),
        () => Err(format!("only root can run it as user {user}")),
    }
}

/// A user's uid and gid by its name in `/etc/passwd`, or by its number.
fn find_user(user: &str) -> Result<(u32, u32), String> {
    if let Ok(uid) = user.parse::<u32>() {
        return Ok((uid, uid));
    }
    let passwd = fs::read_to_string("/etc/passwd").map_err(|e| format!("cannot read /etc/passwd: {e}"))?;
    let entry = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|entry| entry[0] == user);
    let ids = entry.and_then(|entry| Some((entry.get(2)?.parse().ok()?, entry.get(3)?.parse().ok()?)));
    ids.ok_or_else(|| format!("there is no user {user} on this host"))
}

/// Raises this process's own limit on open files, which what it starts inherits.
fn raise_open_files(needed: u64) -> Result<(), String> {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    let maximum = limit.maximum.map(|maximum| maximum.max(needed));
    let wanted = Rlimit { current: Some(needed), maximum };
    rustix::process::setrlimit(Resource::Nofile, wanted).map_err(|e| {
        let hard = limit.maximum.map_or_else(|| "unlimited".to_owned(), |hard| hard.to_string());
        format!(
            "it needs {needed} open files and the hard limit is {hard} ({e}); raise LimitNOFILE of the agent"
        )
    })
}

/// The last line that is no blank, shortened; of an adopted run, whose beginning is not known, of all there is.
fn last_words(path: &Path, began: Option<u64>) -> Option<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = fs::File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LAST_WORDS_WITHIN).max(began.unwrap_or(0)))).ok()?;
    let mut bytes = Vec::new();
    file.take(LAST_WORDS_WITHIN).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty())?;
    Some(line.chars().filter(|c| !c.is_control()).take(LAST_WORDS_AT_MOST).collect())
}

/// The ports of an engine's recorded instances.
pub fn recorded_ports(dir: &Path, engine: &str) -> Vec<u16> {
    let mut ports: Vec<u16> =
        recorded_names(dir).into_iter().filter(|(name, _)| name == engine).map(|(_, port)| port).collect();
    ports.sort_unstable();
    ports
}

/// Recorded instances that run although their engine is none of these: engine, port and process.
pub fn unattended(dir: &Path, engines: &[&str]) -> Vec<(String, u16, Pid)> {
    let strangers = recorded_names(dir).into_iter().filter(|(name, _)| !engines.contains(&name.as_str()));
    let Ok(boot_id) = boot_id() else { return Vec::new() };
    let alive = |(name, port): (String, u16)| {
        let pid = recorded_process(&dir.join(format!("{name}-{port}.json")), &boot_id)?;
        Some((name, port, pid))
    };
    strangers.filter_map(alive).collect()
}

fn recorded_names(dir: &Path) -> Vec<(String, u16)> {
    let names = fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok).map(|entry| entry.file_name());
    let parse = |name: std::ffi::OsString| {
        let (engine, port) = name.to_str()?.strip_suffix(".json")?.rsplit_once('-')?;
        Some((engine.to_owned(), port.parse().ok()?))
    };
    names.filter_map(parse).collect()
}

/// The recorded process, if it still is the one that was recorded.
fn recorded_process(record: &Path, boot_id: &str) -> Option<Pid> {
    let record: Record = serde_json::from_slice(&fs::read(record).ok()?).ok()?;
    let pid = Pid(record.pid);
    let same = record.boot_id == boot_id && start_ticks(pid)? == record.start_ticks;
    same.then_some(pid)
}

fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}
