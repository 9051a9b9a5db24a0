//! Until when a server may take writes, and who keeps it from them after that.

use super::*;

#[test]
fn a_master_whose_session_ends_is_fenced_and_replaced_after_the_withdrawal() {
    let mut world = World::new(&[0, 0]);
    world.write(0, 5);
    world.hosts[0].linked = false;
    world.give(0, Input::Lost);
    // Its replica still follows: it goes on.
    world.run(Duration::from_secs(20));
    assert!(!world.hosts[0].server.paused, "{}", world.story());
    world.expire(0);
    world.run(Duration::from_secs(5));
    assert!(world.hosts[0].server.paused, "{}", world.story());
    assert_eq!(world.state().phase, Phase::Promoting);
    world.run(Duration::from_secs(3));
    assert_eq!(world.state().master, world.hosts[1].address, "{}", world.story());
    world.connect(0);
    world.settle();
    world.check(1);
}

#[test]
fn a_master_that_could_not_tell_for_a_moment_goes_on_without_a_registry() {
    let mut world = World::new(&[0, 0]);
    world.write(0, 5);
    world.hosts[0].linked = false;
    world.give(0, Input::Lost);
    world.run(Duration::from_secs(20));
    world.hosts[1].server.up = false;
    world.run(Duration::from_secs(3));
    assert!(world.hosts[0].server.paused, "{}", world.story());
    assert!(world.hosts[0].alerts.contains(&"shard-fenced"), "{:?}", world.hosts[0].alerts);
    world.hosts[1].server.up = true;
    world.run(Duration::from_secs(2));
    assert!(world.hosts[0].server.paused, "not at the first good look: {}", world.story());
    world.run(Duration::from_secs(4));
    assert!(!world.hosts[0].server.paused && world.hosts[0].fed, "{}", world.story());
    assert!(world.hosts[0].alerts.is_empty(), "{:?}", world.hosts[0].alerts);
    world.write(0, 5);
    world.hosts[1].server.up = false;
    world.run(Duration::from_secs(3));
    assert!(world.hosts[0].server.paused, "and not without its replica: {}", world.story());
}

#[test]
fn a_master_that_is_not_published_takes_no_writes() {
    let mut world = World::new(&[0, 0, 0]);
    world.write(0, 5);
    world.run(Duration::from_secs(6));
    world.hosts[1].doomed = true;
    world.kill(0);
    world.run(Duration::from_millis(100));
    assert_eq!((world.masters(), world.state().phase), (vec![1], Phase::Promoting), "{}", world.story());
    assert!(world.hosts[1].server.paused);
    world.expire(1);
    world.run(Duration::from_secs(15));
    assert_eq!(world.state().master, world.hosts[2].address, "{}", world.story());
    assert!(!world.hosts[2].server.paused, "{}", world.story());
}

#[test]
fn a_master_whose_lock_was_removed_has_no_longer_lease_until_it_has_it_again() {
    let mut world = World::new(&[0, 0]);
    world.write(0, 5);
    world.run(Duration::from_secs(6));
    let lock = format!("{SHARD}/lock");
    world.nodes.remove(&lock);
    world.changed(&lock);
    world.run(timing().session * 2);
    world.check(0);
    world.forbidden = Some("/lock");
    world.nodes.remove(&lock);
    world.changed(&lock);
    world.run(timing().session * 2);
    world.check(0);
    assert!(world.hosts[0].alerts.contains(&"shard-refused"), "{:?}", world.hosts[0].alerts);
    // All that kept it from its fence was that its replica follows.
    world.kill(1);
    world.run(Duration::from_secs(5));
    assert!(world.hosts[0].server.paused, "{}", world.story());
    world.run(timing().session * 2);
    assert!(world.hosts[0].server.paused, "{}", world.story());
    let refused = world.hosts[0].log.iter().filter(|line| line.contains("the registry refuses")).count();
    assert!((90..140).contains(&refused), "once a beat: {refused}");
    world.forbidden = None;
    world.restart(1);
    world.settle();
    let leader = usize::from(world.state().master == address(1));
    world.check(leader);
    assert!(world.hosts[0].alerts.is_empty(), "{:?}", world.hosts[0].alerts);
}

