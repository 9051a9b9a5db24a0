//! The probe: a GET of one key. A miss is an answer, and so is an error that a living redis gives for a reason.
//!
//! With the argument `unstick=1` a script or function that keeps a BUSY server from answering is ended first; redis
//! itself refuses that where the script has written.

use yagent_abi::sdk::{Event, Flow, Health, Sink, Step};

use crate::{
    resp::Reply,
    script,
    talk::{Answer, Talk, received},
    trouble::{Trouble, explain},
};

const GET: &[&str] = &["GET", "yagent:probe"];

pub(crate) fn step(talk: &mut Talk, event: Event<'_>, sink: &Sink<'_>) -> Step {
    if let Event::Begin(begin) = &event {
        if begin.arg("unstick") == Some("1") {
            let mut requests = talk.callable(script::KILLS);
            requests.push(GET);
            talk.begin(begin, &requests, sink)?;
        } else {
            talk.begin(begin, &[GET], sink)?;
        }
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
    match answer.replies.split_last() {
        Some((Reply::Bulk(_), _)) => (Health::Serving, String::new()),
        Some((Reply::Error(error), kills)) => {
            let why = explain(answer.auth, error);
            // What ending the script came to matters only while the server is still not free.
            let why = script::goes_on(kills).map_or(why.clone(), |it| format!("{why}; {it}"));
            (Trouble::of(error).health(), why)
        }
        Some((other, _)) => (Health::Wrong, format!("the answer to GET is {other}")),
        None => (Health::Wrong, "there is no answer to GET".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_password_and_a_script_that_stays_are_explained() {
        let told = |auth, replies| classify(&Answer { auth, replies });
        let (health, why) = told(Some(b"WRONGPASS invalid"), vec![Reply::Error(b"NOAUTH required")]);
        assert_eq!((health, why.starts_with("WRONGPASS invalid (")), (Health::Refused, true), "{why}");
        let replies = [&b"UNKILLABLE it wrote"[..], b"NOTBUSY no", b"BUSY script"].map(Reply::Error);
        let (health, why) = told(None, replies.to_vec());
        assert_eq!((health, why.starts_with("BUSY script (")), (Health::Busy, true), "{why}");
        assert!(why.ends_with("; it was not ended: UNKILLABLE it wrote"), "{why}");
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
