//! Compiles plugins written in C, as an author would: with the header and a compiler alone.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::programs;

/// The repository's root.
pub fn repository() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate lies in the repository");
    root.to_owned()
}

/// Compiles `source` to `dir/libyagent_ENGINE.so` with the live header; warnings are errors. Returns the file.
pub fn compile(source: &Path, dir: &Path, engine: &str, options: &[&str]) -> PathBuf {
    compile_with(&repository().join("abi/include"), source, dir, engine, options)
}

/// As [`compile`], with the header below `include`.
pub fn compile_with(include: &Path, source: &Path, dir: &Path, engine: &str, options: &[&str]) -> PathBuf {
    fs::create_dir_all(dir).expect("cannot make the folder of plugins");
    let file = dir.join(format!("libyagent_{engine}.so"));
    let fresh = dir.join(format!("{engine}.fresh"));
    let cpp = source.extension().is_some_and(|extension| extension == "cc");
    let (compiler, standard, package) =
        if cpp { ("g++", "-std=c++11", "g++") } else { ("gcc", "-std=c99", "gcc") };
    let mut command = Command::new(programs::debian(compiler, package));
    command.args([
        standard,
        "-Wall",
        "-Wextra",
        "-Wpedantic",
        "-Werror",
        "-shared",
        "-fPIC",
        "-fvisibility=hidden",
    ]);
    command.arg("-pthread");
    let output = command.args(options).arg("-I").arg(include).arg("-o").args([&fresh, source]).output();
    let output = output.expect("cannot run the compiler");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // A new file in the place of the old one: what runs keeps the old one mapped.
    fs::rename(&fresh, &file).expect("cannot put the plugin in its place");
    file
}

/// Compiles a plugin in Rust against the SDK of this build. Returns the file.
pub fn compile_rust(source: &Path, dir: &Path, engine: &str) -> PathBuf {
    fs::create_dir_all(dir).expect("cannot make the folder of plugins");
    let file = dir.join(format!("libyagent_{engine}.so"));
    let built = programs::yagent();
    let built = built.parent().expect("the agent lies in a folder");
    let mut command = Command::new("rustc");
    command.args([
        "--edition",
        "2024",
        "--crate-type",
        "cdylib",
        "--crate-name",
        &format!("yagent_{engine}"),
    ]);
    command.arg("--extern").arg(format!("yagent_abi={}", built.join("libyagent_abi.rlib").display()));
    command.arg("-L").arg(built.join("deps")).arg("-o").args([&file, source]);
    let output = command.output().expect("cannot run rustc");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    file
}
