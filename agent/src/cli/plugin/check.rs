//! `yagent plugin check`: the validator for authors of plugins.
//!
//! Each case runs in a child process of its own with a time limit, so that a plugin that crashes or never returns costs
//! one case. What the cases look at is in `cases`.

use std::{
    fmt, fs,
    io::{self, Read},
    os::{fd::AsFd, unix::process::ExitStatusExt},
    path::PathBuf,
    process::{Child, Command, ExitCode, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;

use super::{
    cases::{CASES, Case, Setup, Verdict},
    subject::{Subject, SubjectArgs},
};
use crate::cli::{check::print_line, eprint_line, exit};

/// A wait for a processor that is shorter does not move the limit.
const WORTH_WAITING: Duration = Duration::from_millis(10);

/// Arguments of `yagent plugin check`.
#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct CheckArgs {
    #[command(flatten)]
    subject: SubjectArgs,
    /// One JSON object instead of lines
    #[arg(long)]
    json: bool,
    /// Only the cases whose name contains this, or matches it where it has a `*`
    #[arg(long, value_name = "PATTERN")]
    only: Option<String>,
    /// Recorded answers, DIR/HOOK/*.txt: fed whole, byte by byte, and cut at each byte
    #[arg(long, value_name = "DIR")]
    fixtures: Option<PathBuf>,
    /// Seconds that a case may take
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    limit: u64,
    /// Run this case in this very process: what the validator starts itself with
    #[arg(long, value_name = "NAME", hide = true)]
    in_this_process: Option<String>,
}

/// How a case ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Passed,
    Failed,
    Crashed,
    Skipped,
    Warning,
}

impl Outcome {
    const ALL: [Outcome; 5] =
        [Outcome::Passed, Outcome::Failed, Outcome::Crashed, Outcome::Skipped, Outcome::Warning];

    fn name(self) -> &'static str {
        match self {
            Outcome::Passed => "passed",
            Outcome::Failed => "failed",
            Outcome::Crashed => "crashed",
            Outcome::Skipped => "skipped",
            Outcome::Warning => "warning",
        }
    }
}

#[derive(Debug, Serialize)]
struct Finding {
    name: &'static str,
    about: &'static str,
    outcome: Outcome,
    why: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<8} {}: {}", self.outcome.name(), self.name, self.about)?;
        if self.why.is_empty() { Ok(()) } else { write!(f, "\n         {}", self.why) }
    }
}

/// 0 when no case failed or crashed, 69 otherwise.
pub(super) fn check(args: &CheckArgs) -> ExitCode {
    if let Some(name) = &args.in_this_process {
        return run_here(args, name);
    }
    let chosen: Vec<&Case> = CASES.iter().filter(|case| is_wanted(case.name, args.only.as_deref())).collect();
    if chosen.is_empty() {
        eprint_line(&format!("no case is named like `{}`", args.only.as_deref().unwrap_or_default()));
        return ExitCode::from(exit::USAGE);
    }
    let findings = match find(args, &chosen) {
        Ok(findings) => findings,
        Err(error) => {
            eprint_line(&format!("cannot start the cases: {error}"));
            return ExitCode::from(exit::INTERNAL);
        }
    };
    report(args, &findings);
    let bad = |finding: &Finding| matches!(finding.outcome, Outcome::Failed | Outcome::Crashed);
    if findings.iter().any(bad) { ExitCode::from(exit::UNAVAILABLE) } else { ExitCode::SUCCESS }
}

fn is_wanted(name: &str, only: Option<&str>) -> bool {
    match only {
        None => true,
        Some(pattern) if pattern.contains('*') => {
            glob::Pattern::new(pattern).is_ok_and(|pattern| pattern.matches(name))
        }
        Some(part) => name.contains(part),
    }
}

/// Where the first case, which loads the plugin, finds a fault, the others have nothing to look at.
fn find(args: &CheckArgs, chosen: &[&Case]) -> io::Result<Vec<Finding>> {
    let first = run_apart(args, &CASES[0])?;
    let loaded = first.outcome == Outcome::Passed;
    let mut findings = Vec::new();
    if !loaded || chosen.iter().any(|case| case.name == CASES[0].name) {
        findings.push(first);
    }
    for case in chosen.iter().filter(|case| case.name != CASES[0].name) {
        let Case { name, about, .. } = **case;
        let skipped =
            || Finding { name, about, outcome: Outcome::Skipped, why: "it was not loaded".to_owned() };
        findings.push(if loaded { run_apart(args, case)? } else { skipped() });
    }
    Ok(findings)
}

