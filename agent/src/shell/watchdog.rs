//! The watchdog: a thread that aborts the agent when its loop stands still.
//!
//! The loop says what it is about to do with [`Watchdog::beat`]. The thread counts its *own* ticks without a beat, and
//! not time: a host that was suspended or an agent that was stopped took the watchdog's ticks as well, and is no hang.
//! Before the abort it says on standard error and in a crash mark what the loop was doing. A fatal signal leaves such a
//! mark, too (`sys::crash`). Who starts the agent again is decided elsewhere, and what becomes of a plugin that has many
//! marks in `quarantine`.

use std::{
    fmt::{self, Write as _},
    fs,
    io::{self, Write as _},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle, Thread},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::{plugin::marker, sys};

/// The watchdog looks this often within its limit.
const TICKS: u32 = 8;

/// How long the crash mark may take: a disk that hangs must not stop the abort.
const MARK_LIMIT: Duration = Duration::from_secs(1);

/// Older marks are removed.
const MARKS_AT_MOST: usize = 50;

/// What the loop does. Made once and copied; making one takes a lock and memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Activity(u32);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Name {
    what: String,
    plugin: Option<(String, String)>,
}

impl Name {
    fn hook(plugin: &str, hook: &str) -> Name {
        let what = format!("in plugin {plugin}, hook {hook}");
        Name { what, plugin: Some((plugin.to_owned(), hook.to_owned())) }
    }
}

static NAMES: Mutex<Vec<Name>> = Mutex::new(Vec::new());

impl Activity {
    /// An activity of the agent's own: `waits for events`.
    pub fn named(what: &str) -> Activity {
        Activity::of(Name { what: what.to_owned(), plugin: None })
    }

    /// A call of a plugin's hook.
    pub fn hook(plugin: &str, hook: &str) -> Activity {
        Activity::of(Name::hook(plugin, hook))
    }

    fn of(name: Name) -> Activity {
        let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
        let known = names.iter().position(|n| *n == name);
        let index = known.unwrap_or_else(|| {
            names.push(name);
            names.len() - 1
        });
        Activity(u32::try_from(index).unwrap_or(u32::MAX))
    }

    fn name(self) -> Name {
        let names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
        names.get(self.0 as usize).cloned().unwrap_or_default()
    }
}

impl fmt::Display for Activity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name().what)
    }
}

/// The loop's end of the watchdog. It ends with it.
#[derive(Debug)]
pub struct Watchdog {
    shared: Arc<Shared>,
    limit: Duration,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    beats: AtomicU64,
    activity: AtomicU32,
    stop: AtomicBool,
    mark_wanted: AtomicBool,
    mark_done: AtomicBool,
    /// Who waits for the mark.
    watcher: OnceLock<Thread>,
}

