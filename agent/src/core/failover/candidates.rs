//! Who may be promoted, and who of those first.

use super::{Config, MemberNode, ShardState};

/// A member with what is known of it when a master is to be chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing<'a> {
    /// Its address.
    pub address: &'a str,
    /// Its node; `None`: no agent speaks for it.
    pub node: Option<&'a MemberNode>,
}

/// What came of looking at a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may be promoted.
    Eligible,
    /// It may not; why, as in "10.0.0.2:16379 not promoted: …".
    Out(String),
}

/// Judges each of the members: `state` is the last master's, `config` the shard's agreement.
pub fn judge<'a>(
    _standings: &[Standing<'a>],
    _state: Option<&ShardState>,
    _config: &Config,
) -> Vec<(&'a str, Verdict)> {
    Vec::new()
}
