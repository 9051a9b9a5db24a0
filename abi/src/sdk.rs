//! Safe Rust over the contract: an engine is a type that implements [`Engine`], exported with
//! [`export_engine!`](crate::export_engine).
//!
//! Each entry catches panics: a panic becomes the code `BROKEN` with its message, and that instance is not entered
//! again. The tables and entries are in [`table`], which is public only for the macro's sake.
//!
//! ```
//! use yagent_abi::sdk::{Description, Engine, Event, Flow, Health, Plan, Settings, Sink, Step};
//!
//! struct Echo;
//!
//! impl Engine for Echo {
//!     const DESCRIPTION: Description = Description {
//!         id: "org.example.echo",
//!         version: "0.1.0",
//!         summary: "an echo server",
//!         section: "echo",
//!         key_prefix: "echo_",
//!         registry_root: "/echo",
//!         keys: "",
//!         file_keys: "",
//!     };
//!
//!     fn create(_settings: &Settings<'_>) -> Result<Self, String> {
//!         Ok(Self)
//!     }
//!
//!     fn start(&mut self, plan: &Plan<'_>) -> Result<(), String> {
//!         plan.program("/usr/bin/echod");
//!         Ok(())
//!     }
//!
//!     fn probe(&mut self, event: Event<'_>, sink: &Sink<'_>) -> Step {
//!         match event {
//!             Event::Begin(_) => {
//!                 sink.send(b"hello\n");
//!                 Ok(Flow::More)
//!             }
//!             Event::Bytes(b"hello\n") => {
//!                 sink.health(Health::Serving, "");
//!                 Ok(Flow::Done)
//!             }
//!             Event::Bytes(bytes) if bytes.len() < 6 => Ok(Flow::More),
//!             other => Err(other.refusal()),
//!         }
//!     }
//!
//!     fn stats(&mut self, _event: Event<'_>, _sink: &Sink<'_>) -> Step {
//!         Ok(Flow::Unsupported)
//!     }
//! }
//!
//! yagent_abi::export_engine!(Echo);
//! # fn main() {}
//! ```
#![allow(unsafe_code)]

use core::{fmt::Display, marker::PhantomData};

use crate::raw;

pub mod table;

/// Who a plugin is. See the header's `yagent_plugin` for each field's form.
#[derive(Clone, Copy, Debug)]
pub struct Description {
    /// `memcached`, `org.example.engine`.
    pub id: &'static str,
    /// The plugin's own version.
    pub version: &'static str,
    /// One line for people.
    pub summary: &'static str,
    /// The ini section that configures the engine.
    pub section: &'static str,
    /// What the section's keys begin with.
    pub key_prefix: &'static str,
    /// The default root in ZooKeeper.
    pub registry_root: &'static str,
    /// The keys that only the plugin understands, comma separated.
    pub keys: &'static str,
    /// Those of them that name files whose text the plugin needs.
    pub file_keys: &'static str,
}

/// How important a line of the log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Level {
    /// Something is wrong.
    Error = raw::LOG_ERROR,
    /// Something may go wrong.
    Warn = raw::LOG_WARN,
    /// Something worth knowing.
    Info = raw::LOG_INFO,
    /// For whoever looks for a fault.
    Debug = raw::LOG_DEBUG,
}

/// Writes a line to the host's log, from any thread; does nothing where no host has loaded the plugin.
pub fn log(level: Level, text: &str) {
    table::log(level as u32, text);
}

/// How a step went well: the conversation goes on, or it is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// The hook waits for bytes.
    More,
    /// The answers are complete.
    Done,
    /// The server cannot do this.
    Unsupported,
}

/// What a hook returns; the error is its reason, for a person to read.
pub type Step = Result<Flow, String>;

