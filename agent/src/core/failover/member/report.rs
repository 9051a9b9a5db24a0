//! What a member tells people.

use serde::{Deserialize, Serialize};

use super::{Life, Member, Now, Role, Stage};
use crate::core::failover::{HistoryEntry, MemberNode, PauseNode, Phase, ShardState, Verdict, candidates};

/// What `status` and `yagent shards` show of a shard, as this member sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ShardReport {
    /// Its id.
    pub id: String,
    /// This member's address.
    pub address: String,
    /// What this member does: `leading`, `following`, ….
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
    /// An operator's pause of this host.
    pub host_pause: Option<PauseNode>,
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

impl Member {
    /// For `status`.
    pub fn report(&self, now: Now) -> ShardReport {
        let members = self.member_reports();
        let leads = self.stage.needs_lease();
        let lease = self.lease_ends().filter(|_| leads);
        ShardReport {
            id: self.plan.id().to_owned(),
            address: self.plan.address.clone(),
            stage: self.stage_name().to_owned(),
            sentence: self.sentence.clone(),
            state: self.know.state().cloned().map(|state| match &self.unheard {
                Some(unheard) => ShardState { outcome: Some(unheard.clone()), ..state },
                None => state,
            }),
            lease_s: lease.map(|at| at.saturating_duration_since(now.at).as_secs_f64()),
            lock: self.know.lock.content().map(|lock| lock.address.clone()).unwrap_or_default(),
            hindrances: self.hindrances(&members),
            members,
            pause: self.know.pause.slot.content().cloned(),
            host_pause: self.know.host_pause.slot.content().cloned(),
            history: self.know.history.content().cloned().unwrap_or_default(),
        }
    }

    fn member_reports(&self) -> Vec<MemberReport> {
        let state = self.know.state();
        let master = state.map(|state| state.master.as_str()).unwrap_or_default();
        let (standings, verdicts) = self.standings(state);
        let order = candidates::rank(&standings, &verdicts, state.is_none());
        let next = order.into_iter().find(|i| standings[*i].address != master);
        let lag = |address: &str| {
            let view = self.view.as_ref().filter(|view| view.role == Role::Master)?;
            let replica = view.replicas.iter().find(|replica| replica.address == address)?;
            u64::try_from(view.offset - replica.offset).ok()
        };
        let report = |i: usize| MemberReport {
            address: standings[i].address.to_owned(),
            node: standings[i].node.cloned(),
            lag_bytes: lag(standings[i].address),
            barred: match &verdicts[i] {
                _ if standings[i].address == master => None,
                Verdict::Out(why) => Some(why.clone()),
                Verdict::Eligible => lag(standings[i].address)
                    .filter(|bytes| *bytes > self.plan.max_lag)
                    .map(|bytes| format!("offset {bytes} behind {master}")),
            },
            next: next == Some(i),
        };
        (0..standings.len()).map(report).collect()
    }

    /// What would keep the shard from failing over right now.
    fn hindrances(&self, members: &[MemberReport]) -> Vec<String> {
        let mut why = Vec::new();
        if !self.connected {
            why.push("this agent has no connection to the registry".to_owned());
        }
        if let Some(pause) = self.know.pause.slot.content() {
            why.push(format!("paused by {}: {}", pause.by, pause.reason));
        }
        match self.know.state() {
            None => why.push("the shard has no master yet".to_owned()),
            Some(state) if state.phase != Phase::Done || self.know.lock.seen.is_none() => {
                why.push("nobody is the master right now".to_owned());
            }
            Some(_) => {}
        }
        if !members.iter().any(|member| member.next) {
            why.push("no replica may be promoted".to_owned());
            let barred =
                members.iter().filter_map(|m| Some(format!("{}: {}", m.address, m.barred.as_ref()?)));
            why.extend(barred);
        }
        why
    }

    fn stage_name(&self) -> &'static str {
        match &self.stage {
            _ if !self.connected && !self.stage.needs_lease() && self.stage != Stage::Fenced => {
                "waiting for the registry"
            }
            Stage::Following if self.life != Life::Up => "down",
            Stage::Following => "following",
            Stage::Standing { .. } => "standing",
            Stage::Locking | Stage::Claiming | Stage::Announcing => "taking over",
            Stage::Detaching | Stage::Withdrawn { .. } => "waiting for the former master",
            Stage::Promoting | Stage::Publishing => "promoting",
            Stage::Leading => "leading",
            Stage::HandingOver(_) | Stage::HandedOver { .. } => "handing over",
            Stage::Releasing => "giving up",
            Stage::Fenced => "fenced",
        }
    }
}
