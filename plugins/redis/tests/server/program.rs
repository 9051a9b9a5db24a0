//! The server that the tests run, and what its version has.

use std::{process::Command, sync::OnceLock};

/// `YAGENT_TEST_REDIS`, else Debian's.
pub(crate) fn path() -> String {
    std::env::var("YAGENT_TEST_REDIS").unwrap_or_else(|_| "/usr/bin/redis-server".to_owned())
}

/// CLIENT PAUSE … WRITE, and CLIENT UNPAUSE.
pub(crate) fn pauses_writes() -> bool {
    version() >= (6, 2)
}

/// CLIENT and CONFIG SET are there while data is read.
pub(crate) fn is_set_while_loading() -> (bool, bool) {
    (version() >= (6, 0), version() >= (7, 0))
}

/// ACL users.
pub(crate) fn has_users() -> bool {
    version() >= (6, 0)
}

/// Functions beside scripts.
pub(crate) fn has_functions() -> bool {
    version() >= (7, 0)
}

/// An AOF of several files, in a folder.
pub(crate) fn has_aof_folders() -> bool {
    version() >= (7, 0)
}

/// Replication ids, and partial resyncs after a failover.
pub(crate) fn has_histories() -> bool {
    version() >= (4, 0)
}

/// Major and minor. A Valkey's are above those of the redis that it was made from.
fn version() -> (u32, u32) {
    static VERSION: OnceLock<(u32, u32)> = OnceLock::new();
    *VERSION.get_or_init(|| {
        let output = Command::new(path()).arg("--version").output();
        let output = output.unwrap_or_else(|error| {
            panic!("cannot run {}: {error}; install the Debian package redis-server", path())
        });
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let parse = || {
            let mut numbers = said.split_once("v=")?.1.split(['.', ' ']).map(|number| number.parse().ok());
            Some((numbers.next()??, numbers.next()??))
        };
        parse().unwrap_or_else(|| panic!("{} tells no version: {said}", path()))
    })
}
