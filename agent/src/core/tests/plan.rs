//! Ports and plans: what is somebody else's, what is one too many, what a reload changes.

use super::*;

#[test]
fn a_foreign_port_is_skipped_and_the_port_file_says_so() {
    let mut bench = Bench::new(&plan(2));
    bench.configure(&plan(2));
    bench.send(Event::NotStarted { id: mc(11221), why: taken() });
    assert_eq!(bench.started().last(), Some(&mc(11231)));
    assert_eq!(bench.ports(), Some(vec![11211, 11231]));
    assert_eq!(bench.states()[&11221], "parked");
    assert!(bench.alerts().contains("port-taken/memcached/11221"));
    assert!(bench.report(11221).why.contains("/usr/bin/other"));
    assert_eq!(bench.core.count().1, 2);
    bench.pass(MINUTE);
    assert!(!bench.paths().iter().any(|path| path.contains("11221")), "it has no node");
}

#[test]
fn what_was_written_down_comes_before_the_sequence() {
    let mut known = plan(2);
    known.engines[0].known_ports = vec![11231, 11211, 11999];
    let mut bench = Bench::new(&known);
    bench.configure(&known);
    let ports = [mc(11231), mc(11211)];
    assert!(bench.take().contains(&Action::Start { id: ports[0], known: true, follow: None }));
    assert_eq!(bench.states().into_keys().collect::<Vec<_>>(), [11211, 11231, 11999]);
}

#[test]
fn a_surplus_server_that_is_on_record_is_ended() {
    let mut known = plan(1);
    known.engines[0].known_ports = vec![11211, 11221, 11231];
    let mut bench = Bench::new(&known);
    bench.configure(&known);
    assert_eq!(bench.started(), [mc(11211)]);
    bench.started_as(mc(11221), Some(MINUTE));
    bench.send(Event::NotStarted { id: mc(11231), why: NotStarted::Gone });
    assert_eq!((bench.terminated(), bench.forgotten()), (vec![mc(11221)], vec![mc(11231)]));
    bench.die(mc(11221));
    assert_eq!(bench.forgotten(), [mc(11231), mc(11221)]);
    assert_eq!(bench.ports(), Some(vec![11211]));
    assert!(!bench.paths().iter().any(|path| path.contains("11221")));
}

#[test]
fn a_surplus_server_without_a_record_is_left_alone_and_reported() {
    let mut known = plan(1);
    known.engines[0].known_ports = vec![11211, 11221];
    let mut bench = Bench::new(&known);
    bench.configure(&known);
    bench.send(Event::NotStarted { id: mc(11221), why: NotStarted::Unrecorded("pid 9".to_owned()) });
    assert!(bench.terminated().is_empty() && bench.killed().is_empty());
    assert!(bench.alerts().contains("instance-surplus/memcached/11221"));
    assert_eq!(bench.states()[&11221], "parked");
    bench.configure(&plan(1));
    assert!(!bench.alerts().contains("instance-surplus/memcached/11221"), "a new plan judges anew");
}

#[test]
fn ports_that_run_out_are_told_until_there_are_enough() {
    let mut high = plan(2);
    high.engines[0].port = 65525;
    let mut bench = Bench::new(&high);
    bench.configure(&high);
    bench.send(Event::NotStarted { id: mc(65525), why: taken() });
    assert!(bench.alerts().contains("ports-exhausted/memcached"));
    high.engines[0].count = 1;
    bench.configure(&high);
    assert!(!bench.alerts().contains("ports-exhausted/memcached"));
}

#[test]
fn regression_the_alerts_of_a_crash_end_when_the_port_is_lost() {
    let mut bench = Bench::up(&plan(1));
    bench.die(mc(11211));
    bench.send(Event::NotStarted { id: mc(11211), why: taken() });
    assert_eq!(bench.alerts(), BTreeSet::from(["port-taken/memcached/11211"]));
    bench.serve(mc(11221));
    bench.pass(3 * MINUTE);
    assert!(
        !bench.paths().iter().any(|path| path.contains("11211")),
        "nor does it keep nodes: {:?}",
        bench.paths()
    );
}

#[test]
fn a_plan_that_changes_nothing_touches_nothing() {
    let mut bench = Bench::up(&with_redis(3));
    let mut again = with_redis(3);
    again.engines[0].known_ports = vec![11211, 11221, 11231];
    bench.configure(&again);
    let touched = bench.take().into_iter().find(|action| {
        !matches!(
            action,
            Action::Publish(_) | Action::Claim(_) | Action::WritePorts { .. } | Action::Converse { .. }
        )
    });
    assert_eq!(touched, None);
}

