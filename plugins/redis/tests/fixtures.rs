//! Every recorded answer, however it is cut, and what becomes of it when a byte of it is another.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use yagent_abi::testing::{Harness, Hook, Input, Outcome};
use yagent_redis::Redis;

/// A hook's folder, the hook, its arguments.
type Case = (&'static str, Hook, &'static [(&'static str, &'static str)]);

const HOOKS: [Case; 7] = [
    ("probe", Hook::Probe, &[]),
    ("stats", Hook::Stats, &[]),
    ("inspect", Hook::Inspect, &[]),
    ("promote", Hook::Promote, &[]),
    ("follow", Hook::Follow, &[("host", "127.0.0.1"), ("port", "1")]),
    ("fence", Hook::Fence, &[("ms", "1000")]),
    ("unfence", Hook::Unfence, &[]),
];

fn backend() -> Harness {
    Harness::replicated::<Redis>(&[
        ("program", b"/usr/bin/redis-server"),
        ("port", b"16379"),
        ("maxmem_mb", b"128"),
        ("state_dir", b"/var/lib/yagent"),
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

#[test]
fn a_version_that_knows_no_pause_takes_the_number_of_replicas() {
    let mut backend = backend();
    let unknown = &answers("unfence").into_iter().find(|(file, _)| file.ends_with("unknown.txt")).unwrap().1;
    for (args, expected) in [(&[][..], Outcome::Unsupported), (&[("min_replicas", "1")], Outcome::Done)] {
        let (_, told) = backend.step(Hook::Unfence, Input::Begin { fresh: false, args });
        if !args.is_empty() {
            assert!(told.sent.ends_with(b"$19\r\nmin-slaves-to-write\r\n$1\r\n1\r\n"), "{told:?}");
            assert_eq!(backend.step(Hook::Unfence, Input::Bytes(b"+OK\r\n")).0, Outcome::More);
        }
        assert_eq!(backend.step(Hook::Unfence, Input::Bytes(unknown)).0, expected);
    }
    backend.step(Hook::Unfence, Input::Begin { fresh: false, args: &[("min_replicas", "1")] });
    let (outcome, told) = backend.step(Hook::Unfence, Input::Bytes(b"-NOPERM no\r\n"));
    assert!(matches!(&outcome, Outcome::Error(why) if why.starts_with("NOPERM no (")), "{outcome:?}");
    assert_eq!(told.sent, b"");
}

#[test]
fn a_version_that_knows_no_pause_is_promoted_all_the_same_and_a_refusal_is_an_error() {
    let mut backend = backend();
    let args = &[("fence_ms", "60000")];
    for (file, answer) in answers("fence").into_iter().filter(|(file, _)| !file.ends_with("no-such-mode.txt"))
    {
        let (_, told) = backend.step(Hook::Promote, Input::Begin { fresh: false, args });
        assert!(told.sent.ends_with(b"CLIENT\r\n$5\r\nPAUSE\r\n$5\r\n60000\r\n$5\r\nWRITE\r\n"), "{told:?}");
        let (outcome, told) = backend.step(Hook::Promote, Input::Bytes(&answer));
        assert_eq!(outcome, Outcome::More, "{file}");
        assert!(told.sent.starts_with(b"*3\r\n$7\r\nSLAVEOF\r\n$2\r\nNO\r\n$3\r\nONE\r\n"), "{told:?}");
        for (file, answer) in answers("promote") {
            assert_eq!(backend.step(Hook::Promote, Input::Bytes(&answer)).0, Outcome::Done, "{file}");
            backend.step(Hook::Promote, Input::Begin { fresh: false, args });
            backend.step(Hook::Promote, Input::Bytes(b"+OK\r\n"));
        }
    }
    backend.step(Hook::Promote, Input::Begin { fresh: false, args });
    let (outcome, told) = backend.step(Hook::Promote, Input::Bytes(b"-NOPERM no\r\n"));
    assert!(matches!(&outcome, Outcome::Error(why) if why.starts_with("NOPERM no ")), "{outcome:?}");
    assert_eq!(told.sent, b"", "it is no master that takes writes");
    backend.step(Hook::Promote, Input::Begin { fresh: false, args });
    backend.step(Hook::Promote, Input::Bytes(b"+OK\r\n"));
    let refused = b"-NOPERM no\r\n*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n";
    let (outcome, _) = backend.step(Hook::Promote, Input::Bytes(refused));
    assert!(matches!(&outcome, Outcome::Error(why) if why.starts_with("NOPERM no ")), "{outcome:?}");
}

#[test]
fn a_script_is_told_to_end_once_and_the_order_given_a_bounded_number_of_times() {
    let mut backend = backend();
    let (_, begun) = backend.step(Hook::Promote, Input::Begin { fresh: false, args: &[] });
    let busy = &b"-BUSY a script\r\n-BUSY a script\r\n"[..];
    let (outcome, kills) = backend.step(Hook::Promote, Input::Bytes(busy));
    assert_eq!((outcome, kills.sent.windows(4).filter(|word| word == b"KILL").count()), (Outcome::More, 2));
    let (mut outcome, mut again) =
        backend.step(Hook::Promote, Input::Bytes(b"+OK\r\n-ERR unknown command\r\n"));
    let mut given = 0;
    while outcome == Outcome::More {
        assert_eq!(again.sent, begun.sent);
        given += 1;
        (outcome, again) = backend.step(Hook::Promote, Input::Bytes(busy));
    }
    assert!((2..20).contains(&given), "{given}");
    assert!(
        matches!(&outcome, Outcome::Error(why) if why.ends_with("; it was told to end, and goes on")),
        "{outcome:?}"
    );

    // The next order knows nothing of it.
    backend.step(Hook::Promote, Input::Begin { fresh: false, args: &[] });
    let done = backend.step(Hook::Promote, Input::Bytes(b"+OK\r\n*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n"));
    assert_eq!(done.0, Outcome::Done);
}
