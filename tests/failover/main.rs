//! The failover protocol with real agents, redis servers and ZooKeeper, each on a host of its own.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "tests")]

mod harness;
