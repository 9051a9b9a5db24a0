//! What an operator wants: switchovers, forced failovers, pauses.

use super::*;

#[test]
fn a_force_that_cannot_be_carried_out_does_not_keep_another_one_out() {
    let mut world = World::new(&[0, 0, 0]);
    world.write(0, 3);
    world.run(Duration::from_secs(6));
    for i in [1, 2] {
        world.hosts[i].server.priority = 0;
    }
    world.hosts[1].refuses = |order| *order == Order::Promote;
    world.kill(0);
    world.run(Duration::from_secs(3));
    world.wish(2, Wish::Force { to: Some(address(1)), id: "w1".into() });
    world.run(Duration::from_secs(6));
    assert_eq!((world.masters(), world.state().phase), (vec![], Phase::Promoting), "{}", world.story());
    world.wish(2, Wish::Force { to: Some(address(2)), id: "w2".into() });
    world.run(timing().session + Duration::from_secs(20));
    assert_eq!((world.masters(), world.state().phase), (vec![2], Phase::Done), "{}", world.story());
    assert_eq!(world.state().outcome.map(|outcome| (outcome.id, outcome.done)), Some(("w2".into(), true)));
}

#[test]
fn who_becomes_the_master_in_spite_of_another_wish_says_so() {
    let mut world = World::new(&[0, 0, 0]);
    world.write(0, 3);
    world.run(Duration::from_secs(6));
    let member = &mut world.hosts[0].member;
    let wish = Intent { id: "w".into(), kind: IntentKind::Force, to: address(2), by: address(1) };
    let seen = member.know.state.seen.as_mut().unwrap();
    let state = seen.content.take().unwrap();
    seen.content = Some(ShardState { phase: Phase::Promoting, intent: Some(wish), ..state });
    member.publish_master();
    let written = member.out.iter().find_map(|command| match command {
        Command::Request(_, Request::Write { content, .. }) => decode::<ShardState>(content),
        _ => None,
    });
    let outcome = written.and_then(|state| state.outcome).unwrap();
    assert!(!outcome.done && outcome.id == "w", "{outcome:?}");
}

#[test]
fn a_force_to_one_for_which_nobody_speaks_is_refused() {
    let mut world = World::new(&[0, 0, 0]);
    world.write(0, 3);
    world.run(Duration::from_secs(6));
    world.hosts[1].agent = false;
    world.expire(1);
    let now = world.now();
    let wish = Wish::Force { to: Some(address(1)), id: "w".into() };
    let why = world.hosts[2].member.wish(now, wish).unwrap_err();
    assert!(why.ends_with("no agent speaks for it"), "{why}");
}

#[test]
fn a_master_that_may_have_handed_over_does_not_go_on_without_a_registry() {
    let mut world = World::new(&[0, 0]);
    world.write(0, 5);
    world.run(Duration::from_secs(6));
    world.hosts[1].agent = false;
    world.cut_after_handover = true;
    world.wish(0, Wish::Switchover { to: None, id: "w".into() });
    assert_eq!(world.state().phase, Phase::Promoting, "{}", world.story());
    world.run(Duration::from_secs(25));
    assert!(world.hosts[0].server.paused, "{}", world.story());
}

#[test]
fn a_registry_that_lags_behind_does_not_let_writes_in_after_a_handover() {
    let mut world = World::new(&[0, 0]);
    world.write(0, 5);
    world.run(Duration::from_secs(6));
    world.hosts[1].agent = false;
    world.cut_after_handover = true;
    let path = format!("{SHARD}/state");
    world.wish(0, Wish::Switchover { to: None, id: "w".into() });
    let before = world.before_handover.take().unwrap();
    world.lagging = Some(before);
    world.hosts[0].linked = true;
    world.hear(0);
    world.give(0, Input::Connected);
    world.run(Duration::from_secs(1));
    assert!(world.hosts[0].server.paused, "{}", world.story());
    assert_eq!(world.state().phase, Phase::Promoting, "{}", world.story());
    world.lagging = None;
    world.changed(&path);
    world.run(Duration::from_secs(1));
    assert!(world.hosts[0].server.paused, "{}", world.story());
    world.hosts[1].agent = true;
    world.give(1, Input::Changed { path: path.clone() });
    world.give(1, Input::Changed { path: format!("{SHARD}/lock") });
    world.settle();
    world.check(1);
    assert_eq!(world.hosts[1].server.keys, 5);
}

#[test]
fn force_moves_a_master_that_tells_nothing_whatever_waits() {
    let mut world = World::new(&[0, 0]);
    world.write(0, 5);
    world.run(Duration::from_secs(6));
    world.hosts[0].mute = true;
    world.run(Duration::from_secs(6));
    world.wish(1, Wish::Switchover { to: Some(address(1)), id: "w1".into() });
    world.run(Duration::from_millis(500));
    world.wish(1, Wish::Force { to: Some(address(1)), id: "w2".into() });
    world.run(Duration::from_secs(5));
    assert_eq!(world.state().master, address(1), "{}", world.story());
    assert!(world.hosts[0].server.paused || !world.hosts[0].server.up, "{}", world.story());
}

