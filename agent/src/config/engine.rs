//! Turns an engine's section into its settings.

use std::path::{Path, PathBuf};

use super::{
    EngineKeys, EngineSettings, Megabytes,
    args::{self, Finding},
    files, ini,
    keys::{self, KEYS, Key, Kind, Place},
    reader::{Reader, Slot},
    registry,
};

/// An engine's section being read.
#[derive(Debug)]
pub(super) struct Section<'k> {
    pub(super) of: &'k EngineKeys,
    state_dir: &'k Path,
}

impl<'k> Section<'k> {
    pub(super) fn new(of: &'k EngineKeys, state_dir: &'k Path) -> Section<'k> {
        Section { of, state_dir }
    }

    /// A key's slot, with the defaults that depend on the engine or on `state_dir`.
    pub(super) fn slot(&self, key: &Key) -> Slot {
        let mut slot = Slot::of_engine(key, &self.of.engine, &self.of.section, &self.of.prefix);
        if key.name == keys::ZOO_ROOT.name {
            slot.default = Some(self.of.registry_root.clone());
        } else if key.name == keys::PORT_FILE.name && slot.default.is_none() {
            let name = format!("{}.ports", self.of.engine);
            slot.default = self.state_dir.join(name).to_str().map(str::to_owned);
        }
        slot
    }

    /// The engine's settings; `None` when it is off. Every value is checked either way, files only when it is on.
    pub(super) fn read(&self, reader: &mut Reader<'_>) -> Option<EngineSettings> {
        let enabled = reader.boolean(&self.slot(&keys::ENABLED)).unwrap_or(false);
        let bind = reader.address(&self.slot(&keys::BIND)).flatten();
        self.check_args(reader, bind.is_some());
        self.check_own_keys(reader);
        let settings = EngineSettings {
            engine: self.of.engine.clone(),
            program: reader.path(&self.slot(&keys::FPATH)).unwrap_or_default(),
            maxmem: Megabytes(reader.integer(&self.slot(&keys::MAXMEM)).unwrap_or_default()),
            meta_size: Megabytes(reader.integer(&self.slot(&keys::META_SIZE)).unwrap_or_default()),
            count: self.count(reader),
            port: reader.integer(&self.slot(&keys::PORT)).unwrap_or_default(),
            port_step: reader.integer(&self.slot(&keys::PORT_STEP)).unwrap_or_default(),
            port_file: reader.path(&self.slot(&keys::PORT_FILE)).unwrap_or_default(),
            bind,
            registry_root: self.registry_root(reader),
            server_path: self.template(reader, &keys::SERVER_PATH, &[&["{ip}"]]),
            instance_path: self.template(reader, &keys::INSTANCE_PATH, &[&["{port}"], &["{ip}", "{server}"]]),
            shards: None,
            raw: Vec::new(),
        };
        enabled.then(|| self.with_files(reader, settings))
    }

    fn count(&self, reader: &mut Reader<'_>) -> Option<u32> {
        let slot = self.slot(&keys::COUNT);
        let Some(count) = reader.count(&slot) else { return Some(0) };
        if count == Some(0) {
            reader.warning(&slot, "found 0, which starts no instance");
        }
        count
    }

    fn registry_root(&self, reader: &mut Reader<'_>) -> String {
        let check = |text: &str| registry::node_path(text).map(|()| text.to_owned());
        reader.parsed(&self.slot(&keys::ZOO_ROOT), check).unwrap_or_default()
    }

    fn template(&self, reader: &mut Reader<'_>, key: &Key, one_of: &[&[&str]]) -> String {
        let fields = if let Kind::Template { fields } = key.kind { fields } else { &[] };
        let check = |text: &str| registry::template(text, fields, one_of).map(|()| text.to_owned());
        reader.parsed(&self.slot(key), check).unwrap_or_default()
    }

    fn check_args(&self, reader: &mut Reader<'_>, bound: bool) {
        let slot = self.slot(&keys::ARGS);
        let Some(words) = reader.words(&slot) else { return };
        if self.of.engine != "memcached" {
            return;
        }
        for finding in args::memcached(&words, bound) {
            match finding {
                Finding::Error(text) => reader.error(&slot, text),
                Finding::Warning(text) => reader.warning(&slot, text),
            }
        }
    }

    /// The keys that this engine alone has are the plugin's; here their values are checked.
    fn check_own_keys(&self, reader: &mut Reader<'_>) {
        for key in self.own_keys() {
            let slot = self.slot(key);
            match key.kind {
                Kind::Boolean => _ = reader.boolean(&slot),
                Kind::Integer { .. } => _ = reader.integer::<i64>(&slot),
                Kind::Seconds { .. } => _ = reader.seconds(&slot),
                Kind::OptionalSeconds { .. } => _ = reader.optional_seconds(&slot),
                Kind::Path | Kind::OptionalPath => _ = reader.optional_path(&slot),
                Kind::Names => _ = reader.names(&slot),
                Kind::Address => _ = reader.address(&slot),
                Kind::Addresses => _ = reader.addresses(&slot),
                Kind::Command => _ = reader.words(&slot),
                // A password may be any bytes.
                Kind::Secret => {}
                _ => _ = reader.text(&slot),
            }
        }
    }

    fn own_keys(&self) -> impl Iterator<Item = &'static Key> {
        KEYS.iter().filter(|key| key.place == Place::Only(self.own_name()))
    }

    fn own_name(&self) -> &'static str {
        let builtin = keys::BUILTIN.iter().find(|(engine, _, _)| *engine == self.of.engine);
        builtin.map_or("", |(engine, _, _)| engine)
    }

    fn with_files(&self, reader: &mut Reader<'_>, mut settings: EngineSettings) -> EngineSettings {
        self.check_program(reader, &settings.program);
        self.check_port_file(reader, &settings.port_file);
        settings.raw = self.raw(reader);
        settings
    }

    fn check_program(&self, reader: &mut Reader<'_>, program: &Path) {
        if program.as_os_str().is_empty() {
            return;
        }
        if let Err(why) = files::program(program) {
            reader.error(&self.slot(&keys::FPATH), format!("{why}; expected the server's program"));
        }
    }

    fn check_port_file(&self, reader: &mut Reader<'_>, file: &Path) {
        if file.is_dir() {
            let text = format!("found the directory {}, expected a file that can be written", file.display());
            reader.error(&self.slot(&keys::PORT_FILE), text);
        }
    }

    /// The section as the plugin gets it: what the file has, in its order, then defaults of keys that it has not, then
    /// the texts of the files that the plugin asked for.
    fn raw(&self, reader: &mut Reader<'_>) -> Vec<(String, Vec<u8>)> {
        let ini = reader.ini;
        let Some(section) = ini.section(&self.of.section) else { return Vec::new() };
        let mut items: Vec<(&[u8], &ini::Entry)> = ini.items(section).into_iter().collect();
        items.sort_by_key(|(_, entry)| entry.line);
        let pair = |(key, entry): (&[u8], &ini::Entry)| {
            (String::from_utf8_lossy(key).into_owned(), entry.value.clone())
        };
        let mut raw: Vec<(String, Vec<u8>)> = items.into_iter().map(pair).collect();
        self.add_defaults(&mut raw);
        self.add_contents(reader, &mut raw);
        raw
    }

    /// Defaults that say something; `redis_dir`, which goes by `state_dir`, also where the file leaves it empty.
    fn add_defaults(&self, raw: &mut Vec<(String, Vec<u8>)>) {
        let generic = KEYS.iter().filter(|key| key.place == Place::Engine);
        for slot in generic.chain(self.own_keys()).map(|key| self.slot(key)) {
            let name = slot.name.to_ascii_lowercase();
            let default = if name == keys::REDIS_DIR.name {
                raw.retain(|(key, value)| *key != name || !value.is_empty());
                self.state_dir.join("redis").into_os_string().into_encoded_bytes()
            } else {
                slot.default.unwrap_or_default().into_bytes()
            };
            if !default.is_empty() && raw.iter().all(|(key, _)| *key != name) {
                raw.push((name, default));
            }
        }
    }

    fn add_contents(&self, reader: &mut Reader<'_>, raw: &mut Vec<(String, Vec<u8>)>) {
        for name in &self.of.file_keys {
            let folded = name.to_ascii_lowercase();
            let (section, kind) = (self.of.section.clone(), Kind::OptionalPath);
            let slot = Slot { section, name: name.clone(), kind, default: Some(String::new()) };
            // What is wrong with the value itself has been told where the engine's own keys were checked.
            let path = raw.iter().find(|(key, _)| *key == folded).map(|(_, value)| path_of(value));
            let Some(path) = path.filter(|path| path.is_absolute()) else { continue };
            match files::with_includes(&path) {
                Ok(text) => raw.push((format!("{folded}.content"), text)),
                Err(why) => reader.error(&slot, format!("{why}; expected a file that can be read")),
            }
        }
    }
}

fn path_of(bytes: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    PathBuf::from(std::ffi::OsStr::from_bytes(bytes))
}
