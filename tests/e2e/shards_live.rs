//! The verbs about shards on a living one: hosts on loopback addresses, redis, ZooKeeper.

use std::{fs, process::Output, time::Duration};

use serde_json::Value;
use yagent_tests::{cache::Redis, host::Host, programs, wait, zookeeper};

/// Hosts whose redis replicate with one another.
struct Shard {
    hosts: Vec<Host>,
    port: u16,
}

fn ip(index: usize) -> String {
    format!("127.0.0.{}", index + 1)
}

impl Shard {
    /// So many hosts, all of them up, led by one that the others follow.
    fn of(size: usize) -> Shard {
        let mut shard = Shard::planned(size);
        shard.name_peers();
        shard.hosts.iter_mut().for_each(Host::launch);
        shard.wait_ready();
        shard
    }

    /// So many hosts that were not started, each with a redis of its own.
    fn planned(size: usize) -> Shard {
        let mut hosts: Vec<Host> = (0..size).map(|_| Host::new()).collect();
        let port = hosts[0].redis_port(0);
        let server = zookeeper::shared();
        for (index, host) in hosts.iter_mut().enumerate() {
            let conf = host.path().join("redis.conf");
            fs::write(conf, "save \"\"\nappendonly no\nrepl-diskless-sync-delay 0\n").unwrap();
            host.ini
                .set("global", "zoo_svr", format!("{}/shards-{port}", server.address()))
                .set("global", "zoo_session_timeout", 6)
                .set("global", "zoo_tick", 0.2)
                .set("global", "localip", ip(index))
                .set("global", "CheckInterval", 0.5)
                .set("global", "probe_interval", 0.2)
                .set("redis", "redis_enabled", 1)
                .set("redis", "redis_count", 1)
                .set("redis", "redis_port", port)
                .set("redis", "redis_bind", ip(index))
                .set("redis", "redis_lease", 3)
                .set("redis", "redis_fence_time", 0.5)
                .set("redis", "timeout", 5);
        }
        Shard { hosts, port }
    }

    fn name_peers(&mut self) {
        let size = self.hosts.len();
        for (index, host) in self.hosts.iter_mut().enumerate() {
            let peers: Vec<String> = (0..size).filter(|other| *other != index).map(ip).collect();
            host.ini.set("redis", "peers", peers.join(","));
        }
    }

    fn redis(&self, index: usize) -> Redis {
        let address = self.address(index).parse().unwrap();
        Redis::connect_to(address, Duration::from_secs(5)).unwrap()
    }

    fn address(&self, index: usize) -> String {
        format!("{}:{}", ip(index), self.port)
    }

    /// Waits until the master's agent says that the shard could fail over. Returns the master's host.
    fn wait_ready(&self) -> usize {
        let ready = |index: usize, report: &Value| {
            let members = report["members"].as_array().cloned().unwrap_or_default();
            let state = &report["state"];
            let well = |member: &Value| {
                let role = &member["node"]["role"];
                member["barred"].is_null()
                    && (role == "master" || (role == "replica" && member["node"]["link"] == true))
            };
            let all = !members.is_empty() && members.iter().all(well);
            state["phase"] == "done"
                && state["solo"] == false
                && state["master"] == self.address(index)
                && report["hindrances"] == Value::Array(Vec::new())
                && all
        };
        wait::until("the shard could fail over", || {
            let reports: Vec<Value> =
                self.hosts.iter().map(|host| report(host).unwrap_or_default()).collect();
            let found = reports.iter().enumerate().find(|(index, report)| ready(*index, report));
            found.map(|(index, _)| index).ok_or_else(|| format!("{reports:?}"))
        })
    }

    /// It is a member no more: it takes writes, and asks for no replicas.
    fn takes_writes_alone(&self, index: usize) {
        wait::until("it takes writes", || {
            let mut redis = self.redis(index);
            let mut answer = |words: &[&str]| redis.call(words).map_err(|e| e.to_string());
            let least = answer(&["CONFIG", "GET", "min-slaves-to-write"])?;
            let set = answer(&["SET", "b", "1"])?;
            wait::check(least.ends_with('0') && set == "OK", || format!("{least}, {set}"))
        });
    }

