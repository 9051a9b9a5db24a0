//! Statistics over windows, in fixed memory.
//!
//! [`InstanceStats`] takes an instance's samples and answers with [`Figures`]; [`HostFigures`] is the sum over a host's
//! instances. Where samples come from and where figures go is others' business.
//!
//! Counters are accumulated into totals that outlive restarts of the server. A window keeps a ring of those totals at
//! its own pace, so a day costs what a few minutes cost, and a figure is the newest total minus the total at the
//! window's start.

use std::time::{Duration, Instant};

use serde::{Serialize, Serializer};

use crate::plugin::NumberKind;

/// How many totals a window keeps at most.
pub const RING_AT_MOST: usize = 128;

/// The version of the figures' JSON.
const JSON_VERSION: u32 = 1;

const COUNTERS: usize = 6;

/// How many names of a server's own are carried for an instance.
pub const OTHERS_AT_MOST: usize = 32;

/// How many bytes such a name may have.
pub const OTHER_NAME_AT_MOST: usize = 64;

/// An instance's figures at one moment, as its server told them. A counter that was not told is `None`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// Reads.
    pub gets: Option<u64>,
    /// Reads that found something.
    pub hits: Option<u64>,
    /// Writes.
    pub sets: Option<u64>,
    /// Deletions.
    pub deletes: Option<u64>,
    /// Items that gave way to others.
    pub evictions: Option<u64>,
    /// Items that reached their end of life.
    pub expirations: Option<u64>,
    /// Items held.
    pub keys: u64,
    /// Bytes held.
    pub bytes: u64,
    /// Bytes that may be held.
    pub limit_bytes: u64,
    /// Clients connected.
    pub connections: u64,
    /// The server's age in seconds.
    pub uptime_s: f64,
}

impl Sample {
    /// Takes the well-known names out of what a stats hook told. Others, and values that are no counts, are left out.
    pub fn from_numbers(numbers: &[(NumberKind, String, f64)]) -> Sample {
        let mut sample = Sample::default();
        for (kind, name, value) in numbers {
            if value.is_finite() && *value >= 0.0 {
                sample.take(*kind, name, *value);
            }
        }
        sample
    }

    fn take(&mut self, kind: NumberKind, name: &str, value: f64) {
        let count = value as u64;
        match (kind, name) {
            (NumberKind::Counter, "gets") => self.gets = Some(count),
            (NumberKind::Counter, "hits") => self.hits = Some(count),
            (NumberKind::Counter, "sets") => self.sets = Some(count),
            (NumberKind::Counter, "deletes") => self.deletes = Some(count),
            (NumberKind::Counter, "evictions") => self.evictions = Some(count),
            (NumberKind::Counter, "expirations") => self.expirations = Some(count),
            (NumberKind::Gauge, "keys") => self.keys = count,
            (NumberKind::Gauge, "bytes") => self.bytes = count,
            (NumberKind::Gauge, "limit_bytes") => self.limit_bytes = count,
            (NumberKind::Gauge, "connections") => self.connections = count,
            (NumberKind::Gauge, "uptime_s") => self.uptime_s = value,
            _ => {}
        }
    }

    fn counters(&self) -> [Option<u64>; COUNTERS] {
        [self.gets, self.hits, self.sets, self.deletes, self.evictions, self.expirations]
    }
}

/// Whether the host knows a figure of this name, of whichever kind.
fn well_known(name: &str) -> bool {
    const NAMES: [&str; COUNTERS + 5] = [
        "gets",
        "hits",
        "sets",
        "deletes",
        "evictions",
        "expirations",
        "keys",
        "bytes",
        "limit_bytes",
        "connections",
        "uptime_s",
    ];
    NAMES.contains(&name)
}

/// What a stats hook told under names that the host does not know, carried on as it was told: gauges as they are,
/// counters as the server's own totals. Bounded; in JSON an object by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Others {
    told: Vec<(String, f64)>,
    dropped: usize,
}

impl Others {
    /// Takes the names that are not well-known, the last value of each. Values that are no number (of a counter: no
    /// count) are left out, names beyond [`OTHERS_AT_MOST`] and [`OTHER_NAME_AT_MOST`] are counted.
    pub fn from_numbers(numbers: &[(NumberKind, String, f64)]) -> Others {
        let mut others = Others::default();
        for (kind, name, value) in numbers {
            let counts = value.is_finite() && (*kind == NumberKind::Gauge || *value >= 0.0);
            if counts && !well_known(name) {
                others.take(name, *value);
            }
        }
        others.told.shrink_to_fit();
        others
    }

