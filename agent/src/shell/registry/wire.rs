//! ZooKeeper's framing as far as the gate needs it: lengths, handshakes, headers, and whether a reply's shape can be
//! handed to a client that trusts what it reads. Pure; owns no socket and no time but what it is given.

use std::{collections::VecDeque, time::Instant};

/// No frame may be longer. A server takes and gives 1 MiB by default.
pub(super) const MAX_FRAME: usize = 4 << 20;
/// Length of a znode's status in a reply.
const STAT: usize = 68;
/// Length of a reply's header.
const HEADER: usize = 16;
/// The number of every request of the gate's own: none that a client or a server uses (those end with -8).
const OURS: i32 = -16;

/// Error codes of the protocol that mean something to the gate.
pub(super) mod code {
    /// The connection is gone.
    pub(in super::super) const CONNECTION_LOSS: i32 = -4;
    /// The session is gone.
    pub(in super::super) const SESSION_EXPIRED: i32 = -112;
    /// Another connection has taken the session over.
    pub(in super::super) const SESSION_MOVED: i32 = -118;
}

/// What the other side said makes no sense; in a few words.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Nonsense(pub(super) String);

fn nonsense<T>(what: impl Into<String>) -> Result<T, Nonsense> {
    Err(Nonsense(what.into()))
}

/// Cuts a stream of bytes into frames.
#[derive(Debug, Default)]
pub(super) struct Frames {
    bytes: Vec<u8>,
    taken: usize,
}

impl Frames {
    /// Adds what was received.
    pub(super) fn extend(&mut self, bytes: &[u8]) {
        if self.taken > 0 {
            self.bytes.drain(..self.taken);
            self.taken = 0;
        }
        self.bytes.extend_from_slice(bytes);
        if self.bytes.is_empty() && self.bytes.capacity() > 64 << 10 {
            self.bytes = Vec::new();
        }
    }

    /// The next whole frame, without its length.
    ///
    /// # Errors
    /// When the length is none that a server or client would send.
    pub(super) fn next(&mut self) -> Result<Option<Vec<u8>>, Nonsense> {
        let rest = &self.bytes[self.taken..];
        let Some((prefix, rest)) = rest.split_first_chunk::<4>() else { return Ok(None) };
        let length = i32::from_be_bytes(*prefix);
        if length < 0 || length as usize > MAX_FRAME {
            return nonsense(format!("a frame of {length} bytes"));
        }
        let Some(frame) = rest.get(..length as usize) else { return Ok(None) };
        let frame = frame.to_vec();
        self.taken += 4 + frame.len();
        Ok(Some(frame))
    }
}

/// Puts the length in front.
pub(super) fn framed(frame: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 + frame.len());
    bytes.extend((frame.len() as i32).to_be_bytes());
    bytes.extend(frame);
    bytes
}

/// Reads the protocol's primitives; every read may find too little.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn int(&mut self) -> Option<i32> {
        let (head, rest) = self.0.split_first_chunk::<4>()?;
        self.0 = rest;
        Some(i32::from_be_bytes(*head))
    }

    fn long(&mut self) -> Option<i64> {
        let (head, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(i64::from_be_bytes(*head))
    }

    /// A length and so many bytes; a negative length means none.
    fn buffer(&mut self) -> Option<&'a [u8]> {
        let length = self.int()?.max(0) as usize;
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(head)
    }

    fn text(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.buffer()?).ok()
    }

    fn skip(&mut self, length: usize) -> Option<()> {
        self.0 = self.0.get(length..)?;
        Some(())
    }
}

/// What a session is known by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Credentials {
    /// Its id; 0 asks for a new one.
    pub(super) session: i64,
    /// What proves that it is ours.
    pub(super) password: Vec<u8>,
}

impl Default for Credentials {
    fn default() -> Credentials {
        Credentials { session: 0, password: vec![0; 16] }
    }
}

/// The first frame of a connection, with its length: asks for a session or for its continuation.
pub(super) fn connect_request(zxid: i64, timeout_ms: i32, credentials: &Credentials) -> Vec<u8> {
    let mut frame = Vec::with_capacity(45);
    frame.extend(0i32.to_be_bytes());
    frame.extend(zxid.to_be_bytes());
    frame.extend(timeout_ms.to_be_bytes());
    frame.extend(credentials.session.to_be_bytes());
    frame.extend((credentials.password.len() as i32).to_be_bytes());
    frame.extend(&credentials.password);
    frame.push(0); // never content with a read-only server
    framed(&frame)
}

