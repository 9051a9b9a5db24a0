//! Starts, adoptions, crashes and the backoff.

use super::*;

#[test]
fn all_instances_are_started_at_once_and_their_ports_written_down() {
    let mut bench = Bench::new(&plan(3));
    bench.configure(&plan(3));
    assert_eq!(bench.started(), [mc(11211), mc(11221), mc(11231)]);
    assert_eq!(bench.ports(), Some(vec![11211, 11221, 11231]));
    let owned = Owned {
        dir: format!("/ycache/servers/{IP}/instances"),
        prefix: format!("{IP}:"),
        suffix: String::new(),
    };
    assert!(bench.take().contains(&Action::Claim(vec![owned])));
    assert_eq!(bench.core.count(), (0, 3));
}

#[test]
fn a_started_server_is_asked_until_it_answers() {
    let mut bench = Bench::new(&plan(1));
    bench.configure(&plan(1));
    bench.behave(mc(11211), Manner::Refuses);
    bench.started_as(mc(11211), None);
    bench.pass(SECOND);
    let asked: Vec<Duration> = bench.talks(mc(11211)).iter().map(|(at, _)| *at).collect();
    assert_eq!(asked[..3], [Duration::ZERO, 2 * MS, 5 * MS], "at a pace that slows down");
    assert!(asked.windows(2).all(|pair| pair[1] - pair[0] <= 250 * MS));
    assert_eq!(bench.states()[&11211], "starting");
    bench.behave(mc(11211), Manner::Answers(Health::Loading));
    bench.pass(SECOND);
    let report = bench.report(11211);
    assert_eq!((report.state, report.health, report.restarts), ("up", Some(Health::Loading), 0));
    assert_eq!((report.pid, report.last_repair_ms), (Some(101), None));
}

#[test]
fn an_old_server_is_adopted_as_up_and_a_young_one_may_still_be_starting() {
    let mut bench = Bench::new(&plan(2));
    bench.configure(&plan(2));
    bench.behave(mc(11211), Manner::Silent(ProcessState::Alive));
    bench.behave(mc(11221), Manner::Silent(ProcessState::Alive));
    bench.started_as(mc(11211), Some(31 * SECOND));
    bench.started_as(mc(11221), Some(10 * SECOND));
    assert_eq!(bench.states(), BTreeMap::from([(11211, "up"), (11221, "starting")]));
    bench.pass(4 * SECOND);
    assert_eq!(bench.killed(), [mc(11211)], "it missed its probes");
    bench.die(mc(11211));
    bench.serve(mc(11211));
    bench.pass(14 * SECOND);
    assert!(!bench.killed().contains(&mc(11221)));
    bench.pass(50 * SECOND);
    assert_eq!(
        bench.killed(),
        [mc(11211), mc(11221)],
        "what it had lived counted for its start, the storm guard after"
    );
}

#[test]
fn a_start_that_fails_is_tried_again_and_told_once() {
    let mut bench = Bench::new(&plan(1));
    bench.configure(&plan(1));
    for _ in 0..5 {
        bench.send(Event::NotStarted { id: mc(11211), why: failed() });
        assert_eq!(bench.states()[&11211], "backoff");
        let before = bench.started().len();
        bench.pass(999 * MS);
        assert_eq!(bench.started().len(), before, "not sooner than in a second");
        bench.pass(31 * SECOND);
        assert_eq!(bench.started().len(), before + 1);
    }
    assert_eq!(bench.told("instance-cannot-start/memcached/11211", AlertState::Firing), 1);
    assert_eq!(bench.report(11211).why, "no such user");
    bench.serve(mc(11211));
    assert_eq!(bench.told("instance-cannot-start/memcached/11211", AlertState::Resolved), 1);
    bench.pass(2 * MINUTE);
    assert!(bench.alerts().is_empty() || bench.alerts() == BTreeSet::from(["registry-lost"]));
}

#[test]
fn a_spawner_that_does_not_answer_is_told_and_not_asked_twice() {
    let mut bench = Bench::new(&plan(1));
    bench.configure(&plan(1));
    bench.pass(2 * MINUTE);
    assert_eq!(bench.started().len(), 1);
    assert!(bench.alerts().contains("instance-cannot-start/memcached/11211"));
    bench.behave(mc(11211), Manner::Answers(Health::Serving));
    bench.started_as(mc(11211), Some(MINUTE));
    assert!(!bench.alerts().contains("instance-cannot-start/memcached/11211"), "an adoption ends it as well");
}

