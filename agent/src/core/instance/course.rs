//! How an instance is started or adopted, and how it ends when it is asked to.

use super::*;

impl Instance {
    /// Starts it, or adopts it where it runs already.
    pub(in crate::core) fn start(&mut self, ctx: &mut Context<'_>) {
        if let Some(why) = self.unattended.clone() {
            self.running = None;
            self.health = None;
            self.why = why;
            self.enter(State::Unattended, ctx.now);
            ctx.actions.push(Action::Adopt { id: self.id });
            return;
        }
        self.maxmem = self.planned_maxmem;
        self.enter(State::Spawning { since: ctx.now.at, told: false }, ctx.now);
        ctx.actions.push(if self.surplus {
            Action::Adopt { id: self.id }
        } else {
            Action::Start { id: self.id, known: self.known, follow: None }
        });
    }

    pub(in crate::core) fn started(&mut self, pid: Pid, adopted: Option<Duration>, ctx: &mut Context<'_>) {
        self.pid = Some(pid);
        self.known = true;
        self.dirty = true;
        if let State::Stopping { .. } = self.state {
            return self.terminate(ctx);
        }
        if self.surplus {
            return self.stop(ctx);
        }
        if self.state == State::Unattended {
            ctx.log(Level::Warn, format!("{} runs as pid {pid} and is left alone: {}", self.name, self.why));
            return;
        }
        if adopted.is_none() {
            self.stats.restarted();
        }
        match adopted {
            Some(age) if age >= ctx.probing.start_timeout => {
                ctx.log(Level::Info, format!("{} adopted: pid {pid}", self.name));
                self.enter(State::Up { since: ctx.now.at }, ctx.now);
                self.next_probe = ctx.now.at;
                self.next_check = self.first_check(ctx);
                self.sample = Sampling::Now;
                self.fault = None;
                let text = format!("{} runs: pid {pid}", self.name);
                self.settle(&text, ctx);
            }
            _ => {
                let how = if adopted.is_some() { "adopted" } else { "started" };
                ctx.log(Level::Info, format!("{} {how}: pid {pid}", self.name));
                let since = ctx.now.at - adopted.unwrap_or_default().min(ctx.probing.start_timeout);
                let state = State::Booting { since, next: ctx.now.at, pause: BOOT_PAUSE_FIRST };
                self.enter(state, ctx.now);
            }
        }
        self.tick(ctx);
    }

    /// Full probes of a host's instances are spread over the interval.
    pub(super) fn first_check(&self, ctx: &Context<'_>) -> Instant {
        let steps = (ctx.probing.check_interval.as_millis() / ctx.probing.interval.as_millis().max(1)).max(1);
        let step = u128::from(self.ordinal) % steps;
        ctx.now.at + ctx.probing.interval * u32::try_from(step).unwrap_or(0)
    }

    /// It was not started. Returns whether the port is to be given up for the next one.
    pub(in crate::core) fn not_started(&mut self, why: NotStarted, ctx: &mut Context<'_>) -> bool {
        if self.state == State::Unattended {
            ctx.log(Level::Warn, format!("{} is not there and not started: {}", self.name, self.why));
            return false;
        }
        if matches!(self.state, State::Stopping { .. }) || matches!(why, NotStarted::Gone) {
            self.enter(State::Stopped, ctx.now);
            return false;
        }
        match why {
            NotStarted::Gone => false,
            NotStarted::PortTaken(holder) => {
                self.enter(State::Parked, ctx.now);
                self.resolve_all(ctx);
                self.why = format!("port {} is held by {holder}", self.id.port);
                let text = format!("{} is skipped: its port is held by {holder}", self.name);
                ctx.fire(self.key("port-taken"), Severity::Warning, text);
                true
            }
            NotStarted::Unrecorded(holder) => {
                self.enter(State::Parked, ctx.now);
                self.why = format!("it is more than the plan holds: {holder}");
                let text = format!("{} is more than the plan holds and is left alone: {holder}", self.name);
                ctx.fire(self.key("instance-surplus"), Severity::Warning, text);
                false
            }
            NotStarted::Failed(why) => {
                self.row += 1;
                self.why = why.clone();
                let text = format!("{} cannot be started: {why}", self.name);
                ctx.fire(self.key("instance-cannot-start"), Severity::Critical, text);
                let until = ctx.now.at + self.backoff().max(Duration::from_secs(1));
                self.enter(State::Backoff { until }, ctx.now);
                false
            }
        }
    }

    /// Ends it for good.
    pub(in crate::core) fn stop(&mut self, ctx: &mut Context<'_>) {
        self.running = None;
        match self.state {
            State::Planned | State::Backoff { .. } | State::Parked => self.enter(State::Stopped, ctx.now),
            // Without a process yet: `started` asks it to end as soon as there is one.
            State::Spawning { .. } if self.pid.is_none() => {
                self.enter(State::Stopping { since: ctx.now.at, killed: false, told: false }, ctx.now);
            }
            State::Unattended if self.pid.is_none() => self.enter(State::Stopped, ctx.now),
            State::Spawning { .. }
            | State::Booting { .. }
            | State::Up { .. }
            | State::Suspect { .. }
            | State::Killed { .. }
            | State::Unattended => {
                ctx.log(Level::Info, format!("{} is asked to end", self.name));
                self.terminate(ctx);
            }
            State::Stopping { .. } | State::Stopped => {}
        }
    }

    /// Its alerts end with it.
    pub(in crate::core) fn resolve_all(&mut self, ctx: &mut Context<'_>) {
        self.broken = None;
        let text = format!("{} is no longer run here", self.name);
        for what in ALERTS {
            ctx.resolve(&self.key(what), &text);
        }
    }
}
