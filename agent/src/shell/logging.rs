//! The log: written by a thread of its own, so that no disk and no pipe can stop the loop.
//!
//! A record passes a front that drops what is not wanted, is formatted by simplelog into one line, and is offered to a
//! bounded queue. What does not fit is counted, never waited for. The thread `log-writer` alone touches the file.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use log::{LevelFilter, Log, Metadata, Record};
use rustix::fs::OFlags;
use simplelog::{Config, ConfigBuilder, WriteLogger};

use crate::config::LogSettings;

/// Lines that may wait for the writer.
const LINES_AT_MOST: usize = 4096;

/// Bytes that may wait for the writer.
const BYTES_AT_MOST: usize = 1 << 20;

/// A message is cut to this many bytes.
const MESSAGE_AT_MOST: usize = 4096;

/// How long a thread that ends the process may wait for its last line to be written.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// While lines are being dropped, the log says so at most this often.
const NOTICE_EVERY: Duration = Duration::from_secs(1);

/// Opens the log and makes it this process's logger.
///
/// # Errors
/// When the file cannot be opened, no thread can be started, or a logger is installed already.
pub fn install(settings: &LogSettings) -> io::Result<LogHandle> {
    let (front, handle) = start(settings, LINES_AT_MOST)?;
    log::set_boxed_logger(Box::new(front)).map_err(io::Error::other)?;
    handle.set_level(settings.level);
    Ok(handle)
}

fn start(settings: &LogSettings, lines: usize) -> io::Result<(Front, LogHandle)> {
    let target = Target::open(settings.file.as_deref())?;
    let (sender, receiver) = sync_channel(lines);
    let shared = Arc::new(Shared::default());
    let writer = Writer { target, receiver, shared: shared.clone(), told: 0, told_at: None };
    thread::Builder::new().name("log-writer".into()).spawn(move || writer.run())?;
    let queue = Queue { sender, shared: shared.clone() };
    let sink = LineSink { line: Vec::new(), queue: queue.clone() };
    let lines = WriteLogger::new(LevelFilter::Debug, line_format(), sink);
    Ok((Front { lines, queue: queue.clone() }, LogHandle { queue }))
}

/// What the rest of the agent holds of the log. No method waits for the disk, except [`flush`](Self::flush) within
/// its limit.
#[derive(Clone, Debug)]
pub struct LogHandle {
    queue: Queue,
}

impl LogHandle {
    /// Opens the file anew, for a log that was rotated. When that fails, the old one is kept and told so.
    pub fn reopen(&self) {
        self.queue.shared.reopen.store(true, Relaxed);
        // An empty line only wakes the writer; where the queue is full it is awake.
        let _ = self.queue.sender.try_send(Vec::new());
    }

    /// Lines dropped since the start, for want of room or because they could not be written.
    pub fn dropped(&self) -> u64 {
        self.queue.shared.dropped.load(Relaxed)
    }

    /// Replaces the level. The finest is DEBUG: at TRACE the libraries would log from inside their own locks.
    pub fn set_level(&self, level: LevelFilter) {
        log::set_max_level(level.min(LevelFilter::Debug));
    }

    /// Waits until everything logged so far was written, for as long as `limit`. Returns whether it was.
    pub fn flush(&self, limit: Duration) -> bool {
        self.queue.flush(limit)
    }
}

/// What the writer shares with those that log.
#[derive(Debug, Default)]
struct Shared {
    /// Lines that the queue took.
    accepted: AtomicU64,
    /// Lines of these that were written or given up.
    handled: Mutex<u64>,
    progress: Condvar,
    /// Bytes that wait.
    waiting: AtomicUsize,
    dropped: AtomicU64,
    reopen: AtomicBool,
}

#[derive(Clone, Debug)]
struct Queue {
    sender: SyncSender<Vec<u8>>,
    shared: Arc<Shared>,
}

