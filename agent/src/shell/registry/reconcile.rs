//! Makes the registry what is desired, one request after another. Knows what it wrote, reads what it does not know,
//! writes only what differs, and never touches what belongs to others. It sees the registry as a [`Store`] and the time
//! as it is told, so it runs against a model as well.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    ops::Bound,
    time::{Duration, Instant},
};

use super::{
    LOG, Mode, Node, Owned, RegistryEvent,
    shared::{Inbox, is_within},
};

/// How often one step reads and tries again before it waits for the next heartbeat.
const ATTEMPTS: usize = 5;
/// No tree of ours is deeper below a node that is removed.
const DEPTH: usize = 8;
/// Nodes verified in a heartbeat: a quarter of those that [`Slot::is_verified`] names, within these bounds.
const VERIFY: (usize, usize) = (8, 64);
/// A path on which so many connections were lost in a row waits for the heartbeat, so that the others get their turn.
const SUSPICIOUS: u32 = 3;

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The connection is gone; what the request did is unknown.
    Lost(String),
    /// The registry will not have it.
    Refused(String),
}

/// A node as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// Its content.
    pub(super) content: Vec<u8>,
    /// Its version.
    pub(super) version: i32,
    /// The session that it lives with; 0: persistent.
    pub(super) owner: i64,
}

/// How a create ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Created {
    /// It is there now.
    Done,
    /// It was there already.
    Exists,
    /// Its parent is missing.
    NoParent,
}

/// How a write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// It holds the content, in this version.
    Done(i32),
    /// It has another version or is gone.
    Stale,
}

/// The registry's requests.
pub(super) trait Store {
    /// The session's id.
    fn session(&self) -> i64;
    /// The session's timeout.
    fn timeout(&self) -> Duration;
    /// Reads a node; `None`: there is none. `watch`: tell once when it changes.
    fn read(&mut self, path: &str, watch: bool) -> Result<Option<Seen>, Fault>;
    /// Creates a node.
    fn create(&mut self, path: &str, node: &Node) -> Result<Created, Fault>;
    /// Changes a node of this version.
    fn write(&mut self, path: &str, content: &[u8], version: i32) -> Result<Written, Fault>;
    /// Removes a node of this version (-1: any); `false`: it changed, is gone or has children.
    fn delete(&mut self, path: &str, version: i32) -> Result<bool, Fault>;
    /// Names of the children; `None`: there is no such node. `watch`: tell once when they change.
    fn children(&mut self, path: &str, watch: bool) -> Result<Option<Vec<String>>, Fault>;
    /// Tell once when a node is created, or changes; whether it is there already.
    fn await_creation(&mut self, path: &str) -> Result<bool, Fault>;
}

/// An ephemeral of ours in another's hands.
#[derive(Clone, Copy, Debug)]
struct Contest {
    since: Instant,
    told: bool,
}

/// A desired node and what is known of it.
#[derive(Debug)]
struct Slot {
    node: Node,
    /// Its version, when known in this connection.
    version: Option<i32>,
    /// It holds the content, as far as is known.
    equal: bool,
    /// A watch of ours will tell of a change.
    watched: bool,
    /// An ephemeral that we have held in this run.
    held: bool,
    contest: Option<Contest>,
    refused: bool,
    /// Connections lost in a row while this one was at work.
    losses: u32,
}

impl Slot {
    fn new(node: Node) -> Slot {
        Slot {
            node,
            version: None,
            equal: false,
            watched: false,
            held: false,
            contest: None,
            refused: false,
            losses: 0,
        }
    }

    /// Whether it is looked at every few heartbeats: no watch tells of a change, or the host counts for dead without it.
    fn is_verified(&self) -> bool {
        !self.watched || self.node.mode == Mode::Ephemeral
    }
}

/// Whose an ephemeral is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holder {
    /// This session's.
    Us,
    /// Nobody's: it is persistent.
    Nobody,
    /// An earlier session's of this run, or an earlier run's of this host.
    OurPast,
    /// Another live agent's.
    Other,
}

