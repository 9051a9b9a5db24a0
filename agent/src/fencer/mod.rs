//! The fencer: a process of its own that keeps this host's masters from taking writes when their leases run out unfed.
//!
//! It outlives a dead or stopped agent, and a new agent finds it by its socket. For each instance that may be a master it
//! knows the process, the rehearsed order that stops writes, and until when it may take them. When that moment passes it
//! sends the order; a server that does not answer as it did in the rehearsal within half of the time is killed. It does
//! nothing else, and after its start it allocates nothing.

pub mod message;

use std::{
    fs::File,
    io::{self, Write},
    mem::MaybeUninit,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    time::Duration,
};

use rustix::{
    event::{
        Timespec,
        epoll::{self, CreateFlags, EventData, EventFlags},
    },
    fs::{FlockOperation, Mode, OFlags},
    net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
    time::{ClockId, clock_gettime},
};

use crate::core::failover::FENCE_FOR;
use message::{EXPECT_AT_MOST, Key, Message, Nanos, PACKET_AT_MOST, SEND_AT_MOST};

/// So many instances a host may have that need a fencer.
pub const SLOTS: usize = 1024;
/// The socket's name in the state directory.
pub const SOCKET: &str = "fencer.sock";
/// The name of the file that one fencer at a time locks.
const LOCK: &str = "fencer.lock";
/// A fencer that no agent ever spoke to ends after so long.
const IDLE: Duration = Duration::from_secs(10);

const LISTENER: u64 = 1 << 32;
const AGENT: u64 = 2 << 32;
const PROCESS: u64 = 3 << 32;
const SERVER: u64 = 4 << 32;

/// What is done about an instance.
#[derive(Debug)]
enum Watch {
    /// Its lease runs, or it has none.
    Waiting,
    /// The order is on its way.
    Fencing { socket: OwnedFd, sent: bool, got: usize, until: Nanos },
    /// It takes no writes, until the fence must be renewed.
    Fenced { renew: Nanos },
    /// SIGKILL was sent.
    Killed,
}

#[derive(Debug)]
struct Slot {
    key: Key,
    pid: u32,
    process: OwnedFd,
    address: SocketAddr,
    within: Nanos,
    send: ([u8; SEND_AT_MOST], usize),
    expect: ([u8; EXPECT_AT_MOST], usize),
    answer: [u8; EXPECT_AT_MOST],
    /// Until when it may take writes; 0: it takes none by itself.
    lease: Nanos,
    watch: Watch,
}

/// A fencer that listens.
#[derive(Debug)]
pub struct Fencer {
    listener: OwnedFd,
    epoll: OwnedFd,
    agent: Option<OwnedFd>,
    slots: Vec<Option<Slot>>,
    /// When it began, until an agent came.
    unclaimed: Option<Nanos>,
    /// Held as long as the fencer lives.
    _lock: File,
}

