//! Input that no agent should run with: one line that says where and what, exit code 78, nothing started.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::{Command, Stdio},
};

use yagent_tests::{host::Host, process, programs};

const BAD_CONFIGURATION: i32 = 78;
/// The user and group nobody and nogroup of Debian.
const NOBODY: u32 = 65534;

/// Runs the agent on a host that it must refuse; returns what it says.
fn refused(mut host: Host) -> String {
    host.launch();
    refusal_of(&mut host)
}

fn refusal_of(host: &mut Host) -> String {
    let status = host.wait_ended();
    let said = host.log_text();
    assert_eq!(status.code(), Some(BAD_CONFIGURATION), "{said}");
    assert!(host.listeners().is_empty(), "nothing is started: {said}");
    assert_eq!(said.trim_end().lines().count(), 1, "one line: {said}");
    assert!(!said.contains("panicked"), "{said}");
    said
}

/// Asserts that a key with a bad value is refused with file, line, key and what was found.
fn refused_value(section: &str, key: &str, value: &str) {
    let host = Host::new().memcached(1).redis(1).with(section, key, value);
    let text = host.ini.to_string();
    let line = text.lines().position(|line| line == format!("{key}={value}")).unwrap() + 1;
    let said = refused(host);
    let place = format!("yagent.ini:{line}:");
    for part in [place.as_str(), key, value] {
        assert!(said.contains(part), "{section}.{key}={value}: «{part}» is not in: {said}");
    }
}

fn refused_with(host: Host, parts: &[&str]) {
    let said = refused(host);
    for part in parts {
        assert!(said.contains(part), "«{part}» is not in: {said}");
    }
}

#[test]
fn no_file() {
    let host = Host::new();
    let output = host.run(&["run"]);
    assert_eq!(output.status.code(), Some(BAD_CONFIGURATION));
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    assert!(
        said.contains(host.file().to_str().unwrap()) && said.to_lowercase().contains("no such file"),
        "{said}"
    );
}

#[test]
fn a_directory() {
    let host = Host::new();
    fs::create_dir(host.file()).unwrap();
    let output = host.run(&["run"]);
    assert_eq!(output.status.code(), Some(BAD_CONFIGURATION));
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    assert!(
        said.contains(host.file().to_str().unwrap()) && said.to_lowercase().contains("directory"),
        "{said}"
    );
}

#[test]
fn an_unreadable_file() {
    let host = Host::new().memcached(1);
    host.write_ini();
    fs::set_permissions(host.file(), fs::Permissions::from_mode(0o000)).unwrap();
    let mut command = Command::new(private_copy(host.path()));
    command.arg("run").arg("-c").arg(host.file()).stdin(Stdio::null()).current_dir("/");
    if process::is_root() {
        // Root reads everything; nobody does not.
        command.uid(NOBODY).gid(NOBODY);
    }
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(BAD_CONFIGURATION), "{said}");
    assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    assert!(said.contains(host.file().to_str().unwrap()) && said.to_lowercase().contains("denied"), "{said}");
}

/// The agent alone, without its plugins, where every user can run it.
fn private_copy(dir: &Path) -> std::path::PathBuf {
    let copy = dir.join("bin").join("yagent");
    fs::create_dir_all(copy.parent().unwrap()).unwrap();
    programs::copy_program(&programs::yagent(), &copy);
    copy
}

#[test]
fn values_of_the_wrong_kind() {
    refused_value("global", "CheckInterval", "soon");
    refused_value("global", "CheckInterval", "0");
    refused_value("global", "priority", "high");
    refused_value("global", "system_res_mem", "3 GB");
    refused_value("global", "statsEnable", "perhaps");
    refused_value("global", "statsIntervalNum", "-1");
    refused_value("global", "showStatIntervalSec", "60,an hour");
    refused_value("global", "localip", "10.0.0.300");
    refused_value("memcached", "mc_maxmem", "-64");
    refused_value("memcached", "mc_meta_size", "x");
    refused_value("memcached", "mc_count", "-2");
    refused_value("memcached", "mc_enabled", "maybe");
    refused_value("redis", "redis_maxmem", "0");
    refused_value("redis", "redis_count", "many");
}

