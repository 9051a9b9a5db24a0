//! Prints what the ini reader read, as ASCII JSON with one character per byte, for comparison with other readers.

use std::fmt::Write as _;

use super::ini::{Ini, IniError};

/// `{section: {key: value}}`, or `{"error": …, "lines": […]}` for a file that was refused; without a line's end.
#[must_use]
pub fn dump(read: &Result<Ini, IniError>) -> String {
    match read {
        Ok(ini) => sections(ini),
        Err(error) => {
            let lines: Vec<usize> = error.lines().iter().map(|bad| bad.line).collect();
            serde_json::json!({ "error": error.name(), "lines": lines }).to_string()
        }
    }
}

fn sections(ini: &Ini) -> String {
    object(ini.sections.iter().map(|section| {
        let items = ini.items(section);
        (section.name.as_slice(), object(items.into_iter().map(|(key, entry)| (key, quoted(&entry.value)))))
    }))
}

fn object<'a>(members: impl Iterator<Item = (&'a [u8], String)>) -> String {
    let members: Vec<String> = members.map(|(name, value)| format!("{}:{value}", quoted(name))).collect();
    format!("{{{}}}", members.join(","))
}

/// A JSON string in which each byte is the character of that number, as Latin-1 has it.
fn quoted(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() + 2);
    text.push('"');
    for byte in bytes {
        match byte {
            b'"' | b'\\' => text.extend(['\\', char::from(*byte)]),
            b' '..=b'~' => text.push(char::from(*byte)),
            // Writing to a String cannot fail.
            _ => _ = write!(text, "\\u{byte:04x}"),
        }
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ini::parse;

    #[test]
    fn output_is_ascii_whatever_the_bytes() {
        let bytes: Vec<u8> = (0..=255u8).filter(|byte| *byte != b'\n').collect();
        let text = dump(&parse(&[b"[a]\nx=<".as_slice(), &bytes, b">"].concat()));
        assert!(text.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{text}");
        let read: serde_json::Value = serde_json::from_str(&text).unwrap();
        let value = read["a"]["x"].as_str().unwrap();
        assert_eq!(value.chars().count(), bytes.len() + 2);
        assert!(value.contains('\u{e9}') && value.contains('\0'));
    }

    #[test]
    fn a_refused_file_is_its_error_and_lines() {
        assert_eq!(dump(&parse(b"[a]\n=5\nx\n")), r#"{"error":"Parsing","lines":[2,3]}"#);
        assert_eq!(dump(&parse(b"x=1\n")), r#"{"error":"MissingSectionHeader","lines":[1]}"#);
    }
}
