//! Alerts: what fires, what is folded, what is resolved.
//!
//! The [`AlertBook`] owns the memory of which alerts go on and decides what is worth telling. It tells nobody: what
//! its methods return is handed to the sinks by the caller. Time is the wall clock's milliseconds since 1970, because
//! that is what an alert shows; a clock that is set back neither silences nor repeats anything.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing.
    Info,
    /// Somebody should look.
    Warning,
    /// Somebody must look now.
    Critical,
}

/// Whether it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AlertState {
    /// It goes on.
    Firing,
    /// It is over.
    Resolved,
}

/// An alert as sinks get it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alert {
    /// Stable: what, and of which instance: `instance-hung/memcached/11211`, `registry-lost`.
    pub key: String,
    /// How bad it is.
    pub severity: Severity,
    /// Whether it goes on.
    pub state: AlertState,
    /// One sentence: what, where, and why as far as known.
    pub summary: String,
    /// When it first fired, in milliseconds since 1970.
    pub first_ms: u64,
    /// When it last fired or was resolved, in milliseconds since 1970.
    pub last_ms: u64,
    /// How often it fired since `first_ms`.
    pub count: u64,
}

/// How often one key is told within `repeat`: three times that it fires and three times that it is over. What
/// flaps beyond that is told once more, with its count, when the time is up.
pub const TOLD_AT_MOST: u32 = 6;

/// How many keys are remembered.
pub const KEYS_AT_MOST: usize = 1024;

/// The alert that stands for all those beyond [`KEYS_AT_MOST`].
pub const OVERFLOW_KEY: &str = "too-many-alerts";

/// An alert of the agent's former run that does not fire again within this is over.
const INHERITED_FOR: Duration = Duration::from_secs(600);

/// A summary is cut to this many bytes, so that no backend's message can fill the memory or a sink.
const SUMMARY_AT_MOST: usize = 1024;

/// Which alerts go on, and what of them is worth telling.
///
/// - An alert is told when it begins, when it gets worse, every `repeat` while it goes on, and when it is over.
/// - A key that begins and ends over and over is told [`TOLD_AT_MOST`] times within `repeat`; the rest is folded
///   into one telling of how it stands then.
/// - A resolved key is forgotten `repeat` after its last change.
#[derive(Debug)]
pub struct AlertBook {
    repeat: u64,
    entries: BTreeMap<String, Entry>,
    clock: Clock,
    next: Option<u64>,
}

impl AlertBook {
    /// An empty book; `repeat` is taken as at least a second.
    pub fn new(repeat: Duration) -> AlertBook {
        AlertBook { repeat: millis(repeat), entries: BTreeMap::new(), clock: Clock::default(), next: None }
    }

    /// Replaces `repeat`, for alerts that go on as well.
    pub fn set_repeat(&mut self, repeat: Duration) {
        self.repeat = millis(repeat);
        self.plan();
    }

    /// An alert that went on when the agent's former run ended. It goes on until it is resolved, or does not fire again; where
    /// it does, it is told anew, for whether the former run got so far is not known.
    pub fn inherit(&mut self, now_ms: u64, alert: Alert) {
        let t = self.clock.steady(now_ms);
        if alert.state != AlertState::Firing || !self.has_room_for(&alert.key, t) {
            return;
        }
        let key = alert.key.clone();
        let inherited_until = Some(t.saturating_add(millis(INHERITED_FOR)));
        let entry = Entry { alert, inherited_until, ..Entry::new(t, now_ms, &key) };
        self.entries.insert(key, entry);
        self.plan();
    }

    /// Something is wrong. `Some`: tell the sinks.
    pub fn fire(&mut self, now_ms: u64, key: &str, severity: Severity, summary: &str) -> Option<Alert> {
        let t = self.clock.steady(now_ms);
        let told = if self.has_room_for(key, t) {
            self.fire_entry(t, now_ms, key, severity, summary)
        } else {
            let summary =
                format!("more than {KEYS_AT_MOST} alerts at once; one that is not told: {key}: {summary}");
            self.fire_entry(t, now_ms, OVERFLOW_KEY, Severity::Critical, &summary)
        };
        self.plan();
        told
    }

