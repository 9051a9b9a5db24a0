//! Instances whose plugin is in quarantine: left as they are, and reported.

use super::*;

/// Two memcached whose ports are known, and nobody who can speak to them.
fn unattended() -> HostPlan {
    let mut plan = plan(2);
    plan.engines[0].unattended = Some("its plugin is in quarantine".to_owned());
    plan.engines[0].known_ports = vec![11211, 11221];
    plan
}

fn adopted(bench: &Bench) -> Vec<InstanceId> {
    bench.ids(|action| if let Action::Adopt { id } = action { Some(*id) } else { None })
}

#[test]
fn they_are_looked_for_and_neither_started_nor_asked() {
    let mut bench = Bench::new(&unattended());
    bench.send(Event::Registry(connected()));
    bench.configure(&unattended());
    assert_eq!((adopted(&bench), bench.started()), (vec![mc(11211), mc(11221)], vec![]));
    bench.started_as(mc(11211), Some(MINUTE));
    bench.send(Event::NotStarted { id: mc(11221), why: NotStarted::Gone });
    bench.pass(10 * MINUTE);
    assert!(bench.talks(mc(11211)).is_empty() && bench.started().is_empty() && bench.killed().is_empty());
    assert!(bench.forgotten().is_empty(), "one that is not there stays planned");
    assert_eq!(bench.ports(), Some(vec![11211, 11221]));
    let report = bench.report(11211);
    assert_eq!((report.state, report.pid), ("unattended", Some(101)));
    assert_eq!((report.why.as_str(), bench.report(11221).pid), ("its plugin is in quarantine", None));
    assert_eq!(bench.json(&format!("/ycache/servers/{IP}/instances/{IP}:11211"))["state"], "unattended");
    assert!(bench.paths().contains(&format!("/ycache/servers/{IP}/active").as_str()));
}

#[test]
fn one_that_dies_is_told_of_and_not_started() {
    let mut bench = Bench::new(&unattended());
    bench.configure(&unattended());
    bench.started_as(mc(11211), Some(MINUTE));
    bench.die(mc(11211));
    bench.pass(MINUTE);
    assert!(bench.alerts().contains("instance-crashed/memcached/11211"), "{:?}", bench.alerts());
    assert!(bench.started().is_empty());
    assert_eq!((bench.report(11211).state, bench.report(11211).pid), ("unattended", None));
}

#[test]
fn a_plan_that_trusts_the_plugin_again_looks_after_them() {
    let mut bench = Bench::new(&unattended());
    bench.configure(&unattended());
    bench.started_as(mc(11211), Some(MINUTE));
    bench.started_as(mc(11221), Some(MINUTE));
    bench.die(mc(11221));
    bench.configure(&plan(2));
    assert_eq!(bench.started(), [mc(11211), mc(11221)]);
    bench.behave(mc(11211), Manner::Answers(Health::Serving));
    bench.started_as(mc(11211), Some(MINUTE));
    bench.serve(mc(11221));
    bench.pass(2 * SECOND);
    assert!(!bench.alerts().contains("instance-crashed/memcached/11221"), "{:?}", bench.alerts());
    assert!(bench.states().values().all(|state| *state == "up"), "{:?}", bench.states());
}

#[test]
fn stopping_all_ends_them_too() {
    let mut bench = Bench::new(&unattended());
    bench.configure(&unattended());
    bench.started_as(mc(11211), Some(MINUTE));
    bench.send(Event::Stop { all: true });
    assert_eq!(bench.terminated(), [mc(11211)]);
    bench.die(mc(11211));
    assert!(bench.finished());
}
