//! redis servers without anybody who looks after them, and what can be done with redis alone.

use std::{
    net::SocketAddr,
    process::{Child, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};
use tempfile::TempDir;
use yagent_tests::{
    cache::Redis,
    cluster::{
        net::{Net, Space},
        watch::monotonic,
        writer::{Belief, Record, key},
    },
    programs, wait,
};

use crate::{Applications, Handovers, probe::Probe};

const PORT: u16 = 16379;
const LIMIT: Duration = Duration::from_secs(2);

/// A server on a host of its own.
#[derive(Debug)]
pub(crate) struct Bare {
    pub(crate) space: Arc<Space>,
    dir: TempDir,
    child: Option<Child>,
}

impl Bare {
    /// A server on this host, ready to be started.
    pub(crate) fn on(space: Arc<Space>) -> Bare {
        Bare { space, dir: tempfile::tempdir().expect("cannot make a directory"), child: None }
    }

    /// Starts it, as a replica where a master is given.
    pub(crate) fn start(&mut self, master: Option<SocketAddr>) {
        let mut command = self.space.command(programs::redis_server());
        command.args(["--port", &PORT.to_string(), "--save", "", "--protected-mode", "no"]);
        command.args(["--repl-diskless-sync-delay", "0", "--dir"]).arg(self.dir.path());
        if let Some(master) = master {
            command.args(["--replicaof", &master.ip().to_string(), &master.port().to_string()]);
        }
        self.child = Some(command.stdout(Stdio::null()).spawn().expect("cannot start redis"));
        wait::until("redis answers", || self.call(&["PING"]));
    }

    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::from((self.space.address(), PORT))
    }

    pub(crate) fn connect(&self) -> std::io::Result<Redis> {
        self.space.run(|| Redis::connect_to(self.address(), LIMIT))
    }

    pub(crate) fn call(&self, words: &[&str]) -> std::io::Result<String> {
        self.connect()?.call(words)
    }

    pub(crate) fn role(&self) -> String {
        self.call(&["ROLE"])
            .map(|text| text.lines().next().unwrap_or_default().to_owned())
            .unwrap_or_default()
    }

    /// Waits until it is a replica whose link stands.
    pub(crate) fn wait_linked(&self, master: SocketAddr) {
        wait::until("the replica's link stands", || {
            let info = self.connect().and_then(|mut redis| redis.info()).unwrap_or_default();
            let right = info.get("master_link_status").is_some_and(|it| it == "up")
                && info.get("master_host").is_some_and(|it| *it == master.ip().to_string());
            wait::check(right, || {
                format!("{:?} of {:?}", info.get("master_link_status"), info.get("master_host"))
            })
        });
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("it was started").id()
    }

    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().expect("it was started");
        child.kill().expect("cannot kill redis");
        child.wait().expect("cannot wait for redis");
    }

    /// How many of the acknowledged writes it does not have.
    pub(crate) fn lacks(&self, record: &Record) -> usize {
        let text = self.call(&["KEYS", "w:*"]).expect("it lists its keys");
        let there: std::collections::BTreeSet<&str> = text.lines().collect();
        record.numbers().into_iter().filter(|&number| !there.contains(key(number).as_str())).count()
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The least that anybody could need: a thread that waits for the master's end and promotes the replica.
#[derive(Debug)]
pub(crate) struct Floor(Pair);

impl Floor {
    pub(crate) fn start() -> Floor {
        Floor(Pair::start())
    }

    /// So many crashes of the master, each until its replica acknowledges a write.
    pub(crate) fn crashes(mut self, n: usize) -> Vec<Duration> {
        (0..n).map(|_| self.crash()).collect()
    }

    fn crash(&mut self) -> Duration {
        let [master, replica] = &mut self.0.servers;
        let probe = Probe::new(&self.0.client, &[replica.address()]);
        let pid = Pid::from_raw(i32::try_from(master.pid()).expect("a pid")).expect("a pid");
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).expect("cannot open a pidfd");
        let mut link = replica.connect().expect("the replica answers");
        let watcher = thread::spawn(move || {
            poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None).expect("cannot poll");
            link.call(&["REPLICAOF", "NO", "ONE"]).expect("the replica is promoted");
        });
        let begun = monotonic();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("cannot kill the master");
        let took = probe.first_ack().0 - begun;
        watcher.join().expect("the watcher");
        master.kill();
        master.start(Some(replica.address()));
        master.wait_linked(replica.address());
        self.0.servers.swap(0, 1);
        took
    }
}

/// A master and its replica.
#[derive(Debug)]
pub(crate) struct Pair {
    servers: [Bare; 2],
    client: Arc<Space>,
    _net: Net,
}

impl Pair {
    pub(crate) fn start() -> Pair {
        let mut net = Net::new();
        let client = net.host(200);
        let [mut master, mut replica] = [1, 2].map(|last| Bare::on(net.host(last)));
        master.start(None);
        replica.start(Some(master.address()));
        replica.wait_linked(master.address());
        Pair { servers: [master, replica], client, _net: net }
    }

    /// redis' own planned change. Applications learn of it as soon as the new master says that it is one.
    pub(crate) fn failover_to(&mut self, all: &mut Handovers) {
        let [master, replica] = &self.servers;
        let (old, new) = (master.address(), replica.address());
        let told = Arc::new(Mutex::new(old));
        let applications = Applications::start(&self.client, Belief::Told(told.clone()), old);
        let (host, port) = (new.ip().to_string(), new.port().to_string());
        let mut link = replica.connect().expect("the replica answers");
        master.call(&["FAILOVER", "TO", &host, &port]).expect("FAILOVER is taken");
        wait::until("the replica is the master", || {
            let role = link.call(&["ROLE"]).map_err(|error| error.to_string())?;
            wait::check(role.starts_with("master"), || role)
        });
        *told.lock().unwrap() = new;
        master.wait_linked(new);
        applications.finish(new, |record| replica.lacks(record), all);
        self.servers.swap(0, 1);
    }
}
