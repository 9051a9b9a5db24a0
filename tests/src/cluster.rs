//! A shard of real agents and real redis servers on hosts of a network of their own, with a real ZooKeeper.
//!
//! Every host has the same port; timing is as short as a busy machine allows. `net` is the network and how it is cut,
//! `watch` what ZooKeeper shows, `writer` the application.

pub mod net;
mod plan;
pub mod watch;
pub mod writer;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr},
    process::Output,
    sync::Arc,
    time::Duration,
};

use serde_json::Value;

pub use self::plan::Plan;
use self::{
    net::{Cut, Net, Space},
    watch::{Publication, Watch},
    writer::{Belief, Record, Writer, key},
};
use crate::{
    cache::Redis,
    host::Host,
    process::{self, Signal},
    programs, wait,
    zookeeper::{Kazoo, Server},
};

/// The port of every redis.
pub const PORT: u16 = 16379;
/// The session timeout.
pub const SESSION: Duration = Duration::from_secs(5);
/// `redis_lease`.
pub const LEASE: Duration = Duration::from_secs(3);
/// `redis_fence_time`.
pub const FENCE: Duration = Duration::from_secs(1);
/// `CheckInterval`.
pub const CHECK: Duration = Duration::from_millis(500);
/// How long a test's redis call may take.
const LIMIT: Duration = Duration::from_secs(2);

/// A shard.
#[derive(Debug)]
pub struct Cluster {
    /// What ZooKeeper shows.
    pub watch: Watch,
    /// The hosts' agents.
    pub hosts: Vec<Host>,
    /// ZooKeeper.
    pub servers: Vec<Server>,
    /// The hosts.
    pub spaces: Vec<Arc<Space>>,
    /// Where the applications are.
    pub client: Arc<Space>,
    zookeeper: Arc<Space>,
    path: String,
    password: Option<String>,
    _net: Net,
}

/// A server's answer to `ROLE`, in short.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// With its replicas that take the stream.
    Master(BTreeSet<String>),
    /// Of whom, and whether the link is up.
    Replica(String, bool),
    /// No answer, or an error.
    None(String),
}

impl Cluster {
    /// The address of a host's redis.
    pub fn address(&self, host: usize) -> SocketAddr {
        SocketAddr::from((self.spaces[host].address(), PORT))
    }

    /// The host of a redis.
    pub fn host_of(&self, address: SocketAddr) -> usize {
        let found = self.spaces.iter().position(|space| space.address() == address.ip());
        found.unwrap_or_else(|| panic!("{address} is none of the hosts"))
    }

    /// The host whose redis was published as the master last.
    pub fn master(&self) -> usize {
        self.host_of(self.watch.master().expect("no master was published"))
    }

    /// A host that isn't the master's.
    pub fn replica(&self) -> usize {
        let master = self.master();
        (0..self.hosts.len()).find(|&host| host != master).expect("a shard of one")
    }

    /// The hosts that aren't these.
    pub fn others(&self, these: &[usize]) -> Vec<usize> {
        (0..self.hosts.len()).filter(|host| !these.contains(host)).collect()
    }

    /// A connection to a host's redis, made on that host itself.
    pub fn redis(&self, host: usize) -> std::io::Result<Redis> {
        let mut redis = self.spaces[host].run(|| Redis::connect_to(self.address(host), LIMIT))?;
        if let Some(password) = &self.password {
            redis.call(&["AUTH", password])?;
        }
        Ok(redis)
    }

    /// A reply of a host's redis.
    pub fn call(&self, host: usize, words: &[&str]) -> Result<String, String> {
        self.redis(host).and_then(|mut redis| redis.call(words)).map_err(|error| error.to_string())
    }

    /// What a host's redis says of itself.
    pub fn info(&self, host: usize) -> BTreeMap<String, String> {
        self.redis(host).and_then(|mut redis| redis.info()).unwrap_or_default()
    }

    /// The role of a host's redis.
    pub fn role(&self, host: usize) -> Role {
        let text = match self.call(host, &["ROLE"]) {
            Ok(text) => text,
            Err(error) => return Role::None(error),
        };
        let words: Vec<&str> = text.lines().collect();
        match words.as_slice() {
            ["master", _, replicas @ ..] => {
                let name = |it: &[&str]| format!("{}:{}", it[0], it[1]);
                Role::Master(replicas.chunks_exact(3).map(name).collect())
            }
            ["slave", host, port, link, ..] => Role::Replica(format!("{host}:{port}"), *link == "connected"),
            _ => Role::None(text),
        }
    }

