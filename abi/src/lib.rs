//! The contract between yagent and its plugins, and a safe SDK to write plugins in Rust.
//!
//! The contract itself is the C header `include/yagent/plugin.h`; [`raw`] mirrors it field by field and checks its
//! layout at compile time. [`sdk`] puts safe types over it: an engine implements [`sdk::Engine`], says
//! [`export_engine!`] once, and needs no `unsafe`. [`testing`] runs such an engine in tests. Loading plugins is the agent's part and not found here.

pub mod raw;
pub mod sdk;
pub mod testing;

/// The C header, as this version of the crate was built with.
pub const HEADER: &str = include_str!("../include/yagent/plugin.h");
