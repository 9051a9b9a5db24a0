//! The agent side of the fencer: it starts or adopts the process, tells it every lease, and notices when it is gone.
//!
//! Nothing here blocks: what a full socket does not take is sent once it can be written, and a fencer that does not
//! answer is replaced. Starting it is the one thing that takes time, a few milliseconds: the standard library uses
//! `vfork` for it, so that it does not grow with the agent, and the program is in memory, for it is the agent's own.

use std::{
    collections::{BTreeMap, VecDeque},
    fs, io,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, recv, send, socket_with,
        socketpair, sockopt,
    },
    process::{Signal, pidfd_send_signal},
};

use super::{
    poll::{Poll, Ready, Source, Token},
    process::{pidfd, start_ticks},
};
use crate::{
    core::{InstanceId, Pid},
    fencer::{
        SOCKET_NAME, SOCKET_PREFIX, SOCKET_SUFFIX, monotonic,
        socket::address_in,
        wire::{
            Answer, Arm, EXPECT_AT_MOST, FRAME_AT_MOST, Fencing, KEY_AT_MOST, Lease, Message, ProcessId,
            SEND_AT_MOST,
        },
    },
};

/// How often the fencer is asked whether it is there.
const PING_EVERY: Duration = Duration::from_secs(2);
/// How long it may take to answer anything.
const PATIENCE: Duration = Duration::from_secs(3);
/// The first pause before a fencer that died is replaced; it doubles with each that never answered.
const PAUSE_FIRST: Duration = Duration::from_millis(20);
/// The longest pause.
const PAUSE_LONGEST: Duration = Duration::from_secs(5);
/// How long a fencer of another version is kept for servers that are not guarded yet. It hears of no lease meanwhile and
/// would fence a master that leads again.
const OTHERS_WAIT: Duration = Duration::from_secs(2);
/// How long a server that tells nothing may take writes when another version's fencer, which knew its lease, is retired.
const UNTOLD_GRACE: Duration = Duration::from_secs(5);

/// How a server is kept from taking writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Means {
    /// Where it listens.
    pub address: SocketAddr,
    /// The bytes of the rehearsed fence; empty: only a kill helps.
    pub send: Vec<u8>,
    /// The reply that means it took it.
    pub expect: Vec<u8>,
    /// How long fencing may take.
    pub within: Duration,
}

/// A server that is to be guarded.
#[derive(Debug)]
struct Guarded {
    key: String,
    process: ProcessId,
    means: Means,
    /// As the core last said; before that it is as a former agent said.
    lease: Option<Option<Instant>>,
    /// Until when at most where a former agent said nothing.
    grace: Option<Instant>,
    /// The fencer has not been told of it yet.
    arm_due: bool,
    /// The fencer has not been told of the lease yet.
    lease_due: bool,
    /// The fencer said that it stands by.
    stands_by: bool,
}

/// A server that a fencer of another version may guard, and this one does not yet.
#[derive(Debug)]
pub struct Unguarded {
    /// The instance, for people: `redis:16379`.
    pub key: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// How long fencing may take.
    pub within: Duration,
    /// Its process, once it was found to run already.
    pub pid: Option<Pid>,
}

/// The connection to a fencer.
#[derive(Debug)]
struct Link {
    socket: OwnedFd,
    token: Token,
    pid: Pid,
    /// To end it when it hangs.
    pidfd: Option<OwnedFd>,
    /// When it was asked something that it has not answered.
    asked: Option<Instant>,
    next_ping: Instant,
    /// It took no more for now; written to once it does.
    full: bool,
    /// The loop waits until it can be written.
    awaits_room: bool,
}

/// The fencer, seen from the agent.
#[derive(Debug)]
pub struct Fencer {
    state_dir: PathBuf,
    program: PathBuf,
    guarded: BTreeMap<InstanceId, Guarded>,
    /// Keys that it has not been told to let go yet.
    let_go: VecDeque<String>,
    /// Those that a former agent may have had guarded, by a fencer of another version at worst.
    strangers: Vec<String>,
    /// This agent has nothing to guard, now or soon.
    guards_nobody: bool,
    link: Option<Link>,
    /// Not before this is another one started.
    rests: Option<Instant>,
    pause: Duration,
    /// Fencers of other versions may be there.
    others: bool,
    /// What they may guard and this one does not yet.
    unguarded: BTreeMap<InstanceId, Unguarded>,
    /// Until when they are kept for that.
    others_until: Option<Instant>,
    news: VecDeque<(InstanceId, bool)>,
    fenced: VecDeque<(InstanceId, Fencing)>,
    /// What it stood by for until it was told not to.
    disarmed: VecDeque<String>,
}

