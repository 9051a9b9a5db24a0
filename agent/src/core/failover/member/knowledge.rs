//! What a member has read of its shard, and the requests by which it reads and changes it.

use std::collections::BTreeMap;

use log::Level;
use serde::de::DeserializeOwned;

use super::{
    Change, Member, Stage,
    pauses::{Pause, Scope},
};
use crate::{
    core::{
        alert::Severity,
        failover::{
            Agreement, Command, HistoryEntry, LockNode, MemberNode, Planted, RequestId, ShardPlan,
            ShardState,
            shard::{HISTORY_AT_MOST, VERSION, decode, encode},
        },
    },
    shell::registry::{Answer, Found, Mode, Node, Request, SessionFacts},
};

/// A node as it was read.
#[derive(Clone, Debug)]
pub(super) struct Seen<T> {
    /// `None`: it is not what it should be.
    pub(super) content: Option<T>,
    pub(super) version: i32,
    /// The session that it lives with; 0: persistent.
    pub(super) owner: i64,
}

/// A node, and whether that is how it is.
#[derive(Clone, Debug)]
pub(super) struct Slot<T> {
    pub(super) seen: Option<Seen<T>>,
    pub(super) fresh: bool,
    asked: bool,
    again: bool,
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Slot { seen: None, fresh: false, asked: false, again: false }
    }
}

impl<T: DeserializeOwned> Slot<T> {
    pub(super) fn take(&mut self, found: Option<Found>) {
        self.asked = false;
        self.fresh = !self.again;
        self.seen = found.map(|found| Seen {
            content: decode(&found.content),
            version: found.version,
            owner: found.owner,
        });
    }
}

impl<T> Slot<T> {
    pub(super) fn content(&self) -> Option<&T> {
        self.seen.as_ref().and_then(|seen| seen.content.as_ref())
    }

    /// Something stands there that cannot be read.
    pub(super) fn is_garbage(&self) -> bool {
        self.seen.as_ref().is_some_and(|seen| seen.content.is_none())
    }

    /// What was read is no longer certain.
    pub(super) fn doubt(&mut self) {
        self.fresh = false;
        self.again = self.asked;
    }

    /// It is not certain, and not read before [`Member::read_again`].
    fn hold(&mut self) {
        (self.fresh, self.asked, self.again) = (false, true, false);
    }

    /// A new connection: no answer of the old one comes.
    fn reset(&mut self) {
        (self.fresh, self.asked, self.again) = (false, false, false);
    }

    /// Whether it is to be read; then it counts as asked for.
    fn wants_reading(&mut self) -> bool {
        let wants = !self.fresh && !self.asked;
        if wants {
            (self.asked, self.again) = (true, false);
        }
        wants
    }

    /// We wrote it ourselves.
    fn wrote(&mut self, content: T, version: i32) {
        let owner = self.seen.as_ref().map_or(0, |seen| seen.owner);
        self.seen = Some(Seen { content: Some(content), version, owner });
    }
}

/// All that was read.
#[derive(Debug, Default)]
pub(super) struct Knowledge {
    pub(super) state: Slot<ShardState>,
    pub(super) lock: Slot<LockNode>,
    pub(super) config: Slot<Agreement>,
    pub(super) pause: Pause,
    /// The host's own pause.
    pub(super) host_pause: Pause,
    pub(super) history: Slot<Vec<HistoryEntry>>,
    pub(super) members: BTreeMap<String, Slot<MemberNode>>,
}

impl Knowledge {
    pub(super) fn new(plan: &ShardPlan) -> Knowledge {
        let mut know = Knowledge::default();
        know.members_are(plan);
        know
    }

    pub(super) fn members_are(&mut self, plan: &ShardPlan) {
        self.members.retain(|address, _| plan.members.contains(address));
        for address in &plan.members {
            self.members.entry(address.clone()).or_default();
        }
    }

    pub(super) fn state(&self) -> Option<&ShardState> {
        self.state.content()
    }

