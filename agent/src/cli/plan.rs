//! `yagent plan`: prints memory, engines, and the instances with their command lines; starts nothing.
//!
//! The command lines are the plugins' work; who calls hands in how to ask them.

use std::{fmt::Write as _, path::PathBuf, process::ExitCode};

use comfy_table::{Cell, CellAlignment, Table, presets};
use serde_json::{Value, json};

use super::{
    check::{print_line, print_problems},
    exit,
};
use crate::{
    config::{
        ConfigError, DEFAULT_FILE, EngineSettings, Loaded, Megabytes, Memory, Options,
        sizing::{self, EnginePlan, Plan},
    },
    plugin::StartPlan,
    setup::{self, Prepared},
};

/// Arguments of `yagent plan`.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct PlanArgs {
    /// The configuration
    #[arg(short, long, value_name = "FILE", default_value = DEFAULT_FILE)]
    pub(super) config: PathBuf,
    /// Plan for a host with so much memory instead of this one
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1 << 40))]
    pub(super) mem_total_mb: Option<u64>,
    /// How to print the plan
    #[arg(long, value_enum, default_value_t = PlanFormat::Table)]
    pub(super) format: PlanFormat,
}

/// How `yagent plan` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum PlanFormat {
    /// Tables for people.
    Table,
    /// One JSON object.
    Json,
}

/// Asks a plugin how an instance is started: the engine, the instance's index from 0, its port.
pub(super) type Starter<'a> = dyn Fn(&EngineSettings, u32, u16) -> Result<StartPlan, String> + 'a;

/// An instance of a plan.
struct Planned<'a> {
    engine: &'a EngineSettings,
    port: u16,
    argv: Vec<Vec<u8>>,
}

/// Prints a plan: 0 when it fits, 78 for a bad configuration or a plan that doesn't fit.
#[must_use]
pub(super) fn plan(args: &PlanArgs) -> ExitCode {
    let planned = load(args).and_then(|prepared| {
        let loaded = &prepared.loaded;
        print_problems(&loaded.warnings);
        print_problems(&loaded.misfits);
        let instances = instances(loaded, &|engine, _, port| prepared.start_plan(engine, port))
            .map_err(|why| ConfigError::whole_file(&args.config, why))?;
        print_line(
            match args.format {
                PlanFormat::Table => table(loaded, &instances),
                PlanFormat::Json => json(loaded, &instances).to_string(),
            }
            .trim_end(),
        );
        Ok(loaded.misfits.is_empty())
    });
    match planned {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(exit::CONFIG),
        Err(error) => {
            print_problems(&error.problems);
            ExitCode::from(exit::CONFIG)
        }
    }
}

/// A plan needs no registry, so a missing address is only a warning here.
fn load(args: &PlanArgs) -> Result<Prepared, ConfigError> {
    let memory = args.mem_total_mb.map(|total| Memory::of(Megabytes(total)));
    setup::prepare(&args.config, &Options { memory, without_registry: true })
}

fn instances<'a>(loaded: &'a Loaded, start: &Starter<'_>) -> Result<Vec<Planned<'a>>, String> {
    let mut all = Vec::new();
    for engine in &loaded.settings.engines {
        let count = loaded.plan.engine(&engine.engine).map_or(0, |part| part.count);
        for index in 0..count {
            let Some(port) = sizing::port(engine, index) else { continue };
            let start = start(engine, index, port)
                .map_err(|why| format!("{} on port {port}: {why}", engine.engine))?;
            let mut argv: Vec<_> = std::iter::once(start.program.into_bytes()).chain(start.args).collect();
            hide_passwords(&mut argv);
            all.push(Planned { engine, port, argv });
        }
    }
    Ok(all)
}

/// A plan is pasted into tickets. redis takes passwords on its command line, behind these.
fn hide_passwords(argv: &mut [Vec<u8>]) {
    const BEHIND: [&[u8]; 2] = [b"--masterauth", b"--requirepass"];
    for at in 1..argv.len() {
        if BEHIND.iter().any(|name| argv[at - 1].eq_ignore_ascii_case(name)) {
            argv[at] = b"***".to_vec();
        }
    }
}

/// The other hosts of an engine's shards, as the file has them; empty: its instances are alone.
fn peers(engine: &EngineSettings) -> Vec<String> {
    engine.shards.iter().flat_map(|shards| &shards.peers).map(ToString::to_string).collect()
}

fn json(loaded: &Loaded, instances: &[Planned<'_>]) -> Value {
    let plan = &loaded.plan;
    let memory = json!({
        "total_mb": plan.memory.total.0,
        "cgroup_mb": plan.memory.cgroup.map(|limit| limit.0),
        "system_res_mem_mb": plan.reserved.0,
        "available_mb": plan.available.0,
        "planned_mb": plan.planned().0,
    });
    let settings =
        |part: &EnginePlan| loaded.settings.engines.iter().find(|engine| engine.engine == part.engine);
    let engine = |part: &EnginePlan| {
        json!({
            "engine": part.engine,
            "count": part.count,
            "unit_mb": part.unit.0,
            "share_mb": part.share.0,
            "peers": settings(part).map(peers).unwrap_or_default(),
        })
    };
    let instance = |planned: &Planned<'_>| {
        let argv: Vec<_> = planned.argv.iter().map(|arg| String::from_utf8_lossy(arg)).collect();
        json!({
            "engine": planned.engine.engine,
            "port": planned.port,
            "maxmem_mb": planned.engine.maxmem.0,
            "argv": argv,
        })
    };
    json!({
        "memory": memory,
        "engines": plan.engines.iter().map(engine).collect::<Vec<_>>(),
        "instances": instances.iter().map(instance).collect::<Vec<_>>(),
    })
}

