//! The errors that redis answers: told apart by their words, and what an operator does about each.

use yagent_abi::sdk::Health;

/// What an error says of the server, or of us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// It reads its data.
    Loading,
    /// A script or a function runs.
    Busy,
    /// Memory is used up.
    Memory,
    /// Connections are used up.
    Clients,
    /// It wants a password.
    NoLogin,
    /// It knows the user and password no more, or never did.
    WrongLogin,
    /// It is too old to have users.
    NoUsers,
    /// The user may not do this.
    NoRight,
    /// It lets in loopback alone.
    Protected,
    /// It could not save, and takes no writes.
    NotSaved,
    /// It has fewer replicas than it must, and takes no writes.
    FewReplicas,
    /// It is a replica.
    ReadOnly,
    /// It is a replica without its master, and gives no old answers.
    MasterDown,
    /// Anything else.
    Other,
}

/// By what an error begins with. Versions before 6 have no words of their own for a login that fails.
const WORDS: [(&str, Trouble); 16] = [
    ("LOADING", Trouble::Loading),
    ("ERR Only CONFIG GET is allowed during loading", Trouble::Loading),
    ("BUSY ", Trouble::Busy),
    ("OOM", Trouble::Memory),
    ("ERR max number of clients", Trouble::Clients),
    ("NOAUTH", Trouble::NoLogin),
    ("ERR operation not permitted", Trouble::NoLogin),
    ("WRONGPASS", Trouble::WrongLogin),
    ("ERR invalid password", Trouble::WrongLogin),
    ("ERR wrong number of arguments for 'auth'", Trouble::NoUsers),
    ("NOPERM", Trouble::NoRight),
    ("DENIED", Trouble::Protected),
    ("MISCONF", Trouble::NotSaved),
    ("NOREPLICAS", Trouble::FewReplicas),
    ("READONLY", Trouble::ReadOnly),
    ("MASTERDOWN", Trouble::MasterDown),
];

impl Trouble {
    pub(crate) fn of(error: &[u8]) -> Self {
        let found = WORDS.iter().find(|(words, _)| error.starts_with(words.as_bytes()));
        found.map_or(Self::Other, |(_, trouble)| *trouble)
    }

    /// What a probe makes of it.
    pub(crate) fn health(self) -> Health {
        match self {
            Self::Loading => Health::Loading,
            Self::Busy => Health::Busy,
            Self::Memory | Self::Clients => Health::Full,
            Self::NoLogin | Self::WrongLogin | Self::NoUsers | Self::NoRight | Self::Protected => {
                Health::Refused
            }
            // It lives, and says what keeps it.
            Self::NotSaved | Self::FewReplicas | Self::ReadOnly | Self::MasterDown | Self::Other => {
                Health::Serving
            }
        }
    }

    fn advice(self) -> Option<&'static str> {
        Some(match self {
            Self::Loading => "it reads its data: wait",
            Self::Busy => "a script or function runs for longer than `lua-time-limit`: SCRIPT KILL ends it",
            Self::Memory => "raise `redis_maxmem`, or let `maxmemory-policy` evict",
            Self::Clients => "raise `maxclients`, or find who keeps so many connections",
            Self::NoLogin => "it wants a password: set `redis_password`, or `requirepass` in `redis_conf`",
            Self::WrongLogin => "`redis_username` or `redis_password` is not what the server has",
            Self::NoUsers => "it knows no users, redis has them from 6.0 on: unset `redis_username`",
            Self::NoRight => "the user of `redis_username` lacks a right: give it those of docs/engines.md",
            Self::Protected => "set a password, or `protected-mode no`",
            Self::NotSaved => "it could not save and takes no writes: see its log, and its disk",
            Self::FewReplicas => "fewer replicas are attached than `min-replicas-to-write`: bring them back",
            Self::ReadOnly => "it is a replica",
            Self::MasterDown => "it is a replica that has lost its master",
            Self::Other => return None,
        })
    }
}

