//! The life of one instance: an enum of states, one function per state and event.
//!
//! It owns what is known of one server and when to talk to it next. It doesn't own the ports (see `host`) nor the
//! leave to kill (see `storm`).

mod course;
mod death;
mod talk;

use std::time::{Duration, Instant};

use log::Level;
use serde::Serialize;

use super::{
    Action, InstanceId, NotStarted, Now, Outcome, Pid, ProcessState, Talk,
    alert::{AlertBook, Severity},
    stats::{Figures, InstanceStats, OTHER_NAME_AT_MOST, OTHERS_AT_MOST},
    storm::StormGuard,
};
use crate::{
    config::{Megabytes, Probing},
    plugin::Health,
};

/// A server that served this long and then died did not die "in a row" with its former deaths.
const STEADY: Duration = Duration::from_secs(1);
/// So many deaths of a server that had served are repaired at once although they come faster than that; each
/// [`STEADY`] forgives one.
pub(super) const FORGIVEN: u32 = 10;
/// An instance that stayed up this long after a repair has recovered.
const RECOVERED: Duration = Duration::from_secs(60);
/// The first pause of the backoff; it doubles with each further death in a row.
const BACKOFF_FIRST: Duration = Duration::from_millis(10);
/// The longest pause of the backoff.
const BACKOFF_LONGEST: Duration = Duration::from_secs(30);
/// The start time-out doubles this often at most.
const SLOW_STARTS_AT_MOST: u32 = 5;
/// The first pause between probes of a server that is still starting.
const BOOT_PAUSE_FIRST: Duration = Duration::from_millis(2);
/// The longest pause between probes of a server that is still starting.
const BOOT_PAUSE_LONGEST: Duration = Duration::from_millis(250);
/// How long the spawner may take; then something is wrong with the disk or the system.
const SPAWN_LIMIT: Duration = Duration::from_secs(10);
/// How long SIGKILL may take; then the process hangs in the kernel.
const KILL_LIMIT: Duration = Duration::from_secs(5);
/// How long a server may take to end when asked to; it may have to save its data.
const TERMINATE_LIMIT: Duration = Duration::from_secs(60);
/// So many instances are asked at the same moment, so that one wake-up of the loop serves many; of a larger host the
/// instances are spread over more moments of each probe interval.
pub(super) const PROBED_AT_ONCE: usize = 128;

/// Where an instance is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not asked for yet.
    Planned,
    /// The spawner is at it.
    Spawning {
        /// Since when.
        since: Instant,
        /// An alert said that it takes too long.
        told: bool,
    },
    /// The process is there and hasn't answered yet.
    Booting {
        /// Since when.
        since: Instant,
        /// When to ask next.
        next: Instant,
        /// How long to wait after that.
        pause: Duration,
    },
    /// It answers.
    Up {
        /// Since when.
        since: Instant,
    },
    /// It missed probes.
    Suspect {
        /// Since when it answered before that.
        since: Instant,
        /// The first miss.
        first_miss: Instant,
        /// How many in a row.
        misses: u32,
        /// Which probe missed; the same one is repeated.
        talk: Talk,
        /// When to repeat it.
        retry: Instant,
    },
    /// SIGKILL is on its way.
    Killed {
        /// Since when.
        since: Instant,
        /// An alert said that it takes too long.
        told: bool,
    },
    /// It waits before the next start.
    Backoff {
        /// Until when.
        until: Instant,
    },
    /// Its port is somebody else's.
    Parked,
    /// Nobody looks after it, because nobody can speak to it: it is left as it is.
    Unattended,
    /// It was asked to end.
    Stopping {
        /// Since when, or since SIGKILL.
        since: Instant,
        /// SIGKILL had to follow.
        killed: bool,
        /// An alert said that not even this ended it.
        told: bool,
    },
    /// It ended as asked.
    Stopped,
}

impl State {
    /// Its name in `status` and in the registry.
    pub fn name(&self) -> &'static str {
        match self {
            State::Planned => "planned",
            State::Spawning { .. } | State::Booting { .. } => "starting",
            State::Up { .. } => "up",
            State::Suspect { .. } => "suspect",
            State::Killed { .. } => "killed",
            State::Backoff { .. } => "backoff",
            State::Parked => "parked",
            State::Unattended => "unattended",
            State::Stopping { .. } => "stopping",
            State::Stopped => "stopped",
        }
    }
}

