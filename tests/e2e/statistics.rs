//! The figures: equal to what the servers' own commands say, and off when they are turned off.

use yagent_tests::{
    cache::{Memcached, Redis},
    host::Host,
};

#[test]
fn memcached_figures_equal_its_own_stats() {
    let host = Host::new().memcached(1).started();
    let port = host.mc_port(0);
    host.wait_status("a first sample is there", |status| status.instances()[0].figures["keys"] == 0);
    let mut client = Memcached::connect(port).unwrap();
    for index in 0..40 {
        client.set(&format!("key{index}"), &"x".repeat(100)).unwrap();
        client.get(&format!("key{index}")).unwrap();
    }
    for index in 0..10 {
        assert!(client.delete(&format!("key{index}")).unwrap());
    }
    let status = host.wait_status("the figures have caught up", |status| {
        let figures = &status.instances()[0].figures;
        figures["keys"] == 30 && figures["windows"]["60"]["deletes"] == 10
    });
    let own = client.stats().unwrap();
    let own = |name: &str| own[name].parse::<u64>().unwrap();
    let figures = status.instances()[0].figures.clone();
    assert_eq!(figures["bytes"].as_u64(), Some(own("bytes")));
    assert_eq!(figures["limit_bytes"].as_u64(), Some(own("limit_maxbytes")));
    let window = &figures["windows"]["60"];
    assert_eq!(window["sets"], 40);
    assert_eq!(window["hits"].as_u64(), Some(own("get_hits")));
    // The agent's own probes are reads, too: between what we asked and what the server counted since.
    let gets = window["gets"].as_u64().unwrap();
    assert!((40..=own("cmd_get")).contains(&gets), "{window}");
    assert_eq!(window["evictions"], 0);
}

#[test]
fn redis_figures_equal_its_own_info() {
    let host = Host::new().redis(1).started();
    let port = host.redis_port(0);
    host.wait_status("a first sample is there", |status| status.instances()[0].figures["keys"] == 0);
    let mut client = Redis::connect(port).unwrap();
    for index in 0..40 {
        client.call(&["SET", &format!("key{index}"), "value"]).unwrap();
        client.call(&["GET", &format!("key{index}")]).unwrap();
    }
    let status = host.wait_status("the figures have caught up", |status| {
        let figures = &status.instances()[0].figures;
        figures["keys"] == 40 && figures["windows"]["60"]["hits"] == 40
    });
    let info = client.info().unwrap();
    let figures = status.instances()[0].figures.clone();
    assert_eq!(figures["limit_bytes"].as_u64(), Some(32 << 20));
    assert_eq!(info["keyspace_hits"], "40");
    assert_eq!(figures["version"].as_str(), Some(info["redis_version"].as_str()));
    assert!(figures["connections"].as_u64().unwrap() >= 1);
}

#[test]
fn counters_go_on_over_a_restart_of_the_server() {
    let host = Host::new().memcached(1).started();
    let port = host.mc_port(0);
    let sets = |count: u64| {
        let mut client = Memcached::connect(port).unwrap();
        (0..count).for_each(|index| client.set(&format!("key{index}"), "x").unwrap());
    };
    host.wait_status("a first sample is there", |status| status.instances()[0].figures["keys"] == 0);
    sets(20);
    host.wait_status("it is counted", |status| status.instances()[0].figures["windows"]["60"]["sets"] == 20);
    let old = host.status().pids()[0];
    yagent_tests::process::signal(old, yagent_tests::process::Signal::KILL);
    host.wait_replaced("memcached", port, old);
    sets(5);
    host.wait_status("both lives are summed", |status| {
        status.instances()[0].figures["windows"]["60"]["sets"] == 25
    });
}

#[test]
fn statistics_that_are_turned_off_are_not_taken() {
    let host = Host::new().memcached(1).with("global", "statsEnable", 0).started();
    let mut client = Memcached::connect(host.mc_port(0)).unwrap();
    let connections =
        |client: &mut Memcached| client.stats().unwrap()["total_connections"].parse::<u64>().unwrap();
    // A full check every second opens a connection: after some of them a sample would have been taken.
    let begun = connections(&mut client);
    yagent_tests::wait::until("several checks have been made", || {
        let now = connections(&mut client);
        yagent_tests::wait::check(now >= begun + 4, || format!("{now} connections"))
    });
    assert!(host.status().instances()[0].figures.is_null(), "{}", host.status());
}
