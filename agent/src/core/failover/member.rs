//! A member's states: an enum, one function a state.
//!
//! `knowledge` is what it has read of the shard, `election` how it comes to stand for master, `promotion` how it becomes
//! one, `leading` what it does while it is one, `switchover` how it hands over and steps down, `fencing` its lease,
//! `orders` what it tells its server to do and sees of it, `pauses` what an operator wants left alone, `report` what it
//! tells people.
//!
//! The rules named in comments are those of `docs/failover.md`.

mod election;
mod fencing;
mod knowledge;
mod leading;
mod orders;
mod pauses;
mod promotion;
mod report;
mod switchover;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    mem,
    time::{Duration, Instant},
};

use log::Level;

use super::{
    Agreement, Command, FENCE_FOR, Input, Intent, Life, MemberNode, NOWHERE, Order, Ordered, Outcome, Phase,
    RequestId, Role, ShardPlan, ShardState, Timing, View, Wish,
    shard::{Change, FIRST_ROUND, VERSION, encode},
};
use crate::{
    core::{Now, alert::Severity},
    shell::registry::SessionFacts,
};
use knowledge::{Asked, Knowledge, Purpose};
use pauses::Scope;
pub use report::{MemberReport, ShardReport};

/// Candidates that know of one another let their offsets arrive, after a release.
const SETTLE: Duration = Duration::from_millis(30);
/// How long a replica may be away from its master, or behind it, before it is no heir any more: what is lost of a crash
/// is no older. Also how long the siblings of a new master may take to follow it.
const HEIRS_FOR: Duration = Duration::from_secs(5);

/// Bugs planted on purpose, for the simulation to show that it finds them. Never set outside tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// `state` is changed whatever its version.
    SkipVersionCheck,
    /// A successor publishes before it has waited for W.
    PublishBeforeWithdrawal,
    /// The lease is counted from when the answer came.
    LeaseFromReply,
    /// A master that died is started as a master, empty: [`Member::start_as`] names no host then.
    RestartMasterEmpty,
    /// A master that lost its replicas takes writes without recording that it is alone.
    ForgetSolo,
}

/// What a member is doing.
#[derive(Clone, Debug, PartialEq)]
enum Stage {
    /// It is not the master and not about to be: it follows, and holds back while there is no need for it.
    Following,
    /// It may be promoted and lets the others say how far they are.
    Standing {
        /// Since when.
        since: Instant,
    },
    /// `lock` is being taken.
    Locking,
    /// It holds the lock and reads `state` under it.
    Claiming,
    /// `promoting` is being written.
    Announcing,
    /// Its server is told to leave its master.
    Detaching,
    /// It waits until a former master that goes on without a registry must have seen it leave.
    Withdrawn {
        /// Until when.
        until: Instant,
    },
    /// Its server is told to be a master. Here is the point of no return: from now on it must be fenced, not left.
    Promoting,
    /// `done` is being written.
    Publishing,
    /// It is the master.
    Leading,
    /// It is the master and hands over by name.
    HandingOver(switchover::Handing),
    /// It has handed over and waits for the target.
    HandedOver {
        /// Since when.
        since: Instant,
    },
    /// Its server is no master any more, and it says so.
    Releasing,
    /// It lost its lease; its server is kept from taking writes.
    Fenced,
}

impl Stage {
    /// Its server may be a master, by our leave: it needs a lease.
    fn needs_lease(&self) -> bool {
        matches!(self, Stage::Promoting | Stage::Publishing | Stage::Leading | Stage::HandingOver(_))
    }

    /// It works on becoming the master and can still go back.
    fn is_before_the_point_of_no_return(&self) -> bool {
        matches!(
            self,
            Stage::Locking | Stage::Claiming | Stage::Announcing | Stage::Detaching | Stage::Withdrawn { .. }
        )
    }
}

/// One server of a shard, with what its agent knows and does about the shard.
#[derive(Debug)]
pub struct Member {
    plan: ShardPlan,
    /// The plan's configuration.
    ours: Agreement,
    planted: Option<Planted>,
    now: Now,
    out: Vec<Command>,
    expected: Option<Instant>,
    stage: Stage,
    sentence: String,

