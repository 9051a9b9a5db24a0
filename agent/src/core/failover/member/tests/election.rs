//! Who stands for master, and who may be one.

use super::*;

#[test]
fn a_shard_without_data_gets_its_smallest_address_as_master() {
    let world = World::new(&[0, 0, 0]);
    world.check(0);
    assert_eq!(world.state().epoch, 1, "{}", world.story());
}

#[test]
fn who_has_data_is_the_first_master() {
    let world = World::new(&[0, 7, 0]);
    world.check(1);
    assert_eq!(world.hosts[0].server.keys, 7);
}

#[test]
fn a_death_is_followed_by_a_promotion_within_the_settle_time() {
    let mut world = World::new(&[0, 0, 0]);
    world.write(0, 5);
    world.run(Duration::from_secs(6));
    let epoch = world.state().epoch;
    world.kill(0);
    world.run(Duration::from_millis(100));
    assert_eq!(world.masters(), [1], "{}", world.story());
    world.restart(0);
    world.settle();
    world.check(1);
    assert_eq!(world.hosts[0].server.keys, 5, "the former master has the data of the new one");
    assert_eq!(world.state().epoch, epoch + 1);
    let history: Vec<HistoryEntry> = decode(&world.nodes[&format!("{SHARD}/history")].content).unwrap();
    assert_eq!(history.len(), 2);
    assert_eq!(history[1].why, Change::Death);
}

#[test]
fn a_lone_replica_is_promoted_at_once_and_the_former_master_follows() {
    let mut world = World::new(&[0, 0]);
    world.write(0, 5);
    world.run(Duration::from_secs(6));
    world.kill(0);
    assert_eq!(world.masters(), [1], "{}", world.story());
    assert!(world.state().solo);
    world.restart(0);
    world.settle();
    world.check(1);
    assert!(!world.state().solo, "{}", world.story());
    assert_eq!(world.hosts[1].server.min_replicas, 1);
    assert!(world.hosts[1].alerts.is_empty(), "{:?}", world.hosts[1].alerts);
}

#[test]
fn a_master_that_took_writes_alone_is_not_followed_by_a_stale_replica() {
    let mut world = World::new(&[0, 0]);
    world.write(0, 5);
    world.kill(1);
    world.run(Duration::from_secs(10));
    assert!(world.state().solo, "{}", world.story());
    world.write(0, 5);
    world.hosts[1].server.up = true;
    world.hosts[1].server.follows = "127.0.0.1:1".into();
    world.kill(0);
    world.give(1, Input::Server(Life::Started));
    world.give(1, Input::Server(Life::Up));
    world.settle();
    assert_eq!(world.masters(), Vec::<usize>::new(), "{}", world.story());
    assert!(world.hosts[1].alerts.contains(&"shard-no-candidate"), "{:?}", world.hosts[1].alerts);
}

#[test]
fn a_sibling_that_was_left_behind_is_no_heir_of_a_new_master() {
    for (stuck_from, is_heir) in [(1, false), (14, true)] {
        let mut world = World::new(&[0, 0, 0]);
        world.write(0, 5);
        world.run(Duration::from_secs(6));
        world.hosts[0].linked = false;
        world.give(0, Input::Lost);
        for second in 0..15 {
            world.hosts[2].stuck = second >= stuck_from;
            world.write(0, 1);
            world.run(Duration::from_secs(1));
        }
        world.expire(0);
        world.hosts[0].agent = false;
        world.run(Duration::from_secs(8));
        let state = world.state();
        assert_eq!((&state.master, state.phase), (&world.hosts[1].address, Phase::Done), "{}", world.story());
        let heirs = if is_heir { vec![world.hosts[2].address.clone()] } else { vec![] };
        assert_eq!(state.heirs, heirs, "stuck from second {stuck_from}: {}", world.story());
    }
}

/// A master's host dies as a whole; one of its replicas lacks what it wrote in the last seconds before.
fn silence_after(behind: u32, phase: u32) -> World {
    let mut world = World::new(&[0, 0, 0]);
    world.write(0, 5);
    world.run(Duration::from_secs(6) + Duration::from_millis(500) * phase);
    for second in 0..20 {
        world.hosts[2].stuck = second >= 20 - behind;
        world.write(0, 1);
        world.run(Duration::from_secs(1));
    }
    (world.hosts[0].linked, world.hosts[0].agent, world.hosts[0].server.up) = (false, false, false);
    world
}

#[test]
fn a_sibling_that_kept_up_is_an_heir_whenever_it_was_last_looked_at() {
    for (behind, phase) in (0..5).flat_map(|behind| (0..10).map(move |phase| (behind, phase))) {
        let mut world = silence_after(behind, phase);
        world.run(Duration::from_secs(30));
        world.expire(0);
        world.run(Duration::from_secs(7));
        let state = world.state();
        assert_eq!((&state.master, state.phase), (&world.hosts[1].address, Phase::Done), "{}", world.story());
        assert_eq!(state.heirs, [address(2)], "behind by {behind} s, phase {phase}: {}", world.story());
    }
}

