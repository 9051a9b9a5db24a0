//! The protocol: requests written as arrays of bulk strings, replies read as version 2 has them.

use memchr::memchr;
use yagent_abi::sdk::excerpt;

/// A line: a status, an error, a number.
const LINE_MAX: usize = 4096;
/// A bulk string; INFO is some kilobytes.
const BULK_MAX: usize = 512 << 10;
/// Elements of an array, and arrays in arrays; ROLE has one of each replica.
const ARRAY_MAX: usize = 1024;
const DEPTH_MAX: u32 = 4;

/// One reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply<'a> {
    /// `+OK`
    Status(&'a [u8]),
    /// `-ERR …`
    Error(&'a [u8]),
    /// `:1`
    Integer(i64),
    /// `$3`; `None` is nil.
    Bulk(Option<&'a [u8]>),
    /// `*2`; nil is empty.
    Array(Vec<Reply<'a>>),
}

impl std::fmt::Display for Reply<'_> {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Status(text) => write!(to, "+{}", excerpt(text)),
            Self::Error(text) => write!(to, "-{}", excerpt(text)),
            Self::Integer(number) => write!(to, ":{number}"),
            Self::Bulk(None) => write!(to, "nil"),
            Self::Bulk(Some(text)) => write!(to, "`{}`", excerpt(text)),
            Self::Array(items) => write!(to, "an array of {}", items.len()),
        }
    }
}

/// Why bytes are not a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// They may become one.
    Short,
    /// They never will.
    Foreign(String),
}

/// Adds a request to `to`.
pub(crate) fn request<A: AsRef<[u8]>>(to: &mut Vec<u8>, words: &[A]) {
    to.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words.iter().map(AsRef::as_ref) {
        to.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        to.extend_from_slice(word);
        to.extend_from_slice(b"\r\n");
    }
}

/// The replies in `bytes`, which must be exactly `count`. A server that closes after an error sends that one only, so
/// an error that stands alone and says so is all there will be.
pub(crate) fn replies(bytes: &[u8], count: usize) -> Result<Vec<Reply<'_>>, Flaw> {
    let (mut replies, mut rest) = (Vec::with_capacity(count), bytes);
    while replies.len() < count {
        let (reply, after) = reply(rest, 0).map_err(|flaw| name(flaw, bytes))?;
        rest = after;
        let last = matches!(reply, Reply::Error(text) if closes(text));
        replies.push(reply);
        if last {
            return Ok(replies);
        }
    }
    if rest.is_empty() { Ok(replies) } else { Err(foreign(bytes)) }
}

/// Whether redis closes the connection after this error.
fn closes(error: &[u8]) -> bool {
    error.starts_with(b"ERR max number of clients") || error.starts_with(b"DENIED ")
}

/// The flaw of a part is told by the beginning of the whole.
fn name(flaw: Flaw, bytes: &[u8]) -> Flaw {
    if flaw == Flaw::Short { flaw } else { foreign(bytes) }
}

fn foreign(bytes: &[u8]) -> Flaw {
    let head = &bytes[..bytes.len().min(LINE_MAX)];
    // Only the first line, and it is whole or too long by now unless the very first byte is wrong.
    Flaw::Foreign(format!("the answer `{}` is not redis'", excerpt(head)))
}

fn reply(bytes: &[u8], depth: u32) -> Result<(Reply<'_>, &[u8]), Flaw> {
    let (line, rest) = line(bytes)?;
    let Some((kind, text)) = line.split_first() else {
        return Err(foreign(bytes));
    };
    match kind {
        b'+' => Ok((Reply::Status(text), rest)),
        b'-' => Ok((Reply::Error(text), rest)),
        b':' => Ok((Reply::Integer(number(text, bytes)?), rest)),
        b'$' => bulk(length(text, BULK_MAX, bytes)?, rest, bytes),
        b'*' if depth < DEPTH_MAX => array(length(text, ARRAY_MAX, bytes)?, rest, depth),
        _ => Err(foreign(bytes)),
    }
}

