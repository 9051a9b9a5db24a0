//! The model of a redis server: its role, its data, what it takes and refuses.
//!
//! Data is a place in a history: a replication id and an offset in it. A history that began with a promotion knows
//! where it left the one before.

use std::{collections::VecDeque, mem, time::Duration};

use yagent::core::failover::{FENCE_FOR, NOWHERE, Order, Ordered, Replica, Role, View};

use super::{
    replication::{Link, LinkState, Replicated},
    setting::Setting,
    world::{Happening, Sent, World},
};
use crate::{
    dice::Dice,
    world::{MS, Micros, SECOND},
};

/// How long a fence lasts, in microseconds of a wall clock.
pub(super) const LONG: i64 = FENCE_FOR.as_micros() as i64;
/// `min-slaves-max-lag`.
const GOOD_LAG_S: i64 = 10;
/// What a write is in the stream.
pub(super) const WRITE_BYTES: i64 = 50;

/// One line of data.
#[derive(Debug)]
struct History {
    /// The line it left, and where.
    parent: Option<(u32, i64)>,
    /// The offsets at the end of each write.
    writes: Vec<i64>,
    /// Keys before the first of them.
    keys: u64,
}

/// All lines of data that ever were; a replication id is an index.
#[derive(Debug, Default)]
pub(super) struct Histories(Vec<History>);

/// A place in a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) id: u32,
    pub(super) offset: i64,
}

impl Histories {
    pub(super) fn begin(&mut self, parent: Option<(u32, i64)>, keys: u64) -> u32 {
        self.0.push(History { parent, writes: Vec::new(), keys });
        u32::try_from(self.0.len() - 1).unwrap_or(0)
    }

    fn branch(&mut self, from: Place) -> u32 {
        let keys = self.keys(from);
        self.begin(Some((from.id, from.offset)), keys)
    }

    pub(super) fn append(&mut self, id: u32, end: i64) {
        self.0[id as usize].writes.push(end);
    }

    pub(super) fn keys(&self, at: Place) -> u64 {
        let history = &self.0[at.id as usize];
        match history.parent {
            Some((id, left)) if at.offset < left => self.keys(Place { id, offset: at.offset }),
            _ => history.keys + history.writes.partition_point(|end| *end <= at.offset) as u64,
        }
    }

    /// Whether data at a place has what was written at another.
    pub(super) fn contains(&self, data: Place, write: Place) -> bool {
        let (mut id, mut limit) = (data.id, data.offset);
        loop {
            if id == write.id {
                return write.offset <= limit;
            }
            let Some((parent, left)) = self.0[id as usize].parent else { return false };
            (id, limit) = (parent, limit.min(left));
        }
    }

    /// The line to which a place belongs that is before the beginning of its own.
    fn line(&self, at: Place) -> Place {
        match self.0[at.id as usize].parent {
            Some((id, left)) if at.offset < left => self.line(Place { id, offset: at.offset }),
            _ => at,
        }
    }
}

/// Whose replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Of {
    Nobody,
    Nowhere,
    Host(usize),
}

/// What waits while the process is stopped.
#[derive(Debug)]
enum Waiting {
    Order(Sent),
    Fence,
    Write,
}

#[derive(Debug)]
pub(super) struct Redis {
    /// 0: there is no process.
    pub(super) pid: u32,
    pub(super) stopped: bool,
    pub(super) loading_until: Micros,
    pub(super) of: Of,
    pub(super) link: Link,
    pub(super) replicas: Vec<Replicated>,
    pub(super) data: Place,
    /// The history before, and where it was left.
    pub(super) second: Option<Place>,
    /// Since which offset the stream is kept; `None`: it is not.
    pub(super) backlog: Option<i64>,
    min_replicas: u32,
    good: u32,
    /// By the wall clock, as redis does.
    pause_until: Option<i64>,
    waiting: VecDeque<Waiting>,
    /// Writes that wait for the end of a pause.
    held_writes: u32,
    /// The most that it had when it died.
    pub(super) before: Option<Place>,
    /// What the disk has.
    dump: Option<Place>,
    pub(super) priority: u32,
    pids: u32,
    pub(super) seconds: u64,
}

