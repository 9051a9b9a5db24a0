//! What the plugin makes of settings, and what it refuses.
#![allow(clippy::unwrap_used)]

use yagent_abi::testing::Harness;
use yagent_redis::Redis;

const USUAL: [(&str, &[u8]); 4] = [
    ("program", b"/usr/bin/redis-server"),
    ("port", b"16379"),
    ("maxmem_mb", b"128"),
    ("state_dir", b"/var/lib/yagent/"),
];

fn create(more: &[(&str, &[u8])]) -> Result<Harness, String> {
    Harness::replicated::<Redis>(&[&USUAL, more].concat())
}

#[test]
fn the_operators_directives_come_before_ours() {
    let mut backend = create(&[
        ("redis_conf", b"/etc/redis/redis.conf"),
        ("redis_conf.content", b"unixsocket /run/r.sock\ntls-port 6390\ncluster-enabled yes\n"),
        ("redis_args", b"--port 1 --save ''"),
        ("redis_run_as", b"redis"),
        ("redis_dir", b"/data/"),
        ("bind", b"10.0.0.1"),
    ])
    .unwrap();
    let plan = backend.plan().unwrap();
    let expected = [
        "/etc/redis/redis.conf --port 1 --save  --port 16379 --bind 10.0.0.1 --maxmemory 128mb --dir /data/16379",
        "--dbfilename dump-16379.rdb --appendfilename appendonly-16379.aof --pidfile /data/16379/redis.pid",
        "--unixsocket /data/16379/redis.sock --cluster-config-file nodes-16379.conf --tls-port 0",
        "--logfile  --daemonize no --supervised no",
    ];
    assert_eq!(plan.texts("argv").join(" "), expected.join(" "));
    assert_eq!((plan.texts("user"), plan.texts("connect")), (vec!["redis".to_owned()], Vec::new()));
    assert_eq!(
        (plan.texts("dir"), plan.texts("cwd")),
        (vec!["/data/16379".to_owned()], vec!["/data/16379".to_owned()])
    );
}

#[test]
fn without_a_conf_the_state_dir_has_the_data() {
    let plan = create(&[]).unwrap().plan().unwrap();
    assert_eq!(plan.texts("argv")[..2], ["--port", "16379"]);
    assert_eq!(plan.texts("dir"), ["/var/lib/yagent/redis/16379"]);
    assert_eq!(plan.number("open_files"), Some(10_128.0));
}

#[test]
fn settings_that_cannot_work_are_refused() {
    for (name, value, expected) in [
        ("redis_conf", "redis.conf", "`redis_conf` is `redis.conf`, wanted an absolute path"),
        ("redis_dir", "data", "`redis_dir` is `data`, wanted an absolute path"),
        ("redis_args", "'x", "`redis_args`: unbalanced quotes"),
        ("redis_args", "x", "`redis_args`: it begins with `x`, wanted --DIRECTIVE VALUE"),
        ("redis_conf.content", "a \"b", "`redis_conf`: line 1: unbalanced quotes"),
        ("redis_conf.content", "rename-command get \"\"", "the configuration took the command GET away"),
        ("redis_username", "me", "`redis_username` is set, but no password is known for it"),
        ("port", "70000", "`port` is `70000`: number too large to fit in target type"),
        ("maxmem_mb", "", "`maxmem_mb` is not set"),
    ] {
        let why = create(&[(name, value.as_bytes())]).map(drop).unwrap_err();
        assert_eq!(why, expected, "{name}={value}");
    }
}
