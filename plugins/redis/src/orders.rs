//! The orders of a failover: promote, follow, fence, unfence.
//!
//! A script that keeps the server from taking one is ended, once, and the order given again in the very words, login and
//! all: a fencer that learns the fence by heart expects the last answer to it.

use yagent_abi::sdk::{Begin, Event, Flow, Sink, Step};

use crate::{
    inspect::role,
    resp::Reply,
    script,
    talk::{Answer, Talk, received},
    trouble::{Trouble, explain},
};

/// The commands of which the orders and `inspect` consist.
pub(crate) const COMMANDS: &[&str] = &["SLAVEOF", "ROLE", "CLIENT", "CONFIG", "INFO"];

/// How often an order is given again to a server that was told to end its script: redis reads its connections up to
/// four times before the script is looked at again.
const AGAIN: u32 = 8;

/// An order under way.
#[derive(Debug, Default)]
pub(crate) struct Order {
    requests: Vec<Vec<String>>,
    script: Script,
    unfencing: Unfencing,
    /// Before a promotion writes are being paused.
    pausing: bool,
}

/// A script in the way of an order.
#[derive(Debug, Default)]
enum Script {
    /// There is none, as far as is known.
    #[default]
    Unmet,
    /// It is being told to end.
    Ending,
    /// It was told to end: why it does not, and how often the order may still be given.
    Told { why: Option<String>, again: u32 },
}

impl Order {
    fn begin(&mut self, talk: &mut Talk, begin: &Begin<'_>, requests: &[&[&str]], sink: &Sink<'_>) -> Step {
        self.script = Script::Unmet;
        self.note(requests);
        talk.begin(begin, requests, sink)?;
        Ok(Flow::More)
    }

    fn go_on(&mut self, talk: &mut Talk, requests: &[&[&str]], sink: &Sink<'_>) -> Step {
        self.note(requests);
        talk.go_on(requests, sink)?;
        Ok(Flow::More)
    }

    fn note(&mut self, requests: &[&[&str]]) {
        let owned = |request: &&[&str]| request.iter().map(|word| (*word).to_owned()).collect();
        self.requests = requests.iter().map(owned).collect();
    }

    fn give_again(&self, talk: &mut Talk, sink: &Sink<'_>) -> Result<(), String> {
        let requests: Vec<Vec<&str>> =
            self.requests.iter().map(|request| request.iter().map(String::as_str).collect()).collect();
        let requests: Vec<&[&str]> = requests.iter().map(Vec::as_slice).collect();
        talk.begin_again(&requests, sink)
    }

    /// What the server said to the order in the end; `None` while more is to come.
    fn answer<'a>(
        &mut self,
        talk: &mut Talk,
        event: Event<'a>,
        sink: &Sink<'_>,
    ) -> Result<Option<Answer<'a>>, String> {
        let Some(answer) = talk.answer(received(event)?)? else { return Ok(None) };
        let busy = busy(&answer);
        match &mut self.script {
            Script::Unmet if busy.is_some() => {
                let kills = talk.callable(script::KILLS);
                if kills.is_empty() {
                    return Ok(Some(answer));
                }
                self.script = Script::Ending;
                talk.go_on(&kills, sink)?;
            }
            Script::Ending => {
                self.script = Script::Told { why: script::goes_on(&answer.replies), again: AGAIN };
                self.give_again(talk, sink)?;
            }
            Script::Told { why, again } => match (busy, again.checked_sub(1)) {
                (None, _) => return Ok(Some(answer)),
                (Some(_), Some(left)) => {
                    *again = left;
                    self.give_again(talk, sink)?;
                }
                (Some(error), None) => {
                    let why = why.as_deref().unwrap_or("it was told to end, and goes on");
                    return Err(format!("{}; {why}", explain(answer.auth, error)));
                }
            },
            Script::Unmet => return Ok(Some(answer)),
        }
        Ok(None)
    }

    /// An order that a version may not know.
    fn done(&mut self, talk: &mut Talk, event: Event<'_>, sink: &Sink<'_>) -> Step {
        let Some(answer) = self.answer(talk, event, sink)? else {
            return Ok(Flow::More);
        };
        match answer.replies.first() {
            Some(Reply::Error(error)) if unknown(error) => Ok(Flow::Unsupported),
            _ => accepted(&answer).map(|()| Flow::Done),
        }
    }
}

/// The error of a server that a script keeps busy.
fn busy<'a>(answer: &Answer<'a>) -> Option<&'a [u8]> {
    answer.replies.iter().find_map(|reply| match reply {
        Reply::Error(error) if Trouble::of(error) == Trouble::Busy => Some(*error),
        _ => None,
    })
}

/// The old name of the command is known to every version.
const BECOME: &[&[&str]] = &[&["SLAVEOF", "NO", "ONE"], &["ROLE"]];

