//! The decisions. No socket, no thread, no clock, no global: time is handed in, actions are handed out.
//!
//! [`Core::step`] takes what happened and says what to do; [`Core::next_deadline`] says when it wants to be called
//! without anything having happened. `instance` is the life of one server, `host` what concerns them together,
//! `desired` the registry's tree, `alert` and `stats` what their names say.

pub mod alert;
mod desired;
pub mod failover;
mod host;
mod instance;
mod shards;
pub mod stats;
mod storm;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    time::{Duration, Instant},
};

pub use host::Core;
pub use instance::{InstanceReport, State};
pub use stats::{Others, Sample};

use crate::{
    config::{Megabytes, Probing, Statistics},
    plugin::Health,
    shell::registry::{Change, Owned, RegistryEvent, Request, SessionFacts},
};
use alert::{Alert, Severity};

/// A moment, on both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Monotonic: every decision hangs on this one.
    pub at: Instant,
    /// Milliseconds since 1970: for records that people read.
    pub unix_ms: u64,
}

/// An engine, by its place in the order of first appearance; it never changes while the agent lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EngineId(pub u16);

/// An instance: an engine on a port of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InstanceId {
    /// Its engine.
    pub engine: EngineId,
    /// Its port.
    pub port: u16,
}

/// A process id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pid(pub u32);

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What this host is to run and how it presents itself.
#[derive(Clone, Debug, PartialEq)]
pub struct HostPlan {
    /// How it presents itself in the registry.
    pub identity: HostIdentity,
    /// How instances are probed and repaired.
    pub probing: Probing,
    /// What is counted and published.
    pub statistics: Statistics,
    /// An alert that goes on is told again at most this often.
    pub alert_repeat: Duration,
    /// The engines; one that was there before and is missing here is taken down.
    pub engines: Vec<EnginePlan>,
    /// Why the plan does not fit into the memory; empty when it does.
    pub misfits: Vec<String>,
}

/// How the host presents itself in the registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostIdentity {
    /// Its address as others know it.
    pub ip: String,
    /// Its name.
    pub hostname: String,
    /// Stable over restarts of the agent, unique to this installation.
    pub host_id: String,
    /// Random, new in each run of the agent.
    pub nonce: String,
    /// The agent's process.
    pub pid: u32,
    /// `group` of the ini.
    pub group: String,
    /// `priority` of the ini.
    pub priority: i64,
    /// `rack` of the ini.
    pub rack: String,
    /// Memory of the host, or its cgroup's limit.
    pub memory: Megabytes,
    /// Memory kept for the system.
    pub reserved: Megabytes,
}

/// What a host runs of one engine.
#[derive(Clone, Debug, PartialEq)]
pub struct EnginePlan {
    /// The engine's name.
    pub name: String,
    /// How many instances.
    pub count: u32,
    /// Memory of each.
    pub maxmem: Megabytes,
    /// The first port.
    pub port: u16,
    /// The distance to the next.
    pub port_step: u16,
    /// The ports in use when the agent last wrote them down, in that order.
    pub known_ports: Vec<u16>,
    /// The host's node.
    pub server_path: String,
    /// An instance's node, with `{port}` left to fill in.
    pub instance_path: String,
    /// Why nobody looks after its instances: they are left as they are, and reported. `None`: they are looked after.
    pub unattended: Option<String>,
    /// With whom its instances replicate; `None`: each is alone.
    pub shards: Option<ShardSettings>,
}

/// With whom an engine's instances replicate: those on the same port of this host and its peers are a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardSettings {
    /// Where shards are in the registry: `/redis/shards`.
    pub root: String,
    /// `peers`: addresses of the other hosts.
    pub peers: Vec<std::net::IpAddr>,
    /// The lease and what hangs on it.
    pub timing: failover::Timing,
    /// `redis_fencing`.
    pub fencing: bool,
    /// `redis_failsafe`.
    pub failsafe: bool,
    /// `redis_max_lag`, in bytes.
    pub max_lag: u64,
    /// `redis_min_replicas`.
    pub min_replicas: u32,
}

/// A conversation with an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Talk {
    /// A probe on the kept connection.
    Light,
    /// A probe over a connection of its own: connect, get, close.
    Full,
    /// A statistics sample on the kept connection.
    Sample,
    /// A probe that asks the engine to end what keeps it busy.
    Unstick,
}

/// What `/proc` says of a process that missed a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessState {
    /// It runs, sleeps or waits for a disk.
    Alive,
    /// A signal stopped it.
    Stopped,
    /// It is dead and nobody has reaped it.
    Zombie,
    /// Nothing is known.
    Unknown,
}

/// How a conversation ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The probe was answered.
    Answered {
        /// What the answer means.
        health: Health,
        /// Why, where it isn't plain.
        why: String,
    },
    /// The sample is there.
    Sampled {
        /// Its figures.
        sample: Sample,
        /// What was told under names of the engine's own.
        others: Others,
        /// The server's version, empty when unknown.
        version: String,
    },
    /// No answer: too late, refused, closed.
    Missed {
        /// Which of them, in a phrase.
        why: String,
        /// Evidence.
        process: ProcessState,
    },
    /// This agent could not ask: it has no descriptor, port or memory left. Says nothing of the server.
    Hindered {
        /// Why.
        why: String,
    },
    /// An order was carried out; with what it says of itself where that was asked.
    Obeyed(Option<Box<failover::View>>),
    /// The server's version does not know the order.
    Unsupported,
    /// The backend could not make sense of it, or failed itself.
    Failed {
        /// Why.
        why: String,
    },
}