/// How an attempt at a node ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attempt {
    /// It is as desired.
    Settled,
    /// Something changed underneath: look again.
    Again,
    /// Nothing can be done before the next heartbeat.
    Waits,
}

/// The desired tree and how far the registry is from it.
#[derive(Debug)]
pub(super) struct Tree {
    host_id: String,
    slots: BTreeMap<String, Slot>,
    /// Paths to be looked at now.
    todo: BTreeSet<String>,
    /// Paths that must go, and whether they wait for the next heartbeat.
    removals: BTreeMap<String, bool>,
    owned: Vec<Owned>,
    /// Directories of `owned` to be pruned.
    prunes: Vec<Owned>,
    /// Where the slow verification stands.
    cursor: String,
    synced: bool,
    /// The path that a request is about.
    at_work: Option<String>,
    /// What the core is to be told.
    pub(super) events: Vec<RegistryEvent>,
    /// Acknowledged writes.
    pub(super) writes: u64,
}

impl Tree {
    /// An empty tree of the host with this id.
    pub(super) fn new(host_id: String) -> Tree {
        Tree {
            host_id,
            slots: BTreeMap::new(),
            todo: BTreeSet::new(),
            removals: BTreeMap::new(),
            owned: Vec::new(),
            prunes: Vec::new(),
            cursor: String::new(),
            synced: false,
            at_work: None,
            events: Vec::new(),
            writes: 0,
        }
    }

    /// Nodes that are desired.
    pub(super) fn nodes(&self) -> usize {
        self.slots.len()
    }

    /// Nodes that differ, as far as is known.
    pub(super) fn behind(&self) -> usize {
        self.slots.values().filter(|slot| !slot.equal).count() + self.removals.len()
    }

    /// Whether [`Tree::step`] has something to do.
    pub(super) fn busy(&self) -> bool {
        !self.todo.is_empty() || !self.prunes.is_empty() || self.removals.values().any(|waits| !waits)
    }

    /// Takes changes of the desired tree.
    pub(super) fn absorb(&mut self, inbox: Inbox) {
        for top in inbox.removals {
            self.slots.retain(|path, _| !is_within(path, &top));
            self.todo.retain(|path| !is_within(path, &top));
            self.removals.insert(top, false);
        }
        for (path, node) in inbox.puts {
            self.put(path, node);
        }
        if let Some(owned) = inbox.owned {
            self.prunes.clone_from(&owned);
            self.owned = owned;
        }
    }

    fn put(&mut self, path: String, node: Node) {
        match self.slots.get_mut(&path) {
            Some(slot) if slot.node == node => return,
            Some(slot) => {
                slot.equal = false;
                if slot.node.mode != node.mode {
                    slot.version = None;
                }
                slot.node = node;
            }
            None => {
                self.slots.insert(path.clone(), Slot::new(node));
            }
        }
        self.todo.insert(path);
    }

    /// A watch fired: look again.
    pub(super) fn touched(&mut self, path: &str) {
        if let Some(slot) = self.slots.get_mut(path) {
            slot.watched = false;
            slot.version = None;
            self.todo.insert(path.to_owned());
        }
    }

    /// A connection stands: nothing is known any more.
    pub(super) fn begin(&mut self) {
        for slot in self.slots.values_mut() {
            slot.version = None;
            slot.equal = false;
            slot.watched = false;
        }
        self.todo = self.slots.keys().cloned().collect();
        self.removals.values_mut().for_each(|waits| *waits = false);
        self.prunes.clone_from(&self.owned);
        self.synced = false;
        if let Some(path) = self.at_work.take()
            && let Some(slot) = self.slots.get_mut(&path)
        {
            slot.losses += 1;
            if slot.losses >= SUSPICIOUS {
                self.todo.remove(&path);
            }
        }
    }

    /// A heartbeat: whatever had to wait is looked at again, ephemerals that no watch tells of, and a few others. Tells
    /// whether that asks the registry for anything at all.
    pub(super) fn heartbeat(&mut self) -> bool {
        self.removals.values_mut().for_each(|waits| *waits = false);
        let mut due: Vec<String> = self
            .slots
            .iter()
            .filter(|(_, slot)| !slot.equal || (slot.node.mode == Mode::Ephemeral && !slot.watched))
            .map(|(path, _)| path.clone())
            .collect();
        due.extend(self.next_to_verify());
        for path in due {
            if let Some(slot) = self.slots.get_mut(&path) {
                slot.version = None;
            }
            self.todo.insert(path);
        }
        self.busy()
    }

