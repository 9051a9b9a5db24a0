//! Orders to members of shards: each has a connection of its own, so that probes and orders never wait for one another.
//!
//! One order runs at a time; each is answered once. Before a server may be a master its fence is rehearsed, so that the
//! fencer knows by heart what to send and what to expect.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{
    exchange::{Line, Matter},
    fencer::{Fencer, Means, Unguarded},
    poll::{Poll, Ready},
};
use crate::core::{
    Event, InstanceId, Outcome, Pid,
    failover::{FENCE_FOR, Order, Ordered},
};

/// How long a rehearsal may take, and a parting.
const REHEARSAL_LIMIT: Duration = Duration::from_secs(1);
/// How often a rehearsal that fails is tried, each time after an order that was answered.
const REHEARSALS: u8 = 5;

/// How far the fencer is with a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Readiness {
    /// The fence is to be rehearsed as soon as the server answers.
    Unrehearsed,
    /// It is being rehearsed.
    Rehearsing,
    /// The fencer was told.
    Told,
    /// It is a member no more: what keeps its server from taking writes is undone, and that is all.
    Parting,
}

#[derive(Debug)]
struct Desk {
    line: Line,
    address: SocketAddr,
    /// How long fencing may take.
    within: Duration,
    /// The instance, for people: `redis:16379`.
    key: String,
    pid: Option<Pid>,
    readiness: Readiness,
    /// How often a rehearsal was not answered.
    unanswered: u8,
    /// What runs, and when it is overdue.
    running: Option<(Matter, Instant)>,
    /// An order that came while something else ran.
    waiting: Option<(Order, Instant)>,
}

impl Desk {
    /// Each order is answered, those that are dropped as well.
    fn drop_orders(&mut self, id: InstanceId, why: &str) -> Vec<Event> {
        let running = self.running.take().filter(|(matter, _)| matches!(matter, Matter::Order(_)));
        let dropped = usize::from(running.is_some()) + usize::from(self.waiting.take().is_some());
        let failed = || Event::Ordered { id, ordered: Ordered::Failed(why.to_owned()) };
        std::iter::repeat_with(failed).take(dropped).collect()
    }
}

/// The lines for orders, and the fencer behind them.
#[derive(Debug)]
pub struct Orders {
    desks: HashMap<InstanceId, Desk>,
    fencer: Fencer,
    /// Servers that were adopted and are no members, by their keys, as far as a former agent may have seen that otherwise.
    strangers: HashMap<String, InstanceId>,
    events: VecDeque<Event>,
}

impl Orders {
    /// None yet.
    pub fn new(fencer: Fencer) -> Orders {
        Orders { desks: HashMap::new(), fencer, strangers: HashMap::new(), events: VecDeque::new() }
    }

    /// What the core is to be told next.
    pub fn event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Whether there is nothing to tell.
    pub fn is_quiet(&self) -> bool {
        self.events.is_empty()
    }

    /// When [`Orders::tick`] wants to be called.
    pub fn next_deadline(&self) -> Option<Instant> {
        let running = self.desks.values().filter_map(|desk| Some(desk.running.as_ref()?.1));
        running.chain(self.fencer.next_deadline()).min()
    }

    /// A member of a shard is about to be started: `line` leads to it.
    pub fn open(
        &mut self,
        poll: &mut Poll,
        id: InstanceId,
        key: String,
        line: Line,
        address: SocketAddr,
        within: Duration,
    ) {
        self.close(poll, id);
        self.strangers.retain(|_, stranger| *stranger != id);
        let readiness = Readiness::Unrehearsed;
        let (running, waiting) = (None, None);
        self.fencer.await_guard(id, Unguarded { key: key.clone(), address, within, pid: None });
        let desk = Desk { line, address, within, key, pid: None, readiness, unanswered: 0, running, waiting };
        self.desks.insert(id, desk);
    }

    /// How long fencing it may take has changed: the fencer is told with the next rehearsal.
    pub fn fence_within(&mut self, id: InstanceId, within: Duration) {
        let Some(desk) = self.desks.get_mut(&id).filter(|desk| desk.within != within) else { return };
        desk.within = within;
        if desk.readiness == Readiness::Told {
            (desk.readiness, desk.unanswered) = (Readiness::Unrehearsed, 0);
        }
    }

    /// Its process ran already: a fencer of a former agent may guard it.
    pub fn adopted(&mut self, id: InstanceId) {
        if let Some(desk) = self.desks.get(&id) {
            let (key, address, within, pid) = (desk.key.clone(), desk.address, desk.within, desk.pid);
            self.fencer.await_guard(id, Unguarded { key, address, within, pid });
        }
    }

