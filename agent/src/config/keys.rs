//! The table of keys: names, types, ranges, units, defaults. Parsing, `conf/yagent.ini`, `docs/configuration.md` and
//! their tests all go by it.
//!
//! How a value of a kind is read is in `values`; which setting it becomes, in `legacy` and `engine`.

/// Which section a key belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// `[global]`.
    Global,
    /// `[plugins]`.
    Plugins,
    /// Every engine's section, behind the engine's prefix.
    Engine,
    /// The section of the engine of this name alone; the key's name is complete.
    Only(&'static str),
}

/// What a value may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Any text.
    Text,
    /// As Python's `getboolean`.
    Boolean,
    /// A whole number.
    Integer {
        /// The least.
        min: i64,
        /// The greatest.
        max: i64,
        /// Of what; may be empty.
        unit: &'static str,
    },
    /// A duration.
    Seconds {
        /// The least, in seconds.
        min: f64,
        /// The greatest, in seconds.
        max: f64,
    },
    /// A duration, or nothing.
    OptionalSeconds {
        /// The least, in seconds.
        min: f64,
        /// The greatest, in seconds.
        max: f64,
    },
    /// A path from the root.
    Path,
    /// A path from the root, or nothing.
    OptionalPath,
    /// An IP address, or nothing.
    Address,
    /// IP addresses, or none.
    Addresses,
    /// A number of instances, or -1.
    Count,
    /// Spans of time.
    Windows,
    /// A ZooKeeper connect string.
    Connect,
    /// `user:password`, or nothing; never shown.
    Secret,
    /// A level of the log.
    Level,
    /// A command line in a shell's syntax.
    Command,
    /// A path in the registry.
    RegistryPath,
    /// A path in the registry with fields.
    Template {
        /// Fields that may stand in it.
        fields: &'static [&'static str],
    },
    /// Names separated by commas.
    Names,
}

impl Kind {
    /// What is expected, as a message and the documentation say it.
    #[must_use]
    pub fn expected(&self) -> String {
        match self {
            Kind::Text => "text".into(),
            Kind::Boolean => "1, yes, true or on, or 0, no, false or off".into(),
            Kind::Integer { min, max, unit: "" } => format!("a whole number from {min} to {max}"),
            Kind::Integer { min, max, unit } => format!("a whole number from {min} to {max} ({unit})"),
            Kind::Seconds { min, max } => format!("seconds from {min} to {max}, decimals allowed"),
            Kind::OptionalSeconds { min, max } => format!("seconds from {min} to {max}, or nothing"),
            Kind::Path => "an absolute path".into(),
            Kind::OptionalPath => "an absolute path or nothing".into(),
            Kind::Address => "an IPv4 or IPv6 address or nothing".into(),
            Kind::Addresses => "IPv4 or IPv6 addresses separated by commas or blanks, or nothing".into(),
            Kind::Count => "-1 (as many as fit) or a whole number from 0 to 65535".into(),
            Kind::Windows => "1 to 16 spans of 1 to 31536000 whole seconds, separated by commas".into(),
            Kind::Connect => "host:port,host:port[/chroot], none, or nothing".into(),
            Kind::Secret => "text that is never shown".into(),
            Kind::Level => "error, warn, info or debug".into(),
            Kind::Command => "a command line, quoted as in a shell, or nothing".into(),
            Kind::RegistryPath => "a path like /ycache".into(),
            Kind::Template { fields } => format!("a path with {}", fields.join(", ")),
            Kind::Names => "names separated by commas, or nothing".into(),
        }
    }
}

/// A key.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Key {
    /// The section that it belongs to.
    pub place: Place,
    /// Its name as the file spells it, without an engine's prefix.
    pub name: &'static str,
    /// What its value may be.
    pub kind: Kind,
    /// Its value where the file has none; `None`: the file must have it. An engine may have its own, see
    /// [`default_of`].
    pub default: Option<&'static str>,
    /// Whether the legacy agent had it.
    pub legacy: bool,
    /// What it means.
    pub about: &'static str,
}

