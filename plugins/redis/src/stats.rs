//! The statistics: INFO and its commandstats, their names turned into the well-known ones.
//!
//! | told | redis' |
//! | --- | --- |
//! | gets | keyspace_hits + keyspace_misses: keys looked up by reading commands |
//! | hits | keyspace_hits |
//! | sets | calls of commands that store a value, see [`SETS`] |
//! | deletes | calls of DEL, UNLINK, GETDEL |
//! | evictions, expirations | evicted_keys, expired_keys |
//! | keys | the sum over databases |
//! | bytes, limit_bytes | used_memory, maxmemory |
//! | connections | connected_clients |
//! | uptime_s | uptime_in_seconds |
//! | version (text) | redis_version |
//! | replicas, blocked_clients | connected_slaves, blocked_clients |
//! | fragmentation | mem_fragmentation_ratio |
//! | good_replicas | min_slaves_good_slaves: below `min-replicas-to-write`, writes get NOREPLICAS |
//! | not_saved | 1 after a failed save or a failed write to the AOF, for which writes may get MISCONF |
//! | role (text) | role: master or replica |

use yagent_abi::sdk::{Event, Flow, Sink, Step};

use crate::{
    info::{Info, number, part},
    inspect::role,
    resp::Reply,
    talk::{Talk, received},
    trouble::explain,
};

const REQUESTS: &[&[&str]] = &[&["INFO"], &["INFO", "commandstats"]];

/// Commands that store a value.
const SETS: &[&str] = &[
    "set",
    "setex",
    "psetex",
    "setnx",
    "getset",
    "mset",
    "msetnx",
    "append",
    "setrange",
    "incr",
    "incrby",
    "incrbyfloat",
    "decr",
    "decrby",
    "hset",
    "hmset",
    "hsetnx",
    "hincrby",
    "lpush",
    "rpush",
    "sadd",
    "zadd",
    "xadd",
];
const DELETES: &[&str] = &["del", "unlink", "getdel"];

pub(crate) fn step(talk: &mut Talk, event: Event<'_>, sink: &Sink<'_>) -> Step {
    if let Event::Begin(begin) = &event {
        talk.begin(begin, REQUESTS, sink)?;
        return Ok(Flow::More);
    }
    let Some(answer) = talk.answer(received(event)?)? else {
        return Ok(Flow::More);
    };
    match answer.replies.as_slice() {
        [Reply::Bulk(Some(info)), commands] => {
            let commands = if let Reply::Bulk(Some(text)) = commands { Info::new(text)? } else { Info("") };
            tell(Info::new(info)?, commands, sink)
        }
        [Reply::Error(error), ..] => Err(explain(answer.auth, error)),
        _ => Err("the answer to INFO is no text".to_owned()),
    }
}

fn tell(info: Info<'_>, commands: Info<'_>, sink: &Sink<'_>) -> Step {
    let [version, role, saved, written, hits, misses, rest @ ..] = info.texts(FIELDS);
    sink.text("version", version.ok_or("INFO has no redis_version")?);
    if let Some(role) = role {
        sink.text("role", role_name(role));
    }
    let lookups = number(hits).zip(number(misses)).map(|(hits, misses)| hits + misses);
    let counters = [
        ("gets", lookups),
        ("hits", number(hits)),
        ("sets", calls(commands, SETS)),
        ("deletes", calls(commands, DELETES)),
        ("evictions", number(rest[0])),
        ("expirations", number(rest[1])),
    ];
    let gauges = [
        "bytes",
        "limit_bytes",
        "connections",
        "uptime_s",
        "replicas",
        "blocked_clients",
        "fragmentation",
        "good_replicas",
    ];
    let gauges = gauges.into_iter().zip(rest[2..].iter().map(|text| number(*text)));
    let told = |(name, value): (&'static str, Option<f64>)| value.map(|value| (name, value));
    counters.into_iter().filter_map(told).for_each(|(name, value)| sink.counter(name, value));
    gauges.filter_map(told).for_each(|(name, value)| sink.gauge(name, value));
    sink.gauge("keys", info.keys());
    sink.gauge("not_saved", if [saved, written].contains(&Some("err")) { 1.0 } else { 0.0 });
    Ok(Flow::Done)
}

/// What is looked for in INFO; the gauges last, in the order in which they are told.
const FIELDS: [&str; 16] = [
    "redis_version",
    "role",
    "rdb_last_bgsave_status",
    "aof_last_write_status",
    "keyspace_hits",
    "keyspace_misses",
    "evicted_keys",
    "expired_keys",
    "used_memory",
    "maxmemory",
    "connected_clients",
    "uptime_in_seconds",
    "connected_slaves",
    "blocked_clients",
    "mem_fragmentation_ratio",
    "min_slaves_good_slaves",
];

fn role_name(word: &str) -> &str {
    role(word.as_bytes()).unwrap_or(word)
}

/// The calls of `names`, of which a server that nobody has asked yet lists none; `None` without commandstats at all.
fn calls(commands: Info<'_>, names: &[&str]) -> Option<f64> {
    if commands.0.is_empty() {
        return None;
    }
    let called = commands.fields().filter_map(|(field, value)| {
        let name = field.strip_prefix("cmdstat_")?;
        names.contains(&name).then(|| part(value, "calls")?.parse::<f64>().ok())?
    });
    Some(called.sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_summed_by_command() {
        let commands = Info(
            "# Commandstats\r\ncmdstat_set:calls=3,usec=1\r\ncmdstat_mset:calls=2,usec=1\r\ncmdstat_get:calls=9\r\n\
             cmdstat_del:calls=1,usec=1\r\ncmdstat_config|set:calls=7,usec=1\r\n",
        );
        assert_eq!((calls(commands, SETS), calls(commands, DELETES)), (Some(5.0), Some(1.0)));
        assert_eq!(calls(Info("# Commandstats\r\n"), SETS), Some(0.0));
        assert_eq!(calls(Info(""), SETS), None);
    }
}
