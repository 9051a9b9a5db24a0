//! The agent's side of the fencer: starts it or finds the one of an earlier run, tells it of each process that may be a
//! master, and notices when it is gone. Nothing here waits.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::OpenOptions,
    net::SocketAddr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType},
};

use super::poll::{Poll, Ready, Source, Token};
use crate::{
    core::{InstanceId, Pid},
    fencer::{
        self,
        message::{self, Message, Nanos, PACKET_AT_MOST},
    },
};

/// How long after a start its socket is looked for again; doubled each time.
const FIRST_RETRY: Duration = Duration::from_millis(2);
/// The longest pause between two attempts.
const LONGEST_RETRY: Duration = Duration::from_secs(1);
/// A fencer that was started may take so long before another is.
const START_LIMIT: Duration = Duration::from_secs(5);

/// How a server is kept from taking writes.
#[derive(Debug)]
pub struct Means {
    /// Where it listens.
    pub address: SocketAddr,
    /// The bytes of the rehearsed fence; empty: only SIGKILL helps.
    pub send: Vec<u8>,
    /// The answer that means that it was taken.
    pub expect: Vec<u8>,
    /// How long fencing may take.
    pub within: Duration,
}

#[derive(Debug)]
struct Entry {
    pid: Pid,
    start: u64,
    means: Means,
    lease: Option<Instant>,
    armed: bool,
}

/// The fencer as the agent sees it.
#[derive(Debug)]
pub struct Fencer {
    state_dir: PathBuf,
    program: PathBuf,
    link: Option<(OwnedFd, Token)>,
    entries: BTreeMap<InstanceId, Entry>,
    news: VecDeque<(InstanceId, bool)>,
    /// When to look for it again, and the pause after that.
    retry: Option<(Instant, Duration)>,
    started: Option<Instant>,
}

impl Fencer {
    /// Not started yet; `program` is the agent's own executable.
    pub fn new(state_dir: PathBuf, program: PathBuf) -> Fencer {
        let (entries, news) = (BTreeMap::new(), VecDeque::new());
        Fencer { state_dir, program, link: None, entries, news, retry: None, started: None }
    }

    /// From now on a fencer stands by for this process, which replaces an earlier one of the instance.
    pub fn arm(&mut self, poll: &mut Poll, id: InstanceId, pid: Pid, means: Means) {
        let Some(start) = fencer::start_of(pid.0) else { return };
        self.entries.insert(id, Entry { pid, start, means, lease: None, armed: false });
        if self.link.is_none() {
            self.connect(poll, Instant::now());
        } else {
            self.tell_all_of(id);
        }
    }

    /// The process is gone, or needs no fencer any more.
    pub fn disarm(&mut self, id: InstanceId) {
        if let Some(entry) = self.entries.remove(&id) {
            self.say(&Message::Disarm { key: id.port });
            if entry.armed {
                self.news.push_back((id, false));
            }
        }
    }

