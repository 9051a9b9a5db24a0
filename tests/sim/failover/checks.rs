//! What must hold at every step, whatever goes wrong.

use std::time::Duration;

use yagent::core::failover::{IntentKind, Order, Phase, ShardState};

use super::{
    redis::{Of, Place},
    replication::LinkState,
    world::World,
};
use crate::world::{Micros, SECOND};

/// The master that clients use.
#[derive(Clone, Debug)]
pub(super) struct Published {
    pub(super) host: usize,
    epoch: u64,
    forced: bool,
}

/// An acknowledged write.
#[derive(Clone, Copy, Debug)]
struct Write {
    place: Place,
    at: Micros,
    /// The master was alone on record: only these members might still be promoted, as bits.
    heirs: Option<u32>,
    /// Its master was not published yet: no client knew of it. Or its host had neither an agent nor a fencer. Or its
    /// master could not record who lacks it, and need not have that replica.
    excused: bool,
}

#[derive(Debug, Default)]
pub(super) struct Checks {
    pub(super) violation: Option<String>,
    pub(super) published: Option<Published>,
    pub(super) state: Option<ShardState>,
    /// The last planned switchover that was not carried out: who handed over, its process, and when.
    handed: Option<(usize, u32, Micros)>,
    /// Who was being made the master since the last one was published, as bits, and whose server cannot be made one that
    /// takes no writes: no client knows of them.
    coming: u32,
    /// What was acknowledged and is not known to be lost.
    writes: Vec<Write>,
    last_write: Micros,
    /// When a host's agent last went on after it was stopped.
    pub(super) resumed: Vec<Micros>,
    pub(super) steps: u64,
    pub(super) happenings: u64,
    pub(super) tally: Tally,
}

/// What came about, for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) seconds: u64,
    pub(super) steps: u64,
    pub(super) happenings: u64,
    pub(super) writes: u64,
    pub(super) masters: u64,
    pub(super) switchovers: u64,
    pub(super) forced: u64,
    pub(super) lost: u64,
    pub(super) hopeless: u64,
    pub(super) unguarded: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, one: Tally) {
        self.seconds += one.seconds;
        self.steps += one.steps;
        self.happenings += one.happenings;
        self.writes += one.writes;
        self.masters += one.masters;
        self.switchovers += one.switchovers;
        self.forced += one.forced;
        self.lost += one.lost;
        self.hopeless += one.hopeless;
        self.unguarded += one.unguarded;
    }
}

