//! The part that an instance plays in replication, read from INFO.

use yagent_abi::sdk::{Event, Flow, Sink, Step};

use crate::{
    info::{Info, number, part},
    resp::Reply,
    talk::{Talk, received},
    trouble::explain,
};

/// Section by section: all of INFO is 5 kB, of which this is less than 2. Several at a time are known from 7.0 on only.
const REQUESTS: &[&[&str]] =
    &[&["INFO", "replication"], &["INFO", "server"], &["INFO", "persistence"], &["INFO", "keyspace"]];

pub(crate) fn step(talk: &mut Talk, event: Event<'_>, sink: &Sink<'_>) -> Step {
    if let Event::Begin(begin) = &event {
        talk.begin(begin, REQUESTS, sink)?;
        return Ok(Flow::More);
    }
    let Some(answer) = talk.answer(received(event)?)? else {
        return Ok(Flow::More);
    };
    let mut sections = [Info(""); REQUESTS.len()];
    for (reply, section) in answer.replies.iter().zip(&mut sections) {
        match reply {
            Reply::Bulk(Some(text)) => *section = Info::new(text)?,
            Reply::Error(error) => return Err(explain(answer.auth, error)),
            _ => return Err("the answer to INFO is no text".to_owned()),
        }
    }
    tell(sections, sink)
}

/// The contract's word for what redis calls a role.
pub(crate) fn role(word: &[u8]) -> Option<&'static str> {
    match word {
        b"master" => Some("master"),
        b"slave" | b"replica" => Some("replica"),
        _ => None,
    }
}

fn tell([replication, server, persistence, keyspace]: [Info<'_>; REQUESTS.len()], sink: &Sink<'_>) -> Step {
    let [role_word, replid, replid2, offset2] =
        replication.texts(["role", "master_replid", "master_replid2", "second_repl_offset"]);
    let [run_id, version] = server.texts(["run_id", "redis_version"]);
    let [loading] = persistence.texts(["loading"]);
    let word = role_word.ok_or("INFO has no role")?;
    let role = role(word.as_bytes()).ok_or_else(|| format!("INFO's role is `{word}`"))?;
    sink.text("role", role);
    let about =
        [("run_id", run_id), ("replication_id", replid), ("replication_id2", replid2), ("version", version)];
    for (name, value) in about.into_iter().filter_map(|(name, value)| Some((name, value?))) {
        sink.text(name, value);
    }
    sink.text("loading", yes_or_no(loading));
    sink.gauge("keys", keyspace.keys());
    gauge(sink, "offset2", offset2);
    if role == "master" {
        tell_master(replication, sink);
    } else {
        tell_replica(replication, sink);
    }
    Ok(Flow::Done)
}

fn gauge(sink: &Sink<'_>, name: &str, value: Option<&str>) {
    if let Some(value) = number(value) {
        sink.gauge(name, value);
    }
}

fn tell_master(info: Info<'_>, sink: &Sink<'_>) {
    let [offset, replicas] = info.texts(["master_repl_offset", "connected_slaves"]);
    gauge(sink, "offset", offset);
    gauge(sink, "replicas", replicas);
    let replicas = info.fields().filter(|(name, _)| {
        name.strip_prefix("slave")
            .is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
    });
    for (_, replica) in replicas.take(REPLICAS_MAX) {
        let part = |name| part(replica, name).unwrap_or("-");
        let address = host_and_port(part("ip"), part("port"));
        sink.text("replica", &format!("{address} {} {} {}", part("state"), part("offset"), part("lag")));
    }
}

/// More replicas are counted but not listed: the host takes a bounded number of texts.
const REPLICAS_MAX: usize = 256;

fn tell_replica(info: Info<'_>, sink: &Sink<'_>) {
    let [host, port, link, syncing, offset, priority, link_down, last_io] = info.texts([
        "master_host",
        "master_port",
        "master_link_status",
        "master_sync_in_progress",
        "slave_repl_offset",
        "slave_priority",
        "master_link_down_since_seconds",
        "master_last_io_seconds_ago",
    ]);
    if let Some((host, port)) = host.zip(port) {
        sink.text("master", &host_and_port(host, port));
    }
    if let Some(link) = link {
        sink.text("link", link);
    }
    sink.text("syncing", yes_or_no(syncing));
    // Of a replica that has no history to go on from redis says 1, and no real offset is that small.
    gauge(sink, "offset", offset.map(|offset| if offset == "1" { "0" } else { offset }));
    gauge(sink, "priority", priority);
    // Of a time, -1 is redis' way to say that there is nothing to tell.
    let link_down = number(link_down).filter(|seconds| (0.0..AGES).contains(seconds));
    if let Some(seconds) = link_down {
        sink.gauge("link_down_s", seconds);
    }
    gauge(sink, "last_io_s", last_io.filter(|text| !text.starts_with('-')));
}

/// Of a link that never was, redis before 6.2 says that it has been down since 1970.
const AGES: f64 = 1e9;

fn host_and_port(host: &str, port: &str) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn yes_or_no(flag: Option<&str>) -> &'static str {
    if flag.is_some_and(|flag| flag != "0") { "yes" } else { "no" }
}
