//! Who may be promoted, and who of those first.

use std::cmp::Reverse;

use super::{Agreement, MemberNode, NOWHERE, Phase, Role, ShardState};

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
/// never had one; `agreed` is the shard's configuration. Offsets count only in an election, of those who said theirs for its
/// `round`: what others published may be hours old.
pub(super) fn judge(
    standings: &[Standing<'_>],
    state: Option<&ShardState>,
    agreed: &Agreement,
    round: u64,
) -> Vec<Verdict> {
    let fresh = |node: &&MemberNode| round > 0 && node.round == round;
    // In an election of a shard with a history, only whoever said so for this election is known to be empty.
    let said = |node: &MemberNode| round == 0 || state.is_none() || node.round == round;
    let empty = |node: &MemberNode| !node.loading && !node.syncing && node.keys == 0 && said(node);
    let no_data = standings.iter().all(|s| s.node.is_some_and(empty));
    let out = |standing: &Standing<'_>| -> Option<String> {
        let Some(node) = standing.node else { return Some("no agent speaks for it".to_owned()) };
        condition(node, agreed).or_else(|| match state {
            Some(state) => history(node, state, &agreed.config.members, no_data),
            None => first(node, standings),
        })
    };
    let mut barred: Vec<Option<String>> = standings.iter().map(out).collect();
    prefer_followers(standings, state, &mut barred);
    let offsets = standings.iter().zip(&barred).filter(|(_, barred)| barred.is_none());
    let best = offsets
        .filter_map(|(s, _)| Some((s.node.filter(fresh)?.offset, s.address)))
        .max_by_key(|(offset, _)| *offset);
    let lags = |standing: &Standing<'_>| -> Option<String> {
        let (node, (offset, ahead)) = (standing.node.filter(fresh)?, best?);
        // Where there never was a master there is no history in which to be behind.
        let known = if state?.replid == node.replid { state?.offset.max(offset) } else { offset };
        let behind = u64::try_from(known - node.offset).unwrap_or(0);
        let whom = if known > offset { "the last master" } else { ahead };
        (behind > agreed.config.max_lag).then(|| format!("offset {behind} behind {whom}"))
    };
    let verdict = |(standing, barred): (&Standing<'_>, Option<String>)| {
        barred.or_else(|| lags(standing)).map_or(Verdict::Eligible, Verdict::Out)
    };
    standings.iter().zip(barred).map(verdict).collect()
}

/// Whether a member that could lead has not yet said for this election how far it is: what it last published decides
/// nothing.
pub(super) fn is_unsaid(standing: &Standing<'_>, agreed: &Agreement, round: u64) -> bool {
    let unsaid = |node: &MemberNode| node.round != round && may_lead(node, agreed);
    standing.node.is_some_and(unsaid)
}

/// Whether nothing keeps a member from leading, whatever the shard's history.
pub(super) fn may_lead(node: &MemberNode, agreed: &Agreement) -> bool {
    condition(node, agreed).is_none()
}

/// What a member is in, whatever the shard's history.
fn condition(node: &MemberNode, agreed: &Agreement) -> Option<String> {
    let reasons = [
        (node.role == Role::Unknown, "its server does not answer"),
        (node.loading, "it loads its data"),
        (node.syncing, "it takes a copy of its master"),
        (node.paused, "it is paused"),
        (node.priority == 0 && node.role == Role::Replica, "its priority is 0"),
        (node.config != agreed.hash, "its configuration differs from the shard's"),
        (agreed.config.fencing && !node.fencer, "it has no fencer"),
        (!node.lease, "its session timeout leaves too short a lease"),
    ];
    reasons.iter().find(|(out, _)| *out).map(|(_, why)| (*why).to_owned())
}

/// Offsets of two histories say nothing of one another: who has followed the last master goes before who has not.
fn prefer_followers(standings: &[Standing<'_>], state: Option<&ShardState>, barred: &mut [Option<String>]) {
    let Some(state) = state.filter(|state| !state.replid.is_empty()) else { return };
    let followed = |standing: &Standing<'_>| {
        standing.node.is_some_and(|node| node.replid == state.replid || node.replid2 == state.replid)
    };
    let any = standings.iter().zip(&*barred).any(|(standing, barred)| barred.is_none() && followed(standing));
    for (_, barred) in standings.iter().zip(barred).filter(|(standing, _)| any && !followed(standing)) {
        barred.get_or_insert_with(|| format!("it has not followed {}", state.master));
    }
}