const fn key(place: Place, name: &'static str, kind: Kind, default: Option<&'static str>) -> Key {
    Key { place, name, kind, default, legacy: false, about: "" }
}

impl Key {
    const fn legacy(mut self, about: &'static str) -> Key {
        self.legacy = true;
        self.about = about;
        self
    }

    const fn ours(mut self, about: &'static str) -> Key {
        self.about = about;
        self
    }
}

const fn global(name: &'static str, kind: Kind, default: &'static str) -> Key {
    key(Place::Global, name, kind, Some(default))
}

const fn engine(name: &'static str, kind: Kind, default: Option<&'static str>) -> Key {
    key(Place::Engine, name, kind, default)
}

const fn redis(name: &'static str, kind: Kind, default: &'static str) -> Key {
    key(Place::Only("redis"), name, kind, Some(default))
}

const fn whole(min: i64, max: i64, unit: &'static str) -> Kind {
    Kind::Integer { min, max, unit }
}

const fn seconds(min: f64, max: f64) -> Kind {
    Kind::Seconds { min, max }
}

macro_rules! keys {
    ($($constant:ident = $key:expr;)*) => {
        $(pub(super) const $constant: Key = $key;)*
        /// Every key there is.
        pub const KEYS: &[Key] = &[$($constant),*];
    };
}

/// 16 TiB: more than a host has, little enough for sums never to overflow.
const MAX_MB: i64 = 16 << 20;
const DAY: f64 = 86_400.0;