    /// It is over. `Some`: tell the sinks. A key that does not fire is nothing to resolve.
    pub fn resolve(&mut self, now_ms: u64, key: &str, summary: &str) -> Option<Alert> {
        let t = self.clock.steady(now_ms);
        let repeat = self.repeat;
        let entry = self.entries.get_mut(key).filter(|e| e.is_active())?;
        entry.resolve(t, now_ms, summary);
        let told = entry.tell(t, repeat);
        self.plan();
        told
    }

    /// What must be told by now: alerts that go on since their last telling `repeat` ago, and what was folded.
    pub fn due(&mut self, now_ms: u64) -> Vec<Alert> {
        let t = self.clock.steady(now_ms);
        if self.next.is_none_or(|next| t < next) {
            return Vec::new();
        }
        let repeat = self.repeat;
        let mut told = Vec::new();
        for entry in self.entries.values_mut().filter(|e| e.inherited_until.is_some_and(|until| until <= t)) {
            entry.resolve(t, now_ms, "it is not found any more since the agent was started again");
            told.extend(entry.tell(t, repeat));
        }
        let late = self.entries.values_mut().filter(|e| e.due_at(repeat).is_some_and(|due| due <= t));
        told.extend(late.filter_map(|e| e.tell(t, repeat)));
        self.forget(t);
        if self.entries.len() < KEYS_AT_MOST {
            told.extend(self.resolve(now_ms, OVERFLOW_KEY, "all alerts are told again"));
        }
        self.plan();
        told
    }

    /// When [`due`](Self::due) has something to tell, in milliseconds since 1970 by the clock of the last call.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        self.next.map(|t| self.clock.wall(t))
    }

    /// The alerts that go on, by key.
    pub fn active(&self) -> impl Iterator<Item = &Alert> {
        self.entries.values().filter(|e| e.is_active()).map(|e| &e.alert)
    }

    /// Whether this key fires.
    pub fn is_active(&self, key: &str) -> bool {
        self.entries.get(key).is_some_and(Entry::is_active)
    }

    fn fire_entry(
        &mut self,
        t: u64,
        now_ms: u64,
        key: &str,
        severity: Severity,
        summary: &str,
    ) -> Option<Alert> {
        let repeat = self.repeat;
        let entry = self.entries.entry(key.to_owned()).or_insert_with(|| Entry::new(t, now_ms, key));
        let news = entry.fire(now_ms, severity, summary);
        entry.changed = t;
        if news || entry.is_worse() || t >= entry.told_at.saturating_add(repeat) {
            entry.tell(t, repeat)
        } else {
            None
        }
    }

    fn has_room_for(&mut self, key: &str, t: u64) -> bool {
        if self.entries.contains_key(key) || self.entries.len() < KEYS_AT_MOST {
            return true;
        }
        self.forget(t);
        if self.entries.len() >= KEYS_AT_MOST {
            self.forget_oldest();
        }
        self.entries.len() < KEYS_AT_MOST
    }

    fn forget(&mut self, t: u64) {
        let repeat = self.repeat;
        self.entries.retain(|_, e| e.is_active() || e.pending || t < e.changed.saturating_add(repeat));
    }

    fn forget_oldest(&mut self) {
        let gone = self.entries.values().filter(|e| !e.is_active() && !e.pending).min_by_key(|e| e.changed);
        if let Some(key) = gone.map(|e| e.alert.key.clone()) {
            self.entries.remove(&key);
        }
    }

    fn plan(&mut self) {
        self.next = self.entries.values().filter_map(|e| e.due_at(self.repeat)).min();
    }
}

