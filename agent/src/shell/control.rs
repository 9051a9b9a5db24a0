//! The control socket: one line of JSON asks, one line of JSON answers.
//!
//! It owns the clients' bytes and time limits; what is asked is answered by the event loop.

use std::{
    collections::HashMap,
    fs,
    io::{self, Read, Write},
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::Deserialize;

use super::poll::{Poll, Ready, Source, Token};

/// The socket's name in the state directory.
pub const SOCKET_NAME: &str = "yagent.sock";
/// The longest request.
const REQUEST_AT_MOST: usize = 4096;
/// More clients than this are turned away.
const CLIENTS_AT_MOST: usize = 64;
/// How long a client may take to ask, and to read its answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long nobody is let in after that failed: whoever waits at the door would else wake the loop without end.
const REST: Duration = Duration::from_secs(1);

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "verb", rename_all = "lowercase")]
pub enum Request {
    /// What is there and how it is.
    Status,
    /// End; all instances too, or none.
    Stop {
        /// All instances too.
        #[serde(default)]
        all: bool,
    },
    /// Read the settings again.
    Reload,
    /// The shards that this host has a member of.
    Shards {
        /// Only the one with this id.
        #[serde(default)]
        shard: Option<String>,
    },
    /// A planned change of a shard's master.
    Switchover {
        /// The shard's id.
        shard: String,
        /// The member that is to lead; without it, the best one.
        #[serde(default)]
        to: Option<String>,
        /// Names the wish.
        id: String,
    },
    /// A forced change of a shard's master.
    Failover {
        /// The shard's id.
        shard: String,
        /// The member that is to lead; without it, the best one.
        #[serde(default)]
        to: Option<String>,
        /// Names the wish.
        id: String,
    },
    /// No change of a shard's master for a while.
    Pause {
        /// The shard's id.
        shard: String,
        /// How long, in milliseconds.
        for_ms: u64,
        /// Why.
        reason: String,
        /// Only this host's member is not promoted.
        #[serde(default)]
        host: bool,
    },
    /// The end of a pause.
    Resume {
        /// The shard's id.
        shard: String,
        /// Of this host's member.
        #[serde(default)]
        host: bool,
    },
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    /// It asked; what is left is to answer.
    asked: bool,
    /// It has said all it will, and may still be reading.
    silent: bool,
    until: Option<Instant>,
}

/// The socket and its clients.
#[derive(Debug)]
pub struct Control {
    path: PathBuf,
    listener: UnixListener,
    token: Token,
    /// Until when nobody is let in.
    rests: Option<Instant>,
    clients: HashMap<Token, Client>,
}

impl Control {
    /// Listens at `path`, for this user alone. A socket left behind by a former agent is replaced; whoever calls holds
    /// the lock that makes sure it is former.
    ///
    /// # Errors
    /// When the path is too long, or can't be made.
    pub fn bind(path: &Path, poll: &mut Poll) -> io::Result<Control> {
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        let token = poll.add(&listener, Source::ControlListener, false)?;
        Ok(Control { path: path.to_owned(), listener, token, rests: None, clients: HashMap::new() })
    }

