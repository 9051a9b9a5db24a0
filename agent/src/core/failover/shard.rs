//! What the nodes of a shard hold, as JSON. Unknown fields are kept out, missing ones have defaults, so that agents of
//! neighbouring versions understand one another.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::Timing;

/// The version of the nodes' JSON.
pub(super) const VERSION: u32 = 1;
/// So many changes are kept in `history`.
pub(super) const HISTORY_AT_MOST: usize = 100;

/// A server's role.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It takes writes.
    Master,
    /// It copies another one.
    Replica,
    /// Nothing is known, or there is no server.
    #[default]
    Unknown,
}

/// How far a change of the master has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The master of this epoch is being made one.
    Promoting,
    /// It is the master: clients use it.
    Done,
    /// It is no more, and its own agent has seen that: a successor need not wait.
    Released,
}

/// Content of `state`. Whoever changes it compares its version: that is the guard against two masters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShardState {
    /// See [`VERSION`].
    pub v: u32,
    /// Grows with each change of the master.
    pub epoch: u64,
    /// The master's address.
    pub master: String,
    /// How far it has come.
    pub phase: Phase,
    /// The history of the master's data.
    #[serde(default)]
    pub replid: String,
    /// The one before it, which replicas have that have not followed yet.
    #[serde(default)]
    pub replid2: String,
    /// How far the master's data was when this was written, in bytes.
    #[serde(default)]
    pub offset: i64,
    /// Its number of keys then.
    #[serde(default)]
    pub keys: u64,
    /// The master takes writes though too few replicas are attached: maybe nobody else has them.
    #[serde(default)]
    pub solo: bool,
    /// The members that keep up with the master, but for the last seconds: nobody else may succeed it.
    #[serde(default)]
    pub heirs: Vec<String>,
    /// The master before this one; empty when there was none.
    #[serde(default)]
    pub from: String,
    /// Milliseconds since 1970, by the clock of whoever wrote it: for people.
    #[serde(default)]
    pub since_ms: u64,
    /// What an operator wants.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intent: Option<Intent>,
    /// With `promoting`: the former master hands over by name, and has stopped its writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handover: Option<Handover>,
    /// What became of the last wish.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
}

impl ShardState {
    /// Whether any member was ever published as the master, as far as can be told.
    pub(super) fn has_had_a_master(&self) -> bool {
        self.phase == Phase::Done || !self.from.is_empty() || !self.replid.is_empty()
    }

    /// The number of the election that comes next. Who is made the master in an epoch may lose the lock and take it again
    /// before it is published: what the others said in between does not count in the election after that.
    pub(super) fn next_round(&self) -> u64 {
        self.epoch * 2 + if self.phase == Phase::Promoting { 1 } else { 2 }
    }

    /// Whether this epoch came of that election.
    pub(super) fn is_of_round(&self, round: u64) -> bool {
        round.div_ceil(2) == self.epoch
    }
}

/// The number of the first election of a shard.
pub(super) const FIRST_ROUND: u64 = 2;

/// What an operator wants of a shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// Names the wish.
    pub id: String,
    /// Planned or forced.
    pub kind: IntentKind,
    /// The member to be promoted.
    pub to: String,
    /// The agent that was asked.
    pub by: String,
}

/// Planned or forced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IntentKind {
    /// Nothing may be lost.
    Switchover,
    /// Whatever it costs.
    Force,
}

impl IntentKind {
    /// Whether such a wish takes the place of one that waits: whoever forces does not wait for a plan, nor for another
    /// force that may never be carried out.
    pub(super) fn overrides(self, waiting: &Intent, state: &ShardState) -> bool {
        let waits = waiting.kind == IntentKind::Force || state.phase == Phase::Done;
        self == IntentKind::Force && waits
    }
}

/// A planned change of the master, at the moment when the former one has stopped its writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handover {
    /// The wish.
    pub id: String,
    /// The former master's offset with its writes stopped: the target must have reached it.
    pub offset: i64,
}

/// What became of a wish.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The wish.
    pub id: String,
    /// It was carried out.
    pub done: bool,
    /// Why not, or how: one sentence.
    pub text: String,
    /// How long the shard took no writes, in milliseconds, where that was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_ms: Option<f64>,
}

/// Content of `lock`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockNode {
    /// See [`VERSION`].
    pub v: u32,
    /// The holder's member.
    pub address: String,
    /// The holder's host.
    pub host_id: String,
    /// The holder's run.
    pub nonce: String,
    /// The epoch in which it was taken.
    pub epoch: u64,
}

