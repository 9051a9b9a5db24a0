//! `yagent run`: the agent.

use std::{
    fs,
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use rustix::fs::{FlockOperation, flock};

use super::{check::print_problems, eprint_line, exit};
use crate::{
    config::{self, ConfigError, DEFAULT_FILE, Options, RegistrySettings, Settings},
    setup::{self, Host, Prepared},
    shell::{
        alerts::{AlertSender, Origin},
        control::{Control, SOCKET_NAME},
        event_loop::{EventLoop, Loader, Parts},
        logging::{self, LogHandle},
        notify::Notifier,
        poll::Poll,
        process::Spawner,
        quarantine::crash_dir,
        registry::{self, Registry},
        waker::Waker,
        watchdog::Watchdog,
    },
    sys,
};

/// How long the last alerts and log lines may take at the end.
const FAREWELL: Duration = Duration::from_secs(1);

/// Arguments of `yagent run`.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct RunArgs {
    /// The configuration
    #[arg(short, long, value_name = "FILE", default_value = DEFAULT_FILE)]
    pub(super) config: PathBuf,
    /// Stay beside the agent and start it again when it dies; for hosts without systemd
    #[arg(long)]
    pub(super) guard: bool,
}

/// Why the agent doesn't run.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Config(#[from] ConfigError),
    #[error("{0}")]
    Place(String),
    #[error("{0}")]
    Unavailable(String),
    #[error("{0}")]
    Internal(String),
}

impl Failure {
    fn code(&self) -> u8 {
        match self {
            Failure::Config(_) | Failure::Place(_) => exit::CONFIG,
            Failure::Unavailable(_) => exit::UNAVAILABLE,
            Failure::Internal(_) => exit::INTERNAL,
        }
    }

    fn print(&self) {
        match self {
            Failure::Config(error) => print_problems(&error.problems),
            other => eprint_line(&other.to_string()),
        }
    }
}

/// Runs the agent until it is told to end.
pub(super) fn run(args: &RunArgs) -> ExitCode {
    match serve(&args.config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.print();
            ExitCode::from(failure.code())
        }
    }
}

fn serve(config: &Path) -> Result<(), Failure> {
    let prepared = load_watched(config)?;
    let state_dir = prepared.loaded.settings.state_dir.clone();
    let _lock = take_state_dir(&state_dir)?;
    let log = open_log(&prepared.loaded.settings)?;
    for warning in &prepared.loaded.warnings {
        log::warn!("{warning}");
    }
    let host =
        Host::find(&prepared.loaded.settings).map_err(|e| in_dir("keep the host's id in", &state_dir, &e))?;
    let mut event_loop = assemble(prepared, config, &host, log.clone())?;
    log::info!("yagent {} runs as pid {} for {}", env!("CARGO_PKG_VERSION"), std::process::id(), host.ip);
    let ended = event_loop.run().map_err(|e| Failure::Internal(format!("the event loop broke: {e}")));
    event_loop.farewell(FAREWELL);
    log::info!("the agent ends");
    log.flush(FAREWELL);
    ended
}

/// As [`load`], at the start: a plugin that breaks the agent while it is loaded leaves a mark, too.
fn load_watched(config: &Path) -> Result<Prepared, Failure> {
    let wanted = config::plugins_wanted(config)?;
    let crashes = crash_dir(&wanted.state_dir);
    sys::crash::leave_marks_in(&crashes)
        .map_err(|e| Failure::Internal(format!("cannot handle fatal signals: {e}")))?;
    let _watchdog = Watchdog::start(wanted.watchdog_limit, crashes)
        .map_err(|e| Failure::Internal(format!("cannot start the watchdog: {e}")))?;
    let prepared = load(config)?;
    prepared.preflight()?;
    Ok(prepared)
}

/// A configuration with which something can be run.
fn load(config: &Path) -> Result<Prepared, Failure> {
    let prepared = setup::prepare(config, &Options::default())?;
    let nothing_fits = prepared.loaded.plan.engines.iter().all(|engine| engine.count == 0);
    if nothing_fits && !prepared.loaded.misfits.is_empty() {
        return Err(ConfigError { problems: prepared.loaded.misfits }.into());
    }
    Ok(prepared)
}

