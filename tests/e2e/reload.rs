//! SIGHUP and `reload`: only what changed is touched, and a bad file changes nothing.

use yagent_tests::{
    host::Host,
    process::{self, Signal},
    wait,
};

fn up_ports(host: &Host, count: usize) -> Vec<u16> {
    let status = host.wait_status(&format!("{count} instances are up"), |status| {
        let instances = status.instances();
        instances.len() == count && instances.iter().all(|it| it.state == "up" && it.health == "serving")
    });
    status.instances().iter().map(|it| it.port).collect()
}

#[test]
fn sighup_starts_more_instances_and_leaves_the_others_alone() {
    let mut host = Host::new().memcached(2).started();
    let before = host.status().pids();
    host.ini.set("memcached", "mc_count", 4);
    host.write_ini();
    host.signal(Signal::HUP);
    assert_eq!(up_ports(&host, 4), [0, 1, 2, 3].map(|index| host.mc_port(index)));
    assert_eq!(host.status().pids()[..2], before[..]);
}

#[test]
fn sighup_with_fewer_instances_ends_just_those() {
    let mut host = Host::new().memcached(3).started();
    let before = host.status().pids();
    host.ini.set("memcached", "mc_count", 1);
    host.write_ini();
    host.signal(Signal::HUP);
    assert_eq!(up_ports(&host, 1), [host.mc_port(0)]);
    assert_eq!(host.status().pids()[0], before[0]);
    before[1..].iter().for_each(|&pid| process::wait_gone(pid));
    assert_eq!(host.listeners().len(), 1);
}

#[test]
fn an_engine_can_be_turned_on_and_off() {
    let mut host = Host::new().memcached(1).started();
    let before = host.status().pids();
    host.ini.set("redis", "redis_enabled", 1);
    assert_eq!(host.reload()["ok"], true);
    assert_eq!(up_ports(&host, 2), [host.mc_port(0), host.redis_port(0)]);
    host.ini.set("redis", "redis_enabled", 0);
    assert_eq!(host.reload()["ok"], true);
    assert_eq!(up_ports(&host, 1), [host.mc_port(0)]);
    assert_eq!(host.status().pids(), before);
}

#[test]
fn a_bad_file_keeps_the_old_settings_and_says_so() {
    let mut host = Host::new().memcached(2).started();
    let before = host.listeners();
    host.ini.set("memcached", "mc_count", 3).set("memcached", "mc_port", 70000);
    let answer = host.reload();
    assert_eq!(answer["ok"], false, "{answer}");
    let message = answer["message"].as_str().unwrap();
    assert!(message.contains("70000") && message.contains("yagent.ini:"), "{message}");
    let output = host.run(&["reload"]);
    assert!(!output.status.success(), "{output:?}");
    assert_eq!(host.listeners(), before);

    host.ini.set("memcached", "mc_port", host.mc_port(0));
    assert_eq!(host.reload()["ok"], true);
    up_ports(&host, 3);
    assert!(host.listeners().is_superset(&before));
}

#[test]
fn sighup_with_a_bad_file_is_told_and_survived() {
    let mut host = Host::new().memcached(1).started();
    let before = host.listeners();
    std::fs::write(host.file(), "this is no ini file\n").unwrap();
    host.signal(Signal::HUP);
    wait::until("the log says what is wrong", || {
        let log = host.log_text();
        wait::check(log.contains("yagent.ini:1:"), || log)
    });
    host.wait_alert("reload-failed");
    assert_eq!(host.listeners(), before);
    host.ini.set("memcached", "mc_count", 2);
    host.write_ini();
    host.signal(Signal::HUP);
    up_ports(&host, 2);
    host.wait_status("the alert is over", |status| !status.fires("reload-failed"));
    assert!(host.listeners().is_superset(&before));
}

#[test]
fn what_a_start_would_refuse_a_reload_refuses() {
    let mut host = Host::new().memcached(1).started();
    for args in ["-u nosuchuser", "-l cache.invalid"] {
        host.ini.set("memcached", "mc_args", args);
        let answer = host.reload();
        assert_eq!(answer["ok"], false, "{args}: {answer}");
    }
}
