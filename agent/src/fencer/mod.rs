//! The fencer: a small process that keeps this host's masters from taking writes once their lease has run out unfed,
//! whether the agent is dead, stopped or cut off.
//!
//! It outlives the agent and the next one adopts it. For each master it holds bytes that an agent once sent to that very
//! server with success, and a pidfd: at the end of the lease it sends the bytes, and whoever does not answer as expected
//! is killed. It knows no engine, starts nothing, and allocates nothing once it runs.
//!
//! [`wire`] is what it and the agent say to each other, [`table`] decides, [`server`] carries out.
//!
//! A fencer serves agents of its own version alone: lock and socket carry the version in their names. A new agent starts
//! a new fencer beside the old one, tells it everything, and only then retires the old one, by a frame that all versions
//! know; so there is no moment without a fencer, and no second version of the frames to understand.

mod proc;
pub mod server;
pub mod socket;
mod syslog;
pub mod table;
pub mod wire;

use std::path::Path;

pub use crate::core::failover::FENCE_FOR;

/// What the names of the sockets of all versions begin with.
pub const SOCKET_PREFIX: &str = "fencer-";
/// What they end with.
pub const SOCKET_SUFFIX: &str = ".sock";
/// The name of this version's socket in the state directory.
pub const SOCKET_NAME: &str = concat!("fencer-", env!("CARGO_PKG_VERSION"), ".sock");
/// The name of the file that makes sure this version has one fencer in a state directory.
pub const LOCK_NAME: &str = concat!("fencer-", env!("CARGO_PKG_VERSION"), ".lock");

/// The monotonic clock, in nanoseconds: the same for all processes of a host, which `Instant` keeps to itself.
#[must_use]
pub fn monotonic() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    part(now.tv_sec).saturating_mul(1_000_000_000).saturating_add(part(now.tv_nsec))
}

/// Becomes the fencer of a state directory; ends when it was retired or has nothing to guard and no agent.
///
/// # Errors
/// Another one is there, or the socket can't be made.
pub fn run(state_dir: &Path) -> std::io::Result<()> {
    crate::sys::close_descriptors();
    // Neither fails for a reason that would make a fencer useless.
    let _ = rustix::process::setsid();
    let _ = std::fs::write("/proc/self/oom_score_adj", "-900");
    let mut server = server::Server::new(state_dir, socket::agent_on_stdin())?;
    // Only what there is: locking what comes later, too, could make a growing stack a fault where little may be locked.
    let _ = rustix::mm::mlockall(rustix::mm::MlockAllFlags::CURRENT);
    while server.turn()? {}
    Ok(())
}
