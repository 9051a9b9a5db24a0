//! An application that tries all servers which might become the master, again and again, until one takes its write.

use std::{net::SocketAddr, sync::Arc, thread, time::Duration};

use yagent_tests::{
    cache::Redis,
    cluster::{net::Space, watch::monotonic},
};

const LIMIT: Duration = Duration::from_secs(2);
/// A probe that never ends would take a core from the servers.
const PACE: Duration = Duration::from_micros(300);
const GIVEN_UP: Duration = Duration::from_secs(60);

/// Connections that stand before anything happens.
#[derive(Debug)]
pub(crate) struct Probe {
    links: Vec<(SocketAddr, Option<Redis>)>,
    space: Arc<Space>,
}

impl Probe {
    /// Connects to `servers` from a host of the network.
    pub(crate) fn new(space: &Arc<Space>, servers: &[SocketAddr]) -> Probe {
        let links = servers.iter().map(|&at| (at, connect(space, at))).collect();
        Probe { links, space: space.clone() }
    }

    /// When a server first acknowledged a write, and which.
    pub(crate) fn first_ack(mut self) -> (Duration, SocketAddr) {
        let begun = monotonic();
        loop {
            for (address, link) in &mut self.links {
                match link.as_mut().map(|redis| redis.call(&["SET", "bench", "x"])) {
                    Some(Ok(_)) => return (monotonic(), *address),
                    Some(Err(error)) if error.kind() == std::io::ErrorKind::Other => {}
                    _ => *link = connect(&self.space, *address),
                }
            }
            assert!(monotonic() - begun < GIVEN_UP, "nobody took over: {:?}", self.links);
            thread::sleep(PACE);
        }
    }
}

fn connect(space: &Space, address: SocketAddr) -> Option<Redis> {
    space.run(|| Redis::connect_to(address, LIMIT)).ok()
}
