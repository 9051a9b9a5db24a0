//! A host's agent around its member: the loop that feeds it, what carries its commands out, and the fencer.

use std::{collections::VecDeque, time::Instant};

use yagent::{
    core::failover::{Command, FENCE_FOR, Input, Life, Member, Order, Ordered, Timing},
    shell::registry::SessionFacts,
};

use super::{
    client::Client,
    world::{Happening, Sent, World},
};
use crate::world::{MS, Micros, SECOND};

/// More steps in a second are a spin. A target of a handover looks every 2 ms.
const STEPS_A_SECOND: u32 = 2500;
/// More at one moment as well.
const STEPS_AT_ONCE: u32 = 300;
/// How often a client's failure to start is retried, at most.
const RESTART_AT_MOST: Micros = 2 * SECOND;

#[derive(Debug)]
pub(super) struct Agent {
    pub(super) member: Member,
    pub(super) client: Client,
    pub(super) inbox: VecDeque<Input>,
    commands: VecDeque<Command>,
    /// The whole process is stopped.
    pub(super) stopped: bool,
    /// Only its loop stands still.
    pub(super) stuck: bool,
    order: Option<u64>,
    told: Option<SessionFacts>,
    wake: Option<Micros>,
    /// What the fencer was told last.
    lease: Option<Micros>,
    /// Until when at most where it knows of no lease.
    grace: Option<Micros>,
    /// The process that it knows of.
    pub(super) pid: u32,
    /// The process for which it knows a fencer to stand by.
    armed: u32,
    deaths: u32,
    last_death: Micros,
    /// Alerts that stand.
    pub(super) alerts: Vec<&'static str>,
    second: Micros,
    steps: u32,
    moment: Micros,
    steps_now: u32,
}

/// The process that fences when a lease ends.
#[derive(Debug, Default)]
pub(super) struct Fencer {
    pub(super) alive: bool,
    /// The process that it can fence.
    pub(super) pid: u32,
    pub(super) until: Option<Micros>,
    serial: u64,
    /// It has sent a fence that was not answered.
    fencing: bool,
}

