//! The model of the registry: one to three servers that apply one history of changes, each at its own pace; sessions,
//! ephemerals, versions and one-shot watches.
//!
//! Reads are answered from the server that the client is connected to, which may be behind. A client's own change is
//! seen by its own later reads. Sessions are kept by the leader, server 0, and end at a tick.

use std::{mem, rc::Rc};

use yagent::{
    core::failover::RequestId,
    shell::registry::{Answer, Found, Mode, Request},
};

use super::{
    setting::Setting,
    world::{Happening, Lane, World},
};
use crate::{
    dice::Dice,
    world::{MS, Micros, SECOND},
};

/// What a client sends.
#[derive(Debug)]
pub(super) enum Up {
    Connect {
        session: i64,
    },
    Ping {
        sent: Micros,
    },
    Ask {
        id: RequestId,
        request: Request,
        sent: Micros,
    },
    /// The session thread keeps an ephemeral node.
    Keep {
        path: String,
        content: Vec<u8>,
    },
    /// The connection is closed by the client.
    End,
}

/// What a server sends.
#[derive(Debug)]
pub(super) enum Down {
    Connected {
        session: i64,
    },
    Expired,
    Pong {
        sent: Micros,
    },
    Answer {
        id: RequestId,
        answer: Answer,
        sent: Micros,
    },
    Event {
        path: Rc<str>,
    },
    /// The connection is closed by the server.
    End,
}

#[derive(Debug)]
pub(super) struct Conn {
    pub(super) host: usize,
    server: usize,
    session: i64,
    pub(super) up: Lane<Up>,
    pub(super) down: Lane<Down>,
    pub(super) client_open: bool,
    pub(super) server_open: bool,
    /// Paths watched, and whether for their children.
    watches: Vec<(usize, bool)>,
}

#[derive(Clone, Debug)]
struct Znode {
    content: Rc<[u8]>,
    version: i32,
    owner: i64,
}

#[derive(Debug)]
enum Txn {
    Create { path: usize, content: Rc<[u8]>, owner: i64 },
    Set { path: usize, content: Rc<[u8]> },
    Delete { path: usize },
}

#[derive(Debug, Default)]
struct Server {
    tree: Vec<Option<Znode>>,
    applied: usize,
    /// When the last change that is planned comes about.
    last: Micros,
}

#[derive(Debug)]
struct Session {
    heard: Micros,
    host: usize,
    alive: bool,
    /// It had the lock, and somebody removed it by hand.
    robbed: bool,
}

#[derive(Debug)]
struct Path {
    name: Rc<str>,
    parent: Option<usize>,
}

#[derive(Debug)]
pub(super) struct Ensemble {
    pub(super) up: bool,
    servers: Vec<Server>,
    log: Vec<Rc<Txn>>,
    sessions: Vec<Session>,
    pub(super) conns: Vec<Conn>,
    paths: Vec<Path>,
    timeout: Micros,
    tick: Micros,
    phase: Micros,
    /// Until when followers are far behind.
    pub(super) lagging: Micros,
    /// Until when changes of some nodes are refused, and how their paths end.
    pub(super) denied: (Micros, Vec<&'static str>),
}

impl Ensemble {
    /// Whether a change of the node is refused.
    pub(super) fn denies(&self, t: Micros, path: &str) -> bool {
        let (until, denied) = &self.denied;
        t < *until && denied.iter().any(|end| path.ends_with(end))
    }

    pub(super) fn new(dice: &mut Dice, setting: &Setting) -> Ensemble {
        Ensemble {
            up: true,
            servers: (0..setting.servers).map(|_| Server::default()).collect(),
            log: Vec::new(),
            sessions: Vec::new(),
            conns: Vec::new(),
            paths: Vec::new(),
            timeout: u64::try_from(setting.timing.session.as_micros()).unwrap_or(SECOND),
            tick: setting.tick,
            phase: dice.within(0..setting.tick),
            lagging: 0,
            denied: (0, Vec::new()),
        }
    }

