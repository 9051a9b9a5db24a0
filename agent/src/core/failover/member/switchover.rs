//! How a master hands over by name, or steps down; and how a wish comes into `state`.

use std::time::{Duration, Instant};

use log::Level;

use super::{
    Asked, FENCE_FOR, Life, Member, Order, Phase, Purpose, Role, Scope, ShardState, Stage,
    fencing::is_recent, split,
};
use crate::core::{
    alert::Severity,
    failover::{
        Intent, IntentKind, Verdict, candidates,
        shard::{Handover, Outcome},
    },
};

/// How far a handover has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Handing {
    /// Its server is told to pause writes.
    Pausing,
    /// It tells how far its data is.
    Measuring,
    /// `promoting` is being written for the target.
    Writing,
    /// By force: its server is told to pause writes, then it gives the shard up.
    SteppingDown,
}

/// Why a handover did not come about whose record could not be written.
pub(super) const NOT_WRITTEN: &str = "`state` could not be changed";

impl Member {
    /// How long a target may take to lead.
    pub(super) fn handover_limit(&self) -> Duration {
        (self.plan.timing.order * 2).max(Duration::from_secs(1))
    }

    // A wish comes in

    pub(super) fn accept_change(
        &mut self,
        kind: IntentKind,
        to: Option<String>,
        id: String,
    ) -> Result<(), String> {
        if !self.connected {
            return Err("there is no connection to the registry".to_owned());
        }
        // What is just being read again will do: the wish is written once that is done, and judged by the leader.
        let none =
            if self.know.state.fresh { "the shard never had a master" } else { "`state` is not read yet" };
        let state = self.know.state().ok_or(none)?.clone();
        if let Some(intent) = state.intent.as_ref().filter(|intent| !kind.overrides(intent, &state)) {
            return Err(format!("another request is under way (to {})", intent.to));
        }
        if self.wish.is_some() || self.is_changing(&state) {
            return Err("a change of the master is under way".to_owned());
        }
        if self.is_paused(Scope::Shard) {
            return Err("the shard is paused: `yagent resume` it first".to_owned());
        }
        let to = match to {
            Some(to) if !self.plan.members.contains(&to) => {
                return Err(format!("{to} is no member; members are {}", self.plan.members.join(", ")));
            }
            Some(to) if to == state.master && state.phase == Phase::Done => {
                return Err(format!("{to} is the master already"));
            }
            Some(to) if kind == IntentKind::Force && !self.speaks(&to) => {
                return Err(format!("{to} cannot be promoted: no agent speaks for it"));
            }
            Some(to) => to,
            None => self.best_other(&state, kind)?,
        };
        if kind == IntentKind::Switchover {
            if state.phase != Phase::Done || self.know.lock.seen.is_none() {
                return Err("the shard has no master that could hand over".to_owned());
            }
            self.check_target(&state, &to)?;
        }
        self.unheard = None;
        self.wish = Some((Intent { id, kind, to, by: self.plan.address.clone() }, self.now.at));
        Ok(())
    }

    /// Somebody holds the lock and works on becoming the master.
    fn is_changing(&self, state: &ShardState) -> bool {
        state.phase == Phase::Promoting && self.know.lock.seen.is_some()
    }

    /// The member that would be promoted, were the master not there.
    fn best_other(&self, state: &ShardState, kind: IntentKind) -> Result<String, String> {
        let (standings, mut verdicts) = self.standings(Some(state));
        for (standing, verdict) in standings.iter().zip(&mut verdicts) {
            let force = kind == IntentKind::Force && standing.node.is_some_and(|node| !node.loading);
            if standing.address == state.master {
                *verdict = Verdict::Out("it is the master".to_owned());
            } else if force {
                *verdict = Verdict::Eligible;
            }
        }
        let best = candidates::rank(&standings, &verdicts, false).first().copied();
        best.map(|i| standings[i].address.to_owned()).ok_or_else(|| {
            let why = standings.iter().zip(&verdicts).filter_map(|(standing, verdict)| match verdict {
                Verdict::Out(why) if standing.address != state.master => {
                    Some(format!("{}: {why}", standing.address))
                }
                _ => None,
            });
            format!("no member may be promoted: {}", why.collect::<Vec<_>>().join("; "))
        })
    }

