//! The single requests: their queue, how each is carried out, and how they go before the reconciliation's. They see the
//! registry as a [`Store`], so they run against a model as well.

use std::{collections::VecDeque, mem, time::Duration};

use super::{
    Answer, Found, Mode, Node, RegistryEvent, Request,
    readings::{Happening, Kind, Readings},
    reconcile::{Created, Fault, Seen, Store, Written},
    shared::Shared,
};

/// Requests kept. After a connection each member of a shard asks for its nodes, nine in a shard of three, all at once: what is
/// too much is asked for again a beat later, and leases run meanwhile.
const MOST_REQUESTS: usize = 4096;
/// How often one request is tried again where nodes come and go underneath.
const ATTEMPTS: usize = 5;

impl Request {
    /// What it is about.
    pub fn path(&self) -> &str {
        match self {
            Request::Read { path }
            | Request::Children { path }
            | Request::Create { path, .. }
            | Request::Write { path, .. }
            | Request::Delete { path, .. } => path,
        }
    }

    /// The same of another path.
    pub(super) fn map_path(self, map: impl FnOnce(String) -> String) -> Request {
        match self {
            Request::Read { path } => Request::Read { path: map(path) },
            Request::Children { path } => Request::Children { path: map(path) },
            Request::Create { path, node } => Request::Create { path: map(path), node },
            Request::Write { path, content, version } => Request::Write { path: map(path), content, version },
            Request::Delete { path, version } => Request::Delete { path: map(path), version },
        }
    }
}

/// Where requests wait until they are answered. Every method hands back what the core is to be told, in order.
#[derive(Debug, Default)]
pub(super) struct Desk {
    /// There is a connection to carry them out on.
    open: bool,
    /// The first one may be under way; it stays until it is answered.
    queue: VecDeque<(u64, Request)>,
    /// The path of the one under way.
    under_way: Option<String>,
    readings: Readings,
    /// Readings that were outdated while a request for the same path was under way: its answer goes first.
    late: Vec<String>,
    /// Writes that were acknowledged.
    pub(super) writes: u64,
}

impl Desk {
    /// Takes a request. `Ok`: whether the queue was empty; `Err`: the answer, as it cannot be carried out.
    pub(super) fn add(&mut self, token: u64, request: Request) -> Result<bool, RegistryEvent> {
        if !self.open || self.queue.len() >= MOST_REQUESTS {
            return Err(RegistryEvent::Answered { token, answer: Answer::Lost });
        }
        self.queue.push_back((token, request));
        Ok(self.queue.len() == 1)
    }

    /// A connection stands; what was read on another is forgotten.
    pub(super) fn open(&mut self) {
        self.open = true;
    }

    /// A new client has no watches.
    pub(super) fn forget_readings(&mut self) {
        self.readings.clear();
        self.late.clear();
    }

    /// The connection is gone, and with it all that waits.
    pub(super) fn close(&mut self) -> Vec<RegistryEvent> {
        self.open = false;
        self.under_way = None;
        self.forget_readings();
        let lost = |(token, _)| RegistryEvent::Answered { token, answer: Answer::Lost };
        self.queue.drain(..).map(lost).collect()
    }

    /// The request to be carried out now.
    pub(super) fn begin(&mut self) -> Option<Request> {
        let (_, request) = self.queue.front()?;
        let path = request.path().to_owned();
        match request {
            Request::Read { .. } => self.readings.note(&path, Kind::Node),
            Request::Children { .. } => self.readings.note(&path, Kind::Children),
            _ => {}
        }
        self.under_way = Some(path);
        Some(request.clone())
    }

    /// It was carried out.
    pub(super) fn finish(&mut self, answer: Answer) -> Vec<RegistryEvent> {
        self.under_way = None;
        let Some((token, _)) = self.queue.pop_front() else { return Vec::new() };
        self.writes += u64::from(matches!(answer, Answer::Created | Answer::Written(_) | Answer::Deleted));
        let answered = RegistryEvent::Answered { token, answer };
        let late = mem::take(&mut self.late).into_iter().map(|path| RegistryEvent::Changed { path });
        [answered].into_iter().chain(late).collect()
    }

    /// A watch fired.
    pub(super) fn happened(&mut self, path: &str, happening: Happening) -> Option<RegistryEvent> {
        if !self.readings.outdate(path, happening) {
            return None;
        }
        if self.under_way.as_deref() == Some(path) {
            self.late.push(path.to_owned());
            return None;
        }
        Some(RegistryEvent::Changed { path: path.to_owned() })
    }
}

