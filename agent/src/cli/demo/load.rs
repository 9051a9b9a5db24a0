//! A little load, so that the demo's figures move: one thread that reads and writes a few keys of each instance.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// Between rounds over all instances.
const PAUSE: Duration = Duration::from_millis(10);
/// How long an instance may take; one that is down is tried again in the next round.
const LIMIT: Duration = Duration::from_millis(50);
/// How many keys there are; an instance that was restarted fills up again before one's eyes.
const KEYS: u64 = 2000;

/// The load; it ends with this value.
pub(super) struct Load {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

struct Target {
    redis: bool,
    port: u16,
    stream: Option<TcpStream>,
}

impl Load {
    /// Loads these: engine and port.
    pub(super) fn start(instances: Vec<(String, u16)>) -> Load {
        let over = Arc::new(AtomicBool::new(false));
        let its = over.clone();
        let mut targets: Vec<Target> = instances
            .into_iter()
            .map(|(engine, port)| Target { redis: engine == "redis", port, stream: None })
            .collect();
        let work = move || {
            let mut turn = 0u64;
            while !its.load(Relaxed) {
                turn = turn.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                targets.iter_mut().for_each(|target| target.work(turn >> 33));
                thread::park_timeout(PAUSE);
            }
        };
        Load { over, thread: Some(thread::spawn(work)) }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.over.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A load that failed is no reason to fail.
            let _ = thread.join();
        }
    }
}

impl Target {
    fn work(&mut self, random: u64) {
        let mut stream = self.stream.take().or_else(|| connect(self.port));
        let done = stream.as_mut().is_some_and(|stream| talk(stream, self.redis, random).is_ok());
        self.stream = stream.filter(|_| done);
    }
}

fn connect(port: u16) -> Option<TcpStream> {
    let stream = TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), LIMIT).ok()?;
    stream.set_read_timeout(Some(LIMIT)).ok()?;
    stream.set_nodelay(true).ok()?;
    Some(stream)
}

/// One write and three reads, most of them hits.
fn talk(stream: &mut TcpStream, redis: bool, random: u64) -> std::io::Result<()> {
    let key = |n: u64| format!("demo:{}", n % KEYS);
    let value = "x".repeat(100 + usize::try_from(random % 900).unwrap_or(0));
    let (mut request, expected) = if redis {
        (format!("SET {} {value}\r\n", key(random)), 4)
    } else {
        (format!("set {} 0 0 {}\r\n{value}\r\n", key(random), value.len()), 4)
    };
    let get = if redis { "GET" } else { "get" };
    for n in [random, random / 3, random / 7] {
        request += &format!("{get} {}\r\n", key(n));
    }
    stream.write_all(request.as_bytes())?;
    answers(stream, redis, expected)
}

/// Reads until as many answers are there as were asked for.
fn answers(stream: &mut TcpStream, redis: bool, expected: usize) -> std::io::Result<()> {
    let (mut text, mut buffer) = (Vec::new(), [0u8; 8192]);
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        text.extend_from_slice(&buffer[..count]);
        if complete(&text, redis) >= expected {
            return Ok(());
        }
    }
}

fn complete(text: &[u8], redis: bool) -> usize {
    let lines: Vec<&[u8]> =
        text.split_inclusive(|b| *b == b'\n').filter(|line| line.ends_with(b"\n")).collect();
    if !redis {
        return lines.iter().filter(|line| line.starts_with(b"STORED") || line.starts_with(b"END")).count();
    }
    let value = |line: &&&[u8]| line.starts_with(b"x");
    let whole = |line: &&&[u8]| line.starts_with(b"+") || line.starts_with(b"-") || line.starts_with(b"$-1");
    lines.iter().filter(value).count() + lines.iter().filter(whole).count()
}
