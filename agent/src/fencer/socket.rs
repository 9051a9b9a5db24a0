//! The fencer's sockets: the one it listens at, and the connections that carry a fence.

use std::{
    fs, io,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen,
        recv, send, socket_with, sockopt,
    },
};

use super::{SOCKET_NAME, wire::EXPECT_AT_MOST};

/// A connection that carries a fence.
#[derive(Debug)]
pub(super) struct Connection {
    fd: OwnedFd,
    sent: usize,
    reply: [u8; EXPECT_AT_MOST],
    got: usize,
}

/// How a conversation with a server goes.
pub(super) enum Progress {
    Unfinished,
    AsExpected,
    Otherwise,
}

impl Connection {
    /// Begins to connect.
    pub(super) fn begin(address: SocketAddr) -> rustix::io::Result<Connection> {
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let fd = socket_with(family, SocketType::STREAM, flags, None)?;
        match connect(&fd, &address) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(e) => return Err(e),
        }
        Ok(Connection { fd, sent: 0, reply: [0; EXPECT_AT_MOST], got: 0 })
    }

    /// Sends and receives what it can. Ask again after an event until it is finished.
    pub(super) fn go_on(&mut self, bytes: &[u8], expect: &[u8]) -> Progress {
        while self.sent < bytes.len() {
            match send(&self.fd, &bytes[self.sent..], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(sent) => self.sent += sent,
                Err(Errno::AGAIN) => return Progress::Unfinished,
                Err(Errno::INTR) => {}
                Err(_) => return Progress::Otherwise,
            }
        }
        while self.got < expect.len() {
            match recv(&self.fd, &mut self.reply[self.got..], RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return Progress::Otherwise,
                Ok((_, got)) => self.got += got,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(_) => return Progress::Otherwise,
            }
        }
        let reply = &self.reply[..self.got];
        match () {
            () if reply == expect => Progress::AsExpected,
            () if expect.starts_with(reply) => Progress::Unfinished,
            () => Progress::Otherwise,
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The socket that the agent which started this process gave it as standard input, if there is one.
#[must_use]
pub fn agent_on_stdin() -> Option<OwnedFd> {
    let socket = sockopt::socket_type(io::stdin()).is_ok_and(|kind| kind == SocketType::SEQPACKET);
    socket.then(crate::sys::take_stdin)
}

/// Whether an answer can be sent without waiting; the kernel says so while three quarters of the room are free.
pub(super) fn has_room(agent: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(agent, PollFlags::OUT)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    // A socket that is broken is read, which tells.
    poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
}

/// Longer paths than a socket's address can hold are no matter: it is reached through the folder's descriptor.
pub(super) fn listen_at(dir: &Path, socket: &Path) -> io::Result<OwnedFd> {
    match fs::remove_file(socket) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let dir = fs::File::open(dir)?;
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    bind(&listener, &address_in(dir.as_fd(), SOCKET_NAME)?)?;
    fs::set_permissions(socket, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    listen(&listener, 4)?;
    Ok(listener)
}

/// The address of a socket in a folder, however long the folder's path is.
///
/// # Errors
/// The name itself is too long.
pub fn address_in(dir: BorrowedFd<'_>, name: &str) -> io::Result<SocketAddrUnix> {
    Ok(SocketAddrUnix::new(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))?)
}
