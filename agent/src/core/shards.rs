//! A host's members of shards among its instances: what they must hear of, and what comes of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Instant,
};

use super::{
    Action, EnginePlan, HostIdentity, InstanceId, Now,
    alert::AlertBook,
    failover::{Command, Input, Life, Member, RequestId, ShardPlan, ShardReport, Wish},
    instance::PROBED_AT_ONCE,
};
use crate::shell::registry::{Change, Mode, Node, RegistryEvent, SessionFacts};

/// What the members may use while they decide.
pub(super) struct Means<'a> {
    pub(super) now: Now,
    pub(super) actions: &'a mut Vec<Action>,
    pub(super) alerts: &'a mut AlertBook,
}

/// The members of this host, one for each instance that has peers.
#[derive(Debug, Default)]
pub(super) struct Shards {
    members: BTreeMap<InstanceId, Member>,
    /// Those that are members no longer, until they have given back what they hold. Their servers are none of their
    /// business any more.
    leaving: BTreeSet<InstanceId>,
    /// Who waits for the answer to which request of the registry.
    waiting: BTreeMap<u64, (InstanceId, RequestId)>,
    tokens: u64,
    session: Option<SessionFacts>,
    connected: bool,
}

impl Shards {
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.members.values().filter_map(Member::next_deadline).min()
    }

    /// The paths that the members keep in the registry's tree.
    pub(super) fn paths(&self) -> impl Iterator<Item = String> {
        self.staying().map(|(_, member)| member.node_path())
    }

    fn staying(&self) -> impl Iterator<Item = (&InstanceId, &Member)> {
        self.members.iter().filter(|(id, _)| !self.leaving.contains(id))
    }

    pub(super) fn reports(&self, now: Now) -> Vec<ShardReport> {
        self.staying().map(|(_, member)| member.report(now)).collect()
    }

    /// As whose replica an instance is to be started.
    pub(super) fn start_as(&self, id: InstanceId) -> Option<(String, u16)> {
        self.members.get(&id).filter(|_| !self.leaving.contains(&id)).map(Member::start_as)
    }

    // Who is a member

    /// Makes the members those of `instances`, with the plan of their engine; without one, they are on their way out and
    /// stay what they are until they have ended.
    pub(super) fn configure<'a>(
        &mut self,
        instances: impl Iterator<Item = (InstanceId, Option<&'a EnginePlan>)>,
        identity: &HostIdentity,
        means: &mut Means<'_>,
    ) {
        let mut kept = BTreeSet::new();
        for (id, engine) in instances {
            match engine.map(|engine| shard_plan(engine, identity, id.port)) {
                Some(Some(plan)) => self.join(id, plan, means),
                Some(None) => continue,
                None => {}
            }
            kept.insert(id);
        }
        let gone: Vec<InstanceId> =
            self.staying().map(|(id, _)| *id).filter(|id| !kept.contains(id)).collect();
        gone.into_iter().for_each(|id| self.part(id, means));
    }

    fn join(&mut self, id: InstanceId, plan: ShardPlan, means: &mut Means<'_>) {
        self.leaving.remove(&id);
        if let Some(member) = self.members.get(&id) {
            if member.plan().id() != plan.id() {
                resolve_all(member.plan().id(), means);
            }
            return self.give(id, Input::Plan(Box::new(plan)), means);
        }
        self.members.insert(id, Member::new(means.now, plan));
        self.give(id, Input::Session(self.session.clone()), means);
        if self.connected {
            self.give(id, Input::Connected, means);
        }
    }

    /// It is no member any more: for the shard its server is dead.
    fn part(&mut self, id: InstanceId, means: &mut Means<'_>) {
        let Some(member) = self.members.get(&id) else { return };
        resolve_all(member.plan().id(), means);
        let dead = member.life() == Life::Dead;
        self.leaving.insert(id);
        means.actions.push(Action::Lease { id, until: None });
        self.give(id, if dead { Input::Tick } else { Input::Server(Life::Dead) }, means);
    }

    // What they hear

    pub(super) fn session(&mut self, facts: Option<SessionFacts>, means: &mut Means<'_>) {
        self.session.clone_from(&facts);
        self.give_all(&Input::Session(facts), means);
    }

    pub(super) fn registry(&mut self, news: &RegistryEvent, means: &mut Means<'_>) {
        match news {
            RegistryEvent::Connected { .. } => {
                self.connected = true;
                self.give_all(&Input::Connected, means);
            }
            RegistryEvent::Lost { .. } => {
                self.connected = false;
                self.give_all(&Input::Lost, means);
            }
            RegistryEvent::Changed { path } => {
                for id in self.those(|member| member.concerns(path)) {
                    self.give(id, Input::Changed { path: path.clone() }, means);
                }
            }
            RegistryEvent::Answered { token, answer } => {
                if let Some((id, request)) = self.waiting.remove(token) {
                    self.give(id, Input::Answered { request, answer: answer.clone() }, means);
                }
            }
            _ => {}
        }
    }

    /// What is known of an instance's process.
    pub(super) fn life(&mut self, id: InstanceId, life: Life, means: &mut Means<'_>) {
        let known = self.members.get(&id).filter(|_| !self.leaving.contains(&id)).map(Member::life);
        if known.is_some_and(|known| known != life) {
            self.give(id, Input::Server(life), means);
        }
    }

    /// Whoever is due; before anything else of this moment, for a lease may have run out. Then whoever looks along.
    pub(super) fn tick(&mut self, means: &mut Means<'_>) {
        let now = means.now.at;
        let due = self.those(|member| member.is_due(now));
        let looks = due.iter().filter_map(|id| self.members.get(id)).any(|member| member.is_to_look(now));
        for id in due {
            self.give(id, Input::Tick, means);
        }
        let mut along = if looks { self.those(|member| member.looks_along(now)) } else { Vec::new() };
        along.truncate(PROBED_AT_ONCE);
        for id in along {
            if let Some(member) = self.members.get_mut(&id) {
                member.look_now(now);
            }
            self.give(id, Input::Tick, means);
        }
    }

    fn those(&self, which: impl Fn(&Member) -> bool) -> Vec<InstanceId> {
        self.members.iter().filter(|(_, member)| which(member)).map(|(id, _)| *id).collect()
    }

    pub(super) fn give_all(&mut self, input: &Input, means: &mut Means<'_>) {
        for id in self.members.keys().copied().collect::<Vec<_>>() {
            self.give(id, input.clone(), means);
        }
    }

    pub(super) fn give(&mut self, id: InstanceId, input: Input, means: &mut Means<'_>) {
        let Some(member) = self.members.get_mut(&id) else { return };
        let commands = member.step(means.now, input);
        self.carry_out(id, commands, means);
        if self.leaving.contains(&id) && self.members.get(&id).is_some_and(Member::holds_nothing) {
            self.members.remove(&id);
            self.leaving.remove(&id);
        }
    }

    /// An operator's wish for a shard, named by its id, a member's address, or the port of an instance of this host.
    pub(super) fn wish(&mut self, shard: &str, wish: Wish, means: &mut Means<'_>) -> Result<(), String> {
        let named = |(id, member): &(&InstanceId, &mut Member)| {
            shard == id.port.to_string()
                || member.plan().id() == shard
                || member.plan().members.iter().any(|a| a == shard)
        };
        let leaving = &self.leaving;
        let mut staying = self.members.iter_mut().filter(|(id, _)| !leaving.contains(id));
        let Some((id, member)) = staying.find(named) else {
            return Err(format!("no shard of this host is named {shard}"));
        };
        let (id, commands) = (*id, member.wish(means.now, wish)?);
        self.carry_out(id, commands, means);
        Ok(())
    }

    // What comes of it

    fn carry_out(&mut self, id: InstanceId, commands: Vec<Command>, means: &mut Means<'_>) {
        let Some(member) = self.members.get(&id) else { return };
        let (path, shard) = (member.node_path(), member.plan().id());
        let leaving = self.leaving.contains(&id);
        let of_the_registry = |command: &Command| matches!(command, Command::Request(..) | Command::Log(..));
        for command in commands.into_iter().filter(|command| !leaving || of_the_registry(command)) {
            let action = match command {
                Command::Request(request, what) => {
                    self.tokens += 1;
                    self.waiting.insert(self.tokens, (id, request));
                    Action::Request { token: self.tokens, request: what }
                }
                Command::Publish(content) => {
                    let node = Node { mode: Mode::Ephemeral, content };
                    Action::Publish(vec![Change::Put { path: path.clone(), node }])
                }
                Command::Order { order, until } => Action::Order { id, order, deadline: until },
                Command::Lease(until) => Action::Lease { id, until },
                Command::Grace(until) => Action::Grace { id, until },
                Command::Kill => Action::Kill { id },
                Command::Fire { what, severity, summary } => {
                    match means.alerts.fire(means.now.unix_ms, &format!("{what}/{shard}"), severity, &summary)
                    {
                        Some(alert) => Action::Alert(alert),
                        None => continue,
                    }
                }
                Command::Resolve { what, summary } => {
                    match means.alerts.resolve(means.now.unix_ms, &format!("{what}/{shard}"), &summary) {
                        Some(alert) => Action::Alert(alert),
                        None => continue,
                    }
                }
                Command::Log(level, text) => Action::Log(level, text),
            };
            means.actions.push(action);
        }
    }
}

