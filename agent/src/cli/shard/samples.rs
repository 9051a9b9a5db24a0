//! A shard for the tests of these verbs.

use serde_json::json;

use crate::core::failover::ShardReport;

/// Three members on this port, led by 10.0.0.1; 10.0.0.2 would be next, 10.0.0.3 has lost its link. Seen by 10.0.0.1.
pub(super) fn shard(port: u16) -> ShardReport {
    let at = |host: u8| format!("10.0.0.{host}:{port}");
    let node = |host: u8, role: &str, link: bool| {
        json!({"v": 1, "address": at(host), "host_id": "h", "nonce": "n", "role": role, "link": link, "offset": 1000,
            "keys": 7, "priority": 100, "fencer": true, "lease": true})
    };
    let report = json!({
        "id": at(1), "address": at(1), "stage": "leading", "sentence": "it leads, two replicas are attached",
        "state": {"v": 1, "epoch": 7, "master": at(1), "phase": "done", "offset": 900, "keys": 7, "from": at(2),
            "since_ms": 1_700_000_000_000_u64},
        "lease_s": 12.34, "lock": at(1),
        "members": [
            {"address": at(1), "node": node(1, "master", false), "lag_bytes": null, "barred": null, "next": false},
            {"address": at(2), "node": node(2, "replica", true), "lag_bytes": 42, "barred": null, "next": true},
            {"address": at(3), "node": node(3, "replica", false), "lag_bytes": null,
                "barred": "its link to the master is down", "next": false}
        ],
        "pause": null,
        "history": [
            {"at_ms": 1_600_000_000_000_u64, "epoch": 6, "from": "", "to": at(2), "why": "first", "took_ms": 3.0},
            {"at_ms": 1_700_000_000_000_u64, "epoch": 7, "from": at(2), "to": at(1), "why": "death", "took_ms": 34.5,
                "lost_bytes": 0}
        ],
        "hindrances": []
    });
    serde_json::from_value(report).unwrap()
}
