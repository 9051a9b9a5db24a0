//! The alert command: JSON on its standard input, fired and resolved, never a brake.

use std::fs;

use serde_json::Value;
use yagent_tests::{
    host::Host,
    process::{self, Signal},
    wait,
};

/// A host whose alerts are appended to a file, one a line.
fn host(command: &str) -> Host {
    let host = Host::new().memcached(2);
    let file = host.path().join("alerts").display().to_string();
    host.with("global", "alert_command", format!("/bin/sh -c \"{}\"", command.replace("FILE", &file)))
}

fn told(host: &Host) -> Vec<Value> {
    let text = fs::read_to_string(host.path().join("alerts")).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn wait_told(host: &Host, key: &str, state: &str) -> Value {
    wait::until(&format!("{key} is told as {state}"), || {
        let all = told(host);
        let one = all.iter().find(|alert| alert["key"] == key && alert["state"] == state);
        one.cloned().ok_or_else(|| format!("{all:?}\n{}", host.log_text()))
    })
}

#[test]
fn the_command_gets_each_alert_as_json() {
    let host = host("(cat; echo) >> FILE").started();
    let port = host.mc_port(0);
    let old = host.instance("memcached", port).pid;
    process::signal(old, Signal::KILL);
    let key = format!("instance-crashed/memcached/{port}");
    let fired = wait_told(&host, &key, "firing");
    assert_eq!(fired["severity"], "critical");
    assert_eq!(fired["count"], 1);
    assert_eq!(fired["host"], "127.0.0.1");
    assert!(fired["summary"].as_str().unwrap().contains(&port.to_string()), "{fired}");
    assert!(fired["first_ms"].as_u64().unwrap() > 1_600_000_000_000);
    let resolved = wait_told(&host, &key, "resolved");
    assert!(resolved["last_ms"].as_u64() >= fired["last_ms"].as_u64());
}

#[test]
fn a_command_that_fails_is_tried_again_until_it_works() {
    // It works from the moment on in which the file `open` exists.
    let host = host("[ -e FILE.open ] && (cat; echo) >> FILE").started();
    let port = host.mc_port(0);
    let old = host.instance("memcached", port).pid;
    process::signal(old, Signal::KILL);
    host.wait_replaced("memcached", port, old);
    assert!(told(&host).is_empty());
    fs::write(host.path().join("alerts.open"), "").unwrap();
    wait_told(&host, &format!("instance-crashed/memcached/{port}"), "firing");
    wait_told(&host, &format!("instance-crashed/memcached/{port}"), "resolved");
}

#[test]
fn what_could_not_be_told_is_told_after_a_restart_of_the_agent() {
    let mut host = host("[ -e FILE.open ] && (cat; echo) >> FILE").started();
    let port = host.mc_port(0);
    let old = host.instance("memcached", port).pid;
    process::signal(old, Signal::KILL);
    host.wait_replaced("memcached", port, old);
    wait::until("it waits on disk", || {
        let spooled = host
            .state_files()
            .into_iter()
            .any(|file| fs::read_to_string(&file).is_ok_and(|text| text.contains("instance-crashed")));
        wait::check(spooled, || "nothing in the state directory names it".to_owned())
    });
    host.kill9();
    fs::write(host.path().join("alerts.open"), "").unwrap();
    host.start();
    wait_told(&host, &format!("instance-crashed/memcached/{port}"), "firing");
}

#[test]
fn an_alert_that_went_on_before_a_restart_goes_on_or_is_resolved_after_it() {
    let mut host = host("(cat; echo) >> FILE").with("global", "system_res_mem", 16_000_000).started();
    let fired = wait_told(&host, "plan-misfit", "firing");
    wait::until("it is on disk that it goes on", || {
        let text = fs::read_to_string(host.state_dir().join("active-alerts.json")).unwrap_or_default();
        wait::check(text.contains("plan-misfit"), || text.clone())
    });
    host.kill9();
    host.start();
    let status = host.wait_alert("plan-misfit");
    let goes_on = status.0["alerts"].as_array().unwrap().iter().find(|alert| alert["key"] == "plan-misfit");
    assert_eq!(goes_on.unwrap()["first_ms"], fired["first_ms"]);
    host.kill9();
    host.ini.unset("global", "system_res_mem");
    host.start();
    let over = wait_told(&host, "plan-misfit", "resolved");
    assert_eq!(over["first_ms"], fired["first_ms"]);
}

#[test]
fn a_command_that_hangs_holds_nothing_up() {
    let mut host = host("exec sleep 600");
    host.ini.set("global", "alert_timeout", 1);
    let host = host.started();
    for _ in 0..3 {
        let port = host.mc_port(1);
        let old = host.instance("memcached", port).pid;
        process::signal(old, Signal::KILL);
        host.wait_replaced("memcached", port, old);
    }
    assert_eq!(host.status().instances().iter().filter(|it| it.state == "up").count(), 2);
    wait::until("the hanging command is killed after its time", || {
        let sleeping = process::children(host.pid());
        let sleeping: Vec<String> = sleeping.into_iter().map(process::command_line).collect();
        wait::check(!sleeping.iter().any(|line| line.contains("sleep 600")), || format!("{sleeping:?}"))
    });
}
