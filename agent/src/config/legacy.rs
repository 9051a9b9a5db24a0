//! Turns the legacy file's keys, and ours beside them, into [`Settings`]; finds everything that is wrong in one go.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    ConfigError, EngineKeys, EngineSettings, Megabytes, Memory, Problem, Settings, Severity,
    engine::Section,
    global,
    ini::{self, Ini, IniError},
    keys,
    ports::{self, Planned},
    reader::{Reader, Slot},
    registry, shards,
    sizing::{self, Plan, PlanFault},
};

/// What a caller wants to know.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// The memory to plan for; `None`: this host's.
    pub memory: Option<Memory>,
    /// Whether the lack of a ZooKeeper address is a warning rather than an error: for who only looks at the plan.
    pub without_registry: bool,
}

/// A file that was accepted.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// What it says.
    pub settings: Settings,
    /// What is worth a second look.
    pub warnings: Vec<Problem>,
    /// The instances that it comes to on this memory.
    pub plan: Plan,
    /// Why they do not fit; the faults of the plan, with their lines. `check` and `plan` refuse such a file, a running
    /// agent alerts.
    pub misfits: Vec<Problem>,
}

/// What `[plugins]` says, before plugins are loaded and their sections known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PluginsWanted {
    /// `dir`.
    pub dir: Option<PathBuf>,
    /// `load`: engines beside those of the project.
    pub load: Vec<String>,
    /// `state_dir`, where it is known which plugins are not to be loaded; what is wrong with it is told later.
    pub state_dir: PathBuf,
    /// `watchdog_limit`, likewise.
    pub watchdog_limit: Duration,
}

