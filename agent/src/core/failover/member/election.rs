//! Following, and how a member comes to stand for master.

use std::time::{Duration, Instant};

use log::Level;

use super::{
    Agreement, Asked, Change, FIRST_ROUND, Life, Member, MemberNode, NOWHERE, Order, Ordered, Phase, Purpose,
    Role, SETTLE, Scope, ShardState, Stage, View, Wish, split,
};
use crate::core::{
    alert::Severity,
    failover::{Intent, IntentKind, Standing, Verdict, candidates},
};

/// A whole copy begins within this: a master waits 5 s for more replicas that want one, where it is left to.
const COPY_BEGINS: Duration = Duration::from_secs(8);
/// How many times a late candidate holds back what the best one needs.
const HOLD_BACK: u32 = 2;

impl Member {
    // Following

    pub(super) fn follow(&mut self) {
        // The answer to its giving the lock back was lost, and it has no server to lead with.
        let useless = self.has_the_lock() && self.life == Life::Dead;
        if useless && self.connected && self.know.lock.fresh && !self.is_asked(&Asked::DropLock) {
            self.drop_lock();
        }
        self.state_that_it_does_not_lead();
        if !self.is_informed() || self.life != Life::Up || self.view.is_none() {
            return;
        }
        if self.know.state.is_garbage() {
            return self.say(Level::Error, "`state` cannot be read: nothing is done".to_owned());
        }
        // A pause is no reason to lose the place that it has.
        if self.is_paused(Scope::Shard) && !self.is_at_its_place() {
            return self.say(Level::Info, "paused by an operator".to_owned());
        }
        let session = self.session.as_ref().map(|facts| facts.session);
        match self.know.lock.seen.as_ref().map(|seen| seen.owner) {
            Some(owner) if self.lock_session.is_some() || Some(owner) == session => {
                // Kept or given back: nobody else can use it as long as it stands.
                self.lock_is_ours();
                self.enter(Stage::Claiming);
            }
            // Others know by its node that it lives, see `rival_until`.
            Some(_) if self.lock_is_of_our_past() && !self.is_present() => {
                self.say(Level::Info, "its node is not in ZooKeeper yet".to_owned());
            }
            Some(_) if self.lock_is_of_our_past() => {
                self.say(Level::Info, "it takes over the lock of its agent's former run".to_owned());
                self.drop_lock();
            }
            Some(_) => self.obey(),
            None => self.consider(),
        }
    }

    /// Whoever stands for master need not wait for it, see `rival_until`: its server is dead, or a replica.
    fn state_that_it_does_not_lead(&mut self) {
        let vacant = self.connected && self.know.lock.fresh && self.know.lock.seen.is_none();
        let certain = self.life == Life::Dead || self.role() == Role::Replica;
        if let Some(state) = self.know.state().filter(|_| vacant && certain && self.know.state.fresh)
            && (state.master == self.plan.address || self.handed_over_by_us(state))
            && state.phase != Phase::Released
        {
            self.round = state.next_round();
        }
    }

    /// Somebody leads: its server is to follow.
    fn obey(&mut self) {
        let Some(state) = self.know.state().cloned() else { return };
        let holder = self.know.lock.content().map(|lock| lock.address.clone()).unwrap_or_default();
        // What it said for this election counts until that is decided: the holder may be the only one left by it, and chooses
        // its heirs by it.
        let undecided = state.phase != Phase::Done && state.is_of_round(self.round);
        // The recorded master has the lock: there is no election.
        let led = state.phase == Phase::Done && state.master == holder;
        if led || self.round != state.next_round() && !undecided {
            self.round = 0;
        }
        if state.phase != Phase::Done {
            return self.say(Level::Info, format!("{holder} is being made the master"));
        }
        if state.master == self.plan.address {
            return self.say(Level::Info, format!("it is the recorded master, but {holder} holds the lock"));
        }
        for over in ["shard-no-candidate", "failover", "shard-solo", "switchover"] {
            self.resolve(over, "another master stands");
        }
        for node in ["state", "lock"] {
            self.change_taken(node);
        }
        let Some(view) = self.view.clone() else { return };
        if view.role == Role::Replica && view.master.as_deref() == Some(&*state.master) {
            self.let_stream_in();
            self.resolve("shard-rogue", &format!("{} follows {}", self.plan.address, state.master));
            return self.say(Level::Info, format!("it follows {}", state.master));
        }
        self.repair(&state, view.role, &view.replid);
    }

