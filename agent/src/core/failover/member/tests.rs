//! Members of a shard in a world where everything answers at once; the simulation has the world where it doesn't.

use std::collections::{BTreeMap, VecDeque};

use super::*;
use crate::{
    core::failover::{HistoryEntry, IntentKind, Replica, Timing, shard::decode},
    shell::registry::{Answer, Found, Mode, Request},
};

#[derive(Clone, Debug)]
struct Server {
    up: bool,
    master: bool,
    follows: String,
    replid: String,
    replid2: String,
    offset: i64,
    keys: u64,
    paused: bool,
    min_replicas: u32,
    priority: u32,
    /// When its whole copy began.
    copies: Option<Duration>,
    /// When it last got something of its master.
    heard: Duration,
}

#[derive(Clone, Debug)]
struct ZNode {
    content: Vec<u8>,
    version: i32,
    owner: i64,
}

struct Host {
    member: Member,
    address: String,
    server: Server,
    session: i64,
    agent: bool,
    linked: bool,
    /// Its fencer was told of a lease.
    fed: bool,
    /// Its server tells nothing of itself.
    mute: bool,
    /// What its server answers to the order to be a master is not heard.
    unheard: bool,
    /// What its server does not take.
    refuses: fn(&Order) -> bool,
    /// Its server gets nothing of what its master writes.
    stuck: bool,
    /// Its agent dies when it has made its server a master.
    doomed: bool,
    /// Its server's link to its master is down.
    link_down: bool,
    watches: Vec<String>,
    alerts: Vec<&'static str>,
    /// All that ever began.
    told: Vec<&'static str>,
    log: Vec<String>,
}

struct World {
    base: Instant,
    t: Duration,
    /// How much the wall clocks are set back, in milliseconds.
    set_back: u64,
    hosts: Vec<Host>,
    nodes: BTreeMap<String, ZNode>,
    sessions: i64,
    histories: u32,
    inputs: VecDeque<(usize, Input)>,
    busy: bool,
    /// How long a whole copy takes.
    copy: Duration,
    /// Whoever hands over is not told that it did, and is cut off from the registry.
    cut_after_handover: bool,
    /// `state` as it was before that.
    before_handover: Option<ZNode>,
    /// What the first host's server of the registry still shows as `state`.
    lagging: Option<ZNode>,
    /// Changes of a node with one of these fields, or words, are refused.
    refused: &'static [&'static str],
    /// Nodes whose paths end so are neither to be made nor to be removed.
    forbidden: Option<&'static str>,
    /// No history has a name.
    nameless: bool,
}

fn timing() -> Timing {
    let s = Duration::from_secs;
    Timing {
        session: s(30),
        lease: s(15),
        check: s(5),
        fence: s(3),
        tick: s(2),
        beat: s(1),
        silence: s(60),
        order: s(1),
    }
}

fn address(i: usize) -> String {
    format!("10.0.0.{}:6379", i + 1)
}

fn plan(i: usize, count: usize) -> ShardPlan {
    ShardPlan {
        root: "/redis/shards".into(),
        address: address(i),
        members: (0..count).map(address).collect(),
        host_id: format!("host{i}"),
        nonce: format!("run{i}"),
        timing: timing(),
        fencing: true,
        failsafe: true,
        max_lag: 1 << 20,
        min_replicas: 1,
    }
}

fn is_unfence(order: &Order) -> bool {
    matches!(order, Order::Unfence { .. })
}

const SHARD: &str = "/redis/shards/10.0.0.1:6379";

