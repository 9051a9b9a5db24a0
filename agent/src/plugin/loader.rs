//! Finds an engine's shared object, checks who could have changed it, loads it and checks what it says of itself.
//!
//! The order of the search: each directory of `YAGENT_PLUGIN_DIR`, `[plugins] dir`, the executable's own folder,
//! `../lib/yagent/plugins` beside it, and the system's folder. A plugin is never unloaded.
#![allow(unsafe_code)]

use std::{
    collections::HashMap,
    ffi::{OsStr, c_char, c_int, c_void},
    fs::Metadata,
    mem::MaybeUninit,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    ptr,
    sync::{Mutex, PoisonError},
};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use yagent_abi::raw;

use super::{
    Description, Plugin, PluginError,
    calls::{Loaded, one_at_a_time},
    marker::{self, Mark},
};

/// Names directories to look in first, colon separated.
pub const PLUGIN_DIR_VARIABLE: &str = "YAGENT_PLUGIN_DIR";
/// Where packages put plugins.
pub const SYSTEM_DIR: &str = "/usr/lib/yagent/plugins";
/// Keeps the object mapped whatever happens; libloading has no name for it.
const RTLD_NODELETE: c_int = 0x1000;
/// Bytes of a text in a description.
const TEXT_MAX: u64 = 4096;
/// Bytes of a line that a plugin logs.
const LOG_MAX: u64 = 4096;
/// `yagent_plugin` in version 1.0; what later minor versions appended may be missing.
const PLUGIN_SIZE: u64 = 216;
/// `yagent_failover` in version 1.0, likewise.
const FAILOVER_SIZE: u64 = 48;

/// Where plugins are looked for, in order; `configured` is `[plugins] dir`.
#[must_use]
pub fn search_path(configured: Option<&Path>) -> Vec<PathBuf> {
    let variable = std::env::var_os(PLUGIN_DIR_VARIABLE).unwrap_or_default();
    let program = std::env::current_exe().ok();
    ordered(&variable, configured, program.as_deref())
}

/// The order of the search, each directory once.
fn ordered(variable: &OsStr, configured: Option<&Path>, program: Option<&Path>) -> Vec<PathBuf> {
    let mut dirs: Vec<PathBuf> =
        std::env::split_paths(variable).filter(|dir| !dir.as_os_str().is_empty()).collect();
    dirs.extend(configured.map(Path::to_path_buf));
    if let Some(folder) = program.and_then(Path::parent) {
        dirs.push(folder.to_path_buf());
        dirs.extend(folder.parent().map(|above| above.join("lib/yagent/plugins")));
    }
    dirs.push(PathBuf::from(SYSTEM_DIR));
    let mut once = Vec::with_capacity(dirs.len());
    for dir in dirs {
        if !once.contains(&dir) {
            once.push(dir);
        }
    }
    once
}

/// Loads the plugin of `engine` (the name of its ini section) from the first of `dirs` that has it.
///
/// # Errors
/// None has it, or the first that has is refused: a later directory does not repair an earlier one.
pub fn load(engine: &str, dirs: &[PathBuf]) -> Result<Plugin, PluginError> {
    let plausible = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
    if engine.is_empty() || !engine.bytes().all(plausible) {
        return Err(PluginError::Name(engine.to_owned()));
    }
    let name = format!("libyagent_{engine}.so");
    for file in dirs.iter().map(|dir| dir.join(&name)) {
        if exists(&file)? {
            let plugin = load_file(&file)?;
            return named(plugin, engine);
        }
    }
    Err(PluginError::Missing { engine: engine.to_owned(), file: name, searched: dirs.to_vec() })
}

