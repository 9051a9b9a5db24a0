//! The statistics: one `stats`, its names turned into the well-known ones.
//!
//! | told | memcached's |
//! | --- | --- |
//! | gets | cmd_get |
//! | hits | get_hits |
//! | sets | cmd_set |
//! | deletes | delete_hits + delete_misses |
//! | evictions | evictions |
//! | expirations | reclaimed + crawler_reclaimed + get_expired: found expired by a store, the crawler, a get |
//! | keys | curr_items |
//! | bytes, limit_bytes | bytes, limit_maxbytes |
//! | connections | curr_connections |
//! | uptime_s | uptime |
//! | version (text) | version |

use memchr::memmem;
use yagent_abi::sdk::{Event, Flow, Sink, Step};

use crate::protocol::{error, first_line, foreign};

const REQUEST: &[u8] = b"stats\r\n";
const END: &[u8] = b"END\r\n";

pub(crate) fn step(event: Event<'_>, sink: &Sink<'_>) -> Step {
    match event {
        Event::Begin(_) => {
            sink.send(REQUEST);
            Ok(Flow::More)
        }
        Event::Bytes(bytes) => match parse(bytes)? {
            Some(figures) => {
                figures.tell(sink);
                Ok(Flow::Done)
            }
            None => Ok(Flow::More),
        },
        other => Err(other.refusal()),
    }
}

/// Figures as memcached counts them.
#[derive(Debug, Default, PartialEq)]
struct Figures {
    gets: Option<f64>,
    hits: Option<f64>,
    sets: Option<f64>,
    deletes: Option<f64>,
    evictions: Option<f64>,
    expirations: Option<f64>,
    keys: Option<f64>,
    bytes: Option<f64>,
    limit_bytes: Option<f64>,
    connections: Option<f64>,
    uptime_s: Option<f64>,
    version: String,
}

impl Figures {
    fn take(&mut self, name: &str, value: &str) -> Result<(), String> {
        let figure = match name {
            "cmd_get" => &mut self.gets,
            "get_hits" => &mut self.hits,
            "cmd_set" => &mut self.sets,
            "delete_hits" | "delete_misses" => &mut self.deletes,
            "evictions" => &mut self.evictions,
            "reclaimed" | "crawler_reclaimed" | "get_expired" => &mut self.expirations,
            "curr_items" => &mut self.keys,
            "bytes" => &mut self.bytes,
            "limit_maxbytes" => &mut self.limit_bytes,
            "curr_connections" => &mut self.connections,
            "uptime" => &mut self.uptime_s,
            "version" => {
                value.clone_into(&mut self.version);
                return Ok(());
            }
            _ => return Ok(()),
        };
        let value: u64 = value.parse().map_err(|error| format!("`{name}` is `{value}`: {error}"))?;
        #[allow(clippy::cast_precision_loss, reason = "figures above 2^53 may lose their last digit")]
        let value = value as f64;
        *figure = Some(figure.unwrap_or(0.0) + value);
        Ok(())
    }

