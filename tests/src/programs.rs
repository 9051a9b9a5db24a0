//! Finds the programs that the tests run. A missing one is a failure that names what to install, never a skipped test.
//! And makes programs of the tests' own.

use std::{
    env,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
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

/// redis-server: `YAGENT_TEST_REDIS`, else Debian's.
pub fn redis_server() -> PathBuf {
    if let Some(named) = env::var_os("YAGENT_TEST_REDIS") {
        return existing(PathBuf::from(named), "YAGENT_TEST_REDIS names a file that is not there");
    }
    debian("redis-server", "redis-server")
}

/// Whether that redis can pause writes alone, which it can from 6.2 on.
pub fn redis_pauses_writes() -> bool {
    let output = Command::new(redis_server()).arg("--version").output().expect("cannot run redis-server");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut numbers = said.split_once("v=").unwrap_or_default().1.split('.').map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        panic!("redis-server tells no version: {said}");
    };
    (major, minor) >= (6, 2)
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

/// Copies a program, or a library to lie beside it, to `to`, a new file.
pub fn copy_program(from: &Path, to: &Path) {
    run_writer(Command::new("cp").arg("--").args([from, to]), "");
}

/// Puts a script in place at once: an older one is replaced as a whole.
pub fn script(to: &Path, text: &str) {
    let write = r#"cat >"$0.fresh" && chmod 755 "$0.fresh" && mv -f -- "$0.fresh" "$0""#;
    run_writer(Command::new("sh").args(["-c", write]).arg(to), text);
}

/// Whatever is to be executed is written by a child and never by the test process itself: there another test's thread
/// may fork while the file is open for writing, and until that child's own exec nobody can execute the file (ETXTBSY).
fn run_writer(command: &mut Command, text: &str) {
    let mut child = command.stdin(Stdio::piped()).spawn().expect("cannot start the writer");
    let mut stdin = child.stdin.take().expect("no pipe");
    stdin.write_all(text.as_bytes()).expect("the writer does not read");
    drop(stdin);
    let status = child.wait().expect("cannot wait for the writer");
    assert!(status.success(), "{command:?}: {status}");
}

fn existing(file: PathBuf, advice: &str) -> PathBuf {
    assert!(Path::is_file(&file), "{} is missing: {advice}", file.display());
    file
}
