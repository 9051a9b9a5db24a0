//! A TCP server that stands before a real ZooKeeper or plays a mad one: it can cut, freeze, and answer nonsense.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

/// What a connection gets.
#[derive(Clone, Debug)]
pub(crate) enum Mode {
    /// A real server.
    Relay(SocketAddr),
    /// Nothing at all.
    Mute,
    /// It is closed at once.
    Close,
    /// These bytes, whatever is asked.
    Bytes(Vec<u8>),
    /// A session, and then this.
    Session(Script),
}

/// What a mad server does once a session stands.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Script {
    /// Answers nothing.
    Silent,
    /// Closes at the first request.
    Close,
    /// Answers with another xid.
    WrongXid,
    /// Answers what nobody asked.
    Unsolicited,
    /// Says that there are 2^31 - 1 children.
    ManyChildren,
    /// Says that there are 2^31 - 1 bytes of data.
    HugeData,
    /// Sends an event with a path that is no UTF-8.
    BadEvent,
    /// Answers addauth with AuthFailed and closes.
    AuthFailed,
}

#[derive(Debug)]
struct State {
    mode: Mutex<(Mode, bool)>,
    thawed: Condvar,
    streams: Mutex<Vec<TcpStream>>,
    accepted: AtomicUsize,
}

/// The server.
#[derive(Debug)]
pub(crate) struct Proxy {
    state: Arc<State>,
    port: u16,
}

impl Proxy {
    /// Starts it.
    pub(crate) fn start(mode: Mode) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("cannot bind");
        let port = listener.local_addr().expect("no address").port();
        let state = Arc::new(State {
            mode: Mutex::new((mode, false)),
            thawed: Condvar::new(),
            streams: Mutex::new(Vec::new()),
            accepted: AtomicUsize::new(0),
        });
        let theirs = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let state = Arc::clone(&theirs);
                thread::spawn(move || serve(&state, stream));
            }
        });
        Proxy { state, port }
    }

    /// `host:port`.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Connections accepted so far.
    pub(crate) fn accepted(&self) -> usize {
        self.state.accepted.load(Ordering::SeqCst)
    }

    /// What connections get from now on; those that stand are cut.
    pub(crate) fn set(&self, mode: Mode) {
        self.state.mode.lock().expect("poisoned").0 = mode;
        self.cut();
    }

    /// Cuts all connections.
    pub(crate) fn cut(&self) {
        for stream in self.state.streams.lock().expect("poisoned").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Lets nothing through, or again.
    pub(crate) fn freeze(&self, frozen: bool) {
        self.state.mode.lock().expect("poisoned").1 = frozen;
        self.state.thawed.notify_all();
    }
}

/// Ends when either side does; what the tests look at is the other end.
fn serve(state: &Arc<State>, mut stream: TcpStream) {
    state.accepted.fetch_add(1, Ordering::SeqCst);
    state.streams.lock().expect("poisoned").push(stream.try_clone().expect("no descriptor"));
    let mode = state.mode.lock().expect("poisoned").0.clone();
    let _ = match mode {
        Mode::Relay(server) => relay(state, &stream, server),
        Mode::Mute => swallow(&mut stream),
        Mode::Close => Ok(()),
        Mode::Bytes(bytes) => stream.write_all(&bytes).and_then(|()| swallow(&mut stream)),
        Mode::Session(script) => play(&mut stream, script),
    };
    let _ = stream.shutdown(Shutdown::Both);
}

fn swallow(stream: &mut TcpStream) -> io::Result<()> {
    let mut chunk = [0; 4096];
    while stream.read(&mut chunk)? > 0 {}
    Ok(())
}

fn relay(state: &Arc<State>, client: &TcpStream, server: SocketAddr) -> io::Result<()> {
    let server = TcpStream::connect(server)?;
    state.streams.lock().expect("poisoned").push(server.try_clone()?);
    let (from, to, theirs) = (server.try_clone()?, client.try_clone()?, Arc::clone(state));
    thread::spawn(move || copy(&theirs, from, to));
    copy(state, client.try_clone()?, server);
    Ok(())
}

fn copy(state: &State, mut from: TcpStream, mut to: TcpStream) {
    let mut chunk = [0; 16 << 10];
    while let Ok(n @ 1..) = from.read(&mut chunk) {
        let mut mode = state.mode.lock().expect("poisoned");
        while mode.1 {
            mode = state.thawed.wait(mode).expect("poisoned");
        }
        drop(mode);
        if to.write_all(&chunk[..n]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

fn frame(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut frame = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut frame)?;
    Ok(frame)
}

fn int(bytes: &[u8]) -> i32 {
    i32::from_be_bytes(bytes[..4].try_into().expect("four bytes"))
}

/// A reply with its length.
fn reply(xid: i32, error: i32, body: &[u8]) -> Vec<u8> {
    let length = 16 + body.len() as i32;
    let header = [&length.to_be_bytes()[..], &xid.to_be_bytes(), &1i64.to_be_bytes(), &error.to_be_bytes()];
    [&header.concat(), body].concat()
}

/// A connect response with its length.
pub(crate) fn session(timeout_ms: i32) -> Vec<u8> {
    let parts = [
        &37i32.to_be_bytes()[..],
        &0i32.to_be_bytes(),
        &timeout_ms.to_be_bytes(),
        &0x77i64.to_be_bytes(),
        &16i32.to_be_bytes(),
        &[7; 16],
        &[0],
    ];
    parts.concat()
}

fn play(stream: &mut TcpStream, script: Script) -> io::Result<()> {
    frame(stream)?;
    stream.write_all(&session(2000))?;
    if matches!(script, Script::Unsolicited) {
        stream.write_all(&reply(12345, 0, b""))?;
    }
    loop {
        let request = frame(stream)?;
        let (xid, op) = (int(&request), int(&request[4..]));
        let body = |text: &[u8]| [&(text.len() as i32).to_be_bytes()[..], text].concat();
        let answer = match (script, op) {
            (Script::Silent, _) => continue,
            (Script::Close, _) => return Ok(()),
            (Script::WrongXid, _) => reply(xid.wrapping_add(7), 0, &[0; 100]),
            (Script::BadEvent, _) => {
                let event = [&3i32.to_be_bytes()[..], &3i32.to_be_bytes(), &body(&[0xff, 0xfe])].concat();
                reply(-1, 0, &event)
            }
            (Script::AuthFailed, 100) => {
                stream.write_all(&reply(xid, -115, b""))?;
                return Ok(());
            }
            (Script::ManyChildren, 8) => reply(xid, 0, &i32::MAX.to_be_bytes()),
            (Script::HugeData, 4) => reply(xid, 0, &[&i32::MAX.to_be_bytes()[..], &[0; 68]].concat()),
            // Otherwise a server without memory: every create succeeds, and nothing is ever there.
            (_, 1) => reply(xid, 0, &body(b"/x")),
            (_, 8) => reply(xid, 0, &0i32.to_be_bytes()),
            (_, 3..=5) => reply(xid, -101, b""),
            _ => reply(xid, 0, b""),
        };
        stream.write_all(&answer)?;
    }
}
