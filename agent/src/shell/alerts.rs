//! The alert sender: a thread that delivers alerts to the sinks, with a spool on disk; and another that keeps on disk which
//! alerts go on, for the next run to resolve them. A disk that hangs keeps no alert from being delivered.
//!
//! What is worth telling is decided by the alert book; here it is told. The log gets every alert at once. The command
//! gets one at a time, in order, as JSON on its standard input. What it does not take goes to the [`spool`] and is
//! tried again, also by the next run of the agent. Only these threads touch the disk or wait for the command.

mod command;
mod spool;

use std::{
    collections::{BTreeMap, VecDeque},
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use serde::Serialize;

use self::{command::Delivery, spool::Spool};
use super::waker::Waker;
use crate::{
    config::AlertSettings,
    core::alert::{Alert, AlertState, Severity},
};

pub use self::command::{InFlight, child_in_flight};

/// Alerts that may wait in memory. Beyond, the oldest is dropped and counted.
const WAITING_AT_MOST: usize = 256;

/// After a failure the command is tried again after this, doubled with each further failure.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// The retries never are further apart than this.
const LAST_RETRY: Duration = Duration::from_secs(300);

/// The alerts that go on, as JSON.
const ACTIVE_FILE: &str = "active-alerts.json";

/// Who sends: told with every alert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// This host's address.
    pub host: String,
    /// The host's group.
    pub group: String,
}

/// Figures for `status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct AlertStatus {
    /// Alerts that the command took.
    pub delivered: u64,
    /// Alerts that wait in memory.
    pub waiting: usize,
    /// Alerts that wait on disk.
    pub spooled: usize,
    /// Alerts lost, for want of room in memory and on disk.
    pub dropped: u64,
    /// Why the last delivery failed; empty when it did not.
    pub failing: String,
}

/// The loop's end of the sender. No method blocks, except [`close`](Self::close) within its limit.
#[derive(Debug)]
pub struct AlertSender {
    shared: Arc<Shared>,
    /// Makes the thread look at the time by which its command must be done.
    hurry: Waker,
}

#[derive(Debug)]
struct Shared {
    desk: Mutex<Desk>,
    /// Something on the desk changed.
    news: Condvar,
}

/// What the loop and the thread share. The lock is never held while something is waited for.
#[derive(Debug)]
struct Desk {
    settings: AlertSettings,
    origin: Origin,
    /// Payloads that the thread did not take yet.
    queue: VecDeque<Vec<u8>>,
    /// The alerts that go on, as they were told last.
    active: BTreeMap<String, Alert>,
    /// The disk does not have them yet.
    active_due: bool,
    status: AlertStatus,
    /// The settings were replaced.
    fresh: bool,
    /// By when the threads must be done.
    closing: Option<Instant>,
    /// How many of them are not.
    threads: u8,
}

impl AlertSender {
    /// Starts the threads. What an earlier run left in `spool_dir` is delivered first; which alerts went on then is in
    /// a file beside it. `waker` is woken whenever
    /// [`child_in_flight`] goes back to none.
    ///
    /// # Errors
    /// When a thread cannot be started, or no descriptor is left.
    pub fn start(
        settings: &AlertSettings,
        spool_dir: PathBuf,
        origin: Origin,
        waker: Waker,
    ) -> io::Result<AlertSender> {
        let active_file = spool_dir.with_file_name(ACTIVE_FILE);
        let desk = Desk {
            settings: settings.clone(),
            origin,
            queue: VecDeque::new(),
            active: read_active(&active_file),
            active_due: false,
            status: AlertStatus::default(),
            fresh: false,
            closing: None,
            threads: 2,
        };
        let shared = Arc::new(Shared { desk: Mutex::new(desk), news: Condvar::new() });
        let its = shared.clone();
        let hurry = Waker::new()?;
        let command = command::Runner::new(waker, hurry.clone());
        thread::Builder::new().name("alert-sender".into()).spawn(move || {
            Sender::new(&its, Spool::new(spool_dir), command).run();
            its.ended();
        })?;
        let its = shared.clone();
        thread::Builder::new().name("alert-keeper".into()).spawn(move || {
            its.keep_active(&active_file);
            its.ended();
        })?;
        Ok(AlertSender { shared, hurry })
    }

    /// The alerts that went on when the former run ended.
    pub fn inherited(&self) -> Vec<Alert> {
        self.shared.desk().active.values().cloned().collect()
    }

    /// Tells the sinks.
    pub fn send(&self, alert: &Alert) {
        log_alert(alert);
        let mut desk = self.shared.desk();
        match alert.state {
            AlertState::Firing => desk.active.insert(alert.key.clone(), alert.clone()),
            AlertState::Resolved => desk.active.remove(&alert.key),
        };
        desk.active_due = true;
        if desk.settings.command.is_empty() {
            drop(desk);
            return self.shared.news.notify_all();
        }
        match payload(alert, &desk.origin) {
            Ok(payload) => desk.queue.push_back(payload),
            Err(e) => log::error!("cannot write alert {} as JSON: {e}", alert.key),
        }
        if desk.queue.len() > WAITING_AT_MOST {
            desk.queue.pop_front();
            desk.status.dropped += 1;
        }
        drop(desk);
        self.shared.news.notify_all();
    }

