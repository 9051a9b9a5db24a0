//! For tests of plugins: runs an engine's hooks through its C table, as a host does, without a host.
//!
//! ```
//! # use yagent_abi::sdk::*;
//! # struct Echo;
//! # impl Engine for Echo {
//! #     const DESCRIPTION: Description = Description { id: "echo", version: "1", summary: "", section: "echo",
//! #         key_prefix: "echo_", registry_root: "/echo", keys: "", file_keys: "" };
//! #     fn create(_: &Settings<'_>) -> Result<Self, String> { Ok(Self) }
//! #     fn start(&mut self, plan: &Plan<'_>) -> Result<(), String> { plan.program("/bin/echod"); Ok(()) }
//! #     fn probe(&mut self, event: Event<'_>, sink: &Sink<'_>) -> Step {
//! #         match event {
//! #             Event::Begin(_) => { sink.send(b"hello\n"); Ok(Flow::More) }
//! #             Event::Bytes(b"hello\n") => { sink.health(Health::Serving, ""); Ok(Flow::Done) }
//! #             Event::Bytes(bytes) if bytes.len() < 6 => Ok(Flow::More),
//! #             other => Err(other.refusal()),
//! #         }
//! #     }
//! #     fn stats(&mut self, _: Event<'_>, _: &Sink<'_>) -> Step { Ok(Flow::Unsupported) }
//! # }
//! use yagent_abi::testing::{Harness, Hook, Input, Outcome};
//!
//! let mut echo = Harness::new::<Echo>(&[("port", b"7")]).unwrap();
//! let (outcome, told) = echo.step(Hook::Probe, Input::Begin { fresh: true, args: &[] });
//! assert_eq!((outcome, told.sent.as_slice()), (Outcome::More, &b"hello\n"[..]));
//! echo.agree_however_cut(Hook::Probe, &[], b"hello\n").unwrap();
//! ```
#![allow(unsafe_code)]

use core::{
    ffi::{c_char, c_void},
    ptr::{self, NonNull},
};
use std::io::{ErrorKind, Read, Write};

use crate::{
    raw,
    sdk::{Engine, Replication, table::Table},
};

/// A hook that holds conversations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// `probe`
    Probe,
    /// `stats`
    Stats,
    /// `failover.inspect`
    Inspect,
    /// `failover.promote`
    Promote,
    /// `failover.follow`
    Follow,
    /// `failover.fence`
    Fence,
    /// `failover.unfence`
    Unfence,
}

/// An event, as a host would make it.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// A conversation begins.
    Begin {
        /// Nothing was said on this connection before.
        fresh: bool,
        /// The hook's arguments.
        args: &'a [(&'a str, &'a str)],
    },
    /// All bytes received since the last send.
    Bytes(&'a [u8]),
    /// The server closed after these bytes.
    Closed(&'a [u8]),
    /// The deadline passed.
    Timeout,
    /// The host ends it.
    Cancel,
    /// A kind that no version has yet.
    Unknown(u32),
}

/// What a step returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// `YAGENT_MORE`
    More,
    /// `YAGENT_DONE`
    Done,
    /// `YAGENT_ERROR` with its reason
    Error(String),
    /// `YAGENT_UNSUPPORTED`
    Unsupported,
    /// `YAGENT_BROKEN` with its reason, or a code that means nothing
    Broken(String),
}

/// What a hook told the sink, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Told {
    /// Bytes for the server.
    pub sent: Vec<u8>,
    /// The last health code with its reason.
    pub health: Option<(u32, String)>,
    /// Figures: kind, name, value.
    pub numbers: Vec<(u32, String, f64)>,
    /// Texts: name, value.
    pub texts: Vec<(String, Vec<u8>)>,
    /// What the server answered, where [`Harness::converse`] spoke to one.
    pub received: Vec<u8>,
    why: Option<String>,
}

impl Told {
    /// The figure told last under `name`.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<f64> {
        self.numbers.iter().rev().find(|(_, told, _)| told == name).map(|(_, _, value)| *value)
    }

    /// The texts told under `name`.
    #[must_use]
    pub fn texts(&self, name: &str) -> Vec<String> {
        let named = self.texts.iter().filter(|(told, _)| told == name);
        named.map(|(_, value)| String::from_utf8_lossy(value).into_owned()).collect()
    }
}

/// One instance's object, and the table that it is called through.
#[derive(Debug)]
pub struct Harness {
    table: raw::Plugin,
    instance: NonNull<c_void>,
}

impl Harness {
    /// Makes the object of an engine without replication.
    ///
    /// # Errors
    /// The engine's own reason.
    pub fn new<E: Engine>(settings: &[(&str, &[u8])]) -> Result<Self, String> {
        Self::create(Table::<E>::PLAIN, settings)
    }

    /// Makes the object of an engine with replication.
    ///
    /// # Errors
    /// The engine's own reason.
    pub fn replicated<E: Replication>(settings: &[(&str, &[u8])]) -> Result<Self, String> {
        Self::create(Table::<E>::REPLICATED, settings)
    }

