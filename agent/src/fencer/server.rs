//! The fencer's one thread: an epoll, the agent's socket, a pidfd and at times a connection for each server.
//!
//! After [`Server::new`] nothing is allocated and nothing blocks.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::{
    buffer::spare_capacity,
    event::{
        Timespec,
        epoll::{self, CreateFlags, EventData, EventFlags},
    },
    fs::{FlockOperation, flock},
    io::Errno,
    net::{RecvFlags, SendFlags, SocketFlags, accept_with, recv, send},
    process::{Pid, PidfdFlags, Resource, Rlimit, Signal, pidfd_open, pidfd_send_signal},
};

use super::{
    LOCK_NAME, SOCKET_NAME, monotonic, proc,
    socket::{Connection, Progress, has_room, listen_at},
    syslog::Syslog,
    table::{Phase, Step, Table},
    wire::{Answer, Arm, FRAME_AT_MOST, Fencing, Message, ProcessId, Refusal},
};

/// The most servers that are guarded.
pub const SERVERS_AT_MOST: usize = 1024;
/// How many descriptors that takes: two a server, and some of its own.
const OPEN_FILES: u64 = 2 * SERVERS_AT_MOST as u64 + 64;
/// How long it stays without an agent and without anything to guard, in nanoseconds: an agent that is just being
/// restarted finds it.
const LINGER: u64 = 10_000_000_000;
const EVENTS_AT_ONCE: usize = 64;

/// What the kernel has of a server.
#[derive(Debug, Default)]
struct Slot {
    /// Rises with each process, so that news of an earlier one is not taken for this one's.
    generation: u32,
    pidfd: Option<OwnedFd>,
    connection: Option<Connection>,
}

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Listener,
    Agent,
    Process(usize, u32),
    Connection(usize, u32),
}

impl Source {
    fn data(self) -> EventData {
        let of = |kind: u64, index: usize, generation: u32| {
            kind | (index as u64 & 0xff_ffff) << 8 | u64::from(generation) << 32
        };
        EventData::new_u64(match self {
            Source::Listener => 0,
            Source::Agent => 1,
            Source::Process(index, generation) => of(2, index, generation),
            Source::Connection(index, generation) => of(3, index, generation),
        })
    }

    fn of(data: EventData) -> Source {
        let data = data.u64();
        let (index, generation) = ((data >> 8 & 0xff_ffff) as usize, (data >> 32) as u32);
        match data & 0xff {
            0 => Source::Listener,
            1 => Source::Agent,
            2 => Source::Process(index, generation),
            _ => Source::Connection(index, generation),
        }
    }
}

/// The fencer.
pub struct Server {
    table: Table,
    slots: Box<[Slot]>,
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
    inbox: Box<[u8; FRAME_AT_MOST]>,
    listener: OwnedFd,
    agent: Option<OwnedFd>,
    /// The agent is listened to; else it is waited for until it has taken its answers.
    hears: bool,
    lonely_since: u64,
    retired: bool,
    syslog: Syslog,
    socket: PathBuf,
    _lock: fs::File,
}

