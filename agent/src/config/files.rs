//! Looks at files that the configuration names: programs, and base files with their `include` lines.

use std::{
    ffi::{OsStr, OsString},
    fs,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use rustix::fs::{Access, access};

/// How deep `include` lines may nest; more is a circle.
const MAX_DEPTH: usize = 8;

/// The longest text that a base file and all its includes may come to.
const MAX_TEXT: usize = 4 << 20;

/// Whether a program can be run; the error is what is wrong with it.
pub(super) fn program(path: &Path) -> Result<(), String> {
    let meta = fs::metadata(path).map_err(|error| format!("cannot look at {}: {error}", path.display()))?;
    if !meta.is_file() {
        return Err(format!("{} is not a file", path.display()));
    }
    access(path, Access::EXEC_OK).map_err(|_| format!("{} is not executable", path.display()))
}

/// A base file's text in which each `include` line has become the text of the files it names, in redis's order.
pub(super) fn with_includes(path: &Path) -> Result<Vec<u8>, String> {
    let mut text = Vec::new();
    append(path, 0, &mut text)?;
    Ok(text)
}

fn append(path: &Path, depth: usize, text: &mut Vec<u8>) -> Result<(), String> {
    if depth > MAX_DEPTH {
        return Err(format!("{} is included more than {MAX_DEPTH} levels deep", path.display()));
    }
    for line in read(path)?.split_inclusive(|byte| *byte == b'\n') {
        match included(line) {
            None => text.extend_from_slice(line),
            Some(pattern) => include(path, &pattern, depth, text)?,
        }
        if text.len() > MAX_TEXT {
            return Err(format!("{} and what it includes are longer than 4 MiB", path.display()));
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let cannot = |why: &dyn std::fmt::Display| format!("cannot read {}: {why}", path.display());
    let meta = fs::metadata(path).map_err(|error| cannot(&error))?;
    if !meta.is_file() {
        return Err(cannot(&"not a file"));
    }
    if meta.len() > MAX_TEXT as u64 {
        return Err(cannot(&"longer than 4 MiB"));
    }
    fs::read(path).map_err(|error| cannot(&error))
}

/// The pattern of an `include` line.
fn included(line: &[u8]) -> Option<OsString> {
    let line = line.trim_ascii();
    let (word, rest) = line.split_at(line.iter().position(u8::is_ascii_whitespace)?);
    if !word.eq_ignore_ascii_case(b"include") {
        return None;
    }
    let rest = rest.trim_ascii();
    let quoted = |quote: u8| rest.strip_prefix(&[quote]).and_then(|rest| rest.strip_suffix(&[quote]));
    let path = quoted(b'"').or_else(|| quoted(b'\'')).unwrap_or(rest);
    Some(OsString::from_vec(path.to_vec()))
}

fn include(from: &Path, pattern: &OsStr, depth: usize, text: &mut Vec<u8>) -> Result<(), String> {
    for path in matching(from, pattern)? {
        append(&path, depth + 1, text).map_err(|why| format!("{}: {why}", from.display()))?;
        if !text.ends_with(b"\n") {
            text.push(b'\n');
        }
    }
    Ok(())
}

/// The files of a pattern, sorted. One that matches nothing is no error; a plain name that isn't there is one when it is
/// read. A name that isn't absolute would be looked for in each instance's own folder, and never found.
fn matching(from: &Path, pattern: &OsStr) -> Result<Vec<PathBuf>, String> {
    let path = Path::new(pattern);
    let cannot =
        |why: &dyn std::fmt::Display| format!("{}: cannot include {}: {why}", from.display(), path.display());
    if !path.is_absolute() {
        return Err(cannot(&"its path is not absolute"));
    }
    if !pattern.as_bytes().iter().any(|byte| matches!(byte, b'*' | b'?' | b'[')) {
        return Ok(vec![path.to_owned()]);
    }
    let text = pattern.to_str().ok_or_else(|| cannot(&"the pattern is not UTF-8"))?;
    let paths = glob::glob(text).map_err(|error| cannot(&error))?;
    paths.map(|path| path.map_err(|error| cannot(&error))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
        let path = dir.join(name);
        fs::write(&path, text).unwrap();
        path
    }

    #[test]
    fn includes_are_replaced_in_place() {
        let dir = tempfile::tempdir().unwrap();
        let here = dir.path().display();
        write(dir.path(), "b1.inc", "b1 yes");
        write(dir.path(), "b2.inc", "b2 yes\n");
        let one = write(dir.path(), "one.conf", &format!("x \"y\"\ninclude {here}/b*.inc\n"));
        let text = format!("port 1\nINCLUDE \"{}\"\nport 2\ninclude {here}/none*\n", one.display());
        let all = write(dir.path(), "all.conf", &text);
        assert_eq!(with_includes(&all).unwrap(), b"port 1\nx \"y\"\nb1 yes\nb2 yes\nport 2\n");
    }

    #[test]
    fn an_include_that_cannot_be_followed_names_both_files() {
        let dir = tempfile::tempdir().unwrap();
        let base = write(dir.path(), "a.conf", "include /nonexistent/gone.conf\n");
        let why = with_includes(&base).unwrap_err();
        assert!(
            why.starts_with(&format!("{}: cannot read /nonexistent/gone.conf: ", base.display())),
            "{why}"
        );
        write(dir.path(), "a.conf", "include more.conf\n");
        let why = with_includes(&base).unwrap_err();
        assert_eq!(why, format!("{}: cannot include more.conf: its path is not absolute", base.display()));
    }

    #[test]
    fn a_circle_of_includes_ends() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("a.conf");
        fs::write(&base, format!("include {0}\ninclude {0}\n", base.display())).unwrap();
        assert!(with_includes(&base).unwrap_err().contains("more than 8 levels deep"));
    }

    #[test]
    fn programs_must_be_executable_files() {
        let dir = tempfile::tempdir().unwrap();
        let plain = write(dir.path(), "plain", "");
        assert!(program(&plain).unwrap_err().ends_with("plain is not executable"));
        assert!(program(dir.path()).unwrap_err().ends_with("is not a file"));
        assert!(program(Path::new("/nonexistent/x")).unwrap_err().contains("No such file"));
        assert_eq!(program(Path::new("/bin/sh")), Ok(()));
    }
}
