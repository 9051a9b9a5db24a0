//! The storm guard: when many instances seem to hang at once, it is the host that stands still, and killing them all
//! would wipe its cache.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::InstanceId;

/// Within this time at most a quarter of the instances may be killed for hanging.
const WINDOW: Duration = Duration::from_secs(60);

/// Counts the instances killed for hanging. One that hangs again within the window counts once.
#[derive(Debug, Default)]
pub(super) struct StormGuard {
    killed: VecDeque<(Instant, InstanceId)>,
}

impl StormGuard {
    /// Whether `id` may be killed now, `total` being the host's instances; if so, it counts.
    pub(super) fn allow(&mut self, now: Instant, id: InstanceId, total: usize) -> bool {
        self.forget(now);
        let others = self.killed.iter().filter(|(_, other)| *other != id).count();
        if others >= (total / 4).max(1) {
            return false;
        }
        self.killed.retain(|(_, other)| *other != id);
        self.killed.push_back((now, id));
        true
    }

    /// Whether the quarter is used up for an instance that isn't among the killed.
    pub(super) fn exhausted(&mut self, now: Instant, total: usize) -> bool {
        self.forget(now);
        self.killed.len() >= (total / 4).max(1)
    }

    fn forget(&mut self, now: Instant) {
        while self.killed.front().is_some_and(|(at, _)| now.duration_since(*at) >= WINDOW) {
            self.killed.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::EngineId;

    fn id(port: u16) -> InstanceId {
        InstanceId { engine: EngineId(0), port }
    }

    #[test]
    fn at_most_a_quarter_within_a_minute() {
        let (mut guard, t) = (StormGuard::default(), Instant::now());
        assert!(guard.allow(t, id(1), 8));
        assert!(guard.allow(t, id(2), 8));
        assert!(!guard.allow(t, id(3), 8));
        assert!(guard.exhausted(t, 8));
        assert!(guard.allow(t, id(1), 8), "the same instance counts once");
        assert!(!guard.allow(t + Duration::from_secs(59), id(3), 8));
        assert!(guard.allow(t + Duration::from_secs(61), id(3), 8));
    }

    #[test]
    fn at_least_one() {
        let (mut guard, t) = (StormGuard::default(), Instant::now());
        assert!(guard.allow(t, id(1), 1));
        assert!(!guard.allow(t, id(2), 3));
    }
}
