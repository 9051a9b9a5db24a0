//! The writer: one thread that writes numbered values to whoever takes them, one after the other, and measures for how
//! long nobody did.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// Between two writes, and between two servers that are tried.
const PAUSE: Duration = Duration::from_millis(1);
/// How long a server may take.
const LIMIT: Duration = Duration::from_millis(200);

/// Another server than before takes writes.
#[derive(Clone, Debug)]
pub(super) struct Switch {
    pub(super) to: SocketAddr,
    /// From the last acknowledgement of the former one to the first of this one.
    pub(super) gap: Duration,
    /// How many acknowledged writes this one does not have; `None`: it has another value.
    pub(super) lost: Option<u64>,
}

/// The writer; it ends with this value.
pub(super) struct Writer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    over: AtomicBool,
    acknowledged: AtomicU64,
    switches: Mutex<Vec<Switch>>,
}

impl Writer {
    /// Writes to one of these.
    pub(super) fn start(servers: [SocketAddr; 3]) -> Writer {
        let shared = Arc::new(Shared::default());
        let its = shared.clone();
        Writer { shared, thread: Some(thread::spawn(move || write(&its, servers))) }
    }

    /// The switches since this was last asked.
    pub(super) fn switches(&self) -> Vec<Switch> {
        std::mem::take(&mut *self.shared.switches.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How many writes were acknowledged.
    pub(super) fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Relaxed)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.over.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            // A writer that failed is no reason to fail.
            let _ = thread.join();
        }
    }
}

fn write(shared: &Shared, servers: [SocketAddr; 3]) {
    let mut turn = 0;
    let mut stream: Option<TcpStream> = None;
    let mut last: Option<(SocketAddr, Instant, u64)> = None;
    let mut number = 0;
    while !shared.over.load(Relaxed) {
        let server = servers[turn % servers.len()];
        number += 1;
        match stream.take().map_or_else(|| connect(server), Ok).and_then(|s| put(s, number)) {
            Ok((open, before)) => {
                let at = Instant::now();
                if let Some((_, then, written)) = last.filter(|(former, ..)| *former != server) {
                    let lost = before.and_then(|before| written.checked_sub(before));
                    let switch = Switch { to: server, gap: at - then, lost };
                    shared.switches.lock().unwrap_or_else(PoisonError::into_inner).push(switch);
                }
                last = Some((server, at, number));
                shared.acknowledged.fetch_add(1, Relaxed);
                stream = Some(open);
            }
            Err(_) => turn += 1,
        }
        thread::park_timeout(PAUSE);
    }
}

fn connect(server: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&server, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Writes the number. Returns the one before it, where there is one.
fn put(mut stream: TcpStream, number: u64) -> io::Result<(TcpStream, Option<u64>)> {
    write!(stream, "GET demo:last\r\nSET demo:last {number}\r\n")?;
    let (mut text, mut buffer) = (String::new(), [0u8; 256]);
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        text += &String::from_utf8_lossy(&buffer[..count]);
        if text.lines().any(|line| line.starts_with('-')) {
            return Err(io::Error::other(text));
        }
        if text.ends_with("+OK\r\n") {
            let before = text.lines().nth(1).and_then(|line| line.parse().ok());
            return Ok((stream, before));
        }
    }
}