    /// Lets waiting clients in.
    pub fn accept(&mut self, poll: &mut Poll, now: Instant) {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => self.welcome(poll, stream, now),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return self.rest(poll, now, &e),
            }
        }
    }

    fn welcome(&mut self, poll: &mut Poll, stream: UnixStream, now: Instant) {
        if self.clients.len() >= CLIENTS_AT_MOST || stream.set_nonblocking(true).is_err() {
            return;
        }
        if let Ok(token) = poll.add(&stream, Source::Control, false) {
            let client = Client {
                stream,
                inbox: Vec::new(),
                outbox: Vec::new(),
                asked: false,
                silent: false,
                until: Some(now + PATIENCE),
            };
            self.clients.insert(token, client);
        }
    }

    fn rest(&mut self, poll: &Poll, now: Instant, why: &io::Error) {
        log::warn!("cannot let a control client in, tried again in {} s: {why}", REST.as_secs());
        let _ = poll.ignore_input(&self.listener, self.token, false);
        self.rests = Some(now + REST);
    }

    /// Moves on with a client. `Some`: it asked this, or something that is no request.
    pub fn ready(&mut self, poll: &mut Poll, ready: Ready) -> Option<Result<Request, String>> {
        let client = self.clients.get_mut(&ready.token)?;
        if ready.writable && client.send().is_none_or(|left| left == 0) {
            self.drop_client(poll, ready.token);
            return None;
        }
        if !ready.readable {
            return None;
        }
        match client.receive() {
            Received::More => None,
            // It asked and said no more than that, as `nc -N` does; it still waits.
            Received::Closed if client.asked && !client.silent => {
                client.silent = true;
                let _ = poll.ignore_input(&client.stream, ready.token, !client.outbox.is_empty());
                None
            }
            Received::Closed => {
                self.drop_client(poll, ready.token);
                None
            }
            Received::Line(line) => Some(serde_json::from_str(&line).map_err(|e| format!("no request: {e}"))),
        }
    }

    /// Answers a client and lets it go once it has read that.
    pub fn answer(&mut self, poll: &mut Poll, token: Token, now: Instant, mut line: String) {
        let Some(client) = self.clients.get_mut(&token) else { return };
        line.push('\n');
        client.outbox = line.into_bytes();
        client.until = Some(now + PATIENCE);
        match client.send() {
            Some(left) if left > 0 && client.silent => {
                let _ = poll.ignore_input(&client.stream, token, true);
            }
            Some(left) if left > 0 => {
                let _ = poll.modify(&client.stream, token, true);
            }
            _ => self.drop_client(poll, token),
        }
    }

    /// An answer to this client may take as long as it takes.
    pub fn wait(&mut self, token: Token) {
        if let Some(client) = self.clients.get_mut(&token) {
            client.until = None;
        }
    }

    /// When the next client's time is up, or the next may come in.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.clients.values().filter_map(|client| client.until).chain(self.rests).min()
    }

    /// Drops the clients whose time is up, and opens the door after a rest.
    pub fn tick(&mut self, poll: &mut Poll, now: Instant) {
        if self.rests.is_some_and(|until| until <= now) {
            self.rests = None;
            let _ = poll.modify(&self.listener, self.token, false);
        }
        let late = self.clients.iter().filter(|(_, client)| client.until.is_some_and(|at| at <= now));
        for token in late.map(|(token, _)| *token).collect::<Vec<_>>() {
            self.drop_client(poll, token);
        }
    }

    fn drop_client(&mut self, poll: &mut Poll, token: Token) {
        if let Some(client) = self.clients.remove(&token) {
            poll.remove(client.stream, token);
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

enum Received {
    More,
    Closed,
    Line(String),
}

impl Client {
    fn receive(&mut self) -> Received {
        let mut buffer = [0u8; REQUEST_AT_MOST];
        match self.stream.read(&mut buffer) {
            Ok(0) => return Received::Closed,
            // What follows the request means nothing.
            Ok(_) if self.asked => {}
            Ok(n) => self.inbox.extend_from_slice(&buffer[..n]),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => return Received::Closed,
        }
        if self.asked {
            return Received::More;
        }
        let Some(end) = memchr::memchr(b'\n', &self.inbox) else {
            return if self.inbox.len() > REQUEST_AT_MOST { Received::Closed } else { Received::More };
        };
        self.asked = true;
        Received::Line(String::from_utf8_lossy(&self.inbox[..end]).into_owned())
    }

    /// Sends what it can; how much is left, or `None` when the client is gone.
    fn send(&mut self) -> Option<usize> {
        while !self.outbox.is_empty() {
            match self.stream.write(&self.outbox) {
                Ok(n) => drop(self.outbox.drain(..n)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
        Some(self.outbox.len())
    }
}
