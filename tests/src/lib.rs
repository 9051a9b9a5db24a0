//! What the tests share: real servers started on free ports, the agent, and readers of their state.
//!
//! A [`host::Host`] is a model of one cache host: a temporary directory, a block of ports, a legacy ini file and the
//! agent that runs with it. Everything that it starts is gone when it is dropped. Nothing here asserts a policy of the
//! agent; that is the tests' part.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a harness reports its own failures by panicking"
)]

pub mod cache;
pub mod cluster;
pub mod host;
pub mod ini;
pub mod load;
pub mod plugins;
pub mod ports;
pub mod process;
pub mod programs;
pub mod status;
pub mod wait;
pub mod zookeeper;