    fn tell(&self, sink: &Sink<'_>) {
        let counters = [
            ("gets", self.gets),
            ("hits", self.hits),
            ("sets", self.sets),
            ("deletes", self.deletes),
            ("evictions", self.evictions),
            ("expirations", self.expirations),
        ];
        let gauges = [
            ("keys", self.keys),
            ("bytes", self.bytes),
            ("limit_bytes", self.limit_bytes),
            ("connections", self.connections),
            ("uptime_s", self.uptime_s),
        ];
        let told = |(name, value): (&'static str, Option<f64>)| value.map(|value| (name, value));
        counters.into_iter().filter_map(told).for_each(|(name, value)| sink.counter(name, value));
        gauges.into_iter().filter_map(told).for_each(|(name, value)| sink.gauge(name, value));
        if !self.version.is_empty() {
            sink.text("version", &self.version);
        }
    }
}

/// The figures of an answer; `None` while it isn't whole.
fn parse(bytes: &[u8]) -> Result<Option<Figures>, String> {
    let Some((line, _)) = first_line(bytes)? else {
        return Ok(None);
    };
    if let Some((_, why)) = error(line) {
        return Err(why);
    }
    if line != b"END" && !line.starts_with(b"STAT ") {
        return Err(foreign(bytes));
    }
    // A value can't hold a line end, so the first END that begins a line is the answer's.
    let end =
        if bytes.starts_with(END) { Some(0) } else { memmem::find(bytes, b"\nEND\r\n").map(|at| at + 1) };
    match end {
        None => Ok(None),
        Some(end) if end + END.len() == bytes.len() => figures(&bytes[..end]).map(Some),
        Some(_) => Err(foreign(bytes)),
    }
}

fn figures(bytes: &[u8]) -> Result<Figures, String> {
    let mut figures = Figures::default();
    let text = std::str::from_utf8(bytes).map_err(|_| foreign(bytes))?;
    for line in text.lines() {
        let stat = line.strip_prefix("STAT ").and_then(|stat| stat.split_once(' '));
        let (name, value) = stat.ok_or_else(|| foreign(line.as_bytes()))?;
        figures.take(name, value)?;
    }
    if figures == Figures::default() {
        return Err("the answer to `stats` has no figures".to_owned());
    }
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a memcached 1.6.18 answered.
    const RECORDED: &[u8] = include_bytes!("../fixtures/stats/1.6.18.txt");

    #[test]
    fn a_recorded_answer_gives_the_figures_in_it() {
        let figures = parse(RECORDED).unwrap().unwrap();
        let raw = |name: &str| -> f64 {
            let text = std::str::from_utf8(RECORDED).unwrap();
            let line = text.lines().find(|line| line.starts_with(&format!("STAT {name} "))).unwrap();
            line.rsplit(' ').next().unwrap().parse().unwrap()
        };
        assert_eq!(figures.version, "1.6.18");
        for (figure, names) in [
            (figures.gets, vec!["cmd_get"]),
            (figures.hits, vec!["get_hits"]),
            (figures.sets, vec!["cmd_set"]),
            (figures.deletes, vec!["delete_hits", "delete_misses"]),
            (figures.evictions, vec!["evictions"]),
            (figures.expirations, vec!["reclaimed", "crawler_reclaimed", "get_expired"]),
            (figures.keys, vec!["curr_items"]),
            (figures.bytes, vec!["bytes"]),
            (figures.limit_bytes, vec!["limit_maxbytes"]),
            (figures.connections, vec!["curr_connections"]),
            (figures.uptime_s, vec!["uptime"]),
        ] {
            assert_eq!(figure, Some(names.iter().map(|name| raw(name)).sum()), "{names:?}");
        }
        assert!(figures.gets > Some(0.0) && figures.deletes > Some(0.0), "the recording shows traffic");
    }

    #[test]
    fn no_cut_of_the_answer_is_taken_for_the_whole() {
        for cut in 0..RECORDED.len() {
            assert_eq!(parse(&RECORDED[..cut]), Ok(None), "cut at {cut}");
        }
    }

    #[test]
    fn what_is_no_answer_to_stats_is_an_error() {
        for (answer, why) in [
            ("ERROR Too many open connections\r\n", "ERROR Too many open connections"),
            ("HTTP/1.1 400\r\n", "the answer `HTTP/1.1 400` is not memcached's"),
            ("STAT pid\r\nEND\r\n", "the answer `STAT pid` is not memcached's"),
            ("STAT uptime -1\r\nEND\r\n", "`uptime` is `-1`: invalid digit found in string"),
            ("END\r\n", "the answer to `stats` has no figures"),
            ("STAT uptime 1\r\nEND\r\nEND\r\n", "the answer `STAT uptime 1` is not memcached's"),
        ] {
            assert_eq!(parse(answer.as_bytes()), Err(why.to_owned()), "{answer}");
        }
    }
}
