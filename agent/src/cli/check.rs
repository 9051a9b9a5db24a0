//! `yagent check`: reads a configuration, says all that is wrong with it, starts nothing.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use super::exit;
use crate::{
    config::{
        self, ConfigError, DEFAULT_FILE, Loaded, Options, Problem, RegistrySettings, Settings, Severity,
        dump, ini, sizing,
    },
    setup,
};

/// Arguments of `yagent check`.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct CheckArgs {
    /// The configuration
    #[arg(short, long, value_name = "FILE", default_value = DEFAULT_FILE)]
    pub(super) config: PathBuf,
    /// How to print what was found
    #[arg(long, value_enum, default_value_t = CheckFormat::Text)]
    pub(super) format: CheckFormat,
    /// Print as JSON what the ini reader read, one character a byte, and check nothing else
    #[arg(long)]
    pub(super) dump_ini: bool,
}

/// How `yagent check` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum CheckFormat {
    /// A line a problem on standard error, a summary on standard output.
    Text,
    /// One JSON object on standard output.
    Json,
}

/// Checks a configuration: 0 when the agent would run with it, 78 otherwise.
#[must_use]
pub(super) fn check(args: &CheckArgs) -> ExitCode {
    if args.dump_ini {
        return dump_ini(&args.config);
    }
    let prepared = setup::prepare(&args.config, &Options::default());
    let refused = prepared.as_ref().ok().and_then(|prepared| prepared.preflight().err());
    let loaded = prepared.map(|prepared| prepared.loaded);
    let mut problems = problems(&loaded);
    problems.extend(refused.into_iter().flat_map(|error| error.problems));
    match args.format {
        CheckFormat::Text => print_text(&loaded, &problems),
        CheckFormat::Json => print_line(&json(&args.config, &problems).to_string()),
    }
    exit_code(is_ok(&problems))
}

/// Prints problems on standard error, one a line.
pub(super) fn print_problems(problems: &[Problem]) {
    let mut stderr = io::stderr().lock();
    for problem in problems {
        let severity = if problem.severity == Severity::Warning { " (warning)" } else { "" };
        // Nobody is left to tell when standard error is gone.
        let _ = writeln!(stderr, "{problem}{severity}");
    }
}

/// Prints a line on standard output; a reader that went away is no error.
pub(crate) fn print_line(text: &str) {
    let _ = writeln!(io::stdout().lock(), "{text}");
}

fn exit_code(ok: bool) -> ExitCode {
    if ok { ExitCode::SUCCESS } else { ExitCode::from(exit::CONFIG) }
}

fn is_ok(problems: &[Problem]) -> bool {
    problems.iter().all(|problem| problem.severity == Severity::Warning)
}

fn problems(loaded: &Result<Loaded, ConfigError>) -> Vec<Problem> {
    match loaded {
        Ok(loaded) => {
            let mut problems = [loaded.warnings.clone(), loaded.misfits.clone()].concat();
            problems.sort_by_key(|problem| problem.line);
            problems
        }
        Err(error) => error.problems.clone(),
    }
}

fn print_text(loaded: &Result<Loaded, ConfigError>, problems: &[Problem]) {
    print_problems(problems);
    if let Ok(loaded) = loaded
        && is_ok(problems)
    {
        print_line(&summary(loaded));
    }
}

fn json(file: &Path, problems: &[Problem]) -> serde_json::Value {
    let file = file.display().to_string();
    serde_json::json!({ "ok": is_ok(problems), "file": file, "problems": problems })
}

fn summary(loaded: &Loaded) -> String {
    let settings = &loaded.settings;
    let mut parts: Vec<String> =
        loaded.plan.engines.iter().map(|part| engine_summary(settings, part)).collect();
    if parts.is_empty() {
        parts.push("no engine is on".into());
    }
    let (planned, available) = (loaded.plan.planned().0, loaded.plan.available.0);
    parts.push(format!("{planned} of {available} MB planned"));
    parts.push(match &settings.registry {
        RegistrySettings::Memory => "no ZooKeeper".into(),
        RegistrySettings::Zookeeper(zookeeper) => {
            format!("ZooKeeper at {}{}", zookeeper.servers.join(","), zookeeper.chroot)
        }
    });
    format!("{}: ok, {}", settings.file.display(), parts.join(", "))
}

