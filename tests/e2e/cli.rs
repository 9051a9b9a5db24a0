//! The verbs: what they print and how they end.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output, Stdio},
    time::Duration,
};

use serde_json::{Value, json};
use yagent_tests::{
    host::Host,
    process::{self, Signal},
    programs, wait,
};

fn yagent(words: &[&str]) -> Output {
    Command::new(programs::yagent()).args(words).stdin(Stdio::null()).output().expect("cannot run yagent")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// The file that the Python agent ships with, as far as it can be on this machine.
const LEGACY: &str = "\
[global]
zoo_svr=127.0.0.1:2181
cf_svr_file=/var/www/config/env.ini
localip=
CheckInterval=5
group=default
priority=100
system_res_mem=3072
statsEnable=1
#statsIntervalNum: the interval that update statistics(unit is CheckInterval). default is 600s or 10min
statsIntervalNum=12
showStatIntervalSec=60,3600,86400

[memcached]
mc_maxmem=4096
mc_meta_size=16
mc_count=-1
mc_args=-u nobody -d -c 10240 -o tail_repair_time=7200 slab_reassign slab_automove
mc_port=11211
mc_port_step=10
mc_fpath=/usr/bin/memcached
mc_enabled=1
mc_port_file=/var/log/yagent_mc_port.cfg

[redis]
peers=
timeout=60
redis_maxmem=128
redis_meta_size=128
redis_count=-1
redis_port=16379
redis_port_step=10
redis_conf=/etc/redis/redis.conf
redis_fpath=/usr/local/bin/redis-server
redis_enabled=0
redis_port_file=/var/log/yagent_redis_port.cfg
check_master_interval=1
get_slaves_interval=100
";

#[test]
fn the_legacy_file_plans_seven_instances_on_32_gb() {
    let host = Host::new();
    fs::write(host.file(), LEGACY).unwrap();
    let output = host.run(&["plan", "--mem-total-mb", "32768", "--format", "json"]);
    assert!(output.status.success(), "{output:?}");
    let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
    let instances = plan["instances"].as_array().unwrap();
    let ports: Vec<u64> = instances.iter().filter_map(|it| it["port"].as_u64()).collect();
    assert_eq!(ports, [11211, 11221, 11231, 11241, 11251, 11261, 11271]);
    for it in instances {
        assert_eq!((&it["engine"], &it["maxmem_mb"]), (&json!("memcached"), &json!(4096)));
        let argv: Vec<&str> = it["argv"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        assert_eq!(argv[0], "/usr/bin/memcached");
        let port = it["port"].to_string();
        assert!(argv.windows(2).any(|pair| pair == ["-p", &port]), "{argv:?}");
        assert!(argv.windows(2).any(|pair| pair == ["-m", "4096"]), "{argv:?}");
        assert!(argv.windows(2).any(|pair| pair == ["-c", "10240"]), "{argv:?}");
        assert!(!argv.contains(&"-d"), "{argv:?}");
    }
    assert!(plan["memory"].is_object());
}

#[test]
fn plan_prints_a_table_and_starts_nothing() {
    let host = Host::new().memcached(2);
    host.write_ini();
    let output = host.run(&["plan"]);
    assert!(output.status.success(), "{output:?}");
    let table = stdout(&output);
    assert!(
        table.contains(&host.mc_port(0).to_string()) && table.contains(&host.mc_port(1).to_string()),
        "{table}"
    );
    assert!(!table.contains('\u{1b}'), "no colours into a pipe: {table:?}");
    assert!(host.listeners().is_empty());
    assert!(!host.state_dir().exists(), "not even a directory");
}

#[test]
fn check_accepts_the_legacy_file() {
    let host = Host::new();
    fs::write(host.file(), LEGACY.replace("system_res_mem=3072", "system_res_mem=64").replace("4096", "64"))
        .unwrap();
    let output = host.run(&["check"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let output = host.run(&["check", "--format", "json"]);
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["ok"], true, "{answer}");
}

#[test]
fn check_refuses_a_lease_that_does_not_fit_into_the_session() {
    let ini = |lease| {
        let host =
            Host::new().redis(1).with("redis", "peers", "127.0.0.2").with("redis", "redis_lease", lease);
        let host = host.with("global", "zoo_session_timeout", 30).with("global", "CheckInterval", 5);
        host.with("redis", "redis_fence_time", 3).with("global", "zoo_tick", 2)
    };
    for (lease, expected) in
        [(20, "lower redis_lease to at most 19.7 s"), (5, "raise redis_lease above 10 s")]
    {
        let host = ini(lease);
        host.write_ini();
        for verb in ["check", "run"] {
            let output = host.run(&[verb]);
            let said = stdout(&output) + &String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(78), "{verb}: {output:?}");
            assert!(said.contains(expected) && said.contains("redis_lease"), "{verb}: {said}");
        }
    }
    let host = ini(19);
    host.write_ini();
    let said = stdout(&host.run(&["check"]));
    assert!(!said.contains("lease"), "{said}");
}

#[test]
fn check_suggests_what_an_unknown_key_may_have_meant() {
    let host = Host::new().memcached(1).with("memcached", "mc_maxmen", 64);
    host.write_ini();
    let output = host.run(&["check"]);
    assert_eq!(output.status.code(), Some(0), "a warning is no error: {output:?}");
    let said = stdout(&output) + &String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("mc_maxmen") && said.contains("mc_maxmem"), "{said}");
}

#[test]
fn files_are_read_as_the_python_agent_read_them() {
    let cases: Value =
        serde_json::from_slice(&fs::read(fixture("configparser-cases.json")).unwrap()).unwrap();
    let cases = cases.as_array().unwrap();
    assert!(cases.len() >= 46);
    let host = Host::new();
    for case in cases {
        // One character of the fixture is one byte of the file.
        let bytes: Vec<u8> = case["input_latin1"]
            .as_str()
            .unwrap()
            .chars()
            .map(|c| u8::try_from(u32::from(c)).unwrap())
            .collect();
        fs::write(host.file(), bytes).unwrap();
        let output = host.run(&["check", "--dump-ini"]);
        let read: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|why| panic!("{}: {why}: {output:?}", case["name"]));
        let refused = || json!({"error": case["error"], "lines": case["lines"]});
        let expected = case.get("sections").cloned().unwrap_or_else(refused);
        assert_eq!(read, expected, "{}", case["name"]);
        let code = if case.get("sections").is_some() { 0 } else { 78 };
        assert_eq!(output.status.code(), Some(code), "{}: {output:?}", case["name"]);
    }
}

