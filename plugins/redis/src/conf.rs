//! redis.conf: its lines as redis itself splits them, and the few directives that matter here.

/// What an instance's configuration says, as far as we need to know.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Conf {
    /// `requirepass`
    pub(crate) password: Option<Vec<u8>>,
    /// The address of `bind` to connect to; `None` where loopback will do.
    pub(crate) bind: Option<String>,
    /// `unixsocket` is set.
    pub(crate) unix_socket: bool,
    /// `tls-port` is set, and not to 0.
    pub(crate) tls_port: bool,
    /// `cluster-enabled yes`
    pub(crate) cluster: bool,
    /// `appenddirname` is set.
    pub(crate) append_dir: bool,
    /// `maxclients`
    pub(crate) max_clients: Option<u64>,
    /// `bind` names addresses, and none that another host could reach.
    pub(crate) loopback_only: bool,
    /// `masterauth` is set.
    pub(crate) master_auth: bool,
    /// `min-replicas-max-lag` is set, by this name or the old one.
    pub(crate) replica_lag: bool,
    /// It is set to 0: `min-replicas-to-write` has no effect then.
    pub(crate) no_replica_lag: bool,
    /// `repl-backlog-ttl` is set.
    pub(crate) backlog_ttl: bool,
    /// `repl-diskless-sync-delay` is set.
    pub(crate) diskless_delay: bool,
    /// `rename-command`: the command in lower case, and what it is called now; empty: it was taken away.
    pub(crate) renamed: Vec<(String, Vec<u8>)>,
}

impl Conf {
    /// Reads the text of a redis.conf in which includes were replaced.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, String> {
        let mut conf = Self::default();
        for (number, line) in text.split(|byte| *byte == b'\n').enumerate() {
            let line = line.trim_ascii();
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            let words = split(line).ok_or_else(|| format!("line {}: unbalanced quotes", number + 1))?;
            if let Some((name, values)) = words.split_first() {
                conf.take(&String::from_utf8_lossy(name).to_ascii_lowercase(), values);
            }
        }
        Ok(conf)
    }

    /// Reads directives as the command line has them: `--NAME VALUE…`.
    pub(crate) fn take_args(&mut self, words: &[Vec<u8>]) {
        let mut words = words.iter().peekable();
        while let Some(name) = words.next() {
            let mut values = Vec::new();
            while let Some(value) = words.next_if(|word| !word.starts_with(b"--")) {
                values.push(value.clone());
            }
            let name = String::from_utf8_lossy(name.strip_prefix(b"--").unwrap_or(name)).to_ascii_lowercase();
            self.take(&name, &values);
        }
    }

    /// The last directive of a name wins, as in redis.
    fn take(&mut self, name: &str, values: &[Vec<u8>]) {
        let first = values.first().map(Vec::as_slice).unwrap_or_default();
        match name {
            "requirepass" => self.password = Some(first.to_vec()).filter(|password| !password.is_empty()),
            "bind" => {
                self.bind = reachable(values);
                self.loopback_only = !values.is_empty() && values.iter().all(|value| is_loopback(value));
            }
            "unixsocket" => self.unix_socket = !first.is_empty(),
            "tls-port" => self.tls_port = first != b"0" && !first.is_empty(),
            "cluster-enabled" => self.cluster = first.eq_ignore_ascii_case(b"yes"),
            "appenddirname" => self.append_dir = true,
            "masterauth" => self.master_auth = !first.is_empty(),
            "min-replicas-max-lag" | "min-slaves-max-lag" => {
                (self.replica_lag, self.no_replica_lag) = (true, first == b"0");
            }
            "repl-backlog-ttl" => self.backlog_ttl = true,
            "repl-diskless-sync-delay" => self.diskless_delay = true,
            "maxclients" => {
                self.max_clients = std::str::from_utf8(first).ok().and_then(|text| text.parse().ok())
            }
            "rename-command" => {
                let now = values.get(1).cloned().unwrap_or_default();
                self.renamed.push((String::from_utf8_lossy(first).to_ascii_lowercase(), now));
            }
            _ => {}
        }
    }
}

