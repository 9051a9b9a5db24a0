//! End-to-end tests: the agent on real memcached, redis and ZooKeeper.
//!
//! Each file is one area. A test's name says the behaviour; how the agent does it is not looked at. Nothing here
//! asserts how fast something is: that is measured in `tests/bench`.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test reports by panicking")]

mod adopt;
mod alerts;
mod bad_input;
mod cli;
mod demo;
mod examples;
mod fencer;
mod guide;
mod lifecycle;
mod logs;
mod orders;
mod plugin_tools;
mod quarantine;
mod redis;
mod registry;
mod registry_faults;
mod reload;
mod repair;
mod rrdcached;
mod shards;
mod shards_live;
mod statistics;
