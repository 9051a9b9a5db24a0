//! One host in simulated time: the real core, a model of everything around it, and a loop that works as the agent's
//! does: what happened first, then a tick, until nothing is left.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use yagent::{
    core::{
        Action, Core, Event, HostPlan, InstanceId, NotStarted, Now, Others, Outcome, Pid, ProcessState, Talk,
    },
    shell::registry::{Change, Node},
};

use crate::{
    checks::{self, Checks},
    dice::Dice,
    plans,
    server::{Mute, Server},
};

/// Simulated time since the beginning, in microseconds.
pub(crate) type Micros = u64;

pub(crate) const MS: Micros = 1000;
pub(crate) const SECOND: Micros = 1_000_000;
const DAY_MS: u64 = 86_400_000;
const START_MS: u64 = 1_700_000_000_000;

/// What comes about without the core.
#[derive(Clone, Debug)]
pub(crate) enum Happening {
    /// The spawner is done with its first job.
    Spawned,
    /// The server's answer is there.
    Reply { id: InstanceId, serial: u64 },
    /// A process ends.
    Dies { pid: Pid, how: &'static str },
    /// Its pidfd says so.
    Noticed { id: InstanceId, pid: Pid },
    /// A mute server speaks again.
    SpeaksAgain { pid: Pid },
    /// A stranger leaves a port.
    StrangerLeaves { port: u16 },
    /// Chance strikes.
    Fault,
    /// Last words were found.
    Words { id: InstanceId },
    /// The registry says something.
    Registry(yagent::shell::registry::RegistryEvent),
}

/// A conversation as the shell knows it.
#[derive(Clone, Debug)]
pub(crate) struct Talking {
    pub(crate) talk: Talk,
    pub(crate) serial: u64,
    pub(crate) deadline: Instant,
}

/// What goes wrong with everything until when.
#[derive(Clone, Debug, Default)]
pub(crate) struct Weather {
    pub(crate) spawner_slow: Micros,
    pub(crate) spawner_fails: Micros,
    pub(crate) die_young: Micros,
    pub(crate) boot_slowly: Micros,
    pub(crate) probes_break: Micros,
    pub(crate) samples_break: Micros,
    pub(crate) kills_are_slow: Micros,
    pub(crate) deaf_to_term: Micros,
}

#[derive(Clone, Debug)]
struct Job {
    id: InstanceId,
    adopt_only: bool,
}

pub(crate) struct World {
    pub(crate) dice: Dice,
    pub(crate) t: Micros,
    base: Instant,
    wall_ms: u64,
    pub(crate) core: Core,
    pub(crate) plan: HostPlan,
    agenda: BTreeMap<(Micros, u64), Happening>,
    serial: u64,
    events: VecDeque<Event>,
    pub(crate) servers: BTreeMap<Pid, Server>,
    last_pid: u32,
    /// The processes whose pidfd the shell holds.
    pub(crate) watched: BTreeMap<InstanceId, Pid>,
    jobs: VecDeque<Job>,
    pub(crate) talks: BTreeMap<InstanceId, Talking>,
    /// Ports held by others; true: by a server of the same program.
    pub(crate) strangers: BTreeMap<u16, bool>,
    pub(crate) port_files: BTreeMap<String, Vec<u16>>,
    pub(crate) tree: BTreeMap<String, Node>,
    pub(crate) weather: Weather,
    /// A standstill that waits until somebody is talked to: how long, and whether of the whole host.
    pub(crate) standstill: Option<(Micros, bool)>,
    /// Faults come no more.
    pub(crate) calm: bool,
    pub(crate) finished: bool,
    pub(crate) checks: Checks,
    pub(crate) verbose: bool,
}

impl World {
    pub(crate) fn new(seed: u64, verbose: bool) -> World {
        let mut dice = Dice::new(seed);
        let plan = plans::first(&mut dice);
        let base = Instant::now();
        let core = Core::new(Now { at: base, unix_ms: START_MS }, plan.clone());
        let mut world = World {
            dice,
            t: 0,
            base,
            wall_ms: START_MS,
            core,
            agenda: BTreeMap::new(),
            serial: 0,
            events: VecDeque::from([Event::Configure(Box::new(plan.clone()))]),
            plan,
            servers: BTreeMap::new(),
            last_pid: 100,
            watched: BTreeMap::new(),
            jobs: VecDeque::new(),
            talks: BTreeMap::new(),
            strangers: BTreeMap::new(),
            port_files: BTreeMap::new(),
            tree: BTreeMap::new(),
            weather: Weather::default(),
            standstill: None,
            calm: false,
            finished: false,
            checks: Checks::default(),
            verbose,
        };
        world.later(0, Happening::Registry(crate::faults::connected()));
        world.later(SECOND, Happening::Fault);
        world
    }

