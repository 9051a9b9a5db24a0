//! How replicas copy their master: whole copies, partial ones, the stream and its acknowledgements.

use super::{
    redis::{Of, Place},
    world::{Happening, World},
};
use crate::world::{MS, Micros, SECOND};

/// What a master's ping is in the stream.
const PING_BYTES: i64 = 14;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum LinkState {
    #[default]
    Down,
    /// They are getting to know one another.
    Meeting,
    Copying,
    Up,
}

/// A replica's link to its master.
#[derive(Debug, Default)]
pub(super) struct Link {
    pub(super) serial: u32,
    pub(super) state: LinkState,
    pub(super) down_since: Option<Micros>,
    /// When the master was last heard.
    pub(super) heard: Micros,
    /// When the last part of the stream arrives.
    pub(super) last: Micros,
    /// How far the stream has come that could not be applied yet.
    pub(super) held: i64,
}

/// A replica as its master knows it.
#[derive(Debug)]
pub(super) struct Replicated {
    pub(super) host: usize,
    link: u32,
    pub(super) online: bool,
    pub(super) acked: i64,
    /// By the master's wall clock, in seconds, as redis counts.
    pub(super) acked_s: i64,
    heard: Micros,
}

impl World {
    fn master_of(&self, host: usize) -> Option<usize> {
        match self.hosts[host].redis.of {
            Of::Host(master) => Some(master),
            Of::Nobody | Of::Nowhere => None,
        }
    }

    /// Both ways are open and both live.
    fn can_talk(&self, replica: usize, master: usize) -> bool {
        let redis = &self.hosts[master].redis;
        self.reaches(replica, master) && self.reaches(master, replica) && redis.pid != 0 && !redis.stopped
    }

    // Every second

    pub(super) fn replicate(&mut self, host: usize) {
        let (t, timeout) = (self.t, self.setting.repl_timeout);
        let redis = &mut self.hosts[host].redis;
        redis.replicas.retain(|replica| t < replica.heard + timeout);
        if redis.seconds.is_multiple_of(10) && redis.of == Of::Nobody && !redis.replicas.is_empty() {
            redis.data.offset += PING_BYTES;
            self.feed_replicas(host);
        }
        let redis = &self.hosts[host].redis;
        let (link, state, heard, offset) =
            (redis.link.serial, redis.link.state, redis.link.heard, redis.data.offset);
        let Some(master) = self.master_of(host) else { return };
        match state {
            LinkState::Down if !redis.is_loading(t) && self.can_talk(host, master) => {
                let redis = &mut self.hosts[host].redis;
                redis.link.serial += 1;
                redis.link.state = LinkState::Meeting;
                let link = redis.link.serial;
                let delay = self.latency() * 4;
                self.later(delay, Happening::Handshake { host, link });
            }
            LinkState::Up if t >= heard + timeout => self.link_breaks(host, link),
            LinkState::Up => self.send_ack(host, master, link, offset),
            _ => {}
        }
    }

    fn send_ack(&mut self, host: usize, master: usize, link: u32, offset: i64) {
        if self.reaches(host, master) {
            let (pid, delay) = (self.hosts[master].redis.pid, self.latency());
            self.later(delay, Happening::Ack { host: master, pid, from: host, link, offset });
        }
    }

    pub(super) fn acknowledged(&mut self, host: usize, pid: u32, from: usize, link: u32, offset: i64) {
        let (t, second) = (self.t, self.wall(host).div_euclid(1_000_000));
        let redis = &mut self.hosts[host].redis;
        if redis.pid != pid || redis.stopped {
            return;
        }
        if let Some(replica) = redis.replicas.iter_mut().find(|r| r.host == from && r.link == link) {
            (replica.acked, replica.acked_s, replica.heard) = (offset, second, t);
            // The master's answer to keepalives, and its own pings, are heard as long as the way is open.
            if self.reaches(host, from) && self.hosts[from].redis.link.serial == link {
                self.hosts[from].redis.link.heard = t;
            }
        }
    }

    // Meeting

