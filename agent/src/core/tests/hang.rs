//! Hangs, evidence, the storm guard, the late loop, and backends that fail.

use super::*;

#[test]
fn a_hang_is_the_third_miss_in_a_row() {
    let mut bench = Bench::up(&plan(1));
    bench.behave(mc(11211), Manner::Silent(ProcessState::Alive));
    bench.pass(10 * SECOND);
    let talks = bench.talks(mc(11211));
    assert_eq!(talks.len(), 3);
    assert_eq!(talks[1].0 - talks[0].0, SECOND, "repeated as soon as it is missed");
    let killed = bench.done.iter().find(|(_, a)| matches!(a, Action::Kill { .. })).unwrap().0;
    assert_eq!(killed - talks[0].0, 3 * SECOND);
    assert_eq!(bench.states()[&11211], "killed");
    assert!(bench.started().is_empty(), "it is not started before it is dead");
    assert!(bench.alerts().contains("instance-unkillable/memcached/11211"));
    bench.die(mc(11211));
    assert_eq!(bench.started(), [mc(11211)]);
    bench.serve(mc(11211));
    assert_eq!(bench.alerts(), BTreeSet::from(["instance-restarted/memcached/11211"]));
}

#[test]
fn an_answer_clears_the_suspicion() {
    let mut bench = Bench::up(&plan(1));
    for _ in 0..5 {
        bench.behave(mc(11211), Manner::Silent(ProcessState::Alive));
        bench.pass(2 * SECOND);
        assert_eq!(bench.states()[&11211], "suspect");
        assert_eq!(bench.report(11211).why, "no answer within 1 s");
        bench.behave(mc(11211), Manner::Answers(Health::Serving));
        bench.pass(3 * SECOND);
        assert_eq!(bench.states()[&11211], "up");
        assert_eq!(bench.report(11211).why, "", "what is over is no reason");
    }
    assert!(bench.killed().is_empty());
}

#[test]
fn a_stopped_process_is_killed_at_the_first_miss() {
    let mut bench = Bench::up(&plan(1));
    bench.behave(mc(11211), Manner::Silent(ProcessState::Stopped));
    bench.pass(2 * SECOND);
    assert_eq!((bench.talks(mc(11211)).len(), bench.killed()), (1, vec![mc(11211)]));
}

#[test]
fn a_refused_connection_takes_as_long_as_a_timeout() {
    let mut bench = Bench::up(&plan(1));
    bench.behave(mc(11211), Manner::Refuses);
    bench.pass(10 * SECOND);
    let talks = bench.talks(mc(11211));
    assert_eq!(talks.len(), 3);
    assert!(talks.windows(2).all(|pair| pair[1].0 - pair[0].0 == SECOND));
    assert_eq!(bench.killed(), [mc(11211)]);
}

#[test]
fn a_full_probe_that_missed_is_repeated_as_a_full_one() {
    let mut bench = Bench::up(&plan(1));
    while bench.talks(mc(11211)).last().is_none_or(|(_, talk)| *talk != Talk::Full) {
        bench.pass(SECOND / 4);
    }
    bench.pass(4 * SECOND);
    bench.done.clear();
    bench.behave(mc(11211), Manner::Refuses);
    bench.pass(5 * SECOND);
    let kinds: Vec<Talk> = bench.talks(mc(11211)).into_iter().map(|(_, talk)| talk).collect();
    assert_eq!(kinds, [Talk::Full; 3]);
}

#[test]
fn whatever_it_answers_it_is_not_killed_for_it() {
    for health in [Health::Loading, Health::Busy, Health::Full, Health::Refused, Health::Wrong] {
        let mut bench = Bench::up(&plan(1));
        bench.behave(mc(11211), Manner::Answers(health));
        bench.pass(20 * MINUTE);
        assert!(bench.killed().is_empty() && bench.terminated().is_empty());
        assert_eq!(bench.report(11211).health, Some(health));
        assert_eq!(bench.report(11211).why, "so it says");
        let unhealthy = bench.alerts().contains("instance-unhealthy/memcached/11211");
        assert_eq!(unhealthy, health != Health::Loading, "{health:?}");
        let unsticks = bench.talks(mc(11211)).iter().filter(|(_, talk)| *talk == Talk::Unstick).count();
        assert_eq!(unsticks, usize::from(health == Health::Busy), "asked once to end what it does");
        bench.behave(mc(11211), Manner::Answers(Health::Serving));
        bench.pass(5 * SECOND);
        assert!(bench.alerts().is_empty());
    }
}

#[test]
fn probes_samples_and_full_checks_keep_their_pace() {
    let mut bench = Bench::up(&plan(1));
    bench.pass(10 * MINUTE);
    let talks = bench.talks(mc(11211));
    let count = |kind: Talk| talks.iter().filter(|(_, talk)| *talk == kind).count();
    assert_eq!(count(Talk::Full), 120);
    assert!((119..=120).contains(&count(Talk::Sample)), "{}", count(Talk::Sample));
    assert!((599..=601).contains(&talks.len()), "a sample takes the place of a light probe");
}

