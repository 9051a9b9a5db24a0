//! What the front, the session thread and the gate share. One lock, held for copies only; a condition variable for the
//! session thread, eventfds for the gate and the loop. Decides nothing.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    mem,
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    Answer, Change, Node, Owned, RegistryEvent, RegistryStatus, Request, SessionFacts, readings::Happening,
    requests::Desk,
};
use crate::shell::waker::Waker;

/// Events kept for a loop that does not fetch them.
const MOST_EVENTS: usize = 4096;

/// A connection on which a session stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// Counts connections; a client belongs to one.
    pub(super) epoch: u64,
    /// The server's address.
    pub(super) server: String,
    /// The session's id.
    pub(super) session: i64,
    /// The negotiated session timeout.
    pub(super) timeout: Duration,
}

/// Changes of the desired tree that the session thread has not taken yet, the newest of each path.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    /// Paths that must go with all below them; done before `puts`.
    pub(super) removals: BTreeSet<String>,
    /// Nodes that must be.
    pub(super) puts: BTreeMap<String, Node>,
    /// A new set of nodes that belong to this host.
    pub(super) owned: Option<Vec<Owned>>,
}

impl Inbox {
    /// Whether nothing changed.
    pub(super) fn is_empty(&self) -> bool {
        self.removals.is_empty() && self.puts.is_empty() && self.owned.is_none()
    }

    fn add(&mut self, change: Change) {
        match change {
            Change::Put { path, node } => {
                self.puts.insert(path, node);
            }
            Change::Remove { path } => {
                self.puts.retain(|other, _| !is_within(other, &path));
                self.removals.insert(path);
            }
        }
    }
}

/// Whether `path` is `top` or below it.
pub(super) fn is_within(path: &str, top: &str) -> bool {
    path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || top == "/")
}

/// What the session thread finds when it looks.
#[derive(Debug, Default)]
pub(super) struct News {
    /// Changes of the desired tree.
    pub(super) inbox: Inbox,
    /// Paths whose watch fired, and not by our own doing.
    pub(super) touched: BTreeSet<String>,
    /// The connection, while there is one.
    pub(super) link: Option<Link>,
    /// Why there is none.
    pub(super) why: String,
    /// Rounds over all hosts that failed since the last connection.
    pub(super) failed_rounds: u64,
    /// When a close was asked for.
    pub(super) closing: Option<Instant>,
}

/// What the session thread wants of the gate.
#[derive(Clone, Debug, Default)]
pub(super) struct Orders {
    /// The connection whose client may speak to the server.
    pub(super) relay: u64,
    /// A connection to be given up, and why.
    pub(super) hang_up: Option<(u64, String)>,
    /// When the call under way began.
    pub(super) call: Option<Instant>,
    /// How many clients were forgotten.
    pub(super) forgotten: usize,
    /// When a close was asked for.
    pub(super) closing: Option<Instant>,
    /// The session is to outlive the close.
    pub(super) leaving: bool,
    /// The client was dropped; whatever still connects is left over.
    pub(super) dropped: bool,
    /// The session thread has ended; so must the gate.
    pub(super) over: bool,
}

#[derive(Debug, Default)]
struct State {
    news: News,
    fresh: bool,
    own_events: BTreeMap<String, u32>,
    drained: bool,
    orders: Orders,
    port: u16,
    desk: Desk,
    events: VecDeque<RegistryEvent>,
    status: RegistryStatus,
    facts: Option<SessionFacts>,
    closed: bool,
}

impl State {
    /// Drops the oldest event that nobody waits for; tells whether there was one.
    fn drop_event(&mut self) -> bool {
        let idle = |event: &RegistryEvent| !matches!(event, RegistryEvent::Answered { .. });
        self.events.iter().position(idle).and_then(|at| self.events.remove(at)).is_some()
    }
}

/// The shared state.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    event_loop: Waker,
    gate: Waker,
}

impl Shared {
    /// `event_loop` is woken for each event, `gate` for each order.
    pub(super) fn new(event_loop: Waker, gate: Waker) -> Shared {
        let mut state = State::default();
        state.status.state = "connecting";
        Shared { state: Mutex::new(state), changed: Condvar::new(), event_loop, gate }
    }

    /// No holder of the lock can leave it half-changed, so a panic elsewhere poisons nothing.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell_session(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        state.fresh = true;
        drop(state);
        self.changed.notify_one();
    }

    fn tell_gate(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.gate.wake();
    }
}