/// Reads a file's bytes.
///
/// # Errors
/// When it isn't there, cannot be read, is a directory, or is larger than 4 MiB.
pub fn read(path: &Path) -> Result<Vec<u8>, ConfigError> {
    let bytes = File::open(path).and_then(|file| {
        let mut bytes = Vec::new();
        file.take(registry::MAX_FILE + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > registry::MAX_FILE {
            return Err(io::Error::other("it is larger than 4 MiB"));
        }
        Ok(bytes)
    });
    bytes.map_err(|error| ConfigError::whole_file(path, format!("cannot read the configuration: {error}")))
}

fn read_ini(path: &Path) -> Result<Ini, ConfigError> {
    ini::parse(&read(path)?).map_err(|error| refused(path, &error))
}

/// A file that is no ini file, line by line.
#[must_use]
pub fn refused(path: &Path, error: &IniError) -> ConfigError {
    let problem = |bad: &ini::BadLine| Problem {
        severity: Severity::Error,
        file: path.to_owned(),
        line: Some(bad.line),
        section: String::new(),
        key: String::new(),
        message: format!("found {}, expected {}", super::reader::shown(&bad.text), error.expected()),
    };
    ConfigError { problems: error.lines().iter().map(problem).collect() }
}

/// Reads a file, plans its instances, and tells everything about it.
///
/// # Errors
/// Every problem of a file that is refused. A plan that does not fit the memory is none of them.
pub fn load_with(path: &Path, engines: &[EngineKeys], options: &Options) -> Result<Loaded, ConfigError> {
    let ini = read_ini(path)?;
    let memory = match options.memory {
        Some(memory) => memory,
        None => Memory::read().map_err(|error| {
            ConfigError::whole_file(path, format!("cannot read the host's memory: {error}"))
        })?,
    };
    let mut reader = Reader::new(path, &ini);
    let settings = settings(&mut reader, engines, options);
    let plan = sizing::plan(memory, &settings);
    check_ports(&mut reader, engines, &settings, &plan);
    super::unknown::check(&mut reader, engines);
    let warnings = accepted(reader.problems)?;
    let misfits = misfits(path, &ini, engines, &settings, &plan);
    Ok(Loaded { settings, warnings, plan, misfits })
}

/// Reads what must be known before plugins can be loaded.
///
/// # Errors
/// A file that cannot be read or is no ini file, and what is wrong in `[plugins]`.
pub fn plugins_wanted(path: &Path) -> Result<PluginsWanted, ConfigError> {
    let ini = read_ini(path)?;
    let mut reader = Reader::new(path, &ini);
    let dir = reader.optional_path(&Slot::plain(&keys::PLUGIN_DIR)).flatten();
    let load = reader.names(&Slot::plain(&keys::PLUGIN_LOAD)).unwrap_or_default();
    accepted(reader.problems)?;
    let mut early = Reader::new(path, &ini);
    let state_dir = early.path(&Slot::plain(&keys::STATE_DIR)).unwrap_or_default();
    let watchdog_limit = early.seconds(&Slot::plain(&keys::WATCHDOG_LIMIT)).unwrap_or_default();
    Ok(PluginsWanted { dir, load, state_dir, watchdog_limit })
}

/// The warnings of a file without errors, in the order of its lines.
fn accepted(mut problems: Vec<Problem>) -> Result<Vec<Problem>, ConfigError> {
    problems.sort_by_key(|problem| problem.line);
    if problems.iter().any(|problem| problem.severity == Severity::Error) {
        return Err(ConfigError { problems });
    }
    Ok(problems)
}

fn settings(reader: &mut Reader<'_>, engines: &[EngineKeys], options: &Options) -> Settings {
    let state_dir = global::state_dir(reader);
    let found = engine_sections(reader, engines, &state_dir);
    _ = reader.names(&Slot::plain(&keys::PLUGIN_LOAD));
    let mut settings = Settings {
        file: reader.file.to_owned(),
        localip: global::localip(reader),
        group: reader.latin1_or_text(&Slot::plain(&keys::GROUP)).unwrap_or_default(),
        priority: reader.integer(&Slot::plain(&keys::PRIORITY)).unwrap_or_default(),
        rack: reader.latin1_or_text(&Slot::plain(&keys::RACK)).unwrap_or_default(),
        system_res_mem: Megabytes(reader.integer(&Slot::plain(&keys::SYSTEM_RES_MEM)).unwrap_or_default()),
        state_dir,
        probing: global::probing(reader),
        statistics: global::statistics(reader),
        registry: global::registry(reader, options),
        engines: found,
        plugin_dir: reader.optional_path(&Slot::plain(&keys::PLUGIN_DIR)).flatten(),
        log: global::log_settings(reader),
        alerts: global::alert_settings(reader),
        watchdog_limit: reader.seconds(&Slot::plain(&keys::WATCHDOG_LIMIT)).unwrap_or_default(),
    };
    shards::read(reader, engines, &mut settings);
    settings
}

fn engine_sections(reader: &mut Reader<'_>, engines: &[EngineKeys], state_dir: &Path) -> Vec<EngineSettings> {
    let ini = reader.ini;
    let named = |name: &[u8]| engines.iter().find(|engine| engine.section.as_bytes() == name);
    let sections = ini.sections.iter().filter_map(|section| named(&section.name));
    let found: Vec<EngineSettings> =
        sections.filter_map(|of| Section::new(of, state_dir).read(reader)).collect();
    for (index, engine) in found.iter().enumerate() {
        for other in &found[..index] {
            compare_engines(reader, engines, engine, other);
        }
    }
    found
}

/// What two engines must not share.
fn compare_engines(
    reader: &mut Reader<'_>,
    engines: &[EngineKeys],
    engine: &EngineSettings,
    other: &EngineSettings,
) {
    let Some(of) = engines.iter().find(|of| of.engine == engine.engine) else { return };
    let section = Section::new(of, Path::new("/"));
    let host = |engine: &EngineSettings| engine.server_path.replace("{root}", &engine.registry_root);
    if !engine.port_file.as_os_str().is_empty() && engine.port_file == other.port_file {
        let text = format!("found the file that {} has too, expected one of its own", other.engine);
        reader.error(&section.slot(&keys::PORT_FILE), text);
    }
    if !engine.registry_root.is_empty() && host(engine) == host(other) {
        let text =
            format!("found the host's node where {} has it too, expected another root or path", other.engine);
        reader.error(&section.slot(&keys::ZOO_ROOT), text);
    }
}

/// Checks the ports of all instances; where the file has errors, the number of as many as fit is not known.
fn check_ports(reader: &mut Reader<'_>, engines: &[EngineKeys], settings: &Settings, plan: &Plan) {
    let sound = reader.problems.iter().all(|problem| problem.severity != Severity::Error);
    let planned: Vec<Planned<'_>> = settings
        .engines
        .iter()
        .filter_map(|engine| {
            let of = engines.iter().find(|of| of.engine == engine.engine)?;
            let count = if sound { plan.engine(&of.engine).map(|part| part.count) } else { engine.count }?;
            let port = Section::new(of, &settings.state_dir).slot(&keys::PORT);
            let known = engine.port > 0 && engine.port_step > 0;
            known.then_some(Planned { settings: engine, count, port })
        })
        .collect();
    ports::check(reader, &planned);
}

/// The faults of a plan, at the keys that could mend them.
fn misfits(path: &Path, ini: &Ini, engines: &[EngineKeys], settings: &Settings, plan: &Plan) -> Vec<Problem> {
    let mut reader = Reader::new(path, ini);
    for fault in &plan.faults {
        let slot = slot_of(fault, engines, settings);
        reader.error(&slot, fault.to_string());
    }
    reader.problems
}

fn slot_of(fault: &PlanFault, engines: &[EngineKeys], settings: &Settings) -> Slot {
    let (engine, name) = fault.place();
    let of = engine.and_then(|engine| engines.iter().find(|of| of.engine == engine));
    let key = if name == keys::COUNT.name { &keys::COUNT } else { &keys::MAXMEM };
    match of {
        Some(of) => Section::new(of, &settings.state_dir).slot(key),
        None => Slot::plain(&keys::SYSTEM_RES_MEM),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use super::*;
    use crate::config::{Probing, RegistrySettings};

    const LEGACY: &str = include_str!("../../../conf/yagent.ini");

    /// A directory with a configuration in which `@` stands for the directory.
    struct Fixture(tempfile::TempDir);

    impl Fixture {
        fn new(text: &str) -> Fixture {
            let fixture = Fixture(tempfile::tempdir().unwrap());
            fixture.write("yagent.ini", text);
            fixture
        }

        fn write(&self, name: &str, text: &str) {
            let here = self.0.path().display().to_string();
            fs::write(self.0.path().join(name), text.replace('@', &here)).unwrap();
        }

        fn load(&self) -> Result<Loaded, ConfigError> {
            let options = Options { memory: Some(Memory::of(Megabytes(32_768))), without_registry: false };
            load_with(&self.0.path().join("yagent.ini"), &EngineKeys::builtin(), &options)
        }

        /// What was found, without the file's name.
        fn told(&self) -> Vec<String> {
            let problems = self.load().map_or_else(|error| error.problems, |loaded| loaded.warnings);
            let file = format!("{}/yagent.ini:", self.0.path().display());
            problems.iter().map(|problem| problem.to_string().replace(&file, "")).collect()
        }
    }

    fn told(text: &str) -> Vec<String> {
        Fixture::new(text).told()
    }

    /// The legacy file with a registry, a state directory and a program that this host surely has.
    fn legacy() -> String {
        let registered = LEGACY.replace("zoo_svr=\n", "zoo_svr=zk1,zk2:2182/y\nstate_dir=@\n");
        registered.replace("/usr/bin/memcached", "/bin/sh")
    }

    #[test]
    fn the_legacy_file_comes_to_seven_instances_without_a_warning() {
        let loaded = Fixture::new(&legacy()).load().unwrap();
        assert_eq!(loaded.warnings, []);
        assert_eq!(loaded.misfits, []);
        let [engine] = loaded.settings.engines.as_slice() else { panic!("{:?}", loaded.settings.engines) };
        let count = loaded.plan.engine("memcached").unwrap().count;
        let ports: Vec<_> = (0..count).filter_map(|index| sizing::port(engine, index)).collect();
        assert_eq!(ports, [11211, 11221, 11231, 11241, 11251, 11261, 11271]);
        assert_eq!(engine.maxmem, Megabytes(4096));
        assert_eq!(engine.registry_root, "/ycache");
    }

    #[test]
    fn the_legacy_keys_mean_what_they_meant() {
        let settings = Fixture::new(&legacy()).load().unwrap().settings;
        assert_eq!((settings.group.as_str(), settings.priority), ("default", 100));
        assert_eq!(settings.probing.check_interval, Duration::from_secs(5));
        assert_eq!((settings.statistics.enabled, settings.statistics.publish_every), (true, 12));
        assert_eq!(settings.statistics.windows, [60, 3600, 86_400].map(Duration::from_secs));
        let RegistrySettings::Zookeeper(zookeeper) = settings.registry else {
            panic!("{:?}", settings.registry)
        };
        assert_eq!(
            (zookeeper.servers, zookeeper.chroot),
            (vec!["zk1:2181".into(), "zk2:2182".into()], "/y".into())
        );
    }

    #[test]
    fn a_file_of_two_lines_has_sound_defaults() {
        let loaded = Fixture::new("[global]\nzoo_svr=none\nstate_dir=@\n").load().unwrap();
        assert_eq!((loaded.warnings, loaded.settings.engines), (Vec::new(), Vec::new()));
        let probing = loaded.settings.probing;
        let [second, five, thirty] = [1, 5, 30].map(Duration::from_secs);
        assert_eq!(
            probing,
            Probing {
                check_interval: five,
                interval: second,
                timeout: second,
                failures: 3,
                start_timeout: thirty
            }
        );
        assert_eq!(loaded.settings.registry, RegistrySettings::Memory);
        assert_eq!(loaded.settings.statistics.publish_every, 120);
    }

    #[test]
    fn the_values_in_the_shipped_file_s_comments_are_the_defaults() {
        let text = legacy().replace("#state_dir=/var/lib/yagent\n", "");
        let uncommented: String = text.lines().map(|line| format!("{}\n", without_hash(line))).collect();
        assert_ne!(uncommented, text);
        let [mut with, mut without] = [&uncommented, &text].map(|text| {
            let loaded = Fixture::new(text).load().unwrap();
            assert_eq!(loaded.warnings, []);
            loaded.settings
        });
        for settings in [&mut with, &mut without] {
            settings.file = PathBuf::new();
            settings.state_dir = PathBuf::new();
            settings.engines[0].raw.clear();
        }
        assert_eq!(with, without);
    }

    /// A line with its key, be it commented or not; comments that are sentences stay.
    fn without_hash(line: &str) -> &str {
        line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line)
    }

    #[test]
    fn a_third_party_engine_must_say_what_nobody_else_can_know() {
        let mut engines = EngineKeys::builtin();
        let [engine, section, prefix] = ["echo", "echo server", "e_"].map(str::to_owned);
        engines.push(EngineKeys {
            engine,
            section,
            prefix,
            registry_root: "/echo".into(),
            file_keys: Vec::new(),
        });
        let load = |more: &str| {
            let head = "[global]\nzoo_svr=none\nstate_dir=@\n[echo server]\ne_shout=1\n";
            let fixture = Fixture::new(&format!("{head}{more}"));
            let options = Options { memory: Some(Memory::of(Megabytes(4096))), without_registry: false };
            load_with(&fixture.0.path().join("yagent.ini"), &engines, &options)
        };
        let problems = load("").unwrap_err().problems;
        let missing: Vec<_> = problems.iter().map(|problem| (problem.line, problem.key.as_str())).collect();
        assert_eq!(missing, [(Some(4), "e_fpath"), (Some(4), "e_maxmem"), (Some(4), "e_port")]);
        let loaded = load("e_fpath=/bin/sh\ne_maxmem=1\ne_port=7000\ne_count=2\n").unwrap();
        let engine = &loaded.settings.engines[0];
        assert_eq!((loaded.warnings, engine.registry_root.as_str()), (Vec::new(), "/echo"));
        assert!(engine.port_file.ends_with("echo.ports"));
        assert!(engine.raw.contains(&("e_shout".to_owned(), b"1".to_vec())));
    }

    #[test]
    fn every_error_is_told_in_one_go_with_its_line() {
        let found = told(
            "[global]\nzoo_svr=zk:0\nCheckInterval=0\n x=1\nlocalip=0.0.0.0\npriority=high\nstate_dir=here\n\
             log_level=all\nzoo_auth=hunter2\n[memcached]\nmc_maxmem=0\nmc_args=\"\nmc_port=70000\nmc_fpath=/gone/mc\n\
             mc_zoo_root=y\n[redis]\nredis_enabled=perhaps\nredis_port=0\ntimeout=never\n",
        );
        let places: Vec<&str> = found.iter().map(|text| text.split(": ").next().unwrap()).collect();
        assert_eq!(
            places,
            ["2", "3", "5", "6", "7", "8", "9", "11", "12", "13", "14", "15", "17", "18", "19"]
        );
        assert!(found[1].contains("a line that begins with a space continues"), "{}", found[1]);
        assert!(found[6].contains("expected user:password") && !found[6].contains("hunter2"), "{}", found[6]);
        assert_eq!(
            found[9],
            "13: memcached.mc_port: found \"70000\", expected a whole number from 1 to 65535"
        );
        assert!(found[10].starts_with("14: memcached.mc_fpath: cannot look at /gone/mc: No such file"));
    }

    #[test]
    fn without_an_address_the_file_is_refused_and_says_where_it_looked() {
        let found = told("[global]\nzoo_svr=\nstate_dir=@\ncf_svr_file=/gone/env.ini\n");
        assert_eq!(found.len(), 1);
        assert!(
            found[0]
                .starts_with("2: global.zoo_svr: found nothing and cannot read cf_svr_file /gone/env.ini: ")
        );
        assert!(told("[global]\nstate_dir=@\n")[0].contains("cf_svr_file is empty too"));
    }

    #[test]
    fn the_address_may_stand_in_another_file() {
        let fixture = Fixture::new("[global]\nzoo_svr=\nstate_dir=@\ncf_svr_file=@/env.ini\n");
        fixture.write("env.ini", "[app]\nzookeeper=zk9:2181/env\n");
        let RegistrySettings::Zookeeper(zookeeper) = fixture.load().unwrap().settings.registry else {
            panic!()
        };
        assert_eq!((zookeeper.servers, zookeeper.chroot), (vec!["zk9:2181".into()], "/env".into()));
        fixture.write("env.ini", "[app]\nzookeeper=:2181\n");
        assert!(fixture.told()[0].contains("env.ini has \":2181\", expected host:port"));
    }

    #[test]
    fn a_plan_needs_no_address() {
        let fixture = Fixture::new("[global]\nstate_dir=@\n");
        let options = Options { memory: None, without_registry: true };
        let loaded =
            load_with(&fixture.0.path().join("yagent.ini"), &EngineKeys::builtin(), &options).unwrap();
        assert_eq!(loaded.warnings.len(), 1);
    }

    #[test]
    fn ports_that_collide_name_both_keys_and_the_port() {
        let text = "[global]\nzoo_svr=none\nstate_dir=@\n[memcached]\nmc_fpath=/bin/sh\nmc_count=3\n\
                    [redis]\nredis_fpath=/bin/sh\nredis_count=9\nredis_port=11191\nredis_port_step=15\n";
        let found = told(text);
        assert_eq!(
            found,
            [
                "10: redis.redis_port: found port 11221, which memcached.mc_port 11211 takes in steps of 10 for 3 \
              instances, expected ports of its own"
            ]
        );
        assert_eq!(told(&text.replace("11191", "16379")), Vec::<String>::new());
        assert!(
            told(&text.replace("redis_port=11191", "redis_port=65500"))[0]
                .contains("found port 65545 for instance 4")
        );
    }

    #[test]
    fn engines_that_are_off_are_checked_for_values_alone() {
        let off = "[global]\nzoo_svr=none\nstate_dir=@\n[redis]\nredis_enabled=0\nredis_fpath=/gone\nredis_conf=/gone\n";
        assert_eq!(told(off), Vec::<String>::new());
        assert_eq!(told(&format!("{off}redis_port=x\n")).len(), 1);
        assert_eq!(told(&off.replace("enabled=0", "enabled=1")).len(), 2);
    }

    #[test]
    fn the_plugin_gets_the_section_with_defaults_and_texts() {
        let text = "[DEFAULT]\nredis_shared=1\n[global]\nzoo_svr=none\nstate_dir=@\n[redis]\nredis_fpath=/bin/sh\n\
                    redis_conf=@/redis.conf\nredis_password=a\n";
        let fixture = Fixture::new(text);
        fixture.write("redis.conf", "include @/more.conf\nport 1\n");
        fixture.write("more.conf", "maxclients 9");
        let settings = fixture.load().unwrap().settings;
        let raw = |key: &str| {
            let found = settings.engines[0].raw.iter().filter(|(name, _)| name == key);
            found.map(|(_, value)| String::from_utf8(value.clone()).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(raw("redis_conf.content"), ["maxclients 9\nport 1\n"]);
        assert_eq!((raw("redis_password"), raw("redis_shared")), (vec!["a".into()], vec!["1".into()]));
        assert_eq!(raw("redis_dir"), [fixture.0.path().join("redis").display().to_string()]);
        assert_eq!(raw("redis_maxmem"), ["128"]);
        assert!(raw("redis_run_as").is_empty());
    }

    #[test]
    fn bytes_outside_utf8_stay_distinct_in_names_and_are_refused_in_numbers() {
        let fixture = Fixture::new("");
        let text = b"[global]\nzoo_svr=none\nstate_dir=/tmp\ngroup=caf\xe9\npriority=\xe9\n";
        fs::write(fixture.0.path().join("yagent.ini"), text).unwrap();
        let found = fixture.told();
        assert_eq!(
            found[0],
            "4: global.group: found \"caf\\xe9\", which is not UTF-8; it is taken as Latin-1"
        );
        assert_eq!(found[1], "5: global.priority: found \"\\xe9\", expected UTF-8");
    }

    #[test]
    fn windows_are_sorted_and_each_taken_once() {
        let fixture = Fixture::new("[global]\nzoo_svr=none\nstate_dir=@\nshowStatIntervalSec=3600,60,60\n");
        assert_eq!(fixture.told().len(), 2);
        let windows = fixture.load().unwrap().settings.statistics.windows;
        assert_eq!(windows, [60, 3600].map(Duration::from_secs));
    }

    #[test]
    fn files_that_cannot_be_read_are_one_line() {
        for (path, why) in [("/gone/yagent.ini", "No such file"), ("/tmp", "Is a directory")] {
            let read = load_with(Path::new(path), &EngineKeys::builtin(), &Options::default());
            let error = read.unwrap_err().to_string();
            assert!(error.starts_with(&format!("{path}: cannot read the configuration: {why}")), "{error}");
            assert_eq!(error.lines().count(), 1);
        }
    }

    #[test]
    fn a_file_that_is_no_ini_file_shows_each_bad_line() {
        assert_eq!(
            told("[a]\nx\n=1\n"),
            [
                "2: found \"x\", expected [section], key=value or key: value",
                "3: found \"=1\", expected [section], key=value or key: value"
            ]
        );
        assert_eq!(told("x=1\n"), ["1: found \"x=1\", expected [section] before the first key"]);
    }

    #[test]
    fn the_state_directory_must_be_a_directory() {
        let fixture = Fixture::new("[global]\nzoo_svr=none\nstate_dir=@/file/x\n");
        fixture.write("file", "");
        assert!(fixture.told()[0].ends_with("/file, which is not a directory"), "{:?}", fixture.told());
    }

    #[test]
    fn plugins_are_known_before_their_sections() {
        let fixture = Fixture::new("[plugins]\ndir=/opt/p\nload=echo, other\n[echo]\necho_port=x\n");
        let wanted = plugins_wanted(&fixture.0.path().join("yagent.ini")).unwrap();
        assert_eq!(
            wanted,
            PluginsWanted {
                dir: Some("/opt/p".into()),
                load: vec!["echo".into(), "other".into()],
                state_dir: "/var/lib/yagent".into(),
                watchdog_limit: Duration::from_secs(10),
            }
        );
    }

    #[test]
    fn a_misfit_stands_at_the_key_that_could_mend_it() {
        let text = "[global]\nzoo_svr=none\nstate_dir=@\n[memcached]\nmc_fpath=/bin/sh\nmc_count=100\n";
        let loaded = Fixture::new(text).load().unwrap();
        let [misfit] = loaded.misfits.as_slice() else { panic!("{:?}", loaded.misfits) };
        assert_eq!((misfit.line, misfit.key.as_str()), (Some(6), "mc_count"));
    }
}
