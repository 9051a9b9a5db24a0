//! The registry's tree, its figures and its news.

use super::*;

#[test]
fn the_tree_says_what_the_host_has() {
    let mut bench = Bench::up(&plan(1));
    bench.pass(MINUTE);
    let (host, instance) = ("/ycache/servers/10.0.0.1", "/ycache/servers/10.0.0.1/instances/10.0.0.1:11211");
    let (active, infos) = (format!("{host}/active"), [format!("{host}/info"), format!("{instance}/info")]);
    assert_eq!(bench.paths(), [host, &active, &infos[0], instance, &infos[1]]);
    let ephemeral: Vec<&str> =
        bench.tree.iter().filter(|(_, n)| n.mode == Mode::Ephemeral).map(|(p, _)| p.as_str()).collect();
    assert_eq!(ephemeral, [active.as_str()]);
    let node = bench.json(host);
    assert_eq!((&node["v"], &node["group"], &node["rack"]), (&1.into(), &"web".into(), &"r7".into()));
    assert_eq!((&node["priority"], &node["memory_mb"]), (&100.into(), &32768.into()));
    assert_eq!((&node["instances"], &node["versions"]), (&1.into(), &serde_json::json!(["1.6.18"])));
    let node = bench.json(&active);
    assert_eq!(
        (&node["host_id"], &node["nonce"], &node["pid"]),
        (&"0123".into(), &"4567".into(), &42.into())
    );
    assert_eq!(node["since_ms"], 1_000_000);
    let node = bench.json(instance);
    assert_eq!((&node["engine"], &node["port"]), (&"memcached".into(), &11211.into()));
    assert_eq!((&node["state"], &node["health"]), (&"up".into(), &"serving".into()));
    assert_eq!((&node["maxmem_mb"], &node["restarts"]), (&64.into(), &0.into()));
}

#[test]
fn a_node_follows_its_instance_and_a_quick_repair_is_one_write() {
    let mut bench = Bench::up(&plan(2));
    bench.pass(5 * MINUTE);
    bench.done.clear();
    bench.die(mc(11211));
    bench.pass(10 * MS);
    bench.serve(mc(11211));
    bench.pass(SECOND);
    let path = "/ycache/servers/10.0.0.1/instances/10.0.0.1:11211";
    let puts = |bench: &Bench, of: &str| {
        let changes =
            bench.done.iter().filter_map(|(_, a)| if let Action::Publish(c) = a { Some(c) } else { None });
        changes.flatten().filter(|c| matches!(c, Change::Put { path, .. } if path == of)).count()
    };
    assert_eq!(puts(&bench, path), 1);
    assert_eq!(
        puts(&bench, "/ycache/servers/10.0.0.1/instances/10.0.0.1:11221"),
        0,
        "the other has not changed"
    );
    assert_eq!((&bench.json(path)["state"], &bench.json(path)["restarts"]), (&"up".into(), &1.into()));
    bench.behave(mc(11221), Manner::Answers(Health::Full));
    bench.pass(2 * SECOND);
    assert_eq!(bench.json("/ycache/servers/10.0.0.1/instances/10.0.0.1:11221")["health"], "full");
}

/// When the figures of each path were published.
fn infos(bench: &Bench) -> BTreeMap<String, Vec<Duration>> {
    let mut found: BTreeMap<String, Vec<Duration>> = BTreeMap::new();
    for (at, action) in &bench.done {
        let Action::Publish(changes) = action else { continue };
        for change in changes {
            if let Change::Put { path, .. } = change
                && path.ends_with("/info")
            {
                found.entry(path.clone()).or_default().push(*at);
            }
        }
    }
    found
}

#[test]
fn figures_are_published_at_their_interval_and_spread_over_it() {
    let mut bench = Bench::up(&plan(8));
    bench.pass(3 * MINUTE);
    bench.done.clear();
    bench.pass(10 * MINUTE);
    let infos = infos(&bench);
    assert_eq!(infos.len(), 9, "eight instances and the host");
    for (path, times) in &infos {
        assert_eq!(times.len(), 10, "{path}");
        assert!(times.windows(2).all(|pair| pair[1] - pair[0] == MINUTE), "{path}: {times:?}");
    }
    let first: BTreeSet<u64> = infos.values().map(|times| times[0].as_secs()).collect();
    assert!(first.len() >= 5, "at {first:?}");
    let info = bench.json("/ycache/servers/10.0.0.1/instances/10.0.0.1:11211/info");
    assert_eq!((&info["v"], &info["keys"], &info["version"]), (&1.into(), &3.into(), &"1.6.18".into()));
    assert!(info["windows"]["60"]["gets"].is_u64());
    assert_eq!(bench.json("/ycache/servers/10.0.0.1/info")["keys"], 24, "the sum");
}

#[test]
fn without_statistics_nothing_is_sampled_or_published() {
    let mut quiet = plan(2);
    quiet.statistics.enabled = false;
    let mut bench = Bench::up(&quiet);
    bench.pass(10 * MINUTE);
    assert!(infos(&bench).is_empty());
    assert!(bench.talks(mc(11211)).iter().all(|(_, talk)| *talk != Talk::Sample));
    assert!(bench.talks(mc(11211)).len() > 590);
}