fn in_dir(what: &str, dir: &Path, error: &io::Error) -> Failure {
    Failure::Place(format!("cannot {what} state_dir {}: {error}", dir.display()))
}

/// Makes the state directory and locks it; one agent has it at a time.
fn take_state_dir(dir: &Path) -> Result<fs::File, Failure> {
    fs::create_dir_all(dir).map_err(|e| in_dir("make", dir, &e))?;
    let mut options = fs::OpenOptions::new();
    let opened = options.read(true).write(true).create(true).truncate(false).open(dir.join("lock"));
    let mut lock = opened.map_err(|e| in_dir("write to", dir, &e))?;
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        let mut pid = String::new();
        let _ = lock.read_to_string(&mut pid);
        let text = format!("another yagent (pid {}) runs with state_dir {}", pid.trim(), dir.display());
        return Err(Failure::Unavailable(text));
    }
    let written =
        lock.set_len(0).and_then(|()| lock.rewind()).and_then(|()| writeln!(lock, "{}", std::process::id()));
    written.map_err(|e| in_dir("write to", dir, &e))?;
    Ok(lock)
}

fn open_log(settings: &Settings) -> Result<LogHandle, Failure> {
    logging::install(&settings.log).map_err(|e| {
        let file = settings
            .log
            .file
            .as_ref()
            .map_or_else(|| "standard error".to_owned(), |f| f.display().to_string());
        Failure::Place(format!("cannot write log_file {file}: {e}"))
    })
}

fn assemble(prepared: Prepared, config: &Path, host: &Host, log: LogHandle) -> Result<EventLoop, Failure> {
    let internal = |what: &str, e: io::Error| Failure::Internal(format!("cannot {what}: {e}"));
    let settings = &prepared.loaded.settings;
    let state_dir = settings.state_dir.clone();
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|e| internal("become a subreaper", e.into()))?;
    let waker = Waker::new().map_err(|e| internal("make an eventfd", e))?;
    let mut poll = Poll::new().map_err(|e| internal("make an epoll", e))?;
    let socket = state_dir.join(SOCKET_NAME);
    let control = Control::bind(&socket, &mut poll)
        .map_err(|e| Failure::Place(format!("cannot listen at control socket {}: {e}", socket.display())))?;
    let spawner = Spawner::start(setup::instances_dir(&state_dir), waker.clone())
        .map_err(|e| in_dir("keep records in", &state_dir, &e))?;
    let origin = Origin { host: host.ip.to_string(), group: settings.group.clone() };
    let alerts = AlertSender::start(&settings.alerts, state_dir.join("alerts"), origin, waker.clone())
        .map_err(|e| internal("start the alert sender", e))?;
    let registry =
        open_registry(settings, host, &waker).map_err(|e| internal("start the registry client", e))?;
    let notifier = Notifier::from_env().map_err(|e| internal("notify systemd", e))?;
    let watchdog = Watchdog::start(settings.watchdog_limit, crash_dir(&state_dir))
        .map_err(|e| internal("start the watchdog", e))?;
    let loader = loader(config.to_owned(), host.clone());
    let loaded = prepared.into_parts(host);
    let parts = Parts {
        host: host.ip,
        loaded,
        loader,
        poll,
        waker,
        control,
        spawner,
        registry,
        alerts,
        log,
        notifier,
        watchdog,
    };
    EventLoop::new(parts).map_err(|e| internal("start the event loop", e))
}

fn open_registry(settings: &Settings, host: &Host, waker: &Waker) -> io::Result<Box<dyn Registry>> {
    match &settings.registry {
        RegistrySettings::Memory => Ok(registry::memory(waker.clone())),
        RegistrySettings::Zookeeper(zookeeper) => {
            let identity = registry::Identity { host_id: host.id.clone() };
            registry::zookeeper(zookeeper, identity, waker.clone())
        }
    }
}

/// Reads everything again, for a reload. Plugins are not called here: that is for the loop's thread alone. A plan that does not fit keeps the old one.
fn loader(config: PathBuf, host: Host) -> Loader {
    Box::new(move || {
        let told = |failure: Failure| failure.to_string().replace('\n', "; ");
        let prepared = load(&config).map_err(told)?;
        for warning in &prepared.loaded.warnings {
            log::warn!("{warning}");
        }
        Ok(prepared.into_parts(&host))
    })
}