/// For the front.
impl Shared {
    /// Adds changes of the desired tree.
    pub(super) fn change(&self, changes: Vec<Change>) {
        self.tell_session(|state| changes.into_iter().for_each(|change| state.news.inbox.add(change)));
    }

    /// Replaces the set of nodes that belong to this host.
    pub(super) fn claim(&self, owned: Vec<Owned>) {
        self.tell_session(|state| state.news.inbox.owned = Some(owned));
    }

    /// The next event.
    pub(super) fn event(&self) -> Option<RegistryEvent> {
        self.lock().events.pop_front()
    }

    /// Figures as they stand; what was not even taken yet is behind as well.
    pub(super) fn status(&self) -> RegistryStatus {
        let state = self.lock();
        let mut status = state.status.clone();
        status.writes += state.desk.writes;
        status.behind += state.news.inbox.puts.len() + state.news.inbox.removals.len();
        status
    }

    /// Facts of the session.
    pub(super) fn facts(&self) -> Option<SessionFacts> {
        self.lock().facts.clone()
    }

    /// Takes a request. One wake-up of the session thread does for all that wait.
    pub(super) fn request(&self, token: u64, request: Request) {
        let mut state = self.lock();
        let closing = state.news.closing.is_some();
        let lost = RegistryEvent::Answered { token, answer: Answer::Lost };
        match if closing { Err(lost) } else { state.desk.add(token, request) } {
            Ok(first) => {
                state.fresh = true;
                drop(state);
                if first {
                    self.changed.notify_one();
                }
            }
            Err(answered) => self.tell_all(state, [answered]),
        }
    }

    /// Asks for a close, once.
    pub(super) fn close(&self) {
        self.end_session(false);
    }

    /// Asks for a close that the session outlives. After a close was asked for, it is too late for that.
    pub(super) fn leave(&self) {
        self.end_session(true);
    }

    fn end_session(&self, leaving: bool) {
        let now = Instant::now();
        self.tell_session(|state| {
            if state.news.closing.is_none() {
                state.news.closing = Some(now);
                state.orders.closing = Some(now);
                state.orders.leaving = leaving;
            }
        });
        self.gate.wake();
    }

    /// Whether everything has ended.
    pub(super) fn closed(&self) -> bool {
        self.lock().closed
    }
}