/// Why an instance was not started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotStarted {
    /// Something that isn't ours listens on the port.
    PortTaken(String),
    /// It can't be started.
    Failed(String),
    /// It was only to be adopted, and isn't there.
    Gone,
    /// It was only to be adopted; a server listens there that this agent has no record of.
    Unrecorded(String),
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// The deadline passed.
    Tick,
    /// A plan, the first one or a new one.
    Configure(Box<HostPlan>),
    /// An instance's process is there.
    Started {
        /// Whose.
        id: InstanceId,
        /// The process.
        pid: Pid,
        /// How long it has been running; `None`: it was just started by us.
        adopted: Option<Duration>,
    },
    /// An instance was not started.
    NotStarted {
        /// Which.
        id: InstanceId,
        /// Why.
        why: NotStarted,
    },
    /// An instance's process is dead.
    Exited {
        /// Whose.
        id: InstanceId,
        /// How, in a phrase: `exit status 71`, `signal 9`.
        how: String,
    },
    /// What a dead instance last wrote.
    LastWords {
        /// Whose.
        id: InstanceId,
        /// The last line, shortened; empty where there is none.
        text: String,
    },
    /// A conversation ended.
    Ended {
        /// With whom.
        id: InstanceId,
        /// Which one.
        talk: Talk,
        /// How.
        outcome: Outcome,
    },
    /// News from the registry.
    Registry(RegistryEvent),
    /// The registry's session as it stands; given whenever it changed.
    Session(Option<SessionFacts>),
    /// An order to a shard's member ended.
    Ordered {
        /// Whose.
        id: InstanceId,
        /// How.
        ordered: failover::Ordered,
    },
    /// Whether a fencer stands by for an instance.
    Fencer {
        /// Which.
        id: InstanceId,
        /// It does.
        armed: bool,
    },
    /// The fencer fences an instance, or just did.
    Fenced {
        /// Which.
        id: InstanceId,
    },
    /// Something outside the core's sight began to go wrong.
    Trouble {
        /// A stable key.
        key: String,
        /// How bad it is.
        severity: Severity,
        /// One sentence.
        summary: String,
    },
    /// It is over.
    TroubleOver {
        /// The key.
        key: String,
        /// One sentence.
        summary: String,
    },
    /// The agent is to end, and all instances with it or none.
    Stop {
        /// All instances too.
        all: bool,
    },
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Start the instance, or adopt it where it runs already.
    Start {
        /// Which.
        id: InstanceId,
        /// Its port was in use when the agent last wrote them down.
        known: bool,
        /// As whose replica, for a member of a shard.
        follow: Option<(String, u16)>,
    },
    /// Adopt the instance where it runs; start nothing.
    Adopt {
        /// Which.
        id: InstanceId,
    },
    /// Ask it to end.
    Terminate {
        /// Which.
        id: InstanceId,
    },
    /// `kill -9`.
    Kill {
        /// Which.
        id: InstanceId,
    },
    /// Begin a conversation.
    Converse {
        /// With whom.
        id: InstanceId,
        /// Which one.
        talk: Talk,
        /// When the answer must be there.
        deadline: Instant,
    },
    /// The running conversation is overdue: end it and report the miss with evidence.
    Expire {
        /// With whom.
        id: InstanceId,
        /// Which one.
        talk: Talk,
    },
    /// Give an order to a shard's member, on a connection of its own.
    Order {
        /// Which.
        id: InstanceId,
        /// What.
        order: failover::Order,
        /// When the answer must be there.
        deadline: Instant,
    },
    /// Tell the fencer until when an instance may be a master; `None`: it is none.
    Lease {
        /// Which.
        id: InstanceId,
        /// Until when.
        until: Option<Instant>,
    },
    /// Tell the fencer so where it knows of no lease: the instance may be a master until then at most.
    Grace {
        /// Which.
        id: InstanceId,
        /// Until when.
        until: Instant,
    },
    /// Ask the registry.
    Request {
        /// Comes back with the answer.
        token: u64,
        /// What.
        request: Request,
    },
    /// Find the last words of a dead instance.
    AskLastWords {
        /// Whose.
        id: InstanceId,
    },
    /// The instance is no more: drop its connections, records and backend.
    Forget {
        /// Which.
        id: InstanceId,
    },
    /// Write the ports in use down.
    WritePorts {
        /// Whose.
        engine: EngineId,
        /// In order.
        ports: Vec<u16>,
    },
    /// Change the desired tree.
    Publish(Vec<Change>),
    /// The nodes that belong to this host.
    Claim(Vec<Owned>),
    /// Tell the sinks.
    Alert(Alert),
    /// Write to the log.
    Log(log::Level, String),
    /// All that was to be stopped is stopped: close the registry and end.
    Finish,
}
