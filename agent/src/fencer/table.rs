//! What the fencer stands by for, and what is to be done when. Pure: time is handed in, and nothing is allocated after
//! [`Table::new`].

use std::net::{Ipv4Addr, SocketAddr};

use super::{
    FENCE_FOR,
    wire::{Arm, EXPECT_AT_MOST, KEY_AT_MOST, Lease, ProcessId, SEND_AT_MOST},
};

/// How often a fence that holds is renewed, in nanoseconds.
const RENEW_AFTER: u64 = FENCE_FOR.as_nanos() as u64 / 2;
/// How long after a renewal failed it is tried again, in nanoseconds: the fence still holds.
const RENEW_AGAIN: u64 = 3_600_000_000_000;

/// A text of bounded length.
#[derive(Clone, Debug)]
struct Text<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Text<N> {
    const EMPTY: Self = Text { bytes: [0; N], len: 0 };

    fn set(&mut self, text: &[u8]) {
        self.len = text.len().min(N);
        self.bytes[..self.len].copy_from_slice(&text[..self.len]);
    }

    fn get(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// How a server stands. All times are of the monotonic clock, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Its lease runs, or it is no master.
    Fed,
    /// The fence is being sent.
    Fencing {
        /// Since when.
        since: u64,
        /// When it is killed if it has not answered.
        kill_at: u64,
        /// Until when an earlier fence holds.
        holds: Option<u64>,
    },
    /// It said that it is fenced.
    Fenced {
        /// When to fence it again.
        renew_at: u64,
        /// Until when the fence holds.
        holds: u64,
    },
    /// It was sent a kill.
    Killed {
        /// When to send it another.
        again_at: u64,
    },
}

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Connect to the server and send its fence.
    Fence(usize),
    /// Drop that connection, if there is one, and kill the process.
    Kill(usize),
}

/// A server.
#[derive(Clone, Debug)]
pub struct Entry {
    used: bool,
    key: Text<KEY_AT_MOST>,
    send: Text<SEND_AT_MOST>,
    expect: Text<EXPECT_AT_MOST>,
    within: u64,
    until: Option<u64>,
    /// Its process.
    pub process: ProcessId,
    /// Where it listens.
    pub address: SocketAddr,
    /// How it stands.
    pub phase: Phase,
}

impl Entry {
    const EMPTY: Self = Entry {
        used: false,
        key: Text::EMPTY,
        send: Text::EMPTY,
        expect: Text::EMPTY,
        within: 0,
        until: None,
        process: ProcessId { pid: 0, start_ticks: 0 },
        address: SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
        phase: Phase::Fed,
    };

    /// Its name.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        self.key.get()
    }

    /// What fences it.
    #[must_use]
    pub fn send(&self) -> &[u8] {
        self.send.get()
    }

    /// The reply that means it is fenced.
    #[must_use]
    pub fn expect(&self) -> &[u8] {
        self.expect.get()
    }

    fn deadline(&self) -> Option<u64> {
        match self.phase {
            Phase::Fed => self.until,
            Phase::Fencing { kill_at, .. } => Some(kill_at),
            Phase::Fenced { renew_at, .. } => Some(renew_at),
            Phase::Killed { again_at } => Some(again_at),
        }
    }

    /// A reply that is not known beforehand proves nothing.
    fn only_a_kill_helps(&self) -> bool {
        self.send().is_empty() || self.expect().is_empty()
    }

    fn fence(&mut self, index: usize, now: u64, kill_at: u64, holds: Option<u64>) -> Step {
        self.phase = Phase::Fencing { since: now, kill_at, holds };
        Step::Fence(index)
    }

    fn kill(&mut self, index: usize, now: u64) -> Step {
        self.phase = Phase::Killed { again_at: now.saturating_add(self.within) };
        Step::Kill(index)
    }
}

/// All servers.
#[derive(Debug)]
pub struct Table(Box<[Entry]>);

impl Table {
    /// Room for this many.
    #[must_use]
    pub fn new(room: usize) -> Table {
        Table(vec![Entry::EMPTY; room].into_boxed_slice())
    }

