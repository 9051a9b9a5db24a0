//! The lease: until when its server may take writes, and what happens when it may no longer.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use log::Level;

use super::{
    Command, FENCE_FOR, HEIRS_FOR, Life, Member, Order, Ordered, Phase, Role, Stage, switchover::Handing,
};
use crate::core::{
    alert::Severity,
    failover::{Replica, ShardState, timing::OLDEST_ACK},
};

/// A replica that acknowledged so long ago, in whole seconds, still counts as attached for the second fence.
const ATTACHED_LAG_S: u64 = 4;
/// A wall clock that lost so much against the monotonic one between two looks was set back, in milliseconds.
const CLOCK_SLIPS_MS: u64 = 250;
/// So long after that, what was acknowledged before looks old again: set back by more than [`OLDEST_ACK`] and a beat, the
/// clock would make it look as if it came from the future, and that is never believed.
const CLOCK_HEALS: Duration = Duration::from_secs(6);

impl Member {
    /// Until when its server may be a master.
    pub(super) fn lease_ends(&self) -> Option<Instant> {
        let lease = self.lock_session.and(self.lease_until);
        let own = if self.stage.needs_lease() { lease } else { self.grace_until };
        own.map(|until| self.failsafe_until.map_or(until, |failsafe| failsafe.max(until)))
            .or(self.failsafe_until.filter(|_| self.stage.needs_lease()))
    }

    /// Goes before everything else.
    pub(super) fn watch_lease(&mut self) {
        let over = self.lease_ends().is_none_or(|at| self.now.at >= at);
        if self.stage.needs_lease() && over {
            self.lose_lease("its lease ran out");
        } else if self.grace_until.is_some() && over {
            self.grace_until = None;
            if self.role() == Role::Master {
                self.lose_lease("it is a master, and what the registry says of it is not known");
            }
        }
        if self.renew_fence.is_some_and(|at| self.now.at >= at) {
            self.fence();
        }
    }

    /// Its server may take no writes any more. Whoever held the lock does not hold it now, as far as it is concerned.
    pub(super) fn lose_lease(&mut self, why: &str) {
        self.say(Level::Error, format!("{why}: it takes no writes any more"));
        self.lock_session = None;
        self.lease_until = None;
        self.failsafe_until = None;
        self.paused_writes = None;
        // What waits was decided while there was a lease.
        self.queued.retain(|order| !matches!(order, Order::Promote | Order::Unfence { .. }));
        self.enter(Stage::Fenced);
        if self.plan.fencing && self.life == Life::Up {
            self.fire(
                "shard-fenced",
                Severity::Critical,
                &format!("{} takes no writes: {why}", self.plan.address),
            );
            if self.fed.is_some() {
                self.out.push(Command::Lease(Some(self.now.at)));
                self.fed = Some(self.now.at);
            }
            self.fence();
        }
    }

    fn fence(&mut self) {
        self.renew_fence = Some(self.now.at + FENCE_FOR / 2);
        self.guard = None;
        self.order(Order::Fence { long: FENCE_FOR });
    }

    pub(super) fn fenced(&mut self, ordered: &Ordered) {
        match (&self.stage, ordered) {
            (Stage::HandingOver(Handing::Pausing), Ordered::Done(_)) => {
                self.stage = Stage::HandingOver(Handing::Measuring);
                self.order(Order::Inspect);
            }
            (Stage::HandingOver(Handing::SteppingDown), Ordered::Done(_)) => self.enter(Stage::Releasing),
            (Stage::HandingOver(Handing::SteppingDown), _) => {
                // By force: whoever cannot be stopped otherwise is killed, and its death releases the shard.
                self.log(Level::Error, "its server did not stop taking writes: it is killed".to_owned());
                self.out.push(Command::Kill);
            }
            (Stage::HandingOver(_), Ordered::Unsupported) => {
                self.refuse_handover("its server cannot pause writes (redis can from 6.2 on)");
            }
            (Stage::HandingOver(_), Ordered::Failed(why)) => {
                let why = format!("its server did not pause writes: {why}");
                self.refuse_handover(&why);
            }
            (_, Ordered::Done(_)) => {}
            // One that cannot be kept from writing must not live, unless it follows somebody.
            (Stage::Leading, _) => {}
            _ if self.role() != Role::Replica && self.life == Life::Up => {
                self.log(
                    Level::Error,
                    "its server cannot be kept from taking writes: it is killed".to_owned(),
                );
                self.renew_fence = None;
                self.out.push(Command::Kill);
            }
            _ => {}
        }
    }

