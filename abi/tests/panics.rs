//! The SDK at the border: panics stop there, and what it doesn't know it says so.
#![allow(clippy::unwrap_used)]

use yagent_abi::{
    sdk::{Description, Engine, Event, Flow, Plan, Settings, Sink, Step},
    testing::{Harness, Hook, Input, Outcome},
};

/// Panics where its setting `at` says.
struct Fragile {
    at: String,
}

impl Engine for Fragile {
    const DESCRIPTION: Description = Description {
        id: "fragile",
        version: "1",
        summary: "",
        section: "fragile",
        key_prefix: "fragile_",
        registry_root: "/fragile",
        keys: "",
        file_keys: "",
    };

    fn create(settings: &Settings<'_>) -> Result<Self, String> {
        let at = settings.required("at")?.to_owned();
        assert_ne!(at, "create", "not today");
        Ok(Self { at })
    }

    fn start(&mut self, _plan: &Plan<'_>) -> Result<(), String> {
        panic!("no plan");
    }

    fn probe(&mut self, event: Event<'_>, _sink: &Sink<'_>) -> Step {
        match event {
            Event::Begin(_) => Ok(Flow::More),
            Event::Bytes(bytes) => {
                let at: usize = self.at.parse().unwrap_or_default();
                assert!(at < bytes.len(), "index {at} of {}", bytes.len());
                Ok(Flow::Done)
            }
            other => Err(other.refusal()),
        }
    }

    fn stats(&mut self, event: Event<'_>, _sink: &Sink<'_>) -> Step {
        if let Event::Begin(_) = event {
            std::panic::panic_any(7);
        }
        Ok(Flow::Done)
    }
}

impl Drop for Fragile {
    fn drop(&mut self) {
        assert_ne!(self.at, "drop", "not so fast");
    }
}

fn fragile(at: &str) -> Harness {
    Harness::new::<Fragile>(&[("at", at.as_bytes())]).unwrap()
}

const BEGIN: Input<'static> = Input::Begin { fresh: true, args: &[] };

#[test]
fn a_panic_becomes_broken_and_that_instance_is_not_entered_again() {
    let (mut broken, mut whole) = (fragile("9"), fragile("0"));
    assert_eq!(broken.step(Hook::Probe, BEGIN).0, Outcome::More);
    let (outcome, _) = broken.step(Hook::Probe, Input::Bytes(b"abc"));
    assert_eq!(outcome, Outcome::Broken("it panicked: index 9 of 3".to_owned()));
    for hook in [Hook::Probe, Hook::Stats] {
        assert_eq!(broken.step(hook, BEGIN).0, Outcome::Broken("it panicked before".to_owned()));
    }
    assert_eq!(whole.step(Hook::Probe, Input::Bytes(b"abc")).0, Outcome::Done);
}

#[test]
fn a_panic_in_start_or_with_a_strange_payload_is_told_as_well() {
    let why = fragile("x").plan().unwrap_err();
    assert_eq!(why, "start returned Broken(\"it panicked: no plan\")");
    let (outcome, _) = fragile("x").step(Hook::Stats, BEGIN);
    assert_eq!(outcome, Outcome::Broken("it panicked: without a message".to_owned()));
}

#[test]
fn a_panic_in_create_is_its_refusal() {
    let why = Harness::new::<Fragile>(&[("at", b"create")]).map(drop).unwrap_err();
    assert!(why.starts_with("it panicked: ") && why.contains("not today"), "{why}");
    assert_eq!(Harness::new::<Fragile>(&[]).map(drop).unwrap_err(), "`at` is not set");
    assert_eq!(Harness::new::<Fragile>(&[("at", b"\xff")]).map(drop).unwrap_err(), "`at` is not UTF-8");
}

#[test]
fn a_panic_in_drop_ends_there() {
    drop(fragile("drop"));
}

#[test]
fn an_event_of_the_future_is_unsupported() {
    assert_eq!(fragile("0").step(Hook::Probe, Input::Unknown(99)).0, Outcome::Unsupported);
}

#[test]
fn an_engine_without_replication_has_none() {
    assert_eq!(fragile("0").step(Hook::Promote, BEGIN).0, Outcome::Unsupported);
}

#[test]
fn what_ends_a_conversation_is_named() {
    for (input, why) in [
        (Input::Closed(b""), "the server closed the connection without an answer"),
        (Input::Closed(b"half a line"), "the server closed the connection after `half a line`"),
        (Input::Timeout, "no answer in time"),
        (Input::Cancel, "cancelled"),
    ] {
        assert_eq!(fragile("0").step(Hook::Probe, input).0, Outcome::Error(why.to_owned()));
    }
}