#[test]
fn of_all_instances_a_quarter_is_killed_within_a_minute() {
    let mut bench = Bench::up(&plan(8));
    for n in 0..8 {
        bench.behave(mc(11211 + 10 * n), Manner::Silent(ProcessState::Alive));
    }
    bench.pass(30 * SECOND);
    assert_eq!(bench.killed().len(), 2);
    assert_eq!(bench.told("storm-guard", AlertState::Firing), 1);
    assert_eq!(bench.alerts().iter().filter(|key| key.starts_with("instance-spared")).count(), 6);
    for id in bench.killed() {
        bench.die(id);
        bench.serve(id);
    }
    bench.pass(37 * SECOND);
    assert_eq!(bench.killed().len(), 4, "a minute later it is the next quarter's turn");
    for n in 0..8 {
        bench.behave(mc(11211 + 10 * n), Manner::Answers(Health::Serving));
    }
    for id in &bench.killed()[2..] {
        bench.die(*id);
        bench.serve(*id);
    }
    bench.pass(5 * MINUTE);
    assert!(bench.alerts().is_empty(), "{:?}", bench.alerts());
    assert_eq!(bench.core.count(), (8, 8));
}

#[test]
fn even_of_two_instances_one_may_be_killed_and_again() {
    let mut bench = Bench::up(&plan(2));
    for _ in 0..3 {
        bench.behave(mc(11211), Manner::Silent(ProcessState::Stopped));
        bench.pass(3 * SECOND);
        bench.die(mc(11211));
        bench.serve(mc(11211));
    }
    assert_eq!(bench.killed(), [mc(11211); 3], "the same instance counts once");
    bench.behave(mc(11221), Manner::Silent(ProcessState::Stopped));
    bench.pass(5 * SECOND);
    assert_eq!(bench.killed().len(), 3);
    assert!(bench.alerts().contains("storm-guard"));
}

#[test]
fn misses_while_the_host_stood_still_do_not_count() {
    let mut one_miss = plan(4);
    one_miss.probing.failures = 1;
    let mut bench = Bench::up(&one_miss);
    for n in 0..4 {
        bench.behave(mc(11211 + 10 * n), Manner::Silent(ProcessState::Alive));
    }
    bench.pass(1200 * MS);
    bench.done.clear();
    bench.stand_still(MINUTE);
    let kills_before = bench.killed().len();
    bench.send(Event::Tick);
    for n in 0..4 {
        bench.behave(mc(11211 + 10 * n), Manner::Answers(Health::Serving));
    }
    bench.pass(5 * SECOND);
    assert_eq!(bench.killed().len(), kills_before);
    assert!(bench.states().values().filter(|state| **state == "up").count() >= 3);
}

#[test]
fn regression_a_host_that_stood_still_kills_no_server_that_is_starting() {
    let mut bench = Bench::new(&plan(1));
    bench.configure(&plan(1));
    bench.behave(mc(11211), Manner::Refuses);
    bench.started_as(mc(11211), None);
    bench.pass(2 * SECOND);
    bench.stand_still(MINUTE);
    bench.send(Event::Tick);
    bench.pass(20 * SECOND);
    assert!(bench.killed().is_empty());
    bench.pass(15 * SECOND);
    assert_eq!(bench.killed(), [mc(11211)], "its time runs again");
}

#[test]
fn regression_a_spared_server_that_is_starting_and_refuses_is_asked_at_the_usual_pace() {
    let mut bench = Bench::up(&plan(2));
    bench.behave(mc(11221), Manner::Refuses);
    bench.die(mc(11221));
    bench.started_as(mc(11221), None);
    bench.pass(28 * SECOND);
    bench.behave(mc(11211), Manner::Silent(ProcessState::Stopped));
    bench.pass(5 * SECOND);
    assert_eq!(bench.killed(), [mc(11211)]);
    bench.done.clear();
    bench.pass(20 * SECOND);
    let talks = bench.talks(mc(11221)).len();
    assert!((15..=25).contains(&talks), "{talks} probes in 20 s");
    bench.behave(mc(11221), Manner::Answers(Health::Serving));
    bench.pass(2 * SECOND);
    assert!(!bench.alerts().contains("instance-spared/memcached/11221"), "{:?}", bench.alerts());
}

#[test]
fn regression_the_alert_of_a_spared_instance_ends_with_its_repair() {
    let mut bench = Bench::up(&plan(2));
    for id in [mc(11211), mc(11221)] {
        bench.behave(id, Manner::Silent(ProcessState::Stopped));
    }
    bench.pass(5 * SECOND);
    let spared = if bench.killed() == [mc(11211)] { 11221 } else { 11211 };
    assert!(bench.alerts().contains(format!("instance-spared/memcached/{spared}").as_str()));
    bench.die(mc(spared));
    bench.serve(mc(spared));
    assert!(!bench.alerts().contains(format!("instance-spared/memcached/{spared}").as_str()));
}

