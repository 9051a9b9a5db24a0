//! The event loop: one thread, one epoll, and every wait has a deadline.
//!
//! It carries out what the core decides and tells the core what happened. Nothing here may block: disks belong to the
//! spawner and the log writer, ZooKeeper to its session, alert commands to their sender.

use std::{
    collections::{HashMap, VecDeque},
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::mpsc,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rustix::process::{Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_send_signal, waitid};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};

use super::{
    alerts::{self, AlertSender, InFlight, Origin},
    control::{Control, Request},
    exchange::{Line, Matter},
    fencer::Fencer,
    logging::LogHandle,
    notify::Notifier,
    orders::Orders,
    poll::{Poll, Ready, Source, Token},
    process::{Job, Report, Spawner, Start, check_users, evidence, unattended},
    registry::{Registry, SessionFacts},
    signals::Signals,
    status,
    waker::Waker,
    watchdog::{Activity, Watchdog},
};
use crate::{
    config::{EngineSettings, Settings},
    core::{
        Action, Core, EngineId, Event, HostPlan, InstanceId, NotStarted, Now, Outcome, Pid, Talk,
        alert::Severity,
        failover::{NOWHERE, Wish},
    },
    plugin::{
        Backend, Plugin, StartPlan,
        settings::{Instance, of_instance},
    },
    setup::instances_dir,
};

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
        self.hear_session();
        while let Some(event) = self.registry.event() {
            self.events.push_back(Event::Registry(event));
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
                        self.let_stranger_go(id);
                    }
                }
                Err(e) => {
                    let why = NotStarted::Failed(format!("cannot watch pid {pid}: {e}"));
                    self.events.push_back(Event::NotStarted { id, why });
                }
            },
            Report::NotStarted(id, why) => self.events.push_back(Event::NotStarted { id, why }),
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
        Ok(())
    }

    // What the core decides

    /// Lets the core decide on all that happened, then on what is due, until nothing is left.
    fn decide(&mut self) {
        loop {
            self.hear_session();
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

    /// The lease counts from what the session heard last: it is known before anything else is decided.
    fn hear_session(&mut self) {
        let facts = self.registry.facts();
        let news = match (&self.session, &facts) {
            (Some(known), Some(facts)) => facts.says_more(known),
            (known, facts) => known.is_some() || facts.is_some(),
        };
        if news {
            self.session.clone_from(&facts);
            self.events.push_front(Event::Session(facts));
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

    fn act(&mut self, action: Action) {
        match action {
            Action::Start { id, known, follow } => self.start(id, known, false, follow),
            Action::Adopt { id } => self.start(id, false, true, None),
            Action::Terminate { id } => {
                self.signal(id, Signal::TERM);
                // A stopped process would not get it.
                self.signal(id, Signal::CONT);
            }
            Action::Kill { id } => self.signal(id, Signal::KILL),
            Action::Converse { id, talk, deadline } => self.converse(id, talk, deadline),
            Action::Expire { id, talk } => self.expire(id, talk),
            Action::Order { id, order, deadline } => {
                self.watchdog.beat(self.activities.talks);
                self.orders.order(&mut self.poll, id, order, deadline);
            }
            Action::Lease { id, until } => self.orders.lease(id, until),
            Action::Grace { id, until } => self.orders.grace(id, until),
            Action::Request { token, request } => self.registry.request(token, request),
            Action::AskLastWords { id } => {
                self.spawner.submit(Job::LastWords(id, self.core.engine_name(id.engine).to_owned()));
            }
            Action::Forget { id } => self.forget(id),
            Action::WritePorts { engine, ports } => self.write_ports(engine, ports),
            Action::Publish(changes) => self.registry.apply(changes),
            Action::Claim(owned) => self.registry.claim(owned),
            Action::Alert(alert) => self.alerts.send(&alert),
            Action::Log(level, text) => log::log!(level, "{text}"),
            Action::Finish => self.finish(),
        }
    }

    fn engine(&self, id: EngineId) -> Option<&EngineSettings> {
        let name = self.core.engine_name(id);
        self.settings.engines.iter().find(|engine| engine.engine == name)
    }

    /// Makes a new line for the instance and hands the rest to the spawner.
    fn start(&mut self, id: InstanceId, known: bool, adopt_only: bool, follow: Option<(String, u16)>) {
        // One that nobody looked after may be there already.
        if let Some(process) = self.processes.remove(&id) {
            self.poll.remove(process.pidfd, process.token);
        }
        if let Some(mut line) = self.lines.remove(&id) {
            line.hang_up(&mut self.poll);
        }
        if let Some(start) = self.unattended(id) {
            return self.spawner.submit(Job::Start(Box::new(start)));
        }
        match self.prepare(id, follow.as_ref()) {
            Ok((line, orders, bind, plan)) => {
                self.lines.insert(id, line);
                self.open_orders(id, orders);
                let engine = self.core.engine_name(id.engine).to_owned();
                let start = Start { id, engine, bind, known, adopt_only, plan };
                self.spawner.submit(Job::Start(Box::new(start)));
            }
            Err(why) => self.events.push_back(Event::NotStarted { id, why: NotStarted::Failed(why) }),
        }
    }

    /// What can be said without the plugin, which is in quarantine: the program by which a survivor is known.
    fn unattended(&self, id: InstanceId) -> Option<Start> {
        let engine = self.engine(id.engine).filter(|engine| self.quarantined.contains_key(&engine.engine))?;
        let program = engine.program.display().to_string();
        let plan = StartPlan { program, ..StartPlan::default() };
        let (name, bind) = (engine.engine.clone(), engine.bind);
        Some(Start { id, engine: name, bind, known: true, adopt_only: true, plan })
    }

    /// Members of shards have a line for orders beside the one for probes.
    fn open_orders(&mut self, id: InstanceId, line: Option<(Line, SocketAddr)>) {
        let shards = self.engine(id.engine).and_then(|engine| engine.shards.as_ref());
        match (line, shards.map(|shards| shards.timing.fence)) {
            (Some((line, address)), within) => {
                let (key, within) = (self.key(id), within.unwrap_or_default());
                self.orders.open(&mut self.poll, id, key, line, address, within);
            }
            _ => self.orders.close(&mut self.poll, id),
        }
    }

    /// Servers that run already become members of shards by new settings, or cease to be.
    fn renew_orders(&mut self) {
        let running: Vec<(InstanceId, Pid)> = self.processes.iter().map(|(id, it)| (*id, it.pid)).collect();
        for (id, pid) in running {
            match self.engine(id.engine).map(|engine| engine.shards.is_some()) {
                Some(true) if !self.orders.leads_to(id) => self.lead_orders_to(id, pid),
                Some(false) => self.orders.part(&mut self.poll, id),
                // One whose engine was taken out must be fenced as long as it lives.
                _ => {}
            }
        }
    }

    fn lead_orders_to(&mut self, id: InstanceId, pid: Pid) {
        let nowhere = (NOWHERE.0.to_owned(), NOWHERE.1);
        match self.prepare(id, Some(&nowhere)) {
            Ok((_, orders, _, _)) => self.open_orders(id, orders),
            Err(why) => log::error!("no orders can be given to port {}: {why}", id.port),
        }
        self.orders.process(&mut self.poll, id, Some(pid));
    }

    /// A server that runs already and is no member may be guarded all the same, if it was one when the agent last ran.
    fn let_stranger_go(&mut self, id: InstanceId) {
        let fails_over =
            |engine: &EngineSettings| self.plugins.get(&engine.engine).is_some_and(Plugin::fails_over);
        if self.engine(id.engine).is_some_and(|engine| engine.shards.is_none() && fails_over(engine)) {
            let (key, alone) = (self.key(id), self.settings.engines.iter().all(|e| e.shards.is_none()));
            self.orders.let_go(&mut self.poll, id, key, alone);
        }
    }

    /// Its name for people: `redis:16379`.
    fn key(&self, id: InstanceId) -> String {
        format!("{}:{}", self.core.engine_name(id.engine), id.port)
    }

    #[expect(clippy::type_complexity, reason = "what a start needs, taken apart at once")]
    fn prepare(
        &self,
        id: InstanceId,
        follow: Option<&(String, u16)>,
    ) -> Result<(Line, Option<(Line, SocketAddr)>, Option<IpAddr>, StartPlan), String> {
        let engine = self.engine(id.engine).ok_or("its engine is no longer configured")?;
        let plugin = self.plugins.get(&engine.engine).ok_or("its plugin is not loaded")?;
        let (backend, plan) = make_backend(plugin, engine, &self.settings, id.port, self.host, follow)?;
        let address = SocketAddr::new(connect_address(&plan, engine.bind)?, id.port);
        let orders = match follow {
            Some(_) => {
                let (backend, _) = make_backend(plugin, engine, &self.settings, id.port, self.host, follow)?;
                Some((Line::new(Source::OrderLink(id), address, backend), address))
            }
            None => None,
        };
        Ok((Line::new(Source::Link(id), address, backend), orders, engine.bind, plan))
    }

    fn signal(&mut self, id: InstanceId, signal: Signal) {
        let Some(process) = self.processes.get(&id) else { return };
        if let Err(e) = pidfd_send_signal(&process.pidfd, signal)
            && e != rustix::io::Errno::SRCH
        {
            log::error!("cannot send a signal to pid {}: {e}", process.pid);
        }
    }

    fn converse(&mut self, id: InstanceId, talk: Talk, deadline: Instant) {
        self.watchdog.beat(self.activities.talks);
        let outcome = match self.lines.get_mut(&id) {
            Some(line) => line.begin(&mut self.poll, Matter::Talk(talk), Instant::now(), deadline),
            None => Some(Outcome::Failed { why: "nothing leads to it".to_owned() }),
        };
        if let Some(outcome) = outcome {
            self.ended(id, talk, outcome);
        }
    }

    fn expire(&mut self, id: InstanceId, talk: Talk) {
        let ended = self.lines.get_mut(&id).and_then(|line| line.expire(&mut self.poll, Instant::now()));
        let what = ended.map_or_else(|| "no answer".to_owned(), |(_, what)| what);
        let why = format!("{what} within {} s", self.settings.probing.timeout.as_secs_f64());
        self.ended(id, talk, Outcome::Missed { why, process: crate::core::ProcessState::Unknown });
    }

    fn forget(&mut self, id: InstanceId) {
        if let Some(mut line) = self.lines.remove(&id) {
            line.hang_up(&mut self.poll);
        }
        if let Some(process) = self.processes.remove(&id) {
            self.poll.remove(process.pidfd, process.token);
        }
        self.orders.close(&mut self.poll, id);
        self.spawner.submit(Job::Forget(id, self.core.engine_name(id.engine).to_owned()));
    }

    fn write_ports(&mut self, engine: EngineId, ports: Vec<u16>) {
        if let Some(engine) = self.engine(engine) {
            self.spawner.submit(Job::WritePorts(engine.port_file.clone(), ports));
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

    // Reload

    fn reload(&mut self, client: Option<Token>) {
        if let Some(clients) = &mut self.reloading {
            clients.extend(client);
            return;
        }
        self.reloading = Some(client.into_iter().collect());
        self.notifier.reloading();
        let (loader, sender, waker) = (self.loader.clone(), self.reloads.0.clone(), self.waker.clone());
        let work = move || {
            let _ = sender.send(loader());
            waker.wake();
        };
        if let Err(e) = thread::Builder::new().name("reload".to_owned()).spawn(work) {
            self.reloaded(Err(format!("cannot start a thread: {e}")));
        }
    }

    fn reloaded(&mut self, loaded: Reloaded) {
        self.notifier.ready();
        let clients = self.reloading.take().unwrap_or_default();
        let answer = match loaded.and_then(|loaded| self.accept(loaded)) {
            Ok(loaded) => {
                self.apply(loaded);
                let summary = "the settings were read again".to_owned();
                self.events.push_back(Event::TroubleOver { key: RELOAD_FAILED.to_owned(), summary });
                serde_json::json!({"ok": true, "message": "the settings were read again"})
            }
            Err(why) => {
                let summary = format!("the settings stay as they were: {why}");
                let (key, severity) = (RELOAD_FAILED.to_owned(), Severity::Warning);
                self.events.push_back(Event::Trouble { key, severity, summary });
                serde_json::json!({"ok": false, "message": why})
            }
        };
        for token in clients {
            self.control.answer(&mut self.poll, token, Instant::now(), answer.to_string());
        }
    }

    /// New settings must suit the plugins before anything is changed.
    fn accept(&self, loaded: Loaded) -> Reloaded {
        for engine in &loaded.settings.engines {
            // One that is in quarantine has none.
            let Some(plugin) = loaded.plugins.get(&engine.engine) else { continue };
            check_engine(plugin, engine, &loaded.settings, self.host)
                .map_err(|why| format!("{}: [{}]: {why}", loaded.settings.file.display(), engine.engine))?;
        }
        Ok(loaded)
    }

    fn apply(&mut self, loaded: Loaded) {
        let Loaded { settings, plugins, plan, quarantined } = loaded;
        if settings.state_dir != self.settings.state_dir
            || settings.registry != self.settings.registry
            || settings.localip != self.settings.localip
            || settings.watchdog_limit != self.settings.watchdog_limit
            || settings.log.file != self.settings.log.file
        {
            log::warn!(
                "state_dir, zoo_svr, zoo_auth, zoo_session_timeout, localip, watchdog_limit and log_file take effect \
                 when the agent is started again"
            );
        }
        self.log.set_level(settings.log.level);
        let host = self.host.to_string();
        self.alerts.configure(&settings.alerts, Origin { host, group: settings.group.clone() });
        let (registry, localip) = (self.settings.registry.clone(), self.settings.localip);
        let state_dir: PathBuf = self.settings.state_dir.clone();
        self.settings = Settings { registry, localip, state_dir, ..settings };
        self.plugins = plugins;
        self.events.extend(quarantine_news(&self.quarantined, &quarantined));
        self.quarantined = quarantined;
        self.renew_orders();
        log::info!("the settings were read again from {}", self.settings.file.display());
        self.events.push_back(Event::Configure(Box::new(plan)));
    }

    // Control

    fn serve(&mut self, ready: Ready) {
        self.watchdog.beat(self.activities.answers);
        let Some(request) = self.control.ready(&mut self.poll, ready) else { return };
        let answer = match request {
            Ok(Request::Status) => self.status(),
            Ok(Request::Stop { all }) => {
                log::info!(
                    "a control client asks the agent to end{}",
                    if all { " with all instances" } else { "" }
                );
                self.events.push_back(Event::Stop { all });
                serde_json::json!({"ok": true, "message": "stopping"}).to_string()
            }
            Ok(Request::Reload) => {
                self.control.wait(ready.token);
                return self.reload(Some(ready.token));
            }
            Ok(Request::Shards { shard }) => status::shards(&self.core, now(), shard.as_deref()),
            Ok(Request::Switchover { shard, to, id }) => self.wish(&shard, Wish::Switchover { to, id }),
            Ok(Request::Failover { shard, to, id }) => self.wish(&shard, Wish::Force { to, id }),
            Ok(Request::Pause { shard, for_ms, reason, host }) => {
                self.wish(&shard, Wish::Pause { long: Duration::from_millis(for_ms), reason, host })
            }
            Ok(Request::Resume { shard, host }) => self.wish(&shard, Wish::Resume { host }),
            Err(why) => serde_json::json!({"ok": false, "message": why}).to_string(),
        };
        self.control.answer(&mut self.poll, ready.token, Instant::now(), answer);
    }

    /// What an operator wishes of a shard: its member here refuses it, or sees to it.
    fn wish(&mut self, shard: &str, wish: Wish) -> String {
        log::info!("a control client wishes of shard {shard}: {wish:?}");
        let (taken, actions) = self.core.wish(now(), shard, wish);
        for action in actions {
            self.act(action);
        }
        let (ok, message) = taken.map_or_else(|why| (false, why), |()| (true, "the shard has it".to_owned()));
        serde_json::json!({"ok": ok, "message": message}).to_string()
    }

    fn status(&self) -> String {
        let agent = status::Agent {
            version: env!("CARGO_PKG_VERSION"),
            pid: std::process::id(),
            config: self.settings.file.display().to_string(),
            ip: self.host.to_string(),
            since_ms: self.started.unix_ms,
            uptime_s: self.started.at.elapsed().as_secs_f64(),
            rss_bytes: status::resident(),
            log_dropped: self.log.dropped(),
        };
        status::report(agent, self.registry.status(), &self.core, now())
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

/// What to tell of plugins that came into quarantine, or out of it.
fn quarantine_news(before: &HashMap<String, String>, now: &HashMap<String, String>) -> VecDeque<Event> {
    let key = |engine: &String| format!("plugin-quarantined/{engine}");
    let over = before.keys().filter(|engine| !now.contains_key(*engine)).map(|engine| Event::TroubleOver {
        key: key(engine),
        summary: format!("plugin `{engine}` is loaded again"),
    });
    let fires = now.iter().map(|(engine, why)| Event::Trouble {
        key: key(engine),
        severity: Severity::Critical,
        summary: format!("{why}; its instances are left as they are"),
    });
    over.chain(fires).collect()
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

/// An instance's backend, and how it would be started.
///
/// # Errors
/// The plugin refuses the settings.
pub fn make_backend(
    plugin: &Plugin,
    engine: &EngineSettings,
    settings: &Settings,
    port: u16,
    host: IpAddr,
    follow: Option<&(String, u16)>,
) -> Result<(Backend, StartPlan), String> {
    let index = u32::from(port.saturating_sub(engine.port) / engine.port_step.max(1));
    let instance = Instance { index, host, port, state_dir: &settings.state_dir, follow };
    let mut backend = plugin.create(&of_instance(engine, instance)).map_err(|e| e.to_string())?;
    let plan = backend.start().map_err(|e| e.to_string())?;
    Ok((backend, plan))
}

/// Finds what would keep every instance of an engine from starting.
///
/// # Errors
/// What that is, in a sentence.
pub fn check_engine(
    plugin: &Plugin,
    engine: &EngineSettings,
    settings: &Settings,
    host: IpAddr,
) -> Result<(), String> {
    let (_, plan) = make_backend(plugin, engine, settings, engine.port, host, None)?;
    connect_address(&plan, engine.bind)?;
    check_users(&plan)
}

/// Where to connect: as the plugin says, else as bound, else loopback.
fn connect_address(plan: &StartPlan, bind: Option<IpAddr>) -> Result<IpAddr, String> {
    match plan.connect.as_str() {
        "" => {}
        // The one name that needs nobody to be asked.
        "localhost" => return Ok(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        address => {
            let told = |_| format!("it is to listen on {address}, expected an IP address or localhost");
            return address.parse().map_err(told);
        }
    }
    Ok(bind.filter(|ip| !ip.is_unspecified()).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)))
}
