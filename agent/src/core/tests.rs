//! The core with a hand-written clock: what it does on what, and the bugs that it once had.
//!
//! This file is the bench: plans, servers that answer as they are told, and what was done. The tests are in the files
//! below it.

mod alerts;
mod end;
mod hang;
mod plan;
mod registry;
mod shards;
mod start;
mod unattended;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::{alert::AlertState, instance::FORGIVEN, *};
use crate::{
    plugin::Health,
    shell::registry::{Mode, Node},
};

/// The page that must list every alert.
const OPERATIONS: &str = include_str!("../../../docs/operations.md");
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const MS: Duration = Duration::from_millis(1);
const IP: &str = "10.0.0.1";

fn mc(port: u16) -> InstanceId {
    InstanceId { engine: EngineId(0), port }
}

fn redis(port: u16) -> InstanceId {
    InstanceId { engine: EngineId(1), port }
}

fn engine(name: &str, root: &str, port: u16, count: u32) -> EnginePlan {
    EnginePlan {
        unattended: None,
        shards: None,
        name: name.to_owned(),
        count,
        maxmem: Megabytes(64),
        port,
        port_step: 10,
        known_ports: Vec::new(),
        server_path: format!("{root}/servers/{IP}"),
        instance_path: format!("{root}/servers/{IP}/instances/{IP}:{{port}}"),
    }
}

fn identity() -> HostIdentity {
    HostIdentity {
        ip: IP.to_owned(),
        hostname: "cache-1".to_owned(),
        host_id: "0123".to_owned(),
        nonce: "4567".to_owned(),
        pid: 42,
        group: "web".to_owned(),
        priority: 100,
        rack: "r7".to_owned(),
        memory: Megabytes(32768),
        reserved: Megabytes(3072),
    }
}

/// So many memcached, probed each second, checked and sampled every five, figures every minute.
fn plan(count: u32) -> HostPlan {
    HostPlan {
        identity: identity(),
        probing: Probing {
            check_interval: 5 * SECOND,
            interval: SECOND,
            timeout: SECOND,
            failures: 3,
            start_timeout: 30 * SECOND,
        },
        statistics: Statistics { enabled: true, publish_every: 12, windows: vec![MINUTE] },
        alert_repeat: 60 * MINUTE,
        engines: vec![engine("memcached", "/ycache", 11211, count)],
        misfits: Vec::new(),
    }
}

fn with_redis(count: u32) -> HostPlan {
    let mut plan = plan(count);
    plan.engines.push(engine("redis", "/redis", 16379, 1));
    plan
}

/// How a server behaves.
#[derive(Clone, Debug, PartialEq)]
enum Manner {
    Answers(Health),
    Silent(ProcessState),
    Refuses,
    BackendFails,
    SamplesFail,
    CannotBeAsked,
}

/// The core, a clock, and servers that answer as they are told.
struct Bench {
    core: Core,
    origin: Instant,
    at: Duration,
    manners: BTreeMap<InstanceId, Manner>,
    tree: BTreeMap<String, Node>,
    /// All that was done, and when.
    done: Vec<(Duration, Action)>,
    pids: u32,
}

impl Bench {
    fn new(plan: &HostPlan) -> Bench {
        let origin = Instant::now();
        Bench {
            core: Core::new(Now { at: origin, unix_ms: 1_000_000 }, plan.clone()),
            origin,
            at: Duration::ZERO,
            manners: BTreeMap::new(),
            tree: BTreeMap::new(),
            done: Vec::new(),
            pids: 100,
        }
    }

    /// A host on which all that was planned is up and serves.
    fn up(plan: &HostPlan) -> Bench {
        let mut bench = Bench::new(plan);
        bench.send(Event::Registry(connected()));
        bench.configure(plan);
        for id in bench.started() {
            bench.serve(id);
        }
        bench.pass(2 * SECOND);
        assert_eq!(bench.states().len(), plan.engines.iter().map(|e| e.count as usize).sum::<usize>());
        assert!(bench.states().values().all(|state| *state == "up"), "{:?}", bench.states());
        bench.done.clear();
        bench
    }