impl Watchdog {
    /// Watches from now on; crash marks go to `mark_dir`. A limit of zero watches nothing.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(limit: Duration, mark_dir: PathBuf) -> io::Result<Watchdog> {
        let shared = Arc::new(Shared::default());
        shared.activity.store(Activity::named("starting").0, Relaxed);
        let thread = if limit.is_zero() { None } else { Some(watch_in_thread(&shared, limit, mark_dir)?) };
        Ok(Watchdog { shared, limit, thread })
    }

    /// The loop is alive and about to do this. Two atomic stores; never blocks.
    pub fn beat(&self, activity: Activity) {
        self.shared.activity.store(activity.0, Relaxed);
        self.shared.beats.fetch_add(1, Relaxed);
    }

    /// The loop must beat at least this often, also with nothing to do; `None`: it isn't watched.
    pub fn longest_wait(&self) -> Option<Duration> {
        (!self.limit.is_zero()).then(|| self.limit / 4)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

/// The thread that writes the mark is there from the start: a process that hangs may have no memory for a new one.
fn watch_in_thread(shared: &Arc<Shared>, limit: Duration, mark_dir: PathBuf) -> io::Result<JoinHandle<()>> {
    let (ours, its) = (shared.clone(), shared.clone());
    let marker = thread::Builder::new().name("crash-mark".into()).spawn(move || {
        mark_when_wanted(&ours, limit, &mark_dir);
    })?;
    let watcher =
        thread::Builder::new().name("watchdog".into()).spawn(move || watch(&its, limit, &marker))?;
    let _ = shared.watcher.set(watcher.thread().clone());
    Ok(watcher)
}

fn watch(shared: &Shared, limit: Duration, marker: &JoinHandle<()>) {
    let (mut seen, mut still) = (shared.beats.load(Relaxed), 0);
    while still < TICKS {
        sleep_a_tick(shared, limit / TICKS);
        if shared.stop.load(Relaxed) {
            marker.thread().unpark();
            return;
        }
        let beats = shared.beats.load(Relaxed);
        still = if beats == seen { still + 1 } else { 0 };
        seen = beats;
    }
    shared.mark_wanted.store(true, Relaxed);
    marker.thread().unpark();
    let asked = Instant::now();
    while !shared.mark_done.load(Relaxed) && asked.elapsed() < MARK_LIMIT {
        thread::park_timeout(MARK_LIMIT.saturating_sub(asked.elapsed()));
    }
    // It has its mark, or can't have one.
    sys::crash::forget();
    std::process::abort();
}

fn sleep_a_tick(shared: &Shared, tick: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < tick && !shared.stop.load(Relaxed) {
        thread::park_timeout(tick.saturating_sub(begun.elapsed()));
    }
}

fn mark_when_wanted(shared: &Shared, limit: Duration, dir: &Path) {
    while !shared.mark_wanted.load(Relaxed) {
        if shared.stop.load(Relaxed) {
            return;
        }
        thread::park();
    }
    let name = doing(shared);
    tell_stderr(&format!("yagent: the event loop stood still for {limit:?}: {}; aborting\n", name.what));
    if let Err(e) = write_mark(dir, &mark_text(&name, limit)) {
        tell_stderr(&format!("yagent: cannot write a crash mark in {}: {e}\n", dir.display()));
    }
    shared.mark_done.store(true, Relaxed);
    if let Some(watcher) = shared.watcher.get() {
        watcher.unpark();
    }
}

/// What the loop is doing: inside a plugin, else what it last said.
fn doing(shared: &Shared) -> Name {
    match marker::current() {
        Some((plugin, hook)) => Name::hook(plugin, hook),
        None => Activity(shared.activity.load(Relaxed)).name(),
    }
}

/// A pipe that nobody reads gets nothing: the mark matters more. Not through `std`, whose lock the loop may hold.
fn tell_stderr(line: &str) {
    let stderr = rustix::stdio::stderr();
    let mut fds = [PollFd::new(&stderr, PollFlags::OUT)];
    if poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0) {
        let _ = rustix::io::write(stderr, line.as_bytes());
    }
}

fn mark_text(name: &Name, limit: Duration) -> String {
    let mut text = format!("activity: {}\n", name.what);
    if let Some((plugin, hook)) = &name.plugin {
        let _ = writeln!(text, "plugin: {plugin}\nhook: {hook}");
    }
    let _ = writeln!(text, "limit_ms: {}\nversion: {}", limit.as_millis(), env!("CARGO_PKG_VERSION"));
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    tasks.for_each(|task| text.push_str(&task_text(&task.path())));
    text
}

/// Where one thread stands, as far as the kernel lets us see it.
fn task_text(task: &Path) -> String {
    let read = |file: &str| fs::read_to_string(task.join(file)).unwrap_or_default();
    let status = read("status");
    let state = status.lines().find_map(|l| l.strip_prefix("State:")).unwrap_or_default().trim();
    let id = task.file_name().unwrap_or_default().display();
    let (comm, wchan, syscall) = (read("comm"), read("wchan"), read("syscall"));
    let mut text = format!(
        "thread {id} {}: state {state}, waits in {}, system call {}\n",
        comm.trim(),
        wchan.trim(),
        syscall.trim()
    );
    for frame in read("stack").lines() {
        let _ = writeln!(text, "    {frame}");
    }
    text
}

fn write_mark(dir: &Path, text: &str) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o750).create(dir)?;
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut file = fs::File::create(dir.join(format!("crash-{unix}-{}.txt", std::process::id())))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    for old in marks_in(dir)?.into_iter().rev().skip(MARKS_AT_MOST) {
        fs::remove_file(old.1)?;
    }
    Ok(())
}

