//! The event loop: one thread, one epoll, and every wait has a deadline.
//!
//! It carries out what the core decides and tells the core what happened. Nothing here may block: disks belong to the
//! spawner and the log writer, ZooKeeper to its session, alert commands to their sender.

mod actions;
mod wishes;

use std::{
    collections::{HashMap, VecDeque},
    io,
    net::IpAddr,
    os::fd::{AsFd, OwnedFd},
    sync::mpsc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rustix::process::{WaitId, WaitIdOptions, WaitIdStatus, waitid};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};

use super::{
    alerts::{self, AlertSender, InFlight},
    control::Control,
    exchange::{Line, Matter},
    fencer::Fencer,
    logging::LogHandle,
    notify::Notifier,
    orders::Orders,
    poll::{Poll, Ready, Source, Token},
    process::{Report, Spawner, evidence, unattended},
    registry::{Registry, SessionFacts},
    signals::Signals,
    status,
    waker::Waker,
    watchdog::{Activity, Watchdog},
};
use crate::{
    config::Settings,
    core::{Core, Event, HostPlan, InstanceId, NotStarted, Now, Outcome, Pid, Talk, alert::Severity},
    plugin::Plugin,
    setup::instances_dir,
};
pub use actions::{check_engine, make_backend};
use wishes::quarantine_news;

/// The longest wait, so that a lost wake-up costs no more than this.
const WAIT_AT_MOST: Duration = Duration::from_secs(1);
/// How long a polite close of the registry may take.
const CLOSE_LIMIT: Duration = Duration::from_millis(1500);
/// Orphans that came to this process (it is their subreaper) are reaped this often.
const REAP_EVERY: Duration = Duration::from_secs(5);

/// The key of the alert that new settings were refused.
const RELOAD_FAILED: &str = "reload-failed";

/// Settings with what was made of them: all that a start or a reload needs.
#[derive(Debug)]
pub struct Loaded {
    /// The settings.
    pub settings: Settings,
    /// The plugin of each enabled engine.
    pub plugins: HashMap<String, Plugin>,
    /// What the host is to run.
    pub plan: HostPlan,
    /// Engines whose plugins are in quarantine, and why.
    pub quarantined: HashMap<String, String>,
}

/// Reads the settings again; for a thread of its own. The error is for people.
pub type Loader = Box<dyn Fn() -> Reloaded + Send + Sync>;

/// What a reload comes to.
pub type Reloaded = Result<Loaded, String>;

/// What the loop works with, made by the verb `run`.
pub struct Parts {
    /// This host's address as others know it.
    pub host: IpAddr,
    /// The first settings.
    pub loaded: Loaded,
    /// How they are read again.
    pub loader: Loader,
    /// The epoll; the control socket is registered with it already.
    pub poll: Poll,
    /// What helper threads wake the loop with.
    pub waker: Waker,
    /// The control socket.
    pub control: Control,
    /// The spawner.
    pub spawner: Spawner,
    /// The registry.
    pub registry: Box<dyn Registry>,
    /// The alert sender.
    pub alerts: AlertSender,
    /// The log.
    pub log: LogHandle,
    /// systemd.
    pub notifier: Notifier,
    /// The watchdog.
    pub watchdog: Watchdog,
}

#[derive(Debug)]
struct Process {
    pid: Pid,
    pidfd: OwnedFd,
    token: Token,
}

struct Activities {
    waits: Activity,
    decides: Activity,
    acts: Activity,
    talks: Activity,
    answers: Activity,
}

/// The loop.
pub struct EventLoop {
    core: Core,
    host: IpAddr,
    settings: Settings,
    plugins: HashMap<String, Plugin>,
    quarantined: HashMap<String, String>,
    loader: std::sync::Arc<Loader>,
    reloads: (mpsc::Sender<Reloaded>, mpsc::Receiver<Reloaded>),
    reloading: Option<Vec<Token>>,
    events: VecDeque<Event>,
    lines: HashMap<InstanceId, Line>,
    orders: Orders,
    /// What the core was told of the session last.
    session: Option<SessionFacts>,
    processes: HashMap<InstanceId, Process>,
    signals: Signals,
    activities: Activities,
    started: Now,
    next_reap: Instant,
    next_notify: Instant,
    closing: Option<Instant>,
    poll: Poll,
    waker: Waker,
    control: Control,
    spawner: Spawner,
    registry: Box<dyn Registry>,
    alerts: AlertSender,
    log: LogHandle,
    notifier: Notifier,
    watchdog: Watchdog,
}

