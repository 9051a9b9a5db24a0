//! A crash mark for a fatal signal: which plugin and hook this process was inside of when it broke.
//!
//! The handler allocates nothing, takes no lock and calls only what is safe in a signal handler; then it lets the signal
//! take its course. The marks' form is the watchdog's (`shell::watchdog`), which reads them, too.

use std::{
    ffi::{CStr, CString},
    io,
    mem::MaybeUninit,
    os::unix::ffi::OsStrExt,
    path::Path,
    ptr,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use rustix::fs::{CWD, Mode, OFlags};

use crate::plugin::marker;

/// Signals that a fault raises; `abort` for C's assertions and C++'s terminate.
const SIGNALS: [i32; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT];

/// Where marks go, made ready for the handler.
struct Place {
    /// Made if they are missing, the outer one first.
    dirs: [CString; 2],
    /// What the signals did before; the standard library reports an overflow of the stack.
    before: [libc::sigaction; SIGNALS.len()],
}

static PLACE: OnceLock<Place> = OnceLock::new();
static OVER: AtomicBool = AtomicBool::new(false);

/// From now on a fatal signal leaves a mark in `dir`, which need not be there yet. Has an effect once in a process.
///
/// # Errors
/// The path can't be told to the kernel, or it refuses the handler.
pub(crate) fn leave_marks_in(dir: &Path) -> io::Result<()> {
    let text = |path: &Path| CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other);
    let dirs = [text(dir.parent().unwrap_or(dir))?, text(dir)?];
    // SAFETY: zeroes are a valid sigaction.
    let mut before: [libc::sigaction; SIGNALS.len()] = unsafe { MaybeUninit::zeroed().assume_init() };
    for (signal, before) in SIGNALS.into_iter().zip(&mut before) {
        // SAFETY: no new action is set, and the old one is written to a place that outlives the call.
        check(unsafe { libc::sigaction(signal, ptr::null(), before) })?;
    }
    if PLACE.set(Place { dirs, before }).is_ok() {
        SIGNALS.into_iter().try_for_each(handle)?;
    }
    Ok(())
}

/// No mark is left from now on.
pub(crate) fn forget() {
    OVER.store(true, SeqCst);
}

fn check(result: i32) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn handle(signal: i32) -> io::Result<()> {
    // SAFETY: zeroes are a valid sigaction: no flags, nothing blocked.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    let handler: extern "C" fn(i32, *const libc::siginfo_t, *mut libc::c_void) = on_signal;
    action.sa_sigaction = handler as usize;
    // An overflown stack can't hold the handler's frame; the standard library made another one.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
    // SAFETY: the handler has the form that SA_SIGINFO asks for and is safe to run at any point.
    check(unsafe { libc::sigaction(signal, &action, ptr::null_mut()) })
}

extern "C" fn on_signal(signal: i32, info: *const libc::siginfo_t, _context: *mut libc::c_void) {
    let Some(place) = PLACE.get() else { return };
    let index = SIGNALS.iter().position(|known| *known == signal).unwrap_or(0);
    // SAFETY: what was there before is put back; sigaction may be called in a handler.
    unsafe { libc::sigaction(signal, &place.before[index], ptr::null_mut()) };
    if !OVER.swap(true, SeqCst) {
        mark(place, signal);
    }
    // SAFETY: the kernel lends the information for the time of the handler.
    let sent = unsafe { info.as_ref() }.is_none_or(|info| info.si_code <= 0);
    if sent {
        // A fault comes again by itself when this returns, and with its own information.
        // SAFETY: raise may be called in a handler.
        unsafe { libc::raise(signal) };
    }
}

/// Nobody is left to tell of an error.
fn mark(place: &Place, signal: i32) {
    for dir in &place.dirs {
        let _ = rustix::fs::mkdirat(CWD, dir.as_c_str(), Mode::from_raw_mode(0o750));
    }
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_sec;
    let mut name = Text::<64>::new();
    name.push(b"crash-").number(now);
    name.push(b"-").number(rustix::process::getpid().as_raw_nonzero().get().into()).push(b".txt");
    let mut text = Text::<640>::new();
    text.push(b"activity: ");
    let call = marker::current_here();
    if let Some((plugin, hook)) = call {
        text.push(b"in plugin ").push(plugin.as_bytes()).push(b", hook ").push(hook.as_bytes()).push(b", ");
    }
    text.push(b"signal ").number(signal.into());
    if let Some((plugin, hook)) = call {
        text.push(b"\nplugin: ").push(plugin.as_bytes()).push(b"\nhook: ").push(hook.as_bytes());
    }
    text.push(b"\nversion: ").push(env!("CARGO_PKG_VERSION").as_bytes()).push(b"\n");
    let dir_flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(dir) = rustix::fs::openat(CWD, place.dirs[1].as_c_str(), dir_flags, Mode::empty()) else { return };
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::TRUNC | OFlags::CLOEXEC;
    // Its length leaves room for the terminating zero.
    let Ok(name) = CStr::from_bytes_until_nul(&name.bytes) else { return };
    if let Ok(file) = rustix::fs::openat(&dir, name, flags, Mode::from_raw_mode(0o640)) {
        let _ = rustix::io::write(&file, &text.bytes[..text.len]);
        let _ = rustix::fs::fsync(&file);
    }
}

/// A text of bounded length that needs no allocation; what does not fit is cut. Short: the stack for the handlers of
/// signals has a few pages.
struct Text<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Text<N> {
    fn new() -> Self {
        Self { bytes: [0; N], len: 0 }
    }

    fn push(&mut self, more: &[u8]) -> &mut Self {
        let room = (N - 1).saturating_sub(self.len).min(more.len());
        self.bytes[self.len..self.len + room].copy_from_slice(&more[..room]);
        self.len += room;
        self
    }

    fn number(&mut self, number: i64) -> &mut Self {
        let mut digits = [0u8; 20];
        let (mut left, mut at) = (number.unsigned_abs(), digits.len());
        loop {
            at -= 1;
            digits[at] = b'0' + u8::try_from(left % 10).unwrap_or(0);
            left /= 10;
            if left == 0 {
                return self.push(&digits[at..]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_and_never_runs_over() {
        let mut text = Text::<8>::new();
        text.push(b"ab").number(120).push(b"cdefgh");
        assert_eq!((&text.bytes[..], text.len), (&b"ab120cd\0"[..], 7));
        let mut zero = Text::<8>::new();
        assert_eq!(zero.number(0).len, 1);
    }
}
