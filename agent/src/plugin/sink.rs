//! What a hook answers is taken here, checked and bounded, before anything else sees it.
//!
//! A plugin may keep the sink's pointer or use it from a thread of its own. Both are harmless: the table lives for
//! ever, and its functions work only on the thread, and during the call, for which [`Collector::run`] opened them.
#![allow(unsafe_code)]

use std::{
    cell::Cell,
    ffi::{c_char, c_void},
    ptr,
    sync::atomic::{AtomicBool, Ordering},
};

use yagent_abi::raw;

use super::{Health, NumberKind, Reply};

/// Bytes to send that a conversation may have waiting.
const SEND_MAX: usize = 1 << 20;
/// Figures, and texts, of one conversation.
const ITEMS_MAX: usize = 512;
/// Bytes of a name.
const NAME_MAX: usize = 128;
/// Bytes of a text.
const TEXT_MAX: usize = 64 << 10;
/// Bytes of a reason.
const WHY_MAX: usize = 4 << 10;

/// Takes the answers of one step.
#[derive(Debug)]
pub(super) struct Collector<'a> {
    /// The table that this step was given; another one is not ours.
    pub(super) sink: *const raw::Sink,
    reply: &'a mut Reply,
    /// Takes `argv` as bytes; `None` outside of `start`.
    pub(super) argv: Option<Vec<Vec<u8>>>,
    /// The reason told by `fail`.
    pub(super) why: Option<String>,
    /// The first rule of the sink that the plugin broke.
    pub(super) fault: Option<String>,
}

thread_local! {
    static ACTIVE: Cell<*mut Collector<'static>> = const { Cell::new(ptr::null_mut()) };
}

/// What a plugin lends, or why it can't be looked at.
type Lent<'a> = Result<&'a [u8], Flaw>;

/// Why bytes are not looked at.
#[derive(Clone, Copy, Debug)]
enum Flaw {
    /// NULL with a length.
    Null,
    /// Longer than anything that a sink takes; so long that it may well be no length at all.
    Long(u64),
}

/// Closes the sink however the call ends.
struct Opened;

impl Drop for Opened {
    fn drop(&mut self) {
        ACTIVE.set(ptr::null_mut());
    }
}

impl<'a> Collector<'a> {
    pub(super) fn new(sink: &'static raw::Sink, reply: &'a mut Reply) -> Self {
        Self { sink, reply, argv: None, why: None, fault: None }
    }

    /// Runs `call`, with the sink open to it.
    pub(super) fn run<T>(&mut self, call: impl FnOnce() -> T) -> T {
        ACTIVE.set(ptr::from_mut(self).cast());
        let _opened = Opened;
        call()
    }

    fn send(&mut self, bytes: Lent<'_>) -> Result<(), String> {
        match bytes {
            Ok(bytes) if self.reply.send.len() + bytes.len() <= SEND_MAX => {
                self.reply.send.extend_from_slice(bytes);
                Ok(())
            }
            Ok(_) | Err(Flaw::Long(_)) => Err(format!("send: more than {SEND_MAX} bytes to send")),
            Err(Flaw::Null) => Err("send: NULL with a length".to_owned()),
        }
    }

    fn health(&mut self, code: u32, why: Lent<'_>) -> Result<(), String> {
        let health = match code {
            raw::SERVING => Health::Serving,
            raw::LOADING => Health::Loading,
            raw::BUSY => Health::Busy,
            raw::FULL => Health::Full,
            raw::REFUSED => Health::Refused,
            raw::WRONG => Health::Wrong,
            other => return Err(format!("health: code is {other}, wanted 1 to 6")),
        };
        self.reply.health = Some((health, text("health", "reason", why, WHY_MAX)?.to_owned()));
        Ok(())
    }

    fn number(&mut self, kind: u32, name: Lent<'_>, value: f64) -> Result<(), String> {
        let name = self::name("number", name)?;
        let kind = match kind {
            raw::COUNTER => NumberKind::Counter,
            raw::GAUGE => NumberKind::Gauge,
            other => return Err(format!("number: kind of `{name}` is {other}, wanted 1 or 2")),
        };
        if !value.is_finite() {
            return Err(format!("number: `{name}` is {value}, wanted a finite value"));
        }
        if self.reply.numbers.len() >= ITEMS_MAX {
            return Err(format!("number: more than {ITEMS_MAX} numbers"));
        }
        self.reply.numbers.push((kind, name.to_owned(), value));
        Ok(())
    }

    fn text(&mut self, name: Lent<'_>, value: Lent<'_>) -> Result<(), String> {
        let name = self::name("text", name)?;
        let told = self.reply.texts.len() + self.argv.as_ref().map_or(0, Vec::len);
        if told >= ITEMS_MAX {
            return Err(format!("text: more than {ITEMS_MAX} texts"));
        }
        if let (Some(argv), "argv") = (&mut self.argv, name) {
            argv.push(argument(value)?.to_vec());
        } else {
            let value = text("text", name, value, TEXT_MAX)?;
            self.reply.texts.push((name.to_owned(), value.to_owned()));
        }
        Ok(())
    }