    fn take(&mut self, name: &str, value: f64) {
        if let Some((_, told)) = self.told.iter_mut().find(|(told, _)| told == name) {
            *told = value;
        } else if self.told.len() < OTHERS_AT_MOST && name.len() <= OTHER_NAME_AT_MOST {
            self.told.push((name.to_owned(), value));
        } else {
            self.dropped += 1;
        }
    }

    /// The value told under `name`.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.told.iter().find(|(told, _)| told == name).map(|(_, value)| *value)
    }

    /// Whether nothing is carried.
    pub fn is_empty(&self) -> bool {
        self.told.is_empty()
    }

    /// How many figures were too many, or had a name too long.
    pub fn dropped(&self) -> usize {
        self.dropped
    }

    /// The memory behind it, in bytes.
    fn memory(&self) -> usize {
        let names: usize = self.told.iter().map(|(name, _)| name.capacity()).sum();
        self.told.capacity() * size_of::<(String, f64)>() + names
    }
}

impl Serialize for Others {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.told.iter().map(|(name, value)| (name, OtherValue(*value))))
    }
}

/// A whole number is written as one, so far as a plugin can tell one exactly.
struct OtherValue(f64);

impl Serialize for OtherValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        const EXACT: f64 = (1u64 << 53) as f64;
        if self.0.fract() == 0.0 && self.0.abs() <= EXACT {
            serializer.serialize_i64(self.0 as i64)
        } else {
            serializer.serialize_f64(self.0)
        }
    }
}

/// One instance's statistics. Its memory is bounded by the number of windows and is never given back to grow again.
#[derive(Debug)]
pub struct InstanceStats {
    start: Option<Instant>,
    last: [Option<u64>; COUNTERS],
    newest: Point,
    latest: Option<(u64, Sample)>,
    others: Others,
    told_dropped: bool,
    windows: Vec<Window>,
}

impl InstanceStats {
    /// Statistics over `windows`, with a sample expected each `interval`.
    pub fn new(windows: &[Duration], interval: Duration) -> InstanceStats {
        InstanceStats {
            start: None,
            last: [None; COUNTERS],
            newest: Point::default(),
            latest: None,
            others: Others::default(),
            told_dropped: false,
            windows: windows.iter().map(|w| Window::new(*w, interval)).collect(),
        }
    }

    /// A new server process runs in the instance: its counters begin at 0. Without this call a restart is still seen
    /// by each counter that went backwards.
    pub fn restarted(&mut self) {
        self.last = [Some(0); COUNTERS];
    }

    /// Takes a sample; `at_ms` is the same moment in milliseconds since 1970.
    pub fn record(&mut self, now: Instant, at_ms: u64, sample: &Sample) {
        let start = *self.start.get_or_insert(now);
        self.newest.at = millis(now.saturating_duration_since(start));
        for (i, new) in sample.counters().into_iter().enumerate() {
            let Some(new) = new else { continue };
            let grown = match self.last[i] {
                None => 0,
                Some(last) => new.checked_sub(last).unwrap_or(new),
            };
            self.newest.totals[i] = self.newest.totals[i].wrapping_add(grown);
            self.last[i] = Some(new);
        }
        self.latest = Some((at_ms, sample.clone()));
        for window in &mut self.windows {
            window.push(&self.newest);
        }
    }

    /// Takes the newest sample's own names in place of those of the one before. Says how many were dropped, the first
    /// time that any were.
    pub fn carry(&mut self, others: Others) -> Option<usize> {
        self.others = others;
        let first = self.others.dropped > 0 && !self.told_dropped;
        self.told_dropped |= first;
        first.then_some(self.others.dropped)
    }

    /// The figures as of the newest sample; `None` before the first.
    pub fn figures(&self, version: &str) -> Option<Figures> {
        let (at_ms, sample) = self.latest.as_ref()?;
        let windows = self.windows.iter().map(|w| (w.length / 1000, w.figures(&self.newest)));
        Some(Figures {
            v: JSON_VERSION,
            at_ms: *at_ms,
            uptime_s: sample.uptime_s,
            keys: sample.keys,
            bytes: sample.bytes,
            limit_bytes: sample.limit_bytes,
            fill: fill(sample.bytes, sample.limit_bytes),
            connections: sample.connections,
            version: version.to_owned(),
            other: self.others.clone(),
            windows: windows.collect(),
        })
    }

