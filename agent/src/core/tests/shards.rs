//! Members of shards among a host's instances: who hears what, and what becomes of it.

use serde_json::json;

use super::*;
use crate::{
    core::failover::{Order, Ordered, Role, Timing, View, Wish},
    shell::registry::{Answer, Found, Request, SessionFacts},
};

const SHARD: &str = "/redis/shards/10.0.0.1:16379";
const SESSION: i64 = 7;

fn timing() -> Timing {
    Timing {
        session: 30 * SECOND,
        lease: 15 * SECOND,
        check: 5 * SECOND,
        fence: 3 * SECOND,
        tick: 2 * SECOND,
        beat: SECOND,
        silence: MINUTE,
        order: SECOND,
    }
}

/// A memcached, and so many redis with one peer.
fn peered(count: u32) -> HostPlan {
    let mut plan = with_redis(1);
    let redis = plan.engines.last_mut().unwrap();
    redis.count = count;
    redis.shards = Some(ShardSettings {
        root: "/redis/shards".to_owned(),
        peers: vec![[10, 0, 0, 2].into()],
        timing: timing(),
        fencing: true,
        failsafe: true,
        max_lag: 1 << 20,
        min_replicas: 1,
    });
    plan
}

/// A registry beside the bench, which answers when it is asked to: nodes with their versions, ephemeral ones ours.
#[derive(Default)]
struct Tree {
    nodes: BTreeMap<String, (Found, bool)>,
    /// Requests that were not answered yet.
    asked: Vec<(u64, Request)>,
    /// Paths that were read and have not changed since.
    watched: BTreeSet<String>,
    /// Those that have.
    changed: Vec<String>,
}

impl Tree {
    fn listen(&mut self, bench: &mut Bench) {
        let requests = bench.done.iter().filter_map(|(_, action)| match action {
            Action::Request { token, request } => Some((*token, request.clone())),
            _ => None,
        });
        self.asked.extend(requests);
        bench.done.retain(|(_, action)| !matches!(action, Action::Request { .. }));
    }

    fn carry_out(&mut self, bench: &mut Bench, token: u64, request: Request) {
        let answer = self.answer(request);
        for path in std::mem::take(&mut self.changed) {
            bench.send(Event::Registry(RegistryEvent::Changed { path }));
        }
        bench.send(Event::Registry(RegistryEvent::Answered { token, answer }));
    }

    fn answer(&mut self, request: Request) -> Answer {
        if let Request::Create { path, .. } | Request::Write { path, .. } | Request::Delete { path, .. } =
            &request
            && self.watched.remove(path)
        {
            self.changed.push(path.clone());
        }
        match request {
            Request::Read { path } => {
                self.watched.insert(path.clone());
                Answer::Node(self.nodes.get(&path).map(|(found, _)| found.clone()))
            }
            Request::Children { .. } => Answer::Names(None),
            Request::Create { path, node } => {
                let ephemeral = node.mode == Mode::Ephemeral;
                let found =
                    Found { content: node.content, version: 0, owner: if ephemeral { SESSION } else { 0 } };
                self.nodes.insert(path, (found, ephemeral));
                Answer::Created
            }
            Request::Write { path, content, version } => match self.nodes.get_mut(&path) {
                Some((found, _)) if found.version == version => {
                    (found.content, found.version) = (content, version + 1);
                    Answer::Written(found.version)
                }
                _ => Answer::Stale,
            },
            Request::Delete { path, .. } => {
                self.nodes.remove(&path).map_or(Answer::Stale, |_| Answer::Deleted)
            }
        }
    }

    /// Answers all that is asked, and what that leads to.
    fn serve(&mut self, bench: &mut Bench) {
        for _ in 0..50 {
            self.listen(bench);
            self.mirror(bench);
            if self.asked.is_empty() {
                return;
            }
            for (token, request) in std::mem::take(&mut self.asked) {
                self.carry_out(bench, token, request);
            }
        }
        panic!("the members never come to rest: {:?}", self.asked);
    }

    /// The connection is gone: nothing that is asked is answered as it should be.
    fn lose(&mut self, bench: &mut Bench) {
        self.listen(bench);
        self.watched.clear();
        bench.send(Event::Registry(RegistryEvent::Lost { why: "closed".to_owned() }));
        for (token, _) in std::mem::take(&mut self.asked) {
            bench.send(Event::Registry(RegistryEvent::Answered { token, answer: Answer::Lost }));
        }
    }

    /// Answers all that is asked; those who delete hear that the connection is gone, and nothing is deleted.
    fn serve_but_lose_deletes(&mut self, bench: &mut Bench) {
        loop {
            self.listen(bench);
            let Some(at) = self.asked.iter().position(|(_, r)| !matches!(r, Request::Delete { .. })) else {
                return self.lose(bench);
            };
            let (token, request) = self.asked.remove(at);
            self.carry_out(bench, token, request);
        }
    }