    /// Some nodes that are to be verified, and one of the others, in turn.
    fn next_to_verify(&mut self) -> Vec<String> {
        let verified = self.slots.values().filter(|slot| slot.is_verified()).count();
        let most = verified.div_ceil(4).clamp(VERIFY.0, VERIFY.1);
        let from = (Bound::Excluded(mem::take(&mut self.cursor)), Bound::Unbounded);
        let round = self.slots.range::<String, _>(from).chain(self.slots.iter());
        let mut picked = Vec::new();
        let mut spare = 1;
        for (path, slot) in round.take(self.slots.len()) {
            if picked.len() >= most {
                break;
            }
            if slot.is_verified() || mem::replace(&mut spare, 0) > 0 {
                picked.push(path.clone());
            }
            self.cursor.clone_from(path);
        }
        picked
    }

    /// Does one thing.
    ///
    /// # Errors
    /// When the connection is gone.
    pub(super) fn step(&mut self, store: &mut dyn Store, now: Instant) -> Result<(), String> {
        let outcome = if let Some(path) = self.next_removal() {
            self.remove(store, &path)
        } else if let Some(path) = self.todo.pop_first() {
            self.ensure(store, &path, now)
        } else if let Some(owned) = self.prunes.pop() {
            self.prune(store, &owned)
        } else {
            Ok(())
        };
        let lost = match outcome {
            Err(Fault::Lost(why)) => return Err(why),
            _ => self.at_work.take(),
        };
        if let Some(slot) = lost.and_then(|path| self.slots.get_mut(&path)) {
            slot.losses = 0;
        }
        self.notice_synced();
        Ok(())
    }

    fn notice_synced(&mut self) {
        if !self.synced && !self.busy() && self.behind() == 0 {
            self.synced = true;
            self.events.push(RegistryEvent::Synced);
        }
    }

    fn next_removal(&self) -> Option<String> {
        self.removals.iter().find(|(_, waits)| !**waits).map(|(path, _)| path.clone())
    }

    /// Makes one node so.
    fn ensure(&mut self, store: &mut dyn Store, path: &str, now: Instant) -> Result<(), Fault> {
        self.at_work = Some(path.to_owned());
        for _ in 0..ATTEMPTS {
            let Some(slot) = self.slots.get(path) else { return Ok(()) };
            let attempt = match slot.version {
                Some(version) if !slot.equal => self.rewrite(store, path, version),
                Some(_) => Ok(Attempt::Settled),
                None => self.inspect(store, path, now),
            };
            match attempt {
                Ok(Attempt::Again) => {}
                Ok(Attempt::Waits) => return Ok(()),
                Ok(Attempt::Settled) => return self.settled(path),
                Err(Fault::Refused(why)) => return self.refused(path, why),
                Err(lost) => return Err(lost),
            }
        }
        Ok(())
    }

    fn settled(&mut self, path: &str) -> Result<(), Fault> {
        let Some(slot) = self.slots.get_mut(path) else { return Ok(()) };
        slot.equal = true;
        slot.held |= slot.node.mode == Mode::Ephemeral;
        if mem::take(&mut slot.refused) {
            self.events.push(RegistryEvent::RefusedOver { path: path.to_owned() });
        }
        if slot.contest.take().is_some_and(|contest| contest.told) {
            self.events.push(RegistryEvent::ConflictOver { path: path.to_owned() });
        }
        Ok(())
    }

    fn refused(&mut self, path: &str, why: String) -> Result<(), Fault> {
        let Some(slot) = self.slots.get_mut(path) else { return Ok(()) };
        slot.equal = false;
        slot.version = None;
        if !mem::replace(&mut slot.refused, true) {
            log::warn!(target: LOG, "{path} is refused: {why}");
            self.events.push(RegistryEvent::Refused { path: path.to_owned(), why });
        }
        Ok(())
    }