keys! {
    ZOO_SVR = global("zoo_svr", Kind::Connect, "")
        .legacy("The ZooKeeper servers. Nothing: `cf_svr_file` tells. `none`: no ZooKeeper, the tree is kept in memory.");
    CF_SVR_FILE = global("cf_svr_file", Kind::OptionalPath, "")
        .legacy("The ini file that tells the ZooKeeper servers where `zoo_svr` is empty: its `zoo_svr`, else `zookeeper`, else `zk`, in any section.");
    LOCALIP = global("localip", Kind::Address, "")
        .legacy("This host's address as others know it. Nothing: the source address of a route to ZooKeeper.");
    CHECK_INTERVAL = global("CheckInterval", seconds(0.1, 3600.0), "5")
        .legacy("Time between full checks (connect, get, close) and between statistics samples of an instance.");
    GROUP = global("group", Kind::Text, "default").legacy("Written to the host's node; the console allocates by it.");
    PRIORITY = global("priority", whole(-1_000_000_000, 1_000_000_000, ""), "100")
        .legacy("Written to the host's node; the console allocates by it.");
    RACK = global("rack", Kind::Text, "").ours("Written to the host's node; where the host stands.");
    SYSTEM_RES_MEM = global("system_res_mem", whole(0, MAX_MB, "MB"), "3072").legacy("Memory kept for the system.");
    STATS_ENABLE = global("statsEnable", Kind::Boolean, "1").legacy("Whether statistics are kept and published.");
    STATS_INTERVAL_NUM = global("statsIntervalNum", whole(1, 1_000_000, "CheckIntervals"), "120")
        .legacy("Statistics are published every so many CheckIntervals.");
    SHOW_STAT_INTERVAL_SEC = global("showStatIntervalSec", Kind::Windows, "60,3600,86400")
        .legacy("The windows over which statistics are shown.");
    PROBE_INTERVAL = global("probe_interval", seconds(0.1, 3600.0), "1")
        .ours("Time between light probes of an instance on a kept connection.");
    PROBE_TIMEOUT = global("probe_timeout", seconds(0.01, 60.0), "1").ours("How long an instance's answer may take.");
    PROBE_FAILURES = global("probe_failures", whole(1, 100, "misses in a row"), "3")
        .ours("An instance that misses so many probes in a row hangs: it is killed and started again.");
    START_TIMEOUT = global("start_timeout", seconds(0.1, 3600.0), "30")
        .ours("How long a started server may take to its first answer of any kind.");
    STATE_DIR = global("state_dir", Kind::Path, "/var/lib/yagent")
        .ours("Records of instances, the lock, the control socket, the alert spool.");
    LOG_FILE = global("log_file", Kind::OptionalPath, "").ours("The agent's log. Nothing: standard error.");
    LOG_LEVEL = global("log_level", Kind::Level, "info").ours("The least severe line that is logged.");
    ALERT_COMMAND = global("alert_command", Kind::Command, "")
        .ours("Run for each alert, which it gets as JSON on its standard input. No shell is involved.");
    ALERT_TIMEOUT = global("alert_timeout", seconds(0.1, 3600.0), "10")
        .ours("How long the alert command may take before it is killed.");
    ALERT_REPEAT = global("alert_repeat", seconds(1.0, 7.0 * DAY), "900")
        .ours("An alert that goes on firing is told again at most this often.");
    WATCHDOG_LIMIT = global("watchdog_limit", seconds(1.0, 3600.0), "10")
        .ours("How long the event loop may stand still before the agent aborts and is started again; instances live on.");
    ZOO_SESSION_TIMEOUT = global("zoo_session_timeout", seconds(1.0, 3600.0), "30")
        .ours("The ZooKeeper session timeout that is asked for; the server has the last word.");
    ZOO_TICK = global("zoo_tick", seconds(0.1, 60.0), "2")
        .ours("ZooKeeper's `tickTime`, the grain of its session timeouts.");
    ZOO_AUTH = global("zoo_auth", Kind::Secret, "")
        .ours("`user:password` of ZooKeeper's digest scheme; nodes are then writable by it alone and readable by all.");

    PLUGIN_DIR = key(Place::Plugins, "dir", Kind::OptionalPath, Some(""))
        .ours("A folder in which plugins are looked for, before the built-in places.");
    PLUGIN_LOAD = key(Place::Plugins, "load", Kind::Names, Some("")).ours("Engines to load beside memcached and redis.");

    ENABLED = engine("enabled", Kind::Boolean, Some("1"))
        .legacy("The engine on or off. An engine without a section is off.");
    FPATH = engine("fpath", Kind::Path, None).legacy("The server's program. Checked where the engine is on.");
    ARGS = engine("args", Kind::Command, Some(""))
        .legacy("Arguments handed to the server as they stand, quoted as in a shell. (`redis_args` is new.)");
    MAXMEM = engine("maxmem", whole(1, MAX_MB, "MB"), None).legacy("Memory that an instance may use for data.");
    META_SIZE = engine("meta_size", whole(0, MAX_MB, "MB"), Some("0"))
        .legacy("An instance's overhead, for the sizing alone.");
    COUNT = engine("count", Kind::Count, Some("-1")).legacy("Number of instances; -1: as many as fit.");
    PORT = engine("port", whole(1, 65_535, ""), None).legacy("The first instance's port.");
    PORT_STEP = engine("port_step", whole(1, 65_534, ""), Some("10"))
        .legacy("The distance to the next instance's port.");
    PORT_FILE = engine("port_file", Kind::Path, None).legacy("The ports in use, kept over restarts; one a line.");
    BIND = engine("bind", Kind::Address, Some(""))
        .ours("The address that instances listen on. Nothing: the server's own default.");
    ZOO_ROOT = engine("zoo_root", Kind::RegistryPath, None).ours("The engine's root in ZooKeeper.");
    SERVER_PATH = engine("server_path", Kind::Template { fields: &["{root}", "{ip}"] }, Some("{root}/servers/{ip}"))
        .ours("The host's node. `{ip}` must stand in it.");
    INSTANCE_PATH = engine(
        "instance_path",
        Kind::Template { fields: &["{server}", "{root}", "{ip}", "{port}"] },
        Some("{server}/instances/{ip}:{port}"),
    )
    .ours("An instance's node. `{port}` must stand in it, and `{ip}` or `{server}`.");

    PEERS = redis("peers", Kind::Addresses, "")
        .legacy("The hosts whose instances on the same port replicate with ours; ours may be among them. Nothing: each instance is alone.");
    TIMEOUT = redis("timeout", seconds(0.1, DAY), "60")
        .legacy("With `redis_fencing` off, for how long an unconfirmed failure of a master must last before it is replaced. Also how long a member with data waits in a new shard for those that are missing.");
    CHECK_MASTER_INTERVAL = redis("check_master_interval", whole(1, 1_000_000, "CheckIntervals"), "1")
        .legacy("A master's lease is checked at least every so many CheckIntervals.");
    GET_SLAVES_INTERVAL = redis("get_slaves_interval", whole(1, 1_000_000, "CheckIntervals"), "100")
        .legacy("Of no effect: the replicas are known at all times.");
    REDIS_LEASE = redis("redis_lease", Kind::OptionalSeconds { min: 0.1, max: DAY }, "")
        .ours("How long a master may go on after it last heard from ZooKeeper. Nothing: half of `zoo_session_timeout`.");
    REDIS_FENCE_TIME = redis("redis_fence_time", seconds(0.1, 600.0), "3")
        .ours("How long fencing a master may take.");
    REDIS_FENCING = redis("redis_fencing", Kind::Boolean, "1")
        .ours("Whether a master without a lease is stopped from taking writes.");
    REDIS_FAILSAFE = redis("redis_failsafe", Kind::Boolean, "1")
        .ours("Whether, without any ZooKeeper, a master that all members still follow goes on.");
    REDIS_MAX_LAG = redis("redis_max_lag", whole(0, 1 << 50, "bytes"), "1048576")
        .ours("A replica that is further behind is not promoted.");
    REDIS_MIN_REPLICAS = redis("redis_min_replicas", whole(0, 255, "replicas"), "1")
        .ours("A master that has fewer replicas takes writes only after ZooKeeper has recorded that it is alone; 0: it always does.");
    REDIS_CONF = redis("redis_conf", Kind::OptionalPath, "")
        .legacy("The configuration file that every instance starts from. `include` lines in it are followed.");
    REDIS_DIR = redis("redis_dir", Kind::OptionalPath, "")
        .ours("Where instances keep their data, each in a folder of its own. Nothing: `redis` in `state_dir`.");
    REDIS_PASSWORD = redis("redis_password", Kind::Secret, "")
        .ours("The password of probes, orders and replicas. Nothing: `requirepass` of `redis_conf`, if there is one.");
    REDIS_USERNAME = redis("redis_username", Kind::Text, "")
        .ours("The ACL user that logs in with `redis_password`. Nothing: redis's default user.");
    REDIS_RUN_AS = redis("redis_run_as", Kind::Text, "").ours("The user that instances run as. Nothing: the agent's own.");
}