#[test]
fn regression_statistics_that_are_turned_off_leave_neither_deadline_nor_node() {
    let mut bench = Bench::up(&plan(2));
    bench.pass(5 * MINUTE);
    let mut quiet = plan(2);
    quiet.statistics.enabled = false;
    bench.configure(&quiet);
    bench.pass(10 * MINUTE);
    assert!(!bench.paths().iter().any(|path| path.ends_with("/info")), "{:?}", bench.paths());
    bench.configure(&plan(2));
    bench.pass(2 * MINUTE);
    assert_eq!(bench.paths().iter().filter(|path| path.ends_with("/info")).count(), 3);
}

#[test]
fn a_registry_that_is_lost_is_told_and_so_is_its_return() {
    let mut bench = Bench::up(&plan(1));
    bench.send(Event::Registry(RegistryEvent::Lost { why: "silence".to_owned() }));
    bench.pass(4 * SECOND);
    assert!(bench.alerts().is_empty(), "a server that is restarted wakes nobody");
    bench.pass(2 * SECOND);
    assert_eq!(bench.alerts(), BTreeSet::from(["registry-lost"]));
    bench.die(mc(11211));
    assert_eq!(bench.started(), [mc(11211)], "instances are repaired all the same");
    bench.send(Event::Registry(connected()));
    assert_eq!(bench.told("registry-lost", AlertState::Resolved), 1);
}

#[test]
fn regression_a_lost_registry_kept_the_loop_from_resting_until_the_next_beat() {
    let mut bench = Bench::up(&plan(1));
    bench.pass(MINUTE + 300 * MS);
    bench.send(Event::Registry(RegistryEvent::Lost { why: "a restart".to_owned() }));
    // The bench refuses a core that wants a tick at once, again and again.
    bench.pass(10 * SECOND);
    assert_eq!(bench.alerts(), BTreeSet::from(["registry-lost"]));
}

#[test]
fn a_registry_that_is_not_there_from_the_start_is_told_after_a_while() {
    let mut bench = Bench::new(&plan(1));
    bench.configure(&plan(1));
    bench.serve(mc(11211));
    bench.pass(9 * SECOND);
    assert!(bench.alerts().is_empty());
    bench.pass(2 * SECOND);
    assert_eq!(bench.alerts(), BTreeSet::from(["registry-lost"]));
    bench.send(Event::Registry(connected()));
    assert!(bench.alerts().is_empty());
}

#[test]
fn a_contested_address_and_a_refused_write_are_told_until_they_are_over() {
    let mut bench = Bench::up(&plan(1));
    let path = "/ycache/servers/10.0.0.1/active".to_owned();
    let conflict = RegistryEvent::Conflict { path: path.clone(), holder: "{\"pid\":7}".to_owned() };
    bench.send(Event::Registry(conflict));
    bench.send(Event::Registry(RegistryEvent::Refused { path: path.clone(), why: "no auth".to_owned() }));
    let keys = [format!("address-conflict{path}"), format!("registry-refused{path}")];
    assert_eq!(bench.alerts(), keys.iter().map(String::as_str).collect());
    assert!(bench.core.alerts().any(|alert| alert.summary.contains("{\"pid\":7}")));
    bench.send(Event::Registry(RegistryEvent::ConflictOver { path: path.clone() }));
    bench.send(Event::Registry(RegistryEvent::RefusedOver { path }));
    assert!(bench.alerts().is_empty());
}

#[test]
fn trouble_outside_is_told_once_and_ended() {
    let mut bench = Bench::up(&plan(1));
    let key = "port-file/var/log/ports".to_owned();
    for _ in 0..3 {
        let summary = "cannot write port file /var/log/ports: read-only".to_owned();
        bench.send(Event::Trouble { key: key.clone(), severity: Severity::Warning, summary });
    }
    assert_eq!(bench.told(&key, AlertState::Firing), 1);
    bench.send(Event::TroubleOver { key: key.clone(), summary: "written".to_owned() });
    assert_eq!(bench.told(&key, AlertState::Resolved), 1);
}

#[test]
fn an_event_for_what_is_not_there_does_nothing() {
    let mut bench = Bench::up(&plan(1));
    bench.die(mc(999));
    bench.started_as(redis(16379), None);
    let outcome = Outcome::Answered { health: Health::Serving, why: String::new() };
    bench.send(Event::Ended { id: mc(11211), talk: Talk::Unstick, outcome });
    let late = bench.take().into_iter().find(|action| !matches!(action, Action::Publish(_)));
    assert_eq!(late, None);
}

#[test]
fn the_next_point_of_a_grid_lies_ahead_however_long_it_has_been() {
    let start = Instant::now();
    let century = Duration::from_secs(100 * 365 * 86400);
    for step in [MS, 100 * MS, SECOND, 60 * MINUTE] {
        for passed in [Duration::ZERO, MS, SECOND, century, century + 7 * MS] {
            let next = instance::later(start, step, start + passed);
            assert!(next > start + passed && next <= start + passed + step);
        }
    }
    assert_eq!(instance::later(start + SECOND, MS, start), start + SECOND);
}