impl Fencer {
    /// Nothing is started yet; the socket will be in `state_dir`, and `program` is the agent's own executable.
    #[must_use]
    pub fn new(state_dir: PathBuf, program: PathBuf) -> Fencer {
        Fencer {
            state_dir,
            program,
            guarded: BTreeMap::new(),
            let_go: VecDeque::new(),
            strangers: Vec::new(),
            guards_nobody: false,
            link: None,
            rests: None,
            pause: PAUSE_FIRST,
            others: true,
            unguarded: BTreeMap::new(),
            others_until: None,
            news: VecDeque::new(),
            fenced: VecDeque::new(),
            disarmed: VecDeque::new(),
        }
    }

    /// From now on a fencer stands by for this process, which replaces an earlier one of the same key (such as
    /// `redis:6379`). A process that is gone already is not taken. Starts or adopts the fencer where there is none.
    pub fn arm(&mut self, poll: &mut Poll, id: InstanceId, key: &str, pid: Pid, means: Means) {
        self.unguarded.remove(&id);
        let Some(start_ticks) = start_ticks(pid).filter(|_| key.len() <= KEY_AT_MOST) else {
            return self.disarm(id);
        };
        let process = ProcessId { pid: pid.0, start_ticks };
        let before = self.guarded.remove(&id);
        let same = before.as_ref().is_some_and(|before| before.key == key && before.process == process);
        if !same && before.as_ref().is_some_and(|before| before.stands_by) {
            self.news.push_back((id, false));
        }
        let before = before.filter(|_| same);
        let guarded = Guarded {
            key: key.to_owned(),
            process,
            means: feasible(key, means),
            lease: before.as_ref().and_then(|before| before.lease),
            grace: before.as_ref().and_then(|before| before.grace),
            arm_due: true,
            lease_due: false,
            stands_by: before.is_some_and(|before| before.stands_by),
        };
        self.guarded.insert(id, guarded);
        self.tick(poll, Instant::now());
    }

    /// A fencer of another version may guard it: that one is kept until this one does, for a while.
    pub fn await_guard(&mut self, id: InstanceId, server: Unguarded) {
        if self.others && !self.guarded.contains_key(&id) {
            self.unguarded.insert(id, server);
        }
    }

    /// Nobody guards it: it is a server that was just started, or none.
    pub fn await_no_guard(&mut self, id: InstanceId) {
        self.unguarded.remove(&id);
    }

    /// The process is gone, or no longer ours to watch.
    pub fn disarm(&mut self, id: InstanceId) {
        self.unguarded.remove(&id);
        let Some(guarded) = self.guarded.remove(&id) else { return };
        if guarded.stands_by {
            self.news.push_back((id, false));
        }
        self.no_more(guarded.key);
        self.send_all();
    }

    fn no_more(&mut self, key: String) {
        if !self.let_go.contains(&key) {
            self.let_go.push_back(key);
        }
    }

    /// A former agent may have had it guarded, and this one does not: a fencer that is there lets it go. `alone`: this
    /// agent guards nothing else either.
    pub fn let_go(&mut self, poll: &mut Poll, key: String, alone: bool) {
        self.guards_nobody = alone;
        self.strangers.push(key.clone());
        self.no_more(key);
        self.tick(poll, Instant::now());
    }

    /// What the fencer stood by for until it was told to let it go.
    pub fn disarmed(&mut self) -> Option<String> {
        self.disarmed.pop_front()
    }

    /// Until when it may take writes; `None`: it is no master. Sent before this returns, unless the socket is full.
    pub fn lease(&mut self, id: InstanceId, until: Option<Instant>) {
        let Some(guarded) = self.guarded.get_mut(&id) else { return };
        guarded.lease = Some(until);
        guarded.lease_due = true;
        self.send_all();
    }

    /// Until when it may take writes at most, where the fencer knows of no lease.
    pub fn grace(&mut self, id: InstanceId, until: Instant) {
        let Some(guarded) = self.guarded.get_mut(&id) else { return };
        guarded.grace = Some(until);
        guarded.lease_due = true;
        self.send_all();
    }