    session: Option<SessionFacts>,
    /// What of its acknowledgements counts: all that happened before it is known.
    counted: Option<Instant>,
    connected: bool,
    /// When the connection came (back); whoever led before it was lost has the first claim for a session timeout.
    returned: Option<Instant>,
    know: Knowledge,
    asked: BTreeMap<RequestId, Asked>,
    next_request: u64,
    /// When the registry refused a change of `config`.
    config_refused: Option<Instant>,
    /// The other nodes of which it refused the last change.
    refused: BTreeSet<&'static str>,
    /// A change of `state` is under way.
    writing: Option<Purpose>,
    /// Since when nobody has been the master, as far as is known.
    leaderless: Option<Instant>,
    /// Since when there is no lock.
    lock_gone: Option<Instant>,
    /// Since when nobody else has held the lock, as far as is known.
    vacant: Option<Instant>,
    /// Somebody took the lock since it was handed over.
    taken: bool,

    /// The session in which we hold the lock.
    lock_session: Option<i64>,
    lease_until: Option<Instant>,
    /// Without a registry: until when all members are known to follow.
    failsafe_until: Option<Instant>,
    /// Since when each look has found that.
    unheard_since: Option<Instant>,
    /// An adopted server was found to be a master: how long it may be one before we know.
    grace_until: Option<Instant>,
    /// What the fencer was told last.
    fed: Option<Instant>,
    /// What it knows is not known: it is told even where it needs to know nothing.
    feed_anew: bool,
    fencer: bool,
    /// Since when its server has been without one.
    unarmed: Option<Instant>,
    /// The fencer acted since the last order was given.
    fenced_meanwhile: bool,
    /// Both clocks at the last step.
    clock: Now,
    /// When the wall clock was found to have been set back.
    set_back: Option<Instant>,
    /// When the fence must be renewed.
    renew_fence: Option<Instant>,

    life: Life,
    view: Option<View>,
    /// When the view was asked for.
    view_at: Instant,
    /// How far the data was, and when: one mark from [`HEIRS_FOR`] ago, and those after it.
    marks: VecDeque<(Instant, i64)>,
    /// The election in which it took an epoch, and how far its data was [`HEIRS_FOR`] before its master's stream ended.
    stood_from: Option<(u64, i64)>,
    /// When each of a master's replicas was last seen to keep up.
    kept_up: BTreeMap<String, Instant>,
    /// A master that tells nothing: since when, and its heirs then.
    blind: Option<(Instant, Vec<String>)>,
    /// When its server was last told whom to follow: what was seen before is of no use.
    turned: Option<Instant>,
    /// Since when it has wanted a whole copy of its master.
    wants_copy: Option<Instant>,
    asked_at: Instant,
    next_look: Instant,
    running: Option<Order>,
    queued: VecDeque<Order>,
    /// `min_replicas` as the server has it; `None`: not known.
    guard: Option<u32>,
    /// Why its server did not take the last order to allow writes.
    closed: Option<String>,
    /// Why its server did not take the last order to be made a master: others go first.
    reluctant: Option<String>,

    published: Option<MemberNode>,
    /// The election in which it says how far it is.
    round: u64,
    /// What this change of the master is, and when it began.
    why: Change,
    begun: Instant,
    /// When we became the master.
    led_since: Instant,
    /// When its heirs were still those of its predecessor, or of its agent's former run.
    heirs_since: Instant,
    /// The alerts that go on, with their summaries.
    alerts: BTreeMap<&'static str, String>,
    /// The bytes of the former master's history that are known to be lost.
    lost_bytes: Option<u64>,
    /// The former master takes no writes, and its own agent said so: no need to wait.
    free: bool,
    /// How far the data was when it was last seen, and its keys.
    last_figures: Option<(i64, u64)>,
    /// A wish that is to be written into `state`, and when it came.
    wish: Option<(Intent, Instant)>,
    /// What became of a wish that never came into `state`.
    unheard: Option<Outcome>,
    /// The wish for which our server is looked at, by its id, and since when.
    heeded: Option<(String, Instant)>,
    /// The wish, by its id, that could not be carried out although it stands.
    failed_wish: Option<String>,
    /// The handover that we declined, by its epoch.
    declined: Option<u64>,
    /// When we first saw the handover to us.
    offered: Option<(u64, Instant)>,
    /// When writes were paused for a switchover, and by which wish.
    paused_writes: Option<(Instant, String)>,
    /// A request of the stage failed: when it may be made again.
    retry: Option<Instant>,
    /// A reading failed: when it is done again.
    reread: Option<Instant>,
    /// What was left undone for lateness is done then.
    hurry: Option<Instant>,
}

