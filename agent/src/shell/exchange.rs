//! Conversations: the bytes between a backend's hooks and its server.
//!
//! A [`Line`] is what leads to one instance: its address, its backend, a connection kept for light probes and samples,
//! and the conversation that is under way. It opens sockets and moves bytes; deadlines are the core's, meaning is the
//! backend's.

use std::{
    io::{self, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType},
};

use super::poll::{Poll, Ready, Source, Token};
use crate::{
    core::{
        Others, Outcome, ProcessState, Sample, Talk,
        failover::{FENCE_FOR, Order, Replica, Role, View},
    },
    plugin::{Backend, Event, Hook, Reply, Step},
};

/// The longest reply that a hook is given.
const REPLY_AT_MOST: usize = 1 << 20;
/// How much is read in one go.
const READ_AT_ONCE: usize = 16 * 1024;

/// What a conversation is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Matter {
    /// A probe or a sample.
    Talk(Talk),
    /// An order of a failover.
    Order(Order),
    /// A fence of a millisecond on a connection of its own: how the server answers is kept for the fencer.
    Rehearsal,
}

impl Matter {
    fn hook(&self) -> Hook {
        match self {
            Matter::Talk(Talk::Sample) => Hook::Stats,
            Matter::Talk(_) => Hook::Probe,
            Matter::Order(Order::Inspect) => Hook::Inspect,
            Matter::Order(Order::Promote) => Hook::Promote,
            Matter::Order(Order::Follow { .. }) => Hook::Follow,
            Matter::Order(Order::Fence { .. }) | Matter::Rehearsal => Hook::Fence,
            Matter::Order(Order::Unfence { .. }) => Hook::Unfence,
        }
    }

    /// The hook's arguments, as the contract names them.
    fn args(&self) -> Vec<(&'static str, String)> {
        match self {
            Matter::Talk(Talk::Unstick) => vec![("unstick", "1".to_owned())],
            Matter::Order(Order::Follow { host, port, drop_clients }) => {
                let mut args = vec![("host", host.clone()), ("port", port.to_string())];
                args.extend(drop_clients.then(|| ("drop_clients", "1".to_owned())));
                args
            }
            Matter::Order(Order::Promote) => vec![("fence_ms", FENCE_FOR.as_millis().to_string())],
            Matter::Order(Order::Fence { long }) => vec![("ms", long.as_millis().to_string())],
            Matter::Order(Order::Unfence { min_replicas }) => {
                vec![("min_replicas", min_replicas.to_string())]
            }
            Matter::Rehearsal => vec![("ms", "1".to_owned())],
            Matter::Talk(_) | Matter::Order(_) => Vec::new(),
        }
    }

    /// Whether it has a connection of its own.
    fn is_apart(&self) -> bool {
        matches!(self, Matter::Talk(Talk::Full) | Matter::Rehearsal)
    }
}

#[derive(Debug)]
struct Link {
    stream: TcpStream,
    token: Token,
    wants_write: bool,
}

#[derive(Debug)]
struct Exchange {
    matter: Matter,
    deadline: Instant,
    /// On the kept connection, and this was used before.
    reused: bool,
    /// All bytes since the hook last sent.
    received: Vec<u8>,
    /// What is still to be sent.
    outgoing: Vec<u8>,
}

/// What leads to one instance.
#[derive(Debug)]
pub struct Line {
    source: Source,
    address: SocketAddr,
    /// The instance's backend.
    pub backend: Backend,
    kept: Option<Link>,
    own: Option<Link>,
    exchange: Option<Exchange>,
    reply: Reply,
    /// What the server answered to the last rehearsal.
    rehearsed: Vec<u8>,
}

/// What ends or goes on.
enum Progress {
    Goes,
    Ends(Outcome),
}

impl Line {
    /// A line to an instance, known to the epoll as `source`, that nothing is connected to yet.
    pub fn new(source: Source, address: SocketAddr, backend: Backend) -> Line {
        Line {
            source,
            address,
            backend,
            kept: None,
            own: None,
            exchange: None,
            reply: Reply::default(),
            rehearsed: Vec::new(),
        }
    }

    /// Begins a conversation, ending one that is under way. `Some`: it ended at once.
    pub fn begin(
        &mut self,
        poll: &mut Poll,
        matter: Matter,
        now: Instant,
        deadline: Instant,
    ) -> Option<Outcome> {
        if self.exchange.is_some() {
            self.cancel(poll, now);
        }
        let reused = !matter.is_apart() && self.kept.is_some();
        let (received, outgoing) = (Vec::new(), Vec::new());
        self.exchange = Some(Exchange { matter, deadline, reused, received, outgoing });
        let progress = self.open(poll, now);
        self.settle(poll, progress)
    }

