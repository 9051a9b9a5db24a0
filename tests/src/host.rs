//! A model of one cache host: a temporary directory, a block of ports, a legacy ini file, the agent.
//!
//! The agent is the real executable. Instances are found by their ports, parents and files, never by a program's name,
//! so that nothing but this host's own processes is ever touched.

use std::{
    collections::BTreeSet,
    env, fs,
    fs::OpenOptions,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::Arc,
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{
    cluster::net::Space,
    ini::Ini,
    ports::PortBlock,
    process::{self, Signal},
    programs,
    status::{self, Instance, Status},
    wait,
};

/// Where redis's ports begin in a host's block.
const REDIS_OFFSET: u16 = 40;
const BLOCK: u16 = 80;
/// Small servers, with the `-d` that the Python agent's file has.
const MC_ARGS: &str = "-d -l 127.0.0.1 -t 1 -c 256";

/// One cache host.
#[derive(Debug)]
pub struct Host {
    dir: TempDir,
    ports: PortBlock,
    child: Option<Child>,
    environment: Vec<(String, String)>,
    /// The network namespace that it is in, where that isn't this machine's own.
    space: Option<Arc<Space>>,
    /// A program and its arguments that the agent is started by.
    prefix: Vec<String>,
    /// The settings; written to the file whenever the agent is started or reloaded.
    pub ini: Ini,
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

impl Host {
    /// A host without instances and without ZooKeeper, probing fast.
    pub fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("yagent-test-")
            .tempdir()
            .expect("cannot make a temporary directory");
        // Servers that run as another user pass through it.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))
            .expect("cannot open the directory to all");
        let ports = PortBlock::reserve(BLOCK);
        let ini = base_ini(dir.path(), &ports);
        Self { dir, ports, child: None, environment: Vec::new(), space: None, prefix: Vec::new(), ini }
    }

    /// Enables memcached with `count` instances.
    pub fn memcached(mut self, count: i32) -> Self {
        self.ini.set("memcached", "mc_enabled", 1).set("memcached", "mc_count", count);
        self
    }

    /// Enables redis with `count` instances.
    pub fn redis(mut self, count: i32) -> Self {
        self.ini.set("redis", "redis_enabled", 1).set("redis", "redis_count", count);
        self
    }

    /// Sets a key of the ini.
    pub fn with(mut self, section: &str, key: &str, value: impl std::fmt::Display) -> Self {
        self.ini.set(section, key, value);
        self
    }

    /// Registers in the ZooKeeper at `servers`.
    pub fn zookeeper(self, servers: &str) -> Self {
        self.with("global", "zoo_svr", servers).with("global", "zoo_session_timeout", 4)
    }

    /// Puts it on a host of a network.
    pub fn within(mut self, space: Arc<Space>) -> Self {
        self.space = Some(space);
        self
    }

    /// Has another program start the agent, which `exec`s it.
    pub fn started_by(&mut self, prefix: &[&str]) {
        self.prefix = prefix.iter().map(|&word| word.to_owned()).collect();
    }

    /// Sets an environment variable of the agent.
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.set_environment(name, value);
        self
    }

    /// As [`environment`](Self::environment), on a host that is there already.
    pub fn set_environment(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Starts the agent and waits until every instance of the ini is up and answers.
    pub fn started(mut self) -> Self {
        self.start();
        self
    }

    /// As [`started`](Self::started), on a host that ran before.
    pub fn start(&mut self) -> Status {
        self.launch();
        self.wait_up()
    }

    /// Starts the agent without waiting for anything.
    pub fn launch(&mut self) {
        self.launch_as(&["run"]);
    }

    /// As [`launch`](Self::launch), with a verb and arguments of its own.
    pub fn launch_as(&mut self, words: &[&str]) {
        self.write_ini();
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log())
            .expect("cannot open the agent's log");
        let child = self
            .command_by(&self.prefix, words)
            .stderr(log)
            .stdout(Stdio::null())
            .spawn()
            .expect("cannot start the agent");
        self.child = Some(child);
    }

    /// Takes over an agent that was started in another way than by [`launch`](Self::launch).
    pub fn adopt_child(&mut self, child: Child) {
        self.child = Some(child);
    }

    /// Writes the ini file as it stands now.
    pub fn write_ini(&self) {
        self.ini.write(&self.file());
    }

    /// Waits until every instance of the ini is up and serves.
    pub fn wait_up(&mut self) -> Status {
        let expected = self.expected();
        wait::until("all instances are up", || {
            if let Some(status) = self.ended() {
                panic!("the agent ended with {status}:\n{}", self.log_text());
            }
            let status = self.try_status()?;
            let instances: Vec<Instance> =
                status.instances().into_iter().filter(|it| it.state != "parked").collect();
            let up = instances.iter().filter(|it| it.state == "up" && it.health == "serving").count();
            wait::check(up == instances.len() && expected.is_none_or(|expected| expected == up), || {
                status.to_string()
            })
            .map(|()| status)
        })
    }

    /// The number of instances that the ini asks for; `None` where memory decides.
    fn expected(&self) -> Option<usize> {
        let count = |section: &str, prefix: &str| {
            if self.ini.get(section, &format!("{prefix}_enabled")) != Some("1") {
                return Some(0);
            }
            usize::try_from(self.ini.get(section, &format!("{prefix}_count"))?.parse::<i64>().ok()?).ok()
        };
        Some(count("memcached", "mc")? + count("redis", "redis")?)
    }

    /// How the agent ended, if it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.as_mut()?.try_wait().expect("cannot wait for the agent")
    }

    /// Waits until the agent ends by itself, or because it was told to.
    pub fn wait_ended(&mut self) -> ExitStatus {
        let status = wait::until("the agent ends", || self.ended().ok_or("it still runs"));
        self.child = None;
        status
    }

    /// The agent's pid. Panics when it does not run.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the agent was not started").id()
    }

    /// Sends the agent a signal.
    pub fn signal(&self, signal: Signal) {
        process::signal(self.pid(), signal);
    }

    /// Kills the agent with SIGKILL and waits until it is gone.
    pub fn kill9(&mut self) {
        self.signal(Signal::KILL);
        self.wait_ended();
    }

    /// Ends the agent with SIGTERM and waits for it.
    pub fn term(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait_ended()
    }

    /// Writes the ini and has the agent read it, over the control socket; the answer.
    pub fn reload(&self) -> Value {
        self.write_ini();
        self.ask("{\"verb\":\"reload\"}")
    }

    /// What the agent says of itself.
    pub fn status(&self) -> Status {
        Status(self.ask("{\"verb\":\"status\"}"))
    }

    /// As [`status`](Self::status), `Err` when nobody answers.
    pub fn try_status(&self) -> Result<Status, String> {
        status::ask(&self.socket(), "{\"verb\":\"status\"}")
            .map(Status)
            .map_err(|why| format!("no status: {why}"))
    }

    /// One request over the control socket.
    pub fn ask(&self, request: &str) -> Value {
        status::ask(&self.socket(), request)
            .unwrap_or_else(|why| panic!("{request} was not answered: {why}\n{}", self.log_text()))
    }

    /// The instance of `engine` on `port` as `status` shows it now.
    pub fn instance(&self, engine: &str, port: u16) -> Instance {
        let status = self.status();
        status.instance(engine, port).unwrap_or_else(|| panic!("no {engine} on {port} in {status}"))
    }

    /// Waits until the instance on `port` is up, serves, and is another process than `old`.
    pub fn wait_replaced(&self, engine: &str, port: u16, old: u32) -> Instance {
        wait::until(&format!("{engine} on {port} is replaced"), || {
            let status = self.try_status()?;
            let it = status.instance(engine, port).ok_or("no such instance")?;
            let replaced = it.state == "up" && it.health == "serving" && it.pid != old && it.pid != 0;
            wait::check(replaced, || status.to_string()).map(|()| it)
        })
    }

    /// Waits until `accept` takes the status.
    pub fn wait_status(&self, what: &str, mut accept: impl FnMut(&Status) -> bool) -> Status {
        wait::until(what, || {
            let status = self.try_status()?;
            wait::check(accept(&status), || status.to_string()).map(|()| status)
        })
    }

    /// Waits until an alert fires whose key begins with `prefix`.
    pub fn wait_alert(&self, prefix: &str) -> Status {
        self.wait_status(&format!("alert {prefix} fires"), |status| status.fires(prefix))
    }

    /// Waits until the registry holds all that it should.
    pub fn wait_registered(&self) -> Status {
        self.wait_status("the registry is in step", Status::registered)
    }

    /// Runs `yagent VERB -c FILE …` to its end.
    pub fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().expect("cannot run yagent")
    }

    /// Runs `yagent plugin VERB -c FILE …` to its end.
    pub fn run_plugin(&self, words: &[&str]) -> Output {
        let (verb, rest) = words.split_first().expect("a verb");
        let mut command = Command::new(programs::yagent());
        command.args(["plugin", verb, "-c"]).arg(self.file()).args(rest).stdin(Stdio::null());
        command.output().expect("cannot run yagent")
    }

    /// `yagent VERB -c FILE …`, ready to run.
    pub fn command(&self, words: &[&str]) -> Command {
        self.command_by(&[], words)
    }

    fn command_by(&self, prefix: &[String], words: &[&str]) -> Command {
        let (verb, rest) = words.split_first().expect("a verb");
        let mut program = prefix.to_vec();
        program.push(programs::yagent().display().to_string());
        let mut command = match &self.space {
            Some(space) => space.command(&program[0]),
            None => Command::new(&program[0]),
        };
        command.args(&program[1..]);
        command.arg(verb).arg("-c").arg(self.file()).args(rest).stdin(Stdio::null());
        // What the tests themselves run under must not reach the agent; what a test sets must.
        command.env_remove("NOTIFY_SOCKET").env_remove("WATCHDOG_USEC");
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.env("YAGENT_TEST_HOST", self.path()).current_dir(self.path());
        command
    }

    /// The host's own directory.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The ini file.
    pub fn file(&self) -> PathBuf {
        self.path().join("yagent.ini")
    }

    /// The agent's standard error.
    pub fn log(&self) -> PathBuf {
        self.path().join("stderr")
    }

    /// What the agent wrote to standard error.
    pub fn log_text(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// The control socket.
    pub fn socket(&self) -> PathBuf {
        self.state_dir().join("yagent.sock")
    }

    /// `state_dir` of the ini.
    pub fn state_dir(&self) -> PathBuf {
        PathBuf::from(self.ini.get("global", "state_dir").expect("state_dir is set"))
    }

    /// All files below `state_dir`.
    pub fn state_files(&self) -> Vec<PathBuf> {
        let mut folders = vec![self.state_dir()];
        let mut files = Vec::new();
        while let Some(folder) = folders.pop() {
            let Ok(entries) = fs::read_dir(folder) else { continue };
            for path in entries.flatten().map(|entry| entry.path()) {
                if path.is_dir() { folders.push(path) } else { files.push(path) }
            }
        }
        files
    }

    /// The port of the memcached with this index, when no port is skipped.
    pub fn mc_port(&self, index: u16) -> u16 {
        self.ports.first() + 2 * index
    }

    /// The port of the redis with this index, when no port is skipped.
    pub fn redis_port(&self, index: u16) -> u16 {
        self.ports.first() + REDIS_OFFSET + 2 * index
    }

    /// The host's caches that listen now: port and pid.
    pub fn listeners(&self) -> BTreeSet<(u16, u32)> {
        process::listeners(&self.ports.range())
    }

    /// Kills everything that belongs to this host.
    fn sweep(&mut self) {
        let mut doomed: BTreeSet<u32> = BTreeSet::new();
        if let Some(mut child) = self.child.take() {
            doomed.extend(process::children(child.id()));
            let _ = child.kill();
            let _ = child.wait();
        }
        doomed.extend(process::tied_to(self.path()));
        doomed.extend(self.listeners().into_iter().map(|(_, pid)| pid));
        doomed.remove(&std::process::id());
        for pid in doomed {
            process::signal(pid, Signal::KILL);
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the agent's log\n{}--- end of the agent's log", self.log_text());
            if env::var_os("YAGENT_TEST_KEEP").is_some() {
                eprintln!("kept: {}", self.path().display());
                self.dir.disable_cleanup(true);
            }
        }
        self.sweep();
    }
}