impl Member {
    /// A member of which nothing is known yet.
    pub fn new(now: Now, plan: ShardPlan) -> Member {
        Member {
            know: Knowledge::new(&plan),
            ours: plan.config().into(),
            plan,
            planted: None,
            now,
            out: Vec::new(),
            expected: None,
            stage: Stage::Following,
            sentence: String::new(),
            session: None,
            counted: None,
            connected: false,
            returned: None,
            asked: BTreeMap::new(),
            next_request: 0,
            config_refused: None,
            refused: BTreeSet::new(),
            writing: None,
            leaderless: None,
            lock_gone: None,
            vacant: None,
            taken: false,
            lock_session: None,
            lease_until: None,
            failsafe_until: None,
            unheard_since: None,
            grace_until: None,
            fed: None,
            feed_anew: false,
            fencer: false,
            unarmed: None,
            fenced_meanwhile: false,
            clock: now,
            set_back: None,
            renew_fence: None,
            life: Life::Dead,
            view: None,
            view_at: now.at,
            marks: VecDeque::new(),
            stood_from: None,
            kept_up: BTreeMap::new(),
            blind: None,
            turned: None,
            wants_copy: None,
            asked_at: now.at,
            next_look: now.at,
            running: None,
            queued: VecDeque::new(),
            guard: None,
            closed: None,
            reluctant: None,
            published: None,
            round: 0,
            why: Change::First,
            begun: now.at,
            led_since: now.at,
            heirs_since: now.at,
            alerts: BTreeMap::new(),
            lost_bytes: None,
            free: false,
            last_figures: None,
            wish: None,
            unheard: None,
            heeded: None,
            failed_wish: None,
            declined: None,
            offered: None,
            paused_writes: None,
            retry: None,
            reread: None,
            hurry: None,
        }
    }

    /// Plants a bug.
    pub fn plant(&mut self, bug: Planted) {
        self.planted = Some(bug);
    }

    /// Takes what happened and says what to do, in this order.
    pub fn step(&mut self, now: Now, input: Input) -> Vec<Command> {
        // Rule 12: whoever comes late knows nothing and acts on nothing but its own fencing.
        let late = self.expected.is_some_and(|at| now.at > at + self.plan.timing.beat * 2);
        self.now = now;
        self.hurry = None;
        self.watch_clock();
        self.take(input);
        self.read_again();
        self.watch_lease();
        if late {
            self.view = None;
            self.next_look = now.at;
            self.hurry = Some(now.at + self.plan.timing.beat / 16);
        } else {
            self.decide();
        }
        self.look();
        self.feed();
        self.publish();
        self.expected = self.next_deadline();
        mem::take(&mut self.out)
    }

    /// A wish of an operator. What comes of it is told by the shard's `outcome`, except for pauses.
    ///
    /// # Errors
    /// Why it is refused, in a sentence.
    pub fn wish(&mut self, now: Now, wish: Wish) -> Result<Vec<Command>, String> {
        self.now = now;
        self.accept_wish(wish)?;
        self.watch_lease();
        self.decide();
        self.look();
        self.feed();
        self.publish();
        self.expected = self.next_deadline();
        Ok(mem::take(&mut self.out))
    }

    /// Whether it has nothing left to give back: a member that is no longer wanted may be dropped then.
    pub fn holds_nothing(&self) -> bool {
        let idle =
            self.stage == Stage::Following && self.writing.is_none() && !self.is_asked(&Asked::DropLock);
        idle && !self.has_the_lock() && self.know.lock.fresh
    }

