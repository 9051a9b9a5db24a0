//! The settings: from the legacy ini's bytes to typed values, and from memory to a plan of instances.
//!
//! `ini` reads a file as Python 2.7's RawConfigParser did, `keys` is the table of all keys, `legacy` turns them into
//! [`Settings`] (with `global`, `engine`, `shards`, `registry`, `args`, `ports`, `files` and `unknown` for their parts), `memory` and
//! `sizing` turn memory into instances. Nothing here starts, connects or writes anything.

mod args;
pub mod dump;
mod engine;
mod files;
mod global;
pub mod ini;
pub mod keys;
mod legacy;
pub mod memory;
mod ports;
mod problem;
mod reader;
mod registry;
mod shards;
pub mod sizing;
mod unknown;
mod values;

use std::{net::IpAddr, path::PathBuf, time::Duration};

pub use legacy::{Loaded, Options, PluginsWanted, load_with, plugins_wanted, read, refused};
pub use memory::Memory;
pub use problem::{ConfigError, Problem, Severity};

use crate::core::ShardSettings;

/// Megabytes as the ini means them: 1 MB is 1,048,576 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Megabytes(pub u64);

/// The configuration that is read where no other is named.
pub const DEFAULT_FILE: &str = "/etc/yagent/yagent.ini";

/// How an engine is configured: what its plugin says about itself.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct EngineKeys {
    /// The engine: `memcached`.
    pub engine: String,
    /// The section that configures it: `memcached`.
    pub section: String,
    /// What the names of its keys begin with: `mc_`.
    pub prefix: String,
    /// The default of its root in the registry: `/ycache`.
    pub registry_root: String,
    /// Full names of keys that name a file whose text the plugin wants.
    pub file_keys: Vec<String>,
}

impl EngineKeys {
    /// The engines that the project brings.
    #[must_use]
    pub fn builtin() -> Vec<EngineKeys> {
        let own = |(engine, section, prefix): &(&str, &str, &str)| EngineKeys {
            engine: (*engine).to_owned(),
            section: (*section).to_owned(),
            prefix: (*prefix).to_owned(),
            registry_root: keys::default_of(&keys::ZOO_ROOT, engine).unwrap_or_default().to_owned(),
            file_keys: if *engine == "redis" { vec!["redis_conf".to_owned()] } else { Vec::new() },
        };
        keys::BUILTIN.iter().map(own).collect()
    }
}

/// Everything the ini file says, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The file that it was read from.
    pub file: PathBuf,
    /// `localip`: this host's address as others know it; `None`: find it.
    pub localip: Option<IpAddr>,
    /// `group`, as written to the host's znode.
    pub group: String,
    /// `priority`, as written to the host's znode.
    pub priority: i64,
    /// `rack`, as written to the host's znode; empty: unknown.
    pub rack: String,
    /// `system_res_mem`: memory kept for the system.
    pub system_res_mem: Megabytes,
    /// `state_dir`: records of instances, the control socket, the alert spool, crash marks.
    pub state_dir: PathBuf,
    /// How instances are probed and repaired.
    pub probing: Probing,
    /// What is counted and published.
    pub statistics: Statistics,
    /// Where the host registers.
    pub registry: RegistrySettings,
    /// The enabled engines, in the order of the file.
    pub engines: Vec<EngineSettings>,
    /// `[plugins] dir`: where plugins are looked for before the executable's own folder.
    pub plugin_dir: Option<PathBuf>,
    /// Where the log goes.
    pub log: LogSettings,
    /// Where alerts go beside the log.
    pub alerts: AlertSettings,
    /// `watchdog_limit`: how long the event loop may stand still before the agent aborts.
    pub watchdog_limit: Duration,
}

