//! The lease: how long a member may lead on what it last heard from the registry.
//!
//! With S the session timeout, L the lease, B the longest gap between two checks and F the time that fencing takes,
//! `L + B + F + tick + 1 % of S ≤ S` makes sure that a master that lost the registry is fenced before its session can
//! have ended and another be promoted. The lease is counted from when the last acknowledged request was *sent*. A tick
//! of ZooKeeper is the grain of its session timeouts; one percent is for clocks that run at different speeds.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// Durations that all members of a shard agree on. In JSON: milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// S, `zoo_session_timeout`: what is asked for. The negotiated one decides.
    #[serde(with = "millis")]
    pub session: Duration,
    /// L, `redis_lease`.
    #[serde(with = "millis")]
    pub lease: Duration,
    /// B, `CheckInterval`: the longest gap between two checks.
    #[serde(with = "millis")]
    pub check: Duration,
    /// F, `redis_fence_time`: how long fencing may take.
    #[serde(with = "millis")]
    pub fence: Duration,
    /// `zoo_tick`: ZooKeeper's tickTime.
    #[serde(with = "millis")]
    pub tick: Duration,
    /// `probe_interval`, at most a second: how often a member looks where it is urgent.
    #[serde(with = "millis")]
    pub beat: Duration,
    /// `timeout`: with fencing off, the silence after which a master is replaced. Also how long a shard without a
    /// state waits for members that are missing.
    #[serde(with = "millis")]
    pub silence: Duration,
    /// `probe_timeout`: how long an order may take.
    #[serde(with = "millis")]
    pub order: Duration,
}

/// The oldest acknowledgement of a replica with which a master without a registry may go on: redis' replicas
/// acknowledge once a second, and INFO counts whole seconds.
pub(super) const OLDEST_ACK: Duration = Duration::from_secs(2);

/// A sum that does not fit into the session timeout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimingError {
    /// The timing.
    pub timing: Box<Timing>,
    /// The session timeout that it was computed with.
    pub session: Duration,
}

impl Timing {
    /// What the lease needs beside itself out of a session of `session`.
    fn reserve(&self, session: Duration) -> Duration {
        self.check + self.fence + self.tick + session / 100
    }

    /// The lease with a session that was negotiated: the configured one, or what is left where that is less.
    pub fn lease(&self, session: Duration) -> Duration {
        self.lease.min(session.saturating_sub(self.reserve(session)))
    }

    /// Whether a lease outlasts the pauses between two heartbeats of the registry.
    pub fn suffices(&self, session: Duration) -> bool {
        self.lease(session) > session / 3
    }

    /// W: how long a candidate that left its master waits after an expiry, so that a master that goes on without a
    /// registry has seen it leave and is fenced.
    pub fn withdrawal(&self) -> Duration {
        OLDEST_ACK + self.beat + self.fence
    }

    /// Checks the sum with the session timeout that is asked for.
    ///
    /// # Errors
    /// The sum, and which number to change to what.
    pub fn check(&self) -> Result<(), TimingError> {
        let session = self.session;
        let fits = self.lease + self.reserve(session) <= session && self.lease > session / 3;
        if fits { Ok(()) } else { Err(TimingError { timing: Box::new(self.clone()), session }) }
    }
}

impl fmt::Display for TimingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (t, session) = (&self.timing, self.session);
        let s = |duration: Duration| format!("{}", (duration.as_secs_f64() * 1000.0).round() / 1000.0);
        let sum = t.lease + t.reserve(session);
        let most = session.saturating_sub(t.reserve(session));
        if t.lease <= session / 3 && most > session / 3 {
            return write!(
                f,
                "the lease is too short: redis_lease {} s, and it must be more than a third of zoo_session_timeout, which \
                 is {} s; raise redis_lease above {} s, to {} s at most",
                s(t.lease),
                s(session),
                s(session / 3),
                s(most)
            );
        }
        write!(
            f,
            "the lease does not fit into the session: redis_lease {} + CheckInterval {} + redis_fence_time {} + zoo_tick {} + \
             1 % of the session {} = {} s, zoo_session_timeout is {} s, and the lease must be more than a third of it",
            s(t.lease),
            s(t.check),
            s(t.fence),
            s(t.tick),
            s(session / 100),
            s(sum),
            s(session)
        )?;
        if most > session / 3 {
            return write!(f, "; lower redis_lease to at most {} s", s(most));
        }
        // L = S/2 leaves 0.49 S for the rest.
        let enough = (t.check + t.fence + t.tick).mul_f64(1.0 / 0.49);
        let enough = Duration::from_secs_f64(enough.as_secs_f64().ceil());
        write!(f, "; raise zoo_session_timeout to at least {} s, or lower CheckInterval", s(enough))
    }
}

mod millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_millis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(in crate::core::failover) fn seconds(lease: u64, check: u64, fence: u64, session: u64) -> Timing {
        let s = Duration::from_secs;
        Timing {
            session: s(session),
            lease: s(lease),
            check: s(check),
            fence: s(fence),
            tick: s(2),
            beat: s(1),
            silence: s(60),
            order: s(1),
        }
    }

    #[test]
    fn the_defaults_fit() {
        assert_eq!(seconds(15, 5, 3, 30).check(), Ok(()));
        assert_eq!(seconds(15, 5, 3, 30).withdrawal(), Duration::from_secs(6));
    }

    #[test]
    fn a_sum_that_does_not_fit_says_which_number_to_change() {
        let told = seconds(20, 5, 3, 30).check().unwrap_err().to_string();
        assert!(told.contains("= 30.3 s") && told.contains("lower redis_lease to at most 19.7 s"), "{told}");
        let told = seconds(3, 5, 3, 6).check().unwrap_err().to_string();
        assert!(told.contains("raise zoo_session_timeout to at least 21 s"), "{told}");
        let told = seconds(5, 5, 3, 30).check().unwrap_err().to_string();
        assert!(told.contains("raise redis_lease above 10 s, to 19.7 s at most"), "{told}");
    }

    #[test]
    fn a_shorter_session_than_was_asked_for_shortens_the_lease() {
        let timing = seconds(15, 5, 3, 30);
        let s = Duration::from_secs;
        assert_eq!(timing.lease(s(30)), s(15));
        assert_eq!(timing.lease(s(20)), Duration::from_millis(9800));
        assert!(timing.suffices(s(20)) && !timing.suffices(s(10)));
    }
}