fn now() -> Now {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now { at: Instant::now(), unix_ms: u64::try_from(unix.as_millis()).unwrap_or(u64::MAX) }
}

impl EventLoop {
    /// A loop that has not begun.
    ///
    /// # Errors
    /// When signals or wake-ups can't be waited for.
    pub fn new(parts: Parts) -> io::Result<EventLoop> {
        let Parts {
            host,
            loaded,
            loader,
            mut poll,
            waker,
            control,
            spawner,
            registry,
            alerts,
            log,
            notifier,
            watchdog,
        } = parts;
        let started = now();
        let signals = Signals::new()?;
        poll.add(&signals, Source::Signals, false)?;
        poll.add(&waker, Source::Waker, false)?;
        let mut core = Core::new(started, loaded.plan.clone());
        alerts.inherited().into_iter().for_each(|alert| core.inherit(started, alert));
        let mut events = quarantine_news(&HashMap::new(), &loaded.quarantined);
        events.extend(first_events(&loaded.settings, loaded.plan));
        let program = std::env::current_exe().unwrap_or_default();
        let fencer = Fencer::new(loaded.settings.state_dir.clone(), program);
        Ok(EventLoop {
            core,
            host,
            events,
            settings: loaded.settings,
            plugins: loaded.plugins,
            quarantined: loaded.quarantined,
            loader: std::sync::Arc::new(loader),
            reloads: mpsc::channel(),
            reloading: None,
            lines: HashMap::new(),
            orders: Orders::new(fencer),
            session: None,
            processes: HashMap::new(),
            signals,
            activities: Activities {
                waits: Activity::named("waits for events"),
                decides: Activity::named("decides"),
                acts: Activity::named("acts"),
                talks: Activity::named("talks to an instance"),
                answers: Activity::named("answers a control client"),
            },
            started,
            next_reap: started.at + REAP_EVERY,
            next_notify: started.at,
            closing: None,
            poll,
            waker,
            control,
            spawner,
            registry,
            alerts,
            log,
            notifier,
            watchdog,
        })
    }

    /// Runs until the agent is told to end.
    ///
    /// # Errors
    /// When the epoll itself breaks.
    pub fn run(&mut self) -> io::Result<()> {
        let mut ready = Vec::new();
        self.notifier.ready();
        loop {
            self.decide();
            if self.has_ended() {
                return Ok(());
            }
            self.watchdog.beat(self.activities.waits);
            self.poll.wait(self.patience(), &mut ready)?;
            self.watchdog.beat(self.activities.acts);
            for event in &ready {
                self.take(*event);
            }
            self.housekeeping();
        }
    }

    /// After the end: gives the last alerts this long to be delivered.
    pub fn farewell(&self, limit: Duration) {
        self.alerts.close(limit);
    }

    /// How long there is nothing to do if nothing happens.
    fn patience(&self) -> Duration {
        let now = Instant::now();
        let deadlines = [
            self.core.next_deadline(),
            self.control.next_deadline(),
            self.orders.next_deadline(),
            self.closing,
        ];
        let next = deadlines.into_iter().flatten().min().map(|at| at.saturating_duration_since(now));
        let longest = self.watchdog.longest_wait().unwrap_or(WAIT_AT_MOST).min(WAIT_AT_MOST);
        next.unwrap_or(longest).min(longest)
    }

    fn has_ended(&self) -> bool {
        self.closing.is_some_and(|limit| self.registry.closed() || Instant::now() >= limit)
    }

    // What happened

    fn take(&mut self, ready: Ready) {
        match ready.source {
            Source::Waker => self.wake(),
            Source::Signals => self.take_signals(),
            Source::ControlListener => self.control.accept(&mut self.poll, Instant::now()),
            Source::Control => self.serve(ready),
            Source::Process(id) => self.process_ended(id),
            Source::Link(id) => self.link_ready(id, ready),
            Source::OrderLink(id) => {
                self.watchdog.beat(self.activities.talks);
                self.orders.ready(&mut self.poll, id, ready);
            }
            Source::Fencer => self.orders.fencer_ready(&mut self.poll, ready),
        }
    }