/// One key's memory. Its times are the book's steady milliseconds; those inside `alert` are the wall clock's.
#[derive(Debug)]
struct Entry {
    alert: Alert,
    /// When it last fired or was resolved.
    changed: u64,
    /// When it was last told.
    told_at: u64,
    /// When the count of tellings began.
    window: u64,
    /// How often it was told since.
    told: u32,
    /// The worst that was told since.
    worst_told: Option<Severity>,
    /// A change was held back.
    pending: bool,
    /// It is of the agent's former run, and did not fire in this one yet.
    inherited_until: Option<u64>,
}

impl Entry {
    fn new(t: u64, now_ms: u64, key: &str) -> Entry {
        let alert = Alert {
            key: key.to_owned(),
            severity: Severity::Info,
            state: AlertState::Resolved,
            summary: String::new(),
            first_ms: now_ms,
            last_ms: now_ms,
            count: 0,
        };
        Entry {
            alert,
            changed: t,
            told_at: t,
            window: t,
            told: 0,
            worst_told: None,
            pending: false,
            inherited_until: None,
        }
    }

    fn is_active(&self) -> bool {
        self.alert.state == AlertState::Firing
    }

    fn is_worse(&self) -> bool {
        self.worst_told.is_none_or(|worst| self.alert.severity > worst)
    }

    /// Returns whether it began just now.
    fn fire(&mut self, now_ms: u64, severity: Severity, summary: &str) -> bool {
        let begins = !self.is_active();
        self.inherited_until = None;
        let alert = &mut self.alert;
        if begins && !self.pending {
            (alert.first_ms, alert.count) = (now_ms, 0);
        }
        if begins && !self.pending || severity > alert.severity {
            alert.severity = severity;
        }
        alert.state = AlertState::Firing;
        alert.summary = cut(summary);
        alert.last_ms = now_ms;
        alert.count = alert.count.saturating_add(1);
        begins
    }

    fn resolve(&mut self, t: u64, now_ms: u64, summary: &str) {
        self.inherited_until = None;
        self.alert.state = AlertState::Resolved;
        self.alert.summary = cut(summary);
        self.alert.last_ms = now_ms;
        self.changed = t;
    }

    /// The alert, if it may be told now; else it is kept for when it may.
    fn tell(&mut self, t: u64, repeat: u64) -> Option<Alert> {
        if t >= self.window.saturating_add(repeat) {
            (self.window, self.told, self.worst_told) = (t, 0, None);
        }
        if self.told >= TOLD_AT_MOST && !self.is_worse() {
            self.pending = true;
            return None;
        }
        self.told += 1;
        self.told_at = t;
        self.worst_told = self.worst_told.max(Some(self.alert.severity));
        self.pending = false;
        Some(self.alert.clone())
    }

    fn due_at(&self, repeat: u64) -> Option<u64> {
        let telling = if self.pending {
            Some(self.window.saturating_add(repeat))
        } else {
            self.is_active().then(|| self.told_at.saturating_add(repeat))
        };
        telling.into_iter().chain(self.inherited_until).min()
    }
}

/// Milliseconds that never go backwards, whatever is done to the wall clock.
#[derive(Debug, Default)]
struct Clock {
    last: u64,
    ahead: u64,
}

impl Clock {
    fn steady(&mut self, now_ms: u64) -> u64 {
        let t = now_ms.saturating_add(self.ahead);
        if t < self.last {
            self.ahead += self.last - t;
        } else {
            self.last = t;
        }
        self.last
    }

    fn wall(&self, t: u64) -> u64 {
        t.saturating_sub(self.ahead)
    }
}

fn millis(repeat: Duration) -> u64 {
    u64::try_from(repeat.as_millis()).unwrap_or(u64::MAX).max(1000)
}