    /// No fencer of a former agent needs to be kept for it: there is no process, or it is being ended.
    pub fn not_guarded(&mut self, id: InstanceId) {
        self.fencer.await_no_guard(id);
    }

    /// Whether orders can be given to it.
    pub fn leads_to(&self, id: InstanceId) -> bool {
        self.desks.get(&id).is_some_and(|desk| desk.readiness != Readiness::Parting)
    }

    /// It is a member no more.
    pub fn close(&mut self, poll: &mut Poll, id: InstanceId) {
        self.process(poll, id, None);
        self.desks.remove(&id);
    }

    /// It is a member no more and its server goes on: it takes writes again, whoever fenced it, however few replicas it
    /// has.
    pub fn part(&mut self, poll: &mut Poll, id: InstanceId) {
        let Some(desk) = self.desks.get_mut(&id).filter(|desk| desk.readiness != Readiness::Parting) else {
            return;
        };
        desk.line.hang_up(poll);
        self.events.extend(desk.drop_orders(id, "it is a member no more"));
        desk.readiness = Readiness::Parting;
        log::info!("{} is a member of no shard any more: it takes writes as it is", desk.key);
        self.fencer.disarm(id);
        self.tell_fencers_news();
        let deadline = Instant::now() + REHEARSAL_LIMIT;
        self.begin(poll, id, Matter::Order(Order::Unfence { min_replicas: 0 }), deadline);
    }

    fn parted(&mut self, poll: &mut Poll, id: InstanceId) {
        if let Some(mut desk) = self.desks.remove(&id) {
            desk.line.hang_up(poll);
        }
    }

    /// A server that was adopted is no member. It may have been one of a former agent's. `alone`: there are no members.
    pub fn let_go(&mut self, poll: &mut Poll, id: InstanceId, key: String, alone: bool) {
        self.strangers.insert(key.clone(), id);
        self.fencer.let_go(poll, key, alone);
    }

    /// One that was indeed: give it a line and let it part.
    pub fn stranger(&mut self) -> Option<InstanceId> {
        std::iter::from_fn(|| self.fencer.disarmed()).find_map(|key| self.strangers.remove(&key))
    }

    /// Its process, or that there is none any more.
    pub fn process(&mut self, poll: &mut Poll, id: InstanceId, pid: Option<Pid>) {
        let Some(desk) = self.desks.get_mut(&id) else { return };
        desk.pid = pid;
        if pid.is_some() {
            self.fencer.await_no_guard(id);
            (desk.readiness, desk.unanswered) = (Readiness::Unrehearsed, 0);
            return;
        }
        if desk.readiness == Readiness::Parting {
            return self.parted(poll, id);
        }
        desk.line.hang_up(poll);
        self.events.extend(desk.drop_orders(id, "its process is gone"));
        self.fencer.disarm(id);
        self.tell_fencers_news();
    }

    /// Gives an order.
    pub fn order(&mut self, poll: &mut Poll, id: InstanceId, order: Order, deadline: Instant) {
        match self.desks.get_mut(&id) {
            Some(desk) if desk.pid.is_some() => {
                if desk.running.is_some() {
                    desk.waiting = Some((order, deadline));
                } else {
                    self.begin(poll, id, Matter::Order(order), deadline);
                }
            }
            _ => {
                let ordered = Ordered::Failed("there is no process".to_owned());
                self.events.push_back(Event::Ordered { id, ordered });
            }
        }
    }

    /// Until when an instance may be a master.
    pub fn lease(&mut self, id: InstanceId, until: Option<Instant>) {
        self.fencer.lease(id, until);
    }

    /// Until when at most, where the fencer knows of no lease.
    pub fn grace(&mut self, id: InstanceId, until: Instant) {
        self.fencer.grace(id, until);
    }

    fn begin(&mut self, poll: &mut Poll, id: InstanceId, matter: Matter, deadline: Instant) {
        let Some(desk) = self.desks.get_mut(&id) else { return };
        let now = Instant::now();
        if now >= deadline {
            // What it was decided by may be over.
            return self.ended(poll, id, matter, Outcome::Failed { why: "it came too late".to_owned() });
        }
        desk.running = Some((matter.clone(), deadline));
        if let Some(outcome) = desk.line.begin(poll, matter.clone(), now, deadline) {
            self.ended(poll, id, matter, outcome);
        }
    }

    /// A connection for orders is ready.
    pub fn ready(&mut self, poll: &mut Poll, id: InstanceId, ready: Ready) {
        let now = Instant::now();
        let Some(desk) = self.desks.get_mut(&id) else { return };
        let opens = |matter: &Matter| matches!(matter, Matter::Order(Order::Promote | Order::Unfence { .. }));
        // After a while in which the agent stood still the lease may be over: the next command of these is not sent.
        if desk.running.as_ref().is_some_and(|(matter, deadline)| opens(matter) && *deadline <= now) {
            return self.expire(poll, id, now);
        }
        if let Some((matter, outcome)) = desk.line.ready(poll, ready, now) {
            self.ended(poll, id, matter, outcome);
        }
    }