    /// Replaces the settings. What waits is tried again at once.
    pub fn configure(&self, settings: &AlertSettings, origin: Origin) {
        let mut desk = self.shared.desk();
        (desk.settings, desk.origin, desk.fresh) = (settings.clone(), origin, true);
        drop(desk);
        self.shared.news.notify_all();
    }

    /// How it stands.
    pub fn status(&self) -> AlertStatus {
        let desk = self.shared.desk();
        let mut status = desk.status.clone();
        status.waiting += desk.queue.len();
        status
    }

    /// Delivers what it can within `limit` and puts the rest on disk. Returns whether the threads got that far.
    pub fn close(&self, limit: Duration) -> bool {
        let mut desk = self.shared.desk();
        desk.closing = Some(Instant::now() + limit);
        self.hurry.wake();
        self.shared.news.notify_all();
        // Half a second more than the thread has: the rest must be put on disk.
        let wait =
            self.shared.news.wait_timeout_while(desk, limit + Duration::from_millis(500), |d| d.threads > 0);
        wait.unwrap_or_else(PoisonError::into_inner).0.threads == 0
    }
}

impl Drop for AlertSender {
    fn drop(&mut self) {
        let mut desk = self.shared.desk();
        desk.closing.get_or_insert_with(Instant::now);
        drop(desk);
        self.hurry.wake();
        self.shared.news.notify_all();
    }
}

impl Shared {
    fn ended(&self) {
        self.desk().threads -= 1;
        self.news.notify_all();
    }

    /// The other thread. Where a write fails it is done with the next alert that begins or ends.
    fn keep_active(&self, file: &Path) {
        loop {
            let desk = self.desk();
            let idle = |desk: &mut Desk| !desk.active_due && desk.closing.is_none();
            let mut desk = self.news.wait_while(desk, idle).unwrap_or_else(PoisonError::into_inner);
            if !std::mem::take(&mut desk.active_due) {
                return;
            }
            let json = serde_json::to_vec(&desk.active.values().collect::<Vec<_>>());
            drop(desk);
            if let Err(e) = json.map_err(io::Error::from).and_then(|json| spool::write(file, &json, true)) {
                log::warn!("cannot keep the alerts that go on in {}: {e}", file.display());
            }
        }
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What cannot be read is as good as nothing: what goes on fires again.
fn read_active(file: &Path) -> BTreeMap<String, Alert> {
    let read = fs::read(file).and_then(|bytes| Ok(serde_json::from_slice::<Vec<Alert>>(&bytes)?));
    let alerts = read.unwrap_or_else(|e| {
        if e.kind() != io::ErrorKind::NotFound {
            log::warn!("{}: {e}; alerts that went on before may never be resolved", file.display());
        }
        Vec::new()
    });
    alerts.into_iter().map(|alert| (alert.key.clone(), alert)).collect()
}

fn log_alert(alert: &Alert) {
    let level = match (alert.state, alert.severity) {
        (AlertState::Resolved, _) | (_, Severity::Info) => log::Level::Info,
        (_, Severity::Warning) => log::Level::Warn,
        (_, Severity::Critical) => log::Level::Error,
    };
    let state = if alert.state == AlertState::Firing { "alert" } else { "resolved" };
    log::log!(level, "{state} {}: {} (count {})", alert.key, alert.summary, alert.count);
}

fn payload(alert: &Alert, origin: &Origin) -> serde_json::Result<Vec<u8>> {
    #[derive(Serialize)]
    struct Payload<'a> {
        #[serde(flatten)]
        alert: &'a Alert,
        host: &'a str,
        group: &'a str,
        agent: &'a str,
    }
    let agent = env!("CARGO_PKG_VERSION");
    let mut json = serde_json::to_vec(&Payload { alert, host: &origin.host, group: &origin.group, agent })?;
    json.push(b'\n');
    Ok(json)
}

/// The thread. What is on disk is older than what is in memory, and is delivered before it.
struct Sender<'a> {
    shared: &'a Shared,
    spool: Spool,
    command: command::Runner,
    memory: VecDeque<Vec<u8>>,
    failures: u32,
    /// Nothing is tried before.
    retry_at: Option<Instant>,
    /// The disk was told of as failing.
    spool_failed: bool,
}

/// What the thread works with until it looks at the desk again.
struct Order {
    settings: AlertSettings,
    closing: Option<Instant>,
}

