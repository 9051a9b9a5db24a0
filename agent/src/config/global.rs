//! Turns `[global]` into settings, one function a part.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::{Access, access};

use super::{
    AlertSettings, LogSettings, Options, Probing, RegistrySettings, Severity, Statistics, ZookeeperSettings,
    files, keys,
    reader::{Reader, Slot},
    registry,
};
use crate::shell::control::SOCKET_NAME;

/// The longest path of a Unix socket, in bytes.
const SOCKET_PATH_AT_MOST: usize = 107;

/// `state_dir`, which must be possible to write: nothing is to be started that could not be recorded.
pub(super) fn state_dir(reader: &mut Reader<'_>) -> PathBuf {
    let slot = Slot::plain(&keys::STATE_DIR);
    let Some(dir) = reader.path(&slot) else { return PathBuf::new() };
    let socket = dir.join(SOCKET_NAME);
    if socket.as_os_str().len() > SOCKET_PATH_AT_MOST {
        let text = format!(
            "found a path of {} bytes, too long for the control socket in it; expected at most {}",
            dir.as_os_str().len(),
            SOCKET_PATH_AT_MOST - SOCKET_NAME.len() - 1
        );
        reader.error(&slot, text);
    }
    let existing = dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    writable_folder(reader, &slot, existing);
    dir
}

pub(super) fn localip(reader: &mut Reader<'_>) -> Option<IpAddr> {
    let slot = Slot::plain(&keys::LOCALIP);
    let address = reader.address(&slot).flatten()?;
    if address.is_unspecified() || address.is_multicast() {
        reader.mismatch(&slot, address.to_string().as_bytes(), "an address by which others reach this host");
    }
    Some(address)
}

pub(super) fn probing(reader: &mut Reader<'_>) -> Probing {
    let probing = Probing {
        check_interval: reader.seconds(&Slot::plain(&keys::CHECK_INTERVAL)).unwrap_or_default(),
        interval: reader.seconds(&Slot::plain(&keys::PROBE_INTERVAL)).unwrap_or_default(),
        timeout: reader.seconds(&Slot::plain(&keys::PROBE_TIMEOUT)).unwrap_or_default(),
        failures: reader.integer(&Slot::plain(&keys::PROBE_FAILURES)).unwrap_or_default(),
        start_timeout: reader.seconds(&Slot::plain(&keys::START_TIMEOUT)).unwrap_or_default(),
    };
    compare_intervals(reader, &probing);
    probing
}

/// Values that are right by themselves and odd together.
fn compare_intervals(reader: &mut Reader<'_>, probing: &Probing) {
    let full = probing.check_interval;
    let mut compare = |key: &keys::Key, value: Duration, limit: Duration, what: &str| {
        let set = reader.is_set(&Slot::plain(key));
        if set && value > limit && !limit.is_zero() {
            let text = format!(
                "found {} s, which is longer than {what} ({} s)",
                value.as_secs_f64(),
                limit.as_secs_f64()
            );
            reader.warning(&Slot::plain(key), text);
        }
    };
    compare(&keys::PROBE_INTERVAL, probing.interval, full, "CheckInterval");
    compare(&keys::PROBE_TIMEOUT, probing.timeout, full.max(probing.interval), "the time between probes");
    compare(&keys::PROBE_TIMEOUT, probing.timeout, probing.start_timeout, "start_timeout");
}

pub(super) fn statistics(reader: &mut Reader<'_>) -> Statistics {
    Statistics {
        enabled: reader.boolean(&Slot::plain(&keys::STATS_ENABLE)).unwrap_or_default(),
        publish_every: reader.integer(&Slot::plain(&keys::STATS_INTERVAL_NUM)).unwrap_or_default(),
        windows: windows(reader),
    }
}

/// The windows from the shortest to the longest, each once.
fn windows(reader: &mut Reader<'_>) -> Vec<Duration> {
    let slot = Slot::plain(&keys::SHOW_STAT_INTERVAL_SEC);
    let given = reader.windows(&slot).unwrap_or_default();
    let mut windows = given.clone();
    windows.sort();
    if windows != given {
        reader.warning(&slot, "found windows out of order; they are taken from the shortest to the longest");
    }
    windows.dedup();
    if windows.len() != given.len() {
        reader.warning(&slot, "found a window twice; it is taken once");
    }
    windows
}

