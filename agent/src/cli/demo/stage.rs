//! The demo's stage: a temporary directory, a configuration in it, and the agent as a child process.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::{
    Status,
    agent::{Process, find},
};
use crate::cli::check::print_line;

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
    agent: Process,
}

/// A directory for all that a demo writes.
pub(super) fn directory() -> Result<TempDir, String> {
    let dir = tempfile::Builder::new().prefix("yagent-demo-").tempdir();
    dir.map_err(|e| format!("cannot make a temporary directory: {e}"))
}

/// Removes it with all that is in it.
pub(super) fn remove(dir: TempDir) -> Result<(), String> {
    let path = dir.path().to_owned();
    dir.close().map_err(|e| format!("cannot remove {}: {e}", path.display()))
}

impl Stage {
    /// Makes the directory and starts the agent.
    pub(super) fn set() -> Result<Stage, String> {
        let dir = directory()?;
        let conf = dir.path().join("redis.conf");
        fs::write(&conf, "save \"\"\nappendonly no\nbind 127.0.0.1\n")
            .map_err(|e| format!("cannot write {}: {e}", conf.display()))?;
        let configuration = configuration(dir.path()).map_err(|e| e.to_string())?;
        let agent = Process::start(dir.path(), &configuration)?;
        Ok(Stage { dir, agent })
    }

    /// What the agent says of itself.
    pub(super) fn status(&mut self) -> Result<Status, String> {
        self.agent.ask("status")
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
            if let Some(why) = self.agent.why_gone() {
                return Err(why);
            }
            match asked {
                asked if over() => return Ok(asked.unwrap_or_default()),
                Ok(status) if status.all_up() => return Ok(status),
                Err(why) if Instant::now() >= end => return Err(why),
                Ok(_) if Instant::now() >= end => return Err("the caches did not come up".to_owned()),
                _ => thread::park_timeout(Duration::from_millis(10)),
            }
        }
    }

    /// Ends the agent and all its caches; the directory goes with the stage.
    pub(super) fn strike(self) -> Result<(), String> {
        let ended = self.agent.end();
        ended.and(remove(self.dir))
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
    let mut port = free_ports(ENGINES.iter().map(|engine| engine.count).sum(), &[Ipv4Addr::LOCALHOST])?;
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

/// The first of `count` ports in a row that are free on these addresses. They lie below those that the kernel gives to
/// connecting sockets, which could else take one while its cache is being restarted.
pub(super) fn free_ports(count: u16, addresses: &[Ipv4Addr]) -> std::io::Result<u16> {
    // Demos that are started at the same time look at ports apart.
    let begin = 20_000 + u16::try_from(u64::from(std::process::id()) * 16 % 10_000).unwrap_or(0);
    let is_free = |port: u16| addresses.iter().all(|address| TcpListener::bind((*address, port)).is_ok());
    let free = |first: &u16| (0..count).all(|n| is_free(first + n * PORT_STEP));
    let mut candidates = (begin..32_000).chain(10_000..begin).step_by(usize::from(count * PORT_STEP));
    candidates.find(free).ok_or_else(|| std::io::Error::other("no ports are free"))
}