/// Carries out all that wait.
///
/// # Errors
/// When the connection is gone; the request under way stays in the queue.
pub(super) fn serve(store: &mut dyn Store, shared: &Shared) -> Result<(), Fault> {
    while let Some(request) = shared.next_request() {
        let answer = match carry_out(store, &request) {
            Ok(answer) => answer,
            Err(Fault::Refused(why)) => Answer::Refused(why),
            Err(lost) => return Err(lost),
        };
        shared.answer(answer);
    }
    Ok(())
}

/// Asks the registry.
///
/// # Errors
/// As the store has them.
pub(super) fn carry_out(store: &mut dyn Store, request: &Request) -> Result<Answer, Fault> {
    Ok(match request {
        Request::Read { path } => {
            let seen = watched(store, path, |store| store.read(path, true))?;
            let found =
                |seen: Seen| Found { content: seen.content, version: seen.version, owner: seen.owner };
            Answer::Node(seen.map(found))
        }
        Request::Children { path } => {
            Answer::Names(watched(store, path, |store| store.children(path, true))?)
        }
        Request::Create { path, node } => create(store, path, node)?,
        Request::Write { path, content, version } => match store.write(path, content, *version)? {
            Written::Done(version) => Answer::Written(version),
            Written::Stale => Answer::Stale,
        },
        Request::Delete { path, version } => {
            if store.delete(path, *version)? {
                Answer::Deleted
            } else {
                Answer::Stale
            }
        }
    })
}

/// Reads with a watch: on what is there, or for its creation.
fn watched<T>(
    store: &mut dyn Store,
    path: &str,
    mut read: impl FnMut(&mut dyn Store) -> Result<Option<T>, Fault>,
) -> Result<Option<T>, Fault> {
    for _ in 0..ATTEMPTS {
        if let Some(found) = read(store)? {
            return Ok(Some(found));
        }
        if !store.await_creation(path)? {
            return Ok(None);
        }
    }
    Err(Fault::Refused("it comes and goes".into()))
}

fn create(store: &mut dyn Store, path: &str, node: &Node) -> Result<Answer, Fault> {
    for _ in 0..ATTEMPTS {
        match store.create(path, node)? {
            Created::Done => return Ok(Answer::Created),
            Created::Exists => return Ok(Answer::Exists),
            Created::NoParent => create_parent(store, path)?,
        }
    }
    Err(Fault::Refused("its parent comes and goes".into()))
}

/// From below: whoever owns what is above need not let us create there.
fn create_parent(store: &mut dyn Store, path: &str) -> Result<(), Fault> {
    let Some((parent, _)) = path.rsplit_once('/').filter(|(parent, _)| !parent.is_empty()) else {
        return Ok(());
    };
    let empty = Node { mode: Mode::Persistent, content: Vec::new() };
    if store.create(parent, &empty)? == Created::NoParent {
        create_parent(store, parent)?;
        store.create(parent, &empty)?;
    }
    Ok(())
}

/// The store as the reconciliation has it: before each of its requests, all that wait at the desk go first, and the
/// events of its own writes are announced so that they do not come back to it.
pub(super) struct Behind<'a> {
    store: &'a mut dyn Store,
    shared: &'a Shared,
}

impl<'a> Behind<'a> {
    /// Behind the requests of `shared`.
    pub(super) fn new(store: &'a mut dyn Store, shared: &'a Shared) -> Behind<'a> {
        Behind { store, shared }
    }

    fn serve(&mut self) -> Result<(), Fault> {
        serve(self.store, self.shared)
    }
}

impl Store for Behind<'_> {
    fn session(&self) -> i64 {
        self.store.session()
    }

    fn timeout(&self) -> Duration {
        self.store.timeout()
    }

    fn read(&mut self, path: &str, watch: bool) -> Result<Option<Seen>, Fault> {
        self.serve()?;
        self.store.read(path, watch)
    }

    fn await_creation(&mut self, path: &str) -> Result<bool, Fault> {
        self.serve()?;
        self.store.await_creation(path)
    }

    fn create(&mut self, path: &str, node: &Node) -> Result<Created, Fault> {
        self.serve()?;
        self.store.create(path, node)
    }

    fn write(&mut self, path: &str, content: &[u8], version: i32) -> Result<Written, Fault> {
        self.serve()?;
        self.shared.expect_event(path);
        let outcome = self.store.write(path, content, version);
        if !matches!(outcome, Ok(Written::Done(_))) {
            self.shared.unexpect_event(path);
        }
        outcome
    }

    fn delete(&mut self, path: &str, version: i32) -> Result<bool, Fault> {
        self.serve()?;
        self.store.delete(path, version)
    }

    fn children(&mut self, path: &str, watch: bool) -> Result<Option<Vec<String>>, Fault> {
        self.serve()?;
        self.store.children(path, watch)
    }
}

#[cfg(test)]
mod tests;
