//! Reads typed values out of an ini file and collects every problem on the way.
//!
//! A value that is wrong becomes a problem and `None`; reading goes on, so that one run shows all that is wrong.

use std::{
    ffi::OsStr,
    net::IpAddr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    ini::{Entry, Ini},
    keys::{Key, Kind, Place, default_of},
    problem::{Problem, Severity},
    values,
};

/// Where a key's value is looked for: a key of the table in a section of the file.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub(super) section: String,
    /// The full name as documented, with an engine's prefix.
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) default: Option<String>,
}

impl Slot {
    /// A key of a section that belongs to no engine.
    pub(super) fn plain(key: &Key) -> Slot {
        let section = if key.place == Place::Plugins { "plugins" } else { "global" };
        Slot {
            section: section.into(),
            name: key.name.into(),
            kind: key.kind,
            default: key.default.map(str::to_owned),
        }
    }

    /// A key of an engine's section.
    pub(super) fn of_engine(key: &Key, engine: &str, section: &str, prefix: &str) -> Slot {
        let prefix = if key.place == Place::Engine { prefix } else { "" };
        let default = default_of(key, engine).map(str::to_owned);
        Slot { section: section.into(), name: format!("{prefix}{}", key.name), kind: key.kind, default }
    }
}

/// A file being turned into settings.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    pub(super) file: &'a Path,
    pub(super) ini: &'a Ini,
    pub(super) problems: Vec<Problem>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(file: &'a Path, ini: &'a Ini) -> Reader<'a> {
        Reader { file, ini, problems: Vec::new() }
    }

    pub(super) fn entry(&self, slot: &Slot) -> Option<&'a Entry> {
        self.ini.get(&slot.section, &slot.name.to_ascii_lowercase())
    }

    /// Whether the file itself has a value, be it empty.
    pub(super) fn is_set(&self, slot: &Slot) -> bool {
        self.entry(slot).is_some()
    }

    /// Adds a problem at a key, or at its section's header where the key is not in the file.
    pub(super) fn report(&mut self, severity: Severity, slot: &Slot, message: impl Into<String>) {
        let header = || self.ini.section(&slot.section).map(|section| section.line);
        let line = self.entry(slot).map(|entry| entry.line).or_else(header);
        let (section, key, message) = (slot.section.clone(), slot.name.clone(), message.into());
        self.problems.push(Problem { severity, file: self.file.into(), line, section, key, message });
    }

    pub(super) fn error(&mut self, slot: &Slot, message: impl Into<String>) {
        self.report(Severity::Error, slot, message);
    }

    pub(super) fn warning(&mut self, slot: &Slot, message: impl Into<String>) {
        self.report(Severity::Warning, slot, message);
    }

    /// An error that says what was found and what was expected.
    pub(super) fn mismatch(&mut self, slot: &Slot, found: &[u8], expected: &str) {
        let shown = match (slot.kind, found) {
            (_, b"") => "nothing".into(),
            (Kind::Secret, _) => "a value that is not shown".into(),
            _ => shown(found),
        };
        let hint = if found.contains(&b'\n') {
            "; a line that begins with a space continues the one before"
        } else {
            ""
        };
        self.error(slot, format!("found {shown}, expected {expected}{hint}"));
    }

    /// The value's text, or the default's; `None` after a problem.
    pub(super) fn text(&mut self, slot: &Slot) -> Option<String> {
        let Some(entry) = self.entry(slot) else {
            if slot.default.is_none() {
                self.error(slot, format!("found no such key, expected {}", slot.kind.expected()));
            }
            return slot.default.clone();
        };
        match std::str::from_utf8(&entry.value) {
            Ok(text) => Some(text.to_owned()),
            Err(_) => {
                self.mismatch(slot, &entry.value, "UTF-8");
                None
            }
        }
    }

    /// A value that `parse` understands; its error is what it expected.
    pub(super) fn parsed<T>(&mut self, slot: &Slot, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let text = self.text(slot)?;
        match parse(&text) {
            Ok(value) => Some(value),
            Err(expected) => {
                self.mismatch(slot, text.as_bytes(), &expected);
                None
            }
        }
    }

    fn of_kind<T>(&mut self, slot: &Slot, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        self.parsed(slot, |text| parse(text).ok_or_else(|| slot.kind.expected()))
    }

    /// Text in which bytes outside UTF-8 are allowed: each becomes the character of its number, so that two values
    /// that differ stay different.
    pub(super) fn latin1_or_text(&mut self, slot: &Slot) -> Option<String> {
        let Some(entry) = self.entry(slot) else { return slot.default.clone() };
        if let Ok(text) = std::str::from_utf8(&entry.value) {
            return Some(text.to_owned());
        }
        self.warning(
            slot,
            format!("found {}, which is not UTF-8; it is taken as Latin-1", shown(&entry.value)),
        );
        Some(entry.value.iter().copied().map(char::from).collect())
    }

    pub(super) fn boolean(&mut self, slot: &Slot) -> Option<bool> {
        self.of_kind(slot, values::boolean)
    }

    /// A whole number within the key's bounds, in any integer type that holds them.
    pub(super) fn integer<T: TryFrom<i64>>(&mut self, slot: &Slot) -> Option<T> {
        let (min, max) = match slot.kind {
            Kind::Integer { min, max, .. } => (min, max),
            _ => (i64::MIN, i64::MAX),
        };
        self.of_kind(slot, |text| values::integer(text, min, max).and_then(|number| T::try_from(number).ok()))
    }

    pub(super) fn seconds(&mut self, slot: &Slot) -> Option<Duration> {
        let (min, max) = match slot.kind {
            Kind::Seconds { min, max } | Kind::OptionalSeconds { min, max } => (min, max),
            _ => (0.0, f64::from(u32::MAX)),
        };
        self.of_kind(slot, |text| values::seconds(text, min, max))
    }

    /// Seconds, or `Some(None)` for nothing.
    pub(super) fn optional_seconds(&mut self, slot: &Slot) -> Option<Option<Duration>> {
        if self.text(slot)?.is_empty() { Some(None) } else { self.seconds(slot).map(Some) }
    }

    pub(super) fn count(&mut self, slot: &Slot) -> Option<Option<u32>> {
        self.of_kind(slot, values::count)
    }

    pub(super) fn address(&mut self, slot: &Slot) -> Option<Option<IpAddr>> {
        self.of_kind(slot, values::address)
    }

    pub(super) fn addresses(&mut self, slot: &Slot) -> Option<Vec<IpAddr>> {
        self.parsed(slot, values::addresses)
    }

    pub(super) fn windows(&mut self, slot: &Slot) -> Option<Vec<Duration>> {
        self.of_kind(slot, values::windows)
    }

    pub(super) fn level(&mut self, slot: &Slot) -> Option<log::LevelFilter> {
        self.of_kind(slot, values::level)
    }

    pub(super) fn names(&mut self, slot: &Slot) -> Option<Vec<String>> {
        self.of_kind(slot, values::names)
    }

    pub(super) fn words(&mut self, slot: &Slot) -> Option<Vec<String>> {
        self.parsed(slot, |text| {
            values::words(text).ok_or_else(|| "quotes and backslashes that are closed, as in a shell".into())
        })
    }

    /// An absolute path, byte for byte; `Some(None)` where it is empty and may be.
    pub(super) fn optional_path(&mut self, slot: &Slot) -> Option<Option<PathBuf>> {
        let default = slot.default.as_deref().map(str::as_bytes);
        let Some(bytes) = self.entry(slot).map(|entry| entry.value.as_slice()).or(default) else {
            self.error(slot, format!("found no such key, expected {}", slot.kind.expected()));
            return None;
        };
        let path = Path::new(OsStr::from_bytes(bytes));
        if bytes.is_empty() && slot.kind == Kind::OptionalPath {
            Some(None)
        } else if path.is_absolute() && !bytes.iter().any(|byte| matches!(byte, 0 | b'\n')) {
            Some(Some(path.to_owned()))
        } else {
            self.mismatch(slot, bytes, &slot.kind.expected());
            None
        }
    }

    pub(super) fn path(&mut self, slot: &Slot) -> Option<PathBuf> {
        self.optional_path(slot)?
    }
}

/// Bytes between quotes, on one line whatever they are.
pub(super) fn shown(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => format!("{text:?}"),
        Err(_) => format!("\"{}\"", bytes.escape_ascii()),
    }
}