    /// The memory it takes now, in bytes.
    pub fn memory(&self) -> usize {
        let rings: usize = self.windows.iter().map(|w| w.ring.capacity() * size_of::<Slot>()).sum();
        size_of::<InstanceStats>()
            + self.windows.capacity() * size_of::<Window>()
            + rings
            + self.others.memory()
    }
}

/// A moment in milliseconds since the first sample, and the totals at it.
#[derive(Clone, Debug, Default, PartialEq)]
struct Point {
    at: u64,
    totals: [u64; COUNTERS],
}

impl Point {
    fn minus(&self, then: &Slot) -> WindowFigures {
        let grown = |i: usize| low(self.totals[i].wrapping_sub(then.total(i)));
        let mut figures = WindowFigures {
            span_s: low(self.at.wrapping_sub(then.at())) as f64 / 1000.0,
            gets: grown(0),
            hits: grown(1),
            sets: grown(2),
            deletes: grown(3),
            evictions: grown(4),
            expirations: grown(5),
            ..WindowFigures::default()
        };
        figures.derive();
        figures
    }
}

/// The low 48 bits of a moment and of each total. Differences are taken modulo 2^48, which no window reaches: a
/// server with ten million reads a second needs ten months for it. It saves a quarter of the memory.
#[derive(Clone, Copy, Debug)]
struct Slot([[u16; 3]; 1 + COUNTERS]);

impl Slot {
    fn of(point: &Point) -> Slot {
        let mut parts = [pack(point.at); 1 + COUNTERS];
        for (part, total) in parts[1..].iter_mut().zip(point.totals) {
            *part = pack(total);
        }
        Slot(parts)
    }

    fn at(&self) -> u64 {
        unpack(self.0[0])
    }

    fn total(&self, i: usize) -> u64 {
        unpack(self.0[1 + i])
    }
}

fn pack(n: u64) -> [u16; 3] {
    [n as u16, (n >> 16) as u16, (n >> 32) as u16]
}

fn unpack([a, b, c]: [u16; 3]) -> u64 {
    u64::from(a) | u64::from(b) << 16 | u64::from(c) << 32
}

fn low(n: u64) -> u64 {
    n & ((1 << 48) - 1)
}

/// A ring of totals at the window's own pace. Lengths are milliseconds.
#[derive(Debug)]
struct Window {
    length: u64,
    pace: u64,
    /// Half an interval: a sample that comes early by less is taken, as the next one would be further off.
    slack: u64,
    capacity: usize,
    ring: Vec<Slot>,
    /// Where the oldest is, once the ring is full.
    oldest: usize,
}

impl Window {
    fn new(length: Duration, interval: Duration) -> Window {
        let (length, interval) = (millis(length).max(1), millis(interval).max(1));
        // One more than the steps for the far end, and one more as the nearest may be a step further back.
        let pace = interval.max(length.div_ceil(RING_AT_MOST as u64 - 2));
        let capacity = usize::try_from(length.div_ceil(pace)).unwrap_or(RING_AT_MOST) + 2;
        let capacity = capacity.min(RING_AT_MOST);
        Window { length, pace, slack: interval / 2, capacity, ring: Vec::new(), oldest: 0 }
    }

    fn push(&mut self, point: &Point) {
        let due = |last: &Slot| low(point.at.wrapping_sub(last.at())) + self.slack >= self.pace;
        if !self.newest().is_none_or(due) {
            return;
        }
        if self.ring.len() < self.capacity {
            self.reserve();
            self.ring.push(Slot::of(point));
        } else {
            self.ring[self.oldest] = Slot::of(point);
            self.oldest = (self.oldest + 1) % self.capacity;
        }
    }

    /// Grows in small exact steps: doubling would take up to twice of what the ring may hold.
    fn reserve(&mut self) {
        if self.ring.len() == self.ring.capacity() {
            self.ring.reserve_exact(16.min(self.capacity - self.ring.len()));
        }
    }

    fn newest(&self) -> Option<&Slot> {
        if self.ring.len() < self.capacity {
            self.ring.last()
        } else {
            self.ring.get((self.oldest + self.capacity - 1) % self.capacity)
        }
    }

