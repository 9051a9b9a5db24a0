//! From the lock to the publication.

use log::Level;

use super::{
    Asked, Change, HEIRS_FOR, Life, Member, MemberNode, NOWHERE, Order, Ordered, Phase, Planted, Purpose,
    Role, ShardState, Stage, View,
    fencing::is_recent,
    switchover::{Handing, NOT_WRITTEN},
};
use crate::{
    core::failover::{
        Intent, IntentKind,
        shard::{Outcome, VERSION},
    },
    shell::registry::Answer,
};

impl Member {
    pub(super) fn lock_answered(&mut self, answer: &Answer) {
        if self.stage != Stage::Locking
            && !self.stage.needs_lease()
            && !matches!(self.stage, Stage::HandedOver { .. })
        {
            if matches!(answer, Answer::Created) {
                self.lock_is_ours();
                self.drop_lock();
            }
            return;
        }
        self.know.lock.doubt();
        match answer {
            Answer::Created => {
                self.change_taken("lock");
                self.lock_gone = None;
                self.lock_is_ours();
                if matches!(self.stage, Stage::Locking | Stage::HandedOver { .. }) {
                    // What was read before the lock was ours may be old.
                    self.know.state.doubt();
                    self.enter(Stage::Claiming);
                }
            }
            // Whether it is ours after all, its owner tells.
            Answer::Lost => self.back_from_locking("the connection was lost while it took the lock"),
            Answer::Exists => {
                (self.taken, self.vacant) = (true, None);
                self.back_from_locking("another one was faster");
            }
            Answer::Refused(why) => {
                self.lock_refused(why);
                self.back_from_locking("the lock was refused");
                self.later();
            }
            _ => {
                self.back_from_locking("the lock could not be taken");
                self.later();
            }
        }
    }

    fn back_from_locking(&mut self, why: &str) {
        if self.stage == Stage::Locking {
            self.say(Level::Info, format!("not promoted: {why}"));
            self.enter(Stage::Following);
        }
    }

    /// It holds the lock: is what it wants still right by what stands in `state`?
    pub(super) fn claim(&mut self) {
        if !self.is_informed() || !self.may_retry() {
            return;
        }
        if self.lock_session.is_none() {
            return self.enter(Stage::Following);
        }
        if self.life != Life::Up || self.view.is_none() {
            // A lock found as ours without a server that could lead.
            return self.give_up("its server does not answer".to_owned());
        }
        if self.plan.fencing && !self.fencer {
            return self.give_up("no fencer stands by".to_owned());
        }
        // Found as ours from before a connection was lost: who else may lead was not asked in this election.
        let stood = self.round == self.next_round();
        let state = match self.know.state().cloned() {
            Some(state) => state,
            None if stood => return self.announce(None),
            None => return self.give_up("it did not stand in this election".to_owned()),
        };
        let ours = state.master == self.plan.address;
        let rival = self.rival_until(&state).filter(|until| self.now.at < *until);
        if let Some(until) = rival.filter(|_| self.taken || !self.handed_over_by_us(&state)) {
            let left = until.saturating_duration_since(self.now.at).as_secs_f64();
            return self.give_up(format!("{} may still lead, for {left:.0} s at most", state.master));
        }
        match state.phase {
            Phase::Done if ours && self.role() == Role::Master => self.return_as_master(&state),
            // Ours, from before a connection was lost.
            Phase::Promoting if ours && self.role() == Role::Master && state.handover.is_none() => {
                self.publish_master()
            }
            Phase::Promoting
                if ours
                    && state.handover.is_some()
                    && !self.lacks(&state)
                    && (self.is_offered() || self.role() == Role::Master) =>
            {
                self.make_master()
            }
            // Others may have it; if nobody stands who does, it stands as all do.
            Phase::Promoting if ours && state.handover.is_some() && !(stood && self.is_offered()) => {
                self.declined = Some(state.epoch);
                let lacks = self.lacks(&state).then_some("it does not have all that was handed over to it");
                self.give_up(lacks.unwrap_or("its server did not take the order").to_owned());
            }
            // The one that handed over to another takes its place again.
            Phase::Promoting if self.handed_over_by_us(&state) => self.take_back(&state),
            _ if !stood => self.give_up("it did not stand in this election".to_owned()),
            _ if !self.is_forced_to_us(&state)
                && self.former_until(&state).is_some_and(|until| self.now.at < until) =>
            {
                self.give_up(format!("{} takes its place again", state.from));
            }
            _ => match self.unfit(Some(&state)).filter(|_| !self.is_forced_to_us(&state)) {
                Some(why) => self.give_up(why),
                None => self.announce(Some(&state)),
            },
        }
    }