    fn wake(&mut self) {
        self.waker.drain();
        while let Some(report) = self.spawner.report() {
            self.spawned(report);
        }
        while let Ok(loaded) = self.reloads.1.try_recv() {
            self.reloaded(loaded);
        }
    }

    fn take_signals(&mut self) {
        for signal in self.signals.take() {
            match signal {
                SIGTERM | SIGINT => {
                    log::info!("signal {signal}: the agent ends, its instances live on");
                    self.events.push_back(Event::Stop { all: false });
                }
                SIGHUP => self.reload(None),
                SIGUSR1 => self.log.reopen(),
                _ => {}
            }
        }
    }

    fn process_ended(&mut self, id: InstanceId) {
        let Some(process) = self.processes.remove(&id) else { return };
        let how = how_it_ended(&process.pidfd);
        self.poll.remove(process.pidfd, process.token);
        if let Some(line) = self.lines.get_mut(&id) {
            line.hang_up(&mut self.poll);
        }
        self.orders.process(&mut self.poll, id, None);
        self.events.push_back(Event::Exited { id, how });
    }

    fn link_ready(&mut self, id: InstanceId, ready: Ready) {
        self.watchdog.beat(self.activities.talks);
        let Some(line) = self.lines.get_mut(&id) else { return };
        if let Some((Matter::Talk(talk), outcome)) = line.ready(&mut self.poll, ready, Instant::now()) {
            self.ended(id, talk, outcome);
        }
    }

    /// A miss gets its evidence on the way to the core.
    fn ended(&mut self, id: InstanceId, talk: Talk, outcome: Outcome) {
        let outcome = match outcome {
            Outcome::Missed { why, .. } => {
                let pid = self.processes.get(&id).map(|process| process.pid);
                Outcome::Missed { why, process: pid.map_or(crate::core::ProcessState::Unknown, evidence) }
            }
            outcome => outcome,
        };
        self.events.push_back(Event::Ended { id, talk, outcome });
    }

    fn spawned(&mut self, report: Report) {
        match report {
            Report::Started { id, pid, pidfd, adopted } => match self.watch(id, pid, pidfd) {
                Ok(()) => {
                    self.events.push_back(Event::Started { id, pid, adopted });
                    if adopted.is_some() {
                        self.orders.adopted(id);
                        self.let_stranger_go(id);
                    }
                }
                Err(e) => {
                    let why = NotStarted::Failed(format!("cannot watch pid {pid}: {e}"));
                    self.events.push_back(Event::NotStarted { id, why });
                }
            },
            Report::NotStarted(id, why) => {
                self.orders.not_guarded(id);
                self.events.push_back(Event::NotStarted { id, why });
            }
            Report::LastWords(id, text) => self.events.push_back(Event::LastWords { id, text }),
            Report::PortsFailed(path, why) => self.events.push_back(Event::Trouble {
                key: format!("port-file{}", path.display()),
                severity: Severity::Warning,
                summary: format!("cannot write port file {}: {why}", path.display()),
            }),
            Report::PortsWritten(path) => self.events.push_back(Event::TroubleOver {
                key: format!("port-file{}", path.display()),
                summary: format!("port file {} is written", path.display()),
            }),
        }
    }

    fn watch(&mut self, id: InstanceId, pid: Pid, pidfd: OwnedFd) -> io::Result<()> {
        let token = self.poll.add(&pidfd, Source::Process(id), false)?;
        self.processes.insert(id, Process { pid, pidfd, token });
        self.orders.process(&mut self.poll, id, Some(pid));
        // The settings may have changed while it was being started.
        if self.orders.leads_to(id) != self.core.is_member(id) && self.unattended(id).is_none() {
            self.renew_orders_to(id, pid);
        }
        Ok(())
    }

    // What the core decides

    /// Lets the core decide on all that happened, then on what is due, until nothing is left.
    fn decide(&mut self) {
        loop {
            self.hear_registry();
            while let Some(event) = self.orders.event() {
                self.events.push_back(event);
            }
            while let Some(id) = self.orders.stranger() {
                if let Some(pid) = self.processes.get(&id).map(|process| process.pid) {
                    self.lead_orders_to(id, pid);
                    self.orders.part(&mut self.poll, id);
                }
            }
            while let Some(event) = self.events.pop_front() {
                self.step(event);
            }
            self.step(Event::Tick);
            if self.events.is_empty() && self.orders.is_quiet() {
                return;
            }
        }
    }