    pub(super) fn handshake(&mut self, host: usize, link: u32) {
        let (t, limit) = (self.t, self.setting.backlog);
        let Some(master) = self.master_of(host).filter(|_| self.is_link(host, link)) else { return };
        let lord = &self.hosts[master].redis;
        let source = lord.of == Of::Nobody || lord.link.state == LinkState::Up;
        if !self.can_talk(host, master) || lord.is_loading(t) || !source || self.hosts[host].redis.stopped {
            return self.link_breaks(host, link);
        }
        let (own, theirs, second) = (self.hosts[host].redis.data, lord.data, lord.second);
        let shared = own.id == theirs.id && own.offset <= theirs.offset
            || second.is_some_and(|second| own.id == second.id && own.offset <= second.offset);
        let kept = lord.backlog.is_some_and(|from| own.offset >= from.max(theirs.offset - limit));
        let partial = shared && kept;
        let second_now = self.wall(master).div_euclid(1_000_000);
        let lord = &mut self.hosts[master].redis;
        lord.backlog.get_or_insert(theirs.offset);
        lord.replicas.retain(|replica| replica.host != host);
        let acked = if partial { own.offset } else { 0 };
        lord.replicas.push(Replicated { host, link, online: partial, acked, acked_s: second_now, heard: t });
        let redis = &mut self.hosts[host].redis;
        redis.link.heard = t;
        redis.link.held = 0;
        redis.backlog.get_or_insert(own.offset);
        if partial {
            redis.link.state = LinkState::Up;
            redis.link.down_since = None;
            if own.id != theirs.id {
                redis.second = Some(own);
                redis.data.id = theirs.id;
                self.drop_replicas(host);
            }
            self.count_good(master);
            self.stream_to(master, host, link);
        } else {
            redis.link.state = LinkState::Copying;
            redis.link.last = theirs.offset.unsigned_abs();
            let copy = self.setting.copy;
            let delay = self.dice.within(copy / 4..copy);
            self.log(|| format!("== host {host}: redis takes a whole copy of host {master}"));
            self.later(delay, Happening::CopyLoads { host, link });
        }
    }

    fn is_link(&self, host: usize, link: u32) -> bool {
        let redis = &self.hosts[host].redis;
        redis.pid != 0 && redis.link.serial == link && redis.link.state != LinkState::Down
    }

    /// Its master, if it still knows of this link and can be reached.
    fn partner(&self, host: usize, link: u32) -> Option<usize> {
        let master = self.master_of(host).filter(|_| self.is_link(host, link))?;
        let knows = self.hosts[master].redis.replicas.iter().any(|r| r.host == host && r.link == link);
        (knows && self.can_talk(host, master)).then_some(master)
    }

    pub(super) fn copy_loads(&mut self, host: usize, link: u32) {
        if !self.is_link(host, link) {
            return;
        }
        let Some(master) = self.partner(host, link) else { return self.link_breaks(host, link) };
        if self.hosts[host].redis.stopped {
            return self.later(100 * MS, Happening::CopyLoads { host, link });
        }
        // The copy is of when it was begun; the stream since then follows.
        let (id, t) = (self.hosts[master].redis.data.id, self.t);
        let load = self.dice.within(0..self.setting.copy / 4 + 1);
        let redis = &mut self.hosts[host].redis;
        redis.data = Place { id, offset: i64::try_from(redis.link.last).unwrap_or(0) };
        redis.second = None;
        redis.backlog = Some(redis.data.offset);
        redis.link.last = 0;
        redis.loading_until = t + load;
        self.drop_replicas(host);
        self.later(load, Happening::CopyDone { host, link });
    }

    pub(super) fn copy_done(&mut self, host: usize, link: u32) {
        if !self.is_link(host, link) {
            return;
        }
        let Some(master) = self.partner(host, link) else { return self.link_breaks(host, link) };
        let t = self.t;
        let redis = &mut self.hosts[host].redis;
        redis.link.state = LinkState::Up;
        redis.link.down_since = None;
        redis.link.heard = t;
        let second = self.wall(master).div_euclid(1_000_000);
        let offset = self.hosts[host].redis.data.offset;
        if let Some(replica) =
            self.hosts[master].redis.replicas.iter_mut().find(|r| r.link == link && r.host == host)
        {
            replica.online = true;
            (replica.acked, replica.acked_s, replica.heard) = (offset, second, t);
        }
        self.count_good(master);
        self.stream_to(master, host, link);
    }

    // The stream

    /// What is new goes to all replicas.
    pub(super) fn feed_replicas(&mut self, host: usize) {
        for index in 0..self.hosts[host].redis.replicas.len() {
            let replica = &self.hosts[host].redis.replicas[index];
            if replica.online {
                let (to, link) = (replica.host, replica.link);
                self.stream_to(host, to, link);
            }
        }
    }

