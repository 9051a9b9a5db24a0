//! The registry: the desired tree goes in, the registry is made so.
//!
//! The core computes which nodes there must be; an implementation keeps them there, repairs them and writes only what
//! differs. `zookeeper` does it with a session thread behind the gate, `memory` in this process alone.

mod client;
mod ensemble;
mod gate;
mod hosts;
mod memory;
mod own;
mod pace;
mod readings;
mod reconcile;
mod requests;
mod session;
mod shared;
mod wire;

use std::{
    fmt, io, process,
    time::{Duration, Instant},
};

use super::waker::Waker;
use crate::config::ZookeeperSettings;

/// The target of the registry's log lines.
pub(crate) const LOG: &str = "yagent::registry";

/// How long a node lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Until it is removed.
    Persistent,
    /// As long as the session that made it.
    Ephemeral,
}

/// What a path must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// How long it lives.
    pub mode: Mode,
    /// Its content.
    pub content: Vec<u8>,
}

/// A change of the desired tree. Parents are made as needed, empty and persistent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The path must hold this node.
    Put {
        /// Absolute, below the chroot.
        path: String,
        /// What it must hold.
        node: Node,
    },
    /// The path and all below it must go.
    Remove {
        /// Absolute, below the chroot.
        path: String,
    },
}

/// Nodes that belong to this host: the children of `dir` whose name is `prefix`, digits, `suffix`. Those that are not
/// in the desired tree are removed; no other node is ever touched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owned {
    /// Their parent.
    pub dir: String,
    /// What their names begin with: `10.0.0.1:`.
    pub prefix: String,
    /// What their names end with; often empty.
    pub suffix: String,
}

/// What the registry tells the core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegistryEvent {
    /// A session stands.
    Connected {
        /// The server's address.
        server: String,
        /// The session's id, 1 in memory.
        session: i64,
        /// The negotiated session timeout.
        timeout: Duration,
    },
    /// The connection or the session is gone; it is being restored.
    Lost {
        /// Why, in a sentence.
        why: String,
    },
    /// The whole desired tree is there.
    Synced,
    /// An ephemeral of ours is held by another live agent; it is left alone.
    Conflict {
        /// The contested path.
        path: String,
        /// Its content, as text.
        holder: String,
    },
    /// The contested path is ours now.
    ConflictOver {
        /// The path.
        path: String,
    },
    /// The registry refuses a write for good (access denied, content too large, …); it is tried again at every
    /// heartbeat.
    Refused {
        /// The path.
        path: String,
        /// Why, in a sentence.
        why: String,
    },
    /// A refused path went through.
    RefusedOver {
        /// The path.
        path: String,
    },
    /// A request was answered.
    Answered {
        /// As given with the request.
        token: u64,
        /// How.
        answer: Answer,
    },
    /// A node that was read by a request has changed, or its children have. Told once for each reading; after a
    /// [`RegistryEvent::Connected`] no earlier reading is told of any more.
    Changed {
        /// Its path.
        path: String,
    },
}

/// A single request beside the desired tree; each is answered by [`RegistryEvent::Answered`], in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Reads a node, and has its next change told by [`RegistryEvent::Changed`], its creation where there is none.
    Read {
        /// Absolute, below the chroot.
        path: String,
    },
    /// Reads the names of a node's children, and has their next change told.
    Children {
        /// Absolute, below the chroot.
        path: String,
    },
    /// Creates a node; missing parents are made, empty and persistent.
    Create {
        /// Absolute, below the chroot.
        path: String,
        /// What it is to be.
        node: Node,
    },
    /// Changes a node of this version.
    Write {
        /// Absolute, below the chroot.
        path: String,
        /// Its new content.
        content: Vec<u8>,
        /// Its version as it was read.
        version: i32,
    },
    /// Removes a node of this version; -1: of any.
    Delete {
        /// Absolute, below the chroot.
        path: String,
        /// Its version as it was read.
        version: i32,
    },
}

/// A node as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its content.
    pub content: Vec<u8>,
    /// Its version.
    pub version: i32,
    /// The session that it lives with; 0: persistent.
    pub owner: i64,
}

/// The answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To `Read`; `None`: there is no such node.
    Node(Option<Found>),
    /// To `Children`; `None`: there is no such node.
    Names(Option<Vec<String>>),
    /// To `Create`: it is there now, by us.
    Created,
    /// To `Create`: it was there already.
    Exists,
    /// To `Write`: it holds the content, in this version.
    Written(i32),
    /// To `Write` or `Delete`: it has another version, is gone, or has children.
    Stale,
    /// To `Delete`: it is gone, by us.
    Deleted,
    /// The connection is gone; what the request did is not known.
    Lost,
    /// The registry will not have it; why, in a sentence.
    Refused(String),
}