/// What an engine of the project has where the table says nothing, or something else.
const ENGINE_DEFAULTS: &[(&str, &str, &str)] = &[
    ("memcached", "fpath", "/usr/bin/memcached"),
    ("memcached", "maxmem", "4096"),
    ("memcached", "meta_size", "16"),
    ("memcached", "port", "11211"),
    ("memcached", "port_file", "/var/log/yagent_mc_port.cfg"),
    ("memcached", "zoo_root", "/ycache"),
    ("redis", "fpath", "/usr/local/bin/redis-server"),
    ("redis", "maxmem", "128"),
    ("redis", "meta_size", "128"),
    ("redis", "port", "16379"),
    ("redis", "port_file", "/var/log/yagent_redis_port.cfg"),
    ("redis", "zoo_root", "/redis"),
];

/// A key's default in the section of `engine`; `None`: the file must have it.
#[must_use]
pub fn default_of(key: &Key, engine: &str) -> Option<&'static str> {
    let own = ENGINE_DEFAULTS.iter().find(|(of, name, _)| *of == engine && *name == key.name);
    own.map(|(_, _, default)| *default).or(key.default)
}

/// The engines that the project brings, with their sections and prefixes.
pub(super) const BUILTIN: &[(&str, &str, &str)] =
    &[("memcached", "memcached", "mc_"), ("redis", "redis", "redis_")];

