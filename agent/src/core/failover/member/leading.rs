//! What a member does while it is the master.

use log::Level;

use super::{
    Change, HEIRS_FOR, Member, Order, Phase, Purpose, Role, Scope, ShardState, Stage, switchover::NOT_WRITTEN,
};
use crate::core::{
    alert::Severity,
    failover::{Config, IntentKind, MemberNode},
};

impl Member {
    /// `done` stands, with our name.
    pub(super) fn leads_now(&mut self) {
        self.led_since = self.now.at;
        self.blind = None;
        self.round = 0;
        self.grace_until = None;
        self.renew_fence = None;
        self.reluctant = None;
        self.enter(Stage::Leading);
        self.next_look = self.now.at;
        self.let_writes_in();
        let Some(state) = self.know.state().cloned() else { return };
        let took = self.now.at.saturating_duration_since(self.begun).as_secs_f64() * 1000.0;
        let how = match self.why {
            Change::First => "is the shard's first master".to_owned(),
            Change::Return => "is the master again".to_owned(),
            Change::Switchover => format!("is the master by a planned switchover from {}", state.from),
            Change::Death => format!("is the master {took:.0} ms after {} died", state.from),
            Change::Silence => format!("is the master {took:.0} ms after {} was given up", state.from),
            Change::Force => format!("is the master by force instead of {}", state.from),
        };
        self.say(Level::Warn, format!("{how}, epoch {}", state.epoch));
        let severity = match self.why {
            Change::Death | Change::Silence | Change::Force => Some(Severity::Critical),
            Change::Switchover => Some(Severity::Info),
            Change::First | Change::Return => None,
        };
        if let Some(severity) = severity {
            let lost = match self.lost_bytes {
                _ if self.why == Change::Switchover => "nothing is lost".to_owned(),
                None => "what of its last writes is lost is not known".to_owned(),
                Some(0) => "nothing of what its agent saw is lost".to_owned(),
                Some(bytes) => format!("{bytes} bytes of its data are lost"),
            };
            self.fire("failover", severity, &format!("{} {how}; {lost}", self.plan.address));
        }
        self.resolve("shard-fenced", &format!("{} {how}", self.plan.address));
        self.resolve("shard-no-candidate", &format!("{} {how}", self.plan.address));
        self.resolve("switchover", &format!("{} {how}", self.plan.address));
        self.change_taken("lock");
        let lost = self.lost_bytes.take();
        self.write_history(None, lost);
        self.write_config();
    }

    /// How many replicas its server wants before it takes writes.
    fn needed(&self) -> u32 {
        let others = u32::try_from(self.plan.members.len().saturating_sub(1)).unwrap_or(u32::MAX);
        self.plan.min_replicas.min(others)
    }

    /// `state` says that it takes writes that nobody else has.
    pub(super) fn is_alone(&self) -> bool {
        self.know.state().is_some_and(|state| state.solo)
    }

    /// The registry does not let it write down who its heirs are: one that lacks what it takes alone might succeed it.
    fn is_unrecorded(&self) -> bool {
        let differ = |state: &ShardState| self.heirs(&state.heirs) != state.heirs;
        self.refused.contains("state") && self.know.state().is_some_and(differ)
    }

    /// It takes writes, while it has the replicas that it needs.
    pub(super) fn let_writes_in(&mut self) {
        let alone = self.is_alone() && !self.is_unrecorded();
        let order = Order::Unfence { min_replicas: if alone { 0 } else { self.needed() } };
        if !self.is_ordered(&order) {
            self.order(order);
        }
    }

    pub(super) fn lead(&mut self) {
        if !self.is_informed() {
            // It has a lease: what the fencer did by mistake is undone without a registry as well.
            if self.guard.is_none() && self.role() == Role::Master && self.may_retry() {
                self.let_writes_in();
            }
            return;
        }
        let Some(state) = self.know.state().cloned() else { return self.lose_lease("`state` is gone") };
        if state.master != self.plan.address || state.phase != Phase::Done {
            return self.lose_lease(&format!("`state` names {}", state.master));
        }
        if self.know.lock.seen.is_none() && !self.is_locking() {
            // Somebody removed it; our session stands, so it is ours to have.
            self.log(Level::Warn, "the lock was removed: it is taken again".to_owned());
            self.take_the_lock();
        }
        if self.view.as_ref().is_some_and(|view| view.role == Role::Replica) {
            self.say(Level::Error, "somebody made the master a replica: it gives the shard up".to_owned());
            self.begun = self.now.at;
            return self.enter(Stage::Releasing);
        }
        self.write_config();
        if self.view.is_none() || self.view_at < self.led_since {
            self.heed_if_free(&state);
            return self.lead_blindly(&state);
        }
        self.keep_second_fence(&state);
        self.tell_replicas(&state);
        self.complete_history(&state);
        self.heed_if_free(&state);
    }

    fn heed_if_free(&mut self, state: &ShardState) {
        if self.writing.is_none() && self.running.as_ref().is_none_or(|order| *order == Order::Inspect) {
            self.heed(state);
        }
    }

    /// Its server tells nothing, and may take writes all the same: after a while the replicas' own word is what is left of
    /// who keeps up.
    fn lead_blindly(&mut self, state: &ShardState) {
        let (since, heirs) = self.blind.get_or_insert_with(|| (self.now.at, state.heirs.clone()));
        if self.now.at < *since + HEIRS_FOR || self.writing.is_some() {
            return;
        }
        let follows = |node: &MemberNode| node.link && !node.syncing && node.master == state.master;
        let says_so = |address: &&String| {
            self.know.members.get(*address).and_then(|slot| slot.content()).is_some_and(follows)
        };
        let heirs: Vec<String> = heirs.iter().filter(says_so).cloned().collect();
        if heirs != state.heirs {
            self.say(
                Level::Warn,
                "its server tells nothing: who says that it follows is its heir".to_owned(),
            );
            self.put_state(Purpose::Settle, ShardState { heirs, ..state.clone() });
        }
    }