/// An error where nothing can be made in the folder.
fn writable_folder(reader: &mut Reader<'_>, slot: &Slot, folder: &Path) {
    if !folder.is_dir() {
        return reader.error(slot, format!("found {}, which is not a directory", folder.display()));
    }
    match access(folder, Access::WRITE_OK | Access::EXEC_OK) {
        Ok(()) => {}
        // Somebody else may check a file than who will run the agent.
        Err(rustix::io::Errno::ACCESS) => {
            let text = format!(
                "found {}, which this user cannot write; the agent must be able to",
                folder.display()
            );
            reader.warning(slot, text);
        }
        Err(error) => {
            reader.error(slot, format!("found {}, which cannot be written: {error}", folder.display()))
        }
    }
}

/// The log's file can be made, or is one already.
fn log_file(reader: &mut Reader<'_>) -> Option<PathBuf> {
    let slot = Slot::plain(&keys::LOG_FILE);
    let file = reader.optional_path(&slot).flatten()?;
    match file.parent() {
        _ if file.is_dir() => {
            reader.error(&slot, format!("found the directory {}, expected a file", file.display()));
        }
        Some(folder) if !file.exists() => writable_folder(reader, &slot, folder),
        _ => {}
    }
    Some(file)
}

pub(super) fn log_settings(reader: &mut Reader<'_>) -> LogSettings {
    LogSettings {
        file: log_file(reader),
        level: reader.level(&Slot::plain(&keys::LOG_LEVEL)).unwrap_or(log::LevelFilter::Info),
    }
}

pub(super) fn alert_settings(reader: &mut Reader<'_>) -> AlertSettings {
    let slot = Slot::plain(&keys::ALERT_COMMAND);
    let command = reader.words(&slot).unwrap_or_default();
    if let Some(program) = command.first().filter(|program| program.starts_with('/'))
        && let Err(why) = files::program(Path::new(program))
    {
        // Caches must come up even where the way to tell about them is not there yet.
        reader.warning(&slot, format!("{why}; expected the program that gets alerts"));
    }
    AlertSettings {
        command,
        timeout: reader.seconds(&Slot::plain(&keys::ALERT_TIMEOUT)).unwrap_or_default(),
        repeat: reader.seconds(&Slot::plain(&keys::ALERT_REPEAT)).unwrap_or_default(),
    }
}

pub(super) fn registry(reader: &mut Reader<'_>, options: &Options) -> RegistrySettings {
    let session_timeout = reader.seconds(&Slot::plain(&keys::ZOO_SESSION_TIMEOUT)).unwrap_or_default();
    let auth = auth(reader);
    let slot = Slot::plain(&keys::ZOO_SVR);
    let foreign = reader.optional_path(&Slot::plain(&keys::CF_SVR_FILE)).flatten();
    let text = reader.text(&slot).unwrap_or_default();
    let connect = match text.as_str() {
        "none" => return RegistrySettings::Memory,
        "" => foreign_connect(reader, foreign, options),
        _ => reader.parsed(&slot, registry::connect),
    };
    match connect {
        Some(registry::Connect { servers, chroot }) => {
            RegistrySettings::Zookeeper(ZookeeperSettings { servers, chroot, session_timeout, auth })
        }
        None => RegistrySettings::Memory,
    }
}

/// The address as `cf_svr_file` tells it. A host must not run unregistered without having been told to.
fn foreign_connect(
    reader: &mut Reader<'_>,
    file: Option<PathBuf>,
    options: &Options,
) -> Option<registry::Connect> {
    let slot = Slot::plain(&keys::ZOO_SVR);
    let told = match file {
        None => Err("cf_svr_file is empty too".to_owned()),
        Some(file) => registry::foreign(&file).and_then(|text| {
            let wrong = |why| format!("cf_svr_file {} has {text:?}, expected {why}", file.display());
            registry::connect(&text).map_err(wrong)
        }),
    };
    match told {
        Ok(connect) => Some(connect),
        Err(why) => {
            let severity = if options.without_registry { Severity::Warning } else { Severity::Error };
            let text = format!(
                "found nothing and {why}; expected host:port,host:port[/chroot] in either, or zoo_svr=none"
            );
            reader.report(severity, &slot, text);
            None
        }
    }
}

fn auth(reader: &mut Reader<'_>) -> Option<String> {
    let slot = Slot::plain(&keys::ZOO_AUTH);
    let text = reader.text(&slot).filter(|text| !text.is_empty())?;
    let whole = text.split_once(':').is_some_and(|(user, password)| !user.is_empty() && !password.is_empty());
    if !whole {
        reader.mismatch(&slot, text.as_bytes(), "user:password");
    }
    Some(text)
}
