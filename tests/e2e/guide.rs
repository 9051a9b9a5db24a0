//! The plugin guide, followed word by word: every command block of it, in order, in one shell.

use std::{fs, process::Command};

use yagent_tests::{plugins, programs};

/// The commands of a page.
fn commands(page: &str) -> String {
    let mut blocks = page.split("\n```sh\n").skip(1);
    let first = blocks.next().expect("the guide has commands");
    let block = |text: &str| text.split_once("\n```").expect("a block ends").0.to_owned() + "\n";
    std::iter::once(first).chain(blocks).map(block).collect()
}

#[test]
fn every_command_of_the_plugin_guide_works() {
    let guide = plugins::repository().join("docs/plugin-guide.md");
    // An agent that a failure leaves behind would hold our end of its output open.
    let trap = "trap 'kill $(jobs -p) 2>/dev/null || :' EXIT\n";
    let script = trap.to_owned() + &commands(&fs::read_to_string(guide).unwrap());
    assert!(script.matches('\n').count() > 40, "{script}");
    let dir = tempfile::tempdir().unwrap();
    // The crate of this working copy stands in for the published one.
    let patch = format!(
        "[patch.crates-io]\nyagent-abi.path = {:?}\n[net]\noffline = true\n",
        plugins::repository().join("abi")
    );
    fs::create_dir(dir.path().join(".cargo")).unwrap();
    fs::write(dir.path().join(".cargo/config.toml"), patch).unwrap();
    let built = programs::yagent().parent().unwrap().display().to_string();
    let path = format!("{built}:{}", std::env::var("PATH").unwrap_or_default());
    let output = Command::new("timeout")
        .args(["--kill-after=5", "120", "bash", "-eux", "-c", &script])
        .env("PATH", path)
        .env("YAGENT_TEST_HOST", dir.path())
        .current_dir(dir.path())
        .output()
        .unwrap();
    let (said, trace) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    for pid in yagent_tests::process::tied_to(dir.path()) {
        yagent_tests::process::signal(pid, yagent_tests::process::Signal::KILL);
    }
    let log = fs::read_to_string(dir.path().join("agent.log")).unwrap_or_default();
    assert!(output.status.success(), "{said}\n{trace}\n{log}");
    assert_eq!(said.matches("24 passed, 0 failed, 0 crashed, 1 skipped, 0 warning").count(), 2, "{said}");
    assert!(log.contains("mycache:4711 died (signal 9)"), "{log}");
}