    pub(super) fn unfenced(&mut self, min_replicas: u32, ordered: &Ordered) {
        match ordered {
            // Whether it came before the fence or after it is not known.
            _ if self.fenced_meanwhile => self.guard = None,
            Ordered::Done(_) | Ordered::Unsupported => {
                self.guard = Some(min_replicas);
                self.closed = None;
                self.resolve("shard-fenced", &format!("{} is fenced no more", self.plan.address));
            }
            Ordered::Failed(why) => {
                self.guard = None;
                let text = format!("its server does not take the order to allow writes: {why}");
                if self.closed.replace(why.clone()).is_some() {
                    let (severity, what) = match self.stage {
                        Stage::Leading => (Severity::Critical, "leads and may take no writes"),
                        _ => (Severity::Warning, "is not promoted"),
                    };
                    self.fire("shard-fenced", severity, &format!("{} {what}: {text}", self.plan.address));
                }
                self.log(Level::Warn, text);
                self.later();
            }
        }
    }

    /// Rule 7: nobody can have been promoted without leaving us first.
    pub(super) fn extend_failsafe(&mut self) {
        let Some(view) = &self.view else { return };
        let fresh = OLDEST_ACK.as_secs();
        // One that gets nothing acknowledges as well, and nobody could be told that it is no heir any more.
        let attached = |address: &String| {
            view.replicas
                .iter()
                .any(|replica| replica.address == *address && replica.lag_s < fresh && self.keeps_up(replica))
        };
        // Those of the recorded list as well: they may stand although our own settings do not name them any more.
        let members = self.plan.members.iter().chain(&self.agreement().config.members);
        let others = members.filter(|address| **address != self.plan.address);
        let all = others.clone().count() > 0 && others.clone().all(attached);
        let sure = self.set_back.is_none_or(|at| self.view_at >= at + CLOCK_HEALS);
        let agreed = self.plan.failsafe && self.agreement().config.failsafe;
        // Whoever gave the shard up is succeeded by somebody who need not leave it first.
        let recorded = |state: &ShardState| state.master == self.plan.address && state.phase == Phase::Done;
        let ours = self.stage.needs_lease() || self.know.state().is_none_or(recorded);
        let unheard = agreed && ours && view.role == Role::Master && all && sure;
        self.unheard_since = unheard.then(|| self.unheard_since.unwrap_or(self.now.at));
        if unheard {
            let until = self.view_at + self.plan.timing.beat;
            self.failsafe_until = Some(self.failsafe_until.map_or(until, |before| before.max(until)));
        }
    }

    /// Rule 7 for one that was fenced because it could not tell for a moment, once that has held for a while: what flaps
    /// stays fenced. Not where it may have given the shard up: who was wished for need not leave it first.
    fn may_go_on_unheard(&self) -> bool {
        let certain = |state: &ShardState| {
            state.master == self.plan.address && state.phase == Phase::Done && state.intent.is_none()
        };
        let all = self.failsafe_until.is_some_and(|until| self.now.at < until);
        let steady = OLDEST_ACK + self.plan.timing.beat;
        let steadily = self.unheard_since.is_some_and(|since| self.now.at >= since + steady);
        all && steadily
            && !self.connected
            && self.role() == Role::Master
            && self.know.state().is_some_and(certain)
    }