    /// Nothing is certain any more.
    pub(super) fn doubt(&mut self) {
        self.state.doubt();
        self.lock.doubt();
        self.config.doubt();
        self.pause.slot.doubt();
        self.host_pause.slot.doubt();
        self.history.doubt();
        self.members.values_mut().for_each(Slot::doubt);
    }

    fn reset(&mut self) {
        self.state.reset();
        self.lock.reset();
        self.config.reset();
        self.pause.slot.reset();
        self.host_pause.slot.reset();
        self.history.reset();
        self.members.values_mut().for_each(Slot::reset);
    }

    /// Whether all that a decision needs is known.
    pub(super) fn suffices(&self) -> bool {
        self.state.fresh
            && self.lock.fresh
            && self.config.fresh
            && self.pause.slot.fresh
            && self.members.values().all(|slot| slot.fresh)
    }
}

/// A request that is under way.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Asked {
    State,
    Lock,
    Config,
    Pause(Scope),
    History,
    Member(String),
    TakeLock,
    DropLock,
    PutState(Purpose, Box<ShardState>),
    PutConfig,
    PutHistory,
    PutPause(Scope),
}

/// Why `state` is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// `promoting`, by the lock's holder.
    Announce,
    /// `done`.
    Publish,
    /// The recorded master takes its place again.
    Return,
    /// `released`.
    Release,
    /// The master is alone from now on.
    Solo,
    /// It is alone no more, or its heirs are others.
    Settle,
    /// A wish is answered.
    Answer,
    /// A wish is put.
    Wish,
    /// The master hands over.
    HandOver,
    /// It takes its place again, for the target failed.
    TakeBack,
}

impl Member {
    // Reading

    pub(super) fn take_connected(&mut self) {
        self.connected = true;
        self.config_refused = None;
        self.returned = Some(self.now.at);
        self.asked.clear();
        self.writing = None;
        self.know.reset();
        (self.lock_gone, self.vacant, self.taken) = (None, None, true);
        if self.stage == Stage::Locking {
            // Nobody waits for the answer any more. If it is ours after all, its owner tells.
            self.enter(Stage::Following);
        }
        self.read_what_is_unknown();
    }

    pub(super) fn take_session(&mut self, facts: Option<SessionFacts>) {
        if let Some(facts) = &facts {
            if self.lock_session.is_some_and(|session| session != facts.session) {
                // The session in which we held the lock has ended.
                self.lock_session = None;
                self.lease_until = None;
            }
            if self.session.as_ref().is_some_and(|before| before.session != facts.session) {
                self.counted = None;
            }
            let before = self.session.as_ref().filter(|before| before.session == facts.session);
            let lease = |facts: &SessionFacts| self.plan.timing.lease(facts.timeout);
            // Another server may grant the same session less.
            if let Some(less) = before.and_then(|before| lease(before).checked_sub(lease(facts))) {
                self.lease_until = self.lease_until.and_then(|until| until.checked_sub(less));
            }
        }
        self.session = facts.or_else(|| self.session.take());
        self.tell_lease();
    }

    /// What was acknowledged counts once all is known that had happened by then: a session says nothing of a lock that was
    /// removed by hand, and the others wait from then on, not from its end.
    pub(super) fn count_acknowledged(&mut self) {
        let Some(facts) = self.session.as_ref() else { return };
        let (acknowledged, timeout) = (facts.acknowledged, facts.timeout);
        if acknowledged == self.counted {
            return;
        }
        self.counted = acknowledged;
        if let Some(sent) = acknowledged
            && self.lock_session.is_some_and(|session| self.sees_its_lock(session))
        {
            self.extend_lease(sent, timeout);
        }
    }

    fn sees_its_lock(&self, session: i64) -> bool {
        let lock = &self.know.lock;
        lock.fresh && lock.seen.as_ref().is_some_and(|seen| seen.owner == session)
    }

