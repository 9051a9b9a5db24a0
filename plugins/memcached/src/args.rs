//! `mc_args`: split as a shell would, read as memcached's own getopt reads it, with `-d` taken out.
//!
//! The agent keeps instances as its children and therefore in the foreground; everything else is passed on as it
//! stands. What would make an instance unreachable for the probe is refused here, before anything is started.

/// Open files beside those of clients: listeners, epoll and pipes of the threads, the log.
pub(crate) const OTHER_FILES: u64 = 256;

/// memcached's connections without `-c`.
const CONNECTIONS: u64 = 1024;

/// Options that take a value, as in memcached's getopt string.
const VALUED: &[u8] = b"apsUmcluPfntDRbBIYeoN";

/// Long options: name, short name, how it takes a value. `verbose` takes one only behind `=`.
const LONG: &[(&str, u8, Value)] = &[
    ("auth-file", b'Y', Value::Required),
    ("conn-limit", b'c', Value::Required),
    ("daemon", b'd', Value::None),
    ("disable-cas", b'C', Value::None),
    ("disable-dumping", b'X', Value::None),
    ("disable-evictions", b'M', Value::None),
    ("disable-flush-all", b'F', Value::None),
    ("disable-watch", b'W', Value::None),
    ("enable-coredumps", b'r', Value::None),
    ("enable-largepages", b'L', Value::None),
    ("enable-sasl", b'S', Value::None),
    ("enable-shutdown", b'A', Value::None),
    ("enable-ssl", b'Z', Value::None),
    ("extended", b'o', Value::Required),
    ("help", b'h', Value::None),
    ("license", b'i', Value::None),
    ("listen", b'l', Value::Required),
    ("listen-backlog", b'b', Value::Required),
    ("lock-memory", b'k', Value::None),
    ("max-item-size", b'I', Value::Required),
    ("max-reqs-per-event", b'R', Value::Required),
    ("memory-file", b'e', Value::Required),
    ("memory-limit", b'm', Value::Required),
    ("napi-ids", b'N', Value::Required),
    ("pidfile", b'P', Value::Required),
    ("port", b'p', Value::Required),
    ("protocol", b'B', Value::Required),
    ("slab-growth-factor", b'f', Value::Required),
    ("slab-min-size", b'n', Value::Required),
    ("threads", b't', Value::Required),
    ("udp-port", b'U', Value::Required),
    ("unix-mask", b'a', Value::Required),
    ("unix-socket", b's', Value::Required),
    ("user", b'u', Value::Required),
    ("verbose", b'v', Value::Optional),
    ("version", b'V', Value::None),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Value {
    None,
    Optional,
    Required,
}

/// What `mc_args` come to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Args {
    /// The words to pass on.
    pub(crate) words: Vec<Vec<u8>>,
    /// `-u`: whom memcached becomes.
    pub(crate) user: Option<String>,
    /// `-c`: how many connections it may take.
    pub(crate) connections: u64,
    /// The first address of `-l` that isn't a wildcard.
    pub(crate) listen: Option<String>,
    port: u16,
}

impl Args {
    /// Reads `mc_args` for an instance on `port`.
    pub(crate) fn parse(text: &[u8], port: u16) -> Result<Self, String> {
        let mut args = Self { words: Vec::new(), user: None, connections: CONNECTIONS, listen: None, port };
        let mut words = split(text)?.into_iter();
        while let Some(word) = words.next() {
            match word.as_slice() {
                // Behind it are no options, and memcached ignores everything else; ours would be among it.
                b"--" => break,
                [b'-', b'-', long @ ..] => args.long(long, &word, &mut words)?,
                [b'-', bundle @ ..] if !bundle.is_empty() => args.bundle(bundle, &mut words)?,
                _ => args.words.push(word),
            }
        }
        Ok(args)
    }

    /// `-vvd`, `-c1024`, `-c 1024`: flags up to one that takes the rest, or the next word, for its value.
    fn bundle(&mut self, bundle: &[u8], rest: &mut impl Iterator<Item = Vec<u8>>) -> Result<(), String> {
        let valued = bundle.iter().position(|option| VALUED.contains(option));
        let (flags, tail) = bundle.split_at(valued.unwrap_or(bundle.len()));
        for flag in flags {
            self.option(*flag, None)?;
        }
        let mut kept: Vec<u8> = flags.iter().copied().filter(|flag| *flag != b'd').collect();
        kept.extend_from_slice(tail);
        if !kept.is_empty() {
            kept.insert(0, b'-');
            self.words.push(kept);
        }
        match tail {
            [] => Ok(()),
            [option] => {
                let value = rest.next().ok_or_else(|| format!("-{} has no value", char::from(*option)))?;
                self.option(*option, Some(&value))?;
                self.words.push(value);
                Ok(())
            }
            [option, value @ ..] => self.option(*option, Some(value)),
        }
    }