fn table(loaded: &Loaded, instances: &[Planned<'_>]) -> String {
    let plan = &loaded.plan;
    let mut tables =
        format!("{}\n\n{}\n\n{}", memory_table(plan), engine_table(plan), instance_table(instances));
    for engine in loaded.settings.engines.iter().filter(|engine| engine.shards.is_some()) {
        // A String takes whatever is written to it.
        _ = write!(
            tables,
            "\n\n{}: shards with the instances on the same ports of {}; each is started as a replica of its shard's \
             master, or of nobody while there is none",
            engine.engine,
            peers(engine).join(", ")
        );
    }
    tables.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

fn memory_table(plan: &Plan) -> Table {
    let mut table = new_table(&["memory", "MB"]);
    let mut row =
        |name: &str, megabytes: Megabytes| _ = table.add_row([Cell::new(name), number(megabytes.0)]);
    row("total", plan.memory.total);
    if let Some(limit) = plan.memory.cgroup {
        row("cgroup limit", limit);
    }
    row("kept for the system", plan.reserved);
    row("available", plan.available);
    row("planned", plan.planned());
    table
}

fn engine_table(plan: &Plan) -> Table {
    let mut table = new_table(&["engine", "instances", "MB each", "share MB"]);
    for part in &plan.engines {
        let count = number(u64::from(part.count));
        table.add_row([Cell::new(&part.engine), count, number(part.unit.0), number(part.share.0)]);
    }
    table
}

fn instance_table(instances: &[Planned<'_>]) -> Table {
    let mut table = new_table(&["engine", "port", "maxmem MB", "command line"]);
    for planned in instances {
        let (port, maxmem) = (number(u64::from(planned.port)), number(planned.engine.maxmem.0));
        table.add_row([
            Cell::new(&planned.engine.engine),
            port,
            maxmem,
            Cell::new(command_line(&planned.argv)),
        ]);
    }
    table
}

/// A table that a script can cut by columns as well: no lines, no wrapping.
fn new_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.iter().map(Cell::new));
    table
}

fn number(number: u64) -> Cell {
    Cell::new(number).set_alignment(CellAlignment::Right)
}

/// As it could be typed into a shell.
fn command_line(argv: &[Vec<u8>]) -> String {
    shell_words::join(argv.iter().map(|arg| String::from_utf8_lossy(arg)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{EngineKeys, load_with};

    fn started(engine: &EngineSettings, _: u32, port: u16) -> Result<StartPlan, String> {
        let program = engine.program.display().to_string();
        let args = ["-p".into(), port.to_string(), "a b".into()].map(String::into_bytes).to_vec();
        Ok(StartPlan { program, args, ..StartPlan::default() })
    }

    fn loaded(text: &str, memory: u64) -> Loaded {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("yagent.ini");
        std::fs::write(&file, text).unwrap();
        let options = Options { memory: Some(Memory::of(Megabytes(memory))), without_registry: true };
        load_with(&file, &EngineKeys::builtin(), &options).unwrap()
    }

    const TWO: &str = "[global]\nstate_dir=/tmp\n[memcached]\nmc_fpath=/bin/sh\nmc_maxmem=64\nmc_count=2\n";

    #[test]
    fn json_has_memory_and_each_instance_with_its_whole_command_line() {
        let loaded = loaded(TWO, 4096);
        let found = json(&loaded, &instances(&loaded, &started).unwrap());
        assert_eq!(found["memory"]["available_mb"], 1024);
        assert_eq!(found["memory"]["planned_mb"], 160);
        assert_eq!(found["instances"][1]["argv"], json!(["/bin/sh", "-p", "11221", "a b"]));
        assert_eq!(found["instances"][0]["maxmem_mb"], 64);
        assert_eq!(found["instances"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn the_table_shows_command_lines_that_a_shell_understands() {
        let loaded = loaded(TWO, 4096);
        let text = table(&loaded, &instances(&loaded, &started).unwrap());
        assert!(text.contains("/bin/sh -p 11221 'a b'"), "{text}");
    }

    #[test]
    fn peers_are_told_and_passwords_are_not() {
        let text = "[global]\nzoo_svr=zk\nlocalip=10.0.0.1\nstate_dir=/tmp\n[redis]\nredis_fpath=/bin/sh\nredis_count=1\n\
                    peers=10.0.0.2,10.0.0.3\nredis_password=hunter2\n";
        let loaded = loaded(text, 4096);
        let started = |_: &EngineSettings, _, _| {
            let args = ["--masterauth", "hunter2", "--RequirePass", "hunter2", "--slaveof", "127.0.0.1", "1"];
            Ok(StartPlan { args: args.map(|arg| arg.as_bytes().to_vec()).to_vec(), ..StartPlan::default() })
        };
        let instances = instances(&loaded, &started).unwrap();
        let (json, table) = (json(&loaded, &instances), table(&loaded, &instances));
        assert_eq!(json["engines"][0]["peers"], json!(["10.0.0.2", "10.0.0.3"]));
        assert_eq!(json["instances"][0]["argv"][2], "***");
        assert!(
            table.contains("redis: shards with the instances on the same ports of 10.0.0.2, 10.0.0.3; "),
            "{table}"
        );
        assert!(table.contains("--slaveof 127.0.0.1 1") && !format!("{json}{table}").contains("hunter2"));
    }

    #[test]
    fn a_plugin_that_cannot_start_an_instance_is_told_with_its_port() {
        let loaded = loaded(TWO, 4096);
        let why = instances(&loaded, &|_, _, _| Err("no such option".into())).err().unwrap();
        assert_eq!(why, "memcached on port 11211: no such option");
    }
}