impl Queue {
    fn flush(&self, limit: Duration) -> bool {
        let shared = &self.shared;
        let accepted = shared.accepted.load(Relaxed);
        let handled = lock(&shared.handled);
        let wait = shared.progress.wait_timeout_while(handled, limit, |handled| *handled < accepted);
        !wait.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    fn offer(&self, line: Vec<u8>) {
        let (shared, bytes) = (&self.shared, line.len());
        let waiting = shared.waiting.fetch_add(bytes, Relaxed);
        // Counted before it is sent: the writer may be done with it before this thread runs again.
        shared.accepted.fetch_add(1, Relaxed);
        if waiting + bytes > BYTES_AT_MOST || self.sender.try_send(line).is_err() {
            shared.waiting.fetch_sub(bytes, Relaxed);
            shared.accepted.fetch_sub(1, Relaxed);
            shared.dropped.fetch_add(1, Relaxed);
        }
    }
}

/// The process's logger: decides what is wanted before anything is formatted.
struct Front {
    lines: Box<WriteLogger<LineSink>>,
    queue: Queue,
}

impl Log for Front {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level() && !is_flood(metadata.target())
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            // Formatted outside of simplelog's lock: a message that logs or panics while it is formatted would
            // leave it locked or poisoned for ever.
            let message = one_line(record.args().to_string());
            let mut passed = Record::builder();
            passed.metadata(record.metadata().clone());
            self.lines.log(&passed.args(format_args!("{message}")).build());
        }
    }

    /// For who ends the process at once; the event loop never calls it.
    fn flush(&self) {
        self.queue.flush(LAST_WORDS);
    }
}

/// The zookeeper crate logs several lines for each packet and each reconnection; what matters of it, the session
/// thread tells in its own words.
fn is_flood(target: &str) -> bool {
    target == "zookeeper" || target.starts_with("zookeeper::")
}

/// Messages hold what servers and commands said. Neither a line break nor an escape sequence may forge a line.
fn one_line(mut message: String) -> String {
    if message.len() > MESSAGE_AT_MOST {
        let end = (0..=MESSAGE_AT_MOST).rev().find(|i| message.is_char_boundary(*i)).unwrap_or(0);
        message.truncate(end);
        message.push('…');
    }
    if message.contains(char::is_control) {
        message = message.chars().map(|c| if c.is_control() { '␤' } else { c }).collect();
    }
    message
}

fn line_format() -> Config {
    ConfigBuilder::new()
        .set_time_format_rfc3339()
        .set_thread_level(LevelFilter::Off)
        .set_target_level(LevelFilter::Off)
        .set_location_level(LevelFilter::Off)
        .build()
}

/// Gathers what simplelog writes in pieces and offers whole lines.
struct LineSink {
    line: Vec<u8>,
    queue: Queue,
}

impl Write for LineSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        if bytes.ends_with(b"\n") {
            self.queue.offer(with_milliseconds(&std::mem::take(&mut self.line)));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// simplelog prints as many digits of a second as there are; columns want three.
fn with_milliseconds(line: &[u8]) -> Vec<u8> {
    let end = line.iter().position(|b| *b == b'Z').unwrap_or(0);
    let (time, rest) = line.split_at(end);
    let seconds = &time[..time.len().min(19)];
    let digits = time.get(20..).unwrap_or_default().iter().chain(b"000").take(3);
    seconds.iter().chain(b".").chain(digits).chain(rest).copied().collect()
}

/// Where lines end up.
enum Target {
    Stderr,
    File(PathBuf, File),
}

impl Target {
    fn open(file: Option<&Path>) -> io::Result<Target> {
        match file {
            None => Ok(Target::Stderr),
            Some(path) => Ok(Target::File(path.to_owned(), open(path)?)),
        }
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        match self {
            Target::Stderr => io::stderr().write_all(line),
            Target::File(_, file) => file.write_all(line),
        }
    }

    fn reopen(&mut self) -> io::Result<()> {
        if let Target::File(path, file) = self {
            *file = open(path)?;
        }
        Ok(())
    }
}

/// A pipe without a reader is refused instead of waited for; writing may wait again.
fn open(path: &Path) -> io::Result<File> {
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    let opened = OpenOptions::new().append(true).create(true).mode(0o640).custom_flags(flags).open(path);
    let told =
        |e: io::Error| io::Error::new(e.kind(), format!("cannot open log file {}: {e}", path.display()));
    let file = opened.map_err(told)?;
    let flags = rustix::fs::fcntl_getfl(&file).map_err(|e| told(e.into()))?;
    rustix::fs::fcntl_setfl(&file, flags - OFlags::NONBLOCK).map_err(|e| told(e.into()))?;
    Ok(file)
}

/// The thread that writes.
struct Writer {
    target: Target,
    receiver: Receiver<Vec<u8>>,
    shared: Arc<Shared>,
    /// How many dropped lines the log has told of, and when it last did.
    told: u64,
    told_at: Option<Instant>,
}

impl Writer {
    /// Ends when the last of those that log is gone.
    fn run(mut self) {
        while let Some(line) = self.next() {
            self.reopen_if_asked();
            if line.is_empty() {
                continue;
            }
            if self.target.write(&line).is_err() {
                self.shared.dropped.fetch_add(1, Relaxed);
            }
            self.shared.waiting.fetch_sub(line.len(), Relaxed);
            *lock(&self.shared.handled) += 1;
            self.shared.progress.notify_all();
        }
    }

