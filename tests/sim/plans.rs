//! Plans: the first one, and what reloads make of it.

use std::time::Duration;

use yagent::{
    config::{Megabytes, Probing, Statistics},
    core::{EnginePlan, HostIdentity, HostPlan},
};

use crate::dice::Dice;

/// The host's address.
pub(crate) const IP: &str = "10.0.0.1";

fn identity() -> HostIdentity {
    HostIdentity {
        ip: IP.to_owned(),
        hostname: "sim".to_owned(),
        host_id: "id".to_owned(),
        nonce: "nonce".to_owned(),
        pid: 1,
        group: "default".to_owned(),
        priority: 100,
        rack: String::new(),
        memory: Megabytes(32768),
        reserved: Megabytes(3072),
    }
}

fn engine(name: &str, root: &str, port: u16, count: u32) -> EnginePlan {
    EnginePlan {
        unattended: None,
        shards: None,
        name: name.to_owned(),
        count,
        maxmem: Megabytes(64),
        port,
        port_step: 10,
        known_ports: Vec::new(),
        server_path: format!("{root}/servers/{IP}"),
        instance_path: format!("{root}/servers/{IP}/instances/{IP}:{{port}}"),
    }
}

fn memcached(dice: &mut Dice) -> EnginePlan {
    engine("memcached", "/ycache", 11211, u32::try_from(dice.within(1..7)).unwrap_or(1))
}

fn redis(dice: &mut Dice) -> EnginePlan {
    engine("redis", "/redis", 16379, u32::try_from(dice.within(1..4)).unwrap_or(1))
}

fn probing(dice: &mut Dice) -> Probing {
    let interval = dice.pick(&[1, 1, 2, 5]).unwrap_or(1);
    Probing {
        check_interval: Duration::from_secs(dice.pick(&[1, 5, 5, 20]).unwrap_or(5)),
        interval: Duration::from_secs(interval),
        timeout: Duration::from_secs(1),
        failures: u32::try_from(dice.within(1..4)).unwrap_or(3),
        start_timeout: Duration::from_secs(dice.pick(&[5, 30]).unwrap_or(30)),
    }
}

fn statistics(dice: &mut Dice) -> Statistics {
    Statistics {
        enabled: dice.percent(80),
        publish_every: u32::try_from(dice.within(1..13)).unwrap_or(12),
        windows: vec![Duration::from_secs(60), Duration::from_secs(3600)],
    }
}

/// What the agent starts with.
pub(crate) fn first(dice: &mut Dice) -> HostPlan {
    let mut engines = vec![memcached(dice)];
    if dice.percent(60) {
        engines.push(redis(dice));
    }
    HostPlan {
        identity: identity(),
        probing: probing(dice),
        statistics: statistics(dice),
        alert_repeat: Duration::from_secs(600),
        engines,
        misfits: Vec::new(),
    }
}

/// A reload: nothing new, or one thing.
pub(crate) fn changed(dice: &mut Dice, plan: &HostPlan) -> HostPlan {
    let mut plan = plan.clone();
    match dice.within(0..8) {
        0 | 1 => {
            plan.engines.iter_mut().for_each(|e| e.count = u32::try_from(dice.within(1..8)).unwrap_or(1))
        }
        2 => plan.statistics = statistics(dice),
        3 => plan.probing = probing(dice),
        4 if plan.engines.len() > 1 => drop(plan.engines.remove(usize::from(dice.percent(50)))),
        4 => add_missing(dice, &mut plan),
        5 => plan.engines.iter_mut().for_each(|e| e.port += 5 * u16::from(dice.percent(50))),
        6 => plan.misfits = vec!["too much".to_owned()],
        _ => plan.misfits.clear(),
    }
    plan
}

fn add_missing(dice: &mut Dice, plan: &mut HostPlan) {
    let engines = [memcached(dice), redis(dice)];
    for engine in engines {
        if plan.engines.iter().all(|other| other.name != engine.name) {
            plan.engines.push(engine);
        }
    }
}
