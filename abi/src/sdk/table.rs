//! The C side of the SDK: the description, and one entry per hook, each of which catches panics.
//!
//! Everything here is used through [`export_engine!`](crate::export_engine).
#![allow(unsafe_code)]

use core::{
    ffi::{c_char, c_void},
    marker::PhantomData,
    ptr,
    sync::atomic::{AtomicPtr, Ordering::Relaxed},
};
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{Begin, Engine, Event, Flow, Plan, Replication, Settings, Sink, Step};
use crate::raw;

/// The host that loaded this plugin; a plugin is a shared object of its own, so each has its own.
static HOST: AtomicPtr<raw::Host> = AtomicPtr::new(ptr::null_mut());

/// Remembers the host for [`log`](super::log).
///
/// # Safety
/// `host` is NULL or valid for as long as the process.
pub unsafe fn set_host(host: *const raw::Host) {
    HOST.store(host.cast_mut(), Relaxed);
}

/// Writes a line to the host's log, at [`raw::LOG_INFO`] or one of its siblings.
pub(super) fn log(level: u32, text: &str) {
    // SAFETY: NULL or valid as long as the process, by the promise made to `set_host`.
    let host = unsafe { HOST.load(Relaxed).as_ref() };
    if let Some((host, log)) = host.and_then(|host| host.log.map(|log| (host, log))) {
        // SAFETY: the text outlives the call, and log may be called from anywhere.
        unsafe { log(host, level, text.as_ptr().cast(), text.len() as u64) }
    }
}

/// An instance's object with what the border needs to know of it.
struct Instance<E> {
    engine: E,
    /// It panicked: its state is half changed, and it is not entered again.
    broken: bool,
}

/// The tables of engine `E`.
pub struct Table<E>(PhantomData<E>);

impl<E: Engine> Table<E> {
    /// The description of an engine without replication.
    pub const PLAIN: raw::Plugin = Self::describe(ptr::null());

    const fn describe(failover: *const raw::Failover) -> raw::Plugin {
        let about = E::DESCRIPTION;
        raw::Plugin {
            magic: raw::ABI_MAGIC,
            size: size_of::<raw::Plugin>() as u64,
            major: raw::ABI_MAJOR,
            minor: raw::ABI_MINOR,
            least_host_minor: 0,
            flags: 0,
            id: raw::Str::new(about.id),
            version: raw::Str::new(about.version),
            summary: raw::Str::new(about.summary),
            section: raw::Str::new(about.section),
            key_prefix: raw::Str::new(about.key_prefix),
            registry_root: raw::Str::new(about.registry_root),
            keys: raw::Str::new(about.keys),
            file_keys: raw::Str::new(about.file_keys),
            create: Some(create::<E>),
            destroy: Some(destroy::<E>),
            start: Some(start::<E>),
            probe: Some(probe::<E>),
            stats: Some(stats::<E>),
            failover,
            extension: Some(extension),
        }
    }
}

impl<E: Replication> Table<E> {
    /// The hooks of replication.
    const FAILOVER: raw::Failover = raw::Failover {
        size: size_of::<raw::Failover>() as u64,
        inspect: Some(inspect::<E>),
        promote: Some(promote::<E>),
        follow: Some(follow::<E>),
        fence: Some(fence::<E>),
        unfence: Some(unfence::<E>),
    };

    /// The description of an engine with replication.
    pub const REPLICATED: raw::Plugin = Self::describe(&Self::FAILOVER);
}

/// Runs `body`; a panic is told to the sink and gives `None`.
fn guard<T>(sink: Option<&Sink<'_>>, body: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(value) => Some(value),
        Err(payload) => {
            let text = payload
                .downcast_ref::<&str>()
                .copied()
                .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
                .unwrap_or("without a message");
            if let Some(sink) = sink {
                sink.fail(&format!("it panicked: {text}"));
            }
            // Dropping a foreign payload may itself panic, and here nobody would catch it.
            core::mem::forget(payload);
            None
        }
    }
}

unsafe extern "C" fn create<E: Engine>(
    settings: *const raw::Settings,
    sink: *const raw::Sink,
) -> *mut c_void {
    // SAFETY: the host lends both for this call.
    let (Some(settings), Some(raw)) = (unsafe { settings.as_ref() }, unsafe { sink.as_ref() }) else {
        return ptr::null_mut();
    };
    let sink = Sink { raw, _this_call: PhantomData };
    // SAFETY: the host lends the pairs for this call.
    let settings = Settings { pairs: unsafe { raw::slice(settings.pairs, settings.pairs_len) } };
    match guard(Some(&sink), || E::create(&settings)) {
        Some(Ok(engine)) => Box::into_raw(Box::new(Instance { engine, broken: false })).cast(),
        Some(Err(why)) => {
            sink.fail(&why);
            ptr::null_mut()
        }
        None => ptr::null_mut(),
    }
}