#[test]
fn a_switchover_of_a_master_that_tells_nothing_is_refused() {
    let mut world = World::new(&[0, 0]);
    world.run(Duration::from_secs(6));
    world.hosts[0].mute = true;
    world.run(Duration::from_secs(6));
    world.wish(1, Wish::Switchover { to: Some(address(1)), id: "w1".into() });
    world.run(Duration::from_secs(5));
    let outcome = world.state().outcome.unwrap();
    assert!(!outcome.done && outcome.text.contains("does not tell"), "{outcome:?}");
    assert_eq!(world.state().intent, None);
}

#[test]
fn a_switchover_hands_over_by_name() {
    let mut world = World::new(&[0, 0, 0]);
    world.write(0, 3);
    world.run(Duration::from_secs(6));
    world.wish(1, Wish::Switchover { to: Some(address(2)), id: "w1".into() });
    assert!(world.told("switchover"), "{}", world.story());
    world.run(Duration::from_secs(2));
    world.check(2);
    assert!(!world.hosts[0].alerts.contains(&"switchover"), "{:?}", world.hosts[0].alerts);
    let outcome = world.state().outcome.unwrap();
    assert!(outcome.done && outcome.paused_ms.is_some(), "{outcome:?}\n{}", world.story());
}

#[test]
fn a_target_that_fails_gives_the_shard_back() {
    let mut world = World::new(&[0, 0, 0]);
    world.write(0, 3);
    world.run(Duration::from_secs(6));
    world.hosts[2].agent = false;
    world.wish(0, Wish::Switchover { to: Some(address(2)), id: "w1".into() });
    world.run(Duration::from_secs(6));
    world.hosts[2].agent = true;
    let outcome = world.state().outcome.unwrap();
    assert!(!outcome.done, "{outcome:?}\n{}", world.story());
    world.check(0);
}

#[test]
fn force_takes_a_stale_replica() {
    let mut world = World::new(&[0, 0]);
    world.write(0, 5);
    world.kill(1);
    world.run(Duration::from_secs(10));
    world.write(0, 5);
    world.restart(1);
    world.hosts[1].server.follows = "127.0.0.1:1".into();
    world.kill(0);
    world.run(Duration::from_secs(5));
    assert_eq!(world.masters(), Vec::<usize>::new());
    world.wish(1, Wish::Force { to: Some(address(1)), id: "w".into() });
    world.run(Duration::from_secs(5));
    assert_eq!(world.masters(), [1], "{}", world.story());
    world.restart(0);
    world.settle();
    world.check(1);
}

#[test]
fn force_moves_a_living_master() {
    let mut world = World::new(&[0, 0]);
    world.write(0, 5);
    world.run(Duration::from_secs(6));
    world.wish(1, Wish::Force { to: None, id: "w".into() });
    world.settle();
    world.check(1);
    assert!(world.state().outcome.unwrap().done);
}

#[test]
fn in_a_pause_nothing_is_switched_and_the_lease_goes_on() {
    let mut world = World::new(&[0, 0]);
    world.write(0, 5);
    let pause = Wish::Pause { long: Duration::from_secs(60), reason: "work".into(), host: false };
    world.wish(1, pause);
    world.run(Duration::from_secs(25));
    world.check(0);
    world.kill(0);
    world.run(Duration::from_secs(20));
    assert_eq!(world.masters(), Vec::<usize>::new(), "{}", world.story());
    world.run(Duration::from_secs(20));
    assert_eq!(world.masters(), [1], "{}", world.story());
}

/// The first host handed over to the second, which lacks what it took last, as the third does.
fn handed_over_in_vain() -> World {
    let mut world = World::new(&[0, 0, 0]);
    world.write(0, 5);
    world.run(Duration::from_secs(6));
    for i in [1, 2] {
        world.hosts[i].stuck = true;
    }
    world.write(0, 3);
    world.wish(2, Wish::Switchover { to: Some(address(1)), id: "w".into() });
    assert!(world.state().handover.is_some(), "{}", world.story());
    world
}

#[test]
fn a_target_that_lacks_data_does_not_lead_while_the_former_master_lives() {
    let mut world = handed_over_in_vain();
    // Whoever handed over does not reach the registry, and its session goes on.
    world.hosts[0].linked = false;
    world.give(0, Input::Lost);
    world.run(timing().session / 2);
    assert!(world.state().handover.is_some(), "{}", world.story());
    world.hosts[0].linked = true;
    world.hear(0);
    world.give(0, Input::Connected);
    world.run(Duration::from_secs(10));
    world.check(0);
    assert!(world.state().outcome.is_some_and(|outcome| outcome.id == "w" && !outcome.done));
    assert_eq!(world.hosts[0].server.keys, 8);
}

#[test]
fn a_master_that_handed_over_in_vain_keeps_its_claim_while_it_has_no_fencer() {
    let mut world = handed_over_in_vain();
    world.give(0, Input::Fencer(false));
    world.run(timing().session / 2);
    assert_eq!(world.masters(), [0], "{}", world.story());
    world.give(0, Input::Fencer(true));
    world.run(Duration::from_secs(10));
    world.check(0);
    assert_eq!(world.hosts[0].server.keys, 8);
}

