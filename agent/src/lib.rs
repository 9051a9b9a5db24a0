//! yagent: the host agent for memcached and redis instances.
//!
//! `config` reads the settings, `core` decides, `shell` carries out, `plugin` speaks to the backends, `cli` is the
//! command line, `setup` what verbs share. `sys` holds the few system calls that need `unsafe`.

pub mod cli;
pub mod config;
pub mod core;
pub mod fencer;
pub mod plugin;
pub mod setup;
pub mod shell;
mod sys;
