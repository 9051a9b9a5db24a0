//! The gate's side of the client: one loopback connection of the library, relayed or drained.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
    os::fd::{AsFd, BorrowedFd},
    time::{Duration, Instant},
};

use rustix::event::PollFlags;

use crate::shell::registry::wire::{Asked, ConnectResponse, Frames};

/// A leftover client is given so long between two steps of its end.
const LEFTOVER_PACE: Duration = Duration::from_millis(250);
/// A session timeout below a second: a library that has not pinged for a second takes its session for gone at the next
/// loss of the connection, and ends.
const LONG_GONE_MS: i32 = 999;

/// The library's connection.
#[derive(Debug)]
pub(super) struct Client {
    stream: TcpStream,
    frames: Frames,
    out: Vec<u8>,
    greeted: bool,
    relays: Option<u64>,
    /// It has made its connect request.
    asked: bool,
    /// When it came, or when its last step towards the end was.
    since: Instant,
}

impl Client {
    /// A connection that has been let in.
    pub(super) fn new(stream: TcpStream) -> io::Result<Client> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        Ok(Client {
            stream,
            frames: Frames::default(),
            out: Vec::new(),
            greeted: false,
            relays: None,
            asked: false,
            since: Instant::now(),
        })
    }

    /// What the poll waits for.
    pub(super) fn wants(&self) -> PollFlags {
        if self.out.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT }
    }

    /// Bytes that wait to be taken.
    pub(super) fn backlog(&self) -> usize {
        self.out.len()
    }

    /// Whether it has had its session.
    pub(super) fn greeted(&self) -> bool {
        self.greeted
    }

    /// The connection to the server that it speaks through; `None`: it is being drained.
    pub(super) fn relays(&self) -> Option<u64> {
        self.relays
    }

    /// It has made its connect request, and waits for the answer.
    pub(super) fn note_asked(&mut self) {
        self.asked = true;
    }

    /// Answers its connect request, whatever that said: the gate holds the session.
    pub(super) fn greet(&mut self, relays: Option<u64>, greeting: &ConnectResponse) {
        self.greeted = true;
        self.relays = relays;
        self.push(&greeting.for_client());
    }

    /// Answers a request from here.
    pub(super) fn answer(&mut self, asked: &Asked, error: i32) {
        self.push(&asked.answer(error));
    }

    /// Answers a good-bye; the client no longer speaks through any connection.
    pub(super) fn dismiss(&mut self, farewell: &Asked) {
        self.relays = None;
        self.answer(farewell, 0);
    }

    /// Hands bytes on; they leave with the next `flush`.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// Whole frames that have come.
    ///
    /// # Errors
    /// When the client has gone or its framing is broken.
    pub(super) fn receive(&mut self) -> io::Result<Vec<Vec<u8>>> {
        receive(&mut self.stream, &mut self.frames)?;
        let mut whole = Vec::new();
        while let Some(frame) = self.frames.next().map_err(|e| io::Error::other(e.0))? {
            whole.push(frame);
        }
        Ok(whole)
    }

    /// Sends what waits, as far as it is taken.
    ///
    /// # Errors
    /// When the client has gone.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        flush(&mut self.stream, &mut self.out)
    }

    /// When [`Client::finish`] has something to do.
    pub(super) fn finish_at(&self) -> Instant {
        self.since + LEFTOVER_PACE
    }

    /// Ends a client whose owner has let go of it and which lives on: its drop came just when its connection was cut.
    /// It is let into a session that it must take for long gone, and cut again. Tells whether it is done with.
    pub(super) fn finish(&mut self, now: Instant, mut greeting: ConnectResponse) -> bool {
        if now < self.finish_at() {
            return false;
        }
        self.since = now;
        if self.greeted || !self.asked {
            return self.greeted;
        }
        greeting.timeout_ms = LONG_GONE_MS;
        self.greet(None, &greeting);
        let _ = self.flush();
        let _ = self.stream.shutdown(Shutdown::Write);
        false
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Reads what is there.
///
/// # Errors
/// At the end of the stream or when it is broken.
pub(super) fn receive(stream: &mut TcpStream, frames: &mut Frames) -> io::Result<usize> {
    let mut chunk = [0; 16 << 10];
    loop {
        return match stream.read(&mut chunk) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                frames.extend(&chunk[..n]);
                Ok(n)
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(0),
            Err(e) => Err(e),
        };
    }
}

/// Writes what can be taken.
///
/// # Errors
/// When the stream is broken.
pub(super) fn flush(stream: &mut TcpStream, out: &mut Vec<u8>) -> io::Result<()> {
    while !out.is_empty() {
        match stream.write(out) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(n) => {
                out.drain(..n);
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