    /// Whose session it is is known before anything else is decided. What it heard counts for a lease with the tick that
    /// follows all that had happened by then: so that is asked for first.
    fn hear_registry(&mut self) {
        let facts = self.registry.facts();
        let news = match (&self.session, &facts) {
            (Some(known), Some(facts)) => facts.says_more(known),
            (known, facts) => known.is_some() || facts.is_some(),
        };
        if news {
            self.session.clone_from(&facts);
            self.events.push_front(Event::Session(facts));
        }
        while let Some(event) = self.registry.event() {
            self.events.push_back(Event::Registry(event));
        }
    }

    fn step(&mut self, event: Event) {
        self.watchdog.beat(self.activities.decides);
        let actions = self.core.step(now(), event);
        self.watchdog.beat(self.activities.acts);
        for action in actions {
            self.act(action);
        }
    }

    fn finish(&mut self) {
        self.notifier.stopping();
        for line in self.lines.values_mut() {
            line.hang_up(&mut self.poll);
        }
        // An agent that ends alone is started again soon: the locks of its shards' masters are left to the session's
        // timeout, for the next run to take over.
        if self.core.keeps_instances() && !self.core.shards(now()).is_empty() {
            self.registry.leave();
        } else {
            self.registry.close();
        }
        self.closing = Some(Instant::now() + CLOSE_LIMIT);
    }

    // What comes round

    fn housekeeping(&mut self) {
        let at = Instant::now();
        self.control.tick(&mut self.poll, at);
        self.orders.tick(&mut self.poll, at);
        if at >= self.next_notify {
            let interval = self.notifier.watchdog_interval().unwrap_or(WAIT_AT_MOST);
            self.next_notify = at + interval.min(WAIT_AT_MOST);
            self.notifier.watchdog();
            self.notifier.status(&status::line(&self.core));
        }
        if at >= self.next_reap {
            self.next_reap = at + REAP_EVERY;
            self.reap_orphans();
        }
    }

    /// Reaps what nobody else waits for: instances are reaped when their pidfd says so, alert commands by their
    /// sender.
    fn reap_orphans(&self) {
        while let Some(pid) = crate::sys::dead_child().map(Pid) {
            let ours = self.processes.values().any(|process| process.pid == pid);
            let raw = i32::try_from(pid.0).ok().and_then(rustix::process::Pid::from_raw);
            let alerts = match alerts::child_in_flight() {
                InFlight::None => false,
                InFlight::Spawning => true,
                InFlight::Child(child) => Some(child) == raw,
            };
            let Some(raw) = raw.filter(|_| !ours && !alerts) else { return };
            if waitid(WaitId::Pid(raw), WaitIdOptions::EXITED | WaitIdOptions::NOHANG).is_err() {
                return;
            }
        }
    }
}

/// The plan, and what a former agent left behind that it does not hold.
fn first_events(settings: &Settings, plan: HostPlan) -> VecDeque<Event> {
    let engines: Vec<&str> = settings.engines.iter().map(|engine| engine.engine.as_str()).collect();
    let left = unattended(&instances_dir(&settings.state_dir), &engines);
    let tell = |(engine, port, pid): (String, u16, Pid)| Event::Trouble {
        key: format!("instance-surplus/{engine}/{port}"),
        severity: Severity::Warning,
        summary: format!(
            "{engine}:{port} (pid {pid}) is of an engine that is no longer configured and is left alone"
        ),
    };
    std::iter::once(Event::Configure(Box::new(plan))).chain(left.into_iter().map(tell)).collect()
}

/// Reaps the process if it is our child, and says how it ended.
fn how_it_ended(pidfd: &OwnedFd) -> String {
    match waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
        Ok(Some(status)) => describe(&status),
        _ => "how is not known, it was adopted".to_owned(),
    }
}

fn describe(status: &WaitIdStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (_, Some(signal)) => format!("signal {signal}"),
        _ => "no status".to_owned(),
    }
}
