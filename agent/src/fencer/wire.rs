//! The frames between agent and fencer, each a packet of bounded size. Encoding and decoding allocate nothing.

use std::net::{IpAddr, SocketAddr};

/// The longest key.
pub const KEY_AT_MOST: usize = 64;
/// The longest rehearsed fence.
pub const SEND_AT_MOST: usize = 1024;
/// The longest reply to it.
pub const EXPECT_AT_MOST: usize = 256;
/// The longest frame.
pub const FRAME_AT_MOST: usize = 2048;

/// What retires a fencer; the same in all versions, for ever.
pub const RETIRE: &[u8] = b"Retire, all you held is held by another fencer";

/// A process that no other can be taken for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessId {
    /// Its pid.
    pub pid: u32,
    /// Its start, in clock ticks since the boot.
    pub start_ticks: u64,
}

/// Until when a server may take writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lease {
    /// As the fencer has it from before; for ever, if it has nothing.
    Kept,
    /// It is no master.
    None,
    /// Until this time of the monotonic clock, in nanoseconds.
    Until(u64),
    /// The same where the fencer knows of no lease; else as it has it.
    AtMost(u64),
}

/// A server to stand by for, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arm<'a> {
    /// Its name, such as `redis:6379`.
    pub key: &'a [u8],
    /// Its process.
    pub process: ProcessId,
    /// Where it listens.
    pub address: SocketAddr,
    /// What fences it; empty: only a kill does.
    pub send: &'a [u8],
    /// The reply that means it is fenced.
    pub expect: &'a [u8],
    /// How long fencing may take, in nanoseconds.
    pub within: u64,
    /// Its lease.
    pub lease: Lease,
}

/// What an agent says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// Stand by for this server.
    Arm(Arm<'a>),
    /// Its lease changed.
    Lease(&'a [u8], Lease),
    /// Stand by for it no longer.
    Disarm(&'a [u8]),
    /// Are you there?
    Ping,
    /// Another fencer does your work.
    Retire,
}

/// Why a fencer does not stand by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Refusal {
    /// It stands by for as many servers as it can.
    Full = 1,
    /// There is no such process any longer.
    Gone = 2,
    /// The process can't be watched.
    Unwatched = 3,
}

/// How far the fencing of a server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Fencing {
    /// The fence is being sent, and may work from now on.
    Begun = 1,
    /// The server said that it is fenced.
    Fenced = 2,
    /// The server was killed.
    Killed = 3,
}