    fn create(table: raw::Plugin, settings: &[(&str, &[u8])]) -> Result<Self, String> {
        let pairs: Vec<raw::Pair> = settings
            .iter()
            .map(|(name, value)| raw::Pair { name: raw::Str::new(name), value: raw::Str::bytes(value) })
            .collect();
        let settings = raw::Settings {
            size: size_of::<raw::Settings>() as u64,
            pairs: pairs.as_ptr(),
            pairs_len: pairs.len() as u64,
        };
        let mut told = Told::default();
        let sink = sink(&mut told);
        // SAFETY: settings and sink outlive the call.
        let instance = table.create.map_or(ptr::null_mut(), |create| unsafe { create(&settings, &sink) });
        match NonNull::new(instance) {
            Some(instance) => Ok(Self { table, instance }),
            None => Err(told.why.unwrap_or_default()),
        }
    }

    /// Runs `start`: its texts in [`Told::texts`], `open_files` in [`Told::numbers`].
    ///
    /// # Errors
    /// The engine's own reason.
    pub fn plan(&mut self) -> Result<Told, String> {
        match self.call(self.table.start, Input::Begin { fresh: false, args: &[] }) {
            (Outcome::Done, told) => Ok(told),
            (Outcome::Error(why), _) => Err(why),
            (other, _) => Err(format!("start returned {other:?}")),
        }
    }

    /// One step of a conversation.
    pub fn step(&mut self, hook: Hook, input: Input<'_>) -> (Outcome, Told) {
        self.call(self.hook(hook), input)
    }

    fn hook(&self, hook: Hook) -> raw::Hook {
        // SAFETY: NULL, or the table that the plugin's own table points to.
        let failover = unsafe { self.table.failover.as_ref() };
        match hook {
            Hook::Probe => self.table.probe,
            Hook::Stats => self.table.stats,
            Hook::Inspect => failover?.inspect,
            Hook::Promote => failover?.promote,
            Hook::Follow => failover?.follow,
            Hook::Fence => failover?.fence,
            Hook::Unfence => failover?.unfence,
        }
    }

    fn call(&mut self, hook: raw::Hook, input: Input<'_>) -> (Outcome, Told) {
        let Some(hook) = hook else {
            return (Outcome::Unsupported, Told::default());
        };
        let args: &[(&str, &str)] = if let Input::Begin { args, .. } = input { args } else { &[] };
        let pairs: Vec<raw::Pair> = args
            .iter()
            .map(|(name, value)| raw::Pair { name: raw::Str::new(name), value: raw::Str::new(value) })
            .collect();
        let event = event(input, &pairs);
        let mut told = Told::default();
        let sink = sink(&mut told);
        // SAFETY: the object is the table's own; event and sink outlive the call.
        let code = unsafe { hook(self.instance.as_ptr(), &event, &sink) };
        (outcome(code, told.why.take()), told)
    }

    /// Holds a whole conversation over `stream`, whose read timeout is the deadline.
    ///
    /// # Errors
    /// The hook's reason, or the stream's.
    pub fn converse(
        &mut self,
        hook: Hook,
        fresh: bool,
        args: &[(&str, &str)],
        stream: &mut (impl Read + Write),
    ) -> Result<Told, String> {
        let (mut outcome, mut all) = self.step(hook, Input::Begin { fresh, args });
        let mut pending = Vec::new();
        let mut to_send = all.sent.clone();
        loop {
            match outcome {
                Outcome::More => {}
                Outcome::Done => return Ok(all),
                Outcome::Error(why) => return Err(why),
                Outcome::Unsupported => return Err("unsupported".to_owned()),
                Outcome::Broken(why) => return Err(format!("broken: {why}")),
            }
            if !to_send.is_empty() {
                stream.write_all(&to_send).map_err(|error| format!("cannot send: {error}"))?;
                pending.clear();
            }
            let (next, told) = self.receive(hook, &mut pending, &mut all.received, stream)?;
            to_send = told.sent.clone();
            all.sent.extend(told.sent);
            all.health = told.health.or(all.health);
            all.numbers.extend(told.numbers);
            all.texts.extend(told.texts);
            outcome = next;
        }
    }

    fn receive(
        &mut self,
        hook: Hook,
        pending: &mut Vec<u8>,
        received: &mut Vec<u8>,
        stream: &mut impl Read,
    ) -> Result<(Outcome, Told), String> {
        let mut buffer = [0; 16 << 10];
        match stream.read(&mut buffer) {
            Ok(0) => Ok(self.step(hook, Input::Closed(pending))),
            Ok(len) => {
                received.extend_from_slice(&buffer[..len]);
                pending.extend_from_slice(&buffer[..len]);
                Ok(self.step(hook, Input::Bytes(pending)))
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Ok(self.step(hook, Input::Timeout))
            }
            Err(error) => Err(format!("cannot receive: {error}")),
        }
    }