/// An error of the server, and what to do. Where the login failed, that is why the rest was refused.
pub(crate) fn explain(auth: Option<&[u8]>, error: &[u8]) -> String {
    let refused = matches!(Trouble::of(error), Trouble::NoLogin | Trouble::NoRight);
    let cause = auth.filter(|auth| refused && Trouble::of(auth) != Trouble::Other).unwrap_or(error);
    let words = String::from_utf8_lossy(cause);
    match Trouble::of(cause).advice() {
        Some(advice) => format!("{} ({advice})", words.trim_end_matches('.')),
        None => words.into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// As the servers say it, from 3.2 on.
    const ERRORS: [(&str, Trouble, Health); 23] = [
        ("LOADING Redis is loading the dataset in memory", Trouble::Loading, Health::Loading),
        ("BUSY Redis is busy running a script. You can only call SCRIPT KILL", Trouble::Busy, Health::Busy),
        ("OOM command not allowed when used memory > 'maxmemory'.", Trouble::Memory, Health::Full),
        ("ERR max number of clients reached", Trouble::Clients, Health::Full),
        ("ERR max number of clients + cluster connections reached", Trouble::Clients, Health::Full),
        ("NOAUTH Authentication required.", Trouble::NoLogin, Health::Refused),
        ("ERR operation not permitted", Trouble::NoLogin, Health::Refused),
        ("ERR invalid password", Trouble::WrongLogin, Health::Refused),
        ("WRONGPASS invalid username-password pair", Trouble::WrongLogin, Health::Refused),
        (
            "WRONGPASS invalid username-password pair or user is disabled.",
            Trouble::WrongLogin,
            Health::Refused,
        ),
        ("ERR wrong number of arguments for 'auth' command", Trouble::NoUsers, Health::Refused),
        ("NOPERM this user has no permissions to run the 'get' command", Trouble::NoRight, Health::Refused),
        ("DENIED Redis is running in protected mode", Trouble::Protected, Health::Refused),
        ("MISCONF Redis is configured to save RDB snapshots", Trouble::NotSaved, Health::Serving),
        ("MISCONF Errors writing to the AOF file", Trouble::NotSaved, Health::Serving),
        ("NOREPLICAS Not enough good replicas to write.", Trouble::FewReplicas, Health::Serving),
        ("NOREPLICAS Not enough good slaves to write.", Trouble::FewReplicas, Health::Serving),
        ("READONLY You can't write against a read only slave.", Trouble::ReadOnly, Health::Serving),
        ("READONLY You can't write against a read only replica.", Trouble::ReadOnly, Health::Serving),
        (
            "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
            Trouble::MasterDown,
            Health::Serving,
        ),
        ("ERR unknown command 'GET'", Trouble::Other, Health::Serving),
        ("ERR Only CONFIG GET is allowed during loading", Trouble::Loading, Health::Loading),
        ("BUSYKEY Target key name already exists.", Trouble::Other, Health::Serving),
    ];

    #[test]
    fn each_error_is_told_apart() {
        for (error, trouble, health) in ERRORS {
            let found = Trouble::of(error.as_bytes());
            assert_eq!((found, found.health()), (trouble, health), "{error}");
        }
    }

    #[test]
    fn each_trouble_has_the_server_s_words_and_an_advice_of_its_own() {
        let (mut troubles, mut advices) = (Vec::new(), BTreeSet::new());
        for (error, trouble, _) in ERRORS {
            let told = explain(None, error.as_bytes());
            assert!(told.starts_with(error.trim_end_matches('.')), "{told}");
            if trouble != Trouble::Other && !troubles.contains(&trouble) {
                troubles.push(trouble);
                advices.extend(trouble.advice());
            }
        }
        assert_eq!(advices.len(), troubles.len());
        assert_eq!(explain(None, b"ERR unknown command 'GET'"), "ERR unknown command 'GET'");
    }

    #[test]
    fn a_login_that_failed_explains_what_was_refused_for_it_and_nothing_else() {
        let wrong = Some(&b"ERR invalid password"[..]);
        for error in ["NOAUTH Authentication required.", "NOPERM this user has no permissions"] {
            assert!(explain(wrong, error.as_bytes()).starts_with("ERR invalid password ("), "{error}");
        }
        assert!(explain(wrong, b"LOADING Redis").starts_with("LOADING Redis ("));
        let needless = Some(&b"ERR AUTH <password> called without any password configured"[..]);
        assert!(explain(needless, b"NOPERM no").starts_with("NOPERM no ("));
    }
}