    fn path(&mut self, name: &str) -> usize {
        if let Some(id) = self.paths.iter().position(|path| &*path.name == name) {
            return id;
        }
        let parent =
            name.rsplit_once('/').filter(|(above, _)| !above.is_empty()).map(|(above, _)| self.path(above));
        self.paths.push(Path { name: name.into(), parent });
        for server in &mut self.servers {
            server.tree.resize(self.paths.len(), None);
        }
        self.paths.len() - 1
    }

    fn node(&self, server: usize, path: usize) -> Option<&Znode> {
        self.servers[server].tree[path].as_ref()
    }

    /// The session that a node lives with, at the leader.
    pub(super) fn owner(&mut self, name: &str) -> Option<i64> {
        let path = self.path(name);
        self.node(0, path).map(|node| node.owner)
    }

    /// Of which host a session is.
    pub(super) fn host_of_session(&self, session: i64) -> Option<usize> {
        let index = usize::try_from(session).ok()?.checked_sub(1)?;
        self.sessions.get(index).map(|session| session.host)
    }

    /// A session of the host has the lock, or had it until somebody removed it.
    pub(super) fn had_the_lock(&mut self, host: usize, lock: &str) -> bool {
        let owner = self.owner(lock).and_then(|session| self.host_of_session(session));
        let robbed = |session: &Session| session.alive && session.robbed && session.host == host;
        owner == Some(host) || self.sessions.iter().any(robbed)
    }

    fn session(&mut self, id: i64) -> Option<&mut Session> {
        let index = usize::try_from(id).ok()?.checked_sub(1)?;
        self.sessions.get_mut(index).filter(|session| session.alive)
    }
}

impl World {
    pub(super) fn begin_sessions(&mut self) {
        let phase = self.zoo.phase;
        self.later(phase, Happening::SessionsEnd);
    }

    // Messages

    pub(super) fn send_up(&mut self, conn: u32, message: Up) {
        let host = self.zoo.conns[conn as usize].host;
        let at = self.t + self.latency() + self.hosts[host].slow_up;
        let lane = &mut self.zoo.conns[conn as usize].up;
        lane.last = lane.last.max(at);
        let delay = lane.last - self.t;
        lane.queue.push_back(message);
        self.later(delay, Happening::Up(conn));
    }

    fn send_down(&mut self, conn: u32, message: Down) {
        let host = self.zoo.conns[conn as usize].host;
        let at = self.t + self.latency() + self.hosts[host].slow_down;
        let lane = &mut self.zoo.conns[conn as usize].down;
        lane.last = lane.last.max(at);
        let delay = lane.last - self.t;
        lane.queue.push_back(message);
        self.later(delay, Happening::Down(conn));
    }

    /// The ways are open again: what waited arrives, in order.
    pub(super) fn reopens(&mut self, host: usize) {
        let (up, down) = (self.hosts[host].to_registry == 0, self.hosts[host].from_registry == 0);
        let stopped = self.hosts[host].agent.as_ref().is_some_and(|agent| agent.stopped);
        for conn in 0..self.zoo.conns.len() {
            let number = u32::try_from(conn).unwrap_or(0);
            if self.zoo.conns[conn].host != host {
                continue;
            }
            if up {
                for _ in 0..mem::take(&mut self.zoo.conns[conn].up.stuck) {
                    self.later(MS, Happening::Up(number));
                }
            }
            if down && !stopped {
                for _ in 0..mem::take(&mut self.zoo.conns[conn].down.stuck) {
                    self.later(MS, Happening::Down(number));
                }
            }
        }
    }

    pub(super) fn reaches_server(&mut self, number: u32) {
        let conn = &mut self.zoo.conns[number as usize];
        if self.hosts[conn.host].to_registry > 0 {
            conn.up.stuck += 1;
            return;
        }
        let Some(message) = conn.up.queue.pop_front() else { return };
        if !conn.server_open || !self.zoo.up {
            return;
        }
        let host = conn.host;
        if self.t < self.hosts[host].flaky && self.dice.percent(12) {
            // Before it is carried out, or after.
            if self.dice.percent(50) {
                return self.cut_by_server(number);
            }
            self.receive(number, message);
            self.zoo.conns[number as usize].down.queue.clear();
            return self.cut_by_server(number);
        }
        self.receive(number, message);
    }