/// What `status` shows of an instance.
#[derive(Clone, Debug, Serialize)]
pub struct InstanceReport {
    /// Its engine's name.
    pub engine: String,
    /// The host's address.
    pub ip: String,
    /// Its port.
    pub port: u16,
    /// See [`State::name`].
    pub state: &'static str,
    /// What the last probe found; `None` before the first answer.
    pub health: Option<Health>,
    /// Why it is in this state or health, where it isn't plain.
    pub why: String,
    /// Its process.
    pub pid: Option<u32>,
    /// Since when it is in this state, in milliseconds since 1970.
    pub since_ms: u64,
    /// Restarts since the agent started or adopted it.
    pub restarts: u64,
    /// How long the last repair took, from the fault's discovery to the first answer.
    pub last_repair_ms: Option<f64>,
    /// Memory that it may use for data.
    pub maxmem_mb: u64,
    /// The server's version; empty when unknown.
    pub version: String,
    /// Its statistics; `None` before the first sample.
    pub figures: Option<Figures>,
}

/// When the next statistics sample is to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sampling {
    /// After the next full probe.
    Later,
    /// In the place of the next light probe: its answer tells as much.
    NextProbe,
    /// As soon as no conversation runs.
    Now,
}

#[derive(Clone, Copy, Debug)]
struct Running {
    talk: Talk,
    begun: Instant,
    deadline: Instant,
}

/// What an instance may use while it decides.
pub(super) struct Context<'a> {
    pub(super) now: Now,
    pub(super) actions: &'a mut Vec<Action>,
    pub(super) alerts: &'a mut AlertBook,
    pub(super) storm: &'a mut StormGuard,
    pub(super) probing: &'a Probing,
    pub(super) sampling: bool,
    /// When the loop was last late; misses from before don't count.
    pub(super) late: Option<Instant>,
    /// How many instances the host has.
    pub(super) total: usize,
    /// The origin of the grid on which probes fall.
    pub(super) epoch: Instant,
}

impl Context<'_> {
    /// Since when a wait that began at `since` may be held against an instance: not while the host stood still.
    fn fair(&self, since: Instant) -> Instant {
        self.late.map_or(since, |late| late.max(since))
    }

    pub(super) fn log(&mut self, level: Level, text: String) {
        self.actions.push(Action::Log(level, text));
    }

    pub(super) fn fire(&mut self, key: String, severity: Severity, summary: String) {
        match self.alerts.fire(self.now.unix_ms, &key, severity, &summary) {
            Some(alert) => self.actions.push(Action::Alert(alert)),
            // Folded for the sinks; the log has it all.
            None => self.actions.push(Action::Log(Level::Warn, summary)),
        }
    }

    pub(super) fn resolve(&mut self, key: &str, summary: &str) {
        if let Some(alert) = self.alerts.resolve(self.now.unix_ms, key, summary) {
            self.actions.push(Action::Alert(alert));
        }
    }
}

/// One server.
#[derive(Debug)]
pub(super) struct Instance {
    pub(super) id: InstanceId,
    /// `memcached:11211`, for people.
    pub(super) name: String,
    engine: String,
    /// What the running process was started with.
    pub(super) maxmem: Megabytes,
    /// What the next one is to be started with.
    pub(super) planned_maxmem: Megabytes,
    ordinal: u32,
    /// Its port was in use when the agent last wrote them down.
    known: bool,
    /// It is no longer wanted: it is only adopted to be ended.
    pub(super) surplus: bool,
    /// Why nobody looks after it.
    pub(super) unattended: Option<String>,
    pub(super) state: State,
    pub(super) since_ms: u64,
    pub(super) pid: Option<Pid>,
    pub(super) health: Option<Health>,
    why: String,
    pub(super) version: String,
    pub(super) restarts: u64,
    /// Deaths in a row.
    row: u32,
    /// Starts in a row that took too long.
    slow_starts: u32,
    /// It died before it answered, and its last words are awaited: what is known so far.
    mourned: Option<String>,
    /// Until when the deaths so far count against [`FORGIVEN`].
    debt: Instant,
    /// When the fault that is being repaired was seen.
    fault: Option<Instant>,
    last_repair: Option<Duration>,
    recovered_at: Option<Instant>,
    running: Option<Running>,
    next_probe: Instant,
    next_check: Instant,
    sample: Sampling,
    unstuck: bool,
    /// The conversation at which its backend failed last, until one of the kind goes well.
    broken: Option<Talk>,
    pub(super) stats: InstanceStats,
    /// When its figures are to be published next; see [`Instance::info_due`].
    pub(super) next_info: Option<Instant>,
    /// Its node in the registry no longer says the truth.
    pub(super) dirty: bool,
}

