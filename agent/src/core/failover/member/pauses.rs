//! Pauses: an operator wants nothing to be switched, in a shard or on a host.

use std::time::{Duration, Instant};

use super::{
    Member, VERSION, encode,
    knowledge::{Asked, Slot},
};
use crate::{
    core::{alert::Severity, failover::PauseNode},
    shell::registry::{Found, Mode, Node, Request},
};

/// No pause is longer, whatever a node says.
const LONGEST: Duration = Duration::from_secs(366 * 86_400);

/// Where nothing is to be switched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// In the shard.
    Shard,
    /// To this host.
    Host,
}

impl Scope {
    pub(super) fn of(host: bool) -> Scope {
        if host { Scope::Host } else { Scope::Shard }
    }
}

/// A pause as it was read.
#[derive(Debug, Default)]
pub(super) struct Pause {
    pub(super) slot: Slot<PauseNode>,
    /// Which one it is, by when it was written, and when it was first seen: its end counts from then.
    seen: Option<(u64, Instant)>,
}

impl Pause {
    fn take(&mut self, found: Option<Found>, now: Instant) {
        self.slot.take(found);
        let since = self.slot.content().map(|pause| pause.since_ms);
        let before = self.seen.filter(|(before, _)| Some(*before) == since);
        self.seen = since.map(|since| before.unwrap_or((since, now)));
    }

    fn ends(&self) -> Option<Instant> {
        let (pause, (_, seen)) = (self.slot.content()?, self.seen?);
        Some(seen + Duration::from_millis(pause.for_ms).min(LONGEST))
    }
}

impl Member {
    fn pause(&self, scope: Scope) -> &Pause {
        match scope {
            Scope::Shard => &self.know.pause,
            Scope::Host => &self.know.host_pause,
        }
    }

    pub(super) fn pause_read(&mut self, scope: Scope, found: Option<Found>) {
        let now = self.now.at;
        match scope {
            Scope::Shard => self.know.pause.take(found, now),
            Scope::Host => return self.know.host_pause.take(found, now),
        }
        match self.know.pause.slot.content().cloned() {
            Some(pause) => {
                let minutes = pause.for_ms as f64 / 60_000.0;
                let text = format!("no switching for {minutes:.1} min, by {}: {}", pause.by, pause.reason);
                self.fire("shard-paused", Severity::Info, &text);
            }
            None => self.resolve("shard-paused", "the pause is over"),
        }
    }

    pub(super) fn is_paused(&self, scope: Scope) -> bool {
        self.pause_ends(scope).is_some_and(|at| self.now.at < at)
    }

    pub(super) fn pause_ends(&self, scope: Scope) -> Option<Instant> {
        self.pause(scope).ends()
    }

    /// Whoever sees one end removes it; that it is gone already is as well.
    pub(super) fn end_pauses(&mut self) {
        for scope in [Scope::Shard, Scope::Host] {
            let over = self.pause_ends(scope).is_some_and(|at| self.now.at >= at);
            let known = self.connected && self.pause(scope).slot.fresh;
            if !over || !known || self.is_asked(&Asked::PutPause(scope)) {
                continue;
            }
            let pause = match scope {
                Scope::Shard => &mut self.know.pause,
                Scope::Host => &mut self.know.host_pause,
            };
            let version = pause.slot.seen.take().map_or(-1, |seen| seen.version);
            self.remove_pause(scope, version);
        }
    }

    fn remove_pause(&mut self, scope: Scope, version: i32) {
        let asked = Asked::PutPause(scope);
        let path = self.path_of(&asked);
        self.request(asked, Request::Delete { path, version });
    }

    pub(super) fn accept_pause(
        &mut self,
        long: Duration,
        reason: String,
        scope: Scope,
    ) -> Result<(), String> {
        if !self.connected {
            return Err("there is no connection to the registry".to_owned());
        }
        let pause = PauseNode {
            v: VERSION,
            for_ms: u64::try_from(long.as_millis()).unwrap_or(u64::MAX),
            since_ms: self.now.unix_ms,
            reason,
            by: self.plan.address.clone(),
        };
        let asked = Asked::PutPause(scope);
        let (path, content) = (self.path_of(&asked), encode(&pause));
        let request = match &self.pause(scope).slot.seen {
            None => Request::Create { path, node: Node { mode: Mode::Persistent, content } },
            Some(seen) => Request::Write { path, content, version: seen.version },
        };
        self.request(asked, request);
        Ok(())
    }

    pub(super) fn accept_resume(&mut self, scope: Scope) -> Result<(), String> {
        if self.pause(scope).slot.seen.is_none() {
            return Err("it is not paused".to_owned());
        }
        if !self.connected {
            return Err("there is no connection to the registry".to_owned());
        }
        self.remove_pause(scope, -1);
        Ok(())
    }
}
