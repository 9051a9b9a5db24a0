//! The registry of an agent without ZooKeeper: the tree in this process's memory.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{Change, Mode, Node, Owned, Registry, RegistryEvent, RegistryStatus, shared::is_within};
use crate::shell::waker::Waker;

#[derive(Debug, Default)]
struct State {
    nodes: BTreeMap<String, Node>,
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
        let timeout = Duration::from_secs(30);
        let connected = RegistryEvent::Connected { server: "memory".into(), session: 0, timeout };
        let events = VecDeque::from([connected, RegistryEvent::Synced]);
        waker.wake();
        Memory { state: Mutex::new(State { events, ..State::default() }), waker }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn carry_out(&mut self, change: Change) {
        match change {
            Change::Put { path, node } => {
                if self.nodes.get(&path) != Some(&node) {
                    self.writes += 1;
                    self.nodes.insert(path, node);
                }
            }
            Change::Remove { path } => {
                let before = self.nodes.len();
                self.nodes.retain(|other, _| !is_within(other, &path));
                self.writes += (before - self.nodes.len()) as u64;
            }
        }
    }
}

impl Registry for Memory {
    fn apply(&self, changes: Vec<Change>) {
        let mut state = self.lock();
        changes.into_iter().for_each(|change| state.carry_out(change));
    }

    /// Nothing outlives the process, so nothing is ever stale.
    fn claim(&self, _: Vec<Owned>) {}

    fn event(&self) -> Option<RegistryEvent> {
        self.lock().events.pop_front()
    }

    fn request(&self, _token: u64, _request: super::Request) {}

    fn status(&self) -> RegistryStatus {
        let state = self.lock();
        RegistryStatus {
            state: "memory",
            server: "memory".into(),
            writes: state.writes,
            nodes: state.nodes.len(),
            ..RegistryStatus::default()
        }
    }

    fn close(&self) {
        let mut state = self.lock();
        state.nodes.retain(|_, node| node.mode == Mode::Persistent);
        state.closed = true;
        drop(state);
        self.waker.wake();
    }

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

    fn put(path: &str, mode: Mode, content: &str) -> Change {
        Change::Put { path: path.into(), node: Node { mode, content: content.into() } }
    }

    #[test]
    fn it_is_connected_and_synced_from_the_start() {
        let memory = Memory::new(Waker::new().unwrap());
        assert!(matches!(memory.event(), Some(RegistryEvent::Connected { session: 0, .. })));
        assert_eq!(memory.event(), Some(RegistryEvent::Synced));
        assert_eq!(memory.event(), None);
    }

    #[test]
    fn only_differences_are_writes_and_a_removal_takes_all_below() {
        let memory = Memory::new(Waker::new().unwrap());
        memory.apply(vec![put("/a", Mode::Persistent, "1"), put("/a/b", Mode::Persistent, "1")]);
        memory.apply(vec![put("/a", Mode::Persistent, "1"), put("/ab", Mode::Ephemeral, "1")]);
        assert_eq!((memory.status().writes, memory.status().nodes), (3, 3));
        memory.apply(vec![Change::Remove { path: "/a".into() }]);
        assert_eq!((memory.status().writes, memory.status().nodes), (5, 1));
        memory.close();
        assert!(memory.closed());
        assert_eq!(memory.status().nodes, 0, "ephemerals go with a close");
    }
}