    /// A pause from when it was a master, or from its fencer, would hold the stream of its master up.
    fn let_stream_in(&mut self) {
        let order = Order::Unfence { min_replicas: 0 };
        if self.guard != Some(0) && !self.is_ordered(&order) && self.may_retry() {
            self.order(order);
        }
    }

    /// Why a replica would take no writes as a master. One that is a master may be fenced, and is asked by nobody but its
    /// lease to take any.
    pub(super) fn refusal(&self) -> Option<String> {
        let why = self.closed.as_ref().filter(|_| self.role() == Role::Replica)?;
        Some(format!("its server does not take the order to allow writes: {why}"))
    }

    /// Rule 9: a rogue master is made a replica, a replica of the wrong master is pointed to the right one.
    fn repair(&mut self, state: &ShardState, role: Role, replid: &str) {
        if self.running.as_ref().is_some_and(|order| *order != Order::Inspect) || !self.may_retry() {
            return;
        }
        if self.turned.is_some_and(|turned| self.view_at < turned) {
            self.next_look = self.now.at;
            return;
        }
        // The shard's id and members were verified with its path: only who is in the list is ever followed.
        let Some((host, port)) = split(&state.master).filter(|_| self.plan.members.contains(&state.master))
        else {
            return self.say(Level::Error, format!("{} leads and is none of `peers`", state.master));
        };
        let shares = [&state.replid, &state.replid2].contains(&&replid.to_owned());
        if !shares && self.somebody_goes_first(state) {
            return self.say(Level::Info, "it waits for another member's resync to end".to_owned());
        }
        self.wants_copy = None;
        if role == Role::Master {
            self.say(
                Level::Warn,
                format!("it is a master although {} is: it is made its replica", state.master),
            );
            if state.from != self.plan.address {
                self.fire(
                    "shard-rogue",
                    Severity::Critical,
                    &format!("{} was a master although {} is", self.plan.address, state.master),
                );
            }
        } else {
            self.say(Level::Info, format!("it is told to follow {}", state.master));
        }
        let drop_clients = role == Role::Master;
        self.order(Order::Follow { host, port, drop_clients });
    }

    /// One whole copy at a time. Of several that need one the smallest address goes first, and those that were told to
    /// follow already; whoever does not begin in time is not waited for.
    fn somebody_goes_first(&mut self, state: &ShardState) -> bool {
        let nodes = self.know.members.iter().filter_map(|(address, slot)| Some((address, slot.content()?)));
        let others = nodes.filter(|(address, _)| **address != self.plan.address && **address != state.master);
        let waits = |node: &MemberNode| {
            !node.loading && !node.link && ![&state.replid, &state.replid2].contains(&&node.replid)
        };
        let (mut copies, mut ahead) = (false, false);
        for (address, node) in others {
            copies |= node.syncing;
            ahead |= waits(node) && (*address < self.plan.address || node.master == state.master);
        }
        if copies {
            self.wants_copy = None;
        }
        let since = *self.wants_copy.get_or_insert(self.now.at);
        copies || ahead && self.now.at < since + COPY_BEGINS
    }

    pub(super) fn followed(&mut self, ordered: &Ordered) {
        match (ordered, &self.stage) {
            (Ordered::Done(_), Stage::Detaching) => self.detached(),
            (Ordered::Done(_), _) => {
                self.turned = Some(self.now.at);
                self.wants_copy = None;
                // What paused it as a master would hold its master's stream up as well.
                self.order(Order::Unfence { min_replicas: 0 });
                self.order(Order::Inspect);
                self.no_master_any_more();
            }
            (Ordered::Failed(why), Stage::Detaching) => {
                self.note_reluctance(why);
                let why = format!("it cannot leave its master: {why}");
                self.give_up(why);
            }
            (Ordered::Unsupported, Stage::Detaching) => self.give_up("its engine cannot follow".to_owned()),
            (Ordered::Failed(why), _) => {
                let text = format!("it did not take the order to follow: {why}");
                self.say(Level::Warn, text);
                self.later();
            }
            (Ordered::Unsupported, _) => self.later(),
        }
    }

    fn no_master_any_more(&mut self) {
        self.grace_until = None;
        self.renew_fence = None;
        self.resolve("shard-fenced", "its former master follows");
    }

    /// Whether what its server does agrees with the shard, so that it need not look often.
    pub(super) fn is_settled(&self) -> bool {
        let (Some(view), Some(state)) = (&self.view, self.know.state()) else { return false };
        view.role == Role::Replica
            && view.link_up
            && !view.syncing
            && view.master.as_deref() == Some(&*state.master)
            && state.phase == Phase::Done
    }

