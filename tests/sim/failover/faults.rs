//! What goes wrong, and when it stops: at a time, or as a member takes a certain step.

use std::time::Duration;

use yagent::{
    core::failover::{Command, Order, Wish},
    shell::registry::Request,
};

use super::world::{Happening, World};
use crate::world::{MS, Micros, SECOND};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Crash,
    StopRedis,
    KillAgent,
    StopAgent,
    StickAgent,
    KillFencer,
    KillAgentAndFencer,
    CutAll,
    CutRegistry,
    CutToRegistry,
    CutFromRegistry,
    CutReplicas,
    CutOut,
    CutIn,
    CutPair,
    /// Answers of the registry come late, then nothing reaches it.
    SlowCut,
    /// Its replicas are cut off, and long after that it dies.
    Forsaken,
    EnsembleDown,
    Expire,
    Break,
    Flaky,
    WallJump,
    Slow,
    OrdersLost,
    KillsSlow,
    HostCrash,
    Lagging,
    Switchover,
    Force,
    Pause,
    PauseHost,
    Resume,
    CrashAll,
    /// Its redis refuses orders.
    Refuses,
    /// The registry refuses changes.
    Denies,
    /// Somebody removes the lock by hand.
    Unlocks,
}

use Kind::*;

/// Chosen as often as they stand here.
const AT_A_TIME: &[Kind] = &[
    Crash,
    Crash,
    Crash,
    Crash,
    StopRedis,
    StopRedis,
    KillAgent,
    KillAgent,
    StopAgent,
    StopAgent,
    StickAgent,
    KillFencer,
    KillFencer,
    KillAgentAndFencer,
    CutAll,
    CutAll,
    CutAll,
    CutRegistry,
    CutRegistry,
    CutRegistry,
    CutRegistry,
    CutToRegistry,
    CutFromRegistry,
    CutReplicas,
    CutReplicas,
    CutReplicas,
    CutOut,
    CutIn,
    CutPair,
    CutPair,
    SlowCut,
    SlowCut,
    EnsembleDown,
    EnsembleDown,
    Expire,
    Expire,
    Break,
    Flaky,
    Flaky,
    WallJump,
    Slow,
    Slow,
    OrdersLost,
    OrdersLost,
    KillsSlow,
    HostCrash,
    HostCrash,
    HostCrash,
    Lagging,
    Lagging,
    Switchover,
    Switchover,
    Switchover,
    Switchover,
    Force,
    Force,
    Pause,
    PauseHost,
    Resume,
    CrashAll,
    Forsaken,
    Forsaken,
];
const AT_A_STEP: &[Kind] = &[
    Crash,
    Crash,
    StopRedis,
    KillAgent,
    KillAgent,
    KillAgent,
    StopAgent,
    StopAgent,
    StickAgent,
    KillFencer,
    CutAll,
    CutRegistry,
    CutRegistry,
    CutFromRegistry,
    EnsembleDown,
    Expire,
    Expire,
    Break,
    Break,
    HostCrash,
    CutReplicas,
    OrdersLost,
    Switchover,
    Force,
    Slow,
];

/// In a hundred schedules, so many have somebody that refuses what it is asked for.
const REFUSES: u64 = 30;
/// In so many the lock is removed by hand.
const UNLOCKS: u64 = 10;

/// A step of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Any,
    TakeLock,
    DropLock,
    PutState,
    Lease,
    Promote,
    Follow,
    Fence,
    Unfence,
}

const STEPS: &[Step] = &[
    Step::Any,
    Step::TakeLock,
    Step::DropLock,
    Step::PutState,
    Step::PutState,
    Step::Lease,
    Step::Promote,
    Step::Promote,
    Step::Follow,
    Step::Fence,
    Step::Unfence,
];

#[derive(Debug)]
struct Fault {
    kind: Kind,
    long: Micros,
    /// A step that sets it off, after the time and so many like it.
    step: Option<(Step, u32)>,
    /// Whom it is to strike; else whoever is there by then.
    aim: Option<usize>,
    /// Whom it struck, and another one.
    host: usize,
    other: usize,
    ready: bool,
    lasts: bool,
}

impl Fault {
    fn new(kind: Kind, long: Micros, step: Option<(Step, u32)>, aim: Option<usize>) -> Fault {
        Fault { kind, long, step, aim, host: 0, other: 0, ready: false, lasts: false }
    }
}

