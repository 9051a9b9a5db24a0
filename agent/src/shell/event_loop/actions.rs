//! What the core decides is carried out.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Instant,
};

use rustix::process::{Signal, pidfd_send_signal};

use super::{
    super::{
        exchange::{Line, Matter},
        poll::Source,
        process::{Job, Start, check_users},
    },
    EventLoop,
};
use crate::{
    config::{EngineSettings, Settings},
    core::{
        Action, EngineId, Event, InstanceId, NotStarted, Outcome, Pid, ProcessState, Talk, failover::NOWHERE,
    },
    plugin::{
        Backend, Plugin, StartPlan,
        settings::{Instance, of_instance},
    },
};

impl EventLoop {
    pub(super) fn act(&mut self, action: Action) {
        match action {
            Action::Start { id, known, follow } => self.start(id, known, false, follow),
            Action::Adopt { id } => self.start(id, false, true, None),
            Action::Terminate { id } => {
                self.orders.not_guarded(id);
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

    pub(super) fn engine(&self, id: EngineId) -> Option<&EngineSettings> {
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
    pub(super) fn unattended(&self, id: InstanceId) -> Option<Start> {
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
    pub(super) fn renew_orders(&mut self) {
        let running: Vec<(InstanceId, Pid)> = self.processes.iter().map(|(id, it)| (*id, it.pid)).collect();
        for (id, pid) in running {
            self.renew_orders_to(id, pid);
        }
    }

    pub(super) fn renew_orders_to(&mut self, id: InstanceId, pid: Pid) {
        let fence = |engine: &EngineSettings| engine.shards.as_ref().map(|shards| shards.timing.fence);
        match self.engine(id.engine).map(fence) {
            Some(Some(within)) if self.orders.leads_to(id) => self.orders.fence_within(id, within),
            Some(Some(_)) => self.lead_orders_to(id, pid),
            Some(None) => self.orders.part(&mut self.poll, id),
            // One whose engine was taken out must be fenced as long as it lives.
            None => {}
        }
    }

    pub(super) fn lead_orders_to(&mut self, id: InstanceId, pid: Pid) {
        let nowhere = (NOWHERE.0.to_owned(), NOWHERE.1);
        match self.prepare(id, Some(&nowhere)) {
            Ok((_, orders, _, _)) => self.open_orders(id, orders),
            Err(why) => log::error!("no orders can be given to port {}: {why}", id.port),
        }
        self.orders.process(&mut self.poll, id, Some(pid));
    }

    /// A server that runs already and is no member may be guarded all the same, if it was one when the agent last ran.
    pub(super) fn let_stranger_go(&mut self, id: InstanceId) {
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

    pub(super) fn expire(&mut self, id: InstanceId, talk: Talk) {
        let ended = self.lines.get_mut(&id).and_then(|line| line.expire(&mut self.poll, Instant::now()));
        let what = ended.map_or_else(|| "no answer".to_owned(), |(_, what)| what);
        let why = format!("{what} within {} s", self.settings.probing.timeout.as_secs_f64());
        self.ended(id, talk, Outcome::Missed { why, process: ProcessState::Unknown });
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