    /// The lock is of an earlier run of this host's agent, or an earlier session of this run: nobody else can be behind
    /// it, for one agent runs at a time.
    fn lock_is_of_our_past(&self) -> bool {
        let ours = self
            .know
            .lock
            .content()
            .is_some_and(|lock| lock.host_id == self.plan.host_id && lock.address == self.plan.address);
        let owner = self.know.lock.seen.as_ref().map(|seen| seen.owner);
        ours && owner != self.session.as_ref().map(|facts| facts.session)
    }

    // Nobody leads

    /// There is no lock: may we have it?
    fn consider(&mut self) {
        if self.is_asked(&Asked::DropLock) || !self.may_retry() {
            return;
        }
        if !self.is_present() {
            return self.say(Level::Info, "its node is not in ZooKeeper yet".to_owned());
        }
        let state = self.know.state().cloned();
        if let Some(state) = &state {
            if self.is_offered() {
                return self.take_offer(state);
            }
            if self.is_recorded_master(state) {
                return self.claim_our_place(state);
            }
            if state.master == self.plan.address && state.phase == Phase::Done && self.role() == Role::Replica
            {
                // Its agent was not there to see it die.
                self.begun = self.now.at;
                let released = self.released(state);
                return self.put_state(Purpose::Release, released);
            }
        }
        if state.as_ref().is_some_and(|state| self.is_nobodys_master(state)) {
            return self.detach_rogue();
        }
        if let Some(until) = self.held_back_until().filter(|until| self.now.at < *until) {
            let left = until.saturating_duration_since(self.now.at).as_secs_f64();
            return self.say(Level::Info, self.why_held_back(left));
        }
        // A look from before the lock went says too little.
        if self.lock_gone.is_some_and(|gone| self.view_at < gone) {
            self.next_look = self.now.at;
            return;
        }
        self.begun = self.now.at;
        self.why = match &state {
            None => Change::First,
            Some(state) if self.is_forced_to_us(state) => Change::Force,
            Some(state) if state.phase == Phase::Released => Change::Death,
            Some(_) => Change::Silence,
        };
        self.round = self.next_round();
        // Its offset is said anew, even where it stood in this election before.
        self.published = None;
        self.enter(Stage::Standing { since: self.now.at });
    }

    /// Its server is a master that nobody made, or that was given up.
    fn is_nobodys_master(&self, state: &ShardState) -> bool {
        let former = state.phase == Phase::Promoting && state.from == self.plan.address;
        self.role() == Role::Master && state.master != self.plan.address && !former
    }

    /// Rule 9, where nobody leads whom it could follow.
    fn detach_rogue(&mut self) {
        self.say(Level::Warn, "it is a master that nobody made: it is made a replica of nobody".to_owned());
        let order = Order::Follow { host: NOWHERE.0.to_owned(), port: NOWHERE.1, drop_clients: true };
        if !self.is_ordered(&order) {
            self.order(order);
        }
    }

    fn is_at_its_place(&self) -> bool {
        let recorded = |state: &ShardState| state.master == self.plan.address && state.phase == Phase::Done;
        self.role() == Role::Master && self.know.state().is_some_and(recorded)
    }

    /// It is written down as the master, and its server is one or has all that it had.
    fn is_recorded_master(&self, state: &ShardState) -> bool {
        let Some(view) = &self.view else { return false };
        let reloaded = view.role == Role::Replica
            && !view.loading
            && view.keys > 0
            && view.replid == state.replid
            && view.offset >= state.offset
            && !self.has_heirs_present(state)
            && self.unfit(Some(state)).is_none();
        state.master == self.plan.address
            && state.phase == Phase::Done
            && (view.role == Role::Master || reloaded)
    }

    /// Another member that could be promoted is there: it has more than what was reloaded from a disk.
    fn has_heirs_present(&self, state: &ShardState) -> bool {
        let (standings, verdicts) = self.standings(Some(state));
        standings
            .iter()
            .zip(verdicts)
            .any(|(s, verdict)| s.address != self.plan.address && verdict == Verdict::Eligible)
    }

