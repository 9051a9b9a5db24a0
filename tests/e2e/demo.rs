//! `yagent demo`: it shows repairs and leaves nothing behind.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
};

use yagent_tests::{
    process::{self, Signal},
    programs, wait,
};

fn demo(dir: &Path, words: &[&str]) -> Child {
    demo_to(fs::File::create(dir.join("../out")).unwrap().into(), dir, words)
}

fn demo_to(out: Stdio, dir: &Path, words: &[&str]) -> Child {
    Command::new(programs::yagent())
        .arg("demo")
        .args(words)
        .env("TMPDIR", dir)
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(fs::File::create(dir.join("../err")).unwrap())
        .spawn()
        .unwrap()
}

/// A directory of its own, by whose name everything that the demo started can be found.
fn place() -> (tempfile::TempDir, std::path::PathBuf) {
    let outer = tempfile::Builder::new().prefix("yagent-demo-").tempdir().unwrap();
    let inner = outer.path().join("tmp");
    fs::create_dir(&inner).unwrap();
    (outer, inner)
}

/// Waits until the agent and its caches run.
fn wait_caches(child: &mut Child, dir: &Path) {
    wait::until("it starts caches", || {
        if let Some(status) = child.try_wait().unwrap() {
            panic!("it ended with {status}: {}", said(dir));
        }
        let tied = process::tied_to(dir).into_iter().map(process::command_line);
        let caches = tied.filter(|line| line.contains("memcached") || line.contains("redis-server")).count();
        wait::check(caches >= 5, || format!("{caches} caches"))
    });
}

fn said(dir: &Path) -> String {
    ["out", "err"].map(|name| fs::read_to_string(dir.join("..").join(name)).unwrap_or_default()).concat()
}

fn left_behind(dir: &Path) -> Vec<String> {
    let of_files = fs::read_dir(dir).unwrap().flatten().map(|entry| entry.path().display().to_string());
    of_files.chain(process::tied_to(dir).into_iter().map(process::command_line)).collect()
}

#[test]
fn it_repairs_shows_figures_and_leaves_nothing_behind() {
    let (_outer, dir) = place();
    let mut child = demo(&dir, &["--seconds", "12"]);
    wait_caches(&mut child, &dir);
    let status = wait::until("it ends by itself", || child.try_wait().unwrap().ok_or("it still runs"));
    let said = said(&dir);
    assert_eq!(status.code(), Some(0), "{said}");
    for part in ["memcached", "redis", "repair", "ms"] {
        assert!(said.contains(part), "«{part}» is not in: {said}");
    }
    assert_eq!(left_behind(&dir), Vec::<String>::new());
}

#[test]
fn ctrl_c_ends_it_and_leaves_nothing_behind() {
    let (_outer, dir) = place();
    let mut child = demo(&dir, &[]);
    wait_caches(&mut child, &dir);
    process::signal(child.id(), Signal::INT);
    wait::until("it ends", || child.try_wait().unwrap().ok_or("it still runs"));
    wait::until("all is gone", || {
        let left = left_behind(&dir);
        wait::check(left.is_empty(), || format!("{left:?}"))
    });
}

#[test]
fn regression_a_reader_that_went_away_left_the_caches_behind() {
    let (_outer, dir) = place();
    let mut child = demo_to(Stdio::piped(), &dir, &["--seconds", "3"]);
    drop(child.stdout.take());
    let status = wait::until("it ends by itself", || child.try_wait().unwrap().ok_or("it still runs"));
    assert_eq!(status.code(), Some(0), "{}", said(&dir));
    assert_eq!(left_behind(&dir), Vec::<String>::new());
}

#[test]
fn it_fails_over_measures_and_leaves_nothing_behind() {
    let (_outer, dir) = place();
    let mut child = demo(&dir, &["--failover", "--seconds", "25"]);
    let status = wait::until("it ends by itself", || child.try_wait().unwrap().ok_or("it still runs"));
    let said = said(&dir);
    assert_eq!(status.code(), Some(0), "{said}");
    for part in ["is killed with kill -9", "acknowledges writes after a gap of", "failovers: no writes for"] {
        assert!(said.contains(part), "«{part}» is not in: {said}");
    }
    // A fencer ends when it sees the last of its servers dead.
    wait::until("nothing is left behind", || {
        let left = left_behind(&dir);
        wait::check(left.is_empty(), || format!("{left:?}"))
    });
}

#[test]
fn ctrl_c_ends_the_failover_demo_at_any_time_and_leaves_nothing_behind() {
    let (_outer, dir) = place();
    let mut child = demo(&dir, &["--failover"]);
    wait::until("it starts its agents", || {
        if let Some(status) = child.try_wait().unwrap() {
            panic!("it ended with {status}: {}", said(&dir));
        }
        wait::check(said(&dir).contains("three agents"), || said(&dir))
    });
    process::signal(child.id(), Signal::INT);
    let status = wait::until("it ends", || child.try_wait().unwrap().ok_or("it still runs"));
    assert_eq!(status.code(), Some(0), "{}", said(&dir));
    // A fencer ends when it sees the last of its servers dead.
    wait::until("nothing is left behind", || {
        let left = left_behind(&dir);
        wait::check(left.is_empty(), || format!("{left:?}"))
    });
}
