//! A model of the registry in memory, and of its loss.

use super::*;
use crate::shell::registry::readings::Happening;

pub(in crate::shell::registry) const OURS: i64 = 1;
pub(in crate::shell::registry) const TIMEOUT: Duration = Duration::from_secs(6);

/// Gives the same numbers for the same seed.
pub(in crate::shell::registry) struct Dice(pub(in crate::shell::registry) u64);

impl Dice {
    pub(in crate::shell::registry) fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

#[derive(Default)]
pub(in crate::shell::registry) struct Model {
    pub(in crate::shell::registry) nodes: BTreeMap<String, Seen>,
    pub(in crate::shell::registry) watches: BTreeSet<String>,
    pub(in crate::shell::registry) children_watches: BTreeSet<String>,
    pub(in crate::shell::registry) fired: BTreeSet<String>,
    /// Everything that a watch told of, our own doings as well.
    pub(in crate::shell::registry) told: Vec<(String, Happening)>,
    pub(in crate::shell::registry) session: i64,
    /// One in so many requests is lost.
    pub(in crate::shell::registry) loses: Option<(u64, Dice)>,
    pub(in crate::shell::registry) requests: usize,
    pub(in crate::shell::registry) denied: BTreeSet<String>,
}

impl Model {
    pub(in crate::shell::registry) fn new() -> Model {
        Model { session: OURS, ..Model::default() }
    }

    pub(in crate::shell::registry) fn has(&mut self, path: &str, content: &str, owner: i64) {
        for (at, _) in path.match_indices('/').skip(1) {
            self.nodes.entry(path[..at].to_owned()).or_insert(Seen { content: vec![], version: 0, owner: 0 });
        }
        let node = Seen { content: content.into(), version: 3, owner };
        let happening = match self.nodes.insert(path.into(), node) {
            Some(_) => Happening::Written,
            None => Happening::Created,
        };
        self.fire(path, happening);
    }

    fn fire(&mut self, path: &str, happening: Happening) {
        if self.watches.remove(path) {
            self.fired.insert(path.into());
            self.told.push((path.into(), happening));
        } else if happening == Happening::Deleted && self.children_watches.remove(path) {
            self.told.push((path.into(), happening));
        }
        if happening != Happening::Written && self.children_watches.remove(parent(path)) {
            self.told.push((parent(path).into(), Happening::Children));
        }
    }

    fn has_children(&self, path: &str) -> bool {
        self.nodes.keys().any(|other| other != path && is_within(other, path))
    }

    pub(in crate::shell::registry) fn vanish(&mut self, top: &str) {
        let gone: Vec<String> = self.nodes.keys().filter(|path| is_within(path, top)).cloned().collect();
        for path in gone {
            self.nodes.remove(&path);
            self.fire(&path, Happening::Deleted);
        }
    }

    fn lost(&mut self) -> Result<(), Fault> {
        let loses = self.loses.as_mut().is_some_and(|(one_in, dice)| dice.roll(*one_in) == 0);
        if loses { Err(Fault::Lost("model".into())) } else { Ok(()) }
    }

    fn request<T>(&mut self, path: &str, act: impl FnOnce(&mut Model) -> T) -> Result<T, Fault> {
        self.requests += 1;
        self.lost()?;
        if self.denied.contains(path) {
            return Err(Fault::Refused("denied".into()));
        }
        let result = act(self);
        self.lost()?;
        Ok(result)
    }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

impl Store for Model {
    fn session(&self) -> i64 {
        self.session
    }

    fn timeout(&self) -> Duration {
        TIMEOUT
    }

    fn read(&mut self, path: &str, watch: bool) -> Result<Option<Seen>, Fault> {
        self.request(path, |model| {
            let seen = model.nodes.get(path).cloned();
            if watch && seen.is_some() {
                model.watches.insert(path.to_owned());
            }
            seen
        })
    }

    fn create(&mut self, path: &str, node: &Node) -> Result<Created, Fault> {
        self.request(path, |model| {
            if model.nodes.contains_key(path) {
                return Created::Exists;
            }
            if !parent(path).is_empty() && !model.nodes.contains_key(parent(path)) {
                return Created::NoParent;
            }
            let owner = if node.mode == Mode::Ephemeral { model.session } else { 0 };
            model.nodes.insert(path.into(), Seen { content: node.content.clone(), version: 0, owner });
            model.fire(path, Happening::Created);
            Created::Done
        })
    }

    fn write(&mut self, path: &str, content: &[u8], version: i32) -> Result<Written, Fault> {
        self.request(path, |model| match model.nodes.get_mut(path) {
            Some(seen) if seen.version == version => {
                seen.version += 1;
                seen.content = content.to_vec();
                // The front drops the event of a write of its own.
                if model.watches.remove(path) {
                    model.told.push((path.into(), Happening::Written));
                }
                Written::Done(version + 1)
            }
            _ => Written::Stale,
        })
    }

    fn delete(&mut self, path: &str, version: i32) -> Result<bool, Fault> {
        self.request(path, |model| {
            let matches = model.nodes.get(path).is_some_and(|seen| version == -1 || seen.version == version);
            let gone = matches && !model.has_children(path);
            if gone {
                model.vanish(path);
            }
            gone
        })
    }

    fn await_creation(&mut self, path: &str) -> Result<bool, Fault> {
        self.request(path, |model| {
            model.watches.insert(path.to_owned());
            model.nodes.contains_key(path)
        })
    }

    fn children(&mut self, path: &str, watch: bool) -> Result<Option<Vec<String>>, Fault> {
        self.request(path, |model| {
            if watch && model.nodes.contains_key(path) {
                model.children_watches.insert(path.to_owned());
            }
            model.nodes.contains_key(path).then(|| {
                let below = |other: &&String| parent(other) == path;
                model.nodes.keys().filter(below).map(|other| other[path.len() + 1..].to_owned()).collect()
            })
        })
    }
}
