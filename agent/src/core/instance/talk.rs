//! What an instance says: answers, samples, misses, and what cannot be understood.

use super::*;

impl Instance {
    pub(in crate::core) fn ended(&mut self, talk: Talk, outcome: Outcome, ctx: &mut Context<'_>) {
        let Some(running) = self.running.filter(|running| running.talk == talk) else { return };
        self.running = None;
        match outcome {
            Outcome::Answered { health, why } => self.answered(talk, health, why, ctx),
            Outcome::Sampled { sample, others, version } => self.sampled(&sample, others, version, ctx),
            Outcome::Missed { why, process } => self.missed(running, why, process, ctx),
            Outcome::Failed { why } => self.failed(talk, why, ctx),
            Outcome::Hindered { why } => self.hindered(&why, ctx),
            // Orders are no business of an instance's; see `shards`.
            Outcome::Obeyed(_) | Outcome::Unsupported => {}
        }
        if self.running.is_none() {
            self.tick(ctx);
        }
    }

    pub(super) fn answered(&mut self, talk: Talk, health: Health, why: String, ctx: &mut Context<'_>) {
        self.understood(talk, ctx);
        ctx.resolve(HINDERED, "instances can be asked again");
        match self.state {
            State::Booting { .. } => self.came_up(health, ctx),
            _ => self.recover(ctx),
        }
        self.judge(talk, health, why, ctx);
    }

    /// An answer clears a suspicion.
    pub(super) fn recover(&mut self, ctx: &mut Context<'_>) {
        if let State::Suspect { since, misses, .. } = self.state {
            ctx.log(Level::Info, format!("{} answers again after {misses} missed probes", self.name));
            ctx.resolve(&self.key("instance-spared"), &format!("{} answers again", self.name));
            self.enter(State::Up { since }, ctx.now);
            self.next_probe = self.grid(ctx);
            self.fault = None;
        }
    }

    /// Its backend did what it should; one that fails at samples alone is not healed by a probe.
    pub(super) fn understood(&mut self, talk: Talk, ctx: &mut Context<'_>) {
        let same_hook = |broken: Talk| (broken == Talk::Sample) == (talk == Talk::Sample);
        if self.broken.is_some_and(|broken| same_hook(broken) || !ctx.sampling) {
            self.broken = None;
            ctx.resolve(&self.key("plugin-error"), &format!("{} is understood again", self.name));
        }
    }

    /// What was wrong with its process is over.
    pub(super) fn settle(&mut self, text: &str, ctx: &mut Context<'_>) {
        for what in REPAIRED {
            ctx.resolve(&self.key(what), text);
        }
        self.recovered_at = Some(ctx.now.at + RECOVERED);
    }

    pub(super) fn came_up(&mut self, health: Health, ctx: &mut Context<'_>) {
        self.slow_starts = 0;
        self.enter(State::Up { since: ctx.now.at }, ctx.now);
        self.why.clear();
        self.next_probe = self.grid(ctx);
        self.next_check = self.first_check(ctx) + ctx.probing.interval;
        self.sample = Sampling::Now;
        let Some(fault) = self.fault.take() else {
            let text = format!("{} is up", self.name);
            return self.settle(&text, ctx);
        };
        let took = ctx.now.at.duration_since(fault);
        self.last_repair = Some(took);
        let loading = if health == Health::Loading { ", still loading its data" } else { "" };
        let text = format!(
            "{} restarted and answering after {:.1} ms{loading}",
            self.name,
            took.as_secs_f64() * 1000.0
        );
        self.settle(&text, ctx);
        ctx.fire(self.key("instance-restarted"), Severity::Info, text);
    }

    /// Takes note of what an answer means; a change is told once.
    pub(super) fn judge(&mut self, talk: Talk, health: Health, why: String, ctx: &mut Context<'_>) {
        if health == Health::Busy && !self.unstuck && talk != Talk::Unstick {
            self.unstuck = true;
            ctx.log(Level::Warn, format!("{} is busy ({why}): asked to end what it does", self.name));
            self.converse(Talk::Unstick, ctx);
        }
        self.why = if health == Health::Serving { String::new() } else { why };
        if self.health == Some(health) {
            return;
        }
        self.health = Some(health);
        self.dirty = true;
        let key = self.key("instance-unhealthy");
        match health {
            Health::Serving => {
                self.unstuck = false;
                ctx.resolve(&key, &format!("{} serves again", self.name));
            }
            Health::Loading => {}
            Health::Busy | Health::Full | Health::Refused | Health::Wrong => {
                let text = format!("{} answers but does not serve: {}", self.name, self.why);
                ctx.fire(key, Severity::Warning, text);
            }
        }
    }