#[test]
fn a_target_that_lacks_data_leads_when_the_former_master_is_gone_or_dead() {
    for dies in [false, true] {
        let mut world = World::new(&[0, 0]);
        world.write(0, 5);
        world.run(Duration::from_secs(6));
        world.hosts[1].stuck = true;
        world.write(0, 3);
        world.wish(0, Wish::Switchover { to: None, id: "w".into() });
        assert!(world.state().handover.is_some(), "{}", world.story());
        if dies {
            world.kill(0);
        } else {
            world.hosts[0].agent = false;
            world.run(Duration::from_secs(5));
            assert!(!world.hosts[1].server.master, "{}", world.story());
            world.expire(0);
        }
        world.run(Duration::from_secs(20));
        assert!(world.hosts[1].server.master, "{}", world.story());
        assert_eq!(world.state().phase, Phase::Done, "{}", world.story());
        assert!(world.state().outcome.is_some_and(|outcome| outcome.id == "w" && !outcome.done));
    }
}

#[test]
fn a_target_that_has_lost_the_registry_does_not_look_all_the_time() {
    let mut world = World::new(&[0, 0]);
    world.write(0, 5);
    world.run(Duration::from_secs(6));
    world.hosts[1].stuck = true;
    world.write(0, 3);
    world.wish(0, Wish::Switchover { to: None, id: "w".into() });
    let looks_in = |world: &World| world.hosts[1].member.next_look - world.now().at;
    assert!(looks_in(&world) < Duration::from_millis(5), "{}", world.story());
    world.hosts[1].linked = false;
    world.give(1, Input::Lost);
    world.run(Duration::from_millis(50));
    assert!(looks_in(&world) > Duration::from_millis(500), "{}", world.story());
}

#[test]
fn a_wish_whose_answer_was_lost_is_put_once() {
    let mut world = World::new(&[0, 0]);
    world.write(0, 5);
    world.run(Duration::from_secs(6));
    world.wish(1, Wish::Switchover { to: None, id: "w".into() });
    let intent = Intent { id: "w".into(), kind: IntentKind::Switchover, to: address(1), by: address(1) };
    world.hosts[1].member.wish = Some((intent.clone(), world.now().at));
    world.run(Duration::from_secs(10));
    world.check(1);
    let outcome = world.state().outcome.unwrap();
    assert!(outcome.id == "w" && outcome.done && world.hosts[1].member.unheard.is_none(), "{outcome:?}");
    let late = world.now().at;
    world.run(timing().session);
    world.hosts[1].member.wish = Some((Intent { id: "late".into(), to: address(0), ..intent }, late));
    world.run(Duration::from_secs(10));
    world.check(1);
    assert!(world.hosts[1].member.unheard.as_ref().is_some_and(|unheard| unheard.id == "late"));
}

#[test]
fn a_switchover_whose_master_is_gone_is_answered() {
    for dies in [false, true] {
        let mut world = World::new(&[0, 0]);
        world.write(0, 5);
        world.run(Duration::from_secs(6));
        if dies {
            world.hosts[0].mute = true;
            world.run(timing().check);
        } else {
            world.hosts[0].agent = false;
        }
        world.wish(1, Wish::Switchover { to: None, id: "w".into() });
        assert!(world.state().intent.is_some(), "{}", world.story());
        if dies {
            world.kill(0);
        } else {
            world.expire(0);
        }
        world.run(timing().session);
        assert_eq!(world.state().master, address(1), "{}", world.story());
        let outcome = world.state().outcome.unwrap();
        assert!(outcome.id == "w" && !outcome.done, "{outcome:?}");
    }
}

#[test]
fn a_switchover_to_one_whose_agent_stands_still_is_taken_back_at_once() {
    let mut world = World::new(&[0, 0, 0]);
    world.write(0, 5);
    world.run(Duration::from_secs(6));
    world.hosts[1].agent = false;
    world.wish(2, Wish::Switchover { to: Some(address(1)), id: "w".into() });
    assert!(world.state().handover.is_some(), "{}", world.story());
    world.run(Duration::from_secs(5));
    assert_eq!((world.state().master, world.state().phase), (address(0), Phase::Done), "{}", world.story());
    assert!(!world.hosts[0].server.paused, "{}", world.story());
}

#[test]
fn a_recorded_master_that_may_not_lead_is_waited_for_once() {
    let mut world = World::new(&[0, 0, 0]);
    world.write(0, 5);
    world.run(Duration::from_secs(6));
    // Its agent lives, and its session; its server does not answer, and the lock is gone.
    world.hosts[0].mute = true;
    world.hosts[0].linked = false;
    world.give(0, Input::Lost);
    world.run(Duration::from_secs(20));
    world.hosts[0].agent = false;
    world.expire(0);
    let node = encode(&world.hosts[0].member.published.clone().unwrap());
    world.put_member(0, node);
    world.run(timing().session + timing().withdrawal() + Duration::from_secs(5));
    assert_ne!(world.state().master, address(0), "{}", world.story());
    assert_eq!(world.state().phase, Phase::Done, "{}", world.story());
}
