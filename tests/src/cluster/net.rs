//! Several hosts on one machine: a network namespace for each, all on one bridge that has a namespace of its own.
//!
//! Nothing is visible outside these namespaces, so that every test has the same addresses. Names carry the pid of the
//! test program: what a killed one left behind is removed by the next.

use std::{
    fs::{self, File},
    io::Write,
    net::Ipv4Addr,
    os::fd::AsFd,
    path::PathBuf,
    process::{Command, Stdio},
    sync::{
        Arc, Once,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{
    process::{self, Signal},
    programs::debian,
    wait,
};

const FOLDER: &str = "/run/netns";
const PREFIX: &str = "yagent-";

/// A network of hosts, with nothing on them.
#[derive(Debug)]
pub struct Net {
    name: String,
    spaces: Vec<Arc<Space>>,
}

/// A host of a [`Net`]: an address, and what is sent and received there.
#[derive(Debug)]
pub struct Space {
    name: String,
    address: Ipv4Addr,
}

/// What no longer passes between a host and others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Anything to or from anybody.
    Off,
    /// Anything to or from these.
    From(Vec<Ipv4Addr>),
    /// What these send; what it sends them passes.
    Deaf(Vec<Ipv4Addr>),
    /// What it sends to these; what they send passes.
    Mute(Vec<Ipv4Addr>),
}

impl Net {
    /// A network without hosts.
    pub fn new() -> Net {
        static SWEPT: Once = Once::new();
        static NEXT: AtomicU32 = AtomicU32::new(0);
        assert!(process::is_root(), "network namespaces need root");
        debian("ip", "iproute2");
        debian("nft", "nftables");
        SWEPT.call_once(sweep_leftovers);
        let name = format!("{PREFIX}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let net = Net { name, spaces: Vec::new() };
        let switch = net.switch();
        ip(&["netns", "add", &switch]);
        ip(&["-n", &switch, "link", "add", "switch", "type", "bridge"]);
        ip(&["-n", &switch, "link", "set", "switch", "up"]);
        net
    }

    fn switch(&self) -> String {
        format!("{}-switch", self.name)
    }

    /// A further host, `10.77.0.<last>`.
    pub fn host(&mut self, last: u8) -> Arc<Space> {
        let space = Space { name: format!("{}-{last}", self.name), address: Ipv4Addr::new(10, 77, 0, last) };
        let (switch, port) = (self.switch(), format!("port{last}"));
        ip(&["netns", "add", &space.name]);
        let space = Arc::new(space);
        self.spaces.push(space.clone());
        ip(&[
            "-n",
            &switch,
            "link",
            "add",
            &port,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            &space.name,
        ]);
        ip(&["-n", &switch, "link", "set", &port, "master", "switch", "up"]);
        ip(&["-n", &space.name, "addr", "add", &format!("{}/24", space.address), "dev", "eth0"]);
        ip(&["-n", &space.name, "link", "set", "lo", "up"]);
        ip(&["-n", &space.name, "link", "set", "eth0", "up"]);
        space
    }
}

impl Default for Net {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for space in &self.spaces {
            remove(&space.name);
        }
        remove(&self.switch());
    }
}

impl Space {
    /// Its address.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Calls `job` on a thread of this host; sockets that it opens stay here.
    pub fn run<T: Send>(&self, job: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter();
                job()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Moves the calling thread to this host, for ever.
    pub fn enter(&self) {
        let file = File::open(self.file()).expect("the namespace is gone");
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
            .expect("cannot enter the namespace");
    }

    /// A program of this host; its process is the program's own.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.file().display())).arg("--").arg(program);
        command
    }

    fn file(&self) -> PathBuf {
        PathBuf::from(FOLDER).join(&self.name)
    }

    /// Cuts the host off from others. What was cut before is healed.
    pub fn cut(&self, cut: &Cut) {
        let list = |addresses: &[Ipv4Addr]| {
            let texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            format!("{{ {} }}", texts.join(", "))
        };
        let (input, output) = match cut {
            Cut::Off => ("drop".to_owned(), "drop".to_owned()),
            Cut::From(who) => {
                (format!("ip saddr {} drop", list(who)), format!("ip daddr {} drop", list(who)))
            }
            Cut::Deaf(who) => (format!("ip saddr {} drop", list(who)), String::new()),
            Cut::Mute(who) => (String::new(), format!("ip daddr {} drop", list(who))),
        };
        self.nft(&format!(
            "table inet cut\ndelete table inet cut\ntable inet cut {{\n\
             chain in {{ type filter hook input priority 0; iifname lo accept\n{input}\n}}\n\
             chain out {{ type filter hook output priority 0; oifname lo accept\n{output}\n}}\n}}\n"
        ));
    }

    /// Lets everything pass again.
    pub fn heal(&self) {
        self.nft("table inet cut\ndelete table inet cut\n");
    }

    fn nft(&self, rules: &str) {
        let mut child = self
            .command(debian("nft", "nftables"))
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("cannot start nft");
        let mut stdin = child.stdin.take().expect("no pipe");
        stdin.write_all(rules.as_bytes()).expect("cannot write to nft");
        drop(stdin);
        assert!(child.wait().expect("cannot wait for nft").success(), "nft refused\n{rules}");
    }
}

fn ip(words: &[&str]) {
    let output = Command::new(debian("ip", "iproute2")).args(words).output().expect("cannot start ip");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {}: {told}", words.join(" "));
}

/// Kills everything on a host and removes the host.
fn remove(name: &str) {
    let Ok(space) = fs::metadata(format!("{FOLDER}/{name}")) else { return };
    let me = std::process::id();
    let inside =
        || process::all().into_iter().filter(|&pid| pid != me && lives_in(pid, &space)).collect::<Vec<u32>>();
    wait::until(&format!("{name} is empty"), || {
        let left = inside();
        left.iter().for_each(|&pid| process::signal(pid, Signal::KILL));
        wait::check(left.iter().all(|&pid| !process::alive(pid)), || format!("{left:?} still run"))
    });
    let _ = Command::new("ip").args(["netns", "del", name]).status();
}

fn lives_in(pid: u32, space: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(format!("/proc/{pid}/ns/net"))
        .is_ok_and(|it| (it.dev(), it.ino()) == (space.dev(), space.ino()))
}

/// Removes the hosts of test programs that are gone.
fn sweep_leftovers() {
    let Ok(entries) = fs::read_dir(FOLDER) else { return };
    for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse().ok());
        if owner.is_some_and(|pid: u32| !process::alive(pid)) {
            remove(&name);
        }
    }
}
