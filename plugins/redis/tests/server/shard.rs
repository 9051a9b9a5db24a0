//! Members of a shard: started as replicas of nobody, made masters, made to follow, fenced.

use super::*;

/// Where a member replicates from while its master isn't known.
const NOWHERE: &str = "127.0.0.1 1";
const CONF: &str =
    "repl-diskless-sync-delay 0\nslaveof 127.0.0.1 9\nmin-slaves-to-write 3\nprotected-mode yes\n";

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
    let stats = server.info("stats");
    stats.lines().find(|line| line.starts_with("sync_full:")).unwrap().to_owned()
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
    assert_eq!(told.number("link_down_s"), None, "it never was up");
    assert!(server.talk("SET a 1\r\n", 1)[0].starts_with("-READONLY "));
    assert_eq!(server.health(), serving());
    for (name, value) in [
        ("min-slaves-to-write", "0"),
        ("min-slaves-max-lag", "10"),
        ("repl-backlog-ttl", "0"),
        ("protected-mode", "no"),
        ("slave-announce-ip", "127.0.0.1"),
        ("slave-announce-port", &server.port.to_string()),
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
    // An old one forgets how far it was.
    let least = if program::has_histories() { offset } else { 0.0 };
    assert!(told.number("offset") >= Some(least), "{told:?}");
    assert!(replica.talk("SET b 1\r\n", 1)[0].starts_with("-READONLY "));

    replica.ask(Hook::Promote, &[]).unwrap();
    let told = replica.inspect();
    assert_eq!((told.texts("role"), told.texts("replication_id2")), (vec!["master".to_owned()], history));
    assert_eq!(replica.talk("SET b 1\r\n", 1), ["+OK"]);

    // The former master goes on from where it was: nothing is copied whole.
    follow(&mut master, &replica);
    settle(&mut replica, &mut master);
    assert_eq!(full_syncs(&replica), if program::has_histories() { "sync_full:0" } else { "sync_full:1" });
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
    let least = if program::has_histories() { before.number("offset") } else { Some(0.0) };
    assert!(after.number("offset") >= least, "{before:?} {after:?}");
    assert_eq!(after.number("priority"), Some(100.0));
}

#[test]
fn data_read_at_a_start_keeps_its_history() {
    let state = state();
    let (mut master, mut replica) = pair(state.path());
    master.talk("SET a 1\r\n", 1);
    settle(&mut master, &mut replica);
    for server in [&mut replica, &mut master] {
        save(server);
        let before = server.inspect();
        server.child.kill().unwrap();
        server.child.wait().unwrap();
        let mut again = member(state.path(), server.port, CONF, &[]);
        let after = again.inspect();
        assert_eq!(after.texts("replication_id"), before.texts("replication_id"));
        assert_eq!(after.number("keys"), Some(1.0));
        let offset = after.number("offset").unwrap();
        if program::has_histories() {
            assert!(offset > 1.0 && Some(offset) <= before.number("offset"), "{before:?} {after:?}");
        } else {
            assert!(offset <= 0.0, "{after:?}");
        }
    }
}

/// Saves, as soon as a save for a replica is over.
fn save(server: &Server) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let answer = server.talk("SAVE\r\n", 1);
        if answer == ["+OK"] {
            return;
        }
        assert!(answer[0].contains("in progress") && Instant::now() < deadline, "{answer:?}");
        std::thread::sleep(Duration::from_millis(10));
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
    let began = alone.texts("replication_id") != followed.texts("replication_id");
    assert_eq!(began, program::has_histories());
    assert_eq!(replica.inspect().texts("replication_id"), followed.texts("replication_id"));
}

#[test]
fn a_fence_holds_over_a_promotion_and_lets_reads_through() {
    let state = state();
    let (mut master, mut replica) = pair(state.path());
    master.talk("SET a 1\r\n", 1);
    settle(&mut master, &mut replica);
    if !replica.ask_pause(Hook::Fence, &[("ms", "60000")]) {
        return;
    }
    detach(&mut replica);
    replica.ask(Hook::Promote, &[]).unwrap();
    assert_eq!(replica.talk("GET a\r\n", 2), ["$1", "1"]);
    let mut writer = replica.connect();
    writer.write_all(b"SET b 1\r\n").unwrap();
    waits(&mut writer);
    replica.ask(Hook::Unfence, &[("min_replicas", "0")]).unwrap();
    assert_eq!(talk(&mut writer, "", 1), ["+OK"]);
}

