//! Backends: shared objects loaded through the C ABI of `yagent-abi`, behind safe calls.
//!
//! `loader` finds and checks a shared object, `calls` makes the calls, `sink` takes a hook's answers, `marker` tells
//! other threads which hook runs, `settings` gathers what a plugin is told about an instance. A hook is a step in a
//! conversation: it is given an event and all bytes received since it last sent, and says what to send, what it learnt,
//! and whether it is done. Sockets and deadlines are the caller's.

use std::path::PathBuf;

pub mod calls;
pub mod loader;
pub mod marker;
pub mod settings;
mod sink;
#[cfg(test)]
mod tests;

pub use calls::{Backend, Plugin};
pub use sink::misused;

/// The hooks that hold conversations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hook {
    /// Asks for a key and classifies the answer.
    Probe,
    /// Asks for counters and gauges.
    Stats,
    /// Asks for role, master and run id.
    Inspect,
    /// Makes it a master.
    Promote,
    /// Makes it a replica; arguments `host` and `port` name its master.
    Follow,
    /// Stops writes; argument `ms` says for how long.
    Fence,
    /// Allows writes again.
    Unfence,
}

impl Hook {
    /// Every one of them.
    pub const ALL: [Hook; 7] =
        [Self::Probe, Self::Stats, Self::Inspect, Self::Promote, Self::Follow, Self::Fence, Self::Unfence];

    /// Its name, as the contract has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Probe => "probe",
            Self::Stats => "stats",
            Self::Inspect => "inspect",
            Self::Promote => "promote",
            Self::Follow => "follow",
            Self::Fence => "fence",
            Self::Unfence => "unfence",
        }
    }
}

/// What happened in a conversation.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// It begins. `fresh`: the connection is a new one.
    Begin {
        /// Nothing was said on this connection before.
        fresh: bool,
        /// Arguments of the hook.
        args: &'a [(&'a str, &'a str)],
    },
    /// All bytes received since the hook last sent.
    Bytes(&'a [u8]),
    /// The server closed the connection; the bytes are those received since the hook last sent.
    Closed(&'a [u8]),
    /// The deadline passed.
    Timeout,
    /// The host ends it.
    Cancel,
    /// A kind that no version has yet: for who checks that a plugin keeps to its rules.
    Unknown(u32),
}

/// How a step ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// More bytes are needed.
    More,
    /// The conversation is over and went well.
    Done,
    /// It is over without a result, by the server's or the network's fault; why.
    Failed(String),
    /// The plugin is at fault: it panicked, broke a rule of the contract, or did so before. Says nothing of the server.
    Broken(String),
    /// The backend does not know the event or hook.
    Unsupported,
}

/// What a probe found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// It answers; a miss is an answer.
    Serving,
    /// It is alive and reads its data.
    Loading,
    /// It is alive and busy with something long.
    Busy,
    /// It is alive and out of memory or connections.
    Full,
    /// It is alive and refuses us: credentials.
    Refused,
    /// What answers does not speak the engine's protocol.
    Wrong,
}

/// A figure's kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NumberKind {
    /// Grows until the server restarts.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// What a hook said in its steps so far; the caller clears and reuses it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reply {
    /// Bytes to send, in order.
    pub send: Vec<u8>,
    /// The last health told, with its reason.
    pub health: Option<(Health, String)>,
    /// Figures told: kind, name, value.
    pub numbers: Vec<(NumberKind, String, f64)>,
    /// Texts told: name, value.
    pub texts: Vec<(String, String)>,
}

impl Reply {
    /// Empties it and keeps its memory.
    pub fn clear(&mut self) {
        self.send.clear();
        self.health = None;
        self.numbers.clear();
        self.texts.clear();
    }

    /// The text told last under `name`.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.texts.iter().rev().find(|(told, _)| told == name).map(|(_, value)| value.as_str())
    }

    /// The figure told last under `name`.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<f64> {
        self.numbers.iter().rev().find(|(_, told, _)| told == name).map(|(_, _, value)| *value)
    }
}

/// What `start` asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StartPlan {
    /// The program.
    pub program: String,
    /// Its arguments, without the program itself.
    pub args: Vec<Vec<u8>>,
    /// Environment to add.
    pub env: Vec<(String, String)>,
    /// Its working directory; empty: `/`.
    pub cwd: String,
    /// The user that the host switches to before exec; empty: none.
    pub user: String,
    /// The user that the program switches to by itself; the host only checks that it can. Empty: none.
    pub drops_to: String,
    /// Directories that must exist, made with mode 0750 for the user.
    pub dirs: Vec<String>,
    /// The address to connect to where it isn't the bind address; empty: as bound, or loopback.
    pub connect: String,
    /// Open files that the server needs; 0: no wish.
    pub open_files: u64,
}

/// Who a plugin is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// The file that it was loaded from.
    pub file: PathBuf,
    /// `memcached`, `org.example.engine`.
    pub id: String,
    /// The plugin's own version.
    pub version: String,
    /// The contract that it was built for: major and minor.
    pub abi: (u32, u32),
    /// One line for people.
    pub summary: String,
    /// The ini section that configures the engine.
    pub section: String,
    /// What the section's keys begin with.
    pub key_prefix: String,
    /// The default root in the registry.
    pub registry_root: String,
    /// The section's keys that only the plugin understands, with their prefix.
    pub keys: Vec<String>,
    /// Those of them whose values are paths: their text is handed over as `NAME.content`.
    pub file_keys: Vec<String>,
}

/// Why a plugin is not there, not loaded, or of no use.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// The engine's name can't be part of a file's name.
    #[error("engine `{0}` has no plugin: a name consists of lower case letters, digits, `-` and `_`")]
    Name(String),
    /// No directory has it.
    #[error("no plugin for engine `{engine}`: {file} is in none of {}", paths(.searched))]
    Missing {
        /// The engine.
        engine: String,
        /// The file's name.
        file: String,
        /// Where it was looked for, in order.
        searched: Vec<PathBuf>,
    },
    /// The file or its directory can't be read.
    #[error("cannot read plugin {}: {source}", .path.display())]
    Read {
        /// File or directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Others than root and the agent's user could change the code that we would run.
    #[error("plugin {} is refused: {what}", .file.display())]
    Untrusted {
        /// The plugin's file.
        file: PathBuf,
        /// What is wrong with whose ownership or mode.
        what: String,
    },
    /// The dynamic linker refuses it.
    #[error("cannot load plugin {}: {why}", .file.display())]
    Link {
        /// The plugin's file.
        file: PathBuf,
        /// The linker's words.
        why: String,
    },
    /// It breaks the contract: which field, what it holds, what was wanted.
    #[error("plugin {} is refused: {what}", .file.display())]
    Contract {
        /// The plugin's file.
        file: PathBuf,
        /// Field, value, wanted.
        what: String,
    },
    /// It did not make an instance's object.
    #[error("plugin `{plugin}` refuses the settings: {why}")]
    Create {
        /// The plugin's id.
        plugin: String,
        /// Its words.
        why: String,
    },
    /// It has no plan for a start.
    #[error("plugin `{plugin}` cannot start an instance: {why}")]
    Start {
        /// The plugin's id.
        plugin: String,
        /// Its words, or what the plan lacks.
        why: String,
    },
    /// It is at fault, now or before, and is not called any more.
    #[error("plugin `{plugin}` is out of use: {why}")]
    Broken {
        /// The plugin's id.
        plugin: String,
        /// What it did.
        why: String,
    },
}

fn paths(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}
