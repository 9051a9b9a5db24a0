//! What is particular to redis: its base configuration, its files, its passwords.

use std::{collections::BTreeSet, fs};

use yagent_tests::{
    cache::Redis,
    host::Host,
    process::{self, Signal},
};

fn base_conf(host: &Host, text: &str) {
    fs::write(host.path().join("redis.conf"), text).unwrap();
}

fn setting(client: &mut Redis, name: &str) -> String {
    client.call(&["CONFIG", "GET", name]).unwrap().lines().nth(1).unwrap_or_default().to_owned()
}

#[test]
fn no_two_instances_share_a_file() {
    let host = Host::new().redis(3);
    base_conf(
        &host,
        &format!(
            "bind 127.0.0.1\ndaemonize yes\nsupervised systemd\npidfile /nowhere/redis.pid\nlogfile {}\n\
             appendonly yes\nport 6379\nmaxmemory 1\n",
            // Redis before 7 opens it, although another is said later.
            host.path().join("unused.log").display()
        ),
    );
    let host = host.started();
    let mut files = BTreeSet::new();
    for index in 0..3 {
        let mut client = Redis::connect(host.redis_port(index)).unwrap();
        assert_eq!(setting(&mut client, "maxmemory"), (32 << 20).to_string());
        assert_eq!(setting(&mut client, "daemonize"), "no");
        let dir = setting(&mut client, "dir");
        for name in ["dbfilename", "appendfilename"] {
            files.insert(format!("{dir}/{}", setting(&mut client, name)));
        }
        client.call(&["SET", "a", "b"]).unwrap();
        client.call(&["SAVE"]).unwrap();
    }
    assert_eq!(files.len(), 6, "{files:?}");
    let saved = files.iter().filter(|file| file.ends_with(".rdb"));
    assert!(saved.clone().all(|file| fs::metadata(file).is_ok()), "{files:?}");
    assert_eq!(saved.count(), 3);
}

#[test]
fn the_password_of_the_base_configuration_is_used() {
    let host = Host::new().redis(1);
    base_conf(&host, "bind 127.0.0.1\nsave \"\"\nrequirepass \"s3 cret\"\n");
    let host = host.started();
    let port = host.redis_port(0);
    let refused = Redis::connect(port).unwrap().call(&["GET", "x"]).unwrap_err();
    assert!(refused.to_string().contains("NOAUTH"), "{refused}");
    let mut client = Redis::connect(port).unwrap();
    client.call(&["AUTH", "s3 cret"]).unwrap();
    client.call(&["SET", "a", "b"]).unwrap();
    let status =
        host.wait_status("its figures are read", |status| status.instances()[0].figures["keys"] == 1);
    assert_eq!(status.instances()[0].health, "serving");
}

#[test]
fn a_refused_password_is_reported_and_never_a_reason_to_kill() {
    let host = Host::new().redis(1).started();
    let port = host.redis_port(0);
    let pid = host.status().pids()[0];
    Redis::connect(port).unwrap().call(&["CONFIG", "SET", "requirepass", "changed by hand"]).unwrap();
    host.wait_status("it is told", |status| {
        status.fires("instance-unhealthy") && status.instances()[0].health == "refused"
    });
    assert_eq!(host.instance("redis", port).pid, pid);
    let mut client = Redis::connect(port).unwrap();
    client.call(&["AUTH", "changed by hand"]).unwrap();
    client.call(&["CONFIG", "SET", "requirepass", ""]).unwrap();
    host.wait_status("it serves again", |status| {
        !status.fires("instance-unhealthy") && status.instances()[0].health == "serving"
    });
    assert_eq!(host.instance("redis", port).pid, pid);
}

#[test]
fn an_endless_script_is_ended_and_the_instance_kept() {
    let host = Host::new().redis(1);
    base_conf(&host, "bind 127.0.0.1\nsave \"\"\nlua-time-limit 100\n");
    let host = host.started();
    let port = host.redis_port(0);
    let pid = host.status().pids()[0];
    let script = std::thread::spawn(move || {
        let mut client = Redis::connect(port).unwrap();
        // Its answer is the error that SCRIPT KILL leaves; the client's own limit may come first.
        let _ = client.call(&["EVAL", "while true do end", "0"]);
    });
    script.join().unwrap();
    host.wait_status("it serves", |status| status.instances()[0].health == "serving");
    assert_eq!(Redis::connect(port).unwrap().call(&["PING"]).unwrap(), "PONG");
    assert_eq!(host.instance("redis", port).pid, pid, "the process was kept");
}

#[test]
fn a_redis_with_its_data_on_disk_reloads_it_after_a_crash() {
    let host = Host::new().redis(1);
    base_conf(&host, "bind 127.0.0.1\nappendonly yes\nappendfsync always\n");
    let host = host.started();
    let port = host.redis_port(0);
    Redis::connect(port).unwrap().call(&["SET", "kept", "yes"]).unwrap();
    let old = host.status().pids()[0];
    process::signal(old, Signal::KILL);
    host.wait_replaced("redis", port, old);
    assert_eq!(Redis::connect(port).unwrap().call(&["GET", "kept"]).unwrap(), "yes");
}

#[test]
fn an_instance_may_listen_on_localhost_by_name() {
    let host = Host::new().redis(1).memcached(1);
    base_conf(&host, "bind localhost\n");
    let host = host.with("memcached", "mc_args", "-l localhost -u nobody").started();
    assert_eq!(Redis::connect(host.redis_port(0)).unwrap().call(&["PING"]).unwrap(), "PONG");
}