/// What a crash mark says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrashMark {
    /// When, in seconds since 1970.
    pub at_unix: u64,
    /// What the loop was doing.
    pub activity: String,
    /// The plugin that it was in.
    pub plugin: Option<String>,
    /// The hook that it was in.
    pub hook: Option<String>,
}

/// The crash marks in a directory, the oldest first; none where there is no directory.
///
/// # Errors
/// When the directory cannot be read. A mark that cannot be read has an empty activity.
pub fn crash_marks(dir: &Path) -> io::Result<Vec<CrashMark>> {
    Ok(marks_in(dir)?.into_iter().map(|(at, path)| read_mark(at, &path)).collect())
}

fn read_mark(at_unix: u64, path: &Path) -> CrashMark {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let field = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)).map(str::to_owned);
    CrashMark {
        at_unix,
        activity: field("activity: ").unwrap_or_default(),
        plugin: field("plugin: "),
        hook: field("hook: "),
    }
}

fn marks_in(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut marks = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if let Some(at) = mark_time(&path) {
            marks.push((at, path));
        }
    }
    marks.sort();
    Ok(marks)
}

/// `crash-SECONDS.txt` or `crash-SECONDS-PID.txt`.
fn mark_time(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?.strip_prefix("crash-")?.strip_suffix(".txt")?;
    name.split_once('-').map_or(name, |(seconds, _)| seconds).parse().ok()
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read,
        os::unix::process::ExitStatusExt,
        process::{Child, Command, ExitStatus, Stdio},
    };

    use rustix::process::{Pid, Signal, kill_process};

    use super::*;

    const DIR: &str = "YAGENT_TEST_WATCHDOG_DIR";
    const LIMIT: Duration = Duration::from_millis(800);

    /// Runs one test of this program again in a child of its own, where an abort does no harm.
    fn child(test: &str, dir: &Path) -> Child {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", &format!("shell::watchdog::tests::{test}")])
            .env(DIR, dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn in_child() -> Option<PathBuf> {
        std::env::var_os(DIR).map(PathBuf::from)
    }

    fn end(mut child: Child) -> (ExitStatus, String) {
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        (child.wait().unwrap(), stderr)
    }

    #[test]
    fn a_loop_that_stands_still_is_aborted_with_a_mark() {
        if let Some(dir) = in_child() {
            let watchdog = Watchdog::start(LIMIT, dir.join("not/yet/there")).unwrap();
            watchdog.beat(Activity::named("waits for events"));
            watchdog.beat(Activity::hook("memcached", "probe"));
            loop {
                thread::park();
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let begun = Instant::now();
        let (status, stderr) = end(child("a_loop_that_stands_still_is_aborted_with_a_mark", dir.path()));
        assert_eq!(status.signal(), Some(6), "{stderr}");
        assert!(begun.elapsed() >= LIMIT, "{:?}", begun.elapsed());
        assert!(
            stderr.contains("stood still for 800ms: in plugin memcached, hook probe; aborting"),
            "{stderr}"
        );
        let marks = dir.path().join("not/yet/there");
        let [mark] = &crash_marks(&marks).unwrap()[..] else { panic!("one mark in {}", marks.display()) };
        assert_eq!(mark.activity, "in plugin memcached, hook probe");
        assert_eq!((mark.plugin.as_deref(), mark.hook.as_deref()), (Some("memcached"), Some("probe")));
        let (_, path) = &marks_in(&marks).unwrap()[0];
        let text = fs::read_to_string(path).unwrap();
        assert!(text.contains(" watchdog: state ") && text.contains(" crash-mark: state "), "{text}");
    }

    #[test]
    fn a_mark_that_cannot_be_written_does_not_stop_the_abort() {
        if in_child().is_some() {
            let _watchdog = Watchdog::start(LIMIT, "/proc/no such directory".into()).unwrap();
            loop {
                thread::park();
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let (status, stderr) =
            end(child("a_mark_that_cannot_be_written_does_not_stop_the_abort", dir.path()));
        assert_eq!(status.signal(), Some(6), "{stderr}");
        assert!(stderr.contains("stood still for 800ms: starting; aborting"), "{stderr}");
        assert!(stderr.contains("cannot write a crash mark in /proc/no such directory: "), "{stderr}");
    }

    #[test]
    fn a_standard_error_that_nobody_reads_does_not_stop_the_mark_or_the_abort() {
        if let Some(dir) = in_child() {
            let _watchdog = Watchdog::start(LIMIT, dir).unwrap();
            let _ = io::stderr().write_all(&[b'x'; 1 << 20]);
            panic!("the pipe took it all");
        }
        let dir = tempfile::tempdir().unwrap();
        let mut child =
            child("a_standard_error_that_nobody_reads_does_not_stop_the_mark_or_the_abort", dir.path());
        let status = child.wait().unwrap();
        assert_eq!(status.signal(), Some(6));
        assert_eq!(crash_marks(dir.path()).unwrap().len(), 1);
    }

    #[test]
    fn an_agent_that_was_stopped_for_longer_than_the_limit_lives_on() {
        if let Some(dir) = in_child() {
            beat_until_stdin_ends(&Watchdog::start(LIMIT, dir).unwrap());
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let mut child = child("an_agent_that_was_stopped_for_longer_than_the_limit_lives_on", dir.path());
        wait_for(&mut child, "beating");
        let pid = Pid::from_child(&child);
        kill_process(pid, Signal::STOP).unwrap();
        thread::park_timeout(LIMIT * 2);
        kill_process(pid, Signal::CONT).unwrap();
        thread::park_timeout(LIMIT);
        drop(child.stdin.take());
        let (status, stderr) = end(child);
        assert!(status.success(), "{status}: {stderr}");
        assert_eq!(crash_marks(dir.path()).unwrap(), []);
    }

    fn beat_until_stdin_ends(watchdog: &Watchdog) {
        let waits = Activity::named("waits for events");
        println!("beating");
        let stdin = io::stdin();
        loop {
            watchdog.beat(waits);
            let mut fds = [PollFd::new(&stdin, PollFlags::IN)];
            if poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 20_000_000 })).unwrap() > 0 {
                return;
            }
        }
    }

    fn wait_for(child: &mut Child, word: &str) {
        let (mut seen, mut byte) = (Vec::new(), [0]);
        while !String::from_utf8_lossy(&seen).contains(word) {
            child.stdout.as_mut().unwrap().read_exact(&mut byte).unwrap();
            seen.push(byte[0]);
        }
    }

    #[test]
    fn it_ends_with_the_loop() {
        let dir = tempfile::tempdir().unwrap();
        let watchdog = Watchdog::start(Duration::from_secs(3600), dir.path().into()).unwrap();
        assert_eq!(watchdog.longest_wait(), Some(Duration::from_secs(900)));
        let begun = Instant::now();
        drop(watchdog);
        assert!(begun.elapsed() < Duration::from_secs(60));
        assert_eq!(Watchdog::start(Duration::ZERO, dir.path().into()).unwrap().longest_wait(), None);
    }

    #[test]
    fn an_activity_is_named_once() {
        let probe = Activity::hook("redis", "probe");
        assert_eq!(probe, Activity::hook("redis", "probe"));
        assert_ne!(probe, Activity::hook("redis", "stats"));
        assert_eq!(probe.to_string(), "in plugin redis, hook probe");
    }

    #[test]
    fn old_marks_are_removed_and_other_files_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        for i in 0..60 {
            fs::write(dir.path().join(format!("crash-{i}.txt")), "activity: x\n").unwrap();
        }
        fs::write(dir.path().join("crash-me.txt"), "mine").unwrap();
        write_mark(dir.path(), "activity: y\n").unwrap();
        let marks = crash_marks(dir.path()).unwrap();
        assert_eq!((marks.len(), marks[0].at_unix), (MARKS_AT_MOST, 11));
        assert_eq!(marks[MARKS_AT_MOST - 1].activity, "y");
        assert!(dir.path().join("crash-me.txt").exists());
        assert_eq!(crash_marks(&dir.path().join("none")).unwrap(), []);
    }
}