#[test]
fn an_agent_that_did_not_see_its_masters_end_takes_all_siblings_for_heirs() {
    let mut world = silence_after(1, 0);
    world.run(Duration::from_secs(2));
    world.start_agent_anew(1);
    world.run(Duration::from_secs(30));
    world.expire(0);
    world.run(Duration::from_secs(7));
    assert_eq!(
        (world.state().master, world.state().heirs),
        (address(1), vec![address(2)]),
        "{}",
        world.story()
    );
}

#[test]
fn an_agent_that_dies_again_and_again_does_not_keep_heirs_that_are_gone() {
    let mut world = World::new(&[0, 0, 0]);
    world.write(0, 5);
    world.run(Duration::from_secs(6));
    (world.hosts[2].agent, world.hosts[2].server.up) = (false, false);
    world.hosts[0].agent = false;
    world.write(0, 5);
    world.expire(0);
    world.start_agent_anew(0);
    world.run(Duration::from_secs(1));
    assert_eq!(
        (world.state().master, world.state().heirs),
        (address(0), vec![address(1)]),
        "{}",
        world.story()
    );
}

#[test]
fn what_was_said_while_the_master_had_no_lock_does_not_count_once_it_has_it() {
    let mut world = World::new(&[0, 0, 0]);
    world.write(0, 3);
    world.run(timing().session);
    for i in [1, 2] {
        world.hosts[i].server.priority = 0;
    }
    // It goes on without a registry: all follow. Its session ends, and it comes back.
    world.hosts[0].linked = false;
    world.give(0, Input::Lost);
    world.expire(0);
    world.run(Duration::from_secs(20));
    assert_eq!(world.hosts[1].member.round, 4, "{}", world.story());
    world.connect(0);
    world.run(Duration::from_secs(3));
    world.check(0);
    assert_eq!((world.state().epoch, world.hosts[1].member.round), (1, 0), "{}", world.story());
}

/// Redis before 4.0.
#[test]
fn heirs_count_where_histories_have_no_names() {
    let mut world = World::new(&[0, 0, 0]);
    world.nameless = true;
    let now = world.now();
    for i in 0..3 {
        world.hosts[i].server =
            Server { master: false, follows: "127.0.0.1:1".into(), ..world.hosts[i].server.clone() };
        world.hosts[i].member = Member::new(now, plan(i, 3));
    }
    world.nodes.clear();
    for i in 0..3 {
        world.connect(i);
        world.give(i, Input::Fencer(true));
        world.give(i, Input::Server(Life::Up));
    }
    world.settle();
    world.write(0, 5);
    world.run(Duration::from_secs(6));
    for i in [1, 2] {
        world.hosts[i].server.up = false;
    }
    world.run(Duration::from_secs(10));
    assert!(world.state().solo && world.state().heirs.is_empty(), "{}", world.story());
    world.write(0, 5);
    for i in [1, 2] {
        world.hosts[i].server.up = true;
        world.hosts[i].server.follows = "127.0.0.1:1".into();
    }
    world.kill(0);
    world.settle();
    assert_eq!(world.masters(), Vec::<usize>::new(), "{}", world.story());
}

#[test]
fn who_lost_a_master_that_tells_nothing_is_its_heir_no_more() {
    let mut world = World::new(&[0, 0, 0]);
    world.write(0, 5);
    world.run(Duration::from_secs(6));
    assert_eq!(world.state().heirs, [address(1), address(2)]);
    world.hosts[0].mute = true;
    world.run(Duration::from_secs(10));
    assert_eq!(world.state().heirs, [address(1), address(2)], "they say that they follow");
    world.hosts[2].link_down = true;
    world.run(Duration::from_secs(10));
    assert_eq!(world.state().heirs, [address(1)], "{}", world.story());
    world.hosts[2].link_down = false;
    world.run(Duration::from_secs(10));
    assert_eq!(world.state().heirs, [address(1), address(2)], "{}", world.story());
}