/// CLIENT PAUSE MS WRITE where that is asked; where that was taken or the version does not know it, REPLICAOF NO ONE, and
/// ROLE to see that it came true.
pub(crate) fn promote(order: &mut Order, talk: &mut Talk, event: Event<'_>, sink: &Sink<'_>) -> Step {
    if let Event::Begin(begin) = &event {
        let fence_ms = begin.arg("fence_ms");
        order.pausing = fence_ms.is_some();
        let Some(ms) = fence_ms else { return order.begin(talk, begin, BECOME, sink) };
        ms.parse::<u64>().map_err(|error| format!("argument `fence_ms` is `{ms}`: {error}"))?;
        return order.begin(talk, begin, &[&["CLIENT", "PAUSE", ms, "WRITE"]], sink);
    }
    if order.pausing {
        let step = order.done(talk, event, sink)?;
        if step == Flow::More {
            return Ok(step);
        }
        order.pausing = false;
        return order.go_on(talk, BECOME, sink);
    }
    let Some(answer) = order.answer(talk, event, sink)? else {
        return Ok(Flow::More);
    };
    accepted(&answer)?;
    match answer.replies.get(1) {
        Some(Reply::Array(parts)) => match parts.first() {
            Some(Reply::Bulk(Some(word))) if role(word) == Some("master") => Ok(Flow::Done),
            Some(other) => Err(format!("it did not become a master: ROLE is {other}")),
            None => Err("the answer to ROLE is empty".to_owned()),
        },
        Some(Reply::Error(error)) => Err(explain(answer.auth, error)),
        Some(other) => Err(format!("the answer to ROLE is {other}")),
        None => Err("there is no answer to ROLE".to_owned()),
    }
}

/// REPLICAOF HOST PORT; then, if asked for, the connections of its clients are closed.
pub(crate) fn follow(order: &mut Order, talk: &mut Talk, event: Event<'_>, sink: &Sink<'_>) -> Step {
    if let Event::Begin(begin) = &event {
        let (host, port) = (argument(begin, "host")?, argument(begin, "port")?);
        port.parse::<u16>().map_err(|error| format!("argument `port` is `{port}`: {error}"))?;
        let requests: [&[&str]; 2] = [&["SLAVEOF", host, port], &["CLIENT", "KILL", "TYPE", "normal"]];
        let drops = begin.arg("drop_clients") == Some("1");
        return order.begin(talk, begin, if drops { &requests } else { &requests[..1] }, sink);
    }
    let Some(answer) = order.answer(talk, event, sink)? else {
        return Ok(Flow::More);
    };
    accepted(&answer)?;
    match answer.replies.get(1) {
        Some(Reply::Error(error)) => {
            Err(format!("it follows, but its clients stay: {}", explain(answer.auth, error)))
        }
        _ => Ok(Flow::Done),
    }
}

/// CLIENT PAUSE MS WRITE, which redis has from 6.2 on.
pub(crate) fn fence(order: &mut Order, talk: &mut Talk, event: Event<'_>, sink: &Sink<'_>) -> Step {
    if let Event::Begin(begin) = &event {
        let ms = argument(begin, "ms")?;
        ms.parse::<u64>().map_err(|error| format!("argument `ms` is `{ms}`: {error}"))?;
        return order.begin(talk, begin, &[&["CLIENT", "PAUSE", ms, "WRITE"]], sink);
    }
    order.done(talk, event, sink)
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
pub(crate) fn unfence(order: &mut Order, talk: &mut Talk, event: Event<'_>, sink: &Sink<'_>) -> Step {
    if let Event::Begin(begin) = &event {
        let Some(least) = begin.arg("min_replicas") else {
            order.unfencing = Unfencing::Ending;
            return order.begin(talk, begin, UNPAUSE, sink);
        };
        least.parse::<u32>().map_err(|error| format!("argument `min_replicas` is `{least}`: {error}"))?;
        order.unfencing = Unfencing::Setting;
        return order.begin(talk, begin, &[&["CONFIG", "SET", "min-slaves-to-write", least]], sink);
    }
    if order.unfencing != Unfencing::Setting {
        let step = order.done(talk, event, sink)?;
        // Where there is no pause that could be ended, the number is all there is.
        let done = step == Flow::Unsupported && order.unfencing == Unfencing::Set;
        return Ok(if done { Flow::Done } else { step });
    }
    let Some(answer) = order.answer(talk, event, sink)? else {
        return Ok(Flow::More);
    };
    accepted(&answer)?;
    order.unfencing = Unfencing::Set;
    order.go_on(talk, UNPAUSE, sink)
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
        Some(Reply::Error(error)) => Err(explain(answer.auth, error)),
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
