//! What agent and fencer say to one another: one message a packet of a SEQPACKET socket in the state directory.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

/// The version of the messages; an agent and a fencer of different versions do not understand one another.
pub const VERSION: u8 = 1;
/// The longest order that a fence may be made of.
pub const SEND_AT_MOST: usize = 2048;
/// The longest answer to it.
pub const EXPECT_AT_MOST: usize = 512;
/// The longest packet.
pub const PACKET_AT_MOST: usize = 64 + SEND_AT_MOST + EXPECT_AT_MOST;

/// Names an instance: its port, for a host has each once.
pub type Key = u16;

/// A moment of the monotonic clock, in nanoseconds; 0: none.
pub type Nanos = u64;

/// A message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// Stand by for this process.
    Arm {
        /// Its name.
        key: Key,
        /// Its id.
        pid: u32,
        /// When it was started, as `/proc` has it.
        start: u64,
        /// Where to send the order.
        address: SocketAddr,
        /// How long fencing may take.
        within: Duration,
        /// The order; empty: only SIGKILL helps.
        send: &'a [u8],
        /// The answer that means that it was taken.
        expect: &'a [u8],
    },
    /// It may take writes until then; 0: it takes none by itself.
    Lease {
        /// Its name.
        key: Key,
        /// Until when.
        until: Nanos,
    },
    /// It is no more.
    Disarm {
        /// Its name.
        key: Key,
    },
    /// The fencer stands by for it.
    Armed {
        /// Its name.
        key: Key,
    },
}

/// Writes a message; `None`: it is too long.
pub fn encode<'b>(message: &Message<'_>, to: &'b mut [u8; PACKET_AT_MOST]) -> Option<&'b [u8]> {
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        let room = to.get_mut(at..at + bytes.len())?;
        room.copy_from_slice(bytes);
        at += bytes.len();
        Some(())
    };
    put(&[VERSION])?;
    match message {
        Message::Arm { key, pid, start, address, within, send, expect } => {
            if send.len() > SEND_AT_MOST || expect.len() > EXPECT_AT_MOST {
                return None;
            }
            let ip = match address.ip() {
                IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                IpAddr::V6(ip) => ip,
            };
            put(b"A")?;
            put(&key.to_le_bytes())?;
            put(&pid.to_le_bytes())?;
            put(&start.to_le_bytes())?;
            put(&ip.octets())?;
            put(&address.port().to_le_bytes())?;
            put(&u64::try_from(within.as_nanos()).unwrap_or(u64::MAX).to_le_bytes())?;
            put(&u16::try_from(send.len()).ok()?.to_le_bytes())?;
            put(send)?;
            put(expect)?;
        }
        Message::Lease { key, until } => {
            put(b"L")?;
            put(&key.to_le_bytes())?;
            put(&until.to_le_bytes())?;
        }
        Message::Disarm { key } => {
            put(b"D")?;
            put(&key.to_le_bytes())?;
        }
        Message::Armed { key } => {
            put(b"a")?;
            put(&key.to_le_bytes())?;
        }
    }
    to.get(..at)
}

/// Reads a message; `None`: it is none of this version.
pub fn decode(packet: &[u8]) -> Option<Message<'_>> {
    let (head, mut rest) = packet.split_at_checked(2)?;
    let [VERSION, kind] = head else { return None };
    let mut take = |count: usize| {
        let (bytes, left) = rest.split_at_checked(count)?;
        rest = left;
        Some(bytes)
    };
    let key = Key::from_le_bytes(take(2)?.try_into().ok()?);
    match kind {
        b'A' => {
            let pid = u32::from_le_bytes(take(4)?.try_into().ok()?);
            let start = u64::from_le_bytes(take(8)?.try_into().ok()?);
            let ip: [u8; 16] = take(16)?.try_into().ok()?;
            let ip = Ipv6Addr::from(ip).to_canonical();
            let port = u16::from_le_bytes(take(2)?.try_into().ok()?);
            let within = Duration::from_nanos(u64::from_le_bytes(take(8)?.try_into().ok()?));
            let length = u16::from_le_bytes(take(2)?.try_into().ok()?);
            let send = take(length.into()).filter(|send| send.len() <= SEND_AT_MOST)?;
            let expect = Some(rest).filter(|expect| expect.len() <= EXPECT_AT_MOST)?;
            Some(Message::Arm { key, pid, start, address: SocketAddr::new(ip, port), within, send, expect })
        }
        b'L' => Some(Message::Lease { key, until: Nanos::from_le_bytes(take(8)?.try_into().ok()?) }),
        b'D' => Some(Message::Disarm { key }),
        b'a' => Some(Message::Armed { key }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let arm = Message::Arm {
            key: 16379,
            pid: 7,
            start: 1 << 40,
            address: "10.0.0.1:16379".parse().unwrap(),
            within: Duration::from_secs(3),
            send: b"CLIENT PAUSE",
            expect: b"+OK\r\n",
        };
        let v6 = Message::Arm {
            key: 1,
            pid: 7,
            start: 0,
            address: "[fd00::1]:1".parse().unwrap(),
            within: Duration::ZERO,
            send: b"",
            expect: b"",
        };
        let lease = Message::Lease { key: 3, until: 9 };
        for message in [arm, v6, lease, Message::Disarm { key: 4 }, Message::Armed { key: 5 }] {
            let mut packet = [0; PACKET_AT_MOST];
            let packet = encode(&message, &mut packet).unwrap();
            assert_eq!(decode(packet), Some(message));
            for cut in 0..4 {
                assert_eq!(decode(&packet[..cut.min(packet.len() - 1)]), None);
            }
        }
        assert_eq!(decode(b"\x02D\0\0"), None, "another version");
    }

    #[test]
    fn what_is_too_long_is_not_written() {
        let send = [0; SEND_AT_MOST + 1];
        let address = "10.0.0.1:1".parse().unwrap();
        let arm = Message::Arm {
            key: 1,
            pid: 1,
            start: 1,
            address,
            within: Duration::ZERO,
            send: &send,
            expect: b"",
        };
        assert_eq!(encode(&arm, &mut [0; PACKET_AT_MOST]), None);
    }
}