fn cut(summary: &str) -> String {
    let end = (0..=SUMMARY_AT_MOST.min(summary.len())).rev().find(|i| summary.is_char_boundary(*i));
    summary[..end.unwrap_or(0)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPEAT: u64 = 300_000;
    const T0: u64 = 1_700_000_000_000;

    fn book() -> AlertBook {
        AlertBook::new(Duration::from_millis(REPEAT))
    }

    #[test]
    fn an_alert_of_the_former_run_goes_on_or_is_over() {
        let former = fire(&mut book(), T0).unwrap();
        let mut book = book();
        book.inherit(T0 + 1000, former.clone());
        book.inherit(T0 + 1000, Alert { key: "registry-lost".into(), ..former.clone() });
        book.inherit(T0 + 1000, Alert { state: AlertState::Resolved, key: "over".into(), ..former.clone() });
        assert_eq!(book.active().count(), 2);
        assert_eq!(fire(&mut book, T0 + 2000).unwrap().count, 2);
        assert_eq!(fire(&mut book, T0 + 2001), None, "once");
        // The other one is told again as long as it goes on.
        assert_eq!(book.due(T0 + 301_000).len(), 1);
        assert_eq!(book.due(T0 + 302_000).len(), 1);
        assert_eq!(book.next_deadline_ms(), Some(T0 + 601_000));
        let told = book.due(T0 + 601_000);
        assert_eq!(
            told.iter().map(|a| (&*a.key, a.state)).collect::<Vec<_>>(),
            [("registry-lost", AlertState::Resolved)]
        );
        let over = resolve(&mut book, T0 + 602_000).unwrap();
        assert_eq!((over.first_ms, over.count), (former.first_ms, 3));
    }

    fn fire(book: &mut AlertBook, t: u64) -> Option<Alert> {
        book.fire(t, "instance-hung/memcached/11211", Severity::Critical, "it hangs")
    }

    fn resolve(book: &mut AlertBook, t: u64) -> Option<Alert> {
        book.resolve(t, "instance-hung/memcached/11211", "it answers")
    }

    #[test]
    fn told_at_first_then_each_repeat_with_the_count() {
        let mut book = book();
        assert_eq!(fire(&mut book, T0).unwrap().count, 1);
        for i in 1..300 {
            assert_eq!(fire(&mut book, T0 + i * 1000), None, "after {i} s");
        }
        let again = fire(&mut book, T0 + REPEAT).unwrap();
        assert_eq!((again.count, again.first_ms, again.last_ms), (301, T0, T0 + REPEAT));
    }

    #[test]
    fn an_alert_that_goes_on_is_told_again_without_firing_again() {
        let mut book = book();
        fire(&mut book, T0);
        assert_eq!(book.next_deadline_ms(), Some(T0 + REPEAT));
        assert_eq!(book.due(T0 + REPEAT - 1), []);
        let told = book.due(T0 + REPEAT);
        assert_eq!((told.len(), told[0].count), (1, 1));
        assert_eq!(book.next_deadline_ms(), Some(T0 + 2 * REPEAT));
    }

    #[test]
    fn a_resolved_alert_is_told_once_and_then_forgotten() {
        let mut book = book();
        fire(&mut book, T0);
        let over = resolve(&mut book, T0 + 5).unwrap();
        assert_eq!((over.state, over.first_ms, over.last_ms), (AlertState::Resolved, T0, T0 + 5));
        assert_eq!(over.summary, "it answers");
        assert_eq!(resolve(&mut book, T0 + 6), None);
        assert_eq!((book.active().count(), book.next_deadline_ms()), (0, None));
        book.fire(T0 + 10 * REPEAT, "other", Severity::Info, "x");
        book.due(T0 + 11 * REPEAT);
        assert_eq!(book.entries.len(), 1);
    }

    #[test]
    fn a_new_episode_counts_from_one() {
        let mut book = book();
        fire(&mut book, T0);
        fire(&mut book, T0 + 1);
        resolve(&mut book, T0 + 2);
        let new = fire(&mut book, T0 + 3).unwrap();
        assert_eq!((new.count, new.first_ms), (1, T0 + 3));
    }

    #[test]
    fn getting_worse_is_told_at_once() {
        let mut book = book();
        assert!(book.fire(T0, "k", Severity::Warning, "w").is_some());
        assert!(book.fire(T0 + 1, "k", Severity::Critical, "c").is_some());
        assert_eq!(book.fire(T0 + 2, "k", Severity::Warning, "w"), None);
        assert_eq!(book.active().next().unwrap().severity, Severity::Critical);
    }

    #[test]
    fn flapping_is_told_a_few_times_and_once_more_with_the_count() {
        let mut book = book();
        let mut told = 0;
        for i in 0..100 {
            told += u32::from(fire(&mut book, T0 + i * 200).is_some());
            told += u32::from(resolve(&mut book, T0 + i * 200 + 100).is_some());
        }
        assert_eq!(told, TOLD_AT_MOST);
        assert_eq!(book.next_deadline_ms(), Some(T0 + REPEAT));
        let folded = book.due(T0 + REPEAT);
        assert_eq!(folded.len(), 1);
        assert_eq!((folded[0].state, folded[0].count), (AlertState::Resolved, 97));
        assert_eq!((book.due(T0 + 2 * REPEAT).len(), book.next_deadline_ms()), (0, None));
    }

    #[test]
    fn flapping_that_ends_badly_is_told_as_firing() {
        let mut book = book();
        for i in 0..10 {
            fire(&mut book, T0 + i * 2);
            resolve(&mut book, T0 + i * 2 + 1);
        }
        assert_eq!(fire(&mut book, T0 + 20), None);
        assert!(book.is_active("instance-hung/memcached/11211"));
        let folded = book.due(T0 + REPEAT);
        assert_eq!((folded[0].state, folded[0].count), (AlertState::Firing, 8));
    }

    #[test]
    fn a_clock_set_back_neither_silences_nor_repeats() {
        let mut book = book();
        fire(&mut book, T0);
        let back = T0 - 86_400_000;
        assert_eq!(fire(&mut book, back), None);
        assert_eq!(book.next_deadline_ms(), Some(back + REPEAT));
        assert_eq!(book.due(back + REPEAT - 1), []);
        assert_eq!(book.due(back + REPEAT).len(), 1);
    }

    #[test]
    fn memory_is_bounded_and_the_overflow_is_told_and_resolved() {
        let mut book = book();
        let overflow = (0..5000).filter_map(|i| book.fire(T0, &format!("k{i}"), Severity::Info, "x"));
        let overflow: Vec<Alert> = overflow.filter(|a| a.key == OVERFLOW_KEY).collect();
        assert_eq!(overflow.len(), 1);
        assert_eq!(book.entries.len(), KEYS_AT_MOST + 1);
        for i in 0..KEYS_AT_MOST {
            assert!(book.resolve(T0 + 1, &format!("k{i}"), "over").is_some());
        }
        let told = book.due(T0 + REPEAT + 1);
        assert!(told.iter().any(|a| a.key == OVERFLOW_KEY && a.state == AlertState::Resolved), "{told:?}");
        assert_eq!(book.active().count(), 0);
    }

    #[test]
    fn resolved_keys_make_room_before_their_time() {
        let mut book = book();
        for i in 0..5000 {
            let key = format!("k{i}");
            assert_eq!(book.fire(T0 + i, &key, Severity::Info, "x").unwrap().key, key);
            assert!(book.resolve(T0 + i, &key, "over").is_some());
        }
        assert_eq!(book.entries.len(), KEYS_AT_MOST);
    }

    #[test]
    fn a_long_summary_is_cut_between_characters() {
        let told = book().fire(T0, "k", Severity::Info, &"ü".repeat(5000)).unwrap();
        assert_eq!(told.summary, "ü".repeat(512));
    }

    #[test]
    fn as_json_it_is_what_sinks_expect() {
        let told = fire(&mut book(), T0).unwrap();
        let json = serde_json::to_string(&told).unwrap();
        assert_eq!(
            json,
            r#"{"key":"instance-hung/memcached/11211","severity":"critical","state":"firing","summary":"it hangs","first_ms":1700000000000,"last_ms":1700000000000,"count":1}"#
        );
    }
}