fn report(args: &CheckArgs, findings: &[Finding]) {
    let count = |outcome| findings.iter().filter(|finding| finding.outcome == outcome).count();
    if args.json {
        let mut whole = serde_json::json!({"file": args.subject.file, "cases": findings});
        Outcome::ALL.iter().for_each(|outcome| whole[outcome.name()] = count(*outcome).into());
        return print_line(&whole.to_string());
    }
    findings.iter().for_each(|finding| print_line(&finding.to_string()));
    let counts: Vec<String> =
        Outcome::ALL.iter().map(|outcome| format!("{} {}", count(*outcome), outcome.name())).collect();
    print_line(&counts.join(", "));
}

// The child

/// Runs a case; its verdict is the last line on standard output.
fn run_here(args: &CheckArgs, name: &str) -> ExitCode {
    let Some(case) = CASES.iter().find(|case| case.name == name) else {
        return ExitCode::from(exit::USAGE);
    };
    let verdict = match Subject::load(&args.subject, "127.0.0.1", 4711) {
        Ok(subject) => (case.run)(&Setup { subject, fixtures: args.fixtures.clone() }),
        Err(error) => Verdict::Failed(error.to_string()),
    };
    let (outcome, why) = match verdict {
        Verdict::Passed => (Outcome::Passed, String::new()),
        Verdict::Failed(why) => (Outcome::Failed, why),
        Verdict::Skipped(why) => (Outcome::Skipped, why),
        Verdict::Warning(why) => (Outcome::Warning, why),
    };
    print_line(&format!("\n{}", serde_json::json!([outcome.name(), why])));
    // What the plugin does at exit is not looked at, nor is it waited for.
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).ok();
    ExitCode::SUCCESS
}

// The parent

fn run_apart(args: &CheckArgs, case: &Case) -> io::Result<Finding> {
    let limit = Duration::from_secs(args.limit);
    let mut child = spawn(args, case.name)?;
    let ended = wait(&mut child, limit)?;
    let mut said = String::new();
    if ended.is_some()
        && let Some(stdout) = &mut child.stdout
    {
        let _ = stdout.read_to_string(&mut said);
    }
    let (outcome, why) = match (verdict(&said), ended) {
        (Some(verdict), Some(_)) => verdict,
        (_, None) => (Outcome::Failed, format!("it did not return within {} s", args.limit)),
        (None, Some(status)) => (Outcome::Crashed, how(status)),
    };
    Ok(Finding { name: case.name, about: case.about, outcome, why })
}

fn spawn(args: &CheckArgs, name: &str) -> io::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["plugin", "check"]).arg(&args.subject.file).args(["--in-this-process", name]);
    command.args(args.subject.set.iter().map(|(name, value)| format!("--set={name}={value}")));
    if let Some(dir) = &args.fixtures {
        command.arg("--fixtures").arg(dir);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()
}

/// How the child ended; `None`: it did not within `limit` and was killed. What it waits for a processor does not count,
/// or a busy machine would find every plugin slow.
fn wait(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let mut deadline = Instant::now() + limit;
    let mut excused = Duration::ZERO;
    let pidfd = rustix::process::pidfd_open(
        rustix::process::Pid::from_child(child),
        rustix::process::PidfdFlags::empty(),
    )?;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)], Some(&left)) {
            Ok(0) => {
                let waited = waited_for_processor(child.id());
                let more = waited.saturating_sub(excused);
                if more < WORTH_WAITING {
                    break;
                }
                (deadline, excused) = (deadline + more, waited);
            }
            Ok(_) => return child.wait().map(Some),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    child.kill()?;
    child.wait().map(|_| None)
}

/// How long the process's main thread has been ready to run and did not; zero where the kernel does not tell.
fn waited_for_processor(pid: u32) -> Duration {
    let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap_or_default();
    let nanoseconds = text.split_ascii_whitespace().nth(1).and_then(|figure| figure.parse().ok());
    Duration::from_nanos(nanoseconds.unwrap_or(0))
}

/// The verdict that a child printed; a plugin may have printed as well.
fn verdict(said: &str) -> Option<(Outcome, String)> {
    let (outcome, why): (String, String) = serde_json::from_str(said.lines().last()?).ok()?;
    let outcome = Outcome::ALL.into_iter().find(|known| known.name() == outcome)?;
    Some((outcome, why))
}

fn how(status: ExitStatus) -> String {
    match status.signal() {
        Some(signal) => format!("it died of signal {signal}"),
        None => format!("it ended the process: {status}"),
    }
}
