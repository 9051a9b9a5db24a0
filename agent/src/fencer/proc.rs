//! What `/proc` says of a process, read without an allocation.

use std::io::Write;

use rustix::fs::{CWD, Mode, OFlags, openat};

/// A process's start in clock ticks since the boot; `None` when it is gone, a zombie included.
pub(super) fn start_ticks(pid: u32) -> Option<u64> {
    let mut path = [0u8; 32];
    write!(&mut path[..], "/proc/{pid}/stat\0").ok()?;
    let path = std::ffi::CStr::from_bytes_until_nul(&path).ok()?;
    let file = openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut text = [0u8; 1024];
    let len = rustix::io::read(&file, &mut text[..]).ok()?;
    parse(&text[..len])
}

/// The name, in brackets, may hold blanks and brackets itself; the state is the first field after it, the start the
/// twentieth.
fn parse(stat: &[u8]) -> Option<u64> {
    let after_name = stat.get(memchr::memrchr(b')', stat)? + 2..)?;
    let mut fields = after_name.split(|byte| *byte == b' ');
    if matches!(fields.next()?, b"Z" | b"X" | b"x") {
        return None;
    }
    std::str::from_utf8(fields.nth(18)?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::Pid;

    #[test]
    fn it_agrees_with_what_the_agent_reads() {
        let me = std::process::id();
        assert_eq!(start_ticks(me), crate::shell::process::start_ticks(Pid(me)));
        assert!(start_ticks(me).is_some());
        assert_eq!(start_ticks(u32::MAX), None);
    }

    #[test]
    fn a_name_with_brackets_is_passed_over() {
        let fields = "S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 4711 0";
        assert_eq!(parse(format!("9 (a) b (c) {fields}").as_bytes()), Some(4711));
        assert_eq!(parse(format!("9 (a) {}", fields.replace('S', "Z")).as_bytes()), None);
        assert_eq!(parse(b"9 (a"), None);
    }
}
