//! The network and the writers themselves, without any agent.

use std::{
    net::SocketAddr,
    process::{Child, Stdio},
    time::Duration,
};

use tempfile::TempDir;
use yagent_tests::{
    cache::Redis,
    cluster::net::{Cut, Net, Space},
    programs, wait,
};

/// A server that ends with the test.
pub(crate) struct Running {
    child: Child,
    pub(crate) address: SocketAddr,
    _dir: TempDir,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn redis(space: &Space) -> Running {
    redis_at(space, 7000)
}

/// A redis that somebody starts by hand.
pub(crate) fn redis_at(space: &Space, port: u16) -> Running {
    let dir = tempfile::tempdir().unwrap();
    let mut command = space.command(programs::redis_server());
    command.arg("--dir").arg(dir.path());
    command.args(["--port", &port.to_string(), "--save", "", "--protected-mode", "no"]).stdout(Stdio::null());
    let child = command.spawn().unwrap();
    let address = SocketAddr::from((space.address(), port));
    wait::until("redis answers", || space.run(|| ping(address)));
    Running { child, address, _dir: dir }
}

fn ping(address: SocketAddr) -> std::io::Result<String> {
    Redis::connect_to(address, Duration::from_millis(300))?.call(&["PING"])
}

#[test]
fn cuts_stop_what_they_name_and_nothing_else() {
    let mut net = Net::new();
    let (server, one, other) = (net.host(1), net.host(2), net.host(3));
    let running = redis(&server);
    let address = running.address;
    let reaches = |space: &Space| space.run(|| ping(address)).is_ok();
    let all = || (reaches(&server), reaches(&one), reaches(&other));
    assert_eq!(all(), (true, true, true));
    server.cut(&Cut::Off);
    assert_eq!(all(), (true, false, false));
    server.cut(&Cut::From(vec![one.address()]));
    assert_eq!(all(), (true, false, true));
    server.cut(&Cut::Deaf(vec![other.address()]));
    assert_eq!(all(), (true, true, false));
    server.cut(&Cut::Mute(vec![one.address()]));
    assert_eq!(all(), (true, false, true));
    server.heal();
    assert_eq!(all(), (true, true, true));
}

#[test]
fn a_one_way_cut_lets_the_other_way_pass() {
    let mut net = Net::new();
    let (server, client) = (net.host(1), net.host(2));
    let running = redis(&server);
    let address = running.address;
    let connect = || client.run(|| Redis::connect_to(address, Duration::from_millis(300))).unwrap();
    let (mut link, mut other) = (connect(), connect());
    link.call(&["SET", "a", "1"]).unwrap();
    client.cut(&Cut::Deaf(vec![server.address()]));
    assert!(link.call(&["SET", "a", "2"]).is_err(), "no answer is heard");
    let value = server.run(|| Redis::connect_to(address, Duration::from_secs(1))?.call(&["GET", "a"]));
    assert_eq!(value.unwrap(), "2", "but the request arrived");
    client.cut(&Cut::Mute(vec![server.address()]));
    assert!(other.call(&["SET", "a", "3"]).is_err(), "no request arrives");
    let value = server.run(|| Redis::connect_to(address, Duration::from_secs(1))?.call(&["GET", "a"]));
    assert_eq!(value.unwrap(), "2");
}
