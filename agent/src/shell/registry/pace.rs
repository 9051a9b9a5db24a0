//! The pace of connecting: how long to wait between hosts and between rounds. Pure but for the source of chance.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    time::Duration,
};

/// Between two hosts of one round.
pub(super) const BETWEEN_HOSTS: Duration = Duration::from_millis(20);
const FIRST: Duration = Duration::from_millis(200);
const LAST: Duration = Duration::from_secs(5);

/// Doubles from round to round, spread so that a fleet does not come back in one beat.
#[derive(Debug)]
pub(super) struct Pace {
    next: Duration,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace { next: FIRST }
    }
}

impl Pace {
    /// How long to wait before the next round. `chance` is in 0..1 and spreads the wait by a half to each side. Even so
    /// it stays within half of the session's `timeout`, or servers that come back, which give every session one more
    /// timeout, would expire ours while we wait.
    pub(super) fn wait(&mut self, timeout: Duration, chance: f64) -> Duration {
        let most = (timeout / 3).max(FIRST);
        let wait = self.next.min(most).mul_f64(0.5 + chance.clamp(0.0, 1.0));
        self.next = (self.next * 2).min(LAST);
        wait
    }

    /// Begins anew.
    pub(super) fn reset(&mut self) {
        self.next = FIRST;
    }
}

/// A small generator of chance, seeded by the system; for pacing and shuffling, not for secrets.
#[derive(Debug)]
pub(super) struct Chance(u64);

impl Default for Chance {
    fn default() -> Chance {
        Chance(RandomState::new().build_hasher().finish() | 1)
    }
}

impl Chance {
    fn step(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// In 0..1.
    pub(super) fn fraction(&mut self) -> f64 {
        (self.step() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Brings `items` into an order of chance.
    pub(super) fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, (self.step() % (i as u64 + 1)) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn waits_double_up_to_five_seconds_and_begin_anew() {
        let mut pace = Pace::default();
        let waits: Vec<u64> = (0..7).map(|_| pace.wait(LONG, 0.5).as_millis() as u64).collect();
        assert_eq!(waits, [200, 400, 800, 1600, 3200, 5000, 5000]);
        pace.reset();
        assert_eq!(pace.wait(LONG, 0.5), FIRST);
    }

    #[test]
    fn no_wait_is_longer_than_half_a_session() {
        let mut pace = Pace::default();
        let short = Duration::from_secs(3);
        let waits: Vec<u64> = (0..6).map(|_| pace.wait(short, 1.0).as_millis() as u64).collect();
        assert_eq!(waits, [300, 600, 1200, 1500, 1500, 1500]);
        assert_eq!(pace.wait(Duration::ZERO, 0.5), FIRST, "nor is any a flood");
    }

    #[test]
    fn waits_are_spread_by_a_half() {
        assert_eq!(Pace::default().wait(LONG, 0.0), FIRST / 2);
        assert_eq!(Pace::default().wait(LONG, 1.0), FIRST * 3 / 2);
    }

    #[test]
    fn a_shuffle_loses_nothing_and_moves_something() {
        let mut chance = Chance::default();
        let mut moved = false;
        for _ in 0..20 {
            let mut items: Vec<u32> = (0..10).collect();
            chance.shuffle(&mut items);
            moved |= items != (0..10).collect::<Vec<_>>();
            items.sort_unstable();
            assert_eq!(items, (0..10).collect::<Vec<_>>());
            assert!((0.0..1.0).contains(&chance.fraction()));
        }
        assert!(moved);
    }
}