/// Every plugin in `dirs`, in the order of the search, each name once: what a later directory has under the same name
/// is never loaded.
#[must_use]
pub fn list(dirs: &[PathBuf]) -> Vec<(PathBuf, Result<Plugin, PluginError>)> {
    let mut engines: Vec<(String, PathBuf)> = Vec::new();
    for dir in dirs {
        let names = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
        let mut names: Vec<String> = names.filter_map(|name| name.into_string().ok()).collect();
        names.sort();
        for name in names {
            let engine = name.strip_prefix("libyagent_").and_then(|name| name.strip_suffix(".so"));
            if let Some(engine) = engine.filter(|engine| !engines.iter().any(|(seen, _)| seen == engine)) {
                engines.push((engine.to_owned(), dir.join(&name)));
            }
        }
    }
    let load = |(engine, file): (String, PathBuf)| {
        let plugin = load_file(&file).and_then(|plugin| named(plugin, &engine));
        (file, plugin)
    };
    engines.into_iter().map(load).collect()
}

fn exists(file: &Path) -> Result<bool, PluginError> {
    use std::io::ErrorKind::{NotADirectory, NotFound};
    match std::fs::metadata(file) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.kind(), NotFound | NotADirectory) => Ok(false),
        Err(source) => Err(PluginError::Read { path: file.to_owned(), source }),
    }
}

fn named(plugin: Plugin, engine: &str) -> Result<Plugin, PluginError> {
    let about = plugin.description();
    if about.section == engine {
        return Ok(plugin);
    }
    let what = format!("section is `{}`, wanted `{engine}` as in the file's name", about.section);
    Err(PluginError::Contract { file: about.file.clone(), what })
}

/// Loads one shared object; a file that is loaded already is not loaded again.
///
/// # Errors
/// The file can't be read, isn't trustworthy, can't be linked, or breaks the contract.
pub fn load_file(file: &Path) -> Result<Plugin, PluginError> {
    static LOADED: Mutex<Option<HashMap<(u64, u64), Plugin>>> = Mutex::new(None);
    let (real, identity) = trusted(file)?;
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    let loaded = loaded.get_or_insert_default();
    if let Some(plugin) = loaded.get(&identity) {
        return Ok(*plugin);
    }
    let plugin = link(file, &real)?;
    loaded.insert(identity, plugin);
    Ok(plugin)
}

/// The file behind any links, and its identity, if nobody but root and our own user could have changed it.
fn trusted(file: &Path) -> Result<(PathBuf, (u64, u64)), PluginError> {
    let read = |path: &Path, source| PluginError::Read { path: path.to_owned(), source };
    let look = |path: &Path| std::fs::metadata(path).map_err(|source| read(path, source));
    let real = file.canonicalize().map_err(|source| read(file, source))?;
    let about = look(&real)?;
    if !about.is_file() {
        return Err(read(file, std::io::Error::other("not a regular file")));
    }
    owned(file, &real, &about)?;
    // A directory on either side of a link decides which code we run.
    for dir in [real.parent(), file.parent()].into_iter().flatten() {
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        owned(file, dir, &look(dir)?)?;
    }
    Ok((real, (about.dev(), about.ino())))
}

fn owned(file: &Path, path: &Path, about: &Metadata) -> Result<(), PluginError> {
    let us = rustix::process::geteuid().as_raw();
    suspicion(about.uid(), about.mode(), us).map_or(Ok(()), |what| {
        Err(PluginError::Untrusted { file: file.to_owned(), what: format!("{} {what}", path.display()) })
    })
}

/// Why somebody beside root and `us` could change a file; `None` where nobody could.
fn suspicion(owner: u32, mode: u32, us: u32) -> Option<String> {
    if owner != 0 && owner != us {
        return Some(format!("belongs to uid {owner}, wanted root or uid {us}"));
    }
    let mode = mode & 0o7777;
    (mode & 0o022 != 0)
        .then(|| format!("has mode {mode:04o}, wanted one without write access for group and others"))
}

/// Who a plugin's log lines come from; leaked, as a plugin may log for ever.
struct HostContext {
    name: String,
}

