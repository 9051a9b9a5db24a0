//! The three hosts: a directory, a configuration and an agent each.

use std::{fs, net::Ipv4Addr, path::Path};

use serde::Deserialize;

use super::{ADDRESSES, zookeeper::Zookeeper};
use crate::{
    cli::demo::{
        Status,
        agent::{Process, find},
    },
    core::failover::{Phase, ShardReport},
};

/// The agents, in the order of their addresses.
pub(super) struct Hosts {
    agents: Vec<Process>,
    port: u16,
}

/// A master that others could replace.
pub(super) struct Master {
    pub(super) address: String,
    pub(super) pid: u32,
}

/// An agent's answer to `shards`.
#[derive(Deserialize)]
struct Shards {
    shards: Vec<ShardReport>,
}

impl Hosts {
    /// Starts the agents. Those that were started before one failed are ended.
    pub(super) fn start(dir: &Path, zookeeper: &Zookeeper, port: u16) -> Result<Hosts, String> {
        let redis = find("redis-server")
            .ok_or("redis-server is not installed: install the Debian package redis-server")?;
        let mut hosts = Hosts { agents: Vec::new(), port };
        for address in ADDRESSES {
            let configuration = configuration(dir, zookeeper, address, port, &redis);
            let started = make_dir(&dir.join(address.to_string()))
                .and_then(|()| Process::start(&dir.join(address.to_string()), &configuration));
            match started {
                Ok(agent) => hosts.agents.push(agent),
                Err(why) => {
                    let _ = hosts.end();
                    return Err(why);
                }
            }
        }
        Ok(hosts)
    }

    /// Whether all agents run; the error is what one said last.
    pub(super) fn all_alive(&mut self) -> Result<(), String> {
        self.agents.iter_mut().find_map(Process::why_gone).map_or(Ok(()), Err)
    }

    /// The master, when its agent says that the shard could fail over.
    pub(super) fn ready(&mut self) -> Option<Master> {
        let reports: Vec<ShardReport> = self.agents.iter_mut().filter_map(report).collect();
        let master = reports.iter().find_map(|report| {
            let state = report.state.as_ref().filter(|state| state.phase == Phase::Done)?;
            (state.master == report.address && report.hindrances.is_empty()).then_some(&state.master)
        })?;
        let host = ADDRESSES.iter().position(|address| format!("{address}:{}", self.port) == *master)?;
        let status: Status = self.agents[host].ask("status").ok()?;
        let pid = status.instances.first().filter(|instance| instance.state == "up")?.pid?;
        let attached = |report: &ShardReport| {
            report.members.len() == ADDRESSES.len()
                && report.members.iter().all(|member| member.address == *master || member.barred.is_none())
        };
        reports.iter().any(attached).then(|| Master { address: master.clone(), pid })
    }

    /// What each agent says of the shard.
    pub(super) fn why_not_ready(&mut self) -> String {
        let told = self.agents.iter_mut().zip(ADDRESSES).map(|(agent, address)| match report(agent) {
            Some(report) => format!("{address}: {} {}", report.sentence, report.hindrances.join(", ")),
            None => format!("{address}: its agent tells of no shard"),
        });
        told.collect::<Vec<_>>().join("; ")
    }

    /// Ends all agents and their redis.
    pub(super) fn end(self) -> Result<(), String> {
        let ended: Vec<Result<(), String>> = self.agents.into_iter().map(Process::end).collect();
        ended.into_iter().collect()
    }
}

fn report(agent: &mut Process) -> Option<ShardReport> {
    agent.ask::<Shards>("shards").ok()?.shards.pop()
}

fn make_dir(dir: &Path) -> Result<(), String> {
    let conf = dir.join("redis.conf");
    fs::create_dir(dir)
        .and_then(|()| fs::write(&conf, "save \"\"\nappendonly no\n"))
        .map_err(|e| format!("cannot write {}: {e}", conf.display()))
}

/// Times as short as the sum of the lease allows, so that all is soon well again.
fn configuration(dir: &Path, zookeeper: &Zookeeper, address: Ipv4Addr, port: u16, redis: &Path) -> String {
    let dir = dir.join(address.to_string());
    let (dir, redis) = (dir.display(), redis.display());
    let peers: Vec<String> = ADDRESSES.iter().filter(|a| **a != address).map(Ipv4Addr::to_string).collect();
    let Zookeeper { servers, tick_s, session_s, .. } = zookeeper;
    format!(
        "[global]\nzoo_svr={servers}\nzoo_session_timeout={session_s}\nzoo_tick={tick_s}\nlocalip={address}\n\
         CheckInterval=0.5\nprobe_interval=0.2\nsystem_res_mem=0\nstatsEnable=0\nstate_dir={dir}\n\
         [redis]\nredis_enabled=1\nredis_fpath={redis}\nredis_count=1\nredis_maxmem=64\nredis_meta_size=0\n\
         redis_port={port}\nredis_port_file={dir}/redis_ports\nredis_bind={address}\nredis_conf={dir}/redis.conf\n\
         peers={}\nredis_lease={}\nredis_fence_time=0.5\ntimeout=5\n",
        peers.join(","),
        session_s / 2.0
    )
}
