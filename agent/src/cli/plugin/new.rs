//! `yagent plugin new`: a plugin that works, to be changed into another one.
//!
//! What it writes are the examples below `plugins/examples`, which the project's own tests run, under another name.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::ExitCode,
};

use crate::cli::{check::print_line, eprint_line, exit};

/// The engine of the examples; its name is replaced throughout.
const EXAMPLE: &str = "minicache";

macro_rules! example {
    ($file:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../plugins/examples/", $file))
    };
}

/// What both languages get.
const COMMON: &[(&str, &str)] = &[
    ("server.py", example!("server.py")),
    ("fixtures/probe/hit.txt", example!("fixtures/probe/hit.txt")),
    ("fixtures/probe/miss.txt", example!("fixtures/probe/miss.txt")),
    ("fixtures/probe/full.txt", example!("fixtures/probe/full.txt")),
    ("fixtures/probe/wrong.txt", example!("fixtures/probe/wrong.txt")),
    ("fixtures/stats/1.0.txt", example!("fixtures/stats/1.0.txt")),
    ("fixtures/stats/no-number.txt", example!("fixtures/stats/no-number.txt")),
];

const BUILD_C: &str = "plugin=./libyagent_minicache.so
cc -std=c99 -Wall -Wextra -shared -fPIC -fvisibility=hidden -I include -o \"$plugin\" minicache.c";

const BUILD_RUST: &str = "cargo test
cargo build
plugin=./target/debug/libyagent_minicache.so";

const CARGO: &str = r#"[package]
name = "yagent-plugin-minicache"
version = "0.1.0"
edition = "2024"

[lib]
name = "yagent_minicache"
crate-type = ["cdylib"]

[dependencies]
yagent-abi = "0.1"
"#;

/// What a plugin is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(in crate::cli) enum Language {
    /// With the header and a compiler alone.
    C,
    /// With the SDK, without `unsafe`.
    Rust,
}

/// Arguments of `yagent plugin new`.
#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct NewArgs {
    /// The engine: the ini section that configures it
    name: String,
    /// What the plugin is written in
    #[arg(long, value_enum)]
    lang: Language,
    /// The folder to make; the engine's name where it is not given
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// 0 when the folder is there, 64 for a name that can be none, 69 when it can't be made.
pub(super) fn new(args: &NewArgs) -> ExitCode {
    let name = &args.name;
    let plausible = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if !name.starts_with(|c: char| c.is_ascii_lowercase()) || !name.bytes().all(plausible) {
        eprint_line(&format!("`{name}` is no name for an engine: wanted lower case letters, digits and `_`"));
        return ExitCode::from(exit::USAGE);
    }
    let dir = args.dir.clone().unwrap_or_else(|| name.into());
    match write(&dir, name, args.lang) {
        Ok(()) => {
            print_line(&format!("{}: begin with {}/test", dir.display(), dir.display()));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprint_line(&format!("cannot make {}: {error}", dir.display()));
            ExitCode::from(exit::UNAVAILABLE)
        }
    }
}

/// Nothing that is there already is touched.
fn write(dir: &Path, name: &str, language: Language) -> io::Result<()> {
    fs::create_dir(dir)?;
    let build = if language == Language::C { BUILD_C } else { BUILD_RUST };
    let test = example!("test.sh").replace("@BUILD@", build);
    let own: Vec<(&str, &str)> = match language {
        Language::C => {
            vec![("minicache.c", example!("minicache.c")), ("include/yagent/plugin.h", yagent_abi::HEADER)]
        }
        Language::Rust => vec![("src/lib.rs", example!("minicache.rs")), ("Cargo.toml", CARGO)],
    };
    for (file, text) in COMMON.iter().copied().chain(own).chain([("test", test.as_str())]) {
        let file = dir.join(file.replace(EXAMPLE, name));
        if let Some(parent) = file.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&file, text.replace("Minicache", &type_name(name)).replace(EXAMPLE, name))?;
        if text.starts_with("#!") {
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
        }
    }
    Ok(())
}

/// `my_cache` as a type: `MyCache`.
fn type_name(name: &str) -> String {
    let word = |word: &str| {
        let (first, rest) = word.split_at(word.len().min(1));
        first.to_ascii_uppercase() + rest
    };
    name.split('_').map(word).collect()
}
