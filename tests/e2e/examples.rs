//! The example engines: one in three languages, and what `plugin new` makes of it.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use yagent_tests::{cache, host::Host, plugins, process, programs, wait};

fn examples() -> PathBuf {
    plugins::repository().join("plugins/examples")
}

/// Builds the example that is written in `language`, by its file's extension.
fn build(language: &str, dir: &Path) -> PathBuf {
    let source = examples().join(format!("minicache.{language}"));
    match language {
        "rs" => plugins::compile_rust(&source, dir, "minicache"),
        _ => plugins::compile(&source, dir, "minicache", &[]),
    }
}

/// The examples' server on a free port.
struct Server(Child, String);

impl Server {
    fn start() -> Server {
        let mut command = Command::new(examples().join("server.py"));
        let mut child = command.args(["--port", "0"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut port = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut port).unwrap();
        Server(child, port.trim().to_owned())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_same_engine_in_three_languages_says_the_same() {
    let server = Server::start();
    let fixtures = examples().join("fixtures");
    let mut said = Vec::new();
    for language in ["c", "cc", "rs"] {
        let dir = tempfile::tempdir().unwrap();
        let file = build(language, dir.path());
        let mut check = Command::new(programs::yagent());
        check.args(["plugin", "check"]).arg(&file).arg("--fixtures").arg(&fixtures);
        let checked = String::from_utf8(check.output().unwrap().stdout).unwrap();
        assert!(
            checked.ends_with("24 passed, 0 failed, 0 crashed, 1 skipped, 0 warning\n"),
            "{language}: {checked}"
        );
        let mut tried = Command::new(programs::yagent());
        tried.args(["plugin", "try"]).arg(&file).args(["--port", &server.1]);
        let tried = tried.output().unwrap();
        assert!(tried.status.success(), "{language}: {tried:?}");
        said.push(without_what_changes(&String::from_utf8(tried.stdout).unwrap()));
    }
    assert!(said[0].contains("> get yagent:probe\\n\n< none\\n\nhealth serving"), "{}", said[0]);
    assert!(said[0].contains("counter hits 0\n") && said[0].contains("text version 1.0\n"), "{}", said[0]);
    assert_eq!((&said[0], &said[0]), (&said[1], &said[2]));
}

/// Each probe is a get more, and time passes.
fn without_what_changes(said: &str) -> String {
    let steady = |line: &&str| !line.contains("gets ") && !line.contains("uptime_s ");
    said.lines().filter(steady).map(|line| format!("{line}\n")).collect()
}

#[test]
fn an_engine_in_any_language_is_supervised_and_counted() {
    for language in ["c", "cc", "rs"] {
        let mut host = Host::new().memcached(1);
        let dir = host.path().join("plugins");
        build(language, &dir);
        let port = host.mc_port(20);
        host = host
            .with("plugins", "load", "minicache")
            .with("plugins", "dir", dir.display())
            .with("minicache", "minicache_fpath", examples().join("server.py").display())
            .with("minicache", "minicache_maxmem", 32)
            .with("minicache", "minicache_count", 1)
            .with("minicache", "minicache_port", port);
        host.launch();
        let status = host.wait_status("the engine is up", |status| {
            status.instance("minicache", port).is_some_and(|it| it.state == "up" && it.health == "serving")
        });
        let old = status.instance("minicache", port).unwrap();
        process::signal(old.pid, process::Signal::STOP);
        let new = host.wait_replaced("minicache", port, old.pid);
        let arguments = fs::read_to_string(format!("/proc/{}/cmdline", new.pid)).unwrap();
        assert!(arguments.contains("--megabytes\0") && arguments.contains("32\0"), "{language}: {arguments}");
        wait::until("a get is counted", || {
            let figures = host.instance("minicache", port).figures;
            let gets = figures["windows"]["60"]["gets"].as_f64();
            wait::check(gets.is_some_and(|gets| gets > 0.0), || figures.to_string())
        });
        let mut client = cache::Memcached::connect(host.mc_port(0)).unwrap();
        assert_eq!(client.get("x").unwrap(), None, "the other engine is there as well");
    }
}

/// Makes a plugin with `plugin new` and runs its test.
fn new_and_test(language: &str, name: &str, prepare: impl Fn(&Path)) {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("plugin");
    let make = || {
        let mut command = Command::new(programs::yagent());
        command.args(["plugin", "new", name, "--lang", language, "--dir"]).arg(&place).output().unwrap()
    };
    assert!(make().status.success());
    assert_eq!(make().status.code(), Some(69), "what is there is not touched");
    prepare(&place);
    let tested = Command::new(place.join("test")).env("YAGENT", programs::yagent()).output().unwrap();
    let said = String::from_utf8_lossy(&tested.stdout);
    assert!(tested.status.success(), "{said}{}", String::from_utf8_lossy(&tested.stderr));
    assert!(said.contains("24 passed, 0 failed") && said.contains("health serving"), "{said}");
}

#[test]
fn a_new_plugin_in_c_passes_its_test() {
    new_and_test("c", "my_cache", |_| {});
}

#[test]
fn a_new_plugin_in_rust_passes_its_test() {
    // The crate of this working copy stands in for the published one.
    let patch = format!(
        "[patch.crates-io]\nyagent-abi.path = {:?}\n[net]\noffline = true\n",
        plugins::repository().join("abi")
    );
    new_and_test("rust", "my_cache", |place| {
        fs::create_dir(place.join(".cargo")).unwrap();
        fs::write(place.join(".cargo/config.toml"), &patch).unwrap();
    });
}
