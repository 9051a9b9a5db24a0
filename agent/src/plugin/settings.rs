//! What a plugin is told about an instance: its section's keys, and what the host knows. Reads no file.

use std::{net::IpAddr, os::unix::ffi::OsStrExt, path::Path};

use crate::config::EngineSettings;

/// One instance among those of its engine.
#[derive(Clone, Copy, Debug)]
pub struct Instance<'a> {
    /// Its number, from 0.
    pub index: u32,
    /// This host's address as others know it.
    pub host: IpAddr,
    /// The port that it listens on.
    pub port: u16,
    /// The agent's directory for state.
    pub state_dir: &'a Path,
    /// As whose replica it is started, for a member of a shard.
    pub follow: Option<&'a (String, u16)>,
}

/// The settings for [`Plugin::create`](super::Plugin::create): the keys of the section as they stand, then the host's
/// own, which win over keys of the same name.
#[must_use]
pub fn of_instance(engine: &EngineSettings, instance: Instance<'_>) -> Vec<(String, Vec<u8>)> {
    let mut settings = engine.raw.clone();
    let mut tell = |name: &str, value: &[u8]| settings.push((name.to_owned(), value.to_vec()));
    tell("index", instance.index.to_string().as_bytes());
    tell("host", instance.host.to_string().as_bytes());
    tell("port", instance.port.to_string().as_bytes());
    tell("program", engine.program.as_os_str().as_bytes());
    tell("maxmem_mb", engine.maxmem.0.to_string().as_bytes());
    // Told even where it is not set, so that no key of the section can stand in for it.
    tell("bind", engine.bind.map(|bind| bind.to_string()).unwrap_or_default().as_bytes());
    tell("state_dir", instance.state_dir.as_os_str().as_bytes());
    if let Some((host, port)) = instance.follow {
        tell("replicaof", format!("{host} {port}").as_bytes());
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Megabytes;

    #[test]
    fn the_hosts_own_come_last_and_win() {
        let engine = EngineSettings {
            engine: "memcached".to_owned(),
            program: "/usr/bin/memcached".into(),
            maxmem: Megabytes(64),
            meta_size: Megabytes(16),
            count: None,
            port: 11211,
            port_step: 10,
            port_file: "/var/log/ports".into(),
            bind: None,
            registry_root: "/ycache".to_owned(),
            server_path: String::new(),
            instance_path: String::new(),
            shards: None,
            raw: vec![("mc_args".to_owned(), b"-u \xff".to_vec()), ("port".to_owned(), b"1".to_vec())],
        };
        let instance = Instance {
            index: 1,
            host: [10, 0, 0, 1].into(),
            port: 11221,
            state_dir: Path::new("/var/lib/yagent"),
            follow: None,
        };
        let settings = of_instance(&engine, instance);
        let last = |name: &str| {
            let told = settings.iter().rev().find(|(told, _)| told == name).unwrap();
            String::from_utf8_lossy(&told.1).into_owned()
        };
        assert_eq!(settings[0].1, b"-u \xff");
        assert_eq!(
            (last("index"), last("host"), last("port")),
            ("1".into(), "10.0.0.1".into(), "11221".into())
        );
        assert_eq!((last("program"), last("maxmem_mb")), ("/usr/bin/memcached".into(), "64".into()));
        assert_eq!((last("bind"), last("state_dir")), (String::new(), "/var/lib/yagent".into()));
    }
}
