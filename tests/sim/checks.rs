//! What must hold at every step, whatever goes wrong.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use yagent::core::{Action, Event, InstanceId, InstanceReport, Talk};

use crate::{
    plans::IP,
    server::{Mute, Server},
    world::{MS, Micros, SECOND, World},
};

/// A server that answered for this long did not die in a row with the former one.
const STEADY: Micros = SECOND + 100 * MS;
/// A standstill of this length is certainly noticed: the core wants a tick at least every second.
pub(crate) const LONG_STANDSTILL: Micros = 1700 * MS;
/// How long the registry's tree may differ from the instances.
const TREE_LAG: Micros = 200 * MS;

/// What the checks remember.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    pub(crate) violation: Option<String>,
    /// The last process of an instance, until its death is told.
    pub(crate) departed: BTreeMap<InstanceId, Server>,
    pub(crate) watched_since: BTreeMap<InstanceId, Micros>,
    kills: VecDeque<(Micros, InstanceId)>,
    surplus: BTreeSet<InstanceId>,
    last_talk: BTreeMap<InstanceId, Micros>,
    /// How many instances there were when the loop last came to rest.
    total: usize,
    stood_still: Micros,
    /// The same, if it was long.
    stood_still_long: Micros,
    /// The last long ones.
    standstills: VecDeque<(Micros, Micros)>,
    port_base: BTreeMap<String, u16>,
    configured: Micros,
    restarted: Micros,
    storm: Micros,
    looked: Micros,
    wrong_since: Option<Micros>,
    /// All instances are to end.
    pub(crate) ending: bool,
    pub(crate) steps: u64,
}

impl Checks {
    pub(crate) fn stood_still(&mut self, t: Micros, long: Micros) {
        self.stood_still = t;
        if long >= LONG_STANDSTILL {
            self.stood_still_long = t;
            self.standstills.push_back((t - long, t));
        }
    }

    pub(crate) fn configured(&mut self, t: Micros) {
        self.configured = t;
    }

    /// What is held against the agent is counted from now.
    pub(crate) fn pardon(&mut self, t: Micros) {
        self.configured = t;
    }

    pub(crate) fn agent_restarted(&mut self, t: Micros) {
        *self = Checks {
            violation: self.violation.take(),
            restarted: t,
            configured: t,
            stood_still: t,
            storm: t,
            steps: self.steps,
            ..Checks::default()
        };
    }
}

