//! The registry client against a misbehaving ensemble.
//!
//! Each experiment does something to real ZooKeeper servers, to the network or to the client's own process, or plays a
//! server that talks nonsense; then the tree must be whole as another client sees it, and the client within its
//! budget of threads, descriptors and CPU time. `YAGENT_TEST_LONG=1` runs them at full length.

// An experiment that fails has nothing better to do than to panic with what went wrong.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod content;
mod faults;
mod garbage;
mod network;
mod proxy;
mod requests;
mod subject;

/// A number for the daily run, and the full one.
fn usually<T>(short: T, long: T) -> T {
    if std::env::var_os("YAGENT_TEST_LONG").is_some_and(|value| value == "1") { long } else { short }
}
