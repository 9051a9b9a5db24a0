//! Several hosts in simulated time: the real members, and a model of all that is around them.

use std::{
    cmp::Ordering,
    collections::{BinaryHeap, VecDeque},
    time::{Duration, Instant},
};

use yagent::core::{
    Now,
    failover::{Member, Order, Ordered, Planted, ShardPlan},
};

use super::{
    agent::{Agent, Fencer},
    checks::Checks,
    clients::Writer,
    faults::{Faults, Step},
    redis::{Histories, Redis},
    setting::Setting,
    zookeeper::Ensemble,
};
use crate::{
    dice::Dice,
    world::{MS, Micros, SECOND},
};

const START_MS: i64 = 1_700_000_000_000;

/// What comes about.
#[derive(Clone, Debug)]
pub(super) enum Happening {
    /// A message of a client reaches its registry server.
    Up(u32),
    /// A message of a registry server reaches its client.
    Down(u32),
    /// A registry server makes its next change.
    Apply(usize),
    /// The registry looks for sessions that are over.
    SessionsEnd,
    /// The ensemble works again.
    EnsembleBack,
    /// An agent without a connection tries to have one.
    Dial { host: usize, life: u32 },
    /// The client has something said, so that the session lives.
    Heartbeat { host: usize, conn: u32 },
    /// A client looks whether its server is mute.
    Silence { host: usize, conn: u32 },
    /// The member's deadline.
    Wake { host: usize, life: u32, at: Micros },
    /// A stopped agent goes on.
    Resume { host: usize, life: u32 },
    /// An agent is started.
    Begin { host: usize },
    /// Redis does what it does every second.
    Cron { host: usize, pid: u32 },
    /// A redis was started.
    Spawned { host: usize, life: u32, follow: Box<(String, u16)> },
    /// It answered its agent for the first time.
    Answers { host: usize, life: u32, pid: u32 },
    /// It dies.
    Dies { host: usize, pid: u32 },
    /// Its agent is told by the pidfd.
    Noticed { host: usize, life: u32, pid: u32 },
    /// Its agent finds it stopped.
    Hangs { host: usize, life: u32, pid: u32 },
    /// A stopped redis goes on.
    Continues { host: usize, pid: u32 },
    /// An order reaches its redis.
    OrderIn { host: usize, pid: u32, order: Box<Sent> },
    /// The answer reaches the agent.
    OrderOut { host: usize, pid: u32, life: u32, serial: u64, ordered: Box<Ordered> },
    /// The agent waits no longer.
    Overdue { host: usize, life: u32, serial: u64 },
    /// A lease that the fencer was told of ends.
    LeaseEnds { host: usize, serial: u64 },
    /// What the fencer sends reaches its redis.
    FenceIn { host: usize, pid: u32 },
    /// The agent hears that the fencer fences.
    FenceTold { host: usize, life: u32 },
    /// The fencer has come to its end of patience.
    FencerKills { host: usize, pid: u32, serial: u64 },
    /// A fencer stands by for a process.
    Armed { host: usize, life: u32, pid: u32 },
    /// An agent starts a fencer in place of one that died.
    FencerBack { host: usize, life: u32 },
    /// A replica and its master meet.
    Handshake { host: usize, link: u32 },
    /// A whole copy has come and is being loaded.
    CopyLoads { host: usize, link: u32 },
    /// It is loaded.
    CopyDone { host: usize, link: u32 },
    /// The stream comes so far.
    Stream { host: usize, link: u32, offset: i64 },
    /// A replica's acknowledgement.
    Ack { host: usize, pid: u32, from: usize, link: u32, offset: i64 },
    /// A replica's link breaks.
    LinkBreaks { host: usize, link: u32 },
    /// A master is told that a replica is gone.
    ReplicaGone { host: usize, pid: u32, from: usize, link: u32 },
    /// A writer writes.
    Write { writer: usize },
    /// A fault begins.
    Strikes(usize),
    /// It ends.
    Heals(usize),
    /// A kept link is open again.
    Reopens { host: usize },
}

/// An order on its way.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    pub(super) life: u32,
    pub(super) serial: u64,
    pub(super) order: Order,
}

#[derive(Debug)]
struct Entry {
    at: (Micros, u64),
    what: Happening,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Entry) -> bool {
        self.at == other.at
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Entry) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Entry) -> Ordering {
        other.at.cmp(&self.at)
    }
}