    pub(super) fn handed_over_by_us(&self, state: &ShardState) -> bool {
        state.phase == Phase::Promoting && state.from == self.plan.address && state.handover.is_some()
    }

    /// Its server does not have all that was handed over: it was started anew in the meantime.
    fn lacks(&self, state: &ShardState) -> bool {
        let has = |view: &View| {
            [&view.replid, &view.replid2].contains(&&state.replid)
                && state.handover.as_ref().is_some_and(|handover| view.offset >= handover.offset)
        };
        !self.view.as_ref().is_some_and(has)
    }

    /// The recorded master leads again: nobody was promoted in the meantime.
    fn return_as_master(&mut self, state: &ShardState) {
        let next = ShardState {
            epoch: state.epoch + 1,
            phase: Phase::Done,
            from: state.master.clone(),
            since_ms: self.now.unix_ms,
            ..self.with_own_data(state)
        };
        self.why = Change::Return;
        self.put_state(Purpose::Return, next);
    }

    fn announce(&mut self, state: Option<&ShardState>) {
        let next = ShardState {
            v: VERSION,
            epoch: state.map_or(1, |state| state.epoch + 1),
            master: self.plan.address.clone(),
            phase: Phase::Promoting,
            replid: state.map(|state| state.replid.clone()).unwrap_or_default(),
            replid2: state.map(|state| state.replid2.clone()).unwrap_or_default(),
            offset: state.map_or(0, |state| state.offset),
            // Before there was a master, whoever stands says what there is to lose should it not become one.
            keys: match state {
                Some(state) if state.has_had_a_master() => state.keys,
                _ => state.map_or(0, |state| state.keys).max(self.view.as_ref().map_or(0, |view| view.keys)),
            },
            solo: state.is_some_and(|state| state.solo),
            heirs: state.map(|state| state.heirs.clone()).unwrap_or_default(),
            // Of one that was never made it, its predecessor is still the one before.
            from: match state {
                Some(state) if state.phase == Phase::Promoting || !state.has_had_a_master() => {
                    state.from.clone()
                }
                Some(state) => state.master.clone(),
                None => String::new(),
            },
            since_ms: self.now.unix_ms,
            intent: state.filter(|state| self.is_forced_to_us(state)).and_then(|state| state.intent.clone()),
            handover: None,
            outcome: state.and_then(|state| self.failed_change(state).or_else(|| state.outcome.clone())),
        };
        let ours = |state: &ShardState| state.phase == Phase::Done && state.master == self.plan.address;
        self.free = state.is_none_or(|state| state.phase == Phase::Released || ours(state));
        match self.why {
            Change::Death if !self.free => self.why = Change::Silence,
            Change::Silence if self.free => self.why = Change::Death,
            _ => {}
        }
        let ended = self.marks.back().map(|(at, _)| *at);
        let before = self.marks.front().filter(|(at, _)| ended.is_some_and(|ended| ended >= *at + HEIRS_FOR));
        self.stood_from = before.map(|(_, offset)| (self.round, *offset));
        self.say(Level::Warn, format!("it takes epoch {}", next.epoch));
        self.enter(Stage::Announcing);
        self.put_state(Purpose::Announce, next);
    }

