//! Who of a shard's redis servers is the master: one [`Member`] for each server of this host that has peers.
//!
//! A member is pure, as all of the core: [`Member::step`] takes an [`Input`] and gives [`Command`]s,
//! [`Member::next_deadline`] says when it wants an [`Input::Tick`]. It commands its own server only; the members of a
//! shard meet in the registry alone:
//!
//! ```text
//! /redis/shards/<id>
//!   /lock            ephemeral: who may lead                      the lease
//!   /state           who leads, in which epoch, how far           changed by its version only
//!   /members/<addr>  ephemeral: what each member says of itself
//!   /config          the shard's members, timing and policies, as the leader has them
//!   /pause           an operator wants no switching for now
//!   /history         the last 100 changes
//! ```
//!
//! `shard` is what those nodes hold, `timing` the lease, `candidates` who may be promoted, `member` the states.

mod candidates;
mod member;
mod shard;
mod timing;

use std::time::{Duration, Instant};

use candidates::{Standing, Verdict};
pub use member::{Member, MemberReport, Planted, ShardReport};
use shard::Agreement;
pub use shard::{
    Change, Config, Handover, HistoryEntry, Intent, IntentKind, LockNode, MemberNode, Outcome, PauseNode,
    Phase, Role, ShardState,
};
pub use timing::{Timing, TimingError};

use super::alert::Severity;
use crate::shell::registry::{Answer, Request, SessionFacts};

/// Where a server that must not be a master and whose master isn't known is told to replicate from: nobody listens on
/// this port of its own host. It is a read-only replica then, on every version of redis, and keeps its data.
pub const NOWHERE: (&str, u16) = ("127.0.0.1", 1);

/// A fence lasts this long and is renewed in time. Redis counts it by the wall clock, which may be set ahead at any time.
pub const FENCE_FOR: Duration = Duration::from_secs(30 * 24 * 3600);

/// What a member needs to know of its shard and host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardPlan {
    /// Where shards are: `/redis/shards`.
    pub root: String,
    /// This member's address, `10.0.0.1:16379`.
    pub address: String,
    /// The addresses of all members, this one's among them, in order.
    pub members: Vec<String>,
    /// Stable over restarts of the agent, unique to this installation.
    pub host_id: String,
    /// Random, new in each run of the agent.
    pub nonce: String,
    /// The lease and what hangs on it.
    pub timing: Timing,
    /// `redis_fencing`: a master without a lease is stopped from taking writes.
    pub fencing: bool,
    /// `redis_failsafe`: without any ZooKeeper, a master that all members still follow goes on.
    pub failsafe: bool,
    /// `redis_max_lag`: a replica that is further behind, in bytes, is not promoted.
    pub max_lag: u64,
    /// `redis_min_replicas`: a master takes writes only while so many replicas are attached; 0: the second fence is off.
    pub min_replicas: u32,
}

impl ShardPlan {
    /// The shard's id: its smallest member.
    pub fn id(&self) -> &str {
        self.members.first().map_or("", String::as_str)
    }

    /// A node of the shard.
    pub fn path(&self, node: &str) -> String {
        format!("{}/{}/{node}", self.root, self.id())
    }

    /// The shard's agreement as this member has it.
    pub fn config(&self) -> Config {
        Config {
            v: shard::VERSION,
            members: self.members.clone(),
            timing: self.timing.clone(),
            fencing: self.fencing,
            failsafe: self.failsafe,
            max_lag: self.max_lag,
            min_replicas: self.min_replicas,
        }
    }
}

/// What a server says of itself, from the hook `inspect`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Its role.
    pub role: Role,
    /// `host:port` of its master, for a replica.
    pub master: Option<String>,
    /// A replica's link to its master is up.
    pub link_up: bool,
    /// For how long the link has been down; zero when it is up or was never.
    pub link_down: Duration,
    /// How long ago it last heard of its master, in whole seconds; zero where that is not known.
    pub last_io: Duration,
    /// It takes a whole copy of its master.
    pub syncing: bool,
    /// It reads its data.
    pub loading: bool,
    /// Changes with each start of the server.
    pub run_id: String,
    /// The history of its data.
    pub replid: String,
    /// The history before that.
    pub replid2: String,
    /// How far in that history its data is, in bytes.
    pub offset: i64,
    /// Its number of keys.
    pub keys: u64,
    /// Lower is preferred, 0 is never promoted.
    pub priority: u32,
    /// A master's replicas.
    pub replicas: Vec<Replica>,
    /// Its version.
    pub version: String,
}

impl View {
    /// When its data was as it is, for a look at `asked`: a master's then, a replica's when it last heard of its master.
    fn heard_at(&self, asked: Instant) -> Instant {
        let ago = match self.role {
            Role::Replica if self.link_up => self.last_io,
            Role::Replica => self.link_down,
            Role::Master | Role::Unknown => Duration::ZERO,
        };
        asked.checked_sub(ago).unwrap_or(asked)
    }
}