impl World {
    /// Hosts whose servers have so many keys, all of one history.
    fn new(keys: &[u64]) -> World {
        let base = Instant::now();
        let now = Now { at: base, unix_ms: 0 };
        let count = keys.len();
        let host = |(i, keys): (usize, &u64)| Host {
            member: Member::new(now, plan(i, count)),
            address: address(i),
            server: Server {
                up: true,
                master: false,
                follows: "127.0.0.1:1".into(),
                replid: "first".into(),
                replid2: String::new(),
                offset: 0,
                keys: *keys,
                paused: false,
                min_replicas: 0,
                priority: 100,
                copies: None,
                heard: Duration::ZERO,
            },
            session: 0,
            agent: true,
            linked: true,
            fed: false,
            mute: false,
            unheard: false,
            refuses: |_| false,
            stuck: false,
            doomed: false,
            link_down: false,
            watches: Vec::new(),
            alerts: Vec::new(),
            told: Vec::new(),
            log: Vec::new(),
        };
        let hosts = keys.iter().enumerate().map(host).collect();
        let mut world = World {
            base,
            t: Duration::ZERO,
            set_back: 0,
            hosts,
            nodes: BTreeMap::new(),
            sessions: 100,
            histories: 0,
            inputs: VecDeque::new(),
            busy: false,
            copy: Duration::ZERO,
            cut_after_handover: false,
            before_handover: None,
            lagging: None,
            refused: &[],
            forbidden: None,
            nameless: false,
        };
        for i in 0..world.hosts.len() {
            world.connect(i);
            world.give(i, Input::Fencer(true));
            world.give(i, Input::Server(Life::Started));
            world.give(i, Input::Server(Life::Up));
        }
        world.settle();
        world
    }

    fn now(&self) -> Now {
        Now {
            at: self.base + self.t,
            unix_ms: (1 << 40) + u64::try_from(self.t.as_millis()).unwrap() - self.set_back,
        }
    }

    fn connect(&mut self, i: usize) {
        self.sessions += 1;
        self.hosts[i].session = self.sessions;
        self.hosts[i].linked = true;
        self.hosts[i].watches.clear();
        self.hear(i);
        self.give(i, Input::Connected);
        // The desired tree's session thread.
        if let Some(node) = self.hosts[i].member.published.clone() {
            self.put_member(i, encode(&node));
        }
    }

    fn hear(&mut self, i: usize) {
        let acknowledged = Some(self.now().at);
        let facts = SessionFacts {
            session: self.hosts[i].session,
            timeout: timing().session,
            read_only: false,
            acknowledged,
        };
        self.give(i, Input::Session(Some(facts)));
    }

    fn expire(&mut self, i: usize) {
        let session = self.hosts[i].session;
        let gone: Vec<String> = self
            .nodes
            .iter()
            .filter(|(_, node)| node.owner == session)
            .map(|(path, _)| path.clone())
            .collect();
        for path in gone {
            self.nodes.remove(&path);
            self.changed(&path);
        }
    }

    fn changed(&mut self, path: &str) {
        for i in 0..self.hosts.len() {
            let host = &mut self.hosts[i];
            if host.watches.iter().any(|watch| watch == path) && host.linked && host.agent {
                host.watches.retain(|watch| watch != path);
                self.give(i, Input::Changed { path: path.to_owned() });
            }
        }
    }

    fn put_member(&mut self, i: usize, content: Vec<u8>) {
        let path = format!("{SHARD}/members/{}", self.hosts[i].address);
        let owner = self.hosts[i].session;
        self.nodes.insert(path.clone(), ZNode { content, version: 0, owner });
        self.changed(&path);
    }

    fn give(&mut self, i: usize, input: Input) {
        self.inputs.push_back((i, input));
        if !std::mem::replace(&mut self.busy, true) {
            self.pump();
        }
    }

    fn pump(&mut self) {
        let mut steps = 0;
        while let Some((i, input)) = self.inputs.pop_front() {
            steps += 1;
            assert!(steps < 2000, "a spin: {input:?}\n{}", self.story());
            if self.hosts[i].agent {
                let now = self.now();
                let commands = self.hosts[i].member.step(now, input);
                commands.into_iter().for_each(|command| self.carry_out(i, command));
            }
        }
        self.busy = false;
    }