    /// Whether there is nothing to stand by for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|entry| !entry.used)
    }

    /// Where a server is.
    #[must_use]
    pub fn find(&self, key: &[u8]) -> Option<usize> {
        self.0.iter().position(|entry| entry.used && entry.key() == key)
    }

    /// A place for one more.
    #[must_use]
    pub fn free(&self) -> Option<usize> {
        self.0.iter().position(|entry| !entry.used)
    }

    /// What is known of a server.
    #[must_use]
    pub fn entry(&self, index: usize) -> Option<&Entry> {
        self.0.get(index).filter(|entry| entry.used)
    }

    /// Stands by for a server at this place. A lease and a fence that the same process has stay as they are, so that an
    /// agent that has only just begun loosens nothing.
    pub fn arm(&mut self, index: usize, arm: &Arm<'_>) {
        let Some(entry) = self.0.get_mut(index) else { return };
        if !entry.used || entry.process != arm.process {
            entry.until = None;
            entry.phase = Phase::Fed;
        }
        entry.used = true;
        entry.process = arm.process;
        entry.address = arm.address;
        entry.within = arm.within;
        entry.key.set(arm.key);
        entry.send.set(arm.send);
        entry.expect.set(arm.expect);
    }

    /// Notes a lease. One that has run out already releases nobody.
    pub fn lease(&mut self, index: usize, lease: Lease, now: u64) {
        let Some(entry) = self.0.get_mut(index) else { return };
        let until = match lease {
            Lease::Kept => return,
            Lease::AtMost(until) => {
                if entry.phase == Phase::Fed && entry.until.is_none() {
                    entry.until = Some(until);
                }
                return;
            }
            Lease::None => None,
            Lease::Until(until) => Some(until),
        };
        entry.until = until;
        if until.is_none_or(|until| until > now) {
            entry.phase = Phase::Fed;
        }
    }

    /// Stands by for it no longer.
    pub fn forget(&mut self, index: usize) {
        if let Some(entry) = self.0.get_mut(index) {
            entry.used = false;
        }
    }

    /// The next thing to do, or `None` when nothing is due. Ask until then.
    pub fn due(&mut self, now: u64) -> Option<Step> {
        let late = |entry: &Entry| entry.used && entry.deadline().is_some_and(|at| at <= now);
        let index = self.0.iter().position(late)?;
        let entry = &mut self.0[index];
        Some(match entry.phase {
            Phase::Fed if entry.only_a_kill_helps() => entry.kill(index, now),
            Phase::Fed => entry.fence(index, now, now.saturating_add(entry.within / 2), None),
            Phase::Fenced { holds, .. } => {
                entry.fence(index, now, holds.saturating_sub(entry.within), Some(holds))
            }
            Phase::Fencing { .. } | Phase::Killed { .. } => entry.kill(index, now),
        })
    }

    /// The server answered as expected, or it did not and will not.
    pub fn answered(&mut self, index: usize, as_expected: bool, now: u64) -> Option<Step> {
        let entry = self.0.get_mut(index).filter(|entry| entry.used)?;
        let Phase::Fencing { since, kill_at, holds } = entry.phase else { return None };
        match holds {
            _ if as_expected => {
                let (renew_at, holds) = (since + RENEW_AFTER, since + 2 * RENEW_AFTER);
                entry.phase = Phase::Fenced { renew_at, holds };
                None
            }
            Some(holds) if now < kill_at => {
                entry.phase = Phase::Fenced { renew_at: (now + RENEW_AGAIN).min(kill_at), holds };
                None
            }
            _ => Some(entry.kill(index, now)),
        }
    }

    /// When something is due if nothing happens.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        self.0.iter().filter(|entry| entry.used).filter_map(Entry::deadline).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const WITHIN: u64 = 3 * SECOND;

    fn arm(pid: u32, send: &'static [u8]) -> Arm<'static> {
        Arm {
            key: b"redis:1",
            process: ProcessId { pid, start_ticks: 1 },
            address: "127.0.0.1:1".parse().unwrap(),
            send,
            expect: b"+OK",
            within: WITHIN,
            lease: Lease::Kept,
        }
    }

    /// One server whose lease runs out at 10 s.
    fn leased(send: &'static [u8]) -> Table {
        let mut table = Table::new(2);
        table.arm(0, &arm(1, send));
        table.lease(0, Lease::Until(10 * SECOND), 0);
        table
    }

    fn phase(table: &Table) -> Phase {
        table.entry(0).unwrap().phase
    }

    #[test]
    fn no_lease_no_fence() {
        let mut table = Table::new(1);
        table.arm(0, &arm(1, b"PAUSE"));
        assert_eq!((table.due(u64::MAX), table.next_deadline()), (None, None));
        let mut table = leased(b"PAUSE");
        table.lease(0, Lease::None, SECOND);
        assert_eq!((table.due(u64::MAX), table.next_deadline()), (None, None));
    }

    #[test]
    fn a_lease_that_is_fed_never_ends() {
        let mut table = leased(b"PAUSE");
        for second in 1..100 {
            table.lease(0, Lease::Until((second + 10) * SECOND), second * SECOND);
            assert_eq!(table.due(second * SECOND), None);
        }
    }

    #[test]
    fn an_unfed_server_is_fenced_on_time_and_the_fence_renewed() {
        let mut table = leased(b"PAUSE");
        assert_eq!(table.due(10 * SECOND - 1), None);
        assert_eq!(table.next_deadline(), Some(10 * SECOND));
        assert_eq!(table.due(10 * SECOND), Some(Step::Fence(0)));
        assert_eq!(table.due(10 * SECOND), None);
        assert_eq!(table.answered(0, true, 11 * SECOND), None);
        let renewal = 10 * SECOND + RENEW_AFTER;
        assert_eq!(table.next_deadline(), Some(renewal));
        assert_eq!(table.due(renewal), Some(Step::Fence(0)));
        assert_eq!(table.answered(0, true, renewal), None);
        assert_eq!(table.next_deadline(), Some(renewal + RENEW_AFTER));
    }

    #[test]
    fn a_silent_server_is_killed_after_half_the_time_and_again() {
        let mut table = leased(b"PAUSE");
        table.due(10 * SECOND);
        assert_eq!(table.next_deadline(), Some(10 * SECOND + WITHIN / 2));
        assert_eq!(table.due(10 * SECOND + WITHIN / 2), Some(Step::Kill(0)));
        assert_eq!(table.due(10 * SECOND + WITHIN / 2), None);
        assert_eq!(table.due(10 * SECOND + WITHIN / 2 + WITHIN), Some(Step::Kill(0)));
    }

    #[test]
    fn a_server_that_answers_otherwise_is_killed_at_once() {
        let mut table = leased(b"PAUSE");
        table.due(10 * SECOND);
        assert_eq!(table.answered(0, false, 10 * SECOND + 5), Some(Step::Kill(0)));
    }

    #[test]
    fn a_server_without_a_fence_is_killed() {
        assert_eq!(leased(b"").due(10 * SECOND), Some(Step::Kill(0)));
    }

    #[test]
    fn a_renewal_that_fails_is_tried_again_for_as_long_as_the_fence_holds() {
        let mut table = leased(b"PAUSE");
        table.due(10 * SECOND);
        table.answered(0, true, 10 * SECOND);
        let mut tries = 0;
        let killed = loop {
            let now = table.next_deadline().unwrap();
            match table.due(now).unwrap() {
                Step::Fence(_) => tries += 1,
                Step::Kill(_) => break now,
            }
            if table.answered(0, false, now).is_some() {
                break now;
            }
        };
        assert_eq!(tries, 1 + RENEW_AFTER / RENEW_AGAIN);
        assert_eq!(killed, 10 * SECOND + 2 * RENEW_AFTER - WITHIN);
    }

    #[test]
    fn a_new_lease_releases_and_a_stale_one_does_not() {
        let mut table = leased(b"PAUSE");
        table.due(10 * SECOND);
        table.lease(0, Lease::Until(11 * SECOND), 11 * SECOND);
        assert!(matches!(phase(&table), Phase::Fencing { .. }));
        table.answered(0, true, 11 * SECOND);
        table.lease(0, Lease::Until(20 * SECOND), 12 * SECOND);
        assert_eq!((phase(&table), table.next_deadline()), (Phase::Fed, Some(20 * SECOND)));
        // The answer to a fence that was called off means nothing.
        table.due(20 * SECOND);
        table.lease(0, Lease::Until(30 * SECOND), 20 * SECOND);
        assert_eq!(table.answered(0, false, 21 * SECOND), None);
    }

    #[test]
    fn an_agent_that_has_only_begun_loosens_nothing() {
        let mut table = leased(b"PAUSE");
        table.arm(0, &arm(1, b"PAUSE"));
        assert_eq!(table.next_deadline(), Some(10 * SECOND));
        table.due(10 * SECOND);
        table.answered(0, true, 10 * SECOND);
        table.arm(0, &arm(1, b"PAUSE"));
        assert!(matches!(phase(&table), Phase::Fenced { .. }));
        table.arm(0, &arm(2, b"PAUSE"));
        assert_eq!((phase(&table), table.next_deadline()), (Phase::Fed, None));
    }

    #[test]
    fn a_grace_ends_no_later_than_the_lease_before_it() {
        let mut table = leased(b"PAUSE");
        table.lease(0, Lease::AtMost(20 * SECOND), SECOND);
        assert_eq!(table.next_deadline(), Some(10 * SECOND));
        table.due(10 * SECOND);
        table.lease(0, Lease::AtMost(20 * SECOND), 11 * SECOND);
        assert!(matches!(phase(&table), Phase::Fencing { .. }));
        let mut table = Table::new(1);
        table.arm(0, &arm(1, b"PAUSE"));
        table.lease(0, Lease::AtMost(20 * SECOND), SECOND);
        assert_eq!(table.next_deadline(), Some(20 * SECOND));
    }

    #[test]
    fn a_place_is_free_again() {
        let mut table = leased(b"PAUSE");
        assert_eq!((table.find(b"redis:1"), table.free()), (Some(0), Some(1)));
        table.forget(0);
        assert!(table.is_empty());
        assert_eq!((table.find(b"redis:1"), table.due(u64::MAX)), (None, None));
    }
}
