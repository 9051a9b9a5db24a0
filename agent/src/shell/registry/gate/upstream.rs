//! The gate's side of the ensemble: finds a server, holds the session, checks what the server says.

use std::{
    net::{SocketAddr, TcpStream},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::{
    event::PollFlags,
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt::socket_error},
};

use super::downstream::{Client, flush, receive};
use crate::shell::registry::{
    LOG, SessionFacts,
    hosts::{Hosts, Next},
    pace::{BETWEEN_HOSTS, Pace},
    shared::{Link, Shared},
    wire::{
        Asked, ConnectResponse, Credentials, Frames, Ledger, Nonsense, Op, Reply, code, connect_request,
        framed,
    },
};

/// How long a TCP connection may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);
/// After a connection that stood for so long the next one is not waited for.
const PROVEN: Duration = Duration::from_secs(1);
/// Syncs in a session timeout: what was acknowledged last is then never older than a sixth of it.
const SYNCS: u32 = 10;
/// After so many refusals in a row of a session that is long overdue, a new one is asked for.
const REFUSALS: u32 = 8;

/// A connection to a server.
#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    address: SocketAddr,
    frames: Frames,
    out: Vec<u8>,
}

/// How far it has come.
#[derive(Debug)]
enum Stage {
    /// Between attempts; `fresh`: the next one begins a round.
    Idle { until: Instant, fresh: bool },
    /// Names are being resolved.
    Resolving { until: Instant },
    /// The TCP handshake is under way.
    Connecting { connection: Connection, until: Instant },
    /// A session was asked for at `sent`.
    Greeting { connection: Connection, sent: Instant, until: Instant },
    /// A session stands. `answered`: a request on it was, so the server does serve us.
    /// `sync_at`: when the leader is to be asked something again.
    Up {
        connection: Connection,
        ledger: Ledger,
        epoch: u64,
        since: Instant,
        answered: bool,
        sync_at: Instant,
    },
}

/// The session as the gate holds it, over connections.
#[derive(Debug)]
struct Session {
    credentials: Credentials,
    timeout: Duration,
    /// The last transaction that we have seen; a server that is behind it must not serve us.
    zxid: i64,
    heard: Instant,
    refusals: u32,
}

impl Session {
    /// The next connection asks for a new one.
    fn forget(&mut self) {
        self.credentials = Credentials::default();
        self.zxid = 0;
        self.refusals = 0;
    }
}

/// The side of the ensemble.
#[derive(Debug)]
pub(in super::super) struct Upstream {
    shared: Arc<Shared>,
    hosts: Hosts,
    pace: Pace,
    asked_timeout: Duration,
    stage: Stage,
    session: Session,
    epochs: u64,
    trouble: String,
}

impl Upstream {
    /// `timeout` is the session timeout that is asked for.
    pub(in super::super) fn new(shared: Arc<Shared>, hosts: Hosts, timeout: Duration) -> Upstream {
        let now = Instant::now();
        let session =
            Session { credentials: Credentials::default(), timeout, zxid: 0, heard: now, refusals: 0 };
        Upstream {
            shared,
            hosts,
            pace: Pace::default(),
            asked_timeout: timeout,
            stage: Stage::Idle { until: now, fresh: true },
            session,
            epochs: 0,
            trouble: "no server was tried yet".into(),
        }
    }

    /// The number of the standing connection.
    pub(super) fn epoch(&self) -> Option<u64> {
        match &self.stage {
            Stage::Up { epoch, .. } => Some(*epoch),
            _ => None,
        }
    }

    /// The session timeout: negotiated, or as asked for.
    pub(super) fn timeout(&self) -> Duration {
        self.session.timeout
    }

    /// On a standing connection: the request that has waited the longest, and how long it may.
    pub(super) fn waiting(&self) -> Option<(Option<&Asked>, Duration)> {
        match &self.stage {
            Stage::Up { ledger, .. } => Some((ledger.oldest(), self.session.timeout / 3)),
            _ => None,
        }
    }

    /// A good-bye that the server has not answered yet.
    pub(super) fn farewell(&self) -> Option<Asked> {
        match &self.stage {
            Stage::Up { ledger, .. } => ledger.closing().copied(),
            _ => None,
        }
    }

