//! Which addresses to try, in which order. Names are resolved in a thread of their own, for a resolver may hang; what
//! it does not answer in time is tried at its last known addresses.

use std::{
    collections::VecDeque,
    mem,
    net::{SocketAddr, ToSocketAddrs},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use super::pace::Chance;
use crate::shell::waker::Waker;

/// How long a round waits for names.
const PATIENCE: Duration = Duration::from_secs(2);
const DEFAULT_PORT: u16 = 2181;

#[derive(Debug)]
struct Host {
    name: String,
    addresses: Vec<SocketAddr>,
    literal: bool,
}

impl Host {
    fn new(server: &str) -> Host {
        let name = match server.rsplit_once(':') {
            Some((_, port)) if port.parse::<u16>().is_ok() => server.to_owned(),
            _ => format!("{server}:{DEFAULT_PORT}"),
        };
        let literal = name.parse().ok();
        Host { name, addresses: literal.into_iter().collect(), literal: literal.is_some() }
    }
}

/// What a resolver thread leaves behind.
#[derive(Debug, Default)]
struct Job {
    found: Mutex<Vec<(String, Vec<SocketAddr>)>>,
}

/// Where a round stands.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Try this one.
    Address(SocketAddr),
    /// Names are being resolved; ask again at the wake-up, at the latest then.
    Wait(Instant),
    /// The round is over.
    Over,
}

/// The ensemble's hosts.
#[derive(Debug)]
pub(super) struct Hosts {
    hosts: Vec<Host>,
    queue: VecDeque<SocketAddr>,
    /// The running resolver; there is never a second one, so a resolver that hangs costs one thread.
    job: Option<Arc<Job>>,
    waiting_until: Option<Instant>,
    chance: Chance,
    waker: Waker,
}

impl Hosts {
    /// The servers as the settings name them; `waker` is woken when names have been resolved.
    pub(super) fn new(servers: &[String], waker: Waker) -> Hosts {
        Hosts {
            hosts: servers.iter().map(|server| Host::new(server)).collect(),
            queue: VecDeque::new(),
            job: None,
            waiting_until: None,
            chance: Chance::default(),
            waker,
        }
    }

    /// Begins a round: asks for names again, as addresses change.
    pub(super) fn begin(&mut self, now: Instant) {
        self.collect();
        let names: Vec<String> =
            self.hosts.iter().filter(|host| !host.literal).map(|host| host.name.clone()).collect();
        if !names.is_empty() && self.job.is_none() {
            self.resolve(names);
        }
        self.waiting_until = Some(if self.job.is_some() { now + PATIENCE } else { now });
    }

    /// The next address of the round.
    pub(super) fn next(&mut self, now: Instant) -> Next {
        self.collect();
        match self.waiting_until {
            Some(until) if self.job.is_some() && now < until => return Next::Wait(until),
            Some(_) => self.fill(),
            None => {}
        }
        self.waiting_until = None;
        self.queue.pop_front().map_or(Next::Over, Next::Address)
    }

    /// A random wait's chance.
    pub(super) fn chance(&mut self) -> f64 {
        self.chance.fraction()
    }

    /// Hosts in an order of chance; the first address of each before the second of any.
    fn fill(&mut self) {
        self.chance.shuffle(&mut self.hosts);
        let most = self.hosts.iter().map(|host| host.addresses.len()).max().unwrap_or(0);
        let hosts = &self.hosts;
        self.queue =
            (0..most).flat_map(|i| hosts.iter().filter_map(move |h| h.addresses.get(i).copied())).collect();
    }

    fn resolve(&mut self, names: Vec<String>) {
        let job = Arc::new(Job::default());
        let (theirs, waker) = (Arc::clone(&job), self.waker.clone());
        let spawned = thread::Builder::new().name("zk-resolve".into()).spawn(move || {
            for name in names {
                let addresses = name.to_socket_addrs().map(Iterator::collect).unwrap_or_default();
                theirs.found.lock().unwrap_or_else(PoisonError::into_inner).push((name, addresses));
            }
            drop(theirs);
            waker.wake();
        });
        match spawned {
            Ok(_) => self.job = Some(job),
            Err(e) => log::warn!(target: super::LOG, "cannot start the resolver thread: {e}"),
        }
    }

    /// Takes what the resolver has found so far; it has ended once the job is ours alone.
    fn collect(&mut self) {
        let Some(job) = &self.job else { return };
        let ended = Arc::strong_count(job) == 1;
        let found = mem::take(&mut *job.found.lock().unwrap_or_else(PoisonError::into_inner));
        for (name, addresses) in found {
            let host = self.hosts.iter_mut().find(|host| host.name == name);
            if let (Some(host), false) = (host, addresses.is_empty()) {
                host.addresses = addresses;
            }
        }
        if ended {
            self.job = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(hosts: &mut Hosts) -> Vec<SocketAddr> {
        hosts.begin(Instant::now());
        let mut seen = Vec::new();
        loop {
            match hosts.next(Instant::now()) {
                Next::Address(address) => seen.push(address),
                Next::Wait(_) => thread::yield_now(),
                Next::Over => return seen,
            }
        }
    }

    #[test]
    fn literal_addresses_need_no_resolver_and_each_comes_once() {
        let servers = ["127.0.0.1:1".to_owned(), "[::1]:2".to_owned(), "10.0.0.9".to_owned()];
        let mut hosts = Hosts::new(&servers, Waker::new().unwrap());
        let mut seen = round(&mut hosts);
        assert!(hosts.job.is_none());
        seen.sort_unstable();
        let mut wanted: Vec<SocketAddr> =
            ["127.0.0.1:1", "[::1]:2", "10.0.0.9:2181"].iter().map(|s| s.parse().unwrap()).collect();
        wanted.sort_unstable();
        assert_eq!(seen, wanted);
    }

    #[test]
    fn a_bad_name_never_spoils_the_list() {
        let servers = ["no such host:1".to_owned(), "localhost:7".to_owned(), "127.0.0.1:8".to_owned()];
        let mut hosts = Hosts::new(&servers, Waker::new().unwrap());
        let ports: Vec<u16> = round(&mut hosts).iter().map(SocketAddr::port).collect();
        assert!(ports.contains(&7) && ports.contains(&8), "{ports:?}");
        assert!(!ports.contains(&1));
    }

    #[test]
    fn no_hosts_make_an_empty_round() {
        assert!(round(&mut Hosts::new(&[], Waker::new().unwrap())).is_empty());
    }
}
