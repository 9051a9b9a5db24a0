//! Reads an ini file exactly as Python 2.7's `RawConfigParser.read` did, on bytes.
//!
//! It knows sections, keys, values and lines; what they mean is `legacy`'s business. The `ini` crate's `configparser`
//! is not used here because it differs in ways that change what a running fleet is configured to: it folds section
//! names, cuts values at `#`, knows neither `rem` nor the merging of `[DEFAULT]` as Python did it, keeps no line
//! numbers, and reads UTF-8 alone. It serves where a file is not bound to those rules; see `registry`.
//!
//! The rules that surprise: a line that begins with white space continues the value before it, even when it looks like
//! a key or a comment; `;` begins a comment inside a value only behind white space, and only the first `;` counts;
//! `#` never does. All lines that cannot be read are reported together.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

/// A key's value and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The value: continuation lines joined by `\n`, white space at the ends removed.
    pub value: Vec<u8>,
    /// The line of the key, from 1.
    pub line: usize,
    /// The line of an earlier value of the same key that this one replaced.
    pub replaced: Option<usize>,
}

/// A section's own keys, folded to lower case.
pub type Entries = BTreeMap<Vec<u8>, Entry>;

/// A section; one that is opened again goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// What stood between the brackets, case and spaces kept.
    pub name: Vec<u8>,
    /// The line of its first header, from 1.
    pub line: usize,
    /// Its own keys, without those of `[DEFAULT]`.
    pub entries: Entries,
}

/// A file that was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ini {
    /// The sections in the order of their first headers, without `[DEFAULT]`.
    pub sections: Vec<Section>,
    /// The keys of `[DEFAULT]`, which hold in every section that has none of its own.
    pub defaults: Entries,
}

/// A line that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadLine {
    /// Its number, from 1.
    pub line: usize,
    /// Its bytes, without the line's end.
    pub text: Vec<u8>,
}

/// Why a file was refused, under the names that Python gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IniError {
    /// Lines that are neither header nor key nor continuation: all of them.
    Parsing(Vec<BadLine>),
    /// A line before the first header; reading ended there.
    MissingSectionHeader(BadLine),
}

impl IniError {
    /// The name by which Python's exception went, without its `Error`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            IniError::Parsing(_) => "Parsing",
            IniError::MissingSectionHeader(_) => "MissingSectionHeader",
        }
    }

    /// The lines that were refused.
    #[must_use]
    pub fn lines(&self) -> &[BadLine] {
        match self {
            IniError::Parsing(lines) => lines,
            IniError::MissingSectionHeader(line) => std::slice::from_ref(line),
        }
    }

    /// What would have been right in place of a refused line.
    #[must_use]
    pub fn expected(&self) -> &'static str {
        match self {
            IniError::Parsing(_) => "[section], key=value or key: value",
            IniError::MissingSectionHeader(_) => "[section] before the first key",
        }
    }
}

impl fmt::Display for IniError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, bad) in self.lines().iter().enumerate() {
            let text = bad.text.escape_ascii();
            write!(f, "{}{}: found \"{text}\"", if index == 0 { "line " } else { ", line " }, bad.line)?;
        }
        write!(f, "; expected {}", self.expected())
    }
}

impl std::error::Error for IniError {}

impl Ini {
    /// The section of this exact name.
    #[must_use]
    pub fn section(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|section| section.name == name.as_bytes())
    }

    /// A key's value in a section, or that of `[DEFAULT]`; `key` in lower case. A section that is not there has no
    /// key at all.
    #[must_use]
    pub fn get(&self, section: &str, key: &str) -> Option<&Entry> {
        let own = &self.section(section)?.entries;
        own.get(key.as_bytes()).or_else(|| self.defaults.get(key.as_bytes()))
    }

    /// All keys that hold in a section, in their own right or by `[DEFAULT]`.
    #[must_use]
    pub fn items<'a>(&'a self, section: &'a Section) -> BTreeMap<&'a [u8], &'a Entry> {
        let both = self.defaults.iter().chain(&section.entries);
        both.filter(|(key, _)| *key != b"__name__").map(|(key, entry)| (key.as_slice(), entry)).collect()
    }
}

