//! Which plugin and hook is being called right now, for the watchdog of another thread and for the handler of a fatal
//! signal. Decides nothing.

use std::{
    ptr,
    sync::atomic::{AtomicPtr, AtomicUsize, Ordering},
};

/// A call's name; lives as long as the process, as its plugin does.
#[derive(Debug)]
pub(super) struct Mark {
    pub(super) plugin: String,
    pub(super) hook: &'static str,
}

/// Holds the mark of the call that runs; there is one at a time.
#[derive(Debug)]
pub(super) struct Marker {
    mark: AtomicPtr<Mark>,
    /// The thread that is inside the call.
    thread: AtomicUsize,
}

/// The process's.
pub(super) static CALL: Marker = Marker::new();

/// An object that is being loaded: that may wait for a disk, and the loop goes on meanwhile.
pub(super) static LOAD: Marker = Marker::new();

thread_local! {
    /// Its address names the thread, without a system call.
    static HERE: u8 = const { 0 };
}

fn here() -> usize {
    HERE.with(|here| ptr::from_ref(here).addr())
}

/// The plugin and the hook that are being called; `None` outside of any. Takes no lock.
#[must_use]
pub fn current() -> Option<(&'static str, &'static str)> {
    CALL.current()
}

/// What this thread itself is inside of, the loading of an object included. Safe in a signal handler.
pub(crate) fn current_here() -> Option<(&'static str, &'static str)> {
    let mine = |marker: &&Marker| marker.thread.load(Ordering::Acquire) == here();
    [&CALL, &LOAD].into_iter().filter(mine).find_map(Marker::current)
}

impl Marker {
    const fn new() -> Self {
        Self { mark: AtomicPtr::new(ptr::null_mut()), thread: AtomicUsize::new(0) }
    }

    #[allow(unsafe_code)]
    fn current(&self) -> Option<(&'static str, &'static str)> {
        // SAFETY: only `enter` stores here, and what it stores is never freed.
        let mark: &'static Mark = unsafe { self.mark.load(Ordering::Acquire).as_ref() }?;
        Some((&mark.plugin, mark.hook))
    }

    /// Marks a call for as long as the value lives.
    pub(super) fn enter(&self, mark: &'static Mark) -> Entered<'_> {
        self.thread.store(here(), Ordering::Release);
        self.mark.store(ptr::from_ref(mark).cast_mut(), Ordering::Release);
        Entered(self)
    }
}

pub(super) struct Entered<'a>(&'a Marker);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.mark.store(ptr::null_mut(), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_thread_sees_the_call_while_it_runs() {
        static MARKER: Marker = Marker::new();
        let mark: &'static Mark = Box::leak(Box::new(Mark { plugin: "redis".to_owned(), hook: "probe" }));
        let elsewhere = || std::thread::spawn(|| MARKER.current()).join().unwrap();
        assert_eq!(elsewhere(), None);
        let entered = MARKER.enter(mark);
        assert_eq!(elsewhere(), Some(("redis", "probe")));
        drop(entered);
        assert_eq!(elsewhere(), None);
    }
}