#[derive(Debug, Default)]
pub(super) struct Faults {
    all: Vec<Fault>,
    /// Some wait for a step.
    waiting: u32,
    /// When they end.
    pub(super) until: Micros,
    wishes: u32,
    /// Somebody is being struck right now.
    striking: bool,
}

fn is_step(step: Step, command: &Command) -> bool {
    let path_is = |path: &str, end: &str| path.ends_with(end);
    match (step, command) {
        (Step::Any, _) => true,
        (Step::TakeLock, Command::Request(_, Request::Create { path, .. })) => path_is(path, "/lock"),
        (Step::DropLock, Command::Request(_, Request::Delete { path, .. })) => path_is(path, "/lock"),
        (Step::PutState, Command::Request(_, Request::Create { path, .. } | Request::Write { path, .. })) => {
            path_is(path, "/state")
        }
        (Step::Lease, Command::Lease(_) | Command::Grace(_)) => true,
        (_, Command::Order { order, .. }) => is_order(step, order),
        _ => false,
    }
}

fn is_order(step: Step, order: &Order) -> bool {
    match order {
        Order::Inspect => false,
        Order::Promote => step == Step::Promote,
        Order::Follow { .. } => step == Step::Follow,
        Order::Fence { .. } => step == Step::Fence,
        Order::Unfence { .. } => step == Step::Unfence,
    }
}

impl World {
    pub(super) fn plan_faults(&mut self) {
        self.checks.resumed = vec![0; self.hosts.len()];
        let session = u64::try_from(self.setting.timing.session.as_micros()).unwrap_or(SECOND);
        let until = self.dice.within(3 * session..8 * session).max(25 * SECOND);
        self.faults.until = until;
        // Half of the runs have a quiet beginning.
        let from = if self.dice.percent(80) { 4 * SECOND } else { 0 };
        for _ in 0..self.dice.within(1..7) {
            let step = self.dice.percent(40).then(|| {
                let step = self.dice.pick(STEPS).unwrap_or(Step::Any);
                let most = if step == Step::Any { 60 } else { 3 };
                (step, u32::try_from(self.dice.within(0..most)).unwrap_or(0))
            });
            let kinds = if step.is_some() { AT_A_STEP } else { AT_A_TIME };
            let kind = self.dice.pick(kinds).unwrap_or(Crash);
            let long = match self.dice.within(0..4) {
                0 => self.dice.within(20 * MS..SECOND),
                1 => self.dice.within(SECOND..session),
                _ => self.dice.within(session..3 * session),
            };
            let at = self.dice.within(from..until);
            self.plan_fault(at, Fault::new(kind, long, step, None));
        }
        // Drawn aside: the schedules without it are those that they were before there was such a fault.
        let mut dice = self.dice.clone();
        if dice.percent(REFUSES) {
            let kind = if dice.percent(75) { Refuses } else { Denies };
            let (at, long) = (dice.within(0..until), dice.within(SECOND..6 * session));
            self.plan_fault(at, Fault::new(kind, long, None, None));
        }
        if dice.percent(UNLOCKS) {
            let step = dice.percent(50).then(|| (dice.pick(STEPS).unwrap_or(Step::Any), 0));
            let at = dice.within(0..until);
            self.plan_fault(at, Fault::new(Unlocks, 0, step, None));
        }
    }

    fn plan_fault(&mut self, at: Micros, fault: Fault) {
        self.faults.all.push(fault);
        self.later(at, Happening::Strikes(self.faults.all.len() - 1));
    }

    fn master_host(&self) -> Option<usize> {
        self.checks.published.as_ref().map(|published| published.host)
    }

    fn any_host(&mut self) -> usize {
        usize::try_from(self.dice.within(0..self.hosts.len() as u64)).unwrap_or(0)
    }

    fn victim(&mut self) -> usize {
        let master = self.master_host().filter(|_| self.dice.percent(65));
        match master {
            Some(master) => master,
            None => self.any_host(),
        }
    }

    pub(super) fn strike(&mut self, index: usize) {
        if self.t >= self.faults.until {
            return;
        }
        let fault = &mut self.faults.all[index];
        if fault.step.is_some() {
            fault.ready = true;
            self.faults.waiting += 1;
            return;
        }
        let host = fault.aim.unwrap_or_else(|| self.victim());
        self.strike_host(index, host);
    }