    /// Whether [`Member::step`] wants an [`Input::Tick`], when all that happened is in.
    pub fn is_due(&self, now: Instant) -> bool {
        let acknowledged = self.session.as_ref().and_then(|facts| facts.acknowledged);
        acknowledged != self.counted || self.next_deadline().is_some_and(|at| at <= now)
    }

    /// When [`Member::step`] wants an [`Input::Tick`] although nothing happened.
    pub fn next_deadline(&self) -> Option<Instant> {
        let stage = match &self.stage {
            Stage::Standing { since } => Some(self.turn(*since)),
            Stage::Withdrawn { until } => Some(*until),
            Stage::HandedOver { since } => Some(*since + self.handover_limit()),
            Stage::Following => self.held_back_until(),
            _ => None,
        };
        let lease =
            (self.stage.needs_lease() || self.grace_until.is_some()).then(|| self.lease_ends()).flatten();
        let look = (self.life == Life::Up && self.running.is_none()).then(|| self.look_at());
        let others = [
            self.renew_fence,
            self.retry,
            self.reread,
            self.hurry,
            self.pause_ends(Scope::Shard),
            self.pause_ends(Scope::Host),
        ];
        // What is over was dealt with, as far as it could be.
        [stage, lease, look].into_iter().chain(others).flatten().filter(|at| *at > self.now.at).min()
    }

    /// As whose replica its server is to be started now: `host` and `port`. Never as a master.
    pub fn start_as(&self) -> (String, u16) {
        let nowhere = (NOWHERE.0.to_owned(), NOWHERE.1);
        if self.planted == Some(Planted::RestartMasterEmpty) && self.stage == Stage::Leading {
            return (String::new(), 0);
        }
        let state = self.know.state().filter(|state| state.phase == Phase::Done);
        match state
            .filter(|state| state.master != self.plan.address && self.plan.members.contains(&state.master))
        {
            Some(state) => split(&state.master).unwrap_or(nowhere),
            None => nowhere,
        }
    }

    /// Its server's role as last seen.
    pub fn role(&self) -> Role {
        self.view.as_ref().map_or(Role::Unknown, |view| view.role)
    }

    /// The server's life as last told.
    pub fn life(&self) -> Life {
        self.life
    }

    /// What it was told of its shard.
    pub fn plan(&self) -> &ShardPlan {
        &self.plan
    }

    /// Whether a node is one that it reads.
    pub fn concerns(&self, path: &str) -> bool {
        path.starts_with(&self.plan.path("")) || path == self.host_pause_path()
    }

    /// The path of the node that [`Command::Publish`] is about.
    pub fn node_path(&self) -> String {
        self.plan.path(&format!("members/{}", self.plan.address))
    }

    // What happened

    fn take(&mut self, input: Input) {
        match input {
            Input::Tick => self.count_acknowledged(),
            Input::Session(facts) => self.take_session(facts),
            Input::Connected => self.take_connected(),
            Input::Lost => {
                self.connected = false;
                self.know.doubt();
            }
            Input::Changed { path } => self.take_changed(&path),
            Input::Answered { request, answer } => self.take_answer(request, answer),
            Input::Server(life) => self.take_life(life),
            Input::Ordered(ordered) => self.take_ordered(ordered),
            Input::Fencer(there) => self.take_fencer(there),
            // Whether its server takes writes is not known.
            Input::Fenced => (self.guard, self.fenced_meanwhile) = (None, true),
            Input::Wish(wish) => {
                if let Err(why) = self.accept_wish(wish) {
                    self.log(Level::Warn, format!("the wish is refused: {why}"));
                }
            }
            Input::Plan(plan) => self.take_plan(*plan),
        }
    }

