//! Servers that refuse orders, and a registry that refuses changes.

use super::*;

#[test]
fn a_server_that_does_not_take_the_order_to_allow_writes_is_told_of_and_not_promoted() {
    let mut world = World::new(&[0, 0, 0]);
    world.write(0, 5);
    world.hosts[1].refuses = is_unfence;
    // What a new fencer does is not known: the order is given again.
    world.give(1, Input::Fencer(false));
    world.give(1, Input::Fencer(true));
    world.run(Duration::from_secs(6));
    assert!(world.hosts[1].alerts.contains(&"shard-fenced"), "{:?}", world.hosts[1].alerts);
    world.kill(0);
    world.run(Duration::from_secs(2));
    assert_eq!(world.masters(), [2], "{}", world.story());
    world.hosts[1].refuses = |_| false;
    world.restart(0);
    world.settle();
    world.check(2);
    assert!(world.hosts[1].alerts.is_empty(), "{:?}", world.hosts[1].alerts);
}

#[test]
fn one_that_refused_to_allow_writes_once_may_be_promoted_when_it_does_not_any_more() {
    let mut world = World::new(&[0, 0]);
    world.write(0, 5);
    world.run(Duration::from_secs(6));
    world.hosts[1].refuses = is_unfence;
    world.give(1, Input::Fencer(false));
    world.give(1, Input::Fencer(true));
    world.kill(0);
    world.run(Duration::from_secs(2));
    assert_eq!(world.masters(), Vec::<usize>::new(), "{}", world.story());
    world.hosts[1].refuses = |_| false;
    world.run(Duration::from_secs(2));
    assert_eq!(world.masters(), [1], "{}", world.story());
}

#[test]
fn a_master_that_does_not_take_the_order_to_allow_writes_is_told_of() {
    let mut world = World::new(&[0, 0]);
    world.write(0, 5);
    world.run(Duration::from_secs(6));
    world.hosts[1].refuses = is_unfence;
    world.kill(0);
    world.run(Duration::from_secs(2));
    assert!(
        world.hosts[1].server.paused && world.hosts[1].alerts.contains(&"shard-fenced"),
        "{}",
        world.story()
    );
    world.hosts[1].refuses = |_| false;
    world.run(Duration::from_secs(2));
    assert!(!world.hosts[1].server.paused, "{}", world.story());
    assert!(!world.hosts[1].alerts.contains(&"shard-fenced"), "{:?}", world.hosts[1].alerts);
}

#[test]
fn a_fenced_master_that_refused_to_take_writes_stands_again_without_taking_any() {
    let mut world = World::new(&[0, 0, 0]);
    world.write(0, 5);
    world.run(Duration::from_secs(6));
    world.hosts[1].refuses = is_unfence;
    world.kill(0);
    world.run(Duration::from_secs(8));
    assert!(world.masters() == [1] && world.hosts[1].member.closed.is_some(), "{}", world.story());
    world.hosts[1].linked = false;
    world.give(1, Input::Lost);
    world.hosts[2].doomed = true;
    world.run(Duration::from_secs(20));
    world.expire(1);
    world.run(Duration::from_secs(8));
    assert_eq!(
        (world.state().phase, world.state().from),
        (Phase::Promoting, address(1)),
        "{}",
        world.story()
    );
    world.expire(2);
    world.hosts[1].refuses = |_| false;
    world.connect(1);
    world.run(Duration::from_secs(60));
    assert_eq!((world.state().master, world.state().phase), (address(1), Phase::Done), "{}", world.story());
    assert!(!world.hosts[1].server.paused, "{}", world.story());
}