    /// The next line. Before it waits, and now and then while it does not, the log is told of what it lost.
    fn next(&mut self) -> Option<Vec<u8>> {
        match self.receiver.try_recv() {
            Ok(line) => {
                if self.told_at.is_none_or(|at| at.elapsed() >= NOTICE_EVERY) {
                    self.tell_dropped();
                }
                Some(line)
            }
            Err(_) => {
                self.tell_dropped();
                self.receiver.recv().ok()
            }
        }
    }

    fn tell_dropped(&mut self) {
        let dropped = self.shared.dropped.load(Relaxed);
        if dropped > self.told {
            let notice = own_line(log::Level::Warn, &format!("{} lines dropped", dropped - self.told));
            if self.target.write(&notice).is_ok() {
                (self.told, self.told_at) = (dropped, Some(Instant::now()));
            }
        }
    }

    fn reopen_if_asked(&mut self) {
        if self.shared.reopen.swap(false, Relaxed)
            && let Err(e) = self.target.reopen()
        {
            let line = own_line(log::Level::Error, &format!("the old log file is kept: {e}"));
            if self.target.write(&line).is_err() {
                self.shared.dropped.fetch_add(1, Relaxed);
            }
        }
    }
}

/// A line of the writer's own, formatted as all others. It does not pass the queue, which may be full.
fn own_line(level: log::Level, message: &str) -> Vec<u8> {
    let (sender, receiver) = sync_channel(1);
    let queue = Queue { sender, shared: Arc::default() };
    let lines = WriteLogger::new(LevelFilter::Debug, line_format(), LineSink { line: Vec::new(), queue });
    lines.log(&Record::builder().level(level).args(format_args!("{message}")).build());
    receiver.try_recv().unwrap_or_default()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Read, os::fd::OwnedFd};

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    fn settings(file: &Path) -> LogSettings {
        LogSettings { file: Some(file.to_owned()), level: LevelFilter::Info }
    }

    /// The level is the process's; every test here wants the same.
    fn started(file: &Path, lines: usize) -> (Front, LogHandle) {
        let (front, handle) = start(&settings(file), lines).unwrap();
        handle.set_level(LevelFilter::Trace);
        (front, handle)
    }

    fn say(front: &Front, target: &str, message: &str) {
        let mut record = Record::builder();
        record.level(log::Level::Info).target(target);
        front.log(&record.args(format_args!("{message}")).build());
    }

    fn fifo(dir: &Path) -> PathBuf {
        let path = dir.join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        path
    }

    /// The reading end of a pipe, opened without waiting for a writer.
    fn reader(path: &Path) -> File {
        let opened = rustix::fs::open(path, OFlags::RDONLY | OFlags::NONBLOCK, rustix::fs::Mode::empty());
        let end: OwnedFd = opened.unwrap();
        rustix::fs::fcntl_setfl(&end, OFlags::empty()).unwrap();
        end.into()
    }

