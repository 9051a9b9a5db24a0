//! The client's end of the control socket, for the verbs that ask a running agent.
//!
//! It finds the socket, asks within a time limit and tells what went wrong. What an answer means is the verbs' business.

use std::{
    ffi::OsStr,
    fmt,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStrExt, net::UnixStream},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt},
    process::{PidfdFlags, pidfd_open},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    config::{
        self, DEFAULT_FILE, ini,
        keys::{KEYS, Place},
    },
    shell::control::SOCKET_NAME,
};

/// How long a connection may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);

/// An answer is no longer.
const ANSWER_AT_MOST: u64 = 64 << 20;

/// Which agent is meant.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct Agent {
    /// The configuration, whose state_dir holds the agent's socket
    #[arg(short, long, value_name = "FILE", conflicts_with = "socket")]
    pub(super) config: Option<PathBuf>,
    /// The agent's socket
    #[arg(long, value_name = "PATH")]
    pub(super) socket: Option<PathBuf>,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum NoAnswer {
    /// Where the socket is cannot be told.
    Unknown(String),
    /// There is no agent at the socket, or none that listens.
    Unreachable(PathBuf, io::Error),
    /// The agent was asked and did not answer as it should.
    Mute(PathBuf, io::Error),
}

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoAnswer::Unknown(why) => f.write_str(why),
            NoAnswer::Unreachable(path, e) => write!(f, "cannot reach the agent at {}: {e}", path.display()),
            NoAnswer::Mute(path, e) => write!(f, "no answer from the agent at {}: {e}", path.display()),
        }
    }
}

impl std::error::Error for NoAnswer {}

/// What the agent says to a verb that changes something.
#[derive(Debug, Deserialize)]
pub(crate) struct Outcome {
    /// Whether it was done.
    pub(crate) ok: bool,
    /// A sentence for people.
    #[serde(default)]
    pub(crate) message: String,
}

/// A connection to the agent.
#[derive(Debug)]
pub(crate) struct Client {
    path: PathBuf,
    stream: UnixStream,
}

impl Client {
    pub(crate) fn connect(agent: &Agent) -> Result<Client, NoAnswer> {
        let path = socket_path(agent)?;
        match connect(&path) {
            Ok(stream) => Ok(Client { path, stream }),
            Err(e) => Err(NoAnswer::Unreachable(path, e)),
        }
    }

    /// Asks, and waits for the answer's line for as long as `limit`.
    pub(crate) fn ask(&self, request: &Value, limit: Duration) -> Result<String, NoAnswer> {
        self.exchange(request, limit).map_err(|e| NoAnswer::Mute(self.path.clone(), e))
    }

    /// As [`ask`](Self::ask), for a verb that changes something.
    pub(crate) fn order(&self, request: &Value, limit: Duration) -> Result<Outcome, NoAnswer> {
        self.read(&self.ask(request, limit)?)
    }

    /// Takes from an answer what the verb needs.
    pub(crate) fn read<T: DeserializeOwned>(&self, answer: &str) -> Result<T, NoAnswer> {
        let told = |e| io::Error::other(format!("cannot understand it: {e}"));
        serde_json::from_str(answer).map_err(|e| NoAnswer::Mute(self.path.clone(), told(e)))
    }

    fn exchange(&self, request: &Value, limit: Duration) -> io::Result<String> {
        let until = Instant::now() + limit;
        self.stream.set_write_timeout(Some(limit))?;
        (&self.stream).write_all(format!("{request}\n").as_bytes())?;
        let line = read_line(&self.stream, until)?;
        String::from_utf8(line).map_err(io::Error::other)
    }

    /// The agent's process, to see it end; `None`: it runs where this process cannot see it.
    pub(crate) fn process(&self) -> Option<OwnedFd> {
        let credentials = sockopt::socket_peercred(&self.stream).ok()?;
        pidfd_open(credentials.pid, PidfdFlags::empty()).ok()
    }
}

/// Waits for a process to end. Returns whether it did.
pub(crate) fn wait_for_end(process: &OwnedFd, limit: Duration) -> bool {
    let until = Instant::now() + limit;
    loop {
        let left = Timespec::try_from(until.saturating_duration_since(Instant::now())).ok();
        match poll(&mut [PollFd::new(process, PollFlags::IN)], left.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            ready => return ready.is_ok_and(|n| n > 0),
        }
    }
}

/// Where the agent's socket is: as told, or in the `state_dir` of the settings. A file that the agent would refuse
/// still tells that much, so that a running agent can be asked about it.
fn socket_path(agent: &Agent) -> Result<PathBuf, NoAnswer> {
    if let Some(socket) = &agent.socket {
        return Ok(socket.clone());
    }
    let file = agent.config.as_deref().unwrap_or(Path::new(DEFAULT_FILE));
    if agent.config.is_none() && !file.exists() {
        return Ok(Path::new(default_state_dir()).join(SOCKET_NAME));
    }
    let bytes = config::read(file).map_err(|e| NoAnswer::Unknown(e.to_string()))?;
    let ini = ini::parse(&bytes).map_err(|e| NoAnswer::Unknown(config::refused(file, &e).to_string()))?;
    let dir = ini.get("global", "state_dir").map(|entry| entry.value.as_slice());
    let dir = dir.filter(|dir| !dir.is_empty()).unwrap_or(default_state_dir().as_bytes());
    Ok(Path::new(OsStr::from_bytes(dir)).join(SOCKET_NAME))
}

fn default_state_dir() -> &'static str {
    let key = KEYS.iter().find(|key| key.place == Place::Global && key.name == "state_dir");
    key.and_then(|key| key.default).unwrap_or_default()
}