impl Redis {
    pub(super) fn new(dice: &mut Dice, setting: &Setting, histories: &mut Histories) -> Redis {
        let keys = if dice.percent(setting.preloaded) { dice.within(1..500) } else { 0 };
        let id = histories.begin(None, keys);
        let data = Place { id, offset: 0 };
        Redis {
            pid: 0,
            stopped: false,
            loading_until: 0,
            of: Of::Nowhere,
            link: Link::default(),
            replicas: Vec::new(),
            data,
            second: None,
            backlog: None,
            min_replicas: 0,
            good: 0,
            pause_until: None,
            waiting: VecDeque::new(),
            held_writes: 0,
            before: None,
            dump: (keys > 0).then_some(data),
            priority: if dice.percent(setting.barred) { 0 } else { 100 },
            pids: 0,
            seconds: dice.within(0..10),
        }
    }

    pub(super) fn is_master(&self) -> bool {
        self.pid != 0 && self.of == Of::Nobody
    }

    pub(super) fn is_loading(&self, t: Micros) -> bool {
        t < self.loading_until
    }

    pub(super) fn pause(&mut self, until: i64) {
        self.pause_until = Some(self.pause_until.map_or(until, |before| before.max(until)));
    }

    /// It is stopped: it takes the fence when it goes on.
    pub(super) fn fence_waits(&mut self) {
        self.waiting.push_back(Waiting::Fence);
    }

    pub(super) fn is_paused(&self, wall: i64) -> bool {
        self.pause_until.is_some_and(|until| wall < until)
    }
}

impl World {
    // Its life

    pub(super) fn spawned(&mut self, host: usize, life: u32, follow: &(String, u16)) {
        if self.hosts[host].life != life || self.stopped(host) || self.hosts[host].redis.pid != 0 {
            if self.hosts[host].life == life && self.hosts[host].redis.pid == 0 {
                let follow = Box::new(follow.clone());
                self.later(100 * MS, Happening::Spawned { host, life, follow });
            }
            return;
        }
        let of = self.peer(follow);
        let slow = self.dice.within(0..self.setting.load);
        let t = self.t;
        let redis = &mut self.hosts[host].redis;
        redis.pids += 1;
        redis.pid = redis.pids;
        let pid = redis.pid;
        redis.stopped = false;
        redis.of = of;
        redis.link = Link { serial: redis.link.serial + 1, ..Link::default() };
        redis.replicas.clear();
        redis.second = None;
        redis.backlog = None;
        redis.min_replicas = 0;
        redis.pause_until = None;
        redis.loading_until = 0;
        match redis.dump {
            Some(dump) => {
                redis.data = dump;
                redis.loading_until = t + slow;
                if of == Of::Nobody {
                    redis.data.id = self.histories.branch(dump);
                }
            }
            None => redis.data = Place { id: self.histories.begin(None, 0), offset: 0 },
        }
        self.log(|| format!("== host {host}: redis {pid} starts, {of:?}"));
        let beat = self.dice.within(0..SECOND);
        self.later(beat, Happening::Cron { host, pid });
        self.started(host, pid);
    }

    fn peer(&self, (name, port): &(String, u16)) -> Of {
        if name.is_empty() {
            return Of::Nobody;
        }
        if (&**name, *port) == NOWHERE {
            return Of::Nowhere;
        }
        self.host_of(&format!("{name}:{port}")).map_or(Of::Nowhere, Of::Host)
    }

    pub(super) fn dies(&mut self, host: usize, pid: u32) {
        if self.hosts[host].redis.pid != pid || pid == 0 {
            return;
        }
        self.log(|| format!("!! host {host}: redis {pid} dies"));
        self.save_some(host);
        self.drop_replicas(host);
        self.leave_master(host);
        let redis = &mut self.hosts[host].redis;
        // Of several crashes in a row the one with the most counts.
        let more = redis.before.filter(|before| self.histories.contains(*before, redis.data));
        redis.before = more.or(Some(redis.data));
        redis.pid = 0;
        redis.stopped = false;
        redis.waiting.clear();
        redis.held_writes = 0;
        self.break_order(host);
        let (life, delay) = (self.hosts[host].life, self.dice.within(100..3 * MS));
        self.later(delay, Happening::Noticed { host, life, pid });
        self.note_guard(host);
    }

    /// What a crash leaves on the disk: nothing new, or the data of some time ago.
    fn save_some(&mut self, host: usize) {
        let has = self.dice.percent(self.setting.dumps);
        let behind = i64::try_from(self.dice.within(0..40)).unwrap_or(0) * WRITE_BYTES;
        let has_id = self.dice.percent(70);
        let redis = &mut self.hosts[host].redis;
        redis.dump = None;
        if !has || redis.is_loading(self.t) {
            return;
        }
        let offset = (redis.data.offset - behind).max(0);
        let mut place = self.histories.line(Place { id: redis.data.id, offset });
        if self.histories.keys(place) == 0 {
            return;
        }
        if !has_id {
            place.id = self.histories.branch(place);
        }
        redis.dump = Some(place);
    }

