//! The shared object itself, loaded by the agent's loader.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use yagent::plugin::{Event, Health, Hook, Reply, Step, loader};
// Only so that cargo builds the library, and with it the shared object.
use yagent_redis as _;

#[test]
fn the_agent_loads_it_and_holds_a_conversation() {
    let dir = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let plugin = loader::load("redis", &[dir]).unwrap();
    let about = plugin.description();
    assert_eq!(
        (about.id.as_str(), about.key_prefix.as_str(), about.registry_root.as_str()),
        ("redis", "redis_", "/redis")
    );
    assert_eq!(about.file_keys, ["redis_conf"]);
    assert!(plugin.has_failover());
    let setting = |name: &str, value: &str| (name.to_owned(), value.as_bytes().to_vec());
    let mut backend = plugin
        .create(&[
            setting("program", "/usr/local/bin/redis-server"),
            setting("port", "16379"),
            setting("maxmem_mb", "128"),
            setting("state_dir", "/var/lib/yagent"),
            setting("redis_conf", "/etc/redis/redis.conf"),
            setting("redis_conf.content", "requirepass p\nbind 10.0.0.9\n"),
        ])
        .unwrap();
    let plan = backend.start().unwrap();
    let args: Vec<&str> = plan.args.iter().map(|arg| std::str::from_utf8(arg).unwrap()).collect();
    assert_eq!(args[..5], ["/etc/redis/redis.conf", "--port", "16379", "--maxmemory", "128mb"]);
    assert_eq!(args[args.len() - 6..], ["--logfile", "", "--daemonize", "no", "--supervised", "no"]);
    assert_eq!((plan.connect.as_str(), plan.open_files), ("10.0.0.9", 10_128));
    assert_eq!(
        (plan.cwd.as_str(), plan.dirs),
        ("/var/lib/yagent/redis/16379", vec!["/var/lib/yagent/redis/16379".into()])
    );

    let (now, mut reply) = (Instant::now(), Reply::default());
    let deadline = now + Duration::from_secs(1);
    let begin = Event::Begin { fresh: true, args: &[] };
    assert_eq!(backend.step(Hook::Probe, begin, now, deadline, &mut reply), Step::More);
    assert_eq!(reply.send, b"*2\r\n$4\r\nAUTH\r\n$1\r\np\r\n*2\r\n$3\r\nGET\r\n$12\r\nyagent:probe\r\n");
    assert_eq!(backend.step(Hook::Probe, Event::Bytes(b"+OK\r\n$-"), now, deadline, &mut reply), Step::More);
    assert_eq!(
        backend.step(Hook::Probe, Event::Bytes(b"+OK\r\n$-1\r\n"), now, deadline, &mut reply),
        Step::Done
    );
    assert_eq!(reply.health, Some((Health::Serving, String::new())));
}
