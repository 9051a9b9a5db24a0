//! Port files: the ports an engine's instances use, kept over restarts, one a line.
//!
//! The format is tolerant where it is read: blanks, commas and line ends separate, `#` begins a comment.

use std::{
    fs,
    io::{self, Write},
    path::Path,
};

/// The ports of a file in their order, and what in it is no port. A file that isn't there holds none.
///
/// # Errors
/// When the file is there and can't be read.
pub fn read(path: &Path) -> io::Result<(Vec<u16>, Vec<String>)> {
    match fs::read(path) {
        Ok(bytes) => Ok(parse(&String::from_utf8_lossy(&bytes))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Default::default()),
        Err(e) => Err(e),
    }
}

fn parse(text: &str) -> (Vec<u16>, Vec<String>) {
    let (mut ports, mut strangers) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        for word in line.split(|c: char| c.is_whitespace() || c == ',').filter(|word| !word.is_empty()) {
            match word.parse::<u16>() {
                Ok(port) if port > 0 && !ports.contains(&port) => ports.push(port),
                Ok(port) if port > 0 => {}
                _ => strangers.push(word.to_owned()),
            }
        }
    }
    (ports, strangers)
}

/// Replaces the file in one step, so that a crash leaves the old or the new one.
///
/// # Errors
/// When the folder can't be made or written.
pub fn write(path: &Path, ports: &[u16]) -> io::Result<()> {
    let text: String = ports.iter().map(|port| format!("{port}\n")).collect();
    replace(path, text.as_bytes(), true)
}

/// Replaces a file by way of a temporary one beside it; `lasting`: it must outlive a loss of power.
///
/// # Errors
/// When the folder can't be made or written.
pub fn replace(path: &Path, content: &[u8], lasting: bool) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let mut file = fs::File::create(&temporary)?;
    file.write_all(content)?;
    if lasting {
        file.sync_data()?;
    }
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
        let (ports, strangers) = parse("11211\n\n 11221, 11231 # the old one\n# 5\n70000 x 0\n11211");
        assert_eq!(ports, [11211, 11221, 11231]);
        assert_eq!(strangers, ["70000", "x", "0"]);
    }

    #[test]
    fn a_missing_file_holds_no_ports() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/ports");
        assert_eq!(read(&path).unwrap(), (vec![], vec![]));
        write(&path, &[3, 1, 2]).unwrap();
        assert_eq!(read(&path).unwrap().0, [3, 1, 2]);
        write(&path, &[4]).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "4\n");
    }
}