    /// A wish that came to nothing is answered by whoever takes over instead.
    fn failed_change(&self, state: &ShardState) -> Option<Outcome> {
        let in_vain = |intent: &&Intent| !self.is_forced_to_us(state) || intent.kind != IntentKind::Force;
        let (id, to, how) = match (&state.handover, state.intent.as_ref().filter(in_vain)) {
            (Some(handover), _) => (&handover.id, &state.master, "as planned"),
            (None, Some(intent)) if intent.kind == IntentKind::Force => (&intent.id, &intent.to, "by force"),
            (None, Some(intent)) => (&intent.id, &intent.to, "as planned"),
            (None, None) => return None,
        };
        let text = format!("{to} did not take over {how}: {} stands for master", self.plan.address);
        Some(Outcome { id: id.clone(), done: false, text, paused_ms: None })
    }

    /// A change of `state` was made.
    pub(super) fn state_written(&mut self, purpose: Purpose) {
        match (purpose, &self.stage) {
            (Purpose::Announce, Stage::Announcing) => self.announced(),
            (Purpose::Publish, Stage::Publishing) | (Purpose::Return, Stage::Claiming) => self.leads_now(),
            (Purpose::TakeBack, Stage::Claiming) => self.leads_now(),
            (Purpose::HandOver, Stage::HandingOver(_)) => self.handed_over(),
            (Purpose::Answer, Stage::HandingOver(Handing::Writing)) => self.goes_on_as_master(NOT_WRITTEN),
            (Purpose::Release, Stage::Releasing) => self.released_now(),
            (Purpose::Solo, Stage::Leading) => self.order(Order::Unfence { min_replicas: 0 }),
            (Purpose::Wish, _) => self.wish = None,
            _ => {}
        }
    }

    pub(super) fn state_not_written(&mut self, purpose: Purpose, answer: &Answer) {
        let lost = matches!(answer, Answer::Lost);
        match purpose {
            Purpose::Announce if self.stage == Stage::Announcing && !lost => {
                self.give_up("`state` was changed by another".to_owned());
            }
            Purpose::Return | Purpose::TakeBack if self.stage == Stage::Claiming && !lost => {
                self.give_up("`state` was changed by another".to_owned());
            }
            // Beyond the point of no return: whoever changed it decides what we are.
            Purpose::Publish if self.stage == Stage::Publishing && !lost => match answer {
                Answer::Refused(_) => self.lose_lease(NOT_WRITTEN),
                _ => self.lose_lease("`state` was changed by another"),
            },
            // Refused is certainly not written. The wish still stands: it is not tried again, but answered.
            Purpose::HandOver
                if matches!(answer, Answer::Refused(_))
                    && self.stage == Stage::HandingOver(Handing::Writing) =>
            {
                self.failed_wish = self.paused_writes.as_ref().map(|(_, id)| id.clone());
                self.goes_on_as_master(NOT_WRITTEN);
                self.later();
            }
            // Nobody is to wait for what cannot be said: its server leads no more, or goes on.
            Purpose::Release if matches!(answer, Answer::Refused(_)) && self.stage == Stage::Releasing => {
                if self.life == Life::Up && self.role() == Role::Master {
                    let intent = self.know.state().and_then(|state| state.intent.as_ref());
                    self.failed_wish = intent.map(|intent| intent.id.clone());
                    self.goes_on_as_master(NOT_WRITTEN);
                    return self.later();
                }
                self.released_now();
                self.later();
            }
            Purpose::Announce | Purpose::Return | Purpose::TakeBack
                if self.stage.is_before_the_point_of_no_return() =>
            {
                // Its lock, if it is still ours, brings it back here.
                self.enter(Stage::Following);
            }
            _ => self.later(),
        }
    }

    /// `promoting` stands: rule 5 tells how long to wait for a former master that nobody saw die.
    fn announced(&mut self) {
        if self.free {
            return self.make_master();
        }
        if self.agreement().config.failsafe {
            self.enter(Stage::Detaching);
        } else {
            self.enter(Stage::Withdrawn { until: self.now.at + self.plan.timing.tick });
        }
    }

