//! Reads one value of each kind. No file, no other key: what a value means beside others is `legacy`'s business.

use std::{net::IpAddr, time::Duration};

/// As Python's `getboolean`.
pub(super) fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "yes" | "true" | "on" => Some(true),
        "0" | "no" | "false" | "off" => Some(false),
        _ => None,
    }
}

/// A whole number within bounds.
pub(super) fn integer(text: &str, min: i64, max: i64) -> Option<i64> {
    text.parse().ok().filter(|number| (min..=max).contains(number))
}

/// Seconds with decimals, within bounds; no exponent, no `inf`, no `nan`.
pub(super) fn seconds(text: &str, min: f64, max: f64) -> Option<Duration> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'+'));
    let number: f64 = text.parse().ok().filter(|_| plain)?;
    (min..=max).contains(&number).then(|| Duration::from_secs_f64(number))
}

/// A number of instances: `Some(None)` for -1.
pub(super) fn count(text: &str) -> Option<Option<u32>> {
    match integer(text, -1, 65_535)? {
        -1 => Some(None),
        number => u32::try_from(number).ok().map(Some),
    }
}

/// An address that others can reach, or nothing.
pub(super) fn address(text: &str) -> Option<Option<IpAddr>> {
    if text.is_empty() { Some(None) } else { text.parse().ok().map(Some) }
}

/// Addresses of hosts, each once; the error is what was expected.
pub(super) fn addresses(text: &str) -> Result<Vec<IpAddr>, String> {
    let mut found: Vec<IpAddr> = Vec::new();
    for part in text.split([',', ' ', '\t', '\n']).filter(|part| !part.is_empty()) {
        let Ok(address) = part.parse::<IpAddr>() else {
            return Err(format!("IPv4 or IPv6 addresses, which {part:?} is not: names are not looked up"));
        };
        if address.is_unspecified() || address.is_multicast() {
            return Err(format!("addresses by which hosts are reached, which {address} is not"));
        }
        if found.contains(&address) {
            return Err(format!("each address once, and {address} stands there twice"));
        }
        found.push(address);
    }
    Ok(found)
}

/// Windows in the file's order.
pub(super) fn windows(text: &str) -> Option<Vec<Duration>> {
    let one = |part: &str| integer(part.trim(), 1, 31_536_000).and_then(|n| u64::try_from(n).ok());
    let all: Vec<u64> = text.split(',').map(one).collect::<Option<_>>()?;
    (all.len() <= 16).then(|| all.into_iter().map(Duration::from_secs).collect())
}

/// A level of the log.
pub(super) fn level(text: &str) -> Option<log::LevelFilter> {
    let level: log::LevelFilter = text.parse().ok()?;
    let known = log::LevelFilter::Error..=log::LevelFilter::Debug;
    known.contains(&level).then_some(level)
}

/// Names separated by commas; nothing is an empty list.
pub(super) fn names(text: &str) -> Option<Vec<String>> {
    if text.is_empty() {
        return Some(Vec::new());
    }
    let name = |part: &str| {
        let part = part.trim();
        let clean =
            !part.is_empty() && !part.contains(|c: char| c.is_whitespace() || c.is_control() || c == '/');
        clean.then(|| part.to_owned())
    };
    text.split(',').map(name).collect()
}

/// Words as a shell would split them; `None` where a quote or a backslash is left open.
pub(super) fn words(text: &str) -> Option<Vec<String>> {
    shell_words::split(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn booleans_are_those_of_python() {
        assert_eq!(["1", "Yes", "TRUE", "on"].map(boolean), [Some(true); 4]);
        assert_eq!(["0", "no", "False", "OFF"].map(boolean), [Some(false); 4]);
        assert_eq!(["", "2", "enable", "y", "t"].map(boolean), [None; 5]);
    }

    #[test]
    fn numbers_keep_their_bounds() {
        assert_eq!(integer("65535", 1, 65535), Some(65535));
        assert_eq!(
            ["0", "65536", "70000", "", "1 ", "0x10", "1_0", "9999999999999999999"]
                .map(|t| integer(t, 1, 65535)),
            [None; 8]
        );
        assert_eq!(count("-1"), Some(None));
        assert_eq!((count("-2"), count("3")), (None, Some(Some(3))));
    }

    #[test]
    fn seconds_take_decimals_and_nothing_fancy() {
        assert_eq!(seconds("0.25", 0.1, 5.0), Some(Duration::from_millis(250)));
        assert_eq!(
            ["inf", "nan", "1e0", "-1", "0.01", "5.1", "", "1s"].map(|t| seconds(t, 0.1, 5.0)),
            [None; 8]
        );
    }

    #[test]
    fn lists_refuse_gaps() {
        assert_eq!(windows("60, 3600"), Some(vec![Duration::from_secs(60), Duration::from_secs(3600)]));
        assert_eq!(["", "60,", "0", "60;3600", "1.5"].map(windows), [const { None }; 5]);
        assert_eq!(names("a, b"), Some(vec!["a".into(), "b".into()]));
        assert_eq!((names(""), names("a,,b"), names("a b")), (Some(Vec::new()), None, None));
    }

    #[test]
    fn addresses_are_of_hosts_and_each_stands_once() {
        let told =
            |text: &str| addresses(text).map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(
            told("10.0.0.2,10.0.0.3 2001:db8::1 ,"),
            Ok(vec!["10.0.0.2".into(), "10.0.0.3".into(), "2001:db8::1".into()])
        );
        assert_eq!(told(""), Ok(Vec::new()));
        for (text, why) in [
            ("10.0.0.2, db2", "IPv4 or IPv6 addresses, which \"db2\" is not: names are not looked up"),
            (
                "10.0.0.2:16379",
                "IPv4 or IPv6 addresses, which \"10.0.0.2:16379\" is not: names are not looked up",
            ),
            ("::1 0:0::1", "each address once, and ::1 stands there twice"),
            ("0.0.0.0", "addresses by which hosts are reached, which 0.0.0.0 is not"),
        ] {
            assert_eq!(told(text), Err(why.to_owned()), "{text}");
        }
    }

    #[test]
    fn levels_are_the_four() {
        assert_eq!(level("WARN"), Some(log::LevelFilter::Warn));
        assert_eq!((level("trace"), level("off"), level("warning")), (None, None, None));
    }
}
