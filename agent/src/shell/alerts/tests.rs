use std::{fs, path::Path};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tempfile::TempDir;

use super::*;

const LONG: Duration = Duration::from_secs(60);

/// There is one [`child_in_flight`] in a process.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

struct Bench {
    _alone: MutexGuard<'static, ()>,
    dir: TempDir,
    waker: Waker,
}

impl Bench {
    fn new() -> Bench {
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        Bench { _alone: alone, dir: tempfile::tempdir().unwrap(), waker: Waker::new().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn sender(&self, settings: &AlertSettings) -> AlertSender {
        AlertSender::start(settings, self.path("spool"), origin(), self.waker.clone()).unwrap()
    }

    /// Waits until it is so, looking at each end of a command.
    fn wait_until(&self, what: &str, so: impl Fn() -> bool) {
        let begun = Instant::now();
        while !so() {
            assert!(begun.elapsed() < LONG, "never: {what}");
            // The waker may be woken just before the status is written, hence the limit.
            let limit = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
            poll(&mut [PollFd::new(&self.waker, PollFlags::IN)], Some(&limit)).unwrap();
            self.waker.drain();
        }
    }

    fn spooled(&self) -> usize {
        fs::read_dir(self.path("spool")).map_or(0, |dir| dir.count())
    }
}

fn origin() -> Origin {
    Origin { host: "10.0.0.1".into(), group: "default".into() }
}

fn shell(script: &str) -> AlertSettings {
    let command = ["/bin/sh", "-c", script].map(str::to_owned).into();
    AlertSettings { command, timeout: LONG, repeat: LONG }
}

fn keep_in(out: &Path) -> AlertSettings {
    shell(&format!("cat >> '{}'", out.display()))
}

fn alert(i: u64) -> Alert {
    Alert {
        key: format!("instance-hung/memcached/{i}"),
        severity: Severity::Critical,
        state: AlertState::Firing,
        summary: "it \"hangs\"\nfor long".into(),
        first_ms: 1,
        last_ms: 2,
        count: i,
    }
}

fn counts(out: &Path) -> Vec<u64> {
    let text = fs::read_to_string(out).unwrap_or_default();
    let json = text.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
    json.map(|alert| alert["count"].as_u64().unwrap()).collect()
}

#[test]
fn the_next_run_knows_which_alerts_went_on() {
    let bench = Bench::new();
    let settings = AlertSettings { command: Vec::new(), ..shell("") };
    let sender = bench.sender(&settings);
    assert_eq!(sender.inherited(), []);
    let (first, second) = (alert(1), alert(2));
    sender.send(&first);
    sender.send(&second);
    sender.send(&Alert { state: AlertState::Resolved, ..first });
    assert!(sender.close(LONG));
    assert_eq!(bench.sender(&settings).inherited(), [second]);
    fs::write(bench.path("active-alerts.json"), "[{").unwrap();
    assert_eq!(bench.sender(&settings).inherited(), [], "nonsense is told and harms nobody");
}

#[test]
fn the_command_gets_the_alert_as_one_line_of_json() {
    let bench = Bench::new();
    let out = bench.path("out");
    let sender = bench.sender(&keep_in(&out));
    sender.send(&alert(7));
    bench.wait_until("delivered", || sender.status().delivered == 1);
    assert_eq!(
        fs::read_to_string(&out).unwrap(),
        concat!(
            r#"{"key":"instance-hung/memcached/7","severity":"critical","state":"firing","#,
            r#""summary":"it \"hangs\"\nfor long","first_ms":1,"last_ms":2,"count":7,"#,
            r#""host":"10.0.0.1","group":"default","agent":"0.1.0"}"#,
            "\n"
        )
    );
    assert_eq!(child_in_flight(), InFlight::None);
    assert_eq!(bench.spooled(), 0);
}

#[test]
fn what_is_not_taken_is_spooled_and_delivered_in_order_by_the_next_run() {
    let bench = Bench::new();
    let sender = bench.sender(&shell("echo no route >&2; exit 3"));
    for i in 1..=12 {
        sender.send(&alert(i));
    }
    bench.wait_until("spooled", || sender.status().spooled == 12);
    assert_eq!(sender.status().failing, "exited with status 3: no route");
    assert!(sender.close(LONG));
    assert_eq!(bench.spooled(), 12);

    let out = bench.path("out");
    let sender = bench.sender(&keep_in(&out));
    sender.send(&alert(13));
    bench.wait_until("delivered", || sender.status().delivered == 13);
    assert_eq!(counts(&out), (1..=13).collect::<Vec<_>>());
    assert_eq!((sender.status().failing.as_str(), bench.spooled()), ("", 0));
}

#[test]
fn it_is_tried_again_without_any_news() {
    let bench = Bench::new();
    let (out, gate) = (bench.path("out"), bench.path("gate"));
    let script = format!("test -e '{}' || exit 1; cat >> '{}'", gate.display(), out.display());
    let sender = bench.sender(&shell(&script));
    sender.send(&alert(1));
    bench.wait_until("failing", || !sender.status().failing.is_empty());
    fs::write(&gate, "").unwrap();
    bench.wait_until("delivered", || sender.status().delivered == 1);
    assert_eq!(counts(&out), [1]);
}

#[test]
fn new_settings_are_tried_at_once() {
    let bench = Bench::new();
    let out = bench.path("out");
    let sender = bench.sender(&shell("exit 1"));
    sender.send(&alert(1));
    bench.wait_until("failing", || !sender.status().failing.is_empty());
    sender.configure(&keep_in(&out), origin());
    bench.wait_until("delivered", || sender.status().delivered == 1);
    assert_eq!(counts(&out), [1]);
}

#[test]
fn a_command_that_takes_too_long_dies_with_all_it_started() {
    let bench = Bench::new();
    let pids = bench.path("pids");
    let script = format!("sleep 1000 & echo $! > '{0}.new'; mv '{0}.new' '{0}'; wait", pids.display());
    let sender = bench.sender(&AlertSettings { timeout: Duration::from_secs(2), ..shell(&script) });
    sender.send(&alert(1));
    bench.wait_until("failing", || !sender.status().failing.is_empty());
    assert_eq!(sender.status().failing, "took too long and was killed");
    let pid = fs::read_to_string(&pids).unwrap().trim().to_owned();
    // Whoever reaps it: what was killed is a zombie or gone.
    bench.wait_until("dead", || {
        let status = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        status.is_empty() || status.contains(") Z ")
    });
    assert_eq!(sender.status().spooled, 1);
}

#[test]
fn a_command_that_talks_without_end_is_killed_in_time() {
    let bench = Bench::new();
    let settings = AlertSettings { timeout: Duration::from_secs(2), ..shell("exec yes >&2") };
    let sender = bench.sender(&settings);
    sender.send(&alert(1));
    bench.wait_until("failing", || !sender.status().failing.is_empty());
    let failing = sender.status().failing;
    assert!(failing.starts_with("took too long and was killed: y\ny\n") && failing.len() < 400, "{failing}");
}

#[test]
fn a_command_that_reads_nothing_or_leaves_a_child_behind_still_took_it() {
    let bench = Bench::new();
    let pids = bench.path("pids");
    let sender = bench.sender(&shell(&format!("sleep 1000 & echo $! > '{}'", pids.display())));
    let begun = Instant::now();
    sender.send(&Alert { summary: "x".repeat(1 << 20), ..alert(1) });
    bench.wait_until("delivered", || sender.status().delivered == 1);
    assert!(begun.elapsed() < Duration::from_secs(30));
    let pid: i32 = fs::read_to_string(&pids).unwrap().trim().parse().unwrap();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
}

#[test]
fn a_missing_program_is_told() {
    let bench = Bench::new();
    let command = vec!["/no/such/program".to_owned(), "arg".to_owned()];
    let sender = bench.sender(&AlertSettings { command, timeout: LONG, repeat: LONG });
    sender.send(&alert(1));
    bench.wait_until("failing", || !sender.status().failing.is_empty());
    let failing = sender.status().failing;
    assert!(failing.starts_with("cannot be started: /no/such/program arg: No such file"), "{failing}");
    assert_eq!(child_in_flight(), InFlight::None);
}

#[test]
fn sending_never_waits_and_what_has_no_room_is_counted() {
    let bench = Bench::new();
    let sender = bench.sender(&shell("sleep 1000"));
    sender.send(&alert(0));
    bench.wait_until("running", || matches!(child_in_flight(), InFlight::Child(_)));
    let begun = Instant::now();
    for i in 1..=1000 {
        sender.send(&alert(i));
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let status = sender.status();
    assert_eq!((status.waiting, status.dropped), (WAITING_AT_MOST + 1, 1000 - WAITING_AT_MOST as u64));
    assert!(sender.close(Duration::from_millis(300)));
    assert_eq!(bench.spooled(), WAITING_AT_MOST + 1);
}

#[test]
fn a_slow_command_fills_the_disk_and_not_the_memory() {
    let bench = Bench::new();
    let (out, gate) = (bench.path("out"), bench.path("gate"));
    let made = std::process::Command::new("mkfifo").arg(&gate).status().unwrap();
    assert!(made.success());
    // Each run waits until this test lets it go on.
    let script = format!("read go < '{}'; cat >> '{}'", gate.display(), out.display());
    let sender = bench.sender(&shell(&script));
    let mut sent = 0;
    let mut send = |n| (0..n).for_each(|_| (sent += 1, sender.send(&alert(sent))).1);
    for round in 1..=3 {
        send(WAITING_AT_MOST as u64);
        fs::write(&gate, "go\n").unwrap();
        bench.wait_until("delivered", || sender.status().delivered >= round);
        // The next one runs: what was sent so far is off the desk.
        bench.wait_until("running", || matches!(child_in_flight(), InFlight::Child(_)));
    }
    assert!(sender.status().spooled > 0);
    let status = sender.status();
    assert_eq!((status.spooled + status.waiting, status.dropped), (3 * WAITING_AT_MOST - 3, 0));
    assert_eq!(counts(&out), [1, 2, 3]);
}

#[test]
fn without_a_disk_alerts_wait_in_memory() {
    let bench = Bench::new();
    fs::write(bench.path("spool"), "not a directory").unwrap();
    let out = bench.path("out");
    let sender = bench.sender(&shell("exit 1"));
    for i in 1..=3 {
        sender.send(&alert(i));
    }
    bench.wait_until("failing", || !sender.status().failing.is_empty() && sender.status().waiting == 3);
    sender.configure(&keep_in(&out), origin());
    bench.wait_until("delivered", || sender.status().delivered == 3);
    assert_eq!((counts(&out), sender.status().dropped), (vec![1, 2, 3], 0));
}

#[test]
fn without_a_command_the_log_is_all() {
    let bench = Bench::new();
    let sender = bench.sender(&AlertSettings { command: vec![], timeout: LONG, repeat: LONG });
    sender.send(&alert(1));
    assert_eq!(sender.status(), AlertStatus::default());
    assert!(sender.close(LONG));
    assert_eq!(bench.spooled(), 0);
}

#[test]
fn closing_delivers_what_it_can() {
    let bench = Bench::new();
    let out = bench.path("out");
    let sender = bench.sender(&keep_in(&out));
    for i in 1..=5 {
        sender.send(&alert(i));
    }
    assert!(sender.close(LONG));
    assert_eq!((counts(&out), bench.spooled()), (vec![1, 2, 3, 4, 5], 0));
}