    // Time

    pub(crate) fn instant(&self) -> Instant {
        self.base + Duration::from_micros(self.t)
    }

    fn now(&self) -> Now {
        Now { at: self.instant(), unix_ms: self.wall_ms + self.t / MS }
    }

    /// The wall clock is set.
    pub(crate) fn set_wall(&mut self, forward: bool) {
        self.wall_ms = if forward { self.wall_ms + DAY_MS } else { self.wall_ms - DAY_MS };
    }

    fn micros(&self, at: Instant) -> Micros {
        u64::try_from(at.saturating_duration_since(self.base).as_micros()).unwrap_or(u64::MAX)
    }

    /// Something comes about in so many microseconds.
    pub(crate) fn later(&mut self, delay: Micros, happening: Happening) {
        self.serial += 1;
        self.agenda.insert((self.t + delay, self.serial), happening);
    }

    pub(crate) fn log(&self, text: impl FnOnce() -> String) {
        if self.verbose {
            println!("{:>12.6} {}", self.t as f64 / 1e6, text());
        }
    }

    /// The loop stands still for so long; with `host` everything else does as well.
    pub(crate) fn stand_still(&mut self, long: Micros, host: bool) {
        self.log(|| {
            format!("!! the {} stands still for {} ms", if host { "host" } else { "loop" }, long / MS)
        });
        if host {
            let waits = |h: &Happening| matches!(h, Happening::Reply { .. } | Happening::Dies { .. });
            let agenda = std::mem::take(&mut self.agenda).into_iter();
            self.agenda =
                agenda.map(|((at, n), h)| ((if waits(&h) { at + long } else { at }, n), h)).collect();
            let t = self.t;
            self.servers.values_mut().for_each(|server| server.froze(t, long));
            if long < checks::LONG_STANDSTILL {
                // Too short to be told from a server that hung for a while.
                self.servers.values_mut().for_each(|server| server.spoke_again = Some(t + long));
            }
        }
        self.t += long;
        self.checks.stood_still(self.t, long);
    }

    // The loop

    /// Runs until `end`, the end of the agent, or a violation.
    pub(crate) fn run_until(&mut self, end: Micros) {
        self.decide();
        while self.t < end && !self.finished && self.checks.violation.is_none() {
            let wanted = self.core.next_deadline().map(|at| self.micros(at).max(self.t));
            let happens = self.agenda.keys().next().map(|(at, _)| *at);
            let Some(next) = [wanted, happens].into_iter().flatten().min() else { return };
            if next > end {
                self.t = end;
                return;
            }
            self.t = self.t.max(next) + self.dice.within(0..200);
            while let Some(entry) = self.agenda.first_entry().filter(|entry| entry.key().0 <= self.t) {
                let happening = entry.remove();
                self.happen(happening);
            }
            self.decide();
            if !self.talks.is_empty()
                && let Some((long, host)) = self.standstill.take()
            {
                self.stand_still(long, host);
            }
        }
    }

    fn decide(&mut self) {
        for _ in 0..1000 {
            while let Some(event) = self.events.pop_front() {
                self.step(event);
            }
            self.step(Event::Tick);
            if self.events.is_empty() {
                return self.check_rest();
            }
        }
        self.violate("the loop never comes to rest".to_owned());
    }

    fn step(&mut self, event: Event) {
        if !matches!(event, Event::Tick) {
            self.log(|| format!("-> {}", brief(&event)));
        }
        let actions = self.core.step(self.now(), event.clone());
        self.check_step(&event, &actions);
        for action in actions {
            self.check_action(&event, &action);
            self.act(action);
        }
    }

    pub(crate) fn push(&mut self, event: Event) {
        self.events.push_back(event);
    }

    // What the core wants done