    fn run(&self, index: usize, words: &[&str]) -> Output {
        self.hosts[index].run(words)
    }

    fn json(&self, index: usize, words: &[&str]) -> Value {
        let output = self.run(index, &[words, &["--format", "json"]].concat());
        assert!(output.status.success(), "{words:?}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

fn report(host: &Host) -> Option<Value> {
    let status = host.try_status().ok()?;
    status.0["shards"].as_array()?.first().cloned()
}

fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat()
}

fn refused(output: &Output, code: i32, why: &str) {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    assert!(said(output).contains(why), "«{why}» is not in: {}", said(output));
}

#[test]
fn a_shard_is_shown_and_switched_over_from_any_of_its_hosts() {
    let shard = Shard::of(3);
    let (id, port) = (shard.address(0), shard.port.to_string());
    let master = shard.wait_ready();
    let other = (master + 1) % 3;

    // It is shown alike on each host, by each of its names.
    for name in [&id, &port, &shard.address(2)] {
        let tree = said(&shard.run(other, &["shards", name]));
        assert!(tree.contains(&format!("shard {id}, epoch ")), "{tree}");
        assert!(tree.contains(&format!("{}  master", shard.address(master))), "{tree}");
        assert_eq!(tree.matches("─ ").count(), 2, "{tree}");
        assert_eq!(tree.matches("would be promoted next").count(), 1, "{tree}");
    }
    let list = said(&shard.run(other, &["shards"]));
    assert!(list.lines().any(|line| line.trim_start().starts_with(&id) && line.contains("3 of 3")), "{list}");
    let status = said(&shard.run(other, &["status"]));
    assert!(status.contains(&format!("shard {id}, master {}", shard.address(master))), "{status}");
    assert_eq!(shard.json(other, &["doctor"])["ok"], true);

    // What cannot be is refused with the reason.
    refused(
        &shard.run(other, &["switchover", &port, "--yes", "--to", &ip(master)]),
        69,
        "is the master already",
    );
    refused(&shard.run(other, &["switchover", &port, "--yes", "--to", "10.9.9.9"]), 64, "is no member");
    refused(&shard.run(other, &["resume", &port]), 69, "not paused");
    let output = shard.run(other, &["switchover", &port, "--yes", "--to", &ip(master), "--format", "json"]);
    refused(&output, 69, "is the master already");
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["ok"], false, "{answer}");

    // A named member takes over, and each step is told.
    let output = shard.run(other, &["switchover", &port, "--yes", "--to", &ip(other)]);
    if !programs::redis_pauses_writes() {
        refused(&output, 69, "its server cannot pause writes (redis can from 6.2 on)");
        assert_eq!(shard.wait_ready(), master);
        return;
    }
    assert!(output.status.success(), "{output:?}");
    let told = said(&output);
    assert!(told.contains(&format!("{} is the master in place of", shard.address(other))), "{told}");
    assert!(told.contains("writes were paused for ") && told.contains("nothing was lost"), "{told}");
    assert_eq!(shard.wait_ready(), other);

    // The best one takes over, told as JSON.
    let answer = shard.json(master, &["switchover", &id, "--yes"]);
    assert_eq!((&answer["ok"], &answer["from"]), (&true.into(), &shard.address(other).into()), "{answer}");
    assert!(answer["paused_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{answer}");
    shard.wait_ready();
    let history = shard.json(other, &["history", &port]);
    let entries = history["shards"][0]["history"].as_array().unwrap();
    let whys: Vec<&str> = entries.iter().filter_map(|entry| entry["why"].as_str()).collect();
    assert!(whys.ends_with(&["switchover", "switchover"]), "{history}");
}

#[test]
fn a_paused_shard_is_not_switched_until_it_goes_on() {
    let shard = Shard::of(2);
    let port = shard.port.to_string();
    let (master, other) = (shard.wait_ready(), 1 - shard.wait_ready());
    let pause = ["pause", &port, "--for", "30m", "--reason", "a new switch"];
    assert!(shard.run(other, &pause).status.success());
    wait::until("both know of the pause", || {
        let paused =
            |host: &Host| report(host).is_some_and(|report| report["pause"]["reason"] == "a new switch");
        wait::check(shard.hosts.iter().all(paused), || "one does not".to_owned())
    });
    refused(&shard.run(other, &["switchover", &port, "--yes"]), 69, "paused");
    refused(&shard.run(master, &["doctor"]), 3, "a new switch");
    assert!(said(&shard.run(master, &["shards", &port])).contains("paused for 30m"));
    assert!(shard.run(master, &["resume", &port]).status.success());
    shard.wait_ready();
    // A paused host's member is not promoted.
    let pause = ["pause", "--host", "--for", "30m", "--reason", "a new kernel"];
    assert!(shard.run(other, &pause).status.success());
    wait::until("its master knows", || {
        let report = report(&shard.hosts[master]).unwrap_or_default();
        wait::check(report["members"][other]["barred"] == "it is paused", || report.to_string())
    });
    refused(&shard.run(master, &["doctor"]), 3, "it is paused");
    refused(&shard.run(master, &["switchover", &port, "--yes"]), 69, "it is paused");
    assert!(shard.run(other, &["resume", "--host"]).status.success());
    shard.wait_ready();
}

#[test]
fn a_forced_failover_takes_another_master() {
    let shard = Shard::of(2);
    let port = shard.port.to_string();
    let other = 1 - shard.wait_ready();
    let output = shard.run(other, &["failover", &port, "--force", "--yes"]);
    assert!(output.status.success(), "{output:?}");
    assert!(
        said(&output).contains(&format!("{} is the master in place of", shard.address(other))),
        "{output:?}"
    );
    assert_eq!(shard.wait_ready(), other);
}

#[test]
fn doctor_tells_of_a_shard_that_lost_its_replica() {
    let mut shard = Shard::of(2);
    let (master, other) = (shard.wait_ready(), 1 - shard.wait_ready());
    shard.hosts[other].ask("{\"verb\":\"stop\",\"all\":true}");
    shard.hosts[other].wait_ended();
    wait::until("it is told", || {
        let output = shard.run(master, &["doctor"]);
        wait::check(output.status.code() == Some(3) && said(&output).contains("no agent speaks"), || {
            said(&output)
        })
    });
}

#[test]
fn servers_that_ran_alone_become_a_shard_by_a_reload_and_the_data_stays() {
    let mut shard = Shard::planned(2);
    shard.hosts.iter_mut().for_each(|host| drop(host.start()));
    assert_eq!(shard.redis(1).call(&["SET", "a", "1"]).unwrap(), "OK");
    let before: Vec<_> = shard.hosts.iter().map(|host| host.status().pids()).collect();
    shard.name_peers();
    shard.hosts.iter().for_each(|host| assert_eq!(host.reload()["ok"], true));
    assert_eq!(shard.wait_ready(), 1, "the one with data leads");
    assert_eq!(shard.redis(0).call(&["GET", "a"]).unwrap(), "1");
    let after: Vec<_> = shard.hosts.iter().map(|host| host.status().pids()).collect();
    assert_eq!(after, before, "no server was started again");

    // And back: each is alone with what it has, and nothing holds the shard.
    for host in &mut shard.hosts {
        host.ini.set("redis", "peers", "");
        assert_eq!(host.reload()["ok"], true);
        assert_eq!(host.status().0["shards"], Value::Array(Vec::new()));
    }
    shard.takes_writes_alone(1);
}

#[test]
fn a_server_taken_out_of_its_shard_while_no_agent_ran_is_not_fenced_for_ever() {
    let mut shard = Shard::of(2);
    let (master, other) = (shard.wait_ready(), 1 - shard.wait_ready());
    let pid = shard.hosts[master].status().pids();
    shard.hosts[master].kill9();
    shard.hosts[master].ini.set("redis", "peers", "");
    shard.hosts[master].launch();
    shard.hosts[master].wait_up();
    assert_eq!(shard.hosts[master].status().pids(), pid, "it was adopted");
    shard.takes_writes_alone(master);
    // The other one leads when the session is over; the fencer's lease was over before.
    wait::until("the other one leads", || {
        let report = report(&shard.hosts[other]).unwrap_or_default();
        wait::check(
            report["state"]["phase"] == "done" && report["state"]["master"] == shard.address(other),
            || report.to_string(),
        )
    });
    shard.takes_writes_alone(master);
}
