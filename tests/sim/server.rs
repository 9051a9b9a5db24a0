//! A model of a cache server's process: when it answers, what, and what is wrong with it.

use yagent::{
    core::{Pid, ProcessState, Sample},
    plugin::Health,
};

use crate::world::Micros;

/// What keeps a server from answering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mute {
    /// It runs and says nothing.
    Hung,
    /// SIGSTOP.
    Stopped,
    /// It does not accept and closes what is open.
    Refuses,
}

#[derive(Clone, Debug)]
pub(crate) struct Server {
    pub(crate) engine: String,
    pub(crate) port: u16,
    pub(crate) pid: Pid,
    pub(crate) born: Micros,
    /// It answers from then on.
    pub(crate) ready: Micros,
    /// Its answer is "loading" until then.
    pub(crate) loads_until: Micros,
    pub(crate) mute: Option<(Mute, Micros)>,
    /// When it last ceased to be mute.
    pub(crate) spoke_again: Option<Micros>,
    /// It answers, but does not serve, until then.
    pub(crate) ill: Option<(Health, Micros)>,
    /// How often it was asked to end what keeps it busy, in this illness.
    pub(crate) unstuck: u32,
    /// When its first answer came to the core.
    pub(crate) answered: Option<Micros>,
    /// When it got SIGTERM.
    pub(crate) asked_to_end: Option<Micros>,
    /// It got SIGKILL.
    pub(crate) killed: bool,
    pub(crate) gets: u64,
}

impl Server {
    pub(crate) fn new(engine: &str, port: u16, pid: Pid, born: Micros) -> Server {
        Server {
            engine: engine.to_owned(),
            port,
            pid,
            born,
            ready: born,
            loads_until: born,
            mute: None,
            spoke_again: None,
            ill: None,
            unstuck: 0,
            answered: None,
            asked_to_end: None,
            killed: false,
            gets: 0,
        }
    }

    /// What its answer to a probe means.
    pub(crate) fn health(&self, now: Micros) -> Health {
        match self.ill {
            Some((health, until)) if now < until => health,
            _ if now < self.loads_until => Health::Loading,
            _ => Health::Serving,
        }
    }

    pub(crate) fn evidence(&self) -> ProcessState {
        match self.mute {
            Some((Mute::Stopped, _)) => ProcessState::Stopped,
            _ => ProcessState::Alive,
        }
    }

    pub(crate) fn sample(&mut self, now: Micros) -> Sample {
        self.gets += 7;
        Sample {
            gets: Some(self.gets),
            hits: Some(self.gets / 2),
            keys: self.gets,
            limit_bytes: 64 << 20,
            uptime_s: (now - self.born) as f64 / 1e6,
            ..Sample::default()
        }
    }

    /// The host stood still for so long: so did the server.
    pub(crate) fn froze(&mut self, now: Micros, stood: Micros) {
        for at in [&mut self.ready, &mut self.loads_until] {
            if *at > now {
                *at += stood;
            }
        }
    }
}