    /// Moves on with what is ready. `Some`: the conversation ended.
    pub fn ready(&mut self, poll: &mut Poll, ready: Ready, now: Instant) -> Option<(Matter, Outcome)> {
        let matter = self.exchange.as_ref().map(|exchange| exchange.matter.clone());
        let idle = self.kept.as_ref().is_some_and(|link| link.token == ready.token)
            && matter.as_ref().is_none_or(Matter::is_apart);
        if idle {
            // Nothing is expected here: the server closed the connection or talks nonsense.
            drop_link(&mut self.kept, poll);
            return None;
        }
        let matter = matter?;
        let progress = self.advance(poll, ready, now);
        self.settle(poll, progress).map(|outcome| (matter, outcome))
    }

    /// Ends the conversation because its deadline passed; which one it was and what to call the miss.
    pub fn expire(&mut self, poll: &mut Poll, now: Instant) -> Option<(Matter, String)> {
        let exchange = self.exchange.as_ref()?;
        let (matter, heard) = (exchange.matter.clone(), exchange.received.len());
        let _ = self.step(Event::Timeout, now);
        self.hang_up(poll);
        let what =
            if heard == 0 { "no answer".to_owned() } else { format!("only {heard} bytes of an answer") };
        Some((matter, what))
    }

    /// The bytes of a fence for so long, as on a new connection, and what the server answers to them; `None`: it was not
    /// rehearsed, or the engine does not know how.
    pub fn fence_by_heart(&mut self, long: Duration, now: Instant) -> Option<(Vec<u8>, Vec<u8>)> {
        let expect = std::mem::take(&mut self.rehearsed);
        if expect.is_empty() || self.exchange.is_some() {
            return None;
        }
        let ms = long.as_millis().to_string();
        let begin = Event::Begin { fresh: true, args: &[("ms", &ms)] };
        self.reply.clear();
        let step = self.backend.step(Hook::Fence, begin, now, now, &mut self.reply);
        let send = std::mem::take(&mut self.reply.send);
        let _ = self.backend.step(Hook::Fence, Event::Cancel, now, now, &mut self.reply);
        (step == Step::More && !send.is_empty()).then_some((send, expect))
    }

    /// Ends the conversation without a word to the core.
    fn cancel(&mut self, poll: &mut Poll, now: Instant) {
        let _ = self.step(Event::Cancel, now);
        self.hang_up(poll);
    }

    /// Closes all connections and forgets the conversation.
    pub fn hang_up(&mut self, poll: &mut Poll) {
        drop_link(&mut self.kept, poll);
        drop_link(&mut self.own, poll);
        self.exchange = None;
    }

    fn link(&mut self) -> Option<&mut Link> {
        if self.exchange.as_ref()?.matter.is_apart() { self.own.as_mut() } else { self.kept.as_mut() }
    }

    /// Connects where it must and says the first words.
    fn open(&mut self, poll: &mut Poll, now: Instant) -> Progress {
        let Some(exchange) = &self.exchange else { return Progress::Goes };
        let (matter, fresh) = (exchange.matter.clone(), !exchange.reused);
        if fresh {
            let link = match connect(self.address, self.source, poll) {
                Ok(link) => link,
                Err(e) => return not_connected(&e),
            };
            let place = if matter.is_apart() { &mut self.own } else { &mut self.kept };
            drop_link(place, poll);
            *place = Some(link);
        }
        let args = matter.args();
        let args: Vec<(&str, &str)> = args.iter().map(|(name, value)| (*name, value.as_str())).collect();
        match self.step(Event::Begin { fresh, args: &args }, now) {
            Progress::Goes => self.flush(poll, now),
            ended => ended,
        }
    }

    fn advance(&mut self, poll: &mut Poll, ready: Ready, now: Instant) -> Progress {
        if self.link().is_none_or(|link| link.token != ready.token) {
            return Progress::Goes;
        }
        if ready.readable {
            match self.receive(poll, now) {
                Progress::Goes => {}
                ended => return ended,
            }
        }
        if ready.writable { self.flush(poll, now) } else { Progress::Goes }
    }

    /// Reads once (the epoll is level-triggered) and gives the hook all it has.
    fn receive(&mut self, poll: &mut Poll, now: Instant) -> Progress {
        let Some(link) = self.link() else { return Progress::Goes };
        let mut bytes = std::mem::take(&mut poll.scratch);
        bytes.clear();
        bytes.reserve(READ_AT_ONCE);
        let read = rustix::io::read(&link.stream, rustix::buffer::spare_capacity(&mut bytes));
        let progress = match read {
            Ok(0) => self.closed("connection closed".to_owned(), poll, now),
            Ok(_) => self.heard(&bytes, poll, now),
            Err(Errno::AGAIN | Errno::INTR) => Progress::Goes,
            Err(e) => self.closed(describe(&e.into()), poll, now),
        };
        poll.scratch = bytes;
        progress
    }