#[test]
fn ports_that_cannot_be() {
    refused_value("memcached", "mc_port", "0");
    refused_value("memcached", "mc_port", "70000");
    refused_value("memcached", "mc_port", "-1");
    refused_value("memcached", "mc_port_step", "0");
    refused_value("redis", "redis_port", "http");
}

#[test]
fn ports_that_run_out() {
    let host =
        Host::new().memcached(3).with("memcached", "mc_port", 65530).with("memcached", "mc_port_step", 5);
    refused_with(host, &["yagent.ini:", "mc_port", "65535"]);
}

#[test]
fn ports_that_collide_between_engines() {
    let host = Host::new().memcached(2).redis(1);
    let shared = host.mc_port(1);
    let host = host.with("redis", "redis_port", shared);
    refused_with(host, &["yagent.ini:", "mc_port", "redis_port", &shared.to_string()]);
}

#[test]
fn every_problem_is_told_in_one_go_by_check() {
    let host =
        Host::new().memcached(1).with("memcached", "mc_port", 0).with("global", "CheckInterval", "never");
    host.write_ini();
    let output = host.run(&["check"]);
    assert_eq!(output.status.code(), Some(BAD_CONFIGURATION));
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("mc_port") && said.contains("CheckInterval"), "{said}");
}

#[test]
fn a_server_program_that_is_not_there() {
    refused_value("memcached", "mc_fpath", "/nowhere/memcached");
}

#[test]
fn a_server_program_that_cannot_be_run() {
    refused_value("memcached", "mc_fpath", "/etc/passwd");
    refused_value("redis", "redis_fpath", "/usr/bin");
}

#[test]
fn a_base_configuration_that_is_not_there() {
    refused_value("redis", "redis_conf", "/nowhere/redis.conf");
}

#[test]
fn arguments_with_an_open_quote() {
    refused_value("memcached", "mc_args", "-u nobody -o 'slab_reassign");
}