    /// The number of keys of a host's redis.
    pub fn keys(&self, host: usize) -> u64 {
        self.call(host, &["DBSIZE"]).ok().and_then(|text| text.parse().ok()).unwrap_or_default()
    }

    /// Waits until one of all hosts is the master, published and with its lock, and the others follow it.
    pub fn wait_steady(&self) -> usize {
        let all: Vec<usize> = (0..self.hosts.len()).collect();
        self.wait_steady_among(&all)
    }

    /// As [`wait_steady`](Self::wait_steady) for some of the hosts; what others do doesn't matter.
    pub fn wait_steady_among(&self, hosts: &[usize]) -> usize {
        wait::until("the shard is steady", || {
            let state = self.watch.state();
            let roles: Vec<Role> = hosts.iter().map(|&host| self.role(host)).collect();
            let told = || format!("{state} lock {} roles {roles:?}", self.watch.node("lock"));
            let master = self.watch.master().ok_or("no master was published")?;
            let host = self.host_of(master);
            let heir = |it: &usize| {
                let address = Value::from(self.address(*it).to_string());
                state["heirs"].as_array().is_some_and(|heirs| heirs.contains(&address))
            };
            let steady = state["phase"] == "done"
                && state["solo"] == false
                && hosts.iter().all(|it| *it == host || heir(it))
                && self.watch.node("lock")["address"] == master.to_string()
                && hosts.contains(&host);
            wait::check(steady, told)?;
            for (&it, role) in hosts.iter().zip(&roles) {
                let right = match role {
                    Role::Master(replicas) => it == host && replicas.len() + 1 >= hosts.len(),
                    Role::Replica(of, up) => it != host && *up && *of == master.to_string(),
                    Role::None(_) => false,
                };
                wait::check(right, told)?;
                // And its agent has said so: what is to be done with the shard goes by that.
                let node = self.watch.node(&format!("members/{}", self.address(it)));
                let said = it == host || (node["link"] == true && node["syncing"] == false);
                wait::check(said, || format!("member {node}"))?;
            }
            Ok::<usize, String>(host)
        })
    }

    /// Waits until another master than those up to `epoch` is published.
    pub fn wait_successor(&self, epoch: u64) -> Publication {
        self.watch.wait_published(epoch)
    }

    /// An application that follows the published master.
    pub fn writer(&self) -> Writer {
        Writer::start(&self.client, Belief::Published(self.watch.clone()), Duration::from_millis(250))
    }

    /// An application that writes to one host's redis and nowhere else.
    pub fn stubborn(&self, host: usize) -> Writer {
        Writer::start(&self.client, Belief::Stubborn(self.address(host)), Duration::from_millis(250))
    }

    /// An application on a host itself, which writes to that host's redis and nowhere else.
    pub fn stubborn_neighbour(&self, host: usize) -> Writer {
        Writer::start(&self.spaces[host], Belief::Stubborn(self.address(host)), Duration::from_millis(250))
    }

    /// Which acknowledged writes the master does not have.
    pub fn lost(&self, records: &[&Record]) -> BTreeSet<u64> {
        let text = self.call(self.master(), &["KEYS", "w:*"]).expect("the master lists its keys");
        let there: BTreeSet<&str> = text.lines().collect();
        let acked = records.iter().flat_map(|record| record.numbers());
        acked.filter(|&number| !there.contains(key(number).as_str())).collect()
    }

    /// The rule that holds whatever happens: once a master was seen published, nobody else acknowledges a write.
    pub fn assert_one_master(&self, records: &[&Record]) {
        let published = self.watch.publications();
        let epochs: Vec<u64> = published.iter().map(|it| it.epoch).collect();
        assert!(epochs.windows(2).all(|pair| pair[0] < pair[1]), "an epoch has one master: {published:?}");
        for record in records {
            let strays = record.strays(&published);
            assert!(
                strays.is_empty(),
                "{} writes were acknowledged by a former master, from {:?} to {:?}; published: {published:?}",
                strays.len(),
                strays.first(),
                strays.last()
            );
        }
    }

