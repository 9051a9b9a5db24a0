//! What `yagent status` gets to know, as JSON.

use serde::Serialize;

use super::registry::RegistryStatus;
use crate::core::{Core, InstanceReport, Now, alert::Alert, failover::ShardReport};

/// The agent itself.
#[derive(Debug, Serialize)]
pub struct Agent {
    /// Its version.
    pub version: &'static str,
    /// Its process.
    pub pid: u32,
    /// The file its settings come from.
    pub config: String,
    /// The host's address.
    pub ip: String,
    /// Since when it runs, in milliseconds since 1970.
    pub since_ms: u64,
    /// How long it has been running, in seconds.
    pub uptime_s: f64,
    /// Its resident memory in bytes; 0 when unknown.
    pub rss_bytes: u64,
    /// Log lines that were dropped because the log could not be written fast enough.
    pub log_dropped: u64,
}

#[derive(Serialize)]
struct Parked {
    engine: String,
    port: u16,
    why: String,
}

#[derive(Serialize)]
struct Status<'a> {
    agent: Agent,
    registry: RegistryStatus,
    instances: Vec<InstanceReport>,
    shards: Vec<ShardReport>,
    parked: Vec<Parked>,
    alerts: Vec<&'a Alert>,
}

/// The whole answer, one line.
pub fn report(agent: Agent, registry: RegistryStatus, core: &Core, now: Now) -> String {
    let (parked, instances) = core.report().into_iter().partition::<Vec<_>, _>(|i| i.state == "parked");
    let parked = parked.into_iter().map(|i| Parked { engine: i.engine, port: i.port, why: i.why }).collect();
    let mut shards = core.shards(now);
    for shard in &mut shards {
        // A status is asked for often; `shards` and `history` have the whole of it.
        shard.history.drain(..shard.history.len().saturating_sub(1));
    }
    let alerts = core.alerts().collect();
    let status = Status { agent, registry, instances, shards, parked, alerts };
    // Plain structs of numbers and strings always serialize.
    serde_json::to_string(&status).unwrap_or_default()
}

/// The answer to `shards`, one line: all of them, or only the one with this id.
pub fn shards(core: &Core, now: Now, only: Option<&str>) -> String {
    let mut shards = core.shards(now);
    shards.retain(|shard| only.is_none_or(|id| shard.id == id));
    serde_json::json!({"ok": true, "shards": shards}).to_string()
}

/// One line for `systemctl status`.
pub fn line(core: &Core) -> String {
    let (up, all) = core.count();
    let alerts = core.alerts().count();
    format!("{up} of {all} instances up, {alerts} alerts")
}

/// This process's resident memory in bytes.
pub fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}
