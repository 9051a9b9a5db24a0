//! The registry of an agent without ZooKeeper: the tree in this process's memory.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{
    Answer, Change, Found, Mode, Node, Owned, Registry, RegistryEvent, RegistryStatus, Request, SessionFacts,
    client::check_size,
    readings::{Happening, Kind, Readings},
    reconcile::Fault,
    shared::is_within,
};
use crate::shell::waker::Waker;

/// The only session that there is.
const SESSION: i64 = 1;
/// What a session timeout would be.
const TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug)]
struct Stored {
    node: Node,
    version: i32,
    /// It is in the desired tree.
    desired: bool,
}

#[derive(Debug, Default)]
struct State {
    nodes: BTreeMap<String, Stored>,
    readings: Readings,
    /// Readings that are outdated and not told of yet.
    outdated: Vec<String>,
    events: VecDeque<RegistryEvent>,
    writes: u64,
    closed: bool,
}

/// The tree in memory: connected from the start, synced by definition.
#[derive(Debug)]
pub(super) struct Memory {
    state: Mutex<State>,
    waker: Waker,
}

impl Memory {
    /// An empty tree; `waker` is woken for each event.
    pub(super) fn new(waker: Waker) -> Memory {
        let connected =
            RegistryEvent::Connected { server: "memory".into(), session: SESSION, timeout: TIMEOUT };
        let events = VecDeque::from([connected, RegistryEvent::Synced]);
        waker.wake();
        Memory { state: Mutex::new(State { events, ..State::default() }), waker }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn happened(&mut self, path: &str, happening: Happening) {
        if self.readings.outdate(path, happening) {
            self.outdated.push(path.to_owned());
        }
    }

    fn tell_outdated(&mut self) {
        self.events.extend(self.outdated.drain(..).map(|path| RegistryEvent::Changed { path }));
    }

    /// Makes a node that is not there, and what is missing above it.
    fn insert(&mut self, path: &str, node: Node, desired: bool) {
        let above = parent(path);
        if above != "/" && !self.nodes.contains_key(above) {
            self.insert(above, Node { mode: Mode::Persistent, content: Vec::new() }, false);
        }
        self.writes += 1;
        self.nodes.insert(path.to_owned(), Stored { node, version: 0, desired });
        self.happened(path, Happening::Created);
        self.happened(above, Happening::Children);
    }

    fn remove(&mut self, path: &str) {
        if self.nodes.remove(path).is_some() {
            self.writes += 1;
            self.happened(path, Happening::Deleted);
            self.happened(parent(path), Happening::Children);
        }
    }

    /// Gives a node that is there new content; its version after that.
    fn rewrite(&mut self, path: &str, content: Vec<u8>) -> Option<i32> {
        let stored = self.nodes.get_mut(path)?;
        stored.node.content = content;
        stored.version += 1;
        let version = stored.version;
        self.writes += 1;
        self.happened(path, Happening::Written);
        Some(version)
    }

    fn carry_out(&mut self, change: Change) {
        match change {
            Change::Put { path, node } => self.put(&path, node),
            Change::Remove { path } => {
                let within: Vec<String> =
                    self.nodes.keys().rev().filter(|other| is_within(other, &path)).cloned().collect();
                within.iter().for_each(|path| self.remove(path));
            }
        }
    }

    fn put(&mut self, path: &str, node: Node) {
        match self.nodes.get_mut(path) {
            Some(stored) if stored.node.mode == node.mode => {
                stored.desired = true;
                if stored.node.content != node.content {
                    self.rewrite(path, node.content);
                }
            }
            Some(_) => {
                self.remove(path);
                self.insert(path, node, true);
            }
            None => self.insert(path, node, true),
        }
    }

    fn children(&self, path: &str) -> Vec<String> {
        let name = |other: &String| other.rsplit_once('/').map(|(_, name)| name.to_owned());
        self.nodes.keys().filter(|other| parent(other) == path).filter_map(name).collect()
    }

    fn answer(&mut self, request: Request) -> Result<Answer, Fault> {
        Ok(match request {
            Request::Read { path } => {
                self.readings.note(&path, Kind::Node);
                Answer::Node(self.nodes.get(&path).map(found))
            }
            Request::Children { path } => {
                self.readings.note(&path, Kind::Children);
                let there = path == "/" || self.nodes.contains_key(&path);
                Answer::Names(there.then(|| self.children(&path)))
            }
            Request::Create { path, node } => {
                check_size(&path, &node.content)?;
                self.create(&path, node)?
            }
            Request::Write { path, content, version } => {
                check_size(&path, &content)?;
                let written = self.is_of_version(&path, version).then(|| self.rewrite(&path, content));
                written.flatten().map_or(Answer::Stale, Answer::Written)
            }
            Request::Delete { path, version } => {
                if self.is_of_version(&path, version) && self.children(&path).is_empty() {
                    self.remove(&path);
                    Answer::Deleted
                } else {
                    Answer::Stale
                }
            }
        })
    }

    fn create(&mut self, path: &str, node: Node) -> Result<Answer, Fault> {
        let is_ephemeral = |(above, stored): (&String, &Stored)| {
            stored.node.mode == Mode::Ephemeral && is_within(path, above)
        };
        if path == "/" || self.nodes.contains_key(path) {
            return Ok(Answer::Exists);
        }
        if self.nodes.iter().any(is_ephemeral) {
            return Err(Fault::Refused("an ephemeral has no children".into()));
        }
        self.insert(path, node, false);
        Ok(Answer::Created)
    }

    fn is_of_version(&self, path: &str, version: i32) -> bool {
        self.nodes.get(path).is_some_and(|stored| version == -1 || stored.version == version)
    }
}

fn found(stored: &Stored) -> Found {
    let owner = if stored.node.mode == Mode::Ephemeral { SESSION } else { 0 };
    Found { content: stored.node.content.clone(), version: stored.version, owner }
}

fn parent(path: &str) -> &str {
    match path.rsplit_once('/') {
        Some((parent, _)) if !parent.is_empty() => parent,
        _ => "/",
    }
}

impl Registry for Memory {
    fn apply(&self, changes: Vec<Change>) {
        let mut state = self.lock();
        changes.into_iter().for_each(|change| state.carry_out(change));
        let told = !state.outdated.is_empty();
        state.tell_outdated();
        drop(state);
        if told {
            self.waker.wake();
        }
    }

