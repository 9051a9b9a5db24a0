//! The registry's tree as this host wants it: paths and their JSON.

use serde::Serialize;

use super::{EnginePlan, HostIdentity, instance::Instance};
use crate::shell::registry::{Mode, Node, Owned};

/// The version of the nodes' JSON.
const JSON_VERSION: u32 = 1;

#[derive(Serialize)]
struct HostContent<'a> {
    v: u32,
    ip: &'a str,
    hostname: &'a str,
    group: &'a str,
    priority: i64,
    rack: &'a str,
    engine: &'a str,
    memory_mb: u64,
    reserved_mb: u64,
    instances: u32,
    maxmem_mb: u64,
    versions: Vec<&'a str>,
    agent: &'static str,
}

#[derive(Serialize)]
struct ActiveContent<'a> {
    v: u32,
    ip: &'a str,
    hostname: &'a str,
    host_id: &'a str,
    nonce: &'a str,
    pid: u32,
    since_ms: u64,
    agent: &'static str,
}

#[derive(Serialize)]
struct InstanceContent<'a> {
    v: u32,
    engine: &'a str,
    version: &'a str,
    ip: &'a str,
    port: u16,
    maxmem_mb: u64,
    state: &'static str,
    health: Option<crate::plugin::Health>,
    since_ms: u64,
    restarts: u64,
    pid: Option<u32>,
}

fn node(mode: Mode, content: &impl Serialize) -> Node {
    // Plain structs of numbers and strings always serialize.
    Node { mode, content: serde_json::to_vec(content).unwrap_or_default() }
}

/// A node with these figures.
pub(super) fn info(figures: &impl Serialize) -> Node {
    node(Mode::Persistent, figures)
}

pub(super) fn host(identity: &HostIdentity, plan: &EnginePlan, instances: &[&Instance]) -> Node {
    let mut versions: Vec<&str> =
        instances.iter().map(|i| i.version.as_str()).filter(|v| !v.is_empty()).collect();
    versions.sort_unstable();
    versions.dedup();
    let content = HostContent {
        v: JSON_VERSION,
        ip: &identity.ip,
        hostname: &identity.hostname,
        group: &identity.group,
        priority: identity.priority,
        rack: &identity.rack,
        engine: &plan.name,
        memory_mb: identity.memory.0,
        reserved_mb: identity.reserved.0,
        instances: u32::try_from(instances.len()).unwrap_or(u32::MAX),
        maxmem_mb: plan.maxmem.0,
        versions,
        agent: env!("CARGO_PKG_VERSION"),
    };
    node(Mode::Persistent, &content)
}

pub(super) fn active(identity: &HostIdentity, since_ms: u64) -> Node {
    let content = ActiveContent {
        v: JSON_VERSION,
        ip: &identity.ip,
        hostname: &identity.hostname,
        host_id: &identity.host_id,
        nonce: &identity.nonce,
        pid: identity.pid,
        since_ms,
        agent: env!("CARGO_PKG_VERSION"),
    };
    node(Mode::Ephemeral, &content)
}

pub(super) fn instance(identity: &HostIdentity, engine: &str, instance: &Instance) -> Node {
    let content = InstanceContent {
        v: JSON_VERSION,
        engine,
        version: &instance.version,
        ip: &identity.ip,
        port: instance.id.port,
        maxmem_mb: instance.maxmem.0,
        state: instance.state.name(),
        health: instance.health,
        since_ms: instance.since_ms,
        restarts: instance.restarts,
        pid: instance.pid.map(|pid| pid.0),
    };
    node(Mode::Persistent, &content)
}

/// The node that says which agent holds the host.
pub(super) fn active_path(plan: &EnginePlan) -> String {
    format!("{}/active", plan.server_path)
}

/// The figures' node of the host or an instance.
pub(super) fn info_path(path: &str) -> String {
    format!("{path}/info")
}

/// Whether `path` is `top` or below it.
pub(super) fn is_within(path: &str, top: &str) -> bool {
    path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// An instance's node.
pub(super) fn instance_path(plan: &EnginePlan, port: u16) -> String {
    plan.instance_path.replace("{port}", &port.to_string())
}

/// The nodes of this host's instances, whatever their port.
pub(super) fn owned(plan: &EnginePlan) -> Option<Owned> {
    let (dir, name) = plan.instance_path.rsplit_once('/')?;
    let (prefix, suffix) = name.split_once("{port}")?;
    Some(Owned { dir: dir.to_owned(), prefix: prefix.to_owned(), suffix: suffix.to_owned() })
}
