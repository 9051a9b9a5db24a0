//! From a configuration file to all that a start or a reload needs: settings, plugins, the host's identity and plan.
//!
//! Reads files and loads plugins; starts nothing, and writes nothing but the host's id and what it must know of a plugin
//! that it may not load one day.

use std::{
    collections::HashMap,
    fs, io,
    io::Read,
    net::{IpAddr, Ipv4Addr, ToSocketAddrs, UdpSocket},
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

use crate::{
    config::{
        self, ConfigError, EngineKeys, EngineSettings, Options, Problem, RegistrySettings, Settings, Severity,
    },
    core::{EnginePlan, HostIdentity, HostPlan, ShardSettings, failover::NOWHERE},
    plugin::{Plugin, PluginError, StartPlan, loader},
    shell::{event_loop, ports, process, quarantine::Quarantine},
};

/// How long the name of a ZooKeeper server may take to resolve when this host looks for its own address.
const RESOLVE_LIMIT: Duration = Duration::from_secs(2);
/// A documentation address: asking for the route to it sends nothing.
const ANYWHERE: &str = "192.0.2.1:9";

/// A configuration that was accepted, with its plugins.
#[derive(Debug)]
pub struct Prepared {
    /// The settings, their warnings, the plan.
    pub loaded: config::Loaded,
    /// The plugin of each enabled engine.
    pub plugins: HashMap<String, Plugin>,
    /// Engines whose plugins are in quarantine and were not loaded, and why.
    pub quarantined: HashMap<String, String>,
    /// How the engines are configured that are not the project's own.
    others: Vec<EngineKeys>,
}

/// Reads a configuration and loads the plugins that it needs.
///
/// # Errors
/// Everything that is wrong with the file, or the first plugin that is missing or refused.
pub fn prepare(path: &Path, options: &Options) -> Result<Prepared, ConfigError> {
    let wanted = config::plugins_wanted(path)?;
    let dirs = loader::search_path(wanted.dir.as_deref());
    let refused = |e: PluginError| ConfigError::whole_file(path, e.to_string());
    let mut quarantined = HashMap::new();
    let mut load = |engine: &str| match Quarantine::of(&wanted.state_dir).why(engine) {
        Some(why) => {
            quarantined.insert(engine.to_owned(), why);
            Ok(None)
        }
        None => loader::load(engine, &dirs).map(Some).map_err(refused),
    };
    let (mut keys, mut others) = (EngineKeys::builtin(), Vec::new());
    for engine in &wanted.load {
        if keys.iter().chain(&others).all(|known| known.engine != *engine) {
            let known = load(engine)?.map(|plugin| engine_keys(engine, plugin));
            others.extend(known.or_else(|| remembered_keys(&wanted.state_dir, engine)));
        }
    }
    keys.extend(others.iter().cloned());
    let mut loaded = config::load_with(path, &keys, options)?;
    let mut plugins = HashMap::new();
    for engine in &loaded.settings.engines {
        if let Some(plugin) = load(&engine.engine)? {
            plugins.insert(engine.engine.clone(), plugin);
        }
    }
    loaded.warnings.extend(quarantined.values().map(|why| warning(path, why)));
    Ok(Prepared { loaded, plugins, quarantined, others })
}

fn warning(path: &Path, why: &str) -> Problem {
    let mut problems = ConfigError::whole_file(path, why.to_owned()).problems;
    problems.iter_mut().for_each(|problem| problem.severity = Severity::Warning);
    problems.remove(0)
}

/// How an engine was configured when its plugin was loaded last.
fn remembered_keys(state_dir: &Path, engine: &str) -> Option<EngineKeys> {
    serde_json::from_slice(&fs::read(keys_file(state_dir, engine)).ok()?).ok()
}

fn keys_file(state_dir: &Path, engine: &str) -> PathBuf {
    state_dir.join("engines").join(format!("{engine}.json"))
}

fn engine_keys(engine: &str, plugin: Plugin) -> EngineKeys {
    let about = plugin.description();
    EngineKeys {
        engine: engine.to_owned(),
        section: about.section.clone(),
        prefix: about.key_prefix.clone(),
        registry_root: about.registry_root.clone(),
        file_keys: about.file_keys.clone(),
    }
}

impl Prepared {
    /// How the instance on `port` would be started.
    ///
    /// # Errors
    /// The plugin refuses the settings.
    pub fn start_plan(&self, engine: &EngineSettings, port: u16) -> Result<StartPlan, String> {
        let nowhere = engine.shards.is_some().then(|| (NOWHERE.0.to_owned(), NOWHERE.1));
        let (settings, host) = (&self.loaded.settings, self.address());
        event_loop::make_backend(self.plugin(engine)?, engine, settings, port, host, nowhere.as_ref())
            .map(|(_, plan)| plan)
    }

    fn plugin(&self, engine: &EngineSettings) -> Result<&Plugin, String> {
        let missing =
            || self.quarantined.get(&engine.engine).map_or("its plugin is not loaded", String::as_str);
        self.plugins.get(&engine.engine).ok_or_else(|| missing().to_owned())
    }

    fn address(&self) -> IpAddr {
        self.loaded.settings.localip.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
    }

    fn check_engine(&self, engine: &EngineSettings) -> Result<(), String> {
        event_loop::check_engine(self.plugin(engine)?, engine, &self.loaded.settings, self.address())
    }

    /// Finds what would keep every instance of an engine from starting.
    ///
    /// # Errors
    /// One sentence for each engine.
    pub fn preflight(&self) -> Result<(), ConfigError> {
        let problem = |engine: &EngineSettings| {
            if self.quarantined.contains_key(&engine.engine) {
                return None;
            }
            let why = self.check_engine(engine).err()?;
            let message = format!("[{}]: {why}", engine.engine);
            Some(ConfigError::whole_file(&self.loaded.settings.file, message).problems)
        };
        let problems: Vec<_> = self.loaded.settings.engines.iter().filter_map(problem).flatten().collect();
        if problems.is_empty() { Ok(()) } else { Err(ConfigError { problems }) }
    }

    /// Hands over to the event loop what it needs, and writes down what must outlive this run.
    #[must_use]
    pub fn into_parts(self, host: &Host) -> event_loop::Loaded {
        let plan = self.host_plan(host);
        if let Err(e) = self.remember() {
            log::warn!("cannot write in {}: {e}", self.loaded.settings.state_dir.display());
        }
        let Prepared { loaded, plugins, quarantined, .. } = self;
        event_loop::Loaded { settings: loaded.settings, plugins, plan, quarantined }
    }

    fn remember(&self) -> io::Result<()> {
        let state_dir = &self.loaded.settings.state_dir;
        let quarantine = Quarantine::of(state_dir);
        self.quarantined.iter().try_for_each(|(engine, why)| quarantine.keep(engine, why))?;
        for keys in self.others.iter().filter(|keys| !self.quarantined.contains_key(&keys.engine)) {
            if remembered_keys(state_dir, &keys.engine).as_ref() != Some(keys) {
                let bytes = serde_json::to_vec(keys).map_err(io::Error::from)?;
                ports::replace(&keys_file(state_dir, &keys.engine), &bytes, false)?;
            }
        }
        Ok(())
    }

    fn host_plan(&self, host: &Host) -> HostPlan {
        let (settings, plan) = (&self.loaded.settings, &self.loaded.plan);
        let identity = HostIdentity {
            ip: host.ip.to_string(),
            hostname: host.hostname.clone(),
            host_id: host.id.clone(),
            nonce: host.nonce.clone(),
            pid: std::process::id(),
            group: settings.group.clone(),
            priority: settings.priority,
            rack: settings.rack.clone(),
            memory: plan.memory.usable(),
            reserved: plan.reserved,
        };
        let count = |engine: &EngineSettings| plan.engine(&engine.engine).map_or(0, |part| part.count);
        let engines = settings
            .engines
            .iter()
            .map(|e| EnginePlan {
                unattended: self.quarantined.get(&e.engine).cloned(),
                shards: shards(e, host.ip),
                ..engine_plan(e, count(e), &identity.ip, &settings.state_dir)
            })
            .collect();
        HostPlan {
            identity,
            probing: settings.probing.clone(),
            statistics: settings.statistics.clone(),
            alert_repeat: settings.alerts.repeat,
            engines,
            misfits: self.loaded.misfits.iter().map(ToString::to_string).collect(),
        }
    }
}

fn engine_plan(engine: &EngineSettings, count: u32, ip: &str, state_dir: &Path) -> EnginePlan {
    let fill = |template: &str| template.replace("{root}", &engine.registry_root).replace("{ip}", ip);
    let server_path = fill(&engine.server_path);
    let instance_path = fill(&engine.instance_path.replace("{server}", &engine.server_path));
    EnginePlan {
        name: engine.engine.clone(),
        count,
        maxmem: engine.maxmem,
        port: engine.port,
        port_step: engine.port_step,
        known_ports: known_ports(engine, state_dir),
        server_path,
        instance_path,
        unattended: None,
        shards: None,
    }
}

/// With whom an engine's instances replicate: the peers without this host itself, in order. No other host, no shards.
fn shards(engine: &EngineSettings, ip: IpAddr) -> Option<ShardSettings> {
    let mut shards = engine.shards.clone()?;
    shards.peers.retain(|peer| *peer != ip);
    shards.peers.sort_unstable();
    (!shards.peers.is_empty()).then_some(shards)
}

/// The ports of the port file, then those of recorded instances that it lacks.
fn known_ports(engine: &EngineSettings, state_dir: &Path) -> Vec<u16> {
    let (mut known, strangers) = ports::read(&engine.port_file).unwrap_or_else(|e| {
        log::warn!("cannot read port file {}: {e}", engine.port_file.display());
        Default::default()
    });
    for word in strangers {
        log::warn!("port file {}: found {word:?}, expected a port", engine.port_file.display());
    }
    let recorded = process::recorded_ports(&instances_dir(state_dir), &engine.engine);
    known.extend(recorded.into_iter().filter(|port| !known.contains(port)).collect::<Vec<_>>());
    known
}

/// Where records and output of instances are kept.
#[must_use]
pub fn instances_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("instances")
}