fn link(file: &Path, real: &Path) -> Result<Plugin, PluginError> {
    let failed = |error: libloading::Error| PluginError::Link { file: file.to_owned(), why: reason(&error) };
    let mark = |hook| -> &'static Mark { Box::leak(Box::new(Mark { plugin: engine_of(file), hook })) };
    let library = {
        let _mark = marker::LOAD.enter(mark("a constructor"));
        // SAFETY: loading runs the object's constructors; it was checked that only trusted users could write them.
        unsafe { Library::open(Some(real), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE) }.map_err(failed)?
    };
    // SAFETY: the contract gives the symbol this type.
    let entry = unsafe { library.get::<Option<raw::Entry>>(raw::ENTRY) }.ok().and_then(|symbol| *symbol);
    std::mem::forget(library);
    let refuse = |what: String| PluginError::Contract { file: file.to_owned(), what };
    let entry =
        entry.ok_or_else(|| refuse("yagent_plugin_v1 is missing, wanted an exported function".to_owned()))?;
    let table = {
        let _alone = one_at_a_time();
        let _mark = marker::CALL.enter(mark("yagent_plugin_v1"));
        // SAFETY: the host table is leaked and so outlives every use.
        unsafe { entry(host(file)) }
    };
    // SAFETY: what the entry returns is a description or NULL; the contract makes it live for ever.
    let loaded = unsafe { examine(file, table) }.map_err(refuse)?;
    Ok(Plugin(Box::leak(Box::new(loaded))))
}

/// The engine that a file is for: by its name, as it was not asked yet.
fn engine_of(file: &Path) -> String {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let engine = name.strip_prefix("libyagent_").and_then(|name| name.strip_suffix(".so"));
    engine.map_or_else(|| file.display().to_string(), str::to_owned)
}

/// The linker's own words are in the source of libloading's error.
fn reason(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

fn host(file: &Path) -> &'static raw::Host {
    let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let context: &'static HostContext = Box::leak(Box::new(HostContext { name }));
    Box::leak(Box::new(raw::Host {
        size: size_of::<raw::Host>() as u64,
        major: raw::ABI_MAJOR,
        minor: raw::ABI_MINOR,
        context: ptr::from_ref(context).cast_mut().cast(),
        log: Some(log_line),
        extension: Some(no_extension),
    }))
}

unsafe extern "C" fn no_extension(_host: *const raw::Host, _name: *const c_char, _len: u64) -> *const c_void {
    ptr::null()
}

unsafe extern "C" fn log_line(host: *const raw::Host, level: u32, text: *const c_char, len: u64) {
    // SAFETY: the contract asks for the pointer that the entry was given, which is never freed.
    let Some(host) = (unsafe { host.as_ref() }) else { return };
    // SAFETY: the context is the one that `host` leaked.
    let Some(context) = (unsafe { host.context.cast::<HostContext>().as_ref() }) else { return };
    // SAFETY: the plugin lends the text for this call.
    let text = String::from_utf8_lossy(unsafe { raw::slice(text.cast(), len.min(LOG_MAX)) });
    let level = match level {
        raw::LOG_ERROR => log::Level::Error,
        raw::LOG_WARN => log::Level::Warn,
        raw::LOG_INFO => log::Level::Info,
        _ => log::Level::Debug,
    };
    log::log!(level, "plugin {}: {}", context.name, text.trim_end().replace(['\n', '\r'], " "));
}

