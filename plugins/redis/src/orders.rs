//! The orders of a failover: promote, follow, fence, unfence.

use yagent_abi::sdk::{Begin, Event, Flow, Sink, Step};

use crate::{
    inspect::role,
    resp::Reply,
    talk::{Answer, Talk, received, refused},
};

/// The commands of which the orders and `inspect` consist.
pub(crate) const COMMANDS: &[&str] = &["SLAVEOF", "ROLE", "CLIENT", "CONFIG", "INFO"];

/// REPLICAOF NO ONE, and ROLE to see that it came true.
pub(crate) fn promote(talk: &mut Talk, event: Event<'_>, sink: &Sink<'_>) -> Step {
    if let Event::Begin(begin) = &event {
        // The old name of the command is known to every version.
        talk.begin(begin, &[&["SLAVEOF", "NO", "ONE"], &["ROLE"]], sink)?;
        return Ok(Flow::More);
    }
    let Some(answer) = talk.answer(received(event)?)? else {
        return Ok(Flow::More);
    };
    accepted(&answer)?;
    match answer.replies.get(1) {
        Some(Reply::Array(parts)) => match parts.first() {
            Some(Reply::Bulk(Some(word))) if role(word) == Some("master") => Ok(Flow::Done),
            Some(other) => Err(format!("it did not become a master: ROLE is {other}")),
            None => Err("the answer to ROLE is empty".to_owned()),
        },
        Some(Reply::Error(error)) => Err(refused(answer.auth, error)),
        Some(other) => Err(format!("the answer to ROLE is {other}")),
        None => Err("there is no answer to ROLE".to_owned()),
    }
}

/// REPLICAOF HOST PORT; then, if asked for, the connections of its clients are closed.
pub(crate) fn follow(talk: &mut Talk, event: Event<'_>, sink: &Sink<'_>) -> Step {
    if let Event::Begin(begin) = &event {
        let (host, port) = (argument(begin, "host")?, argument(begin, "port")?);
        port.parse::<u16>().map_err(|error| format!("argument `port` is `{port}`: {error}"))?;
        let order: &[&str] = &["SLAVEOF", host, port];
        match begin.arg("drop_clients") {
            Some("1") => talk.begin(begin, &[order, &["CLIENT", "KILL", "TYPE", "normal"]], sink)?,
            _ => talk.begin(begin, &[order], sink)?,
        }
        return Ok(Flow::More);
    }
    let Some(answer) = talk.answer(received(event)?)? else {
        return Ok(Flow::More);
    };
    accepted(&answer)?;
    match answer.replies.get(1) {
        Some(Reply::Error(error)) => {
            Err(format!("it follows, but its clients stay: {}", refused(answer.auth, error)))
        }
        _ => Ok(Flow::Done),
    }
}

/// CLIENT PAUSE MS WRITE, which redis has from 6.2 on.
pub(crate) fn fence(talk: &mut Talk, event: Event<'_>, sink: &Sink<'_>) -> Step {
    if let Event::Begin(begin) = &event {
        let ms = argument(begin, "ms")?;
        ms.parse::<u64>().map_err(|error| format!("argument `ms` is `{ms}`: {error}"))?;
        talk.begin(begin, &[&["CLIENT", "PAUSE", ms, "WRITE"]], sink)?;
        return Ok(Flow::More);
    }
    order_done(talk, event)
}

/// How far an `unfence` has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Unfencing {
    /// The pause is being ended, which is all there is to do.
    #[default]
    Ending,
    /// It is being told how many replicas it must have; the pause comes after.
    Setting,
    /// The number is set, and the pause is being ended.
    Set,
}

const UNPAUSE: &[&[&str]] = &[&["CLIENT", "UNPAUSE"]];

/// CONFIG SET min-replicas-to-write where that is asked, then CLIENT UNPAUSE, which redis has from 6.2 on. The pause
/// ends only after the number was taken: no write passes that the number would have kept out.
pub(crate) fn unfence(talk: &mut Talk, state: &mut Unfencing, event: Event<'_>, sink: &Sink<'_>) -> Step {
    if let Event::Begin(begin) = &event {
        let Some(least) = begin.arg("min_replicas") else {
            *state = Unfencing::Ending;
            talk.begin(begin, UNPAUSE, sink)?;
            return Ok(Flow::More);
        };
        least.parse::<u32>().map_err(|error| format!("argument `min_replicas` is `{least}`: {error}"))?;
        *state = Unfencing::Setting;
        talk.begin(begin, &[&["CONFIG", "SET", "min-slaves-to-write", least]], sink)?;
        return Ok(Flow::More);
    }
    if *state != Unfencing::Setting {
        let step = order_done(talk, event)?;
        // Where there is no pause that could be ended, the number is all there is.
        let done = step == Flow::Unsupported && *state == Unfencing::Set;
        return Ok(if done { Flow::Done } else { step });
    }
    let Some(answer) = talk.answer(received(event)?)? else {
        return Ok(Flow::More);
    };
    accepted(&answer)?;
    *state = Unfencing::Set;
    talk.go_on(UNPAUSE, sink)?;
    Ok(Flow::More)
}

fn order_done(talk: &Talk, event: Event<'_>) -> Step {
    let Some(answer) = talk.answer(received(event)?)? else {
        return Ok(Flow::More);
    };
    match answer.replies.first() {
        Some(Reply::Error(error)) if unknown(error) => Ok(Flow::Unsupported),
        _ => accepted(&answer).map(|()| Flow::Done),
    }
}

/// How versions without the command, or without its WRITE, say so.
fn unknown(error: &[u8]) -> bool {
    const WORDS: [&str; 4] =
        ["syntax error", "unknown subcommand", "unknown command", "wrong number of arguments"];
    let error = String::from_utf8_lossy(error).to_ascii_lowercase();
    error.starts_with("err") && WORDS.iter().any(|words| error.contains(words))
}

/// The first reply is a status.
fn accepted(answer: &Answer<'_>) -> Result<(), String> {
    match answer.replies.first() {
        Some(Reply::Status(_)) => Ok(()),
        Some(Reply::Error(error)) => Err(refused(answer.auth, error)),
        Some(other) => Err(format!("the answer to the order is {other}")),
        None => Err("there is no answer to the order".to_owned()),
    }
}

fn argument<'a>(begin: &Begin<'a>, name: &str) -> Result<&'a str, String> {
    begin.arg(name).filter(|value| !value.is_empty()).ok_or_else(|| format!("argument `{name}` is not set"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_without_the_command_is_told_from_a_refusal() {
        for (error, expected) in [
            ("ERR syntax error", true),
            ("ERR Unknown subcommand or wrong number of arguments for 'UNPAUSE'. Try CLIENT HELP.", true),
            ("ERR unknown command 'CLIENT'", true),
            ("ERR timeout is negative", false),
            ("NOAUTH Authentication required.", false),
        ] {
            assert_eq!(unknown(error.as_bytes()), expected, "{error}");
        }
    }
}
