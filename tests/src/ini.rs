//! Builds legacy ini files: sections of keys, each key once, in the order in which they were first set.

use std::{fmt, fs, path::Path};

/// An ini file in the making.
#[derive(Clone, Debug, Default)]
pub struct Ini(Vec<(String, Vec<(String, String)>)>);

impl Ini {
    /// Sets a key, replacing what it had.
    pub fn set(&mut self, section: &str, key: &str, value: impl fmt::Display) -> &mut Self {
        let keys = self.section(section);
        match keys.iter_mut().find(|(name, _)| name == key) {
            Some((_, old)) => *old = value.to_string(),
            None => keys.push((key.to_owned(), value.to_string())),
        }
        self
    }

    /// Takes a key away.
    pub fn unset(&mut self, section: &str, key: &str) -> &mut Self {
        self.section(section).retain(|(name, _)| name != key);
        self
    }

    /// What a key is set to.
    pub fn get(&self, section: &str, key: &str) -> Option<&str> {
        let (_, keys) = self.0.iter().find(|(name, _)| name == section)?;
        keys.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// Writes it to `file`.
    pub fn write(&self, file: &Path) {
        fs::write(file, self.to_string())
            .unwrap_or_else(|why| panic!("cannot write {}: {why}", file.display()));
    }

    fn section(&mut self, section: &str) -> &mut Vec<(String, String)> {
        if let Some(index) = self.0.iter().position(|(name, _)| name == section) {
            return &mut self.0[index].1;
        }
        self.0.push((section.to_owned(), Vec::new()));
        &mut self.0.last_mut().expect("it was just pushed").1
    }
}

impl fmt::Display for Ini {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (section, keys) in &self.0 {
            writeln!(out, "[{section}]")?;
            for (key, value) in keys {
                writeln!(out, "{key}={value}")?;
            }
            writeln!(out)?;
        }
        Ok(())
    }
}
