//! From memory to instances.
//!
//! Available is what the host has (or its control group allows, where that is less) without `system_res_mem`. Engines
//! with a fixed count take theirs first; the others share what is left evenly and take as many as fit. `plan` is pure;
//! `memory` says how much there is.

use std::fmt;

use super::{EngineSettings, Megabytes, Settings, memory::Memory};

/// One engine's part of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnginePlan {
    /// The engine.
    pub engine: String,
    /// How many instances.
    pub count: u32,
    /// What one takes: its data and its overhead.
    pub unit: Megabytes,
    /// What the engine may take: its even share, or what its fixed count needs.
    pub share: Megabytes,
}

/// What a host is to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What the host has.
    pub memory: Memory,
    /// `system_res_mem`.
    pub reserved: Megabytes,
    /// What instances may take together.
    pub available: Megabytes,
    /// Each enabled engine's part, in the order of the settings.
    pub engines: Vec<EnginePlan>,
    /// Why it doesn't fit; empty when it does.
    pub faults: Vec<PlanFault>,
}

impl Plan {
    /// What all instances take together.
    #[must_use]
    pub fn planned(&self) -> Megabytes {
        Megabytes(self.engines.iter().map(|engine| engine.unit.0 * u64::from(engine.count)).sum())
    }

    /// The part of one engine.
    #[must_use]
    pub fn engine(&self, name: &str) -> Option<&EnginePlan> {
        self.engines.iter().find(|engine| engine.engine == name)
    }
}

/// Why a plan doesn't fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlanFault {
    /// The system's part is all there is.
    NothingAvailable {
        /// `system_res_mem`.
        reserved: Megabytes,
        /// What the host has.
        total: Megabytes,
    },
    /// Fixed counts need more than is available.
    TooMuchFixed {
        /// The first engine that no longer fits.
        engine: String,
        /// What fixed counts need together.
        needed: Megabytes,
        /// What is available.
        available: Megabytes,
    },
    /// Not one instance of an engine with as many as fit does.
    NoneFits {
        /// The engine.
        engine: String,
        /// What one instance takes.
        unit: Megabytes,
        /// Its share.
        share: Megabytes,
    },
}

impl fmt::Display for PlanFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PlanFault::NothingAvailable { reserved, total } => {
                write!(
                    f,
                    "found {} MB kept for the system, expected less than the host's {} MB",
                    reserved.0, total.0
                )
            }
            PlanFault::TooMuchFixed { engine, needed, available } => write!(
                f,
                "found fixed counts that need {} MB up to {engine}, expected at most the {} MB available",
                needed.0, available.0
            ),
            PlanFault::NoneFits { engine, unit, share } => write!(
                f,
                "found {} MB as the share of {engine}, expected at least the {} MB of one instance",
                share.0, unit.0
            ),
        }
    }
}

impl PlanFault {
    /// The engine that it is about and the key that could mend it, without the engine's prefix; no engine means
    /// `[global]`.
    #[must_use]
    pub fn place(&self) -> (Option<&str>, &'static str) {
        match self {
            PlanFault::NothingAvailable { .. } => (None, "system_res_mem"),
            PlanFault::TooMuchFixed { engine, .. } => (Some(engine), "count"),
            PlanFault::NoneFits { engine, .. } => (Some(engine), "maxmem"),
        }
    }
}

/// Plans a host. Fixed counts are planned as they are even where they don't fit; the fault says so.
#[must_use]
pub fn plan(memory: Memory, settings: &Settings) -> Plan {
    let reserved = settings.system_res_mem;
    let available = Megabytes(memory.usable().0.saturating_sub(reserved.0));
    let mut plan = Plan { memory, reserved, available, engines: Vec::new(), faults: Vec::new() };
    if available.0 == 0 && !settings.engines.is_empty() {
        plan.faults.push(PlanFault::NothingAvailable { reserved, total: memory.usable() });
    }
    let left = take_fixed(&mut plan, settings);
    let sharers = settings.engines.iter().filter(|engine| engine.count.is_none()).count() as u64;
    let share = Megabytes(left.0.checked_div(sharers).unwrap_or(0));
    plan.engines = settings.engines.iter().map(|engine| part(engine, share)).collect();
    if plan.faults.is_empty() {
        plan.faults.extend(settings.engines.iter().filter_map(|engine| none_fits(engine, share)));
    }
    plan
}

/// What one instance takes.
fn unit(engine: &EngineSettings) -> Megabytes {
    Megabytes(engine.maxmem.0 + engine.meta_size.0)
}