#[test]
fn who_does_not_take_the_order_to_be_a_master_does_not_keep_the_others_from_it() {
    let refusals: [fn(&Order) -> bool; 2] =
        [|order| *order == Order::Promote, |order| matches!(order, Order::Follow { .. })];
    for (refuses, silent) in refusals.into_iter().zip([false, true]) {
        let mut world = World::new(&[0, 0, 0]);
        world.write(0, 5);
        world.run(timing().session);
        world.hosts[1].refuses = refuses;
        if silent {
            world.hosts[0].agent = false;
            world.hosts[0].server.up = false;
            world.expire(0);
        } else {
            world.kill(0);
        }
        world.run(Duration::from_secs(60));
        assert!(world.hosts[1].member.reluctant.is_some(), "{}", world.story());
        assert_eq!((world.masters(), world.state().phase), (vec![2], Phase::Done), "{}", world.story());
        world.hosts[1].refuses = |_| false;
        world.hosts[0].agent = true;
        world.restart(0);
        world.settle();
        world.check(2);
    }
}

#[test]
fn a_target_that_does_not_take_the_order_gives_the_shard_back() {
    let mut world = World::new(&[0, 0, 0]);
    world.write(0, 3);
    world.run(Duration::from_secs(6));
    world.hosts[2].refuses = |order| *order == Order::Promote;
    world.wish(0, Wish::Switchover { to: Some(address(2)), id: "w1".into() });
    world.run(Duration::from_secs(8));
    world.check(0);
    let outcome = world.state().outcome.unwrap();
    assert!(!outcome.done && outcome.id == "w1", "{outcome:?}");
    // The next one is tried all the same.
    world.hosts[2].refuses = |_| false;
    world.wish(0, Wish::Switchover { to: Some(address(2)), id: "w2".into() });
    world.run(Duration::from_secs(3));
    world.check(2);
}

#[test]
fn a_forced_target_that_does_not_take_the_order_lets_others_go_first_and_is_tried_again() {
    for others in [true, false] {
        let mut world = World::new(&[0, 0, 0]);
        world.write(0, 3);
        world.run(Duration::from_secs(6));
        world.hosts[1].refuses = |order| *order == Order::Promote;
        world.hosts[2].server.priority = 0;
        world.wish(2, Wish::Force { to: Some(address(1)), id: "w".into() });
        if !others {
            world.kill(0);
        }
        world.run(timing().session * 2);
        if others {
            world.settle();
            assert_eq!((world.masters(), world.state().phase), (vec![0], Phase::Done), "{}", world.story());
            let outcome = world.state().outcome.unwrap();
            assert!(!outcome.done && outcome.text.contains("did not take over by force"), "{outcome:?}");
            continue;
        }
        assert_eq!(world.state().phase, Phase::Promoting, "{}", world.story());
        world.hosts[1].refuses = |_| false;
        world.run(timing().session * 2);
        world.check(1);
        assert!(world.state().outcome.unwrap().done);
    }
}

#[test]
fn a_new_master_whose_order_seemed_to_fail_has_its_siblings_for_heirs() {
    let mut world = World::new(&[0, 0, 0]);
    world.write(0, 3);
    world.run(timing().session);
    world.hosts[1].unheard = true;
    world.hosts[2].agent = false;
    world.kill(0);
    world.run(Duration::from_millis(1200));
    assert_eq!((world.masters(), world.state().phase), (vec![1], Phase::Done), "{}", world.story());
    assert_eq!(world.state().heirs, [address(2)], "{}", world.story());
}

#[test]
fn who_lacks_what_a_master_takes_alone_is_recorded_also_where_its_server_refuses_the_order() {
    let mut world = World::new(&[0, 0]);
    world.write(0, 3);
    world.run(Duration::from_secs(6));
    world.kill(1);
    world.run(Duration::from_secs(10));
    assert!(world.state().solo && world.state().heirs.is_empty(), "{}", world.story());
    world.hosts[0].refuses = is_unfence;
    world.restart(1);
    world.run(Duration::from_secs(10));
    assert_eq!((world.state().solo, world.state().heirs), (true, vec![address(1)]), "{}", world.story());
    world.kill(1);
    world.run(Duration::from_secs(10));
    assert_eq!((world.state().solo, world.state().heirs), (true, vec![]), "{}", world.story());
    world.hosts[0].refuses = |_| false;
    world.restart(1);
    world.settle();
    world.check(0);
    assert!(!world.state().solo, "{:?}", world.state());
}

