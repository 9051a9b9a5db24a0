//! Reserves blocks of consecutive ports, so that tests that run at the same time do not meet.

use std::{
    fs,
    hash::{BuildHasher, RandomState},
    net::{Ipv4Addr, TcpListener},
    ops::Range,
    sync::Mutex,
};

/// The reserved blocks of this process.
static TAKEN: Mutex<Vec<Range<u16>>> = Mutex::new(Vec::new());

/// Consecutive ports that are free and that no other test takes while this lives.
#[derive(Debug)]
pub struct PortBlock {
    range: Range<u16>,
    /// Held so that a test of another process finds the block taken.
    _guard: TcpListener,
}

impl PortBlock {
    /// Reserves `len` ports. They lie below the system's range for outgoing connections, which would otherwise take
    /// one of them sooner or later.
    pub fn reserve(len: u16) -> Self {
        let low = 12_000;
        let span = outgoing_begins().saturating_sub(low).saturating_sub(len + 1);
        assert!(span > 1000, "no room for test ports below the range of outgoing connections");
        for attempt in 0..1000_u32 {
            let base = low + (RandomState::new().hash_one(attempt) % u64::from(span)) as u16;
            if let Some(block) = Self::try_at(base, len) {
                return block;
            }
        }
        panic!("no {len} consecutive free ports found");
    }

    fn try_at(base: u16, len: u16) -> Option<Self> {
        let whole = base..base + len + 1;
        let mut taken = TAKEN.lock().unwrap();
        if taken.iter().any(|other| other.start < whole.end && whole.start < other.end) {
            return None;
        }
        let guard = TcpListener::bind((Ipv4Addr::LOCALHOST, base)).ok()?;
        let range = base + 1..whole.end;
        let free = range.clone().all(|port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok());
        free.then(|| {
            taken.push(whole);
            Self { range, _guard: guard }
        })
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

impl Drop for PortBlock {
    fn drop(&mut self) {
        if let Ok(mut taken) = TAKEN.lock() {
            taken.retain(|other| other.end != self.range.end);
        }
    }
}

fn outgoing_begins() -> u16 {
    fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|text| text.split_whitespace().next()?.parse().ok())
        .unwrap_or(32_768)
}
