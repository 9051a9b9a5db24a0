//! The client library under control: built, called and dropped here and nowhere else. Every call may be answered by the
//! gate with a lost connection; panics of the library end here.

use std::{
    any::Any,
    panic::{self, AssertUnwindSafe},
    sync::{Arc, Once, atomic::AtomicBool},
    thread,
    time::{Duration, Instant},
};

use zookeeper::{Acl, CreateMode, Permission, WatchedEvent, WatchedEventType, Watcher, ZkError, ZooKeeper};

use super::{
    LOG, Mode, Node,
    readings::Happening,
    reconcile::{Created, Fault, Seen, Store, Written},
    shared::{Link, Shared},
};

/// The greatest packet that a server takes unless told otherwise, less its headers and access list.
const MOST_CONTENT: usize = 0xf_ffff - 512;

/// How long a cut client may take to come back to the gate.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);

/// The library keeps this in its event thread, which outlives its io thread: dropped, both are at their end.
struct Sentinel {
    shared: Arc<Shared>,
    epoch: u64,
    gone: Arc<AtomicBool>,
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        self.shared.client_gone(&self.gone);
    }
}

impl Watcher for Sentinel {
    fn handle(&self, event: WatchedEvent) {
        let happening = match event.event_type {
            WatchedEventType::NodeCreated => Happening::Created,
            WatchedEventType::NodeDataChanged => Happening::Written,
            WatchedEventType::NodeDeleted => Happening::Deleted,
            WatchedEventType::NodeChildrenChanged => Happening::Children,
            _ => return,
        };
        if let Some(path) = event.path {
            self.shared.watch_fired(self.epoch, &path, happening);
        }
    }
}

/// A client of one connection of the gate.
pub(super) struct Client {
    zookeeper: Option<ZooKeeper>,
    shared: Arc<Shared>,
    gone: Arc<AtomicBool>,
    link: Link,
    acl: Vec<Acl>,
}

impl Client {
    /// A client that speaks through the gate's connection `link`.
    ///
    /// # Errors
    /// When the library cannot start.
    pub(super) fn connect(shared: &Arc<Shared>, link: Link, with_auth: bool) -> Result<Client, Fault> {
        quiet_the_library();
        shared.relay(link.epoch);
        let gone = Arc::new(AtomicBool::new(false));
        let sentinel = Sentinel { shared: Arc::clone(shared), epoch: link.epoch, gone: Arc::clone(&gone) };
        let door = format!("127.0.0.1:{}", shared.port());
        let timeout = link.timeout;
        let zookeeper = guarded(shared, || ZooKeeper::connect(&door, timeout, sentinel))?;
        let acl = if with_auth { owner_writes_all_read() } else { Acl::open_unsafe().clone() };
        Ok(Client { zookeeper: Some(zookeeper), shared: Arc::clone(shared), gone, link, acl })
    }

    /// The connection that it belongs to.
    pub(super) fn link(&self) -> &Link {
        &self.link
    }

    /// Proves who we are by the digest scheme.
    ///
    /// # Errors
    /// [`Fault::Refused`] when the server does not believe it.
    pub(super) fn authenticate(&self, credentials: &str) -> Result<(), Fault> {
        match self.call(|zk| zk.add_auth("digest", credentials.as_bytes().to_vec()))? {
            Ok(()) => Ok(()),
            Err(e) => Err(fault(e)),
        }
    }

    /// Asks something harmless.
    ///
    /// # Errors
    /// When the connection is gone.
    pub(super) fn touch(&self, path: &str) -> Result<(), Fault> {
        match self.call(|zk| zk.exists(path, false))? {
            Ok(_) | Err(ZkError::NoAuth) => Ok(()),
            Err(e) => Err(fault(e)),
        }
    }

    /// Ends a client whose connection is gone; tells whether its threads are within `limit`. It is dropped only once it
    /// has come back to the gate: a drop that meets the cut is lost, and leaves the threads behind.
    pub(super) fn retire(self, limit: Duration) -> bool {
        let now = Instant::now();
        self.shared.wait_drained(now + DRAIN_LIMIT.min(limit), &self.gone);
        self.say_goodbye(limit)
    }

    /// Drops the client, which ends the session where the connection stands, and waits until its threads are gone; tells
    /// whether they are within `limit`.
    pub(super) fn say_goodbye(mut self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let zookeeper = self.zookeeper.take();
        // A panic in here has been told by the hook, and what counts is whether the threads go.
        let _ = guarded::<()>(&self.shared, || {
            drop(zookeeper);
            Ok(())
        });
        self.shared.client_dropped();
        self.shared.wait_gone(deadline, &self.gone)
    }

    fn call<T>(
        &self,
        what: impl FnOnce(&ZooKeeper) -> Result<T, ZkError>,
    ) -> Result<Result<T, ZkError>, Fault> {
        let Some(zookeeper) = &self.zookeeper else { return Err(Fault::Lost("no client".into())) };
        guarded(&self.shared, || Ok(what(zookeeper)))
    }
}