    /// From the kept total nearest to the window's start. Totals from long before it (the instance was not sampled in
    /// between) say nothing about the window.
    fn figures(&self, now: &Point) -> WindowFigures {
        let age = |slot: &Slot| low(now.at.wrapping_sub(slot.at()));
        let near = self.ring.iter().filter(|s| age(s) > 0 && age(s) <= self.length + self.pace);
        let start = near.min_by_key(|s| age(s).abs_diff(self.length));
        start.map(|s| now.minus(s)).unwrap_or_default()
    }
}

/// One window's figures.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct WindowFigures {
    /// What the window really covers, in seconds; 0: nothing yet.
    pub span_s: f64,
    /// Reads.
    pub gets: u64,
    /// Reads that found something.
    pub hits: u64,
    /// Writes.
    pub sets: u64,
    /// Deletions.
    pub deletes: u64,
    /// Items that gave way to others.
    pub evictions: u64,
    /// Items that reached their end of life.
    pub expirations: u64,
    /// Hits by gets, 0 to 1; `None` without gets.
    pub hit_rate: Option<f64>,
    /// Reads a second.
    pub gets_per_s: f64,
    /// Writes a second.
    pub sets_per_s: f64,
    /// Deletions a second.
    pub deletes_per_s: f64,
}

impl WindowFigures {
    fn derive(&mut self) {
        self.hit_rate = hit_rate(self.hits, self.gets);
        if self.span_s > 0.0 {
            self.gets_per_s = round(self.gets as f64 / self.span_s, 1000.0);
            self.sets_per_s = round(self.sets as f64 / self.span_s, 1000.0);
            self.deletes_per_s = round(self.deletes as f64 / self.span_s, 1000.0);
        }
    }

    fn add(&mut self, other: &WindowFigures) {
        self.span_s = self.span_s.max(other.span_s);
        self.gets = self.gets.saturating_add(other.gets);
        self.hits = self.hits.saturating_add(other.hits);
        self.sets = self.sets.saturating_add(other.sets);
        self.deletes = self.deletes.saturating_add(other.deletes);
        self.evictions = self.evictions.saturating_add(other.evictions);
        self.expirations = self.expirations.saturating_add(other.expirations);
        self.hit_rate = hit_rate(self.hits, self.gets);
        self.gets_per_s = round(self.gets_per_s + other.gets_per_s, 1000.0);
        self.sets_per_s = round(self.sets_per_s + other.sets_per_s, 1000.0);
        self.deletes_per_s = round(self.deletes_per_s + other.deletes_per_s, 1000.0);
    }
}

/// Figures by window, in the order of the settings; in JSON an object by the window's seconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Windows(Vec<(u64, WindowFigures)>);

impl Windows {
    /// The figures of the window of so many seconds.
    pub fn get(&self, seconds: u64) -> Option<&WindowFigures> {
        self.0.iter().find(|(s, _)| *s == seconds).map(|(_, figures)| figures)
    }

    /// All windows: seconds and figures.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &WindowFigures)> {
        self.0.iter().map(|(seconds, figures)| (*seconds, figures))
    }

    fn add(&mut self, other: &Windows) {
        for (seconds, figures) in other.iter() {
            match self.0.iter_mut().find(|(s, _)| *s == seconds) {
                Some((_, sum)) => sum.add(figures),
                None => self.0.push((seconds, figures.clone())),
            }
        }
    }
}

impl FromIterator<(u64, WindowFigures)> for Windows {
    fn from_iter<I: IntoIterator<Item = (u64, WindowFigures)>>(windows: I) -> Windows {
        Windows(windows.into_iter().collect())
    }
}

impl Serialize for Windows {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

/// An instance's figures, as its `info` node holds them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// The version of this JSON.
    pub v: u32,
    /// When the newest sample was taken, in milliseconds since 1970.
    pub at_ms: u64,
    /// The server's age in seconds.
    pub uptime_s: f64,
    /// Items held.
    pub keys: u64,
    /// Bytes held.
    pub bytes: u64,
    /// Bytes that may be held.
    pub limit_bytes: u64,
    /// Bytes held by bytes that may be, 0 to 1.
    pub fill: f64,
    /// Clients connected.
    pub connections: u64,
    /// The server's version.
    pub version: String,
    /// Under names of the engine's own, as of the newest sample; left out when there are none.
    #[serde(skip_serializing_if = "Others::is_empty")]
    pub other: Others,
    /// By window.
    pub windows: Windows,
}