unsafe extern "C" fn destroy<E: Engine>(instance: *mut c_void) {
    if instance.is_null() {
        return;
    }
    // SAFETY: `create` made it from such a box, and the host gives it back once.
    let instance = unsafe { Box::from_raw(instance.cast::<Instance<E>>()) };
    if instance.broken {
        core::mem::forget(instance);
    } else if guard(None, || drop(instance)).is_none() {
        log(raw::LOG_ERROR, "it panicked while an instance's object was dropped");
    }
}

/// One step of any hook.
///
/// # Safety
/// As the header says of `yagent_hook`.
unsafe fn step<E: Engine>(
    instance: *mut c_void,
    event: *const raw::Event,
    sink: *const raw::Sink,
    hook: impl FnOnce(&mut E, Event<'_>, &Sink<'_>) -> Step,
) -> i32 {
    // SAFETY: the object is `create`'s, and the host neither shares it nor enters it twice; event and sink are lent.
    let parts = unsafe { (instance.cast::<Instance<E>>().as_mut(), event.as_ref(), sink.as_ref()) };
    let (Some(instance), Some(event), Some(raw)) = parts else {
        return raw::BROKEN;
    };
    let sink = Sink { raw, _this_call: PhantomData };
    if instance.broken {
        sink.fail("it panicked before");
        return raw::BROKEN;
    }
    // SAFETY: the event is the host's, lent for this call.
    let Some(event) = (unsafe { read(event) }) else {
        return raw::UNSUPPORTED;
    };
    match guard(Some(&sink), || hook(&mut instance.engine, event, &sink)) {
        Some(Ok(Flow::More)) => raw::MORE,
        Some(Ok(Flow::Done)) => raw::DONE,
        Some(Ok(Flow::Unsupported)) => raw::UNSUPPORTED,
        Some(Err(why)) => {
            sink.fail(&why);
            raw::ERROR
        }
        None => {
            instance.broken = true;
            raw::BROKEN
        }
    }
}

/// The event in Rust's terms; `None` for a kind of a later version.
///
/// # Safety
/// What the event points to is lent for `'a`.
unsafe fn read<'a>(event: &'a raw::Event) -> Option<Event<'a>> {
    // SAFETY: as the caller promised.
    let bytes = || unsafe { raw::slice(event.bytes, event.bytes_len) };
    Some(match event.kind {
        raw::BEGIN => Event::Begin(Begin {
            fresh: event.flags & raw::FRESH != 0,
            now_ns: event.now_ns,
            deadline_ns: event.deadline_ns,
            // SAFETY: as the caller promised.
            args: unsafe { raw::slice(event.args, event.args_len) },
        }),
        raw::BYTES => Event::Bytes(bytes()),
        raw::CLOSED => Event::Closed(bytes()),
        raw::TIMEOUT => Event::Timeout,
        raw::CANCEL => Event::Cancel,
        _ => return None,
    })
}

/// `start` has one event and another shape than the conversations.
fn start_step<E: Engine>(engine: &mut E, event: Event<'_>, sink: &Sink<'_>) -> Step {
    match event {
        Event::Begin(_) => engine.start(&Plan { sink: *sink }).map(|()| Flow::Done),
        _ => Ok(Flow::Unsupported),
    }
}

macro_rules! entries {
    ($($name:ident: $bound:ident => $hook:expr;)*) => {$(
        unsafe extern "C" fn $name<E: $bound>(
            instance: *mut c_void,
            event: *const raw::Event,
            sink: *const raw::Sink,
        ) -> i32 {
            // SAFETY: the caller is the host, which keeps what the header says of `yagent_hook`.
            unsafe { step::<E>(instance, event, sink, $hook) }
        }
    )*};
}

entries! {
    start: Engine => start_step;
    probe: Engine => E::probe;
    stats: Engine => E::stats;
    inspect: Replication => E::inspect;
    promote: Replication => E::promote;
    follow: Replication => E::follow;
    fence: Replication => E::fence;
    unfence: Replication => E::unfence;
}

unsafe extern "C" fn extension(_name: *const c_char, _len: u64) -> *const c_void {
    ptr::null()
}

/// Exports an engine from a `cdylib`: `export_engine!(Memcached);`, or `export_engine!(Redis, replication);` for one
/// that implements [`Replication`](crate::sdk::Replication) too. To be said once in a crate.
#[macro_export]
macro_rules! export_engine {
    ($engine:ty) => {
        $crate::export_engine!(@ $engine, PLAIN);
    };
    ($engine:ty, replication) => {
        $crate::export_engine!(@ $engine, REPLICATED);
    };
    (@ $engine:ty, $table:ident) => {
        const _: () = {
            #[cfg(panic = "abort")]
            compile_error!("a plugin must be built with panic = \"unwind\": its panics are caught at the border");

            static PLUGIN: $crate::raw::Plugin = $crate::sdk::table::Table::<$engine>::$table;

            #[unsafe(no_mangle)]
            unsafe extern "C" fn yagent_plugin_v1(host: *const $crate::raw::Host) -> *const $crate::raw::Plugin {
                // SAFETY: the host table lives as long as the process.
                unsafe { $crate::sdk::table::set_host(host) };
                &PLUGIN
            }
        };
    };
}