    fn act(&mut self, action: Action) {
        self.log(|| format!("   <- {}", brief(&action)));
        match action {
            Action::Start { id, .. } => self.submit(Job { id, adopt_only: false }),
            Action::Adopt { id } => self.submit(Job { id, adopt_only: true }),
            Action::Terminate { id } => self.terminate(id),
            Action::Kill { id } => self.kill(id),
            Action::Converse { id, talk, deadline } => self.converse(id, talk, deadline),
            Action::Expire { id, talk } => self.expire(id, talk),
            Action::Order { .. } | Action::Lease { .. } | Action::Grace { .. } | Action::Request { .. } => {
                unreachable!("no instance of this world has peers")
            }
            Action::AskLastWords { id } => self.later(MS, Happening::Words { id }),
            Action::Forget { id } => {
                self.talks.remove(&id);
                self.watched.remove(&id);
            }
            Action::WritePorts { engine, ports } => {
                self.port_files.insert(self.core.engine_name(engine).to_owned(), ports);
            }
            Action::Publish(changes) => changes.into_iter().for_each(|change| self.publish(change)),
            Action::Finish => self.finished = true,
            Action::Claim(_) | Action::Alert(_) | Action::Log(..) => {}
        }
    }

    fn publish(&mut self, change: Change) {
        match change {
            Change::Put { path, node } => {
                self.tree.insert(path, node);
            }
            Change::Remove { path } => {
                let below = format!("{path}/");
                self.tree.retain(|other, _| *other != path && !other.starts_with(&below));
            }
        }
    }

    fn submit(&mut self, job: Job) {
        self.talks.remove(&job.id);
        self.jobs.push_back(job);
        if self.jobs.len() == 1 {
            self.work();
        }
    }

    fn work(&mut self) {
        let slow = self.t < self.weather.spawner_slow;
        let takes = if slow { self.dice.within(SECOND..15 * SECOND) } else { self.dice.within(MS..5 * MS) };
        self.later(takes, Happening::Spawned);
    }

    fn spawned(&mut self) {
        let Some(job) = self.jobs.pop_front() else { return };
        if !self.jobs.is_empty() {
            self.work();
        }
        let event = self.find_or_spawn(&job);
        if let Event::Started { id, pid, .. } = event {
            self.watched.insert(id, pid);
            self.checks.watched_since.insert(id, self.t);
        }
        self.events.push_back(event);
    }

    fn find_or_spawn(&mut self, job: &Job) -> Event {
        let Job { id, adopt_only } = *job;
        let engine = self.core.engine_name(id.engine).to_owned();
        let not = |why| Event::NotStarted { id, why };
        if let Some(server) = self.servers.values().find(|s| s.engine == engine && s.port == id.port) {
            let adopted = Some(Duration::from_micros(self.t - server.born));
            return Event::Started { id, pid: server.pid, adopted };
        }
        let other = self.servers.values().any(|s| s.port == id.port);
        match self.strangers.get(&id.port) {
            Some(true) if adopt_only => {
                return not(NotStarted::Unrecorded("a server of somebody's".to_owned()));
            }
            _ if adopt_only => return not(NotStarted::Gone),
            Some(_) => return not(NotStarted::PortTaken("somebody".to_owned())),
            None if other => return not(NotStarted::PortTaken("another engine".to_owned())),
            None => {}
        }
        if self.t < self.weather.spawner_fails {
            return not(NotStarted::Failed("no memory".to_owned()));
        }
        let pid = self.spawn(&engine, id.port);
        Event::Started { id, pid, adopted: None }
    }

    fn spawn(&mut self, engine: &str, port: u16) -> Pid {
        self.last_pid += 1;
        let pid = Pid(self.last_pid);
        let mut server = Server::new(engine, port, pid, self.t);
        let boots = if self.t < self.weather.boot_slowly {
            self.dice.within(SECOND..60 * SECOND)
        } else {
            self.dice.within(MS..50 * MS)
        };
        server.ready = self.t + boots;
        server.loads_until =
            server.ready + if self.dice.percent(20) { self.dice.within(0..5 * SECOND) } else { 0 };
        if self.t < self.weather.die_young && self.dice.percent(80) {
            let lives = self.dice.within(0..20 * MS);
            self.later(lives, Happening::Dies { pid, how: "exit status 71" });
        }
        self.servers.insert(pid, server);
        pid
    }