    fn take_plan(&mut self, plan: ShardPlan) {
        if plan.id() == self.plan.id() && plan.address == self.plan.address {
            self.know.members_are(&plan);
            self.ours = plan.config().into();
            self.plan = plan;
            self.config_refused = None;
            self.compare_config();
            if self.connected {
                self.read_what_is_unknown();
            }
            return;
        }
        // Another shard. Members of the old one that were not told yet would promote another master beside a server that
        // may take writes if they found its lock free: that goes with the session.
        if self.has_the_lock() && self.role() == Role::Replica && !self.stage.needs_lease() {
            self.drop_lock();
        }
        let mut new = Member::new(self.now, plan);
        (new.session, new.connected, new.fencer) = (self.session.clone(), self.connected, self.fencer);
        // It is answered whatever became of the shard.
        (new.running, new.asked_at) = (self.running.take(), self.asked_at);
        new.counted = self.counted;
        (new.life, new.next_request, new.planted) = (self.life, self.next_request, self.planted);
        new.out = mem::take(&mut self.out);
        new.grace_until = self.lease_ends();
        *self = new;
        if self.connected {
            self.take_connected();
        }
    }

    fn take_life(&mut self, life: Life) {
        self.life = life;
        match life {
            Life::Started => {}
            Life::Up => {
                self.next_look = self.now.at;
                self.unarmed = (!self.fencer).then_some(self.now.at);
            }
            Life::Dead => self.take_death(),
        }
    }

    fn take_death(&mut self) {
        self.view = None;
        self.guard = None;
        self.closed = None;
        self.queued.clear();
        self.renew_fence = None;
        self.grace_until = None;
        if self.planted == Some(Planted::RestartMasterEmpty) && self.stage == Stage::Leading {
            return;
        }
        match &self.stage {
            // Its death is known: a successor need not wait.
            Stage::Leading | Stage::Promoting | Stage::Publishing | Stage::HandingOver(_) => {
                self.begun = self.now.at;
                self.say(Level::Warn, "its server died: it gives the shard up".to_owned());
                self.enter(Stage::Releasing);
            }
            stage if stage.is_before_the_point_of_no_return() => {
                self.give_up("its server died".to_owned());
            }
            // It said that it leads, and took no writes: now that it is dead a successor need not wait either.
            Stage::Fenced => self.enter(Stage::Releasing),
            Stage::Standing { .. } => self.stage = Stage::Following,
            _ => {}
        }
    }

    fn take_fencer(&mut self, there: bool) {
        if self.fencer != there {
            self.fencer = there;
            self.unarmed = (!there).then_some(self.now.at);
            if there {
                self.resolve("fencer-down", &format!("a fencer stands by for {}", self.plan.address));
            } else if self.life == Life::Up {
                self.tell_unarmed();
            }
            // A new fencer knows of no lease, or of the last one; what the one before did is not known.
            self.fed = None;
            self.feed_anew = true;
            (self.guard, self.fenced_meanwhile) = (None, true);
        }
    }

    fn tell_unarmed(&mut self) {
        if self.plan.fencing {
            let text = format!("no fencer stands by for {}: it is not promoted", self.plan.address);
            self.fire("fencer-down", Severity::Warning, &text);
        }
    }

    // What it decides

    fn decide(&mut self) {
        // Each turn of this loop is a change of stage; more than a few at one moment are a mistake.
        for _ in 0..8 {
            let before = self.stage.clone();
            match self.stage.clone() {
                Stage::Following => self.follow(),
                Stage::Standing { since } => self.stand(since),
                Stage::Locking => {}
                Stage::Claiming => self.claim(),
                Stage::Announcing | Stage::Publishing => self.write_again(),
                Stage::Detaching => self.detach(),
                Stage::Withdrawn { until } => self.wait_withdrawn(until),
                Stage::Promoting => self.confirm_promotion(),
                Stage::Leading => self.lead(),
                Stage::HandingOver(handing) => self.hand_over(handing),
                Stage::HandedOver { since } => self.await_target(since),
                Stage::Releasing => self.release(),
                Stage::Fenced => self.come_back(),
            }
            if self.stage == before {
                break;
            }
        }
        self.tell_no_master();
        self.carry_wish();
        self.end_pauses();
    }

    fn enter(&mut self, stage: Stage) {
        self.stage = stage;
        self.retry = None;
        // Whatever comes next wants to be seen soon.
        self.next_look = self.next_look.min(self.now.at + self.plan.timing.beat);
    }

    /// Tries the stage again a beat later: a request failed.
    fn later(&mut self) {
        self.retry = Some(self.now.at + self.plan.timing.beat);
    }