    /// Whether the command is not carried out, for now or ever.
    pub(super) fn meet_command(&mut self, host: usize, command: &Command) -> bool {
        if self.faults.waiting == 0 || self.faults.striking || self.t >= self.faults.until {
            return false;
        }
        for index in 0..self.faults.all.len() {
            let fault = &mut self.faults.all[index];
            let Some((step, left)) = fault.step.filter(|_| fault.ready) else { continue };
            if !is_step(step, command) {
                continue;
            }
            if left > 0 {
                fault.step = Some((step, left - 1));
                continue;
            }
            fault.ready = false;
            self.faults.waiting -= 1;
            self.faults.striking = true;
            self.log(|| format!("!! as host {host} is to {command:?}"));
            let victim = if self.dice.percent(75) { host } else { self.victim() };
            self.strike_host(index, victim);
            self.faults.striking = false;
            return self.hosts[host].agent.as_ref().is_none_or(|agent| agent.stopped || agent.stuck);
        }
        false
    }

    fn strike_host(&mut self, index: usize, host: usize) {
        let Fault { kind, long, .. } = self.faults.all[index];
        let n = self.hosts.len();
        let other = (host + 1 + usize::try_from(self.dice.within(0..n as u64 - 1)).unwrap_or(0)) % n;
        self.log(|| format!("!! {kind:?} at host {host} (and {other}) for {} ms", long / MS));
        let (pid, life, t) = (self.hosts[host].redis.pid, self.hosts[host].life, self.t);
        self.faults.all[index].host = host;
        self.faults.all[index].other = other;
        self.faults.all[index].lasts = true;
        match kind {
            Crash => self.dies(host, pid),
            CrashAll => {
                for host in 0..n {
                    let (pid, delay) = (self.hosts[host].redis.pid, self.dice.within(0..2 * SECOND));
                    self.later(delay, Happening::Dies { host, pid });
                }
            }
            StopRedis => self.stop_redis(host, long),
            KillAgent => self.kill_agent(host),
            KillAgentAndFencer => {
                self.kill_agent(host);
                self.kill_fencer(host);
            }
            HostCrash => {
                self.kill_agent(host);
                self.dies(host, pid);
                self.hosts[host].fencer = super::agent::Fencer::default();
            }
            StopAgent | StickAgent => {
                let long = if kind == StickAgent { long.min(8 * SECOND) } else { long };
                if let Some(agent) = &mut self.hosts[host].agent {
                    agent.stopped |= kind == StopAgent;
                    agent.stuck |= kind == StickAgent;
                    self.later(long, Happening::Resume { host, life });
                }
                self.note_guard(host);
            }
            KillFencer => self.kill_fencer(host),
            EnsembleDown => self.ensemble_down(long),
            Expire => self.lose_session(host),
            Break => {
                if let Some(conn) = self.hosts[host].agent.as_ref().and_then(|agent| agent.client.conn) {
                    self.cut_by_server(conn);
                }
            }
            Flaky => self.hosts[host].flaky = t + long,
            WallJump => {
                let most = if self.dice.percent(50) { 5 * SECOND } else { 7200 * SECOND };
                let by = i64::try_from(self.dice.within(SECOND / 2..most)).unwrap_or(0);
                self.hosts[host].wall += if self.dice.percent(50) { by } else { -by };
            }
            OrdersLost => self.hosts[host].orders_lost = t + long,
            Refuses => {
                self.refuse_orders(host, t + long);
                // Often it loses its lease meanwhile.
                if self.dice.percent(50) {
                    let session = u64::try_from(self.setting.timing.session.as_micros()).unwrap_or(SECOND);
                    let cut = self.dice.within(session..2 * session);
                    self.faults.all.push(Fault::new(CutRegistry, cut, None, Some(host)));
                    let after = self.dice.within(0..session);
                    self.later(after, Happening::Strikes(self.faults.all.len() - 1));
                }
            }
            KillsSlow => self.hosts[host].kills_slow = t + long,
            Lagging => self.zoo.lagging = t + long,
            Denies => {
                let both = [vec!["/state"], vec!["/lock"], vec!["/lock", "/state"]];
                self.zoo.denied = (t + long, self.dice.pick(&both).unwrap_or_default());
                if self.zoo.denied.1.contains(&"/lock") && self.dice.percent(50) {
                    self.faults.all.push(Fault::new(Unlocks, 0, None, None));
                    let after = self.dice.within(0..long);
                    self.later(after, Happening::Strikes(self.faults.all.len() - 1));
                }
            }
            Unlocks => self.unlock(),
            Slow => self.slow(host, long / 20, long / 20),
            SlowCut => {
                let session = u64::try_from(self.setting.timing.session.as_micros()).unwrap_or(SECOND);
                let late = self.dice.within(session / 5..session / 3);
                self.slow(host, 0, late);
                // Once a late answer is on its way nothing more goes out.
                let after = self.dice.within(session / 6..session);
                let fault =
                    Fault { host, other, ..Fault::new(CutToRegistry, long.max(2 * session), None, None) };
                self.faults.all.push(fault);
                let cut = self.faults.all.len() - 1;
                self.later(after, Happening::Heals(cut));
            }
            Forsaken => {
                self.cut(index, true);
                let end = if self.dice.percent(50) { Crash } else { HostCrash };
                self.faults.all.push(Fault::new(end, long, None, Some(host)));
                let after = self.grace() + self.dice.within(0..4 * SECOND);
                self.faults.until = self.faults.until.max(t + after + 2 * SECOND);
                self.later(after, Happening::Strikes(self.faults.all.len() - 1));
                return self.later(after + SECOND, Happening::Heals(index));
            }
            Switchover | Force | Pause | PauseHost | Resume => self.wish(kind, long),
            CutAll | CutRegistry | CutToRegistry | CutFromRegistry | CutReplicas | CutOut | CutIn
            | CutPair => {
                self.cut(index, true);
            }
        }
        self.later(long, Happening::Heals(index));
    }