/// For the session thread.
impl Shared {
    /// Waits for news, at most until `deadline`. Once a close was asked for, nothing is waited for any more.
    pub(super) fn wait(&self, deadline: Option<Instant>) -> News {
        let mut state = self.lock();
        while !state.fresh && state.news.closing.is_none() {
            state = match deadline.map(|at| at.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => break,
                Some(left) => {
                    self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
        state.fresh = false;
        News {
            inbox: mem::take(&mut state.news.inbox),
            touched: mem::take(&mut state.news.touched),
            link: state.news.link.clone(),
            why: state.news.why.clone(),
            failed_rounds: state.news.failed_rounds,
            closing: state.news.closing,
        }
    }

    /// The gate's port.
    pub(super) fn port(&self) -> u16 {
        self.lock().port
    }

    /// Lets the client of this connection speak to the server.
    pub(super) fn relay(&self, epoch: u64) {
        let mut state = self.lock();
        state.orders.relay = epoch;
        state.orders.dropped = false;
        state.drained = false;
        state.own_events.clear();
        state.news.touched.clear();
        state.desk.forget_readings();
    }

    /// Has the gate give this connection up.
    pub(super) fn hang_up(&self, epoch: u64, why: &str) {
        self.tell_gate(|state| state.orders.hang_up = Some((epoch, why.to_owned())));
    }

    /// Waits until the gate drains the client, or until `gone`: then a drop ends for certain.
    pub(super) fn wait_drained(&self, deadline: Instant, gone: &AtomicBool) {
        self.wait_until(deadline, |state| state.drained || gone.load(Ordering::SeqCst));
    }

    /// Waits for the client's end; tells whether it came.
    pub(super) fn wait_gone(&self, deadline: Instant, gone: &AtomicBool) -> bool {
        self.wait_until(deadline, |_| gone.load(Ordering::SeqCst))
    }

    fn wait_until(&self, deadline: Instant, come: impl Fn(&State) -> bool) -> bool {
        let mut state = self.lock();
        while !come(&state) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// The client was dropped.
    pub(super) fn client_dropped(&self) {
        self.tell_gate(|state| state.orders.dropped = true);
    }

    /// A call into the client begins or ends.
    pub(super) fn calling(&self, since: Option<Instant>) {
        self.lock().orders.call = since;
    }

    /// A client was forgotten; the gate moves to another port.
    pub(super) fn forget_client(&self) -> usize {
        let mut state = self.lock();
        state.orders.forgotten += 1;
        let count = state.orders.forgotten;
        drop(state);
        self.gate.wake();
        count
    }

    /// A write of ours is about to fire a watch of ours.
    pub(super) fn expect_event(&self, path: &str) {
        *self.lock().own_events.entry(path.to_owned()).or_default() += 1;
    }

    /// A watch was set; what an earlier write without one was to fire will never come.
    pub(super) fn watched_anew(&self, path: &str) {
        self.lock().own_events.remove(path);
    }

    /// The write failed, so there is no such event.
    pub(super) fn unexpect_event(&self, path: &str) {
        take_one(&mut self.lock().own_events, path);
    }

    /// Whether the session is to outlive the close.
    pub(super) fn leaving(&self) -> bool {
        self.lock().orders.leaving
    }

    /// A client stands ready: from here on, requests are taken.
    pub(super) fn connected(&self, event: RegistryEvent) {
        let mut state = self.lock();
        state.desk.open();
        self.tell_all(state, [event]);
    }

    /// The connection is gone: so are all requests that wait.
    pub(super) fn lost(&self, event: RegistryEvent) {
        let mut state = self.lock();
        let answers = state.desk.close();
        self.tell_all(state, [event].into_iter().chain(answers));
    }

    /// The request to be carried out now; it must be answered or the connection given up.
    pub(super) fn next_request(&self) -> Option<Request> {
        self.lock().desk.begin()
    }

    /// Answers the request that was carried out.
    pub(super) fn answer(&self, answer: Answer) {
        let mut state = self.lock();
        let told = state.desk.finish(answer);
        self.tell_all(state, told);
    }

    /// Tells the core.
    pub(super) fn tell(&self, event: RegistryEvent) {
        self.tell_all(self.lock(), [event]);
    }

    fn tell_all(&self, mut state: MutexGuard<'_, State>, events: impl IntoIterator<Item = RegistryEvent>) {
        let before = state.events.len();
        state.events.extend(events);
        let told = state.events.len() > before;
        while state.events.len() > MOST_EVENTS && state.drop_event() {}
        drop(state);
        if told {
            self.event_loop.wake();
        }
    }

    /// Changes the figures.
    pub(super) fn figures(&self, change: impl FnOnce(&mut RegistryStatus)) {
        change(&mut self.lock().status);
    }

    /// The session thread ends.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        let answers = state.desk.close();
        self.tell_all(state, answers);
        self.tell_gate(|state| state.orders.over = true);
    }
}

/// For the client's watcher.
impl Shared {
    /// The library's threads are at their end.
    pub(super) fn client_gone(&self, gone: &AtomicBool) {
        let state = self.lock();
        gone.store(true, Ordering::SeqCst);
        drop(state);
        self.changed.notify_one();
    }

    /// A watch of the client of this connection fired: for a request that has read the path, for the desired tree, or for
    /// both. The tree is not told of its own writes.
    pub(super) fn watch_fired(&self, epoch: u64, path: &str, happening: Happening) {
        let mut state = self.lock();
        if epoch != state.orders.relay {
            return;
        }
        let foreign = match happening {
            Happening::Written => !take_one(&mut state.own_events, path),
            Happening::Created | Happening::Deleted => true,
            Happening::Children => false,
        };
        if foreign {
            state.news.touched.insert(path.to_owned());
            state.fresh = true;
            self.changed.notify_one();
        }
        let told = state.desk.happened(path, happening);
        self.tell_all(state, told);
    }
}

/// For the gate.
impl Shared {
    /// The port on which clients are taken.
    pub(super) fn set_port(&self, port: u16) {
        self.tell_session(|state| state.port = port);
    }

    /// What is wanted of the gate.
    pub(super) fn orders(&self) -> Orders {
        self.lock().orders.clone()
    }

    /// A session stands. Where it is the same as before, what was acknowledged before still counts.
    pub(super) fn link_up(&self, link: Link, mut facts: SessionFacts) {
        self.tell_session(|state| {
            let before = state.facts.as_ref().filter(|before| before.session == facts.session);
            facts.acknowledged = facts.acknowledged.max(before.and_then(|before| before.acknowledged));
            state.news.failed_rounds = 0;
            state.news.link = Some(link);
            state.facts = Some(facts);
        });
    }

    /// The connection is gone.
    pub(super) fn link_down(&self, why: &str) {
        self.tell_session(|state| {
            state.news.link = None;
            state.news.why = why.to_owned();
        });
    }

    /// The client is being answered by the gate alone.
    pub(super) fn client_drained(&self) {
        self.lock().drained = true;
        self.changed.notify_one();
    }

    /// All hosts were tried in vain.
    pub(super) fn round_failed(&self, why: &str) {
        self.tell_session(|state| {
            state.news.failed_rounds += 1;
            state.news.why = why.to_owned();
        });
    }

    /// A request that was sent at `sent` has been acknowledged.
    pub(super) fn acknowledged(&self, sent: Instant) {
        if let Some(facts) = &mut self.lock().facts {
            facts.acknowledged = Some(facts.acknowledged.map_or(sent, |before| before.max(sent)));
        }
    }

    /// The gate has failed: without it the session thread can only end.
    pub(super) fn gate_failed(&self) {
        self.link_down("the gate failed");
        self.close();
    }

    /// The gate has ended, and with it everything.
    pub(super) fn gate_ended(&self) {
        self.lock().closed = true;
        self.event_loop.wake();
    }
}

fn take_one(counts: &mut BTreeMap<String, u32>, path: &str) -> bool {
    match counts.get_mut(path) {
        Some(count) if *count > 1 => *count -= 1,
        Some(_) => {
            counts.remove(path);
        }
        None => return false,
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shell::registry::Mode;

    fn shared() -> Shared {
        Shared::new(Waker::new().unwrap(), Waker::new().unwrap())
    }

    fn put(path: &str, content: &str) -> Change {
        let node = Node { mode: Mode::Persistent, content: content.into() };
        Change::Put { path: path.into(), node }
    }

    #[test]
    fn the_newest_change_of_a_path_is_what_the_session_thread_finds() {
        let shared = shared();
        shared.change(vec![put("/a", "1"), put("/a/b", "1"), put("/ab", "1")]);
        shared.change(vec![Change::Remove { path: "/a".into() }, put("/a", "2")]);
        let news = shared.wait(None);
        let contents: Vec<_> = news.inbox.puts.iter().map(|(p, n)| (p.as_str(), &n.content[..])).collect();
        assert_eq!(contents, [("/a", &b"2"[..]), ("/ab", b"1")]);
        assert!(news.inbox.removals.contains("/a"));
        assert_eq!(shared.status().behind, 0);
    }

    #[test]
    fn an_event_of_our_own_write_touches_nothing() {
        let shared = shared();
        shared.expect_event("/a");
        shared.watch_fired(0, "/a", Happening::Written);
        shared.watch_fired(0, "/a", Happening::Written);
        shared.expect_event("/b");
        shared.unexpect_event("/b");
        shared.watch_fired(0, "/b", Happening::Written);
        let touched: Vec<_> = shared.wait(None).touched.into_iter().collect();
        assert_eq!(touched, ["/a", "/b"]);
    }

    fn stand(shared: &Shared, epoch: u64, session: i64) {
        let timeout = Duration::from_secs(6);
        let link = Link { epoch, server: "s".into(), session, timeout };
        shared.link_up(link, SessionFacts { session, timeout, read_only: false, acknowledged: None });
    }

    #[test]
    fn an_acknowledgement_counts_for_its_session_over_connections_and_for_no_other() {
        let shared = shared();
        let (first, second) = (Instant::now(), Instant::now() + Duration::from_secs(1));
        let acknowledged = || shared.facts().and_then(|facts| facts.acknowledged);
        stand(&shared, 1, 7);
        assert_eq!(acknowledged(), None);
        shared.acknowledged(second);
        shared.acknowledged(first);
        assert_eq!(acknowledged(), Some(second), "the latest counts");
        shared.link_down("cut");
        stand(&shared, 2, 7);
        assert_eq!(acknowledged(), Some(second));
        stand(&shared, 3, 8);
        assert_eq!(acknowledged(), None);
    }

    #[test]
    fn paths_are_compared_by_their_parts() {
        assert!(is_within("/a/b", "/a") && is_within("/a", "/a") && is_within("/a", "/"));
        assert!(!is_within("/ab", "/a") && !is_within("/", "/a"));
    }
}
