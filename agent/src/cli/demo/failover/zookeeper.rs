//! The demo's ZooKeeper: a server of its own, as Debian packages it, or one that is there.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{
    cli::demo::{agent::find, stage::free_ports},
    config::ZookeeperSettings,
    shell::{
        registry::{self, Change, Identity},
        waker::Waker,
    },
};

const CLASS_PATH: &str = "/usr/share/java/zookeeper.jar";
const MISSING: &str = "ZooKeeper is not installed: install the Debian packages zookeeper and default-jre-headless, or name \
                       a server with --zookeeper HOST:PORT";
/// How long a server may take to serve, and to take the demo's nodes away again.
const LIMIT: Duration = Duration::from_secs(30);
/// Between two looks.
const PACE: Duration = Duration::from_millis(20);

/// A ZooKeeper for the demo.
pub(super) struct Zookeeper {
    /// `zoo_svr`.
    pub(super) servers: String,
    /// `zoo_tick`.
    pub(super) tick_s: f64,
    /// `zoo_session_timeout`.
    pub(super) session_s: f64,
    /// The server, where it is the demo's own.
    own: Option<Child>,
    /// Where it is not: the server, and below which node the demo writes.
    lent: Option<(String, String)>,
}

impl Zookeeper {
    /// The one that is named, or a new one.
    pub(super) fn find(
        named: Option<&str>,
        dir: &Path,
        over: &dyn Fn() -> bool,
    ) -> Result<Zookeeper, String> {
        let Some(server) = named else { return Zookeeper::start(dir, over) };
        let root = format!("/yagent-demo-{}", std::process::id());
        Ok(Zookeeper {
            servers: format!("{server}{root}"),
            // ZooKeeper's defaults.
            tick_s: 2.0,
            session_s: 10.0,
            own: None,
            lent: Some((server.to_owned(), root)),
        })
    }

    fn start(dir: &Path, over: &dyn Fn() -> bool) -> Result<Zookeeper, String> {
        let java = find("java").filter(|_| Path::new(CLASS_PATH).exists()).ok_or(MISSING)?;
        let port = free_ports(1, &[Ipv4Addr::LOCALHOST]).map_err(|e| e.to_string())?;
        let home = dir.join("zookeeper");
        let log = prepare(&home, port).map_err(|e| format!("cannot write to {}: {e}", home.display()))?;
        let mut command = Command::new(java);
        command
            .args(["-Xmx64m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"])
            .arg(format!("-Dlog4j.configuration=file:{}/log4j.properties", home.display()))
            .args(["-cp", CLASS_PATH, "org.apache.zookeeper.server.quorum.QuorumPeerMain"])
            .arg(home.join("zoo.cfg"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            // ctrl-c at the terminal is for the demo.
            .process_group(0);
        let child = command.spawn().map_err(|e| format!("cannot start ZooKeeper: {e}"))?;
        let mut zookeeper = Zookeeper {
            servers: format!("127.0.0.1:{port}"),
            tick_s: 0.2,
            session_s: 4.0,
            own: Some(child),
            lent: None,
        };
        let served = zookeeper.wait_serving(port, over);
        served.inspect_err(|_| drop(zookeeper.kill())).map(|()| zookeeper)
    }

    fn wait_serving(&mut self, port: u16, over: &dyn Fn() -> bool) -> Result<(), String> {
        let limit = Instant::now() + LIMIT;
        while !over() && !serves(port) {
            if let Some(status) = self.own.as_mut().and_then(|child| child.try_wait().ok()?) {
                return Err(format!("ZooKeeper ended ({status})"));
            }
            if Instant::now() >= limit {
                return Err(format!("ZooKeeper does not serve within {} s", LIMIT.as_secs()));
            }
            thread::park_timeout(PACE);
        }
        Ok(())
    }

    /// Takes away what the demo had of it.
    pub(super) fn clear(mut self) -> Result<(), String> {
        match self.lent.take() {
            Some((server, root)) => remove(&server, &root),
            None => self.kill(),
        }
    }

    fn kill(&mut self) -> Result<(), String> {
        let Some(mut child) = self.own.take() else { return Ok(()) };
        child.kill().and_then(|()| child.wait()).map(drop).map_err(|e| format!("cannot end ZooKeeper: {e}"))
    }
}

impl Drop for Zookeeper {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// Writes what the server reads; returns where it writes to.
fn prepare(home: &Path, port: u16) -> std::io::Result<fs::File> {
    fs::create_dir(home)?;
    let config = format!(
        "tickTime=200\ndataDir={}/data\nclientPort={port}\nclientPortAddress=127.0.0.1\nminSessionTimeout=400\n\
         maxSessionTimeout=60000\nadmin.enableServer=false\n4lw.commands.whitelist=srvr\n",
        home.display()
    );
    fs::write(home.join("zoo.cfg"), config)?;
    fs::write(home.join("log4j.properties"), "log4j.rootLogger=OFF\n")?;
    fs::File::create(home.join("out"))
}

fn serves(port: u16) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), LIMIT)?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"srvr")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.contains("Mode: "))
}

/// Removes the demo's nodes from a server that goes on.
fn remove(server: &str, root: &str) -> Result<(), String> {
    let failed = |why: &str| format!("the nodes below {root} are left in ZooKeeper: {why}");
    let settings = ZookeeperSettings {
        servers: vec![server.to_owned()],
        chroot: String::new(),
        session_timeout: Duration::from_secs(10),
        auth: None,
    };
    let waker = Waker::new().map_err(|e| failed(&e.to_string()))?;
    let identity = Identity { host_id: "yagent demo".to_owned() };
    let registry = registry::zookeeper(&settings, identity, waker).map_err(|e| failed(&e.to_string()))?;
    registry.apply(vec![Change::Remove { path: root.to_owned() }]);
    let limit = Instant::now() + LIMIT;
    let done = loop {
        let events = std::iter::from_fn(|| registry.event());
        if events.filter(|event| *event == registry::RegistryEvent::Synced).count() > 0 {
            break Ok(());
        }
        if Instant::now() >= limit {
            break Err(failed("the server does not answer"));
        }
        thread::park_timeout(PACE);
    };
    registry.close();
    while !registry.closed() && Instant::now() < limit {
        thread::park_timeout(PACE);
    }
    done
}