    fn check_target(&self, state: &ShardState, to: &str) -> Result<(), String> {
        let (standings, verdicts) = self.standings(Some(state));
        let found = standings.iter().zip(&verdicts).find(|(standing, _)| standing.address == to);
        match found {
            Some((_, Verdict::Out(why))) => Err(format!("{to} may not be promoted: {why}")),
            Some((standing, _))
                if !standing.node.is_some_and(|node| node.link && node.master == state.master) =>
            {
                Err(format!("{to} may not be promoted: its link to {} is down", state.master))
            }
            Some(_) => Ok(()),
            None => Err(format!("{to} is no member")),
        }
    }

    /// Writes the wish into `state`, as soon as that can be.
    pub(super) fn carry_wish(&mut self) {
        let Some((wish, since)) = self.wish.clone() else { return };
        if !self.connected || !self.know.state.fresh || self.writing.is_some() {
            return;
        }
        let Some(state) = self.know.state().cloned() else { return self.wish = None };
        // It was written, and the answer to that lost.
        let ids = [
            state.intent.as_ref().map(|intent| &intent.id),
            state.handover.as_ref().map(|handover| &handover.id),
            state.outcome.as_ref().map(|outcome| &outcome.id),
        ];
        if ids.contains(&Some(&wish.id)) {
            return self.wish = None;
        }
        if self.now.at >= since + self.plan.timing.session {
            self.wish = None;
            return self.unheard(wish.id, "the registry was not reached in time".to_owned());
        }
        let waiting = state.intent.clone();
        let taken = waiting.as_ref().is_some_and(|intent| !wish.kind.overrides(intent, &state));
        if taken || self.is_changing(&state) {
            self.wish = None;
            return self.unheard(wish.id, "a change of the master is under way".to_owned());
        }
        let mut next = ShardState { intent: Some(wish), ..state };
        if let Some(plan) = waiting {
            let text = "a forced failover took its place".to_owned();
            next.outcome = Some(Outcome { id: plan.id, done: false, text, paused_ms: None });
        }
        self.put_state(Purpose::Wish, next);
    }

    /// A wish that never came into `state` is answered.
    pub(super) fn unheard(&mut self, id: String, why: String) {
        self.log(Level::Warn, format!("the wish came to nothing: {why}"));
        self.unheard = Some(Outcome { id, done: false, text: why, paused_ms: None });
    }

    // The master hands over

    pub(super) fn begin_handover(&mut self, state: &ShardState, intent: &Intent) {
        if intent.to == self.plan.address {
            return self.refuse(state, &intent.id, "it is the master already");
        }
        // Whether the target follows is judged by a look from after the wish: it may have come just now.
        match &self.heeded {
            Some((id, since)) if *id == intent.id && self.view_at >= *since && self.view.is_some() => {}
            Some((id, since)) if *id == intent.id && self.now.at >= *since + self.handover_limit() => {
                return self.refuse(state, &intent.id, "its server does not tell how far it is");
            }
            Some((id, _)) if *id == intent.id => return,
            _ => {
                self.heeded = Some((intent.id.clone(), self.now.at));
                return self.order(Order::Inspect);
            }
        }
        let attached =
            self.view.as_ref().and_then(|view| view.replicas.iter().find(|r| r.address == intent.to));
        let behind = self.view.as_ref().zip(attached).map(|(view, replica)| view.offset - replica.offset);
        let why = match (self.check_target(state, &intent.to), attached) {
            (Err(why), _) => Some(why),
            (Ok(()), None) => Some(format!("{} does not copy the master", intent.to)),
            (Ok(()), Some(replica)) if !replica.online => {
                Some(format!("{} takes a copy of the master", intent.to))
            }
            (Ok(()), Some(replica)) if !is_recent(replica) => {
                Some(format!("{} has acknowledged nothing for {} s", intent.to, replica.lag_s))
            }
            _ if behind.is_some_and(|bytes| bytes > i64::try_from(self.plan.max_lag).unwrap_or(i64::MAX)) => {
                Some(format!("{} is {} bytes behind", intent.to, behind.unwrap_or(0)))
            }
            _ => None,
        };
        // Not with a lease that is about to end; a short one is never longer than this.
        let enough = (self.plan.timing.order * 2).min(self.plan.timing.lease / 2);
        let time = self.lease_ends().is_some_and(|at| at > self.now.at + enough);
        match why {
            Some(why) => self.refuse(state, &intent.id, &why),
            None if !time => {}
            None => {
                self.say(Level::Warn, format!("it hands over to {}", intent.to));
                let text = format!("{} hands over to {}", self.plan.address, intent.to);
                self.fire("switchover", Severity::Info, &text);
                self.begun = self.now.at;
                self.paused_writes = Some((self.now.at, intent.id.clone()));
                self.enter(Stage::HandingOver(Handing::Pausing));
                // Its end comes by our word: neither our death nor a clock that jumps may let a write in.
                self.order(Order::Fence { long: FENCE_FOR });
            }
        }
    }

