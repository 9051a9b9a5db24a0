//! Start and stop: what an instance is born with, and what outlives the agent.

use std::{
    fs,
    os::unix::net::UnixDatagram,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use yagent_tests::{
    cache::{Memcached, Redis},
    host::Host,
    process::{self, Signal},
    programs,
    status::Status,
    wait,
};

#[test]
fn every_instance_serves_on_its_own_port() {
    let host = Host::new().memcached(3).redis(2).started();
    for index in 0..3 {
        let mut client = Memcached::connect(host.mc_port(index)).unwrap();
        client.set("port", &index.to_string()).unwrap();
    }
    for index in 0..3 {
        let mut client = Memcached::connect(host.mc_port(index)).unwrap();
        assert_eq!(client.get("port").unwrap(), Some(index.to_string()));
    }
    for index in 0..2 {
        let mut client = Redis::connect(host.redis_port(index)).unwrap();
        assert_eq!(client.call(&["SET", "port", "x"]).unwrap(), "OK");
    }
    assert_eq!(host.listeners().len(), 5);
}

#[test]
fn status_names_the_processes_that_listen() {
    let host = Host::new().memcached(2).redis(1).started();
    let told = host.status().instances().iter().map(|it| (it.port, it.pid)).collect();
    assert_eq!(host.listeners(), told);
}

#[test]
fn memory_decides_the_number_of_instances_where_the_count_is_minus_one() {
    let mut host = Host::new().memcached(-1);
    // Units of nearly half of what there is: one fits twice with little to spare, so 2 is what must come out.
    let total = memory_total_mb();
    let unit = (total - 64) / 2 - 32;
    host.ini.set("memcached", "mc_maxmem", unit - 16);
    let status = host.start();
    assert_eq!(status.instances().len(), 2, "{total} MB, {unit} MB each: {status}");
}

/// The host's memory, or the limit of the control group where that is smaller.
fn memory_total_mb() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find(|line| line.starts_with("MemTotal:")).unwrap();
    let total = line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024;
    let limit = fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    limit.and_then(|text| text.trim().parse::<u64>().ok()).map_or(total, |limit| total.min(limit >> 20))
}

#[test]
fn an_instance_leads_its_own_session_and_inherits_nothing() {
    let host = Host::new()
        .memcached(1)
        .environment("NOTIFY_SOCKET", "/nowhere/notify")
        .environment("WATCHDOG_USEC", "9");
    let host = host.started();
    let pid = host.status().pids()[0];
    assert_eq!(process::stat(pid).unwrap().session, pid);
    let environment = process::environment(pid);
    for scrubbed in ["NOTIFY_SOCKET", "WATCHDOG_USEC"] {
        assert!(!environment.contains(scrubbed), "{environment}");
    }
    let agent_log = host.log().display().to_string();
    let descriptors = process::descriptors(pid);
    let inherited = |target: &&String| {
        **target == agent_log || target.contains("yagent.sock") || target.ends_with("/lock")
    };
    assert_eq!(descriptors.iter().find(inherited), None, "{descriptors:?}");
}

#[test]
fn the_daemon_flag_of_the_arguments_is_absorbed() {
    let host = Host::new().memcached(1);
    assert!(host.ini.get("memcached", "mc_args").unwrap().contains("-d "));
    let host = host.started();
    let pid = host.status().pids()[0];
    assert_eq!(
        process::stat(pid).unwrap().parent,
        host.pid(),
        "the agent knows the process because it is its child"
    );
}

#[test]
fn memcached_drops_to_the_user_of_its_arguments() {
    assert!(process::is_root(), "this test starts servers that drop to another user: run it as root");
    let host = Host::new().memcached(1).started();
    let uid = process::status_field(host.status().pids()[0], "Uid").unwrap();
    let nobody = fs::read_to_string("/etc/passwd").unwrap();
    let nobody =
        nobody.lines().find_map(|line| line.strip_prefix("nobody:x:")).unwrap().split(':').next().unwrap();
    assert_eq!(uid.split_whitespace().next(), Some(nobody));
}

