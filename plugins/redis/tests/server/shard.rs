//! Members of a shard: started as replicas of nobody, made masters, made to follow, fenced.

use super::*;

/// Where a member replicates from while its master isn't known.
const NOWHERE: &str = "127.0.0.1 1";
const CONF: &str =
    "repl-diskless-sync-delay 0\nreplicaof 127.0.0.1 9\nmin-replicas-to-write 3\nprotected-mode yes\n";

fn member(state: &Path, port: u16, conf: &str, more: &[(&str, &str)]) -> Server {
    let more = [&[("replicaof", NOWHERE), ("host", "127.0.0.1"), ("peers", "127.0.0.2")], more].concat();
    Server::start_with(backend(state, port, conf, "", &more), port, READY)
}

/// A master and its replica, both started as replicas of nobody.
fn pair(state: &Path) -> (Server, Server) {
    let [mut master, mut replica] = [(); 2].map(|()| member(state, free_port(), CONF, &[]));
    master.ask(Hook::Promote, &[]).unwrap();
    follow(&mut replica, &master);
    (master, replica)
}

fn follow(replica: &mut Server, master: &Server) -> Told {
    let port = master.port.to_string();
    replica.ask(Hook::Follow, &[("host", "127.0.0.1"), ("port", &port)]).unwrap();
    replica.inspect_until("linked", |told| told.texts("link") == ["up"])
}

fn detach(server: &mut Server) -> Told {
    server.ask(Hook::Follow, &[("host", "127.0.0.1"), ("port", "1")]).unwrap();
    server.inspect_until("detached", |told| told.texts("link") == ["down"])
}

/// Waits until the replica has all that its master has.
fn settle(master: &mut Server, replica: &mut Server) -> f64 {
    let offset = master.inspect().number("offset").unwrap();
    replica.inspect_until("level", |told| told.number("offset") >= Some(offset)).number("offset").unwrap()
}

fn full_syncs(server: &Server) -> String {
    let stats = server.talk("INFO stats\r\n", 30);
    stats.into_iter().find(|line| line.starts_with("sync_full:")).unwrap()
}

#[test]
fn a_member_starts_as_a_replica_of_nobody_whatever_the_conf_says() {
    let state = state();
    let mut server = member(state.path(), free_port(), CONF, &[]);
    let told = server.inspect();
    assert_eq!(
        (told.texts("role"), told.texts("link")),
        (vec!["replica".to_owned()], vec!["down".to_owned()])
    );
    assert_eq!(told.texts("master"), ["127.0.0.1:1"]);
    assert_eq!(server.talk("SET a 1\r\n", 1), ["-READONLY You can't write against a read only replica."]);
    assert_eq!(server.health(), serving());
    for (name, value) in [
        ("min-replicas-to-write", "0"),
        ("min-replicas-max-lag", "10"),
        ("repl-backlog-ttl", "0"),
        ("protected-mode", "no"),
        ("replica-announce-ip", "127.0.0.1"),
        ("replica-announce-port", &server.port.to_string()),
    ] {
        assert_eq!(server.talk(&format!("CONFIG GET {name}\r\n"), 5)[4], value, "{name}");
    }
    server.ask(Hook::Promote, &[]).unwrap();
    assert_eq!(server.talk("SET a 1\r\n", 1), ["+OK"]);
}

#[test]
fn who_is_detached_keeps_data_and_history_and_carries_them_on_as_master() {
    let state = state();
    let (mut master, mut replica) = pair(state.path());
    master.talk("SET a 1\r\n", 1);
    let offset = settle(&mut master, &mut replica);
    let history = replica.inspect().texts("replication_id");

    let told = detach(&mut replica);
    assert_eq!((told.texts("replication_id"), told.number("keys")), (history.clone(), Some(1.0)));
    assert!(told.number("offset") >= Some(offset), "{told:?}");
    assert_eq!(replica.talk("SET b 1\r\n", 1), ["-READONLY You can't write against a read only replica."]);

    replica.ask(Hook::Promote, &[]).unwrap();
    let told = replica.inspect();
    assert_eq!((told.texts("role"), told.texts("replication_id2")), (vec!["master".to_owned()], history));
    assert_eq!(replica.talk("SET b 1\r\n", 1), ["+OK"]);

    // The former master goes on from where it was: nothing is copied whole.
    follow(&mut master, &replica);
    settle(&mut replica, &mut master);
    assert_eq!(full_syncs(&replica), "sync_full:0");
    assert_eq!(master.inspect().number("keys"), Some(2.0));
}