/// It is a master before clients are to write to it.
#[test]
fn a_server_that_was_promoted_takes_no_writes_before_it_is_told_to() {
    let state = state();
    let (mut master, mut replica) = pair(state.path());
    master.talk("SET a 1\r\n", 1);
    settle(&mut master, &mut replica);
    let can_pause = master.ask_pause(Hook::Fence, &[("ms", "1")]);
    replica.ask(Hook::Promote, &[("fence_ms", "60000")]).unwrap();
    assert_eq!(replica.inspect().texts("role"), ["master"]);
    assert_eq!(replica.talk("GET a\r\n", 2), ["$1", "1"]);
    let mut writer = replica.connect();
    writer.write_all(b"SET b 1\r\n").unwrap();
    if can_pause {
        waits(&mut writer);
    }
    replica.ask(Hook::Unfence, &[("min_replicas", "0")]).unwrap();
    assert_eq!(talk(&mut writer, "", 1), ["+OK"]);
}

#[test]
fn a_write_that_waits_at_the_fence_meets_the_number_of_replicas() {
    let state = state();
    let mut server = member(state.path(), free_port(), CONF, &[]);
    server.ask(Hook::Promote, &[]).unwrap();
    let fenced = server.ask_pause(Hook::Fence, &[("ms", "60000")]);
    let mut writer = server.connect();
    if fenced {
        writer.write_all(b"SET a 1\r\n").unwrap();
    }
    // Where there is no pause to end, the number is taken all the same.
    server.ask(Hook::Unfence, &[("min_replicas", "1")]).unwrap();
    let answer = talk(&mut writer, if fenced { "" } else { "SET a 1\r\n" }, 1);
    assert!(answer[0].starts_with("-NOREPLICAS "), "{answer:?}");
    assert_eq!(server.ask(Hook::Stats, &[]).unwrap().number("good_replicas"), Some(0.0));
    assert_eq!(server.health(), serving());
    server.ask(Hook::Unfence, &[("min_replicas", "0")]).unwrap();
    assert_eq!(server.talk("SET a 1\r\n", 1), ["+OK"]);
}

#[test]
fn a_number_that_is_refused_leaves_the_fence_up() {
    let state = state();
    let users = if program::has_users() { "user default on nopass ~* +@all -config\n" } else { "" };
    let mut server = member(state.path(), free_port(), &format!("{CONF}{users}"), &[]);
    server.ask(Hook::Promote, &[]).unwrap();
    if !server.ask_pause(Hook::Fence, &[("ms", "60000")]) {
        return;
    }
    let why = server.ask(Hook::Unfence, &[("min_replicas", "1")]).unwrap_err();
    assert!(why.starts_with("NOPERM "), "{why}");
    let mut writer = server.connect();
    writer.write_all(b"SET a 1\r\n").unwrap();
    waits(&mut writer);
}

#[test]
fn one_that_may_not_pause_writes_is_not_made_a_master() {
    if !program::has_users() {
        return;
    }
    let state = state();
    let users = "user default on nopass ~* +@all -client\n";
    let mut server = member(state.path(), free_port(), &format!("{CONF}{users}"), &[]);
    let why = server.ask(Hook::Promote, &[("fence_ms", "60000")]).unwrap_err();
    assert!(why.starts_with("NOPERM "), "{why}");
    assert_eq!(server.inspect().texts("role"), ["replica"]);
}

/// The rules of `docs/engines.md`, and no others.
const RULES: &str = "~yagent:probe +get +info +role +slaveof +config|set +client|pause +client|unpause \
                     +client|kill +script|kill +function|kill +psync +replconf +ping";

#[test]
fn an_acl_user_with_the_documented_rights_does_all_of_it() {
    // What a version without users says to one is asserted in `troubles`.
    if !program::has_users() {
        return;
    }
    let state = state();
    let rules =
        if program::has_functions() { RULES.to_owned() } else { RULES.replace(" +function|kill", "") };
    let conf =
        format!("{CONF}user default off\nuser agent on >secret {rules}\nuser app on nopass ~* +@all\n");
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
    master.ask_pause(Hook::Fence, &[("ms", "1000")]);
    master.ask(Hook::Unfence, &[("min_replicas", "1")]).unwrap();
    assert_eq!(master.talk("AUTH app x\r\nSET a 2\r\n", 2)[1], "+OK", "a replica is attached");
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
