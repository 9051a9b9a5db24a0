//! `yagent run --guard`: a small process beside the agent that starts it again when it dies. The caches are not its
//! children; the new agent adopts them.

use std::{
    env, io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    process::{Child, Command, ExitCode, ExitStatus},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open},
};
use signal_hook::consts::{SIGINT, SIGTERM};

use super::{eprint_line, exit, run::RunArgs};
use crate::shell::signals::Signals;

/// The first pause before a restart; it doubles with each death within [`STEADY`].
const PAUSE_FIRST: Duration = Duration::from_millis(50);
/// The longest pause.
const PAUSE_LONGEST: Duration = Duration::from_secs(5);
/// An agent that lived this long did not die in a row.
const STEADY: Duration = Duration::from_secs(60);

/// The agent.
struct Agent {
    child: Child,
    /// Readable once it is dead.
    pidfd: OwnedFd,
}

/// Runs the agent and starts it again until it ends by itself or is told to.
pub(super) fn guard(args: &RunArgs) -> ExitCode {
    match watch(args) {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            eprint_line(&format!("the guard cannot run the agent: {e}"));
            ExitCode::from(exit::INTERNAL)
        }
    }
}

fn watch(args: &RunArgs) -> io::Result<u8> {
    let signals = Signals::new()?;
    // Asked for once: after an upgrade the kernel calls the guard's own program deleted.
    let program = env::current_exe()?;
    let mut pause = PAUSE_FIRST;
    let mut agent = start(&program, args)?;
    loop {
        let began = Instant::now();
        let (status, told_to_end) = attend(&mut agent, &signals)?;
        match status.code() {
            Some(code) if told_to_end || code != i32::from(exit::INTERNAL) => {
                return Ok(u8::try_from(code).unwrap_or(exit::INTERNAL));
            }
            // It died of something else, or of the signal itself because it had only begun: it has ended, as wished.
            _ if told_to_end => return Ok(0),
            _ => {}
        }
        if began.elapsed() >= STEADY {
            pause = PAUSE_FIRST;
        }
        eprint_line(&format!("the agent died ({status}) and is started again in {} ms", pause.as_millis()));
        agent = match start_again(&program, args, &mut pause, &signals) {
            Some(agent) => agent,
            None => return Ok(0),
        };
    }
}

/// After a pause; one that cannot be started now (its file is just being replaced, the host is full) may be later.
/// `None`: told to end in the meantime, when there is no agent to pass that on to.
fn start_again(program: &Path, args: &RunArgs, pause: &mut Duration, signals: &Signals) -> Option<Agent> {
    loop {
        if told_to_end_within(*pause, signals) {
            return None;
        }
        *pause = (*pause * 2).min(PAUSE_LONGEST);
        match start(program, args) {
            Ok(agent) => return Some(agent),
            Err(e) => {
                eprintln!(
                    "yagent: cannot run {}: {e}; tried again in {} ms",
                    program.display(),
                    pause.as_millis()
                );
            }
        }
    }
}

/// Waits for `pause`, or until told to end; a new agent needs none of the other signals.
fn told_to_end_within(pause: Duration, signals: &Signals) -> bool {
    let until = Instant::now() + pause;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let limit = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        // Interrupted by a signal, it has that signal to take.
        let _ = poll(&mut [PollFd::new(signals, PollFlags::IN)], Some(&limit));
        if signals.take().into_iter().any(ends) {
            return true;
        }
        if left.is_zero() {
            return false;
        }
    }
}

fn ends(signal: i32) -> bool {
    matches!(signal, SIGTERM | SIGINT)
}

/// An agent that cannot be watched is killed: it was not started.
fn start(program: &Path, args: &RunArgs) -> io::Result<Agent> {
    let mut child = Command::new(program).arg("run").arg("-c").arg(&args.config).spawn()?;
    match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
        Ok(pidfd) => Ok(Agent { child, pidfd }),
        Err(e) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(e.into())
        }
    }
}

/// Passes signals on until the agent is dead; how it ended, and whether it was told to.
fn attend(agent: &mut Agent, signals: &Signals) -> io::Result<(ExitStatus, bool)> {
    let mut told_to_end = false;
    loop {
        if let Some(status) = agent.child.try_wait()? {
            return Ok((status, told_to_end));
        }
        let mut fds =
            [signals.as_fd(), agent.pidfd.as_fd()].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        for signal in signals.take() {
            told_to_end |= ends(signal);
            pass_on(&agent.child, signal);
        }
    }
}

fn pass_on(agent: &Child, signal: i32) {
    if let Some(signal) = Signal::from_named_raw(signal) {
        // An agent that is gone needs no signal.
        let _ = kill_process(Pid::from_child(agent), signal);
    }
}