    fn wish(&mut self, i: usize, wish: Wish) {
        let now = self.now();
        let commands = self.hosts[i].member.wish(now, wish).unwrap();
        self.busy = true;
        commands.into_iter().for_each(|command| self.carry_out(i, command));
        self.pump();
    }

    fn carry_out(&mut self, i: usize, command: Command) {
        match command {
            Command::Request(request, what) => {
                let hands_over = matches!(&what, Request::Write { content, .. }
                    if decode::<ShardState>(content).is_some_and(|state| state.handover.is_some()));
                if hands_over && self.cut_after_handover {
                    self.before_handover = self.nodes.get(&format!("{SHARD}/state")).cloned();
                }
                let mut answer = if self.hosts[i].linked { self.answer(i, what) } else { Answer::Lost };
                if hands_over && self.cut_after_handover {
                    self.hosts[i].linked = false;
                    answer = Answer::Lost;
                    self.give(i, Input::Lost);
                }
                self.give(i, Input::Answered { request, answer });
            }
            Command::Publish(content) => {
                if self.hosts[i].linked {
                    self.put_member(i, content);
                }
            }
            Command::Order { order, .. } => {
                let ordered = self.obey(i, order);
                self.give(i, Input::Ordered(ordered));
            }
            Command::Fire { what, .. } => {
                self.hosts[i].alerts.retain(|alert| *alert != what);
                self.hosts[i].alerts.push(what);
                self.hosts[i].told.push(what);
            }
            Command::Resolve { what, .. } => self.hosts[i].alerts.retain(|alert| *alert != what),
            Command::Log(_, text) => self.hosts[i].log.push(format!("{:.3} {text}", self.t.as_secs_f64())),
            Command::Kill => self.kill(i),
            Command::Lease(Some(_)) | Command::Grace(_) => self.hosts[i].fed = true,
            Command::Lease(None) => self.hosts[i].fed = false,
        }
    }

    fn answer(&mut self, i: usize, request: Request) -> Answer {
        let found =
            |node: &ZNode| Found { content: node.content.clone(), version: node.version, owner: node.owner };
        match request {
            Request::Read { path } => {
                self.hosts[i].watches.push(path.clone());
                if let Some(old) = self.lagging.as_ref().filter(|_| i == 0 && path.ends_with("/state")) {
                    return Answer::Node(Some(found(old)));
                }
                Answer::Node(self.nodes.get(&path).map(found))
            }
            Request::Create { path, .. } | Request::Delete { path, .. }
                if self.forbidden.is_some_and(|end| path.ends_with(end)) =>
            {
                Answer::Refused("NoAuth".into())
            }
            Request::Create { path, .. } if self.nodes.contains_key(&path) => Answer::Exists,
            Request::Create { path, node } => {
                let owner = if node.mode == Mode::Ephemeral { self.hosts[i].session } else { 0 };
                self.nodes.insert(path.clone(), ZNode { content: node.content, version: 0, owner });
                self.changed(&path);
                Answer::Created
            }
            Request::Write { content, .. } if self.refused.iter().any(|field| has(&content, field)) => {
                Answer::Refused("NoAuth".into())
            }
            Request::Write { path, content, version } => match self.nodes.get_mut(&path) {
                Some(node) if node.version == version => {
                    node.content = content;
                    node.version += 1;
                    let version = node.version;
                    self.changed(&path);
                    Answer::Written(version)
                }
                _ => Answer::Stale,
            },
            Request::Delete { path, .. } => {
                let there = self.nodes.remove(&path).is_some();
                self.changed(&path);
                if there { Answer::Deleted } else { Answer::Stale }
            }
            Request::Children { .. } => unreachable!("a member asks for no children"),
        }
    }