    /// Redis counts by the wall clock when a replica acknowledged. One that was set back makes what is old look new, until
    /// the replicas have acknowledged again.
    pub(super) fn watch_clock(&mut self) {
        let elapsed = self.now.at.saturating_duration_since(self.clock.at);
        let expected =
            self.clock.unix_ms.saturating_add(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX));
        if self.now.unix_ms + CLOCK_SLIPS_MS < expected {
            self.set_back = Some(self.now.at);
        }
        self.clock = self.now;
    }

    /// A server that was not started by us is a master, and we do not know by whose leave.
    pub(super) fn meet_an_unknown_master(&mut self) {
        let known =
            self.stage != Stage::Following || self.grace_until.is_some() || self.renew_fence.is_some();
        if !known && self.role() == Role::Master && self.plan.fencing && self.plan.members.len() > 1 {
            self.grace_until = Some(self.now.at + self.plan.timing.check);
        }
    }

    /// How many of the other members copy its server.
    pub(super) fn attached(&self) -> usize {
        let Some(view) = self.view.as_ref().filter(|view| view.role == Role::Master) else { return 0 };
        let counts = |address: &&String| {
            view.replicas.iter().any(|replica| {
                replica.address == **address && replica.lag_s <= ATTACHED_LAG_S && self.keeps_up(replica)
            })
        };
        self.plan.members.iter().filter(|address| **address != self.plan.address).filter(counts).count()
    }

    /// It has all that its master had a while ago, or when its agent first looked.
    pub(super) fn is_abreast(&self, replica: &Replica) -> bool {
        let known = self.marks.front().is_some_and(|(_, offset)| replica.offset >= *offset);
        is_recent(replica) && known
    }

    /// It copies, and has what its master had a while ago: one that is paused acknowledges as well, and gets nothing.
    pub(super) fn keeps_up(&self, replica: &Replica) -> bool {
        let known = self.marks.front().filter(|(at, _)| self.now.at >= *at + HEIRS_FOR);
        replica.online && known.is_none_or(|(_, offset)| replica.offset >= *offset)
    }

    /// Notes how far its server's data is, for [`Member::keeps_up`]. A replica's time stands still while nothing comes.
    pub(super) fn mark_offset(&mut self) {
        let Some(view) = &self.view else { return };
        let last = |marks: &VecDeque<(Instant, i64)>| marks.back().map(|(_, offset)| *offset);
        if view.syncing || view.loading || last(&self.marks).is_some_and(|offset| offset > view.offset) {
            self.marks.clear();
        }
        let leads = view.role == Role::Master;
        if leads || last(&self.marks) != Some(view.offset) {
            self.marks.push_back((view.heard_at(self.view_at), view.offset));
        }
        let now = if leads { self.now.at } else { self.marks.back().map_or(self.now.at, |(at, _)| *at) };
        while self.marks.get(1).is_some_and(|(at, _)| now >= *at + HEIRS_FOR) {
            self.marks.pop_front();
        }
        let ours = |replica: &&Replica| self.plan.members.contains(&replica.address);
        let up = view.replicas.iter().filter(ours).filter(|replica| self.is_abreast(replica));
        let up: Vec<String> = up.map(|replica| replica.address.clone()).collect();
        self.kept_up.extend(up.into_iter().map(|address| (address, self.view_at)));
    }

    pub(super) fn has_all_replicas(&self) -> bool {
        self.attached() + 1 >= self.plan.members.len()
    }

    /// It is fenced: is its place still its own?
    pub(super) fn come_back(&mut self) {
        if self.life != Life::Up {
            return self.enter(Stage::Following);
        }
        if self.may_go_on_unheard() {
            self.say(Level::Warn, "all its replicas follow again: it goes on without a registry".to_owned());
            self.resolve("shard-fenced", &format!("all replicas of {} follow", self.plan.address));
            self.renew_fence = None;
            self.enter(Stage::Leading);
            return self.let_writes_in();
        }
        if !self.is_informed() || !self.may_retry() {
            return;
        }
        let Some(state) = self.know.state().cloned() else { return self.enter(Stage::Following) };
        if self.view.is_none() {
            return self.give_up_blindly(&state);
        }
        let ours =
            state.master == self.plan.address && state.phase != Phase::Released && state.handover.is_none();
        let lock = self.know.lock.seen.as_ref().map(|seen| seen.owner);
        match lock {
            _ if !ours || self.role() != Role::Master => self.enter(Stage::Following),
            Some(owner) if Some(owner) == self.session.as_ref().map(|facts| facts.session) => {
                self.lock_is_ours();
                self.enter(Stage::Claiming);
            }
            Some(_) => self.enter(Stage::Following),
            None if self.is_locking() || !self.is_present() => {}
            None => {
                self.say(Level::Info, "it is the recorded master and takes its place again".to_owned());
                self.enter(Stage::Locking);
                self.take_the_lock();
            }
        }
    }

    /// Its server takes no writes and tells nothing: whether it could lead again nobody would know.
    fn give_up_blindly(&mut self, state: &ShardState) {
        if !self.plan.fencing {
            return;
        }
        let since = self.blind.get_or_insert_with(|| (self.now.at, state.heirs.clone())).0;
        let fencing = self.is_ordered(&Order::Fence { long: FENCE_FOR });
        if self.now.at >= since + HEIRS_FOR && !fencing {
            self.say(
                Level::Error,
                "its server is fenced and tells nothing: it gives the shard up".to_owned(),
            );
            self.begun = self.now.at;
            self.enter(Stage::Releasing);
        }
    }

    /// Tells the fencer what it must know.
    pub(super) fn feed(&mut self) {
        let ends = self.lease_ends().filter(|_| self.plan.fencing);
        let needs = self.plan.fencing && (self.stage.needs_lease() || self.grace_until.is_some());
        if let Some(until) = ends.filter(|_| needs) {
            if ends != self.fed || self.feed_anew {
                // A grace does not lengthen the lease of the agent's former run.
                let failsafe = self.failsafe_until.filter(|until| *until > self.now.at);
                let lease = match self.grace_until.filter(|_| !self.stage.needs_lease()) {
                    None => Command::Lease(ends),
                    Some(_) if failsafe.is_some() => Command::Lease(failsafe),
                    Some(grace) => Command::Grace(grace.min(until)),
                };
                // First of all: the fencer knows of the lease before an order is given that counts on it.
                self.out.insert(0, lease);
                self.fed = ends;
                self.feed_anew = false;
            }
            return;
        }
        if needs {
            return;
        }
        let harmless = !self.plan.fencing || self.life == Life::Dead || self.role() == Role::Replica;
        let done = !self.plan.fencing
            || matches!(self.stage, Stage::Following | Stage::Standing { .. } | Stage::Releasing);
        if harmless && done && (self.fed.is_some() || self.feed_anew) {
            self.out.push(Command::Lease(None));
            self.fed = None;
            self.feed_anew = false;
        }
    }
}

/// It copies, and acknowledged a moment ago.
pub(super) fn is_recent(replica: &Replica) -> bool {
    replica.online && replica.lag_s <= ATTACHED_LAG_S
}