    fn now(&self) -> Now {
        let ms = u64::try_from(self.at.as_millis()).unwrap();
        Now { at: self.origin + self.at, unix_ms: 1_000_000 + ms }
    }

    fn configure(&mut self, plan: &HostPlan) {
        self.send(Event::Configure(Box::new(plan.clone())));
    }

    /// An event, then a tick, then the answers to what was asked, until nothing is left.
    fn send(&mut self, event: Event) {
        let mut events = vec![event];
        for _ in 0..50 {
            events.push(Event::Tick);
            events = events.into_iter().flat_map(|event| self.step(event)).collect();
            if events.is_empty() {
                return;
            }
        }
        panic!("the core never comes to rest");
    }

    fn step(&mut self, event: Event) -> Vec<Event> {
        let actions = self.core.step(self.now(), event);
        let events = actions.iter().filter_map(|action| self.react(action)).collect();
        self.done.extend(actions.into_iter().map(|action| (self.at, action)));
        events
    }

    fn react(&mut self, action: &Action) -> Option<Event> {
        match action {
            Action::Converse { id, talk, .. } => {
                let outcome = self.manners.get(id).and_then(|manner| answer(manner, *talk))?;
                Some(Event::Ended { id: *id, talk: *talk, outcome })
            }
            Action::Expire { id, talk } => {
                let process = match self.manners.get(id) {
                    Some(Manner::Silent(process)) => *process,
                    _ => ProcessState::Alive,
                };
                let outcome = Outcome::Missed { why: "no answer within 1 s".to_owned(), process };
                Some(Event::Ended { id: *id, talk: *talk, outcome })
            }
            Action::Publish(changes) => {
                changes.iter().for_each(|change| self.publish(change));
                None
            }
            Action::Alert(alert) => {
                let what = alert.key.split('/').next().unwrap_or_default();
                assert!(
                    OPERATIONS.contains(&format!("`{what}")),
                    "docs/operations.md lacks the alert {what}"
                );
                None
            }
            _ => None,
        }
    }

    fn publish(&mut self, change: &Change) {
        match change {
            Change::Put { path, node } => drop(self.tree.insert(path.clone(), node.clone())),
            Change::Remove { path } => self.tree.retain(|other, _| !desired::is_within(other, path)),
        }
    }

    /// Time passes; ticks come when they are wanted.
    fn pass(&mut self, long: Duration) {
        let end = self.at + long;
        while let Some(next) = self.core.next_deadline().map(|at| at - self.origin).filter(|at| *at <= end) {
            assert!(next > self.at, "the core wants a tick at {next:?}, it is {:?}", self.at);
            self.at = next;
            self.send(Event::Tick);
        }
        self.at = end;
    }

    /// Time passes and nobody ticks.
    fn stand_still(&mut self, long: Duration) {
        self.at += long;
    }

    fn started_as(&mut self, id: InstanceId, adopted: Option<Duration>) {
        self.pids += 1;
        self.send(Event::Started { id, pid: Pid(self.pids), adopted });
    }

    /// A new process, which serves.
    fn serve(&mut self, id: InstanceId) {
        self.manners.insert(id, Manner::Answers(Health::Serving));
        self.started_as(id, None);
    }

    fn behave(&mut self, id: InstanceId, manner: Manner) {
        self.manners.insert(id, manner);
    }

    fn die(&mut self, id: InstanceId) {
        self.send(Event::Exited { id, how: "signal 9".to_owned() });
    }

    /// What was done since this was last asked, without log lines.
    fn take(&mut self) -> Vec<Action> {
        let done = std::mem::take(&mut self.done).into_iter().map(|(_, action)| action);
        done.filter(|action| !matches!(action, Action::Log(..))).collect()
    }

    fn started(&self) -> Vec<InstanceId> {
        self.ids(|a| if let Action::Start { id, .. } = a { Some(*id) } else { None })
    }