/// A host.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) plan: ShardPlan,
    /// How much faster its clock runs, in millionths.
    rate: i64,
    /// How far its wall clock is off, in microseconds.
    pub(super) wall: i64,
    pub(super) agent: Option<Box<Agent>>,
    /// Counts its agents.
    pub(super) life: u32,
    pub(super) fencer: Fencer,
    pub(super) redis: Redis,
    /// So many faults cut it off from the registry, in either direction.
    pub(super) to_registry: u32,
    pub(super) from_registry: u32,
    /// What is added to each way.
    pub(super) slow_up: Micros,
    pub(super) slow_down: Micros,
    /// Until when its connections to the registry break all the time.
    pub(super) flaky: Micros,
    /// Until when orders are carried out and not answered.
    pub(super) orders_lost: Micros,
    /// Until when its redis refuses orders, and which.
    pub(super) refused: (Micros, Vec<Step>),
    /// Until when SIGKILL takes long.
    pub(super) kills_slow: Micros,
    /// Neither agent nor fencer was there to fence its redis.
    pub(super) unguarded: bool,
}

pub(super) struct World {
    pub(super) dice: Dice,
    /// When members of other shards look at their servers; none: there are none on these hosts.
    pub(super) neighbours: Option<Dice>,
    pub(super) t: Micros,
    base: Instant,
    agenda: BinaryHeap<Entry>,
    pub(super) serial: u64,
    pub(super) setting: Setting,
    pub(super) hosts: Vec<Host>,
    /// So many faults keep what the first sends from the second.
    pub(super) cuts: Vec<Vec<u32>>,
    pub(super) zoo: Ensemble,
    pub(super) histories: Histories,
    pub(super) writers: Vec<Writer>,
    pub(super) faults: Faults,
    pub(super) checks: Checks,
    pub(super) planted: Option<Planted>,
    pub(super) verbose: bool,
}

impl World {
    pub(super) fn new(seed: u64, planted: Option<Planted>, verbose: bool) -> World {
        let mut dice = Dice::new(seed);
        let setting = Setting::new(&mut dice);
        let n = setting.plans.len();
        let mut histories = Histories::default();
        let mut hosts = Vec::with_capacity(n);
        for plan in &setting.plans {
            let host = Host {
                plan: plan.clone(),
                rate: i64::try_from(dice.within(0..8000)).unwrap_or(0) - 4000,
                wall: i64::try_from(dice.within(0..2 * SECOND)).unwrap_or(0),
                agent: None,
                life: 0,
                fencer: Fencer::default(),
                redis: Redis::new(&mut dice, &setting, &mut histories),
                to_registry: 0,
                from_registry: 0,
                slow_up: 0,
                slow_down: 0,
                flaky: 0,
                orders_lost: 0,
                refused: (0, Vec::new()),
                kills_slow: 0,
                unguarded: false,
            };
            hosts.push(host);
        }
        let mut world = World {
            t: 0,
            base: Instant::now(),
            agenda: BinaryHeap::with_capacity(256),
            serial: 0,
            zoo: Ensemble::new(&mut dice, &setting),
            hosts,
            cuts: vec![vec![0; n]; n],
            histories,
            writers: Vec::new(),
            faults: Faults::default(),
            checks: Checks::default(),
            planted,
            verbose,
            setting,
            dice,
            neighbours: seed.is_multiple_of(2).then(|| Dice::new(!seed)),
        };
        for host in 0..n {
            let at = world.dice.within(0..SECOND);
            world.later(at, Happening::Begin { host });
        }
        world.begin_sessions();
        world.begin_writers();
        world.plan_faults();
        world
    }

    // Time

    pub(super) fn later(&mut self, delay: Micros, what: Happening) {
        self.serial += 1;
        self.agenda.push(Entry { at: (self.t + delay, self.serial), what });
    }

    /// The host's own clock.
    pub(super) fn instant(&self, host: usize, t: Micros) -> Instant {
        let t = i64::try_from(t).unwrap_or(i64::MAX);
        let local = t + t * self.hosts[host].rate / 1_000_000;
        self.base + Duration::from_micros(u64::try_from(local).unwrap_or(0))
    }

    pub(super) fn now(&self, host: usize) -> Now {
        let unix_ms = START_MS + self.wall(host) / 1000;
        Now { at: self.instant(host, self.t), unix_ms: u64::try_from(unix_ms).unwrap_or(0) }
    }

    /// The host's wall clock, in microseconds.
    pub(super) fn wall(&self, host: usize) -> i64 {
        i64::try_from(self.t).unwrap_or(0) + self.hosts[host].wall
    }

    /// When the host's clock says so.
    pub(super) fn micros(&self, host: usize, at: Instant) -> Micros {
        let local = i64::try_from(at.saturating_duration_since(self.base).as_nanos().div_ceil(1000));
        let local = local.unwrap_or(i64::MAX / 2_000_000);
        let t = local * 1_000_000 / (1_000_000 + self.hosts[host].rate);
        let mut t = u64::try_from(t).unwrap_or(0);
        while self.instant(host, t) < at {
            t += 1;
        }
        t
    }

    pub(super) fn log(&self, text: impl FnOnce() -> String) {
        if self.verbose {
            println!("{:>12.6} {}", self.t as f64 / 1e6, text());
        }
    }