/// Where there never was a master, whoever has data may be the one that had been used: it comes first, or nobody does, and
/// an empty one leads only where all have said that they are empty. One that lives and has replicas is used, whether or
/// not its agent has been told of the shard.
fn first(node: &MemberNode, standings: &[Standing<'_>]) -> Option<String> {
    let follows = |s: &Standing<'_>| s.address == node.master;
    if node.role == Role::Replica && node.link && standings.iter().any(follows) {
        return Some(format!("it follows {}, which lives", node.master));
    }
    if node.keys > 0 {
        return None;
    }
    if let Some(full) = standings.iter().find(|s| s.node.is_some_and(|node| node.keys > 0)) {
        return Some(format!("it is empty, and {} has data", full.address));
    }
    // Whoever comes later would become its replica, and lose what it has.
    let unknown = standings.iter().find(|s| s.node.is_none_or(|node| node.loading))?;
    Some(format!("it is empty, and nothing is known of {}", unknown.address))
}

/// Whether it has what the last master had.
fn history(node: &MemberNode, state: &ShardState, members: &[String], no_data: bool) -> Option<String> {
    let recorded = node.address == state.master;
    // Until its successor is published the former one is a master by right: nobody uses the other.
    let former = state.phase == Phase::Promoting && node.address == state.from;
    if node.role == Role::Master && !recorded && !former {
        return Some("it is a master that nobody made".to_owned());
    }
    // Masters may have died one after another before it followed the last: it may still follow one of those.
    let nowhere = format!("{}:{}", NOWHERE.0, NOWHERE.1);
    let stranger = !node.master.is_empty() && node.master != nowhere && !members.contains(&node.master);
    if node.role == Role::Replica && stranger {
        return Some(format!("it follows {}, which is none of the shard", node.master));
    }
    if no_data {
        return None;
    }
    if node.keys == 0 && state.keys > 0 {
        return Some("it is empty".to_owned());
    }
    // Before there was a master there was no history to share, and redis before 4.0 tells none.
    let shared = |id: &str| !id.is_empty() && (id == state.replid || id == state.replid2);
    let known = !state.replid.is_empty();
    if known && !shared(&node.replid) && !(node.role == Role::Master && shared(&node.replid2)) {
        return Some("its data is of another history".to_owned());
    }
    if state.has_had_a_master() && !recorded && !former && !state.heirs.contains(&node.address) {
        let last = if state.phase == Phase::Promoting { &state.from } else { &state.master };
        return Some(format!("it did not keep up with {last}"));
    }
    let never = known && node.offset <= 0 && state.offset > 0;
    never.then(|| "it never had the master's data".to_owned())
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

#[cfg(test)]
mod tests {
    use super::{
        super::{Config, Timing},
        *,
    };

    const A: &str = "10.0.0.1:6379";
    const B: &str = "10.0.0.2:6379";
    const C: &str = "10.0.0.3:6379";

    fn agreed() -> Agreement {
        let s = std::time::Duration::from_secs;
        let timing = Timing {
            session: s(30),
            lease: s(15),
            check: s(5),
            fence: s(3),
            tick: s(2),
            beat: s(1),
            silence: s(60),
            order: s(1),
        };
        let members = [A, B, C].map(str::to_owned).to_vec();
        let config =
            Config { v: 1, members, timing, fencing: true, failsafe: true, max_lag: 100, min_replicas: 1 };
        config.into()
    }

    fn node(address: &str, offset: i64) -> MemberNode {
        MemberNode {
            v: 1,
            address: address.into(),
            host_id: address.into(),
            nonce: "n".into(),
            role: Role::Replica,
            master: A.into(),
            link: false,
            syncing: false,
            loading: false,
            replid: "history".into(),
            replid2: String::new(),
            offset,
            keys: 7,
            priority: 100,
            config: agreed().hash,
            fencer: true,
            lease: true,
            paused: false,
            round: 4,
            version: String::new(),
        }
    }

    fn state() -> ShardState {
        ShardState {
            v: 1,
            epoch: 3,
            master: A.into(),
            phase: super::super::Phase::Released,
            replid: "history".into(),
            replid2: "before".into(),
            offset: 1000,
            keys: 7,
            solo: false,
            heirs: vec![B.into(), C.into()],
            from: String::new(),
            since_ms: 0,
            intent: None,
            handover: None,
            outcome: None,
        }
    }

    fn of(nodes: &[MemberNode], state: Option<&ShardState>) -> (Vec<Verdict>, Vec<usize>) {
        let standings: Vec<_> =
            nodes.iter().map(|node| Standing { address: &node.address, node: Some(node) }).collect();
        let verdicts = judge(&standings, state, &agreed(), 4);
        let order = rank(&standings, &verdicts, state.is_none());
        (verdicts, order)
    }

    fn why(change: impl Fn(&mut MemberNode), state: &ShardState) -> String {
        let mut changed = node(B, 1000);
        change(&mut changed);
        match of(&[changed, node(C, 1000)], Some(state)).0.swap_remove(0) {
            Verdict::Out(why) => why,
            Verdict::Eligible => "eligible".to_owned(),
        }
    }

    #[test]
    fn each_reason_to_stay_out_is_told() {
        type Change = fn(&mut MemberNode);
        let cases: [(Change, &str); 15] = [
            (|_| {}, "eligible"),
            (|n| n.role = Role::Unknown, "its server does not answer"),
            (|n| n.loading = true, "it loads its data"),
            (|n| n.syncing = true, "it takes a copy of its master"),
            (|n| n.paused = true, "it is paused"),
            (|n| n.priority = 0, "its priority is 0"),
            (|n| n.config = "odd".into(), "its configuration differs from the shard's"),
            (|n| n.fencer = false, "it has no fencer"),
            (|n| n.lease = false, "its session timeout leaves too short a lease"),
            (|n| n.role = Role::Master, "it is a master that nobody made"),
            (|n| n.master = "10.9.9.9:1".into(), "it follows 10.9.9.9:1, which is none of the shard"),
            (|n| n.keys = 0, "it is empty"),
            (|n| n.replid = "other".into(), "its data is of another history"),
            (|n| n.offset = 0, "it never had the master's data"),
            (|n| n.offset = 800, "offset 200 behind 10.0.0.3:6379"),
        ];
        for (change, expected) in cases {
            assert_eq!(why(change, &state()), expected);
        }
        let without = ShardState { heirs: vec![C.into()], ..state() };
        assert_eq!(why(|_| {}, &without), format!("it did not keep up with {A}"));
        assert_eq!(why(|n| n.replid = "before".into(), &state()), format!("it has not followed {A}"));
        assert_eq!(why(|n| (n.offset, n.round) = (800, 0), &state()), "eligible", "its offset may be old");
        assert_eq!(why(|n| n.master = C.into(), &state()), "eligible", "C was the master once");
        let done = super::super::Phase::Done;
        let untold = ShardState { phase: done, replid: String::new(), heirs: vec![C.into()], ..state() };
        assert_eq!(why(|n| n.replid.clear(), &untold), format!("it did not keep up with {A}"));
        let begun = ShardState { offset: 0, ..state() };
        assert_eq!(of(&[node(B, 0)], Some(&begun)).1, [0], "no master ever had more");
    }

    #[test]
    fn of_the_history_before_only_heirs_are_successors_and_after_those_who_followed() {
        let before = |address: &str| MemberNode { replid: "before".into(), ..node(address, 1000) };
        assert_eq!(of(&[before(A), before(B), before(C)], Some(&state())).1, [0, 1, 2]);
        assert_eq!(of(&[before(B), node(C, 1000)], Some(&state())).1, [1]);
        let none = ShardState { heirs: Vec::new(), ..state() };
        assert_eq!(of(&[before(B), before(C)], Some(&none)).1, [0_usize; 0]);
    }

    #[test]
    fn until_a_successor_stands_the_master_before_it_may_lead_whoever_its_heirs_are() {
        let coming = ShardState {
            phase: super::super::Phase::Promoting,
            master: B.into(),
            from: A.into(),
            heirs: vec![B.into()],
            solo: true,
            ..state()
        };
        let master = MemberNode { role: Role::Master, ..node(A, 1200) };
        let third = MemberNode { master: String::new(), ..node(C, 1000) };
        let (verdicts, order) = of(&[master, node(B, 1150), third], Some(&coming));
        assert_eq!(order, [0, 1]);
        assert_eq!(verdicts[2], Verdict::Out(format!("it did not keep up with {A}")));
    }

    #[test]
    fn an_empty_member_leads_only_where_nobody_has_data() {
        let empty = |address: &str| MemberNode { keys: 0, replid: "new".into(), ..node(address, 0) };
        let (verdicts, _) = of(&[empty(A), empty(B), empty(C)], Some(&state()));
        assert!(verdicts.iter().all(|verdict| *verdict == Verdict::Eligible), "{verdicts:?}");
        let loading = MemberNode { loading: true, ..empty(C) };
        let (verdicts, _) = of(&[empty(A), empty(B), loading], Some(&state()));
        assert!(verdicts.iter().all(|verdict| *verdict != Verdict::Eligible), "{verdicts:?}");
    }

    #[test]
    fn the_greatest_offset_goes_first_then_priority_then_the_address() {
        let low = |address: &str, offset: i64| MemberNode { priority: 1, ..node(address, offset) };
        assert_eq!(of(&[node(A, 990), node(B, 1000), low(C, 999)], Some(&state())).1, [1, 2, 0]);
        assert_eq!(of(&[node(A, 1000), node(B, 1000), low(C, 1000)], Some(&state())).1, [2, 0, 1]);
        assert_eq!(of(&[node(A, 1000), node(B, 1000), node(C, 1000)], Some(&state())).1, [0, 1, 2]);
    }

    #[test]
    fn an_empty_member_is_the_first_master_only_where_all_have_said_that_they_are_empty() {
        let empty = |address: &str| MemberNode { keys: 0, ..node(address, 0) };
        let judged = |last: Option<&MemberNode>| {
            let (one, other) = (empty(A), empty(B));
            let standings = [
                Standing { address: A, node: Some(&one) },
                Standing { address: B, node: Some(&other) },
                Standing { address: C, node: last },
            ];
            let verdicts = judge(&standings, None, &agreed(), 4);
            (verdicts[0].clone(), rank(&standings, &verdicts, true))
        };
        let unknown = Verdict::Out(format!("it is empty, and nothing is known of {C}"));
        assert_eq!(judged(None), (unknown.clone(), vec![]));
        let loading = MemberNode { loading: true, ..empty(C) };
        assert_eq!(judged(Some(&loading)), (unknown, vec![]));
        assert_eq!(judged(Some(&empty(C))), (Verdict::Eligible, vec![0, 1, 2]));
        let full = Verdict::Out(format!("it is empty, and {C} has data"));
        assert_eq!(judged(Some(&node(C, 0))), (full, vec![2]));
    }

    #[test]
    fn nobody_is_the_first_master_who_follows_one_that_lives() {
        let follower = || MemberNode { link: true, ..node(B, 1000) };
        let untold = [node(C, 0)].map(|node| MemberNode { keys: 0, ..node });
        let standings = [
            Standing { address: A, node: None },
            Standing { address: B, node: Some(&follower()) },
            Standing { address: C, node: Some(&untold[0]) },
        ];
        let verdicts = judge(&standings, None, &agreed(), 4);
        assert_eq!(verdicts[1], Verdict::Out(format!("it follows {A}, which lives")));
        assert_eq!(rank(&standings, &verdicts, true), [0_usize; 0]);
        let silent = MemberNode { role: Role::Unknown, loading: true, ..node(A, 0) };
        assert_eq!(of(&[silent, follower()], None).1, [0_usize; 0]);
        let unready = MemberNode { role: Role::Master, fencer: false, ..node(A, 1000) };
        assert_eq!(of(&[unready, follower()], None).1, [0_usize; 0]);
        let master = MemberNode { role: Role::Master, ..node(A, 1000) };
        assert_eq!(of(&[master, follower()], None).1, [0]);
        let dead = MemberNode { link: false, ..follower() };
        assert_eq!(of(&[dead], None).1, [0]);
    }

    #[test]
    fn the_first_master_is_one_that_is_one_already_then_one_with_data() {
        let empty = |address: &str| MemberNode { keys: 0, ..node(address, 0) };
        let master = MemberNode { role: Role::Master, ..node(C, 10) };
        assert_eq!(of(&[empty(A), node(B, 500), master], None).1, [2, 1]);
        assert_eq!(of(&[empty(A), node(B, 5), empty(C)], None).1, [1]);
        assert_eq!(of(&[empty(A), empty(B), empty(C)], None).1, [0, 1, 2]);
        // The one with data cannot lead yet: nobody else does, for it would lose all to an empty master.
        let unarmed = MemberNode { fencer: false, ..node(B, 5) };
        let (verdicts, order) = of(&[empty(A), unarmed, empty(C)], None);
        assert!(order.is_empty());
        assert_eq!(verdicts[0], Verdict::Out(format!("it is empty, and {B} has data")));
    }
}
