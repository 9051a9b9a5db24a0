//! A member's states.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{Command, HistoryEntry, Input, Life, MemberNode, PauseNode, Role, ShardPlan, ShardState};
use crate::core::Now;

/// Bugs planted on purpose, for the simulation to show that it finds them. Never set outside tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// `state` is changed whatever its version.
    SkipVersionCheck,
    /// A successor publishes before it has waited for W.
    PublishBeforeWithdrawal,
    /// The lease is counted from when the answer came.
    LeaseFromReply,
    /// A master that died is started as a master, empty.
    RestartMasterEmpty,
    /// A master that lost its replicas takes writes without recording that it is alone.
    ForgetSolo,
}

/// What `status` and `yagent shards` show of a shard, as this member sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ShardReport {
    /// Its id.
    pub id: String,
    /// This member's address.
    pub address: String,
    /// What this member does: `leading`, `following`, `waiting for the registry`, ….
    pub stage: String,
    /// Its last decision, one sentence.
    pub sentence: String,
    /// What `state` holds.
    pub state: Option<ShardState>,
    /// Seconds until this member's lease ends; `None` where it doesn't lead.
    pub lease_s: Option<f64>,
    /// The address that holds `lock`; empty when nobody does.
    pub lock: String,
    /// The members in order of their addresses.
    pub members: Vec<MemberReport>,
    /// An operator's pause.
    pub pause: Option<PauseNode>,
    /// The last changes, oldest first.
    pub history: Vec<HistoryEntry>,
    /// Why the shard could not fail over right now; empty when it could.
    pub hindrances: Vec<String>,
}

/// A member as this one sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MemberReport {
    /// Its address.
    pub address: String,
    /// What its agent says of it; `None`: no agent speaks for it.
    pub node: Option<MemberNode>,
    /// How far behind the master it is, in bytes, as its master sees it; known to the master's own agent.
    pub lag_bytes: Option<u64>,
    /// Why it would not be promoted now; `None`: it would be, or is the master.
    pub barred: Option<String>,
    /// It is the one that would be promoted.
    pub next: bool,
}

/// One server of a shard, with what its agent knows and does about the shard.
#[derive(Debug)]
pub struct Member {
    plan: ShardPlan,
}

impl Member {
    /// A member of which nothing is known yet.
    pub fn new(_now: Now, plan: ShardPlan) -> Member {
        Member { plan }
    }

    /// Plants a bug.
    pub fn plant(&mut self, _bug: Planted) {}

    /// Takes what happened and says what to do, in this order.
    pub fn step(&mut self, _now: Now, _input: Input) -> Vec<Command> {
        Vec::new()
    }

    /// A wish of an operator. What comes of it is told by the shard's `outcome`, except for pauses.
    ///
    /// # Errors
    /// Why it is refused, in a sentence.
    pub fn wish(&mut self, _now: Now, _wish: super::Wish) -> Result<Vec<Command>, String> {
        Err("nothing is known of the shard yet".to_owned())
    }

    /// When [`Member::step`] wants an [`Input::Tick`] although nothing happened.
    pub fn next_deadline(&self) -> Option<Instant> {
        None
    }

    /// As whose replica its server is to be started now: `host` and `port`. Never as a master.
    pub fn start_as(&self) -> (String, u16) {
        (super::NOWHERE.0.to_owned(), super::NOWHERE.1)
    }

    /// Its server's role as last seen.
    pub fn role(&self) -> Role {
        Role::Unknown
    }

    /// The server's life as last told.
    pub fn life(&self) -> Life {
        Life::Dead
    }

    /// For `status`.
    pub fn report(&self, _now: Now) -> ShardReport {
        ShardReport {
            id: self.plan.id().to_owned(),
            address: self.plan.address.clone(),
            stage: String::new(),
            sentence: String::new(),
            state: None,
            lease_s: None,
            lock: String::new(),
            members: Vec::new(),
            pause: None,
            history: Vec::new(),
            hindrances: Vec::new(),
        }
    }
}