fn micros(duration: Duration) -> Micros {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// For how long these writes were made. Where there was nobody to take any, none were lost.
fn written_for(writes: &[Write]) -> Micros {
    let gap = |pair: &[Write]| pair[1].at.saturating_sub(pair[0].at).min(SECOND);
    writes.windows(2).map(gap).sum()
}

fn is_forced(state: &ShardState) -> bool {
    state.intent.as_ref().is_some_and(|i| i.kind == IntentKind::Force && i.to == state.master)
}

impl World {
    // `state`

    pub(super) fn state_changed(&mut self, content: &[u8]) {
        let Ok(state) = serde_json::from_slice::<ShardState>(content) else {
            return self.violate("`state` is no state".to_owned());
        };
        let last = self.checks.state.replace(state.clone());
        if let Some(last) = &last {
            if state.epoch < last.epoch {
                return self.violate(format!("the epoch goes back from {} to {}", last.epoch, state.epoch));
            }
            if state.epoch == last.epoch && state.master != last.master {
                return self.violate(format!("epoch {} has two masters", state.epoch));
            }
        }
        self.check_handover(&state, last.as_ref());
        self.note_heirs(&state);
        let makes = state.phase == Phase::Promoting && self.setting.old;
        if let Some(host) = self.host_of(&state.master).filter(|_| makes) {
            self.checks.coming |= 1 << host;
        }
        let known = self.checks.published.as_ref().map_or(0, |published| published.epoch);
        if state.phase == Phase::Done && state.epoch != known {
            self.published(&state, last.as_ref());
        }
    }

    /// Whoever handed over in vain takes its place again: nobody else is made the master instead while it lives.
    fn check_handover(&mut self, state: &ShardState, last: Option<&ShardState>) {
        if last.is_some_and(|last| last.epoch == state.epoch) {
            return;
        }
        let in_vain = last.is_some_and(|last| last.handover.is_some() && last.phase == Phase::Promoting);
        let stands =
            state.phase == Phase::Promoting && state.handover.is_none() && !is_forced(state) && in_vain;
        if let Some((from, pid, at)) = self.checks.handed.take().filter(|_| stands) {
            let node = self.hosts[from].plan.path(&format!("members/{}", self.hosts[from].plan.address));
            let lives = self.hosts[from].redis.pid == pid && self.zoo.owner(&node).is_some();
            if lives && self.t < at + micros(self.setting.timing.session) {
                return self.violate(format!(
                    "{} stands although host {from} lives, which handed over",
                    state.master
                ));
            }
        }
        // What was written late may be of a server that is gone.
        let handed = |from: &usize| state.handover.is_some() && self.hosts[*from].redis.is_master();
        let from = self.host_of(&state.from).filter(handed);
        self.checks.handed = from.map(|from| (from, self.hosts[from].redis.pid, self.t));
    }

    /// Who came to have everything may be promoted from then on.
    fn note_heirs(&mut self, state: &ShardState) {
        let bits = self.heirs(state);
        for write in &mut self.checks.writes {
            write.heirs = write.heirs.filter(|_| state.solo).map(|heirs| heirs | bits);
        }
    }

    fn heirs(&self, state: &ShardState) -> u32 {
        let bits = state.heirs.iter().filter_map(|heir| self.host_of(heir)).map(|heir| 1_u32 << heir);
        bits.fold(0, |all, bit| all | bit)
    }

    /// A master begins to be one for clients.
    fn published(&mut self, state: &ShardState, last: Option<&ShardState>) {
        let Some(host) = self.host_of(&state.master) else {
            return self.violate(format!("{} is published, and no member", state.master));
        };
        let promoting = last.filter(|last| last.epoch == state.epoch);
        let forced = promoting.is_some_and(is_forced);
        let handed = promoting.is_some_and(|last| last.handover.is_some());
        let former = self.checks.published.replace(Published { host, epoch: state.epoch, forced });
        self.checks.coming = 0;
        self.log(|| format!("== host {host} is published, epoch {}", state.epoch));
        let tally = &mut self.checks.tally;
        tally.masters += 1;
        tally.forced += u64::from(forced);
        tally.switchovers += u64::from(handed);
        let solo_heirs = 1_u32 << host;
        let data = self.hosts[host].redis.data;
        let lost: Vec<Write> = {
            let histories = &self.histories;
            let (kept, lost) =
                self.checks.writes.iter().partition(|write| histories.contains(data, write.place));
            self.checks.writes = kept;
            self.checks.writes.iter_mut().for_each(|write| write.excused = false);
            lost
        };
        if lost.is_empty() {
            return;
        }
        // It had that, and its own crash lost it.
        let before = self.hosts[host].redis.before;
        let had = |write: &Write| before.is_some_and(|before| self.histories.contains(before, write.place));
        if handed {
            let (had, lost): (Vec<Write>, Vec<Write>) = lost.into_iter().partition(had);
            if !lost.is_empty() {
                return self.violate(format!("a planned switchover loses {} writes", lost.len()));
            }
            // It died before it was published: whoever comes next is to have them, and it takes no more.
            self.checks.writes.extend(had);
            return;
        }
        self.checks.tally.lost += lost.len() as u64;
        if forced || former.is_none_or(|former| former.host == host) {
            return;
        }
        let keys = |redis: &super::redis::Redis| self.histories.keys(redis.data);
        let base = self.hosts[host].redis.second.map_or(0, |base| self.histories.keys(base));
        let others = self.hosts.iter().enumerate().filter(|(other, _)| *other != host);
        let nothing = |redis: &super::redis::Redis| {
            redis.pid == 0 || keys(redis) == 0 || self.histories.contains(data, redis.data)
        };
        if base == 0 && others.map(|(_, host)| &host.redis).all(nothing) {
            // Nobody has anything any more: the shard begins anew.
            return;
        }
        let lost: Vec<Write> = lost.into_iter().filter(|write| !write.excused && !had(write)).collect();
        self.log(|| {
            let data = |host: &super::world::Host| (host.redis.pid, host.redis.data, keys(&host.redis));
            format!("== lost {}: {:?}", lost.len(), self.hosts.iter().map(data).collect::<Vec<_>>())
        });
        if lost.iter().any(|write| write.heirs.is_some_and(|heirs| heirs & solo_heirs == 0)) {
            return self.violate(format!("host {host} is promoted without what was written while alone"));
        }
        let long = written_for(&lost);
        if long > self.grace() && self.setting.fencing {
            self.violate(format!("host {host} is promoted and misses {:.1} s of writes", long as f64 / 1e6));
        }
    }

    /// For how long the writes may have been made that an automatic promotion loses: a member that does not keep up is an
    /// heir for 5 s and keeps up when it has what was there 5 s before; and a master that cannot say that any more has its
    /// lease.
    pub(super) fn grace(&self) -> Micros {
        micros(self.setting.timing.session) + 12 * SECOND
    }

    // Writes

    pub(super) fn write_acknowledged(&mut self, host: usize, place: Place) {
        self.checks.tally.writes += 1;
        let state = self.checks.state.as_ref();
        let coming = self.checks.coming & 1 << host != 0;
        let exempt = coming || !self.setting.fencing || self.hosts[host].unguarded;
        match &self.checks.published {
            Some(published) if published.host != host && !published.forced && !exempt => {
                let master = published.host;
                return self
                    .violate(format!("host {host} takes a write although host {master} is the master"));
            }
            None if !exempt => {
                return self.violate(format!("host {host} takes a write although there is no master"));
            }
            Some(published) if published.host == host => {
                let whole = self.checks.writes.last().is_none_or(|w| self.histories.contains(place, w.place));
                if !whole && state.is_some_and(|s| s.epoch == published.epoch && s.phase == Phase::Done) {
                    return self.violate(format!("host {host} lost its data and goes on as the master"));
                }
            }
            _ => {}
        }
        self.tally_unguarded(host, coming);
        let ours = self.checks.published.as_ref().is_some_and(|p| p.host == host);
        let state = self.checks.state.as_ref().filter(|s| s.solo && ours && s.phase == Phase::Done);
        let heirs = state.map(|state| self.heirs(state));
        if ours || coming {
            self.checks.last_write = self.t;
            let excused = coming && !ours || self.hosts[host].unguarded || self.is_unrecorded(host);
            self.checks.writes.push(Write { place, at: self.t, heirs, excused });
        }
    }

    fn is_unrecorded(&self, host: usize) -> bool {
        let path = self.hosts[host].plan.path("state");
        let free = self.hosts[host].plan.min_replicas == 0 || self.hosts.len() > 2;
        free && self.zoo.denies(self.t, &path)
    }

    fn tally_unguarded(&mut self, host: usize, coming: bool) {
        let other = self.checks.published.as_ref().is_some_and(|p| p.host != host && !p.forced);
        if other && !coming && self.setting.fencing && self.hosts[host].unguarded {
            self.checks.tally.unguarded += 1;
        }
    }

    /// Whoever tells a master to take writes has a lease, and has published it.
    pub(super) fn check_order(&mut self, host: usize, order: &Order) {
        let opens = matches!(order, Order::Unfence { .. }) && self.hosts[host].redis.is_master();
        if !opens {
            return;
        }
        let coming =
            |state: &ShardState| state.phase == Phase::Promoting && self.host_of(&state.master) == Some(host);
        if self.checks.state.as_ref().is_some_and(coming) {
            return self.violate(format!("host {host} is told to take writes before it is published"));
        }
        let now = self.now(host);
        if self.member(host).is_some_and(|member| member.report(now).lease_s.is_none()) {
            self.violate(format!("host {host} is a master and told to take writes without a lease"));
        }
    }

    // Promotions

    pub(super) fn check_promotion(&mut self, host: usize) {
        let Some(state) = &self.checks.state else { return };
        let keys = |h: usize| self.histories.keys(self.hosts[h].redis.data);
        // Where there was no master before, `state` tells of no data.
        let first = state.phase == Phase::Promoting && state.from.is_empty() && state.replid.is_empty();
        if is_forced(state) || keys(host) > 0 || state.keys == 0 && !first {
            return;
        }
        // Stopped since its agent gave the order, and neither that nor the fencer lives: nobody can keep it from that.
        if self.hosts[host].agent.is_none() && !self.hosts[host].fencer.alive {
            return;
        }
        // What one took that was being made the master and never published is nobody's data.
        let had = |h: usize| match self.checks.coming & 1 << h {
            0 => keys(h),
            _ => self.hosts[h].redis.second.map_or(0, |base| self.histories.keys(base)),
        };
        let full = (0..self.hosts.len()).find(|h| {
            let speaks = self.hosts[*h].agent.is_some() || first;
            *h != host && self.hosts[*h].redis.pid != 0 && had(*h) > 0 && speaks
        });
        if let Some(full) = full {
            self.violate(format!("host {host} is promoted empty although host {full} has data"));
        }
    }

    // With the faults gone

    /// Why the shard is not as it should be.
    pub(super) fn unsettled(&mut self) -> Option<String> {
        let state = self.checks.state.clone()?;
        let Some(state) = Some(state).filter(|state| state.phase == Phase::Done) else {
            return Some("no master is published".to_owned());
        };
        let master = self.host_of(&state.master)?;
        let lock = self.hosts[master].plan.path("lock");
        let owner = self.zoo.owner(&lock).and_then(|session| self.zoo.host_of_session(session));
        if owner != Some(master) {
            return Some(format!("host {master} leads and the lock is of {owner:?}"));
        }
        let wall = self.wall(master);
        let redis = &self.hosts[master].redis;
        if !redis.is_master() || redis.is_loading(self.t) || redis.is_paused(wall) {
            return Some(format!("host {master} leads and takes no writes"));
        }
        for host in (0..self.hosts.len()).filter(|host| *host != master) {
            let redis = &self.hosts[host].redis;
            let follows = redis.pid != 0 && redis.of == Of::Host(master) && redis.link.state == LinkState::Up;
            if follows && redis.is_paused(self.wall(host)) {
                return Some(format!("host {host} follows and is paused"));
            }
            if !follows {
                return Some(format!("host {host} does not follow: {:?}, {:?}", redis.of, redis.link.state));
            }
        }
        if state.intent.is_some() {
            return Some("a wish is not answered".to_owned());
        }
        (self.t > self.checks.last_write + 5 * SECOND).then(|| "nothing is written".to_owned())
    }

    /// What a member says of itself.
    pub(super) fn told(&self, host: usize) -> String {
        let Some(member) = self.member(host) else { return format!("host {host} has no agent") };
        let report = member.report(self.now(host));
        format!("host {host} is {}: {}", report.stage, report.sentence)
    }

    /// Nobody may be promoted by the rules, and somebody says so.
    pub(super) fn is_hopeless(&self) -> bool {
        let refuses = (0..self.hosts.len()).any(|host| self.is_refused(host, &Order::Promote));
        let says = |host: &super::world::Host| {
            let alerts = host.agent.as_ref().map_or(&[][..], |agent| &agent.alerts);
            alerts.contains(&"shard-no-candidate") || refuses && alerts.contains(&"shard-no-master")
        };
        let candidate = (0..self.hosts.len()).any(|host| self.is_candidate(host));
        !candidate && (self.checks.state.is_none() || self.hosts.iter().any(says))
    }

    /// By the rules, from what really is.
    fn is_candidate(&self, host: usize) -> bool {
        let redis = &self.hosts[host].redis;
        let Some(state) = &self.checks.state else { return redis.priority > 0 };
        let followed = |host: usize| {
            let redis = &self.hosts[host].redis;
            let ids = [Some(redis.data.id), redis.second.map(|second| second.id)];
            ids.into_iter().flatten().any(|id| format!("{id:08x}") == state.replid)
        };
        // Whoever did not follow the last master has less than one that did, even where that one lags too much.
        let after = !followed(host) && (0..self.hosts.len()).any(|h| followed(h) && self.has_data(h, state));
        let lag = state.offset.max(self.best_offset(&state.replid)) - redis.data.offset;
        let same = state.replid == format!("{:08x}", redis.data.id);
        let behind = same && u64::try_from(lag).unwrap_or(0) > self.hosts[host].plan.max_lag;
        // Whoever lags behind one that cannot be made a master is not made one in its stead.
        let refuses = |h: usize| self.is_refused(h, &Order::Promote);
        let ahead = (0..self.hosts.len()).filter(|h| refuses(*h) && self.has_data(*h, state));
        let ahead = ahead.map(|h| self.hosts[h].redis.data.offset - redis.data.offset).max().unwrap_or(0);
        let behind = behind || u64::try_from(ahead).unwrap_or(0) > self.hosts[host].plan.max_lag;
        self.has_data(host, state) && !after && !behind && !refuses(host)
    }

    fn has_data(&self, host: usize, state: &ShardState) -> bool {
        let redis = &self.hosts[host].redis;
        let recorded = self.host_of(&state.master) == Some(host);
        let keys = self.histories.keys(redis.data);
        let name = format!("{:08x}", redis.data.id);
        let former = state.phase == Phase::Promoting && self.host_of(&state.from) == Some(host);
        let heir = recorded || former || state.heirs.contains(&self.hosts[host].plan.address);
        let nothing = state.replid.is_empty();
        let shares = nothing || heir && [&state.replid, &state.replid2].contains(&&name);
        redis.pid != 0
            && redis.priority > 0
            && (keys > 0 || state.keys == 0)
            && shares
            && (redis.data.offset > 0 || nothing || state.offset <= 0)
    }

    fn best_offset(&self, name: &str) -> i64 {
        let same = self.hosts.iter().filter(|h| format!("{:08x}", h.redis.data.id) == name);
        same.map(|h| h.redis.data.offset).max().unwrap_or(0)
    }
}