/// The monotonic clock.
pub fn monotonic() -> Nanos {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

impl Fencer {
    /// A fencer in this directory; `None`: there is one already.
    ///
    /// # Errors
    /// When its files cannot be made or there is no descriptor left.
    pub fn new(state_dir: &Path) -> io::Result<Option<Fencer>> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
        let lock = File::from(rustix::fs::open(state_dir.join(LOCK), flags, Mode::from_raw_mode(0o600))?);
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(None);
        }
        let path = state_dir.join(SOCKET);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let listener = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        rustix::net::bind(&listener, &SocketAddrUnix::new(&path)?)?;
        rustix::fs::chmod(&path, Mode::from_raw_mode(0o600))?;
        rustix::net::listen(&listener, 8)?;
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
        let mut slots = Vec::with_capacity(SLOTS);
        slots.resize_with(SLOTS, || None);
        Ok(Some(Fencer { listener, epoll, agent: None, slots, unclaimed: Some(monotonic()), _lock: lock }))
    }

    /// Works until there is nothing to watch and nobody to work for.
    ///
    /// # Errors
    /// When the epoll itself breaks.
    pub fn run(&mut self) -> io::Result<()> {
        while self.turn()? {}
        Ok(())
    }

    /// Waits for something to do, and does it; tells whether there is more.
    ///
    /// # Errors
    /// When the epoll itself breaks.
    pub fn turn(&mut self) -> io::Result<bool> {
        let now = monotonic();
        let busy = self.agent.is_some() || self.slots.iter().any(Option::is_some);
        if !busy && self.unclaimed.is_none_or(|since| now >= since + nanos(IDLE)) {
            return Ok(false);
        }
        let next = self.slots.iter().flatten().filter_map(Slot::next).min().unwrap_or(now + nanos(IDLE));
        let wait = Timespec::try_from(Duration::from_nanos(next.saturating_sub(now))).ok();
        let mut events = [const { MaybeUninit::uninit() }; 64];
        let ready = match epoll::wait(&self.epoll, &mut events, wait.as_ref()) {
            Ok((ready, _)) => &*ready,
            Err(rustix::io::Errno::INTR) => &[],
            Err(e) => return Err(e.into()),
        };
        for event in ready {
            let (kind, number) = (event.data.u64() >> 32 << 32, event.data.u64() & 0xffff_ffff);
            let place = usize::try_from(number).unwrap_or(usize::MAX);
            match kind {
                LISTENER => self.accept(),
                AGENT => self.hear(),
                PROCESS => self.drop_dead(place),
                SERVER => self.serve(place),
                _ => {}
            }
        }
        self.keep_leases();
        Ok(true)
    }

    /// Whether an instance takes no writes by our doing.
    pub fn is_fenced(&self, key: Key) -> bool {
        self.slots.iter().flatten().any(|slot| slot.key == key && matches!(slot.watch, Watch::Fenced { .. }))
    }

    // The agent

    /// The newest agent is the one that counts.
    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let Ok(agent) = rustix::net::accept_with(&self.listener, flags) else { return };
        if epoll::add(&self.epoll, &agent, EventData::new_u64(AGENT), EventFlags::IN | EventFlags::RDHUP)
            .is_ok()
        {
            self.agent = Some(agent);
            self.unclaimed = None;
        }
    }

    fn hear(&mut self) {
        let mut packet = [0; PACKET_AT_MOST];
        loop {
            let Some(agent) = &self.agent else { return };
            match rustix::net::recv(agent, &mut packet[..], RecvFlags::DONTWAIT) {
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return,
                Ok((_, 0)) | Err(_) => return self.agent = None,
                Ok((length, _)) => {
                    if let Some(message) = message::decode(&packet[..length.min(PACKET_AT_MOST)]) {
                        self.obey(&message);
                    }
                }
            }
        }
    }

    fn obey(&mut self, message: &Message<'_>) {
        match *message {
            Message::Arm { key, pid, start, address, within, send, expect } => {
                let lease = self.slot(key).map_or(0, |slot| slot.lease);
                let Some(process) = open_process(pid, start) else { return };
                let mut slot = Slot {
                    key,
                    process,
                    address,
                    within: nanos(within),
                    send: ([0; SEND_AT_MOST], send.len()),
                    expect: ([0; EXPECT_AT_MOST], expect.len()),
                    answer: [0; EXPECT_AT_MOST],
                    // A new agent says so itself when the same process may take writes for longer.
                    lease: if self.slot(key).is_some_and(|old| old.is_same(pid)) { lease } else { 0 },
                    pid,
                    watch: Watch::Waiting,
                };
                slot.send.0[..send.len()].copy_from_slice(send);
                slot.expect.0[..expect.len()].copy_from_slice(expect);
                self.arm(slot);
            }
            Message::Lease { key, until } => {
                let now = monotonic();
                if let Some(slot) = self.slot(key) {
                    slot.lease = until;
                    if (until == 0 || until > now) && !matches!(slot.watch, Watch::Killed) {
                        slot.watch = Watch::Waiting;
                    }
                }
            }
            Message::Disarm { key } => {
                if let Some(place) = self.place(key) {
                    self.slots[place] = None;
                }
            }
            Message::Armed { .. } => {}
        }
    }

    fn place(&self, key: Key) -> Option<usize> {
        self.slots.iter().position(|slot| slot.as_ref().is_some_and(|slot| slot.key == key))
    }

    fn slot(&mut self, key: Key) -> Option<&mut Slot> {
        self.slots.iter_mut().flatten().find(|slot| slot.key == key)
    }

    fn arm(&mut self, slot: Slot) {
        let key = slot.key;
        let free = self.slots.iter().position(Option::is_none);
        let Some(place) = self.place(key).or(free) else { return };
        // The old process' descriptor leaves the epoll with its slot.
        self.slots[place] = None;
        let number = PROCESS | place as u64;
        if epoll::add(&self.epoll, &slot.process, EventData::new_u64(number), EventFlags::IN).is_err() {
            return;
        }
        self.slots[place] = Some(slot);
        let mut packet = [0; PACKET_AT_MOST];
        if let (Some(agent), Some(armed)) =
            (&self.agent, message::encode(&Message::Armed { key }, &mut packet))
        {
            // One that does not take it will be told when it asks again.
            let _ = rustix::net::send(agent, armed, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        }
    }

    // The servers

    fn drop_dead(&mut self, place: usize) {
        if let Some(slot) = self.slots.get_mut(place) {
            *slot = None;
        }
    }

    fn keep_leases(&mut self) {
        let now = monotonic();
        for place in 0..self.slots.len() {
            let Some(slot) = &mut self.slots[place] else { continue };
            match &slot.watch {
                Watch::Waiting if slot.lease != 0 && now >= slot.lease => self.fence(place, now),
                Watch::Fenced { renew } if now >= *renew => self.fence(place, now),
                Watch::Fencing { until, .. } if now >= *until => slot.kill("it did not answer in time"),
                _ => {}
            }
        }
    }

    fn fence(&mut self, place: usize, now: Nanos) {
        let Some(Some(slot)) = self.slots.get_mut(place) else { return };
        if slot.send.1 == 0 {
            return slot.kill("nothing else would stop its writes");
        }
        let family = if slot.address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let Ok(socket) = rustix::net::socket_with(family, SocketType::STREAM, flags, None) else {
            return slot.kill("there is no descriptor left to stop its writes with");
        };
        match rustix::net::connect(&socket, &slot.address) {
            Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
            Err(_) => return slot.kill("it cannot be connected to"),
        }
        let number = EventData::new_u64(SERVER | place as u64);
        if epoll::add(&self.epoll, &socket, number, EventFlags::OUT).is_err() {
            return slot.kill("it cannot be waited for");
        }
        slot.watch = Watch::Fencing { socket, sent: false, got: 0, until: now + slot.within / 2 };
    }

    fn serve(&mut self, place: usize) {
        let Some(Some(slot)) = self.slots.get_mut(place) else { return };
        let Slot { watch: Watch::Fencing { socket, sent, got, .. }, send, expect, answer, .. } = slot else {
            return;
        };
        if !*sent {
            let order = &send.0[..send.1];
            // A new connection takes as little as this in one go, or not at all.
            if rustix::net::send(&*socket, order, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
                != Ok(order.len())
            {
                return slot.kill("it does not take the order to stop writes");
            }
            *sent = true;
            let number = EventData::new_u64(SERVER | place as u64);
            if epoll::modify(&self.epoll, &*socket, number, EventFlags::IN).is_err() {
                slot.kill("it cannot be waited for");
            }
            return;
        }
        match rustix::net::recv(&*socket, &mut answer[*got..], RecvFlags::DONTWAIT) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return,
            Ok((0, _)) | Err(_) => return slot.kill("it closed the connection"),
            Ok((length, _)) => *got += length,
        }
        let (expected, answered) = (&expect.0[..expect.1], &answer[..*got]);
        if answered == expected {
            tell(slot.key, "its lease ran out: it takes no writes");
            slot.watch = Watch::Fenced { renew: monotonic() + nanos(FENCE_FOR) / 2 };
        } else if !expected.starts_with(answered) {
            slot.kill("it refused the order to stop writes");
        }
    }
}