    fn obey(&mut self, i: usize, order: Order) -> Ordered {
        if !self.hosts[i].server.up {
            return Ordered::Failed("there is no process".into());
        }
        if self.hosts[i].mute && order == Order::Inspect {
            return Ordered::Failed("WRONGPASS".into());
        }
        if (self.hosts[i].refuses)(&order) {
            return Ordered::Failed("NOPERM".into());
        }
        let leads = self.hosts[i].member.stage == Stage::Leading;
        assert!(
            leads || !self.hosts[i].server.master || !matches!(order, Order::Unfence { .. }),
            "a master is to take writes and does not lead: {}",
            self.story()
        );
        self.histories += 1;
        let fresh = format!("history{}", self.histories);
        self.hosts[i].agent &= !(self.hosts[i].doomed && order == Order::Promote);
        let server = &mut self.hosts[i].server;
        match order {
            Order::Inspect => return Ordered::Done(Some(Box::new(self.view(i)))),
            Order::Promote => {
                if !server.master {
                    (server.master, server.paused) = (true, true);
                    server.follows.clear();
                    server.replid2 = std::mem::replace(&mut server.replid, fresh);
                }
                if self.hosts[i].unheard {
                    return Ordered::Failed("no answer in time".into());
                }
            }
            Order::Follow { host, port, .. } => {
                server.master = false;
                server.follows = format!("{host}:{port}");
                server.copies = Some(self.t).filter(|_| host != NOWHERE.0);
                self.replicate();
            }
            Order::Fence { .. } => server.paused = true,
            Order::Unfence { min_replicas } => (server.paused, server.min_replicas) = (false, min_replicas),
        }
        Ordered::Done(None)
    }

    /// Replicas have what their masters have.
    fn replicate(&mut self) {
        for i in 0..self.hosts.len() {
            let of =
                self.hosts.iter().find(|host| host.address == self.hosts[i].server.follows && host.server.up);
            let takes = self.hosts[i].server.up && !self.is_copying(i) && !self.hosts[i].stuck;
            let Some(master) = of.map(|host| host.server.clone()).filter(|_| takes) else {
                continue;
            };
            let server = &mut self.hosts[i].server;
            if server.offset != master.offset {
                server.heard = self.t;
            }
            (server.replid, server.replid2) = (master.replid, master.replid2);
            (server.offset, server.keys) = (master.offset, master.keys);
        }
    }

    fn is_copying(&self, i: usize) -> bool {
        self.hosts[i].server.copies.is_some_and(|since| self.t < since + self.copy)
    }

    fn view(&self, i: usize) -> View {
        let server = &self.hosts[i].server;
        let up = |host: &&Host| host.server.up && host.server.follows == self.hosts[i].address;
        let replica = |host: &Host| Replica {
            address: host.address.clone(),
            online: true,
            offset: host.server.offset,
            lag_s: 0,
        };
        let linked = self.hosts.iter().any(|host| host.address == server.follows && host.server.up);
        let silent = Duration::from_secs((self.t - server.heard).as_secs());
        View {
            role: if server.master { Role::Master } else { Role::Replica },
            master: (!server.master).then(|| server.follows.clone()),
            link_up: linked && !self.hosts[i].link_down && !self.is_copying(i),
            syncing: self.is_copying(i),
            last_io: silent,
            link_down: silent,
            replid: if self.nameless { String::new() } else { server.replid.clone() },
            replid2: if self.nameless { String::new() } else { server.replid2.clone() },
            offset: server.offset,
            keys: server.keys,
            priority: server.priority,
            replicas: if server.master {
                self.hosts.iter().filter(up).map(replica).collect()
            } else {
                Vec::new()
            },
            ..View::default()
        }
    }

    /// Lets whatever is due be done, for so long.
    fn run(&mut self, long: Duration) {
        let end = self.t + long;
        while self.t < end {
            self.t += Duration::from_millis(10);
            self.replicate();
            if self.t.as_millis().is_multiple_of(1000) {
                (0..self.hosts.len())
                    .filter(|i| self.hosts[*i].linked)
                    .collect::<Vec<_>>()
                    .iter()
                    .for_each(|i| self.hear(*i));
            }
            for i in 0..self.hosts.len() {
                let due = self.hosts[i].member.next_deadline().is_some_and(|at| at <= self.now().at);
                if due {
                    self.give(i, Input::Tick);
                }
            }
        }
    }