    fn expire(&mut self, poll: &mut Poll, id: InstanceId, now: Instant) {
        let Some(desk) = self.desks.get_mut(&id) else { return };
        let Some((matter, _)) = desk.running.clone() else { return };
        let what = desk.line.expire(poll, now).map_or_else(|| "no answer".to_owned(), |(_, what)| what);
        self.ended(poll, id, matter, Outcome::Failed { why: format!("{what} in time") });
    }

    /// The fencer's socket is ready.
    pub fn fencer_ready(&mut self, poll: &mut Poll, ready: Ready) {
        self.fencer.ready(poll, ready);
        self.tell_fencers_news();
    }

    /// Ends what is overdue.
    pub fn tick(&mut self, poll: &mut Poll, now: Instant) {
        let overdue = |desk: &Desk| desk.running.as_ref().is_some_and(|(_, at)| *at <= now);
        let late: Vec<InstanceId> =
            self.desks.iter().filter(|(_, desk)| overdue(desk)).map(|(id, _)| *id).collect();
        for id in late {
            self.expire(poll, id, now);
        }
        self.fencer.tick(poll, now);
        self.tell_fencers_news();
    }

    fn tell_fencers_news(&mut self) {
        while let Some((id, armed)) = self.fencer.news() {
            self.events.push_back(Event::Fencer { id, armed });
        }
        while let Some((id, _)) = self.fencer.fenced() {
            self.events.push_back(Event::Fenced { id });
        }
    }

    fn ended(&mut self, poll: &mut Poll, id: InstanceId, matter: Matter, outcome: Outcome) {
        let Some(desk) = self.desks.get_mut(&id) else { return };
        desk.running = None;
        let answers = matches!(outcome, Outcome::Obeyed(_));
        if desk.readiness == Readiness::Parting {
            if !answers {
                log::error!("{} may still be kept from taking writes: {outcome:?}", desk.key);
            }
            return self.parted(poll, id);
        }
        match &matter {
            Matter::Rehearsal => self.rehearsed(poll, id, &outcome),
            _ => self.events.push_back(Event::Ordered { id, ordered: ordered(outcome) }),
        }
        let Some(desk) = self.desks.get_mut(&id) else { return };
        if desk.readiness == Readiness::Unrehearsed && answers {
            desk.readiness = Readiness::Rehearsing;
            return self.begin(poll, id, Matter::Rehearsal, Instant::now() + REHEARSAL_LIMIT);
        }
        if let Some((order, deadline)) = desk.waiting.take() {
            self.begin(poll, id, Matter::Order(order), deadline);
        }
    }

    /// The fencer learns how to fence the server, or that only its death helps.
    fn rehearsed(&mut self, poll: &mut Poll, id: InstanceId, outcome: &Outcome) {
        let Some(desk) = self.desks.get_mut(&id) else { return };
        let Some(pid) = desk.pid.filter(|_| desk.readiness == Readiness::Rehearsing) else { return };
        // A server that was slow just then may know its fence all the same.
        let slow = matches!(outcome, Outcome::Missed { .. } | Outcome::Failed { .. });
        desk.unanswered += u8::from(slow);
        desk.readiness =
            if slow && desk.unanswered < REHEARSALS { Readiness::Unrehearsed } else { Readiness::Told };
        let key = desk.key.clone();
        let known = desk
            .line
            .fence_by_heart(FENCE_FOR, Instant::now())
            .filter(|_| matches!(outcome, Outcome::Obeyed(_)));
        if known.is_none() {
            log::warn!("{}: its fence cannot be rehearsed ({outcome:?}): a fencer would kill it", desk.key);
        }
        let (send, expect) = known.unwrap_or_default();
        let means = Means { address: desk.address, send, expect, within: desk.within };
        self.fencer.arm(poll, id, &key, pid, means);
        self.tell_fencers_news();
    }
}

fn ordered(outcome: Outcome) -> Ordered {
    match outcome {
        Outcome::Obeyed(view) => Ordered::Done(view),
        Outcome::Unsupported => Ordered::Unsupported,
        Outcome::Missed { why, .. } | Outcome::Hindered { why } | Outcome::Failed { why } => {
            Ordered::Failed(why)
        }
        Outcome::Answered { .. } | Outcome::Sampled { .. } => {
            Ordered::Failed("an answer to another question".to_owned())
        }
    }
}
