//! The probe: a GET of one key. A miss is an answer, and so is an error that a living redis gives for a reason.
//!
//! With the argument `unstick=1` a script or function that keeps a BUSY server from answering is ended first; redis
//! itself refuses that where the script has written.

use yagent_abi::sdk::{Event, Flow, Health, Sink, Step};

use crate::{
    resp::Reply,
    talk::{Answer, Talk, received},
};

const GET: &[&str] = &["GET", "yagent:probe"];
const UNSTICK: &[&[&str]] = &[&["SCRIPT", "KILL"], &["FUNCTION", "KILL"], GET];

pub(crate) fn step(talk: &mut Talk, event: Event<'_>, sink: &Sink<'_>) -> Step {
    if let Event::Begin(begin) = &event {
        let requests = if begin.arg("unstick") == Some("1") { UNSTICK } else { &[GET] };
        talk.begin(begin, requests, sink)?;
        return Ok(Flow::More);
    }
    let (health, why) = match talk.answer(received(event)?) {
        Ok(None) => return Ok(Flow::More),
        Ok(Some(answer)) => classify(&answer),
        Err(why) => (Health::Wrong, why),
    };
    sink.health(health, &why);
    Ok(Flow::Done)
}

fn classify(answer: &Answer<'_>) -> (Health, String) {
    match answer.replies.last() {
        Some(Reply::Bulk(_)) => (Health::Serving, String::new()),
        Some(Reply::Error(error)) => (health(error), why(answer, error)),
        Some(other) => (Health::Wrong, format!("the answer to GET is {other}")),
        None => (Health::Wrong, "there is no answer to GET".to_owned()),
    }
}

/// What an error says of the server.
fn health(error: &[u8]) -> Health {
    let code = error.split(|byte| *byte == b' ').next().unwrap_or_default();
    match code {
        b"LOADING" => Health::Loading,
        b"BUSY" => Health::Busy,
        b"OOM" => Health::Full,
        b"ERR" if error.starts_with(b"ERR max number of clients") => Health::Full,
        b"NOAUTH" | b"WRONGPASS" | b"NOPERM" | b"DENIED" => Health::Refused,
        b"ERR" if error.starts_with(b"ERR operation not permitted") => Health::Refused,
        // MASTERDOWN, MISCONF, NOREPLICAS, READONLY, CLUSTERDOWN, MOVED and the like: it lives, and says what keeps it.
        _ => Health::Serving,
    }
}

fn why(answer: &Answer<'_>, error: &[u8]) -> String {
    let mut why = String::from_utf8_lossy(error).into_owned();
    if let (Some(auth), Health::Refused) = (answer.auth, health(error)) {
        why = format!("{why} (AUTH: {})", String::from_utf8_lossy(auth));
    }
    // What ending the script came to matters only while the server is still not free.
    if let [Reply::Error(script), Reply::Error(_), _] = answer.replies.as_slice() {
        why = format!("{why} (SCRIPT KILL: {})", String::from_utf8_lossy(script));
    }
    why
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_is_told_apart() {
        for (error, expected) in [
            ("LOADING Redis is loading the dataset in memory", Health::Loading),
            ("BUSY Redis is busy running a script. You can only call SCRIPT KILL", Health::Busy),
            ("OOM command not allowed when used memory > 'maxmemory'.", Health::Full),
            ("ERR max number of clients reached", Health::Full),
            ("ERR max number of clients + cluster connections reached", Health::Full),
            ("NOAUTH Authentication required.", Health::Refused),
            ("WRONGPASS invalid username-password pair or user is disabled.", Health::Refused),
            ("NOPERM this user has no permissions to run the 'get' command", Health::Refused),
            ("DENIED Redis is running in protected mode", Health::Refused),
            ("ERR operation not permitted", Health::Refused),
            (
                "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
                Health::Serving,
            ),
            ("MISCONF Redis is configured to save RDB snapshots", Health::Serving),
            ("NOREPLICAS Not enough good replicas to write.", Health::Serving),
            ("READONLY You can't write against a read only replica.", Health::Serving),
            ("ERR unknown command 'GET'", Health::Serving),
        ] {
            let answer = Answer { auth: None, replies: vec![Reply::Error(error.as_bytes())] };
            assert_eq!(classify(&answer), (expected, error.to_owned()), "{error}");
        }
    }

    #[test]
    fn a_refused_password_and_a_script_that_stays_are_explained() {
        let answer =
            Answer { auth: Some(b"WRONGPASS invalid"), replies: vec![Reply::Error(b"NOAUTH required")] };
        assert_eq!(
            classify(&answer),
            (Health::Refused, "NOAUTH required (AUTH: WRONGPASS invalid)".to_owned())
        );
        let replies = vec![
            Reply::Error(b"UNKILLABLE it wrote"),
            Reply::Error(b"NOTBUSY no"),
            Reply::Error(b"BUSY script"),
        ];
        let answer = Answer { auth: None, replies };
        assert_eq!(
            classify(&answer),
            (Health::Busy, "BUSY script (SCRIPT KILL: UNKILLABLE it wrote)".to_owned())
        );
    }

    #[test]
    fn a_hit_and_a_miss_serve_and_another_type_is_wrong() {
        for (reply, expected) in [
            (Reply::Bulk(None), Health::Serving),
            (Reply::Bulk(Some(b"x")), Health::Serving),
            (Reply::Integer(1), Health::Wrong),
            (Reply::Status(b"OK"), Health::Wrong),
        ] {
            assert_eq!(classify(&Answer { auth: None, replies: vec![reply] }).0, expected);
        }
    }
}
