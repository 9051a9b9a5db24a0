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

fn argv(more: &[(&str, &[u8])]) -> String {
    create(more).unwrap().plan().unwrap().texts("argv").join(" ")
}

#[test]
fn a_member_is_told_how_it_replicates_and_the_master_comes_last() {
    let member: &[(&str, &[u8])] =
        &[("replicaof", b"10.0.0.2 16379"), ("host", b"10.0.0.1"), ("peers", b"10.0.0.2")];
    let expected = " --supervised no --slave-announce-ip 10.0.0.1 --slave-announce-port 16379 --protected-mode no \
                    --slave-read-only yes --min-slaves-to-write 0 --min-slaves-max-lag 10 --repl-backlog-ttl 0 \
                    --repl-diskless-sync-delay 0 --slaveof 10.0.0.2 16379";
    assert!(argv(member).ends_with(expected), "{}", argv(member));

    let content = b"requirepass x\nmin-replicas-max-lag 5\nrepl-backlog-ttl 60\nrepl-diskless-sync-delay 1\nreplica-priority 7";
    let expected = " --supervised no --slave-announce-ip 10.0.0.1 --slave-announce-port 16379 --masterauth x \
                    --slave-read-only yes --min-slaves-to-write 0 --slaveof 10.0.0.2 16379";
    let told = argv(&[member, &[("redis_conf.content", content)]].concat());
    assert!(told.ends_with(expected), "{told}");

    let login: &[(&str, &[u8])] = &[("redis_username", b"agent"), ("redis_password", b"p")];
    assert!(argv(&[member, login].concat()).contains(" --masteruser agent --masterauth p "));
    let own = [member, login, &[("redis_conf.content", b"masterauth q")]].concat();
    assert!(!argv(&own).contains("--master"), "the conf has its own");
    assert!(!argv(&member[1..]).contains("slave"), "nothing of it without a master");
}

#[test]
fn a_member_that_no_peer_could_reach_is_refused() {
    let refused = |more: &[(&str, &[u8])]| create(more).map(drop).err();
    let peers: (&str, &[u8]) = ("peers", b"127.0.0.2, 10.0.0.2");
    let conf: (&str, &[u8]) = ("redis_conf.content", b"bind 127.0.0.1 -::1");
    for alone in [conf, ("bind", b"127.0.0.1")] {
        let why = refused(&[peers, alone]).unwrap();
        assert!(
            why.starts_with("it listens on loopback alone and 10.0.0.2 of `peers` could not reach it; "),
            "{why}"
        );
    }
    assert_eq!(refused(&[peers, conf, ("bind", b"10.0.0.1")]), None, "redis_bind wins");
    assert_eq!(refused(&[peers]), None);
    assert_eq!(refused(&[("peers", b"127.0.0.2"), conf]), None, "all of them are on this host");
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
        ("replicaof", "10.0.0.1:1", "`replicaof` is `10.0.0.1:1`, wanted HOST PORT"),
        ("port", "70000", "`port` is `70000`: number too large to fit in target type"),
        ("maxmem_mb", "", "`maxmem_mb` is not set"),
    ] {
        let why = create(&[(name, value.as_bytes())]).map(drop).unwrap_err();
        assert_eq!(why, expected, "{name}={value}");
    }
    for (content, expected) in [
        (
            "cluster-enabled yes",
            "`peers` is set, and `cluster-enabled`: redis switches masters by itself then",
        ),
        ("rename-command CONFIG \"\"", "the configuration took the command CONFIG away"),
        (
            "min-replicas-max-lag 0",
            "`min-replicas-max-lag` is 0: redis heeds no `min-replicas-to-write` then, and a master cut off from its \
             replicas would go on taking writes; set it to 10, or leave it out",
        ),
    ] {
        let more: &[(&str, &[u8])] = &[("peers", b"10.0.0.2"), ("redis_conf.content", content.as_bytes())];
        assert_eq!(create(more).map(drop).unwrap_err(), expected);
        assert!(create(&more[1..]).is_ok(), "alone it may be so");
    }
}
