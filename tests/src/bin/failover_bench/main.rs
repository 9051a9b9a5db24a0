//! Measures failovers: `tests/bench/failover` builds and runs it. One module a peer, one function a table.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a measurement reports its own failures by panicking"
)]

mod bare;
mod idle;
mod probe;
mod sentinel;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use yagent_tests::{
    cluster::{
        Cluster, Plan, SESSION,
        net::Space,
        watch::monotonic,
        writer::{Belief, Record, Writer},
    },
    process::{self, Signal},
};

use self::{bare::Floor, probe::Probe, sentinel::Sentinel};

/// How much is measured.
#[derive(Clone, Copy, Debug)]
struct Amount {
    short: bool,
    crashes: usize,
    switchovers: usize,
    silences: usize,
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let short = words.iter().any(|word| word == "--short");
    let amount = match short {
        true => Amount { short, crashes: 3, switchovers: 2, silences: 1 },
        false => Amount { short, crashes: 15, switchovers: 10, silences: 5 },
    };
    let only = words.iter().position(|word| word == "--only").map(|at| words[at + 1].clone());
    type Table = fn(Amount);
    let tables: [(&str, Table); 4] =
        [("crash", crash), ("switchover", switchover), ("silence", silence), ("idle", idle::idle)];
    for (name, table) in tables {
        if only.as_ref().is_none_or(|only| only.split(',').any(|it| it == name)) {
            table(amount);
        }
    }
}

fn title(text: &str) {
    println!("\n{text}");
}

fn row(who: &str, what: &str, figure: impl std::fmt::Display) {
    println!("{who:<24} {what:<50} {figure}");
}

/// Median, smallest and largest in milliseconds.
fn spread(samples: &[Duration]) -> String {
    let mut ms: Vec<f64> = samples.iter().map(|sample| sample.as_secs_f64() * 1000.0).collect();
    ms.sort_by(f64::total_cmp);
    let middle = (ms[(ms.len() - 1) / 2] + ms[ms.len() / 2]) / 2.0;
    format!("{middle:9.1} ms median  {:9.1} min {:9.1} max  n={}", ms[0], ms[ms.len() - 1], ms.len())
}

/// `kill -9` of the master until another one acknowledges a write.
fn crash(amount: Amount) {
    title("kill -9 of the master: until another server acknowledges a SET");
    let n = amount.crashes;
    row("floor", "pidfd, then REPLICAOF NO ONE at once", spread(&Floor::start().crashes(n)));
    {
        let cluster = Plan::new(3).start();
        let samples: Vec<Duration> = (0..n).map(|_| yagent_crash(&cluster)).collect();
        row("yagent", "3 hosts", spread(&samples));
    }
    let mut sentinel = Sentinel::start();
    let samples: Vec<Duration> = (0..n.min(10)).map(|_| sentinel.crash()).collect();
    row("Sentinel", "3 sentinels, down-after 1 s", spread(&samples));
    row("floor", "once more, at the end", spread(&Floor::start().crashes(n)));
}

fn yagent_crash(cluster: &Cluster) -> Duration {
    let master = cluster.wait_steady();
    let others: Vec<SocketAddr> =
        cluster.others(&[master]).into_iter().map(|it| cluster.address(it)).collect();
    let probe = Probe::new(&cluster.client, &others);
    let pid = cluster.redis_pid(master).expect("the master runs");
    let begun = monotonic();
    process::signal(pid, Signal::KILL);
    probe.first_ack().0 - begun
}

/// What applications saw of planned changes of the master.
#[derive(Debug, Default)]
struct Handovers {
    /// The longest time without an acknowledgement, for an application that follows the master.
    gaps: Vec<Duration>,
    /// How many writes were acknowledged to it and are lost, and how many were acknowledged.
    following: (usize, usize),
    /// The same for one that writes to the old master whatever happens.
    stubborn: (usize, usize),
}

/// One application of each kind.
#[derive(Debug)]
struct Applications {
    following: Writer,
    stubborn: Writer,
}

impl Applications {
    /// Both at work; one follows `belief`, the other stays with `old`.
    fn start(space: &Arc<Space>, belief: Belief, old: SocketAddr) -> Applications {
        let patience = Duration::from_secs(1);
        let following = Writer::start(space, belief, patience);
        let stubborn = Writer::start(space, Belief::Stubborn(old), patience);
        following.wait_progress(300);
        Applications { following, stubborn }
    }