#[test]
fn a_replica_that_takes_no_order_at_all_is_left_alone() {
    let mut world = World::new(&[0, 0, 0]);
    world.write(0, 5);
    world.run(Duration::from_secs(6));
    world.hosts[1].refuses = |order| matches!(order, Order::Promote | Order::Fence { .. });
    world.kill(0);
    world.run(Duration::from_secs(30));
    assert_eq!(world.masters(), [2], "{}", world.story());
    assert!(world.hosts[1].server.up && world.hosts[1].member.reluctant.is_some(), "{}", world.story());
}

#[test]
fn one_that_did_not_take_the_order_once_does_not_wait_for_members_that_are_out() {
    let mut world = World::new(&[0, 0]);
    world.write(0, 5);
    world.run(Duration::from_secs(6));
    world.hosts[1].refuses = |order| *order == Order::Promote;
    world.wish(0, Wish::Switchover { to: Some(address(1)), id: "w".into() });
    world.run(Duration::from_secs(10));
    world.check(0);
    world.hosts[1].refuses = |_| false;
    world.kill(0);
    world.run(Duration::from_millis(100));
    assert_eq!((world.masters(), world.state().phase), (vec![1], Phase::Done), "{}", world.story());
}

#[test]
fn a_lock_without_a_master_is_told_of_where_nothing_can_be_written() {
    let mut world = World::new(&[0, 0]);
    world.write(0, 5);
    world.run(Duration::from_secs(6));
    world.refused = &["epoch"];
    world.kill(0);
    world.run(timing().session * 3);
    assert!(world.hosts[1].alerts.contains(&"shard-no-master"), "{:?}", world.hosts[1].alerts);
    world.refused = &[];
    world.run(timing().session);
    world.check(1);
    assert!(!world.hosts[1].alerts.contains(&"shard-no-master"), "{:?}", world.hosts[1].alerts);
}

#[test]
fn a_master_that_may_not_say_that_it_stepped_down_goes_on() {
    let mut world = World::new(&[0, 0]);
    world.write(0, 5);
    world.run(Duration::from_secs(6));
    world.wish(1, Wish::Force { to: None, id: "w0".into() });
    world.settle();
    world.check(1);
    world.hosts[0].member.wish = None;
    world.refused = &["released"];
    world.wish(0, Wish::Force { to: Some(address(0)), id: "w".into() });
    world.run(Duration::from_secs(10));
    assert!(!world.hosts[1].server.paused, "{}", world.story());
    world.check(1);
    assert!(world.state().outcome.is_some_and(|outcome| outcome.id == "w" && !outcome.done));
}

#[test]
fn a_lock_that_may_not_be_removed_is_told_of() {
    let mut world = World::new(&[0, 0, 0]);
    world.write(0, 5);
    world.run(Duration::from_secs(6));
    world.forbidden = Some("/lock");
    world.kill(0);
    world.run(Duration::from_secs(10));
    assert!(world.hosts[0].alerts.contains(&"shard-refused"), "{:?}", world.hosts[0].alerts);
    world.run(timing().session * 3);
    let refused = world.hosts[0].log.iter().filter(|line| line.contains("the registry refuses")).count();
    assert!((50..250).contains(&refused), "once a beat: {refused}");
    for host in &world.hosts[1..] {
        assert!(host.alerts.contains(&"shard-no-master"), "{:?}", host.alerts);
    }
    world.forbidden = None;
    world.settle();
    world.restart(0);
    world.settle();
    world.check(1);
    for host in &world.hosts {
        assert!(!host.alerts.iter().any(|alert| ["shard-refused", "shard-no-master"].contains(alert)));
    }
}

