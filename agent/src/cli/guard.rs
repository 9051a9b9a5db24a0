//! `yagent run --guard`: a small process beside the agent that starts it again when it dies. The caches are not its
//! children; the new agent adopts them.

use std::{
    env, io,
    path::Path,
    process::{Child, Command, ExitCode, ExitStatus},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use signal_hook::{
    consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM, SIGUSR1},
    iterator::Signals,
};

use super::{eprint_line, exit, run::RunArgs};

/// The first pause before a restart; it doubles with each death within [`STEADY`].
const PAUSE_FIRST: Duration = Duration::from_millis(50);
/// The longest pause.
const PAUSE_LONGEST: Duration = Duration::from_secs(5);
/// An agent that lived this long did not die in a row.
const STEADY: Duration = Duration::from_secs(60);

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
    let mut signals = Signals::new([SIGCHLD, SIGTERM, SIGINT, SIGHUP, SIGUSR1])?;
    // Asked for once: after an upgrade the kernel calls the guard's own program deleted.
    let program = env::current_exe()?;
    let mut pause = PAUSE_FIRST;
    let mut agent = start(&program, args)?;
    loop {
        let began = Instant::now();
        let (status, told_to_end) = attend(&mut agent, &mut signals)?;
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
        agent = match start_again(&program, args, &mut pause, &mut signals) {
            Some(agent) => agent,
            None => return Ok(0),
        };
    }
}

/// After a pause; one that cannot be started now (its file is just being replaced, the host is full) may be later.
/// `None`: told to end in the meantime, when there is no agent to pass that on to.
fn start_again(program: &Path, args: &RunArgs, pause: &mut Duration, signals: &mut Signals) -> Option<Child> {
    loop {
        thread::sleep(*pause);
        *pause = (*pause * 2).min(PAUSE_LONGEST);
        if signals.pending().any(|signal| matches!(signal, SIGTERM | SIGINT)) {
            return None;
        }
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

fn start(program: &Path, args: &RunArgs) -> io::Result<Child> {
    Command::new(program).arg("run").arg("-c").arg(&args.config).spawn()
}

/// Passes signals on until the agent is dead; how it ended, and whether it was told to.
fn attend(agent: &mut Child, signals: &mut Signals) -> io::Result<(ExitStatus, bool)> {
    let mut told_to_end = false;
    loop {
        if let Some(status) = agent.try_wait()? {
            return Ok((status, told_to_end));
        }
        for signal in signals.wait() {
            told_to_end |= matches!(signal, SIGTERM | SIGINT);
            pass_on(agent, signal);
        }
    }
}

fn pass_on(agent: &Child, signal: i32) {
    let pid = i32::try_from(agent.id()).ok().and_then(Pid::from_raw);
    if signal != SIGCHLD
        && let (Some(pid), Some(signal)) = (pid, Signal::from_named_raw(signal))
    {
        // An agent that is gone needs no signal.
        let _ = kill_process(pid, signal);
    }
}