fn micros(duration: std::time::Duration) -> Micros {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl World {
    fn timing(&self) -> &Timing {
        &self.setting.timing
    }

    pub(super) fn stopped(&self, host: usize) -> bool {
        self.hosts[host].agent.as_ref().is_none_or(|agent| agent.stopped)
    }

    // Its life

    pub(super) fn begin_agent(&mut self, host: usize) {
        if self.hosts[host].agent.is_some() {
            return;
        }
        self.hosts[host].life += 1;
        let life = self.hosts[host].life;
        self.log(|| format!("== host {host}: agent {life} begins"));
        let mut plan = self.hosts[host].plan.clone();
        plan.nonce = format!("run {life} of host {host}");
        let mut member = Member::new(self.now(host), plan);
        if let Some(bug) = self.planted {
            member.plant(bug);
        }
        self.hosts[host].agent = Some(Box::new(Agent {
            member,
            client: Client::default(),
            inbox: VecDeque::new(),
            commands: VecDeque::new(),
            stopped: false,
            stuck: false,
            order: None,
            told: None,
            wake: None,
            lease: None,
            grace: None,
            pid: 0,
            armed: 0,
            deaths: 0,
            last_death: 0,
            alerts: Vec::new(),
            second: 0,
            steps: 0,
            moment: 0,
            steps_now: 0,
        }));
        let delay = self.dice.within(MS..50 * MS);
        self.later(delay, Happening::Dial { host, life });
        if !self.hosts[host].fencer.alive {
            self.later(delay, Happening::FencerBack { host, life });
        }
        let pid = self.hosts[host].redis.pid;
        if pid == 0 {
            self.start_redis(host, 10 * MS);
        } else {
            self.adopt(host, pid);
        }
        self.turn(host);
    }

    fn adopt(&mut self, host: usize, pid: u32) {
        let life = self.hosts[host].life;
        if let Some(agent) = &mut self.hosts[host].agent {
            agent.pid = pid;
        }
        self.tell(host, Input::Server(Life::Started));
        let delay = self.dice.within(MS..100 * MS);
        self.later(delay, Happening::Answers { host, life, pid });
    }

    pub(super) fn kill_agent(&mut self, host: usize) {
        let Some(agent) = self.hosts[host].agent.take() else { return };
        self.log(|| format!("!! host {host}: its agent dies"));
        self.hosts[host].life += 1;
        if let Some(conn) = agent.client.conn {
            let dropped = self.dice.percent(30);
            self.close_conn(conn, dropped);
        }
        self.note_guard(host);
    }

    pub(super) fn resume(&mut self, host: usize, life: u32) {
        if self.hosts[host].life != life {
            return;
        }
        let Some(agent) = &mut self.hosts[host].agent else { return };
        self.checks.resumed[host] = self.t;
        let process = std::mem::take(&mut agent.stopped);
        agent.stuck = false;
        let conn = agent.client.conn;
        self.log(|| format!("!! host {host}: its agent goes on"));
        if process {
            self.reopens(host);
            match conn {
                Some(conn) => {
                    self.heartbeat(host, conn);
                    self.later(MS, Happening::Silence { host, conn });
                }
                None => self.later(MS, Happening::Dial { host, life }),
            }
            self.look_at_process(host);
        }
        self.note_guard(host);
        self.turn(host);
    }

    /// What the pidfd told while the agent was stopped.
    fn look_at_process(&mut self, host: usize) {
        let (pid, life) = (self.hosts[host].redis.pid, self.hosts[host].life);
        let known = self.hosts[host].agent.as_ref().map_or(0, |agent| agent.pid);
        if known != 0 && known != pid {
            self.later(0, Happening::Noticed { host, life, pid: known });
        } else if self.hosts[host].redis.stopped {
            self.later(SECOND, Happening::Hangs { host, life, pid });
        }
    }

    // The loop

    pub(super) fn tell(&mut self, host: usize, input: Input) {
        if let Some(agent) = &mut self.hosts[host].agent {
            agent.inbox.push_back(input);
            let life = self.hosts[host].life;
            self.later(0, Happening::Wake { host, life, at: 0 });
        }
    }

    pub(super) fn wake(&mut self, host: usize, life: u32, at: Micros) {
        if self.hosts[host].life != life {
            return;
        }
        let Some(agent) = &mut self.hosts[host].agent else { return };
        if at == 0 || agent.wake == Some(at) {
            if at != 0 {
                agent.wake = None;
            }
            self.turn(host);
        }
    }

    /// What happened goes in, what the member wants is done, until nothing is left.
    pub(super) fn turn(&mut self, host: usize) {
        self.look_along(host);
        loop {
            let now = self.now(host);
            let facts = self.facts(host);
            let Some(agent) = &mut self.hosts[host].agent else { return };
            if agent.stopped || agent.stuck || self.checks.violation.is_some() {
                return;
            }
            if let Some(command) = agent.commands.pop_front() {
                self.carry_out(host, command);
                continue;
            }
            let due = agent.member.is_due(now.at);
            if !due && agent.inbox.is_empty() {
                break;
            }
            // As the event loop has it: the session, what happened, and a tick when all of that is in.
            let input = if agent.told != facts {
                agent.told = facts.clone();
                Input::Session(facts)
            } else if let Some(input) = agent.inbox.pop_front() {
                input
            } else {
                Input::Tick
            };
            self.step(host, input);
        }
        let Some(agent) = &self.hosts[host].agent else { return };
        let (Some(deadline), life) = (agent.member.next_deadline(), self.hosts[host].life) else { return };
        let at = self.micros(host, deadline);
        let Some(agent) = self.hosts[host].agent.as_mut().filter(|agent| agent.wake != Some(at)) else {
            return;
        };
        agent.wake = Some(at);
        let late = if self.dice.percent(2) { self.dice.within(0..50 * MS) } else { 0 };
        let delay = at.saturating_sub(self.t) + late;
        self.later(delay, Happening::Wake { host, life, at });
    }

    /// The host woke up, and it may be because a member of another shard looks at its server.
    fn look_along(&mut self, host: usize) {
        let (now, stopped) = (self.now(host), self.stopped(host));
        let (Some(dice), Some(agent)) = (&mut self.neighbours, &mut self.hosts[host].agent) else { return };
        if !stopped && !agent.stuck && agent.member.looks_along(now.at) && dice.percent(20) {
            agent.member.look_now(now.at);
            agent.inbox.push_back(Input::Tick);
        }
    }

    fn step(&mut self, host: usize, input: Input) {
        let (now, t) = (self.now(host), self.t);
        self.log(|| {
            let text = format!("{input:?}");
            format!("{host} -> {}", text.chars().take(700).collect::<String>())
        });
        let dead = matches!(input, Input::Server(Life::Dead));
        let Some(agent) = &mut self.hosts[host].agent else { return };
        let commands = agent.member.step(now, input);
        agent.commands.extend(commands);
        if t / SECOND != agent.second {
            (agent.second, agent.steps) = (t / SECOND, 0);
        }
        if t != agent.moment {
            (agent.moment, agent.steps_now) = (t, 0);
        }
        agent.steps += 1;
        agent.steps_now += 1;
        self.checks.steps += 1;
        if agent.steps > STEPS_A_SECOND || agent.steps_now > STEPS_AT_ONCE {
            let report = agent.member.report(now);
            self.violate(format!("host {host} spins: {}, {}", report.stage, report.sentence));
        }
        if dead {
            self.restart_redis(host);
        }
    }

    fn restart_redis(&mut self, host: usize) {
        let t = self.t;
        let Some(agent) = &mut self.hosts[host].agent else { return };
        agent.pid = 0;
        agent.deaths = if t < agent.last_death + 10 * SECOND { agent.deaths + 1 } else { 0 };
        agent.last_death = t;
        let backoff = (200 * MS * u64::from(agent.deaths)).min(RESTART_AT_MOST);
        self.start_redis(host, backoff + 10 * MS);
    }

    fn start_redis(&mut self, host: usize, delay: Micros) {
        let life = self.hosts[host].life;
        let Some(agent) = &self.hosts[host].agent else { return };
        let follow = Box::new(agent.member.start_as());
        let spawn = self.dice.within(MS..40 * MS);
        self.later(delay + spawn, Happening::Spawned { host, life, follow });
    }

    pub(super) fn started(&mut self, host: usize, pid: u32) {
        let life = self.hosts[host].life;
        if let Some(agent) = &mut self.hosts[host].agent {
            agent.pid = pid;
            self.tell(host, Input::Server(Life::Started));
            let delay = self.dice.within(MS..60 * MS);
            self.later(delay, Happening::Answers { host, life, pid });
        }
    }

    pub(super) fn answers(&mut self, host: usize, life: u32, pid: u32) {
        let redis = &self.hosts[host].redis;
        if self.hosts[host].life != life || redis.pid != pid {
            return;
        }
        if redis.stopped {
            return self.later(200 * MS, Happening::Answers { host, life, pid });
        }
        self.tell(host, Input::Server(Life::Up));
    }

    pub(super) fn noticed(&mut self, host: usize, life: u32, pid: u32) {
        if self.hosts[host].life != life || self.stopped(host) {
            return;
        }
        let Some(agent) = &mut self.hosts[host].agent else { return };
        if agent.pid == pid {
            agent.pid = 0;
            (agent.lease, agent.grace) = (None, None);
            self.tell(host, Input::Server(Life::Dead));
            self.tell(host, Input::Fencer(false));
        }
    }

    /// The supervision of instances kills one that is stopped, as long as it may.
    pub(super) fn hangs(&mut self, host: usize, life: u32, pid: u32) {
        let redis = &self.hosts[host].redis;
        if self.hosts[host].life != life || redis.pid != pid || !redis.stopped {
            return;
        }
        let Some(agent) = &self.hosts[host].agent else { return };
        if agent.stopped {
            return;
        }
        if agent.stuck || self.dice.percent(20) {
            return self.later(5 * SECOND, Happening::Hangs { host, life, pid });
        }
        self.later(MS, Happening::Dies { host, pid });
    }

    // Commands

    fn carry_out(&mut self, host: usize, command: Command) {
        if self.meet_command(host, &command) {
            if let Some(agent) = &mut self.hosts[host].agent {
                agent.commands.push_front(command);
            }
            return;
        }
        self.log(|| {
            let text = match &command {
                Command::Publish(content) => format!("Publish({})", String::from_utf8_lossy(content)),
                Command::Request(id, request) => format!("{id:?} {request:?}").chars().take(160).collect(),
                other => format!("{other:?}"),
            };
            format!("   {host} <- {text}")
        });
        match command {
            Command::Request(id, request) => self.ask(host, id, request),
            Command::Publish(content) => {
                let path = self.member(host).map(|member| member.node_path()).unwrap_or_default();
                self.keep_node(host, path, content);
            }
            Command::Order { order, until } => self.give_order(host, order, until),
            Command::Lease(until) => {
                let until = until.map(|at| self.micros(host, at));
                if let Some(agent) = &mut self.hosts[host].agent {
                    agent.lease = until;
                }
                self.feed(host, until);
            }
            Command::Grace(until) => {
                let until = Some(self.micros(host, until));
                let h = &mut self.hosts[host];
                if let Some(agent) = &mut h.agent {
                    agent.grace = until;
                }
                if h.fencer.until.is_none() {
                    self.feed(host, until);
                }
            }
            Command::Kill => {
                let pid = self.hosts[host].redis.pid;
                let slow = self.t < self.hosts[host].kills_slow;
                let delay = if slow { self.dice.within(0..4 * SECOND) } else { self.dice.within(0..3 * MS) };
                self.later(delay, Happening::Dies { host, pid });
            }
            Command::Fire { what, .. } => {
                if let Some(agent) = &mut self.hosts[host].agent
                    && !agent.alerts.contains(&what)
                {
                    agent.alerts.push(what);
                }
            }
            Command::Resolve { what, .. } => {
                if let Some(agent) = &mut self.hosts[host].agent {
                    agent.alerts.retain(|alert| *alert != what);
                }
            }
            Command::Log(..) => {}
        }
    }

    pub(super) fn push_commands(&mut self, host: usize, commands: Vec<Command>) {
        self.extend_commands(host, commands);
        self.turn(host);
    }

    /// Adds to what the agent is doing.
    pub(super) fn extend_commands(&mut self, host: usize, commands: Vec<Command>) {
        if let Some(agent) = &mut self.hosts[host].agent {
            agent.commands.extend(commands);
        }
    }

    // Orders

    fn give_order(&mut self, host: usize, order: Order, until: Instant) {
        self.serial += 1;
        let (serial, life, pid) = (self.serial, self.hosts[host].life, self.hosts[host].redis.pid);
        let left = self.micros(host, until).saturating_sub(self.t);
        let Some(agent) = &mut self.hosts[host].agent else { return };
        if agent.order.is_some() {
            return self.violate(format!("host {host}: two orders at once, the second is {order:?}"));
        }
        if agent.pid == 0 || agent.pid != pid {
            return self.tell(host, Input::Ordered(Ordered::Failed("there is no process".to_owned())));
        }
        // An order that comes too late is not begun.
        if left == 0 {
            return self.tell(host, Input::Ordered(Ordered::Failed("it came too late".to_owned())));
        }
        agent.order = Some(serial);
        self.check_order(host, &order);
        let delay = self.dice.within(50..MS);
        self.later(delay, Happening::OrderIn { host, pid, order: Box::new(Sent { life, serial, order }) });
        self.later(left, Happening::Overdue { host, life, serial });
    }

    pub(super) fn order_out(&mut self, host: usize, pid: u32, life: u32, serial: u64, ordered: Ordered) {
        let inspected = matches!(ordered, Ordered::Done(Some(_)));
        let known = self.hosts[host].agent.as_ref().map_or(0, |agent| agent.armed);
        if self.end_order(host, life, serial, ordered) && inspected && known != pid {
            // The first look at a process is when its fencing is rehearsed.
            let delay = self.dice.within(MS..6 * MS);
            self.later(delay, Happening::Armed { host, life, pid });
        }
    }

    pub(super) fn overdue(&mut self, host: usize, life: u32, serial: u64) {
        self.end_order(host, life, serial, Ordered::Failed("no answer in time".to_owned()));
    }

    /// The connection of an order breaks with its process.
    pub(super) fn break_order(&mut self, host: usize) {
        let life = self.hosts[host].life;
        if let Some(serial) = self.hosts[host].agent.as_ref().and_then(|agent| agent.order) {
            let ordered = Box::new(Ordered::Failed("the connection broke".to_owned()));
            let delay = self.dice.within(0..2 * MS);
            self.later(delay, Happening::OrderOut { host, pid: 0, life, serial, ordered });
        }
    }

    fn end_order(&mut self, host: usize, life: u32, serial: u64, ordered: Ordered) -> bool {
        if self.hosts[host].life != life {
            return false;
        }
        let Some(agent) = &mut self.hosts[host].agent else { return false };
        let ours = agent.order == Some(serial);
        if ours {
            agent.order = None;
            self.tell(host, Input::Ordered(ordered));
        }
        ours
    }

    // The fencer

    fn feed(&mut self, host: usize, until: Option<Micros>) {
        self.serial += 1;
        let serial = self.serial;
        let (t, pid) = (self.t, self.hosts[host].redis.pid);
        let fencer = &mut self.hosts[host].fencer;
        if !fencer.alive || fencer.pid != pid || pid == 0 {
            return;
        }
        fencer.until = until;
        (fencer.serial, fencer.fencing) = (serial, false);
        if let Some(until) = until {
            let delay = self.fencers_delay();
            self.later(until.saturating_sub(t) + delay, Happening::LeaseEnds { host, serial });
        }
    }

    /// It connects and is answered in no time; where all is slow it has half the time for each.
    fn fencers_delay(&mut self) -> Micros {
        let slow = if self.dice.percent(80) { MS } else { micros(self.timing().fence) / 2 };
        self.dice.within(0..slow.max(1))
    }

    pub(super) fn lease_ends(&mut self, host: usize, serial: u64) {
        let t = self.t;
        let pid = self.hosts[host].redis.pid;
        let fencer = &self.hosts[host].fencer;
        if !fencer.alive || fencer.serial != serial || fencer.pid != pid || pid == 0 {
            return;
        }
        let until = fencer.until.unwrap_or(t);
        self.hosts[host].fencer.fencing = true;
        let patience = micros(self.timing().fence);
        self.log(|| format!("!! host {host}: the fencer fences"));
        self.tell_of_fence(host);
        let left = (until + patience).saturating_sub(t);
        self.later(left, Happening::FencerKills { host, pid, serial });
        let delay = self.fencers_delay();
        self.later(delay.min(left), Happening::FenceIn { host, pid });
    }

    /// Once sent it is carried out, even if a lease comes meanwhile.
    pub(super) fn fence_in(&mut self, host: usize, pid: u32) {
        let wall = self.wall(host);
        let h = &mut self.hosts[host];
        if h.redis.pid != pid || !h.fencer.alive {
            return;
        }
        if h.redis.stopped {
            return h.redis.fence_waits();
        }
        if self.setting.old {
            return self.dies(host, pid);
        }
        if self.is_refused(host, &Order::Fence { long: FENCE_FOR }) {
            return;
        }
        self.log(|| format!("!! host {host}: redis is fenced"));
        let h = &mut self.hosts[host];
        h.redis.pause(wall + super::redis::LONG);
        h.unguarded = false;
        h.fencer.fencing = false;
        self.tell_of_fence(host);
    }

    fn tell_of_fence(&mut self, host: usize) {
        let life = self.hosts[host].life;
        let delay = self.dice.within(50..2 * MS);
        self.later(delay, Happening::FenceTold { host, life });
    }

    /// It waits in the agent's socket until the agent is there for it.
    pub(super) fn fence_told(&mut self, host: usize, life: u32) {
        if self.hosts[host].life == life {
            self.tell(host, Input::Fenced);
        }
    }

    pub(super) fn fencer_kills(&mut self, host: usize, pid: u32, serial: u64) {
        let fencer = &self.hosts[host].fencer;
        if fencer.alive && fencer.serial == serial && fencer.fencing {
            self.dies(host, pid);
        }
    }

    pub(super) fn armed(&mut self, host: usize, life: u32, pid: u32) {
        if self.hosts[host].life != life || self.hosts[host].redis.pid != pid || self.stopped(host) {
            return;
        }
        let h = &mut self.hosts[host];
        let Some(agent) = &mut h.agent else { return };
        let lease = agent.lease.or(agent.grace);
        let fencer = &mut h.fencer;
        if !fencer.alive {
            return;
        }
        agent.armed = pid;
        if fencer.pid != pid {
            fencer.pid = pid;
            self.feed(host, lease);
        }
        self.tell(host, Input::Fencer(true));
        self.note_guard(host);
    }

    pub(super) fn kill_fencer(&mut self, host: usize) {
        if !self.hosts[host].fencer.alive {
            return;
        }
        self.log(|| format!("!! host {host}: its fencer dies"));
        self.hosts[host].fencer = Fencer::default();
        let life = self.hosts[host].life;
        if let Some(agent) = &mut self.hosts[host].agent {
            agent.armed = 0;
        }
        self.tell(host, Input::Fencer(false));
        let delay = self.dice.within(5 * MS..500 * MS);
        self.later(delay, Happening::FencerBack { host, life });
        self.note_guard(host);
    }

    pub(super) fn fencer_back(&mut self, host: usize, life: u32) {
        if self.hosts[host].life != life {
            return;
        }
        if self.stopped(host) {
            return self.later(100 * MS, Happening::FencerBack { host, life });
        }
        if !self.hosts[host].fencer.alive {
            self.hosts[host].fencer.alive = true;
        }
    }

    /// Neither agent nor fencer watch over a master: no promise holds for its host then.
    pub(super) fn note_guard(&mut self, host: usize) {
        let h = &mut self.hosts[host];
        let agent = h.agent.as_ref().is_some_and(|agent| !agent.stopped && !agent.stuck);
        let fencer = h.fencer.alive && h.fencer.pid == h.redis.pid;
        h.unguarded = h.redis.is_master() && (h.unguarded || !agent && !fencer);
    }
}
