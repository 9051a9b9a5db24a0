//! Members of a shard in a world where everything answers at once; the simulation has the world where it doesn't.

mod election;
mod lease;
mod refusals;
mod reload;
mod switchover;

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
    /// Hosts whose servers have so many keys, all of one history, with a master.
    fn new(keys: &[u64]) -> World {
        let mut world = World::prepare(keys);
        for i in 0..world.hosts.len() {
            world.begin(i);
        }
        world.settle();
        world
    }

    /// As [`World::new`], before any agent has begun.
    fn prepare(keys: &[u64]) -> World {
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
            agent: false,
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
        World {
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
        }
    }

    fn begin(&mut self, i: usize) {
        self.hosts[i].agent = true;
        self.connect(i);
        self.give(i, Input::Fencer(true));
        self.give(i, Input::Server(Life::Started));
        self.give(i, Input::Server(Life::Up));
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
        self.tell_session(i);
        self.give(i, Input::Tick);
    }

    fn tell_session(&mut self, i: usize) {
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
        let path = self.hosts[i].member.node_path();
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
                let path = what.path().to_owned();
                let before = self.inputs.len();
                let mut answer = if self.hosts[i].linked { self.answer(i, what) } else { Answer::Lost };
                // As the registry's client has it: the events of one's own changes come after their answers.
                let is_own = |(host, input): &(usize, Input)| {
                    *host == i && matches!(input, Input::Changed { path: of } if *of == path)
                };
                let (own, mut others): (VecDeque<_>, VecDeque<_>) =
                    self.inputs.split_off(before).into_iter().partition(is_own);
                self.inputs.append(&mut others);
                if hands_over && self.cut_after_handover {
                    self.hosts[i].linked = false;
                    answer = Answer::Lost;
                    self.give(i, Input::Lost);
                }
                self.give(i, Input::Answered { request, answer });
                self.inputs.extend(own);
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
                if self.hosts[i].member.is_due(self.now().at) {
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