    /// The server takes nothing more; it may have said why before it closed the connection.
    fn refused(&mut self, why: &str, poll: &mut Poll, now: Instant) -> Progress {
        loop {
            let Some(link) = self.link() else { return Progress::Goes };
            let mut bytes = Vec::with_capacity(READ_AT_ONCE);
            match rustix::io::read(&link.stream, rustix::buffer::spare_capacity(&mut bytes)) {
                Ok(1..) => {}
                _ => return self.closed(why.to_owned(), poll, now),
            }
            match self.heard(&bytes, poll, now) {
                Progress::Goes => {}
                ended => return ended,
            }
        }
    }

    fn heard(&mut self, bytes: &[u8], poll: &mut Poll, now: Instant) -> Progress {
        let Some(exchange) = &mut self.exchange else { return Progress::Goes };
        let exchange_is_rehearsal = exchange.matter == Matter::Rehearsal;
        // Most replies come at once and are never copied.
        let mut received = std::mem::take(&mut exchange.received);
        let all = if received.is_empty() {
            bytes
        } else {
            received.extend_from_slice(bytes);
            &received
        };
        if all.len() > REPLY_AT_MOST {
            return Progress::Ends(Outcome::Failed {
                why: format!("a reply of more than {REPLY_AT_MOST} bytes"),
            });
        }
        let progress = self.step(Event::Bytes(all), now);
        if exchange_is_rehearsal {
            self.rehearsed = all.to_vec();
        }
        if !matches!(progress, Progress::Goes) {
            return progress;
        }
        if !self.reply.send.is_empty() {
            return self.flush(poll, now);
        }
        if received.is_empty() {
            received.extend_from_slice(bytes);
        }
        if let Some(exchange) = &mut self.exchange {
            exchange.received = received;
        }
        Progress::Goes
    }

    /// A kept connection may have been closed while nobody spoke: then a new one is tried before it counts.
    fn closed(&mut self, why: String, poll: &mut Poll, now: Instant) -> Progress {
        let Some(exchange) = &mut self.exchange else { return Progress::Goes };
        if exchange.reused && exchange.received.is_empty() {
            exchange.reused = false;
            exchange.outgoing.clear();
            drop_link(&mut self.kept, poll);
            return self.open(poll, now);
        }
        let received = std::mem::take(&mut exchange.received);
        match self.step(Event::Closed(&received), now) {
            Progress::Goes => missed(why),
            Progress::Ends(Outcome::Failed { .. }) => missed(why),
            ended => ended,
        }
    }

    /// Sends what there is to send, as far as the socket takes it.
    fn flush(&mut self, poll: &mut Poll, now: Instant) -> Progress {
        let Some(exchange) = &mut self.exchange else { return Progress::Goes };
        let mut outgoing = std::mem::take(&mut exchange.outgoing);
        outgoing.append(&mut self.reply.send);
        let Some(link) = self.link() else { return Progress::Goes };
        let mut sent = 0;
        while sent < outgoing.len() {
            match link.stream.write(&outgoing[sent..]) {
                Ok(n) => sent += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return self.refused(&describe(&e), poll, now),
            }
        }
        outgoing.drain(..sent);
        let wants_write = !outgoing.is_empty();
        if link.wants_write != wants_write {
            link.wants_write = wants_write;
            if let Err(e) = poll.modify(&link.stream, link.token, wants_write) {
                return missed(describe(&e));
            }
        }
        if let Some(exchange) = &mut self.exchange {
            exchange.outgoing = outgoing;
        }
        Progress::Goes
    }

    /// One step of the hook.
    fn step(&mut self, event: Event<'_>, now: Instant) -> Progress {
        let Some(exchange) = &self.exchange else { return Progress::Goes };
        let hook = exchange.matter.hook();
        if let Event::Begin { .. } = event {
            self.reply.clear();
        } else {
            self.reply.send.clear();
        }
        match self.backend.step(hook, event, now, exchange.deadline, &mut self.reply) {
            Step::More => Progress::Goes,
            Step::Done => Progress::Ends(outcome(hook, &mut self.reply)),
            Step::Failed(why) | Step::Broken(why) => Progress::Ends(Outcome::Failed { why }),
            // An engine may have nothing to count.
            Step::Unsupported if hook == Hook::Stats => Progress::Ends(outcome(hook, &mut Reply::default())),
            Step::Unsupported if !matches!(hook, Hook::Probe) => Progress::Ends(Outcome::Unsupported),
            Step::Unsupported => {
                Progress::Ends(Outcome::Failed { why: format!("it does not support {} here", hook.name()) })
            }
        }
    }