    fn claim_our_place(&mut self, state: &ShardState) {
        let unarmed = self.plan.fencing && !self.fencer;
        if let Some(why) = (self.is_paused(Scope::Host) && self.role() != Role::Master)
            .then_some("its host is paused")
            .or(unarmed.then_some("no fencer stands by"))
        {
            return self.say(Level::Warn, format!("it is the recorded master and cannot lead: {why}"));
        }
        self.say(Level::Info, "it is the recorded master and takes its place again".to_owned());
        if self.role() == Role::Replica {
            self.round = state.next_round();
        }
        self.why = Change::Return;
        self.begun = self.now.at;
        self.enter(Stage::Locking);
        self.take_the_lock();
    }

    /// Until when others have the first claim. `None`: nobody has.
    pub(super) fn held_back_until(&self) -> Option<Instant> {
        let gone = self.lock_gone?;
        let timing = &self.plan.timing;
        let Some(state) = self.know.state() else {
            // Without a history everybody is waited for: whoever is missing may be the one with the data.
            let missing =
                self.know.members.values().any(|slot| slot.content().is_none_or(|node| node.loading));
            return missing.then(|| gone + timing.silence);
        };
        if self.goes_first(state) {
            return None;
        }
        if state
            .intent
            .as_ref()
            .is_some_and(|intent| intent.kind == IntentKind::Force && self.speaks(&intent.to))
        {
            return Some(gone + timing.session);
        }
        if state.phase == Phase::Released {
            return None;
        }
        let mut until = gone.max(self.rival_until(state).unwrap_or(gone));
        until = until.max(self.former_until(state).unwrap_or(gone));
        if let Some(returned) = self.returned.filter(|_| state.master != self.plan.address) {
            until = until.max(returned + timing.session);
        }
        if !self.plan.fencing {
            until = until.max(gone + timing.silence);
        }
        Some(until)
    }

    /// Rule 2, from the other side: until when the recorded master may lead. The lock says that it does not, but a lock
    /// can be removed by mistake: by hand, or by an order to the registry that came late. So its session must have ended
    /// (its node is gone with it), or it stands in this very election, or gave the shard up; else its lease must be over:
    /// it knows that the lock is gone if it heard anything from the registry since.
    pub(super) fn rival_until(&self, state: &ShardState) -> Option<Instant> {
        if state.phase == Phase::Released || state.master == self.plan.address {
            return None;
        }
        self.claims_until(&state.master, |node| node.round == state.next_round())
    }

    /// Rule 8: whoever handed over in vain has all that it took, and takes its place again. Until when it may. One that
    /// stands goes first by what it has, unless something keeps it from leading just now; one whose server died has
    /// nothing any more.
    pub(super) fn former_until(&self, state: &ShardState) -> Option<Instant> {
        let former = (state.phase == Phase::Promoting && state.handover.is_some()).then_some(&state.from);
        let goes_first = |node: &MemberNode| {
            let keeps_it = node.role == Role::Master && !candidates::may_lead(node, self.agreement());
            node.round == state.next_round() && !keeps_it
        };
        self.claims_until(former.filter(|former| **former != self.plan.address)?, goes_first)
    }

    fn claims_until(&self, address: &str, needs_no_claim: impl Fn(&MemberNode) -> bool) -> Option<Instant> {
        let seen = self.know.members.get(address)?.seen.as_ref()?;
        let claims = !seen.content.as_ref().is_some_and(needs_no_claim);
        claims.then(|| self.vacant.unwrap_or(self.now.at) + self.plan.timing.session)
    }

    /// Its node stands in the present session: whoever sees none knows that this session is over.
    pub(super) fn is_present(&self) -> bool {
        let seen = self.know.members.get(&self.plan.address).and_then(|slot| slot.seen.as_ref());
        seen.is_some_and(|seen| self.session.as_ref().is_some_and(|facts| facts.session == seen.owner))
    }

    fn why_held_back(&self, left: f64) -> String {
        match self.know.state() {
            None => format!(
                "the shard never had a master: members that are missing are waited for, {left:.1} s more"
            ),
            Some(state) => format!("{} has the first claim, for {left:.1} s more", state.master),
        }
    }

    pub(super) fn speaks(&self, address: &str) -> bool {
        self.know.members.get(address).is_some_and(|slot| slot.content().is_some())
    }

    /// It could not be carried out although it stands.
    pub(super) fn has_failed(&self, intent: &Intent) -> bool {
        self.failed_wish.as_ref() == Some(&intent.id)
    }

    /// As an operator wants, before all others; where that came to nothing, after them.
    fn goes_first(&self, state: &ShardState) -> bool {
        self.is_forced_to_us(state) && !state.intent.as_ref().is_some_and(|intent| self.has_failed(intent))
    }

