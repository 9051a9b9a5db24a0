//! Warns about sections and keys that mean nothing, with the one that was probably meant.

use std::collections::HashMap;

use super::{
    EngineKeys,
    ini::{Entry, Section},
    keys::{BUILTIN, KEYS, Key, Place},
    problem::{Problem, Severity},
    reader::Reader,
};

/// Names longer than this are compared with nothing: it could take long, and none is meant.
const LONGEST: usize = 64;

/// Behind so many problems no name is compared any more: such a file is something else altogether.
const ENOUGH: usize = 200;

/// What two names must have in common for the one to be meant by the other.
const LIKENESS: f64 = 0.6;

/// Every name that means something: section, key as documented.
fn known(engines: &[EngineKeys]) -> Vec<(&str, String)> {
    let of = |key: &'static Key| -> Vec<(&str, String)> {
        match key.place {
            Place::Global => vec![("global", key.name.to_owned())],
            Place::Plugins => vec![("plugins", key.name.to_owned())],
            Place::Engine => {
                engines.iter().map(|of| (of.section.as_str(), format!("{}{}", of.prefix, key.name))).collect()
            }
            Place::Only(engine) => {
                let own = engines.iter().filter(|of| of.engine == engine);
                own.map(|of| (of.section.as_str(), key.name.to_owned())).collect()
            }
        }
    };
    KEYS.iter().flat_map(of).collect()
}

/// Adds a warning for each section and key of the file that means nothing where it stands.
pub(super) fn check(reader: &mut Reader<'_>, engines: &[EngineKeys]) {
    let known = known(engines);
    let mut places: HashMap<String, Vec<(&str, &str)>> = HashMap::new();
    for (section, name) in &known {
        places.entry(name.to_ascii_lowercase()).or_default().push((section, name));
    }
    let ini = reader.ini;
    for section in &ini.sections {
        let name = String::from_utf8_lossy(&section.name).into_owned();
        if known.iter().any(|(known, _)| *known == name) {
            check_keys(reader, section, &name, &places, engines);
        } else {
            let text =
                format!("found a section that means nothing{}", suggestion(reader, &name, sections(&known)));
            warn(reader, section.line, &name, "", text);
        }
    }
    for (key, entry) in &ini.defaults {
        let key = String::from_utf8_lossy(key).into_owned();
        twice(reader, entry, "DEFAULT", &key);
        if !places.contains_key(&key) {
            let text = format!(
                "found a key that means nothing in any section{}",
                suggestion(reader, &key, all_names(&known))
            );
            warn(reader, entry.line, "DEFAULT", &key, text);
        }
    }
}

fn check_keys(
    reader: &mut Reader<'_>,
    section: &Section,
    name: &str,
    places: &HashMap<String, Vec<(&str, &str)>>,
    engines: &[EngineKeys],
) {
    for (key, entry) in &section.entries {
        let key = String::from_utf8_lossy(key).into_owned();
        twice(reader, entry, name, &key);
        match places.get(&key) {
            Some(of) if of.iter().any(|(section, _)| *section == name) => {}
            Some(of) => warn(
                reader,
                entry.line,
                name,
                &key,
                format!("belongs to [{}]; it means nothing here", of[0].0),
            ),
            None if key == "__name__" || passed_on(name, &key, engines) => {}
            None => {
                let here =
                    places.values().flatten().filter(|(section, _)| *section == name).map(|(_, key)| *key);
                let text = format!("found a key that means nothing{}", suggestion(reader, &key, here));
                warn(reader, entry.line, name, &key, text);
            }
        }
    }
}

/// Whether a key is for a third party's plugin to judge.
fn passed_on(section: &str, key: &str, engines: &[EngineKeys]) -> bool {
    let builtin = |of: &EngineKeys| BUILTIN.iter().any(|(engine, _, _)| *engine == of.engine);
    let mut foreign = engines.iter().filter(|of| of.section == section && !builtin(of));
    foreign.any(|of| key.starts_with(&of.prefix.to_ascii_lowercase()))
}

/// A key that is given twice has the last value, which is seldom what was meant.
fn twice(reader: &mut Reader<'_>, entry: &Entry, section: &str, key: &str) {
    if let Some(before) = entry.replaced {
        let text = format!("found the key again; this value holds and that of line {before} does not");
        warn(reader, entry.line, section, key, text);
    }
}