impl Store for Client {
    fn session(&self) -> i64 {
        self.link.session
    }

    fn timeout(&self) -> Duration {
        self.link.timeout
    }

    fn read(&mut self, path: &str, watch: bool) -> Result<Option<Seen>, Fault> {
        match self.call(|zk| zk.get_data(path, watch))? {
            Ok((content, stat)) => {
                if watch {
                    self.shared.watched_anew(path);
                }
                Ok(Some(Seen { content, version: stat.version, owner: stat.ephemeral_owner }))
            }
            Err(ZkError::NoNode) => Ok(None),
            Err(e) => Err(fault(e)),
        }
    }

    fn create(&mut self, path: &str, node: &Node) -> Result<Created, Fault> {
        check_size(path, &node.content)?;
        let mode = match node.mode {
            Mode::Persistent => CreateMode::Persistent,
            Mode::Ephemeral => CreateMode::Ephemeral,
        };
        match self.call(|zk| zk.create(path, node.content.clone(), self.acl.clone(), mode))? {
            Ok(_) => Ok(Created::Done),
            Err(ZkError::NodeExists) => Ok(Created::Exists),
            Err(ZkError::NoNode) => Ok(Created::NoParent),
            Err(e) => Err(fault(e)),
        }
    }

    fn write(&mut self, path: &str, content: &[u8], version: i32) -> Result<Written, Fault> {
        check_size(path, content)?;
        match self.call(|zk| zk.set_data(path, content.to_vec(), Some(version)))? {
            Ok(stat) => Ok(Written::Done(stat.version)),
            Err(ZkError::BadVersion | ZkError::NoNode) => Ok(Written::Stale),
            Err(e) => Err(fault(e)),
        }
    }

    fn delete(&mut self, path: &str, version: i32) -> Result<bool, Fault> {
        match self.call(|zk| zk.delete(path, Some(version)))? {
            Ok(()) => Ok(true),
            Err(ZkError::BadVersion | ZkError::NoNode | ZkError::NotEmpty) => Ok(false),
            Err(e) => Err(fault(e)),
        }
    }

    fn children(&mut self, path: &str, watch: bool) -> Result<Option<Vec<String>>, Fault> {
        match self.call(|zk| zk.get_children(path, watch))? {
            Ok(names) => Ok(Some(names)),
            Err(ZkError::NoNode) => Ok(None),
            Err(e) => Err(fault(e)),
        }
    }

    fn await_creation(&mut self, path: &str) -> Result<bool, Fault> {
        match self.call(|zk| zk.exists(path, true))? {
            Ok(found) => Ok(found.is_some()),
            Err(e) => Err(fault(e)),
        }
    }
}

/// Whoever made the node may do all, everybody may read.
fn owner_writes_all_read() -> Vec<Acl> {
    let mut acl = Acl::creator_all().clone();
    acl.push(Acl::new(Permission::READ, "world", "anyone"));
    acl
}

/// A server drops the connection of one who sends too much, so it must not be tried.
pub(super) fn check_size(path: &str, content: &[u8]) -> Result<(), Fault> {
    if path.len() + content.len() > MOST_CONTENT {
        let kib = content.len() / 1024;
        return Err(Fault::Refused(format!("content of {kib} KiB is more than ZooKeeper takes (1 MiB)")));
    }
    Ok(())
}

/// Whether an error means the connection or this path.
fn fault(error: ZkError) -> Fault {
    match error {
        ZkError::ConnectionLoss
        | ZkError::SessionExpired
        | ZkError::SessionMoved
        | ZkError::OperationTimeout
        | ZkError::MarshallingError
        | ZkError::SystemError => Fault::Lost(format!("{error:?}")),
        ZkError::NoAuth => Fault::Refused("access denied (NoAuth)".into()),
        ZkError::AuthFailed => Fault::Refused("the credentials are not accepted (AuthFailed)".into()),
        ZkError::NotReadOnly => Fault::Refused("the server has no quorum and only reads".into()),
        error => Fault::Refused(format!("{error:?}")),
    }
}

/// Calls into the library: the gate watches how long it takes, and a panic is a lost connection.
fn guarded<T>(shared: &Shared, call: impl FnOnce() -> Result<T, ZkError>) -> Result<T, Fault> {
    shared.calling(Some(Instant::now()));
    let outcome = panic::catch_unwind(AssertUnwindSafe(call));
    shared.calling(None);
    match outcome {
        Ok(result) => result.map_err(fault),
        Err(payload) => Err(Fault::Lost(format!("the ZooKeeper client panicked: {}", message(&*payload)))),
    }
}

fn message(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// One log line for a panic of the library's threads instead of a report on standard error; all others report as ever.
fn quiet_the_library() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let thread = thread::current();
            match thread.name() {
                Some("io" | "event") => {
                    let line = info.to_string().replace('\n', " ");
                    log::warn!(target: LOG, "the ZooKeeper client's thread: {line}");
                }
                _ => usual(info),
            }
        }));
    });
}