    /// What the session thread makes of the desired tree.
    fn mirror(&mut self, bench: &Bench) {
        let members = bench.tree.iter().filter(|(path, _)| path.starts_with("/redis/shards/"));
        for (path, node) in members {
            let found = Found { content: node.content.clone(), version: 0, owner: SESSION };
            self.nodes.insert(path.clone(), (found, true));
        }
    }

    fn phase(&self) -> Option<String> {
        let (state, _) = self.nodes.get(&format!("{SHARD}/state"))?;
        let state: serde_json::Value = serde_json::from_slice(&state.content).unwrap();
        Some(state["phase"].as_str().unwrap().to_owned())
    }

    fn is_locked(&self) -> bool {
        self.nodes.contains_key(&format!("{SHARD}/lock"))
    }
}

fn orders(bench: &mut Bench) -> Vec<(InstanceId, Order)> {
    let orders = bench.done.iter().filter_map(|(_, action)| match action {
        Action::Order { id, order, .. } => Some((*id, order.clone())),
        _ => None,
    });
    let orders = orders.collect();
    bench.done.retain(|(_, action)| !matches!(action, Action::Order { .. }));
    orders
}

/// A redis that does as it is told.
#[derive(Default)]
struct Server {
    master: bool,
}

impl Server {
    fn obey(&mut self, bench: &mut Bench, tree: &mut Tree) {
        for _ in 0..50 {
            tree.serve(bench);
            let orders = orders(bench);
            if orders.is_empty() {
                return;
            }
            for (id, order) in orders {
                match order {
                    Order::Promote => self.master = true,
                    Order::Follow { .. } => self.master = false,
                    _ => {}
                }
                let view = (order == Order::Inspect).then(|| Box::new(self.view()));
                bench.send(Event::Ordered { id, ordered: Ordered::Done(view) });
            }
        }
        panic!("the orders never end");
    }

    fn view(&self) -> View {
        View {
            role: if self.master { Role::Master } else { Role::Replica },
            master: (!self.master).then(|| "127.0.0.1:1".to_owned()),
            replid: "a".to_owned(),
            offset: 100,
            keys: 3,
            priority: 100,
            run_id: "r".to_owned(),
            ..View::default()
        }
    }
}

fn facts(bench: &Bench) -> Event {
    let (timeout, acknowledged) = (30 * SECOND, Some(bench.now().at));
    Event::Session(Some(SessionFacts { session: SESSION, timeout, read_only: false, acknowledged }))
}

fn back(bench: &mut Bench) {
    bench.send(facts(bench));
    bench.send(Event::Registry(connected()));
}

/// A host whose redis leads its shard; its peer's agent was never seen.
fn leading() -> (Bench, Tree, Server) {
    let (mut bench, mut tree, mut server) = (Bench::new(&peered(1)), Tree::default(), Server::default());
    back(&mut bench);
    bench.configure(&peered(1));
    bench.serve(mc(11211));
    bench.serve(redis(16379));
    bench.send(Event::Fencer { id: redis(16379), armed: true });
    for _ in 0..80 {
        server.obey(&mut bench, &mut tree);
        bench.pass(SECOND);
        bench.send(facts(&bench));
    }
    server.obey(&mut bench, &mut tree);
    assert_eq!((tree.phase().as_deref(), tree.is_locked(), server.master), (Some("done"), true, true));
    bench.done.clear();
    (bench, tree, server)
}

fn starts(bench: &Bench) -> Vec<(InstanceId, Option<(String, u16)>)> {
    let of = |action: &Action| match action {
        Action::Start { id, follow, .. } => Some((*id, follow.clone())),
        _ => None,
    };
    bench.done.iter().filter_map(|(_, action)| of(action)).collect()
}

fn nowhere() -> Option<(String, u16)> {
    Some(("127.0.0.1".to_owned(), 1))
}

#[test]
fn members_start_as_replicas_of_nobody_and_others_as_they_are() {
    let mut bench = Bench::new(&peered(2));
    bench.configure(&peered(2));
    let expected = [(mc(11211), None), (redis(16379), nowhere()), (redis(16389), nowhere())];
    assert_eq!(starts(&bench), expected);
    let shards = bench.core.shards(bench.now());
    let ids: Vec<&str> = shards.iter().map(|shard| shard.id.as_str()).collect();
    assert_eq!(ids, ["10.0.0.1:16379", "10.0.0.1:16389"]);
    let mut alone = Bench::new(&with_redis(1));
    alone.configure(&with_redis(1));
    assert_eq!(starts(&alone), [(mc(11211), None), (redis(16379), None)]);
}

