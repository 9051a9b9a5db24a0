//! What goes wrong, and when it stops.

use std::time::Duration;

use yagent::{
    core::{Event, Pid},
    plugin::Health,
    shell::registry::RegistryEvent,
};

use crate::{
    plans,
    server::Mute,
    world::{Happening, MS, Micros, SECOND, World},
};

/// A session stands.
pub(crate) fn connected() -> RegistryEvent {
    RegistryEvent::Connected { server: "zk:2181".to_owned(), session: 7, timeout: Duration::from_secs(30) }
}

impl World {
    /// One fault, and the next one planned.
    pub(crate) fn strike(&mut self) {
        if self.calm {
            return;
        }
        let pause = self.dice.within(SECOND / 10..20 * SECOND);
        self.later(pause, Happening::Fault);
        match self.dice.within(0..24) {
            0..=3 => self.crash_some(),
            4..=7 => self.mute_some(),
            8 => self.mute_all(),
            9 | 10 => self.make_some_ill(),
            11 | 12 => self.stand_still_for_a_while(),
            13 => {
                let forward = self.dice.percent(50);
                self.set_wall(forward);
            }
            14..=17 => self.change_weather(),
            18 | 19 => self.let_a_stranger_in(),
            20 => self.trouble_the_registry(),
            21 | 22 => {
                let plan = plans::changed(&mut self.dice, &self.plan);
                self.configure(plan);
            }
            _ => self.restart_agent(),
        }
    }

    fn victim(&mut self) -> Option<Pid> {
        let pids: Vec<Pid> = self.servers.keys().copied().collect();
        self.dice.pick(&pids)
    }

    fn crash_some(&mut self) {
        for _ in 0..self.dice.within(1..4) {
            if let Some(pid) = self.victim() {
                self.dies(pid, "signal 11");
            }
        }
    }

    /// Servers die, and their restarts take seconds.
    pub(crate) fn slow_restarts(&mut self) {
        self.weather.spawner_slow = self.t + SECOND;
        self.crash_some();
    }

    fn mute_some(&mut self) {
        for _ in 0..self.dice.within(1..3) {
            if let Some(pid) = self.victim() {
                self.mute(pid);
            }
        }
    }

    fn mute_all(&mut self) {
        let pids: Vec<Pid> = self.servers.keys().copied().collect();
        pids.into_iter().for_each(|pid| self.mute(pid));
    }

    fn mute(&mut self, pid: Pid) {
        let how =
            self.dice.pick(&[Mute::Hung, Mute::Hung, Mute::Stopped, Mute::Refuses]).unwrap_or(Mute::Hung);
        let for_a_while = self.dice.percent(40).then(|| self.dice.within(SECOND / 2..20 * SECOND));
        let t = self.t;
        let Some(server) = self.servers.get_mut(&pid).filter(|server| server.mute.is_none()) else { return };
        server.mute = Some((how, t));
        self.log(|| format!("!! pid {pid} is mute ({how:?}) for {for_a_while:?}"));
        if let Some(long) = for_a_while {
            self.later(long, Happening::SpeaksAgain { pid });
        }
    }

    fn make_some_ill(&mut self) {
        let kinds = [Health::Busy, Health::Full, Health::Refused, Health::Wrong, Health::Loading];
        let (health, long) = (self.dice.pick(&kinds), self.dice.within(SECOND..60 * SECOND));
        let t = self.t;
        if let (Some(pid), Some(health)) = (self.victim(), health)
            && let Some(server) = self.servers.get_mut(&pid)
        {
            server.ill = Some((health, t + long));
            self.log(|| format!("!! pid {pid} is ill: {health:?}"));
        }
    }

    fn stand_still_for_a_while(&mut self) {
        let (long, host) = (self.dice.within(SECOND / 10..40 * SECOND), self.dice.percent(70));
        if self.dice.percent(30) {
            self.stand_still(long, host);
        } else {
            self.standstill = Some((long, host));
        }
    }

    fn change_weather(&mut self) {
        let until = self.t + self.dice.within(SECOND..40 * SECOND);
        let weather = &mut self.weather;
        let all: [(&str, &mut Micros); 8] = [
            ("the spawner is slow", &mut weather.spawner_slow),
            ("the spawner fails", &mut weather.spawner_fails),
            ("servers die young", &mut weather.die_young),
            ("servers boot slowly", &mut weather.boot_slowly),
            ("probes break", &mut weather.probes_break),
            ("samples break", &mut weather.samples_break),
            ("SIGKILL takes long", &mut weather.kills_are_slow),
            ("servers are deaf to SIGTERM", &mut weather.deaf_to_term),
        ];
        let which = self.dice.within(0..8);
        let mut told = "";
        for (n, (name, slot)) in (0u64..).zip(all) {
            if n == which {
                (*slot, told) = (until, name);
            }
        }
        self.log(|| format!("!! {told}"));
    }

    /// A stranger takes a free port, or that of an instance that dies for it.
    fn let_a_stranger_in(&mut self) {
        let ports: Vec<u16> = self.port_files.values().flatten().map(|port| port + 10).collect();
        let port = match self.victim().filter(|_| self.dice.percent(60)) {
            Some(pid) => {
                let port = self.servers.get(&pid).map(|server| server.port);
                self.dies(pid, "signal 9");
                port
            }
            None => self.dice.pick(&ports),
        };
        let Some(port) = port.filter(|port| self.servers.values().all(|server| server.port != *port)) else {
            return;
        };
        let same_program = self.dice.percent(50);
        self.strangers.insert(port, same_program);
        self.log(|| format!("!! a stranger takes port {port}"));
        let stays = self.dice.within(SECOND..120 * SECOND);
        self.later(stays, Happening::StrangerLeaves { port });
    }

    fn trouble_the_registry(&mut self) {
        let path = format!("/ycache/servers/{}/active", plans::IP);
        if !self.tree.contains_key(&path) {
            return;
        }
        let long = self.dice.within(MS..30 * SECOND);
        let (news, over) = match self.dice.within(0..3) {
            0 => (RegistryEvent::Lost { why: "cut".to_owned() }, connected()),
            1 => (
                RegistryEvent::Conflict { path: path.clone(), holder: "another".to_owned() },
                RegistryEvent::ConflictOver { path },
            ),
            _ => (
                RegistryEvent::Refused { path: path.clone(), why: "no auth".to_owned() },
                RegistryEvent::RefusedOver { path },
            ),
        };
        self.push(Event::Registry(news));
        self.later(long, Happening::Registry(over));
    }

    /// No more faults come; what lasts goes on.
    pub(crate) fn strike_no_more(&mut self) {
        self.calm = true;
        self.standstill = None;
    }

    /// Faults end. What they broke stays broken until the agent mends it; what passes by itself has passed.
    pub(crate) fn calm_down(&mut self) {
        self.log(|| "== faults end".to_owned());
        self.strike_no_more();
        self.weather = crate::world::Weather::default();
        self.checks.pardon(self.t);
    }
}
