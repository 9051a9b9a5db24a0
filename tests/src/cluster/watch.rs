//! What a client of the shard sees in ZooKeeper, as it changes: kazoo's watches, each change with its moment.

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Stdio},
    sync::{Arc, Condvar, Mutex},
    thread,
    time::{Duration, Instant},
};

use rustix::time::{ClockId, clock_gettime};
use serde_json::Value;

use super::net::Space;
use crate::{programs::system_python, wait};

/// The monotonic clock, which all processes share.
pub fn monotonic() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or_default())
}

/// A change that was seen.
#[derive(Clone, Debug)]
pub struct Seen {
    /// When, by [`monotonic`]. The change itself was at most some milliseconds earlier.
    pub at: Duration,
    /// The node, without the shard's path.
    pub node: String,
    /// What it holds now; null when it is gone.
    pub content: Value,
    /// The session of an ephemeral.
    pub owner: i64,
}

/// A master that was published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// When it was seen.
    pub at: Duration,
    /// Its epoch.
    pub epoch: u64,
    /// Where it is.
    pub master: SocketAddr,
}

/// All changes so far, oldest first.
#[derive(Debug, Default)]
struct Log {
    seen: Mutex<Vec<Seen>>,
    news: Condvar,
}

/// Watches `state`, `lock`, `config`, `pause` and the members of a shard.
#[derive(Clone, Debug)]
pub struct Watch {
    log: Arc<Log>,
    _process: Arc<Process>,
}

#[derive(Debug)]
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Watch {
    /// Watches the shard at `path` with these members from a host of the network.
    pub fn start(space: &Space, servers: &str, path: &str, members: &[String]) -> Watch {
        let mut nodes: Vec<String> = ["state", "lock", "config", "pause"].map(str::to_owned).to_vec();
        nodes.extend(members.iter().map(|member| format!("members/{member}")));
        let mut child = space
            .command(system_python())
            .args(["-c", include_str!("watcher.py"), servers])
            .args(nodes.iter().map(|node| format!("{path}/{node}")))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("cannot start python3");
        let lines = BufReader::new(child.stdout.take().expect("no pipe"));
        let log = Arc::new(Log::default());
        thread::spawn({
            let (log, prefix) = (log.clone(), format!("{path}/"));
            move || {
                for line in lines.lines().map_while(Result::ok) {
                    log.seen.lock().unwrap().push(parse(&line, &prefix));
                    log.news.notify_all();
                }
            }
        });
        let watch = Watch { log, _process: Arc::new(Process(child)) };
        watch.wait("every node was read once", |seen| {
            wait::check(nodes.iter().all(|node| seen.iter().any(|it| it.node == *node)), || "not yet".into())
        });
        watch
    }

    /// Waits until `look`, which gets all changes so far, is `Ok`; it is called at each change.
    pub fn wait<T>(&self, what: &str, mut look: impl FnMut(&[Seen]) -> Result<T, String>) -> T {
        let deadline = Instant::now() + wait::DEADLINE;
        let mut seen = self.log.seen.lock().unwrap();
        loop {
            let why = match look(&seen) {
                Ok(found) => return found,
                Err(why) => why,
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(seen);
                panic!("not within {:?}: {what}: {why}", wait::DEADLINE);
            }
            seen = self.log.news.wait_timeout(seen, left).unwrap().0;
        }
    }

    /// All changes so far.
    pub fn all(&self) -> Vec<Seen> {
        self.log.seen.lock().unwrap().clone()
    }

    /// What a node holds now; null when it isn't there.
    pub fn node(&self, node: &str) -> Value {
        latest(&self.log.seen.lock().unwrap(), node)
    }

    /// What `state` holds now.
    pub fn state(&self) -> Value {
        self.node("state")
    }

    /// The epoch of `state`; 0 without one.
    pub fn epoch(&self) -> u64 {
        self.state()["epoch"].as_u64().unwrap_or_default()
    }

    /// The masters that were published, oldest first, each once.
    pub fn publications(&self) -> Vec<Publication> {
        publications(&self.log.seen.lock().unwrap())
    }

    /// Where clients write: the master that was published last.
    pub fn master(&self) -> Option<SocketAddr> {
        let seen = self.log.seen.lock().unwrap();
        seen.iter().rev().find_map(publication).map(|it| it.master)
    }

    /// Waits until a master of an epoch after `epoch` is published.
    pub fn wait_published(&self, epoch: u64) -> Publication {
        self.wait(&format!("a master after epoch {epoch} is published"), |seen| {
            let found = publications(seen).into_iter().find(|it| it.epoch > epoch);
            found.ok_or_else(|| latest(seen, "state").to_string())
        })
    }

    /// Waits until the latest content of `node` is accepted.
    pub fn wait_node(&self, node: &str, what: &str, mut accept: impl FnMut(&Value) -> bool) -> Value {
        self.wait(what, |seen| {
            let content = latest(seen, node);
            if accept(&content) { Ok(content) } else { Err(content.to_string()) }
        })
    }
}

fn parse(line: &str, prefix: &str) -> Seen {
    let line: Value = serde_json::from_str(line).expect("the watcher tells JSON");
    let content = line["content"].as_str().and_then(|text| serde_json::from_str(text).ok());
    let path = line["path"].as_str().unwrap_or_default();
    Seen {
        at: Duration::from_secs_f64(line["at"].as_f64().unwrap_or_default()),
        node: path.strip_prefix(prefix).unwrap_or(path).to_owned(),
        content: content.unwrap_or_default(),
        owner: line["owner"].as_i64().unwrap_or_default(),
    }
}

fn latest(seen: &[Seen], node: &str) -> Value {
    seen.iter().rev().find(|it| it.node == node).map(|it| it.content.clone()).unwrap_or_default()
}

fn publication(seen: &Seen) -> Option<Publication> {
    if seen.node != "state" || seen.content["phase"] != "done" {
        return None;
    }
    let master = seen.content["master"].as_str()?.parse().ok()?;
    Some(Publication { at: seen.at, epoch: seen.content["epoch"].as_u64()?, master })
}

fn publications(seen: &[Seen]) -> Vec<Publication> {
    let mut found: Vec<Publication> = seen.iter().filter_map(publication).collect();
    found.dedup_by(|later, earlier| (later.epoch, later.master) == (earlier.epoch, earlier.master));
    found
}
