//! What keeps a server from obeying or from taking writes: each is told apart, in words that say what to do.

use super::*;

/// The orders, with arguments that any server could follow.
const ORDERS: [(Hook, &[(&str, &str)]); 4] = [
    (Hook::Promote, &[("fence_ms", "60000")]),
    (Hook::Follow, &[("host", "127.0.0.1"), ("port", "1")]),
    (Hook::Fence, &[("ms", "60000")]),
    (Hook::Unfence, &[("min_replicas", "0")]),
];
const ENDLESS: &str = "EVAL \"while true do end\" 0\r\n";

/// Each of the orders goes through, as far as the version has it.
fn obeys(server: &mut Server) {
    for (hook, args) in ORDERS {
        match hook {
            Hook::Fence => drop(server.ask_pause(hook, args)),
            _ => drop(server.ask(hook, args).unwrap_or_else(|why| panic!("{hook:?}: {why}"))),
        }
    }
}

fn role(server: &Server) -> String {
    server.talk("ROLE\r\n", 4)[2].clone()
}

/// Starts what never ends, and waits until redis says so.
fn stuck(server: &Server, command: &str) -> TcpStream {
    let mut client = server.connect();
    client.write_all(command.as_bytes()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !server.talk("PING\r\n", 1)[0].starts_with("-BUSY ") {
        assert!(Instant::now() < deadline, "it is not busy");
    }
    client
}

/// How often a command was called, as redis counts.
fn calls(server: &Server, command: &str, subcommand: &str) -> u64 {
    let text = server.info("commandstats");
    let names = [format!("cmdstat_{command}:calls="), format!("cmdstat_{command}|{subcommand}:calls=")];
    let count = |line: &str| {
        let rest = names.iter().find_map(|name| line.strip_prefix(name.as_str()))?;
        rest.split(',').next()?.parse::<u64>().ok()
    };
    text.lines().filter_map(count).sum()
}

#[test]
fn a_server_that_reads_its_data_tells_so_and_does_not_change_its_part() {
    let state = state();
    // An AOF that takes its time. Old versions cannot be slowed down otherwise.
    let port = free_port();
    let dir = state.path().join(format!("redis/{port}"));
    std::fs::create_dir_all(&dir).unwrap();
    let slow = "*3\r\n$5\r\nDEBUG\r\n$5\r\nSLEEP\r\n$6\r\n0.0002\r\n".repeat(100_000);
    std::fs::write(dir.join(format!("appendonly-{port}.aof")), slow).unwrap();
    let mut server = Server::start_at(state.path(), port, "appendonly yes\n", "", "Server ");
    let (code, why) = server.health();
    assert_eq!((code, why.starts_with("LOADING ")), (raw::LOADING, true), "{why}");
    let told = server.inspect();
    assert_eq!((told.texts("role"), told.texts("loading")), (vec!["master".into()], vec!["yes".into()]));
    let later = |server: &mut Server, (hook, args): (Hook, &[(&str, &str)])| {
        let why = server.ask(hook, args).unwrap_err();
        assert!(why.contains(" loading ") && why.ends_with("(it reads its data: wait)"), "{hook:?}: {why}");
    };
    let [promote, follow, fence, unfence] = ORDERS;
    later(&mut server, promote);
    later(&mut server, follow);
    let (client, config) = program::is_set_while_loading();
    match client {
        true => drop(server.ask_pause(fence.0, fence.1)),
        false => later(&mut server, fence),
    }
    match config {
        true => drop(server.ask(unfence.0, unfence.1).unwrap()),
        false => later(&mut server, unfence),
    }
    assert_eq!(server.inspect().texts("role"), ["master"]);
}

#[test]
fn a_script_in_the_way_of_an_order_is_ended_once() {
    for (hook, args) in ORDERS {
        let state = state();
        let mut server = Server::start(state.path(), "lua-time-limit 10\n");
        let mut client = stuck(&server, ENDLESS);
        match hook {
            Hook::Fence => drop(server.ask_pause(hook, args)),
            _ => drop(server.ask(hook, args).unwrap_or_else(|why| panic!("{hook:?}: {why}"))),
        }
        assert!(talk(&mut client, "", 1)[0].starts_with('-'), "the script was ended");
        assert_eq!(calls(&server, "script", "kill"), 1, "{hook:?}");
        assert_eq!(role(&server), if hook == Hook::Follow { "slave" } else { "master" });
        if hook == Hook::Fence && program::pauses_writes() {
            client.write_all(b"SET a 1\r\n").unwrap();
            waits(&mut client);
        }
    }
}

/// The fencer is taught the first words and the last answer.
#[test]
fn a_fence_that_met_a_script_was_said_and_answered_as_any_other() {
    if !program::pauses_writes() {
        return;
    }
    let state = state();
    let mut server = Server::start(state.path(), "lua-time-limit 10\nrequirepass secret\n");
    let mut client = server.connect();
    talk(&mut client, "AUTH secret\r\n", 1);
    client.write_all(ENDLESS.as_bytes()).unwrap();
    while server.health().0 != raw::BUSY {}
    let met = server.ask(Hook::Fence, &[("ms", "1")]).unwrap();
    let plain = server.ask(Hook::Fence, &[("ms", "1")]).unwrap();
    assert!(met.sent.len() > plain.sent.len() && met.sent.starts_with(&plain.sent));
    assert!(met.sent.ends_with(&plain.sent) && met.received.ends_with(&plain.received), "{met:?}");
    assert_eq!(plain.received, b"+OK\r\n+OK\r\n");
}

#[test]
fn a_function_in_the_way_of_an_order_is_ended() {
    if !program::has_functions() {
        return;
    }
    let state = state();
    let mut server = Server::start(state.path(), "lua-time-limit 10\n");
    let function = "#!lua name=l\\nredis.register_function('f', function() while true do end end)";
    assert_eq!(server.talk(&format!("FUNCTION LOAD \"{function}\"\r\n"), 2)[1], "l");
    let mut client = stuck(&server, "FCALL f 0\r\n");
    server.ask(Hook::Follow, ORDERS[1].1).unwrap();
    assert!(talk(&mut client, "", 1)[0].starts_with('-'), "the function was ended");
    assert_eq!(role(&server), "slave");
}

#[test]
fn a_script_that_cannot_be_ended_is_told_with_redis_reason() {
    let state = state();
    let mut server = Server::start(state.path(), "lua-time-limit 10\n");
    stuck(&server, "EVAL \"redis.call('set', 'a', 1) while true do end\" 0\r\n");
    for (hook, args) in ORDERS {
        let why = server.ask(hook, args).unwrap_err();
        assert!(
            why.starts_with("BUSY ") && why.contains("; it was not ended: UNKILLABLE "),
            "{hook:?}: {why}"
        );
    }
    let (code, why) = server.ask(Hook::Probe, &[("unstick", "1")]).unwrap().health.unwrap();
    assert_eq!((code, why.contains("; it was not ended: UNKILLABLE ")), (raw::BUSY, true), "{why}");
}

#[test]
fn a_look_ends_no_script() {
    let state = state();
    let mut server = Server::start(state.path(), "lua-time-limit 10\n");
    let mut client = stuck(&server, ENDLESS);
    for hook in [Hook::Inspect, Hook::Stats] {
        let why = server.ask(hook, &[]).unwrap_err();
        assert!(why.starts_with("BUSY ") && why.contains("`lua-time-limit`"), "{why}");
    }
    assert_eq!(server.health().0, raw::BUSY);
    server.ask(Hook::Promote, &[]).unwrap();
    assert!(talk(&mut client, "", 1)[0].starts_with('-'));
    assert_eq!(calls(&server, "script", "kill"), 1);
}

#[test]
fn a_script_that_the_user_may_not_end_is_told() {
    if !program::has_users() {
        return;
    }
    let state = state();
    let functions = if program::has_functions() { "-function" } else { "" };
    let conf = format!("lua-time-limit 10\nuser agent on >secret ~* +@all -script {functions}\n");
    let mut server = Server::start(state.path(), &conf);
    let login = [("redis_username", "agent"), ("redis_password", "secret")];
    server.backend = backend(state.path(), server.port, &conf, "", &login);
    stuck(&server, ENDLESS);
    let why = server.ask(Hook::Promote, &[]).unwrap_err();
    assert!(why.starts_with("BUSY ") && why.contains("; it was not ended: NOPERM "), "{why}");
    // One whose command was taken away is not asked for.
    let conf = "lua-time-limit 10\nrename-command SCRIPT \"\"\nrename-command FUNCTION \"\"\n";
    server.backend = backend(state.path(), server.port, conf, "", &[]);
    let why = server.ask(Hook::Promote, &[]).unwrap_err();
    assert!(why.starts_with("BUSY ") && !why.contains("; it was not ended"), "{why}");
}

#[test]
fn a_server_that_could_not_save_obeys_and_its_figures_tell() {
    let state = state();
    let mut server = Server::start(state.path(), "save 3600 1\n");
    assert_eq!(server.ask(Hook::Stats, &[]).unwrap().number("not_saved"), Some(0.0));
    // Root writes wherever it likes, but no file over a folder.
    let in_the_way = format!("{}/dump-{}.rdb", server.dir, server.port);
    std::fs::create_dir(&in_the_way).unwrap();
    save_in_background(&mut server, 1.0);
    assert!(server.talk("SET a 1\r\n", 1)[0].starts_with("-MISCONF "));
    assert_eq!(server.health(), serving());
    obeys(&mut server);
    assert_eq!(role(&server), "slave");
    server.ask(Hook::Promote, &[]).unwrap();
    assert_eq!(role(&server), "master");
    assert!(server.talk("SET a 1\r\n", 1)[0].starts_with("-MISCONF "));

    std::fs::remove_dir(&in_the_way).unwrap();
    save_in_background(&mut server, 0.0);
    assert_eq!(server.talk("SET a 1\r\n", 1), ["+OK"]);
}

/// Saves until the figures say that it went so.
fn save_in_background(server: &mut Server, not_saved: f64) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while server.ask(Hook::Stats, &[]).unwrap().number("not_saved") != Some(not_saved) {
        assert!(Instant::now() < deadline, "the save went otherwise");
        server.talk("BGSAVE\r\n", 1);
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_server_that_lacks_replicas_obeys_and_its_figures_tell() {
    let state = state();
    let conf = "repl-diskless-sync-delay 0\n";
    let [mut master, mut replica] = [(); 2].map(|()| Server::start(state.path(), conf));
    master.ask(Hook::Unfence, &[("min_replicas", "1")]).unwrap();
    assert!(master.talk("SET a 1\r\n", 1)[0].starts_with("-NOREPLICAS "));
    assert_eq!(master.health(), serving());
    assert_eq!(master.ask(Hook::Stats, &[]).unwrap().number("good_replicas"), Some(0.0));
    let port = master.port.to_string();
    replica.ask(Hook::Follow, &[("host", "127.0.0.1"), ("port", &port)]).unwrap();
    master.inspect_until("followed", |told| told.texts("replica").iter().any(|one| one.contains(" online ")));
    let deadline = Instant::now() + Duration::from_secs(20);
    while master.ask(Hook::Stats, &[]).unwrap().number("good_replicas") != Some(1.0) {
        assert!(Instant::now() < deadline, "its replica does not count");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(master.talk("SET a 1\r\n", 1), ["+OK"]);
}

/// Every hook is refused with words that begin and end so, and nothing happens.
fn refused(server: &mut Server, begin: &str, advice: &str) {
    let told = |why: &str| why.starts_with(begin) && why.contains(advice);
    for (hook, args) in ORDERS.into_iter().chain([(Hook::Inspect, &[][..]), (Hook::Stats, &[])]) {
        let why = server.ask(hook, args).unwrap_err();
        assert!(told(&why), "{hook:?}: {why}");
    }
    let (code, why) = server.health();
    assert_eq!((code, told(&why)), (raw::REFUSED, true), "{why}");
}

#[test]
fn a_missing_and_a_wrong_password_are_told_apart_by_every_hook() {
    let state = state();
    let mut server = Server::start(state.path(), "requirepass secret\n");
    server.backend = backend(state.path(), server.port, "", "", &[]);
    refused(&mut server, "NOAUTH Authentication required (it wants a password", "set `redis_password`");
    server.backend = backend(state.path(), server.port, "requirepass wrong\n", "", &[]);
    let wrong = if program::has_users() { "WRONGPASS " } else { "ERR invalid password (" };
    refused(&mut server, wrong, "is not what the server has");
    let user = [("redis_username", "agent"), ("redis_password", "secret")];
    server.backend = backend(state.path(), server.port, "", "", &user);
    match program::has_users() {
        true => refused(&mut server, "WRONGPASS ", "is not what the server has"),
        false => refused(&mut server, "ERR wrong number of arguments", "unset `redis_username`"),
    }
    assert_eq!(server.talk("AUTH secret\r\nROLE\r\n", 5)[3], "master");
    assert_eq!(server.talk("AUTH secret\r\nSET a 1\r\n", 2)[1], "+OK");
}

#[test]
fn a_missing_right_is_told_by_every_hook() {
    if !program::has_users() {
        return;
    }
    let state = state();
    let conf = "user agent on >secret +ping\n";
    let mut server = Server::start(state.path(), conf);
    let login = [("redis_username", "agent"), ("redis_password", "secret")];
    server.backend = backend(state.path(), server.port, conf, "", &login);
    refused(&mut server, "NOPERM ", "lacks a right");
    assert_eq!(role(&server), "master");
}
