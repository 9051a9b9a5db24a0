//! The effects: what the core decided is carried out here, and what happens becomes an event.

pub mod alerts;
pub mod control;
pub mod event_loop;
pub mod exchange;
pub mod fencer;
pub mod logging;
pub mod notify;
pub mod orders;
pub mod poll;
pub mod ports;
pub mod process;
pub mod quarantine;
pub mod registry;
pub mod signals;
pub mod status;
pub mod waker;
pub mod watchdog;
