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
    let tables: [(&str, fn(Amount)); 4] =
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

/// What two applications saw of a change from one server to another.
#[derive(Debug, Default)]
struct Handovers {
    /// From the last acknowledgement by the old master to the first by the new one.
    gaps: Vec<Duration>,
    /// Acknowledged writes that the new master does not have.
    lost: usize,
    /// All acknowledged writes of the time around.
    written: usize,
}

/// An application at each server, which writes without pause to that one.
fn applications(space: &Arc<Space>, servers: &[SocketAddr]) -> Vec<Writer> {
    let begin = |&at: &SocketAddr| Writer::start(space, Belief::Stubborn(at), Duration::from_secs(2));
    servers.iter().map(begin).collect()
}

impl Handovers {
    /// Notes one change; `lost` tells which of the acknowledged writes the new master lacks.
    fn note(&mut self, old: SocketAddr, new: SocketAddr, records: &[Record], lost: usize) {
        let last = records.iter().filter_map(|record| record.last_by(old)).map(|ack| ack.at).max();
        let first = records.iter().filter_map(|record| record.first_by(new)).map(|ack| ack.at).min();
        // Where both took writes at the same time there was no gap.
        self.gaps.push(first.unwrap_or_default().saturating_sub(last.unwrap_or_default()));
        self.lost += lost;
        self.written += records.iter().map(|record| record.acks.len()).sum::<usize>();
    }

    fn print(&self, who: &str, what: &str) {
        row(who, what, spread(&self.gaps));
        row("", "  acknowledged writes lost", format!("{} of {}", self.lost, self.written));
    }
}

/// A planned change of the master under load.
fn switchover(amount: Amount) {
    title(
        "planned switchover under about 1000 writes/s: from the old master's last to the new one's first acknowledgement",
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
    let servers: Vec<SocketAddr> = (0..cluster.hosts.len()).map(|host| cluster.address(host)).collect();
    let writers = applications(&cluster.client, &servers);
    writers[old].wait_progress(300);
    let output = cluster.yagent(old, &["switchover", &servers[0].to_string(), "--yes"]);
    assert!(output.status.success(), "{output:?}");
    let new = cluster.wait_steady();
    writers[new].wait_progress(300);
    let records: Vec<Record> = writers.into_iter().map(Writer::finish).collect();
    let lost = cluster.lost(&records.iter().collect::<Vec<_>>()).len();
    all.note(servers[old], servers[new], &records, lost);
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
        let withdrawal = Duration::from_millis(2000 + 200 + 500);
        let bound = SESSION + tick + withdrawal + Duration::from_secs(1);
        row("yagent", "S 4 s, tick 0.2 s, W 2.7 s", spread(&samples));
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