    #[test]
    fn a_line_has_time_level_and_message() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let (front, handle) = started(&path, 16);
        say(&front, "yagent", "memcached 11211 is up");
        assert!(handle.flush(LONG));
        let text = fs::read_to_string(&path).unwrap();
        let (time, rest) = text.split_once(' ').unwrap();
        assert_eq!(rest, "[INFO] memcached 11211 is up\n");
        assert_eq!((time.len(), &time[10..11], &time[19..20], &time[23..]), (24, "T", ".", "Z"));
    }

    #[test]
    fn the_zookeeper_crate_is_not_heard() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let (front, handle) = started(&path, 16);
        for target in ["zookeeper", "zookeeper::io", "zookeeper_like"] {
            say(&front, target, target);
        }
        assert!(handle.flush(LONG));
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.ends_with("zookeeper_like\n") && text.lines().count() == 1, "{text}");
    }

    #[test]
    fn a_message_cannot_forge_lines_or_fill_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let (front, handle) = started(&path, 16);
        say(&front, "yagent", "a\n2026 [ERROR] b\x1b[31m");
        say(&front, "yagent", &"ü".repeat(10_000));
        assert!(handle.flush(LONG));
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 2);
        assert!(text.contains("a␤2026 [ERROR] b␤[31m\n") && text.len() < 4300);
    }

    #[test]
    fn a_message_that_panics_or_logs_while_formatted_does_not_silence_the_log() {
        struct Bad<'a>(&'a Front);
        impl std::fmt::Display for Bad<'_> {
            fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                say(self.0, "yagent", "from inside");
                panic!("cannot be formatted");
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let (front, handle) = started(&path, 16);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            front.log(
                &Record::builder().level(log::Level::Info).args(format_args!("{}", Bad(&front))).build(),
            );
        }));
        assert!(panicked.is_err());
        say(&front, "yagent", "and on");
        assert!(handle.flush(LONG));
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("from inside") && text.contains("and on"), "{text}");
    }

    #[test]
    fn a_pipe_that_nobody_reads_blocks_nobody_and_is_told_of_later() {
        let dir = tempfile::tempdir().unwrap();
        let path = fifo(dir.path());
        let mut reader = reader(&path);
        let (front, handle) = started(&path, 8);
        let begun = Instant::now();
        for _ in 0..1000 {
            say(&front, "yagent", &"x".repeat(1000));
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        let dropped = handle.dropped();
        assert!(dropped > 800, "{dropped}");
        assert!(!handle.flush(Duration::from_millis(50)), "the pipe is full");
        drop((front, handle));
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        let lines = text.lines().filter(|l| l.ends_with('x')).count() as u64;
        assert_eq!(lines + dropped, 1000);
        let told: u64 = text.lines().filter_map(dropped_told).sum();
        assert_eq!(told, dropped);
    }

    fn dropped_told(line: &str) -> Option<u64> {
        line.strip_suffix(" lines dropped")?.rsplit(' ').next()?.parse().ok()
    }

    #[test]
    fn what_waits_is_bounded_in_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = fifo(dir.path());
        let _reader = reader(&path);
        let (front, handle) = started(&path, LINES_AT_MOST);
        for _ in 0..1000 {
            say(&front, "yagent", &"x".repeat(4000));
        }
        assert!(handle.queue.shared.waiting.load(Relaxed) <= BYTES_AT_MOST);
        assert!(handle.dropped() > 600, "{}", handle.dropped());
    }

    #[test]
    fn a_full_disk_is_counted() {
        let (front, handle) = started(Path::new("/dev/full"), 16);
        for _ in 0..3 {
            say(&front, "yagent", "lost");
        }
        assert!(handle.flush(LONG));
        assert_eq!(handle.dropped(), 3);
    }

    #[test]
    fn a_rotated_file_is_opened_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("log"), dir.path().join("log.1"));
        let (front, handle) = started(&path, 16);
        say(&front, "yagent", "before");
        assert!(handle.flush(LONG));
        fs::rename(&path, &old).unwrap();
        handle.reopen();
        say(&front, "yagent", "after");
        assert!(handle.flush(LONG));
        assert!(fs::read_to_string(&old).unwrap().ends_with("before\n"));
        assert!(fs::read_to_string(&path).unwrap().ends_with("after\n"));
    }

    #[test]
    fn a_file_that_cannot_be_opened_anew_leaves_the_old_one_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("log"), dir.path().join("log.1"));
        let (front, handle) = started(&path, 16);
        fs::rename(&path, &old).unwrap();
        fs::create_dir(&path).unwrap();
        handle.reopen();
        say(&front, "yagent", "after");
        assert!(handle.flush(LONG));
        let text = fs::read_to_string(&old).unwrap();
        assert!(text.contains("the old log file is kept: cannot open log file"), "{text}");
        assert!(text.ends_with("after\n"));
    }

    #[test]
    fn a_file_that_cannot_be_opened_at_the_start_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        for path in [dir.path().to_owned(), dir.path().join("no/log"), fifo(dir.path())] {
            let error = start(&settings(&path), 16).err().unwrap().to_string();
            assert!(error.starts_with(&format!("cannot open log file {}: ", path.display())), "{error}");
        }
    }
}
