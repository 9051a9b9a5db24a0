//! The gate: a relay between the client library and the ensemble, on a thread of its own that never blocks but in one
//! poll.
//!
//! The library trusts the network: it waits without limit, reconnects without pause and believes any reply. So it is
//! only ever connected to this relay over loopback. The gate finds a server, holds the session over connections, checks
//! every frame, and cuts what is silent or makes no sense. A client lives as long as one connection of the gate: when
//! that is gone, whatever the client still asks is answered here, so that every call and every drop ends.
//!
//! `upstream` is the side of the ensemble, `downstream` the side of the client.

mod downstream;
mod upstream;

use std::{
    io,
    net::{Ipv4Addr, TcpListener},
    os::fd::{AsFd, BorrowedFd},
    panic::{self, AssertUnwindSafe},
    sync::Arc,
    time::{Duration, Instant},
};

use downstream::Client;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
pub(super) use upstream::Upstream;

use super::{
    LOG, own,
    shared::{Orders, Shared},
    wire::{Asked, Nonsense, Op, code},
};
use crate::shell::waker::Waker;

/// The longest wait in the poll: by this beat the gate counts calls that do not end.
const BEAT: Duration = Duration::from_secs(1);
/// How long a polite close may take.
pub(super) const CLOSE_LIMIT: Duration = Duration::from_secs(1);
/// A turn that comes so much later than planned was held up with its whole process or machine.
const LATE: Duration = Duration::from_millis(500);
/// No client is taken for so long after a stranger was found at the door.
const STRANGER_PAUSE: Duration = Duration::from_millis(50);
/// So many bytes wait for the client before no more are read for it.
const BACKLOG: usize = 8 << 20;

/// The relay.
#[derive(Debug)]
pub(super) struct Gate {
    shared: Arc<Shared>,
    wakeups: Waker,
    listener: TcpListener,
    /// Doors of forgotten clients: left open and never answered, for a closed one would set the library spinning.
    abandoned: Vec<TcpListener>,
    accept_after: Instant,
    strangers: u64,
    upstream: Upstream,
    client: Option<Client>,
    /// Beats that the call under way has lasted too long. Counted in turns of this loop and not by the clock, so that
    /// a process that was frozen does not take itself for stuck.
    stuck_beats: u64,
    last_beat: Instant,
    /// No silence counts before: after a standstill of our own, answers may be there that nobody has read.
    excused_until: Instant,
}

/// What a turn of the loop found ready.
#[derive(Clone, Copy, Debug, Default)]
struct Ready {
    door: bool,
    client: bool,
    server: bool,
}

impl Gate {
    /// A gate with an open door.
    ///
    /// # Errors
    /// When no loopback port can be had.
    pub(super) fn new(shared: Arc<Shared>, wakeups: Waker, upstream: Upstream) -> io::Result<Gate> {
        let listener = open_door(&shared)?;
        let now = Instant::now();
        Ok(Gate {
            shared,
            wakeups,
            listener,
            abandoned: Vec::new(),
            accept_after: now,
            strangers: 0,
            upstream,
            client: None,
            stuck_beats: 0,
            last_beat: now,
            excused_until: now,
        })
    }

