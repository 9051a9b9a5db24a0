//! The orders to its server, one after another, and what is seen of it.

use std::time::{Duration, Instant};

use super::{HEIRS_FOR, Life, Member, Order, Ordered, Stage, Timing, View};
use crate::core::failover::Command;

/// A target of a handover looks this often whether it has all data.
const HANDOVER_LOOK: Duration = Duration::from_millis(2);

impl Member {
    /// Gives an order, after the one that is under way.
    pub(super) fn order(&mut self, order: Order) {
        if self.running.is_none() {
            return self.send(order);
        }
        // What it wants now is the contrary of what waits, or the same.
        self.queued.retain(|waiting| !waiting.is_about_what(&order));
        self.queued.push_back(order);
    }

    fn send(&mut self, order: Order) {
        let long = self.time_for(&order);
        if long.is_zero() {
            // Its lease is over: it is about to be fenced.
            return;
        }
        match order {
            Order::Inspect => self.asked_at = self.now.at,
            Order::Fence { .. } | Order::Unfence { .. } => self.guard = None,
            // Whether it is one is seen afterwards, not from before; it is not to take writes yet.
            Order::Promote => (self.view, self.guard) = (None, None),
            _ => {}
        }
        self.fenced_meanwhile = false;
        self.running = Some(order.clone());
        let until = self.now.at + long;
        self.out.push(Command::Order { order, until });
    }

    /// How long an order may take. A fence that comes late is no fence: what is left of its time goes to the kill. To
    /// take writes comes too late when the lease is over: the fence is up by then, and nobody would put it up again.
    fn time_for(&self, order: &Order) -> Duration {
        let Timing { order: limit, fence, .. } = self.plan.timing;
        match order {
            Order::Inspect | Order::Follow { .. } => limit,
            Order::Fence { .. } => limit.min(fence / 2),
            Order::Promote | Order::Unfence { .. } if self.stage.needs_lease() => {
                let left = |ends: Instant| ends.saturating_duration_since(self.now.at);
                limit.min(self.lease_ends().map_or(Duration::ZERO, left))
            }
            Order::Promote | Order::Unfence { .. } => limit,
        }
    }

    pub(super) fn is_ordered(&self, order: &Order) -> bool {
        self.running.as_ref() == Some(order) || self.queued.contains(order)
    }

    pub(super) fn take_ordered(&mut self, ordered: Ordered) {
        let Some(order) = self.running.take() else { return };
        match (&order, ordered) {
            (Order::Inspect, Ordered::Done(Some(view))) => self.take_view(*view),
            (Order::Inspect, _) => (self.view, self.unheard_since) = (None, None),
            (Order::Promote, Ordered::Done(_)) => {
                (self.heirs_since, self.reluctant) = (self.now.at, None);
                self.order(Order::Inspect);
            }
            (Order::Promote, ordered) => self.promotion_failed(&ordered),
            (Order::Follow { .. }, ordered) => self.followed(&ordered),
            (Order::Fence { .. }, ordered) => self.fenced(&ordered),
            (Order::Unfence { min_replicas }, ordered) => self.unfenced(*min_replicas, &ordered),
        }
        while self.running.is_none()
            && let Some(next) = self.queued.pop_front()
        {
            self.send(next);
        }
    }

    fn take_view(&mut self, view: View) {
        if self.life == Life::Dead {
            return;
        }
        self.view_at = self.asked_at;
        self.blind = None;
        self.last_figures = Some((view.offset, view.keys));
        self.tell_resync(&view);
        self.view = Some(view);
        if self.unarmed.is_some_and(|since| self.now.at >= since + HEIRS_FOR) {
            self.tell_unarmed();
        }
        self.mark_offset();
        self.extend_failsafe();
        self.meet_an_unknown_master();
    }

    /// Looks at its server when it is time.
    pub(super) fn look(&mut self) {
        if self.is_to_look(self.now.at) {
            self.next_look = self.now.at + self.cadence();
            self.send(Order::Inspect);
        }
    }

    /// Whether it is time to look at its server.
    pub fn is_to_look(&self, now: Instant) -> bool {
        self.life == Life::Up && self.running.is_none() && self.look_at() <= now
    }

    /// Whether it looks along when another member of the host does, so that the host wakes up once for many: it would
    /// look within a beat, and last looked half of [`Timing::check`] ago or more.
    pub fn looks_along(&self, now: Instant) -> bool {
        let Timing { beat, check, .. } = self.plan.timing;
        self.asked_at + check / 2 <= now && self.is_to_look(now + beat)
    }

    /// Looks at its server with the next step.
    pub fn look_now(&mut self, now: Instant) {
        self.next_look = self.next_look.min(now);
    }

    /// When to look at its server next: in time before a lease ends, for only who sees all its replicas outlives it.
    pub(super) fn look_at(&self) -> Instant {
        let beat = self.plan.timing.beat;
        let ends = self
            .lease_ends()
            .filter(|_| self.stage == Stage::Leading || self.grace_until.is_some())
            .and_then(|at| at.checked_sub(beat * 2));
        ends.map_or(self.next_look, |ends| self.next_look.min(ends.max(self.asked_at + beat / 2)))
    }

    /// How often it looks at its server.
    fn cadence(&self) -> Duration {
        let beat = self.plan.timing.beat;
        match &self.stage {
            Stage::Following if self.is_taking_over() => HANDOVER_LOOK,
            Stage::Following if self.view.is_some() && self.is_settled() => self.plan.timing.check,
            Stage::Leading if self.has_all_replicas() && !self.is_alone() => self.plan.timing.check,
            _ => beat,
        }
    }
}
