//! `yagent demo`: the agent on real caches in a temporary directory, with a little load, and a fault every few seconds.
//!
//! With `--failover`, three agents and a shard that loses its master every few seconds.
//!
//! The agent is a process of its own, as in real life; this one looks at it through its control socket and leaves
//! nothing behind.

mod agent;
mod failover;
mod faults;
mod load;
mod stage;

use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, Thread},
    time::{Duration, Instant},
};

use comfy_table::{Cell, CellAlignment, Table, presets};
use serde::Deserialize;

use super::{check::print_line, eprint_line, exit};
use faults::Faults;
use load::Load;
use stage::Stage;

/// How often the table is drawn on a terminal.
const REDRAW: Duration = Duration::from_millis(500);
/// How often it is printed elsewhere.
const REPRINT: Duration = Duration::from_secs(5);
/// How often something is killed or stopped.
const FAULT_EVERY: Duration = Duration::from_secs(4);
/// How long the caches may take to come up.
const START_LIMIT: Duration = Duration::from_secs(30);
/// Faults that are shown below the table.
const FAULTS_SHOWN: usize = 8;

/// Arguments of `yagent demo`.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct DemoArgs {
    /// End after so many seconds instead of at ctrl-c
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
    /// Three agents with a redis each, whose master is killed over and over
    #[arg(long)]
    failover: bool,
    /// The ZooKeeper for `--failover`, host:port; without it, one is started
    #[arg(long, value_name = "HOST:PORT", requires = "failover")]
    zookeeper: Option<String>,
}

/// What the demo shows of an instance.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Instance {
    engine: String,
    port: u16,
    state: String,
    pid: Option<u32>,
    restarts: u64,
    figures: Option<Figures>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Figures {
    keys: u64,
    bytes: u64,
    windows: serde_json::Map<String, serde_json::Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Registry {
    nodes: u64,
    writes: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    registry: Registry,
    instances: Vec<Instance>,
}

impl Status {
    fn all_up(&self) -> bool {
        !self.instances.is_empty() && self.instances.iter().all(|i| i.state == "up")
    }
}

/// Runs the demo; 69 when no cache server is installed or the agent doesn't come up.
pub(super) fn demo(args: &DemoArgs) -> ExitCode {
    match perform(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprint_line(&why);
            ExitCode::from(exit::UNAVAILABLE)
        }
    }
}

fn perform(args: &DemoArgs) -> Result<(), String> {
    let interrupted = interruption()?;
    let end = args.seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let over = || interrupted.load(Relaxed) || end.is_some_and(|end| Instant::now() >= end);
    if args.failover {
        return failover::perform(args.zookeeper.as_deref(), &over);
    }
    let mut stage = Stage::set()?;
    let shown = show(&mut stage, &over);
    let struck = stage.strike();
    shown.and(struck)
}

/// Set by ctrl-c, which also wakes this thread.
fn interruption() -> Result<Arc<AtomicBool>, String> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let (flag, main): (_, Thread) = (interrupted.clone(), thread::current());
    let handler = move || {
        flag.store(true, Relaxed);
        main.unpark();
    };
    ctrlc::set_handler(handler).map_err(|e| format!("cannot handle ctrl-c: {e}"))?;
    Ok(interrupted)
}

fn show(stage: &mut Stage, over: &dyn Fn() -> bool) -> Result<(), String> {
    let status = stage.wait_until_up(START_LIMIT, over)?;
    let _load = Load::start(status.instances.iter().map(|i| (i.engine.clone(), i.port)).collect());
    let mut faults = Faults::default();
    let terminal = io::stdout().is_terminal();
    let (mut next_draw, mut next_fault) = (Instant::now(), Instant::now() + FAULT_EVERY);
    while !over() {
        let status = stage.status()?;
        if let Some(line) = faults.observe(&status.instances).filter(|_| !terminal) {
            print_line(&line);
        }
        let now = Instant::now();
        if now >= next_fault && status.all_up() {
            next_fault = now + FAULT_EVERY;
            faults.commit(&status.instances);
        }
        if now >= next_draw {
            next_draw = now + if terminal { REDRAW } else { REPRINT };
            draw(&status, &faults, terminal);
        }
        // While a repair is awaited the next look comes soon, so that what is shown is the repair's time.
        let pause = if faults.pending() { Duration::from_millis(1) } else { REDRAW / 2 };
        thread::park_timeout(pause);
    }
    print_line(&format!("\n{}", faults.summary()));
    Ok(())
}

fn draw(status: &Status, faults: &Faults, terminal: bool) {
    let mut out = io::stdout().lock();
    let clear = if terminal { "\x1b[H\x1b[2J" } else { "" };
    let registry = &status.registry;
    // Nobody is left to tell when standard output is gone.
    let _ = writeln!(
        out,
        "{clear}yagent demo, ctrl-c ends it; embedded registry: {} nodes, {} writes\n\n{}\n",
        registry.nodes,
        registry.writes,
        table(&status.instances)
    );
    if terminal {
        for line in faults.last(FAULTS_SHOWN) {
            let _ = writeln!(out, "{line}");
        }
    }
    let _ = out.flush();
}

fn table(instances: &[Instance]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let header = ["instance", "state", "pid", "hit rate", "gets/s", "keys", "memory", "restarts"];
    let cell = |(column, text): (usize, String)| {
        let alignment = if column < 2 { CellAlignment::Left } else { CellAlignment::Right };
        Cell::new(text).set_alignment(alignment)
    };
    table.set_header(header.map(str::to_owned).into_iter().enumerate().map(cell));
    for instance in instances {
        table.add_row(row(instance).into_iter().enumerate().map(cell));
    }
    table
}

fn row(instance: &Instance) -> [String; 8] {
    let figures = instance.figures.clone().unwrap_or_default();
    let window = figures.windows.values().next().cloned().unwrap_or_default();
    let hit_rate =
        window["hit_rate"].as_f64().map_or_else(|| "-".to_owned(), |rate| format!("{:.1} %", rate * 100.0));
    [
        format!("{}:{}", instance.engine, instance.port),
        instance.state.clone(),
        instance.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
        hit_rate,
        format!("{:.0}", window["gets_per_s"].as_f64().unwrap_or(0.0)),
        figures.keys.to_string(),
        format!("{:.1} MB", figures.bytes as f64 / f64::from(1 << 20)),
        instance.restarts.to_string(),
    ]
}