    /// `--daemon`, `--conn-limit=1024`, `--conn-limit 1024`, or an unambiguous beginning of it.
    fn long(
        &mut self,
        long: &[u8],
        word: &[u8],
        rest: &mut impl Iterator<Item = Vec<u8>>,
    ) -> Result<(), String> {
        let mut parts = long.splitn(2, |byte| *byte == b'=');
        let (name, inline) = (parts.next().unwrap_or_default(), parts.next());
        // An option of a later version goes through; whether there is one is for memcached to say.
        let Some((short, takes)) = find_long(name) else {
            self.words.push(word.to_vec());
            return Ok(());
        };
        if short == b'd' {
            return Ok(());
        }
        self.words.push(word.to_vec());
        if takes == Value::Required && inline.is_none() {
            let value = rest.next().ok_or_else(|| format!("--{} has no value", name.escape_ascii()))?;
            self.option(short, Some(&value))?;
            self.words.push(value);
            return Ok(());
        }
        self.option(short, inline)
    }

    /// Takes note of an option that matters to us.
    fn option(&mut self, option: u8, value: Option<&[u8]>) -> Result<(), String> {
        let text = || String::from_utf8_lossy(value.unwrap_or_default()).into_owned();
        match option {
            b'u' => self.user = Some(text()),
            b'c' => {
                self.connections = text().parse().map_err(|error| format!("-c is `{}`: {error}", text()))?;
            }
            b'l' => self.listen(&text())?,
            b's' => return Err("-s makes memcached listen on a unix socket instead of its port".to_owned()),
            b'S' => return Err("-S leaves the binary protocol alone, and the probe speaks text".to_owned()),
            b'B' if text() == "binary" => {
                return Err("-B binary turns off the text protocol, which the probe speaks".to_owned());
            }
            b'Z' => return Err("-Z encrypts the port, and the probe speaks plain text".to_owned()),
            b'h' | b'i' | b'V' => {
                return Err(format!("-{} makes memcached print and exit", char::from(option)));
            }
            _ => {}
        }
        Ok(())
    }

    /// `-l`: comma separated, each `ADDRESS` or `ADDRESS:PORT`, perhaps behind `notls:`.
    fn listen(&mut self, list: &str) -> Result<(), String> {
        for item in list.split([',', ';']).filter(|item| !item.is_empty()) {
            let (address, port) = address_and_port(item.strip_prefix("notls:").unwrap_or(item));
            if port.is_some_and(|port| port.parse() != Ok(self.port)) {
                return Err(format!("-l {item} names a port, and each instance has its own"));
            }
            if self.listen.is_none() && !["*", "0.0.0.0", "::"].contains(&address) {
                self.listen = Some(address.to_owned());
            }
        }
        Ok(())
    }
}

fn address_and_port(item: &str) -> (&str, Option<&str>) {
    if let Some((address, rest)) = item.strip_prefix('[').and_then(|item| item.split_once(']')) {
        return (address, rest.strip_prefix(':'));
    }
    match item.split_once(':') {
        Some((address, port)) if !port.contains(':') => (address, Some(port)),
        _ => (item, None),
    }
}

/// A long option by its name or the beginning of just one name, as getopt_long has it.
fn find_long(name: &[u8]) -> Option<(u8, Value)> {
    let exact = LONG.iter().find(|(long, ..)| long.as_bytes() == name);
    let mut begun = LONG.iter().filter(|(long, ..)| !name.is_empty() && long.as_bytes().starts_with(name));
    let only = exact.or_else(|| match (begun.next(), begun.next()) {
        (only, None) => only,
        _ => None,
    });
    only.map(|(_, short, takes)| (*short, *takes))
}

/// Splits as a POSIX shell splits words: blanks, quotes and backslashes, without expansion.
fn split(text: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let (mut words, mut word) = (Vec::new(), None::<Vec<u8>>);
    let mut bytes = text.iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            b' ' | b'\t' | b'\n' | b'\r' => words.extend(word.take()),
            b'\'' => single_quoted(&mut bytes, word.get_or_insert_default())?,
            b'"' => double_quoted(&mut bytes, word.get_or_insert_default())?,
            b'\\' => {
                let next = bytes.next().ok_or("a backslash at the end")?;
                word.get_or_insert_default().push(next);
            }
            0 => return Err("there is a NUL in it".to_owned()),
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    Ok(words)
}

fn single_quoted(bytes: &mut impl Iterator<Item = u8>, word: &mut Vec<u8>) -> Result<(), String> {
    for byte in bytes {
        match byte {
            b'\'' => return Ok(()),
            other => word.push(other),
        }
    }
    Err("a quote ' is not closed".to_owned())
}