    pub(super) fn is_forced_to_us(&self, state: &ShardState) -> bool {
        let forced = |intent: &Intent| intent.kind == IntentKind::Force && intent.to == self.plan.address;
        state.intent.as_ref().is_some_and(forced)
    }

    // Standing

    /// The members with what they say of themselves, and the verdict on each.
    pub(super) fn standings(&self, state: Option<&ShardState>) -> (Vec<Standing<'_>>, Vec<Verdict>) {
        let standings: Vec<Standing<'_>> = self
            .know
            .members
            .iter()
            .map(|(address, slot)| Standing { address, node: slot.content() })
            .collect();
        let verdicts = candidates::judge(&standings, state, self.agreement(), self.round);
        (standings, verdicts)
    }

    /// The shard's configuration, as its leader has it.
    pub(super) fn agreement(&self) -> &Agreement {
        self.know.config.content().unwrap_or(&self.ours)
    }

    pub(super) fn next_round(&self) -> u64 {
        self.know.state().map_or(FIRST_ROUND, ShardState::next_round)
    }

    /// When it is our turn, by our place among the candidates.
    pub(super) fn turn(&self, since: Instant) -> Instant {
        let state = self.know.state();
        let (standings, mut verdicts) = self.standings(state);
        // What it said as the master is over; it may stand again when it has something to say.
        let given_up = state.filter(|state| state.phase == Phase::Released).map(|state| &*state.master);
        let mut awaited = false;
        for (standing, verdict) in standings.iter().zip(&mut verdicts) {
            let unsaid = candidates::is_unsaid(standing, self.agreement(), self.round);
            if given_up == Some(standing.address)
                && standing.node.is_some_and(|node| node.round != self.round)
            {
                *verdict = Verdict::Out("it was given up".to_owned());
            } else if unsaid && standing.address != self.plan.address {
                awaited = true;
            }
        }
        let order = candidates::rank(&standings, &verdicts, state.is_none());
        let place = order.iter().position(|i| standings[*i].address == self.plan.address).unwrap_or(0);
        let others = order.iter().filter(|i| standings[**i].address != self.plan.address).count();
        let place = match &self.reluctant {
            Some(_) if others > 0 => others + 1,
            _ => place,
        };
        // Nobody has more, and nobody is left who might.
        if place == 0 && !awaited {
            return since;
        }
        // Whoever has an agent that speaks says how far it is in a moment: going without it might lose what it has.
        let settle = self.settle_time();
        let patience = if awaited { settle.max(self.plan.timing.beat) } else { settle };
        since + patience + settle * HOLD_BACK * u32::try_from(place).unwrap_or(u32::MAX / HOLD_BACK)
    }

    fn settle_time(&self) -> Duration {
        match self.why {
            _ if self.reluctant.is_some() => self.plan.timing.beat,
            Change::Death | Change::Force | Change::Switchover => SETTLE,
            Change::First | Change::Silence | Change::Return => self.plan.timing.beat,
        }
    }

    pub(super) fn stand(&mut self, since: Instant) {
        if !self.is_informed() || self.life != Life::Up {
            return;
        }
        if self.know.lock.seen.is_some() || self.is_paused(Scope::Shard) || self.view.is_none() {
            return self.enter(Stage::Following);
        }
        let state = self.know.state().cloned();
        // Somebody changed it: what we stand for is over.
        if self.round != self.next_round() {
            return self.enter(Stage::Following);
        }
        if state.as_ref().is_some_and(|state| self.is_forced_to_us(state)) {
            if self.plan.fencing && !self.fencer {
                return self
                    .say(Level::Warn, "it cannot be promoted by force: no fencer stands by".to_owned());
            }
            if self.now.at < self.turn(since) && !state.as_ref().is_some_and(|state| self.goes_first(state)) {
                return self
                    .say(Level::Warn, "it could not be promoted by force: others go first".to_owned());
            }
            self.say(Level::Warn, "it stands for master by force, as an operator wants".to_owned());
            self.enter(Stage::Locking);
            return self.take_the_lock();
        }
        if self.refusal().is_some() {
            self.let_stream_in();
        }
        if let Some(why) = self.unfit(state.as_ref()) {
            return self.tell_unfit(&why, state.is_some());
        }
        if self.now.at < self.turn(since) {
            return self
                .say(Level::Info, format!("it stands for master of epoch {}", self.round.div_ceil(2)));
        }
        // Whoever handed over to it in vain did not take its place again, nor did anybody else.
        self.declined = None;
        self.enter(Stage::Locking);
        self.take_the_lock();
    }