    /// The socket is ready.
    pub fn ready(&mut self, poll: &mut Poll, ready: Ready) {
        if self.link.as_ref().is_none_or(|link| link.token != ready.token) {
            return;
        }
        if ready.writable
            && let Some(link) = &mut self.link
        {
            link.full = false;
        }
        let gone = ready.readable && self.hear().is_err();
        if gone {
            self.lost(poll, "it is gone");
        }
        self.tick(poll, Instant::now());
    }

    /// Does what is due.
    pub fn tick(&mut self, poll: &mut Poll, now: Instant) {
        let late =
            |link: &Link| link.asked.is_some_and(|asked| now.saturating_duration_since(asked) >= PATIENCE);
        if self.link.as_ref().is_some_and(late) {
            self.kill();
            self.lost(poll, "it does not answer");
        }
        if self.link.is_none() && self.is_needed() && self.rests.is_none_or(|until| until <= now) {
            self.begin(poll, now);
        }
        self.ping(now);
        self.send_all();
        if let Some(link) = &mut self.link
            && link.awaits_room != link.full
        {
            link.awaits_room = link.full;
            let _ = poll.modify(&link.socket, link.token, link.full);
        }
        self.retire_others(poll, now);
    }

    /// When something is due if nothing happens.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        match &self.link {
            Some(link) => link
                .asked
                .map(|asked| asked + PATIENCE)
                .or_else(|| (!self.guarded.is_empty()).then_some(link.next_ping))
                .into_iter()
                .chain(self.others_until.filter(|_| self.is_complete()))
                .min(),
            None => self.rests.filter(|_| self.is_needed()),
        }
    }

    /// Whether a fencer stands by for an instance, where that changed.
    pub fn news(&mut self) -> Option<(InstanceId, bool)> {
        self.news.pop_front()
    }

    /// What the fencer does to an instance. One that holds a lease all the same, because it arrived in the very moment,
    /// has to be released from the fence.
    pub fn fenced(&mut self) -> Option<(InstanceId, Fencing)> {
        self.fenced.pop_front()
    }

    /// The fencer's process, where it is connected.
    #[must_use]
    pub fn pid(&self) -> Option<Pid> {
        self.link.as_ref().map(|link| link.pid)
    }

    fn is_needed(&self) -> bool {
        !self.guarded.is_empty() || !self.let_go.is_empty()
    }

    // The process

    fn begin(&mut self, poll: &mut Poll, now: Instant) {
        self.rests = Some(now + self.pause);
        self.pause = (self.pause * 2).min(PAUSE_LONGEST);
        let found = match self.adopt() {
            // Where there is none, there is nothing to let go.
            Err(_) if self.guarded.is_empty() => {
                if self.guards_nobody {
                    self.retire(&self.others());
                }
                return self.let_go.clear();
            }
            Err(_) => self.spawn(),
            adopted => adopted,
        };
        let linked = found.and_then(|(socket, pid)| {
            let token = poll.add(&socket, Source::Fencer, false)?;
            let (pidfd, asked, next_ping) = (pidfd(pid), None, now);
            Ok(Link { socket, token, pid, pidfd, asked, next_ping, full: false, awaits_room: false })
        });
        match linked {
            Ok(link) => self.link = Some(link),
            Err(e) => log::error!("cannot start the fencer: {e}"),
        }
        for guarded in self.guarded.values_mut() {
            guarded.arm_due = true;
        }
    }

    fn adopt(&self) -> io::Result<(OwnedFd, Pid)> {
        let socket = self.connect_to(SOCKET_NAME)?;
        let pid = sockopt::socket_peercred(&socket)?.pid.as_raw_nonzero().get();
        let pid = Pid(u32::try_from(pid).map_err(io::Error::other)?);
        log::info!("the fencer (pid {pid}) is adopted");
        Ok((socket, pid))
    }

    fn connect_to(&self, name: &str) -> io::Result<OwnedFd> {
        let dir = fs::File::open(&self.state_dir)?;
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        connect(&socket, &address_in(dir.as_fd(), name)?)?;
        Ok(socket)
    }

    /// The new fencer gets its end of the socket as standard input, so there is no moment in which it does not listen
    /// yet. It makes its own session: a step between fork and exec would cost `vfork`.
    fn spawn(&self) -> io::Result<(OwnedFd, Pid)> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        let mut command = Command::new(&self.program);
        command.arg("fencer").arg("--state-dir").arg(&self.state_dir).env_clear();
        command.stdin(theirs).stdout(Stdio::null()).stderr(Stdio::null());
        // Nobody waits for it: it outlives this agent, else the loop reaps it with the orphans.
        let pid = Pid(command.spawn()?.id());
        log::info!("the fencer is started as pid {pid}");
        Ok((ours, pid))
    }

    fn kill(&self) {
        if let Some(pidfd) = self.link.as_ref().and_then(|link| link.pidfd.as_ref()) {
            let _ = pidfd_send_signal(pidfd, Signal::KILL);
        }
    }

    fn lost(&mut self, poll: &mut Poll, why: &str) {
        let Some(link) = self.link.take() else { return };
        poll.remove(link.socket, link.token);
        log::error!("the fencer is lost, another is started: {why}");
        for (id, guarded) in &mut self.guarded {
            if std::mem::take(&mut guarded.stands_by) {
                self.news.push_back((*id, false));
            }
        }
    }

    /// Fencers of other versions go once this version's stands by for everything. A server that cannot be rehearsed by
    /// then may be a master whose lease only they know: it gets a short one, and only a kill ends it.
    fn retire_others(&mut self, poll: &mut Poll, now: Instant) {
        if !self.others || !self.is_complete() {
            return;
        }
        let others = self.others();
        if !others.is_empty() && !self.unguarded.is_empty() {
            if now < *self.others_until.get_or_insert(now + OTHERS_WAIT) {
                return;
            }
            for (id, server) in std::mem::take(&mut self.unguarded) {
                let Some(pid) = server.pid else { continue };
                log::warn!("{} tells nothing: its lease ends in {UNTOLD_GRACE:?} unless it does", server.key);
                let Unguarded { address, within, .. } = server;
                let means = Means { address, send: Vec::new(), expect: Vec::new(), within };
                self.arm(poll, id, &server.key, pid, means);
                self.grace(id, now + UNTOLD_GRACE);
            }
            return self.retire_others(poll, now);
        }
        self.retire(&others);
    }

    fn is_complete(&self) -> bool {
        self.is_needed() && self.guarded.values().all(|guarded| guarded.stands_by)
    }

    /// The sockets of fencers of other versions.
    fn others(&self) -> Vec<String> {
        let names = fs::read_dir(&self.state_dir).into_iter().flatten().filter_map(Result::ok);
        let is_other = |name: &String| {
            name.starts_with(SOCKET_PREFIX) && name.ends_with(SOCKET_SUFFIX) && name != SOCKET_NAME
        };
        names.filter_map(|entry| entry.file_name().into_string().ok()).filter(is_other).collect()
    }

    fn retire(&mut self, others: &[String]) {
        self.others = false;
        self.others_until = None;
        self.unguarded.clear();
        for name in others {
            if let Ok(socket) = self.connect_to(name)
                && send(&socket, Message::Retire.encode().bytes(), SEND_FLAGS).is_ok()
            {
                log::info!("the fencer of another version ({name}) is retired");
                // What it did in the end it told nobody.
                self.fenced.extend(self.guarded.keys().map(|id| (*id, Fencing::Fenced)));
                self.disarmed.extend(self.strangers.drain(..));
            }
        }
    }

    // What is said

    fn ping(&mut self, now: Instant) {
        let Some(link) = &mut self.link else { return };
        if link.asked.is_some() || now < link.next_ping {
            return;
        }
        // A socket that stays full is a fencer that does not read: the time runs for it, too.
        link.asked = Some(now);
        link.next_ping = now + PING_EVERY;
        link.say(&Message::Ping);
    }

    /// Sends all that the fencer does not know yet, as far as the socket takes it. Leases come first: they are of
    /// servers that are masters.
    fn send_all(&mut self) {
        let Some(link) = &mut self.link else { return };
        for guarded in self.guarded.values_mut().filter(|guarded| guarded.lease_due && !guarded.arm_due) {
            if !link.say(&Message::Lease(guarded.key.as_bytes(), guarded.told())) {
                return;
            }
            guarded.lease_due = false;
        }
        while let Some(key) = self.let_go.front() {
            if !link.say(&Message::Disarm(key.as_bytes())) {
                return;
            }
            self.let_go.pop_front();
        }
        for guarded in self.guarded.values_mut().filter(|guarded| guarded.arm_due) {
            if !link.say(&Message::Arm(guarded.arming())) {
                return;
            }
            (guarded.arm_due, guarded.lease_due) = (false, false);
        }
    }

    fn hear(&mut self) -> io::Result<()> {
        let mut frame = [0u8; FRAME_AT_MOST];
        while let Some(link) = &mut self.link {
            let len = match recv(&link.socket, &mut frame[..], RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok((_, len)) => len.min(FRAME_AT_MOST),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => continue,
                Err(e) => return Err(e.into()),
            };
            link.asked = None;
            self.pause = PAUSE_FIRST;
            let answer = Answer::decode(&frame[..len]);
            self.heard(&answer.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?);
        }
        Ok(())
    }

    fn heard(&mut self, answer: &Answer<'_>) {
        if let Answer::Disarmed(key, true) = *answer {
            return self.disarmed.push_back(String::from_utf8_lossy(key).into_owned());
        }
        let (Answer::Armed(key, _)
        | Answer::Refused(key, _)
        | Answer::Fencing(key, _)
        | Answer::Gone(key, _)) = *answer
        else {
            return;
        };
        let found = self.guarded.iter_mut().find(|(_, guarded)| guarded.key.as_bytes() == key);
        let Some((id, guarded)) = found else { return };
        let stands_by = match *answer {
            Answer::Armed(_, process) if process == guarded.process && !guarded.arm_due => true,
            Answer::Gone(_, process) if process == guarded.process => false,
            Answer::Refused(_, why) => {
                log::error!("the fencer cannot stand by for {}: {why:?}", guarded.key);
                false
            }
            Answer::Fencing(_, how) => {
                log::error!("the lease of {} ran out, the fencer acts: {how:?}", guarded.key);
                self.fenced.push_back((*id, how));
                return;
            }
            _ => return,
        };
        if std::mem::replace(&mut guarded.stands_by, stands_by) != stands_by {
            self.news.push_back((*id, stands_by));
        }
    }
}