/// Reads a file's bytes.
///
/// # Errors
/// What Python 2.7 refused, with the lines.
pub fn parse(bytes: &[u8]) -> Result<Ini, IniError> {
    let mut reader = Reader::default();
    for (index, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
        reader.line(index + 1, line)?;
    }
    reader.finish()
}

/// Where keys go.
#[derive(Clone, Copy, Debug, Default)]
enum Current {
    #[default]
    Nothing,
    Defaults,
    Section(usize),
}

#[derive(Default)]
struct Reader {
    ini: Ini,
    index: HashMap<Vec<u8>, usize>,
    current: Current,
    /// The key that a continuation line adds to.
    key: Option<Vec<u8>>,
    bad: Vec<BadLine>,
}

impl Reader {
    fn line(&mut self, number: usize, line: &[u8]) -> Result<(), IniError> {
        let stripped = strip(line);
        if stripped.is_empty() || matches!(line[0], b'#' | b';') || is_rem(line) {
            return Ok(());
        }
        if is_space(line[0]) && self.continues(stripped) {
            return Ok(());
        }
        if let Some(name) = header(line) {
            self.open(number, name);
            return Ok(());
        }
        let refused = || BadLine { line: number, text: without_newline(line).to_vec() };
        if matches!(self.current, Current::Nothing) {
            return Err(IniError::MissingSectionHeader(refused()));
        }
        match option(line) {
            Some((key, value)) => self.set(number, key, value),
            None => self.bad.push(refused()),
        }
        Ok(())
    }

    fn finish(self) -> Result<Ini, IniError> {
        if self.bad.is_empty() { Ok(self.ini) } else { Err(IniError::Parsing(self.bad)) }
    }

    fn entries(&mut self) -> Option<&mut Entries> {
        match self.current {
            Current::Nothing => None,
            Current::Defaults => Some(&mut self.ini.defaults),
            Current::Section(index) => self.ini.sections.get_mut(index).map(|section| &mut section.entries),
        }
    }

    fn continues(&mut self, text: &[u8]) -> bool {
        let Some(key) = self.key.take() else { return false };
        if let Some(entry) = self.entries().and_then(|entries| entries.get_mut(&key)) {
            entry.value.push(b'\n');
            entry.value.extend_from_slice(text);
        }
        self.key = Some(key);
        true
    }

    fn open(&mut self, number: usize, name: &[u8]) {
        self.key = None;
        self.current = if name == b"DEFAULT" {
            Current::Defaults
        } else if let Some(index) = self.index.get(name) {
            Current::Section(*index)
        } else {
            let index = self.ini.sections.len();
            self.index.insert(name.to_vec(), index);
            self.ini.sections.push(Section { name: name.to_vec(), line: number, entries: Entries::new() });
            Current::Section(index)
        };
    }

    fn set(&mut self, line: usize, key: Vec<u8>, value: Vec<u8>) {
        self.key = Some(key.clone());
        if let Some(entries) = self.entries() {
            let replaced = entries.get(&key).map(|entry| entry.line);
            entries.insert(key, Entry { value, line, replaced });
        }
    }
}

/// A line's bytes without its end; a `\r` before it is content.
fn without_newline(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\n").unwrap_or(line)
}

/// Python's notion of white space in byte strings; unlike Rust's, it has the vertical tab.
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}

fn strip_start(bytes: &[u8]) -> &[u8] {
    &bytes[bytes.iter().take_while(|byte| is_space(**byte)).count()..]
}

fn strip_end(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.len() - bytes.iter().rev().take_while(|byte| is_space(**byte)).count()]
}

fn strip(bytes: &[u8]) -> &[u8] {
    strip_end(strip_start(bytes))
}

/// A comment of DOS batch files: the word `rem` in the first column.
fn is_rem(line: &[u8]) -> bool {
    let word = line.split(|byte| is_space(*byte)).next().unwrap_or_default();
    word.eq_ignore_ascii_case(b"rem")
}

/// `[name]` at the line's start; what follows the first `]` is ignored.
fn header(line: &[u8]) -> Option<&[u8]> {
    let inner = line.strip_prefix(b"[")?;
    let end = memchr::memchr(b']', inner)?;
    (end > 0).then(|| &inner[..end])
}