    fn killed(&self) -> Vec<InstanceId> {
        self.ids(|a| if let Action::Kill { id } = a { Some(*id) } else { None })
    }

    fn terminated(&self) -> Vec<InstanceId> {
        self.ids(|a| if let Action::Terminate { id } = a { Some(*id) } else { None })
    }

    fn forgotten(&self) -> Vec<InstanceId> {
        self.ids(|a| if let Action::Forget { id } = a { Some(*id) } else { None })
    }

    fn ids(&self, of: impl Fn(&Action) -> Option<InstanceId>) -> Vec<InstanceId> {
        self.done.iter().filter_map(|(_, action)| of(action)).collect()
    }

    fn talks(&self, id: InstanceId) -> Vec<(Duration, Talk)> {
        let of = |action: &Action| match action {
            Action::Converse { id: other, talk, .. } if *other == id => Some(*talk),
            _ => None,
        };
        self.done.iter().filter_map(|(at, action)| Some((*at, of(action)?))).collect()
    }

    /// The port file as it was last written; `None`: not written since `take`.
    fn ports(&self) -> Option<Vec<u16>> {
        self.done.iter().rev().find_map(|(_, action)| match action {
            Action::WritePorts { engine: EngineId(0), ports } => Some(ports.clone()),
            _ => None,
        })
    }

    fn finished(&self) -> bool {
        self.done.iter().any(|(_, action)| *action == Action::Finish)
    }

    fn told(&self, key: &str, state: AlertState) -> usize {
        let of = |action: &Action| matches!(action, Action::Alert(a) if a.key == key && a.state == state);
        self.done.iter().filter(|(_, action)| of(action)).count()
    }

    fn alerts(&self) -> BTreeSet<&str> {
        self.core.alerts().map(|alert| alert.key.as_str()).collect()
    }

    fn states(&self) -> BTreeMap<u16, &'static str> {
        self.core.report().into_iter().map(|r| (r.port, r.state)).collect()
    }

    fn report(&self, port: u16) -> InstanceReport {
        self.core.report().into_iter().find(|r| r.port == port).unwrap()
    }

    fn json(&self, path: &str) -> serde_json::Value {
        let node = self.tree.get(path).unwrap_or_else(|| panic!("{path} is not in {:?}", self.tree.keys()));
        serde_json::from_slice(&node.content).unwrap()
    }

    fn paths(&self) -> Vec<&str> {
        self.tree.keys().map(String::as_str).collect()
    }
}

fn answer(manner: &Manner, talk: Talk) -> Option<Outcome> {
    let failed = || Some(Outcome::Failed { why: "it panicked".to_owned() });
    match manner {
        Manner::Silent(_) => None,
        Manner::Refuses => Some(Outcome::Missed { why: "refused".to_owned(), process: ProcessState::Alive }),
        Manner::BackendFails => failed(),
        Manner::CannotBeAsked => Some(Outcome::Hindered { why: "too many open files".to_owned() }),
        Manner::SamplesFail if talk == Talk::Sample => failed(),
        Manner::Answers(_) if talk == Talk::Sample => {
            let sample = Sample { gets: Some(10), hits: Some(5), keys: 3, ..Sample::default() };
            Some(Outcome::Sampled { sample, others: Others::default(), version: "1.6.18".to_owned() })
        }
        Manner::SamplesFail => Some(Outcome::Answered { health: Health::Serving, why: String::new() }),
        Manner::Answers(health) => Some(Outcome::Answered { health: *health, why: "so it says".to_owned() }),
    }
}

fn connected() -> RegistryEvent {
    RegistryEvent::Connected { server: "zk:2181".to_owned(), session: 1, timeout: 30 * SECOND }
}

fn taken() -> NotStarted {
    NotStarted::PortTaken("pid 9 (/usr/bin/other)".to_owned())
}

fn failed() -> NotStarted {
    NotStarted::Failed("no such user".to_owned())
}
