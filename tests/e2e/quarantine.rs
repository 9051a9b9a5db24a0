//! Plugins that break the agent: each leaves a mark that names it, and the third within an hour is the last.

use std::{fs, os::unix::process::ExitStatusExt, path::Path};

use yagent_tests::{cache::Redis, host::Host, plugins, process};

/// A host whose memcached plugin does `what` at `place`.
fn host_with(place: &str, what: &str) -> Host {
    let mut host = Host::new().memcached(2).redis(1).with("global", "watchdog_limit", 1);
    let dir = host.path().join("plugins");
    bad(&dir, place, what);
    host = host.environment("YAGENT_PLUGIN_DIR", dir.to_str().unwrap());
    host
}

fn bad(dir: &Path, place: &str, what: &str) {
    let source = plugins::repository().join("tests/fixtures/plugins/bad.c");
    let options = [format!("-DBAD_AT={place}"), format!("-DBAD_DO={what}")];
    plugins::compile(&source, dir, "memcached", &[&options[0], &options[1]]);
}

/// What the marks of this host say of what the agent was doing, the oldest first.
fn activities(host: &Host) -> Vec<String> {
    let mut marks: Vec<_> =
        host.state_files().into_iter().filter(|file| file.to_string_lossy().contains("/crash-")).collect();
    marks.sort();
    let first = |file| fs::read_to_string(file).unwrap().lines().next().unwrap_or_default().to_owned();
    marks.into_iter().map(first).collect()
}

/// Lets the agent run into the plugin once.
fn break_it(host: &mut Host) -> Option<i32> {
    host.launch();
    host.wait_ended().signal()
}

#[test]
fn each_way_to_break_the_agent_leaves_a_mark_that_names_the_plugin() {
    for (place, what, signal, activity) in [
        ("CONSTRUCTOR", "crash", 11, "in plugin memcached, hook a constructor, signal 11"),
        ("ENTRY", "crash", 11, "in plugin memcached, hook yagent_plugin_v1, signal 11"),
        ("ENTRY", "loop", 6, "in plugin memcached, hook yagent_plugin_v1"),
        ("CREATE", "give_up", 6, "in plugin memcached, hook create, signal 6"),
        ("PROBE", "overflow", 6, "in plugin memcached, hook probe, signal 11"),
        ("STATS", "loop", 6, "in plugin memcached, hook stats"),
    ] {
        let mut host = host_with(place, what);
        assert_eq!(break_it(&mut host), Some(signal), "{what} at {place}: {}", host.log_text());
        assert_eq!(activities(&host), [format!("activity: {activity}")], "{what} at {place}");
    }
}

#[test]
fn a_plugin_with_three_marks_is_not_loaded_until_it_is_trusted_and_its_instances_live_on() {
    let mut host = Host::new().memcached(2).redis(1).started();
    let pids = host.status().pids();
    host.term();
    let dir = host.path().join("plugins");
    let mut host = host.environment("YAGENT_PLUGIN_DIR", dir.to_str().unwrap());
    bad(&dir, "STATS", "crash");
    for _ in 0..3 {
        assert_eq!(break_it(&mut host), Some(11), "{}", host.log_text());
    }
    assert_eq!(activities(&host).len(), 3);

    host.launch();
    let status = host.wait_status("the survivors are found", |status| {
        let all = status.instances();
        all.len() == 3
            && all
                .iter()
                .all(|it| pids.contains(&it.pid) && ["up", "unattended"].contains(&it.state.as_str()))
    });
    assert!(status.fires("plugin-quarantined/memcached"), "{status}");
    let of = |engine: &str| -> Vec<String> {
        let all = status.instances().into_iter().filter(|it| it.engine == engine);
        all.map(|it| it.state).collect()
    };
    assert_eq!((of("memcached"), of("redis")), (vec!["unattended".into(); 2], vec!["up".to_owned()]));
    let told = "plugin `memcached` is in quarantine: it broke the agent 3 times within an hour, last in stats; `yagent \
                plugin trust memcached` ends it";
    assert!(host.log_text().contains(told), "{}", host.log_text());
    assert_eq!(Redis::connect(host.redis_port(0)).unwrap().call(&["PING"]).unwrap(), "PONG");

    // One that dies is told of and not started.
    process::signal(pids[0], process::Signal::KILL);
    host.wait_alert("instance-crashed/memcached");

    // Time alone changes nothing, and neither does a reload; the operator's word does.
    fs::remove_dir_all(host.state_dir().join("crashes")).unwrap();
    host.reload();
    assert!(host.status().fires("plugin-quarantined/memcached"));
    fs::remove_file(dir.join("libyagent_memcached.so")).unwrap();
    let output = host.run_plugin(&["trust", "memcached"]);
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "plugin `memcached` is trusted: `yagent reload` loads it\n"
    );
    host.reload();
    let status = host.wait_up();
    assert!(!status.fires("plugin-quarantined"), "{status}");
    let now = status.pids();
    assert!(pids[1..].iter().all(|pid| now.contains(pid)), "{pids:?} {now:?}");
}
