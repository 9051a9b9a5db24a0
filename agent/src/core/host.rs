//! What concerns a host's instances together: how many there are and on which ports, what the registry is told of
//! them, and the host's own alerts.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::{
    Action, EngineId, EnginePlan, Event, HostPlan, InstanceId, InstanceReport, NotStarted, Now,
    alert::{Alert, AlertBook, Severity},
    desired,
    failover::{Input, Life, ShardReport, Wish},
    instance::{Context, Instance, State, later},
    shards::{Means, Shards},
    stats::{HostFigures, InstanceStats},
    storm::StormGuard,
};
use crate::shell::registry::{Change, RegistryEvent};

/// The loop was late when it comes this long after its deadline.
const LATE: Duration = Duration::from_millis(500);
/// Changes of an instance's node are gathered this long, so that a repair is one write.
const PUBLISH_PAUSE: Duration = Duration::from_millis(50);
/// Without a registry for this long from the start, an alert says so.
const REGISTRY_PATIENCE: Duration = Duration::from_secs(10);
/// A registry that was lost may take this long to come back before an alert says so: a server that is restarted, or an
/// election, is no reason to wake anybody.
const REGISTRY_GRACE: Duration = Duration::from_secs(5);
/// The host's own business is done this often: alerts that go on, the storm's end.
const BEAT: Duration = Duration::from_secs(1);

/// What the key of an alert about a contested path begins with.
const CONFLICT: &str = "address-conflict";
/// What the key of an alert about a refused path begins with.
const REFUSED: &str = "registry-refused";

#[derive(Debug)]
struct Engine {
    name: String,
    /// `None` once the engine is no longer configured.
    plan: Option<EnginePlan>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    No,
    /// All instances end first.
    All,
    Finished,
}

/// The decisions of one host.
#[derive(Debug)]
pub struct Core {
    plan: HostPlan,
    engines: Vec<Engine>,
    instances: BTreeMap<InstanceId, Instance>,
    alerts: AlertBook,
    storm: StormGuard,
    shards: Shards,
    started: Now,
    ordinal: u32,
    /// How many instances count among the host's, as of the last tick.
    total: usize,
    expected: Option<Instant>,
    late: Option<Instant>,
    publish_at: Option<Instant>,
    /// The paths that were put into the registry's tree and not removed since.
    published: BTreeSet<String>,
    next_beat: Instant,
    next_host_info: Option<Instant>,
    /// The registry is lost: when to tell, and why.
    registry_lost: Option<(Instant, String)>,
    ending: Ending,
}

impl Core {
    /// A host that runs nothing yet; the first [`Event::Configure`] with the same plan makes it start.
    pub fn new(now: Now, plan: HostPlan) -> Core {
        Core {
            alerts: AlertBook::new(plan.alert_repeat),
            plan: HostPlan { engines: Vec::new(), misfits: Vec::new(), ..plan },
            engines: Vec::new(),
            instances: BTreeMap::new(),
            storm: StormGuard::default(),
            shards: Shards::default(),
            started: now,
            ordinal: 0,
            total: 0,
            expected: None,
            late: None,
            publish_at: None,
            published: BTreeSet::new(),
            next_beat: now.at + BEAT,
            next_host_info: None,
            registry_lost: Some((
                now.at + REGISTRY_PATIENCE,
                "it was not reached since the start".to_owned(),
            )),
            ending: Ending::No,
        }
    }

    /// An alert that went on when the agent's former run ended.
    pub fn inherit(&mut self, now: Now, alert: Alert) {
        self.alerts.inherit(now.unix_ms, alert);
    }

