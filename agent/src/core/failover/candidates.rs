//! Who may be promoted, and who of those first.

use std::cmp::Reverse;

use super::{Config, MemberNode, NOWHERE, Role, ShardState};

/// A member with what is known of it when a master is to be chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Standing<'a> {
    /// Its address.
    pub(super) address: &'a str,
    /// Its node; `None`: no agent speaks for it.
    pub(super) node: Option<&'a MemberNode>,
}

/// What came of looking at a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It may be promoted.
    Eligible,
    /// It may not; why, as in "10.0.0.2:16379 not promoted: …".
    Out(String),
}

/// Judges each of the members, given in order of their addresses. `state` is the last master's, `None` where the shard
/// never had one; `config` is the shard's agreement.
pub(super) fn judge(standings: &[Standing<'_>], state: Option<&ShardState>, config: &Config) -> Vec<Verdict> {
    let hash = config.hash();
    let no_data = standings.iter().all(|s| s.node.is_some_and(|node| !node.loading && node.keys == 0));
    let out = |standing: &Standing<'_>| -> Option<String> {
        let Some(node) = standing.node else { return Some("no agent speaks for it".to_owned()) };
        condition(node, config, &hash).or_else(|| history(node, state?, no_data))
    };
    let barred: Vec<Option<String>> = standings.iter().map(out).collect();
    let offsets = standings.iter().zip(&barred).filter(|(_, barred)| barred.is_none());
    let best =
        offsets.filter_map(|(s, _)| Some((s.node?.offset, s.address))).max_by_key(|(offset, _)| *offset);
    let lags = |standing: &Standing<'_>| -> Option<String> {
        let (node, (offset, ahead)) = (standing.node?, best?);
        let known = state
            .filter(|state| state.replid == node.replid)
            .map_or(offset, |state| state.offset.max(offset));
        let behind = u64::try_from(known - node.offset).unwrap_or(0);
        let whom = if known > offset { "the last master" } else { ahead };
        (behind > config.max_lag).then(|| format!("offset {behind} behind {whom}"))
    };
    let verdict = |(standing, barred): (&Standing<'_>, Option<String>)| {
        barred.or_else(|| lags(standing)).map_or(Verdict::Eligible, Verdict::Out)
    };
    standings.iter().zip(barred).map(verdict).collect()
}

/// What a member is in, whatever the shard's history.
fn condition(node: &MemberNode, config: &Config, hash: &str) -> Option<String> {
    let reasons = [
        (node.role == Role::Unknown, "its server does not answer"),
        (node.loading, "it loads its data"),
        (node.syncing, "it takes a copy of its master"),
        (node.paused, "it is paused"),
        (node.priority == 0 && node.role == Role::Replica, "its priority is 0"),
        (node.config != hash, "its configuration differs from the shard's"),
        (config.fencing && !node.fencer, "it has no fencer"),
        (!node.lease, "its session timeout leaves too short a lease"),
        (node.stale, "its link to the master has been down for too long"),
    ];
    reasons.iter().find(|(out, _)| *out).map(|(_, why)| (*why).to_owned())
}

/// Whether it has what the last master had.
fn history(node: &MemberNode, state: &ShardState, no_data: bool) -> Option<String> {
    let recorded = node.address == state.master;
    // Between a handover and its end both are masters by right.
    let former = state.handover.is_some() && node.address == state.from;
    if node.role == Role::Master && !recorded && !former {
        return Some("it is a master that nobody made".to_owned());
    }
    let nowhere = format!("{}:{}", NOWHERE.0, NOWHERE.1);
    let masters = [&state.master, &state.from, &nowhere];
    if node.role == Role::Replica && !node.master.is_empty() && !masters.contains(&&node.master) {
        return Some(format!("it follows {}", node.master));
    }
    if no_data {
        return None;
    }
    if node.keys == 0 && state.keys > 0 {
        return Some("it is empty".to_owned());
    }
    // Before the first master had a replica there was no history to share.
    let shared = |id: &str| !id.is_empty() && (id == state.replid || id == state.replid2);
    let known = !state.replid.is_empty();
    if known && !shared(&node.replid) && !(node.role == Role::Master && shared(&node.replid2)) {
        return Some("its data is of another history".to_owned());
    }
    if state.solo && !recorded && !state.heirs.contains(&node.address) {
        return Some(format!("{} took writes alone that it does not have", state.master));
    }
    (known && node.offset <= 0).then(|| "it never had the master's data".to_owned())
}

/// The order among those who may: who has data, the greatest offset, the lowest priority, the smallest address. Where
/// the shard never had a master, one that already is a master with data comes first.
pub(super) fn rank(standings: &[Standing<'_>], verdicts: &[Verdict], first: bool) -> Vec<usize> {
    let mut order: Vec<usize> = (0..standings.len()).filter(|i| verdicts[*i] == Verdict::Eligible).collect();
    order.sort_by_key(|i| {
        let node = standings[*i].node;
        let master = node.is_some_and(|node| first && node.role == Role::Master && node.keys > 0);
        let full = node.is_some_and(|node| node.keys > 0);
        let (offset, priority) = node.map_or((0, u32::MAX), |node| (node.offset, node.priority));
        (Reverse(master), Reverse(full), Reverse(offset), priority, standings[*i].address)
    });
    order
}