impl Instance {
    pub(super) fn new(
        id: InstanceId,
        engine: &str,
        ordinal: u32,
        maxmem: Megabytes,
        known: bool,
        stats: InstanceStats,
        now: Now,
    ) -> Instance {
        Instance {
            id,
            name: format!("{engine}:{}", id.port),
            engine: engine.to_owned(),
            maxmem,
            planned_maxmem: maxmem,
            ordinal,
            known,
            surplus: false,
            unattended: None,
            state: State::Planned,
            since_ms: now.unix_ms,
            pid: None,
            health: None,
            why: String::new(),
            version: String::new(),
            restarts: 0,
            row: 0,
            debt: now.at,
            mourned: None,
            slow_starts: 0,
            fault: None,
            last_repair: None,
            recovered_at: None,
            running: None,
            next_probe: now.at,
            next_check: now.at,
            sample: Sampling::Later,
            unstuck: false,
            broken: None,
            stats,
            next_info: None,
            dirty: true,
        }
    }

    pub(super) fn report(&self, ip: &str) -> InstanceReport {
        InstanceReport {
            engine: self.engine.clone(),
            ip: ip.to_owned(),
            port: self.id.port,
            state: self.state.name(),
            health: self.health,
            why: self.why.clone(),
            pid: self.pid.map(|pid| pid.0),
            since_ms: self.since_ms,
            restarts: self.restarts,
            last_repair_ms: self.last_repair.map(|d| d.as_secs_f64() * 1000.0),
            maxmem_mb: self.maxmem.0,
            version: self.version.clone(),
            figures: self.figures(),
        }
    }

    /// Its statistics as they stand; `None` before the first sample.
    pub(super) fn figures(&self) -> Option<Figures> {
        self.stats.figures(&self.version)
    }

    /// The host-wide part of an alert's key.
    fn key(&self, what: &str) -> String {
        format!("{what}/{}/{}", self.engine, self.id.port)
    }

    /// Whether the end of all instances must wait for it. One that not even SIGKILL ends is waited for no longer.
    pub(super) fn delays_the_end(&self) -> bool {
        !matches!(self.state, State::Stopped | State::Stopping { told: true, .. })
    }

    /// When its figures are to be published; only what counts among the host's instances has any.
    pub(super) fn info_due(&self) -> Option<Instant> {
        self.next_info.filter(|_| self.wanted())
    }

    /// Whether it counts among the host's instances.
    pub(super) fn wanted(&self) -> bool {
        !self.surplus && !matches!(self.state, State::Parked | State::Stopping { .. } | State::Stopped)
    }

    /// Whether the registry has a node of it.
    pub(super) fn is_published(&self) -> bool {
        !self.surplus && !matches!(self.state, State::Parked | State::Stopped)
    }

    fn enter(&mut self, state: State, now: Now) {
        if state.name() != self.state.name() {
            self.since_ms = now.unix_ms;
            self.dirty = true;
        }
        self.state = state;
    }

    // Deadlines