    /// Takes what happened and says what to do, in this order. An [`Event::Tick`] follows each batch of other events: it
    /// does what has become due.
    pub fn step(&mut self, now: Now, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.ending == Ending::Finished {
            return actions;
        }
        self.notice_lateness(now, &mut actions);
        match event {
            Event::Tick => self.tick(now, &mut actions),
            Event::Configure(plan) => self.configure(*plan, now, &mut actions),
            Event::Stop { all } => self.stop(all, now, &mut actions),
            Event::Registry(news) => self.registry(news, now, &mut actions),
            Event::Trouble { key, severity, summary } => {
                actions.extend(self.alerts.fire(now.unix_ms, &key, severity, &summary).map(Action::Alert));
            }
            Event::TroubleOver { key, summary } => {
                actions.extend(self.alerts.resolve(now.unix_ms, &key, &summary).map(Action::Alert));
            }
            Event::Session(facts) => {
                self.with_shards(now, &mut actions, |shards, means| shards.session(facts, means))
            }
            Event::Ordered { id, ordered } => self.with_shards(now, &mut actions, |shards, means| {
                shards.give(id, Input::Ordered(ordered), means);
            }),
            Event::Fencer { id, armed } => self.with_shards(now, &mut actions, |shards, means| {
                shards.give(id, Input::Fencer(armed), means);
            }),
            Event::Fenced { id } => {
                self.with_shards(now, &mut actions, |shards, means| shards.give(id, Input::Fenced, means))
            }
            event => self.instance(event, now, &mut actions),
        }
        for action in &mut actions {
            match action {
                Action::Start { id, follow, .. } => *follow = self.shards.start_as(*id),
                Action::Publish(changes) => self.note_published(changes),
                _ => {}
            }
        }
        actions
    }

    /// Whether the agent's end leaves the instances running.
    pub fn keeps_instances(&self) -> bool {
        self.instances.values().any(|i| !matches!(i.state, State::Stopped | State::Stopping { .. }))
    }

    /// What the members of shards are and know.
    pub fn shards(&self, now: Now) -> Vec<ShardReport> {
        self.shards.reports(now)
    }

    /// Whether an instance is a member of a shard.
    pub fn is_member(&self, id: InstanceId) -> bool {
        self.shards.start_as(id).is_some()
    }

    /// Takes an operator's wish for a shard, named by its id, a member's address or the port of an instance of this host.
    /// What comes of an accepted wish is told by the shard's `outcome`.
    pub fn wish(&mut self, now: Now, shard: &str, wish: Wish) -> (Result<(), String>, Vec<Action>) {
        let mut actions = Vec::new();
        let outcome = self.with_shards(now, &mut actions, |shards, means| shards.wish(shard, wish, means));
        (outcome, actions)
    }