    fn tell_lease(&mut self) {
        let Some(timeout) = self.session.as_ref().map(|facts| facts.timeout) else { return };
        let short = !self.plan.timing.suffices(timeout);
        let seconds = timeout.as_secs_f64();
        if short {
            let text = format!(
                "the session timeout of {seconds} s that ZooKeeper grants leaves too short a lease: {} is not promoted",
                self.plan.address
            );
            self.fire("lease-short", Severity::Critical, &text);
        } else {
            self.resolve("lease-short", &format!("the session timeout of {seconds} s suffices"));
        }
    }

    /// Rule 2: the lease is counted from when the acknowledged request was sent.
    fn extend_lease(&mut self, sent: std::time::Instant, timeout: std::time::Duration) {
        let from = if self.planted == Some(Planted::LeaseFromReply) { self.now.at } else { sent };
        let until = from + self.plan.timing.lease(timeout);
        self.lease_until = Some(self.lease_until.map_or(until, |before| before.max(until)));
    }

    /// We hold the lock in the present session.
    pub(super) fn lock_is_ours(&mut self) {
        let Some(facts) = self.session.clone() else { return };
        if self.lock_session != Some(facts.session) {
            self.lock_session = Some(facts.session);
            self.lease_until = None;
        }
        if let Some(sent) = self.counted {
            self.extend_lease(sent, facts.timeout);
        }
    }

    pub(super) fn read_what_is_unknown(&mut self) {
        let mut reads = Vec::new();
        let know = &mut self.know;
        let mut add = |wants: bool, asked: Asked| {
            if wants {
                reads.push(asked);
            }
        };
        add(know.state.wants_reading(), Asked::State);
        add(know.lock.wants_reading(), Asked::Lock);
        add(know.config.wants_reading(), Asked::Config);
        add(know.pause.slot.wants_reading(), Asked::Pause(Scope::Shard));
        add(know.host_pause.slot.wants_reading(), Asked::Pause(Scope::Host));
        add(know.history.wants_reading(), Asked::History);
        for (address, slot) in &mut know.members {
            add(slot.wants_reading(), Asked::Member(address.clone()));
        }
        for asked in reads {
            let path = self.path_of(&asked);
            self.request(asked, Request::Read { path });
        }
    }

    pub(super) fn path_of(&self, asked: &Asked) -> String {
        match asked {
            Asked::State | Asked::PutState(..) => self.plan.path("state"),
            Asked::Lock | Asked::TakeLock | Asked::DropLock => self.plan.path("lock"),
            Asked::Config | Asked::PutConfig => self.plan.path("config"),
            Asked::Pause(Scope::Shard) | Asked::PutPause(Scope::Shard) => self.plan.path("pause"),
            Asked::Pause(Scope::Host) | Asked::PutPause(Scope::Host) => self.host_pause_path(),
            Asked::History | Asked::PutHistory => self.plan.path("history"),
            Asked::Member(address) => self.plan.path(&format!("members/{address}")),
        }
    }

    /// `/redis/paused/<host>`, beside the shards.
    pub(super) fn host_pause_path(&self) -> String {
        let above = self.plan.root.rsplit_once('/').map_or("", |(above, _)| above);
        let host = super::split(&self.plan.address).map_or_else(String::new, |(host, _)| host);
        format!("{above}/paused/{host}")
    }

    pub(super) fn request(&mut self, asked: Asked, request: Request) {
        self.next_request += 1;
        let id = RequestId(self.next_request);
        self.asked.insert(id, asked);
        self.out.push(Command::Request(id, request));
    }

    pub(super) fn is_asked(&self, what: &Asked) -> bool {
        self.asked.values().any(|asked| asked == what)
    }

    pub(super) fn take_changed(&mut self, path: &str) {
        let shard = self.plan.path("");
        if path == self.host_pause_path() {
            self.know.host_pause.slot.doubt();
        } else {
            match path.strip_prefix(&shard) {
                Some("state") => self.know.state.doubt(),
                Some("lock") => {
                    // It was gone: somebody has come, and may be gone again.
                    if self.know.lock.fresh && self.know.lock.seen.is_none() && !self.is_locking() {
                        (self.taken, self.vacant) = (true, None);
                    }
                    self.know.lock.doubt();
                }
                Some("config") => self.know.config.doubt(),
                Some("pause") => self.know.pause.slot.doubt(),
                Some("history") => self.know.history.doubt(),
                Some(node) => {
                    let slot =
                        node.strip_prefix("members/").and_then(|address| self.know.members.get_mut(address));
                    if let Some(slot) = slot {
                        slot.doubt();
                    }
                }
                None => {}
            }
        }
        if self.connected {
            self.read_what_is_unknown();
        }
    }