    /// The pid of a host's redis.
    pub fn redis_pid(&self, host: usize) -> Option<u32> {
        let program = programs::redis_server().display().to_string();
        self.processes(host).into_iter().find(|&pid| process::command_line(pid).starts_with(&program))
    }

    /// The pid of a host's fencer.
    pub fn fencer_pid(&self, host: usize) -> Option<u32> {
        self.processes(host).into_iter().find(|&pid| process::command_line(pid).contains(" fencer "))
    }

    fn processes(&self, host: usize) -> Vec<u32> {
        process::tied_to(self.hosts[host].path())
    }

    /// Kills a host's redis.
    pub fn crash(&self, host: usize) {
        process::signal(self.redis_pid(host).expect("there is a redis"), Signal::KILL);
    }

    /// Kills everything that runs on a host at once.
    pub fn crash_host(&mut self, host: usize) {
        // Stopped first, so that none sees another die.
        for signal in [Signal::STOP, Signal::KILL] {
            self.processes(host).into_iter().for_each(|pid| process::signal(pid, signal));
        }
        self.hosts[host].wait_ended();
    }

    /// The addresses of hosts.
    pub fn addresses(&self, hosts: &[usize]) -> Vec<Ipv4Addr> {
        hosts.iter().map(|&host| self.spaces[host].address()).collect()
    }

    /// Cuts a host off from everybody.
    pub fn cut_off(&self, host: usize) {
        self.spaces[host].cut(&Cut::Off);
    }

    /// Cuts a host off from ZooKeeper.
    pub fn cut_from_zookeeper(&self, host: usize) {
        self.spaces[host].cut(&Cut::From(vec![self.zookeeper.address()]));
    }

    /// Cuts a host off from the other hosts of the shard.
    pub fn cut_from_peers(&self, host: usize) {
        self.spaces[host].cut(&Cut::From(self.addresses(&self.others(&[host]))));
    }

    /// What the host sends to ZooKeeper and its peers arrives; it hears neither.
    pub fn deafen(&self, host: usize) {
        self.spaces[host].cut(&Cut::Deaf(self.everybody_but(host)));
    }

    /// It hears ZooKeeper and its peers; what it sends them does not arrive.
    pub fn mute(&self, host: usize) {
        self.spaces[host].cut(&Cut::Mute(self.everybody_but(host)));
    }

    fn everybody_but(&self, host: usize) -> Vec<Ipv4Addr> {
        let mut others = self.addresses(&self.others(&[host]));
        others.push(self.zookeeper.address());
        others
    }

    /// Everything passes again.
    pub fn heal(&self, host: usize) {
        self.spaces[host].heal();
    }

    /// Another client of ZooKeeper.
    pub fn kazoo(&self) -> Kazoo {
        let names: Vec<String> = self.servers.iter().map(Server::address).collect();
        Kazoo::within(&self.client, &names.join(","))
    }

    /// A node of the shard.
    pub fn path(&self, node: &str) -> String {
        format!("{}/{node}", self.path)
    }

    /// Runs `yagent VERB -c FILE …` on a host.
    pub fn yagent(&self, host: usize, words: &[&str]) -> Output {
        self.hosts[host].run(words)
    }

    /// As a host's agent shows the shard.
    pub fn shard(&self, host: usize) -> Value {
        self.hosts[host].try_status().map(|status| status.0["shards"][0].clone()).unwrap_or_default()
    }

    /// Waits until a host's redis takes no writes, asked on the host itself.
    pub fn wait_fenced(&self, host: usize) {
        wait::until(&format!("host {host} takes no writes"), || {
            let refused = self.write(host);
            wait::check(refused.is_err(), || format!("it takes writes, role {:?}", self.role(host)))
        });
    }

    /// Whether a host's redis takes a write within half a second, asked on the host itself.
    pub fn write(&self, host: usize) -> Result<(), String> {
        let patience = Duration::from_millis(500);
        let mut redis = self.spaces[host]
            .run(|| Redis::connect_to(self.address(host), patience))
            .map_err(|error| error.to_string())?;
        redis.call(&["SET", "probe-of-the-test", "x"]).map(|_| ()).map_err(|error| error.to_string())
    }
}
