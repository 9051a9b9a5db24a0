//! Looks on while the agents carry a wish out, and tells what became of it.

use std::{
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{Failure, ask_one, change::Kind, plain};
use crate::{
    cli::client::Agent,
    core::failover::{HistoryEntry, Outcome, Phase, ShardReport, ShardState},
};

/// The new master says that it is one; the former one adds how long writes were paused, soon after.
const PAUSE_TOLD_WITHIN: Duration = Duration::from_secs(1);
/// Between two looks.
const PACE: Duration = Duration::from_millis(20);

/// Looks at a shard until a wish has ended.
pub(super) struct Watch {
    shard: String,
    /// The master before.
    from: String,
    /// The wish.
    id: String,
    kind: Kind,
    told: String,
}

/// What became of a wish.
pub(super) struct End {
    shard: String,
    from: String,
    kind: Kind,
    outcome: Outcome,
    state: ShardState,
    entry: Option<HistoryEntry>,
}

impl Watch {
    /// For a wish that was put to this shard.
    pub(super) fn new(shard: &ShardReport, id: String, kind: Kind) -> Watch {
        let from = shard.state.as_ref().map_or_else(String::new, |state| state.master.clone());
        Watch { shard: shard.id.clone(), from, id, kind, told: String::new() }
    }

    /// Tells each step, until the shard says what became of the wish. An agent that does not answer for a while is
    /// asked again: the wish is with the shard.
    pub(super) fn until_the_end(
        mut self,
        agent: &Agent,
        limit: Duration,
        tell: impl Fn(&str),
    ) -> Result<End, Failure> {
        let mut until = Instant::now() + limit;
        let mut done: Option<End> = None;
        loop {
            let answer = ask_one(agent, &self.shard);
            let shard = answer.as_ref().ok().and_then(Option::as_ref);
            if let Some(end) = shard.and_then(|shard| self.look(shard, &tell)) {
                if end.is_whole() {
                    return Ok(end);
                }
                if done.is_none() {
                    until = Instant::now() + PAUSE_TOLD_WITHIN;
                }
                done = Some(end);
            }
            if Instant::now() >= until {
                if let Some(end) = done {
                    return Ok(end);
                }
                let unanswered = answer.err().map_or_else(String::new, |e| format!("; {e}"));
                return Err(Failure::Refused(format!(
                    "still under way after {} s; see `yagent shards {}`{unanswered}",
                    limit.as_secs(),
                    self.shard
                )));
            }
            thread::sleep(PACE);
        }
    }

    fn look(&mut self, shard: &ShardReport, tell: &impl Fn(&str)) -> Option<End> {
        let state = shard.state.as_ref()?;
        let line = step(state, &self.id, &self.from);
        if !line.is_empty() && line != self.told {
            tell(&plain(&line));
            self.told = line;
        }
        let outcome = state.outcome.clone().filter(|outcome| outcome.id == self.id)?;
        let mut changes = shard.history.iter().rev();
        Some(End {
            shard: self.shard.clone(),
            from: self.from.clone(),
            kind: self.kind,
            entry: changes.find(|entry| entry.epoch == state.epoch && outcome.done).cloned(),
            state: state.clone(),
            outcome,
        })
    }
}

/// Where the wish has come to; empty: nothing is to be seen of it.
fn step(state: &ShardState, id: &str, from: &str) -> String {
    let ShardState { epoch, master, .. } = state;
    match state.phase {
        Phase::Promoting => match &state.handover {
            Some(handover) => format!(
                "epoch {epoch}: {from} has stopped its writes at offset {}, {master} takes over",
                handover.offset
            ),
            None => format!("epoch {epoch}: {master} is being promoted"),
        },
        Phase::Released => format!("epoch {epoch}: {master} has stepped down"),
        Phase::Done if master != from => format!("epoch {epoch}: {master} is the master"),
        Phase::Done => match &state.intent {
            Some(intent) if intent.id == id => {
                format!("epoch {epoch}: {} is to take over from {master}", intent.to)
            }
            _ => String::new(),
        },
    }
}

impl End {
    /// It was carried out.
    pub(super) fn done(&self) -> bool {
        self.outcome.done
    }

    /// Nothing more is to be told of it.
    fn is_whole(&self) -> bool {
        !self.done() || self.kind == Kind::Force || self.outcome.paused_ms.is_some()
    }

    fn paused_ms(&self) -> Option<f64> {
        self.outcome.paused_ms.or_else(|| self.entry.as_ref()?.paused_ms)
    }

    /// What is known to be lost, in bytes. A switchover that is done has lost nothing: the new master was promoted with
    /// all that the former one had when its writes were stopped.
    fn lost_bytes(&self) -> Option<u64> {
        match self.kind {
            Kind::Switchover => Some(0),
            Kind::Force => self.entry.as_ref()?.lost_bytes,
        }
    }

    /// For people.
    pub(super) fn sentence(&self) -> String {
        let Outcome { done, text, .. } = &self.outcome;
        if !done {
            return plain(&format!("shard {}: {text}; the master is {}", self.shard, self.state.master));
        }
        let paused = match self.paused_ms() {
            Some(ms) => format!("writes were paused for {ms:.1} ms"),
            None => "how long writes were paused was not measured".to_owned(),
        };
        let lost = match self.lost_bytes() {
            Some(0) => "nothing was lost".to_owned(),
            Some(bytes) => format!("{bytes} bytes of {}'s writes were lost", self.from),
            None => "what was lost is not known".to_owned(),
        };
        let (epoch, master) = (self.state.epoch, &self.state.master);
        plain(&format!(
            "shard {}: {master} is the master in place of {}, epoch {epoch}; {paused}, {lost}",
            self.shard, self.from
        ))
    }

    /// For programs.
    pub(super) fn json(&self) -> Value {
        json!({
            "ok": self.done(),
            "shard": self.shard,
            "id": self.outcome.id,
            "from": self.from,
            "master": self.state.master,
            "epoch": self.state.epoch,
            "message": self.outcome.text,
            "paused_ms": self.paused_ms(),
            "took_ms": self.entry.as_ref().map(|entry| entry.took_ms),
            "lost_bytes": if self.done() { self.lost_bytes() } else { None },
        })
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::{super::samples::shard, *};
    use crate::core::failover::{Change, Handover, Intent, IntentKind};

    fn at(host: u8) -> String {
        format!("10.0.0.{host}:16379")
    }

    fn looked(watch: &mut Watch, shard: &ShardReport) -> (Vec<String>, Option<End>) {
        let lines = RefCell::new(Vec::new());
        let end = watch.look(shard, &|line: &str| lines.borrow_mut().push(line.to_owned()));
        (lines.into_inner(), end)
    }

    #[test]
    fn each_step_is_told_once() {
        let mut shard = shard(16379);
        let mut watch = Watch::new(&shard, "w".to_owned(), Kind::Switchover);
        let state =
            |shard: &mut ShardReport, change: &dyn Fn(&mut ShardState)| change(shard.state.as_mut().unwrap());
        assert_eq!(looked(&mut watch, &shard).0, Vec::<String>::new());
        let intent = Intent { id: "w".to_owned(), kind: IntentKind::Switchover, to: at(2), by: at(3) };
        state(&mut shard, &|state| state.intent = Some(intent.clone()));
        assert_eq!(
            looked(&mut watch, &shard).0,
            [format!("epoch 7: {} is to take over from {}", at(2), at(1))]
        );
        assert_eq!(looked(&mut watch, &shard).0, Vec::<String>::new());
        state(&mut shard, &|state| {
            (state.epoch, state.phase, state.master) = (8, Phase::Promoting, at(2));
            state.handover = Some(Handover { id: "w".to_owned(), offset: 77 });
        });
        let told = format!("epoch 8: {} has stopped its writes at offset 77, {} takes over", at(1), at(2));
        assert_eq!(looked(&mut watch, &shard).0, [told]);
        state(&mut shard, &|state| {
            (state.phase, state.intent) = (Phase::Done, None);
            state.outcome = Some(Outcome {
                id: "w".to_owned(),
                done: true,
                text: "done".to_owned(),
                paused_ms: Some(12.34),
            });
        });
        let (lines, end) = looked(&mut watch, &shard);
        assert_eq!(lines, [format!("epoch 8: {} is the master", at(2))]);
        let end = end.unwrap();
        assert!(end.done() && end.is_whole());
        assert_eq!(
            end.sentence(),
            format!(
                "shard {}: {} is the master in place of {}, epoch 8; writes were paused for 12.3 ms, nothing was lost",
                at(1),
                at(2),
                at(1)
            )
        );
        assert_eq!(end.json()["lost_bytes"], 0);
    }

    #[test]
    fn how_long_writes_were_paused_may_come_a_little_later() {
        let mut shard = shard(16379);
        let mut watch = Watch::new(&shard, "w".to_owned(), Kind::Switchover);
        shard.state.as_mut().unwrap().outcome =
            Some(Outcome { id: "w".to_owned(), done: true, text: "done".to_owned(), paused_ms: None });
        let end = looked(&mut watch, &shard).1.unwrap();
        assert!(end.done() && !end.is_whole());
        assert!(end.sentence().ends_with("how long writes were paused was not measured, nothing was lost"));
    }

    #[test]
    fn the_outcome_of_another_wish_is_not_ours() {
        let mut shard = shard(16379);
        let outcome =
            |done| Outcome { id: "x".to_owned(), done, text: "it broke".to_owned(), paused_ms: None };
        shard.state.as_mut().unwrap().outcome = Some(outcome(true));
        let watch = |id: &str| Watch::new(&shard, id.to_owned(), Kind::Switchover);
        assert!(looked(&mut watch("w"), &shard).1.is_none());
        let mut watch = watch("x");
        shard.state.as_mut().unwrap().outcome = Some(outcome(false));
        let end = looked(&mut watch, &shard).1.unwrap();
        assert!(!end.done());
        assert_eq!(end.sentence(), format!("shard {}: it broke; the master is {}", at(1), at(1)));
        assert!(end.json()["lost_bytes"].is_null());
    }

    #[test]
    fn a_forced_failover_tells_what_it_cost() {
        let mut shard = shard(16379);
        let mut watch = Watch::new(&shard, "w".to_owned(), Kind::Force);
        {
            let state = shard.state.as_mut().unwrap();
            (state.epoch, state.master) = (8, at(2));
            state.outcome =
                Some(Outcome { id: "w".to_owned(), done: true, text: "forced".to_owned(), paused_ms: None });
        }
        let unknown = looked(&mut watch, &shard).1.unwrap().sentence();
        assert!(unknown.ends_with("not measured, what was lost is not known"), "{unknown}");
        shard.history.push(HistoryEntry {
            at_ms: 0,
            epoch: 8,
            from: at(1),
            to: at(2),
            why: Change::Force,
            took_ms: 9.0,
            lost_bytes: Some(5),
            paused_ms: Some(3.0),
        });
        let known = looked(&mut watch, &shard).1.unwrap().sentence();
        assert!(known.ends_with(&format!("for 3.0 ms, 5 bytes of {}'s writes were lost", at(1))), "{known}");
    }

    #[test]
    fn what_takes_too_long_is_left_to_itself() {
        let agent = Agent { socket: Some("/no/such/socket".into()), config: None };
        let watch = Watch::new(&shard(16379), "w".to_owned(), Kind::Switchover);
        let why = watch.until_the_end(&agent, Duration::ZERO, |_| {}).err().unwrap().to_string();
        let begins = format!("still under way after 0 s; see `yagent shards {}`; cannot reach", at(1));
        assert!(why.starts_with(&begins), "{why}");
    }
}