    /// Writes over a version that we know.
    fn rewrite(&mut self, store: &mut dyn Store, path: &str, version: i32) -> Result<Attempt, Fault> {
        let Some(slot) = self.slots.get_mut(path) else { return Ok(Attempt::Waits) };
        match store.write(path, &slot.node.content, version)? {
            Written::Done(version) => {
                self.writes += 1;
                slot.version = Some(version);
                slot.watched = false;
                Ok(Attempt::Settled)
            }
            Written::Stale => {
                slot.version = None;
                Ok(Attempt::Again)
            }
        }
    }

    /// Reads a node and does what it calls for.
    fn inspect(&mut self, store: &mut dyn Store, path: &str, now: Instant) -> Result<Attempt, Fault> {
        let Some(seen) = store.read(path, true)? else { return self.create(store, path) };
        let Some(slot) = self.slots.get_mut(path) else { return Ok(Attempt::Waits) };
        slot.watched = true;
        let holder = holder(&seen, store.session(), &self.host_id, slot);
        match (slot.node.mode, holder) {
            (Mode::Ephemeral, Holder::Us) | (Mode::Persistent, Holder::Nobody) => {
                slot.version = Some(seen.version);
                slot.equal = slot.node.content == seen.content;
                Ok(if slot.equal { Attempt::Settled } else { Attempt::Again })
            }
            (_, Holder::Other) => Ok(self.contested(path, &seen, store.timeout(), now)),
            _ => self.replace(store, path, seen.version),
        }
    }

    /// Another kind of node, or our own past's, stands where ours belongs.
    fn replace(&mut self, store: &mut dyn Store, path: &str, version: i32) -> Result<Attempt, Fault> {
        log::info!(target: LOG, "{path} is taken over");
        if store.delete(path, version)? {
            self.writes += 1;
            return self.create(store, path);
        }
        match store.children(path, false)? {
            Some(names) if !names.is_empty() => {
                Err(Fault::Refused("a node with children stands there".into()))
            }
            _ => Ok(Attempt::Again),
        }
    }

    fn create(&mut self, store: &mut dyn Store, path: &str) -> Result<Attempt, Fault> {
        let Some(slot) = self.slots.get_mut(path) else { return Ok(Attempt::Waits) };
        slot.watched = false;
        match store.create(path, &slot.node)? {
            Created::Done => {
                self.writes += 1;
                slot.version = Some(0);
                // An ephemeral is read once more, for the watch on it.
                let ephemeral = slot.node.mode == Mode::Ephemeral;
                if ephemeral {
                    slot.version = None;
                }
                Ok(if ephemeral { Attempt::Again } else { Attempt::Settled })
            }
            Created::Exists => Ok(Attempt::Again),
            Created::NoParent => self.create_parents(store, path),
        }
    }

    fn create_parents(&mut self, store: &mut dyn Store, path: &str) -> Result<Attempt, Fault> {
        for (at, _) in path.match_indices('/').skip(1) {
            let parent = &path[..at];
            let node = self.slots.get(parent).map(|slot| slot.node.clone());
            let empty = Node { mode: Mode::Persistent, content: Vec::new() };
            if store.create(parent, &node.unwrap_or(empty))? == Created::Done {
                self.writes += 1;
            }
        }
        Ok(Attempt::Again)
    }

    /// Another live agent holds it: it gets the time of a session to go, then the core is told. Never a fight.
    fn contested(&mut self, path: &str, seen: &Seen, patience: Duration, now: Instant) -> Attempt {
        let Some(slot) = self.slots.get_mut(path) else { return Attempt::Waits };
        slot.equal = false;
        slot.version = None;
        let contest = slot.contest.get_or_insert(Contest { since: now, told: false });
        if !contest.told && now.saturating_duration_since(contest.since) >= patience {
            contest.told = true;
            let holder = String::from_utf8_lossy(&seen.content).into_owned();
            log::error!(target: LOG, "{path} is held by another agent: {holder}");
            self.events.push(RegistryEvent::Conflict { path: path.to_owned(), holder });
        }
        Attempt::Waits
    }