#[cfg(test)]
mod tests {
    use super::*;

    const CONF: &str = include_str!("../../../conf/yagent.ini");
    const DOCS: &str = include_str!("../../../docs/configuration.md");

    /// Every full name with its section, as the built-in engines have them.
    fn names() -> Vec<(String, String, Key, Option<&'static str>)> {
        let plain = |section: &str, key: &Key| (section.to_owned(), key.name.to_owned(), *key, key.default);
        let of_engines = |key: &Key| -> Vec<_> {
            let named = |(engine, section, prefix): &(&str, &str, &str)| {
                ((*section).to_owned(), format!("{prefix}{}", key.name), *key, default_of(key, engine))
            };
            BUILTIN.iter().map(named).collect()
        };
        let all = KEYS.iter().flat_map(|key| match key.place {
            Place::Global => vec![plain("global", key)],
            Place::Plugins => vec![plain("plugins", key)],
            Place::Only(engine) => vec![plain(engine, key)],
            Place::Engine => of_engines(key),
        });
        all.collect()
    }

    /// The lines of one section of a file, its header left out.
    fn section<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
        let header = format!("[{name}]");
        let inner = text.lines().skip_while(|line| *line != header).skip(1);
        inner.take_while(|line| !line.starts_with('[')).collect()
    }

    #[test]
    fn the_shipped_file_has_every_key_in_its_section_and_ours_with_their_defaults() {
        for (place, name, key, default) in names() {
            let lines = section(CONF, &place);
            let set = format!("{name}=");
            if key.legacy && lines.iter().any(|line| line.starts_with(&set)) {
                continue;
            }
            let commented = format!("#{name}={}", default.unwrap());
            assert!(
                lines.contains(&commented.as_str()),
                "conf/yagent.ini has no line {commented} in [{place}]"
            );
        }
    }

    #[test]
    fn the_documentation_has_a_row_for_every_key() {
        for key in KEYS {
            let row = row(key);
            assert!(DOCS.lines().any(|line| line == row), "docs/configuration.md has no line\n{row}");
        }
    }

    /// A key's row in the documentation.
    fn row(key: &Key) -> String {
        let code = |text: &str| if text.is_empty() { "nothing".to_owned() } else { format!("`{text}`") };
        let default = match (key.place, key.default) {
            (Place::Engine, _) => {
                let all: Vec<_> =
                    BUILTIN.iter().filter_map(|(engine, _, _)| default_of(key, engine)).collect();
                if all.windows(2).all(|pair| pair[0] == pair[1]) {
                    code(all[0])
                } else {
                    all.iter().map(|default| code(default)).collect::<Vec<_>>().join(", ")
                }
            }
            (_, default) => code(default.unwrap()),
        };
        let origin = if key.legacy { "legacy" } else { "new" };
        let names: Vec<_> = names()
            .into_iter()
            .filter(|(_, _, of, _)| of == key)
            .map(|(_, name, _, _)| code(&name))
            .collect();
        format!("| {} | {} | {} | {default} | {origin} |", names.join(", "), key.about, key.kind.expected())
    }

    #[test]
    fn no_two_keys_share_a_name_in_a_section() {
        let mut seen = std::collections::HashSet::new();
        for (section, name, _, _) in names() {
            assert!(seen.insert((section.clone(), name.to_lowercase())), "{section}.{name}");
        }
    }
}
