//! The C header `yagent/plugin.h` in Rust, name for name. The header documents each field; here is only its shape.
//!
//! Function pointers are `Option`s, for what comes from the other side of the border may be NULL.
#![allow(unsafe_code)]

use core::ffi::{c_char, c_void};

/// `YAGENT_ABI_MAJOR`
pub const ABI_MAJOR: u32 = 1;
/// `YAGENT_ABI_MINOR`
pub const ABI_MINOR: u32 = 0;
/// `YAGENT_ABI_MAGIC`
pub const ABI_MAGIC: u64 = 0x5941_4745_4E54_010A;
/// The exported function's name, as `dlsym` wants it.
pub const ENTRY: &[u8] = b"yagent_plugin_v1\0";

/// `YAGENT_LOG_ERROR`
pub const LOG_ERROR: u32 = 1;
/// `YAGENT_LOG_WARN`
pub const LOG_WARN: u32 = 2;
/// `YAGENT_LOG_INFO`
pub const LOG_INFO: u32 = 3;
/// `YAGENT_LOG_DEBUG`
pub const LOG_DEBUG: u32 = 4;

/// `YAGENT_BEGIN`
pub const BEGIN: u32 = 1;
/// `YAGENT_BYTES`
pub const BYTES: u32 = 2;
/// `YAGENT_CLOSED`
pub const CLOSED: u32 = 3;
/// `YAGENT_TIMEOUT`
pub const TIMEOUT: u32 = 4;
/// `YAGENT_CANCEL`
pub const CANCEL: u32 = 5;

/// `YAGENT_FRESH`
pub const FRESH: u32 = 1;

/// `YAGENT_SERVING`
pub const SERVING: u32 = 1;
/// `YAGENT_LOADING`
pub const LOADING: u32 = 2;
/// `YAGENT_BUSY`
pub const BUSY: u32 = 3;
/// `YAGENT_FULL`
pub const FULL: u32 = 4;
/// `YAGENT_REFUSED`
pub const REFUSED: u32 = 5;
/// `YAGENT_WRONG`
pub const WRONG: u32 = 6;

/// `YAGENT_COUNTER`
pub const COUNTER: u32 = 1;
/// `YAGENT_GAUGE`
pub const GAUGE: u32 = 2;

/// `YAGENT_DONE`
pub const DONE: i32 = 0;
/// `YAGENT_MORE`
pub const MORE: i32 = 1;
/// `YAGENT_ERROR`
pub const ERROR: i32 = -1;
/// `YAGENT_UNSUPPORTED`
pub const UNSUPPORTED: i32 = -2;
/// `YAGENT_BROKEN`
pub const BROKEN: i32 = -3;

/// `yagent_str`
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Str {
    /// The first byte; not looked at when `len` is 0.
    pub ptr: *const c_char,
    /// Bytes.
    pub len: u64,
}

impl Str {
    /// Borrows a text; the borrow's end is the caller's care.
    #[must_use]
    pub const fn new(text: &str) -> Self {
        Self::bytes(text.as_bytes())
    }

    /// Borrows bytes; the borrow's end is the caller's care.
    #[must_use]
    pub const fn bytes(bytes: &[u8]) -> Self {
        Self { ptr: bytes.as_ptr().cast(), len: bytes.len() as u64 }
    }

    /// The bytes; empty for a NULL pointer.
    ///
    /// # Safety
    /// `ptr` is NULL or points to `len` bytes that nobody writes to during `'a`.
    #[must_use]
    pub unsafe fn as_bytes<'a>(self) -> &'a [u8] {
        // SAFETY: as the caller promised.
        unsafe { slice(self.ptr.cast(), self.len) }
    }
}

/// A slice from what comes over the border; empty for NULL or a length that no object can have.
///
/// # Safety
/// `ptr` is NULL or points to `len` valid objects that nobody writes to during `'a`.
#[must_use]
pub unsafe fn slice<'a, T>(ptr: *const T, len: u64) -> &'a [T] {
    let len = usize::try_from(len).unwrap_or(0);
    if ptr.is_null() || !ptr.is_aligned() || len > isize::MAX as usize / size_of::<T>().max(1) {
        return &[];
    }
    // SAFETY: neither NULL nor misaligned nor beyond the address space; the rest is the caller's promise.
    unsafe { core::slice::from_raw_parts(ptr, len) }
}

/// `yagent_pair`
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    /// The name.
    pub name: Str,
    /// The value, in bytes.
    pub value: Str,
}

/// `yagent_host`
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// Of this struct.
    pub size: u64,
    /// The host's major.
    pub major: u32,
    /// The host's minor.
    pub minor: u32,
    /// The host's own.
    pub context: *mut c_void,
    /// Writes a line to the host's log.
    pub log: Option<unsafe extern "C" fn(host: *const Host, level: u32, text: *const c_char, len: u64)>,
    /// Finds an extension by name.
    pub extension:
        Option<unsafe extern "C" fn(host: *const Host, name: *const c_char, len: u64) -> *const c_void>,
}

/// `yagent_event`
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// Of this struct.
    pub size: u64,
    /// [`BEGIN`] and its siblings.
    pub kind: u32,
    /// [`FRESH`] or 0.
    pub flags: u32,
    /// Nanoseconds of a monotonic clock.
    pub now_ns: u64,
    /// On the same clock; 0: never.
    pub deadline_ns: u64,
    /// All received since the last send.
    pub bytes: *const u8,
    /// How many.
    pub bytes_len: u64,
    /// Arguments of the hook.
    pub args: *const Pair,
    /// How many.
    pub args_len: u64,
}