#[test]
fn status_ends_with_0_when_all_is_up() {
    let host = Host::new().memcached(2).redis(1).started();
    let output = host.run(&["status", "--format", "json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["instances"].as_array().map(Vec::len), Some(3));
    assert_eq!(told["agent"]["pid"], host.pid());
    let table = stdout(&host.run(&["status"]));
    for it in host.status().instances() {
        assert!(table.contains(&it.port.to_string()), "{table}");
    }
    assert!(!table.contains('\u{1b}'), "no colours into a pipe: {table:?}");
}

#[test]
fn status_ends_with_3_when_something_is_down() {
    let mut host = Host::new().memcached(1).with("memcached", "mc_fpath", "/bin/false");
    host.launch();
    host.wait_alert("instance-cannot-start");
    let output = host.run(&["status"]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
}

#[test]
fn status_ends_with_4_when_nobody_answers() {
    let mut host = Host::new().memcached(1);
    host.write_ini();
    assert_eq!(host.run(&["status"]).status.code(), Some(4));
    host.start();
    host.signal(Signal::KILL);
    host.wait_ended();
    let output = host.run(&["status"]);
    assert_eq!(output.status.code(), Some(4), "also with the dead agent's socket still there");
    assert!(!output.stderr.is_empty());
}

#[test]
fn status_of_an_agent_that_stands_still_ends_by_itself() {
    let host = Host::new().memcached(1).started();
    host.signal(Signal::STOP);
    let output = host.run(&["status"]);
    host.signal(Signal::CONT);
    assert_eq!(output.status.code(), Some(4), "{output:?}");
}

#[test]
fn plugin_list_names_both_engines() {
    let host = Host::new();
    host.write_ini();
    let output = host.run(&["plugin", "list"]);
    let output = if output.status.code() == Some(64) { yagent(&["plugin", "list"]) } else { output };
    assert!(output.status.success(), "{output:?}");
    let table = stdout(&output);
    assert!(table.contains("memcached") && table.contains("redis"), "{table}");
}

#[test]
fn usage_errors_end_with_64() {
    for words in [
        &["fly"][..],
        &["status", "--format", "poetry"],
        &["run", "--no-such-flag"],
        &["plan", "--mem-total-mb", "x"],
    ] {
        let output = yagent(words);
        assert_eq!(output.status.code(), Some(64), "{words:?}: {output:?}");
        assert!(!output.stderr.is_empty());
    }
}

#[test]
fn help_and_version_are_no_errors() {
    for words in [&["--help"][..], &["--version"], &["run", "--help"]] {
        let output = yagent(words);
        assert_eq!(output.status.code(), Some(0), "{words:?}");
        assert!(!output.stdout.is_empty());
    }
}

#[test]
fn a_reader_that_goes_away_is_no_crash() {
    let host = Host::new().memcached(2);
    host.write_ini();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = host.command(&["plan"]).stdout(writer).stderr(Stdio::piped()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn requests_that_make_no_sense_are_answered_and_harm_nothing() {
    let host = Host::new().memcached(1).started();
    for request in ["", "status", "{}", "{\"verb\":\"fly\"}", "{\"verb\":", "[1,2,3]"] {
        // An answer or a closed connection; the agent goes on either way.
        let _ = yagent_tests::status::ask(&host.socket(), request);
    }
    let huge = "x".repeat(8 << 20);
    let _ = yagent_tests::status::ask(&host.socket(), &huge);
    let idle: Vec<_> =
        (0..200).filter_map(|_| std::os::unix::net::UnixStream::connect(host.socket()).ok()).collect();
    drop(idle);
    host.wait_status("it still answers", |status| status.instances()[0].state == "up");
    assert!(process::alive(host.pid()));
}

#[test]
fn who_ends_its_side_after_the_request_still_gets_the_answer() {
    use std::{io::Read, io::Write, net::Shutdown, os::unix::net::UnixStream};
    let host = Host::new().memcached(1).started();
    for verb in ["status", "reload"] {
        let mut client = UnixStream::connect(host.socket()).unwrap();
        writeln!(client, "{{\"verb\":\"{verb}\"}}").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(serde_json::from_str::<Value>(&answer).is_ok(), "{verb}: «{answer}»");
    }
}

#[test]
fn an_agent_without_descriptors_waits_for_some_without_burning_the_processor() {
    let host = Host::new().memcached(1).started();
    let limit = |count: usize| {
        let mut prlimit = Command::new("prlimit");
        prlimit.arg(format!("--pid={}", host.pid())).arg(format!("--nofile={count}:"));
        assert!(prlimit.status().expect("cannot run prlimit").success());
    };
    limit(process::descriptors(host.pid()).len());
    let _clients: Vec<_> = (0..8)
        .map(|_| std::os::unix::net::UnixStream::connect(host.socket()).expect("the door is there"))
        .collect();
    wait::until("nobody can be let in", || {
        wait::check(host.log_text().contains("cannot let a control client in"), || host.log_text())
    });
    let before = process::stat(host.pid()).unwrap().cpu_ticks;
    wait::lasts(Duration::from_secs(1));
    let burnt = process::stat(host.pid()).unwrap().cpu_ticks - before;
    assert!(burnt < 50, "{burnt} of 100 ticks");
    limit(4096);
    host.wait_status("it answers again", |status| status.instances()[0].state == "up");
}