    /// What the client is told of the session.
    pub(super) fn greeting(&self) -> ConnectResponse {
        ConnectResponse {
            timeout_ms: millis(self.session.timeout),
            credentials: Credentials { session: self.session.credentials.session.max(1), password: vec![] },
            read_only: false,
        }
    }

    /// What the poll waits on.
    pub(super) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.connection().map(|connection| connection.stream.as_fd())
    }

    /// What the poll waits for.
    pub(super) fn wants(&self) -> PollFlags {
        match (&self.stage, self.connection()) {
            (Stage::Connecting { .. }, _) => PollFlags::OUT,
            (_, Some(connection)) if !connection.out.is_empty() => PollFlags::IN | PollFlags::OUT,
            _ => PollFlags::IN,
        }
    }

    fn connection(&self) -> Option<&Connection> {
        match &self.stage {
            Stage::Connecting { connection, .. }
            | Stage::Greeting { connection, .. }
            | Stage::Up { connection, .. } => Some(connection),
            Stage::Idle { .. } | Stage::Resolving { .. } => None,
        }
    }

    /// When [`Upstream::advance`] has something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Idle { until, .. }
            | Stage::Resolving { until }
            | Stage::Connecting { until, .. }
            | Stage::Greeting { until, .. } => Some(*until),
            Stage::Up { sync_at, ledger, .. } => ledger.closing().is_none().then_some(*sync_at),
        }
    }

    /// Counts a connection that was cut for silence or nonsense.
    pub(super) fn count_cut(&self) {
        self.shared.figures(|status| status.cuts += 1);
    }

    /// Goes on with what is due. Where nothing was asked of the ensemble's leader that is a sync: leases are counted from
    /// the last request that it acknowledged.
    ///
    /// # Errors
    /// Why the attempt or connection is over.
    pub(super) fn advance(&mut self, now: Instant) -> Result<(), String> {
        match &self.stage {
            Stage::Idle { until, fresh } if now >= *until => {
                if *fresh {
                    self.hosts.begin(now);
                }
                self.try_next(now);
            }
            Stage::Resolving { .. } => self.try_next(now),
            Stage::Connecting { connection, until } if now >= *until => {
                return Err(format!("{} did not accept within {CONNECT_LIMIT:?}", connection.address));
            }
            Stage::Greeting { connection, until, .. } if now >= *until => {
                let why = format!("{} gave no session in time", connection.address);
                self.count_cut();
                return Err(why);
            }
            Stage::Up { sync_at, ledger, .. } if now >= *sync_at && ledger.closing().is_none() => {
                let (sync, frame) = Asked::sync(now);
                self.send(sync, &frame);
            }
            _ => {}
        }
        Ok(())
    }

    fn try_next(&mut self, now: Instant) {
        match self.hosts.next(now) {
            Next::Wait(until) => self.stage = Stage::Resolving { until },
            Next::Over => self.end_round(now),
            Next::Address(address) => match dial(address) {
                Ok(connection) => self.stage = Stage::Connecting { connection, until: now + CONNECT_LIMIT },
                Err(e) => self.attempt_failed(format!("cannot connect to {address}: {}", text(e)), now),
            },
        }
    }

    fn end_round(&mut self, now: Instant) {
        let wait = self.pace.wait(self.session.timeout, self.hosts.chance());
        self.stage = Stage::Idle { until: now + wait, fresh: true };
        self.shared.round_failed(&self.trouble);
    }

    fn attempt_failed(&mut self, why: String, now: Instant) {
        log::debug!(target: LOG, "{why}");
        self.trouble = why;
        self.stage = Stage::Idle { until: now + BETWEEN_HOSTS, fresh: false };
    }

    /// The attempt or the standing connection is over.
    pub(super) fn lost(&mut self, why: &str, now: Instant) {
        let Stage::Up { since, answered, .. } = &self.stage else {
            return self.attempt_failed(why.to_owned(), now);
        };
        let proven = now >= *since + PROVEN;
        if proven || *answered {
            self.pace.reset();
        }
        let wait =
            if proven { BETWEEN_HOSTS } else { self.pace.wait(self.session.timeout, self.hosts.chance()) };
        self.trouble = why.to_owned();
        self.stage = Stage::Idle { until: now + wait, fresh: true };
        self.shared.link_down(why);
    }

    /// Sends a request of the client or of the gate.
    pub(super) fn send(&mut self, asked: Asked, frame: &[u8]) {
        if let Stage::Up { connection, ledger, sync_at, .. } = &mut self.stage {
            if asked.op == Op::Sync {
                *sync_at = asked.at + self.session.timeout / SYNCS;
            }
            ledger.ask(asked);
            connection.out.extend(framed(frame));
            // A broken stream shows itself at the next read.
            let _ = flush(&mut connection.stream, &mut connection.out);
        }
    }

    /// Does what the socket is ready for.
    ///
    /// # Errors
    /// Why the attempt or connection is over.
    pub(super) fn serve(&mut self, now: Instant, client: Option<&mut Client>) -> Result<(), String> {
        match &mut self.stage {
            Stage::Connecting { connection, .. } => {
                let outcome = socket_error(&connection.stream).and_then(|error| error);
                outcome.map_err(|e| format!("cannot connect to {}: {}", connection.address, text(e)))?;
                self.greet(now);
                Ok(())
            }
            Stage::Greeting { .. } => self.take_greeting(now),
            Stage::Up { .. } => self.relay(now, client),
            Stage::Idle { .. } | Stage::Resolving { .. } => Ok(()),
        }
    }

    /// Asks for a session or for the continuation of ours. One that nobody heard of for long is asked for without
    /// its last transaction: a server whose data were wiped would turn that away for ever instead of saying that the
    /// session has expired.
    fn greet(&mut self, now: Instant) {
        let idle = Stage::Idle { until: now, fresh: false };
        let Stage::Connecting { mut connection, .. } = std::mem::replace(&mut self.stage, idle) else {
            return;
        };
        self.shared.figures(|status| status.connections += 1);
        if now > self.session.heard + self.session.timeout * 4 / 3 {
            self.session.zxid = 0;
        }
        let request =
            connect_request(self.session.zxid, millis(self.asked_timeout), &self.session.credentials);
        connection.out.extend(request);
        let _ = flush(&mut connection.stream, &mut connection.out);
        let limit = (self.session.timeout / 3).clamp(Duration::from_millis(500), Duration::from_secs(4));
        self.stage = Stage::Greeting { connection, sent: now, until: now + limit };
    }

    fn take_greeting(&mut self, now: Instant) -> Result<(), String> {
        let Stage::Greeting { connection, .. } = &mut self.stage else { return Ok(()) };
        let address = connection.address;
        match connection.receive() {
            Ok(_) => {}
            Err(why) => {
                self.session_refused();
                return Err(why);
            }
        }
        let Stage::Greeting { connection, .. } = &mut self.stage else { return Ok(()) };
        let response = match connection.frames.next() {
            Ok(None) => return Ok(()),
            Ok(Some(frame)) => ConnectResponse::parse(&frame),
            Err(nonsense) => Err(nonsense),
        };
        match response {
            Ok(response) if response.timeout_ms == 0 => {
                log::info!(target: LOG, "{address}: the session has expired");
                self.session.forget();
                // The server is good, so nothing is to be waited for.
                self.pace.reset();
                self.stage = Stage::Idle { until: now + BETWEEN_HOSTS, fresh: true };
                Ok(())
            }
            Ok(response) => {
                self.stand(response, now);
                Ok(())
            }
            Err(Nonsense(what)) => {
                self.count_cut();
                Err(format!("{address} sent {what}"))
            }
        }
    }

    /// A server that closes instead of answering may hold a grudge against our session.
    fn session_refused(&mut self) {
        let overdue = self.session.heard.elapsed() > self.session.timeout * 4 / 3;
        if self.session.credentials.session != 0 && overdue {
            self.session.refusals += 1;
            if self.session.refusals >= REFUSALS {
                self.session.forget();
            }
        }
    }

    fn stand(&mut self, response: ConnectResponse, now: Instant) {
        let idle = Stage::Idle { until: now, fresh: false };
        let Stage::Greeting { connection, sent, .. } = std::mem::replace(&mut self.stage, idle) else {
            return;
        };
        self.epochs += 1;
        let fresh = response.credentials.session != self.session.credentials.session;
        self.session.timeout = Duration::from_millis(response.timeout_ms as u64);
        self.session.heard = now;
        self.session.refusals = 0;
        self.session.credentials = response.credentials;
        self.announce(connection.address, response.read_only, fresh, sent);
        self.stage = Stage::Up {
            connection,
            ledger: Ledger::default(),
            epoch: self.epochs,
            since: now,
            answered: false,
            sync_at: now + self.session.timeout / SYNCS,
        };
    }

    /// The leader gives the session, or knows it: `sent` counts like any request to it.
    fn announce(&self, address: SocketAddr, read_only: bool, fresh: bool, sent: Instant) {
        let (server, session) = (address.to_string(), self.session.credentials.session);
        self.shared.figures(|status| {
            status.server.clone_from(&server);
            status.session = format!("{session:#x}");
            status.sessions += u64::from(fresh);
        });
        let timeout = self.session.timeout;
        let acknowledged = Some(sent).filter(|_| !read_only);
        let facts = SessionFacts { session, timeout, read_only, acknowledged };
        self.shared.link_up(Link { epoch: self.epochs, server, session, timeout }, facts);
    }

    fn relay(&mut self, now: Instant, mut client: Option<&mut Client>) -> Result<(), String> {
        let Stage::Up { connection, ledger, epoch, answered, sync_at, .. } = &mut self.stage else {
            return Ok(());
        };
        flush(&mut connection.stream, &mut connection.out)
            .map_err(|e| format!("cannot write to {}: {e}", connection.address))?;
        let ended = connection.receive().err();
        loop {
            let frame = match connection.frames.next() {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(Nonsense(what)) => return Err(cut(&self.shared, connection.address, &what)),
            };
            match ledger.reply(&frame) {
                Ok(reply) => {
                    self.session.heard = now;
                    heed(&self.shared, &mut self.session, reply)?;
                    if let Reply::Answer { asked, error, .. } = &reply
                        && is_by_the_leader(asked, *error)
                    {
                        *sync_at = (*sync_at).max(asked.at + self.session.timeout / SYNCS);
                    }
                    if matches!(reply, Reply::Answer { asked, .. } if asked.ours) {
                        continue;
                    }
                    *answered |= matches!(reply, Reply::Answer { asked, .. } if asked.op != Op::Auth);
                }
                Err(Nonsense(what)) => return Err(cut(&self.shared, connection.address, &what)),
            }
            if let Some(client) = client.as_mut().filter(|client| client.relays() == Some(*epoch)) {
                client.push(&framed(&frame));
            }
        }
        ended.map_or(Ok(()), Err)
    }
}