    // Answers

    pub(super) fn take_answer(&mut self, request: RequestId, answer: Answer) {
        let Some(asked) = self.asked.remove(&request) else { return };
        if let Answer::Refused(why) = &answer {
            self.log(Level::Error, format!("the registry refuses {}: {why}", self.path_of(&asked)));
        }
        match (asked, answer) {
            (Asked::State, Answer::Node(found)) => self.take_state(found),
            (Asked::Lock, Answer::Node(found)) => self.take_lock(found),
            (Asked::Config, Answer::Node(found)) => {
                self.know.config.take(found);
                self.compare_config();
            }
            (Asked::Pause(scope), Answer::Node(found)) => self.pause_read(scope, found),
            (Asked::History, Answer::Node(found)) => self.know.history.take(found),
            (Asked::Member(address), Answer::Node(found)) => {
                if let Some(slot) = self.know.members.get_mut(&address) {
                    slot.take(found);
                }
            }
            (Asked::TakeLock, answer) => self.lock_answered(&answer),
            (Asked::DropLock, answer) => self.lock_dropped(&answer),
            (Asked::PutState(purpose, state), answer) => self.state_answered(purpose, *state, &answer),
            (Asked::PutConfig, Answer::Written(version)) => {
                self.know.config.wrote(self.ours.clone(), version);
            }
            // What is refused now is refused in a moment as well.
            (Asked::PutConfig, Answer::Refused(_)) => self.config_refused = Some(self.now.at),
            (Asked::PutConfig | Asked::PutHistory | Asked::PutPause(_), _) => {}
            // A reading that failed is repeated with the next connection, or the next beat.
            _ => self.reread = Some(self.now.at + self.plan.timing.beat),
        }
        if self.connected {
            self.read_what_is_unknown();
        }
    }

    /// What could not be read is asked for again.
    pub(super) fn read_again(&mut self) {
        if self.connected && self.reread.take_if(|at| *at <= self.now.at).is_some() {
            self.know.reset_unasked(&self.asked);
            self.read_what_is_unknown();
        }
    }

    fn take_state(&mut self, found: Option<Found>) {
        let epoch = self.know.state().map(|state| state.epoch);
        self.know.state.take(found);
        // Whoever changed it had the lock, however short.
        if self.know.state().map(|state| state.epoch) != epoch {
            self.vacant = self.vacant.map(|_| self.now.at);
        }
    }

    fn take_lock(&mut self, found: Option<Found>) {
        self.know.lock.take(found);
        let owner = self.know.lock.seen.as_ref().map(|seen| seen.owner);
        let mine = self.session.as_ref().map(|facts| facts.session);
        match owner {
            None => {
                self.lock_gone.get_or_insert(self.now.at);
            }
            Some(_) => self.lock_gone = None,
        }
        if owner.is_some() && owner != mine {
            (self.vacant, self.taken) = (None, true);
        } else {
            self.vacant.get_or_insert(self.now.at);
        }
        if owner.is_some() && owner == mine {
            // Not by an answer from before it changed.
            if self.know.lock.fresh {
                self.lock_is_ours();
            }
        } else if owner.is_some() || !(self.stage.needs_lease() || self.is_asked(&Asked::TakeLock)) {
            self.lock_session = None;
        }
    }