/// Figures for `status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct RegistryStatus {
    /// `memory`, `connecting`, `connected` or `lost`.
    pub state: &'static str,
    /// The server in use, or the last one.
    pub server: String,
    /// The session id in hexadecimal, as ZooKeeper's own tools print it; empty without one.
    pub session: String,
    /// Writes (create, set, delete) that the registry acknowledged since the start.
    pub writes: u64,
    /// Sessions begun since the start.
    pub sessions: u64,
    /// Connections begun since the start.
    pub connections: u64,
    /// Connections cut by the gate for silence or nonsense since the start.
    pub cuts: u64,
    /// Nodes in the desired tree.
    pub nodes: usize,
    /// Nodes that differ from it, as far as is known.
    pub behind: usize,
}

/// What a lease is counted from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionFacts {
    /// The session's id.
    pub session: i64,
    /// The negotiated session timeout.
    pub timeout: Duration,
    /// The server only reads.
    pub read_only: bool,
    /// When the last request of this session was sent that the ensemble's leader acknowledged; the session lives at least
    /// until `timeout` after that; less a tenth of it, where the server that passed it on is cut off from the leader before
    /// its next ping tells whom it heard. `None`: none was yet.
    pub acknowledged: Option<Instant>,
}

impl SessionFacts {
    /// Whether it differs from what is known by more than an acknowledgement of moments later: to all who count by it that
    /// would be many a little for nothing, and whoever does not hear of it counts too little, never too much.
    pub fn says_more(&self, known: &SessionFacts) -> bool {
        let later = match (known.acknowledged, self.acknowledged) {
            (Some(known), Some(now)) => now.saturating_duration_since(known) >= self.timeout / 40,
            (known, now) => known != now,
        };
        later || *self != SessionFacts { acknowledged: self.acknowledged, ..known.clone() }
    }
}

/// Who we are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// This host's id, the same over all runs: content of ephemerals names it as `host_id`.
    pub host_id: String,
}

/// A registry in a ZooKeeper ensemble. It may be unreachable for now; that is no error.
///
/// # Errors
/// When the system has no descriptor, loopback port or thread left.
pub fn zookeeper(
    settings: &ZookeeperSettings,
    identity: Identity,
    waker: Waker,
) -> io::Result<Box<dyn Registry>> {
    Ok(Box::new(ensemble::Ensemble::start(settings, identity, waker)?))
}

/// A registry in this process's memory.
pub fn memory(waker: Waker) -> Box<dyn Registry> {
    Box::new(memory::Memory::new(waker))
}

/// The last resort against a client library that holds a thread for ever: the caches outlive the agent, and its
/// supervisor starts it again.
fn leave_to_supervisor(why: &str) -> ! {
    log::error!(target: LOG, "{why}; the agent ends for its supervisor to start it again");
    log::logger().flush();
    process::exit(crate::cli::exit::INTERNAL.into());
}

/// A registry. No method blocks.
pub trait Registry: fmt::Debug {
    /// Changes the desired tree.
    fn apply(&self, changes: Vec<Change>);
    /// Replaces the set of nodes that belong to this host.
    fn claim(&self, owned: Vec<Owned>);
    /// The next event, if one is there. A [`Waker`](super::waker::Waker) given at the start is woken for each.
    fn event(&self) -> Option<RegistryEvent>;
    /// Makes a request; `token` comes back with its answer. Without a connection it is answered with
    /// [`Answer::Lost`] at once. Requests go before changes of the desired tree.
    fn request(&self, token: u64, request: Request);
    /// Figures as they stand.
    fn status(&self) -> RegistryStatus;
    /// Facts of the session, for leases; `None` without one.
    fn facts(&self) -> Option<SessionFacts> {
        None
    }
    /// Begins a polite close: ephemerals go, the session ends. `closed` tells when it is done.
    fn close(&self);
    /// Begins a close that leaves the session to its timeout: ephemerals stay until then, for the next run of this host
    /// to take over. `closed` tells when it is done.
    fn leave(&self);
    /// Whether a close has ended.
    fn closed(&self) -> bool;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acknowledgement_of_moments_later_is_no_news() {
        let timeout = Duration::from_secs(40);
        let at = Instant::now();
        let known = SessionFacts { session: 1, timeout, read_only: false, acknowledged: Some(at) };
        let after = |ms| Some(at + Duration::from_millis(ms));
        let says_more = |facts: SessionFacts| facts.says_more(&known);
        assert!(!says_more(SessionFacts { acknowledged: after(999), ..known.clone() }));
        assert!(says_more(SessionFacts { acknowledged: after(1000), ..known.clone() }));
        assert!(says_more(SessionFacts { acknowledged: None, ..known.clone() }));
        assert!(says_more(SessionFacts { session: 2, ..known.clone() }));
        assert!(says_more(SessionFacts { read_only: true, acknowledged: after(1), ..known.clone() }));
    }
}