/// A host's figures: the sum over its instances. Rates are sums of rates, as the instances' spans may differ.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HostFigures {
    /// The version of this JSON.
    pub v: u32,
    /// When the newest of the instances' samples was taken, in milliseconds since 1970; 0 without any.
    pub at_ms: u64,
    /// Instances that the sum holds.
    pub instances: u64,
    /// Items held.
    pub keys: u64,
    /// Bytes held.
    pub bytes: u64,
    /// Bytes that may be held.
    pub limit_bytes: u64,
    /// Bytes held by bytes that may be, 0 to 1.
    pub fill: f64,
    /// Clients connected.
    pub connections: u64,
    /// By window; the span is the longest of the instances'.
    pub windows: Windows,
}

impl HostFigures {
    /// Sums the instances' figures.
    pub fn sum<'a>(instances: impl IntoIterator<Item = &'a Figures>) -> HostFigures {
        let mut sum = HostFigures {
            v: JSON_VERSION,
            at_ms: 0,
            instances: 0,
            keys: 0,
            bytes: 0,
            limit_bytes: 0,
            fill: 0.0,
            connections: 0,
            windows: Windows::default(),
        };
        for instance in instances {
            sum.add(instance);
        }
        sum
    }

    fn add(&mut self, instance: &Figures) {
        self.at_ms = self.at_ms.max(instance.at_ms);
        self.instances += 1;
        self.keys = self.keys.saturating_add(instance.keys);
        self.bytes = self.bytes.saturating_add(instance.bytes);
        self.limit_bytes = self.limit_bytes.saturating_add(instance.limit_bytes);
        self.fill = fill(self.bytes, self.limit_bytes);
        self.connections = self.connections.saturating_add(instance.connections);
        self.windows.add(&instance.windows);
    }
}

fn hit_rate(hits: u64, gets: u64) -> Option<f64> {
    (gets > 0).then(|| round((hits as f64 / gets as f64).min(1.0), 1e6))
}

fn fill(bytes: u64, limit: u64) -> f64 {
    if limit == 0 { 0.0 } else { round((bytes as f64 / limit as f64).min(1.0), 1e6) }
}