#[test]
fn fewer_and_more_instances_end_and_start_just_those() {
    let mut bench = Bench::up(&plan(3));
    bench.configure(&plan(2));
    assert_eq!((bench.terminated(), bench.started()), (vec![mc(11231)], vec![]));
    assert_eq!(bench.ports(), Some(vec![11211, 11221]));
    bench.die(mc(11231));
    assert_eq!(bench.forgotten(), [mc(11231)]);
    assert!(!bench.paths().iter().any(|path| path.contains("11231")));
    bench.configure(&plan(4));
    assert_eq!((bench.terminated().len(), bench.started()), (1, vec![mc(11231), mc(11241)]));
    assert!(bench.killed().is_empty());
}

#[test]
fn a_changed_port_moves_the_instances() {
    let mut bench = Bench::up(&plan(2));
    let mut moved = plan(2);
    moved.engines[0].port = 12000;
    bench.configure(&moved);
    assert_eq!(bench.terminated(), [mc(11211), mc(11221)]);
    assert_eq!(bench.started(), [mc(12000), mc(12010)]);
    assert_eq!(bench.ports(), Some(vec![12000, 12010]));
}

#[test]
fn an_engine_that_is_gone_is_taken_down_with_its_tree() {
    let mut bench = Bench::up(&with_redis(1));
    bench.pass(2 * MINUTE);
    assert!(bench.paths().iter().any(|path| path.starts_with("/redis")));
    let path = "/redis/servers/10.0.0.1/active".to_owned();
    bench.send(Event::Registry(RegistryEvent::Conflict {
        path: format!("/chroot{path}"),
        holder: "x".to_owned(),
    }));
    bench.done.clear();
    bench.configure(&plan(1));
    assert_eq!(bench.terminated(), [redis(16379)]);
    bench.die(redis(16379));
    bench.pass(2 * MINUTE);
    assert!(!bench.paths().iter().any(|path| path.starts_with("/redis")), "{:?}", bench.paths());
    assert!(bench.alerts().is_empty(), "what was said of its nodes is void: {:?}", bench.alerts());
    assert_eq!(bench.core.engine_name(EngineId(1)), "redis", "its id stays its own");
}

#[test]
fn regression_an_engine_that_comes_back_while_it_ends_has_all_its_nodes() {
    let mut bench = Bench::up(&with_redis(1));
    bench.configure(&plan(1));
    bench.configure(&with_redis(1));
    assert_eq!(bench.started(), [redis(16389)], "the old port is still in use");
    bench.pass(SECOND);
    assert_eq!(bench.json("/redis/servers/10.0.0.1/instances/10.0.0.1:16379")["state"], "stopping");
}

#[test]
fn a_changed_path_leaves_no_node_at_the_old_one() {
    let mut bench = Bench::up(&plan(1));
    let mut moved = plan(1);
    moved.engines[0] = EnginePlan { port: 11211, ..engine("memcached", "/other", 11211, 1) };
    bench.configure(&moved);
    bench.pass(SECOND);
    assert!(bench.paths().iter().all(|path| path.starts_with("/other/")), "{:?}", bench.paths());
}

#[test]
fn a_new_memory_size_is_told_when_a_process_has_it() {
    let mut bench = Bench::up(&plan(1));
    let mut larger = plan(1);
    larger.engines[0].maxmem = Megabytes(128);
    bench.configure(&larger);
    bench.pass(SECOND);
    assert_eq!(bench.report(11211).maxmem_mb, 64);
    bench.die(mc(11211));
    bench.serve(mc(11211));
    assert_eq!(bench.report(11211).maxmem_mb, 128);
}

#[test]
fn a_shorter_interval_does_not_wait_for_the_longer_one() {
    let mut slow = plan(1);
    slow.probing.interval = 60 * MINUTE;
    slow.probing.check_interval = 60 * MINUTE;
    let mut bench = Bench::up(&slow);
    bench.pass(MINUTE);
    bench.configure(&plan(1));
    bench.done.clear();
    bench.pass(10 * SECOND);
    assert!(bench.talks(mc(11211)).len() >= 9);
    assert!(bench.talks(mc(11211)).iter().any(|(_, talk)| *talk == Talk::Full));
}

#[test]
fn a_plan_that_does_not_fit_is_told_and_over_when_it_does() {
    let mut tight = plan(1);
    tight.misfits = vec!["memcached: 4096 MB".to_owned()];
    let mut bench = Bench::up(&tight);
    assert_eq!(bench.alerts(), BTreeSet::from(["plan-misfit"]));
    bench.configure(&plan(1));
    assert!(bench.alerts().is_empty());
}
