//! A simulation of one host: the real core in simulated time, with model servers, a model spawner and a model registry,
//! under random faults.
//!
//! `YAGENT_SIM_SEEDS=N` runs seeds 0 to N - 1 instead of the default number; `YAGENT_SIM_SEED=X` replays seed X alone
//! and prints all that happens.

mod checks;
mod dice;
mod failover;
mod faults;
mod plans;
mod server;
mod world;

use std::{
    collections::BTreeSet,
    env,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Instant,
};

use world::{Micros, SECOND, World};
use yagent::core::{Event, Pid};

/// How many seeds are run where nothing else is said.
const SEEDS: u64 = 300;
/// The longest time after the faults until all is well: a whole host that hangs is killed at a quarter a minute.
const MENDED_WITHIN: Micros = 1200 * SECOND;
/// How long the end waits for what does not end.
const GIVES_UP_AFTER: Micros = 65 * SECOND;
/// The longest end of all instances: SIGTERM, a minute, SIGKILL.
const ENDED_WITHIN: Micros = 200 * SECOND;

/// Seconds simulated and steps of the core.
#[derive(Clone, Copy, Default)]
struct Tally {
    seconds: u64,
    steps: u64,
}

fn simulate(seed: u64, verbose: bool) -> Result<Tally, String> {
    let mut world = World::new(seed, verbose);
    let faults_until = world.dice.within(60 * SECOND..300 * SECOND);
    world.run_until(faults_until);
    match world.dice.within(0..4) {
        0 => {
            world.strike_no_more();
            world.slow_restarts();
            let soon = world.t + SECOND / 10;
            world.run_until(soon);
            end_all(&mut world);
        }
        1 => {
            mend(&mut world);
            end_all(&mut world);
        }
        2 => {
            mend(&mut world);
            end_agent(&mut world);
        }
        _ => mend(&mut world),
    }
    match world.checks.violation {
        Some(what) => Err(format!("seed {seed}: {what}")),
        None => Ok(Tally { seconds: world.t / SECOND, steps: world.checks.steps }),
    }
}

/// With the faults gone, all is well within a bound.
fn mend(world: &mut World) {
    world.calm_down();
    let limit = world.t + MENDED_WITHIN;
    while let Some(why) = world.unsettled() {
        if world.checks.violation.is_some() {
            return;
        }
        if world.t >= limit {
            return world.violate(format!("not mended: {why}"));
        }
        world.run_until(world.t + 5 * SECOND);
    }
}

/// All instances end, and nothing is left but what not even SIGKILL ends, or a start that takes forever.
fn end_all(world: &mut World) {
    let begun = world.t;
    world.push(Event::Stop { all: true });
    if world.dice.percent(50) {
        world.configure(world.plan.clone());
    }
    world.run_until(begun + ENDED_WITHIN);
    if !world.finished {
        return world.violate("the end never comes".to_owned());
    }
    if world.starts_are_under_way() && world.t < begun + GIVES_UP_AFTER {
        world.violate("the agent ends while it starts an instance".to_owned());
    }
    let engines: BTreeSet<&str> = world.plan.engines.iter().map(|engine| engine.name.as_str()).collect();
    let left = world.servers.values().find(|s| engines.contains(s.engine.as_str()) && !s.killed);
    if let Some(pid) = left.map(|server| server.pid) {
        world.violate(format!("pid {pid} outlives the end of all"));
    }
}

/// The agent ends and comes back; no server is touched.
fn end_agent(world: &mut World) {
    let before: Vec<Pid> = world.servers.keys().copied().collect();
    world.push(Event::Stop { all: false });
    world.run_until(world.t + SECOND);
    if !world.finished {
        world.violate("the agent does not end".to_owned());
    }
    world.restart_agent();
    mend(world);
    let after: Vec<Pid> = world.servers.keys().copied().collect();
    if world.checks.violation.is_none() && before != after {
        world.violate(format!("the servers were {before:?} and are {after:?}"));
    }
}

fn number(name: &str) -> Option<u64> {
    let value = env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|e| panic!("{name}={value}: {e}")))
}

/// Runs the seeds on all processors; the failures come with their seeds.
fn simulate_all(seeds: u64) -> (Tally, Vec<String>) {
    let next = AtomicU64::new(0);
    let work = || {
        let (mut tally, mut failures) = (Tally::default(), Vec::new());
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                return (tally, failures);
            }
            match simulate(seed, false) {
                Ok(one) => {
                    tally = Tally { seconds: tally.seconds + one.seconds, steps: tally.steps + one.steps };
                }
                Err(failure) => failures.push(failure),
            }
        }
    };
    let workers = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let handles: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        handles.into_iter().fold((Tally::default(), Vec::new()), |(tally, mut failures), handle| {
            let Ok((one, more)) = handle.join() else { panic!("the core panicked: see above") };
            failures.extend(more);
            (Tally { seconds: tally.seconds + one.seconds, steps: tally.steps + one.steps }, failures)
        })
    })
}

#[test]
fn a_host_survives_its_faults() {
    if let Some(seed) = number("YAGENT_SIM_SEED") {
        simulate(seed, true).unwrap_or_else(|what| panic!("{what}"));
        return;
    }
    let (begun, seeds) = (Instant::now(), number("YAGENT_SIM_SEEDS").unwrap_or(SEEDS));
    let (tally, failures) = simulate_all(seeds);
    println!(
        "{seeds} seeds, {:.1} simulated hours, {} steps in {:.1} s",
        tally.seconds as f64 / 3600.0,
        tally.steps,
        begun.elapsed().as_secs_f64()
    );
    assert!(
        failures.is_empty(),
        "{} of {seeds} seeds failed; replay one with YAGENT_SIM_SEED=N:\n{}",
        failures.len(),
        failures.iter().take(10).map(String::as_str).collect::<Vec<_>>().join("\n")
    );
}

#[test]
fn a_seed_is_replayed_to_the_step() {
    let runs: Vec<_> = (0..2).map(|_| simulate(7, false).map(|tally| (tally.seconds, tally.steps))).collect();
    assert_eq!(runs[0], runs[1]);
}
