//! What is fixed for a run: how many hosts, which timing, which habits.

use std::time::Duration;

use yagent::core::failover::{ShardPlan, Timing};

use crate::{
    dice::Dice,
    world::{MS, Micros, SECOND},
};

#[derive(Clone, Debug)]
pub(super) struct Setting {
    pub(super) plans: Vec<ShardPlan>,
    pub(super) timing: Timing,
    pub(super) fencing: bool,
    /// How many servers the registry has.
    pub(super) servers: usize,
    /// The registry's tick is real; the timing's is what the agents believe.
    pub(super) tick: Micros,
    /// `repl-timeout`.
    pub(super) repl_timeout: Micros,
    /// How many bytes of the stream a redis keeps.
    pub(super) backlog: i64,
    /// In a hundred crashes, so many leave a dump to load.
    pub(super) dumps: u64,
    /// How long loading takes.
    pub(super) load: Micros,
    /// How long a whole copy takes.
    pub(super) copy: Micros,
    /// In a hundred redis, so many have data at the first start.
    pub(super) preloaded: u64,
    /// In a hundred redis, so many are never to be promoted.
    pub(super) barred: u64,
    /// How often a writer writes.
    pub(super) pace: Micros,
    /// Redis before 6.2: nothing pauses its writes.
    pub(super) old: bool,
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

impl Setting {
    pub(super) fn new(dice: &mut Dice) -> Setting {
        let n = match dice.within(0..100) {
            0..30 => 2,
            30..75 => 3,
            75..90 => 4,
            _ => 5,
        };
        let timing = timing(dice);
        let (fencing, failsafe) = (dice.percent(95), dice.percent(65));
        let min_replicas = if dice.percent(80) { 1 } else { u32::try_from(dice.within(0..3)).unwrap_or(1) };
        let max_lag = if dice.percent(70) { 1_048_576 } else { dice.within(100..2000) };
        let addresses: Vec<String> = (1..=n).map(|n| format!("10.0.0.{n}:16379")).collect();
        let plan = |address: &String| ShardPlan {
            root: "/redis/shards".to_owned(),
            address: address.clone(),
            members: addresses.clone(),
            host_id: format!("host of {address}"),
            nonce: String::new(),
            timing: timing.clone(),
            fencing,
            failsafe,
            max_lag,
            min_replicas,
        };
        let slow = dice.percent(20);
        Setting {
            plans: addresses.iter().map(plan).collect(),
            tick: u64::try_from(timing.tick.as_micros()).unwrap_or(SECOND),
            timing,
            fencing,
            servers: if dice.percent(50) { 1 } else { 3 },
            repl_timeout: if dice.percent(60) { 60 * SECOND } else { dice.within(5 * SECOND..15 * SECOND) },
            backlog: if dice.percent(70) {
                1_048_576
            } else {
                i64::try_from(dice.within(200..4000)).unwrap_or(1000)
            },
            dumps: [0, 30, 100][usize::try_from(dice.within(0..3)).unwrap_or(0)],
            load: if slow { 8 * SECOND } else { 200 * MS },
            copy: if slow { 6 * SECOND } else { 300 * MS },
            preloaded: if dice.percent(80) { 0 } else { 50 },
            barred: if dice.percent(85) { 0 } else { 30 },
            pace: dice.within(60 * MS..600 * MS),
            old: dice.percent(10),
        }
    }
}

/// A timing that fits, often with nothing to spare.
fn timing(dice: &mut Dice) -> Timing {
    let session = match dice.within(0..10) {
        0 => 20_000,
        1..4 => 10_000,
        _ => 6_000,
    };
    let tight = dice.percent(40);
    let (check, fence, tick) =
        if tight { (session / 40, session / 40, session / 20) } else { (500, 500, 500) };
    let rest = session - check - fence - tick - session / 100;
    let lease = if tight { rest } else { (session / 2).min(rest) };
    Timing {
        session: ms(session),
        lease: ms(lease),
        check: ms(check),
        fence: ms(fence),
        tick: ms(tick),
        beat: ms(if dice.percent(50) { 200 } else { 1000 }),
        silence: ms(session + session / 2),
        order: ms(if dice.percent(50) { 300 } else { 1000 }),
    }
}