    pub(super) fn violate(&mut self, what: String) {
        self.log(|| format!("VIOLATION {what}"));
        if self.checks.violation.is_none() {
            self.checks.violation = Some(format!("at {:.3} s: {what}", self.t as f64 / 1e6));
        }
    }

    /// Runs until then, or a violation.
    pub(super) fn run_until(&mut self, end: Micros) {
        while self.checks.violation.is_none() {
            match self.agenda.peek() {
                Some(entry) if entry.at.0 <= end => {}
                _ => break,
            }
            let Some(entry) = self.agenda.pop() else { break };
            self.t = entry.at.0;
            self.happen(entry.what);
        }
        self.t = self.t.max(end);
    }

    fn happen(&mut self, what: Happening) {
        self.checks.happenings += 1;
        match what {
            Happening::Up(conn) => self.reaches_server(conn),
            Happening::Down(conn) => self.reaches_client(conn),
            Happening::Apply(server) => self.apply_next(server),
            Happening::SessionsEnd => self.end_sessions(),
            Happening::EnsembleBack => self.ensemble_back(),
            Happening::Dial { host, life } => self.dial(host, life),
            Happening::Heartbeat { host, conn } => self.heartbeat(host, conn),
            Happening::Silence { host, conn } => self.look_for_silence(host, conn),
            Happening::Wake { host, life, at } => self.wake(host, life, at),
            Happening::Resume { host, life } => self.resume(host, life),
            Happening::Begin { host } => self.begin_agent(host),
            Happening::Cron { host, pid } => self.cron(host, pid),
            Happening::Spawned { host, life, follow } => self.spawned(host, life, &follow),
            Happening::Answers { host, life, pid } => self.answers(host, life, pid),
            Happening::Dies { host, pid } => self.dies(host, pid),
            Happening::Noticed { host, life, pid } => self.noticed(host, life, pid),
            Happening::Hangs { host, life, pid } => self.hangs(host, life, pid),
            Happening::Continues { host, pid } => self.continues(host, pid),
            Happening::OrderIn { host, pid, order } => self.order_in(host, pid, *order),
            Happening::OrderOut { host, pid, life, serial, ordered } => {
                self.order_out(host, pid, life, serial, *ordered);
            }
            Happening::Overdue { host, life, serial } => self.overdue(host, life, serial),
            Happening::LeaseEnds { host, serial } => self.lease_ends(host, serial),
            Happening::FenceIn { host, pid } => self.fence_in(host, pid),
            Happening::FenceTold { host, life } => self.fence_told(host, life),
            Happening::FencerKills { host, pid, serial } => self.fencer_kills(host, pid, serial),
            Happening::Armed { host, life, pid } => self.armed(host, life, pid),
            Happening::FencerBack { host, life } => self.fencer_back(host, life),
            Happening::Handshake { host, link } => self.handshake(host, link),
            Happening::CopyLoads { host, link } => self.copy_loads(host, link),
            Happening::CopyDone { host, link } => self.copy_done(host, link),
            Happening::Stream { host, link, offset } => self.stream(host, link, offset),
            Happening::Ack { host, pid, from, link, offset } => {
                self.acknowledged(host, pid, from, link, offset)
            }
            Happening::LinkBreaks { host, link } => self.link_breaks(host, link),
            Happening::ReplicaGone { host, pid, from, link } => self.replica_gone(host, pid, from, link),
            Happening::Write { writer } => self.write(writer),
            Happening::Strikes(fault) => self.strike(fault),
            Happening::Heals(fault) => self.heal(fault),
            Happening::Reopens { host } => self.reopens(host),
        }
    }

    // The network

    /// How long a message takes, most of the time and now and then.
    pub(super) fn latency(&mut self) -> Micros {
        if self.dice.percent(4) { self.dice.within(MS..40 * MS) } else { self.dice.within(100..MS) }
    }

    pub(super) fn reaches(&self, from: usize, to: usize) -> bool {
        self.cuts[from][to] == 0
    }

    pub(super) fn host_of(&self, address: &str) -> Option<usize> {
        self.setting.plans.iter().position(|plan| plan.address == address)
    }

    pub(super) fn member(&self, host: usize) -> Option<&Member> {
        self.hosts[host].agent.as_ref().map(|agent| &agent.member)
    }
}

/// Messages of a connection on their way in one direction.
#[derive(Debug)]
pub(super) struct Lane<T> {
    pub(super) queue: VecDeque<T>,
    /// When the last one arrives.
    pub(super) last: Micros,
    /// So many could have arrived and wait for the way to be open.
    pub(super) stuck: u32,
}

impl<T> Default for Lane<T> {
    fn default() -> Lane<T> {
        Lane { queue: VecDeque::new(), last: 0, stuck: 0 }
    }
}
