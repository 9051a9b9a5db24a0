//! Signals become readiness of a socket that the event loop waits on.

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1},
    flag, low_level,
};

/// What is handled.
const HANDLED: [i32; 4] = [SIGTERM, SIGINT, SIGHUP, SIGUSR1];

/// The signals that arrived.
#[derive(Debug)]
pub struct Signals {
    reader: UnixStream,
    flags: Vec<(i32, Arc<AtomicBool>)>,
}

impl Signals {
    /// Handles the signals from now on.
    ///
    /// # Errors
    /// When one can't be handled.
    pub fn new() -> io::Result<Signals> {
        let (reader, writer) = UnixStream::pair()?;
        reader.set_nonblocking(true)?;
        let mut flags = Vec::new();
        for signal in HANDLED {
            // The flag is registered first, so it stands when the socket becomes readable.
            let raised = Arc::new(AtomicBool::new(false));
            flag::register(signal, raised.clone())?;
            low_level::pipe::register(signal, writer.try_clone()?)?;
            flags.push((signal, raised));
        }
        Ok(Signals { reader, flags })
    }

    /// The signals since the last call, each once.
    pub fn take(&self) -> Vec<i32> {
        let mut buffer = [0u8; 64];
        while rustix::io::read(&self.reader, &mut buffer).is_ok_and(|count| count == buffer.len()) {}
        self.flags
            .iter()
            .filter(|(_, raised)| raised.swap(false, Relaxed))
            .map(|(signal, _)| *signal)
            .collect()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}
