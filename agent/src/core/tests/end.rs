//! The end of the agent, with its instances and without.

use super::*;

#[test]
fn the_agent_ends_without_its_instances() {
    let mut bench = Bench::up(&plan(2));
    bench.send(Event::Stop { all: false });
    assert_eq!(bench.take(), [Action::Finish]);
    assert_eq!(bench.core.next_deadline(), None);
    bench.die(mc(11211));
    assert!(bench.take().is_empty(), "nothing is begun any more");
}

#[test]
fn all_instances_end_before_the_agent() {
    let mut bench = Bench::up(&plan(4));
    bench.behave(mc(11221), Manner::Silent(ProcessState::Alive));
    bench.pass(1500 * MS);
    bench.die(mc(11231));
    bench.done.clear();
    bench.send(Event::Stop { all: true });
    assert_eq!(bench.terminated(), [mc(11211), mc(11221), mc(11241)]);
    bench.started_as(mc(11231), None);
    assert_eq!(bench.terminated().last(), Some(&mc(11231)), "a start that was under way is undone");
    for id in [mc(11211), mc(11221), mc(11231)] {
        bench.die(id);
        assert!(!bench.finished());
    }
    bench.die(mc(11241));
    assert!(bench.finished());
    assert_eq!(bench.ports(), None, "the next start gets the same ports");
    assert!(bench.started().is_empty());
}

#[test]
fn instances_that_have_no_process_do_not_delay_the_end() {
    let mut bench = Bench::new(&plan(2));
    bench.configure(&plan(2));
    bench.send(Event::NotStarted { id: mc(11211), why: failed() });
    bench.send(Event::NotStarted { id: mc(11221), why: taken() });
    bench.send(Event::NotStarted { id: mc(11231), why: failed() });
    bench.send(Event::Stop { all: true });
    assert!(bench.finished());
}

#[test]
fn regression_a_start_under_way_delays_the_end() {
    let mut bench = Bench::new(&plan(1));
    bench.configure(&plan(1));
    bench.send(Event::Stop { all: true });
    assert!(!bench.finished());
    bench.pass(50 * SECOND);
    bench.started_as(mc(11211), None);
    assert_eq!(bench.terminated(), [mc(11211)]);
    bench.pass(50 * SECOND);
    assert!(bench.killed().is_empty(), "its time to end runs from its start");
    bench.pass(11 * SECOND);
    assert_eq!(bench.killed(), [mc(11211)]);
    bench.die(mc(11211));
    assert!(bench.finished());
}

#[test]
fn regression_a_process_that_cannot_be_killed_delays_the_end_no_longer() {
    let mut bench = Bench::up(&plan(1));
    bench.send(Event::Stop { all: true });
    bench.pass(MINUTE);
    assert_eq!(bench.killed(), [mc(11211)]);
    assert!(!bench.finished());
    bench.pass(6 * SECOND);
    assert_eq!(bench.told("instance-unkillable/memcached/11211", AlertState::Firing), 1);
    assert!(bench.finished());
}

#[test]
fn regression_a_plan_that_comes_during_the_end_starts_nothing() {
    let mut bench = Bench::up(&plan(1));
    bench.send(Event::Stop { all: true });
    bench.configure(&plan(3));
    assert!(bench.started().is_empty());
    bench.die(mc(11211));
    assert!(bench.finished());
}