#[test]
fn addresses_are_written_as_the_servers_write_them_and_the_smallest_names_the_shard() {
    let mut plan = peered(1);
    plan.identity.ip = "2001:db8::2".to_owned();
    let settings = plan.engines[1].shards.as_mut().unwrap();
    settings.peers = ["2001:db8::10", "2001:db8::1"].map(|ip| ip.parse().unwrap()).to_vec();
    let mut bench = Bench::new(&plan);
    bench.configure(&plan);
    let shard = bench.core.shards(bench.now()).remove(0);
    assert_eq!((shard.id.as_str(), shard.address.as_str()), ("[2001:db8::1]:16379", "[2001:db8::2]:16379"));
}

#[test]
fn each_answer_and_each_change_reaches_the_member_that_it_is_for() {
    let mut bench = Bench::new(&peered(2));
    back(&mut bench);
    bench.configure(&peered(2));
    let mut tree = Tree::default();
    tree.listen(&mut bench);
    let tokens: BTreeSet<u64> = tree.asked.iter().map(|(token, _)| *token).collect();
    assert_eq!(tokens.len(), tree.asked.len(), "no token stands for two requests");
    let of = |shard: &str, asked: &[(u64, Request)]| {
        let path = format!("/redis/shards/10.0.0.1:{shard}/");
        asked.iter().filter(|(_, r)| matches!(r, Request::Read { path: p } if p.starts_with(&path))).count()
    };
    let counts = (of("16379", &tree.asked), of("16389", &tree.asked));
    assert!(counts.0 > 3 && counts.0 == counts.1, "{:?}", tree.asked);
    tree.serve(&mut bench);
    bench.send(Event::Registry(RegistryEvent::Changed { path: format!("{SHARD}/state") }));
    tree.listen(&mut bench);
    let read: Vec<&Request> = tree.asked.iter().map(|(_, request)| request).collect();
    assert_eq!(read, [&Request::Read { path: format!("{SHARD}/state") }]);
}

#[test]
fn a_member_leads_with_a_lease_and_keeps_its_node_in_the_tree() {
    let (mut bench, tree, _) = leading();
    let shard = bench.core.shards(bench.now()).remove(0);
    assert_eq!(shard.state.unwrap().master, "10.0.0.1:16379");
    assert!(shard.lease_s.is_some_and(|left| left > 0.0 && left <= 15.0), "{:?}", shard.lease_s);
    let node = format!("{SHARD}/members/10.0.0.1:16379");
    assert_eq!(bench.tree.get(&node).unwrap().mode, Mode::Ephemeral);
    assert!(tree.nodes.contains_key(&node));
    // The new plan prunes nothing of it.
    let mut plan = peered(1);
    plan.engines[0].count = 2;
    bench.configure(&plan);
    assert!(bench.tree.contains_key(&node));
}

/// A server that follows the other host's, as its shard's `state` says.
fn follower(id: InstanceId, tree: &mut Tree) -> View {
    let master = format!("10.0.0.2:{}", id.port);
    let of_other = |path: &str, content: serde_json::Value| {
        let found = Found { content: content.to_string().into_bytes(), version: 0, owner: 9 };
        (format!("/redis/shards/10.0.0.1:{}/{path}", id.port), (found, true))
    };
    tree.nodes.extend([
        of_other("lock", json!({"v": 1, "address": master, "host_id": "h", "nonce": "n", "epoch": 3})),
        of_other("state", json!({"v": 1, "epoch": 3, "master": master, "phase": "done", "replid": "a"})),
    ]);
    View { master: Some(master), link_up: true, ..Server::default().view() }
}

#[test]
fn members_of_one_host_look_at_their_servers_together_and_no_more_often() {
    let (mut bench, mut tree) = (Bench::new(&peered(8)), Tree::default());
    back(&mut bench);
    bench.configure(&peered(8));
    let ids: Vec<InstanceId> = (0..8).map(|index| redis(16379 + 10 * index)).collect();
    let views: BTreeMap<InstanceId, View> = ids.iter().map(|id| (*id, follower(*id, &mut tree))).collect();
    let mut looks: BTreeMap<InstanceId, Vec<Duration>> = BTreeMap::new();
    let mut pass = |bench: &mut Bench, long: Duration| {
        let end = bench.at + long;
        while bench.at < end {
            tree.serve(bench);
            for (id, order) in orders(bench) {
                let looked = order == Order::Inspect;
                if looked {
                    looks.entry(id).or_default().push(bench.at);
                }
                let view = looked.then(|| Box::new(views[&id].clone()));
                bench.send(Event::Ordered { id, ordered: Ordered::Done(view) });
            }
            bench.pass(SECOND / 100);
        }
    };
    for id in &ids {
        bench.serve(*id);
        pass(&mut bench, SECOND * 7 / 10);
    }
    pass(&mut bench, 20 * SECOND);
    let settled = bench.at;
    pass(&mut bench, 20 * SECOND);
    let since = |looks: &[Duration]| looks.iter().copied().filter(|at| *at >= settled).collect::<Vec<_>>();
    let moments: BTreeSet<Duration> = looks.values().flat_map(|looks| since(looks)).collect();
    for (id, looks) in &looks {
        assert_eq!(since(looks).len(), 4, "{id:?}: one each check");
        let longest = looks.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
        assert!(longest <= 5 * SECOND + SECOND / 50, "{id:?}: {longest:?}");
    }
    assert!(moments.len() <= 4 * 3, "{} moments for {} looks: {moments:?}", moments.len(), 4 * ids.len());
}