/// How instances are probed and repaired.
#[derive(Clone, Debug, PartialEq)]
pub struct Probing {
    /// `CheckInterval`: a full connect-get-close, and a statistics sample, this often.
    pub check_interval: Duration,
    /// `probe_interval`: a light probe on the kept connection this often.
    pub interval: Duration,
    /// `probe_timeout`: how long an answer may take.
    pub timeout: Duration,
    /// `probe_failures`: how many misses in a row make a hang.
    pub failures: u32,
    /// `start_timeout`: how long a started server may take to its first answer of any kind.
    pub start_timeout: Duration,
}

/// What is counted and published.
#[derive(Clone, Debug, PartialEq)]
pub struct Statistics {
    /// `statsEnable`.
    pub enabled: bool,
    /// `statsIntervalNum`: figures are published every so many CheckIntervals.
    pub publish_every: u32,
    /// `showStatIntervalSec`: the windows.
    pub windows: Vec<Duration>,
}

/// Where the host registers.
#[derive(Clone, Debug, PartialEq)]
pub enum RegistrySettings {
    /// `zoo_svr=none`: in this process's memory alone.
    Memory,
    /// A ZooKeeper ensemble.
    Zookeeper(ZookeeperSettings),
}

/// How ZooKeeper is reached and what the tree looks like there.
#[derive(Clone, Debug, PartialEq)]
pub struct ZookeeperSettings {
    /// `host:port` of each server, in the file's order; names are resolved later, again and again.
    pub servers: Vec<String>,
    /// The part behind the first `/` of `zoo_svr`, with its slash; empty without one.
    pub chroot: String,
    /// `zoo_session_timeout`: what is asked for; the server has the last word.
    pub session_timeout: Duration,
    /// `zoo_auth`: `user:password` of the digest scheme; nodes are then writable by it and readable by all.
    pub auth: Option<String>,
}

/// One engine's section.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineSettings {
    /// The engine and plugin: `memcached`, `redis`, ….
    pub engine: String,
    /// `fpath`: the server's program.
    pub program: PathBuf,
    /// `maxmem`: memory that an instance may use for data.
    pub maxmem: Megabytes,
    /// `meta_size`: an instance's overhead, for the sizing alone.
    pub meta_size: Megabytes,
    /// `count`; `None` (-1 in the file): as many as fit.
    pub count: Option<u32>,
    /// `port`: the first port.
    pub port: u16,
    /// `port_step`: the distance to the next.
    pub port_step: u16,
    /// `port_file`: the ports in use, kept over restarts.
    pub port_file: PathBuf,
    /// `bind`: the address that instances listen on; `None`: the server's own default.
    pub bind: Option<IpAddr>,
    /// `zoo_root`: the engine's root in the registry, with its slash: `/ycache`.
    pub registry_root: String,
    /// `server_path`: template of the host's node with `{root}` and `{ip}`.
    pub server_path: String,
    /// `instance_path`: template of an instance's node with `{server}`, `{root}`, `{ip}` and `{port}`.
    pub instance_path: String,
    /// With whom its instances replicate, as the file has it: this host's own address may be among the peers. `None`:
    /// each is alone.
    pub shards: Option<ShardSettings>,
    /// Every key of the section as the plugin gets it: the name as in the file (folded to lower case), the value's
    /// bytes; for the keys whose files the plugin asked for, `NAME.content` holds the text.
    pub raw: Vec<(String, Vec<u8>)>,
}

/// Where the log goes.
#[derive(Clone, Debug, PartialEq)]
pub struct LogSettings {
    /// `log_file`; `None`: standard error.
    pub file: Option<PathBuf>,
    /// `log_level`.
    pub level: log::LevelFilter,
}

/// Where alerts go beside the log.
#[derive(Clone, Debug, PartialEq)]
pub struct AlertSettings {
    /// `alert_command`, split as a shell would; empty: none. It gets each alert as JSON on its standard input.
    pub command: Vec<String>,
    /// `alert_timeout`: how long the command may take before it is killed.
    pub timeout: Duration,
    /// `alert_repeat`: an alert that goes on firing is told again at most this often.
    pub repeat: Duration,
}
