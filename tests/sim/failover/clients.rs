//! Writers: one believes what `state` says, sometimes late; one clings to the server it once found; one tries every
//! server that takes writes. They stand on the redis' own host: no cut keeps them away.

use super::world::{Happening, World};
use crate::world::{MS, Micros};

#[derive(Debug)]
pub(super) struct Writer {
    habit: Habit,
    target: usize,
    refusals: u32,
}

#[derive(Clone, Copy, Debug)]
enum Habit {
    Follows,
    Clings,
    TriesAll,
}

impl World {
    pub(super) fn begin_writers(&mut self) {
        let habits = [Habit::Follows, Habit::Clings, Habit::TriesAll];
        self.writers = habits.into_iter().map(|habit| Writer { habit, target: 0, refusals: 0 }).collect();
        for writer in 0..self.writers.len() {
            self.later(MS, Happening::Write { writer });
        }
    }

    pub(super) fn write(&mut self, writer: usize) {
        let pace: Micros = self.setting.pace;
        let pause = self.dice.within(pace / 2..pace * 2);
        self.later(pause, Happening::Write { writer });
        let n = self.hosts.len();
        match self.writers[writer].habit {
            Habit::Follows => {
                if self.dice.percent(60)
                    && let Some(published) = &self.checks.published
                {
                    self.writers[writer].target = published.host;
                }
                self.take_write(self.writers[writer].target);
            }
            Habit::Clings => {
                let taken = self.take_write(self.writers[writer].target);
                let refusals = &mut self.writers[writer].refusals;
                *refusals = if taken { 0 } else { *refusals + 1 };
                if *refusals > 5 {
                    *refusals = 0;
                    self.writers[writer].target = usize::try_from(self.dice.within(0..n as u64)).unwrap_or(0);
                }
            }
            Habit::TriesAll => {
                for host in 0..n {
                    if self.hosts[host].redis.is_master() {
                        self.take_write(host);
                    }
                }
            }
        }
    }
}