    pub(super) fn step_down(&mut self, intent: &Intent) {
        self.say(Level::Warn, format!("it steps down for {}, as an operator wants", intent.to));
        self.begun = self.now.at;
        self.enter(Stage::HandingOver(Handing::SteppingDown));
        self.order(Order::Fence { long: FENCE_FOR });
    }

    /// Answers a wish with a no.
    pub(super) fn refuse(&mut self, state: &ShardState, id: &str, why: &str) {
        self.log(Level::Warn, format!("the wish is refused: {why}"));
        let outcome = Outcome { id: id.to_owned(), done: false, text: why.to_owned(), paused_ms: None };
        let intent = state.intent.clone().filter(|intent| intent.id != id);
        self.put_state(Purpose::Answer, ShardState { intent, outcome: Some(outcome), ..state.clone() });
    }

    /// Nothing was handed over yet: it goes on as the master.
    pub(super) fn refuse_handover(&mut self, why: &str) {
        let Some(state) = self.know.state().cloned() else { return self.lose_lease("`state` is gone") };
        if state.master != self.plan.address || state.phase != Phase::Done {
            return self.lose_lease(&format!("`state` names {}", state.master));
        }
        let id = self.paused_writes.as_ref().map(|(_, id)| id.clone());
        self.goes_on_as_master(why);
        if let Some(intent) = state.intent.clone().filter(|intent| Some(&intent.id) == id.as_ref())
            && self.writing.is_none()
        {
            self.refuse(&state, &intent.id, why);
        }
    }

    pub(super) fn goes_on_as_master(&mut self, why: &str) {
        self.paused_writes = None;
        self.resolve("switchover", &format!("{} goes on as the master: {why}", self.plan.address));
        self.enter(Stage::Leading);
        self.let_writes_in();
    }

    pub(super) fn hand_over(&mut self, handing: Handing) {
        let Some((since, id)) = self.paused_writes.clone() else { return };
        if handing == Handing::Writing {
            return self.find_what_was_written(&id);
        }
        if handing == Handing::Measuring && self.now.at >= since + self.handover_limit() {
            return self.refuse_handover("its server does not tell how far it is");
        }
        if handing != Handing::Measuring || self.running.is_some() || self.view_at < since {
            return;
        }
        let (Some(view), Some(state)) = (self.view.clone(), self.know.state().cloned()) else { return };
        if !self.know.state.fresh || self.writing.is_some() {
            return;
        }
        let target = state.intent.as_ref().filter(|intent| intent.id == id).map(|intent| intent.to.clone());
        let Some(target) = target.filter(|_| state.master == self.plan.address && view.role == Role::Master)
        else {
            return self.refuse_handover("`state` was changed by another");
        };
        let next = ShardState {
            epoch: state.epoch + 1,
            master: target,
            phase: Phase::Promoting,
            replid: view.replid,
            replid2: view.replid2,
            offset: view.offset,
            keys: view.keys,
            solo: false,
            from: self.plan.address.clone(),
            since_ms: self.now.unix_ms,
            intent: None,
            handover: Some(Handover { id, offset: view.offset }),
            ..state
        };
        self.stage = Stage::HandingOver(Handing::Writing);
        self.put_state(Purpose::HandOver, next);
    }

    /// The handover was not written, or its answer is lost. A server of the registry that lags behind shows what was before:
    /// only a change of our own tells that it was not.
    fn find_what_was_written(&mut self, id: &str) {
        if !self.connected || self.writing.is_some() || !self.know.state.fresh || !self.may_retry() {
            return;
        }
        let Some(state) = self.know.state().cloned() else { return self.lose_lease("`state` is gone") };
        if self.handed_over_by_us(&state) {
            return self.handed_over();
        }
        if state.master != self.plan.address || state.phase != Phase::Done {
            return self.lose_lease(&format!("`state` names {}", state.master));
        }
        self.refuse(&state, id, NOT_WRITTEN);
    }

    pub(super) fn handed_over(&mut self) {
        self.enter(Stage::HandedOver { since: self.now.at });
        self.taken = false;
        self.drop_lock();
        self.renew_fence = Some(self.now.at + FENCE_FOR / 2);
    }