    /// Ends both when `new` has acknowledged something; `lost` counts the writes of a record that are lost.
    fn finish(self, new: SocketAddr, lost: impl Fn(&Record) -> usize, all: &mut Handovers) {
        self.following.wait_ack_by(new);
        self.following.wait_progress(300);
        let (following, stubborn) = (self.following.finish(), self.stubborn.finish());
        all.gaps.push(following.longest_gap());
        for (sum, record) in [(&mut all.following, &following), (&mut all.stubborn, &stubborn)] {
            sum.0 += lost(record);
            sum.1 += record.acks.len();
        }
    }
}

impl Handovers {
    fn print(&self, who: &str, what: &str) {
        row(who, what, spread(&self.gaps));
        let of = |(lost, all): (usize, usize)| format!("{lost} of {all}");
        row("", "  acknowledged and lost, by one that follows", of(self.following));
        row("", "  acknowledged and lost, by one that stays", of(self.stubborn));
    }
}

/// A planned change of the master under load.
fn switchover(amount: Amount) {
    title(
        "planned switchover, two applications of about 1000 writes/s: the longest time without an acknowledgement",
    );
    {
        let cluster = Plan::new(3).start();
        let mut all = Handovers::default();
        for _ in 0..amount.switchovers {
            yagent_switchover(&cluster, &mut all);
        }
        all.print("yagent", "yagent switchover");
    }
    let mut sentinel = Sentinel::start();
    let mut all = Handovers::default();
    for _ in 0..amount.switchovers {
        sentinel.switchover(&mut all);
    }
    all.print("Sentinel", "SENTINEL FAILOVER");
    drop(sentinel);
    let mut pair = bare::Pair::start();
    let mut all = Handovers::default();
    for _ in 0..amount.switchovers {
        pair.failover_to(&mut all);
    }
    all.print("redis itself", "FAILOVER TO");
}

fn yagent_switchover(cluster: &Cluster, all: &mut Handovers) {
    let old = cluster.wait_steady();
    let belief = Belief::Published(cluster.watch.clone());
    let applications = Applications::start(&cluster.client, belief, cluster.address(old));
    let output = cluster.yagent(old, &["switchover", &cluster.address(0).to_string(), "--yes"]);
    assert!(output.status.success(), "{output:?}");
    let new = cluster.address(cluster.wait_steady());
    applications.finish(new, |record| cluster.lost(&[record]).len(), all);
}

/// The master's host falls silent: nothing comes from it any more, though all on it goes on.
fn silence(amount: Amount) {
    title("the master's host is cut off: until another server acknowledges a SET");
    {
        let cluster = Plan::new(3).start();
        let (mut samples, mut both) = (Vec::new(), 0);
        for _ in 0..amount.silences {
            let master = cluster.wait_steady();
            let others: Vec<SocketAddr> =
                cluster.others(&[master]).into_iter().map(|it| cluster.address(it)).collect();
            let neighbour = cluster.stubborn_neighbour(master);
            neighbour.wait_progress(50);
            let probe = Probe::new(&cluster.client, &others);
            let begun = monotonic();
            cluster.cut_off(master);
            let (first, _) = probe.first_ack();
            samples.push(first - begun);
            std::thread::sleep(Duration::from_secs(1));
            both += neighbour.finish().acks.iter().filter(|ack| ack.sent > first).count();
            cluster.heal(master);
        }
        let tick = Duration::from_millis(200);
        let withdrawal = Duration::from_millis(2000 + 500 + 1000);
        let bound = SESSION + tick + withdrawal + Duration::from_secs(1);
        row("yagent", "S 5 s, tick 0.2 s, W 3.5 s", spread(&samples));
        row("", "  S + tick + W + 1 s", format!("{:9.1} ms", bound.as_secs_f64() * 1000.0));
        row("", "  acknowledged by the old one after that", both);
    }
    let mut sentinel = Sentinel::start();
    let (mut samples, mut both) = (Vec::new(), 0);
    for _ in 0..amount.silences {
        let (took, stray) = sentinel.silence();
        samples.push(took);
        both += stray;
    }
    row("Sentinel", "3 sentinels, down-after 1 s", spread(&samples));
    row("", "  acknowledged by the old one in the second after", both);
}