/// What a fencer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    /// I am.
    Pong,
    /// It stands by for this process.
    Armed(&'a [u8], ProcessId),
    /// It doesn't.
    Refused(&'a [u8], Refusal),
    /// The lease ran out.
    Fencing(&'a [u8], Fencing),
    /// The process is gone, and with it what was armed.
    Gone(&'a [u8], ProcessId),
    /// It stands by no longer; whether it did.
    Disarmed(&'a [u8], bool),
}

/// A frame being written.
#[derive(Debug)]
pub struct Frame {
    bytes: [u8; FRAME_AT_MOST],
    len: usize,
}

impl Frame {
    fn new(kind: u8) -> Frame {
        let mut frame = Frame { bytes: [0; FRAME_AT_MOST], len: 0 };
        frame.put(&[kind]);
        frame
    }

    fn put(&mut self, bytes: &[u8]) -> &mut Frame {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
        self
    }

    fn text(&mut self, text: &[u8], limit: usize) -> &mut Frame {
        let text = &text[..text.len().min(limit)];
        let len = u16::try_from(text.len()).unwrap_or(0);
        self.put(&len.to_le_bytes()).put(text)
    }

    fn process(&mut self, process: ProcessId) -> &mut Frame {
        self.put(&process.pid.to_le_bytes()).put(&process.start_ticks.to_le_bytes())
    }

    fn lease(&mut self, lease: Lease) -> &mut Frame {
        let (kind, until) = match lease {
            Lease::Kept => (0, 0),
            Lease::None => (1, 0),
            Lease::Until(until) => (2, until),
            Lease::AtMost(until) => (3, until),
        };
        self.put(&[kind]).put(&until.to_le_bytes())
    }

    fn address(&mut self, address: SocketAddr) -> &mut Frame {
        match address.ip() {
            IpAddr::V4(ip) => self.put(&[4]).put(&ip.octets()),
            IpAddr::V6(ip) => self.put(&[6]).put(&ip.octets()),
        };
        self.put(&address.port().to_le_bytes())
    }

    /// The packet.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// What is left of a packet.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(len)?;
        self.0 = tail;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn byte(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    fn text(&mut self, limit: usize) -> Option<&'a [u8]> {
        let len = usize::from(u16::from_le_bytes(self.array()?));
        if len > limit { None } else { self.take(len) }
    }

    fn key(&mut self) -> Option<&'a [u8]> {
        self.text(KEY_AT_MOST).filter(|key| !key.is_empty())
    }

    fn number(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn process(&mut self) -> Option<ProcessId> {
        let pid = u32::from_le_bytes(self.array()?);
        Some(ProcessId { pid, start_ticks: self.number()? })
    }

    fn lease(&mut self) -> Option<Lease> {
        match (self.byte()?, self.number()?) {
            (0, _) => Some(Lease::Kept),
            (1, _) => Some(Lease::None),
            (2, until) => Some(Lease::Until(until)),
            (3, until) => Some(Lease::AtMost(until)),
            _ => None,
        }
    }

    fn address(&mut self) -> Option<SocketAddr> {
        let ip = match self.byte()? {
            4 => IpAddr::from(self.array::<4>()?),
            6 => IpAddr::from(self.array::<16>()?),
            _ => return None,
        };
        Some(SocketAddr::new(ip, u16::from_le_bytes(self.array()?)))
    }

    fn end<T>(&self, value: T) -> Option<T> {
        self.0.is_empty().then_some(value)
    }
}

impl<'a> Message<'a> {
    /// As a packet; texts are cut at their limits, which whoever arms has to keep.
    #[must_use]
    pub fn encode(&self) -> Frame {
        match *self {
            Message::Arm(arm) => {
                let mut frame = Frame::new(1);
                frame.text(arm.key, KEY_AT_MOST).process(arm.process).address(arm.address);
                frame.text(arm.send, SEND_AT_MOST).text(arm.expect, EXPECT_AT_MOST);
                frame.put(&arm.within.to_le_bytes()).lease(arm.lease);
                frame
            }
            Message::Lease(key, lease) => {
                let mut frame = Frame::new(2);
                frame.text(key, KEY_AT_MOST).lease(lease);
                frame
            }
            Message::Disarm(key) => {
                let mut frame = Frame::new(3);
                frame.text(key, KEY_AT_MOST);
                frame
            }
            Message::Ping => Frame::new(4),
            Message::Retire => {
                let mut frame = Frame::new(RETIRE[0]);
                frame.put(&RETIRE[1..]);
                frame
            }
        }
    }

    /// What a packet says; `None`: nothing that is known.
    #[must_use]
    pub fn decode(bytes: &'a [u8]) -> Option<Message<'a>> {
        if bytes == RETIRE {
            return Some(Message::Retire);
        }
        let mut cursor = Cursor(bytes);
        let message = match cursor.byte()? {
            1 => Message::Arm(Arm {
                key: cursor.key()?,
                process: cursor.process()?,
                address: cursor.address()?,
                send: cursor.text(SEND_AT_MOST)?,
                expect: cursor.text(EXPECT_AT_MOST)?,
                within: cursor.number()?,
                lease: cursor.lease()?,
            }),
            2 => Message::Lease(cursor.key()?, cursor.lease()?),
            3 => Message::Disarm(cursor.key()?),
            4 => Message::Ping,
            _ => return None,
        };
        cursor.end(message)
    }
}

impl<'a> Answer<'a> {
    /// As a packet.
    #[must_use]
    pub fn encode(&self) -> Frame {
        let (kind, key) = match self {
            Answer::Pong => return Frame::new(1),
            Answer::Armed(key, _) => (2, key),
            Answer::Refused(key, _) => (3, key),
            Answer::Fencing(key, _) => (4, key),
            Answer::Gone(key, _) => (5, key),
            Answer::Disarmed(key, _) => (6, key),
        };
        let mut frame = Frame::new(kind);
        frame.text(key, KEY_AT_MOST);
        match *self {
            Answer::Pong => {}
            Answer::Armed(_, process) | Answer::Gone(_, process) => drop(frame.process(process)),
            Answer::Refused(_, why) => drop(frame.put(&[why as u8])),
            Answer::Fencing(_, how) => drop(frame.put(&[how as u8])),
            Answer::Disarmed(_, was_armed) => drop(frame.put(&[u8::from(was_armed)])),
        }
        frame
    }

    /// What a packet says; `None`: nothing that is known.
    #[must_use]
    pub fn decode(bytes: &'a [u8]) -> Option<Answer<'a>> {
        let mut cursor = Cursor(bytes);
        let answer = match cursor.byte()? {
            1 => Answer::Pong,
            2 => Answer::Armed(cursor.key()?, cursor.process()?),
            3 => Answer::Refused(cursor.key()?, refusal(cursor.byte()?)?),
            4 => Answer::Fencing(cursor.key()?, fencing(cursor.byte()?)?),
            5 => Answer::Gone(cursor.key()?, cursor.process()?),
            6 => Answer::Disarmed(cursor.key()?, cursor.byte()? == 1),
            _ => return None,
        };
        cursor.end(answer)
    }
}

fn refusal(byte: u8) -> Option<Refusal> {
    [Refusal::Full, Refusal::Gone, Refusal::Unwatched].into_iter().find(|why| *why as u8 == byte)
}

fn fencing(byte: u8) -> Option<Fencing> {
    [Fencing::Begun, Fencing::Fenced, Fencing::Killed].into_iter().find(|how| *how as u8 == byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROCESS: ProcessId = ProcessId { pid: 7, start_ticks: 1 << 40 };

    fn messages() -> [Message<'static>; 7] {
        let arm = |address: &str, lease| {
            Message::Arm(Arm {
                key: &[b'k'; KEY_AT_MOST],
                process: PROCESS,
                address: address.parse().unwrap(),
                send: &[1; SEND_AT_MOST],
                expect: &[2; EXPECT_AT_MOST],
                within: u64::MAX,
                lease,
            })
        };
        [
            arm("10.1.2.3:16379", Lease::Until(5)),
            arm("[fe80::1]:1", Lease::Kept),
            Message::Lease(b"redis:1", Lease::None),
            Message::Lease(b"redis:1", Lease::AtMost(7)),
            Message::Disarm(b"redis:1"),
            Message::Ping,
            Message::Retire,
        ]
    }

    #[test]
    fn what_is_said_is_what_is_heard() {
        for message in messages() {
            assert_eq!(Message::decode(message.encode().bytes()), Some(message));
        }
        let answers = [
            Answer::Pong,
            Answer::Armed(b"a", PROCESS),
            Answer::Refused(b"a", Refusal::Full),
            Answer::Fencing(b"a", Fencing::Killed),
            Answer::Gone(b"a", PROCESS),
            Answer::Disarmed(b"a", true),
        ];
        for answer in answers {
            assert_eq!(Answer::decode(answer.encode().bytes()), Some(answer));
        }
    }

    #[test]
    fn a_frame_that_is_cut_or_too_long_says_nothing() {
        for message in messages() {
            let frame = message.encode();
            for len in 0..frame.bytes().len() {
                assert_eq!(Message::decode(&frame.bytes()[..len]), None, "{message:?} cut to {len}");
            }
            assert_eq!(Message::decode(&[frame.bytes(), b"x"].concat()), None);
        }
    }
}