#[test]
fn a_dead_master_is_released_and_restarted_as_a_replica_in_one_step() {
    let (mut bench, mut tree, mut server) = leading();
    bench.die(redis(16379));
    assert_eq!(starts(&bench), [(redis(16379), nowhere())]);
    server.master = false;
    server.obey(&mut bench, &mut tree);
    assert_eq!((tree.phase().as_deref(), tree.is_locked()), (Some("released"), false));
    assert!(bench.done.iter().any(|(_, a)| matches!(a, Action::Lease { until: None, .. })));
}

#[test]
fn a_lease_that_runs_out_fences_at_once_when_the_loop_was_late() {
    let (mut bench, _, _) = leading();
    bench.stand_still(20 * SECOND);
    bench.send(Event::Tick);
    let first = bench.done.iter().find_map(|(_, action)| match action {
        Action::Order { order, deadline, .. } => Some((order.clone(), *deadline)),
        Action::Converse { .. } => panic!("it probed before it fenced"),
        _ => None,
    });
    let (order, deadline) = first.unwrap();
    assert!(matches!(order, Order::Fence { .. }), "{order:?}");
    assert!(deadline <= bench.now().at + 3 * SECOND / 2, "half of the fence time is left for SIGKILL");
}

#[test]
fn a_member_that_is_taken_out_of_the_plan_gives_the_lock_back_when_its_server_has_ended() {
    let (mut bench, mut tree, mut server) = leading();
    for plan in [plan(1), {
        let mut off = peered(1);
        off.engines[1].count = 0;
        off
    }] {
        bench.configure(&plan);
        assert_eq!(bench.terminated().len(), 1);
        server.obey(&mut bench, &mut tree);
        assert_eq!(
            (tree.phase().as_deref(), tree.is_locked()),
            (Some("done"), true),
            "its server still runs"
        );
    }
    bench.die(redis(16379));
    server.obey(&mut bench, &mut tree);
    assert_eq!((tree.phase().as_deref(), tree.is_locked()), (Some("released"), false));
    assert!(bench.core.shards(bench.now()).is_empty());
    assert!(!bench.tree.contains_key(&format!("{SHARD}/members/10.0.0.1:16379")));
    assert!(!bench.alerts().iter().any(|key| key.ends_with("10.0.0.1:16379")), "{:?}", bench.alerts());
}

#[test]
fn a_lock_is_given_back_even_where_the_registry_was_away_when_its_member_went() {
    let (mut bench, mut tree, mut server) = leading();
    let mut off = peered(1);
    off.engines[1].count = 0;
    bench.configure(&off);
    tree.lose(&mut bench);
    bench.die(redis(16379));
    bench.pass(3 * SECOND);
    assert!(tree.is_locked());
    back(&mut bench);
    // The answer to the first attempt is lost as well.
    tree.serve_but_lose_deletes(&mut bench);
    assert!(tree.is_locked());
    back(&mut bench);
    server.obey(&mut bench, &mut tree);
    assert_eq!((tree.phase().as_deref(), tree.is_locked()), (Some("released"), false));
    bench.pass(3 * SECOND);
    tree.listen(&mut bench);
    assert_eq!(tree.asked, [], "nobody is left to ask anything");
}

#[test]
fn a_wish_names_a_shard_by_its_id_a_member_or_a_port() {
    let (mut bench, _, _) = leading();
    let now = bench.now();
    let wish = || Wish::Resume { host: true };
    for name in ["10.0.0.1:16379", "10.0.0.2:16379", "16379"] {
        let (outcome, _) = bench.core.wish(now, name, wish());
        assert_ne!(outcome, Err(format!("no shard of this host is named {name}")));
    }
    for name in ["10.0.0.1:11211", "11211", "x", ""] {
        let (outcome, actions) = bench.core.wish(now, name, wish());
        assert_eq!((outcome, actions), (Err(format!("no shard of this host is named {name}")), Vec::new()));
    }
}
