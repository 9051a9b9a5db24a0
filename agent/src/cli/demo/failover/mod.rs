//! `yagent demo --failover`: three hosts on loopback addresses, each with an agent and a redis that replicate with one
//! another, a ZooKeeper, a writer, and a master that is killed every few seconds.

mod hosts;
mod writer;
mod zookeeper;

use std::{
    net::Ipv4Addr,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use super::{
    faults::median,
    stage::{directory, free_ports, remove},
};
use crate::cli::check::print_line;
use hosts::Hosts;
use writer::{Switch, Writer};
use zookeeper::Zookeeper;

/// The hosts.
const ADDRESSES: [Ipv4Addr; 3] =
    [Ipv4Addr::new(127, 0, 0, 1), Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 0, 0, 3)];
/// Between the kills, once all replicas are back.
const KILL_EVERY: Duration = Duration::from_secs(3);
/// How long the shard may take to be ready for a failover.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// Between two looks.
const PACE: Duration = Duration::from_millis(20);

/// Runs until `over`; whatever happens, nothing is left behind.
pub(super) fn perform(zookeeper: Option<&str>, over: &dyn Fn() -> bool) -> Result<(), String> {
    let dir = directory()?;
    let zookeeper = Zookeeper::find(zookeeper, dir.path(), over)?;
    let port = free_ports(1, &ADDRESSES).map_err(|e| e.to_string())?;
    let shown = Hosts::start(dir.path(), &zookeeper, port).and_then(|mut hosts| {
        let shown = show(&mut hosts, port, over);
        shown.and(hosts.end())
    });
    let cleared = zookeeper.clear();
    shown.and(cleared).and(remove(dir))
}

fn show(hosts: &mut Hosts, port: u16, over: &dyn Fn() -> bool) -> Result<(), String> {
    let (first, last) = (ADDRESSES[0], ADDRESSES[ADDRESSES.len() - 1]);
    print_line(&format!("three agents with a redis each, {first}:{port} to {last}:{port}; ctrl-c ends it"));
    let Some(master) = wait_ready(hosts, over)? else { return Ok(()) };
    print_line(&format!(
        "{} is the master, the others follow; a writer writes to whoever is",
        master.address
    ));
    let writer = Writer::start(ADDRESSES.map(|address| (address, port).into()));
    let mut switches = Vec::new();
    let mut next_kill = Instant::now() + KILL_EVERY / 3;
    while !over() {
        hosts.all_alive()?;
        for switch in writer.switches() {
            print_line(&told(&switch));
            switches.push(switch);
        }
        if Instant::now() >= next_kill
            && let Some(master) = hosts.ready()
        {
            next_kill = Instant::now() + KILL_EVERY;
            kill(&master);
        }
        thread::park_timeout(PACE);
    }
    switches.extend(writer.switches());
    print_line(&format!("\n{}", summary(&switches, writer.acknowledged())));
    Ok(())
}

/// Waits until a failover would succeed; `None`: it is over before.
fn wait_ready(hosts: &mut Hosts, over: &dyn Fn() -> bool) -> Result<Option<hosts::Master>, String> {
    let limit = Instant::now() + READY_LIMIT;
    loop {
        if over() {
            return Ok(None);
        }
        hosts.all_alive()?;
        if let Some(master) = hosts.ready() {
            return Ok(Some(master));
        }
        if Instant::now() >= limit {
            return Err(format!("the shard did not get ready: {}", hosts.why_not_ready()));
        }
        thread::park_timeout(PACE);
    }
}

fn kill(master: &hosts::Master) {
    if Pid::from_raw(master.pid.cast_signed()).is_some_and(|pid| kill_process(pid, Signal::KILL).is_ok()) {
        print_line(&format!("{} (pid {}) is killed with kill -9", master.address, master.pid));
    }
}

fn told(switch: &Switch) -> String {
    let lost = match switch.lost {
        Some(0) => "no acknowledged write was lost".to_owned(),
        Some(1) => "the last acknowledged write was lost".to_owned(),
        Some(lost) => format!("the last {lost} acknowledged writes were lost"),
        None => "what was lost is not known".to_owned(),
    };
    format!("  {} acknowledges writes after a gap of {:.1} ms; {lost}", switch.to, ms(switch.gap))
}

fn summary(switches: &[Switch], acknowledged: u64) -> String {
    let gaps: Vec<Duration> = switches.iter().map(|switch| switch.gap).collect();
    let lost: u64 = switches.iter().filter_map(|switch| switch.lost).sum();
    match (median(&gaps), gaps.iter().max()) {
        (Some(median), Some(longest)) => format!(
            "{} failovers: no writes for {:.1} ms by median, {:.1} ms at most; {lost} of {acknowledged} acknowledged \
             writes lost",
            gaps.len(),
            ms(median),
            ms(*longest)
        ),
        _ => format!("no failover; {acknowledged} acknowledged writes"),
    }
}

fn ms(span: Duration) -> f64 {
    span.as_secs_f64() * 1000.0
}
