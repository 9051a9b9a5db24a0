//! The shards that this host has members of.

use super::{
    Action, Core, Now,
    failover::{ShardReport, Wish},
};

impl Core {
    /// Each shard as its member here sees it, in order.
    pub fn shards(&self, _now: Now) -> Vec<ShardReport> {
        Vec::new()
    }

    /// Puts an operator's wish to this host's member of a shard; the error says why it is refused.
    pub fn wish(&mut self, _now: Now, shard: &str, _wish: Wish) -> (Result<(), String>, Vec<Action>) {
        (Err(format!("this host has no member of a shard {shard}")), Vec::new())
    }
}
