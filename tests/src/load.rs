//! An application in miniature: one connection to one memcached, kept for as long as it works.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use crate::{cache::Memcached, wait};

/// Writes and reads without pause on one connection. The first failure ends it.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Load {
    /// Begins on `port`.
    pub fn start(port: u16) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let rounds = Arc::new(AtomicU64::new(0));
        let thread = thread::spawn({
            let (stop, rounds) = (stop.clone(), rounds.clone());
            move || drive(port, &stop, &rounds)
        });
        Self { stop, rounds, thread: Some(thread) }
    }

    /// How many writes and reads went through.
    pub fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::Relaxed)
    }

    /// Waits until at least one more exchange goes through.
    pub fn wait_progress(&self) {
        let before = self.rounds();
        wait::until("the application is served", || {
            wait::check(self.rounds() > before + 1, || "it stands".into())
        });
    }

    /// Ends it; `Err` when its connection broke at any time.
    pub fn stop(mut self) -> io::Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("it is stopped once");
        thread.join().expect("the load's thread panicked").map(|()| self.rounds())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn drive(port: u16, stop: &AtomicBool, rounds: &AtomicU64) -> io::Result<()> {
    let mut client = Memcached::connect(port)?;
    while !stop.load(Ordering::Relaxed) {
        let round = rounds.load(Ordering::Relaxed).to_string();
        client.set("load", &round)?;
        if client.get("load")?.as_deref() != Some(round.as_str()) {
            return Err(io::Error::other("the value is not what was written"));
        }
        rounds.fetch_add(1, Ordering::Relaxed);
        // An application's pace; an endless loop would take a whole core from the servers under test.
        thread::sleep(std::time::Duration::from_millis(1));
    }
    Ok(())
}