#[test]
fn a_master_that_dies_while_it_is_fenced_gives_the_shard_up() {
    let mut world = World::new(&[0, 0]);
    world.write(0, 5);
    world.kill(1);
    world.run(Duration::from_secs(6));
    world.hosts[0].linked = false;
    world.give(0, Input::Lost);
    world.run(Duration::from_secs(20));
    assert!(world.hosts[0].server.paused, "{}", world.story());
    world.kill(0);
    world.hosts[0].linked = true;
    world.hear(0);
    world.give(0, Input::Connected);
    assert_eq!(world.state().phase, Phase::Released, "{}", world.story());
    assert!(!world.nodes.contains_key(&format!("{SHARD}/lock")), "{}", world.story());
}

#[test]
fn without_fencing_no_fencer_is_told_of_a_lease() {
    let mut world = World::new(&[0, 0]);
    assert!(world.hosts[0].fed);
    for i in [0, 1] {
        world.give(i, Input::Plan(Box::new(ShardPlan { fencing: false, ..plan(i, 2) })));
    }
    world.settle();
    world.check(0);
    assert!(!world.hosts[0].fed);
    world.hosts[0].linked = false;
    world.give(0, Input::Lost);
    world.kill(1);
    world.run(Duration::from_secs(20));
    assert!(!world.hosts[0].server.paused && !world.hosts[0].fed, "{}", world.story());
}

#[test]
fn a_clock_set_back_makes_no_acknowledgement_new() {
    let mut world = World::new(&[0, 0]);
    world.write(0, 5);
    world.hosts[0].linked = false;
    world.give(0, Input::Lost);
    world.run(Duration::from_secs(13));
    world.set_back = 2000;
    world.run(Duration::from_secs(4));
    assert!(world.hosts[0].server.paused, "{}", world.story());
}

#[test]
fn what_the_fencer_did_is_undone_where_it_should_not_have_been() {
    let mut world = World::new(&[0, 0]);
    for i in [0, 1] {
        world.hosts[i].server.paused = true;
        world.give(i, Input::Fenced);
    }
    world.run(Duration::from_secs(6));
    world.check(0);
    assert_eq!(world.hosts[0].server.min_replicas, 1);
}

#[test]
fn a_master_that_comes_back_in_time_leads_again() {
    let mut world = World::new(&[0, 0]);
    world.hosts[0].linked = false;
    world.give(0, Input::Lost);
    world.run(Duration::from_secs(12));
    world.hosts[0].linked = true;
    world.hear(0);
    world.give(0, Input::Connected);
    world.settle();
    world.check(0);
    assert_eq!(world.state().epoch, 1, "{}", world.story());
}

#[test]
fn an_agent_that_starts_again_takes_its_own_past_over() {
    let mut world = World::new(&[0, 0]);
    world.write(0, 3);
    world.start_agent_anew(0);
    world.run(Duration::from_secs(3));
    world.check(0);
    assert!(world.hosts[0].log.iter().all(|line| !line.contains("takes no writes")), "{}", world.story());
}

#[test]
fn what_waits_to_be_ordered_ends_with_the_lease() {
    let mut world = World::new(&[0, 0]);
    let member = &mut world.hosts[0].member;
    member.plan.fencing = false;
    member.running = Some(Order::Inspect);
    member.queued = [Order::Promote, Order::Unfence { min_replicas: 0 }].into();
    member.lose_lease("its lease ran out");
    assert!(member.queued.is_empty(), "{:?}", member.queued);
}

fn lets_writes_in(command: &Command) -> bool {
    matches!(command, Command::Order { order, .. } if is_unfence(order))
}

#[test]
fn a_lease_that_is_over_when_its_return_is_answered_lets_no_writes_in() {
    let mut world = World::new(&[0, 0]);
    let now = world.now();
    let member = &mut world.hosts[0].member;
    assert!(member.lease_ends() > Some(now.at) && member.role() == Role::Master);
    (member.stage, member.guard, member.running) = (Stage::Claiming, None, None);
    (member.lease_until, member.failsafe_until) = (Some(now.at), None);
    member.state_written(Purpose::Return);
    member.watch_lease();
    let orders = mem::take(&mut member.out);
    assert!(!orders.iter().any(lets_writes_in), "{orders:?}");
    assert_eq!(member.running, Some(Order::Fence { long: FENCE_FOR }));
}

#[test]
fn a_rogue_master_is_made_a_replica_again() {
    let mut world = World::new(&[0, 0]);
    world.write(0, 5);
    world.hosts[1].server.master = true;
    world.hosts[1].server.follows.clear();
    world.run(Duration::from_secs(6));
    assert!(world.told("shard-rogue"), "{}", world.story());
    world.settle();
    world.check(0);
    assert!(world.hosts[1].alerts.is_empty(), "{:?}", world.hosts[1].alerts);
}