/// Content of `members/<addr>`. It is written when its meaning changes, and with a new `round` when a master is to be
/// chosen: offsets are exact then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberNode {
    /// See [`VERSION`].
    pub v: u32,
    /// The member.
    pub address: String,
    /// Its host.
    pub host_id: String,
    /// Its agent's run.
    pub nonce: String,
    /// Its role.
    pub role: Role,
    /// Whom it copies; empty when nobody.
    #[serde(default)]
    pub master: String,
    /// The link to its master is up.
    #[serde(default)]
    pub link: bool,
    /// It takes a whole copy.
    #[serde(default)]
    pub syncing: bool,
    /// It reads its data, or its state is not known.
    #[serde(default)]
    pub loading: bool,
    /// The history of its data.
    #[serde(default)]
    pub replid: String,
    /// The one before.
    #[serde(default)]
    pub replid2: String,
    /// How far it is, in bytes, when this was written.
    #[serde(default)]
    pub offset: i64,
    /// Its number of keys then.
    #[serde(default)]
    pub keys: u64,
    /// Lower is preferred, 0 is never promoted.
    #[serde(default)]
    pub priority: u32,
    /// A hash of its configuration.
    #[serde(default)]
    pub config: String,
    /// A fencer stands by.
    #[serde(default)]
    pub fencer: bool,
    /// Its lease is long enough to lead, see [`Timing::lease`].
    #[serde(default)]
    pub lease: bool,
    /// An operator wants it not to be promoted.
    #[serde(default)]
    pub paused: bool,
    /// The election that this was written for, by its number: twice the epoch that comes of it, or one less where the
    /// epoch before was not published; 0: for none.
    #[serde(default)]
    pub round: u64,
    /// The server's version.
    #[serde(default)]
    pub version: String,
}

impl MemberNode {
    /// Whether the other says the same: how far the data is counts only as far as there is some.
    pub(super) fn means(&self, other: &MemberNode) -> bool {
        let both = |ours: bool, theirs: bool| ours == theirs;
        both(self.offset > 0, other.offset > 0)
            && both(self.keys > 0, other.keys > 0)
            && *self == MemberNode { offset: self.offset, keys: self.keys, ..other.clone() }
    }
}

/// Content of `config`: what all members must agree on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// See [`VERSION`].
    pub v: u32,
    /// All members, in order.
    pub members: Vec<String>,
    /// The lease and what hangs on it.
    pub timing: Timing,
    /// See [`ShardPlan`](super::ShardPlan).
    pub fencing: bool,
    /// See [`ShardPlan`](super::ShardPlan).
    pub failsafe: bool,
    /// See [`ShardPlan`](super::ShardPlan).
    pub max_lag: u64,
    /// See [`ShardPlan`](super::ShardPlan).
    pub min_replicas: u32,
}

/// A configuration with its hash, which is asked for at every step.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "Config")]
pub(super) struct Agreement {
    pub(super) config: Config,
    /// A short text that differs where configurations differ (FNV-1a over the JSON).
    pub(super) hash: String,
}

impl From<Config> for Agreement {
    fn from(config: Config) -> Agreement {
        let hash = encode(&config).iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Agreement { config, hash: format!("{hash:016x}") }
    }
}

/// Content of `pause`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PauseNode {
    /// See [`VERSION`].
    pub v: u32,
    /// How long it lasts, in milliseconds; each agent counts from when it first sees it.
    pub for_ms: u64,
    /// When it was written, in milliseconds since 1970: for people.
    pub since_ms: u64,
    /// Why.
    pub reason: String,
    /// The agent that was asked.
    pub by: String,
}

/// What made a master change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// The shard had none.
    First,
    /// The former one died, seen by its own agent.
    Death,
    /// The former one's host fell silent.
    Silence,
    /// An operator's planned switchover.
    Switchover,
    /// An operator's forced failover.
    Force,
    /// The same one again: it had lost its lock.
    Return,
}

/// An entry of `history`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// The epoch that began.
    pub epoch: u64,
    /// The former master; empty when there was none.
    pub from: String,
    /// The new one.
    pub to: String,
    /// What made it change.
    pub why: Change,
    /// From the decision to the publication, in milliseconds.
    pub took_ms: f64,
    /// How many bytes of the former master's history are known to be lost; `None`: not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_bytes: Option<u64>,
    /// How long the shard took no writes, in milliseconds, where that was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_ms: Option<f64>,
}

/// A node's content. Plain structs of numbers and strings always serialize.
pub(super) fn encode(content: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(content).unwrap_or_default()
}

/// What a node holds; `None` where it is not what it should be.
pub(super) fn decode<T: DeserializeOwned>(content: &[u8]) -> Option<T> {
    serde_json::from_slice(content).ok()
}