    /// Nothing outlives the process, so nothing is ever stale.
    fn claim(&self, _: Vec<Owned>) {}

    fn event(&self) -> Option<RegistryEvent> {
        self.lock().events.pop_front()
    }

    fn request(&self, token: u64, request: Request) {
        let mut state = self.lock();
        let answer = if state.closed { Ok(Answer::Lost) } else { state.answer(request) };
        let answer = match answer {
            Ok(answer) => answer,
            Err(Fault::Refused(why)) => Answer::Refused(why),
            Err(Fault::Lost(_)) => Answer::Lost,
        };
        state.events.push_back(RegistryEvent::Answered { token, answer });
        state.tell_outdated();
        drop(state);
        self.waker.wake();
    }

    fn status(&self) -> RegistryStatus {
        let state = self.lock();
        RegistryStatus {
            state: "memory",
            server: "memory".into(),
            writes: state.writes,
            nodes: state.nodes.values().filter(|stored| stored.desired).count(),
            ..RegistryStatus::default()
        }
    }

    /// The process's memory is always there.
    fn facts(&self) -> Option<SessionFacts> {
        let acknowledged = Some(Instant::now());
        Some(SessionFacts { session: SESSION, timeout: TIMEOUT, read_only: false, acknowledged })
    }

    fn close(&self) {
        let mut state = self.lock();
        state.nodes.retain(|_, stored| stored.node.mode == Mode::Persistent);
        state.closed = true;
        drop(state);
        self.waker.wake();
    }

    /// There is no next run that could find anything.
    fn leave(&self) {
        self.close();
    }

