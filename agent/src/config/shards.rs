//! With whom redis' instances replicate: `peers`, the timing and the policies of failover.

use std::{net::IpAddr, path::Path, time::Duration};

use super::{
    EngineKeys, EngineSettings, RegistrySettings, Settings, Severity,
    engine::Section,
    keys::{self, Key},
    reader::{Reader, Slot},
};
use crate::core::{ShardSettings, failover::Timing};

/// The engine that has shards.
const ENGINE: &str = "redis";
/// A member looks at least this often where it is urgent.
const BEAT_AT_MOST: Duration = Duration::from_secs(1);

/// Reads what `peers` needs beside it, once all else was read. Where the file is refused anyway nothing is compared.
pub(super) fn read(reader: &mut Reader<'_>, engines: &[EngineKeys], settings: &mut Settings) {
    let tick = reader.seconds(&Slot::plain(&keys::ZOO_TICK));
    let Some(of) = engines.iter().find(|of| of.engine == ENGINE) else { return };
    let Some(at) = settings.engines.iter().position(|engine| engine.engine == ENGINE) else { return };
    if reader.problems.iter().any(|problem| problem.severity == Severity::Error) {
        return;
    }
    let shards =
        Shards { section: Section::new(of, Path::new("/")), settings, engine: &settings.engines[at] };
    let found = tick.and_then(|tick| shards.read(reader, tick));
    settings.engines[at].shards = found;
}

struct Shards<'s> {
    section: Section<'s>,
    settings: &'s Settings,
    engine: &'s EngineSettings,
}

impl Shards<'_> {
    fn read(&self, reader: &mut Reader<'_>, tick: Duration) -> Option<ShardSettings> {
        let peers = reader.addresses(&self.slot(&keys::PEERS))?;
        let others: Vec<IpAddr> =
            peers.iter().copied().filter(|peer| Some(*peer) != self.settings.localip).collect();
        if others.is_empty() {
            return None;
        }
        self.check_registry(reader);
        self.warn_of_open_doors(reader);
        Some(ShardSettings {
            root: format!("{}/shards", self.engine.registry_root),
            min_replicas: self.min_replicas(reader, others.len())?,
            peers,
            timing: self.timing(reader, tick)?,
            fencing: reader.boolean(&self.slot(&keys::REDIS_FENCING))?,
            failsafe: reader.boolean(&self.slot(&keys::REDIS_FAILSAFE))?,
            max_lag: reader.integer(&self.slot(&keys::REDIS_MAX_LAG))?,
        })
    }

    fn slot(&self, key: &Key) -> Slot {
        self.section.slot(key)
    }

    /// Members of a shard know of one another through ZooKeeper alone.
    fn check_registry(&self, reader: &mut Reader<'_>) {
        if reader.text(&Slot::plain(&keys::ZOO_SVR)).as_deref() == Some("none") {
            let text =
                "found peers and zoo_svr=none, expected ZooKeeper: it tells which of them is the master";
            reader.error(&self.slot(&keys::PEERS), text);
        }
    }

    /// Peers must reach the instances, and then so does everybody else.
    fn warn_of_open_doors(&self, reader: &mut Reader<'_>) {
        let raw = |name: &str| {
            self.engine.raw.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_slice())
        };
        let password = raw("redis_password").is_some_and(|password| !password.is_empty());
        let conf =
            raw("redis_conf.content").is_some_and(|text| text.split(|b| *b == b'\n').any(has_password));
        let args = raw("redis_args")
            .is_some_and(|text| text.to_ascii_lowercase().windows(13).any(|word| word == b"--requirepass"));
        if !password && !conf && !args {
            let text = "found peers and no password (requirepass in redis_conf): the instances are open to whoever reaches \
                        their ports";
            reader.warning(&self.slot(&keys::PEERS), text);
        }
    }

    fn min_replicas(&self, reader: &mut Reader<'_>, others: usize) -> Option<u32> {
        let slot = self.slot(&keys::REDIS_MIN_REPLICAS);
        let least: u32 = reader.integer(&slot)?;
        if least as usize > others {
            let text = format!("found {least}, expected at most {others}, as many as there are peers");
            reader.error(&slot, text);
        }
        Some(least)
    }

    fn timing(&self, reader: &mut Reader<'_>, tick: Duration) -> Option<Timing> {
        let session = match &self.settings.registry {
            RegistrySettings::Zookeeper(zookeeper) => zookeeper.session_timeout,
            RegistrySettings::Memory => reader.seconds(&Slot::plain(&keys::ZOO_SESSION_TIMEOUT))?,
        };
        let probing = &self.settings.probing;
        let checks: u32 = reader.integer(&self.slot(&keys::CHECK_MASTER_INTERVAL))?;
        let lease = reader.optional_seconds(&self.slot(&keys::REDIS_LEASE))?;
        let timing = Timing {
            session,
            lease: lease.unwrap_or(session / 2),
            check: probing.check_interval.saturating_mul(checks),
            fence: reader.seconds(&self.slot(&keys::REDIS_FENCE_TIME))?,
            tick,
            beat: probing.interval.min(BEAT_AT_MOST),
            silence: reader.seconds(&self.slot(&keys::TIMEOUT))?,
            order: probing.timeout,
        };
        if let Err(error) = timing.check() {
            // At the number that is to be changed, where the file has it.
            let lease = self.slot(&keys::REDIS_LEASE);
            let slot = if lease_helps(&timing) { lease } else { Slot::plain(&keys::ZOO_SESSION_TIMEOUT) };
            reader.error(&slot, error.to_string());
        }
        Some(timing)
    }
}

