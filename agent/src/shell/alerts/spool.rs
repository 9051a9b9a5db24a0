//! The spool: alerts that were not delivered, one file each, in order, bounded in number and size.
//!
//! It knows nothing of what the files hold, except that it is one line.

use std::{
    collections::VecDeque,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// Files in the spool at most.
const FILES_AT_MOST: usize = 1000;

/// Bytes in the spool at most.
const BYTES_AT_MOST: u64 = 4 << 20;

/// No alert is as large; such a file isn't ours.
const FILE_AT_MOST: u64 = 64 << 10;

/// The directory, and what it holds as far as this run knows.
#[derive(Debug)]
pub(super) struct Spool {
    dir: PathBuf,
    /// Number and size of each file, the oldest first.
    files: VecDeque<(u64, u64)>,
    next: u64,
}

impl Spool {
    pub(super) fn new(dir: PathBuf) -> Spool {
        Spool { dir, files: VecDeque::new(), next: 1 }
    }

    /// Finds what an earlier run left. Returns how many of these had to be dropped. A directory that cannot be read
    /// is taken as empty; writing to it will tell why.
    pub(super) fn open(&mut self) -> usize {
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let path = entry.path();
            match (number(&path), entry.metadata()) {
                (Some(number), Ok(metadata)) if metadata.is_file() => {
                    self.files.push_back((number, metadata.len()))
                }
                _ if path.extension().is_some_and(|e| e == "new") => drop(fs::remove_file(&path)),
                _ => {}
            }
        }
        self.files.make_contiguous().sort_unstable();
        self.next = self.files.back().map_or(1, |(last, _)| last.saturating_add(1));
        self.make_room(0)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.files.len()
    }

    /// Adds an alert, `safe` from a power failure where there is time for that. Returns how many old ones had to go.
    pub(super) fn put(&mut self, payload: &[u8], safe: bool) -> io::Result<usize> {
        let path = self.path(self.next);
        let told = |e: io::Error| {
            io::Error::new(e.kind(), format!("cannot spool an alert to {}: {e}", path.display()))
        };
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir).map_err(told)?;
        write(&path, payload, safe).map_err(told)?;
        let dropped = self.make_room(payload.len() as u64);
        self.files.push_back((self.next, payload.len() as u64));
        self.next += 1;
        Ok(dropped)
    }

    /// The oldest alert, and how many before it cannot be read and were dropped.
    pub(super) fn oldest(&mut self) -> (usize, Option<Vec<u8>>) {
        let mut dropped = 0;
        while let Some((number, size)) = self.files.front() {
            let path = self.path(*number);
            match fs::read(&path) {
                Ok(payload) if *size <= FILE_AT_MOST && payload.ends_with(b"\n") => {
                    return (dropped, Some(payload));
                }
                // Somebody cleaned up.
                Err(e) if e.kind() == io::ErrorKind::NotFound => drop(self.files.pop_front()),
                read => {
                    let why = read.err().map_or("it is no alert".to_owned(), |e| e.to_string());
                    log::error!("cannot read spooled alert {}: {why}", path.display());
                    dropped += self.drop_oldest();
                }
            }
        }
        (dropped, None)
    }

    /// The oldest alert was delivered.
    pub(super) fn remove_oldest(&mut self) -> io::Result<()> {
        let Some((number, _)) = self.files.pop_front() else { return Ok(()) };
        let path = self.path(number);
        fs::remove_file(&path).map_err(|e| {
            io::Error::new(e.kind(), format!("cannot remove delivered alert {}: {e}", path.display()))
        })
    }

    fn make_room(&mut self, size: u64) -> usize {
        let mut dropped = 0;
        let mut bytes: u64 = self.files.iter().map(|(_, size)| size).sum();
        while self.files.len() >= FILES_AT_MOST || bytes.saturating_add(size) > BYTES_AT_MOST {
            let Some((_, oldest)) = self.files.front() else { break };
            bytes -= oldest;
            dropped += self.drop_oldest();
        }
        dropped
    }

    fn drop_oldest(&mut self) -> usize {
        let Some((number, _)) = self.files.pop_front() else { return 0 };
        if let Err(e) = fs::remove_file(self.path(number)) {
            log::error!("cannot remove spooled alert {}: {e}", self.path(number).display());
        }
        1
    }

    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{number:020}.json"))
    }
}