    /// When [`Instance::tick`] wants to be called.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        if let Some(running) = &self.running {
            return Some(running.deadline);
        }
        match self.state {
            State::Planned => None,
            State::Spawning { since, told } => (!told).then(|| since + SPAWN_LIMIT),
            State::Booting { next, .. } => Some(next),
            State::Up { .. } => earliest(Some(self.next_probe), self.recovered_at),
            State::Suspect { retry, .. } => Some(retry),
            State::Killed { since, told } => (!told).then(|| since + KILL_LIMIT),
            State::Backoff { until } => Some(until),
            State::Stopping { since, killed: false, .. } => Some(since + TERMINATE_LIMIT),
            State::Stopping { since, told, .. } => (!told).then(|| since + KILL_LIMIT),
            State::Parked | State::Unattended | State::Stopped => None,
        }
    }

    /// Does what is due.
    pub(super) fn tick(&mut self, ctx: &mut Context<'_>) {
        if let Some(running) = self.running {
            if ctx.now.at >= running.deadline {
                // The answer to this is an `Ended` with the miss and its evidence.
                self.running = Some(Running { deadline: ctx.now.at + ctx.probing.timeout, ..running });
                ctx.actions.push(Action::Expire { id: self.id, talk: running.talk });
            }
            return;
        }
        match self.state {
            State::Planned => self.start(ctx),
            State::Spawning { since, told } => self.tick_spawning(since, told, ctx),
            State::Booting { since, next, .. } => self.tick_booting(since, next, ctx),
            State::Up { .. } => self.tick_up(ctx),
            State::Suspect { talk, retry, .. } => {
                if ctx.now.at >= retry {
                    self.converse(talk, ctx);
                }
            }
            State::Killed { since, told } => self.tick_killed(since, told, ctx),
            State::Backoff { until } => {
                if ctx.now.at >= until {
                    self.start(ctx);
                }
            }
            State::Stopping { since, killed: false, .. } => self.tick_stopping(since, ctx),
            State::Stopping { since, told, .. } => self.tick_stopping_killed(since, told, ctx),
            State::Parked | State::Unattended | State::Stopped => {}
        }
    }

    fn tick_spawning(&mut self, since: Instant, told: bool, ctx: &mut Context<'_>) {
        if !told && ctx.now.at >= since + SPAWN_LIMIT {
            self.enter(State::Spawning { since, told: true }, ctx.now);
            let text = format!(
                "{} has not been started after {} s: the system or a disk does not answer",
                self.name,
                SPAWN_LIMIT.as_secs()
            );
            ctx.fire(self.key("instance-cannot-start"), Severity::Critical, text);
        }
    }

    fn tick_booting(&mut self, since: Instant, next: Instant, ctx: &mut Context<'_>) {
        if ctx.now.at < next {
            return;
        }
        // Data may take longer to load than was thought: each start that took too long gives the next one more time.
        let limit = ctx.probing.start_timeout * (1 << self.slow_starts.min(SLOW_STARTS_AT_MOST));
        if ctx.now.at >= ctx.fair(since) + limit {
            let why = format!("no answer within {} s of its start", limit.as_secs_f64());
            self.try_kill(why, ctx.now.at, ctx);
            if let State::Killed { .. } = self.state {
                self.slow_starts += 1;
            }
        } else {
            self.converse(Talk::Light, ctx);
        }
    }

    fn tick_up(&mut self, ctx: &mut Context<'_>) {
        if let Some(at) = self.recovered_at
            && ctx.now.at >= at
        {
            self.recovered_at = None;
            let text = format!("{} has been up for {} s since", self.name, RECOVERED.as_secs());
            ctx.resolve(&self.key("instance-restarted"), &text);
        }
        if self.sample == Sampling::Now && ctx.sampling {
            return self.converse(Talk::Sample, ctx);
        }
        if ctx.now.at < self.next_probe {
            return;
        }
        self.next_probe = self.grid(ctx);
        if ctx.now.at >= self.next_check {
            self.next_check = later(self.next_check, ctx.probing.check_interval, ctx.now.at);
            // Where every probe is a full one, none is left to take the place of.
            let crowded = ctx.probing.check_interval < ctx.probing.interval * 2;
            self.sample = if crowded { Sampling::Now } else { Sampling::NextProbe };
            self.converse(Talk::Full, ctx);
        } else if self.sample == Sampling::NextProbe && ctx.sampling {
            self.converse(Talk::Sample, ctx);
        } else {
            self.converse(Talk::Light, ctx);
        }
    }

    fn tick_killed(&mut self, since: Instant, told: bool, ctx: &mut Context<'_>) {
        if !told && ctx.now.at >= since + KILL_LIMIT {
            self.enter(State::Killed { since, told: true }, ctx.now);
            self.tell_unkillable(ctx);
        }
    }

    fn tell_unkillable(&mut self, ctx: &mut Context<'_>) {
        let text = match self.pid {
            Some(pid) => format!(
                "{} (pid {pid}) is not dead {} s after SIGKILL: it hangs in the kernel",
                self.name,
                KILL_LIMIT.as_secs()
            ),
            None => format!("{} is to end, but its start has not come to an end yet", self.name),
        };
        ctx.fire(self.key("instance-unkillable"), Severity::Critical, text);
    }

    fn tick_stopping(&mut self, since: Instant, ctx: &mut Context<'_>) {
        // While the host stood still, the server could not save its data either.
        let since = ctx.fair(since);
        if ctx.now.at < since + TERMINATE_LIMIT {
            self.state = State::Stopping { since, killed: false, told: false };
            return;
        }
        let text = format!("{} did not end within {} s: killed", self.name, TERMINATE_LIMIT.as_secs());
        ctx.log(Level::Warn, text);
        ctx.actions.push(Action::Kill { id: self.id });
        self.enter(State::Stopping { since: ctx.now.at, killed: true, told: false }, ctx.now);
    }

    fn tick_stopping_killed(&mut self, since: Instant, told: bool, ctx: &mut Context<'_>) {
        if !told && ctx.now.at >= since + KILL_LIMIT {
            self.enter(State::Stopping { since, killed: true, told: true }, ctx.now);
            self.tell_unkillable(ctx);
        }
    }

    /// Asks it to end; from here on its time runs.
    fn terminate(&mut self, ctx: &mut Context<'_>) {
        ctx.actions.push(Action::Terminate { id: self.id });
        self.enter(State::Stopping { since: ctx.now.at, killed: false, told: false }, ctx.now);
    }

    /// New settings: what was planned by the old ones must not wait longer than the new ones allow.
    pub(super) fn hurry(&mut self, now: Instant, probing: &Probing) {
        self.next_probe = self.next_probe.min(now + probing.interval);
        self.next_check = self.next_check.min(now + probing.check_interval);
        let soon = now + probing.interval.max(probing.timeout);
        if let State::Suspect { retry: next, .. } | State::Booting { next, .. } = &mut self.state {
            *next = (*next).min(soon);
        }
        if let State::Booting { pause, .. } = &mut self.state {
            *pause = (*pause).min(probing.interval);
        }
    }

    /// The next point of the grid that is its own.
    fn grid(&self, ctx: &Context<'_>) -> Instant {
        let interval = ctx.probing.interval;
        let moments = u32::try_from(ctx.total / PROBED_AT_ONCE).unwrap_or(0) + 1;
        let phase = interval / moments * (self.ordinal % moments);
        later(ctx.epoch + phase, interval, ctx.now.at)
    }

    fn converse(&mut self, talk: Talk, ctx: &mut Context<'_>) {
        if talk == Talk::Sample {
            self.sample = Sampling::Later;
        }
        let deadline = ctx.now.at + ctx.probing.timeout;
        self.running = Some(Running { talk, begun: ctx.now.at, deadline });
        ctx.actions.push(Action::Converse { id: self.id, talk, deadline });
    }
}

/// The key of the alert that the agent cannot ask.
const HINDERED: &str = "agent-hindered";

/// What an instance can fire.
const ALERTS: [&str; 10] = [
    "instance-crashed",
    "instance-hung",
    "instance-cannot-start",
    "instance-unkillable",
    "instance-restarted",
    "instance-unhealthy",
    "instance-spared",
    "instance-surplus",
    "plugin-error",
    "port-taken",
];

/// What is over once its server runs and answers.
const REPAIRED: [&str; 5] =
    ["instance-crashed", "instance-hung", "instance-cannot-start", "instance-unkillable", "instance-spared"];

fn earliest(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// The first point of `start`, `start + step`, … that lies behind `now`.
pub(super) fn later(start: Instant, step: Duration, now: Instant) -> Instant {
    if start > now || step.is_zero() {
        return start.max(now);
    }
    let behind = now.duration_since(start).as_nanos() % step.as_nanos();
    now + step - Duration::from_nanos(u64::try_from(behind).unwrap_or(u64::MAX))
}