/// Reads and checks a description.
///
/// # Safety
/// `table` is NULL or points to a description of the size that it states, which lives for ever.
#[allow(clippy::absurd_extreme_comparisons, reason = "the minor grows, the comparison stays")]
unsafe fn examine(file: &Path, table: *const raw::Plugin) -> Result<Loaded, String> {
    if table.is_null() || !table.is_aligned() {
        return Err(format!("yagent_plugin_v1 returned {table:?}, wanted a description"));
    }
    // SAFETY: each field is read only after the size was found to cover it; the caller promised the rest.
    let (magic, size) = unsafe { ((*table).magic, (*table).size) };
    want(
        magic == raw::ABI_MAGIC,
        "magic",
        format_args!("{magic:#018x}"),
        format_args!("{:#018x}", raw::ABI_MAGIC),
    )?;
    if size >= 24 {
        // SAFETY: as above.
        let major = unsafe { (*table).major };
        want(major == raw::ABI_MAJOR, "major", major, raw::ABI_MAJOR)?;
    }
    want(size >= PLUGIN_SIZE, "size", size, format_args!("at least {PLUGIN_SIZE}"))?;
    // SAFETY: as above; every member of a description may be NULL or 0.
    let table = unsafe { prefix(table, size) };
    let least = table.least_host_minor;
    want(least <= raw::ABI_MINOR, "least_host_minor", least, format_args!("at most {}", raw::ABI_MINOR))?;
    // SAFETY: the texts are the description's own.
    let description = unsafe { describe(file, &table) }?;
    required(&table)?;
    // SAFETY: the failover table is NULL or the description's own.
    let failover = unsafe { failover(table.failover) }?;
    Ok(Loaded::new(description, table, failover))
}

/// What a struct of the plugin's has of ours: what it is too short for is 0, what it has beyond is not looked at.
///
/// # Safety
/// `from` points to `size` bytes, and zeroes are a valid `T`.
unsafe fn prefix<T>(from: *const T, size: u64) -> T {
    let len = usize::try_from(size).unwrap_or(usize::MAX).min(size_of::<T>());
    let mut ours = MaybeUninit::<T>::zeroed();
    // SAFETY: as the caller promised; the two do not overlap, and `len` is within both.
    unsafe {
        ptr::copy_nonoverlapping(from.cast::<u8>(), ours.as_mut_ptr().cast::<u8>(), len);
        ours.assume_init()
    }
}

fn want(
    holds: bool,
    field: &str,
    found: impl std::fmt::Display,
    wanted: impl std::fmt::Display,
) -> Result<(), String> {
    if holds { Ok(()) } else { Err(format!("{field} is {found}, wanted {wanted}")) }
}

fn required(table: &raw::Plugin) -> Result<(), String> {
    want(table.create.is_some(), "create", "NULL", "a function")?;
    want(table.destroy.is_some(), "destroy", "NULL", "a function")?;
    want(table.start.is_some(), "start", "NULL", "a function")?;
    want(table.probe.is_some(), "probe", "NULL", "a function")?;
    want(table.stats.is_some(), "stats", "NULL", "a function")
}

/// # Safety
/// `table` is NULL or points to a table of the size that it states, which lives for ever.
unsafe fn failover(table: *const raw::Failover) -> Result<Option<raw::Failover>, String> {
    if table.is_null() {
        return Ok(None);
    }
    want(table.is_aligned(), "failover", format_args!("{table:?}"), "an aligned pointer")?;
    // SAFETY: as the caller promised.
    let size = unsafe { (*table).size };
    want(size >= FAILOVER_SIZE, "failover.size", size, format_args!("at least {FAILOVER_SIZE}"))?;
    // SAFETY: the table states that size; every member of it may be NULL or 0.
    let table = unsafe { prefix(table, size) };
    want(table.inspect.is_some(), "failover.inspect", "NULL", "a function")?;
    want(table.promote.is_some(), "failover.promote", "NULL", "a function")?;
    want(table.follow.is_some(), "failover.follow", "NULL", "a function")?;
    want(table.fence.is_some(), "failover.fence", "NULL", "a function")?;
    want(table.unfence.is_some(), "failover.unfence", "NULL", "a function")?;
    Ok(Some(table))
}