#[test]
fn open_files_suffice_for_the_connections_of_the_arguments() {
    let args = "-u nobody -l 127.0.0.1 -t 1 -c 10240";
    let host = Host::new().memcached(1).with("memcached", "mc_args", args).started();
    let limits = fs::read_to_string(format!("/proc/{}/limits", host.status().pids()[0])).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let soft: u64 = line.split_whitespace().nth(3).unwrap().parse().unwrap();
    assert!(soft >= 10240, "{line}");
}

#[test]
fn sigterm_ends_the_agent_and_leaves_the_caches() {
    let mut host = Host::new().memcached(2).redis(1).started();
    let before = host.listeners();
    assert_eq!(host.term().code(), Some(0));
    assert_eq!(host.listeners(), before);
    assert!(!host.socket().exists(), "the control socket goes with the agent");
}

#[test]
fn stop_leaves_the_caches() {
    let mut host = Host::new().memcached(2).started();
    let before = host.listeners();
    let output = host.run(&["stop"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(host.wait_ended().code(), Some(0));
    assert_eq!(host.listeners(), before);
}

#[test]
fn stop_all_takes_the_caches_down() {
    let mut host = Host::new().memcached(2).redis(1).started();
    let pids = host.status().pids();
    let output = host.run(&["stop", "--all"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(host.wait_ended().code(), Some(0));
    assert!(host.listeners().is_empty(), "{:?}", host.listeners());
    assert!(!pids.into_iter().any(process::alive));
}

#[test]
fn a_second_agent_with_the_same_state_directory_refuses_to_run() {
    let host = Host::new().memcached(1).started();
    let before = host.listeners();
    let output = host.run(&["run"]);
    assert_eq!(output.status.code(), Some(69), "{output:?}");
    assert_eq!(host.listeners(), before);
    assert!(host.status().instances().iter().all(|it| it.state == "up"));
}

#[test]
fn the_legacy_command_line_starts_the_agent() {
    let mut host = Host::new().memcached(1);
    host.write_ini();
    let mut command = Command::new(programs::yagent());
    let log = fs::File::create(host.log()).unwrap();
    command.arg("-c").arg(host.file()).stderr(log).current_dir(host.path());
    host.adopt_child(command.spawn().unwrap());
    host.wait_up();
    wait::until("it serves", || Memcached::connect(host.mc_port(0)).and_then(|mut client| client.get("x")));
}

fn agent_pid(status: &Status) -> u32 {
    status.0["agent"]["pid"].as_u64().unwrap_or_default() as u32
}

#[test]
fn a_guard_starts_a_killed_agent_again_and_ends_with_it() {
    let mut host = Host::new().memcached(2);
    host.launch_as(&["run", "--guard"]);
    host.wait_up();
    let caches = host.listeners();
    for _ in 0..2 {
        let old = agent_pid(&host.status());
        assert_ne!(old, host.pid(), "the guard is not the agent");
        process::signal(old, Signal::KILL);
        host.wait_status("another agent is there", |status| {
            agent_pid(status) != old && status.instances().iter().filter(|it| it.state == "up").count() == 2
        });
        assert_eq!(host.listeners(), caches);
    }
    assert_eq!(host.term().code(), Some(0));
    assert_eq!(host.listeners(), caches);
}

#[test]
fn a_port_file_that_could_not_be_written_is_written_as_soon_as_it_can_be() {
    let folder = Host::new();
    let place = folder.path().join("place");
    // A file where the folder should be stands for every disk that is full or read-only: root is stopped by it too.
    fs::write(&place, "").unwrap();
    let host =
        Host::new().memcached(2).with("memcached", "mc_port_file", place.join("ports").display()).started();
    host.wait_alert("port-file");
    fs::remove_file(&place).unwrap();
    host.wait_status("the alert is resolved", |status| !status.fires("port-file"));
    let ports = format!("{}\n{}\n", host.mc_port(0), host.mc_port(1));
    assert_eq!(fs::read_to_string(place.join("ports")).unwrap(), ports);
}

#[test]
fn a_guard_that_is_told_to_end_while_its_agent_dies_ends_well() {
    for _ in 0..5 {
        let mut host = Host::new().memcached(1);
        host.launch_as(&["run", "--guard"]);
        let agent = agent_pid(&host.wait_up());
        process::signal(agent, Signal::KILL);
        assert_eq!(host.term().code(), Some(0));
        assert!(host.try_status().is_err(), "no agent is left");
    }
}

/// Launches a guard from a copy of the agent that a test may remove or replace; the copy.
fn launch_installed(host: &mut Host) -> PathBuf {
    let (bin, installed) = (programs::yagent(), host.path().join("bin"));
    fs::create_dir(&installed).unwrap();
    for name in ["yagent", "libyagent_memcached.so", "libyagent_redis.so"] {
        programs::copy_program(&bin.with_file_name(name), &installed.join(name));
    }
    host.write_ini();
    let program = installed.join("yagent");
    let mut command = Command::new(&program);
    command.args(["run", "--guard", "-c"]).arg(host.file()).env("YAGENT_TEST_HOST", host.path());
    host.adopt_child(command.stderr(fs::File::create(host.log()).unwrap()).spawn().unwrap());
    program
}

#[test]
fn a_guard_that_is_told_to_end_between_two_tries_ends_at_once() {
    let mut host = Host::new().memcached(1);
    let program = launch_installed(&mut host);
    let agent = agent_pid(&host.wait_up());
    fs::remove_file(&program).unwrap();
    process::signal(agent, Signal::KILL);
    wait::until("the pause between two tries is at its longest", || {
        wait::check(host.log_text().contains("tried again in 5000 ms"), || host.log_text())
    });
    let told = Instant::now();
    assert_eq!(host.term().code(), Some(0));
    assert!(told.elapsed() < Duration::from_secs(3), "it ended after {:?}", told.elapsed());
}

#[test]
fn a_guard_starts_the_new_program_after_an_upgrade() {
    let mut host = Host::new().memcached(1);
    let program = launch_installed(&mut host);
    let old = agent_pid(&host.wait_up());
    let new = program.with_extension("new");
    fs::rename(&program, program.with_extension("old")).unwrap();
    process::signal(old, Signal::KILL);
    wait::until("the guard misses the program", || {
        wait::check(host.log_text().contains("cannot run"), || host.log_text())
    });
    programs::copy_program(&programs::yagent(), &new);
    fs::rename(&new, &program).unwrap();
    host.wait_status("the new agent is there", |status| agent_pid(status) != old);
    assert_eq!(host.term().code(), Some(0));
}

#[test]
fn the_service_manager_is_told_of_start_life_and_end() {
    let host = Host::new().memcached(1);
    let path = host.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let mut host =
        host.environment("NOTIFY_SOCKET", path.to_str().unwrap()).environment("WATCHDOG_USEC", "2000000");
    host.launch();
    let wait_told = |what: &str| {
        let mut told = String::new();
        wait::until(&format!("{what} is told"), || {
            let mut bytes = [0; 4096];
            if let Ok(len) = manager.recv(&mut bytes) {
                told += &format!("{}\n", String::from_utf8_lossy(&bytes[..len]));
            }
            wait::check(told.lines().any(|line| line.starts_with(what)), || told.clone())
        });
    };
    wait_told("READY=1");
    wait_told("WATCHDOG=1");
    host.wait_up();
    wait_told("STATUS=");
    host.signal(Signal::HUP);
    wait_told("RELOADING=1");
    wait_told("READY=1");
    host.signal(Signal::TERM);
    wait_told("STOPPING=1");
    assert_eq!(host.wait_ended().code(), Some(0));
}