fn round(value: f64, scale: f64) -> f64 {
    (value * scale).round() / scale
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOWS: [Duration; 3] =
        [Duration::from_secs(60), Duration::from_secs(3600), Duration::from_secs(86_400)];
    const INTERVAL: Duration = Duration::from_secs(5);

    fn gets(n: u64, hits: u64) -> Sample {
        Sample { gets: Some(n), hits: Some(hits), ..Sample::default() }
    }

    fn window(stats: &InstanceStats, seconds: u64) -> WindowFigures {
        stats.figures("1").unwrap().windows.get(seconds).unwrap().clone()
    }

    /// Numbers that look random and are the same in every run.
    struct Numbers(u64);

    impl Numbers {
        fn below(&mut self, limit: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % limit
        }
    }

    #[test]
    fn memory_is_fixed_for_ever() {
        let mut stats = InstanceStats::new(&WINDOWS, INTERVAL);
        let empty = stats.memory();
        let start = Instant::now();
        let mut full = 0;
        for i in 0..200_000u32 {
            stats.record(start + INTERVAL * i, 0, &gets(u64::from(i), 0));
            if i == 20_000 {
                full = stats.memory();
            }
        }
        println!("an instance's statistics take {empty} bytes at first and {full} for ever");
        assert_eq!(stats.memory(), full, "it grew after a day");
        assert!(size_of::<Slot>() <= 64);
        assert!(empty < 1024, "{empty}");
        assert!(full <= 13_000, "{full}");
    }

    #[test]
    fn a_hundred_instances_with_three_long_windows_stay_under_two_mebibytes() {
        let days = [1, 7, 30].map(|d| Duration::from_secs(86_400 * d));
        let mut stats = InstanceStats::new(&days, INTERVAL);
        let start = Instant::now();
        for i in 0..2000u32 {
            stats.record(start + Duration::from_secs(3600) * i, 0, &gets(u64::from(i), 0));
        }
        let hundred = 100 * stats.memory();
        println!("a hundred instances with three long windows take {hundred} bytes");
        assert!(hundred < 2 << 20, "{hundred}");
    }

    #[test]
    fn a_minute_at_five_seconds_is_exactly_a_minute() {
        let mut stats = InstanceStats::new(&WINDOWS, INTERVAL);
        let start = Instant::now();
        for i in 0..100u32 {
            stats.record(start + INTERVAL * i, 7, &gets(u64::from(i) * 50, u64::from(i) * 40));
        }
        let minute = window(&stats, 60);
        assert_eq!((minute.span_s, minute.gets, minute.hits), (60.0, 600, 480));
        assert_eq!((minute.hit_rate, minute.gets_per_s), (Some(0.8), 10.0));
        assert_eq!(window(&stats, 3600).span_s, 495.0, "what is covered so far");
    }

    #[test]
    fn samples_that_come_late_or_early_change_the_span_and_not_the_truth() {
        let mut stats = InstanceStats::new(&WINDOWS, INTERVAL);
        let (start, mut numbers) = (Instant::now(), Numbers(42));
        for i in 1..1000u64 {
            let at = i * 5000 + numbers.below(400) - 200;
            stats.record(start + Duration::from_millis(at), 0, &gets(at, at));
            if i > 20 {
                let minute = window(&stats, 60);
                assert!((minute.span_s - 60.0).abs() <= 0.5, "{minute:?}");
                assert_eq!(minute.gets, (minute.span_s * 1000.0).round() as u64);
            }
        }
    }

    #[test]
    fn one_sample_covers_nothing() {
        let mut stats = InstanceStats::new(&WINDOWS, INTERVAL);
        assert_eq!(stats.figures("1"), None);
        stats.record(Instant::now(), 0, &gets(1_000_000, 900_000));
        assert_eq!(window(&stats, 60), WindowFigures::default());
        assert_eq!(window(&stats, 60).hit_rate, None);
    }

    #[test]
    fn a_restart_is_summed() {
        let mut stats = InstanceStats::new(&WINDOWS, INTERVAL);
        let start = Instant::now();
        for (i, n) in [(0u32, 1000), (1, 1100), (2, 30), (3, 50)] {
            stats.record(start + INTERVAL * i, 0, &gets(n, 0));
        }
        assert_eq!(window(&stats, 60).gets, 100 + 30 + 20);
    }

    #[test]
    fn a_restart_that_no_counter_shows_is_summed_when_told() {
        let mut stats = InstanceStats::new(&WINDOWS, INTERVAL);
        let start = Instant::now();
        stats.record(start, 0, &gets(10, 0));
        stats.restarted();
        stats.record(start + INTERVAL, 0, &gets(500, 0));
        assert_eq!(window(&stats, 60).gets, 500);
    }

    #[test]
    fn a_counter_that_is_missing_once_does_not_count_twice() {
        let mut stats = InstanceStats::new(&WINDOWS, INTERVAL);
        let start = Instant::now();
        stats.record(start, 0, &gets(1000, 0));
        stats.record(start + INTERVAL, 0, &Sample::default());
        stats.record(start + INTERVAL * 2, 0, &gets(1010, 0));
        assert_eq!(window(&stats, 60).gets, 10);
    }

    #[test]
    fn a_long_gap_is_not_sold_as_a_minute() {
        let mut stats = InstanceStats::new(&WINDOWS, INTERVAL);
        let start = Instant::now();
        stats.record(start, 0, &gets(0, 0));
        let later = start + Duration::from_secs(3000);
        stats.record(later, 0, &gets(3_000_000, 0));
        assert_eq!(window(&stats, 60), WindowFigures::default());
        assert_eq!(window(&stats, 3600).span_s, 3000.0);
        stats.record(later + INTERVAL, 0, &gets(3_000_005, 0));
        assert_eq!((window(&stats, 60).gets, window(&stats, 60).span_s), (5, 5.0));
    }

    #[test]
    fn an_interval_longer_than_the_window_still_gives_figures() {
        let mut stats = InstanceStats::new(&[Duration::from_secs(10)], Duration::from_secs(60));
        let start = Instant::now();
        for i in 0..10u32 {
            stats.record(start + Duration::from_secs(60) * i, 0, &gets(u64::from(i) * 60, 0));
            if i > 0 {
                assert_eq!((window(&stats, 10).span_s, window(&stats, 10).gets), (60.0, 60));
            }
        }
    }

    /// A model that keeps every sample answers the same question: what was counted between the moments that the
    /// figures name.
    #[test]
    fn figures_agree_with_a_model_that_keeps_everything() {
        for seed in 1..20 {
            let mut numbers = Numbers(seed * 7919);
            let mut stats = InstanceStats::new(&WINDOWS, INTERVAL);
            let (start, mut at, mut counter, mut total) =
                (Instant::now(), 0u64, numbers.below(1 << 40), 0u64);
            let mut model = vec![];
            for i in 0..5000 {
                stats.record(start + Duration::from_millis(at), at, &gets(counter, counter / 2));
                model.push((at, total));
                if i < 100 || i % 13 == 0 {
                    compare(&stats, &model);
                }
                let grown = numbers.below(1_000_000);
                let restart = numbers.below(50) == 0;
                if restart && grown >= counter {
                    stats.restarted();
                }
                counter = if restart { grown } else { counter + grown };
                total += grown;
                at += 4500 + numbers.below(1000) + if numbers.below(200) == 0 { 400_000 } else { 0 };
            }
        }
    }

    fn compare(stats: &InstanceStats, model: &[(u64, u64)]) {
        let (now, total) = model[model.len() - 1];
        let figures = stats.figures("1").unwrap();
        for (seconds, figures) in figures.windows.iter() {
            let then = now - (figures.span_s * 1000.0).round() as u64;
            let kept = model.binary_search_by_key(&then, |(at, _)| *at);
            let kept = kept.unwrap_or_else(|_| panic!("no sample {} s ago", figures.span_s));
            assert_eq!(figures.gets, total - model[kept].1, "{seconds} s at {now}");
            covers(seconds * 1000, now, then, model);
        }
    }

    /// The span is within a pace of the window wherever there are samples to choose from.
    fn covers(length: u64, now: u64, then: u64, model: &[(u64, u64)]) {
        let pace = 5000.max(length / 126) + 5500;
        let wanted = now.saturating_sub(length);
        let exists = model.iter().any(|(at, _)| *at != now && at.abs_diff(wanted) <= 2500);
        if exists {
            assert!(then.abs_diff(wanted) <= pace, "wanted {wanted}, got {then}, pace {pace}");
        }
    }

    #[test]
    fn totals_beyond_48_bits_still_subtract() {
        let mut stats = InstanceStats::new(&WINDOWS, INTERVAL);
        let start = Instant::now();
        let top = 1u64 << 48;
        for (i, n) in [(0u32, 0), (1, top - 5), (2, top + 10), (3, top + 30)] {
            stats.record(start + Duration::from_secs(100) * i, 0, &gets(n, 0));
        }
        stats.record(start + Duration::from_secs(360), 0, &gets(top + 100, 0));
        assert_eq!(window(&stats, 60).gets, 70);
    }

    #[test]
    fn numbers_become_a_sample() {
        let told = [
            (NumberKind::Counter, "gets", 12.0),
            (NumberKind::Counter, "hits", f64::NAN),
            (NumberKind::Counter, "sets", -1.0),
            (NumberKind::Gauge, "deletes", 4.0),
            (NumberKind::Gauge, "keys", 3.0),
            (NumberKind::Gauge, "bytes", 1e300),
            (NumberKind::Gauge, "uptime_s", 1.5),
            (NumberKind::Counter, "own_name", 5.0),
        ];
        let told: Vec<_> = told.map(|(kind, name, value)| (kind, name.to_owned(), value)).into();
        let expected =
            Sample { gets: Some(12), keys: 3, bytes: u64::MAX, uptime_s: 1.5, ..Sample::default() };
        assert_eq!(Sample::from_numbers(&told), expected);
    }

    fn told(kind: NumberKind, name: &str, value: f64) -> (NumberKind, String, f64) {
        (kind, name.to_owned(), value)
    }

    #[test]
    fn names_of_the_engines_own_are_carried_as_they_are() {
        let mut stats = InstanceStats::new(&[], INTERVAL);
        let others = Others::from_numbers(&[
            told(NumberKind::Counter, "gets", 1.0),
            told(NumberKind::Gauge, "deletes", 1.0),
            told(NumberKind::Gauge, "ratio", 0.25),
            told(NumberKind::Gauge, "lag", 7.0),
            told(NumberKind::Gauge, "lag", -3.0),
            told(NumberKind::Counter, "negative", -1.0),
            told(NumberKind::Gauge, "none", f64::NAN),
            told(NumberKind::Counter, "a \"total\"", 9_007_199_254_740_992.0),
        ]);
        stats.record(Instant::now(), 7, &Sample::default());
        assert_eq!((others.get("lag"), stats.carry(others)), (Some(-3.0), None));
        assert_eq!(
            serde_json::to_string(&stats.figures("1").unwrap()).unwrap(),
            r#"{"v":1,"at_ms":7,"uptime_s":0.0,"keys":0,"bytes":0,"limit_bytes":0,"fill":0.0,"connections":0,"version":"1","other":{"ratio":0.25,"lag":-3,"a \"total\"":9007199254740992},"windows":{}}"#
        );
        stats.carry(Others::from_numbers(&[told(NumberKind::Gauge, "x", 1e300)]));
        assert_eq!(serde_json::to_string(&stats.figures("1").unwrap().other).unwrap(), r#"{"x":1e+300}"#);
    }

    #[test]
    fn names_beyond_the_limits_are_counted_and_told_once() {
        let mut stats = InstanceStats::new(&[], INTERVAL);
        let long = "n".repeat(OTHER_NAME_AT_MOST);
        let mut numbers =
            vec![told(NumberKind::Gauge, &long, 1.0), told(NumberKind::Gauge, &(long.clone() + "n"), 2.0)];
        numbers.extend((0..40).map(|i| told(NumberKind::Counter, &format!("{i:064}"), f64::from(i))));
        for first in [Some(1 + 40 - 31), None, None] {
            let others = Others::from_numbers(&numbers);
            assert_eq!((others.get(&long), others.dropped()), (Some(1.0), 10));
            assert_eq!(stats.carry(others), first);
        }
        let full = OTHERS_AT_MOST * (size_of::<(String, f64)>() + OTHER_NAME_AT_MOST);
        assert_eq!(stats.others.memory(), full, "no more than the limits allow");
        assert_eq!(stats.carry(Others::default()), None);
        assert_eq!(stats.others.memory(), 0);
    }

    #[test]
    fn a_name_goes_into_the_sample_or_is_carried() {
        let names = ["gets", "hits", "sets", "deletes", "evictions", "expirations", "keys", "bytes"];
        for name in names.into_iter().chain(["limit_bytes", "connections", "uptime_s", "own"]) {
            let both = [NumberKind::Counter, NumberKind::Gauge].map(|kind| told(kind, name, 1.0));
            let taken = Sample::from_numbers(&both) != Sample::default();
            assert_eq!(taken, Others::from_numbers(&both).is_empty(), "{name}");
        }
    }

    #[test]
    fn the_json_is_that_of_the_info_node() {
        let mut stats = InstanceStats::new(&[Duration::from_secs(60)], INTERVAL);
        let start = Instant::now();
        let gauges =
            Sample { bytes: 50, limit_bytes: 200, uptime_s: 9.0, connections: 2, keys: 1, ..gets(0, 0) };
        stats.record(start, 1, &gauges);
        stats.record(
            start + INTERVAL,
            1_700_000_000_000,
            &Sample { gets: Some(10), hits: Some(5), ..gauges },
        );
        assert_eq!(
            serde_json::to_string(&stats.figures("1.6.18").unwrap()).unwrap(),
            r#"{"v":1,"at_ms":1700000000000,"uptime_s":9.0,"keys":1,"bytes":50,"limit_bytes":200,"fill":0.25,"connections":2,"version":"1.6.18","windows":{"60":{"span_s":5.0,"gets":10,"hits":5,"sets":0,"deletes":0,"evictions":0,"expirations":0,"hit_rate":0.5,"gets_per_s":2.0,"sets_per_s":0.0,"deletes_per_s":0.0}}}"#
        );
    }

    #[test]
    fn a_host_is_the_sum_of_its_instances() {
        let figures = |gets, hits, bytes| Figures {
            v: 1,
            at_ms: gets,
            uptime_s: 1.0,
            keys: 2,
            bytes,
            limit_bytes: 100,
            fill: 0.0,
            connections: 3,
            version: String::new(),
            other: Others::default(),
            windows: [(60, WindowFigures { gets, hits, gets_per_s: 1.5, ..Default::default() })]
                .into_iter()
                .collect(),
        };
        let host = HostFigures::sum(&[figures(100, 100, 10), figures(300, 0, 40)]);
        assert_eq!((host.at_ms, host.instances, host.keys, host.connections), (300, 2, 4, 6));
        assert_eq!((host.bytes, host.limit_bytes, host.fill), (50, 200, 0.25));
        let minute = host.windows.get(60).unwrap();
        assert_eq!((minute.gets, minute.hit_rate, minute.gets_per_s), (400, Some(0.25), 3.0));
        assert_eq!(HostFigures::sum([]).windows, Windows::default());
    }
}