    fn state_answered(&mut self, purpose: Purpose, state: ShardState, answer: &Answer) {
        self.writing = None;
        match answer {
            Answer::Written(_) | Answer::Created => {
                let version = if let Answer::Written(version) = answer { *version } else { 0 };
                self.know.state.wrote(state, version);
                self.change_taken("state");
                self.state_written(purpose);
            }
            Answer::Refused(why) => {
                // What is refused now is refused in a moment as well: nobody is to ask at the registry's own pace.
                self.know.state.hold();
                self.reread = Some(self.now.at + self.plan.timing.beat);
                if let Some((wish, _)) = self.wish.take_if(|_| purpose == Purpose::Wish) {
                    self.unheard(wish.id, format!("the registry refuses it: {why}"));
                } else {
                    self.change_refused("state", why);
                }
                self.state_not_written(purpose, answer);
            }
            _ => {
                // Whose change won, or whether ours did, only a look can tell.
                self.know.state.doubt();
                self.state_not_written(purpose, answer);
            }
        }
    }

    /// What is refused now is refused in a moment as well: `lock` is looked at again a beat later.
    pub(super) fn lock_refused(&mut self, why: &str) {
        self.know.lock.hold();
        self.reread = Some(self.now.at + self.plan.timing.beat);
        self.change_refused("lock", why);
    }

    fn change_refused(&mut self, node: &'static str, why: &str) {
        self.refused.insert(node);
        let text = format!("the registry refuses what {} does to `{node}`: {why}", self.plan.address);
        self.fire("shard-refused", Severity::Critical, &text);
    }

    /// A change was made, or is needed no more.
    pub(super) fn change_taken(&mut self, node: &'static str) {
        if self.refused.remove(node) && self.refused.is_empty() {
            self.resolve("shard-refused", "the registry refuses nothing of the shard any more");
        }
    }

    // Changing

    /// Changes `state` where it is as we know it: this comparison is the guard against two masters.
    pub(super) fn put_state(&mut self, purpose: Purpose, state: ShardState) {
        self.writing = Some(purpose);
        let path = self.plan.path("state");
        let content = encode(&state);
        let request = match &self.know.state.seen {
            None => Request::Create { path, node: Node { mode: Mode::Persistent, content } },
            Some(_) if self.planted == Some(Planted::SkipVersionCheck) => {
                Request::Write { path, content, version: -1 }
            }
            Some(seen) => Request::Write { path, content, version: seen.version },
        };
        self.request(Asked::PutState(purpose, Box::new(state)), request);
    }

    pub(super) fn take_the_lock(&mut self) {
        let epoch = self.know.state().map_or(1, |state| state.epoch + 1);
        let lock = LockNode {
            v: VERSION,
            address: self.plan.address.clone(),
            host_id: self.plan.host_id.clone(),
            nonce: self.plan.nonce.clone(),
            epoch,
        };
        let node = Node { mode: Mode::Ephemeral, content: encode(&lock) };
        let path = self.plan.path("lock");
        self.request(Asked::TakeLock, Request::Create { path, node });
    }

    /// By what it believes, or by what stands there.
    pub(super) fn has_the_lock(&self) -> bool {
        let owner = self.know.lock.seen.as_ref().map(|seen| seen.owner);
        let session = self.session.as_ref().map(|facts| facts.session);
        self.lock_session.is_some() || owner.is_some() && owner == session
    }

    /// Gives the lock back, or removes that of our own past.
    pub(super) fn drop_lock(&mut self) {
        self.lock_session = None;
        self.lease_until = None;
        let path = self.plan.path("lock");
        self.know.lock.doubt();
        self.request(Asked::DropLock, Request::Delete { path, version: -1 });
    }

    fn lock_dropped(&mut self, answer: &Answer) {
        match answer {
            Answer::Refused(why) => return self.lock_refused(why),
            Answer::Deleted => {
                self.know.lock.seen = None;
                self.lock_gone = Some(self.now.at);
                self.vacant.get_or_insert(self.now.at);
                self.change_taken("lock");
            }
            _ => {}
        }
        self.know.lock.doubt();
    }