const SEND_FLAGS: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);

impl Link {
    /// Whether it was taken. One that is broken is noticed by the loop, which finds the socket readable.
    fn say(&mut self, message: &Message<'_>) -> bool {
        if self.full {
            return false;
        }
        match send(&self.socket, message.encode().bytes(), SEND_FLAGS) {
            Ok(_) => true,
            Err(Errno::AGAIN) => {
                self.full = true;
                false
            }
            Err(_) => false,
        }
    }
}

impl Guarded {
    fn told(&self) -> Lease {
        match (self.lease, self.grace) {
            (None, Some(grace)) => match told(Some(Some(grace))) {
                Lease::Until(until) => Lease::AtMost(until),
                other => other,
            },
            (lease, _) => told(lease),
        }
    }

    fn arming(&self) -> Arm<'_> {
        Arm {
            key: self.key.as_bytes(),
            process: self.process,
            address: self.means.address,
            send: &self.means.send,
            expect: &self.means.expect,
            within: u64::try_from(self.means.within.as_nanos()).unwrap_or(u64::MAX),
            lease: self.told(),
        }
    }
}

/// A lease as the fencer understands it. `Instant` is of the monotonic clock but does not tell its time, so it goes by
/// the difference to now; what passes between the two looks at the clock makes the lease shorter, never longer.
fn told(lease: Option<Option<Instant>>) -> Lease {
    let clock = monotonic();
    let now = Instant::now();
    let nanoseconds = |long: Duration| u64::try_from(long.as_nanos()).unwrap_or(u64::MAX);
    match lease {
        None => Lease::Kept,
        Some(None) => Lease::None,
        Some(Some(until)) if until >= now => Lease::Until(clock.saturating_add(nanoseconds(until - now))),
        Some(Some(until)) => Lease::Until(clock.saturating_sub(nanoseconds(now - until))),
    }
}

/// A fence that is too long for a frame is none: only a kill helps.
fn feasible(key: &str, means: Means) -> Means {
    if means.send.len() <= SEND_AT_MOST && means.expect.len() <= EXPECT_AT_MOST {
        return means;
    }
    log::warn!("the fence of {key} is too long for the fencer, which will kill it instead");
    Means { send: Vec::new(), expect: Vec::new(), ..means }
}