    /// Somebody removes the lock. Often that is not the only thing to go wrong, before it or after it.
    fn unlock(&mut self) {
        if self.dice.percent(50) {
            return self.remove_lock();
        }
        let session = u64::try_from(self.setting.timing.session.as_micros()).unwrap_or(SECOND);
        let kinds = [StopAgent, StickAgent, KillAgent, CutAll, CutRegistry];
        let kind = self.dice.pick(&kinds).unwrap_or(CutAll);
        let long = self.dice.within(SECOND..2 * session);
        self.faults.all.push(Fault::new(kind, long, None, None));
        let other = self.faults.all.len() - 1;
        if self.dice.percent(50) {
            let after = self.dice.within(0..2 * session);
            self.later(after, Happening::Strikes(other));
            return self.remove_lock();
        }
        self.later(0, Happening::Strikes(other));
        self.faults.all.push(Fault::new(Unlocks, 0, None, None));
        let after = self.dice.within(0..session / 2);
        self.later(after, Happening::Strikes(other + 1));
    }

    /// A client forgets its session. No registry ends one early; that of a host that holds the lock, or was
    /// robbed of it, or gave it back to take it anew, lives on until its time is over.
    fn lose_session(&mut self, host: usize) {
        let lock = self.hosts[host].plan.path("lock");
        if !self.zoo.had_the_lock(host, &lock) && !self.hosts[host].redis.is_master() {
            return self.expire_host(host);
        }
        if let Some(agent) = &mut self.hosts[host].agent {
            agent.client.session = 0;
            if let Some(conn) = agent.client.conn {
                self.cut_by_server(conn);
            }
        }
    }

    /// Most often what nothing else depends on: a user who may not do one thing, a command by another name.
    fn refuse_orders(&mut self, host: usize, until: Micros) {
        let refused = match self.dice.within(0..100) {
            0..50 => vec![Step::Unfence],
            50..65 => vec![Step::Promote],
            65..75 => vec![Step::Follow],
            _ => {
                let mut some = vec![Step::Promote, Step::Follow, Step::Fence, Step::Unfence];
                some.retain(|_| self.dice.percent(40));
                some
            }
        };
        self.log(|| format!("!! host {host}: redis refuses {refused:?}"));
        self.hosts[host].refused = (until, refused);
    }

    /// Whether its redis does not take this order now.
    pub(super) fn is_refused(&self, host: usize, order: &Order) -> bool {
        let (until, refused) = &self.hosts[host].refused;
        self.t < *until && refused.iter().any(|step| is_order(*step, order))
    }

    fn slow(&mut self, host: usize, up: Micros, down: Micros) {
        self.hosts[host].slow_up += up;
        self.hosts[host].slow_down += down;
    }

