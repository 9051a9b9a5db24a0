//! A script or function that keeps a server from answering: how it is ended, and what redis says where it is not.

use crate::resp::Reply;

/// Each is refused, and does no harm, where the other is meant.
pub(crate) const KILLS: &[&[&str]] = &[&["SCRIPT", "KILL"], &["FUNCTION", "KILL"]];

/// Why neither ended it, from their answers; `None` where one did, or none was asked.
pub(crate) fn goes_on(answers: &[Reply<'_>]) -> Option<String> {
    if answers.iter().any(|answer| matches!(answer, Reply::Status(_))) {
        return None;
    }
    let errors = || {
        answers.iter().filter_map(|answer| if let Reply::Error(error) = answer { Some(*error) } else { None })
    };
    let says_why = |error: &&[u8]| error.starts_with(b"UNKILLABLE") || error.starts_with(b"NOPERM");
    let error = errors().find(says_why).or_else(|| errors().next())?;
    Some(format!("it was not ended: {}", String::from_utf8_lossy(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_that_says_why_is_told() {
        let [unkillable, other, gone] =
            [&b"UNKILLABLE it wrote"[..], b"BUSY only FUNCTION KILL", b"ERR unknown command"]
                .map(Reply::Error);
        let told = Some("it was not ended: UNKILLABLE it wrote".to_owned());
        assert_eq!(goes_on(&[unkillable.clone(), gone.clone()]), told);
        assert_eq!(goes_on(&[other.clone(), unkillable.clone()]), told);
        assert_eq!(goes_on(&[other.clone(), Reply::Status(b"OK")]), None);
        assert_eq!(goes_on(&[gone, other]), Some("it was not ended: ERR unknown command".to_owned()));
        assert_eq!(goes_on(&[]), None);
    }
}