impl<'a> Sender<'a> {
    fn new(shared: &'a Shared, spool: Spool, command: command::Runner) -> Sender<'a> {
        let memory = VecDeque::new();
        Sender { shared, spool, command, memory, failures: 0, retry_at: None, spool_failed: false }
    }

    fn run(mut self) {
        let dropped = self.spool.open();
        self.count_dropped(dropped);
        loop {
            let order = self.next_order();
            if order.closing.is_some_and(|by| Instant::now() >= by) || self.is_done(&order) {
                self.put_away(false);
                return self.report(&mut self.shared.desk());
            }
            let tries = self.may_try(&order);
            // A command that is slow fills the memory as well as one that fails.
            if !tries || self.memory.len() > WAITING_AT_MOST {
                self.put_away(order.closing.is_none());
            }
            if tries {
                self.deliver_next(&order);
            }
        }
    }

    /// Takes the news from the desk; waits for some when there is nothing to do.
    fn next_order(&mut self) -> Order {
        let mut desk = self.shared.desk();
        self.report(&mut desk);
        while desk.queue.is_empty() && desk.closing.is_none() && !desk.fresh {
            let idle = self.is_empty() || desk.settings.command.is_empty();
            let wait = match self.retry_at {
                _ if idle => None,
                Some(at) => Some(at.saturating_duration_since(Instant::now())),
                None => Some(Duration::ZERO),
            };
            desk = match wait {
                Some(Duration::ZERO) => break,
                Some(wait) => {
                    self.shared.news.wait_timeout(desk, wait).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.shared.news.wait(desk).unwrap_or_else(PoisonError::into_inner),
            };
        }
        if std::mem::take(&mut desk.fresh) {
            (self.failures, self.retry_at) = (0, None);
        }
        self.memory.append(&mut desk.queue);
        self.report(&mut desk);
        Order { settings: desk.settings.clone(), closing: desk.closing }
    }

    fn is_empty(&self) -> bool {
        self.memory.is_empty() && self.spool.is_empty()
    }

    /// On the way out, one failure is enough.
    fn is_done(&self, order: &Order) -> bool {
        order.closing.is_some() && (self.is_empty() || !self.may_try(order))
    }

    fn may_try(&self, order: &Order) -> bool {
        let waits = self.retry_at.is_some_and(|at| Instant::now() < at);
        !self.is_empty() && !order.settings.command.is_empty() && !waits
    }

    fn deliver_next(&mut self, order: &Order) {
        let (dropped, oldest) = self.spool.oldest();
        self.count_dropped(dropped);
        let Some(payload) = oldest.as_ref().or(self.memory.front()) else { return };
        let limit = Instant::now() + order.settings.timeout;
        let by = || self.shared.desk().closing.map_or(limit, |closing| limit.min(closing));
        match self.command.run(&order.settings.command, payload, &by) {
            Delivery::Taken => self.taken(oldest.is_some()),
            Delivery::Failed(why) => self.failed(why),
        }
    }

    fn taken(&mut self, from_spool: bool) {
        if self.failures > 0 {
            log::info!("the alert command takes alerts again");
        }
        (self.failures, self.retry_at) = (0, None);
        if !from_spool {
            self.memory.pop_front();
        } else if let Err(e) = self.spool.remove_oldest() {
            log::error!("{e}; that alert may be sent twice");
        }
        let mut desk = self.shared.desk();
        desk.status.delivered += 1;
        desk.status.failing.clear();
        self.report(&mut desk);
    }

    fn failed(&mut self, why: String) {
        let wait = FIRST_RETRY.saturating_mul(1 << self.failures.min(16)).min(LAST_RETRY);
        self.failures += 1;
        self.retry_at = Some(Instant::now() + wait);
        log::warn!("the alert command {why}; tried again in {} s", wait.as_secs());
        // In a statement of its own: the desk must be free again while the disk is written to.
        let safe = self.shared.desk().closing.is_none();
        self.put_away(safe);
        let mut desk = self.shared.desk();
        desk.status.failing = why;
        self.report(&mut desk);
    }

    /// Moves what waits in memory to the disk; it stays in memory, bounded, where that fails. On the way out there is
    /// no time to wait for the platter each time.
    fn put_away(&mut self, safe: bool) {
        while let Some(payload) = self.memory.front() {
            match self.spool.put(payload, safe) {
                Ok(dropped) => {
                    self.memory.pop_front();
                    self.spool_failed = false;
                    self.count_dropped(dropped);
                }
                Err(e) => return self.put_away_failed(&e),
            }
        }
    }

    fn put_away_failed(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.spool_failed, true) {
            log::error!("{error}; undelivered alerts wait in memory");
        }
        let over = self.memory.len().saturating_sub(WAITING_AT_MOST);
        self.memory.drain(..over);
        self.count_dropped(over);
    }

    fn count_dropped(&self, dropped: usize) {
        if dropped > 0 {
            log::error!("{dropped} undelivered alerts were dropped");
            self.shared.desk().status.dropped += dropped as u64;
        }
    }

    fn report(&self, desk: &mut Desk) {
        (desk.status.waiting, desk.status.spooled) = (self.memory.len(), self.spool.len());
    }
}

#[cfg(test)]
mod tests;