    /// Why it may not be promoted, by its own newest view; what the others' nodes say decides only who is first.
    pub(super) fn unfit(&self, state: Option<&ShardState>) -> Option<String> {
        if let Some(why) = self.refusal() {
            return Some(why);
        }
        let own = self.node();
        let (mut standings, _) = self.standings(state);
        let place = standings.iter().position(|standing| standing.address == self.plan.address)?;
        standings[place].node = Some(&own);
        match candidates::judge(&standings, state, self.agreement(), self.round).swap_remove(place) {
            Verdict::Eligible => None,
            Verdict::Out(why) => Some(why),
        }
    }

    fn tell_unfit(&mut self, why: &str, has_state: bool) {
        let text = format!("{} not promoted: {why}", self.plan.address);
        self.say(Level::Warn, text);
        let (_, verdicts) = self.standings(self.know.state());
        let hopeless = verdicts.iter().all(|verdict| *verdict != Verdict::Eligible);
        let known = self.lock_gone.is_some_and(|gone| self.now.at >= gone + self.plan.timing.beat * 2);
        if hopeless && known && has_state {
            let text = format!(
                "no member may be promoted ({} not: {why}); `yagent failover {} --force` would take one, with loss",
                self.plan.address,
                self.plan.id()
            );
            self.fire("shard-no-candidate", Severity::Critical, &text);
        }
        if self.may_retry() {
            self.later();
        }
    }

    // The offer of a switchover

    /// The former master hands over to us, by name.
    pub(super) fn is_offered(&self) -> bool {
        self.know.state().is_some_and(|state| {
            state.phase == Phase::Promoting
                && state.master == self.plan.address
                && state.handover.is_some()
                && self.declined != Some(state.epoch)
        })
    }

    /// It looks whether it has all by now.
    pub(super) fn is_taking_over(&self) -> bool {
        let epoch = self.know.state().map(|state| state.epoch);
        let waits =
            |(of, since): (u64, Instant)| Some(of) == epoch && self.now.at < since + self.handover_limit();
        self.connected && self.is_offered() && self.offered.is_some_and(waits)
    }

    fn take_offer(&mut self, state: &ShardState) {
        let Some(handover) = &state.handover else { return };
        let since = match self.offered {
            Some((epoch, since)) if epoch == state.epoch => since,
            _ => {
                self.offered = Some((state.epoch, self.now.at));
                self.next_look = self.now.at;
                self.now.at
            }
        };
        let unarmed = (self.plan.fencing && !self.fencer).then(|| "no fencer stands by".to_owned());
        if let Some(why) = unarmed.or_else(|| self.refusal()) {
            self.declined = Some(state.epoch);
            return self.say(Level::Warn, format!("it declines to be the master: {why}"));
        }
        let offset = self.view.as_ref().filter(|_| self.view_at >= since).map(|view| view.offset);
        if offset.is_some_and(|offset| offset >= handover.offset) {
            self.why = Change::Switchover;
            self.begun = since;
            self.enter(Stage::Locking);
            return self.take_the_lock();
        }
        if self.now.at >= since + self.handover_limit() / 2 {
            let text = "it declines to be the master: it did not get all of the former one's data in time";
            self.declined = Some(state.epoch);
            self.say(Level::Warn, text.to_owned());
        }
    }

    /// A wish is put into `state` by whatever member's agent was asked; the leader, or the target, acts.
    pub(super) fn accept_wish(&mut self, wish: Wish) -> Result<(), String> {
        match wish {
            Wish::Pause { long, reason, host } => self.accept_pause(long, reason, Scope::of(host)),
            Wish::Resume { host } => self.accept_resume(Scope::of(host)),
            Wish::Switchover { to, id } => self.accept_change(IntentKind::Switchover, to, id),
            Wish::Force { to, id } => self.accept_change(IntentKind::Force, to, id),
        }
    }

    /// A whole copy costs its master and the network: people are told.
    pub(super) fn tell_resync(&mut self, view: &View) {
        let was = self.view.as_ref().is_some_and(|view| view.syncing);
        if view.syncing && !was {
            let text = format!("{} takes a whole copy of its master", self.plan.address);
            self.fire("shard-full-resync", Severity::Warning, &text);
        } else if was && !view.syncing {
            let text = format!("{} has its copy", self.plan.address);
            self.resolve("shard-full-resync", &text);
        }
    }
}
