//! The reconciliation against a model of the registry, with vandals and with connections lost before or after a request
//! took effect.

use super::{
    model::{Dice, Model, TIMEOUT},
    *,
};

fn active(host_id: &str, nonce: &str) -> String {
    format!(r#"{{"host_id":"{host_id}","nonce":"{nonce}"}}"#)
}

fn desired() -> BTreeMap<String, Node> {
    let persistent = |content: &str| Node { mode: Mode::Persistent, content: content.into() };
    let ephemeral = Node { mode: Mode::Ephemeral, content: active("h", "now").into() };
    BTreeMap::from([
        ("/y/servers/1".into(), persistent("host")),
        ("/y/servers/1/active".into(), ephemeral),
        ("/y/servers/1/instances/1:10".into(), persistent("a")),
        ("/y/servers/1/instances/1:10/info".into(), persistent("figures")),
        ("/y/servers/1/instances/1:20".into(), persistent("b")),
    ])
}

const ACTIVE: &str = "/y/servers/1/active";
const INSTANCES: &str = "/y/servers/1/instances";

fn owned() -> Vec<Owned> {
    vec![Owned { dir: INSTANCES.into(), prefix: "1:".into(), suffix: String::new() }]
}

fn tree() -> Tree {
    let mut tree = Tree::new("h".into());
    tree.absorb(Inbox { puts: desired(), owned: Some(owned()), ..Inbox::default() });
    tree.begin();
    tree
}

fn settle(tree: &mut Tree, model: &mut Model, now: Instant) {
    let mut steps = 0;
    while tree.busy() {
        tree.step(model, now).expect("the model loses nothing");
        for path in mem::take(&mut model.fired) {
            tree.touched(&path);
        }
        steps += 1;
        assert!(steps < 1000, "it never settles");
    }
}

fn assert_whole(model: &Model) {
    for (path, node) in desired() {
        let seen = model.nodes.get(&path).unwrap_or_else(|| panic!("{path} is missing"));
        assert_eq!(seen.content, node.content, "{path}");
        assert_eq!(seen.owner, if node.mode == Mode::Ephemeral { model.session } else { 0 }, "{path}");
    }
}

#[test]
fn an_empty_registry_gets_the_tree_with_its_parents_and_one_word_of_it() {
    let (mut tree, mut model) = (tree(), Model::new());
    settle(&mut tree, &mut model, Instant::now());
    assert_whole(&model);
    assert_eq!(tree.events, [RegistryEvent::Synced]);
    assert_eq!(tree.writes, 8, "five nodes and three parents");
    assert_eq!((tree.behind(), tree.nodes()), (0, 5));
}

#[test]
fn nothing_is_written_where_nothing_differs() {
    let (mut tree, mut model) = (tree(), Model::new());
    settle(&mut tree, &mut model, Instant::now());
    let writes = tree.writes;
    tree.begin();
    settle(&mut tree, &mut model, Instant::now());
    tree.absorb(Inbox { puts: desired(), ..Inbox::default() });
    assert!(!tree.busy(), "the same again is no change");
    assert_eq!(tree.writes, writes);
    assert_eq!(tree.events, [RegistryEvent::Synced, RegistryEvent::Synced]);
}

#[test]
fn a_known_node_is_written_without_reading_it_first() {
    let (mut tree, mut model) = (tree(), Model::new());
    settle(&mut tree, &mut model, Instant::now());
    let requests = model.requests;
    let node = Node { mode: Mode::Persistent, content: "new".into() };
    let puts = BTreeMap::from([("/y/servers/1/instances/1:10/info".to_owned(), node)]);
    tree.absorb(Inbox { puts, ..Inbox::default() });
    settle(&mut tree, &mut model, Instant::now());
    assert_eq!(model.requests, requests + 1);
}

#[test]
fn our_previous_runs_ephemeral_is_replaced_at_once() {
    let (mut tree, mut model) = (tree(), Model::new());
    model.has(ACTIVE, &active("h", "before"), 99);
    settle(&mut tree, &mut model, Instant::now());
    assert_whole(&model);
    assert_eq!(tree.events, [RegistryEvent::Synced]);
}

#[test]
fn our_own_earlier_sessions_ephemeral_is_replaced_even_after_we_held_it() {
    let (mut tree, mut model) = (tree(), Model::new());
    settle(&mut tree, &mut model, Instant::now());
    model.session = 2;
    tree.begin();
    settle(&mut tree, &mut model, Instant::now());
    assert_whole(&model);
}

#[test]
fn another_agent_gets_a_timeout_to_go_then_is_told_of_once_and_never_fought() {
    let (mut tree, mut model) = (tree(), Model::new());
    model.has(ACTIVE, &active("other", "x"), 99);
    let start = Instant::now();
    for second in 0..20 {
        tree.heartbeat();
        settle(&mut tree, &mut model, start + Duration::from_secs(second));
        let told = tree.events.iter().any(|event| matches!(event, RegistryEvent::Conflict { .. }));
        assert_eq!(told, second >= TIMEOUT.as_secs(), "after {second} s");
    }
    assert_eq!(model.nodes[ACTIVE].owner, 99);
    assert_eq!(tree.events.len(), 1, "{:?}", tree.events);
    assert_eq!(tree.behind(), 1);
    model.vanish(ACTIVE);
    tree.heartbeat();
    settle(&mut tree, &mut model, start);
    assert_whole(&model);
    let over = RegistryEvent::ConflictOver { path: ACTIVE.into() };
    assert_eq!(tree.events[1..], [over, RegistryEvent::Synced]);
}

#[test]
fn a_stranger_with_our_hosts_id_that_appears_after_us_is_alive_and_not_fought() {
    let (mut tree, mut model) = (tree(), Model::new());
    let start = Instant::now();
    settle(&mut tree, &mut model, start);
    model.has(ACTIVE, &active("h", "a clone's"), 99);
    tree.heartbeat();
    settle(&mut tree, &mut model, start);
    tree.heartbeat();
    settle(&mut tree, &mut model, start + TIMEOUT);
    assert_eq!(model.nodes[ACTIVE].owner, 99);
    assert!(matches!(tree.events.last(), Some(RegistryEvent::Conflict { .. })));
}

#[test]
fn a_persistent_node_in_an_ephemerals_place_is_replaced_unless_it_has_children() {
    let (mut tree, mut model) = (tree(), Model::new());
    model.has(ACTIVE, "by hand", 0);
    settle(&mut tree, &mut model, Instant::now());
    assert_whole(&model);
    model.vanish(ACTIVE);
    model.has(&format!("{ACTIVE}/child"), "by hand", 0);
    settle(&mut tree, &mut model, Instant::now());
    tree.heartbeat();
    settle(&mut tree, &mut model, Instant::now());
    assert!(matches!(tree.events.last(), Some(RegistryEvent::Refused { .. })), "{:?}", tree.events);
    assert!(model.nodes.contains_key(&format!("{ACTIVE}/child")));
}

#[test]
fn a_refusal_is_told_once_tried_at_each_heartbeat_and_told_when_over() {
    let (mut tree, mut model) = (tree(), Model::new());
    model.denied.insert(format!("{INSTANCES}/1:20"));
    settle(&mut tree, &mut model, Instant::now());
    for _ in 0..3 {
        assert!(tree.heartbeat());
        settle(&mut tree, &mut model, Instant::now());
    }
    assert_eq!(tree.events.len(), 1, "{:?}", tree.events);
    assert_eq!(tree.behind(), 1);
    model.denied.clear();
    tree.heartbeat();
    settle(&mut tree, &mut model, Instant::now());
    let over = RegistryEvent::RefusedOver { path: format!("{INSTANCES}/1:20") };
    assert_eq!(tree.events[1..], [over, RegistryEvent::Synced]);
    assert_whole(&model);
}

#[test]
fn only_stale_nodes_of_this_host_are_pruned() {
    let (mut tree, mut model) = (tree(), Model::new());
    for name in ["1:99/info", "1:98", "1:x", "1:", "11:99", "2:99"] {
        model.has(&format!("{INSTANCES}/{name}"), "old", 0);
    }
    settle(&mut tree, &mut model, Instant::now());
    assert_whole(&model);
    let left: Vec<&str> =
        model.nodes.keys().filter_map(|path| path.strip_prefix("/y/servers/1/instances/")).collect();
    assert_eq!(left, ["11:99", "1:", "1:10", "1:10/info", "1:20", "1:x", "2:99"]);
}

#[test]
fn a_removal_takes_all_below_but_what_is_wanted_again_and_what_is_anothers() {
    let (mut tree, mut model) = (tree(), Model::new());
    settle(&mut tree, &mut model, Instant::now());
    model.has(&format!("{INSTANCES}/1:10/theirs"), &active("other", "x"), 99);
    let again = Node { mode: Mode::Persistent, content: "again".into() };
    tree.absorb(Inbox {
        removals: BTreeSet::from([INSTANCES.to_owned()]),
        puts: BTreeMap::from([(format!("{INSTANCES}/1:30"), again)]),
        ..Inbox::default()
    });
    settle(&mut tree, &mut model, Instant::now());
    let left: Vec<&str> =
        model.nodes.keys().filter_map(|path| path.strip_prefix("/y/servers/1/instances/")).collect();
    assert_eq!(left, ["1:10", "1:10/theirs", "1:30"]);
    model.vanish(&format!("{INSTANCES}/1:10/theirs"));
    tree.heartbeat();
    settle(&mut tree, &mut model, Instant::now());
    assert!(!model.nodes.contains_key(&format!("{INSTANCES}/1:10")));
    assert_eq!(tree.behind(), 0);
}

#[test]
fn what_vandals_do_is_repaired_within_a_few_heartbeats() {
    let (mut tree, mut model) = (tree(), Model::new());
    settle(&mut tree, &mut model, Instant::now());
    for path in desired().keys() {
        model.has(path, "vandalised", 0);
        for _ in 0..4 {
            tree.heartbeat();
            settle(&mut tree, &mut model, Instant::now());
        }
        assert_whole(&model);
    }
}

#[test]
fn many_ephemerals_are_verified_in_turn_and_put_right_where_no_watch_told() {
    let (mut tree, mut model, now) = (Tree::new("h".into()), Model::new(), Instant::now());
    let node = Node { mode: Mode::Ephemeral, content: active("h", "now").into() };
    let paths: Vec<String> = (0..40).map(|port| format!("/y/members/1:{port}")).collect();
    let puts = paths.iter().map(|path| (path.clone(), node.clone())).collect();
    tree.absorb(Inbox { puts, ..Inbox::default() });
    settle(&mut tree, &mut model, now);
    let requests = model.requests;
    tree.heartbeat();
    settle(&mut tree, &mut model, now);
    assert_eq!(model.requests - requests, 10, "a quarter");
    model.nodes.retain(|path, _| !paths.contains(path));
    for _ in 0..4 {
        assert!(paths.iter().any(|path| !model.nodes.contains_key(path)));
        tree.heartbeat();
        settle(&mut tree, &mut model, now);
    }
    assert!(paths.iter().all(|path| model.nodes.contains_key(path)));
}

#[test]
fn a_path_that_loses_every_connection_does_not_hold_up_the_rest() {
    let (mut tree, mut model) = (tree(), Model::new());
    let first = desired().keys().next().cloned();
    for _ in 0..SUSPICIOUS {
        model.loses = Some((1, Dice(1)));
        assert!(tree.step(&mut model, Instant::now()).is_err());
        assert_eq!(tree.at_work, first);
        tree.begin();
    }
    model.loses = None;
    settle(&mut tree, &mut model, Instant::now());
    assert!(model.nodes.contains_key(ACTIVE));
    assert_eq!(tree.behind(), 1);
    tree.heartbeat();
    settle(&mut tree, &mut model, Instant::now());
    assert_whole(&model);
}

#[test]
fn connections_lost_at_any_request_and_vandals_at_any_time_leave_the_tree_whole_in_the_end() {
    for seed in 0..400 {
        let (mut tree, mut model, mut dice) = (tree(), Model::new(), Dice(seed));
        model.loses = Some((6, Dice(seed + 1000)));
        let now = Instant::now();
        for _ in 0..120 {
            let paths: Vec<String> = model.nodes.keys().cloned().collect();
            match dice.roll(12) {
                0 if !paths.is_empty() => model.vanish(&paths[dice.roll(paths.len() as u64) as usize]),
                1 => model.has(&format!("{INSTANCES}/1:{}", dice.roll(40)), "stray", 0),
                2 => {
                    // The session expires, as the server does it: its ephemerals go.
                    let ours = model.session;
                    model.nodes.retain(|_, seen| seen.owner != ours);
                    model.session += 1;
                    tree.begin();
                }
                3 => {
                    tree.heartbeat();
                }
                _ => {}
            }
            for path in mem::take(&mut model.fired) {
                tree.touched(&path);
            }
            if tree.step(&mut model, now).is_err() {
                model.watches.clear();
                tree.begin();
            }
        }
        model.loses = None;
        tree.begin();
        for _ in 0..4 {
            tree.heartbeat();
            settle(&mut tree, &mut model, now);
        }
        assert_whole(&model);
        let strays = model
            .nodes
            .keys()
            .filter(|path| path.starts_with(INSTANCES) && path.as_str() != INSTANCES)
            .count();
        assert_eq!(strays, 3, "seed {seed}: {:?}", model.nodes.keys());
        assert_eq!(tree.behind(), 0, "seed {seed}");
    }
}