    /// Until when it may take writes; `None`: it is no master.
    pub fn lease(&mut self, id: InstanceId, until: Option<Instant>) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.lease = until;
        self.say(&Message::Lease { key: id.port, until: nanos(until) });
    }

    /// Whether a fencer stands by for an instance, where that changed.
    pub fn news(&mut self) -> Option<(InstanceId, bool)> {
        self.news.pop_front()
    }

    /// When [`Fencer::tick`] wants to be called.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.retry.map(|(at, _)| at)
    }

    /// Looks for the fencer again when it is time.
    pub fn tick(&mut self, poll: &mut Poll, now: Instant) {
        if self.retry.is_some_and(|(at, _)| now >= at) {
            self.connect(poll, now);
        }
    }

    /// The socket is ready.
    pub fn ready(&mut self, poll: &mut Poll, ready: Ready) {
        let mut packet = [0; PACKET_AT_MOST];
        loop {
            let Some((socket, _)) = self.link.as_ref().filter(|(_, token)| *token == ready.token) else {
                return;
            };
            match rustix::net::recv(socket, &mut packet[..], RecvFlags::DONTWAIT) {
                Err(Errno::AGAIN | Errno::INTR) => return,
                Ok((0, _)) | Err(_) => return self.lost(poll),
                Ok((length, _)) => {
                    if let Some(Message::Armed { key }) = message::decode(&packet[..length]) {
                        self.armed(key);
                    }
                }
            }
        }
    }

    fn armed(&mut self, key: message::Key) {
        for (id, entry) in self.entries.iter_mut().filter(|(id, _)| id.port == key) {
            if !std::mem::replace(&mut entry.armed, true) {
                self.news.push_back((*id, true));
            }
        }
    }

    /// It is gone; another one is started.
    fn lost(&mut self, poll: &mut Poll) {
        log::error!("the fencer is gone: another one is started");
        if let Some((socket, token)) = self.link.take() {
            poll.remove(socket, token);
        }
        for (id, entry) in &mut self.entries {
            if std::mem::take(&mut entry.armed) {
                self.news.push_back((*id, false));
            }
        }
        self.started = None;
        self.connect(poll, Instant::now());
    }

    fn connect(&mut self, poll: &mut Poll, now: Instant) {
        if self.entries.is_empty() {
            return self.retry = None;
        }
        match dial(&self.state_dir).and_then(|socket| {
            let token = poll.add(&socket, Source::Fencer, false)?;
            Ok((socket, token))
        }) {
            Ok(link) => {
                self.link = Some(link);
                self.retry = None;
                for id in self.entries.keys().copied().collect::<Vec<_>>() {
                    self.tell_all_of(id);
                }
            }
            Err(_) => {
                if self.started.is_none_or(|at| now >= at + START_LIMIT) {
                    self.start(now);
                }
                let pause = self.retry.map_or(FIRST_RETRY, |(_, pause)| (pause * 2).min(LONGEST_RETRY));
                self.retry = Some((now + pause, pause));
            }
        }
    }

    /// Starts one. Its end is seen by the socket; whoever reaps orphans reaps it.
    fn start(&mut self, now: Instant) {
        self.started = Some(now);
        let log = OpenOptions::new().create(true).append(true).open(self.state_dir.join("fencer.log"));
        let mut command = Command::new(&self.program);
        command.arg("fencer").arg("--state-dir").arg(&self.state_dir);
        command.stdin(Stdio::null()).stdout(Stdio::null()).current_dir("/");
        command.stderr(log.map_or_else(|_| Stdio::null(), Stdio::from));
        if let Err(e) = command.spawn() {
            log::error!("cannot start the fencer {}: {e}", self.program.display());
        }
    }

    fn tell_all_of(&mut self, id: InstanceId) {
        let Some(entry) = self.entries.get(&id) else { return };
        let Means { address, send, expect, within } = &entry.means;
        let arm = Message::Arm {
            key: id.port,
            pid: entry.pid.0,
            start: entry.start,
            address: *address,
            within: *within,
            send,
            expect,
        };
        let lease = entry.lease;
        self.say(&arm);
        if lease.is_some() {
            self.say(&Message::Lease { key: id.port, until: nanos(lease) });
        }
    }

    /// One that takes no more is as good as gone; its socket says so next.
    fn say(&self, message: &Message<'_>) {
        let Some((socket, _)) = &self.link else { return };
        let mut packet = [0; PACKET_AT_MOST];
        let Some(packet) = message::encode(message, &mut packet) else {
            return log::error!("a fence is too long for the fencer");
        };
        if rustix::net::send(socket, packet, SendFlags::DONTWAIT | SendFlags::NOSIGNAL).is_err() {
            let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
        }
    }
}

fn dial(state_dir: &Path) -> std::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(state_dir.join(fencer::SOCKET))?)?;
    Ok(socket)
}

/// The same moment as the fencer counts it. An [`Instant`] is of the monotonic clock, and hides its number.
fn nanos(until: Option<Instant>) -> Nanos {
    let Some(until) = until else { return 0 };
    let (now, clock) = (Instant::now(), fencer::monotonic());
    let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    let ahead = nanos(until.saturating_duration_since(now));
    // A moment that has passed is as good as any other that has.
    clock.saturating_add(ahead).saturating_sub(nanos(now.saturating_duration_since(until))).max(1)
}