    /// The target leads, or we take our place again.
    pub(super) fn await_target(&mut self, since: Instant) {
        if self.life != Life::Up {
            return self.enter(Stage::Following);
        }
        if !self.connected || !self.know.state.fresh || self.writing.is_some() {
            return;
        }
        let Some(state) = self.know.state().cloned() else { return self.enter(Stage::Fenced) };
        if !self.handed_over_by_us(&state) {
            return self.follow_successor(&state);
        }
        let overdue = self.now.at >= since + self.handover_limit();
        if !self.know.lock.fresh || self.is_asked(&Asked::DropLock) || !self.may_retry() {
            return;
        }
        let mine = self.session.as_ref().map(|facts| facts.session);
        match self.know.lock.seen.as_ref().map(|seen| Some(seen.owner) == mine) {
            // An answer was lost: that to its giving the lock back, or that to its taking it again.
            Some(true) if overdue => {
                self.lock_is_ours();
                return self.enter(Stage::Claiming);
            }
            Some(true) => self.drop_lock(),
            None if overdue && !self.is_locking() => {
                self.say(
                    Level::Warn,
                    format!("{} did not take over: it takes its place again", state.master),
                );
                self.take_the_lock();
            }
            Some(false) | None => {}
        }
        if overdue {
            self.later();
        }
    }

    /// It is a replica of its successor now, and tells how long writes were paused.
    fn follow_successor(&mut self, state: &ShardState) {
        let target =
            split(&state.master).filter(|_| state.phase == Phase::Done && state.master != self.plan.address);
        self.enter(Stage::Following);
        let Some((host, port)) = target else { return };
        self.order(Order::Follow { host, port, drop_clients: true });
        self.resolve("switchover", &format!("{} is the master", state.master));
        let Some((since, id)) = self.paused_writes.take() else { return };
        let paused = self.now.at.saturating_duration_since(since).as_secs_f64() * 1000.0;
        if let Some(outcome) = state.outcome.clone().filter(|outcome| outcome.id == id) {
            let outcome = Outcome { paused_ms: Some(paused), ..outcome };
            self.put_state(Purpose::Answer, ShardState { outcome: Some(outcome), ..state.clone() });
        }
    }

    /// We hold the lock again: the target failed, and nobody leads.
    pub(super) fn take_back(&mut self, state: &ShardState) {
        let id = state.handover.as_ref().map(|handover| handover.id.clone()).unwrap_or_default();
        let text = format!(
            "{} did not take over in time: {} goes on as the master",
            state.master, self.plan.address
        );
        let next = ShardState {
            epoch: state.epoch + 1,
            master: self.plan.address.clone(),
            phase: Phase::Done,
            from: self.plan.address.clone(),
            handover: None,
            since_ms: self.now.unix_ms,
            outcome: Some(Outcome { id, done: false, text: text.clone(), paused_ms: None }),
            ..self.with_own_data(state)
        };
        self.why = super::Change::Return;
        self.resolve("switchover", &text);
        self.paused_writes = None;
        self.put_state(Purpose::TakeBack, next);
    }

    // It gives the shard up

    /// Rule 5: its own agent knows that its server takes no writes, so a successor need not wait.
    pub(super) fn release(&mut self) {
        if !self.connected || !self.know.state.fresh || self.writing.is_some() || !self.may_retry() {
            return;
        }
        let Some(state) = self.know.state().cloned() else { return self.released_now() };
        if state.master != self.plan.address || state.phase == Phase::Released || state.handover.is_some() {
            return self.released_now();
        }
        let released = self.released(&state);
        self.put_state(Purpose::Release, released);
    }

    pub(super) fn released(&self, state: &ShardState) -> ShardState {
        let (offset, keys) = self.last_figures.unwrap_or((state.offset, state.keys));
        let planned = state.intent.as_ref().filter(|intent| intent.kind == IntentKind::Switchover);
        let unanswered = planned.map(|intent| Outcome {
            id: intent.id.clone(),
            done: false,
            text: format!("{} gave the shard up before it could hand over", state.master),
            paused_ms: None,
        });
        ShardState {
            phase: Phase::Released,
            offset: offset.max(state.offset),
            keys: if state.keys > 0 { keys.max(1) } else { keys },
            since_ms: self.now.unix_ms,
            intent: state.intent.clone().filter(|intent| intent.kind == IntentKind::Force),
            handover: None,
            outcome: unanswered.or_else(|| state.outcome.clone()),
            // Of one that has led there are heirs, also where nothing else tells that it has.
            from: match state.phase {
                Phase::Done if state.from.is_empty() => state.master.clone(),
                _ => state.from.clone(),
            },
            ..state.clone()
        }
    }

    pub(super) fn released_now(&mut self) {
        if self.has_the_lock() {
            self.drop_lock();
        }
        self.enter(Stage::Following);
        self.next_look = self.now.at;
    }
}