    /// Cleans up after a conversation that ended.
    fn settle(&mut self, poll: &mut Poll, progress: Progress) -> Option<Outcome> {
        let Progress::Ends(outcome) = progress else { return None };
        drop_link(&mut self.own, poll);
        // After anything but a clean end nobody knows what is still to come on the connection.
        let clean = matches!(
            outcome,
            Outcome::Answered { .. } | Outcome::Sampled { .. } | Outcome::Obeyed(_) | Outcome::Unsupported
        );
        let pending = self.exchange.take().is_some_and(|exchange| !exchange.outgoing.is_empty());
        if !clean || pending {
            drop_link(&mut self.kept, poll);
        }
        Some(outcome)
    }
}

fn outcome(hook: Hook, reply: &mut Reply) -> Outcome {
    if hook == Hook::Stats {
        let version = reply.text("version").unwrap_or_default().to_owned();
        let numbers = &reply.numbers;
        let (sample, others) = (Sample::from_numbers(numbers), Others::from_numbers(numbers));
        return Outcome::Sampled { sample, others, version };
    }
    match hook {
        Hook::Stats | Hook::Probe => {}
        Hook::Inspect => return Outcome::Obeyed(Some(Box::new(view(reply)))),
        Hook::Promote | Hook::Follow | Hook::Fence | Hook::Unfence => return Outcome::Obeyed(None),
    }
    match reply.health.take() {
        Some((health, why)) => Outcome::Answered { health, why },
        None => Outcome::Failed { why: "the probe ended without a verdict".to_owned() },
    }
}

/// What an instance said of itself, by the names of the contract's `inspect`.
fn view(reply: &Reply) -> View {
    let text = |name: &str| reply.text(name).unwrap_or_default().to_owned();
    let yes = |name: &str| reply.text(name) == Some("yes");
    let number = |name: &str| reply.number(name).unwrap_or_default();
    let replicas = reply.texts.iter().filter(|(name, _)| name == "replica");
    View {
        role: match reply.text("role") {
            Some("master") => Role::Master,
            Some("replica") => Role::Replica,
            _ => Role::Unknown,
        },
        master: reply.text("master").map(str::to_owned),
        link_up: reply.text("link") == Some("up"),
        link_down: Duration::try_from_secs_f64(number("link_down_s")).unwrap_or_default(),
        last_io: Duration::try_from_secs_f64(number("last_io_s")).unwrap_or_default(),
        syncing: yes("syncing"),
        loading: yes("loading"),
        run_id: text("run_id"),
        replid: text("replication_id"),
        replid2: text("replication_id2"),
        offset: number("offset") as i64,
        keys: number("keys") as u64,
        priority: number("priority") as u32,
        replicas: replicas.filter_map(|(_, told)| replica(told)).collect(),
        version: text("version"),
    }
}

/// `host:port STATE OFFSET LAG`.
fn replica(told: &str) -> Option<Replica> {
    let mut words = told.split(' ');
    let (address, state) = (words.next()?.to_owned(), words.next()?);
    let (offset, lag_s) = (words.next()?.parse().unwrap_or(0), words.next()?.parse().unwrap_or(u64::MAX));
    Some(Replica { address, online: state == "online", offset, lag_s })
}

fn missed(why: String) -> Progress {
    Progress::Ends(Outcome::Missed { why, process: ProcessState::Unknown })
}

/// A connection that could not be made, by the server's fault or by ours.
fn not_connected(error: &io::Error) -> Progress {
    let ours = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::ADDRNOTAVAIL, Errno::NOSPC];
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(errno) if ours.contains(&errno) => Progress::Ends(Outcome::Hindered { why: error.to_string() }),
        _ => missed(describe(error)),
    }
}

fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => "connection reset".to_owned(),
        _ => error.to_string(),
    }
}

fn drop_link(link: &mut Option<Link>, poll: &mut Poll) {
    if let Some(link) = link.take() {
        poll.remove(link.stream, link.token);
    }
}

/// A connection that is being made; it is written to at once, which loopback allows.
fn connect(address: SocketAddr, source: Source, poll: &mut Poll) -> io::Result<Link> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(e) => return Err(e.into()),
    }
    let stream = TcpStream::from(socket);
    // A port of the ephemeral range without a listener can connect to itself.
    if stream.local_addr().is_ok_and(|own| own == address) {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    let token = poll.add(&stream, source, false)?;
    Ok(Link { stream, token, wants_write: false })
}
