//! Looks through memcached's own arguments for options that the agent must have in its hand.
//!
//! Arguments are handed on as they stand; this only says what will come of it.

/// memcached's short options that take a value.
const WITH_VALUE: &str = "apsUmcluPfntDRbBIYeoN";

/// Options that matter here: letter, long name.
const LONG: &[(char, &str)] = &[
    ('p', "port"),
    ('m', "memory-limit"),
    ('s', "unix-socket"),
    ('U', "udp-port"),
    ('l', "listen"),
    ('P', "pidfile"),
    ('h', "help"),
    ('V', "version"),
    ('i', "license"),
];

/// What an option means for an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// The instance could not be run with it.
    Error(String),
    /// It has no effect, or not the one that was meant.
    Warning(String),
}

/// Everything worth saying about memcached's arguments; `bound`: the section has a bind address of its own.
pub(super) fn memcached(words: &[String], bound: bool) -> Vec<Finding> {
    options(words).into_iter().filter_map(|(option, value)| finding(option, &value, bound)).collect()
}

fn finding(option: char, value: &str, bound: bool) -> Option<Finding> {
    let warning = |text: &str| Some(Finding::Warning(text.to_owned()));
    let error = |text: &str| Some(Finding::Error(text.to_owned()));
    match option {
        'p' => warning("found -p, which is overridden by mc_port and mc_port_step"),
        'm' => warning("found -m, which is overridden by mc_maxmem"),
        'l' if bound => warning("found -l, which is overridden by mc_bind"),
        'U' if value != "0" => {
            warning("found -U, a UDP port that all instances would share; one alone can have it")
        }
        'P' => warning("found -P, a pid file that all instances would share"),
        's' => error("found -s, expected no Unix socket: instances are reached by their ports"),
        'h' | 'V' | 'i' => error(&format!("found -{option}, which makes memcached print and end")),
        _ => None,
    }
}

/// Options and their values, as getopt takes them apart.
fn options(words: &[String]) -> Vec<(char, String)> {
    let mut found = Vec::new();
    let mut words = words.iter().map(String::as_str);
    while let Some(word) = words.next() {
        if word == "--" {
            break;
        } else if let Some(long) = word.strip_prefix("--") {
            found.extend(long_option(long));
        } else if let Some(cluster) = word.strip_prefix('-') {
            cluster_options(cluster, &mut words, &mut found);
        }
    }
    found
}

fn long_option(text: &str) -> Option<(char, String)> {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    let known = LONG.iter().find(|(_, long)| *long == name);
    known.map(|(letter, _)| (*letter, value.to_owned()))
}

fn cluster_options<'a>(
    cluster: &str,
    words: &mut impl Iterator<Item = &'a str>,
    found: &mut Vec<(char, String)>,
) {
    let mut letters = cluster.chars();
    while let Some(letter) = letters.next() {
        if !WITH_VALUE.contains(letter) {
            found.push((letter, String::new()));
            continue;
        }
        let rest = letters.as_str();
        let value = if rest.is_empty() { words.next().unwrap_or_default() } else { rest };
        found.push((letter, value.to_owned()));
        return;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(text: &str) -> Vec<Finding> {
        memcached(&shell_words::split(text).unwrap(), false)
    }

    #[test]
    fn the_legacy_arguments_are_fine() {
        assert_eq!(
            findings("-u nobody -d -c 10240 -o tail_repair_time=7200 slab_reassign slab_automove"),
            []
        );
    }

    #[test]
    fn ports_and_memory_are_overridden_however_they_are_written() {
        for text in ["-p 11211", "-p11211", "-vvp 11211", "--port=11211"] {
            let found = findings(text);
            assert!(
                matches!(&found[..], [Finding::Warning(why)] if why.contains("mc_port")),
                "{text}: {found:?}"
            );
        }
        assert!(matches!(&findings("-m 64")[..], [Finding::Warning(why)] if why.contains("mc_maxmem")));
    }

    #[test]
    fn values_are_no_options() {
        assert_eq!(findings("-u -s -o -p"), []);
        assert_eq!(findings("-- -s x"), []);
    }

    #[test]
    fn sockets_are_refused_and_shared_ports_told() {
        assert!(matches!(findings("-s /tmp/x")[..], [Finding::Error(_)]));
        assert!(matches!(findings("-V")[..], [Finding::Error(_)]));
        assert!(matches!(findings("-U 11211")[..], [Finding::Warning(_)]));
        assert_eq!(findings("-U 0"), []);
        assert_eq!(memcached(&["-l".into(), "::1".into()], true).len(), 1);
    }
}