/// The server's answer to a connect request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ConnectResponse {
    /// The negotiated session timeout in milliseconds; 0: the session has expired.
    pub(super) timeout_ms: i32,
    /// The session.
    pub(super) credentials: Credentials,
    /// The server has no quorum and only reads.
    pub(super) read_only: bool,
}

impl ConnectResponse {
    /// Reads it from a frame.
    ///
    /// # Errors
    /// When the frame has another shape.
    pub(super) fn parse(frame: &[u8]) -> Result<ConnectResponse, Nonsense> {
        Self::read(&mut Reader(frame))
            .ok_or_else(|| Nonsense(format!("{} bytes that are no connect response", frame.len())))
    }

    fn read(reader: &mut Reader<'_>) -> Option<ConnectResponse> {
        let protocol = reader.int()?;
        let timeout_ms = reader.int()?;
        let session = reader.long()?;
        let password = reader.buffer()?.to_vec();
        // Servers before 3.4 leave the flag out.
        let read_only = matches!(reader.0, [flag, ..] if *flag != 0);
        let sane = protocol == 0 && timeout_ms >= 0 && password.len() <= 64 && reader.0.len() <= 1;
        let whole = timeout_ms == 0 || (session != 0 && !password.is_empty());
        (sane && whole).then_some(ConnectResponse {
            timeout_ms,
            credentials: Credentials { session, password },
            read_only,
        })
    }

    /// The frame with its length, as the client gets it: with the session's id and without its secret.
    pub(super) fn for_client(&self) -> Vec<u8> {
        let mut frame = Vec::with_capacity(37);
        frame.extend(0i32.to_be_bytes());
        frame.extend(self.timeout_ms.to_be_bytes());
        frame.extend(self.credentials.session.to_be_bytes());
        frame.extend(16i32.to_be_bytes());
        frame.extend([0u8; 16]);
        frame.push(u8::from(self.read_only));
        framed(&frame)
    }
}

/// The requests that the client makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    /// create
    Create,
    /// delete
    Delete,
    /// exists
    Exists,
    /// getData
    GetData,
    /// setData
    SetData,
    /// getChildren
    GetChildren,
    /// ping
    Ping,
    /// sync; only the gate makes it
    Sync,
    /// addauth
    Auth,
    /// closeSession
    Close,
}

impl Op {
    fn from_code(code: i32) -> Option<Op> {
        Some(match code {
            1 => Op::Create,
            2 => Op::Delete,
            3 => Op::Exists,
            4 => Op::GetData,
            5 => Op::SetData,
            8 => Op::GetChildren,
            11 => Op::Ping,
            100 => Op::Auth,
            -11 => Op::Close,
            _ => return None,
        })
    }

    /// A server cannot answer it by itself: whoever has the answer was in touch with the ensemble's leader.
    pub(super) fn asks_the_leader(self) -> bool {
        matches!(self, Op::Create | Op::Delete | Op::SetData | Op::Sync)
    }
}

/// A request under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    /// Its number.
    pub(super) xid: i32,
    /// What it asks for.
    pub(super) op: Op,
    /// When it was sent.
    pub(super) at: Instant,
    /// The gate made it, and the client knows nothing of it.
    pub(super) ours: bool,
}

impl Asked {
    /// Reads a request's header.
    ///
    /// # Errors
    /// When it is none that the client makes.
    pub(super) fn parse(frame: &[u8], at: Instant) -> Result<Asked, Nonsense> {
        let mut reader = Reader(frame);
        match (reader.int(), reader.int().and_then(Op::from_code)) {
            (Some(xid), Some(op)) => Ok(Asked { xid, op, at, ours: false }),
            _ => nonsense("a request that the client never makes"),
        }
    }

    /// A sync of the gate's own, and its frame without the length. It names the root: nobody looks whether that is there.
    pub(super) fn sync(at: Instant) -> (Asked, Vec<u8>) {
        let frame = [&OURS.to_be_bytes()[..], &9i32.to_be_bytes(), &1i32.to_be_bytes(), b"/"].concat();
        (Asked { xid: OURS, op: Op::Sync, at, ours: true }, frame)
    }