impl Slot {
    fn is_same(&self, pid: u32) -> bool {
        self.pid == pid
    }

    /// When there is something to do about it.
    fn next(&self) -> Option<Nanos> {
        match &self.watch {
            Watch::Waiting => (self.lease != 0).then_some(self.lease),
            Watch::Fencing { until, .. } => Some(*until),
            Watch::Fenced { renew } => Some(*renew),
            Watch::Killed => None,
        }
    }

    fn kill(&mut self, why: &str) {
        tell(self.key, "its lease ran out: it is killed, for ");
        tell(self.key, why);
        // One that is dead already is what was wanted.
        let _ = pidfd_send_signal(&self.process, Signal::KILL);
        self.watch = Watch::Killed;
    }
}

/// Opens a process, if it is the one that was started then.
fn open_process(pid: u32, start: u64) -> Option<OwnedFd> {
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
    let process = pidfd_open(raw, PidfdFlags::empty()).ok()?;
    (start_of(pid)? == start).then_some(process)
}

/// When a process was started, in ticks since the boot: field 22 of its `stat`.
pub fn start_of(pid: u32) -> Option<u64> {
    let mut path = [0_u8; 32];
    let length = {
        let mut rest = &mut path[..];
        write!(rest, "/proc/{pid}/stat").ok()?;
        32 - rest.len()
    };
    let file = rustix::fs::open(&path[..length], OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut text = [0; 1024];
    let (length, _) = rustix::io::read(&file, &mut text).map(|length| (length, ())).ok()?;
    // The name may hold anything, up to the last parenthesis.
    let text = &text[..length];
    let after = text.iter().rposition(|byte| *byte == b')')? + 1;
    let field = text[after..].split(|byte| *byte == b' ').nth(20)?;
    std::str::from_utf8(field).ok()?.parse().ok()
}

/// One line on standard error.
fn tell(key: Key, what: &str) {
    let mut line = [0; 160];
    let mut rest = &mut line[..];
    // A line that is too long is cut.
    let _ = writeln!(rest, "fencer: port {key}: {what}");
    let length = 160 - rest.len();
    let _ = rustix::io::write(rustix::stdio::stderr().as_fd(), &line[..length]);
}

fn nanos(duration: Duration) -> Nanos {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