fn warn(reader: &mut Reader<'_>, line: usize, section: &str, key: &str, message: String) {
    let (file, line) = (reader.file.to_owned(), Some(line));
    let (section, key) = (printable(section), printable(key));
    reader.problems.push(Problem { severity: Severity::Warning, file, line, section, key, message });
}

/// A name from the file, kept on one line.
fn printable(name: &str) -> String {
    name.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

fn sections<'a>(known: &'a [(&'a str, String)]) -> impl Iterator<Item = &'a str> {
    known.iter().map(|(section, _)| *section).chain(["DEFAULT"])
}

fn all_names<'a>(known: &'a [(&'a str, String)]) -> impl Iterator<Item = &'a str> {
    known.iter().map(|(_, name)| name.as_str())
}

fn suggestion<'a>(reader: &Reader<'_>, found: &str, known: impl Iterator<Item = &'a str>) -> String {
    if found.len() > LONGEST || reader.problems.len() > ENOUGH {
        return String::new();
    }
    let likeness =
        |name: &str| strsim::normalized_damerau_levenshtein(&found.to_lowercase(), &name.to_lowercase());
    let rated = known.map(|name| (likeness(name), name)).filter(|(likeness, _)| *likeness >= LIKENESS);
    let best = rated.max_by(|a, b| a.0.total_cmp(&b.0).then_with(|| b.1.cmp(a.1)));
    best.map(|(_, name)| format!("; did you mean {name}?")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::ini;

    fn warnings(text: &str, engines: &[EngineKeys]) -> Vec<String> {
        let ini = ini::parse(text.as_bytes()).unwrap();
        let mut reader = Reader::new(Path::new("f"), &ini);
        check(&mut reader, engines);
        assert!(reader.problems.iter().all(|problem| problem.severity == Severity::Warning));
        reader.problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_was_probably_meant_is_suggested() {
        let found =
            warnings("[globl]\nx=1\n[Redis]\n[global]\nchekinterval=1\nqqqq=1\n", &EngineKeys::builtin());
        assert_eq!(
            found,
            [
                "f:1: [globl]: found a section that means nothing; did you mean global?",
                "f:3: [Redis]: found a section that means nothing; did you mean redis?",
                "f:5: global.chekinterval: found a key that means nothing; did you mean CheckInterval?",
                "f:6: global.qqqq: found a key that means nothing",
            ]
        );
    }

    #[test]
    fn a_key_in_the_wrong_section_is_sent_to_the_right_one() {
        let found = warnings("[global]\nMC_PORT=1\n[redis]\nmc_port=1\n", &EngineKeys::builtin());
        assert_eq!(found[0], "f:2: global.mc_port: belongs to [memcached]; it means nothing here");
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn defaults_may_serve_any_section_and_are_told_once() {
        let found =
            warnings("[DEFAULT]\nmc_port=1\nmc_prt=2\n[global]\n[memcached]\n", &EngineKeys::builtin());
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("f:3: DEFAULT.mc_prt: "), "{found:?}");
    }

    #[test]
    fn a_key_given_twice_names_both_lines() {
        let found = warnings("[global]\ngroup=a\ngroup=b\n", &EngineKeys::builtin());
        let text = "f:3: global.group: found the key again; this value holds and that of line 2 does not";
        assert_eq!(found, [text]);
    }

    #[test]
    fn further_keys_of_a_third_party_are_its_own() {
        let mut engines = EngineKeys::builtin();
        let third = |text: &str| text.to_owned();
        engines.push(EngineKeys {
            engine: third("echo"),
            section: third("echo"),
            prefix: third("echo_"),
            registry_root: third("/echo"),
            file_keys: Vec::new(),
        });
        let found =
            warnings("[echo]\necho_port=1\necho_shout=1\nwhisper=1\n[redis]\nredis_shout=1\n", &engines);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(
            found[0].starts_with("f:4: echo.whisper: ") && found[1].starts_with("f:6: redis.redis_shout: ")
        );
        assert_eq!(warnings("[echo]\n", &EngineKeys::builtin()).len(), 1);
    }
}