    /// Cuts, or makes whole again.
    fn cut(&mut self, index: usize, cut: bool) {
        let Fault { kind, host, other, .. } = self.faults.all[index];
        let change = |count: &mut u32| *count = if cut { *count + 1 } else { count.saturating_sub(1) };
        if matches!(kind, CutAll | CutRegistry | CutToRegistry) {
            change(&mut self.hosts[host].to_registry);
        }
        if matches!(kind, CutAll | CutRegistry | CutFromRegistry) {
            change(&mut self.hosts[host].from_registry);
        }
        for peer in (0..self.hosts.len()).filter(|peer| *peer != host) {
            let all = matches!(kind, CutAll | CutReplicas | Forsaken) || (kind == CutPair && peer == other);
            if all || kind == CutOut {
                change(&mut self.cuts[host][peer]);
            }
            if all || kind == CutIn {
                change(&mut self.cuts[peer][host]);
            }
            if !cut {
                self.way_opens(host, peer);
            }
        }
        if !cut {
            self.later(MS, Happening::Reopens { host });
        }
    }

    fn wish(&mut self, kind: Kind, long: Micros) {
        self.faults.wishes += 1;
        let id = format!("wish {}", self.faults.wishes);
        let host = self.any_host();
        let to = self.dice.percent(60).then(|| self.any_host()).map(|to| self.hosts[to].plan.address.clone());
        let wish = match kind {
            Switchover => Wish::Switchover { to, id },
            Force => Wish::Force { to, id },
            Pause | PauseHost => Wish::Pause {
                long: Duration::from_micros(long.min(15 * SECOND)),
                reason: "work".to_owned(),
                host: kind == PauseHost,
            },
            _ => Wish::Resume { host: self.dice.percent(50) },
        };
        let now = self.now(host);
        self.log(|| format!("!! host {host} is asked for {wish:?}"));
        let Some(agent) = self.hosts[host].agent.as_mut().filter(|agent| !agent.stopped && !agent.stuck)
        else {
            return;
        };
        match agent.member.wish(now, wish) {
            Ok(commands) if self.faults.striking => {
                // It is in the midst of a step.
                self.extend_commands(host, commands);
            }
            Ok(commands) => self.push_commands(host, commands),
            Err(why) => self.log(|| format!("!! refused: {why}")),
        }
    }

    pub(super) fn heal(&mut self, index: usize) {
        let Fault { kind, long, host, lasts, .. } = self.faults.all[index];
        if kind == CutToRegistry && !lasts {
            // It was put off until now.
            if self.t < self.faults.until {
                self.faults.all[index].lasts = true;
                self.log(|| format!("!! host {host}: nothing reaches the registry for {} ms", long / MS));
                self.cut(index, true);
                self.later(long, Happening::Heals(index));
            }
            return;
        }
        if !lasts {
            return;
        }
        self.faults.all[index].lasts = false;
        self.log(|| format!("!! {kind:?} at host {host} is over"));
        match kind {
            CutAll | CutRegistry | CutToRegistry | CutFromRegistry | CutReplicas | CutOut | CutIn
            | CutPair | Forsaken => {
                self.cut(index, false);
            }
            Slow | SlowCut => (self.hosts[host].slow_up, self.hosts[host].slow_down) = (0, 0),
            KillAgent | KillAgentAndFencer | HostCrash => self.begin_agent(host),
            _ => {}
        }
    }

    /// No more faults come, and those that last end.
    pub(super) fn calm_down(&mut self) {
        self.log(|| "== faults end".to_owned());
        self.faults.until = self.t;
        self.faults.waiting = 0;
        for index in 0..self.faults.all.len() {
            self.faults.all[index].ready = false;
            self.heal(index);
        }
        for host in 0..self.hosts.len() {
            let (pid, life) = (self.hosts[host].redis.pid, self.hosts[host].life);
            self.continues(host, pid);
            self.resume(host, life);
            let h = &mut self.hosts[host];
            (h.flaky, h.orders_lost, h.kills_slow) = (0, 0, 0);
            // That one of them can be made no master is to keep no other from it.
            let for_good = h.refused.0 > 0 && h.refused.1 == [Step::Promote];
            h.refused.0 = if for_good { Micros::MAX } else { 0 };
        }
        if !self.zoo.up {
            self.ensemble_back();
        }
        (self.zoo.lagging, self.zoo.denied.0) = (0, 0);
    }
}