    fn settle(&mut self) {
        self.run(Duration::from_secs(20));
    }

    fn write(&mut self, i: usize, keys: u64) {
        let attached = self.view(i).replicas.len();
        let server = &mut self.hosts[i].server;
        assert!(server.master && !server.paused && attached >= server.min_replicas as usize, "{server:?}");
        server.keys += keys;
        server.offset += i64::try_from(keys).unwrap() * 10;
        self.replicate();
    }

    fn kill(&mut self, i: usize) {
        self.hosts[i].server.up = false;
        self.give(i, Input::Server(Life::Dead));
    }

    /// Started again with nothing in its memory.
    fn restart(&mut self, i: usize) {
        let (host, port) = self.hosts[i].member.start_as();
        self.histories += 1;
        let replid = format!("history{}", self.histories);
        let before = self.hosts[i].server.clone();
        self.hosts[i].server = Server {
            up: true,
            master: false,
            follows: format!("{host}:{port}"),
            replid,
            replid2: String::new(),
            offset: 0,
            keys: 0,
            paused: false,
            min_replicas: 0,
            ..before
        };
        self.replicate();
        self.give(i, Input::Server(Life::Started));
        self.give(i, Input::Server(Life::Up));
    }

    fn start_agent_anew(&mut self, i: usize) {
        let (now, nonce) = (self.now(), format!("run {} s in", self.t.as_secs()));
        self.hosts[i].agent = true;
        self.hosts[i].member = Member::new(now, ShardPlan { nonce, ..plan(i, self.hosts.len()) });
        self.connect(i);
        self.give(i, Input::Fencer(true));
        self.give(i, Input::Server(Life::Started));
        self.give(i, Input::Server(Life::Up));
    }

    fn state(&self) -> ShardState {
        decode(&self.nodes[&format!("{SHARD}/state")].content).unwrap()
    }

    fn masters(&self) -> Vec<usize> {
        (0..self.hosts.len()).filter(|i| self.hosts[*i].server.up && self.hosts[*i].server.master).collect()
    }

    fn told(&self, what: &str) -> bool {
        self.hosts.iter().any(|host| host.told.contains(&what))
    }

    fn story(&self) -> String {
        let mut lines: Vec<&String> = self.hosts.iter().flat_map(|host| &host.log).collect();
        lines.sort_by(|a, b| {
            let at = |line: &str| line.split(' ').next().unwrap().parse::<f64>().unwrap();
            at(a).total_cmp(&at(b))
        });
        lines.into_iter().map(|line| format!("{line}\n")).collect()
    }

    fn check(&self, master: usize) {
        let state = self.state();
        assert_eq!(self.masters(), [master], "{}{state:#?}", self.story());
        assert_eq!(
            (state.master.as_str(), state.phase),
            (&*self.hosts[master].address, Phase::Done),
            "{}",
            self.story()
        );
        assert!(!self.hosts[master].server.paused, "{}", self.story());
        for (i, host) in self.hosts.iter().enumerate().filter(|(i, host)| *i != master && host.server.up) {
            assert_eq!(host.server.follows, self.hosts[master].address, "{i}\n{}", self.story());
            assert!(!host.server.paused, "{i}\n{}", self.story());
        }
    }
}

fn has(content: &[u8], field: &str) -> bool {
    let text = String::from_utf8_lossy(content);
    text.contains(&format!("\"{field}\":")) || text.contains(&format!(":\"{field}\""))
}

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
    let told = world.hosts[1].log.iter().filter(|line| line.contains("the registry refuses")).count();
    assert_eq!(told, 1, "{}", world.story());
    let unheard = world.hosts[1].member.unheard.clone().unwrap();
    assert!(!unheard.done && unheard.text.contains("NoAuth"), "{unheard:?}");
    world.check(0);
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