/// The address to connect to; `None` where a wildcard or 127.0.0.1 is among them, for redis trusts loopback more than
/// its other addresses. A leading `-` lets redis start without the address, so such a one is only the last choice.
fn reachable(values: &[Vec<u8>]) -> Option<String> {
    let addresses: Vec<&str> = values.iter().filter_map(|value| std::str::from_utf8(value).ok()).collect();
    let plain = |address: &&str| address.trim_start_matches('-').to_owned();
    if addresses.iter().map(plain).any(|address| ["*", "0.0.0.0", "127.0.0.1"].contains(&address.as_str())) {
        return None;
    }
    addresses.iter().find(|address| !address.starts_with('-')).or(addresses.first()).map(plain)
}

/// Whether only this host can reach an address of `bind`.
fn is_loopback(value: &[u8]) -> bool {
    let address = std::str::from_utf8(value).ok().and_then(|text| text.trim_start_matches('-').parse().ok());
    address.is_some_and(|address: std::net::IpAddr| address.is_loopback())
}

/// The words of `redis_args`, which must be directives: redis takes a first word without dashes for a file.
pub(crate) fn args(text: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let words = split(text).ok_or("unbalanced quotes")?;
    match words.first() {
        Some(first) if !first.starts_with(b"--") => {
            Err(format!("it begins with `{}`, wanted --DIRECTIVE VALUE", first.escape_ascii()))
        }
        _ => Ok(words),
    }
}

/// Splits a line as redis does: blanks, `"…"` with escapes, `'…'` with `\'` alone. `None` where a quote is not closed
/// or something other than a blank follows it.
fn split(line: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut words = Vec::new();
    let mut rest = line;
    loop {
        rest = rest.trim_ascii_start();
        if rest.is_empty() {
            return Some(words);
        }
        let (word, after) = word(rest)?;
        words.push(word);
        rest = after;
    }
}

fn word(mut rest: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut word = Vec::new();
    loop {
        match rest {
            [] => return Some((word, rest)),
            [blank, ..] if blank.is_ascii_whitespace() || *blank == 0 => return Some((word, &rest[1..])),
            [b'"', after @ ..] => return closed(word, double_quoted(after)?),
            [b'\'', after @ ..] => return closed(word, single_quoted(after)?),
            [byte, after @ ..] => {
                word.push(*byte);
                rest = after;
            }
        }
    }
}

type Quoted<'a> = (Vec<u8>, &'a [u8]);

/// A quote ends a word: only a blank may follow.
fn closed<'a>(mut word: Vec<u8>, (quoted, after): Quoted<'a>) -> Option<Quoted<'a>> {
    word.extend(quoted);
    (after.is_empty() || after[0].is_ascii_whitespace()).then_some((word, after))
}

fn double_quoted(mut rest: &[u8]) -> Option<Quoted<'_>> {
    let mut word = Vec::new();
    loop {
        rest = match rest {
            [] => return None,
            [b'"', after @ ..] => return Some((word, after)),
            [b'\\', b'x', high, low, after @ ..] if hex(*high).is_some() && hex(*low).is_some() => {
                word.push(hex(*high)? << 4 | hex(*low)?);
                after
            }
            [b'\\', escaped, after @ ..] => {
                word.push(match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 8,
                    b'a' => 7,
                    other => *other,
                });
                after
            }
            [byte, after @ ..] => {
                word.push(*byte);
                after
            }
        }
    }
}

fn single_quoted(mut rest: &[u8]) -> Option<Quoted<'_>> {
    let mut word = Vec::new();
    loop {
        rest = match rest {
            [] => return None,
            [b'\\', b'\'', after @ ..] => {
                word.push(b'\'');
                after
            }
            [b'\'', after @ ..] => return Some((word, after)),
            [byte, after @ ..] => {
                word.push(*byte);
                after
            }
        }
    }
}