    fn fail(&mut self, why: Lent<'_>) -> Result<(), String> {
        self.why = Some(text("fail", "reason", why, WHY_MAX)?.to_owned());
        Ok(())
    }
}

fn name<'a>(function: &str, name: Lent<'a>) -> Result<&'a str, String> {
    match text(function, "name", name, NAME_MAX)? {
        "" => Err(format!("{function}: the name is empty")),
        name => Ok(name),
    }
}

fn text<'a>(function: &str, what: &str, bytes: Lent<'a>, max: usize) -> Result<&'a str, String> {
    let bytes = bounded(function, what, bytes, max)?;
    std::str::from_utf8(bytes).map_err(|error| format!("{function}: `{what}` is not UTF-8: {error}"))
}

fn bounded<'a>(function: &str, what: &str, bytes: Lent<'a>, max: usize) -> Result<&'a [u8], String> {
    let len = match bytes {
        Ok(bytes) if bytes.len() <= max => return Ok(bytes),
        Ok(bytes) => bytes.len() as u64,
        Err(Flaw::Long(len)) => len,
        Err(Flaw::Null) => return Err(format!("{function}: `{what}` is NULL with a length")),
    };
    Err(format!("{function}: `{what}` has {len} bytes, wanted at most {max}"))
}

fn argument(value: Lent<'_>) -> Result<&[u8], String> {
    let value = bounded("text", "argv", value, TEXT_MAX)?;
    if memchr::memchr(0, value).is_some() {
        return Err("text: `argv` has a NUL in it".to_owned());
    }
    Ok(value)
}

/// A sink's table, to live for ever.
pub(super) fn table() -> raw::Sink {
    raw::Sink {
        size: size_of::<raw::Sink>() as u64,
        context: ptr::null_mut(),
        send: Some(send),
        health: Some(health),
        number: Some(number),
        text: Some(text_entry),
        fail: Some(fail),
    }
}

static TOLD: AtomicBool = AtomicBool::new(false);

/// Whether any plugin of this process used a sink outside of its call.
#[must_use]
pub fn misused() -> bool {
    TOLD.load(Ordering::Relaxed)
}

/// Hands the open collector of this thread to `take`, if `sink` is the one that it was opened for.
fn with(sink: *const raw::Sink, take: impl FnOnce(&mut Collector<'static>) -> Result<(), String>) {
    // SAFETY: set by `run` for the time of a call into the plugin, and only from inside that call are we here; the
    // host touches the collector neither during the call nor, by this exclusive borrow, twice at a time.
    let open = unsafe { ACTIVE.get().as_mut() };
    let Some(collector) = open.filter(|collector| ptr::eq(collector.sink, sink)) else {
        if !TOLD.swap(true, Ordering::Relaxed) {
            log::warn!("a plugin used a sink outside of the call that it was given to; that is ignored");
        }
        return;
    };
    if collector.fault.is_none() {
        collector.fault = take(collector).err();
    }
}

/// What a plugin points to.
///
/// # Safety
/// `ptr` is NULL or points to `len` bytes that nobody writes to during `'a`.
unsafe fn bytes<'a, T>(ptr: *const T, len: u64) -> Lent<'a> {
    match len {
        0 => Ok(&[]),
        _ if ptr.is_null() => Err(Flaw::Null),
        _ if len > SEND_MAX as u64 => Err(Flaw::Long(len)),
        // SAFETY: not NULL and of a plausible length; the rest is the caller's promise.
        _ => Ok(unsafe { raw::slice(ptr.cast(), len) }),
    }
}

unsafe extern "C" fn send(sink: *const raw::Sink, ptr: *const c_void, len: u64) {
    // SAFETY: the plugin lends the bytes for this call.
    with(sink, |collector| collector.send(unsafe { bytes(ptr, len) }));
}

unsafe extern "C" fn health(sink: *const raw::Sink, code: u32, why: *const c_char, why_len: u64) {
    // SAFETY: the plugin lends the bytes for this call.
    with(sink, |collector| collector.health(code, unsafe { bytes(why, why_len) }));
}

unsafe extern "C" fn number(
    sink: *const raw::Sink,
    kind: u32,
    name: *const c_char,
    name_len: u64,
    value: f64,
) {
    // SAFETY: the plugin lends the bytes for this call.
    with(sink, |collector| collector.number(kind, unsafe { bytes(name, name_len) }, value));
}

unsafe extern "C" fn text_entry(
    sink: *const raw::Sink,
    name: *const c_char,
    name_len: u64,
    value: *const c_char,
    value_len: u64,
) {
    // SAFETY: the plugin lends both for this call.
    let (name, value) = unsafe { (bytes(name, name_len), bytes(value, value_len)) };
    with(sink, |collector| collector.text(name, value));
}

unsafe extern "C" fn fail(sink: *const raw::Sink, why: *const c_char, why_len: u64) {
    // SAFETY: the plugin lends the bytes for this call.
    with(sink, |collector| collector.fail(unsafe { bytes(why, why_len) }));
}