    /// Removes a path with all below it that is not desired.
    fn remove(&mut self, store: &mut dyn Store, path: &str) -> Result<(), Fault> {
        match self.remove_tree(store, path, DEPTH) {
            Ok(true) => {
                self.removals.remove(path);
            }
            Ok(false) => self.removal_waits(path),
            Err(Fault::Refused(why)) => {
                log::warn!(target: LOG, "{path} cannot be removed: {why}");
                self.removal_waits(path);
            }
            Err(lost) => return Err(lost),
        }
        Ok(())
    }

    fn removal_waits(&mut self, path: &str) {
        if let Some(waits) = self.removals.get_mut(path) {
            *waits = true;
        }
    }

    /// Whether nothing is left that is not desired or another's.
    fn remove_tree(&mut self, store: &mut dyn Store, path: &str, depth: usize) -> Result<bool, Fault> {
        let Some(names) = store.children(path, false)? else { return Ok(true) };
        if depth == 0 {
            return Err(Fault::Refused(format!("{path} lies deeper than any node of ours")));
        }
        let mut all = true;
        for name in &names {
            all &= self.remove_tree(store, &join(path, name), depth - 1)?;
        }
        if self.desires_within(path) {
            return Ok(all);
        }
        let Some(seen) = store.read(path, false)? else { return Ok(true) };
        if seen.owner != 0 && seen.owner != store.session() && !is_of_host(&seen.content, &self.host_id) {
            log::debug!(target: LOG, "{path} belongs to another agent and stays");
            return Ok(true);
        }
        let gone = store.delete(path, seen.version)?;
        self.writes += u64::from(gone);
        Ok(all && gone)
    }

    fn desires_within(&self, top: &str) -> bool {
        self.slots
            .range(top.to_owned()..)
            .take_while(|(path, _)| path.starts_with(top))
            .any(|(path, _)| is_within(path, top))
    }

    /// Removes what this host once had in a directory and no longer has.
    fn prune(&mut self, store: &mut dyn Store, owned: &Owned) -> Result<(), Fault> {
        let names = match store.children(&owned.dir, false) {
            Ok(names) => names.unwrap_or_default(),
            Err(Fault::Refused(why)) => {
                log::warn!(target: LOG, "{} cannot be listed: {why}", owned.dir);
                return Ok(());
            }
            Err(lost) => {
                self.prunes.push(owned.clone());
                return Err(lost);
            }
        };
        for name in names.iter().filter(|name| is_owned(name, owned)) {
            let path = join(&owned.dir, name);
            if !self.desires_within(&path) {
                self.removals.insert(path, false);
            }
        }
        Ok(())
    }
}

fn join(parent: &str, name: &str) -> String {
    format!("{}/{name}", parent.trim_end_matches('/'))
}

/// Whether a child's name is `prefix`, digits, `suffix`.
fn is_owned(name: &str, owned: &Owned) -> bool {
    let number = name.strip_prefix(&*owned.prefix).and_then(|rest| rest.strip_suffix(&*owned.suffix));
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// A past run can only be found before this run first held the node; a stranger with our host's id that appears
/// later is alive, and is not fought.
fn holder(seen: &Seen, session: i64, host_id: &str, slot: &Slot) -> Holder {
    if seen.owner == 0 {
        Holder::Nobody
    } else if seen.owner == session {
        Holder::Us
    } else if is_of_host(&seen.content, host_id)
        && (!slot.held || same_run(&seen.content, &slot.node.content))
    {
        Holder::OurPast
    } else {
        Holder::Other
    }
}

fn field(content: &[u8], name: &str) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(content).ok()?;
    value.get(name)?.as_str().map(str::to_owned)
}

fn is_of_host(content: &[u8], host_id: &str) -> bool {
    field(content, "host_id").is_some_and(|id| id == host_id)
}

fn same_run(left: &[u8], right: &[u8]) -> bool {
    let nonce = field(left, "nonce");
    nonce.is_some() && nonce == field(right, "nonce")
}

#[cfg(test)]
pub(super) mod model;
#[cfg(test)]
mod tests;
