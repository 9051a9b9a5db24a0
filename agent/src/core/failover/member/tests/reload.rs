//! What becomes of a shard whose members are told of new settings one after the other.

use super::*;

impl World {
    /// The member is told of a shard of those hosts; what keeps the desired tree removes its node in the old one.
    fn move_to(&mut self, i: usize, members: &[usize]) {
        let members = members.iter().map(|i| address(*i)).collect();
        let old = self.hosts[i].member.node_path();
        let plan = ShardPlan { members, ..plan(i, self.hosts.len()) };
        if plan.path(&format!("members/{}", address(i))) != old {
            self.nodes.remove(&old);
            self.changed(&old);
        }
        self.give(i, Input::Plan(Box::new(plan)));
    }

    fn state_of(&self, shard: usize) -> Option<ShardState> {
        decode(&self.nodes.get(&format!("/redis/shards/{}/state", address(shard)))?.content)
    }
}

/// Three members of which the second leads, and the first, whose address is the shard's id, has been taken out.
fn without_the_first() -> World {
    let mut world = World::new(&[0, 0, 0]);
    world.write(0, 5);
    world.wish(0, Wish::Switchover { id: "w".into(), to: Some(address(1)) });
    world.settle();
    world.check(1);
    world
}

#[test]
fn a_master_that_is_told_first_of_another_id_is_not_replaced_beside_it() {
    let mut world = without_the_first();
    world.move_to(1, &[1, 2]);
    world.run(timing().session * 3);
    assert_eq!(world.masters(), [1], "{}", world.story());
    assert_eq!((world.state().master, world.state().phase), (address(1), Phase::Done), "{}", world.story());
    world.move_to(2, &[1, 2]);
    world.settle();
    assert_eq!(world.masters(), [1], "{}", world.story());
    assert!(!world.hosts[1].server.paused, "{}", world.story());
    let state = world.state_of(1).unwrap();
    assert_eq!((state.master, state.phase, state.keys), (address(1), Phase::Done, 5), "{}", world.story());
}

#[test]
fn a_replica_that_is_told_first_of_another_id_waits_for_the_master_that_it_follows() {
    let mut world = without_the_first();
    world.move_to(2, &[1, 2]);
    world.run(timing().silence * 2);
    assert_eq!(world.masters(), [1], "{}", world.story());
    assert_eq!(world.hosts[2].server.follows, address(1), "{}", world.story());
    assert!(!world.hosts[1].server.paused, "{}", world.story());
    world.write(1, 5);
    world.move_to(1, &[1, 2]);
    world.settle();
    assert_eq!(world.masters(), [1], "{}", world.story());
    let state = world.state_of(1).unwrap();
    assert_eq!((state.master, state.phase, state.keys), (address(1), Phase::Done, 10), "{}", world.story());
}

#[test]
fn a_replica_of_a_master_that_was_never_told_leads_when_that_has_died() {
    let mut world = without_the_first();
    world.move_to(2, &[1, 2]);
    world.hosts[1].agent = false;
    world.run(timing().silence * 2);
    assert_eq!(world.masters(), [1], "{}", world.story());
    world.hosts[1].server.up = false;
    world.run(timing().silence * 2);
    assert_eq!(world.masters(), [2], "{}", world.story());
    assert_eq!(world.state_of(1).unwrap().master, address(2), "{}", world.story());
}

#[test]
fn without_a_registry_a_master_goes_by_the_recorded_members_whatever_its_settings_name() {
    let mut world = World::new(&[0, 0, 0]);
    world.write(0, 5);
    world.run(timing().session);
    world.hosts[0].linked = false;
    world.give(0, Input::Lost);
    world.run(timing().lease * 2);
    assert!(!world.hosts[0].server.paused, "{}", world.story());
    world.move_to(0, &[0, 1]);
    // The other has gone, and may be promoted.
    world.hosts[2].agent = false;
    world.hosts[2].server.follows = "127.0.0.1:1".into();
    world.run(timing().lease);
    assert!(world.hosts[0].server.paused, "{}", world.story());
}

#[test]
fn an_order_that_is_under_way_when_the_shard_becomes_another_is_answered_once() {
    let mut world = without_the_first();
    let now = world.now();
    let member = &mut world.hosts[2].member;
    member.running = Some(Order::Inspect);
    let plan = ShardPlan { members: vec![address(1), address(2)], ..plan(2, 3) };
    let commands = member.step(now, Input::Plan(Box::new(plan)));
    assert!(!commands.iter().any(|command| matches!(command, Command::Order { .. })), "{commands:?}");
    let commands = member.step(now, Input::Ordered(Ordered::Failed("no answer".into())));
    assert!(commands.iter().any(|command| matches!(command, Command::Order { .. })), "{commands:?}");
}

#[test]
fn a_session_that_is_granted_less_by_another_server_shortens_the_lease() {
    let mut world = World::new(&[0, 0]);
    let before = world.hosts[0].member.lease_ends().unwrap();
    let facts = world.hosts[0].member.session.clone().unwrap();
    let less = Duration::from_secs(20);
    let shorter = timing().lease(timing().session) - timing().lease(less);
    world.give(0, Input::Session(Some(SessionFacts { timeout: less, ..facts })));
    assert_eq!(world.hosts[0].member.lease_until.unwrap(), before - shorter, "{}", world.story());
}
