//! A third engine, written in C with the header alone, for a server that is no key-value store: rrdcached.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    time::{SystemTime, UNIX_EPOCH},
};

use yagent_tests::{
    cache::{Memcached, Redis},
    host::Host,
    plugins,
    ports::PortBlock,
    process::{self, Signal},
    programs, wait,
    zookeeper::{Kazoo, Server},
};

/// A host that loads the plugin; `count` instances from `port` on, one port apart.
fn with_rrdcached(host: Host, count: i32, port: u16) -> Host {
    let dir = host.path().join("plugins");
    plugins::compile(&plugins::repository().join("plugins/rrdcached/rrdcached.c"), &dir, "rrdcached", &[]);
    host.with("plugins", "load", "rrdcached")
        .with("plugins", "dir", dir.display())
        .with("rrdcached", "rrdcached_fpath", programs::debian("rrdcached", "rrdcached").display())
        .with("rrdcached", "rrdcached_count", count)
        .with("rrdcached", "rrdcached_maxmem", 8)
        .with("rrdcached", "rrdcached_args", "-t 1 -w 3600")
        .with("rrdcached", "rrdcached_port", port)
        .with("rrdcached", "rrdcached_port_step", 1)
}

/// Waits until so many instances of it are up and serve.
fn wait_serving(host: &Host, count: usize) -> Vec<u32> {
    let status = host.wait_status("all rrdcached are up", |status| {
        let serving = |it: &yagent_tests::status::Instance| it.state == "up" && it.health == "serving";
        status.instances().iter().filter(|it| it.engine == "rrdcached" && serving(it)).count() == count
    });
    status.instances().iter().filter(|it| it.engine == "rrdcached").map(|it| it.pid).collect()
}

/// One request and the first line of its answer.
fn ask(port: u16, request: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    writeln!(stream, "{request}").unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    answer.trim().to_owned()
}

#[test]
fn it_is_registered_counted_and_restarted_with_what_its_journal_has() {
    let zk = Server::start();
    let host = Host::new().zookeeper(&zk.address());
    let port = host.mc_port(0);
    let mut host = with_rrdcached(host, 1, port);
    host.launch();
    let pid = wait_serving(&host, 1)[0];
    // What happened before the first sample is not counted.
    host.wait_status("the first sample is there", |status| {
        status.instance("rrdcached", port).is_some_and(|it| !it.figures.is_null())
    });
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let created = format!("CREATE a.rrd -b {} -s 1 DS:x:GAUGE:10:U:U RRA:AVERAGE:0.5:1:10", now - 1000);
    assert_eq!(ask(port, &created), "0 RRD created OK");
    // The server holds back the last 4 KiB of its journal.
    for second in now - 400..now {
        assert_eq!(ask(port, &format!("UPDATE a.rrd {second}:1")), "0 errors, enqueued 1 value(s).");
    }
    wait::until("the updates are counted", || {
        let figures = host.instance("rrdcached", port).figures;
        let counted = figures["keys"] == 1 && figures["windows"]["60"]["sets"] == 400;
        let counted = counted && figures["other"]["queue_length"].is_u64();
        wait::check(counted, || figures.to_string())
    });

    process::signal(pid, Signal::STOP);
    let new = host.wait_replaced("rrdcached", port, pid);
    assert_eq!(new.restarts, 1);
    let answer = ask(port, "PENDING a.rrd");
    let pending: u32 =
        answer.strip_suffix(" updates pending").and_then(|n| n.parse().ok()).unwrap_or_default();
    assert!(pending >= 200, "{answer}");

    host.wait_registered();
    let tree = Kazoo::new(&zk.address()).tree("/").unwrap();
    let node = |path: &str| tree.get(path).unwrap_or_else(|| panic!("no {path} in {tree:#?}"));
    let content = &node(&format!("/rrdcached/servers/127.0.0.1/instances/127.0.0.1:{port}")).content;
    let content: serde_json::Value = serde_json::from_str(content).unwrap();
    assert_eq!((&content["engine"], &content["state"]), (&"rrdcached".into(), &"up".into()));
    assert_ne!(node("/rrdcached/servers/127.0.0.1/active").owner, 0);
}

#[test]
fn memory_decides_how_many_there_are() {
    let host = Host::new();
    let port = host.mc_port(0);
    let mut host = with_rrdcached(host, -1, port);
    let plan = |host: &Host| {
        host.write_ini();
        let output = host.run(&["plan", "--mem-total-mb", "1024"]);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    host.ini.set("rrdcached", "rrdcached_maxmem", 300).set("rrdcached", "rrdcached_meta_size", 20);
    // 1024 MB without the 64 of the system hold three times 320.
    let text = plan(&host);
    assert!((0..3).all(|i| text.contains(&format!("127.0.0.1:{}", port + i))), "{text}");
    assert!(!text.contains(&format!("127.0.0.1:{}", port + 3)), "{text}");
    assert!(text.contains("-t 1 -w 3600"), "{text}");
}

#[test]
fn settings_that_are_the_hosts_own_are_refused_by_name() {
    let host = Host::new();
    let port = host.mc_port(0);
    let host = with_rrdcached(host, 1, port).with("rrdcached", "rrdcached_args", "-t 2 -l 0.0.0.0:1");
    host.write_ini();
    let output = host.run(&["check"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(said.contains("`rrdcached_args` has one of -g -l -L -p -b -j -U -G"), "{said}");
}

#[test]
fn a_hundred_of_them_live_beside_memcached_and_redis() {
    let ports = PortBlock::reserve(100);
    let mut host = with_rrdcached(Host::new().memcached(2).redis(1), 100, ports.first());
    host.launch();
    let before = wait_serving(&host, 100);
    process::signal(before[50], Signal::KILL);
    let hung = host.status().instance("rrdcached", ports.first() + 70).unwrap();
    process::signal(hung.pid, Signal::STOP);
    host.wait_replaced("rrdcached", hung.port, hung.pid);
    let after = wait_serving(&host, 100);
    let same = before.iter().filter(|pid| after.contains(pid)).count();
    assert_eq!(same, 98, "the others were not touched");
    assert_eq!(Memcached::connect(host.mc_port(1)).unwrap().get("x").unwrap(), None);
    assert_eq!(Redis::connect(host.redis_port(0)).unwrap().call(&["PING"]).unwrap(), "PONG");
}