fn option(line: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let delimiter = memchr::memchr2(b':', b'=', line)?;
    if delimiter == 0 || is_space(line[0]) {
        return None;
    }
    let key = strip_end(&line[..delimiter]).to_ascii_lowercase();
    let value = without_newline(strip_start(&line[delimiter + 1..]));
    let value = strip(without_comment(value));
    Some((key, if value == b"\"\"" { Vec::new() } else { value.to_vec() }))
}

/// Cuts an inline comment. The byte before a `;` in the first place is the value's last one, as Python counted.
fn without_comment(value: &[u8]) -> &[u8] {
    let Some(at) = memchr::memchr(b';', value) else { return value };
    let before = if at == 0 { value[value.len() - 1] } else { value[at - 1] };
    if is_space(before) { &value[..at] } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cases written by hand for what a file can look like, and made at random; the answers of both are those of
    /// Python 2.7.18 itself.
    const BY_HAND: &str = include_str!("../../../tests/fixtures/configparser-cases.json");
    const AT_RANDOM: &str = include_str!("../../../tests/fixtures/configparser-random.json");

    fn latin1(text: &str) -> Vec<u8> {
        text.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect()
    }

    fn dumped(input: &[u8]) -> serde_json::Value {
        serde_json::from_str(&crate::config::dump::dump(&parse(input))).unwrap()
    }

    /// Compares each case with what Python found; the number of cases.
    fn agrees(cases: &str) -> usize {
        let cases: Vec<serde_json::Value> = serde_json::from_str(cases).unwrap();
        for case in &cases {
            let found = dumped(&latin1(case["input_latin1"].as_str().unwrap()));
            if case["error"].is_null() {
                assert_eq!(found, case["sections"], "{}", case["input_latin1"]);
            } else {
                assert_eq!(found["error"], case["error"], "{}", case["input_latin1"]);
                assert_eq!(found["lines"], case["lines"], "{}", case["input_latin1"]);
            }
        }
        cases.len()
    }

    #[test]
    fn every_recorded_case_reads_as_python_read_it() {
        assert_eq!(agrees(BY_HAND), 46);
        assert_eq!(agrees(AT_RANDOM), 300);
    }

    #[test]
    fn a_semicolon_in_the_first_place_looks_at_the_last_byte() {
        assert_eq!(dumped(b"[a]\nx=;b\n"), serde_json::json!({"a": {"x": ";b"}}));
        assert_eq!(dumped(b"[a]\nx=;b \n"), serde_json::json!({"a": {"x": ""}}));
        assert_eq!(dumped(b"[a]\r\nx=;b\r\n"), serde_json::json!({"a": {"x": ""}}));
    }

    #[test]
    fn a_refused_line_leaves_the_key_that_a_continuation_adds_to() {
        let error = parse(b"[a]\nx=1\nbad\n more\nworse\n[b]\n indented\n").unwrap_err();
        assert_eq!(error.lines().iter().map(|bad| bad.line).collect::<Vec<_>>(), [3, 5, 7]);
    }

    #[test]
    fn brackets_without_a_name_are_a_key() {
        assert_eq!(dumped(b"[a]\n[]=b\n[c=d\n"), serde_json::json!({"a": {"[]": "b", "[c": "d"}}));
    }

    #[test]
    fn a_carriage_return_alone_ends_no_line_and_nul_is_content() {
        assert_eq!(dumped(b"[a]\rx=1\ny=2\0\r3\n"), serde_json::json!({"a": {"y": "2\0\r3"}}));
    }

    #[test]
    fn the_internal_name_is_no_key() {
        let found = dumped(b"[DEFAULT]\n__name__=d\n[a]\n__NAME__=x\n y\n");
        assert_eq!(found, serde_json::json!({"a": {}}));
    }

    #[test]
    fn values_know_their_lines_and_what_they_replaced() {
        let ini = parse(b"[a]\nx=1\n\nX=2\n").unwrap();
        let entry = ini.get("a", "x").unwrap();
        assert_eq!((entry.line, entry.replaced), (4, Some(2)));
    }
}