fn engine_summary(settings: &Settings, part: &sizing::EnginePlan) -> String {
    let plural = if part.count == 1 { "instance" } else { "instances" };
    let head = format!("{} {} {plural}", part.count, part.engine);
    let engine = settings.engines.iter().find(|engine| engine.engine == part.engine);
    let ports = engine.and_then(|engine| {
        let last = sizing::port(engine, part.count.checked_sub(1)?)?;
        Some((engine.port, last, engine.maxmem.0))
    });
    match ports {
        None => head,
        Some((first, last, mb)) if first == last => format!("{head} of {mb} MB on port {first}"),
        Some((first, last, mb)) => format!("{head} of {mb} MB on ports {first} to {last}"),
    }
}

fn dump_ini(file: &Path) -> ExitCode {
    let bytes = match config::read(file) {
        Ok(bytes) => bytes,
        Err(error) => {
            print_problems(&error.problems);
            return exit_code(false);
        }
    };
    let read = ini::parse(&bytes);
    print_line(&dump::dump(&read));
    if let Err(error) = &read {
        print_problems(&config::refused(file, error).problems);
    }
    exit_code(read.is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{EngineKeys, Megabytes, Memory};

    fn load(text: &str) -> (tempfile::TempDir, Result<Loaded, ConfigError>) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("yagent.ini");
        std::fs::write(&file, text).unwrap();
        let options = Options { memory: Some(Memory::of(Megabytes(4096))), without_registry: false };
        let loaded = config::load_with(&file, &EngineKeys::builtin(), &options);
        (dir, loaded)
    }

    #[test]
    fn the_summary_says_what_would_run_and_where() {
        let text = "[global]\nzoo_svr=zk1/y\nstate_dir=/tmp\nsystem_res_mem=96\n[memcached]\nmc_fpath=/bin/sh\n\
                    mc_maxmem=984\n[redis]\nredis_fpath=/bin/sh\nredis_count=1\n";
        let (dir, loaded) = load(text);
        let found = summary(&loaded.unwrap());
        let expected = "ok, 3 memcached instances of 984 MB on ports 11211 to 11231, 1 redis instance of 128 MB on port \
                        16379, 3256 of 4000 MB planned, ZooKeeper at zk1:2181/y";
        assert_eq!(found, format!("{}/yagent.ini: {expected}", dir.path().display()));
    }

    #[test]
    fn a_host_without_engines_says_so() {
        let (_dir, loaded) = load("[global]\nzoo_svr=none\nstate_dir=/tmp\n");
        assert!(
            summary(&loaded.unwrap()).ends_with("ok, no engine is on, 0 of 1024 MB planned, no ZooKeeper")
        );
    }

    #[test]
    fn json_tells_warnings_apart_from_errors() {
        let (dir, loaded) = load("[global]\nzoo_svr=none\nstate_dir=/tmp\ngrp=x\n");
        let found = json(dir.path(), &problems(&loaded));
        assert_eq!((&found["ok"], &found["problems"][0]["severity"]), (&true.into(), &"warning".into()));
        let (dir, loaded) = load("[global]\nzoo_svr=none\nstate_dir=/tmp\npriority=x\n");
        let found = json(dir.path(), &problems(&loaded));
        assert_eq!((&found["ok"], &found["problems"][0]["line"]), (&false.into(), &4.into()));
        assert_eq!(found["problems"][0]["key"], "priority");
    }

    #[test]
    fn a_plan_that_does_not_fit_is_an_error_here() {
        let (_dir, loaded) = load(
            "[global]\nzoo_svr=none\nstate_dir=/tmp\nsystem_res_mem=4096\n[memcached]\nmc_fpath=/bin/sh\n",
        );
        assert!(loaded.is_ok());
        let problems = problems(&loaded);
        assert!(!is_ok(&problems));
        assert_eq!(problems[0].line, Some(4));
    }
}