    fn closed(&self) -> bool {
        self.lock().closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> Memory {
        let memory = Memory::new(Waker::new().unwrap());
        assert!(matches!(memory.event(), Some(RegistryEvent::Connected { session: SESSION, .. })));
        assert_eq!(memory.event(), Some(RegistryEvent::Synced));
        assert_eq!(memory.event(), None);
        memory
    }

    fn put(path: &str, mode: Mode, content: &str) -> Change {
        Change::Put { path: path.into(), node: Node { mode, content: content.into() } }
    }

    fn ask(memory: &Memory, request: Request) -> Answer {
        memory.request(7, request);
        match memory.event() {
            Some(RegistryEvent::Answered { token: 7, answer }) => answer,
            other => panic!("{other:?}"),
        }
    }

    fn changes(memory: &Memory) -> Vec<String> {
        let path = |event| match event {
            RegistryEvent::Changed { path } => path,
            other => panic!("{other:?}"),
        };
        std::iter::from_fn(|| memory.event()).map(path).collect()
    }

    fn read(path: &str) -> Request {
        Request::Read { path: path.into() }
    }

    fn children(path: &str) -> Request {
        Request::Children { path: path.into() }
    }

    fn create(path: &str, mode: Mode, content: &str) -> Request {
        Request::Create { path: path.into(), node: Node { mode, content: content.into() } }
    }

    fn write(path: &str, content: &str, version: i32) -> Request {
        Request::Write { path: path.into(), content: content.into(), version }
    }

    fn delete(path: &str, version: i32) -> Request {
        Request::Delete { path: path.into(), version }
    }

    fn node(content: &str, version: i32, owner: i64) -> Answer {
        Answer::Node(Some(Found { content: content.into(), version, owner }))
    }

    #[test]
    fn only_differences_are_writes_and_a_removal_takes_all_below() {
        let memory = memory();
        memory.apply(vec![put("/a", Mode::Persistent, "1"), put("/a/b", Mode::Persistent, "1")]);
        memory.apply(vec![put("/a", Mode::Persistent, "1"), put("/ab", Mode::Ephemeral, "1")]);
        assert_eq!((memory.status().writes, memory.status().nodes), (3, 3));
        memory.apply(vec![Change::Remove { path: "/a".into() }]);
        assert_eq!((memory.status().writes, memory.status().nodes), (5, 1));
        memory.close();
        assert!(memory.closed());
        assert_eq!(memory.status().nodes, 0, "ephemerals go with a close");
        assert_eq!(ask(&memory, read("/ab")), Answer::Lost);
    }

    #[test]
    fn requests_go_by_versions_and_make_what_is_missing_above() {
        let memory = memory();
        assert_eq!(ask(&memory, create("/s/1/lock", Mode::Ephemeral, "me")), Answer::Created);
        assert_eq!(ask(&memory, create("/s/1/lock", Mode::Ephemeral, "you")), Answer::Exists);
        assert_eq!(ask(&memory, read("/s/1/lock")), node("me", 0, SESSION));
        assert_eq!(ask(&memory, children("/")), Answer::Names(Some(vec!["s".into()])));
        assert_eq!(memory.status().nodes, 0, "none is in the desired tree");
        assert_eq!(ask(&memory, create("/s/1/state", Mode::Persistent, "a")), Answer::Created);
        assert_eq!(ask(&memory, write("/s/1/state", "b", 1)), Answer::Stale);
        assert_eq!(ask(&memory, write("/s/1/state", "b", 0)), Answer::Written(1));
        assert_eq!(ask(&memory, delete("/s/1", -1)), Answer::Stale, "it has children");
        assert_eq!(ask(&memory, delete("/s/1/state", 0)), Answer::Stale);
        assert_eq!(ask(&memory, delete("/s/1/state", 1)), Answer::Deleted);
        assert_eq!(ask(&memory, read("/s/1/state")), Answer::Node(None));
        assert_eq!(ask(&memory, write("/s/1/state", "b", -1)), Answer::Stale);
        let below = ask(&memory, create("/s/1/lock/x", Mode::Persistent, ""));
        assert!(matches!(below, Answer::Refused(_)), "{below:?}");
        let large = ask(&memory, create("/large", Mode::Persistent, &"x".repeat(1 << 20)));
        assert!(matches!(large, Answer::Refused(_)), "{large:?}");
    }

    #[test]
    fn what_was_read_is_told_of_once_when_it_changes() {
        let memory = memory();
        assert_eq!(ask(&memory, read("/members/a")), Answer::Node(None));
        assert_eq!(ask(&memory, children("/members")), Answer::Names(None));
        memory.apply(vec![put("/members/a", Mode::Ephemeral, "1")]);
        assert_eq!(changes(&memory), ["/members", "/members/a"]);
        memory.apply(vec![put("/members/a", Mode::Ephemeral, "2")]);
        assert_eq!(changes(&memory), [""; 0]);
        assert_eq!(ask(&memory, read("/members/a")), node("2", 1, SESSION));
        assert_eq!(ask(&memory, children("/members")), Answer::Names(Some(vec!["a".into()])));
        assert_eq!(ask(&memory, write("/members/a", "3", 1)), Answer::Written(2));
        assert_eq!(
            changes(&memory),
            ["/members/a"],
            "our own writes are told of as well, after their answer"
        );
        memory.apply(vec![Change::Remove { path: "/members".into() }]);
        assert_eq!(changes(&memory), ["/members"]);
    }

    #[test]
    fn a_lease_in_memory_is_always_fresh() {
        let facts = memory().facts().unwrap();
        assert_eq!((facts.session, facts.timeout), (SESSION, TIMEOUT));
        assert!(facts.acknowledged.is_some_and(|at| at.elapsed() < Duration::from_secs(1)));
    }
}
