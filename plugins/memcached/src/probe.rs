//! The probe: a `get` of one key. A miss is an answer.

use yagent_abi::sdk::{Event, Flow, Health, Sink, Step};

use crate::protocol::{error, first_line, foreign};

const REQUEST: &[u8] = b"get yagent:probe\r\n";
/// Somebody may have set the key; a value beyond this is not waited for.
const VALUE_MAX: usize = 64 << 10;

pub(crate) fn step(event: Event<'_>, sink: &Sink<'_>) -> Step {
    match event {
        Event::Begin(_) => {
            sink.send(REQUEST);
            Ok(Flow::More)
        }
        Event::Bytes(bytes) => match classify(bytes) {
            Some((health, why)) => {
                sink.health(health, &why);
                Ok(Flow::Done)
            }
            None => Ok(Flow::More),
        },
        other => Err(other.refusal()),
    }
}

/// What the answer says; `None` while it isn't whole.
fn classify(bytes: &[u8]) -> Option<(Health, String)> {
    let (line, rest) = match first_line(bytes) {
        Ok(Some(split)) => split,
        Ok(None) => return None,
        Err(why) => return Some((Health::Wrong, why)),
    };
    if line == b"END" {
        return Some(ended(rest, bytes));
    }
    if let Some(found) = error(line) {
        return Some(found);
    }
    match value_len(line) {
        Some(len) if len <= VALUE_MAX => value(bytes, rest, len),
        _ => Some((Health::Wrong, foreign(bytes))),
    }
}

/// The length in `VALUE yagent:probe FLAGS LENGTH`.
fn value_len(line: &[u8]) -> Option<usize> {
    let line = std::str::from_utf8(line.strip_prefix(b"VALUE yagent:probe ")?).ok()?;
    line.split(' ').nth(1)?.parse().ok()
}

/// A hit: the value, its line end, and `END`.
fn value(bytes: &[u8], rest: &[u8], len: usize) -> Option<(Health, String)> {
    const TAIL: &[u8] = b"\r\nEND\r\n";
    let tail = rest.get(len..)?;
    if tail.len() < TAIL.len() && TAIL.starts_with(tail) {
        return None;
    }
    match tail.strip_prefix(TAIL) {
        Some(after) => Some(ended(after, bytes)),
        None => Some((Health::Wrong, foreign(bytes))),
    }
}

/// Nothing follows an answer.
fn ended(after: &[u8], bytes: &[u8]) -> (Health, String) {
    if after.is_empty() { (Health::Serving, String::new()) } else { (Health::Wrong, foreign(bytes)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(bytes: &[u8]) -> Option<(Health, String)> {
        classify(bytes)
    }

    #[test]
    fn each_answer_is_told_apart() {
        for (answer, health, why) in [
            ("END\r\n", Health::Serving, ""),
            ("VALUE yagent:probe 0 3\r\nyes\r\nEND\r\n", Health::Serving, ""),
            ("VALUE yagent:probe 0 5\r\nEND\r\n\r\nEND\r\n", Health::Serving, ""),
            (
                "SERVER_ERROR out of memory writing get response\r\n",
                Health::Full,
                "SERVER_ERROR out of memory writing get response",
            ),
            ("ERROR Too many open connections\r\n", Health::Full, "ERROR Too many open connections"),
            ("CLIENT_ERROR unauthenticated\r\n", Health::Refused, "CLIENT_ERROR unauthenticated"),
            ("SERVER_ERROR temporary failure\r\n", Health::Serving, "SERVER_ERROR temporary failure"),
            ("ERROR\r\n", Health::Wrong, "ERROR"),
            (
                "HTTP/1.1 400 Bad Request\r\n",
                Health::Wrong,
                "the answer `HTTP/1.1 400 Bad Request` is not memcached's",
            ),
            (
                "-ERR unknown command\r\n",
                Health::Wrong,
                "the answer `-ERR unknown command` is not memcached's",
            ),
            ("VALUE other 0 3\r\n", Health::Wrong, "the answer `VALUE other 0 3` is not memcached's"),
            (
                "VALUE yagent:probe 0 99999999\r\n",
                Health::Wrong,
                "the answer `VALUE yagent:probe 0 99999999` is not memcached's",
            ),
            (
                "VALUE yagent:probe 0 1\r\nlonger",
                Health::Wrong,
                "the answer `VALUE yagent:probe 0 1` is not memcached's",
            ),
        ] {
            assert_eq!(found(answer.as_bytes()), Some((health, why.to_owned())), "{answer}");
        }
    }

    #[test]
    fn an_answer_is_judged_when_whole_wherever_it_is_cut() {
        for answer in [
            "END\r\n",
            "VALUE yagent:probe 7 11\r\nx\r\nEND\r\nyyy\r\nEND\r\n",
            "ERROR Too many open connections\r\n",
        ] {
            let bytes = answer.as_bytes();
            for cut in 0..bytes.len() {
                assert_eq!(found(&bytes[..cut]), None, "{answer} cut at {cut}");
            }
            assert!(found(bytes).is_some(), "{answer}");
        }
    }

    #[test]
    fn a_flood_without_a_line_is_wrong_and_not_waited_for() {
        assert_eq!(found(&[b'x'; 2048]), None);
        let (health, why) = found(&[b'x'; 2049]).unwrap();
        assert_eq!((health, why.len() < 200), (Health::Wrong, true));
    }
}