#[test]
fn a_former_master_that_is_detached_tells_where_its_data_is() {
    let state = state();
    let (mut master, mut replica) = pair(state.path());
    master.talk("SET a 1\r\n", 1);
    settle(&mut master, &mut replica);
    let (before, after) = (master.inspect(), detach(&mut master));
    assert_eq!(after.texts("replication_id"), before.texts("replication_id"));
    assert!(after.number("offset") >= before.number("offset"), "{before:?} {after:?}");
    assert_eq!(after.number("priority"), Some(100.0));
}

#[test]
fn data_read_at_a_start_keeps_its_history() {
    let state = state();
    let (mut master, mut replica) = pair(state.path());
    master.talk("SET a 1\r\n", 1);
    settle(&mut master, &mut replica);
    for server in [&mut replica, &mut master] {
        server.talk("SAVE\r\n", 1);
        let before = server.inspect();
        server.child.kill().unwrap();
        server.child.wait().unwrap();
        let mut again = member(state.path(), server.port, CONF, &[]);
        let after = again.inspect();
        assert_eq!(after.texts("replication_id"), before.texts("replication_id"));
        assert_eq!(after.number("keys"), Some(1.0));
        let offset = after.number("offset").unwrap();
        assert!(offset > 1.0 && Some(offset) <= before.number("offset"), "{before:?} {after:?}");
    }
}

#[test]
fn a_member_without_data_has_no_offset_to_speak_of() {
    let state = state();
    let mut server = member(state.path(), free_port(), CONF, &[]);
    let told = server.inspect();
    assert_eq!((told.number("offset"), told.number("keys")), (Some(0.0), Some(0.0)));
}

/// A leader must therefore write down what its server says of its history now, not what it said at its promotion.
#[test]
fn the_first_replica_of_a_fresh_master_begins_its_history() {
    let state = state();
    let [mut master, mut replica] = [(); 2].map(|()| member(state.path(), free_port(), CONF, &[]));
    master.ask(Hook::Promote, &[]).unwrap();
    let alone = master.inspect();
    follow(&mut replica, &master);
    let followed = master.inspect();
    assert_ne!(alone.texts("replication_id"), followed.texts("replication_id"));
    assert_eq!(replica.inspect().texts("replication_id"), followed.texts("replication_id"));
}

#[test]
fn a_fence_holds_over_a_promotion_and_lets_reads_through() {
    let state = state();
    let (mut master, mut replica) = pair(state.path());
    master.talk("SET a 1\r\n", 1);
    settle(&mut master, &mut replica);
    replica.ask(Hook::Fence, &[("ms", "60000")]).unwrap();
    detach(&mut replica);
    replica.ask(Hook::Promote, &[]).unwrap();
    assert_eq!(replica.talk("GET a\r\n", 2), ["$1", "1"]);
    let mut writer = replica.connect();
    writer.write_all(b"SET b 1\r\n").unwrap();
    writer.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(writer.read(&mut [0; 16]).is_err(), "a fenced master acknowledged a write");
    replica.ask(Hook::Unfence, &[("min_replicas", "0")]).unwrap();
    writer.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    assert_eq!(talk(&mut writer, "", 1), ["+OK"]);
}