/// What is left for those that share, with a fault where fixed counts take more than there is.
fn take_fixed(plan: &mut Plan, settings: &Settings) -> Megabytes {
    let mut needed = Megabytes(0);
    for engine in &settings.engines {
        needed.0 += u64::from(engine.count.unwrap_or(0)) * unit(engine).0;
        if needed > plan.available && plan.faults.is_empty() {
            let (engine, available) = (engine.engine.clone(), plan.available);
            plan.faults.push(PlanFault::TooMuchFixed { engine, needed, available });
        }
    }
    Megabytes(plan.available.0.saturating_sub(needed.0))
}

fn part(engine: &EngineSettings, share: Megabytes) -> EnginePlan {
    let unit = unit(engine);
    let fitting = share.0.checked_div(unit.0).unwrap_or(0);
    let (count, share) = match engine.count {
        Some(count) => (count, Megabytes(u64::from(count) * unit.0)),
        None => (u32::try_from(fitting).unwrap_or(u32::MAX), share),
    };
    EnginePlan { engine: engine.engine.clone(), count, unit, share }
}

fn none_fits(engine: &EngineSettings, share: Megabytes) -> Option<PlanFault> {
    let unit = unit(engine);
    let none = engine.count.is_none() && share < unit;
    none.then(|| PlanFault::NoneFits { engine: engine.engine.clone(), unit, share })
}

/// The port of an engine's instance, counted from 0; `None` beyond 65535.
#[must_use]
pub fn port(engine: &EngineSettings, index: u32) -> Option<u16> {
    let port = u64::from(engine.port) + u64::from(index) * u64::from(engine.port_step);
    u16::try_from(port).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{EngineKeys, Options, load_with};

    /// Settings of engines given as name, MB of data, count; no overhead.
    fn planned(total: u64, reserved: u64, engines: &[(&str, u64, i64)]) -> Plan {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("yagent.ini");
        let mut text = format!(
            "[global]\nzoo_svr=none\nstate_dir={}\nsystem_res_mem={reserved}\n",
            dir.path().display()
        );
        for (name, maxmem, count) in engines {
            let prefix = if *name == "memcached" { "mc_" } else { "redis_" };
            text +=
                &format!("[{name}]\n{prefix}maxmem={maxmem}\n{prefix}meta_size=0\n{prefix}count={count}\n");
            text += &format!("{prefix}fpath=/bin/sh\n");
        }
        std::fs::write(&file, text).unwrap();
        let options = Options { memory: Some(Memory::of(Megabytes(total))), without_registry: false };
        load_with(&file, &EngineKeys::builtin(), &options).unwrap().plan
    }

    fn counts(plan: &Plan) -> Vec<u32> {
        plan.engines.iter().map(|engine| engine.count).collect()
    }

    #[test]
    fn fixed_counts_take_theirs_first_and_the_rest_is_shared() {
        let plan = planned(1100, 100, &[("memcached", 100, 4), ("redis", 130, -1)]);
        assert_eq!((counts(&plan), plan.engines[1].share), (vec![4, 4], Megabytes(600)));
        assert_eq!((plan.planned(), plan.faults), (Megabytes(920), Vec::new()));
    }

    #[test]
    fn engines_with_as_many_as_fit_share_evenly() {
        let plan = planned(1101, 100, &[("memcached", 100, -1), ("redis", 130, -1)]);
        assert_eq!((counts(&plan), plan.engines[0].share), (vec![5, 3], Megabytes(500)));
    }

    #[test]
    fn the_control_group_counts_where_it_is_less() {
        let memory = Memory { total: Megabytes(1000), cgroup: Some(Megabytes(300)) };
        assert_eq!(memory.usable(), Megabytes(300));
        let wider = Memory { cgroup: Some(Megabytes(5000)), ..memory };
        assert_eq!(wider.usable(), Megabytes(1000));
    }

    #[test]
    fn a_plan_that_does_not_fit_says_why_once() {
        let fixed = planned(1000, 100, &[("memcached", 500, 2), ("redis", 130, -1)]);
        let (needed, available) = (Megabytes(1000), Megabytes(900));
        assert_eq!(fixed.faults, [PlanFault::TooMuchFixed { engine: "memcached".into(), needed, available }]);
        assert_eq!(counts(&fixed), [2, 0]);

        let none = planned(1000, 100, &[("memcached", 901, -1)]);
        let (unit, share) = (Megabytes(901), Megabytes(900));
        assert_eq!(none.faults, [PlanFault::NoneFits { engine: "memcached".into(), unit, share }]);

        let nothing = planned(1000, 1000, &[("memcached", 1, -1)]);
        let (reserved, total) = (Megabytes(1000), Megabytes(1000));
        assert_eq!(nothing.faults, [PlanFault::NothingAvailable { reserved, total }]);
    }

    #[test]
    fn a_host_without_engines_always_fits() {
        assert_eq!(planned(1000, 2000, &[]).faults, []);
    }
}
