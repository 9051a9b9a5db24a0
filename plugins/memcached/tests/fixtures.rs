//! Every recorded answer, however it is cut, and what becomes of it when a byte of it is another.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use yagent_abi::testing::{Harness, Hook, Input, Outcome};
use yagent_memcached::Memcached;

/// A hook's folder, the hook, its arguments.
type Case = (&'static str, Hook, &'static [(&'static str, &'static str)]);

const HOOKS: [Case; 2] = [("probe", Hook::Probe, &[]), ("stats", Hook::Stats, &[])];

fn backend() -> Harness {
    Harness::new::<Memcached>(&[
        ("program", b"/usr/bin/memcached"),
        ("port", b"11211"),
        ("maxmem_mb", b"128"),
    ])
    .unwrap()
}

/// The recorded answers to a hook: name and bytes.
fn answers(hook: &str) -> Vec<(String, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(hook);
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let answers: Vec<_> =
        files.map(|file| (file.display().to_string(), std::fs::read(&file).unwrap())).collect();
    assert!(!answers.is_empty(), "no answer to {hook} was recorded");
    answers
}

#[test]
fn an_answer_means_the_same_however_it_is_cut() {
    let mut backend = backend();
    for (name, hook, args) in HOOKS {
        for (file, answer) in answers(name) {
            backend.agree_however_cut(hook, args, &answer).unwrap_or_else(|why| panic!("{file}: {why}"));
        }
    }
}

/// What to put at a place: all of it into a short answer, one after another into a long one.
fn others(at: usize, len: usize) -> &'static [u8] {
    const OTHERS: [u8; 7] = [0, b'\r', b'\n', b'-', b'9', b':', 0xff];
    if len < 200 { &OTHERS } else { std::slice::from_ref(&OTHERS[at % OTHERS.len()]) }
}

#[test]
fn a_changed_answer_is_no_panic() {
    let mut backend = backend();
    for (name, hook, args) in HOOKS {
        for (file, answer) in answers(name) {
            for at in 0..answer.len() {
                for other in others(at, answer.len()) {
                    let mut changed = answer.clone();
                    changed[at] = *other;
                    backend.step(hook, Input::Begin { fresh: false, args });
                    let (outcome, _) = backend.step(hook, Input::Bytes(&changed));
                    assert!(!matches!(outcome, Outcome::Broken(_)), "{file}: {other} at {at}: {outcome:?}");
                }
            }
        }
    }
}