    /// SIGSTOP, and SIGCONT after that long.
    pub(super) fn stop_redis(&mut self, host: usize, long: Micros) {
        let (pid, life) = (self.hosts[host].redis.pid, self.hosts[host].life);
        if pid == 0 {
            return;
        }
        self.log(|| format!("!! host {host}: redis {pid} is stopped for {} ms", long / MS));
        self.hosts[host].redis.stopped = true;
        self.later(long, Happening::Continues { host, pid });
        let probe = self.dice.within(200 * MS..2 * SECOND);
        self.later(probe, Happening::Hangs { host, life, pid });
    }

    pub(super) fn continues(&mut self, host: usize, pid: u32) {
        let redis = &mut self.hosts[host].redis;
        if redis.pid != pid || !redis.stopped {
            return;
        }
        redis.stopped = false;
        let waiting = mem::take(&mut redis.waiting);
        self.log(|| format!("!! host {host}: redis {pid} goes on"));
        self.later(0, Happening::Cron { host, pid });
        self.look_at_pause(host);
        self.flush_stream(host);
        for what in waiting {
            match what {
                Waiting::Order(order) => self.order_in(host, pid, order),
                Waiting::Fence => self.fence_in(host, pid),
                Waiting::Write => {
                    self.take_write(host);
                }
            }
        }
    }

    pub(super) fn cron(&mut self, host: usize, pid: u32) {
        let redis = &mut self.hosts[host].redis;
        if redis.pid != pid || redis.stopped {
            return;
        }
        redis.seconds += 1;
        self.later(SECOND, Happening::Cron { host, pid });
        self.look_at_pause(host);
        self.replicate(host);
        self.count_good(host);
    }

    // Pauses

    pub(super) fn look_at_pause(&mut self, host: usize) {
        let wall = self.wall(host);
        let redis = &mut self.hosts[host].redis;
        if redis.pause_until.is_some() && !redis.is_paused(wall) {
            redis.pause_until = None;
        }
        if redis.pause_until.is_none() {
            self.flush_stream(host);
            let held = mem::take(&mut self.hosts[host].redis.held_writes);
            for _ in 0..held {
                self.take_write(host);
            }
        }
    }

    // Writes

    pub(super) fn count_good(&mut self, host: usize) {
        let wall = self.wall(host);
        let redis = &mut self.hosts[host].redis;
        let good = |r: &&Replicated| r.online && wall.div_euclid(1_000_000) - r.acked_s <= GOOD_LAG_S;
        redis.good = u32::try_from(redis.replicas.iter().filter(good).count()).unwrap_or(0);
    }

    /// A client's write arrives. Whether it is acknowledged at once.
    pub(super) fn take_write(&mut self, host: usize) -> bool {
        let (t, wall) = (self.t, self.wall(host));
        let redis = &mut self.hosts[host].redis;
        if redis.pid == 0 || redis.is_loading(t) {
            return false;
        }
        if redis.stopped {
            if redis.waiting.len() < 4 {
                redis.waiting.push_back(Waiting::Write);
            }
            return false;
        }
        if redis.of != Of::Nobody || (redis.min_replicas > 0 && redis.good < redis.min_replicas) {
            return false;
        }
        if redis.is_paused(wall) {
            redis.held_writes = (redis.held_writes + 1).min(4);
            return false;
        }
        redis.data.offset += WRITE_BYTES;
        let place = redis.data;
        self.histories.append(place.id, place.offset);
        self.feed_replicas(host);
        self.write_acknowledged(host, place);
        true
    }

    // Orders

    pub(super) fn order_in(&mut self, host: usize, pid: u32, sent: Sent) {
        if self.hosts[host].redis.pid != pid {
            return;
        }
        if self.hosts[host].redis.stopped {
            self.hosts[host].redis.waiting.push_back(Waiting::Order(sent));
            return;
        }
        let Sent { life, serial, order } = sent;
        let ordered = self.obey(host, &order);
        if self.t < self.hosts[host].orders_lost && self.dice.percent(70) {
            return;
        }
        let delay = self.dice.within(50..MS);
        self.later(delay, Happening::OrderOut { host, pid, life, serial, ordered: Box::new(ordered) });
    }