    fn stream_to(&mut self, from: usize, to: usize, link: u32) {
        let offset = self.hosts[from].redis.data.offset;
        let at = self.t + self.latency();
        let last = &mut self.hosts[to].redis.link.last;
        *last = (*last).max(at);
        let delay = *last - self.t;
        self.later(delay, Happening::Stream { host: to, link, offset });
    }

    pub(super) fn stream(&mut self, host: usize, link: u32, offset: i64) {
        if self.is_link(host, link) {
            let held = &mut self.hosts[host].redis.link.held;
            *held = (*held).max(offset);
            self.flush_stream(host);
        }
    }

    /// Applies what has come, where nothing keeps it from that.
    pub(super) fn flush_stream(&mut self, host: usize) {
        let wall = self.wall(host);
        let open = self.master_of(host).is_some_and(|master| self.reaches(master, host));
        let redis = &mut self.hosts[host].redis;
        let up = redis.pid != 0 && redis.link.state == LinkState::Up;
        if !up || !open || redis.stopped || redis.is_paused(wall) || redis.link.held <= redis.data.offset {
            return;
        }
        redis.data.offset = redis.link.held;
        redis.link.heard = self.t;
        self.feed_replicas(host);
    }

    // The end of links

    pub(super) fn link_breaks(&mut self, host: usize, link: u32) {
        if !self.is_link(host, link) {
            return;
        }
        self.flush_stream(host);
        let t = self.t;
        let redis = &mut self.hosts[host].redis;
        redis.link.state = LinkState::Down;
        redis.link.held = 0;
        redis.link.last = 0;
        redis.link.down_since.get_or_insert(t);
        self.drop_replicas(host);
    }

    /// A replica turns away from its master, or dies.
    pub(super) fn leave_master(&mut self, host: usize) {
        let t = self.t;
        let redis = &mut self.hosts[host].redis;
        let link = redis.link.serial;
        redis.link =
            Link { serial: link + 1, down_since: redis.link.down_since.or(Some(t)), ..Link::default() };
        let Some(master) = self.master_of(host) else { return };
        if self.reaches(host, master) {
            let (pid, delay) = (self.hosts[master].redis.pid, self.latency());
            self.later(delay, Happening::ReplicaGone { host: master, pid, from: host, link });
        }
    }

    pub(super) fn replica_gone(&mut self, host: usize, pid: u32, from: usize, link: u32) {
        let redis = &mut self.hosts[host].redis;
        if redis.pid != pid {
            return;
        }
        if redis.stopped {
            return self.later(100 * MS, Happening::ReplicaGone { host, pid, from, link });
        }
        redis.replicas.retain(|replica| (replica.host, replica.link) != (from, link));
        self.count_good(host);
    }

    /// A master lets all its replicas go, or dies. What was sent before arrives, or does not.
    pub(super) fn drop_replicas(&mut self, host: usize) {
        let replicas = std::mem::take(&mut self.hosts[host].redis.replicas);
        for replica in replicas {
            if self.reaches(host, replica.host) {
                let sooner = self.dice.percent(30);
                let last = self.hosts[replica.host].redis.link.last.saturating_sub(self.t);
                let delay = if sooner { 100 } else { last + self.latency() };
                let delay = delay.min(SECOND);
                self.later(delay, Happening::LinkBreaks { host: replica.host, link: replica.link });
            }
        }
    }

    /// The way between two hosts is open again: what waited is applied, what is dead is found to be.
    pub(super) fn way_opens(&mut self, from: usize, to: usize) {
        for (replica, master) in [(from, to), (to, from)] {
            let link = self.hosts[replica].redis.link.serial;
            if self.master_of(replica) == Some(master) && self.is_link(replica, link) {
                self.flush_stream(replica);
                let knows =
                    self.hosts[master].redis.replicas.iter().any(|r| r.host == replica && r.link == link);
                if !knows || self.hosts[master].redis.pid == 0 {
                    self.later(5 * MS, Happening::LinkBreaks { host: replica, link });
                }
            }
            let pid = self.hosts[master].redis.pid;
            let dead: Vec<u32> = self.hosts[master]
                .redis
                .replicas
                .iter()
                .filter(|r| r.host == replica && !(r.link == link && self.is_link(replica, link)))
                .map(|r| r.link)
                .collect();
            for link in dead {
                self.later(5 * MS, Happening::ReplicaGone { host: master, pid, from: replica, link });
            }
        }
    }
}