    /// Rule 3: it takes writes while replicas are attached, or while `state` says that it is alone.
    fn keep_second_fence(&mut self, state: &ShardState) {
        let attached = u32::try_from(self.attached()).unwrap_or(0);
        let short = attached < self.needed().max(1) && self.plan.members.len() > 1;
        let forget = self.planted == Some(super::Planted::ForgetSolo);
        let least = if short && !self.is_unrecorded() { 0 } else { self.needed() };
        let order = Order::Unfence { min_replicas: least };
        let now = self.may_retry();
        if short && !state.solo && !forget {
            if self.writing.is_none() {
                self.say(Level::Warn, "its replicas are gone: it records that it goes on alone".to_owned());
                let heirs = self.heirs(&[]);
                self.put_state(Purpose::Solo, ShardState { solo: true, heirs, ..self.with_figures(state) });
            }
            return;
        }
        let settled = self.guard == Some(least);
        if !settled && now && !self.is_ordered(&order) {
            self.order(order);
        }
        // One that does not take the order may take writes alone, whatever it was told.
        let refuses = self.closed.is_some();
        if (settled || refuses) && !forget && self.writing.is_none() {
            let (solo, heirs) = (state.solo && (short || refuses), self.heirs(&state.heirs));
            // What was refused may be needed no more: that it would not be refused any more is to be known all the same.
            if (solo, &heirs) != (state.solo, &state.heirs) || self.refused.contains("state") {
                let next = ShardState { solo, heirs, ..self.with_figures(state) };
                self.put_state(Purpose::Settle, next);
            }
        }
    }

    /// The members that may succeed it: those that copy its server and keep up, and of the `former` ones those that did
    /// so a moment ago. While it is alone a moment is too long.
    pub(super) fn heirs(&self, former: &[String]) -> Vec<String> {
        let Some(view) = &self.view else { return former.to_vec() };
        let up = |address: &String| view.replicas.iter().any(|r| r.address == *address && self.is_abreast(r));
        let lately = |address: &String| {
            let since = self.kept_up.get(address).filter(|_| !self.is_alone());
            self.now.at < since.map_or(self.heirs_since, |at| self.heirs_since.max(*at)) + HEIRS_FOR
        };
        let heir = |address: &&String| up(address) || former.contains(*address) && lately(address);
        self.plan.members.iter().filter(heir).cloned().collect()
    }

    /// `state` with how far the data is now.
    fn with_figures(&self, state: &ShardState) -> ShardState {
        match &self.view {
            Some(view) => ShardState {
                offset: view.offset,
                keys: view.keys,
                replid: view.replid.clone(),
                ..state.clone()
            },
            None => state.clone(),
        }
    }

    fn tell_replicas(&mut self, state: &ShardState) {
        if self.has_all_replicas() {
            self.say(Level::Info, format!("it leads epoch {} with all its replicas", state.epoch));
            self.resolve("shard-solo", "the master has its replicas");
            self.resolve("failover", "the shard has its replicas back");
        } else {
            let (attached, others) = (self.attached(), self.plan.members.len() - 1);
            self.say(
                Level::Warn,
                format!("it leads epoch {} with {attached} of {others} replicas", state.epoch),
            );
            if state.solo && self.now.at >= self.led_since + HEIRS_FOR {
                let text = format!("{} takes writes that no other member has", self.plan.address);
                self.fire("shard-solo", Severity::Warning, &text);
            }
        }
    }

    /// What an operator wants of the leader.
    fn heed(&mut self, state: &ShardState) {
        let Some(intent) = state.intent.clone() else { return };
        match intent.kind {
            _ if self.has_failed(&intent) => {
                if self.may_retry() {
                    self.refuse(state, &intent.id, NOT_WRITTEN);
                }
            }
            _ if self.is_paused(Scope::Shard) => self.refuse(state, &intent.id, "the shard is paused"),
            IntentKind::Switchover => self.begin_handover(state, &intent),
            IntentKind::Force if intent.to == self.plan.address => {
                self.refuse(state, &intent.id, "it is the master already");
            }
            IntentKind::Force => self.step_down(&intent),
        }
    }

    /// Rule 10: the odd one is told of.
    pub(super) fn compare_config(&mut self) {
        let theirs = self.know.config.content().filter(|_| !self.stage.needs_lease());
        match theirs.filter(|theirs| **theirs != self.ours) {
            Some(theirs) => {
                let what = difference(&theirs.config, &self.ours.config);
                let text = format!(
                    "{} differs from the shard's leader in {what}: it is not promoted",
                    self.plan.address
                );
                self.fire("shard-drift", Severity::Warning, &text);
            }
            None => {
                self.resolve("shard-drift", &format!("{} has the shard's configuration", self.plan.address));
            }
        }
    }
}

/// What differs, for people.
fn difference(theirs: &Config, ours: &Config) -> String {
    let pairs = [
        ("peers", theirs.members != ours.members),
        ("timing", theirs.timing != ours.timing),
        ("redis_fencing", theirs.fencing != ours.fencing),
        ("redis_failsafe", theirs.failsafe != ours.failsafe),
        ("redis_max_lag", theirs.max_lag != ours.max_lag),
        ("redis_min_replicas", theirs.min_replicas != ours.min_replicas),
    ];
    let differ: Vec<&str> = pairs.iter().filter(|(_, differs)| *differs).map(|(name, _)| *name).collect();
    differ.join(", ")
}