    fn receive(&mut self, number: u32, message: Up) {
        let t = self.t;
        let session = self.zoo.conns[number as usize].session;
        match message {
            Up::Connect { session } => return self.attach(number, session),
            Up::End => {
                let conn = &mut self.zoo.conns[number as usize];
                conn.server_open = false;
                conn.watches.clear();
                return;
            }
            _ => {}
        }
        let Some(known) = self.zoo.session(session) else {
            return self.cut_by_server(number);
        };
        known.heard = t;
        match message {
            Up::Ping { sent } => self.send_down(number, Down::Pong { sent }),
            Up::Ask { id, request, sent } => {
                let answer = self.serve(number, request);
                if self.zoo.conns[number as usize].server_open {
                    self.send_down(number, Down::Answer { id, answer, sent });
                }
            }
            Up::Keep { path, content } => self.keep(number, &path, &content),
            Up::Connect { .. } | Up::End => {}
        }
    }

    /// A client comes with a session of its own or wants one.
    fn attach(&mut self, number: u32, wanted: i64) {
        let (t, host) = (self.t, self.zoo.conns[number as usize].host);
        if wanted != 0 && self.zoo.session(wanted).is_none() {
            self.send_down(number, Down::Expired);
            return;
        }
        let session = if wanted == 0 {
            self.zoo.sessions.push(Session { heard: t, host, alive: true, robbed: false });
            i64::try_from(self.zoo.sessions.len()).unwrap_or(0)
        } else {
            // An older connection of the session is of no use any more.
            for other in 0..self.zoo.conns.len() {
                if other != number as usize && self.zoo.conns[other].session == wanted {
                    self.zoo.conns[other].server_open = false;
                    self.zoo.conns[other].watches.clear();
                }
            }
            wanted
        };
        if let Some(known) = self.zoo.session(session) {
            known.heard = t;
        }
        self.zoo.conns[number as usize].session = session;
        self.send_down(number, Down::Connected { session });
    }

    /// The server closes a connection.
    pub(super) fn cut_by_server(&mut self, number: u32) {
        let conn = &mut self.zoo.conns[number as usize];
        if conn.server_open {
            conn.server_open = false;
            conn.watches.clear();
            self.send_down(number, Down::End);
        }
    }

    // Requests

    fn serve(&mut self, number: u32, request: Request) -> Answer {
        let (server, session) = {
            let conn = &self.zoo.conns[number as usize];
            (conn.server, conn.session)
        };
        let watch = |zoo: &mut Ensemble, path: usize, children: bool| {
            let watches = &mut zoo.conns[number as usize].watches;
            if !watches.contains(&(path, children)) {
                watches.push((path, children));
            }
        };
        if self.is_denied(&request) {
            return Answer::Refused("access denied (NoAuth)".to_owned());
        }
        match request {
            Request::Read { path } => {
                let path = self.zoo.path(&path);
                watch(&mut self.zoo, path, false);
                Answer::Node(self.zoo.node(server, path).map(|node| Found {
                    content: node.content.to_vec(),
                    version: node.version,
                    owner: node.owner,
                }))
            }
            Request::Children { path } => {
                let path = self.zoo.path(&path);
                if self.zoo.node(server, path).is_none() {
                    return Answer::Names(None);
                }
                watch(&mut self.zoo, path, true);
                let children = (0..self.zoo.paths.len()).filter(|id| {
                    self.zoo.paths[*id].parent == Some(path) && self.zoo.node(server, *id).is_some()
                });
                let name =
                    |id: usize| self.zoo.paths[id].name.rsplit('/').next().unwrap_or_default().to_owned();
                Answer::Names(Some(children.map(name).collect()))
            }
            Request::Create { path, node } => {
                let owner = if node.mode == Mode::Ephemeral { session } else { 0 };
                let path = self.zoo.path(&path);
                let exists = self.zoo.node(0, path).is_some();
                if !exists {
                    self.create(path, node.content.into(), owner);
                }
                self.catch_up(server);
                if exists { Answer::Exists } else { Answer::Created }
            }
            Request::Write { path, content, version } => {
                let path = self.zoo.path(&path);
                let found = self.zoo.node(0, path).map(|node| node.version);
                let fits = found.is_some_and(|found| version == -1 || found == version);
                if fits {
                    self.commit(Txn::Set { path, content: content.into() });
                }
                self.catch_up(server);
                match found {
                    Some(found) if fits => Answer::Written(found + 1),
                    _ => Answer::Stale,
                }
            }
            Request::Delete { path, version } => {
                let path = self.zoo.path(&path);
                let found = self.zoo.node(0, path).map(|node| node.version);
                let fits = found.is_some_and(|found| version == -1 || found == version);
                if fits {
                    self.commit(Txn::Delete { path });
                }
                self.catch_up(server);
                if fits { Answer::Deleted } else { Answer::Stale }
            }
        }
    }