    /// The bare answer that the gate itself gives: a header with this error code.
    pub(super) fn answer(&self, error: i32) -> Vec<u8> {
        let mut frame = Vec::with_capacity(HEADER);
        frame.extend(self.xid.to_be_bytes());
        frame.extend(0i64.to_be_bytes());
        frame.extend(error.to_be_bytes());
        framed(&frame)
    }
}

/// A frame from the server, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// A watch fired.
    Event,
    /// A request is answered.
    Answer {
        /// The request.
        asked: Asked,
        /// The last transaction that the server has seen; 0 or less: not told.
        zxid: i64,
        /// 0, or the error's code.
        error: i32,
    },
}

/// Requests under way, in the order in which they must be answered.
#[derive(Debug, Default)]
pub(super) struct Ledger(VecDeque<Asked>);

impl Ledger {
    /// Notes a request as sent.
    pub(super) fn ask(&mut self, asked: Asked) {
        self.0.push_back(asked);
    }

    /// The request that has waited the longest.
    pub(super) fn oldest(&self) -> Option<&Asked> {
        self.0.front()
    }

    /// The request that ends the session, should it be under way.
    pub(super) fn closing(&self) -> Option<&Asked> {
        self.0.iter().find(|asked| asked.op == Op::Close)
    }

    /// The request that a reply with this number must answer. The gate's own may be overtaken, as the client does not see
    /// them; all of those have the same number, so the first one is meant.
    fn take(&mut self, xid: i32) -> Option<Asked> {
        let at = self.0.iter().position(|asked| asked.ours == (xid == OURS))?;
        self.0.remove(at)
    }

    /// Takes a frame from the server.
    ///
    /// # Errors
    /// When it answers nothing that was asked, is out of order, or has a shape that its reader would choke on.
    pub(super) fn reply(&mut self, frame: &[u8]) -> Result<Reply, Nonsense> {
        let mut reader = Reader(frame);
        let (Some(xid), Some(zxid), Some(error)) = (reader.int(), reader.long(), reader.int()) else {
            return nonsense(format!("a reply of {} bytes", frame.len()));
        };
        if xid == -1 {
            return if error == 0 { check_event(reader.0) } else { nonsense("an event with an error") };
        }
        match self.take(xid) {
            None => nonsense(format!("a reply (xid {xid}) to nothing")),
            Some(asked) if asked.xid != xid => {
                nonsense(format!("a reply to xid {xid} where {} is due", asked.xid))
            }
            Some(asked) if error == 0 && !body_fits(asked.op, reader.0) => {
                nonsense(format!("a reply to {:?} that does not add up", asked.op))
            }
            Some(asked) => Ok(Reply::Answer { asked, zxid, error }),
        }
    }
}

fn check_event(body: &[u8]) -> Result<Reply, Nonsense> {
    let mut reader = Reader(body);
    let kind = reader.int().is_some_and(|kind| matches!(kind, -1 | 1..=6));
    let state = reader.int().is_some_and(|state| matches!(state, 0 | 3..=6 | -112));
    let path = reader.text().is_some();
    if kind && state && path { Ok(Reply::Event) } else { nonsense("an event that does not add up") }
}

/// Whether counts and lengths in a reply's body can be what they say.
fn body_fits(op: Op, body: &[u8]) -> bool {
    let mut reader = Reader(body);
    match op {
        Op::Create | Op::Sync => reader.text().is_some(),
        Op::Exists | Op::SetData => reader.skip(STAT).is_some(),
        Op::GetData => reader.buffer().is_some() && reader.skip(STAT).is_some(),
        Op::GetChildren => names_fit(&mut reader).is_some(),
        Op::Delete | Op::Ping | Op::Auth | Op::Close => true,
    }
}

