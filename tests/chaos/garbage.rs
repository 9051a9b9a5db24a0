//! Servers that are mute, close, or talk nonsense.

use std::time::Instant;

use crate::{
    proxy::{Mode, Proxy, Script, session},
    subject::{Host, Subject, settings},
};
use yagent_tests::{
    wait,
    zookeeper::{Kazoo, Server, shared},
};

fn prefixed(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as i32).to_be_bytes()[..], bytes].concat()
}

/// Every kind, and whether the gate must have cut it (else the server closed by itself).
fn kinds() -> Vec<(&'static str, Mode, bool)> {
    let mut short = session(2000);
    short.truncate(4 + 20);
    short[..4].copy_from_slice(&20i32.to_be_bytes());
    vec![
        ("mute", Mode::Mute, true),
        ("accept and close", Mode::Close, false),
        ("http", Mode::Bytes(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()), true),
        ("negative length", Mode::Bytes((-5i32).to_be_bytes().to_vec()), true),
        ("huge length", Mode::Bytes(i32::MAX.to_be_bytes().to_vec()), true),
        ("short connect response", Mode::Bytes(short), true),
        ("empty connect response", Mode::Bytes(prefixed(b"")), true),
        ("text for a connect response", Mode::Bytes(prefixed(&[b'x'; 37])), true),
        ("silent session", Mode::Session(Script::Silent), true),
        ("session and close", Mode::Session(Script::Close), false),
        ("wrong xid", Mode::Session(Script::WrongXid), true),
        ("unsolicited reply", Mode::Session(Script::Unsolicited), true),
        ("bad event", Mode::Session(Script::BadEvent), true),
        ("2^31-1 children", Mode::Session(Script::ManyChildren), true),
        ("2^31-1 bytes of data", Mode::Session(Script::HugeData), true),
    ]
}

struct Trial {
    name: &'static str,
    must_cut: bool,
    proxy: Proxy,
    subject: Subject,
    host: Host,
    chroot: String,
}

fn begin(index: usize, (name, mode, must_cut): (&'static str, Mode, bool)) -> Trial {
    let proxy = Proxy::start(mode);
    let chroot = format!("/garbage{index}");
    let host = Host::new("10.0.0.1", "h", "n");
    let mut subject = Subject::start(&settings(&[&proxy.address()], &chroot, "h"));
    subject.keep(&host);
    subject.count_cpu();
    Trial { name, must_cut, proxy, subject, host, chroot }
}

fn tried_again(proxy: &Proxy) -> Result<(), String> {
    let tries = proxy.accepted();
    wait::check(tries >= 3, || format!("{tries} tries"))
}

#[test]
fn no_kind_of_garbage_hangs_floods_or_kills_the_client() {
    let server: &Server = shared();
    let begun = Instant::now();
    let mut trials: Vec<Trial> = kinds().into_iter().enumerate().map(|(i, kind)| begin(i, kind)).collect();
    for trial in &mut trials {
        let name = trial.name;
        wait::until(&format!("the client tries {name} again and again"), || tried_again(&trial.proxy));
        if trial.must_cut {
            assert!(trial.subject.figure("cuts") >= 2, "{name}: not cut");
        }
        trial.subject.check_budget();
        // 20 ms between hosts, then rounds from 200 ms up, less a half by chance: never a flood.
        let (tries, seconds) = (trial.proxy.accepted(), begun.elapsed().as_secs() as usize);
        assert!(tries < 20 + 10 * seconds, "{name}: {tries} connections in {seconds} s");
    }
    let mut kazoo = Kazoo::new(&server.address());
    let real = server.address().parse().expect("no address");
    trials.iter().for_each(|trial| trial.proxy.set(Mode::Relay(real)));
    for trial in &mut trials {
        trial.host.await_whole(&mut kazoo, &trial.chroot, &mut trial.subject);
        trial.subject.check_budget();
    }
}

#[test]
fn refused_credentials_are_told_and_neither_hang_nor_flood() {
    let proxy = Proxy::start(Mode::Session(Script::AuthFailed));
    let mut with_auth = settings(&[&proxy.address()], "/refused", "h");
    with_auth["auth"] = "user:password".into();
    let mut subject = Subject::start(&with_auth);
    subject.keep(&Host::new("10.0.0.1", "h", "n"));
    subject.count_cpu();
    let event = subject.event("refused");
    assert_eq!(event["path"], "/");
    wait::until("it is tried again", || tried_again(&proxy));
    subject.check_budget();
    let real = shared().address().parse().expect("no address");
    proxy.set(Mode::Relay(real));
    assert_eq!(subject.event("refused over")["path"], "/");
    subject.event("synced");
}