/// Whether another lease alone would make the sum fit.
fn lease_helps(timing: &Timing) -> bool {
    Timing { lease: timing.session, ..timing.clone() }.suffices(timing.session)
}

/// Whether a line of redis.conf sets a password, or users with theirs.
fn has_password(line: &[u8]) -> bool {
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let name = words.next().map(<[u8]>::to_ascii_lowercase).unwrap_or_default();
    match name.as_slice() {
        b"requirepass" | b"aclfile" => words.next().is_some_and(|value| !matches!(value, b"\"\"" | b"''")),
        b"user" => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ConfigError, Loaded, Megabytes, Memory, Options, load_with};

    const OPEN: &str = "5: redis.peers: found peers and no password (requirepass in redis_conf): the instances are open to \
                        whoever reaches their ports";

    fn load(global: &str, redis: &str) -> Result<Loaded, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("yagent.ini");
        let head = "[global]\nlocalip=10.0.0.1\nstate_dir=/tmp\n[redis]\n";
        let zookeeper = if global.contains("zoo_svr") { "" } else { "zoo_svr=zk\n" };
        let text = format!("{head}{redis}redis_fpath=/bin/sh\nredis_count=1\n[global]\n{zookeeper}{global}");
        std::fs::write(&file, text).unwrap();
        let options = Options { memory: Some(Memory::of(Megabytes(32_768))), without_registry: false };
        load_with(&file, &EngineKeys::builtin(), &options)
    }

    fn told(global: &str, redis: &str) -> Vec<String> {
        let problems = load(global, redis).map_or_else(|error| error.problems, |loaded| loaded.warnings);
        let text = |problem: &super::super::Problem| {
            let text = problem.to_string();
            text.split_once("yagent.ini:").map_or(text.clone(), |(_, rest)| rest.to_owned())
        };
        problems.iter().map(text).collect()
    }

    fn shards(global: &str, redis: &str) -> Option<ShardSettings> {
        load(global, redis).unwrap().settings.engines[0].shards.clone()
    }

    #[test]
    fn without_other_hosts_every_instance_is_alone() {
        assert_eq!(
            (shards("", ""), shards("", "peers=\n"), shards("", "peers=10.0.0.1\n")),
            (None, None, None)
        );
        assert_eq!(told("", "peers=10.0.0.1\n"), Vec::<String>::new());
    }

    #[test]
    fn peers_make_shards_with_the_documented_defaults() {
        let found = shards("", "peers=10.0.0.2, 10.0.0.1\nredis_password=x\n").unwrap();
        let s = Duration::from_secs;
        let timing = Timing {
            session: s(30),
            lease: s(15),
            check: s(5),
            fence: s(3),
            tick: s(2),
            beat: s(1),
            silence: s(60),
            order: s(1),
        };
        let peers = vec!["10.0.0.2".parse().unwrap(), "10.0.0.1".parse().unwrap()];
        let root = "/redis/shards".to_owned();
        let expected = ShardSettings {
            root,
            peers,
            timing,
            fencing: true,
            failsafe: true,
            max_lag: 1 << 20,
            min_replicas: 1,
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn the_keys_of_failover_are_taken() {
        let global = "zoo_session_timeout=60\nprobe_interval=0.5\nprobe_timeout=0.25\nzoo_tick=1\n";
        let redis = "peers=10.0.0.2\nredis_lease=25\nredis_fence_time=4\ncheck_master_interval=2\ntimeout=9\n\
                     redis_fencing=0\nredis_failsafe=no\nredis_max_lag=7\nredis_min_replicas=0\nredis_zoo_root=/r\n";
        let found = shards(global, redis).unwrap();
        let t = &found.timing;
        assert_eq!(
            (t.session, t.lease, t.check),
            (Duration::from_secs(60), Duration::from_secs(25), Duration::from_secs(10))
        );
        assert_eq!(
            (t.fence, t.tick, t.silence),
            (Duration::from_secs(4), Duration::from_secs(1), Duration::from_secs(9))
        );
        assert_eq!((t.beat, t.order), (Duration::from_millis(500), Duration::from_millis(250)));
        assert_eq!((found.fencing, found.failsafe, found.max_lag, found.min_replicas), (false, false, 7, 0));
        assert_eq!(found.root, "/r/shards");
    }

    #[test]
    fn peers_must_be_addresses() {
        let found = told("", "peers=10.0.0.2,db2\n");
        assert_eq!(
            found,
            [
                "5: redis.peers: found \"10.0.0.2,db2\", expected IPv4 or IPv6 addresses, which \"db2\" is not: names are not \
              looked up"
            ]
        );
    }

    #[test]
    fn peers_need_a_zookeeper_and_should_have_a_password() {
        let found = told("zoo_svr=none\n", "peers=10.0.0.2\nredis_password=x\n");
        assert!(
            found.len() == 1 && found[0].contains("redis.peers: found peers and zoo_svr=none"),
            "{found:?}"
        );
        assert_eq!(told("", "peers=10.0.0.2\n"), [OPEN]);
        assert_eq!(told("", "peers=10.0.0.2\nredis_args=--requirepass x\n"), Vec::<String>::new());
        for (line, expected) in [
            ("requirepass x", true),
            ("  RequirePass\t'x y'", true),
            ("aclfile /etc/redis/users.acl", true),
            ("user default on >x ~* +@all", true),
            ("requirepass \"\"", false),
            ("# requirepass x", false),
            ("", false),
        ] {
            assert_eq!(has_password(line.as_bytes()), expected, "{line}");
        }
    }

    #[test]
    fn more_replicas_than_peers_are_refused() {
        let found = told("", "peers=10.0.0.2\nredis_password=x\nredis_min_replicas=2\n");
        assert_eq!(
            found,
            ["7: redis.redis_min_replicas: found 2, expected at most 1, as many as there are peers"]
        );
    }

    #[test]
    fn a_timing_that_could_leave_two_masters_is_refused_at_the_number_to_change() {
        let peers = "peers=10.0.0.2\nredis_password=x\n";
        let found = told("", &format!("{peers}redis_lease=20\n"));
        assert!(
            found[0].starts_with("7: redis.redis_lease: the lease does not fit into the session: "),
            "{found:?}"
        );
        assert!(found[0].ends_with("; lower redis_lease to at most 19.7 s"), "{found:?}");
        let found = told("zoo_session_timeout=6\n", peers);
        assert!(found[0].contains(": global.zoo_session_timeout: the lease does not fit"), "{found:?}");
        assert!(
            found[0].ends_with("; raise zoo_session_timeout to at least 21 s, or lower CheckInterval"),
            "{found:?}"
        );
        assert_eq!(
            told("zoo_session_timeout=6\n", "redis_lease=20\n"),
            Vec::<String>::new(),
            "nobody needs it"
        );
    }
}
