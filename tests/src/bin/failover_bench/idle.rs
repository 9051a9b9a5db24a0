//! What an idle shard costs: two hosts of fifty servers each, with peers and without.

use std::{thread, time::Duration};

use yagent_tests::{
    cluster::{Cluster, Plan},
    process, wait,
};

use crate::{Amount, row, title};

/// Clock ticks a second, as `/proc` counts CPU time.
const TICKS: f64 = 100.0;

pub(crate) fn idle(amount: Amount) {
    let (servers, span) = if amount.short { (10, 5) } else { (50, 60) };
    title(&format!(
        "two hosts of {servers} idle servers each, in {servers} shards, default timing: an agent and its fencer over {span} s"
    ));
    for (name, peers) in [("floor: without peers", false), ("yagent", true)] {
        let mut cluster = plan(servers).prepare();
        for host in &mut cluster.hosts {
            if !peers {
                host.ini.unset("redis", "peers");
            }
            host.launch();
        }
        cluster.hosts.iter_mut().for_each(|host| drop(host.wait_up()));
        if peers {
            wait_all_lead(&cluster, servers);
        }
        thread::sleep(Duration::from_secs(if amount.short { 3 } else { 15 }));
        let before = spent(&cluster);
        thread::sleep(Duration::from_secs(span));
        for (host, (before, now)) in before.into_iter().zip(spent(&cluster)).enumerate() {
            let minute = (now - before) * 60.0 / span as f64;
            let memory = process::status_field(cluster.hosts[host].pid(), "VmRSS").unwrap_or_default();
            row(name, &format!("host {host}"), format!("{minute:6.2} CPU s/min  {memory} resident"));
        }
    }
}

fn plan(servers: usize) -> Plan {
    Plan::new(2)
        .with("redis", "redis_count", servers)
        .with("redis", "redis_maxmem", 16)
        .with("redis", "redis_meta_size", 1)
        .with("redis", "redis_port_step", 1)
        .with("redis", "redis_lease", 15)
        .with("redis", "redis_fence_time", 3)
        .with("redis", "timeout", 60)
        .with("global", "CheckInterval", 5)
        .with("global", "probe_interval", 1)
        .with("global", "zoo_session_timeout", 30)
        .with("global", "zoo_tick", 2)
        .with("global", "statsIntervalNum", 12)
}

/// Waits until each shard has a master, by the agents' own word.
fn wait_all_lead(cluster: &Cluster, servers: usize) {
    wait::until_within(Duration::from_secs(120), "every shard has its master", || {
        let status = cluster.hosts[0].try_status()?;
        let shards = status.0["shards"].as_array().cloned().unwrap_or_default();
        let led = shards.iter().filter(|shard| shard["state"]["phase"] == "done").count();
        wait::check(led == servers, || format!("{led} of {servers}"))
    });
}

/// CPU seconds of each host's agent and fencer.
fn spent(cluster: &Cluster) -> Vec<f64> {
    let ticks = |pid: u32| process::stat(pid).map_or(0, |stat| stat.cpu_ticks) as f64 / TICKS;
    let host = |host: usize| ticks(cluster.hosts[host].pid()) + cluster.fencer_pid(host).map_or(0.0, ticks);
    (0..cluster.hosts.len()).map(host).collect()
}
