//! The demo's stage: a temporary directory, a configuration in it, and the agent as a child process.

use std::{
    env, fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tempfile::TempDir;

use super::Status;
use crate::{
    cli::{
        check::print_line,
        client::{Agent, Client, wait_for_end},
    },
    shell::control::SOCKET_NAME,
};

/// How long an answer of the agent may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// How long the agent may take to end all instances.
const END_LIMIT: Duration = Duration::from_secs(15);
/// Distance of the ports.
const PORT_STEP: u16 = 1;

/// An engine of the demo.
struct Engine {
    section: &'static str,
    prefix: &'static str,
    program: &'static str,
    package: &'static str,
    count: u16,
}

const ENGINES: [Engine; 2] = [
    Engine { section: "memcached", prefix: "mc", program: "memcached", package: "memcached", count: 3 },
    Engine { section: "redis", prefix: "redis", program: "redis-server", package: "redis-server", count: 2 },
];

/// Everything that must be taken away in the end.
pub(super) struct Stage {
    dir: TempDir,
    agent: Child,
}

impl Stage {
    /// Makes the directory and starts the agent.
    pub(super) fn set() -> Result<Stage, String> {
        let dir = tempfile::Builder::new().prefix("yagent-demo-").tempdir();
        let dir = dir.map_err(|e| format!("cannot make a temporary directory: {e}"))?;
        let ini = dir.path().join("yagent.ini");
        fs::write(dir.path().join("redis.conf"), "save \"\"\nappendonly no\nbind 127.0.0.1\n")
            .and_then(|()| fs::write(&ini, configuration(dir.path())?))
            .map_err(|e| format!("cannot write {}: {e}", ini.display()))?;
        let output =
            fs::File::create(dir.path().join("agent.log")).map_err(|e| format!("cannot write a log: {e}"))?;
        let program = env::current_exe().map_err(|e| format!("cannot find this program: {e}"))?;
        let mut command = Command::new(program);
        command.arg("run").arg("-c").arg(&ini).stdin(Stdio::null()).stdout(Stdio::null()).stderr(output);
        // ctrl-c at the terminal is for the demo; it ends the agent itself.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let agent = command.spawn().map_err(|e| format!("cannot start the agent: {e}"))?;
        Ok(Stage { dir, agent })
    }

    fn client(&self) -> Result<Client, String> {
        let agent = Agent { config: None, socket: Some(self.dir.path().join(SOCKET_NAME)) };
        Client::connect(&agent).map_err(|e| e.to_string())
    }

    /// What the agent says of itself.
    pub(super) fn status(&mut self) -> Result<Status, String> {
        let client = self.client().map_err(|e| self.why_gone().unwrap_or(e))?;
        let answer = client.ask(&json!({"verb": "status"}), ANSWER_LIMIT).map_err(|e| e.to_string())?;
        client.read(&answer).map_err(|e| e.to_string())
    }

    /// What a dead agent last said.
    fn why_gone(&mut self) -> Option<String> {
        let status = self.agent.try_wait().ok().flatten()?;
        let log = fs::read_to_string(self.dir.path().join("agent.log")).unwrap_or_default();
        Some(format!("the agent ended ({status}): {}", log.lines().last().unwrap_or("without a word")))
    }

    /// Waits until every cache answers.
    pub(super) fn wait_until_up(
        &mut self,
        limit: Duration,
        over: &dyn Fn() -> bool,
    ) -> Result<Status, String> {
        let end = Instant::now() + limit;
        loop {
            let asked = self.status();
            if let Some(why) = self.why_gone() {
                return Err(why);
            }
            match asked {
                Ok(status) if status.all_up() || over() => return Ok(status),
                Err(why) if over() || Instant::now() >= end => return Err(why),
                Ok(_) if Instant::now() >= end => return Err("the caches did not come up".to_owned()),
                _ => std::thread::park_timeout(Duration::from_millis(10)),
            }
        }
    }

    /// Ends the agent and all its caches; the directory goes with the stage.
    pub(super) fn strike(mut self) -> Result<(), String> {
        let pids =
            self.status().map(|status| status.instances.iter().filter_map(|i| i.pid).collect::<Vec<_>>());
        let ended = self.end_politely();
        if ended.is_err() {
            let _ = self.agent.kill();
            pids.unwrap_or_default().into_iter().filter_map(|pid| Pid::from_raw(pid.cast_signed())).for_each(
                |pid| {
                    let _ = kill_process(pid, Signal::KILL);
                },
            );
        }
        let _ = self.agent.wait();
        let dir = self.dir.path().to_owned();
        self.dir.close().map_err(|e| format!("cannot remove {}: {e}", dir.display()))?;
        ended
    }

    fn end_politely(&mut self) -> Result<(), String> {
        let client = self.client()?;
        let agent = client.process().ok_or("the agent cannot be seen")?;
        let answer =
            client.order(&json!({"verb": "stop", "all": true}), ANSWER_LIMIT).map_err(|e| e.to_string())?;
        if !answer.ok || !wait_for_end(&agent, END_LIMIT) {
            return Err(format!("the agent did not end its caches: {}", answer.message));
        }
        Ok(())
    }
}

fn configuration(dir: &Path) -> std::io::Result<String> {
    let dir = dir.display();
    let user = if rustix::process::geteuid().is_root() { "-u nobody " } else { "" };
    let mut ini = format!(
        "[global]\nzoo_svr=none\nlocalip=127.0.0.1\nCheckInterval=1\nsystem_res_mem=0\nstatsEnable=1\n\
         statsIntervalNum=5\nshowStatIntervalSec=10,60\nstate_dir={dir}\n"
    );
    let mut found = 0;
    let mut port = free_ports(ENGINES.iter().map(|engine| engine.count).sum())?;
    for engine in ENGINES {
        let Some(program) = find(engine.program) else {
            let Engine { program, package, .. } = engine;
            print_line(&format!("{program} is not installed (Debian package {package}): left out"));
            continue;
        };
        found += 1;
        let Engine { section, prefix, count, .. } = engine;
        ini += &format!(
            "[{section}]\n{prefix}_enabled=1\n{prefix}_fpath={}\n{prefix}_count={count}\n{prefix}_maxmem=64\n\
             {prefix}_meta_size=0\n{prefix}_port={port}\n{prefix}_port_step={PORT_STEP}\n\
             {prefix}_port_file={dir}/{prefix}_ports\n{prefix}_bind=127.0.0.1\n",
            program.display()
        );
        ini += &match section {
            "memcached" => format!("mc_args={user}-t 1 -c 256\n"),
            _ => format!("redis_conf={dir}/redis.conf\n"),
        };
        port += count * PORT_STEP;
    }
    if found == 0 {
        return Err(std::io::Error::other("no cache server is installed; install memcached or redis-server"));
    }
    Ok(ini)
}

/// A program by the search path, and where daemons live although users don't look there.
fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders =
        env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/bin".into(), "/usr/local/bin".into()]);
    folders.map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// The first of `count` ports in a row that are free. They lie below those that the kernel gives to connecting sockets,
/// which could else take one while its cache is being restarted.
fn free_ports(count: u16) -> std::io::Result<u16> {
    let begin = 20_000 + u16::try_from(std::process::id() % 10_000).unwrap_or(0);
    let free =
        |first: &u16| (0..count).all(|n| TcpListener::bind(("127.0.0.1", first + n * PORT_STEP)).is_ok());
    let mut candidates = (begin..32_000).chain(10_000..begin).step_by(usize::from(count * PORT_STEP));
    candidates.find(free).ok_or_else(|| std::io::Error::other("no ports are free"))
}