    /// Whether it is time to do again what failed.
    fn may_retry(&mut self) -> bool {
        match self.retry {
            Some(at) if self.now.at < at => false,
            _ => {
                self.retry = None;
                true
            }
        }
    }

    /// Goes back from before the point of no return: nothing has happened to the data.
    fn give_up(&mut self, why: String) {
        self.say(Level::Warn, format!("not promoted: {why}"));
        if self.has_the_lock() {
            self.drop_lock();
        }
        if self.is_offered() {
            self.declined = self.know.state().map(|state| state.epoch);
        }
        self.enter(Stage::Following);
        self.later();
    }

    // What it tells

    /// That nobody leads for long is told by whoever sees it.
    fn tell_no_master(&mut self) {
        if !self.know.lock.fresh || !self.know.state.fresh {
            return;
        }
        let published = self.know.state().is_some_and(|state| state.phase == Phase::Done);
        let holder = self.know.lock.content().map(|lock| &lock.address);
        if published && holder.is_some() && holder == self.know.state().map(|state| &state.master) {
            self.leaderless = None;
            return self.resolve("shard-no-master", "there is a master");
        }
        let long = self.plan.timing.session * 2;
        if self.now.at >= *self.leaderless.get_or_insert(self.now.at) + long {
            let text = format!("nobody has been the master for {} s", long.as_secs());
            self.fire("shard-no-master", Severity::Critical, &text);
        }
    }

    /// Notes a decision; it is logged when it differs from the last one.
    fn say(&mut self, level: Level, sentence: String) {
        if self.sentence != sentence {
            let text = format!("shard {}: {}: {sentence}", self.plan.id(), self.plan.address);
            self.out.push(Command::Log(level, text));
            self.sentence = sentence;
        }
    }

    fn log(&mut self, level: Level, text: String) {
        let text = format!("shard {}: {}: {text}", self.plan.id(), self.plan.address);
        self.out.push(Command::Log(level, text));
    }

    fn fire(&mut self, what: &'static str, severity: Severity, text: &str) {
        if self.alerts.get(what).is_none_or(|told| told != text) {
            self.alerts.insert(what, text.to_owned());
            let summary = format!("shard {}: {text}", self.plan.id());
            self.out.push(Command::Fire { what, severity, summary });
        }
    }

    fn resolve(&mut self, what: &'static str, text: &str) {
        if self.alerts.remove(what).is_some() {
            let summary = format!("shard {}: {text}", self.plan.id());
            self.out.push(Command::Resolve { what, summary });
        }
    }

    /// Its own node, as it is now.
    fn node(&self) -> MemberNode {
        let view = self.view.clone().unwrap_or_default();
        let known = self.view.is_some();
        MemberNode {
            v: VERSION,
            address: self.plan.address.clone(),
            host_id: self.plan.host_id.clone(),
            nonce: self.plan.nonce.clone(),
            role: view.role,
            master: view.master.unwrap_or_default(),
            link: view.link_up,
            syncing: view.syncing,
            loading: view.loading || !known,
            replid: view.replid,
            replid2: view.replid2,
            offset: view.offset,
            keys: view.keys,
            priority: view.priority,
            config: self.ours.hash.clone(),
            fencer: self.fencer,
            lease: self.session.as_ref().is_some_and(|facts| self.plan.timing.suffices(facts.timeout)),
            paused: self.is_paused(Scope::Host),
            round: self.round,
            version: view.version,
        }
    }

    /// Publishes its node where its meaning changed, or a master is to be chosen.
    fn publish(&mut self) {
        let node = self.node();
        // Between two looks nothing new is known.
        if self.view.is_none() && self.life == Life::Up && self.running.is_some() && self.published.is_some()
        {
            return;
        }
        if !self.published.as_ref().is_some_and(|last| last.means(&node)) {
            self.out.push(Command::Publish(encode(&node)));
            self.published = Some(node);
        }
    }
}

/// An address as host and port.
fn split(address: &str) -> Option<(String, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    Some((host.to_owned(), port.parse().ok()?))
}

#[cfg(test)]
mod tests;