fn names_fit(reader: &mut Reader<'_>) -> Option<()> {
    let count = usize::try_from(reader.int()?).ok()?;
    if count > reader.0.len() / 4 {
        return None;
    }
    (0..count).try_for_each(|_| reader.text().map(|_| ()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(xid: i32, error: i32, body: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        frame.extend(xid.to_be_bytes());
        frame.extend(7i64.to_be_bytes());
        frame.extend(error.to_be_bytes());
        frame.extend(body);
        frame
    }

    fn asking(xid: i32, op: Op) -> Ledger {
        let mut ledger = Ledger::default();
        ledger.ask(Asked { xid, op, at: Instant::now(), ours: false });
        ledger
    }

    fn counted(count: i32, rest: &[u8]) -> Vec<u8> {
        [&count.to_be_bytes(), rest].concat()
    }

    #[test]
    fn frames_come_whole_however_the_bytes_arrive() {
        let stream: Vec<u8> = [framed(b"one"), framed(b""), framed(&[9; 5000])].concat();
        for step in [1, 3, 4, 7, 5000, stream.len()] {
            let mut frames = Frames::default();
            let mut seen = Vec::new();
            for chunk in stream.chunks(step) {
                frames.extend(chunk);
                while let Some(frame) = frames.next().unwrap() {
                    seen.push(frame);
                }
            }
            assert_eq!(seen, vec![b"one".to_vec(), vec![], vec![9; 5000]], "in steps of {step}");
        }
    }

    #[test]
    fn absurd_lengths_are_refused_before_anything_is_stored() {
        for prefix in [(-1i32).to_be_bytes(), i32::MIN.to_be_bytes(), i32::MAX.to_be_bytes(), *b"HTTP"] {
            let mut frames = Frames::default();
            frames.extend(&prefix);
            assert!(frames.next().is_err(), "{prefix:?}");
        }
    }

    #[test]
    fn a_connect_response_is_read_with_and_without_the_flag() {
        let mut frame = Vec::new();
        frame.extend(0i32.to_be_bytes());
        frame.extend(6000i32.to_be_bytes());
        frame.extend(0x1234i64.to_be_bytes());
        frame.extend(16i32.to_be_bytes());
        frame.extend([5u8; 16]);
        let old = ConnectResponse::parse(&frame).unwrap();
        assert_eq!((old.timeout_ms, old.credentials.session, old.read_only), (6000, 0x1234, false));
        frame.push(1);
        assert!(ConnectResponse::parse(&frame).unwrap().read_only);
        frame.push(0);
        assert!(ConnectResponse::parse(&frame).is_err(), "a byte too many");
        for short in 0..36 {
            assert!(ConnectResponse::parse(&frame[..short]).is_err(), "{short} bytes");
        }
    }

    #[test]
    fn an_expired_session_is_an_answer_and_no_nonsense() {
        let expired =
            ConnectResponse { timeout_ms: 0, credentials: Credentials::default(), read_only: false };
        assert_eq!(ConnectResponse::parse(&expired.for_client()[4..]).unwrap().timeout_ms, 0);
    }

    #[test]
    fn the_client_never_gets_the_password() {
        let credentials = Credentials { session: 9, password: vec![5; 16] };
        let bytes = ConnectResponse { timeout_ms: 1, credentials, read_only: false }.for_client();
        assert!(!bytes.contains(&5));
    }

    #[test]
    fn replies_must_come_in_order() {
        let mut ledger = asking(1, Op::Delete);
        ledger.ask(Asked { xid: 2, op: Op::Delete, at: Instant::now(), ours: false });
        assert!(matches!(ledger.reply(&reply(1, 0, b"")), Ok(Reply::Answer { asked, .. }) if asked.xid == 1));
        assert!(ledger.reply(&reply(3, 0, b"")).is_err(), "a wrong xid");
        assert!(asking(-2, Op::Ping).reply(&reply(-2, 0, b"")).is_ok());
        assert!(asking(1, Op::Delete).reply(&reply(-2, 0, b"")).is_err(), "a ping's answer nobody asked for");
        assert!(Ledger::default().reply(&reply(1, 0, b"")).is_err(), "an unsolicited reply");
        assert!(Ledger::default().reply(&[0; 15]).is_err(), "half a header");
    }

    #[test]
    fn the_gates_own_requests_stand_in_nobodys_way() {
        let took = |ledger: &mut Ledger, xid: i32| match ledger.reply(&reply(xid, 0, &counted(1, b"/"))) {
            Ok(Reply::Answer { asked, .. }) => Some((asked.xid, asked.ours)),
            _ => None,
        };
        let mut ledger = asking(1, Op::Delete);
        ledger.ask(Asked::sync(Instant::now()).0);
        ledger.ask(Asked { xid: -2, op: Op::Ping, at: Instant::now(), ours: false });
        assert_eq!(took(&mut ledger, OURS), Some((OURS, true)), "overtaking");
        assert_eq!(took(&mut ledger, 1), Some((1, false)));
        assert_eq!(took(&mut ledger, OURS), None);
        assert_eq!(took(&mut ledger, -2), Some((-2, false)));
        ledger.ask(Asked::sync(Instant::now()).0);
        ledger.ask(Asked { xid: 3, op: Op::Delete, at: Instant::now(), ours: false });
        assert_eq!(took(&mut ledger, 3), Some((3, false)), "overtaken");
        assert_eq!(took(&mut ledger, OURS), Some((OURS, true)));
        assert!(ledger.0.is_empty());
        let (asked, frame) = Asked::sync(Instant::now());
        assert!(asked.op.asks_the_leader() && !Op::Ping.asks_the_leader() && !Op::GetData.asks_the_leader());
        assert!(Asked::parse(&frame, asked.at).is_err(), "the client makes none");
        ledger.ask(asked);
        assert!(ledger.reply(&reply(OURS, 0, b"")).is_err(), "an answer without its path");
    }

    #[test]
    fn counts_that_cannot_fit_are_refused() {
        for count in [i32::MAX, -1, 1, 3] {
            let body = counted(count, &[]);
            assert!(
                asking(1, Op::GetChildren).reply(&reply(1, 0, &body)).is_err(),
                "{count} names in no bytes"
            );
        }
        let one = counted(1, &counted(2, b"ab"));
        assert!(asking(1, Op::GetChildren).reply(&reply(1, 0, &one)).is_ok());
        let bad = counted(1, &counted(2, &[0xff, 0xfe]));
        assert!(asking(1, Op::GetChildren).reply(&reply(1, 0, &bad)).is_err(), "no UTF-8");
    }

    #[test]
    fn data_must_be_as_long_as_it_says() {
        let whole = counted(3, &[&b"abc"[..], &[0; STAT]].concat());
        assert!(asking(1, Op::GetData).reply(&reply(1, 0, &whole)).is_ok());
        assert!(asking(1, Op::GetData).reply(&reply(1, 0, &whole[..whole.len() - 1])).is_err());
        let vast = counted(i32::MAX, &[0; STAT]);
        assert!(asking(1, Op::GetData).reply(&reply(1, 0, &vast)).is_err());
        let none = counted(-1, &[0; STAT]);
        assert!(asking(1, Op::GetData).reply(&reply(1, 0, &none)).is_ok(), "null data is a server's right");
        assert!(asking(1, Op::GetData).reply(&reply(1, -101, b"")).is_ok(), "an error has no body");
    }

    #[test]
    fn events_must_name_what_the_client_knows() {
        let event = |kind: i32, state: i32, path: &[u8]| {
            let body = [&kind.to_be_bytes()[..], &state.to_be_bytes(), &counted(path.len() as i32, path)];
            Ledger::default().reply(&reply(-1, 0, &body.concat()))
        };
        assert_eq!(event(3, 3, b"/a"), Ok(Reply::Event));
        assert!(event(99, 3, b"/a").is_err());
        assert!(event(3, 99, b"/a").is_err());
        assert!(event(3, 3, &[0xff]).is_err());
    }

    #[test]
    fn garbage_never_panics() {
        let mut state = 0x2545_f491_4f6c_dd1du64;
        for _ in 0..20_000 {
            let bytes: Vec<u8> = (0..(state % 90) as usize)
                .map(|_| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    state as u8
                })
                .collect();
            state = state.wrapping_add(1);
            let _ = ConnectResponse::parse(&bytes);
            let _ = Asked::parse(&bytes, Instant::now());
            for op in [Op::Create, Op::GetData, Op::GetChildren, Op::Exists] {
                let _ = asking(1, op).reply(&reply(1, 0, &bytes));
            }
            let _ = Ledger::default().reply(&reply(-1, 0, &bytes));
            let mut frames = Frames::default();
            frames.extend(&bytes);
            while let Ok(Some(_)) = frames.next() {}
        }
    }
}