#[test]
fn that_the_registry_refuses_is_over_also_where_nothing_is_to_be_written_any_more() {
    let mut world = World::new(&[0, 0]);
    world.write(0, 5);
    world.run(Duration::from_secs(6));
    world.refused = &["solo"];
    world.kill(1);
    world.run(Duration::from_secs(10));
    world.restart(1);
    world.run(Duration::from_secs(10));
    assert!(world.hosts[0].alerts.contains(&"shard-refused"), "{:?}", world.hosts[0].alerts);
    assert!(!world.state().solo);
    world.refused = &[];
    world.run(Duration::from_secs(10));
    assert!(world.hosts[0].alerts.is_empty(), "{:?}", world.hosts[0].alerts);
    world.check(0);
}

#[test]
fn a_configuration_that_was_refused_is_written_when_it_is_not_refused_any_more() {
    let mut world = World::new(&[0, 0]);
    world.run(Duration::from_secs(6));
    world.refused = &["timing"];
    for i in 0..2 {
        let plan = ShardPlan { max_lag: 7, nonce: format!("run{i}"), ..plan(i, 2) };
        world.give(i, Input::Plan(Box::new(plan)));
    }
    world.run(Duration::from_secs(6));
    assert!(world.hosts[1].alerts.contains(&"shard-drift"), "{:?}", world.hosts[1].alerts);
    world.refused = &[];
    world.run(timing().session + Duration::from_secs(6));
    assert!(world.hosts[1].alerts.is_empty(), "{:?}", world.hosts[1].alerts);
}

#[test]
fn that_writes_are_not_allowed_is_over_when_another_leads() {
    let mut world = World::new(&[0, 0, 0]);
    world.write(0, 5);
    world.run(Duration::from_secs(6));
    world.hosts[1].refuses = is_unfence;
    world.kill(0);
    world.run(Duration::from_secs(2));
    assert!(world.hosts[1].alerts.contains(&"shard-fenced"), "{:?}", world.hosts[1].alerts);
    world.kill(1);
    world.hosts[1].refuses = |_| false;
    world.run(Duration::from_secs(2));
    world.restart(1);
    world.restart(0);
    world.settle();
    world.check(2);
    assert!(world.hosts[1].alerts.is_empty(), "{:?}", world.hosts[1].alerts);
}

#[test]
fn a_handover_that_was_not_written_is_refused_and_the_master_goes_on() {
    let mut world = World::new(&[0, 0]);
    world.write(0, 5);
    world.run(Duration::from_secs(6));
    world.refused = &["handover"];
    world.wish(0, Wish::Switchover { to: None, id: "w".into() });
    world.run(Duration::from_secs(4));
    let outcome = world.state().outcome.unwrap();
    assert!(!outcome.done && outcome.text.contains("could not be changed"), "{outcome:?}");
    world.check(0);
}

#[test]
fn a_master_whose_state_cannot_be_written_goes_on_and_pauses_once() {
    let mut world = World::new(&[0, 0]);
    world.write(0, 5);
    world.run(Duration::from_secs(6));
    world.refused = &["handover", "outcome"];
    world.wish(1, Wish::Switchover { to: None, id: "w".into() });
    world.run(Duration::from_secs(20));
    assert_eq!(world.state().intent.map(|intent| intent.id).as_deref(), Some("w"), "{}", world.story());
    assert!(!world.hosts[0].server.paused, "{}", world.story());
    let begun = world.hosts[0].log.iter().filter(|line| line.contains("it hands over")).count();
    assert_eq!(begun, 1, "{}", world.story());
    let refused = world.hosts[0].log.iter().filter(|line| line.contains("the registry refuses")).count();
    assert!((5..30).contains(&refused), "{refused}: {}", world.story());
    world.refused = &[];
    world.run(Duration::from_secs(5));
    assert!(!world.state().outcome.unwrap().done);
    assert!(world.hosts[0].alerts.is_empty(), "{:?}", world.hosts[0].alerts);
    world.check(0);
    // And the next one is carried out, and its end is heard.
    world.wish(1, Wish::Switchover { to: None, id: "w2".into() });
    world.run(Duration::from_secs(5));
    world.check(1);
    let reported = world.hosts[1].member.report(world.now()).state.unwrap().outcome.unwrap();
    assert_eq!((reported.id.as_str(), reported.done), ("w2", true), "{}", world.story());
}