#[test]
fn a_fencer_that_is_gone_is_told_of() {
    let mut world = World::new(&[0, 0]);
    world.give(1, Input::Fencer(false));
    assert_eq!(world.hosts[1].alerts, ["fencer-down"]);
    world.give(1, Input::Fencer(true));
    assert!(world.hosts[1].alerts.is_empty());
    world.hosts[1].server.up = false;
    world.give(1, Input::Fencer(false));
    world.kill(1);
    world.restart(1);
    world.run(Duration::from_secs(10));
    assert_eq!(world.hosts[1].alerts, ["fencer-down"], "also where none ever stood by");
}

#[test]
fn a_session_that_leaves_too_short_a_lease_is_told_of() {
    let mut world = World::new(&[0, 0]);
    let facts = |seconds, at| SessionFacts {
        session: world.hosts[1].session,
        timeout: Duration::from_secs(seconds),
        read_only: false,
        acknowledged: Some(at),
    };
    let (short, long) = (facts(10, world.now().at), facts(30, world.now().at));
    world.give(1, Input::Session(Some(short)));
    assert_eq!(world.hosts[1].alerts, ["lease-short"]);
    world.give(1, Input::Session(Some(long)));
    assert!(world.hosts[1].alerts.is_empty());
}

#[test]
fn a_master_that_is_fenced_and_tells_nothing_gives_the_shard_up() {
    let mut world = World::new(&[0, 0]);
    world.write(0, 5);
    world.run(Duration::from_secs(6));
    world.hosts[0].linked = false;
    world.give(0, Input::Lost);
    world.hosts[0].mute = true;
    world.run(Duration::from_secs(20));
    assert!(world.hosts[0].server.paused, "{}", world.story());
    // The same session goes on.
    world.hosts[0].linked = true;
    world.hear(0);
    world.give(0, Input::Connected);
    world.run(HEIRS_FOR / 2);
    assert_eq!(world.state().master, address(0), "{}", world.story());
    world.run(HEIRS_FOR);
    assert_eq!(world.state().master, address(1), "{}", world.story());
    assert!(world.hosts[1].server.master && world.hosts[0].server.paused, "{}", world.story());
}

#[test]
fn what_was_heard_while_an_agent_stood_still_says_nothing_of_its_lock() {
    let mut world = World::new(&[0, 0]);
    world.write(0, 5);
    world.run(Duration::from_secs(6));
    world.kill(1);
    world.run(Duration::from_secs(6));
    let lock = format!("{SHARD}/lock");
    let removed = world.now().at;
    world.nodes.remove(&lock);
    world.hosts[0].watches.retain(|path| *path != lock);
    world.t += timing().lease - timing().beat;
    // The session goes first, then what it was told of.
    world.forbidden = Some("/lock");
    world.tell_session(0);
    world.give(0, Input::Changed { path: lock });
    world.give(0, Input::Tick);
    let ends = world.hosts[0].member.lease_ends();
    assert!(ends.is_none_or(|at| at <= removed + timing().lease), "{}", world.story());
}

#[test]
fn without_fencing_a_master_that_tells_nothing_keeps_the_shard() {
    let mut world = World::new(&[0, 0]);
    for i in [0, 1] {
        world.give(i, Input::Plan(Box::new(ShardPlan { fencing: false, ..plan(i, 2) })));
    }
    world.settle();
    world.hosts[0].mute = true;
    world.run(Duration::from_secs(10));
    world.hosts[0].linked = false;
    world.give(0, Input::Lost);
    world.run(Duration::from_secs(20));
    world.hosts[0].linked = true;
    world.hear(0);
    world.give(0, Input::Connected);
    world.run(Duration::from_secs(20));
    assert_eq!((world.state().master, world.state().phase), (address(0), Phase::Done), "{}", world.story());
}

#[test]
fn a_master_whose_replica_gets_nothing_does_not_go_on_without_a_registry() {
    let mut world = World::new(&[0, 0]);
    world.write(0, 5);
    world.run(timing().session);
    world.hosts[0].linked = false;
    world.give(0, Input::Lost);
    world.run(timing().lease * 2);
    assert!(!world.hosts[0].server.paused, "{}", world.story());
    world.hosts[1].stuck = true;
    world.write(0, 5);
    world.run(HEIRS_FOR * 2 + timing().check * 2);
    assert!(world.hosts[0].server.paused, "{}", world.story());
}
