//! One run of the alert command: started, fed, watched, and killed when it takes too long.
//!
//! The agent is a subreaper and its loop reaps what nobody else waits for; [`child_in_flight`] keeps it from reaping
//! this child.

use std::{
    fs::File,
    io::{self, Seek, Write},
    os::{
        fd::OwnedFd,
        unix::process::{CommandExt, ExitStatusExt},
    },
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicI32, Ordering::SeqCst},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{MemfdFlags, OFlags, memfd_create},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open},
};

use crate::shell::{notify, waker::Waker};

/// How much of what the command says is told in the log, in bytes.
const SAID_AT_MOST: usize = 300;

/// How long a killed command is waited for. One that hangs in the kernel is left to the reaper.
const GRACE: Duration = Duration::from_secs(1);

const NONE: i32 = 0;
const SPAWNING: i32 = -1;

static IN_FLIGHT: AtomicI32 = AtomicI32::new(NONE);

/// Whether a child of the alert sender may be waiting to be reaped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InFlight {
    /// There is none.
    None,
    /// One is being started; any unknown child may be it.
    Spawning,
    /// This one.
    Child(Pid),
}

/// The child that the loop must not reap. Read it after the zombie was seen and before it is reaped.
pub fn child_in_flight() -> InFlight {
    match IN_FLIGHT.load(SeqCst) {
        NONE => InFlight::None,
        pid => Pid::from_raw(pid.max(0)).map_or(InFlight::Spawning, InFlight::Child),
    }
}

/// How a run ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Delivery {
    Taken,
    /// A sentence's end: `exited with status 1: …`.
    Failed(String),
}

/// Runs the command.
#[derive(Debug)]
pub(super) struct Runner {
    waker: Waker,
    hurry: Waker,
}

impl Runner {
    /// `waker` is woken when a run has ended; waking `hurry` makes one look at its limit again.
    pub(super) fn new(waker: Waker, hurry: Waker) -> Runner {
        Runner { waker, hurry }
    }

    /// Runs `argv` with `payload` on its standard input, for as long as `by` says.
    pub(super) fn run(&self, argv: &[String], payload: &[u8], by: &dyn Fn() -> Instant) -> Delivery {
        IN_FLIGHT.store(SPAWNING, SeqCst);
        let delivery = spawn(argv, payload).map_or_else(
            |e| Delivery::Failed(format!("cannot be started: {}: {e}", argv.join(" "))),
            |run| run.finish(by, &self.hurry),
        );
        IN_FLIGHT.store(NONE, SeqCst);
        self.waker.wake();
        delivery
    }
}

/// A running command.
struct Run {
    child: Child,
    group: Pid,
    pidfd: OwnedFd,
    /// What it says on standard error.
    stderr: OwnedFd,
    said: Vec<u8>,
}

fn spawn(argv: &[String], payload: &[u8]) -> io::Result<Run> {
    let (program, args) = argv.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut command = Command::new(program);
    command.args(args).stdin(in_memory(payload)?).stdout(Stdio::null()).stderr(Stdio::piped());
    command.process_group(0).current_dir("/");
    for name in notify::SCRUBBED {
        command.env_remove(name);
    }
    let mut child = command.spawn()?;
    let group = Pid::from_child(&child);
    IN_FLIGHT.store(group.as_raw_nonzero().get(), SeqCst);
    watch(&mut child, group).map(|(pidfd, stderr)| Run { child, group, pidfd, stderr, said: Vec::new() })
}

/// A child that cannot be watched is killed: nothing may run without a limit.
fn watch(child: &mut Child, group: Pid) -> io::Result<(OwnedFd, OwnedFd)> {
    let ends = pidfd_open(group, PidfdFlags::empty()).map_err(io::Error::from).and_then(|pidfd| {
        let stderr: OwnedFd = child.stderr.take().ok_or(io::ErrorKind::BrokenPipe)?.into();
        rustix::fs::fcntl_setfl(&stderr, OFlags::NONBLOCK)?;
        Ok((pidfd, stderr))
    });
    if ends.is_err() {
        let _ = kill_process_group(group, Signal::KILL);
        let _ = child.wait();
    }
    ends
}

/// A file in memory: unlike a pipe it never fills, so a command that reads nothing blocks nobody.
fn in_memory(payload: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create("yagent-alert", MemfdFlags::CLOEXEC)?);
    file.write_all(payload)?;
    file.rewind()?;
    Ok(file.into())
}

impl Run {
    fn finish(mut self, by: &dyn Fn() -> Instant, hurry: &Waker) -> Delivery {
        if let Some(status) = self.wait(by, hurry) {
            return self.judge(status);
        }
        let _ = kill_process_group(self.group, Signal::KILL);
        let grace = Instant::now() + GRACE;
        let what = self.wait(&|| grace, hurry).map_or("and does not die", |_| "and was killed");
        Delivery::Failed(format!("took too long {what}{}", self.said()))
    }

    /// `None`: it still runs at `by`. What it started itself may live on, and hold its standard error open.
    fn wait(&mut self, by: &dyn Fn() -> Instant, hurry: &Waker) -> Option<ExitStatus> {
        let mut open = true;
        loop {
            hurry.drain();
            let left = by().saturating_duration_since(Instant::now());
            if self.has_ended(left, hurry, open) {
                self.hear();
                return self.child.wait().ok();
            }
            open = open && self.hear();
            if left.is_zero() {
                return None;
            }
        }
    }

    /// Waits for its end, for something said (while its end of the pipe is open) or for a reason to hurry.
    fn has_ended(&self, limit: Duration, hurry: &Waker, open: bool) -> bool {
        let mut fds = [
            PollFd::new(&self.pidfd, PollFlags::IN),
            PollFd::new(hurry, PollFlags::IN),
            PollFd::new(&self.stderr, PollFlags::IN),
        ];
        let fds = if open { &mut fds[..] } else { &mut fds[..2] };
        let polled = poll(fds, Timespec::try_from(limit).ok().as_ref());
        polled.is_ok() && !fds[0].revents().is_empty()
    }

    /// Takes what it said; all beyond the limit is thrown away. Returns whether there may be more. One that never
    /// stops talking is not listened to for long: the time must be looked at as well.
    fn hear(&mut self) -> bool {
        let mut buffer = [0; 4096];
        for _ in 0..16 {
            match rustix::io::read(&self.stderr, &mut buffer) {
                Ok(0) => return false,
                Ok(size) => {
                    let room = SAID_AT_MOST - self.said.len();
                    self.said.extend_from_slice(&buffer[..size.min(room)]);
                }
                Err(e) => return e == Errno::AGAIN || e == Errno::INTR,
            }
        }
        true
    }

    fn judge(&self, status: ExitStatus) -> Delivery {
        if status.success() {
            return Delivery::Taken;
        }
        let how = match (status.code(), status.signal()) {
            (Some(code), _) => format!("exited with status {code}"),
            (_, Some(signal)) => format!("was killed by signal {signal}"),
            _ => format!("ended: {status}"),
        };
        Delivery::Failed(how + &self.said())
    }

    fn said(&self) -> String {
        match String::from_utf8_lossy(&self.said).trim() {
            "" => String::new(),
            said => format!(": {said}"),
        }
    }
}
