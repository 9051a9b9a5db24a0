//! Checks the ports of all planned instances: none beyond the last there is, no two the same.

use std::collections::HashMap;

use super::{
    EngineSettings,
    reader::{Reader, Slot},
    sizing,
};

/// An engine with its count and the slots that messages point at.
#[derive(Debug)]
pub(super) struct Planned<'s> {
    pub(super) settings: &'s EngineSettings,
    pub(super) count: u32,
    pub(super) port: Slot,
}

/// Reports ports out of range and ports that two engines would take; one problem an engine or pair.
pub(super) fn check(reader: &mut Reader<'_>, planned: &[Planned<'_>]) {
    let mut taken: HashMap<u16, usize> = HashMap::new();
    let mut told: Vec<(usize, usize)> = Vec::new();
    for (index, engine) in planned.iter().enumerate() {
        for instance in 0..engine.count {
            let Some(port) = sizing::port(engine.settings, instance) else {
                beyond(reader, engine, instance);
                break;
            };
            let holder = *taken.entry(port).or_insert(index);
            if holder != index && !told.contains(&(holder, index)) {
                told.push((holder, index));
                collision(reader, engine, &planned[holder], port);
            }
        }
    }
}

fn beyond(reader: &mut Reader<'_>, engine: &Planned<'_>, instance: u32) {
    let port = u64::from(engine.settings.port) + u64::from(instance) * u64::from(engine.settings.port_step);
    let text = format!(
        "found port {port} for instance {} of {}, expected ports up to 65535 with steps of {}",
        instance + 1,
        engine.count,
        engine.settings.port_step
    );
    reader.error(&engine.port, text);
}

fn collision(reader: &mut Reader<'_>, engine: &Planned<'_>, holder: &Planned<'_>, port: u16) {
    let other = format!("{}.{}", holder.port.section, holder.port.name);
    let text = format!(
        "found port {port}, which {other} {} takes in steps of {} for {} instances, expected ports of its own",
        holder.settings.port, holder.settings.port_step, holder.count
    );
    reader.error(&engine.port, text);
}
