//! An application that writes numbers without end, and remembers which writes were acknowledged, by whom and when.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use super::{
    net::Space,
    watch::{Publication, Watch, monotonic},
};
use crate::{cache::Redis, wait};

/// Every writer of this program has numbers of its own.
static NEXT: AtomicU64 = AtomicU64::new(1);
/// An application's pace.
const PACE: Duration = Duration::from_millis(1);

/// So long after its promotion, at most, a master is seen published.
const PUBLISHED_WITHIN: Duration = Duration::from_millis(500);

/// Where a writer writes to.
#[derive(Clone, Debug)]
pub enum Belief {
    /// The master that was published last.
    Published(Watch),
    /// Always the same server.
    Stubborn(SocketAddr),
    /// Whatever it was told last.
    Told(Arc<Mutex<SocketAddr>>),
}

/// A write that was acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ack {
    /// The number that was written.
    pub number: u64,
    /// Who acknowledged it.
    pub by: SocketAddr,
    /// When it was sent, by [`monotonic`].
    pub sent: Duration,
    /// When the acknowledgement was there.
    pub at: Duration,
}

/// What a writer saw.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// In order.
    pub acks: Vec<Ack>,
    /// How often writes failed, by the error's first word.
    pub errors: BTreeMap<String, u64>,
}

/// A writer at work.
#[derive(Debug)]
pub struct Writer {
    stop: Arc<AtomicBool>,
    record: Arc<Mutex<Record>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Begins to write from a host of the network. A call that takes longer than `patience` is given up.
    pub fn start(space: &Arc<Space>, belief: Belief, patience: Duration) -> Writer {
        let (stop, record) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Record::default())));
        let thread = thread::spawn({
            let (space, stop, record) = (space.clone(), stop.clone(), record.clone());
            move || {
                space.enter();
                drive(&belief, patience, &stop, &record);
            }
        });
        Writer { stop, record, thread: Some(thread) }
    }

    /// What it has seen so far.
    pub fn so_far(&self) -> Record {
        self.record.lock().unwrap().clone()
    }

    /// How many writes were acknowledged so far.
    pub fn count(&self) -> usize {
        self.record.lock().unwrap().acks.len()
    }

    /// Waits until `more` further writes are acknowledged.
    pub fn wait_progress(&self, more: usize) {
        let before = self.count();
        wait::until("writes are acknowledged", || {
            wait::check(self.count() >= before + more, || format!("{:?}", self.record.lock().unwrap().errors))
        });
    }

    /// Waits until a write that was sent from now on is acknowledged by `by`.
    pub fn wait_ack_by(&self, by: SocketAddr) {
        let from = monotonic();
        wait::until(&format!("{by} acknowledges a write"), || {
            let record = self.record.lock().unwrap();
            let found = record.acks.iter().rev().take_while(|ack| ack.sent >= from).any(|ack| ack.by == by);
            wait::check(found, || format!("errors: {:?}, last: {:?}", record.errors, record.acks.last()))
        });
    }

    /// Ends it.
    pub fn finish(mut self) -> Record {
        self.end();
        self.so_far()
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.end();
    }
}

/// The key under which a number is written.
pub fn key(number: u64) -> String {
    format!("w:{number}")
}

fn drive(belief: &Belief, patience: Duration, stop: &AtomicBool, record: &Mutex<Record>) {
    let mut link: Option<(SocketAddr, Redis)> = None;
    while !stop.load(Ordering::Relaxed) {
        thread::sleep(PACE);
        let target = match belief {
            Belief::Published(watch) => watch.master(),
            Belief::Stubborn(address) => Some(*address),
            Belief::Told(address) => Some(*address.lock().unwrap()),
        };
        let Some(target) = target else { continue };
        if link.as_ref().is_none_or(|(address, _)| *address != target) {
            link = Redis::connect_to(target, patience).ok().map(|redis| (target, redis));
        }
        let Some((_, redis)) = &mut link else {
            fail(record, "unreachable");
            continue;
        };
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let sent = monotonic();
        match redis.call(&["SET", &key(number), &number.to_string()]) {
            Ok(_) => record.lock().unwrap().acks.push(Ack { number, by: target, sent, at: monotonic() }),
            Err(error) => {
                let text = error.to_string();
                let word = text.split_whitespace().next().unwrap_or_default();
                // An answer that is an error leaves the connection usable; anything else doesn't.
                let answered = !word.is_empty() && word.chars().all(|c| c.is_ascii_uppercase());
                fail(record, if answered { word } else { "broken" });
                if !answered {
                    link = None;
                }
            }
        }
    }
}

fn fail(record: &Mutex<Record>, why: &str) {
    *record.lock().unwrap().errors.entry(why.to_owned()).or_default() += 1;
}

impl Record {
    /// Acknowledgements of writes that were sent to a server after another was seen published in its place.
    pub fn strays(&self, published: &[Publication]) -> Vec<Ack> {
        let stray = |ack: &&Ack| {
            let now = published.iter().rposition(|it| it.at < ack.sent);
            now.is_some_and(|now| {
                // Between promotion and publication the next master may take writes already.
                let next = published.get(now + 1).filter(|next| next.at < ack.sent + PUBLISHED_WITHIN);
                published[now].master != ack.by && next.is_none_or(|next| next.master != ack.by)
            })
        };
        self.acks.iter().filter(stray).cloned().collect()
    }

    /// The longest time without an acknowledgement, of those between the first and the last.
    pub fn longest_gap(&self) -> Duration {
        self.acks.windows(2).map(|pair| pair[1].at.saturating_sub(pair[0].at)).max().unwrap_or_default()
    }

    /// The numbers that were acknowledged.
    pub fn numbers(&self) -> BTreeSet<u64> {
        self.acks.iter().map(|ack| ack.number).collect()
    }

    /// The last acknowledgement by a server.
    pub fn last_by(&self, by: SocketAddr) -> Option<&Ack> {
        self.acks.iter().rev().find(|ack| ack.by == by)
    }

    /// The first acknowledgement by a server.
    pub fn first_by(&self, by: SocketAddr) -> Option<&Ack> {
        self.acks.iter().find(|ack| ack.by == by)
    }
}
