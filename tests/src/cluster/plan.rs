//! How a shard of the tests is set up.

use std::{fs, sync::Arc};

use super::{
    CHECK, Cluster, FENCE, LEASE, PORT, SESSION,
    net::{Net, Space},
    watch::Watch,
};
use crate::{
    host::Host,
    zookeeper::{Server, ensemble_in},
};

const ZOOKEEPER: u8 = 100;
const CLIENT: u8 = 200;

/// A shard in the making.
#[derive(Debug)]
pub struct Plan {
    hosts: usize,
    servers: usize,
    settings: Vec<(&'static str, &'static str, String)>,
    conf: String,
    password: Option<String>,
}

impl Plan {
    /// So many hosts and one ZooKeeper server.
    pub fn new(hosts: usize) -> Plan {
        // A copy that waits for company, redis' default, would make every test wait for it.
        let conf = "save \"\"\nappendonly no\nrepl-diskless-sync-delay 0\nrepl-timeout 10\n".to_owned();
        Plan { hosts, servers: 1, settings: Vec::new(), conf, password: None }
    }

    /// So many ZooKeeper servers.
    pub fn servers(mut self, servers: usize) -> Plan {
        self.servers = servers;
        self
    }

    /// Sets a key on all hosts.
    pub fn with(mut self, section: &'static str, key: &'static str, value: impl ToString) -> Plan {
        self.settings.push((section, key, value.to_string()));
        self
    }

    /// Adds lines to the base configuration of redis on all hosts.
    pub fn conf(mut self, lines: &str) -> Plan {
        self.conf += lines;
        self.conf.push('\n');
        self
    }

    /// Has redis ask for a password.
    pub fn password(mut self, password: &str) -> Plan {
        self.password = Some(password.to_owned());
        self.conf(&format!("requirepass {password}"))
    }

    /// Everything but the agents, which are ready to be started.
    pub fn prepare(self) -> Cluster {
        let mut net = Net::new();
        let (zookeeper, client) = (net.host(ZOOKEEPER), net.host(CLIENT));
        let spaces: Vec<Arc<Space>> = (1..=self.hosts).map(|i| net.host(i as u8)).collect();
        let servers = ensemble_in(self.servers, Some(&zookeeper));
        let names: Vec<String> = servers.iter().map(Server::address).collect();
        let peers: Vec<String> = spaces.iter().map(|space| space.address().to_string()).collect();
        let host = |space: &Arc<Space>| {
            let mut host = Host::new().within(space.clone()).redis(1);
            fs::write(host.path().join("redis.conf"), &self.conf).expect("cannot write redis.conf");
            host.ini
                .set("global", "localip", space.address())
                .set("global", "zoo_svr", names.join(","))
                .set("global", "zoo_session_timeout", SESSION.as_secs_f64())
                .set("global", "zoo_tick", 0.2)
                .set("global", "CheckInterval", CHECK.as_secs_f64())
                .set("global", "probe_interval", 0.5)
                .set("redis", "timeout", 10)
                .set("redis", "redis_port", PORT)
                .set("redis", "redis_lease", LEASE.as_secs_f64())
                .set("redis", "redis_fence_time", FENCE.as_secs_f64())
                .set("redis", "peers", peers.join(","));
            for (section, key, value) in &self.settings {
                host.ini.set(section, key, value);
            }
            host
        };
        let hosts = spaces.iter().map(host).collect();
        let members: Vec<String> = peers.iter().map(|peer| format!("{peer}:{PORT}")).collect();
        let path = format!("/redis/shards/{}", members[0]);
        let watch = Watch::start(&client, &names.join(","), &path, &members);
        Cluster { watch, hosts, servers, spaces, client, zookeeper, path, password: self.password, _net: net }
    }

    /// All running, with a master, and everybody following it.
    pub fn start(self) -> Cluster {
        let mut cluster = self.prepare();
        cluster.hosts.iter_mut().for_each(Host::launch);
        cluster.wait_steady();
        cluster
    }
}