    fn with_shards<R>(
        &mut self,
        now: Now,
        actions: &mut Vec<Action>,
        f: impl FnOnce(&mut Shards, &mut Means<'_>) -> R,
    ) -> R {
        f(&mut self.shards, &mut Means { now, actions, alerts: &mut self.alerts })
    }

    /// What the members hear of their servers' processes.
    fn tell_life(&mut self, id: InstanceId, now: Now, actions: &mut Vec<Action>) {
        let life = match self.instances.get(&id) {
            Some(i) => match (i.state, i.pid) {
                (State::Up { .. } | State::Suspect { .. }, Some(_)) => Life::Up,
                // On its way out, but not dead.
                (State::Killed { .. } | State::Stopping { .. }, Some(_)) => return,
                (_, Some(_)) => Life::Started,
                (_, None) => Life::Dead,
            },
            None => Life::Dead,
        };
        self.with_shards(now, actions, |shards, means| shards.life(id, life, means));
    }

    fn configure_shards(&mut self, now: Now, actions: &mut Vec<Action>) {
        let Core { shards, alerts, instances, engines, plan, .. } = self;
        let wanted = instances.values().filter(|i| !i.surplus && i.state != State::Parked);
        let of =
            |i: &Instance| engines.get(usize::from(i.id.engine.0)).and_then(|engine| engine.plan.as_ref());
        let mut means = Means { now, actions, alerts };
        shards.configure(wanted.map(|i| (i.id, of(i))), &plan.identity, &mut means);
    }

    /// When [`Core::step`] wants an [`Event::Tick`] although nothing happened.
    pub fn next_deadline(&self) -> Option<Instant> {
        if self.ending == Ending::Finished {
            return None;
        }
        let own = [Some(self.next_beat), self.publish_at, self.registry_lost.as_ref().map(|(at, _)| *at)];
        let figures = self.plan.statistics.enabled.then(|| {
            let infos = self.instances.values().filter_map(Instance::info_due);
            infos.chain(self.next_host_info)
        });
        let instances = self.instances.values().filter_map(Instance::next_deadline);
        let own = own.into_iter().chain([self.shards.next_deadline()]);
        own.flatten().chain(figures.into_iter().flatten()).chain(instances).min()
    }

    /// An engine's name.
    pub fn engine_name(&self, id: EngineId) -> &str {
        self.engines.get(usize::from(id.0)).map_or("", |engine| engine.name.as_str())
    }

    /// An engine's id, if it was ever configured.
    pub fn engine_id(&self, name: &str) -> Option<EngineId> {
        let index = self.engines.iter().position(|engine| engine.name == name)?;
        u16::try_from(index).ok().map(EngineId)
    }

    /// How many instances are up, of how many.
    pub fn count(&self) -> (usize, usize) {
        let wanted = self.instances.values().filter(|i| i.wanted());
        let up = wanted.clone().filter(|i| matches!(i.state, State::Up { .. }));
        (up.count(), wanted.count())
    }

    /// The instances for `status`, ordered by engine and port; parked ones are among them.
    pub fn report(&self) -> Vec<InstanceReport> {
        let live = self.instances.values().filter(|i| i.state != State::Stopped);
        live.map(|i| i.report(&self.plan.identity.ip)).collect()
    }

    /// The alerts that go on.
    pub fn alerts(&self) -> impl Iterator<Item = &Alert> {
        self.alerts.active()
    }

    // Time

    /// Misses from before a standstill of the loop are the host's fault, not the instances'.
    fn notice_lateness(&mut self, now: Now, actions: &mut Vec<Action>) {
        let Some(expected) = self.expected.take() else { return };
        let by = now.at.saturating_duration_since(expected);
        if by > LATE {
            self.late = Some(now.at);
            let text = format!("the event loop was {:.1} s late: this host stood still", by.as_secs_f64());
            actions.push(Action::Log(log::Level::Warn, text));
        }
    }

    fn tick(&mut self, now: Now, actions: &mut Vec<Action>) {
        self.with_shards(now, actions, |shards, means| shards.tick(means));
        let due: Vec<InstanceId> = self
            .instances
            .iter()
            .filter(|(_, i)| i.next_deadline().is_some_and(|at| at <= now.at))
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            self.with(id, now, actions, |instance, ctx| instance.tick(ctx));
        }
        if self.ending == Ending::All {
            self.bury(now, actions);
        }
        self.beat(now, actions);
        self.tell_registry_lost(now, actions);
        self.publish(now, actions);
        self.publish_figures(now, actions);
        self.total = self.wanted();
        self.expected = self.next_deadline();
    }

    fn beat(&mut self, now: Now, actions: &mut Vec<Action>) {
        if now.at < self.next_beat {
            return;
        }
        self.next_beat = later(self.next_beat, BEAT, now.at);
        if self.alerts.is_active("storm-guard") && !self.storm.exhausted(now.at, self.total) {
            let over =
                self.alerts.resolve(now.unix_ms, "storm-guard", "hanging instances may be killed again");
            actions.extend(over.map(Action::Alert));
        }
        actions.extend(self.alerts.due(now.unix_ms).into_iter().map(Action::Alert));
    }

    /// Not with the beat: what has a deadline of its own must be done by it, or the loop would not rest until the beat.
    fn tell_registry_lost(&mut self, now: Now, actions: &mut Vec<Action>) {
        if let Some((_, why)) = self.registry_lost.take_if(|(at, _)| now.at >= *at) {
            let text = format!("the registry is lost: {why}");
            let alert = self.alerts.fire(now.unix_ms, "registry-lost", Severity::Critical, &text);
            actions.extend(alert.map(Action::Alert));
        }
    }

    // Instances

    fn wanted(&self) -> usize {
        self.instances.values().filter(|i| i.wanted()).count()
    }