/// A replica as its master sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    /// `host:port`.
    pub address: String,
    /// It takes the stream; not so while it waits for a copy.
    pub online: bool,
    /// What it acknowledged, in bytes.
    pub offset: i64,
    /// How long ago, in whole seconds, as redis counts: at most so many and one more. `u64::MAX` where that makes no
    /// sense, as after its host's clock was set back.
    pub lag_s: u64,
}

/// An order to the member's own server. One is under way at a time; each is answered by [`Input::Ordered`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// What do you do?
    Inspect,
    /// Be a master, and confirm it; take no writes yet, where the server can pause them: see [`FENCE_FOR`].
    Promote,
    /// Be a replica of this one.
    Follow {
        /// Its host.
        host: String,
        /// Its port.
        port: u16,
        /// Close the clients' connections, so that they look for the new master.
        drop_clients: bool,
    },
    /// Take no writes for so long.
    Fence {
        /// For how long.
        long: Duration,
    },
    /// Take writes (again), while so many replicas are attached.
    Unfence {
        /// How many.
        min_replicas: u32,
    },
}

impl Order {
    /// Whether both are about the same matter: its role, its writes, or a look at it.
    fn is_about_what(&self, other: &Order) -> bool {
        let matter = |order: &Order| match order {
            Order::Inspect => 0,
            Order::Promote | Order::Follow { .. } => 1,
            Order::Fence { .. } | Order::Unfence { .. } => 2,
        };
        matter(self) == matter(other)
    }
}

/// How an order ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ordered {
    /// As it should; with what it says of itself where that was asked.
    Done(Option<Box<View>>),
    /// It was refused, or the answer makes no sense; whether it was carried out is not known.
    Failed(String),
    /// The server's version does not know it.
    Unsupported,
}

/// The life of the member's server, as the agent that started it sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// There is a process; it may not answer yet.
    Started,
    /// It answers.
    Up,
    /// There is none: its death was seen.
    Dead,
}

/// A number that ties an answer to its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// What happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// The deadline passed, or what the session says may count: all that happened before is in, see [`Member::is_due`].
    Tick,
    /// The registry's session as it stands; given whenever it says more, see [`SessionFacts::says_more`], before anything else
    /// of that moment.
    Session(Option<SessionFacts>),
    /// A connection stands: nothing that was read before is known any more, no watch is left.
    Connected,
    /// The connection is gone. Requests under way are answered with [`Answer::Lost`].
    Lost,
    /// A watch fired.
    Changed {
        /// The node's path.
        path: String,
    },
    /// A request was answered.
    Answered {
        /// Which.
        request: RequestId,
        /// How.
        answer: Answer,
    },
    /// News of the server's process.
    Server(Life),
    /// An order ended.
    Ordered(Ordered),
    /// Whether a fencer stands by for this server.
    Fencer(bool),
    /// The fencer fences the server, or just did: it may have taken the lease for over when a new one was on its way.
    Fenced,
    /// An operator's wish, given to this agent; refused wishes are answered by the error of [`Member::wish`].
    Wish(Wish),
    /// New settings.
    Plan(Box<ShardPlan>),
}

/// What an operator may want of a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// A planned switchover, to this member or the best one.
    Switchover {
        /// The address.
        to: Option<String>,
        /// Names the wish; outcome and history have it.
        id: String,
    },
    /// A failover that may lose data, to this member or the best one.
    Force {
        /// The address.
        to: Option<String>,
        /// Names the wish.
        id: String,
    },
    /// No switching for so long.
    Pause {
        /// How long.
        long: Duration,
        /// Why, for people.
        reason: String,
        /// Only this host's members are not promoted, the shard goes on.
        host: bool,
    },
    /// The end of a pause.
    Resume {
        /// The host's own.
        host: bool,
    },
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Ask the registry; requests are carried out in order.
    Request(RequestId, Request),
    /// Keep the member's ephemeral node with this content. It always names `host_id` and `nonce`.
    Publish(Vec<u8>),
    /// Give an order to the server.
    Order {
        /// Which.
        order: Order,
        /// By then it must be answered; it is not begun later.
        until: Instant,
    },
    /// Tell the fencer: the server may be a master until then; `None`: it is none and needs no fencing.
    Lease(Option<Instant>),
    /// Tell the fencer: until then at most, unless it knows of a lease already. Somebody else's leave may be behind it.
    Grace(Instant),
    /// `kill -9` the server: it must take no writes and cannot be asked to.
    Kill,
    /// Raise an alert; `what` is the key without the shard.
    Fire {
        /// `failover`, …
        what: &'static str,
        /// How bad it is.
        severity: Severity,
        /// One sentence.
        summary: String,
    },
    /// It is over.
    Resolve {
        /// As in `Fire`.
        what: &'static str,
        /// One sentence.
        summary: String,
    },
    /// Write to the log.
    Log(log::Level, String),
}