/// An engine: one value per instance.
///
/// Its hooks compute only; they never wait, lock, open, read or write. See the header for what each may tell.
pub trait Engine: Sized + 'static {
    /// Who it is.
    const DESCRIPTION: Description;

    /// An instance's object from its settings.
    ///
    /// # Errors
    /// What is wrong with which setting.
    ///
    /// ```
    /// # use yagent_abi::{sdk::*, testing::{Harness, Hook, Input, Outcome}};
    /// struct Lines { port: u16 }
    /// impl Engine for Lines {
    /// #     const DESCRIPTION: Description = Description { id: "lines", version: "1", summary: "", section: "lines",
    /// #         key_prefix: "lines_", registry_root: "/lines", keys: "", file_keys: "" };
    ///     fn create(settings: &Settings<'_>) -> Result<Self, String> {
    ///         Ok(Self { port: settings.number("port")? })
    ///     }
    /// #     fn start(&mut self, _: &Plan<'_>) -> Result<(), String> { Ok(()) }
    /// #     fn probe(&mut self, _: Event<'_>, _: &Sink<'_>) -> Step { Ok(Flow::Done) }
    /// #     fn stats(&mut self, _: Event<'_>, _: &Sink<'_>) -> Step { Ok(Flow::Done) }
    /// }
    /// let why = |port: &[u8]| Harness::new::<Lines>(&[("port", port)]).map(drop).unwrap_err();
    /// assert!(Harness::new::<Lines>(&[("port", b"7000")]).is_ok());
    /// assert_eq!(why(b"many"), "`port` is `many`: invalid digit found in string");
    /// ```
    fn create(settings: &Settings<'_>) -> Result<Self, String>;

    /// How the instance is started.
    ///
    /// # Errors
    /// Why it can't be.
    ///
    /// ```
    /// # use yagent_abi::{sdk::*, testing::{Harness, Hook, Input, Outcome}};
    /// # struct Lines;
    /// impl Engine for Lines {
    /// #     const DESCRIPTION: Description = Description { id: "lines", version: "1", summary: "", section: "lines",
    /// #         key_prefix: "lines_", registry_root: "/lines", keys: "", file_keys: "" };
    /// #     fn create(_: &Settings<'_>) -> Result<Self, String> { Ok(Self) }
    ///     fn start(&mut self, plan: &Plan<'_>) -> Result<(), String> {
    ///         plan.program("/usr/bin/linesd");
    ///         plan.args(["--foreground", "--port=7000"]);
    ///         plan.open_files(1024);
    ///         Ok(())
    ///     }
    /// #     fn probe(&mut self, _: Event<'_>, _: &Sink<'_>) -> Step { Ok(Flow::Done) }
    /// #     fn stats(&mut self, _: Event<'_>, _: &Sink<'_>) -> Step { Ok(Flow::Done) }
    /// }
    /// let plan = Harness::new::<Lines>(&[]).unwrap().plan().unwrap();
    /// assert_eq!(plan.texts("argv"), ["--foreground", "--port=7000"]);
    /// assert_eq!(plan.number("open_files"), Some(1024.0));
    /// ```
    fn start(&mut self, plan: &Plan<'_>) -> Result<(), String>;

    /// A step of the probe.
    ///
    /// # Errors
    /// Why there was no answer to judge.
    ///
    /// ```
    /// # use yagent_abi::{sdk::*, testing::{Harness, Hook, Input, Outcome}};
    /// # struct Lines;
    /// impl Engine for Lines {
    /// #     const DESCRIPTION: Description = Description { id: "lines", version: "1", summary: "", section: "lines",
    /// #         key_prefix: "lines_", registry_root: "/lines", keys: "", file_keys: "" };
    /// #     fn create(_: &Settings<'_>) -> Result<Self, String> { Ok(Self) }
    /// #     fn start(&mut self, _: &Plan<'_>) -> Result<(), String> { Ok(()) }
    ///     fn probe(&mut self, event: Event<'_>, sink: &Sink<'_>) -> Step {
    ///         match event {
    ///             Event::Begin(_) => {
    ///                 sink.send(b"get x\n");
    ///                 Ok(Flow::More)
    ///             }
    ///             Event::Bytes(bytes) if !bytes.ends_with(b"\n") => Ok(Flow::More),
    ///             Event::Bytes(b"loading\n") => {
    ///                 sink.health(Health::Loading, "it reads its data");
    ///                 Ok(Flow::Done)
    ///             }
    ///             Event::Bytes(_) => {
    ///                 sink.health(Health::Serving, "");
    ///                 Ok(Flow::Done)
    ///             }
    ///             other => Err(other.refusal()),
    ///         }
    ///     }
    /// #     fn stats(&mut self, _: Event<'_>, _: &Sink<'_>) -> Step { Ok(Flow::Done) }
    /// }
    /// let mut lines = Harness::new::<Lines>(&[]).unwrap();
    /// assert_eq!(lines.step(Hook::Probe, Input::Begin { fresh: true, args: &[] }).1.sent, b"get x\n");
    /// assert_eq!(lines.step(Hook::Probe, Input::Bytes(b"load")).0, Outcome::More);
    /// let (outcome, told) = lines.step(Hook::Probe, Input::Bytes(b"loading\n"));
    /// assert_eq!((outcome, told.health.unwrap().0), (Outcome::Done, Health::Loading as u32));
    /// let (outcome, _) = lines.step(Hook::Probe, Input::Timeout);
    /// assert_eq!(outcome, Outcome::Error("no answer in time".to_owned()));
    /// ```
    fn probe(&mut self, event: Event<'_>, sink: &Sink<'_>) -> Step;

    /// A step of the statistics.
    ///
    /// # Errors
    /// Why there were none.
    ///
    /// ```
    /// # use yagent_abi::{sdk::*, testing::{Harness, Hook, Input, Outcome}};
    /// # struct Lines;
    /// impl Engine for Lines {
    /// #     const DESCRIPTION: Description = Description { id: "lines", version: "1", summary: "", section: "lines",
    /// #         key_prefix: "lines_", registry_root: "/lines", keys: "", file_keys: "" };
    /// #     fn create(_: &Settings<'_>) -> Result<Self, String> { Ok(Self) }
    /// #     fn start(&mut self, _: &Plan<'_>) -> Result<(), String> { Ok(()) }
    /// #     fn probe(&mut self, _: Event<'_>, _: &Sink<'_>) -> Step { Ok(Flow::Done) }
    ///     fn stats(&mut self, event: Event<'_>, sink: &Sink<'_>) -> Step {
    ///         match event {
    ///             Event::Begin(_) => {
    ///                 sink.send(b"stats\n");
    ///                 Ok(Flow::More)
    ///             }
    ///             Event::Bytes(bytes) => match std::str::from_utf8(bytes).ok().and_then(|text| text.strip_suffix('\n')) {
    ///                 None => Ok(Flow::More),
    ///                 Some(gets) => {
    ///                     sink.counter("gets", gets.parse().map_err(|_| format!("`{gets}` is no number"))?);
    ///                     sink.gauge("keys", 2.0);
    ///                     sink.text("version", "1.0");
    ///                     Ok(Flow::Done)
    ///                 }
    ///             },
    ///             other => Err(other.refusal()),
    ///         }
    ///     }
    /// }
    /// let mut lines = Harness::new::<Lines>(&[]).unwrap();
    /// let (outcome, told) = lines.step(Hook::Stats, Input::Bytes(b"12\n"));
    /// assert_eq!((outcome, told.number("gets")), (Outcome::Done, Some(12.0)));
    /// lines.agree_however_cut(Hook::Stats, &[], b"12\n").unwrap();
    /// ```
    fn stats(&mut self, event: Event<'_>, sink: &Sink<'_>) -> Step;
}

/// An engine with replication.
pub trait Replication: Engine {
    /// What part the instance plays.
    ///
    /// # Errors
    /// Why it could not be found out.
    ///
    /// ```
    /// # use yagent_abi::{sdk::*, testing::{Harness, Hook, Input, Outcome}};
    /// # struct Lines;
    /// # impl Engine for Lines {
    /// #     const DESCRIPTION: Description = Description { id: "lines", version: "1", summary: "", section: "lines",
    /// #         key_prefix: "lines_", registry_root: "/lines", keys: "", file_keys: "" };
    /// #     fn create(_: &Settings<'_>) -> Result<Self, String> { Ok(Self) }
    /// #     fn start(&mut self, _: &Plan<'_>) -> Result<(), String> { Ok(()) }
    /// #     fn probe(&mut self, _: Event<'_>, _: &Sink<'_>) -> Step { Ok(Flow::Done) }
    /// #     fn stats(&mut self, _: Event<'_>, _: &Sink<'_>) -> Step { Ok(Flow::Done) }
    /// # }
    /// impl Replication for Lines {
    ///     fn inspect(&mut self, event: Event<'_>, sink: &Sink<'_>) -> Step {
    ///         match event {
    ///             Event::Begin(_) => {
    ///                 sink.send(b"role\n");
    ///                 Ok(Flow::More)
    ///             }
    ///             Event::Bytes(b"replica of 10.0.0.1:7000\n") => {
    ///                 sink.text("role", "replica");
    ///                 sink.text("master", "10.0.0.1:7000");
    ///                 sink.text("link", "up");
    ///                 Ok(Flow::Done)
    ///             }
    ///             Event::Bytes(bytes) if !bytes.ends_with(b"\n") => Ok(Flow::More),
    ///             other => Err(other.refusal()),
    ///         }
    ///     }
    /// #     fn promote(&mut self, _: Event<'_>, _: &Sink<'_>) -> Step { Ok(Flow::Done) }
    /// #     fn follow(&mut self, _: Event<'_>, _: &Sink<'_>) -> Step { Ok(Flow::Done) }
    /// #     fn fence(&mut self, _: Event<'_>, _: &Sink<'_>) -> Step { Ok(Flow::Done) }
    /// #     fn unfence(&mut self, _: Event<'_>, _: &Sink<'_>) -> Step { Ok(Flow::Done) }
    /// }
    /// let mut lines = Harness::replicated::<Lines>(&[]).unwrap();
    /// let (_, told) = lines.step(Hook::Inspect, Input::Bytes(b"replica of 10.0.0.1:7000\n"));
    /// assert_eq!(told.texts("master"), ["10.0.0.1:7000"]);
    /// ```
    fn inspect(&mut self, event: Event<'_>, sink: &Sink<'_>) -> Step;

    /// Makes it a master; given the argument `fence_ms`, one that takes no writes for so long or until `unfence`, where it
    /// can stop them.
    ///
    /// # Errors
    /// Why it did not become one.
    ///
    /// ```
    /// # use yagent_abi::{sdk::*, testing::{Harness, Hook, Input, Outcome}};
    /// # struct Lines;
    /// # impl Engine for Lines {
    /// #     const DESCRIPTION: Description = Description { id: "lines", version: "1", summary: "", section: "lines",
    /// #         key_prefix: "lines_", registry_root: "/lines", keys: "", file_keys: "" };
    /// #     fn create(_: &Settings<'_>) -> Result<Self, String> { Ok(Self) }
    /// #     fn start(&mut self, _: &Plan<'_>) -> Result<(), String> { Ok(()) }
    /// #     fn probe(&mut self, _: Event<'_>, _: &Sink<'_>) -> Step { Ok(Flow::Done) }
    /// #     fn stats(&mut self, _: Event<'_>, _: &Sink<'_>) -> Step { Ok(Flow::Done) }
    /// # }
    /// impl Replication for Lines {
    /// #     fn inspect(&mut self, _: Event<'_>, _: &Sink<'_>) -> Step { Ok(Flow::Done) }
    ///     fn promote(&mut self, event: Event<'_>, sink: &Sink<'_>) -> Step {
    ///         match event {
    ///             Event::Begin(_) => {
    ///                 sink.send(b"master\n");
    ///                 Ok(Flow::More)
    ///             }
    ///             Event::Bytes(b"ok\n") => Ok(Flow::Done),
    ///             Event::Bytes(bytes) if !bytes.ends_with(b"\n") => Ok(Flow::More),
    ///             other => Err(other.refusal()),
    ///         }
    ///     }
    /// #     fn follow(&mut self, _: Event<'_>, _: &Sink<'_>) -> Step { Ok(Flow::Done) }
    /// #     fn fence(&mut self, _: Event<'_>, _: &Sink<'_>) -> Step { Ok(Flow::Done) }
    /// #     fn unfence(&mut self, _: Event<'_>, _: &Sink<'_>) -> Step { Ok(Flow::Done) }
    /// }
    /// let mut lines = Harness::replicated::<Lines>(&[]).unwrap();
    /// assert_eq!(lines.step(Hook::Promote, Input::Bytes(b"o")).0, Outcome::More);
    /// assert_eq!(lines.step(Hook::Promote, Input::Bytes(b"ok\n")).0, Outcome::Done);
    /// let (outcome, _) = lines.step(Hook::Promote, Input::Bytes(b"no\n"));
    /// assert_eq!(outcome, Outcome::Error("unexpected answer `no`".to_owned()));
    /// ```
    fn promote(&mut self, event: Event<'_>, sink: &Sink<'_>) -> Step;

    /// Makes it a replica of the arguments `host` and `port`.
    ///
    /// # Errors
    /// Why it did not take the order.
    ///
    /// ```
    /// # use yagent_abi::{sdk::*, testing::{Harness, Hook, Input, Outcome}};
    /// # struct Lines;
    /// # impl Engine for Lines {
    /// #     const DESCRIPTION: Description = Description { id: "lines", version: "1", summary: "", section: "lines",
    /// #         key_prefix: "lines_", registry_root: "/lines", keys: "", file_keys: "" };
    /// #     fn create(_: &Settings<'_>) -> Result<Self, String> { Ok(Self) }
    /// #     fn start(&mut self, _: &Plan<'_>) -> Result<(), String> { Ok(()) }
    /// #     fn probe(&mut self, _: Event<'_>, _: &Sink<'_>) -> Step { Ok(Flow::Done) }
    /// #     fn stats(&mut self, _: Event<'_>, _: &Sink<'_>) -> Step { Ok(Flow::Done) }
    /// # }
    /// impl Replication for Lines {
    /// #     fn inspect(&mut self, _: Event<'_>, _: &Sink<'_>) -> Step { Ok(Flow::Done) }
    /// #     fn promote(&mut self, _: Event<'_>, _: &Sink<'_>) -> Step { Ok(Flow::Done) }
    ///     fn follow(&mut self, event: Event<'_>, sink: &Sink<'_>) -> Step {
    ///         match event {
    ///             Event::Begin(begin) => {
    ///                 let (host, port) = (begin.arg("host").ok_or("no host")?, begin.arg("port").ok_or("no port")?);
    ///                 sink.send(format!("follow {host}:{port}\n").as_bytes());
    ///                 Ok(Flow::More)
    ///             }
    ///             Event::Bytes(b"ok\n") => Ok(Flow::Done),
    ///             Event::Bytes(bytes) if !bytes.ends_with(b"\n") => Ok(Flow::More),
    ///             other => Err(other.refusal()),
    ///         }
    ///     }
    /// #     fn fence(&mut self, _: Event<'_>, _: &Sink<'_>) -> Step { Ok(Flow::Done) }
    /// #     fn unfence(&mut self, _: Event<'_>, _: &Sink<'_>) -> Step { Ok(Flow::Done) }
    /// }
    /// let mut lines = Harness::replicated::<Lines>(&[]).unwrap();
    /// let args = [("host", "10.0.0.1"), ("port", "7000")];
    /// let (_, told) = lines.step(Hook::Follow, Input::Begin { fresh: true, args: &args });
    /// assert_eq!(told.sent, b"follow 10.0.0.1:7000\n");
    /// ```
    fn follow(&mut self, event: Event<'_>, sink: &Sink<'_>) -> Step;

    /// Stops writes for the argument `ms` milliseconds.
    ///
    /// # Errors
    /// Why they were not stopped.
    ///
    /// ```
    /// # use yagent_abi::{sdk::*, testing::{Harness, Hook, Input, Outcome}};
    /// # struct Lines;
    /// # impl Engine for Lines {
    /// #     const DESCRIPTION: Description = Description { id: "lines", version: "1", summary: "", section: "lines",
    /// #         key_prefix: "lines_", registry_root: "/lines", keys: "", file_keys: "" };
    /// #     fn create(_: &Settings<'_>) -> Result<Self, String> { Ok(Self) }
    /// #     fn start(&mut self, _: &Plan<'_>) -> Result<(), String> { Ok(()) }
    /// #     fn probe(&mut self, _: Event<'_>, _: &Sink<'_>) -> Step { Ok(Flow::Done) }
    /// #     fn stats(&mut self, _: Event<'_>, _: &Sink<'_>) -> Step { Ok(Flow::Done) }
    /// # }
    /// impl Replication for Lines {
    /// #     fn inspect(&mut self, _: Event<'_>, _: &Sink<'_>) -> Step { Ok(Flow::Done) }
    /// #     fn promote(&mut self, _: Event<'_>, _: &Sink<'_>) -> Step { Ok(Flow::Done) }
    /// #     fn follow(&mut self, _: Event<'_>, _: &Sink<'_>) -> Step { Ok(Flow::Done) }
    ///     fn fence(&mut self, event: Event<'_>, sink: &Sink<'_>) -> Step {
    ///         match event {
    ///             Event::Begin(begin) => {
    ///                 let ms = begin.arg("ms").ok_or("no ms")?;
    ///                 sink.send(format!("pause {ms}\n").as_bytes());
    ///                 Ok(Flow::More)
    ///             }
    ///             Event::Bytes(b"ok\n") => Ok(Flow::Done),
    ///             Event::Bytes(bytes) if !bytes.ends_with(b"\n") => Ok(Flow::More),
    ///             other => Err(other.refusal()),
    ///         }
    ///     }
    /// #     fn unfence(&mut self, _: Event<'_>, _: &Sink<'_>) -> Step { Ok(Flow::Done) }
    /// }
    /// let mut lines = Harness::replicated::<Lines>(&[]).unwrap();
    /// let (_, told) = lines.step(Hook::Fence, Input::Begin { fresh: true, args: &[("ms", "1500")] });
    /// assert_eq!(told.sent, b"pause 1500\n");
    /// ```
    fn fence(&mut self, event: Event<'_>, sink: &Sink<'_>) -> Step;

    /// Allows writes again; given the argument `min_replicas`, only while so many replicas keep up, which must hold before
    /// the first write passes.
    ///
    /// # Errors
    /// Why they were not allowed.
    ///
    /// ```
    /// # use yagent_abi::{sdk::*, testing::{Harness, Hook, Input, Outcome}};
    /// # struct Lines;
    /// # impl Engine for Lines {
    /// #     const DESCRIPTION: Description = Description { id: "lines", version: "1", summary: "", section: "lines",
    /// #         key_prefix: "lines_", registry_root: "/lines", keys: "", file_keys: "" };
    /// #     fn create(_: &Settings<'_>) -> Result<Self, String> { Ok(Self) }
    /// #     fn start(&mut self, _: &Plan<'_>) -> Result<(), String> { Ok(()) }
    /// #     fn probe(&mut self, _: Event<'_>, _: &Sink<'_>) -> Step { Ok(Flow::Done) }
    /// #     fn stats(&mut self, _: Event<'_>, _: &Sink<'_>) -> Step { Ok(Flow::Done) }
    /// # }
    /// impl Replication for Lines {
    /// #     fn inspect(&mut self, _: Event<'_>, _: &Sink<'_>) -> Step { Ok(Flow::Done) }
    /// #     fn promote(&mut self, _: Event<'_>, _: &Sink<'_>) -> Step { Ok(Flow::Done) }
    /// #     fn follow(&mut self, _: Event<'_>, _: &Sink<'_>) -> Step { Ok(Flow::Done) }
    /// #     fn fence(&mut self, _: Event<'_>, _: &Sink<'_>) -> Step { Ok(Flow::Done) }
    ///     fn unfence(&mut self, _event: Event<'_>, _sink: &Sink<'_>) -> Step {
    ///         // This server ends a pause by itself and has no word to end it sooner.
    ///         Ok(Flow::Unsupported)
    ///     }
    /// }
    /// let mut lines = Harness::replicated::<Lines>(&[]).unwrap();
    /// let (outcome, _) = lines.step(Hook::Unfence, Input::Begin { fresh: true, args: &[] });
    /// assert_eq!(outcome, Outcome::Unsupported);
    /// ```
    fn unfence(&mut self, event: Event<'_>, sink: &Sink<'_>) -> Step;
}

/// What happened in a conversation.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// It begins.
    Begin(Begin<'a>),
    /// All bytes received since the hook last sent.
    Bytes(&'a [u8]),
    /// The server closed the connection, after these bytes.
    Closed(&'a [u8]),
    /// The deadline passed.
    Timeout,
    /// The host ends it.
    Cancel,
}

impl Event<'_> {
    /// Why a conversation ends where this event was not expected.
    #[must_use]
    pub fn refusal(&self) -> String {
        match self {
            Self::Begin(_) => "the host began a conversation that does not exist".to_owned(),
            Self::Bytes(bytes) => format!("unexpected answer `{}`", excerpt(bytes)),
            Self::Closed(b"") => "the server closed the connection without an answer".to_owned(),
            Self::Closed(bytes) => format!("the server closed the connection after `{}`", excerpt(bytes)),
            Self::Timeout => "no answer in time".to_owned(),
            Self::Cancel => "cancelled".to_owned(),
        }
    }
}

/// The first line of `bytes`, at most 60 bytes of it, printable.
#[must_use]
pub fn excerpt(bytes: &[u8]) -> String {
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let cut = &line[..line.len().min(60)];
    let dots = if cut.len() < line.len() { "…" } else { "" };
    format!("{}{dots}", cut.escape_ascii())
}

/// The begin of a conversation.
#[derive(Clone, Copy, Debug)]
pub struct Begin<'a> {
    /// Nothing was said on this connection before.
    pub fresh: bool,
    /// Nanoseconds of a clock that never goes back.
    pub now_ns: u64,
    /// When the host gives the conversation up, on the same clock; 0: never.
    pub deadline_ns: u64,
    args: &'a [raw::Pair],
}

impl<'a> Begin<'a> {
    /// The argument `name`, if it is there and text.
    #[must_use]
    pub fn arg(&self, name: &str) -> Option<&'a str> {
        find(self.args, name).and_then(|value| core::str::from_utf8(value).ok())
    }
}

