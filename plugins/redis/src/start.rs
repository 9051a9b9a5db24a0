//! How an instance is started: `redis-server [redis_conf] [redis_args] OURS`.
//!
//! Ours are those settings in which two instances must differ, and those by which redis would leave the agent's hands.
//! They come last, because of a repeated directive redis takes the last.
//!
//! A member of a shard is told besides how it replicates, see `shard`.

use yagent_abi::sdk::{Plan, Settings};

use crate::{conf::Conf, shard};

/// `maxclients` without a word in the configuration.
const CLIENTS: u64 = 10_000;
/// Open files beside those of clients: redis itself reserves 32; persistence and replication want some more.
const OTHER_FILES: u64 = 128;

/// What is known before the start.
#[derive(Debug)]
pub(crate) struct Start {
    program: String,
    args: Vec<Vec<u8>>,
    dir: String,
    run_as: Option<String>,
    connect: Option<String>,
    open_files: u64,
}

impl Start {
    pub(crate) fn new(settings: &Settings<'_>, conf: &Conf, operators: Vec<Vec<u8>>) -> Result<Self, String> {
        let dir = instance_dir(settings)?;
        let bind = set(settings, "bind")?;
        let ours = ours(settings, conf, &dir, bind)?;
        Ok(Self {
            program: settings.required("program")?.to_owned(),
            args: [file(settings)?, operators, ours, shard::directives(settings, conf)?].concat(),
            dir,
            run_as: set(settings, "redis_run_as")?.map(str::to_owned),
            connect: if bind.is_some() { None } else { conf.bind.clone() },
            open_files: conf.max_clients.unwrap_or(CLIENTS) + OTHER_FILES,
        })
    }

    pub(crate) fn plan(&self, plan: &Plan<'_>) {
        plan.program(&self.program);
        plan.args(&self.args);
        plan.dir(&self.dir);
        plan.cwd(&self.dir);
        if let Some(user) = &self.run_as {
            plan.user(user);
        }
        if let Some(address) = &self.connect {
            plan.connect(address);
        }
        plan.open_files(self.open_files);
    }
}

/// A setting that is there and not empty.
pub(crate) fn set<'a>(settings: &Settings<'a>, name: &str) -> Result<Option<&'a str>, String> {
    Ok(settings.text(name)?.filter(|text| !text.is_empty()))
}

/// Each instance has a directory of its own, so that whatever redis names relatively is its own too.
fn instance_dir(settings: &Settings<'_>) -> Result<String, String> {
    let port = settings.required("port")?;
    let above = match set(settings, "redis_dir")? {
        Some(dir) if dir.starts_with('/') => dir.to_owned(),
        Some(dir) => return Err(format!("`redis_dir` is `{dir}`, wanted an absolute path")),
        None => format!("{}/redis", settings.required("state_dir")?.trim_end_matches('/')),
    };
    Ok(format!("{}/{port}", above.trim_end_matches('/')))
}

/// The configuration file, which redis looks for from the instance's directory.
fn file(settings: &Settings<'_>) -> Result<Vec<Vec<u8>>, String> {
    match settings.bytes("redis_conf").unwrap_or_default() {
        b"" => Ok(Vec::new()),
        path if path.starts_with(b"/") => Ok(vec![path.to_vec()]),
        path => Err(format!("`redis_conf` is `{}`, wanted an absolute path", path.escape_ascii())),
    }
}

/// The directives in which instances must differ, or that keep redis in the agent's hands.
fn ours(settings: &Settings<'_>, conf: &Conf, dir: &str, bind: Option<&str>) -> Result<Vec<Vec<u8>>, String> {
    let port: u16 = settings.number("port")?;
    let maxmem: u64 = settings.number("maxmem_mb")?;
    let mut directives = vec![("port", port.to_string())];
    directives.extend(bind.map(|bind| ("bind", bind.to_owned())));
    directives.extend([
        ("maxmemory", format!("{maxmem}mb")),
        ("dir", dir.to_owned()),
        ("dbfilename", format!("dump-{port}.rdb")),
        ("appendfilename", format!("appendonly-{port}.aof")),
        ("pidfile", format!("{dir}/redis.pid")),
    ]);
    directives.extend(of_the_conf(conf, port, dir));
    directives.extend([("logfile", String::new()), ("daemonize", "no".into()), ("supervised", "no".into())]);
    let words = directives.into_iter().flat_map(|(name, value)| [format!("--{name}"), value]);
    Ok(words.map(String::into_bytes).collect())
}

/// What is only overridden where the configuration sets it: not every version knows these.
fn of_the_conf(conf: &Conf, port: u16, dir: &str) -> impl Iterator<Item = (&'static str, String)> {
    [
        conf.append_dir.then(|| ("appenddirname", format!("appendonly-{port}"))),
        conf.unix_socket.then(|| ("unixsocket", format!("{dir}/redis.sock"))),
        conf.cluster.then(|| ("cluster-config-file", format!("nodes-{port}.conf"))),
        // Only one instance could have the one encrypted port that is configured for all.
        conf.tls_port.then(|| ("tls-port", "0".to_owned())),
    ]
    .into_iter()
    .flatten()
}