    fn is_denied(&self, request: &Request) -> bool {
        match request {
            Request::Read { .. } | Request::Children { .. } => false,
            Request::Create { path, .. } | Request::Write { path, .. } | Request::Delete { path, .. } => {
                self.zoo.denies(self.t, path)
            }
        }
    }

    /// By an operator, who may do all.
    pub(super) fn remove_lock(&mut self) {
        let path = self.zoo.path(&self.hosts[0].plan.path("lock"));
        let Some(owner) = self.zoo.node(0, path).map(|node| node.owner).filter(|_| self.zoo.up) else {
            return;
        };
        if let Some(session) = self.zoo.session(owner) {
            session.robbed = true;
        }
        self.commit(Txn::Delete { path });
    }

    fn create(&mut self, path: usize, content: Rc<[u8]>, owner: i64) {
        if let Some(parent) = self.zoo.paths[path].parent.filter(|parent| self.zoo.node(0, *parent).is_none())
        {
            self.create(parent, Rc::from([]), 0);
        }
        self.commit(Txn::Create { path, content, owner });
    }

    /// The session thread keeps its node there, and takes its own past's over.
    fn keep(&mut self, number: u32, name: &str, content: &[u8]) {
        let session = self.zoo.conns[number as usize].session;
        let path = self.zoo.path(name);
        match self.zoo.node(0, path).map(|node| node.owner) {
            Some(owner) if owner == session => self.commit(Txn::Set { path, content: content.into() }),
            found => {
                if found.is_some() {
                    self.commit(Txn::Delete { path });
                }
                self.create(path, content.into(), session);
            }
        }
        let server = self.zoo.conns[number as usize].server;
        self.catch_up(server);
    }

    // Changes

    fn commit(&mut self, txn: Txn) {
        let txn = Rc::new(txn);
        self.zoo.log.push(txn.clone());
        self.zoo.servers[0].applied = self.zoo.log.len();
        self.apply(0, &txn);
        for server in 1..self.zoo.servers.len() {
            let lag = if self.t < self.zoo.lagging {
                self.dice.within(0..3 * SECOND)
            } else {
                self.dice.within(0..3 * MS)
            };
            let last = &mut self.zoo.servers[server].last;
            *last = (*last).max(self.t + lag);
            let delay = *last - self.t;
            self.later(delay, Happening::Apply(server));
        }
        self.check_commit(&txn);
    }

    pub(super) fn apply_next(&mut self, server: usize) {
        // Some were made early, for a client's own sake.
        let due = self.zoo.servers[server].applied;
        if let Some(txn) = self.zoo.log.get(due).cloned() {
            self.zoo.servers[server].applied += 1;
            self.apply(server, &txn);
        }
    }

    fn catch_up(&mut self, server: usize) {
        while self.zoo.servers[server].applied < self.zoo.log.len() {
            self.apply_next(server);
        }
    }