/// An instance's settings.
#[derive(Clone, Copy, Debug)]
pub struct Settings<'a> {
    pairs: &'a [raw::Pair],
}

impl<'a> Settings<'a> {
    /// The bytes of setting `name`; `None` where it isn't set.
    #[must_use]
    pub fn bytes(&self, name: &str) -> Option<&'a [u8]> {
        find(self.pairs, name)
    }

    /// The text of setting `name`; `None` where it isn't set.
    ///
    /// # Errors
    /// It is not UTF-8.
    pub fn text(&self, name: &str) -> Result<Option<&'a str>, String> {
        self.bytes(name)
            .map(|bytes| core::str::from_utf8(bytes).map_err(|_| format!("`{name}` is not UTF-8")))
            .transpose()
    }

    /// The text of setting `name`, which must be there and not be empty.
    ///
    /// # Errors
    /// It is missing, empty, or not UTF-8.
    pub fn required(&self, name: &str) -> Result<&'a str, String> {
        match self.text(name)? {
            Some(text) if !text.is_empty() => Ok(text),
            _ => Err(format!("`{name}` is not set")),
        }
    }

    /// Setting `name` as a number, which must be there.
    ///
    /// # Errors
    /// It is missing, or no such number.
    pub fn number<N: core::str::FromStr>(&self, name: &str) -> Result<N, String>
    where
        N::Err: Display,
    {
        let text = self.required(name)?;
        text.parse().map_err(|error| format!("`{name}` is `{text}`: {error}"))
    }
}