/// What of the host stays the same while the agent runs.
#[derive(Clone, Debug)]
pub struct Host {
    /// Its address as others know it.
    pub ip: IpAddr,
    /// Its name.
    pub hostname: String,
    /// Stable over restarts of the agent, unique to this state directory.
    pub id: String,
    /// Random, new in each run.
    pub nonce: String,
}

impl Host {
    /// Finds the host's address, reads its id or makes one.
    ///
    /// # Errors
    /// When the id can't be read or written.
    pub fn find(settings: &Settings) -> io::Result<Host> {
        Ok(Host {
            ip: settings.localip.unwrap_or_else(|| own_address(&settings.registry)),
            hostname: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            id: host_id(&settings.state_dir.join("host_id"))?,
            nonce: random()?,
        })
    }
}

/// 128 random bits in hexadecimal.
pub(crate) fn random() -> io::Result<String> {
    let mut bytes = [0u8; 16];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn host_id(path: &Path) -> io::Result<String> {
    match fs::read_to_string(path) {
        Ok(id) if !id.trim().is_empty() => return Ok(id.trim().to_owned()),
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let id = random()?;
    ports::replace(path, format!("{id}\n").as_bytes(), true)?;
    Ok(id)
}

/// The source address of a route to ZooKeeper, else of one to anywhere, else loopback.
fn own_address(registry: &RegistrySettings) -> IpAddr {
    let servers = match registry {
        RegistrySettings::Zookeeper(zookeeper) => zookeeper.servers.clone(),
        RegistrySettings::Memory => Vec::new(),
    };
    let (sender, receiver) = mpsc::channel();
    let look = move || {
        let found = servers.iter().find_map(|server| route_source(server));
        let _ = sender.send(found);
    };
    let _ = thread::Builder::new().name("resolve".to_owned()).spawn(look);
    let found = receiver.recv_timeout(RESOLVE_LIMIT).ok().flatten();
    found.or_else(|| route_source(ANYWHERE)).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

fn route_source(server: &str) -> Option<IpAddr> {
    let target = server.to_socket_addrs().ok()?.next()?;
    let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(target).ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|ip| !ip.is_unspecified())
}
