//! A member of a shard: what redis must be told at its start to replicate, and what would keep it from that.
//!
//! All names are the old ones, which every version understands.

use yagent_abi::sdk::Settings;

use crate::{conf::Conf, start::set, talk::Login};

/// How redis replicates, for an instance that the setting `replicaof` makes a replica; nothing without it. It is a
/// replica from its first moment on: redis never is a master that nobody made one.
pub(crate) fn directives(settings: &Settings<'_>, conf: &Conf) -> Result<Vec<Vec<u8>>, String> {
    let Some(master) = set(settings, "replicaof")? else { return Ok(Vec::new()) };
    let (host, port) = parse(master)?;
    let mut words: Vec<Vec<u8>> = Vec::new();
    let mut tell = |name: &str, values: &[&[u8]]| {
        words.push(format!("--{name}").into_bytes());
        words.extend(values.iter().map(|value| value.to_vec()));
    };
    // The master lists its replicas by what they announce, and members know one another by these addresses.
    if let Some(address) = set(settings, "host")? {
        tell("slave-announce-ip", &[address.as_bytes()]);
    }
    tell("slave-announce-port", &[settings.required("port")?.as_bytes()]);
    let login = Login::new(settings, conf)?;
    if let Some(password) = login.password.filter(|_| !conf.master_auth) {
        if let Some(user) = login.user {
            tell("masteruser", &[&user]);
        }
        tell("masterauth", &[&password]);
    }
    // Without a password redis lets in this host alone, and replicas are on others.
    if conf.password.is_none() {
        tell("protected-mode", &[b"no"]);
    }
    tell("slave-read-only", &[b"yes"]);
    // How many replicas a master must have is told when it becomes one.
    tell("min-slaves-to-write", &[b"0"]);
    if !conf.replica_lag {
        tell("min-slaves-max-lag", &[b"10"]);
    }
    // Redis would begin a new history an hour after a master's last replica left, and that replica could not go on.
    if !conf.backlog_ttl {
        tell("repl-backlog-ttl", &[b"0"]);
    }
    // One copy is taken at a time: a master that waits for more who want one waits for nothing.
    if !conf.diskless_delay {
        tell("repl-diskless-sync-delay", &[b"0"]);
    }
    tell("slaveof", &[host.as_bytes(), port.as_bytes()]);
    Ok(words)
}

/// `HOST PORT`.
fn parse(master: &str) -> Result<(&str, &str), String> {
    let parts = master.split_once(' ').filter(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    parts.ok_or_else(|| format!("`replicaof` is `{master}`, wanted HOST PORT"))
}

/// Finds what would keep an instance with peers from replicating with them.
pub(crate) fn check(settings: &Settings<'_>, conf: &Conf) -> Result<(), String> {
    let Some(peers) = set(settings, "peers")? else { return Ok(()) };
    if conf.cluster {
        return Err("`peers` is set, and `cluster-enabled`: redis switches masters by itself then".to_owned());
    }
    if conf.no_replica_lag {
        return Err("`min-replicas-max-lag` is 0: redis heeds no `min-replicas-to-write` then, and a master cut off from its \
                    replicas would go on taking writes; set it to 10, or leave it out"
            .to_owned());
    }
    let bind = set(settings, "bind")?;
    let loopback = |text: &str| text.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback());
    let alone = bind.map_or(conf.loopback_only, loopback);
    let apart = peers.split([',', ' ', '\t']).find(|peer| !peer.is_empty() && !loopback(peer));
    match apart {
        Some(peer) if alone => Err(format!(
            "it listens on loopback alone and {peer} of `peers` could not reach it; set `redis_bind` to an address of \
             this host, or `bind` in redis_conf"
        )),
        _ => Ok(()),
    }
}