/// The last value of `name`: what comes later wins.
fn find<'a>(pairs: &'a [raw::Pair], name: &str) -> Option<&'a [u8]> {
    // SAFETY: the host lends the pairs and all they point to for as long as the slice of them.
    let named = |pair: &&raw::Pair| unsafe { pair.name.as_bytes() } == name.as_bytes();
    // SAFETY: as above.
    pairs.iter().rev().find(named).map(|pair| unsafe { pair.value.as_bytes() })
}

/// What a probe found; see the header's `YAGENT_SERVING` and its siblings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Health {
    /// It answers; a miss is an answer.
    Serving = raw::SERVING,
    /// It is alive and reads its data.
    Loading = raw::LOADING,
    /// It is alive and busy with something long.
    Busy = raw::BUSY,
    /// It is alive and out of memory or connections.
    Full = raw::FULL,
    /// It is alive and refuses us.
    Refused = raw::REFUSED,
    /// What answers does not speak the engine's protocol.
    Wrong = raw::WRONG,
}

/// Where a hook puts its answers; borrowed for one step.
#[derive(Clone, Copy, Debug)]
pub struct Sink<'a> {
    raw: &'a raw::Sink,
    /// The host's functions work on this thread and inside this call only.
    _this_call: PhantomData<*mut ()>,
}