    /// The leader's configuration is the shard's.
    pub(super) fn write_config(&mut self) {
        let slot = &self.know.config;
        let refused = self.config_refused.is_some_and(|at| self.now.at < at + self.plan.timing.session);
        let as_it_should_be = slot.content() == Some(&self.ours) || refused;
        if !slot.fresh || as_it_should_be || self.is_asked(&Asked::PutConfig) {
            return;
        }
        let (path, content) = (self.plan.path("config"), encode(&self.ours.config));
        let request = match &slot.seen {
            None => Request::Create { path, node: Node { mode: Mode::Persistent, content } },
            Some(seen) => Request::Write { path, content, version: seen.version },
        };
        self.request(Asked::PutConfig, request);
    }

    /// Adds a change to the history. It is for people: where it cannot be written it is missing.
    pub(super) fn write_history(&mut self, paused_ms: Option<f64>, lost_bytes: Option<u64>) {
        let Some(state) = self.know.state() else { return };
        let took = self.now.at.saturating_duration_since(self.begun);
        let entry = HistoryEntry {
            at_ms: self.now.unix_ms,
            epoch: state.epoch,
            from: state.from.clone(),
            to: state.master.clone(),
            why: self.why,
            took_ms: if self.why == Change::Return { 0.0 } else { took.as_secs_f64() * 1000.0 },
            lost_bytes,
            paused_ms,
        };
        let mut entries = self.know.history.content().cloned().unwrap_or_default();
        entries.push(entry);
        let surplus = entries.len().saturating_sub(HISTORY_AT_MOST);
        entries.drain(..surplus);
        let (path, content) = (self.plan.path("history"), encode(&entries));
        let request = match &self.know.history.seen {
            None => Request::Create { path, node: Node { mode: Mode::Persistent, content } },
            Some(seen) => Request::Write { path, content, version: seen.version },
        };
        self.request(Asked::PutHistory, request);
    }

    /// The former master has said how long writes were paused: the history's last change has it as well.
    pub(super) fn complete_history(&mut self, state: &ShardState) {
        let paused = state.outcome.as_ref().and_then(|outcome| outcome.paused_ms);
        let Some(seen) = self.know.history.seen.as_ref().filter(|_| self.know.history.fresh) else { return };
        let Some(mut entries) = seen.content.clone() else { return };
        let last =
            entries.last_mut().filter(|last| last.epoch == state.epoch && last.why == Change::Switchover);
        let Some(last) = last.filter(|last| last.paused_ms.is_none() && paused.is_some()) else { return };
        last.paused_ms = paused;
        if !self.is_asked(&Asked::PutHistory) {
            let (path, content, version) = (self.plan.path("history"), encode(&entries), seen.version);
            self.request(Asked::PutHistory, Request::Write { path, content, version });
        }
    }

    /// Whether something was made known that should let us go on.
    pub(super) fn is_informed(&self) -> bool {
        self.connected && self.know.suffices() && self.writing.is_none() && !self.know.state.is_garbage()
    }

    /// What was asked for while a stage worked on `state` is done by the stage itself.
    pub(super) fn write_again(&mut self) {
        if !self.is_informed() || !self.may_retry() {
            return;
        }
        match self.stage {
            // Whether our change was made is plain from what stands there now.
            Stage::Announcing => self.stage = Stage::Claiming,
            Stage::Publishing => self.publish_master(),
            _ => {}
        }
    }
}

impl Knowledge {
    /// Those for which no request is under way any more are asked for again.
    fn reset_unasked(&mut self, asked: &BTreeMap<RequestId, Asked>) {
        let under_way = |what: &Asked| asked.values().any(|a| a == what);
        let Knowledge { state, lock, config, pause, host_pause, history, members, .. } = self;
        if !under_way(&Asked::State) {
            state.asked = false;
        }
        if !under_way(&Asked::Lock) {
            lock.asked = false;
        }
        if !under_way(&Asked::Config) {
            config.asked = false;
        }
        if !under_way(&Asked::Pause(Scope::Shard)) {
            pause.slot.asked = false;
        }
        if !under_way(&Asked::Pause(Scope::Host)) {
            host_pause.slot.asked = false;
        }
        if !under_way(&Asked::History) {
            history.asked = false;
        }
        for (address, slot) in members {
            if !under_way(&Asked::Member(address.clone())) {
                slot.asked = false;
            }
        }
    }
}