/// `yagent_sink`
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Sink {
    /// Of this struct.
    pub size: u64,
    /// The host's own.
    pub context: *mut c_void,
    /// Bytes for the server.
    pub send: Option<unsafe extern "C" fn(sink: *const Sink, bytes: *const c_void, len: u64)>,
    /// What a probe found.
    pub health: Option<unsafe extern "C" fn(sink: *const Sink, code: u32, why: *const c_char, why_len: u64)>,
    /// A figure.
    pub number: Option<
        unsafe extern "C" fn(sink: *const Sink, kind: u32, name: *const c_char, name_len: u64, value: f64),
    >,
    /// A text.
    pub text: Option<
        unsafe extern "C" fn(
            sink: *const Sink,
            name: *const c_char,
            name_len: u64,
            value: *const c_char,
            value_len: u64,
        ),
    >,
    /// The reason of an error.
    pub fail: Option<unsafe extern "C" fn(sink: *const Sink, why: *const c_char, why_len: u64)>,
}

/// `yagent_hook`
pub type Hook =
    Option<unsafe extern "C" fn(instance: *mut c_void, event: *const Event, sink: *const Sink) -> i32>;

/// `yagent_failover`
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Failover {
    /// Of this struct.
    pub size: u64,
    /// What part it plays.
    pub inspect: Hook,
    /// Make it a master.
    pub promote: Hook,
    /// Make it a replica.
    pub follow: Hook,
    /// Stop writes.
    pub fence: Hook,
    /// Allow writes.
    pub unfence: Hook,
}

/// `yagent_settings`
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Of this struct.
    pub size: u64,
    /// The settings.
    pub pairs: *const Pair,
    /// How many.
    pub pairs_len: u64,
}

/// The type of `yagent_plugin.create`.
pub type Create = Option<unsafe extern "C" fn(settings: *const Settings, sink: *const Sink) -> *mut c_void>;
/// The type of `yagent_plugin.destroy`.
pub type Destroy = Option<unsafe extern "C" fn(instance: *mut c_void)>;
/// The type of `yagent_plugin.extension`.
pub type Extension = Option<unsafe extern "C" fn(name: *const c_char, len: u64) -> *const c_void>;

/// `yagent_plugin`
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Plugin {
    /// [`ABI_MAGIC`]
    pub magic: u64,
    /// Of this struct.
    pub size: u64,
    /// [`ABI_MAJOR`]
    pub major: u32,
    /// [`ABI_MINOR`]
    pub minor: u32,
    /// The least minor of a host with which the plugin works.
    pub least_host_minor: u32,
    /// 0
    pub flags: u32,
    /// Who it is.
    pub id: Str,
    /// The plugin's version.
    pub version: Str,
    /// One line for people.
    pub summary: Str,
    /// The ini section.
    pub section: Str,
    /// What the section's keys begin with.
    pub key_prefix: Str,
    /// The default root in ZooKeeper.
    pub registry_root: Str,
    /// The keys that only the plugin understands.
    pub keys: Str,
    /// Those whose values name files that the host reads.
    pub file_keys: Str,
    /// Makes an instance's object.
    pub create: Create,
    /// Ends it.
    pub destroy: Destroy,
    /// How it is started.
    pub start: Hook,
    /// Whether it works.
    pub probe: Hook,
    /// What it counted.
    pub stats: Hook,
    /// NULL: no replication.
    pub failover: *const Failover,
    /// May be NULL.
    pub extension: Extension,
}

// SAFETY: a description is written once, before anybody sees it, and only read from then on.
unsafe impl Sync for Plugin {}
// SAFETY: as above; nothing in it belongs to a thread.
unsafe impl Send for Plugin {}
// SAFETY: a table of functions, written once.
unsafe impl Sync for Failover {}

/// The type of the exported function [`ENTRY`].
pub type Entry = unsafe extern "C" fn(host: *const Host) -> *const Plugin;

/// Every struct's size and every field's offset, checked here at compile time and listed as the C header's test does.
macro_rules! layout {
    ($($type:ident $c:literal $size:literal { $($field:ident $offset:literal)* })*) => {
        $(const _: () = {
            assert!(size_of::<$type>() == $size);
            assert!(align_of::<$type>() == 8);
            $(assert!(core::mem::offset_of!($type, $field) == $offset);)*
        };)*

        /// One line per struct and field: `struct size`, `struct.field offset`.
        #[must_use]
        pub fn layout() -> String {
            let mut lines = String::new();
            $(
                lines.push_str(&format!("{} {}\n", $c, size_of::<$type>()));
                $(lines.push_str(&format!("{}.{} {}\n", $c, stringify!($field), core::mem::offset_of!($type, $field)));)*
            )*
            lines
        }
    };
}

layout! {
    Str "yagent_str" 16 { ptr 0 len 8 }
    Pair "yagent_pair" 32 { name 0 value 16 }
    Host "yagent_host" 40 { size 0 major 8 minor 12 context 16 log 24 extension 32 }
    Event "yagent_event" 64 {
        size 0 kind 8 flags 12 now_ns 16 deadline_ns 24 bytes 32 bytes_len 40 args 48 args_len 56
    }
    Sink "yagent_sink" 56 { size 0 context 8 send 16 health 24 number 32 text 40 fail 48 }
    Failover "yagent_failover" 48 { size 0 inspect 8 promote 16 follow 24 fence 32 unfence 40 }
    Settings "yagent_settings" 24 { size 0 pairs 8 pairs_len 16 }
    Plugin "yagent_plugin" 216 {
        magic 0 size 8 major 16 minor 20 least_host_minor 24 flags 28 id 32 version 48 summary 64 section 80
        key_prefix 96 registry_root 112 keys 128 file_keys 144 create 160 destroy 168 start 176 probe 184 stats 192
        failover 200 extension 208
    }
}