impl Sink<'_> {
    /// Writes `bytes` to the server.
    pub fn send(&self, bytes: &[u8]) {
        if let Some(send) = self.raw.send {
            // SAFETY: the sink is the host's own, inside its call; the bytes outlive this call.
            unsafe { send(self.raw, bytes.as_ptr().cast(), bytes.len() as u64) }
        }
    }

    /// Tells what a probe found, with the reason where it isn't plainly serving.
    pub fn health(&self, health: Health, why: &str) {
        if let Some(tell) = self.raw.health {
            // SAFETY: as for `send`.
            unsafe { tell(self.raw, health as u32, why.as_ptr().cast(), why.len() as u64) }
        }
    }

    /// Tells a count of events since the server's start.
    pub fn counter(&self, name: &str, value: f64) {
        self.number(raw::COUNTER, name, value);
    }

    /// Tells a state that goes up and down.
    pub fn gauge(&self, name: &str, value: f64) {
        self.number(raw::GAUGE, name, value);
    }

    fn number(&self, kind: u32, name: &str, value: f64) {
        if let Some(number) = self.raw.number {
            // SAFETY: as for `send`.
            unsafe { number(self.raw, kind, name.as_ptr().cast(), name.len() as u64, value) }
        }
    }

    /// Tells a text.
    pub fn text(&self, name: &str, value: &str) {
        self.text_bytes(name, value.as_bytes());
    }

    fn text_bytes(&self, name: &str, value: &[u8]) {
        if let Some(text) = self.raw.text {
            let (ptr, len) = (value.as_ptr().cast(), value.len() as u64);
            // SAFETY: as for `send`.
            unsafe { text(self.raw, name.as_ptr().cast(), name.len() as u64, ptr, len) }
        }
    }

    fn fail(&self, why: &str) {
        if let Some(fail) = self.raw.fail {
            // SAFETY: as for `send`.
            unsafe { fail(self.raw, why.as_ptr().cast(), why.len() as u64) }
        }
    }
}