/// Whole or not at all. One that a power failure tore lacks its line's end.
pub(super) fn write(path: &Path, payload: &[u8], safe: bool) -> io::Result<()> {
    let new = path.with_extension("new");
    let written = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new);
    let written = written.and_then(|mut file: File| {
        file.write_all(payload)?;
        if safe {
            file.sync_all()?;
        }
        fs::rename(&new, path)
    });
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written
}

fn number(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?.strip_suffix(".json")?;
    (name.len() == 20).then(|| name.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(i: usize) -> Vec<u8> {
        format!("{{\"count\":{i}}}\n").into_bytes()
    }

    fn taken(spool: &mut Spool) -> Option<Vec<u8>> {
        let (dropped, payload) = spool.oldest();
        assert_eq!(dropped, 0);
        spool.remove_oldest().unwrap();
        payload
    }

    #[test]
    fn alerts_come_out_in_order_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::new(dir.path().join("spool"));
        assert_eq!(spool.open(), 0);
        for i in 0..15 {
            assert_eq!(spool.put(&line(i), true).unwrap(), 0);
        }
        assert_eq!(taken(&mut spool), Some(line(0)));
        let mut spool = Spool::new(dir.path().join("spool"));
        assert_eq!((spool.open(), spool.len()), (0, 14));
        spool.put(&line(15), true).unwrap();
        for i in 1..16 {
            assert_eq!(taken(&mut spool), Some(line(i)));
        }
        assert!(spool.is_empty());
        assert_eq!(fs::read_dir(dir.path().join("spool")).unwrap().count(), 0);
    }

    #[test]
    fn it_is_bounded_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::new(dir.path().into());
        let large = [vec![b'x'; 60_000], b"\n".to_vec()].concat();
        let dropped: usize = (0..100).map(|_| spool.put(&large, true).unwrap()).sum();
        assert_eq!((dropped, spool.len()), (31, 69));
        let bytes: u64 =
            fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
        assert!(bytes <= BYTES_AT_MOST, "{bytes}");
        let mut spool = Spool::new(dir.path().into());
        for i in 0..1200 {
            fs::write(spool.path(1000 + i), line(0)).unwrap();
        }
        assert_eq!(spool.open(), 69 + 1200 - 999);
        assert_eq!(spool.put(&line(1), true).unwrap(), 0);
        assert_eq!(spool.put(&line(2), true).unwrap(), 1);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), FILES_AT_MOST);
    }

    #[test]
    fn a_broken_file_is_dropped_and_a_foreign_one_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::new(dir.path().into());
        spool.put(b"torn", true).unwrap();
        spool.put(&line(1), true).unwrap();
        spool.put(&line(2), true).unwrap();
        fs::remove_file(spool.path(2)).unwrap();
        fs::write(dir.path().join("notes.json"), "mine").unwrap();
        fs::write(dir.path().join(format!("{:020}.new", 9)), "half").unwrap();
        let mut spool = Spool::new(dir.path().into());
        assert_eq!((spool.open(), spool.len()), (0, 2));
        assert_eq!(spool.oldest(), (1, Some(line(2))));
        spool.remove_oldest().unwrap();
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["notes.json"]);
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_told_by_name() {
        let mut spool = Spool::new("/proc/no/spool".into());
        assert_eq!(spool.open(), 0);
        let error = spool.put(&line(0), true).unwrap_err().to_string();
        assert!(
            error.starts_with("cannot spool an alert to /proc/no/spool/00000000000000000001.json: "),
            "{error}"
        );
    }
}