fn hex(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_matters_is_found_and_the_last_wins() {
        let conf = Conf::parse(
            b"# a comment\nrequirepass first\r\n  RequirePass \"s\\x41\\n \\\"q\\\"\"\nbind -::1 10.0.0.1 10.0.0.2\n\
              tls-port 6390\nunixsocket /run/redis.sock\ncluster-enabled YES\nmaxclients 500\nappenddirname aof\n\
              rename-command GET hidden\nrename-command CONFIG \"\"\nmasterauth x\nmin-slaves-max-lag 5\n\
              repl-backlog-ttl 60\nrepl-diskless-sync-delay 2\n",
        )
        .unwrap();
        let expected = Conf {
            password: Some(b"sA\n \"q\"".to_vec()),
            bind: Some("10.0.0.1".to_owned()),
            unix_socket: true,
            tls_port: true,
            cluster: true,
            append_dir: true,
            max_clients: Some(500),
            loopback_only: false,
            master_auth: true,
            replica_lag: true,
            no_replica_lag: false,
            backlog_ttl: true,
            diskless_delay: true,
            renamed: vec![("get".to_owned(), b"hidden".to_vec()), ("config".to_owned(), Vec::new())],
        };
        assert_eq!(conf, expected);
    }

    #[test]
    fn what_was_taken_back_is_not_there() {
        let conf = Conf::parse(
            b"requirepass x\nrequirepass \"\"\ntls-port 1\ntls-port 0\nbind 10.0.0.1\nbind * -::*",
        )
        .unwrap();
        assert_eq!(conf, Conf::default());
    }

    #[test]
    fn the_address_to_connect_to_is_loopback_where_it_can_be() {
        for (bind, expected) in [
            ("10.0.0.1", Some("10.0.0.1")),
            ("127.0.0.1 -::1", None),
            ("10.0.0.1 127.0.0.1", None),
            ("* -::*", None),
            ("-10.0.0.1 ::1", Some("::1")),
            ("-10.0.0.1", Some("10.0.0.1")),
        ] {
            let conf = Conf::parse(format!("bind {bind}").as_bytes()).unwrap();
            assert_eq!(conf.bind.as_deref(), expected, "{bind}");
        }
    }

    #[test]
    fn what_no_other_host_can_reach_is_told() {
        for (bind, expected) in [
            ("127.0.0.1 -::1", true),
            ("127.0.0.2", true),
            ("127.0.0.1 10.0.0.1", false),
            ("*", false),
            ("localhost", false),
        ] {
            let conf = Conf::parse(format!("bind {bind}").as_bytes()).unwrap();
            assert_eq!(conf.loopback_only, expected, "{bind}");
        }
        assert!(!Conf::parse(b"").unwrap().loopback_only);
    }

    #[test]
    fn words_are_split_as_redis_splits_them() {
        for (line, expected) in [
            ("a  b", Some(vec!["a", "b"])),
            ("a 'b c' d", Some(vec!["a", "b c", "d"])),
            (r#"a "b\tc""#, Some(vec!["a", "b\tc"])),
            (r#"a "" ''"#, Some(vec!["a", "", ""])),
            (r"a 'it\'s \n'", Some(vec!["a", r"it's \n"])),
            (r#"a b"c d""#, Some(vec!["a", "bc d"])),
            (r#"a "b"c"#, None),
            (r#"a "b"#, None),
            ("a 'b", None),
        ] {
            let words = split(line.as_bytes());
            let expected = expected
                .map(|words| words.into_iter().map(|word| word.as_bytes().to_vec()).collect::<Vec<_>>());
            assert_eq!(words, expected, "{line}");
        }
    }

    #[test]
    fn the_command_line_has_directives_too() {
        let mut conf = Conf::parse(b"requirepass first\nmaxclients 9").unwrap();
        let words = args(b"--RequirePass 'a b' --rename-command GET get2 --maxclients 7").unwrap();
        conf.take_args(&words);
        assert_eq!((conf.password.as_deref(), conf.max_clients), (Some(&b"a b"[..]), Some(7)));
        assert_eq!(conf.renamed, [("get".to_owned(), b"get2".to_vec())]);
        assert_eq!(
            args(b"/etc/other.conf"),
            Err("it begins with `/etc/other.conf`, wanted --DIRECTIVE VALUE".to_owned())
        );
        assert_eq!(args(b"--x 'y"), Err("unbalanced quotes".to_owned()));
    }

    #[test]
    fn a_line_that_redis_refuses_is_refused_with_its_number() {
        assert_eq!(Conf::parse(b"port 1\nrequirepass \"x\n"), Err("line 2: unbalanced quotes".to_owned()));
    }
}