/// How a server is started, told piece by piece. See the header's `start`.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    sink: Sink<'a>,
}

impl Plan<'_> {
    /// The program's path.
    pub fn program(&self, path: &str) {
        self.sink.text("program", path);
    }

    /// The next argument.
    pub fn arg(&self, arg: impl AsRef<[u8]>) {
        self.sink.text_bytes("argv", arg.as_ref());
    }

    /// The next arguments.
    pub fn args<A: AsRef<[u8]>>(&self, args: impl IntoIterator<Item = A>) {
        args.into_iter().for_each(|arg| self.arg(arg));
    }

    /// A variable for the server's environment.
    pub fn env(&self, name: &str, value: &str) {
        self.sink.text("env", &format!("{name}={value}"));
    }

    /// The server's working directory.
    pub fn cwd(&self, path: &str) {
        self.sink.text("cwd", path);
    }

    /// The user whom the host becomes before it starts the program.
    pub fn user(&self, name: &str) {
        self.sink.text("user", name);
    }

    /// The user whom the program becomes by itself.
    pub fn drops_to(&self, name: &str) {
        self.sink.text("drops_to", name);
    }

    /// A directory that must exist.
    pub fn dir(&self, path: &str) {
        self.sink.text("dir", path);
    }

    /// The address at which the server answers, where that is neither `bind` nor loopback.
    pub fn connect(&self, address: &str) {
        self.sink.text("connect", address);
    }

    /// How many open files the server needs.
    pub fn open_files(&self, count: u64) {
        #[allow(clippy::cast_precision_loss, reason = "no server opens 2^53 files")]
        self.sink.gauge("open_files", count as f64);
    }
}
