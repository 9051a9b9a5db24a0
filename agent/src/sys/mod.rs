//! The few system calls that the libraries do not cover safely.

#![allow(unsafe_code)]

pub(crate) mod crash;

use std::{os::unix::process::CommandExt, process::Command};

/// Makes the command the leader of a session of its own, so that nothing sent to the agent's group or terminal
/// reaches it.
pub(crate) fn own_session(command: &mut Command) {
    let setsid = || rustix::process::setsid().map(drop).map_err(Into::into);
    // SAFETY: between fork and exec only async-signal-safe functions may be called; setsid is one, and neither it nor
    // the conversion of its error number allocates, locks or unwinds.
    unsafe { command.pre_exec(setsid) };
}

/// A child of this process that is dead and not reaped yet; it stays so. rustix does not tell the pid.
pub(crate) fn dead_child() -> Option<u32> {
    // SAFETY: all zeros is a valid siginfo_t, and waitid writes to nothing else.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` outlives the call.
    let result =
        unsafe { libc::waitid(libc::P_ALL, 0, &mut info, libc::WEXITED | libc::WNOHANG | libc::WNOWAIT) };
    // SAFETY: waitid filled the fields of SIGCHLD in, or left the zeros.
    let pid = if result == 0 { unsafe { info.si_pid() } } else { 0 };
    u32::try_from(pid).ok().filter(|pid| *pid != 0)
}

/// Closes every descriptor but the three streams; for a process that has only just begun and owns no other.
pub(crate) fn close_descriptors() {
    // SAFETY: at the start of a process nothing in it holds a descriptor yet that this would close under its owner; an
    // old kernel knows no such call and changes nothing.
    unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0u32) };
}

/// Takes standard input over as a descriptor; only once in a process.
pub(crate) fn take_stdin() -> std::os::fd::OwnedFd {
    use std::os::fd::FromRawFd;
    // SAFETY: the standard library keeps 0 open from the start and never closes it; whoever calls reads nothing from it.
    unsafe { std::os::fd::OwnedFd::from_raw_fd(0) }
}