#[test]
fn a_master_that_may_not_record_that_it_is_alone_wants_its_replicas_and_tells() {
    let mut world = World::new(&[0, 0]);
    world.write(0, 5);
    world.run(Duration::from_secs(6));
    world.refused = &["solo"];
    world.kill(1);
    world.run(Duration::from_secs(10));
    assert_eq!(world.hosts[0].server.min_replicas, 1, "{}", world.story());
    assert!(world.hosts[0].alerts.contains(&"shard-refused"), "{:?}", world.hosts[0].alerts);
    world.refused = &[];
    world.run(Duration::from_secs(3));
    assert!(world.state().solo && world.hosts[0].server.min_replicas == 0, "{}", world.story());
    assert!(!world.hosts[0].alerts.contains(&"shard-refused"), "{:?}", world.hosts[0].alerts);
}

#[test]
fn a_master_that_may_not_record_who_lacks_what_it_took_alone_takes_no_more() {
    let mut world = World::new(&[0, 0, 0]);
    world.write(0, 5);
    world.run(Duration::from_secs(6));
    // A new master is alone until its siblings follow; this one does not.
    world.hosts[2].agent = false;
    world.kill(0);
    world.run(Duration::from_millis(1500));
    assert_eq!((world.masters(), world.state().solo), (vec![1], true), "{}", world.story());
    assert_eq!((world.state().heirs, world.hosts[1].server.min_replicas), (vec![address(2)], 0));
    world.refused = &["solo"];
    world.run(Duration::from_secs(10));
    assert_eq!(world.hosts[1].server.min_replicas, 1, "{}", world.story());
    world.refused = &[];
    world.run(Duration::from_secs(3));
    assert!(world.state().solo && world.state().heirs.is_empty(), "{:?}", world.state());
    assert_eq!(world.hosts[1].server.min_replicas, 0, "{}", world.story());
}

#[test]
fn a_pause_that_is_over_is_over_although_it_could_not_be_removed() {
    let mut world = World::new(&[0, 0]);
    world.write(0, 5);
    let pause = Wish::Pause { long: Duration::from_secs(20), reason: "work".into(), host: false };
    world.wish(1, pause);
    world.forbidden = Some("/pause");
    world.run(Duration::from_secs(25));
    for i in [0, 1] {
        world.hosts[i].linked = false;
        world.give(i, Input::Lost);
        world.hosts[i].linked = true;
        world.hear(i);
        world.give(i, Input::Connected);
    }
    world.run(Duration::from_secs(6));
    world.kill(0);
    world.run(Duration::from_secs(1));
    assert_eq!(world.masters(), [1], "{}", world.story());
}

#[test]
fn what_the_registry_refuses_is_not_asked_for_all_the_time() {
    let mut world = World::new(&[0, 0]);
    world.refused = &["intent"];
    world.wish(1, Wish::Switchover { to: None, id: "w".into() });
    world.run(Duration::from_secs(10));
    let told = world.hosts[1].log.iter().filter(|line| line.contains("the registry refuses /")).count();
    assert_eq!(told, 1, "{}", world.story());
    let unheard = world.hosts[1].member.unheard.clone().unwrap();
    assert!(!unheard.done && unheard.text.contains("NoAuth"), "{unheard:?}");
    world.check(0);
}
