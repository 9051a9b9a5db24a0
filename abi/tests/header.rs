//! The C header: it compiles without a warning in every language that it promises, and it means what Rust means.
#![allow(clippy::unwrap_used)]

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use yagent_abi::raw;

const WARNINGS: [&str; 4] = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"];

/// Prints each struct's size and each field's offset, in the order of `raw::layout`, and the constants.
fn program() -> String {
    let mut code = String::from("#include <stdio.h>\n#include \"yagent/plugin.h\"\nint main(void) {\n");
    for line in raw::layout().lines() {
        let name = line.split(' ').next().unwrap();
        let value = match name.split_once('.') {
            Some((of, field)) => format!("offsetof({of}, {field})"),
            None => format!("sizeof({name})"),
        };
        code += &format!("    printf(\"{name} %u\\n\", (unsigned)({value}));\n");
    }
    for (name, _) in CONSTANTS {
        code += &format!("    printf(\"{name} %.0f\\n\", (double)({name}));\n");
    }
    code + "    return 0;\n}\n"
}

const CONSTANTS: [(&str, i64); 29] = [
    ("YAGENT_ABI_MAJOR", raw::ABI_MAJOR as i64),
    ("YAGENT_ABI_MINOR", raw::ABI_MINOR as i64),
    ("(YAGENT_ABI_MAGIC >> 32)", (raw::ABI_MAGIC >> 32) as i64),
    ("(YAGENT_ABI_MAGIC & 0xffffffffu)", (raw::ABI_MAGIC & 0xffff_ffff) as i64),
    ("YAGENT_LOG_ERROR", raw::LOG_ERROR as i64),
    ("YAGENT_LOG_WARN", raw::LOG_WARN as i64),
    ("YAGENT_LOG_INFO", raw::LOG_INFO as i64),
    ("YAGENT_LOG_DEBUG", raw::LOG_DEBUG as i64),
    ("YAGENT_BEGIN", raw::BEGIN as i64),
    ("YAGENT_BYTES", raw::BYTES as i64),
    ("YAGENT_CLOSED", raw::CLOSED as i64),
    ("YAGENT_TIMEOUT", raw::TIMEOUT as i64),
    ("YAGENT_CANCEL", raw::CANCEL as i64),
    ("YAGENT_FRESH", raw::FRESH as i64),
    ("YAGENT_SERVING", raw::SERVING as i64),
    ("YAGENT_LOADING", raw::LOADING as i64),
    ("YAGENT_BUSY", raw::BUSY as i64),
    ("YAGENT_FULL", raw::FULL as i64),
    ("YAGENT_REFUSED", raw::REFUSED as i64),
    ("YAGENT_WRONG", raw::WRONG as i64),
    ("YAGENT_COUNTER", raw::COUNTER as i64),
    ("YAGENT_GAUGE", raw::GAUGE as i64),
    ("YAGENT_DONE", raw::DONE as i64),
    ("YAGENT_MORE", raw::MORE as i64),
    ("YAGENT_ERROR", raw::ERROR as i64),
    ("YAGENT_UNSUPPORTED", raw::UNSUPPORTED as i64),
    ("YAGENT_BROKEN", raw::BROKEN as i64),
    ("YAGENT_HAS(&whole, yagent_event, args_len)", 1),
    ("YAGENT_HAS(&half, yagent_event, args_len)", 0),
];

fn include() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("include")
}

fn run(command: &mut Command) -> String {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().unwrap_or_else(|error| {
        panic!("cannot run {program}: {error}; install the Debian packages gcc and g++")
    });
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} failed:\n{errors}");
    assert_eq!(errors, "", "{program} warned");
    String::from_utf8(output.stdout).unwrap()
}

/// A directory of this test's own, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn it_compiles_and_agrees_as_c99_c11_and_cpp11() {
    let scratch = Scratch::new("header");
    let declared = "static const yagent_event whole = {64, 1, 0, 0, 0, NULL, 0, NULL, 0};\n\
                    static const yagent_event half = {32, 1, 0, 0, 0, NULL, 0, NULL, 0};\nint main";
    let code = program().replace("int main", declared);
    let mut expected = raw::layout();
    for (name, value) in CONSTANTS {
        expected += &format!("{name} {value}\n");
    }
    for (compiler, standard, extension) in
        [("gcc", "c99", "c"), ("gcc", "c11", "c"), ("g++", "c++11", "cc"), ("g++", "c++20", "cc")]
    {
        let source = scratch.0.join(format!("layout-{standard}.{extension}"));
        let program = scratch.0.join(format!("layout-{standard}"));
        std::fs::write(&source, &code).unwrap();
        let mut compile = Command::new(compiler);
        compile.arg(format!("-std={standard}")).args(WARNINGS).arg("-I").arg(include());
        run(compile.arg(&source).arg("-o").arg(&program));
        assert_eq!(run(&mut Command::new(&program)), expected, "as {standard}");
    }
}

#[test]
fn it_stays_short_enough_to_be_read() {
    let lines = yagent_abi::HEADER.lines().count();
    assert!(lines < 400, "the header has {lines} lines");
}

#[test]
fn its_signatures_have_nothing_that_compilers_disagree_on() {
    let code: String = yagent_abi::HEADER
        .split("/*")
        .map(|part| part.split_once("*/").map_or(part, |(_, code)| code))
        .collect();
    for word in code.split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
        assert!(
            !["enum", "bool", "_Bool", "long", "va_list", "int", "short", "unsigned"].contains(&word),
            "`{word}`"
        );
    }
}

#[test]
fn pkg_config_leads_to_the_header_of_this_version() {
    let pkg_config = |args: &[&str]| {
        let mut command = Command::new("pkg-config");
        command.env("PKG_CONFIG_PATH", env!("CARGO_MANIFEST_DIR")).args(args).arg("yagent-plugin");
        let output = command.output().unwrap_or_else(|error| {
            panic!("cannot run pkg-config: {error}; install the Debian package pkg-config")
        });
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    assert_eq!(pkg_config(&["--modversion"]), format!("{}.{}", raw::ABI_MAJOR, raw::ABI_MINOR));
    assert_eq!(pkg_config(&["--variable=plugindir"]), "/usr/lib/yagent/plugins");
    let define = format!("--define-variable=includedir={}", include().display());
    let flags = pkg_config(&["--cflags", &define]);
    let scratch = Scratch::new("pkg-config");
    let source = scratch.0.join("a.c");
    std::fs::write(&source, "#include <yagent/plugin.h>\nint a = YAGENT_ABI_MAJOR;\n").unwrap();
    run(Command::new("gcc").args(flags.split_whitespace()).arg("-fsyntax-only").arg(&source));
}

#[test]
fn the_crate_is_packed_and_builds_alone() {
    let scratch = Scratch::new("package");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["package", "--offline", "--allow-dirty", "--quiet", "--manifest-path"]);
    cargo.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).arg("--target-dir").arg(&scratch.0);
    let output = cargo.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(scratch.0.join(format!("package/yagent-abi-{}.crate", env!("CARGO_PKG_VERSION"))).is_file());
}