impl Server {
    /// Listens in `dir`; `agent` is an agent that is there already.
    ///
    /// # Errors
    /// Another fencer of this version has the directory, or the socket can't be made.
    pub fn new(dir: &Path, agent: Option<OwnedFd>) -> io::Result<Server> {
        let lock = fs::OpenOptions::new().create(true).append(true).open(dir.join(LOCK_NAME))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|e| io::Error::other(format!("another fencer has it: {e}")))?;
        let socket = dir.join(SOCKET_NAME);
        let listener = listen_at(dir, &socket)?;
        raise_open_files();
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &listener, Source::Listener.data(), EventFlags::IN)?;
        let mut server = Server {
            table: Table::new(SERVERS_AT_MOST),
            slots: std::iter::repeat_with(Slot::default).take(SERVERS_AT_MOST).collect(),
            epoll,
            events: Vec::with_capacity(EVENTS_AT_ONCE),
            inbox: Box::new([0; FRAME_AT_MOST]),
            listener,
            agent: None,
            hears: true,
            lonely_since: monotonic(),
            retired: false,
            syslog: Syslog::new(),
            socket,
            _lock: lock,
        };
        if let Some(agent) = agent {
            rustix::io::ioctl_fionbio(&agent, true)?;
            server.welcome(agent);
        }
        Ok(server)
    }

    /// Waits for what comes next and does it; `false`: it was retired, or has had nothing to guard and no agent for a
    /// while.
    ///
    /// # Errors
    /// The epoll is broken.
    pub fn turn(&mut self) -> io::Result<bool> {
        self.wait()?;
        for at in 0..self.events.len() {
            let event = self.events[at];
            self.take(Source::of(event.data));
        }
        // A lease that has arrived counts even where its predecessor has just run out.
        if self.table.next_deadline().is_some_and(|at| at <= monotonic()) {
            self.hear();
        }
        let now = monotonic();
        while let Some(step) = self.table.due(now) {
            self.act(step);
        }
        let lonely = self.agent.is_none() && self.table.is_empty();
        let deserted = lonely && now.saturating_sub(self.lonely_since) >= LINGER;
        Ok(!self.retired && !deserted)
    }

    fn wait(&mut self) -> io::Result<()> {
        let lonely = self.agent.is_none() && self.table.is_empty();
        let leave = lonely.then_some(self.lonely_since + LINGER);
        let limit = self.table.next_deadline().into_iter().chain(leave).min().map(|at| {
            let left = at.saturating_sub(monotonic());
            Timespec { tv_sec: (left / 1_000_000_000) as i64, tv_nsec: (left % 1_000_000_000) as i64 }
        });
        self.events.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), limit.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    fn take(&mut self, source: Source) {
        match source {
            Source::Listener => {
                let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
                if let Ok(agent) = accept_with(&self.listener, flags) {
                    self.welcome(agent);
                }
            }
            Source::Agent => self.hear(),
            Source::Process(index, generation) if self.is_current(index, generation) => {
                self.process_gone(index);
            }
            Source::Connection(index, generation) if self.is_current(index, generation) => {
                self.converse(index);
            }
            Source::Process(..) | Source::Connection(..) => {}
        }
    }

    fn is_current(&self, index: usize, generation: u32) -> bool {
        self.slots.get(index).is_some_and(|slot| slot.generation == generation)
    }

    // The agent

    /// The newest agent is the one that counts.
    fn welcome(&mut self, agent: OwnedFd) {
        if epoll::add(&self.epoll, &agent, Source::Agent.data(), EventFlags::IN).is_ok() {
            (self.agent, self.hears) = (Some(agent), true);
        }
    }

    fn agent_gone(&mut self) {
        self.agent = None;
        self.lonely_since = monotonic();
    }

    fn tell(&mut self, answer: &Answer<'_>) {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let Some(agent) = &self.agent else { return };
        // An agent that does not listen comes again, and is told anew.
        if send(agent, answer.encode().bytes(), flags).is_err() {
            self.agent_gone();
        }
    }

    /// Everything the agent has said by now; more of it is heard only while there is room for the answers.
    fn hear(&mut self) {
        while let Some(agent) = &self.agent {
            let room = has_room(agent);
            let interest = if room { EventFlags::IN } else { EventFlags::OUT };
            if room != self.hears
                && epoll::modify(&self.epoll, agent, Source::Agent.data(), interest).is_err()
            {
                return self.agent_gone();
            }
            self.hears = room;
            if !room {
                return;
            }
            match recv(agent, &mut self.inbox[..], RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return self.agent_gone(),
                Ok((_, len)) => self.heard(len),
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Err(_) => return self.agent_gone(),
            }
        }
    }

    fn heard(&mut self, len: usize) {
        // A copy on the stack, so that what it says can be borrowed while the rest changes.
        let frame = *self.inbox;
        match Message::decode(&frame[..len.min(FRAME_AT_MOST)]) {
            Some(Message::Arm(arm)) => self.arm(&arm),
            Some(Message::Lease(key, lease)) => {
                if let Some(index) = self.table.find(key) {
                    self.table.lease(index, lease, monotonic());
                }
            }
            Some(Message::Disarm(key)) => {
                let index = self.table.find(key);
                if let Some(index) = index {
                    self.forget(index);
                }
                self.tell(&Answer::Disarmed(key, index.is_some()));
            }
            Some(Message::Ping) => self.tell(&Answer::Pong),
            Some(Message::Retire) => self.retired = true,
            None => self.agent_gone(),
        }
    }

    fn arm(&mut self, arm: &Arm<'_>) {
        let known = self.table.find(arm.key);
        let same = known.and_then(|index| self.table.entry(index)).is_some_and(|e| e.process == arm.process);
        let Some(index) = known.or_else(|| self.table.free()) else {
            return self.tell(&Answer::Refused(arm.key, Refusal::Full));
        };
        if !same && let Err(why) = self.watch(index, arm.process) {
            self.forget(index);
            return self.tell(&Answer::Refused(arm.key, why));
        }
        self.table.arm(index, arm);
        self.table.lease(index, arm.lease, monotonic());
        self.tell(&Answer::Armed(arm.key, arm.process));
        let told = match self.table.entry(index).map(|entry| entry.phase) {
            Some(Phase::Fencing { .. }) => Fencing::Begun,
            Some(Phase::Fenced { .. }) => Fencing::Fenced,
            Some(Phase::Killed { .. }) => Fencing::Killed,
            Some(Phase::Fed) | None => return,
        };
        self.tell(&Answer::Fencing(arm.key, told));
    }

    // Processes

    /// The pidfd comes first: if the start time is right after that, the pidfd is of the right process.
    fn watch(&mut self, index: usize, process: ProcessId) -> Result<(), Refusal> {
        let slot = &mut self.slots[index];
        slot.connection = None;
        slot.pidfd = None;
        slot.generation = slot.generation.wrapping_add(1);
        let pid = i32::try_from(process.pid).ok().and_then(Pid::from_raw).ok_or(Refusal::Gone)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|e| match e {
            Errno::SRCH => Refusal::Gone,
            _ => Refusal::Unwatched,
        })?;
        if proc::start_ticks(process.pid) != Some(process.start_ticks) {
            return Err(Refusal::Gone);
        }
        let source = Source::Process(index, slot.generation);
        epoll::add(&self.epoll, &pidfd, source.data(), EventFlags::IN).map_err(|_| Refusal::Unwatched)?;
        slot.pidfd = Some(pidfd);
        Ok(())
    }

    fn process_gone(&mut self, index: usize) {
        if let Some(entry) = self.table.entry(index) {
            let frame = Answer::Gone(entry.key(), entry.process).encode();
            if let Some(answer) = Answer::decode(frame.bytes()) {
                self.tell(&answer);
            }
        }
        self.forget(index);
    }

    fn forget(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        (slot.pidfd, slot.connection) = (None, None);
        slot.generation = slot.generation.wrapping_add(1);
        self.table.forget(index);
        self.lonely_since = monotonic();
    }

    fn kill(&mut self, index: usize) {
        self.slots[index].connection = None;
        if let Some(pidfd) = &self.slots[index].pidfd {
            let _ = pidfd_send_signal(pidfd, Signal::KILL);
        }
        self.report(index, Fencing::Killed);
    }

    // The fence

    fn act(&mut self, step: Step) {
        match step {
            Step::Fence(index) => {
                self.report(index, Fencing::Begun);
                match self.connect(index) {
                    Ok(()) => self.converse(index),
                    Err(_) => self.ended(index, false),
                }
            }
            Step::Kill(index) => self.kill(index),
        }
    }

    fn report(&mut self, index: usize, how: Fencing) {
        let Some(entry) = self.table.entry(index) else { return };
        self.syslog.say(entry.key(), how);
        let frame = Answer::Fencing(entry.key(), how).encode();
        if let Some(answer) = Answer::decode(frame.bytes()) {
            self.tell(&answer);
        }
    }

    fn connect(&mut self, index: usize) -> rustix::io::Result<()> {
        let entry = self.table.entry(index).ok_or(Errno::INVAL)?;
        let connection = Connection::begin(entry.address)?;
        let slot = &mut self.slots[index];
        let source = Source::Connection(index, slot.generation);
        // By edges: a socket that can be written would else wake this again and again while the server is silent.
        epoll::add(
            &self.epoll,
            &connection,
            source.data(),
            EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET,
        )?;
        slot.connection = Some(connection);
        Ok(())
    }

    fn converse(&mut self, index: usize) {
        let Some(entry) = self.table.entry(index) else { return };
        let Some(connection) = &mut self.slots[index].connection else { return };
        match connection.go_on(entry.send(), entry.expect()) {
            Progress::Unfinished => {}
            Progress::AsExpected => self.ended(index, true),
            Progress::Otherwise => self.ended(index, false),
        }
    }

    fn ended(&mut self, index: usize, as_expected: bool) {
        self.slots[index].connection = None;
        let fed = self.table.entry(index).is_some_and(|entry| entry.phase == Phase::Fed);
        match () {
            () if as_expected => self.report(index, Fencing::Fenced),
            // A lease came meanwhile; what was sent may work all the same.
            () if fed => self.report(index, Fencing::Begun),
            () => {}
        }
        if let Some(step) = self.table.answered(index, as_expected, monotonic()) {
            self.act(step);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.socket);
    }
}

fn raise_open_files() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < OPEN_FILES) {
        let current = Some(limit.maximum.map_or(OPEN_FILES, |maximum| maximum.min(OPEN_FILES)));
        let _ = rustix::process::setrlimit(Resource::Nofile, Rlimit { current, ..limit });
    }
}