    fn obey(&mut self, host: usize, order: &Order) -> Ordered {
        let (t, wall) = (self.t, self.wall(host));
        let loading = self.hosts[host].redis.is_loading(t);
        if self.is_refused(host, order) {
            return Ordered::Failed("NOPERM this user has no permissions".to_owned());
        }
        match order {
            Order::Inspect => return Ordered::Done(Some(Box::new(self.view(host)))),
            Order::Promote | Order::Follow { .. } if loading => {
                return Ordered::Failed("LOADING Redis is loading the dataset in memory".to_owned());
            }
            Order::Promote => self.promote(host),
            Order::Follow { host: name, port, .. } => {
                let of = self.peer(&(name.clone(), *port));
                self.follow(host, of);
            }
            Order::Fence { .. } if self.setting.old => return Ordered::Unsupported,
            Order::Fence { long } => {
                let until = wall + i64::try_from(long.as_micros()).unwrap_or(LONG);
                self.hosts[host].redis.pause(until);
            }
            Order::Unfence { min_replicas } => {
                let redis = &mut self.hosts[host].redis;
                redis.min_replicas = *min_replicas;
                redis.pause_until = None;
                self.count_good(host);
                self.look_at_pause(host);
            }
        }
        Ordered::Done(None)
    }

    fn promote(&mut self, host: usize) {
        if self.hosts[host].redis.of == Of::Nobody {
            return;
        }
        self.check_promotion(host);
        self.leave_master(host);
        self.drop_replicas(host);
        let until = self.wall(host) + LONG;
        let can_pause = !self.setting.old;
        let redis = &mut self.hosts[host].redis;
        if can_pause {
            redis.pause(until);
        }
        redis.of = Of::Nobody;
        redis.second = Some(redis.data);
        redis.data.id = self.histories.branch(redis.data);
        let place = redis.data;
        self.log(|| format!("== host {host}: redis is a master, {place:?}"));
    }

    fn follow(&mut self, host: usize, of: Of) {
        if self.hosts[host].redis.of == of {
            return;
        }
        self.log(|| format!("== host {host}: redis follows {of:?}"));
        self.leave_master(host);
        self.drop_replicas(host);
        let redis = &mut self.hosts[host].redis;
        redis.of = of;
        self.hosts[host].unguarded = false;
        let redis = &mut self.hosts[host].redis;
        redis.held_writes = 0;
        redis.link.down_since = Some(self.t);
    }

    fn view(&self, host: usize) -> View {
        let (t, wall) = (self.t, self.wall(host));
        let redis = &self.hosts[host].redis;
        let name = |id: u32| format!("{id:08x}");
        let master = match redis.of {
            Of::Nobody => None,
            Of::Nowhere => Some(format!("{}:{}", NOWHERE.0, NOWHERE.1)),
            Of::Host(other) => Some(self.setting.plans[other].address.clone()),
        };
        let link_up = redis.link.state == LinkState::Up;
        let down = redis.link.down_since.filter(|_| master.is_some() && !link_up);
        let replica = |r: &Replicated| Replica {
            address: self.setting.plans[r.host].address.clone(),
            online: r.online,
            offset: r.acked,
            lag_s: u64::try_from(wall.div_euclid(1_000_000) - r.acked_s).unwrap_or(u64::MAX),
        };
        let is_master = redis.of == Of::Nobody;
        View {
            role: if is_master { Role::Master } else { Role::Replica },
            master,
            link_up: link_up && !is_master,
            link_down: Duration::from_secs(down.map_or(0, |since| (t - since) / SECOND)),
            last_io: Duration::from_secs(if link_up { (t - redis.link.heard) / SECOND } else { 0 }),
            syncing: redis.link.state == LinkState::Copying,
            loading: redis.is_loading(t),
            run_id: format!("{host}.{}", redis.pid),
            replid: name(redis.data.id),
            replid2: redis.second.map_or_else(|| "0".repeat(40), |second| name(second.id)),
            offset: redis.data.offset,
            keys: if redis.is_loading(t) { 0 } else { self.histories.keys(redis.data) },
            priority: if is_master { 0 } else { redis.priority },
            replicas: if is_master { redis.replicas.iter().map(replica).collect() } else { Vec::new() },
            version: "7.0.15".to_owned(),
        }
    }
}