    fn terminate(&mut self, id: InstanceId) {
        let deaf = self.t < self.weather.deaf_to_term;
        let delay = self.dice.within(MS..SECOND / 2);
        let Some(server) = self.watched.get(&id).and_then(|pid| self.servers.get_mut(pid)) else { return };
        server.asked_to_end = Some(self.t);
        let (pid, stopped) = (server.pid, matches!(server.mute, Some((Mute::Stopped, _))));
        if !deaf && !stopped {
            self.later(delay, Happening::Dies { pid, how: "exit status 0" });
        }
    }

    fn kill(&mut self, id: InstanceId) {
        let slow = self.t < self.weather.kills_are_slow;
        let delay = if slow { self.dice.within(SECOND..20 * SECOND) } else { self.dice.within(0..3 * MS) };
        let Some(server) = self.watched.get(&id).and_then(|pid| self.servers.get_mut(pid)) else { return };
        server.killed = true;
        let pid = server.pid;
        self.later(delay, Happening::Dies { pid, how: "signal 9" });
    }

    fn converse(&mut self, id: InstanceId, talk: Talk, deadline: Instant) {
        self.serial += 1;
        let serial = self.serial;
        self.talks.insert(id, Talking { talk, serial, deadline });
        let delay = self.dice.within(50..3 * MS);
        if self.dice.percent(50) {
            // A refusal may be known at once.
            self.later(delay, Happening::Reply { id, serial });
        } else {
            self.reply(id, serial);
            if self.talks.contains_key(&id) {
                self.later(delay, Happening::Reply { id, serial });
            }
        }
    }

    /// The answer to a conversation, if the server has one.
    fn reply(&mut self, id: InstanceId, serial: u64) {
        let Some(talking) = self.talks.get(&id).filter(|talking| talking.serial == serial) else { return };
        let talk = talking.talk;
        let Some(outcome) = self.outcome(id, talk) else { return };
        self.talks.remove(&id);
        self.events.push_back(Event::Ended { id, talk, outcome });
    }

    fn outcome(&mut self, id: InstanceId, talk: Talk) -> Option<Outcome> {
        let (t, weather) = (self.t, &self.weather);
        let breaks = if talk == Talk::Sample { weather.samples_break } else { weather.probes_break };
        if t < breaks {
            return Some(Outcome::Failed { why: "the plugin panicked".to_owned() });
        }
        let missed = |why: &str, process| Some(Outcome::Missed { why: why.to_owned(), process });
        let Some(server) = self.watched.get(&id).and_then(|pid| self.servers.get_mut(pid)) else {
            return missed("refused", ProcessState::Zombie);
        };
        match server.mute {
            Some((Mute::Hung | Mute::Stopped, _)) => return None,
            Some((Mute::Refuses, _)) => return missed("refused", ProcessState::Alive),
            None if t < server.ready => return missed("refused", ProcessState::Alive),
            None => {}
        }
        server.answered.get_or_insert(t);
        if talk == Talk::Sample {
            let (sample, others) = (server.sample(t), Others::default());
            return Some(Outcome::Sampled { sample, others, version: "1.6.18".to_owned() });
        }
        if talk == Talk::Unstick {
            server.unstuck += 1;
        }
        let health = server.health(t);
        if health == yagent::plugin::Health::Serving {
            server.unstuck = 0;
        }
        Some(Outcome::Answered { health, why: "so it says".to_owned() })
    }

    fn expire(&mut self, id: InstanceId, talk: Talk) {
        self.talks.remove(&id);
        let server = self.watched.get(&id).and_then(|pid| self.servers.get(pid));
        let process = server.map_or(ProcessState::Zombie, Server::evidence);
        let outcome = Outcome::Missed { why: "no answer".to_owned(), process };
        self.events.push_back(Event::Ended { id, talk, outcome });
    }

