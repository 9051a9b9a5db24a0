//! What the fencer does is told to the system's log, which is there when no agent is.
//!
//! A datagram that is not waited for: a file could be on the disk that hangs, and a pipe be full.

use std::io::Write;

use rustix::{
    fd::OwnedFd,
    net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, sendto, socket_with},
};

use super::wire::Fencing;

/// Daemon, critical: a cache takes no writes.
const PRIORITY: u8 = 3 * 8 + 2;

/// The way to the system's log, where there is one.
#[derive(Debug)]
pub(super) struct Syslog {
    socket: Option<(OwnedFd, SocketAddrUnix)>,
    pid: u32,
}

impl Syslog {
    pub(super) fn new() -> Syslog {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None).ok();
        Syslog { socket: socket.zip(SocketAddrUnix::new("/dev/log").ok()), pid: std::process::id() }
    }

    /// Nobody is left to tell that this failed.
    pub(super) fn say(&self, key: &[u8], how: Fencing) {
        let Some((socket, address)) = &self.socket else { return };
        let what = match how {
            Fencing::Begun => "the lease has run out, it is fenced",
            Fencing::Fenced => "it takes no writes any longer",
            Fencing::Killed => "it is killed, for it could not be fenced otherwise",
        };
        let key = std::str::from_utf8(key).unwrap_or("?");
        let mut line = [0u8; 256];
        let mut room = &mut line[..];
        let _ = write!(room, "<{PRIORITY}>yagent-fencer[{}]: {key}: {what}", self.pid);
        let left = room.len();
        let used = line.len() - left;
        let _ = sendto(socket, &line[..used], SendFlags::DONTWAIT | SendFlags::NOSIGNAL, address);
    }
}