#[test]
fn whole_copies_are_taken_one_after_another() {
    let mut world = World::new(&[0, 0, 0, 0]);
    world.copy = Duration::from_secs(3);
    for i in 1..4 {
        world.hosts[i].server.replid = format!("other{i}");
        world.hosts[i].server.follows = "127.0.0.1:1".into();
    }
    let mut order = Vec::new();
    for _ in 0..200 {
        world.run(Duration::from_millis(100));
        let followers = (1..4).filter(|i| world.hosts[*i].server.follows == address(0));
        let new: Vec<usize> = followers.filter(|i| !order.contains(i)).collect();
        assert!(new.len() < 2, "{new:?} at once: {}", world.story());
        if let [i] = new[..] {
            assert!(world.hosts[i].alerts.contains(&"shard-full-resync"), "{:?}", world.hosts[i].alerts);
        }
        order.extend(new);
    }
    assert_eq!(order, [1, 2, 3], "{}", world.story());
    assert!(world.hosts.iter().all(|host| host.alerts.is_empty()), "{}", world.story());
}

#[test]
fn what_was_said_before_a_master_was_published_does_not_count_after_it() {
    let mut world = World::new(&[0, 0, 0]);
    world.write(0, 3);
    world.run(timing().session);
    // The first one was being made the master when it lost the lock; the others say how far they are, and are not promoted.
    for i in [1, 2] {
        world.hosts[i].server.priority = 0;
    }
    world.hosts[0].agent = false;
    let [state, lock] = ["state", "lock"].map(|name| format!("{SHARD}/{name}"));
    let done = world.state();
    let rewrite = |world: &mut World, phase| {
        let node = world.nodes.get_mut(&state).unwrap();
        (node.content, node.version) = (encode(&ShardState { phase, ..done.clone() }), node.version + 1);
        world.changed(&state);
    };
    let held = world.nodes[&lock].clone();
    rewrite(&mut world, Phase::Promoting);
    world.expire(0);
    world.run(Duration::from_secs(2));
    assert_eq!(world.hosts[1].member.round, 3, "{}", world.story());
    // It has the lock again, and is published in the same epoch.
    world.nodes.insert(lock.clone(), held);
    world.changed(&lock);
    world.run(Duration::from_secs(1));
    assert_eq!(world.hosts[1].member.round, 3, "{}", world.story());
    rewrite(&mut world, Phase::Done);
    world.run(Duration::from_secs(1));
    let said = world.hosts[1].member.published.as_ref().map(|node| node.round);
    assert_eq!((said, world.hosts[1].member.next_round()), (Some(0), 4), "{}", world.story());
}

#[test]
fn a_shard_without_a_master_is_told_of_until_it_has_one() {
    let mut world = World::new(&[0, 0]);
    world.write(0, 5);
    world.hosts[1].server.priority = 0;
    world.run(Duration::from_secs(11));
    world.kill(0);
    world.run(Duration::from_secs(50));
    assert!(!world.hosts[1].alerts.contains(&"shard-no-master"), "{:?}", world.hosts[1].alerts);
    world.run(Duration::from_secs(20));
    assert!(world.hosts[1].alerts.contains(&"shard-no-master"), "{:?}", world.hosts[1].alerts);
    assert!(world.hosts[1].alerts.contains(&"shard-no-candidate"), "{:?}", world.hosts[1].alerts);
    world.hosts[1].server.priority = 100;
    world.settle();
    assert_eq!(world.masters(), [1], "{}", world.story());
    assert!(!world.hosts[1].alerts.contains(&"shard-no-master"), "{:?}", world.hosts[1].alerts);
    assert!(!world.hosts[1].alerts.contains(&"shard-no-candidate"), "{:?}", world.hosts[1].alerts);
}

#[test]
fn a_replica_of_priority_0_never_leads() {
    let mut world = World::new(&[0, 0]);
    world.write(0, 5);
    world.hosts[1].server.priority = 0;
    world.run(Duration::from_secs(11));
    world.kill(0);
    world.settle();
    assert_eq!(world.masters(), Vec::<usize>::new(), "{}", world.story());
}

#[test]
fn empty_members_of_a_new_shard_wait_for_one_of_which_nothing_is_known() {
    let mut world = World::prepare(&[0, 0, 5]);
    world.begin(0);
    world.begin(1);
    world.run(timing().silence * 3);
    assert!(world.masters().is_empty(), "{}", world.story());
    assert!(world.told("shard-no-master"), "{}", world.story());
    world.begin(2);
    world.settle();
    world.check(2);
    assert_eq!(world.state().keys, 5);
}

#[test]
fn a_first_master_that_had_data_and_did_not_come_to_be_one_is_not_succeeded_by_an_empty_one() {
    let mut world = World::prepare(&[5, 0, 0]);
    world.hosts[0].doomed = true;
    (0..3).for_each(|i| world.begin(i));
    world.run(Duration::from_secs(5));
    assert!(!world.hosts[0].agent, "{}", world.story());
    world.expire(0);
    world.run(timing().session * 4);
    // What its server is, it became by its order; nobody else did.
    assert_eq!(world.masters(), [0], "{}", world.story());
    assert_eq!((world.state().master, world.state().keys), (address(0), 5), "{}", world.story());
}