    /// Rule 7: a former master that lives on without a registry must see us leave.
    pub(super) fn detach(&mut self) {
        let order = Order::Follow { host: NOWHERE.0.to_owned(), port: NOWHERE.1, drop_clients: false };
        if self.role() == Role::Master {
            // Nobody's replica: there is nobody to leave.
            return self.detached();
        }
        if !self.is_ordered(&order) {
            self.order(order);
        }
    }

    pub(super) fn detached(&mut self) {
        let wait = self.plan.timing.withdrawal().max(self.plan.timing.tick);
        let until = if self.planted == Some(Planted::PublishBeforeWithdrawal) {
            self.now.at
        } else {
            self.now.at + wait
        };
        self.say(Level::Warn, format!("it left its master and waits {:.1} s", wait.as_secs_f64()));
        self.enter(Stage::Withdrawn { until });
    }

    pub(super) fn wait_withdrawn(&mut self, until: std::time::Instant) {
        if self.lock_session.is_none() {
            return self.give_up("it lost the lock while it waited".to_owned());
        }
        if self.now.at >= until {
            self.make_master();
        }
    }

    /// The point of no return. Whoever passes it holds the lock, has announced itself, and is watched by a fencer.
    fn make_master(&mut self) {
        let ends = self.lock_session.and(self.lease_until);
        if ends.is_none_or(|at| at <= self.now.at + self.plan.timing.order) {
            return self.give_up("its lease is too short".to_owned());
        }
        if self.plan.fencing && !self.fencer {
            return self.give_up("no fencer stands by".to_owned());
        }
        debug_assert!(self.lock_session.is_some(), "promotion without the lock");
        self.reluctant = None;
        self.enter(Stage::Promoting);
        if self.role() == Role::Master {
            // It is one already: the first master of a shard, or one from before its agent was started again.
            return self.order(Order::Inspect);
        }
        self.order(Order::Promote);
    }

    /// Its server did not take the order to be a master. Others go first, and whoever wanted just this one is told.
    pub(super) fn note_reluctance(&mut self, why: &str) {
        self.reluctant = Some(why.to_owned());
        let Some(state) = self.know.state() else { return };
        if self.is_offered() {
            self.declined = Some(state.epoch);
        } else if self.is_forced_to_us(state) {
            self.failed_wish = state.intent.as_ref().map(|intent| intent.id.clone());
        }
    }

    pub(super) fn promotion_failed(&mut self, ordered: &Ordered) {
        if self.stage != Stage::Promoting {
            return;
        }
        let why =
            if let Ordered::Failed(why) = ordered { why.as_str() } else { "its engine cannot be promoted" };
        self.note_reluctance(why);
        // Whether it is a master now is to be seen; if so, since just now.
        self.heirs_since = self.now.at;
        self.order(Order::Inspect);
    }

    /// It said that it is a master; now it tells how far its data is.
    pub(super) fn confirm_promotion(&mut self) {
        if self.running.is_some() || self.lease_ends().is_none_or(|at| at <= self.now.at) {
            return;
        }
        match (self.role(), self.reluctant.clone()) {
            (Role::Master, _) => {
                self.enter(Stage::Publishing);
                self.publish_master();
            }
            (Role::Replica, Some(why)) => {
                self.give_up(format!("its server did not take the order to be a master: {why}"));
            }
            (Role::Unknown, Some(why)) => {
                self.lose_lease(&format!("it was told to be the master, and failed: {why}"));
                self.later();
            }
            (_, None) if self.may_retry() => {
                self.order(Order::Inspect);
                self.later();
            }
            (_, None) => {}
        }
    }

