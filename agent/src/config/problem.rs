//! What is wrong with a configuration: one line each, with the file, the line, the key, what was found, what was
//! expected.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use serde::{Serialize, Serializer};

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The file is refused.
    Error,
    /// The agent runs, perhaps not as was meant.
    Warning,
}

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// The ini file.
    #[serde(serialize_with = "lossy")]
    pub file: PathBuf,
    /// The line, from 1, where one can be named.
    pub line: Option<usize>,
    /// The section; empty when it is about the whole file or a line outside of one.
    pub section: String,
    /// The key, as documented; empty when it is about the whole section or file.
    pub key: String,
    /// What was found and what was expected.
    pub message: String,
}

fn lossy<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, "{line}:")?;
        }
        match (self.section.as_str(), self.key.as_str()) {
            ("", _) => write!(f, " {}", self.message),
            (section, "") => write!(f, " [{section}]: {}", self.message),
            (section, key) => write!(f, " {section}.{key}: {}", self.message),
        }
    }
}

/// Why a configuration was refused: every error, and the warnings beside them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// All problems in the order of the file; at least one is an error.
    pub problems: Vec<Problem>,
}

impl ConfigError {
    /// A file that cannot even be read.
    #[must_use]
    pub fn whole_file(file: &Path, message: String) -> ConfigError {
        let (section, key) = (String::new(), String::new());
        let problem =
            Problem { severity: Severity::Error, file: file.into(), line: None, section, key, message };
        ConfigError { problems: vec![problem] }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().filter(|p| p.severity == Severity::Error).enumerate() {
            write!(f, "{}{problem}", if index == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}