/// # Safety
/// The texts of `table` are NULL or point to as many bytes as they state, which live for ever.
unsafe fn describe(file: &Path, table: &raw::Plugin) -> Result<Description, String> {
    // SAFETY: as the caller promised.
    let text = |field, text| unsafe { text_of(field, text) };
    let id = text("id", table.id)?;
    let section = text("section", table.section)?;
    let registry_root = text("registry_root", table.registry_root)?;
    let name = |extra: &'static str| {
        move |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || extra.contains(c)
    };
    let quoted = |text: &str| format!("`{text}`");
    want(
        !id.is_empty() && id.chars().all(name("._-")),
        "id",
        quoted(&id),
        "lower case letters, digits, `.`, `_`, `-`",
    )?;
    want(
        !section.is_empty() && section.chars().all(name("_-")),
        "section",
        quoted(&section),
        "lower case letters, digits, `_`, `-`",
    )?;
    let rooted = registry_root.len() > 1 && registry_root.starts_with('/') && !registry_root.ends_with('/');
    want(rooted, "registry_root", quoted(&registry_root), "a path such as `/ycache`")?;
    Ok(Description {
        file: file.to_owned(),
        id,
        version: text("version", table.version)?,
        abi: (table.major, table.minor),
        summary: text("summary", table.summary)?,
        section,
        key_prefix: text("key_prefix", table.key_prefix)?,
        registry_root,
        keys: names(&text("keys", table.keys)?),
        file_keys: names(&text("file_keys", table.file_keys)?),
    })
}

/// # Safety
/// `text` is NULL or points to as many bytes as it states, which live for ever.
unsafe fn text_of(field: &str, text: raw::Str) -> Result<String, String> {
    if text.len == 0 {
        return Ok(String::new());
    }
    want(!text.ptr.is_null(), field, format_args!("NULL with a length of {}", text.len), "a text")?;
    want(
        text.len <= TEXT_MAX,
        field,
        format_args!("{} bytes long", text.len),
        format_args!("at most {TEXT_MAX}"),
    )?;
    // SAFETY: not NULL and of a plausible length; the rest is the caller's promise.
    let bytes = unsafe { text.as_bytes() };
    let text = std::str::from_utf8(bytes).map_err(|error| format!("{field} is not UTF-8: {error}"))?;
    want(
        !text.contains(char::is_control),
        field,
        format_args!("`{}`", text.escape_debug()),
        "printable text",
    )?;
    Ok(text.to_owned())
}

fn names(list: &str) -> Vec<String> {
    list.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shorter_struct_is_filled_up_with_zeroes_and_a_longer_one_cut() {
        let theirs = [1_u64, 2, 3];
        // SAFETY: the array has all the bytes, and zeroes are a valid array of numbers.
        let ours = |size| unsafe { prefix::<[u64; 3]>(&raw const theirs, size) };
        assert_eq!((ours(16), ours(24), ours(99)), ([1, 2, 0], theirs, theirs));
    }

    #[test]
    fn only_root_and_we_may_write() {
        for (owner, mode, expected) in [
            (0, 0o100_755, None),
            (1000, 0o100_644, None),
            (1001, 0o100_755, Some("belongs to uid 1001, wanted root or uid 1000")),
            (0, 0o100_775, Some("has mode 0775, wanted one without write access for group and others")),
            (1000, 0o041_777, Some("has mode 1777, wanted one without write access for group and others")),
        ] {
            assert_eq!(suspicion(owner, mode, 1000).as_deref(), expected);
        }
    }

    #[test]
    fn the_order_of_the_search_is_the_documented_one() {
        let (variable, configured) = (OsStr::new("/var/a::/var/b"), Path::new("/configured"));
        let dirs = ordered(variable, Some(configured), Some(Path::new("/opt/yagent/bin/yagent")));
        let expected = [
            "/var/a",
            "/var/b",
            "/configured",
            "/opt/yagent/bin",
            "/opt/yagent/lib/yagent/plugins",
            "/usr/lib/yagent/plugins",
        ];
        assert_eq!(dirs, expected.map(PathBuf::from));
        // The packaged program stands in /usr/bin, from where the system's folder is its own.
        let dirs = ordered(OsStr::new(""), None, Some(Path::new("/usr/bin/yagent")));
        assert_eq!(dirs, ["/usr/bin", "/usr/lib/yagent/plugins"].map(PathBuf::from));
    }
}