impl Connection {
    fn receive(&mut self) -> Result<usize, String> {
        receive(&mut self.stream, &mut self.frames).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => format!("{} closed the connection", self.address),
            _ => format!("the connection to {} broke: {e}", self.address),
        })
    }
}

/// Takes the session's facts from a reply.
fn heed(shared: &Shared, session: &mut Session, reply: Reply) -> Result<(), String> {
    let Reply::Answer { asked, zxid, error } = reply else { return Ok(()) };
    match error {
        code::SESSION_EXPIRED => {
            session.forget();
            return Err("the session has expired".into());
        }
        code::SESSION_MOVED => return Err("the session was taken over by another connection".into()),
        _ => {}
    }
    if asked.xid > 0 {
        session.zxid = session.zxid.max(zxid);
    }
    if is_by_the_leader(&asked, error) {
        shared.acknowledged(asked.at);
    }
    Ok(())
}

/// A server that has lost the leader goes on answering what it can answer by itself, some refusals among them, and the
/// session ends meanwhile.
fn is_by_the_leader(asked: &Asked, error: i32) -> bool {
    asked.op.asks_the_leader() && error == 0
}

fn cut(shared: &Shared, address: SocketAddr, what: &str) -> String {
    shared.figures(|status| status.cuts += 1);
    format!("{address} sent {what}")
}

fn dial(address: SocketAddr) -> Result<Connection, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket: OwnedFd = socket_with(family, SocketType::STREAM, flags, None)?;
    match connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(e) => return Err(e),
    }
    let stream = TcpStream::from(socket);
    // Without it an exchange may wait for the peer's delayed acknowledgement; no more than that.
    let _ = stream.set_nodelay(true);
    Ok(Connection { stream, address, frames: Frames::default(), out: Vec::new() })
}

fn text(e: Errno) -> std::io::Error {
    e.into()
}

fn millis(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX).max(1)
}