/// Settings that every test starts from: small instances, fast probes, nothing outside the host's directory.
fn base_ini(dir: &Path, ports: &PortBlock) -> Ini {
    let inside = |name: &str| dir.join(name).display().to_string();
    let redis_conf = inside("redis.conf");
    fs::write(&redis_conf, "bind 127.0.0.1\nsave \"\"\nappendonly no\n").expect("cannot write redis.conf");
    let mut ini = Ini::default();
    ini.set("global", "zoo_svr", "none")
        .set("global", "localip", "127.0.0.1")
        .set("global", "CheckInterval", 1)
        .set("global", "group", "default")
        .set("global", "priority", 100)
        .set("global", "system_res_mem", 64)
        .set("global", "statsEnable", 1)
        .set("global", "statsIntervalNum", 1)
        .set("global", "showStatIntervalSec", "60,3600")
        .set("global", "state_dir", inside("state"))
        .set("memcached", "mc_enabled", 0)
        .set("memcached", "mc_maxmem", 64)
        .set("memcached", "mc_meta_size", 16)
        .set("memcached", "mc_count", 1)
        .set(
            "memcached",
            "mc_args",
            format!("{MC_ARGS}{}", if process::is_root() { " -u nobody" } else { "" }),
        )
        .set("memcached", "mc_port", ports.first())
        .set("memcached", "mc_port_step", 2)
        .set("memcached", "mc_fpath", programs::memcached().display())
        .set("memcached", "mc_port_file", inside("mc_ports"))
        .set("redis", "redis_enabled", 0)
        .set("redis", "redis_maxmem", 32)
        .set("redis", "redis_meta_size", 32)
        .set("redis", "redis_count", 1)
        .set("redis", "redis_port", ports.first() + REDIS_OFFSET)
        .set("redis", "redis_port_step", 2)
        .set("redis", "redis_conf", redis_conf)
        .set("redis", "redis_fpath", programs::redis_server().display())
        .set("redis", "redis_port_file", inside("redis_ports"));
    ini
}