fn line(bytes: &[u8]) -> Result<(&[u8], &[u8]), Flaw> {
    match memchr(b'\n', bytes) {
        Some(end) if end <= LINE_MAX => match bytes[..end].strip_suffix(b"\r") {
            Some(line) => Ok((line, &bytes[end + 1..])),
            None => Err(foreign(bytes)),
        },
        None if bytes.len() <= LINE_MAX => Err(Flaw::Short),
        _ => Err(foreign(bytes)),
    }
}

fn number(text: &[u8], bytes: &[u8]) -> Result<i64, Flaw> {
    std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or_else(|| foreign(bytes))
}

/// A length; `None` for -1, which is nil.
fn length(text: &[u8], max: usize, bytes: &[u8]) -> Result<Option<usize>, Flaw> {
    match number(text, bytes)? {
        -1 => Ok(None),
        len => usize::try_from(len).ok().filter(|len| *len <= max).map(Some).ok_or_else(|| foreign(bytes)),
    }
}

fn bulk<'a>(len: Option<usize>, rest: &'a [u8], bytes: &[u8]) -> Result<(Reply<'a>, &'a [u8]), Flaw> {
    let Some(len) = len else {
        return Ok((Reply::Bulk(None), rest));
    };
    if rest.len() < len + 2 {
        return Err(Flaw::Short);
    }
    let (text, after) = rest.split_at(len);
    let after = after.strip_prefix(b"\r\n").ok_or_else(|| foreign(bytes))?;
    Ok((Reply::Bulk(Some(text)), after))
}

fn array(len: Option<usize>, mut rest: &[u8], depth: u32) -> Result<(Reply<'_>, &[u8]), Flaw> {
    let mut items = Vec::new();
    for _ in 0..len.unwrap_or(0) {
        let (item, after) = reply(rest, depth + 1)?;
        items.push(item);
        rest = after;
    }
    Ok((Reply::Array(items), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIXED: &[u8] =
        b"+OK\r\n-ERR no\r\n:-7\r\n$5\r\na\r\nbc\r\n$-1\r\n*3\r\n$1\r\nx\r\n*1\r\n:1\r\n*-1\r\n";

    #[test]
    fn every_kind_is_read() {
        let nested = Reply::Array(vec![
            Reply::Bulk(Some(b"x")),
            Reply::Array(vec![Reply::Integer(1)]),
            Reply::Array(Vec::new()),
        ]);
        let expected = vec![
            Reply::Status(b"OK"),
            Reply::Error(b"ERR no"),
            Reply::Integer(-7),
            Reply::Bulk(Some(b"a\r\nbc")),
            Reply::Bulk(None),
            nested,
        ];
        assert_eq!(replies(MIXED, 6), Ok(expected));
    }

    #[test]
    fn no_cut_is_taken_for_the_whole() {
        for cut in 0..MIXED.len() {
            assert_eq!(replies(&MIXED[..cut], 6), Err(Flaw::Short), "cut at {cut}");
        }
    }

    #[test]
    fn an_error_after_which_redis_closes_stands_alone() {
        let bytes = b"-ERR max number of clients reached\r\n";
        assert_eq!(replies(bytes, 2), Ok(vec![Reply::Error(b"ERR max number of clients reached")]));
    }

    #[test]
    fn what_is_no_reply_is_named() {
        for bytes in [
            &b"HTTP/1.1 400 Bad Request\r\n"[..],
            b"\r\n",
            b"+OK\n",
            b":x\r\n",
            b"$x\r\n",
            b"$-2\r\n",
            b"$999999999999\r\n",
            b"*9999\r\n",
            b"$1\r\nxyz",
            b"+OK\r\n+OK\r\n",
            b"*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n:1\r\n",
        ] {
            let flaw = replies(bytes, 1).unwrap_err();
            assert!(matches!(flaw, Flaw::Foreign(_)), "{} gave {flaw:?}", bytes.escape_ascii());
        }
        assert!(matches!(replies(&[b'+'; 5000], 1), Err(Flaw::Foreign(_))));
    }

    #[test]
    fn a_request_is_written_as_redis_reads_it() {
        let mut bytes = Vec::new();
        request(&mut bytes, &[&b"GET"[..], b"a b"]);
        assert_eq!(bytes, b"*2\r\n$3\r\nGET\r\n$3\r\na b\r\n");
    }
}