    /// Gives a hook the same answer whole, byte by byte, and cut once at each byte.
    ///
    /// # Errors
    /// Where the results differ, or no result came: which cut, and what each gave.
    pub fn agree_however_cut(
        &mut self,
        hook: Hook,
        args: &[(&str, &str)],
        answer: &[u8],
    ) -> Result<(), String> {
        let whole = self.fed(hook, args, answer, &[answer.len()]);
        if whole.0 == Outcome::More {
            return Err("the whole answer is not enough".to_owned());
        }
        let each: Vec<usize> = (1..=answer.len()).collect();
        let cuts = (1..answer.len()).map(|cut| vec![cut, answer.len()]).chain([each]);
        for ends in cuts {
            let cut = self.fed(hook, args, answer, &ends);
            if cut != whole {
                let first = ends[0];
                return Err(format!("cut at {first} of {}: {cut:?}, whole: {whole:?}", answer.len()));
            }
        }
        Ok(())
    }

    /// Begins, then tells of `answer` up to each of `ends` until the hook is done.
    fn fed(&mut self, hook: Hook, args: &[(&str, &str)], answer: &[u8], ends: &[usize]) -> (Outcome, Told) {
        let mut last = self.step(hook, Input::Begin { fresh: false, args });
        for end in ends {
            if last.0 != Outcome::More {
                break;
            }
            last = self.step(hook, Input::Bytes(&answer[..*end]));
        }
        last
    }
}

impl Drop for Harness {
    fn drop(&mut self) {
        if let Some(destroy) = self.table.destroy {
            // SAFETY: made by this table's create, and dropped once.
            unsafe { destroy(self.instance.as_ptr()) }
        }
    }
}

fn event(input: Input<'_>, pairs: &[raw::Pair]) -> raw::Event {
    let (kind, flags, bytes): (u32, u32, &[u8]) = match input {
        Input::Begin { fresh, .. } => (raw::BEGIN, if fresh { raw::FRESH } else { 0 }, b""),
        Input::Bytes(bytes) => (raw::BYTES, 0, bytes),
        Input::Closed(bytes) => (raw::CLOSED, 0, bytes),
        Input::Timeout => (raw::TIMEOUT, 0, b""),
        Input::Cancel => (raw::CANCEL, 0, b""),
        Input::Unknown(kind) => (kind, 0, b""),
    };
    raw::Event {
        size: size_of::<raw::Event>() as u64,
        kind,
        flags,
        now_ns: 1,
        deadline_ns: 1_000_000_001,
        bytes: bytes.as_ptr(),
        bytes_len: bytes.len() as u64,
        args: pairs.as_ptr(),
        args_len: pairs.len() as u64,
    }
}

fn outcome(code: i32, why: Option<String>) -> Outcome {
    let why = why.unwrap_or_default();
    match code {
        raw::MORE => Outcome::More,
        raw::DONE => Outcome::Done,
        raw::ERROR => Outcome::Error(why),
        raw::UNSUPPORTED => Outcome::Unsupported,
        raw::BROKEN => Outcome::Broken(why),
        other => Outcome::Broken(format!("it returned {other}")),
    }
}

fn sink(told: &mut Told) -> raw::Sink {
    raw::Sink {
        size: size_of::<raw::Sink>() as u64,
        context: ptr::from_mut(told).cast(),
        send: Some(send),
        health: Some(health),
        number: Some(number),
        text: Some(text),
        fail: Some(fail),
    }
}

/// # Safety
/// `sink` is one of [`sink`]'s, inside the call that it was made for.
unsafe fn told<'a>(sink: *const raw::Sink) -> &'a mut Told {
    // SAFETY: as the caller promised; the host side does not touch it meanwhile.
    unsafe { &mut *(*sink).context.cast::<Told>() }
}

/// # Safety
/// As [`raw::Str::as_bytes`].
unsafe fn owned(ptr: *const c_char, len: u64) -> String {
    // SAFETY: as the caller promised.
    String::from_utf8_lossy(unsafe { raw::slice(ptr.cast(), len) }).into_owned()
}

unsafe extern "C" fn send(sink: *const raw::Sink, bytes: *const c_void, len: u64) {
    // SAFETY: the plugin keeps the contract; a test of the contract itself uses the agent's own sink.
    unsafe { told(sink).sent.extend_from_slice(raw::slice(bytes.cast(), len)) }
}

unsafe extern "C" fn health(sink: *const raw::Sink, code: u32, why: *const c_char, len: u64) {
    // SAFETY: as for `send`.
    unsafe { told(sink).health = Some((code, owned(why, len))) }
}

unsafe extern "C" fn number(sink: *const raw::Sink, kind: u32, name: *const c_char, len: u64, value: f64) {
    // SAFETY: as for `send`.
    unsafe { told(sink).numbers.push((kind, owned(name, len), value)) }
}

unsafe extern "C" fn text(
    sink: *const raw::Sink,
    name: *const c_char,
    len: u64,
    value: *const c_char,
    value_len: u64,
) {
    // SAFETY: as for `send`.
    unsafe { told(sink).texts.push((owned(name, len), raw::slice(value.cast(), value_len).to_vec())) }
}

unsafe extern "C" fn fail(sink: *const raw::Sink, why: *const c_char, len: u64) {
    // SAFETY: as for `send`.
    unsafe { told(sink).why = Some(owned(why, len)) }
}