    pub(super) fn sampled(
        &mut self,
        sample: &crate::core::stats::Sample,
        others: crate::core::stats::Others,
        version: String,
        ctx: &mut Context<'_>,
    ) {
        self.understood(Talk::Sample, ctx);
        self.recover(ctx);
        self.stats.record(ctx.now.at, ctx.now.unix_ms, sample);
        if let Some(dropped) = self.stats.carry(others) {
            let (many, long) = (OTHERS_AT_MOST, OTHER_NAME_AT_MOST);
            let rule = format!("an instance has {many} names of its own, of {long} bytes, at most");
            ctx.log(Level::Warn, format!("{}: {dropped} figures are not carried on: {rule}", self.name));
        }
        if !version.is_empty() && version != self.version {
            self.version = version;
            self.dirty = true;
        }
        if self.next_info.is_none() {
            self.next_info = Some(ctx.now.at);
        }
    }

    /// A backend that fails says nothing of the server: nothing is counted against it.
    pub(super) fn failed(&mut self, talk: Talk, why: String, ctx: &mut Context<'_>) {
        self.broken = Some(talk);
        let key = self.key("plugin-error");
        if !ctx.alerts.is_active(&key) {
            ctx.fire(key, Severity::Warning, format!("{}: the backend failed: {why}", self.name));
        }
        self.excuse(ctx);
    }

    /// The agent itself lacks something; that is no reason to kill anybody.
    pub(super) fn hindered(&mut self, why: &str, ctx: &mut Context<'_>) {
        if !ctx.alerts.is_active(HINDERED) {
            let text = format!("instances cannot be asked, for want of something of the agent's own: {why}");
            ctx.fire(HINDERED.to_owned(), Severity::Critical, text);
        }
        self.excuse(ctx);
    }

    /// It was not asked, or not understood: that counts as nothing, and it is asked again at the usual pace.
    pub(super) fn excuse(&mut self, ctx: &mut Context<'_>) {
        match self.state {
            State::Booting { pause, .. } => {
                self.state = State::Booting { since: ctx.now.at, next: ctx.now.at, pause };
                self.wait_booting(ctx);
            }
            // What it did meanwhile is not known: its misses are no row any more.
            State::Suspect { since, talk, .. } => {
                let retry = ctx.now.at + ctx.probing.interval;
                self.state = State::Suspect { since, first_miss: ctx.now.at, misses: 0, talk, retry };
            }
            _ => {}
        }
    }

    pub(super) fn missed(
        &mut self,
        running: Running,
        why: String,
        process: ProcessState,
        ctx: &mut Context<'_>,
    ) {
        if let State::Booting { .. } = self.state {
            return self.wait_booting(ctx);
        }
        // A miss that comes early (refused, closed) takes as long as one that waited.
        let retry = ctx.now.at.max(running.begun + ctx.probing.timeout);
        let talk = if running.talk == Talk::Full { Talk::Full } else { Talk::Light };
        let (since, first_miss, misses) = match self.state {
            State::Up { since } => (since, running.begun, 0),
            State::Suspect { since, first_miss, misses, .. } => (since, first_miss, misses),
            _ => return,
        };
        if ctx.late.is_some_and(|late| running.begun <= late) {
            ctx.log(
                Level::Warn,
                format!("{} missed a probe while the host stood still: not counted", self.name),
            );
            return self.enter(State::Suspect { since, first_miss, misses, talk, retry }, ctx.now);
        }
        let misses = misses + 1;
        self.enter(State::Suspect { since, first_miss, misses, talk, retry }, ctx.now);
        self.why = why;
        let stopped = process == ProcessState::Stopped;
        let text = format!("{} missed probe {misses} of {}: {}", self.name, ctx.probing.failures, self.why);
        ctx.log(Level::Warn, if stopped { format!("{text}; the process is stopped") } else { text });
        if stopped || misses >= ctx.probing.failures {
            let why = if stopped { "its process is stopped".to_owned() } else { self.why.clone() };
            self.try_kill(why, first_miss, ctx);
        }
    }

    pub(super) fn wait_booting(&mut self, ctx: &mut Context<'_>) {
        if let State::Booting { since, pause, .. } = self.state {
            let next = ctx.now.at + pause;
            let pause = (pause + pause / 2).min(BOOT_PAUSE_LONGEST);
            self.state = State::Booting { since, next, pause };
        }
    }
}