fn micros(duration: Duration) -> Micros {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Reported as one that counts among the host's instances.
fn counts(report: &InstanceReport) -> bool {
    !matches!(report.state, "parked" | "stopping" | "stopped")
}

impl World {
    // One step

    pub(crate) fn check_step(&mut self, event: &Event, actions: &[Action]) {
        self.checks.steps += 1;
        match event {
            Event::Exited { id, .. } => self.check_restart(*id, actions),
            Event::Started { id, .. } if self.reported(*id).is_none() => {
                self.violate(format!("{id:?} was started and nobody looks after it"));
            }
            Event::Stop { all } => self.checks.ending |= all,
            Event::Configure(_) => self.check_reload(actions),
            _ => {}
        }
    }

    fn reported(&self, id: InstanceId) -> Option<InstanceReport> {
        let name = self.core.engine_name(id.engine).to_owned();
        self.core.report().into_iter().find(|r| r.engine == name && r.port == id.port)
    }

    /// A server that served and died is started again in the same step.
    fn check_restart(&mut self, id: InstanceId, actions: &[Action]) {
        let Some(dead) = self.checks.departed.remove(&id) else { return };
        let Some(answered) = dead.answered.filter(|_| dead.asked_to_end.is_none()) else { return };
        let served_until = if dead.killed { dead.mute.map_or(answered, |(_, since)| since) } else { self.t };
        let steady = served_until.saturating_sub(answered) >= STEADY;
        let young_agent = self.t - self.checks.restarted < 2 * SECOND;
        if !steady || young_agent || self.checks.ending {
            return;
        }
        let starts =
            actions.iter().any(|action| matches!(action, Action::Start { id: other, .. } if *other == id));
        if !starts && !self.checks.surplus.contains(&id) {
            self.violate(format!("{id:?} served, died and is not started again at once: {actions:?}"));
        }
    }

    /// A plan that differs in nothing of the ports touches no instance.
    fn check_reload(&mut self, actions: &[Action]) {
        let starts = |a: &&Action| matches!(a, Action::Start { .. });
        let ends = |a: &&Action| matches!(a, Action::Terminate { .. } | Action::Kill { .. });
        for engine in &self.plan.engines.clone() {
            let Some(id) = self.core.engine_id(&engine.name) else { continue };
            let of = |a: &&Action| matches!(a, Action::Start { id: i, .. } | Action::Terminate { id: i } | Action::Kill { id: i } if i.engine == id);
            let started = actions.iter().filter(of).filter(starts).count();
            let ended = actions.iter().filter(of).filter(ends).count();
            let moved = self.checks.port_base.insert(engine.name.clone(), engine.port) != Some(engine.port);
            if !moved && started > 0 && ended > 0 {
                self.violate(format!("a reload ends {ended} and starts {started} of {}", engine.name));
            }
        }
    }

    // One action

    pub(crate) fn check_action(&mut self, event: &Event, action: &Action) {
        match action {
            Action::Start { id, .. } => self.check_start(*id, false),
            Action::Adopt { id } => self.check_start(*id, true),
            Action::Kill { id } => self.check_kill(*id),
            Action::Terminate { id } => {
                let allowed =
                    matches!(event, Event::Configure(_) | Event::Stop { .. } | Event::Started { .. });
                if !allowed {
                    self.violate(format!("{id:?} is asked to end by {event:?}"));
                }
            }
            Action::Converse { id, talk, .. } => self.check_talk(*id, *talk),
            Action::Expire { id, .. } => self.check_expiry(*id),
            _ => {}
        }
    }

    fn check_start(&mut self, id: InstanceId, adopt: bool) {
        if adopt {
            self.checks.surplus.insert(id);
        } else {
            self.checks.surplus.remove(&id);
        }
        if self.watched.contains_key(&id) {
            self.violate(format!("{id:?} is started although its process lives"));
        }
        if self.is_spawning(id) {
            self.violate(format!("{id:?} is started twice"));
        }
        if self.checks.ending {
            self.violate(format!("{id:?} is started although all are to end"));
        }
    }

    fn check_talk(&mut self, id: InstanceId, talk: Talk) {
        if self.talks.contains_key(&id) {
            self.violate(format!("{id:?}: a second conversation at once"));
        }
        if !self.watched.contains_key(&id) {
            self.violate(format!("{id:?} is talked to although it is dead"));
        }
        if talk == Talk::Unstick && self.server_of(id).is_some_and(|server| server.unstuck > 0) {
            self.violate(format!("{id:?} is asked twice to end what it does"));
        }
        self.checks.last_talk.insert(id, self.t);
    }

    fn check_expiry(&mut self, id: InstanceId) {
        let now = self.instant();
        match self.talks.get(&id) {
            None => self.violate(format!("{id:?}: what is over expires")),
            Some(talking) if talking.deadline > now => self.violate(format!("{id:?}: it expires too early")),
            Some(_) => {}
        }
    }

    fn check_kill(&mut self, id: InstanceId) {
        let Some(server) = self.server_of(id).cloned() else { return };
        if let Some(asked) = server.asked_to_end {
            if self.t < asked + 60 * SECOND {
                self.violate(format!("{id:?} is killed too early while it ends"));
            }
            return;
        }
        if !self.deserves(&server) {
            self.violate(format!("{id:?} is killed and has done nothing: {server:?}"));
        }
        self.check_storm(id);
    }

    fn deserves(&self, server: &Server) -> bool {
        let probing = &self.plan.probing;
        let (t, timeout) = (self.t, micros(probing.timeout));
        let start = micros(probing.start_timeout);
        let boots = t >= server.born.max(self.checks.stood_still_long) + start;
        let young_agent = t < self.checks.restarted + start + SECOND;
        match server.mute {
            Some((Mute::Stopped, _)) => true,
            Some(_) if server.answered.is_none() || young_agent => true,
            Some((_, since)) => {
                let stood =
                    self.checks.standstills.iter().filter(|(_, to)| *to > since).map(|(from, to)| to - from);
                t + 100 * MS >= since + stood.sum::<Micros>() + timeout * u64::from(probing.failures - 1)
            }
            None if server.spoke_again.is_some_and(|at| t < at + timeout + SECOND) => true,
            None => server.answered.is_none() && boots,
        }
    }

    /// Of all instances, at most a quarter within a minute.
    fn check_storm(&mut self, id: InstanceId) {
        let t = self.t;
        self.checks.kills.push_back((t, id));
        self.checks.kills.retain(|(at, _)| t < at + 60 * SECOND);
        let distinct: BTreeSet<_> = self.checks.kills.iter().map(|(_, id)| *id).collect();
        let total = self.checks.total.max(self.core.count().1);
        if distinct.len() > (total / 4).max(1) {
            self.violate(format!("{} of {total} instances were killed within a minute", distinct.len()));
        }
    }

    // The loop at rest

    pub(crate) fn check_rest(&mut self) {
        if self.finished {
            return;
        }
        self.checks.total = self.core.count().1;
        let now = self.instant();
        match self.core.next_deadline() {
            Some(at) if at > now => {}
            deadline => {
                self.violate(format!("a busy loop: the next deadline is {deadline:?}, now is {now:?}"))
            }
        }
        if self.core.alerts().any(|alert| alert.key == "storm-guard") {
            self.checks.storm = self.t;
        }
        self.check_attention();
        if self.t >= self.checks.looked + SECOND || self.checks.wrong_since.is_some() {
            self.checks.looked = self.t;
            self.check_books();
        }
    }

    /// Every live server is asked in time, and what is mute is not left alone.
    fn check_attention(&mut self) {
        let probing = self.plan.probing.clone();
        let (interval, timeout) = (micros(probing.interval), micros(probing.timeout));
        let patience = 2 * interval + 2 * timeout + SECOND / 2;
        let limit = 3 * interval + timeout * u64::from(probing.failures + 1) + SECOND;
        let watched: Vec<_> = self.watched.keys().copied().collect();
        for id in watched {
            let Some(server) = self.server_of(id) else { continue };
            if server.killed || server.asked_to_end.is_some() {
                continue;
            }
            let since = self.checks.watched_since.get(&id).copied().unwrap_or(0);
            let base = since.max(self.checks.stood_still).max(self.checks.configured);
            let talked = self.checks.last_talk.get(&id).copied().unwrap_or(0);
            let weather = self.weather.probes_break.max(self.weather.samples_break);
            let mute = server.mute.map(|(_, mute)| mute.max(base).max(weather).max(self.checks.storm));
            if self.t > base.max(talked) + patience {
                self.violate(format!("{id:?} is not asked any more"));
            }
            if mute.is_some_and(|mute| self.t > mute + limit)
                && self.reported(id).is_some_and(|r| r.state != "starting")
            {
                self.violate(format!("{id:?} is mute and left alone"));
            }
        }
    }

    /// The port files and the tree say what is.
    fn check_books(&mut self) {
        let report = self.core.report();
        if !self.checks.ending {
            self.check_ports(&report);
        }
        match self.tree_error(&report) {
            None => self.checks.wrong_since = None,
            Some(error) => {
                let since = *self.checks.wrong_since.get_or_insert(self.t);
                if self.t.saturating_sub(since.max(self.checks.stood_still)) > TREE_LAG {
                    self.violate(format!("the tree is wrong: {error}"));
                }
            }
        }
        if self.core.alerts().count() > 20 + 10 * (report.len() + 4) {
            self.violate("alerts pile up".to_owned());
        }
    }

    fn is_surplus(&self, report: &InstanceReport) -> bool {
        let id = self.core.engine_id(&report.engine).map(|engine| InstanceId { engine, port: report.port });
        id.is_some_and(|id| self.checks.surplus.contains(&id))
    }

    fn check_ports(&mut self, report: &[InstanceReport]) {
        for engine in self.plan.engines.clone() {
            let mine = report.iter().filter(|r| r.engine == engine.name && counts(r) && !self.is_surplus(r));
            let ports: Vec<u16> = mine.map(|r| r.port).collect();
            let written = self.port_files.get(&engine.name).cloned().unwrap_or_default();
            if ports != written {
                self.violate(format!("the port file says {written:?}, the instances are {ports:?}"));
            }
            if ports.len() != engine.count as usize {
                self.violate(format!("{} instances instead of {}", ports.len(), engine.count));
            }
        }
    }

    /// What of the tree is not as it should be.
    fn tree_error(&self, report: &[InstanceReport]) -> Option<String> {
        let mut allowed: BTreeMap<String, Option<&InstanceReport>> = BTreeMap::new();
        let statistics = self.plan.statistics.enabled;
        for engine in &self.plan.engines {
            allowed.insert(engine.server_path.clone(), None);
            allowed.insert(format!("{}/active", engine.server_path), None);
            let mine = report
                .iter()
                .filter(|r| r.engine == engine.name && r.state != "parked" && !self.is_surplus(r));
            for r in mine {
                allowed.insert(format!("{}/instances/{IP}:{}", engine.server_path, r.port), Some(r));
            }
        }
        let is_info = |path: &str| {
            statistics
                && path
                    .strip_suffix("/info")
                    .is_some_and(|of| allowed.contains_key(of) && !of.ends_with("/active"))
        };
        if let Some(extra) = self.tree.keys().find(|path| !allowed.contains_key(*path) && !is_info(path)) {
            return Some(format!("{extra} is there and should not be"));
        }
        allowed.iter().find_map(|(path, report)| self.node_error(path, *report))
    }

    fn node_error(&self, path: &str, report: Option<&InstanceReport>) -> Option<String> {
        let Some(node) = self.tree.get(path) else { return Some(format!("{path} is missing")) };
        let report = report?;
        let Ok(content) = serde_json::from_slice::<serde_json::Value>(&node.content) else {
            return Some(format!("{path} holds no JSON"));
        };
        let same = content["state"] == report.state
            && content["since_ms"] == report.since_ms
            && content["restarts"] == report.restarts
            && content["pid"].as_u64() == report.pid.map(u64::from)
            && content["version"] == report.version
            && content["maxmem_mb"] == report.maxmem_mb
            && content["port"] == report.port;
        (!same).then(|| format!("{path} says {content}, it is {report:?}"))
    }

    // After the faults

    /// What is still not as it should be, a while after the faults.
    pub(crate) fn unsettled(&self) -> Option<String> {
        let (up, all) = self.core.count();
        let planned: usize = self.plan.engines.iter().map(|engine| engine.count as usize).sum();
        if (up, all) != (planned, planned) {
            return Some(format!("{up} of {all} instances are up, {planned} are planned"));
        }
        // Nobody knows of the servers of an engine that went while the agent was down.
        let of_plan = |server: &&Server| self.plan.engines.iter().any(|engine| engine.name == server.engine);
        if let Some(mute) = self.servers.values().filter(of_plan).find(|server| server.mute.is_some()) {
            return Some(format!("pid {} is still mute", mute.pid));
        }
        let served = self.servers.values().filter(of_plan).count();
        if served != planned {
            return Some(format!("{served} servers run, {planned} are planned"));
        }
        if let Some(error) = self.tree_error(&self.core.report()) {
            return Some(error);
        }
        self.core
            .alerts()
            .find(|alert| !self.may_go_on(&alert.key))
            .map(|a| format!("{} still fires: {}", a.key, a.summary))
    }

    fn may_go_on(&self, key: &str) -> bool {
        let parked = |key: &str| {
            let port = key.rsplit('/').next().and_then(|port| port.parse::<u16>().ok());
            self.core.report().iter().any(|r| r.state == "parked" && Some(r.port) == port)
        };
        match key.split('/').next() {
            Some("port-taken" | "instance-surplus") => parked(key),
            Some("plan-misfit") => !self.plan.misfits.is_empty(),
            _ => false,
        }
    }
}