    /// Relays until the session thread has ended.
    pub(super) fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let ended = panic::catch_unwind(AssertUnwindSafe(|| while self.turn() {}));
        if ended.is_err() {
            shared.gate_failed();
        }
        drop(self);
        shared.gate_ended();
    }

    fn turn(&mut self) -> bool {
        let orders = self.shared.orders();
        if orders.over {
            return false;
        }
        self.obey(&orders);
        self.keep_deadlines(&orders);
        let ready = self.wait(&orders);
        // What the client sends may rest on orders that came while we waited.
        let orders = self.shared.orders();
        self.serve(ready, &orders);
        true
    }

    fn obey(&mut self, orders: &Orders) {
        while orders.forgotten > self.abandoned.len() {
            match open_door(&self.shared) {
                Ok(door) => self.abandoned.push(std::mem::replace(&mut self.listener, door)),
                Err(e) => return log::error!(target: LOG, "cannot open another loopback port: {e}"),
            }
        }
        if let Some((epoch, why)) = &orders.hang_up
            && self.upstream.epoch() == Some(*epoch)
        {
            self.upstream_lost(why);
        }
    }

    /// Does what time demands: connects, gives up, cuts.
    fn keep_deadlines(&mut self, orders: &Orders) {
        let now = Instant::now();
        if orders.dropped
            && let Some(client) = &mut self.client
            && client.finish(now, self.upstream.greeting())
        {
            self.client = None;
        }
        let closing_over = orders.closing.is_some_and(|at| now >= at + CLOSE_LIMIT);
        if closing_over && self.upstream.epoch().is_some() {
            return self.upstream_lost("the time for a polite close is over");
        }
        if let Some(why) = self.overdue(orders, now) {
            self.upstream.count_cut();
            return self.upstream_lost(&why);
        }
        if orders.closing.is_none() || self.upstream.epoch().is_some() {
            let outcome = self.upstream.advance(now);
            self.after(outcome);
        }
        self.beat(orders, now);
    }

    /// A request or a call of the client that has waited too long on a standing connection.
    fn overdue(&self, orders: &Orders, now: Instant) -> Option<String> {
        let (oldest, limit) = self.upstream.waiting().filter(|_| now >= self.excused_until)?;
        if let Some(asked) = oldest
            && now >= asked.at + limit
        {
            return Some(format!("the server did not answer within {limit:.1?} ({:?})", asked.op));
        }
        let stuck = orders.call.is_some_and(|since| now >= since + limit + BEAT);
        stuck.then(|| "the client made no progress".to_owned())
    }

    /// A call that outlives its connection by far holds the session thread for ever; only a new process helps.
    fn beat(&mut self, orders: &Orders, now: Instant) {
        if now < self.last_beat + BEAT {
            return;
        }
        self.last_beat = now;
        let limit = self.upstream.timeout() + Duration::from_secs(4);
        let stuck = self.upstream.epoch().is_none_or(|epoch| epoch != orders.relay);
        self.stuck_beats = match orders.call {
            Some(since) if stuck && now > since + limit => self.stuck_beats + 1,
            _ => 0,
        };
        if self.stuck_beats > limit.as_secs() + 1 {
            super::leave_to_supervisor("a call into the ZooKeeper client does not end");
        }
    }

    /// Waits for sockets, orders or the next deadline.
    fn wait(&mut self, orders: &Orders) -> Ready {
        let now = Instant::now();
        let until = self.next_deadline(orders, now);
        let ready = self.wait_until(now, until);
        let after = Instant::now();
        if after > until + LATE {
            self.excused_until = after + BEAT;
        }
        ready
    }

    fn wait_until(&self, now: Instant, until: Instant) -> Ready {
        let wait = until.saturating_duration_since(now);
        let timeout = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: wait.subsec_nanos().into() };
        let mut fds = vec![PollFd::new(&self.wakeups, PollFlags::IN)];
        let door = (now >= self.accept_after).then(|| add(&mut fds, self.listener.as_fd(), PollFlags::IN));
        let client = self.client.as_ref().map(|client| add(&mut fds, client.as_fd(), client.wants()));
        let server = self.upstream.socket().map(|fd| add(&mut fds, fd, self.server_wants()));
        if poll(&mut fds, Some(&timeout)).is_err() {
            return Ready::default();
        }
        let woken = !fds[0].revents().is_empty();
        let is = |at: Option<usize>| at.is_some_and(|at| !fds[at].revents().is_empty());
        let ready = Ready { door: is(door), client: is(client), server: is(server) };
        if woken {
            self.wakeups.drain();
        }
        ready
    }

    fn server_wants(&self) -> PollFlags {
        let full = self.client.as_ref().is_some_and(|client| client.backlog() > BACKLOG);
        if full { self.upstream.wants() - PollFlags::IN } else { self.upstream.wants() }
    }

    fn next_deadline(&self, orders: &Orders, now: Instant) -> Instant {
        let asked = self.upstream.waiting().and_then(|(oldest, limit)| Some(oldest?.at + limit));
        let asked = asked.map(|at| at.max(self.excused_until));
        let closing = orders.closing.map(|at| at + CLOSE_LIMIT).filter(|at| *at > now);
        let connect = self.upstream.deadline().filter(|_| orders.closing.is_none());
        let door = Some(self.accept_after).filter(|at| *at > now);
        let leftover = self.client.as_ref().filter(|_| orders.dropped).map(Client::finish_at);
        [asked, closing, connect, door, leftover].into_iter().flatten().fold(now + BEAT, Instant::min)
    }

    /// The server's side goes first: an answer that is already there must not be taken for silence.
    fn serve(&mut self, ready: Ready, orders: &Orders) {
        if ready.server {
            let outcome = self.upstream.serve(Instant::now(), self.client.as_mut());
            self.after(outcome);
        }
        if ready.client {
            self.serve_client(orders);
        }
        if ready.door {
            self.answer_door();
        }
        if self.client.as_mut().is_some_and(|client| client.flush().is_err()) {
            self.client = None;
        }
    }

    fn after(&mut self, outcome: Result<(), String>) {
        if let Err(why) = outcome {
            self.upstream_lost(&why);
        }
    }

    /// The connection to the server is over. A client that is saying good-bye gets its answer from here; any other is
    /// cut, and drained when it comes back.
    fn upstream_lost(&mut self, why: &str) {
        let farewell = self.upstream.farewell();
        self.upstream.lost(why, Instant::now());
        match (&mut self.client, farewell) {
            (Some(client), Some(asked)) => client.dismiss(&asked),
            _ => self.client = None,
        }
    }

    fn serve_client(&mut self, orders: &Orders) {
        let Some(client) = &mut self.client else { return };
        let frames = match client.receive() {
            Ok(frames) => frames,
            Err(_) => return self.client_left(),
        };
        for frame in frames {
            if let Err(Nonsense(why)) = self.take_frame(frame, orders) {
                log::warn!(target: LOG, "the client sent {why}; its connection is cut");
                return self.client_left();
            }
        }
    }

    /// A client that goes while its connection stands leaves requests behind that nobody would take the answers of.
    fn client_left(&mut self) {
        let relayed = self.client.take().is_some_and(|client| client.relays() == self.upstream.epoch());
        if relayed && self.upstream.epoch().is_some() {
            self.upstream_lost("the client gave its connection up");
        }
    }

    fn take_frame(&mut self, frame: Vec<u8>, orders: &Orders) -> Result<(), Nonsense> {
        let Some(client) = &mut self.client else { return Ok(()) };
        if !client.greeted() {
            client.note_asked();
            self.greet_client(orders);
            return Ok(());
        }
        let asked = Asked::parse(&frame, Instant::now())?;
        let relayed = client.relays().is_some() && client.relays() == self.upstream.epoch();
        let farewell = asked.op == Op::Close;
        if relayed && (!farewell || orders.closing.is_some() && !orders.leaving) {
            self.upstream.send(asked, &frame);
        } else if relayed {
            // Only a close ends a session; a client that is merely replaced, or left behind, must leave it alive.
            client.dismiss(&asked);
        } else {
            client.answer(&asked, if farewell { 0 } else { code::CONNECTION_LOSS });
        }
        Ok(())
    }

    /// A client of the standing connection speaks to the server; any other is drained, and its owner told so.
    fn greet_client(&mut self, orders: &Orders) {
        let Some(client) = self.client.as_mut().filter(|_| !orders.dropped) else { return };
        let epoch = self.upstream.epoch().filter(|epoch| *epoch == orders.relay);
        client.greet(epoch, &self.upstream.greeting());
        if epoch.is_none() {
            self.shared.client_drained();
        }
    }

    fn answer_door(&mut self) {
        match self.listener.accept() {
            Ok((stream, peer)) => {
                let ours = stream.local_addr().and_then(|local| own::is_ours(peer, local));
                match ours {
                    Ok(true) => self.client = Client::new(stream).ok(),
                    Ok(false) => self.turn_away(&format!("a stranger ({peer})")),
                    Err(e) => self.turn_away(&format!("cannot tell whose connection {peer} is: {e}")),
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.accept_after = Instant::now() + STRANGER_PAUSE,
        }
    }

    fn turn_away(&mut self, who: &str) {
        self.accept_after = Instant::now() + STRANGER_PAUSE;
        self.strangers += 1;
        if self.strangers.is_power_of_two() {
            log::warn!(target: LOG, "turned away at the loopback port: {who} (number {})", self.strangers);
        }
    }
}

fn add<'a>(fds: &mut Vec<PollFd<'a>>, fd: BorrowedFd<'a>, flags: PollFlags) -> usize {
    fds.push(PollFd::from_borrowed_fd(fd, flags));
    fds.len() - 1
}

fn open_door(shared: &Shared) -> io::Result<TcpListener> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    shared.set_port(listener.local_addr()?.port());
    Ok(listener)
}
