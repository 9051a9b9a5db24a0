//! Reserves blocks of consecutive ports, so that tests that run at the same time do not meet.

use std::{
    fs,
    hash::{BuildHasher, RandomState},
    net::{Ipv4Addr, TcpListener},
    ops::Range,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener},
    },
};

/// Ports are reserved in slots of so many.
const SLOT: u16 = 16;
const LOW: u16 = 12_000;

/// Consecutive ports that are free and that no other test takes while this lives.
#[derive(Debug)]
pub struct PortBlock {
    range: Range<u16>,
    /// A name of each slot, which one process of the machine can have at a time. A listener on one of the ports
    /// themselves would do that for this port alone, and make this process one that a test might take for a cache.
    _slots: Vec<UnixListener>,
}

impl PortBlock {
    /// Reserves `len` ports. They lie below the system's range for outgoing connections, which would otherwise take
    /// one of them sooner or later.
    pub fn reserve(len: u16) -> Self {
        let span = outgoing_begins().saturating_sub(LOW).saturating_sub(len + SLOT) / SLOT;
        assert!(span > 60, "no room for test ports below the range of outgoing connections");
        for attempt in 0..1000_u32 {
            let slot = (RandomState::new().hash_one(attempt) % u64::from(span)) as u16;
            if let Some(block) = Self::try_at(slot, len) {
                return block;
            }
        }
        panic!("no {len} consecutive free ports found");
    }

    fn try_at(slot: u16, len: u16) -> Option<Self> {
        let slots = (slot..slot + len.div_ceil(SLOT)).map(take).collect::<Option<Vec<_>>>()?;
        let first = LOW + slot * SLOT;
        let range = first..first + len;
        let free = range.clone().all(|port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok());
        free.then_some(Self { range, _slots: slots })
    }

    /// The first port.
    pub fn first(&self) -> u16 {
        self.range.start
    }

    /// All of them.
    pub fn range(&self) -> Range<u16> {
        self.range.clone()
    }
}

fn take(slot: u16) -> Option<UnixListener> {
    let name = SocketAddr::from_abstract_name(format!("yagent-tests/ports/{slot}")).ok()?;
    UnixListener::bind_addr(&name).ok()
}

fn outgoing_begins() -> u16 {
    fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|text| text.split_whitespace().next()?.parse().ok())
        .unwrap_or(32_768)
}