/// A full backlog makes a Unix socket's connect wait, for as long as sending may take: the limit must be set before.
fn connect(path: &Path) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_timeout(socket.as_fd(), sockopt::Timeout::Send, Some(CONNECT_LIMIT))?;
    match rustix::net::connect(&socket, &address) {
        Err(rustix::io::Errno::AGAIN) => Err(io::Error::new(io::ErrorKind::TimedOut, "it lets nobody in")),
        connected => Ok(connected.map(|()| socket.into())?),
    }
}

/// Up to the line's end, or to the end of the connection.
fn read_line(mut stream: &UnixStream, until: Instant) -> io::Result<Vec<u8>> {
    let (mut line, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "it took too long"));
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer) {
            Ok(0) if line.is_empty() => return Err(io::Error::other("it closed the connection")),
            Ok(0) => return Ok(line),
            Ok(size) => line.extend_from_slice(&buffer[..size]),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(e) => return Err(e),
        }
        if line.ends_with(b"\n") {
            return Ok(line);
        }
        if line.len() as u64 > ANSWER_AT_MOST {
            return Err(io::Error::other("it has no end"));
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::{fs, os::unix::net::UnixListener, thread::JoinHandle};

    use super::*;

    /// An agent that takes one client, keeps what it asks, and answers.
    pub(crate) fn agent_that_says(dir: &Path, answer: &str) -> (Agent, JoinHandle<String>) {
        let path = dir.join(SOCKET_NAME);
        let listener = UnixListener::bind(&path).unwrap();
        let answer = answer.to_owned();
        let thread = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let asked = read_line(&stream, Instant::now() + Duration::from_secs(60)).unwrap();
            (&stream).write_all(answer.as_bytes()).unwrap();
            String::from_utf8(asked).unwrap()
        });
        (Agent { socket: Some(path), config: None }, thread)
    }

    fn ask(agent: &Agent, limit: Duration) -> Result<Value, NoAnswer> {
        let client = Client::connect(agent).unwrap();
        client.read(&client.ask(&serde_json::json!({"verb": "status"}), limit)?)
    }

    #[test]
    fn the_socket_is_in_the_state_directory_of_the_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("yagent.ini");
        let of = |text: &str| {
            fs::write(&file, text).unwrap();
            socket_path(&Agent { config: Some(file.clone()), socket: None })
        };
        assert_eq!(of("[global]\nState_Dir = /x/y\nport=nonsense\n").unwrap(), Path::new("/x/y/yagent.sock"));
        assert_eq!(of("[global]\n").unwrap(), Path::new("/var/lib/yagent/yagent.sock"));
        let refused = of("[global]\nno value\n").unwrap_err().to_string();
        assert!(refused.contains(":2: "), "{refused}");
        let told = Agent { config: None, socket: Some("/s".into()) };
        assert_eq!(socket_path(&told).unwrap(), Path::new("/s"));
        let missing = Agent { config: Some("/no/such.ini".into()), socket: None };
        assert!(socket_path(&missing).unwrap_err().to_string().contains("/no/such.ini"));
    }

    #[test]
    fn an_answer_in_pieces_is_read_to_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let long = format!("{{\"x\":\"{}\"}}\n", "y".repeat(1 << 20));
        let (agent, thread) = agent_that_says(dir.path(), &long);
        let answer = ask(&agent, Duration::from_secs(60)).unwrap();
        assert_eq!(answer["x"].as_str().unwrap().len(), 1 << 20);
        assert_eq!(thread.join().unwrap(), "{\"verb\":\"status\"}\n");
    }

    #[test]
    fn an_answer_that_is_none_is_told() {
        for (answer, told) in
            [("", "it closed the connection"), ("hello\n", "cannot understand it: expected value")]
        {
            let dir = tempfile::tempdir().unwrap();
            let (agent, thread) = agent_that_says(dir.path(), answer);
            let error = ask(&agent, Duration::from_secs(60)).unwrap_err().to_string();
            let path = dir.path().join(SOCKET_NAME);
            assert!(
                error.starts_with(&format!("no answer from the agent at {}: {told}", path.display())),
                "{error}"
            );
            thread.join().unwrap();
        }
    }

    #[test]
    fn an_agent_that_hangs_is_not_waited_for_longer_than_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(SOCKET_NAME);
        let _listener = UnixListener::bind(&path).unwrap();
        let begun = Instant::now();
        let agent = Agent { socket: Some(path), config: None };
        let error = ask(&agent, Duration::from_millis(100)).unwrap_err().to_string();
        assert!(error.ends_with("it took too long"), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn an_agent_that_lets_nobody_in_is_not_waited_for_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(SOCKET_NAME);
        let listener = UnixListener::bind(&path).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let agent = Agent { socket: Some(path), config: None };
        let first = Client::connect(&agent).unwrap();
        let error = Client::connect(&agent).unwrap_err();
        assert!(
            matches!(&error, NoAnswer::Unreachable(_, e) if e.kind() == io::ErrorKind::TimedOut),
            "{error}"
        );
        drop(first);
    }

    #[test]
    fn a_missing_agent_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(SOCKET_NAME);
        let agent = Agent { socket: Some(path.clone()), config: None };
        let error = Client::connect(&agent).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("cannot reach the agent at {}: No such file", path.display())),
            "{error}"
        );
        let long = Agent { socket: Some("x".repeat(300).into()), config: None };
        assert!(matches!(Client::connect(&long), Err(NoAnswer::Unreachable(..))));
    }
}