#[test]
fn another_user_in_the_arguments_of_an_agent_that_is_not_root() {
    assert!(process::is_root(), "this test runs the agent as another user: run it as root");
    let mut host = Host::new().memcached(1).with("memcached", "mc_args", "-u daemon -l 127.0.0.1 -t 1");
    host.write_ini();
    std::os::unix::fs::chown(host.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    let agent = private_copy(host.path());
    for plugin in ["libyagent_memcached.so", "libyagent_redis.so"] {
        programs::copy_program(&programs::yagent().with_file_name(plugin), &agent.with_file_name(plugin));
    }
    let log = fs::File::create(host.log()).unwrap();
    let mut command = Command::new(agent);
    command.arg("run").arg("-c").arg(host.file()).stderr(log).uid(NOBODY).gid(NOBODY).current_dir("/");
    let child = command.spawn().unwrap();
    host.adopt_child(child);
    let said = refusal_of(&mut host);
    assert!(said.contains("daemon") && said.contains("root"), "{said}");
}

#[test]
fn a_user_that_is_not_there() {
    assert!(process::is_root(), "this test needs root: only root's memcached may change its user");
    refused_with(
        Host::new().memcached(1).with("memcached", "mc_args", "-u nosuchuser -t 1"),
        &["nosuchuser"],
    );
}

#[test]
fn more_fixed_instances_than_memory() {
    let host = Host::new().memcached(4).with("memcached", "mc_maxmem", 100_000_000);
    refused_with(host, &["MB"]);
}

#[test]
fn no_memory_left_by_the_reserve() {
    refused_with(
        Host::new().memcached(-1).with("global", "system_res_mem", 900_000_000),
        &["system_res_mem", "MB"],
    );
}

#[test]
fn no_zookeeper_address_anywhere() {
    let host = Host::new().memcached(1).with("global", "zoo_svr", "").with("global", "cf_svr_file", "");
    refused_with(host, &["zoo_svr", "cf_svr_file"]);
    let mut host = Host::new().memcached(1).with("global", "zoo_svr", "");
    host.ini.set("global", "cf_svr_file", "/nowhere/env.ini");
    refused_with(host, &["zoo_svr", "cf_svr_file", "/nowhere/env.ini"]);
}

#[test]
fn a_zookeeper_address_that_is_none() {
    refused_value("global", "zoo_svr", "127.0.0.1:port");
    refused_value("global", "zoo_svr", "127.0.0.1:70000");
}

#[test]
fn a_state_directory_that_cannot_be_written() {
    // Not even root makes a directory there.
    refused_with(Host::new().memcached(1).with("global", "state_dir", "/sys/yagent"), &["/sys/yagent"]);
}

/// What `run` refuses, `check` refuses with the same words.
fn refused_by_check_too(host: Host, part: &str) {
    host.write_ini();
    let checked = host.run(&["check"]);
    let told = String::from_utf8_lossy(&checked.stderr).into_owned();
    assert_eq!(checked.status.code(), Some(BAD_CONFIGURATION), "{told}");
    assert!(told.contains(part), "«{part}» is not in: {told}");
    assert!(refused(host).contains(told.trim_end()), "{told}");
}

#[test]
fn a_state_directory_whose_control_socket_would_have_too_long_a_path() {
    let dir = format!("/tmp/{}", "x".repeat(100));
    refused_by_check_too(
        Host::new().memcached(1).with("global", "state_dir", dir),
        "global.state_dir: found a path",
    );
}

#[test]
fn a_log_file_that_cannot_be_made() {
    for (place, part) in
        [("/nonexistent/log", "found /nonexistent, which"), ("/tmp", "found the directory /tmp")]
    {
        refused_by_check_too(Host::new().memcached(1).with("global", "log_file", place), part);
    }
}

#[test]
fn a_name_instead_of_an_address_to_listen_on() {
    let host = Host::new().memcached(1).with("memcached", "mc_args", "-l cache.invalid -u nobody");
    refused_by_check_too(host, "cache.invalid, expected an IP address");
}

#[test]
fn a_file_that_is_no_ini() {
    let mut host = Host::new();
    fs::write(host.file(), "mc_enabled=1\n").unwrap();
    let log = fs::File::create(host.log()).unwrap();
    let child = host.command(&["run"]).stderr(log).spawn().unwrap();
    host.adopt_child(child);
    let said = refusal_of(&mut host);
    assert!(said.contains("yagent.ini:1:"), "{said}");
}

#[test]
fn a_plugin_that_is_not_there() {
    let mut host = Host::new().memcached(1);
    let bare = private_copy(host.path());
    host.write_ini();
    let log = fs::File::create(host.log()).unwrap();
    let child = Command::new(bare).arg("run").arg("-c").arg(host.file()).stderr(log).spawn().unwrap();
    host.adopt_child(child);
    let said = refusal_of(&mut host);
    assert!(said.contains("libyagent_memcached.so"), "{said}");
    assert!(said.contains(host.path().join("bin").to_str().unwrap()), "it says where it looked: {said}");
}

#[test]
fn a_plugin_of_the_ini_that_is_not_there() {
    let host = Host::new().memcached(1).with("plugins", "load", "nosuchengine");
    refused_with(host, &["nosuchengine"]);
}

#[test]
fn a_plugin_that_is_none() {
    let host = Host::new().memcached(1);
    let dir = host.path().join("plugins");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("libyagent_memcached.so"), "not a shared object").unwrap();
    let host = host.environment("YAGENT_PLUGIN_DIR", dir.to_str().unwrap());
    refused_with(host, &["libyagent_memcached.so"]);
}
