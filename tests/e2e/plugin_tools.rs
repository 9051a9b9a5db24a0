//! The verbs for authors of plugins: what the validator says of good plugins and of bad ones.

use std::{
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;
use yagent_tests::{plugins, programs};

fn yagent(words: &[&str]) -> Output {
    Command::new(programs::yagent()).args(words).output().unwrap()
}

/// What the validator finds: its exit code and the findings that are neither passed nor skipped.
fn check(file: &Path, more: &[&str]) -> (Option<i32>, Vec<String>) {
    let words = [&["plugin", "check", file.to_str().unwrap(), "--json"], more].concat();
    let output = yagent(&words);
    let found: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    let cases = found["cases"].as_array().unwrap();
    let told = |case: &&Value| !["passed", "skipped"].contains(&case["outcome"].as_str().unwrap());
    let line = |case: &Value| {
        let text = |key: &str| case[key].as_str().unwrap().to_owned();
        assert!(!text("about").is_empty());
        format!("{} {}: {}", text("outcome"), text("name"), text("why"))
    };
    (output.status.code(), cases.iter().filter(told).map(line).collect())
}

fn bad(dir: &Path, place: &str, what: &str) -> std::path::PathBuf {
    let source = plugins::repository().join("tests/fixtures/plugins/bad.c");
    let options = [format!("-DBAD_AT={place}"), format!("-DBAD_DO={what}")];
    plugins::compile(&source, dir, "memcached", &[&options[0], &options[1]])
}

#[test]
fn the_projects_own_plugins_pass() {
    let built = programs::yagent();
    for engine in ["memcached", "redis"] {
        let file = built.with_file_name(format!("libyagent_{engine}.so"));
        let fixtures = plugins::repository().join(format!("plugins/{engine}/fixtures"));
        let (code, found) =
            check(&file, &["--fixtures", fixtures.to_str().unwrap(), "--set", "redis_dir=/var/lib/redis"]);
        assert_eq!((code, found), (Some(0), Vec::new()), "{engine}");
    }
}

#[test]
fn a_bad_plugin_is_found_out_and_the_other_cases_run_on() {
    let dir = tempfile::tempdir().unwrap();
    let good = bad(dir.path(), "PROBE", "nothing");
    assert_eq!(check(&good, &["--limit", "20"]), (Some(0), Vec::new()));
    for (place, what, only, expected) in [
        ("ENTRY", "crash", "load", "crashed load: it died of signal 11"),
        ("ENTRY", "loop", "load", "failed load: it did not return within 1 s"),
        ("CONSTRUCTOR", "give_up", "load", "crashed load: it died of signal 6"),
        ("CREATE", "crash", "create/settings", "crashed create/settings: it died of signal 11"),
        ("PROBE", "loop", "probe/begin", "failed probe/begin: it did not return within 1 s"),
        ("PROBE", "overflow", "probe/begin", "crashed probe/begin: it died of signal 6"),
        ("PROBE", "flood", "probe/begin", "failed probe/begin: probe on BEGIN: text: more than 512 texts"),
        (
            "PROBE",
            "not_utf8",
            "probe/begin",
            "failed probe/begin: probe on BEGIN: text: `a` is not UTF-8: invalid utf-8 sequence of 1 bytes from index 0",
        ),
        ("PROBE", "keep", "sink*", "failed sink/in-call: a sink was used outside of its call"),
        ("STATS", "foreign", "sink*", "failed sink/in-call: a sink was used outside of its call"),
        ("STATS", "start_thread", "hooks/alone", "failed hooks/alone: 1 more threads"),
        ("STATS", "open_file", "hooks/alone", "failed hooks/alone: 1 more open files"),
    ] {
        let file = bad(dir.path(), place, what);
        let (code, found) = check(&file, &["--only", only, "--limit", "1"]);
        assert_eq!((code, found), (Some(69), vec![expected.to_owned()]), "{what} at {place}");
    }
    let file = bad(dir.path(), "STATS", "leak");
    let (code, found) = check(&file, &["--only", "memory"]);
    assert!(
        code == Some(0) && found[0].starts_with("warning hooks/memory: 20000 conversations took "),
        "{found:?}"
    );
    let file = bad(dir.path(), "STATS", "slow");
    let (_, found) = check(&file, &["--only", "time", "--limit", "100"]);
    assert!(found[0].starts_with("failed hooks/time: stats takes "), "{found:?}");
}

#[test]
fn a_panic_takes_the_plugin_out_of_use_with_its_message() {
    let dir = tempfile::tempdir().unwrap();
    let source = plugins::repository().join("tests/fixtures/plugins/panic.rs");
    let file = plugins::compile_rust(&source, dir.path(), "panics");
    let (code, found) = check(&file, &["--only", "probe/begin"]);
    let expected = "failed probe/begin: probe on BEGIN: probe: it panicked: the sky fell";
    assert_eq!((code, found), (Some(69), vec![expected.to_owned()]));
}

#[test]
fn what_cannot_be_loaded_skips_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("libyagent_x.so");
    let output = yagent(&["plugin", "check", file.to_str().unwrap(), "--only", "create/nothing"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("cannot read plugin") && said.contains("No such file"), "{said}");
    assert!(said.ends_with("0 passed, 1 failed, 0 crashed, 1 skipped, 0 warning\n"), "{said}");
    assert_eq!(output.status.code(), Some(69));
    assert_eq!(yagent(&["plugin", "check", "x", "--only", "nosuchcase"]).status.code(), Some(64));
}
