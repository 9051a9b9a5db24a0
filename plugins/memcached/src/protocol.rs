//! What memcached's text protocol answers besides data: errors, and lines that aren't whole yet.

use memchr::memchr;
use yagent_abi::sdk::{Health, excerpt};

/// A line is never longer in the answers that we ask for.
const LINE_MAX: usize = 2048;

/// A line without its end, and what follows it.
pub(crate) type Split<'a> = (&'a [u8], &'a [u8]);

/// The first line of an answer, without its end, and what follows; `None` while it isn't whole.
pub(crate) fn first_line(bytes: &[u8]) -> Result<Option<Split<'_>>, String> {
    match memchr(b'\n', bytes) {
        Some(end) if end <= LINE_MAX => {
            let line = &bytes[..end];
            Ok(Some((line.strip_suffix(b"\r").unwrap_or(line), &bytes[end + 1..])))
        }
        None if bytes.len() <= LINE_MAX => Ok(None),
        _ => Err(foreign(bytes)),
    }
}

/// What to say of an answer that is not memcached's.
pub(crate) fn foreign(bytes: &[u8]) -> String {
    // Cut before the excerpt is made, so that it doesn't depend on how much has arrived.
    format!("the answer `{}` is not memcached's", excerpt(&bytes[..bytes.len().min(LINE_MAX)]))
}

/// What an error line says of the server; `None` for a line that is no error.
pub(crate) fn error(line: &[u8]) -> Option<(Health, String)> {
    let health = match line {
        _ if line.starts_with(b"ERROR Too many open connections") => Health::Full,
        _ if line.starts_with(b"SERVER_ERROR out of memory") => Health::Full,
        // It did try, and told what went wrong: alive, though not for this request.
        _ if line.starts_with(b"SERVER_ERROR") => Health::Serving,
        _ if line.starts_with(b"CLIENT_ERROR unauthenticated") => Health::Refused,
        _ if line.starts_with(b"CLIENT_ERROR") || line == b"ERROR" => Health::Wrong,
        _ => return None,
    };
    Some((health, excerpt(line)))
}
