//! Three redis servers under three sentinels, one of each on a host.

use std::{
    net::SocketAddr,
    process::{Child, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use tempfile::TempDir;
use yagent_tests::{
    cache::Redis,
    cluster::{
        net::{Cut, Net, Space},
        watch::monotonic,
        writer::{Belief, Writer},
    },
    programs, wait,
};

use crate::{Applications, Handovers, bare::Bare, probe::Probe};

const PORT: u16 = 26379;

/// The whole of it.
#[derive(Debug)]
pub(crate) struct Sentinel {
    servers: Vec<Bare>,
    sentinels: Vec<Child>,
    client: Arc<Space>,
    _dir: TempDir,
    _net: Net,
}

impl Sentinel {
    /// Three hosts; the sentinels know one another and the replicas.
    pub(crate) fn start() -> Sentinel {
        let mut net = Net::new();
        let client = net.host(200);
        let mut servers: Vec<Bare> = (1..=3).map(|last| Bare::on(net.host(last))).collect();
        let master = servers[0].address();
        servers[0].start(None);
        servers[1..].iter_mut().for_each(|server| server.start(Some(master)));
        servers[1..].iter().for_each(|server| server.wait_linked(master));
        let dir = tempfile::tempdir().expect("cannot make a directory");
        let sentinels = servers.iter().map(|server| launch(&server.space, &dir, master)).collect();
        let sentinel = Sentinel { servers, sentinels, client, _dir: dir, _net: net };
        sentinel.wait_settled();
        sentinel
    }

    /// A sentinel's answer.
    fn ask(&self, words: &[&str]) -> std::io::Result<String> {
        self.ask_at(0, words)
    }

    fn ask_at(&self, host: usize, words: &[&str]) -> std::io::Result<String> {
        let space = &self.servers[host].space;
        let address = SocketAddr::from((space.address(), PORT));
        space.run(|| Redis::connect_to(address, Duration::from_secs(2))?.call(words))
    }

    /// Waits until all sentinels agree on a master with two replicas and two other sentinels; which one.
    fn wait_settled(&self) -> usize {
        let master = wait::until("the sentinels agree", || {
            let agreed: Vec<String> = (0..3).filter_map(|host| self.seen_by(host).ok()).collect();
            wait::check(agreed.len() == 3 && agreed.iter().all(|it| *it == agreed[0]), || {
                format!("{agreed:?}")
            })?;
            let found = self.servers.iter().position(|server| server.address().ip().to_string() == agreed[0]);
            found.filter(|&host| self.servers[host].role() == "master").ok_or_else(|| format!("{agreed:?}"))
        });
        let address = self.servers[master].address();
        let others = self.servers.iter().filter(|server| server.address() != address);
        others.for_each(|server| server.wait_linked(address));
        master
    }

    /// The master's address as a sentinel sees it, when that sentinel sees everybody else too.
    fn seen_by(&self, host: usize) -> Result<String, String> {
        let text = self.ask_at(host, &["SENTINEL", "MASTER", "shard"]).map_err(|error| error.to_string())?;
        let lines: Vec<&str> = text.lines().collect();
        let field = |name: &str| lines.chunks(2).find(|pair| pair[0] == name).map(|pair| pair[1]);
        let whole = field("num-slaves") == Some("2")
            && field("num-other-sentinels") == Some("2")
            && field("flags") == Some("master");
        wait::check(whole, || text.clone())?;
        Ok(field("ip").unwrap_or_default().to_owned())
    }

    fn others(&self, master: usize) -> Vec<SocketAddr> {
        let others = self.servers.iter().enumerate().filter(|(host, _)| *host != master);
        others.map(|(_, server)| server.address()).collect()
    }

    /// `kill -9` of the master until another one acknowledges a write.
    pub(crate) fn crash(&mut self) -> Duration {
        let master = self.wait_settled();
        let probe = Probe::new(&self.client, &self.others(master));
        let begun = monotonic();
        self.servers[master].kill();
        let (at, new) = probe.first_ack();
        self.servers[master].start(Some(new));
        at - begun
    }

    /// A planned change under load. Applications learn of it when the sentinels say who is the master.
    pub(crate) fn switchover(&mut self, all: &mut Handovers) {
        let old = self.servers[self.wait_settled()].address();
        let told = Arc::new(Mutex::new(old));
        let applications = Applications::start(&self.client, Belief::Told(told.clone()), old);
        // It is refused while the sentinels are still busy with the last one.
        wait::until("SENTINEL FAILOVER is taken", || self.ask(&["SENTINEL", "FAILOVER", "shard"]));
        let address = wait::until("another is the master", || {
            let answer =
                self.ask(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "shard"]).map_err(|it| it.to_string())?;
            let address =
                answer.replace('\n', ":").parse::<SocketAddr>().map_err(|error| error.to_string())?;
            wait::check(address != old, || answer).map(|()| address)
        });
        *told.lock().unwrap() = address;
        let new = &self.servers[self.wait_settled()];
        applications.finish(new.address(), |record| new.lacks(record), all);
    }

    /// The master's host is cut off: until another acknowledges a write; and how many writes the old one acknowledged
    /// on its own host in the second after that.
    pub(crate) fn silence(&mut self) -> (Duration, usize) {
        let master = self.wait_settled();
        let server = &self.servers[master];
        let belief = Belief::Stubborn(server.address());
        let neighbour = Writer::start(&server.space, belief, Duration::from_millis(250));
        neighbour.wait_progress(50);
        let probe = Probe::new(&self.client, &self.others(master));
        let begun = monotonic();
        server.space.cut(&Cut::Off);
        let (first, _) = probe.first_ack();
        std::thread::sleep(Duration::from_secs(1));
        let stray = neighbour.finish().acks.iter().filter(|ack| ack.sent > first).count();
        server.space.heal();
        (first - begun, stray)
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        for child in &mut self.sentinels {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn launch(space: &Space, dir: &TempDir, master: SocketAddr) -> Child {
    let file = dir.path().join(format!("{}.conf", space.address()));
    let text = format!(
        "port {PORT}\nprotected-mode no\ndir {}\nsentinel monitor shard {} {} 2\n\
         sentinel down-after-milliseconds shard 1000\nsentinel failover-timeout shard 5000\n\
         sentinel parallel-syncs shard 2\n",
        dir.path().display(),
        master.ip(),
        master.port()
    );
    std::fs::write(&file, text).expect("cannot write the sentinel's configuration");
    let mut command = space.command(programs::debian("redis-sentinel", "redis-sentinel"));
    command.arg(file).stdout(Stdio::null()).spawn().expect("cannot start redis-sentinel")
}