#[test]
fn regression_a_backend_that_fails_kills_nothing() {
    let mut bench = Bench::up(&plan(1));
    bench.behave(mc(11211), Manner::BackendFails);
    bench.pass(10 * MINUTE);
    bench.die(mc(11211));
    bench.started_as(mc(11211), None);
    bench.pass(10 * MINUTE);
    assert!(bench.killed().is_empty());
    assert_eq!(bench.told("plugin-error/memcached/11211", AlertState::Firing), 1);
    bench.behave(mc(11211), Manner::Answers(Health::Serving));
    bench.pass(2 * MINUTE);
    assert!(bench.alerts().is_empty(), "{:?}", bench.alerts());
}

#[test]
fn regression_a_probe_does_not_heal_a_backend_that_fails_at_samples() {
    let mut bench = Bench::up(&plan(1));
    bench.behave(mc(11211), Manner::SamplesFail);
    bench.pass(10 * MINUTE);
    assert_eq!(bench.told("plugin-error/memcached/11211", AlertState::Firing), 1);
    assert_eq!(bench.told("plugin-error/memcached/11211", AlertState::Resolved), 0);
    assert!(bench.talks(mc(11211)).len() > 590, "it is probed as ever");
    bench.behave(mc(11211), Manner::Answers(Health::Serving));
    bench.pass(6 * SECOND);
    assert!(bench.alerts().is_empty());
}

#[test]
fn regression_without_statistics_a_probe_heals_a_backend() {
    let mut quiet = plan(1);
    quiet.statistics.enabled = false;
    let mut bench = Bench::up(&quiet);
    bench.behave(mc(11211), Manner::BackendFails);
    bench.pass(5 * SECOND);
    bench.behave(mc(11211), Manner::Answers(Health::Serving));
    bench.pass(2 * SECOND);
    assert!(bench.alerts().is_empty());
}

#[test]
fn regression_misses_before_and_after_a_backend_failed_are_no_row() {
    let mut bench = Bench::up(&plan(1));
    bench.behave(mc(11211), Manner::Silent(ProcessState::Alive));
    bench.pass(2500 * MS);
    bench.behave(mc(11211), Manner::BackendFails);
    bench.pass(MINUTE);
    bench.behave(mc(11211), Manner::Refuses);
    bench.pass(1500 * MS);
    assert!(bench.killed().is_empty());
    bench.pass(3 * SECOND);
    assert_eq!(bench.killed(), [mc(11211)]);
}

#[test]
fn regression_a_shorter_interval_hurries_what_was_spared() {
    let mut slow = plan(2);
    slow.probing.interval = 5 * MINUTE;
    slow.probing.check_interval = 5 * MINUTE;
    let mut bench = Bench::up(&slow);
    for id in [mc(11211), mc(11221)] {
        bench.die(id);
        bench.behave(id, Manner::Refuses);
        bench.started_as(id, None);
    }
    bench.pass(31 * SECOND);
    assert_eq!(bench.killed().len(), 1);
    bench.configure(&plan(2));
    bench.done.clear();
    bench.pass(10 * SECOND);
    let spared = if bench.states()[&11211] == "killed" { mc(11221) } else { mc(11211) };
    assert!(bench.talks(spared).len() >= 8, "{:?}", bench.talks(spared));
}

#[test]
fn an_agent_without_descriptors_kills_nobody_and_says_so() {
    let mut bench = Bench::up(&plan(2));
    for id in [mc(11211), mc(11221)] {
        bench.behave(id, Manner::CannotBeAsked);
    }
    bench.pass(5 * MINUTE);
    assert!(bench.killed().is_empty());
    assert_eq!(bench.alerts(), BTreeSet::from(["agent-hindered"]));
    for id in [mc(11211), mc(11221)] {
        bench.behave(id, Manner::Answers(Health::Serving));
    }
    bench.pass(6 * SECOND);
    assert!(bench.alerts().is_empty(), "{:?}", bench.alerts());
}

#[test]
fn a_few_quick_deaths_of_a_server_that_served_are_repaired_at_once_and_many_are_not() {
    let mut bench = Bench::up(&plan(1));
    for _ in 0..FORGIVEN {
        bench.done.clear();
        bench.die(mc(11211));
        assert_eq!(bench.started(), [mc(11211)]);
        bench.serve(mc(11211));
        bench.pass(50 * MS);
    }
    bench.done.clear();
    bench.die(mc(11211));
    bench.serve(mc(11211));
    bench.pass(50 * MS);
    bench.die(mc(11211));
    assert_eq!(bench.states()[&11211], "backoff");
}