    /// `done`: from here on clients use it.
    pub(super) fn publish_master(&mut self) {
        let Some(state) = self.know.state().cloned() else { return self.lose_lease("`state` is gone") };
        if state.master != self.plan.address || state.phase == Phase::Released {
            return self.lose_lease("`state` was changed by another");
        }
        if state.phase == Phase::Done {
            return self.leads_now();
        }
        self.stage = Stage::Publishing;
        if let Some(view) = &self.view {
            let known =
                self.why == Change::Death && (state.replid == view.replid2 || state.replid == view.replid);
            self.lost_bytes = known.then(|| u64::try_from(state.offset - view.offset).unwrap_or(0));
        }
        let done = |id: &String, how: &str| Outcome {
            id: id.clone(),
            done: true,
            text: format!("{} is the master: {how}", self.plan.address),
            paused_ms: None,
        };
        let outcome = match (&state.handover, &state.intent) {
            (Some(handover), _) => Some(done(&handover.id, "no acknowledged write was lost")),
            (None, Some(intent)) if intent.to == self.plan.address => {
                Some(done(&intent.id, "by force: writes may have been lost"))
            }
            (None, _) => self.failed_change(&state),
        };
        let next = ShardState {
            phase: Phase::Done,
            since_ms: self.now.unix_ms,
            intent: None,
            handover: None,
            outcome: outcome.or_else(|| state.outcome.clone()),
            ..self.with_own_data(&state)
        };
        self.put_state(Purpose::Publish, next);
    }

    /// `state` with how far our data is, and that we are alone until somebody follows.
    pub(super) fn with_own_data(&self, state: &ShardState) -> ShardState {
        let Some(view) = &self.view else { return state.clone() };
        let alone = self.attached() == 0 && self.plan.members.len() > 1;
        let forget = self.planted == Some(Planted::ForgetSolo);
        let shared = |id: &String| [&view.replid, &view.replid2].contains(&id);
        // Who did not have what the last master had has no more now.
        let barred = |address: &String| {
            state.has_had_a_master() && *address != state.from && !state.heirs.contains(address)
        };
        let heir = |address: &String| {
            let node = self.know.members.get(address).and_then(|slot| slot.content());
            let near = |offset: i64| u64::try_from(view.offset - offset).unwrap_or(0) <= self.plan.max_lag;
            *address != self.plan.address
                && !barred(address)
                && node.is_some_and(|node| {
                    shared(&node.replid) && near(node.offset) && !self.was_left_behind(node)
                })
        };
        // It has been this history's master for a while, and knows who kept up with it.
        let knows = view.replid == state.replid || self.now.at >= self.heirs_since + HEIRS_FOR;
        let heirs = if view.role == Role::Master && knows {
            self.heirs(&self.recorded_heirs(state, view))
        } else {
            self.plan.members.iter().filter(|address| heir(address)).cloned().collect()
        };
        ShardState {
            replid: view.replid.clone(),
            replid2: view.replid2.clone(),
            offset: view.offset,
            keys: view.keys,
            solo: alone && !forget,
            heirs,
            ..state.clone()
        }
    }

    /// By what it said for this election it lacked what we had got a while before our master's stream ended: whoever comes
    /// after us would lose that and what we take until it follows.
    fn was_left_behind(&self, node: &MemberNode) -> bool {
        self.stood_from
            .is_some_and(|(round, offset)| self.round == round && node.round >= round && node.offset < offset)
    }

    /// The recorded heirs. An agent that has just begun does not know when they last kept up: those count that copy its
    /// server now, and have what its former run wrote down, or one that dies again and again would keep them for ever.
    fn recorded_heirs(&self, state: &ShardState, view: &View) -> Vec<String> {
        let begins = self.now.at < self.heirs_since + HEIRS_FOR;
        let copies = |address: &&String| {
            view.replicas.iter().any(|replica| {
                replica.address == **address && is_recent(replica) && replica.offset >= state.offset
            })
        };
        state.heirs.iter().filter(|address| !begins || copies(address)).cloned().collect()
    }

    pub(super) fn is_locking(&self) -> bool {
        self.is_asked(&Asked::TakeLock)
    }
}