    fn apply(&mut self, server: usize, txn: &Txn) {
        let tree = &mut self.zoo.servers[server].tree;
        let path = match txn {
            Txn::Create { path, content, owner } => {
                tree[*path] = Some(Znode { content: content.clone(), version: 0, owner: *owner });
                *path
            }
            Txn::Set { path, content } => {
                if let Some(node) = &mut tree[*path] {
                    node.content = content.clone();
                    node.version += 1;
                }
                *path
            }
            Txn::Delete { path } => {
                tree[*path] = None;
                *path
            }
        };
        let parent = self.zoo.paths[path].parent.filter(|_| !matches!(txn, Txn::Set { .. }));
        for number in 0..self.zoo.conns.len() {
            let conn = &mut self.zoo.conns[number];
            if conn.server != server || conn.watches.is_empty() {
                continue;
            }
            let before = conn.watches.len();
            conn.watches.retain(|watch| *watch != (path, false));
            let data = conn.watches.len() != before;
            let before = conn.watches.len();
            conn.watches.retain(|(watched, children)| !(*children && Some(*watched) == parent));
            let child = conn.watches.len() != before;
            let number = u32::try_from(number).unwrap_or(0);
            if data {
                let path = self.zoo.paths[path].name.clone();
                self.send_down(number, Down::Event { path });
            }
            if let Some(parent) = parent.filter(|_| child) {
                let path = self.zoo.paths[parent].name.clone();
                self.send_down(number, Down::Event { path });
            }
        }
    }

    fn check_commit(&mut self, txn: &Txn) {
        match txn {
            Txn::Create { path, content, .. } | Txn::Set { path, content } => {
                let name = self.zoo.paths[*path].name.clone();
                self.log(|| format!("zoo {name} = {}", String::from_utf8_lossy(content)));
                if name.ends_with("/state") {
                    self.state_changed(content);
                }
            }
            Txn::Delete { path } => {
                let name = self.zoo.paths[*path].name.clone();
                self.log(|| format!("zoo {name} is gone"));
                if name.ends_with("/state") {
                    self.violate("`state` was removed".to_owned());
                }
            }
        }
    }

    // Sessions

    /// Sessions end at ticks: between S and S + tick after they were last heard of.
    pub(super) fn end_sessions(&mut self) {
        let tick = self.zoo.tick;
        self.later(tick, Happening::SessionsEnd);
        if !self.zoo.up {
            return;
        }
        for index in 0..self.zoo.sessions.len() {
            let session = &self.zoo.sessions[index];
            if session.alive && self.t >= session.heard + self.zoo.timeout {
                self.end_session(i64::try_from(index + 1).unwrap_or(0));
            }
        }
    }

    pub(super) fn end_session(&mut self, id: i64) {
        let Some(session) = self.zoo.session(id) else { return };
        session.alive = false;
        let host = session.host;
        self.log(|| format!("zoo session {id} of host {host} ends"));
        for path in 0..self.zoo.paths.len() {
            if self.zoo.node(0, path).is_some_and(|node| node.owner == id) {
                self.commit(Txn::Delete { path });
            }
        }
        for number in 0..self.zoo.conns.len() {
            if self.zoo.conns[number].session == id {
                self.cut_by_server(u32::try_from(number).unwrap_or(0));
            }
        }
    }

    /// An operator, or a bug of the registry, ends the sessions of a host early.
    pub(super) fn expire_host(&mut self, host: usize) {
        for index in 0..self.zoo.sessions.len() {
            if self.zoo.sessions[index].host == host {
                self.end_session(i64::try_from(index + 1).unwrap_or(0));
            }
        }
    }

    /// The whole ensemble goes down.
    pub(super) fn ensemble_down(&mut self, long: Micros) {
        if !self.zoo.up {
            return;
        }
        self.zoo.up = false;
        for server in 0..self.zoo.servers.len() {
            self.catch_up(server);
        }
        for number in 0..self.zoo.conns.len() {
            self.cut_by_server(u32::try_from(number).unwrap_or(0));
        }
        self.later(long, Happening::EnsembleBack);
    }

    pub(super) fn ensemble_back(&mut self) {
        self.log(|| "zoo is back".to_owned());
        self.zoo.up = true;
        let t = self.t;
        self.zoo.sessions.iter_mut().for_each(|session| session.heard = t);
    }

    /// A new connection, to whichever server.
    pub(super) fn connect(&mut self, host: usize) -> u32 {
        let servers = self.zoo.servers.len() as u64;
        let server = usize::try_from(self.dice.within(0..servers)).unwrap_or(0);
        self.zoo.conns.push(Conn {
            host,
            server,
            session: 0,
            up: Lane::default(),
            down: Lane::default(),
            client_open: true,
            server_open: true,
            watches: Vec::new(),
        });
        u32::try_from(self.zoo.conns.len() - 1).unwrap_or(0)
    }
}