/// What was told of a shard is over when this host has no part in it.
fn resolve_all(shard: &str, means: &mut Means<'_>) {
    let of_it = |key: &&str| key.split_once('/').is_some_and(|(_, of)| of == shard);
    let active = means.alerts.active().map(|alert| alert.key.as_str());
    let keys: Vec<String> = active.filter(of_it).map(str::to_owned).collect();
    let over = keys.iter().filter_map(|key| {
        means.alerts.resolve(means.now.unix_ms, key, "this host has no part in the shard any more")
    });
    let over: Vec<Action> = over.map(Action::Alert).collect();
    means.actions.extend(over);
}

/// The shard of an instance; `None`: it is alone.
fn shard_plan(engine: &EnginePlan, identity: &HostIdentity, port: u16) -> Option<ShardPlan> {
    let shards = engine.shards.as_ref()?;
    let own: IpAddr = identity.ip.parse().ok()?;
    let hosts: BTreeSet<IpAddr> = shards.peers.iter().copied().chain([own]).collect();
    if hosts.len() < 2 {
        return None;
    }
    let address = |host: &IpAddr| std::net::SocketAddr::new(*host, port).to_string();
    Some(ShardPlan {
        root: shards.root.clone(),
        address: address(&own),
        members: hosts.iter().map(address).collect(),
        host_id: identity.host_id.clone(),
        nonce: identity.nonce.clone(),
        timing: shards.timing.clone(),
        fencing: shards.fencing,
        failsafe: shards.failsafe,
        max_lag: shards.max_lag,
        min_replicas: shards.min_replicas,
    })
}
