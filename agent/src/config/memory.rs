//! How much memory the host has, and how much of it this process's control group allows.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::Megabytes;

/// What instances could take at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// `MemTotal`.
    pub total: Megabytes,
    /// The least limit of the control groups that hold this process, if any has one.
    pub cgroup: Option<Megabytes>,
}

impl Memory {
    /// A host with so much memory and no control group.
    #[must_use]
    pub fn of(total: Megabytes) -> Memory {
        Memory { total, cgroup: None }
    }

    /// The lesser of both.
    #[must_use]
    pub fn usable(&self) -> Megabytes {
        self.cgroup.map_or(self.total, |limit| limit.min(self.total))
    }

    /// What the kernel says.
    ///
    /// # Errors
    /// When `/proc/meminfo` cannot be read or has no `MemTotal`.
    pub fn read() -> io::Result<Memory> {
        let total = mem_total(&fs::read_to_string("/proc/meminfo")?)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/meminfo has no MemTotal"))?;
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let limit = cgroup_limit(&groups, Path::new("/sys/fs/cgroup"));
        Ok(Memory { total, cgroup: limit.filter(|limit| *limit < total) })
    }
}

fn mem_total(meminfo: &str) -> Option<Megabytes> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(Megabytes(kilobytes / 1024))
}

/// The least limit on the way from this process's group up to the hierarchy's root, of both versions.
fn cgroup_limit(groups: &str, mount: &Path) -> Option<Megabytes> {
    groups
        .lines()
        .filter_map(|line| hierarchy(line, mount))
        .filter_map(|(root, group, file)| least(&root, &group, file))
        .min()
}

/// A line's hierarchy: its root, this process's group below it, the file that holds a limit.
fn hierarchy(line: &str, mount: &Path) -> Option<(PathBuf, PathBuf, &'static str)> {
    let mut fields = line.splitn(3, ':');
    let (_, controllers, group) = (fields.next()?, fields.next()?, fields.next()?);
    let group = Path::new(group.trim_start_matches('/')).to_owned();
    if controllers.is_empty() {
        Some((mount.to_owned(), group, "memory.max"))
    } else if controllers.split(',').any(|name| name == "memory") {
        Some((mount.join("memory"), group, "memory.limit_in_bytes"))
    } else {
        None
    }
}

/// A group that the mount doesn't show (a container's view) is passed over; the groups above it count all the same.
fn least(root: &Path, group: &Path, file: &str) -> Option<Megabytes> {
    let limit = |group: &Path| -> Option<u64> {
        fs::read_to_string(root.join(group).join(file)).ok()?.trim().parse().ok()
    };
    group.ancestors().filter_map(limit).min().map(|bytes| Megabytes(bytes >> 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_in_megabytes() {
        assert_eq!(
            mem_total("MemFree: 1 kB\nMemTotal:       33554432 kB\n").or(None),
            Some(Megabytes(32768))
        );
        assert_eq!(mem_total("MemTotal: lots\n"), None);
    }

    #[test]
    fn the_least_limit_on_the_way_up_counts() {
        let mount = tempfile::tempdir().unwrap();
        let inner = mount.path().join("a/b");
        fs::create_dir_all(&inner).unwrap();
        fs::write(inner.join("memory.max"), "max\n").unwrap();
        fs::write(mount.path().join("a/memory.max"), format!("{}\n", 512u64 << 20)).unwrap();
        assert_eq!(cgroup_limit("0::/a/b\n", mount.path()), Some(Megabytes(512)));
        assert_eq!(cgroup_limit("0::/\n", mount.path()), None);
        assert_eq!(cgroup_limit("0::/a/unseen\n", mount.path()), Some(Megabytes(512)));
    }

    #[test]
    fn the_first_version_is_known_too() {
        let mount = tempfile::tempdir().unwrap();
        let group = mount.path().join("memory/x");
        fs::create_dir_all(&group).unwrap();
        fs::write(group.join("memory.limit_in_bytes"), "104857600\n").unwrap();
        assert_eq!(cgroup_limit("4:cpu,memory:/x\n3:cpu:/x\n", mount.path()), Some(Megabytes(100)));
    }

    #[test]
    fn this_host_has_memory() {
        assert!(Memory::read().unwrap().usable() > Megabytes(0));
    }
}
