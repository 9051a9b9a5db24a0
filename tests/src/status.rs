//! What the agent says of itself over its control socket.

use std::{
    fmt,
    io::{self, BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use serde_json::Value;

/// Sends one request over the control socket and returns the answer.
pub fn ask(socket: &Path, request: &str) -> io::Result<Value> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.set_write_timeout(Some(Duration::from_secs(10)))?;
    writeln!(stream, "{request}")?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    serde_json::from_str(&answer).map_err(io::Error::other)
}

/// The answer to `status`.
#[derive(Clone, Debug)]
pub struct Status(pub Value);

/// One row of `instances`.
#[derive(Clone, Debug, PartialEq)]
pub struct Instance {
    /// `memcached` or `redis`.
    pub engine: String,
    /// Its port.
    pub port: u16,
    /// `up`, `starting`, `backoff`, ….
    pub state: String,
    /// `serving`, `loading`, …; empty before the first answer.
    pub health: String,
    /// The reason behind state or health.
    pub why: String,
    /// Its process; 0 without one.
    pub pid: u32,
    /// How often it was started again.
    pub restarts: u64,
    /// The row's `figures`.
    pub figures: Value,
}

impl Status {
    /// The instances, in the agent's order.
    pub fn instances(&self) -> Vec<Instance> {
        self.0["instances"].as_array().map(|rows| rows.iter().map(instance).collect()).unwrap_or_default()
    }

    /// The instance of `engine` on `port`.
    pub fn instance(&self, engine: &str, port: u16) -> Option<Instance> {
        self.instances().into_iter().find(|it| it.engine == engine && it.port == port)
    }

    /// The process of each instance, in order.
    pub fn pids(&self) -> Vec<u32> {
        self.instances().iter().map(|it| it.pid).collect()
    }

    /// The keys of the alerts that fire.
    pub fn alerts(&self) -> Vec<String> {
        let rows = self.0["alerts"].as_array().cloned().unwrap_or_default();
        rows.iter().map(|row| text(row, "key")).collect()
    }

    /// Whether an alert fires whose key begins with `prefix`.
    pub fn fires(&self, prefix: &str) -> bool {
        self.alerts().iter().any(|key| key.starts_with(prefix))
    }

    /// The registry's `state`.
    pub fn registry(&self) -> String {
        text(&self.0["registry"], "state")
    }

    /// Whether the registry is connected and holds all that it should.
    pub fn registered(&self) -> bool {
        self.registry() == "connected" && self.0["registry"]["behind"] == 0
    }
}

impl fmt::Display for Status {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

fn instance(row: &Value) -> Instance {
    let number = |name: &str| row[name].as_u64().unwrap_or_default();
    Instance {
        engine: text(row, "engine"),
        port: number("port") as u16,
        state: text(row, "state"),
        health: text(row, "health"),
        why: text(row, "why"),
        pid: number("pid") as u32,
        restarts: number("restarts"),
        figures: row["figures"].clone(),
    }
}

fn text(row: &Value, name: &str) -> String {
    row[name].as_str().unwrap_or_default().to_owned()
}