fn double_quoted(bytes: &mut impl Iterator<Item = u8>, word: &mut Vec<u8>) -> Result<(), String> {
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => return Ok(()),
            b'\\' => match bytes.next() {
                Some(next @ (b'"' | b'\\' | b'$' | b'`')) => word.push(next),
                Some(next) => word.extend([b'\\', next]),
                None => break,
            },
            other => word.push(other),
        }
    }
    Err("a quote \" is not closed".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        let args = Args::parse(text.as_bytes(), 11211).unwrap();
        args.words.into_iter().map(|word| String::from_utf8(word).unwrap()).collect()
    }

    fn refusal(text: &str) -> String {
        Args::parse(text.as_bytes(), 11211).unwrap_err()
    }

    #[test]
    fn the_legacy_line_loses_its_d_alone() {
        let text = "-u nobody -d -c 10240 -o tail_repair_time=7200 slab_reassign slab_automove";
        let args = Args::parse(text.as_bytes(), 11211).unwrap();
        assert_eq!(
            words(text),
            ["-u", "nobody", "-c", "10240", "-o", "tail_repair_time=7200", "slab_reassign", "slab_automove"]
        );
        assert_eq!((args.user.as_deref(), args.connections, args.listen), (Some("nobody"), 10240, None));
    }

    #[test]
    fn a_d_is_found_in_bundles_and_left_in_values() {
        for (text, expected) in [
            ("-dv", vec!["-v"]),
            ("-vd -k", vec!["-v", "-k"]),
            ("-d", vec![]),
            ("-ddd", vec![]),
            ("-kdP /run/d", vec!["-kP", "/run/d"]),
            ("-o d", vec!["-o", "d"]),
            ("-P -d", vec!["-P", "-d"]),
            ("-P-d", vec!["-P-d"]),
            ("-vdod", vec!["-vod"]),
            ("-udaemon", vec!["-udaemon"]),
            ("--daemon -v", vec!["-v"]),
            ("--daem", vec![]),
            ("--user daemon", vec!["--user", "daemon"]),
            ("--pidfile -d", vec!["--pidfile", "-d"]),
            ("--verbose d -d", vec!["--verbose", "d"]),
            ("-v -- -d", vec!["-v"]),
            ("- -d", vec!["-"]),
            ("--from-the-future 3 -d --disable", vec!["--from-the-future", "3", "--disable"]),
        ] {
            assert_eq!(words(text), expected, "{text}");
        }
    }

    #[test]
    fn what_matters_to_us_is_read_from_every_form() {
        for (text, user, connections, listen) in [
            ("", None, 1024, None),
            ("-unobody -c64", Some("nobody"), 64, None),
            ("--user=nobody --conn-limit=64", Some("nobody"), 64, None),
            ("--user nobody --conn 64", Some("nobody"), 64, None),
            ("-c 1 -c 2", None, 2, None),
            ("-l 10.0.0.1", None, 1024, Some("10.0.0.1")),
            ("-l 0.0.0.0,10.0.0.1:11211", None, 1024, Some("10.0.0.1")),
            ("-l [::1]:11211", None, 1024, Some("::1")),
            ("-l ::1", None, 1024, Some("::1")),
            ("-l notls:10.0.0.2 --listen 10.0.0.3", None, 1024, Some("10.0.0.2")),
        ] {
            let args = Args::parse(text.as_bytes(), 11211).unwrap();
            assert_eq!(
                (args.user.as_deref(), args.connections, args.listen.as_deref()),
                (user, connections, listen)
            );
        }
    }

    #[test]
    fn what_would_not_answer_is_refused() {
        for (text, expected) in [
            ("-s /run/mc", "-s makes memcached listen on a unix socket instead of its port"),
            ("-vS", "-S leaves the binary protocol alone, and the probe speaks text"),
            ("-B binary", "-B binary turns off the text protocol, which the probe speaks"),
            ("--enable-ssl", "-Z encrypts the port, and the probe speaks plain text"),
            ("-V", "-V makes memcached print and exit"),
            ("-c", "-c has no value"),
            ("--user", "--user has no value"),
            ("-c many", "-c is `many`: invalid digit found in string"),
            ("-l 10.0.0.1:9", "-l 10.0.0.1:9 names a port, and each instance has its own"),
            ("-u 'nobody", "a quote ' is not closed"),
            ("-u \"nobody", "a quote \" is not closed"),
            ("-u \\", "a backslash at the end"),
        ] {
            assert_eq!(refusal(text), expected, "{text}");
        }
    }

    #[test]
    fn words_are_split_as_a_shell_does() {
        for (text, expected) in [
            ("  a\tb  ", vec!["a", "b"]),
            ("'a b' \"c d\"e", vec!["a b", "c de"]),
            ("a\\ b '' \"\\\"\\x\"", vec!["a b", "", "\"\\x"]),
        ] {
            let words: Vec<String> = split(text.as_bytes())
                .unwrap()
                .into_iter()
                .map(|word| String::from_utf8(word).unwrap())
                .collect();
            assert_eq!(words, expected, "{text}");
        }
        assert_eq!(split(b"a \xff").unwrap(), [b"a".to_vec(), b"\xff".to_vec()]);
    }
}