#[test]
fn a_server_that_never_answers_is_killed_after_the_start_timeout() {
    let mut bench = Bench::new(&plan(1));
    bench.configure(&plan(1));
    bench.behave(mc(11211), Manner::Refuses);
    bench.started_as(mc(11211), None);
    bench.pass(30 * SECOND - MS);
    assert_eq!(bench.killed(), []);
    bench.pass(SECOND);
    assert_eq!(bench.killed(), [mc(11211)]);
    assert!(bench.alerts().contains("instance-hung/memcached/11211"));
}

#[test]
fn a_crash_is_repaired_at_once_and_its_alerts_end() {
    let mut bench = Bench::up(&plan(2));
    bench.die(mc(11211));
    let actions = bench.take();
    assert!(actions.contains(&Action::Start { id: mc(11211), known: true, follow: None }));
    assert!(actions.contains(&Action::AskLastWords { id: mc(11211) }));
    assert!(bench.alerts().contains("instance-crashed/memcached/11211"));
    bench.pass(7 * MS);
    bench.serve(mc(11211));
    assert_eq!(bench.told("instance-crashed/memcached/11211", AlertState::Resolved), 1);
    assert_eq!(bench.alerts(), BTreeSet::from(["instance-restarted/memcached/11211"]));
    let report = bench.report(11211);
    assert_eq!((report.state, report.restarts, report.last_repair_ms), ("up", 1, Some(7.0)));
    bench.pass(MINUTE + SECOND);
    assert!(bench.alerts().is_empty());
    assert!(bench.talks(mc(11221)).len() > 30, "the other one was probed all the while");
}

#[test]
fn last_words_say_why() {
    let mut bench = Bench::up(&plan(1));
    bench.die(mc(11211));
    bench.send(Event::LastWords { id: mc(11211), text: "failed to listen".to_owned() });
    assert_eq!(bench.report(11211).why, "died (signal 9); it last wrote: failed to listen");
}

/// The pauses before each of so many starts of a server that dies before it answers.
fn pauses(bench: &mut Bench, deaths: usize) -> Vec<Duration> {
    let mut pauses = Vec::new();
    for _ in 0..deaths {
        let (died, starts) = (bench.at, bench.started().len());
        bench.die(mc(11211));
        while bench.started().len() == starts {
            let next = bench.core.next_deadline().unwrap() - bench.origin;
            bench.pass(next - bench.at);
        }
        pauses.push(bench.at - died);
        bench.behave(mc(11211), Manner::Refuses);
        bench.started_as(mc(11211), None);
    }
    pauses
}

#[test]
fn from_the_second_death_in_a_row_the_backoff_grows_to_its_cap_and_never_gives_up() {
    let mut bench = Bench::up(&plan(1));
    let pauses = pauses(&mut bench, 40);
    assert_eq!(pauses[0], Duration::ZERO);
    for (n, pause) in pauses.iter().enumerate().skip(1) {
        let full = (10 * MS * (1 << (n - 1).min(16))).min(30 * SECOND);
        assert!(*pause <= full && *pause >= full * 3 / 4, "death {n}: {pause:?} of {full:?}");
    }
    let last = &pauses[30..];
    assert!(last.iter().any(|pause| pause != &last[0]), "with jitter");
}

#[test]
fn a_steady_second_ends_the_row() {
    let mut bench = Bench::up(&plan(1));
    assert!(pauses(&mut bench, 10)[9] > SECOND);
    bench.behave(mc(11211), Manner::Answers(Health::Serving));
    bench.pass(2 * SECOND);
    assert_eq!(bench.states()[&11211], "up");
    assert_eq!(pauses(&mut bench, 1), [Duration::ZERO]);
}

#[test]
fn regression_hangs_far_apart_are_no_row() {
    let mut bench = Bench::up(&plan(1));
    for _ in 0..20 {
        bench.behave(mc(11211), Manner::Silent(ProcessState::Stopped));
        bench.pass(3 * SECOND);
        bench.done.clear();
        bench.die(mc(11211));
        assert_eq!(bench.started(), [mc(11211)], "at once");
        bench.serve(mc(11211));
        bench.pass(60 * MINUTE);
    }
}

#[test]
fn a_server_that_needs_longer_than_the_start_timeout_gets_longer_the_next_time() {
    let mut bench = Bench::up(&plan(1));
    bench.die(mc(11211));
    bench.behave(mc(11211), Manner::Refuses);
    bench.started_as(mc(11211), None);
    bench.pass(31 * SECOND);
    assert_eq!(bench.killed(), [mc(11211)]);
    bench.done.clear();
    bench.die(mc(11211));
    bench.pass(SECOND);
    bench.started_as(mc(11211), None);
    bench.pass(50 * SECOND);
    assert!(bench.killed().is_empty(), "the second start has a minute");
    bench.behave(mc(11211), Manner::Answers(Health::Serving));
    bench.pass(SECOND);
    assert_eq!(bench.states()[&11211], "up");
}
