//! How an instance dies and is repaired: by a kill for hanging, a crash, or before its first answer.

use super::*;

impl Instance {
    /// Kills it for hanging, if the storm guard allows it.
    pub(super) fn try_kill(&mut self, why: String, fault: Instant, ctx: &mut Context<'_>) {
        if !ctx.storm.allow(ctx.now.at, self.id, ctx.total) {
            return self.spare(why, ctx);
        }
        if let State::Suspect { since, first_miss, .. } = self.state
            && first_miss.saturating_duration_since(since) >= STEADY
        {
            self.row = 0;
        }
        let text = format!("{} (pid {}) hangs and is killed: {why}", self.name, self.pid.unwrap_or(Pid(0)));
        ctx.fire(self.key("instance-hung"), Severity::Critical, text);
        ctx.actions.push(Action::Kill { id: self.id });
        self.fault.get_or_insert(fault);
        self.why = why;
        self.enter(State::Killed { since: ctx.now.at, told: false }, ctx.now);
    }

    /// It would be killed, but too many were already: it is asked again at the usual pace.
    pub(super) fn spare(&mut self, why: String, ctx: &mut Context<'_>) {
        let key = self.key("instance-spared");
        if !ctx.alerts.is_active(&key) {
            let text = format!(
                "{} hangs ({why}) and is spared: a quarter of the host was killed already",
                self.name
            );
            ctx.fire(key, Severity::Critical, text);
        }
        if !ctx.alerts.is_active("storm-guard") {
            let text = "more than a quarter of the host's instances hang at once: the rest is spared for now";
            ctx.fire("storm-guard".to_owned(), Severity::Critical, text.to_owned());
        }
        let next = ctx.now.at + ctx.probing.interval;
        self.state = match self.state {
            State::Suspect { since, first_miss, misses, talk, .. } => {
                State::Suspect { since, first_miss, misses, talk, retry: next }
            }
            State::Booting { since, .. } => {
                self.converse(Talk::Light, ctx);
                State::Booting { since, next, pause: ctx.probing.interval }
            }
            other => other,
        };
    }

    pub(in crate::core) fn exited(&mut self, how: &str, ctx: &mut Context<'_>) {
        self.pid = None;
        self.running = None;
        self.health = None;
        self.unstuck = false;
        self.recovered_at = None;
        self.dirty = true;
        match self.state {
            State::Stopping { .. } => {
                ctx.log(Level::Info, format!("{} ended ({how})", self.name));
                self.enter(State::Stopped, ctx.now);
            }
            State::Killed { .. } => self.restart(ctx),
            State::Booting { .. } => self.died_young(how, ctx),
            State::Up { since } | State::Suspect { since, .. } => self.crashed(since, how, ctx),
            State::Unattended => {
                self.fault.get_or_insert(ctx.now.at);
                let text = format!("{} died ({how}) and is not started: {}", self.name, self.why);
                ctx.fire(self.key("instance-crashed"), Severity::Critical, text);
            }
            State::Planned
            | State::Spawning { .. }
            | State::Backoff { .. }
            | State::Parked
            | State::Stopped => {}
        }
    }

    pub(super) fn crashed(&mut self, since: Instant, how: &str, ctx: &mut Context<'_>) {
        let text = format!("{} died ({how})", self.name);
        ctx.fire(self.key("instance-crashed"), Severity::Critical, text);
        self.why = format!("died ({how})");
        self.fault = Some(ctx.now.at);
        if ctx.now.at.duration_since(since) >= STEADY || self.is_forgiven(ctx.now.at) {
            self.row = 0;
        }
        ctx.actions.push(Action::AskLastWords { id: self.id });
        self.restart(ctx);
    }

    /// Whether a server that served, if only shortly, is repaired at once: a leaky bucket of deaths.
    pub(super) fn is_forgiven(&mut self, now: Instant) -> bool {
        let debt = self.debt.max(now) + STEADY;
        let forgiven = debt <= now + STEADY * FORGIVEN;
        if forgiven {
            self.debt = debt;
        }
        forgiven
    }

    pub(super) fn died_young(&mut self, how: &str, ctx: &mut Context<'_>) {
        let text = format!("{} died before it answered ({how})", self.name);
        ctx.log(Level::Error, text.clone());
        self.why = format!("died before it answered ({how})");
        self.fault.get_or_insert(ctx.now.at);
        // The alert waits for its last words, which say more than an exit status.
        self.mourned = Some(text);
        ctx.actions.push(Action::AskLastWords { id: self.id });
        self.restart(ctx);
    }

    /// What it last wrote is known; empty where it wrote nothing.
    pub(in crate::core) fn last_words(&mut self, text: &str, ctx: &mut Context<'_>) {
        let words = if text.is_empty() { String::new() } else { format!("; it last wrote: {text}") };
        if let State::Backoff { .. } | State::Spawning { .. } = self.state {
            self.why.push_str(&words);
        }
        match self.mourned.take() {
            Some(died) if !matches!(self.state, State::Up { .. }) => {
                let text = format!("{died}{words}");
                ctx.fire(self.key("instance-cannot-start"), Severity::Critical, text);
            }
            _ if text.is_empty() => {}
            _ => ctx.log(Level::Error, format!("{} last wrote: {text}", self.name)),
        }
    }

    pub(super) fn restart(&mut self, ctx: &mut Context<'_>) {
        self.row += 1;
        self.restarts += 1;
        if self.row == 1 {
            return self.start(ctx);
        }
        let until = ctx.now.at + self.backoff();
        self.enter(State::Backoff { until }, ctx.now);
    }

    /// The pause before the next start: exponential, capped, with up to a quarter of jitter that depends on the
    /// instance and the number of its deaths alone.
    pub(super) fn backoff(&self) -> Duration {
        let doublings = self.row.saturating_sub(2).min(16);
        let pause = (BACKOFF_FIRST * (1 << doublings)).min(BACKOFF_LONGEST);
        let mut seed = u64::from(self.id.port) << 32 | u64::from(self.row);
        seed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let quarter = u32::try_from((seed ^ (seed >> 27)) & 0xff).unwrap_or(0);
        pause - pause / 4 * quarter / 255
    }
}
