//! Finds the programs that the tests run. A missing one is a failure that names what to install, never a skipped test.

use std::{
    env,
    path::{Path, PathBuf},
};

/// The agent: `YAGENT_BIN`, else `yagent` beside the folder of this test binary.
pub fn yagent() -> PathBuf {
    if let Some(named) = env::var_os("YAGENT_BIN") {
        return existing(PathBuf::from(named), "YAGENT_BIN names a file that is not there");
    }
    let me = env::current_exe().expect("cannot find the test's own executable");
    let built = me.ancestors().nth(2).expect("a test binary lies in target/PROFILE/deps").join("yagent");
    existing(built, "build it first: cargo build --workspace")
}

/// memcached.
pub fn memcached() -> PathBuf {
    debian("memcached", "memcached")
}

/// redis-server.
pub fn redis_server() -> PathBuf {
    debian("redis-server", "redis-server")
}

/// The system's own Python, which has kazoo; a Python from elsewhere would not.
pub fn system_python() -> PathBuf {
    existing(PathBuf::from("/usr/bin/python3"), "install the Debian packages python3 and python3-kazoo")
}

/// The first `name` on the PATH or in the system's usual folders; panics with the Debian package to install.
pub fn debian(name: &str, package: &str) -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path)
        .chain(usual)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("{name} is missing: install the Debian package {package}"))
}

/// Panics unless a file or folder of a Debian package is there.
pub fn require(path: &str, package: &str) {
    assert!(Path::new(path).exists(), "{path} is missing: install the Debian package {package}");
}

fn existing(file: PathBuf, advice: &str) -> PathBuf {
    assert!(Path::is_file(&file), "{} is missing: {advice}", file.display());
    file
}