#[test]
fn a_write_that_waits_at_the_fence_meets_the_number_of_replicas() {
    let state = state();
    let mut server = member(state.path(), free_port(), CONF, &[]);
    server.ask(Hook::Promote, &[]).unwrap();
    server.ask(Hook::Fence, &[("ms", "60000")]).unwrap();
    let mut writer = server.connect();
    writer.write_all(b"SET a 1\r\n").unwrap();
    let told = server.ask(Hook::Unfence, &[("min_replicas", "1")]).unwrap();
    assert_eq!(told.received, b"+OK\r\n+OK\r\n");
    assert_eq!(talk(&mut writer, "", 1), ["-NOREPLICAS Not enough good replicas to write."]);
    assert_eq!(server.health(), serving());
    server.ask(Hook::Unfence, &[("min_replicas", "0")]).unwrap();
    assert_eq!(server.talk("SET a 1\r\n", 1), ["+OK"]);
}

#[test]
fn a_number_that_is_refused_leaves_the_fence_up() {
    let state = state();
    let conf = format!("{CONF}user default on nopass ~* +@all -config\n");
    let mut server = member(state.path(), free_port(), &conf, &[]);
    server.ask(Hook::Promote, &[]).unwrap();
    server.ask(Hook::Fence, &[("ms", "60000")]).unwrap();
    let why = server.ask(Hook::Unfence, &[("min_replicas", "1")]).unwrap_err();
    assert!(why.starts_with("NOPERM "), "{why}");
    let mut writer = server.connect();
    writer.write_all(b"SET a 1\r\n").unwrap();
    writer.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(writer.read(&mut [0; 16]).is_err(), "it was unfenced without the number");
}

/// The rules of `docs/engines.md`, and no others.
const RULES: &str = "~yagent:probe +get +info +role +slaveof +config|set +client|pause +client|unpause \
                     +client|kill +script|kill +function|kill +psync +replconf +ping";

#[test]
fn an_acl_user_with_the_documented_rights_does_all_of_it() {
    let state = state();
    let conf =
        format!("{CONF}user default off\nuser agent on >secret {RULES}\nuser app on nopass ~* +@all\n");
    let login = [("redis_username", "agent"), ("redis_password", "secret")];
    let [mut master, mut replica] = [(); 2].map(|()| member(state.path(), free_port(), &conf, &login));
    master.ask(Hook::Promote, &[]).unwrap();
    follow(&mut replica, &master);
    assert_eq!(master.talk("AUTH app x\r\nSET a 1\r\n", 2), ["+OK", "+OK"]);
    settle(&mut master, &mut replica);
    for server in [&mut master, &mut replica] {
        assert_eq!(server.health(), serving());
        server.ask(Hook::Stats, &[]).unwrap();
        server.ask(Hook::Probe, &[("unstick", "1")]).unwrap();
    }
    master.ask(Hook::Fence, &[("ms", "1000")]).unwrap();
    master.ask(Hook::Unfence, &[("min_replicas", "1")]).unwrap();
    replica.ask(Hook::Promote, &[]).unwrap();
    let port = replica.port.to_string();
    master.ask(Hook::Follow, &[("host", "127.0.0.1"), ("port", &port), ("drop_clients", "1")]).unwrap();
    master.inspect_until("linked", |told| told.texts("link") == ["up"]);
    let line = std::fs::read(format!("/proc/{}/cmdline", master.child.id())).unwrap();
    assert!(!line.windows(6).any(|at| at == b"secret"), "the password is shown to other users");
}

#[test]
fn a_master_s_password_is_known_to_its_replicas() {
    let state = state();
    let conf = format!("{CONF}requirepass secret\n");
    let [mut master, mut replica] = [(); 2].map(|()| member(state.path(), free_port(), &conf, &[]));
    master.ask(Hook::Promote, &[]).unwrap();
    follow(&mut replica, &master);
    let protected = replica.talk("AUTH secret\r\nCONFIG GET protected-mode\r\n", 6);
    assert_eq!(protected[5], "yes", "a password is there, so it may stay");
}