    // What comes about

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Spawned => self.spawned(),
            Happening::Reply { id, serial } => self.reply(id, serial),
            Happening::Dies { pid, how } => self.dies(pid, how),
            Happening::Noticed { id, pid } => self.noticed(id, pid),
            Happening::SpeaksAgain { pid } => self.speaks_again(pid),
            Happening::StrangerLeaves { port } => {
                self.log(|| format!("!! the stranger leaves port {port}"));
                self.strangers.remove(&port);
            }
            Happening::Fault => self.strike(),
            Happening::Words { id } => {
                self.events.push_back(Event::LastWords { id, text: "cannot allocate".to_owned() });
            }
            Happening::Registry(news) => self.events.push_back(Event::Registry(news)),
        }
    }

    pub(crate) fn dies(&mut self, pid: Pid, how: &'static str) {
        let Some(server) = self.servers.remove(&pid) else { return };
        self.log(|| format!("!! pid {pid} dies: {how}"));
        let Some(id) = self.watched.iter().find(|(_, watched)| **watched == pid).map(|(id, _)| *id) else {
            return;
        };
        self.checks.departed.insert(id, server);
        // The broken connection may be seen before the death.
        if let Some(talking) = self.talks.get(&id).cloned()
            && self.dice.percent(50)
        {
            self.later(50, Happening::Reply { id, serial: talking.serial });
        }
        self.later(100, Happening::Noticed { id, pid });
    }

    fn noticed(&mut self, id: InstanceId, pid: Pid) {
        if self.watched.get(&id) == Some(&pid) {
            self.watched.remove(&id);
            self.talks.remove(&id);
            self.events.push_back(Event::Exited { id, how: "somehow".to_owned() });
        }
    }

    fn speaks_again(&mut self, pid: Pid) {
        let t = self.t;
        let Some(server) = self.servers.get_mut(&pid).filter(|server| server.mute.is_some()) else { return };
        server.mute = None;
        server.spoke_again = Some(t);
        let (asked, killed) = (server.asked_to_end, server.killed);
        self.log(|| format!("!! pid {pid} speaks again"));
        if asked.is_some() && !killed {
            self.later(MS, Happening::Dies { pid, how: "exit status 0" });
        }
        let waiting: Vec<_> =
            self.talks.iter().filter(|(id, _)| self.watched.get(id) == Some(&pid)).collect();
        let waiting: Vec<_> = waiting.into_iter().map(|(id, talking)| (*id, talking.serial)).collect();
        for (id, serial) in waiting {
            self.later(MS, Happening::Reply { id, serial });
        }
    }

    /// The agent is killed and started again: a new core, the same servers.
    pub(crate) fn restart_agent(&mut self) {
        self.log(|| "!! the agent is killed and started again".to_owned());
        let of_agent = |h: &Happening| {
            matches!(
                h,
                Happening::Spawned
                    | Happening::Reply { .. }
                    | Happening::Noticed { .. }
                    | Happening::Words { .. }
                    | Happening::Registry(_)
            )
        };
        self.agenda.retain(|_, happening| !of_agent(happening));
        self.events.clear();
        self.jobs.clear();
        self.talks.clear();
        self.watched.clear();
        for server in self.servers.values_mut() {
            (server.asked_to_end, server.unstuck) = (None, 0);
        }
        // The new registry thread removes what is claimed and not wanted.
        self.tree.clear();
        self.core = Core::new(self.now(), self.plan.clone());
        self.checks.agent_restarted(self.t);
        self.finished = false;
        self.configure(self.plan.clone());
        self.later(20 * MS, Happening::Registry(crate::faults::connected()));
    }

    /// A plan comes, with the ports that are on record.
    pub(crate) fn configure(&mut self, mut plan: HostPlan) {
        for engine in &mut plan.engines {
            let mut known = self.port_files.get(&engine.name).cloned().unwrap_or_default();
            let recorded: Vec<u16> =
                self.servers.values().filter(|s| s.engine == engine.name).map(|s| s.port).collect();
            known.extend(recorded.into_iter().filter(|port| !known.contains(port)).collect::<BTreeSet<_>>());
            engine.known_ports = known;
        }
        self.plan = plan.clone();
        self.checks.configured(self.t);
        self.events.push_back(Event::Configure(Box::new(plan)));
    }

    // Looking

    pub(crate) fn server_of(&self, id: InstanceId) -> Option<&Server> {
        self.watched.get(&id).and_then(|pid| self.servers.get(pid))
    }

    pub(crate) fn is_spawning(&self, id: InstanceId) -> bool {
        self.jobs.iter().any(|job| job.id == id)
    }

    pub(crate) fn starts_are_under_way(&self) -> bool {
        !self.jobs.is_empty()
    }

    pub(crate) fn violate(&mut self, what: String) {
        self.log(|| format!("VIOLATION {what}"));
        if self.checks.violation.is_none() {
            self.checks.violation = Some(format!("at {:.3} s: {what}", self.t as f64 / 1e6));
        }
    }
}

fn brief(thing: &impl std::fmt::Debug) -> String {
    let mut text = format!("{thing:?}");
    if text.len() > 240 {
        text = text.chars().take(240).collect();
    }
    text
}