    fn with<R>(
        &mut self,
        id: InstanceId,
        now: Now,
        actions: &mut Vec<Action>,
        f: impl FnOnce(&mut Instance, &mut Context<'_>) -> R,
    ) -> Option<R> {
        let instance = self.instances.get_mut(&id)?;
        let mut ctx = Context {
            now,
            actions,
            alerts: &mut self.alerts,
            storm: &mut self.storm,
            probing: &self.plan.probing,
            sampling: self.plan.statistics.enabled,
            late: self.late,
            total: self.total,
            epoch: self.started.at,
        };
        let result = f(instance, &mut ctx);
        if instance.dirty && self.publish_at.is_none() {
            self.publish_at = Some(now.at + PUBLISH_PAUSE);
        }
        self.tell_life(id, now, actions);
        Some(result)
    }

    fn instance(&mut self, event: Event, now: Now, actions: &mut Vec<Action>) {
        match event {
            Event::Started { id, pid, adopted } => {
                self.with(id, now, actions, |i, ctx| i.started(pid, adopted, ctx));
            }
            Event::NotStarted { id, why } => self.not_started(id, why, now, actions),
            Event::Exited { id, how } => {
                self.with(id, now, actions, |i, ctx| i.exited(&how, ctx));
                self.bury(now, actions);
            }
            Event::LastWords { id, text } => {
                self.with(id, now, actions, |i, ctx| i.last_words(&text, ctx));
            }
            Event::Ended { id, talk, outcome } => {
                self.with(id, now, actions, |i, ctx| i.ended(talk, outcome, ctx));
            }
            _ => {}
        }
    }

    fn not_started(&mut self, id: InstanceId, why: NotStarted, now: Now, actions: &mut Vec<Action>) {
        let parked = self.with(id, now, actions, |i, ctx| i.not_started(why, ctx));
        if parked == Some(true) {
            self.replace_parked(id, now, actions);
        }
        self.bury(now, actions);
    }

    /// Drops the instances that ended as asked, and finishes when they were the last.
    fn bury(&mut self, now: Now, actions: &mut Vec<Action>) {
        let stopped: Vec<InstanceId> =
            self.instances.iter().filter(|(_, i)| i.state == State::Stopped).map(|(id, _)| *id).collect();
        for id in &stopped {
            self.with(*id, now, actions, |i, ctx| i.resolve_all(ctx));
            self.instances.remove(id);
            actions.push(Action::Forget { id: *id });
        }
        if !stopped.is_empty() {
            self.configure_shards(now, actions);
            let engines: BTreeSet<EngineId> = stopped.iter().map(|id| id.engine).collect();
            engines.into_iter().for_each(|engine| self.write_ports(engine, actions));
            self.prune(now, actions);
        }
        if self.ending == Ending::All && !self.instances.values().any(Instance::delays_the_end) {
            let last = self.host_nodes();
            self.put(last, actions);
            self.ending = Ending::Finished;
            actions.push(Action::Finish);
        }
    }

    // The plan

    fn configure(&mut self, plan: HostPlan, now: Now, actions: &mut Vec<Action>) {
        if self.ending != Ending::No {
            return actions
                .push(Action::Log(log::Level::Warn, "the agent ends: no new plan is taken".to_owned()));
        }
        let fresh_stats = plan.statistics != self.plan.statistics
            || plan.probing.check_interval != self.plan.probing.check_interval;
        self.alerts.set_repeat(plan.alert_repeat);
        for engine in &mut self.engines {
            engine.plan = None;
        }
        for engine in &plan.engines {
            self.adopt_engine(engine.clone());
        }
        self.plan = plan;
        for instance in self.instances.values_mut() {
            instance.hurry(now.at, &self.plan.probing);
            if fresh_stats {
                instance.stats =
                    InstanceStats::new(&self.plan.statistics.windows, self.plan.probing.check_interval);
            }
        }
        for index in 0..self.engines.len() {
            if let Ok(index) = u16::try_from(index) {
                self.reconcile(EngineId(index), now, actions);
            }
        }
        self.bury(now, actions);
        actions.push(Action::Claim(self.plans().filter_map(desired::owned).collect()));
        self.tell_misfits(now, actions);
        self.prune(now, actions);
        self.publish_host(now, actions);
    }

    fn adopt_engine(&mut self, plan: EnginePlan) {
        match self.engines.iter_mut().find(|engine| engine.name == plan.name) {
            Some(engine) => engine.plan = Some(plan),
            None => self.engines.push(Engine { name: plan.name.clone(), plan: Some(plan) }),
        }
    }

    fn tell_misfits(&mut self, now: Now, actions: &mut Vec<Action>) {
        let alert = if self.plan.misfits.is_empty() {
            self.alerts.resolve(now.unix_ms, "plan-misfit", "the plan fits into the memory")
        } else {
            let text = format!("the plan does not fit: {}", self.plan.misfits.join("; "));
            self.alerts.fire(now.unix_ms, "plan-misfit", Severity::Warning, &text)
        };
        actions.extend(alert.map(Action::Alert));
    }

    /// Makes an engine's instances as many as planned, touching no other.
    fn reconcile(&mut self, engine: EngineId, now: Now, actions: &mut Vec<Action>) {
        let Some(plan) = self.engines[usize::from(engine.0)].plan.clone() else {
            return self.stop_engine(engine, now, actions);
        };
        self.drop_parked(engine, now, actions);
        let current: Vec<u16> = self
            .instances
            .values()
            .filter(|i| i.id.engine == engine && i.wanted())
            .map(|i| i.id.port)
            .collect();
        let barred: BTreeSet<u16> = self
            .instances
            .values()
            .filter(|i| i.id.engine == engine && !i.wanted())
            .map(|i| i.id.port)
            .collect();
        let wanted = choose_ports(&plan, &current, &barred);
        for port in current.iter().filter(|port| !wanted.contains(port)) {
            let id = InstanceId { engine, port: *port };
            self.with(id, now, actions, |i, ctx| i.stop(ctx));
        }
        let mut changed = Vec::new();
        for instance in self.instances.values_mut().filter(|i| i.id.engine == engine) {
            instance.planned_maxmem = plan.maxmem;
            instance.dirty = true;
            if instance.wanted() && instance.unattended != plan.unattended {
                instance.unattended.clone_from(&plan.unattended);
                changed.push(instance.id);
            }
        }
        for id in changed {
            self.with(id, now, actions, |i, ctx| i.start(ctx));
        }
        for port in wanted.iter().filter(|port| !current.contains(port)) {
            self.add(engine, *port, &plan, false, now);
        }
        // Instances that nobody looks after are not ended either.
        let known = plan.known_ports.iter().filter(|p| !wanted.contains(p) && !current.contains(p));
        let known = known.filter(|_| plan.unattended.is_none());
        for port in known.copied().collect::<Vec<_>>() {
            self.add(engine, port, &plan, true, now);
        }
        self.write_ports(engine, actions);
        self.configure_shards(now, actions);
        self.start_planned(engine, now, actions);
        self.tell_ports(engine, now, actions);
    }

    /// Starts what is new. Its ports are written down before, so that a server whose agent dies before it can record it
    /// is found again.
    fn start_planned(&mut self, engine: EngineId, now: Now, actions: &mut Vec<Action>) {
        let planned = self.instances.values().filter(|i| i.id.engine == engine && i.state == State::Planned);
        for id in planned.map(|i| i.id).collect::<Vec<_>>() {
            self.with(id, now, actions, |i, ctx| i.start(ctx));
        }
    }

    /// A port that was somebody else's is judged anew with each plan, so that its alert can end.
    fn drop_parked(&mut self, engine: EngineId, now: Now, actions: &mut Vec<Action>) {
        let parked = self.instances.values().filter(|i| i.id.engine == engine && i.state == State::Parked);
        for id in parked.map(|i| i.id).collect::<Vec<_>>() {
            self.with(id, now, actions, |i, ctx| i.stop(ctx));
        }
        self.bury(now, actions);
    }

    /// Says whether the sequence of ports holds as many instances as planned.
    fn tell_ports(&mut self, engine: EngineId, now: Now, actions: &mut Vec<Action>) {
        let Some(Engine { name, plan }) = self.engines.get(usize::from(engine.0)) else { return };
        let planned = plan.as_ref().map_or(0, |plan| plan.count as usize);
        let held = self.instances.values().filter(|i| i.id.engine == engine && i.wanted()).count();
        let key = format!("ports-exhausted/{name}");
        let alert = if held < planned {
            let text =
                format!("{name} has no port left in its sequence: {held} of {planned} instances have one");
            self.alerts.fire(now.unix_ms, &key, Severity::Critical, &text)
        } else {
            self.alerts.resolve(now.unix_ms, &key, &format!("{name} has all the ports that it needs"))
        };
        actions.extend(alert.map(Action::Alert));
    }

    fn stop_engine(&mut self, engine: EngineId, now: Now, actions: &mut Vec<Action>) {
        let ids: Vec<InstanceId> = self.instances.keys().filter(|id| id.engine == engine).copied().collect();
        for id in ids {
            self.with(id, now, actions, |i, ctx| i.stop(ctx));
        }
        self.tell_ports(engine, now, actions);
    }

    fn plans(&self) -> impl Iterator<Item = &EnginePlan> {
        self.engines.iter().filter_map(|engine| engine.plan.as_ref())
    }

    fn add(&mut self, engine: EngineId, port: u16, plan: &EnginePlan, surplus: bool, now: Now) {
        let id = InstanceId { engine, port };
        if self.instances.contains_key(&id) {
            return;
        }
        let stats = InstanceStats::new(&self.plan.statistics.windows, self.plan.probing.check_interval);
        let known = plan.known_ports.contains(&port);
        let mut instance = Instance::new(id, &plan.name, self.ordinal, plan.maxmem, known, stats, now);
        instance.surplus = surplus;
        instance.unattended.clone_from(&plan.unattended);
        self.ordinal += 1;
        self.instances.insert(id, instance);
    }

    /// The port is somebody else's: the next one of the sequence takes its place.
    fn replace_parked(&mut self, id: InstanceId, now: Now, actions: &mut Vec<Action>) {
        let Some(plan) = self.engines[usize::from(id.engine.0)].plan.clone() else { return };
        let taken = |port: &u16| self.instances.contains_key(&InstanceId { engine: id.engine, port: *port });
        if let Some(port) = sequence(&plan).find(|port| !taken(port)) {
            self.add(id.engine, port, &plan, false, now);
        }
        self.write_ports(id.engine, actions);
        self.configure_shards(now, actions);
        self.start_planned(id.engine, now, actions);
        self.tell_ports(id.engine, now, actions);
        self.prune(now, actions);
    }

    /// Those that end with the agent keep their ports, so that the next one gives them the same addresses.
    fn write_ports(&self, engine: EngineId, actions: &mut Vec<Action>) {
        if self.ending != Ending::No {
            return;
        }
        let mine = self.instances.values().filter(|i| i.id.engine == engine && i.wanted());
        actions.push(Action::WritePorts { engine, ports: mine.map(|i| i.id.port).collect() });
    }

    // The end

    fn stop(&mut self, all: bool, now: Now, actions: &mut Vec<Action>) {
        if self.ending == Ending::Finished || (self.ending == Ending::All && all) {
            return;
        }
        if !all {
            self.ending = Ending::Finished;
            actions.push(Action::Finish);
            return;
        }
        self.ending = Ending::All;
        let ids: Vec<InstanceId> = self.instances.keys().copied().collect();
        for id in ids {
            self.with(id, now, actions, |i, ctx| i.stop(ctx));
        }
        self.bury(now, actions);
    }

    // The registry

    fn registry(&mut self, news: RegistryEvent, now: Now, actions: &mut Vec<Action>) {
        self.with_shards(now, actions, |shards, means| shards.registry(&news, means));
        let t = now.unix_ms;
        let alert = match news {
            RegistryEvent::Connected { server, .. } => {
                self.registry_lost = None;
                self.alerts.resolve(t, "registry-lost", &format!("the registry is back at {server}"))
            }
            RegistryEvent::Lost { why } => {
                match &mut self.registry_lost {
                    Some((_, reason)) => *reason = why,
                    None if self.alerts.is_active("registry-lost") => {}
                    None => self.registry_lost = Some((now.at + REGISTRY_GRACE, why)),
                }
                None
            }
            RegistryEvent::Synced => None,
            RegistryEvent::Conflict { path, holder } => {
                let text = format!("{path} is held by another live agent for the same address: {holder}");
                self.alerts.fire(t, &format!("{CONFLICT}{path}"), Severity::Critical, &text)
            }
            RegistryEvent::ConflictOver { path } => {
                let text = format!("{path} is held by this agent");
                self.alerts.resolve(t, &format!("{CONFLICT}{path}"), &text)
            }
            RegistryEvent::Refused { path, why } => {
                let text = format!("the registry refuses {path}: {why}");
                self.alerts.fire(t, &format!("{REFUSED}{path}"), Severity::Warning, &text)
            }
            RegistryEvent::Answered { .. } | RegistryEvent::Changed { .. } => None,
            RegistryEvent::RefusedOver { path } => {
                let text = format!("the registry took {path}");
                self.alerts.resolve(t, &format!("{REFUSED}{path}"), &text)
            }
        };
        actions.extend(alert.map(Action::Alert));
    }

    /// The host's node for each engine: it names versions and the number of instances, which change with them.
    fn host_nodes(&self) -> Vec<Change> {
        let configured = self.engines.iter().enumerate().filter_map(|(i, e)| Some((i, e.plan.as_ref()?)));
        let node = |(index, plan): (usize, &EnginePlan)| {
            let mine = self.instances.values().filter(|i| usize::from(i.id.engine.0) == index && i.wanted());
            let node = desired::host(&self.plan.identity, plan, &mine.collect::<Vec<_>>());
            Change::Put { path: plan.server_path.clone(), node }
        };
        configured.map(node).collect()
    }

    /// The host's node and its `active` for each engine, and whatever else is new.
    fn publish_host(&mut self, now: Now, actions: &mut Vec<Action>) {
        let mut changes = self.host_nodes();
        changes.extend(self.plans().map(|plan| Change::Put {
            path: desired::active_path(plan),
            node: desired::active(&self.plan.identity, self.started.unix_ms),
        }));
        self.put(changes, actions);
        self.publish_at = Some(now.at);
    }

    /// The nodes of instances that changed, gathered.
    fn publish(&mut self, now: Now, actions: &mut Vec<Action>) {
        if self.publish_at.is_none_or(|at| now.at < at) {
            return;
        }
        self.publish_at = None;
        let mut changes = Vec::new();
        for instance in self.instances.values_mut().filter(|i| i.dirty) {
            instance.dirty = false;
            let Some(engine) = self.engines.get(usize::from(instance.id.engine.0)) else { continue };
            let Some(plan) = engine.plan.as_ref().filter(|_| instance.is_published()) else { continue };
            let path = desired::instance_path(plan, instance.id.port);
            changes.push(Change::Put {
                path,
                node: desired::instance(&self.plan.identity, &engine.name, instance),
            });
        }
        changes.extend(self.host_nodes());
        self.put(changes, actions);
    }

    fn note_published(&mut self, changes: &[Change]) {
        for change in changes {
            if let Change::Put { path, .. } = change
                && !self.published.contains(path)
            {
                self.published.insert(path.clone());
            }
        }
    }

    fn put(&mut self, changes: Vec<Change>, actions: &mut Vec<Action>) {
        self.note_published(&changes);
        if !changes.is_empty() {
            actions.push(Action::Publish(changes));
        }
    }

    /// The paths that the tree may have.
    fn desired_paths(&self) -> BTreeSet<String> {
        let statistics = self.plan.statistics.enabled;
        let with_info = |path: String| [statistics.then(|| desired::info_path(&path)), Some(path)];
        let hosts = self.plans().flat_map(|plan| {
            [Some(desired::active_path(plan))].into_iter().chain(with_info(plan.server_path.clone()))
        });
        let instances = self.instances.values().filter(|i| i.is_published()).filter_map(|i| {
            let plan = self.engines.get(usize::from(i.id.engine.0))?.plan.as_ref()?;
            Some(with_info(desired::instance_path(plan, i.id.port)))
        });
        hosts.chain(instances.flatten()).flatten().chain(self.shards.paths()).collect()
    }

    /// Removes what was published and is not to be there any more. A node above one that stays is left as its parent.
    fn prune(&mut self, now: Now, actions: &mut Vec<Action>) {
        let desired = self.desired_paths();
        let stale: Vec<String> = self.published.difference(&desired).cloned().collect();
        let mut changes: Vec<Change> = Vec::new();
        let mut top: Option<&String> = None;
        for path in stale.iter().filter(|path| !desired.iter().any(|kept| desired::is_within(kept, path))) {
            self.published.remove(path);
            if top.is_none_or(|top| !desired::is_within(path, top)) {
                changes.push(Change::Remove { path: path.clone() });
                top = Some(path);
            }
        }
        if !changes.is_empty() {
            actions.push(Action::Publish(changes));
        }
        self.resolve_removed(&stale, now, actions);
    }

    /// What the registry said of a path is void when the path is. The registry names it with its chroot before it.
    fn resolve_removed(&mut self, paths: &[String], now: Now, actions: &mut Vec<Action>) {
        let of_registry = |key: &str| key.starts_with(CONFLICT) || key.starts_with(REFUSED);
        let keys = self.alerts.active().map(|alert| alert.key.clone()).filter(|key| of_registry(key));
        for key in keys.filter(|key| paths.iter().any(|path| key.ends_with(path))).collect::<Vec<_>>() {
            let over = self.alerts.resolve(now.unix_ms, &key, "the node is no longer wanted");
            actions.extend(over.map(Action::Alert));
        }
    }

    /// How often an instance's figures are published.
    fn info_period(&self) -> Duration {
        self.plan.probing.check_interval * self.plan.statistics.publish_every.max(1)
    }

    /// The figures that are due. Each instance has its own point in the period, so that a fleet doesn't write in one
    /// beat.
    fn publish_figures(&mut self, now: Now, actions: &mut Vec<Action>) {
        if !self.plan.statistics.enabled {
            return;
        }
        let period = self.info_period();
        let mut changes = Vec::new();
        for instance in self.instances.values_mut() {
            if instance.info_due().is_none_or(|at| now.at < at) {
                continue;
            }
            let offset = period / 128 * (spread(&self.plan.identity.ip, instance.id.port) % 128);
            instance.next_info = Some(later(self.started.at + offset, period, now.at));
            let Some(plan) =
                self.engines.get(usize::from(instance.id.engine.0)).and_then(|e| e.plan.as_ref())
            else {
                continue;
            };
            if let Some(figures) = instance.figures() {
                let path = desired::info_path(&desired::instance_path(plan, instance.id.port));
                changes.push(Change::Put { path, node: desired::info(&figures) });
            }
        }
        if !changes.is_empty() && self.next_host_info.is_none() {
            self.next_host_info = Some(now.at + PUBLISH_PAUSE);
        }
        self.publish_host_figures(now, period, &mut changes);
        self.put(changes, actions);
    }

    fn publish_host_figures(&mut self, now: Now, period: Duration, changes: &mut Vec<Change>) {
        if self.next_host_info.is_none_or(|at| now.at < at) {
            return;
        }
        let offset = period / 128 * (spread(&self.plan.identity.ip, 0) % 128);
        self.next_host_info = Some(later(self.started.at + offset, period, now.at));
        for (index, engine) in self.engines.iter().enumerate() {
            let Some(plan) = &engine.plan else { continue };
            let mine = self.instances.values().filter(|i| usize::from(i.id.engine.0) == index && i.wanted());
            let figures: Vec<_> = mine.filter_map(Instance::figures).collect();
            let path = desired::info_path(&plan.server_path);
            changes.push(Change::Put { path, node: desired::info(&HostFigures::sum(&figures)) });
        }
    }
}

/// A number that differs between hosts and ports and never changes (FNV-1a).
fn spread(ip: &str, port: u16) -> u32 {
    let bytes = ip.bytes().chain(port.to_be_bytes());
    bytes.fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// The ports an engine may use, in order.
fn sequence(plan: &EnginePlan) -> impl Iterator<Item = u16> {
    (plan.port..=u16::MAX).step_by(usize::from(plan.port_step.max(1)))
}

/// The ports to use: those in use first, then those written down, then the sequence, without those that are somebody
/// else's or on their way out. Ports outside the sequence are not used, so that a changed `port` takes effect.
fn choose_ports(plan: &EnginePlan, current: &[u16], barred: &BTreeSet<u16>) -> Vec<u16> {
    let in_sequence =
        |port: &u16| *port >= plan.port && (*port - plan.port).is_multiple_of(plan.port_step.max(1));
    let mut chosen = Vec::new();
    let known = current.iter().chain(&plan.known_ports).copied().filter(in_sequence);
    for port in known.chain(sequence(plan)) {
        if chosen.len() >= plan.count as usize {
            break;
        }
        if !chosen.contains(&port) && !barred.contains(&port) {
            chosen.push(port);
        }
    }
    chosen
}
