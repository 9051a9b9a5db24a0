//! One conversation's state: what was asked, in which order, and who we are. All that is to be asked is sent at
//! once, so a conversation costs one round trip.

use yagent_abi::sdk::{Begin, Event, Settings, Sink};

use crate::{
    conf::Conf,
    resp::{self, Flaw, Reply},
};

/// How we speak to an instance.
#[derive(Debug)]
pub(crate) struct Talk {
    /// The arguments of AUTH; empty: no password is known.
    auth: Vec<Vec<u8>>,
    /// Commands that redis.conf renamed.
    renamed: Vec<(String, Vec<u8>)>,
    /// Whether the conversation began with AUTH.
    logged_in: bool,
    /// Whether the request on its way begins with AUTH.
    logging_in: bool,
    /// How many replies beside AUTH's are awaited.
    awaited: usize,
    /// The requests of the next send; kept for its memory.
    buffer: Vec<u8>,
}

/// Who we are to an instance, and a replica to its master.
#[derive(Debug)]
pub(crate) struct Login {
    /// The ACL user; `None`: redis' default user.
    pub(crate) user: Option<Vec<u8>>,
    /// The password; `None`: none is known.
    pub(crate) password: Option<Vec<u8>>,
}

impl Login {
    pub(crate) fn new(settings: &Settings<'_>, conf: &Conf) -> Result<Self, String> {
        let set = |name: &str| settings.bytes(name).filter(|value| !value.is_empty()).map(<[u8]>::to_vec);
        let password = set("redis_password").or_else(|| conf.password.clone());
        let user = set("redis_username");
        if user.is_some() && password.is_none() {
            return Err("`redis_username` is set, but no password is known for it".to_owned());
        }
        Ok(Self { user, password })
    }
}

/// What came back.
pub(crate) struct Answer<'a> {
    /// AUTH's error, if it gave one.
    pub(crate) auth: Option<&'a [u8]>,
    /// The replies to what was asked; fewer only where the server closed after the last of them.
    pub(crate) replies: Vec<Reply<'a>>,
}

impl Talk {
    pub(crate) fn new(settings: &Settings<'_>, conf: &Conf) -> Result<Self, String> {
        let login = Login::new(settings, conf)?;
        let auth = login.user.into_iter().chain(login.password).collect();
        let talk = Self {
            auth,
            renamed: conf.renamed.clone(),
            logged_in: false,
            logging_in: false,
            awaited: 0,
            buffer: Vec::new(),
        };
        // Without these every probe would fail by our own fault, and the instance would pay for it.
        talk.command("GET")?;
        if !talk.auth.is_empty() {
            talk.command("AUTH")?;
        }
        Ok(talk)
    }

    /// Finds out whether each of these commands can be called.
    pub(crate) fn knows(&self, commands: &[&str]) -> Result<(), String> {
        commands.iter().try_for_each(|name| self.command(name).map(drop))
    }

    /// Begins a conversation: logs in on a fresh connection, and asks `requests`.
    pub(crate) fn begin(
        &mut self,
        begin: &Begin<'_>,
        requests: &[&[&str]],
        sink: &Sink<'_>,
    ) -> Result<(), String> {
        self.logged_in = begin.fresh && !self.auth.is_empty();
        self.send(self.logged_in, requests, sink)
    }

    /// Asks `requests`, with which the conversation began, in the very words once more.
    pub(crate) fn begin_again(&mut self, requests: &[&[&str]], sink: &Sink<'_>) -> Result<(), String> {
        self.send(self.logged_in, requests, sink)
    }

    /// Asks more in a conversation whose answers were read.
    pub(crate) fn go_on(&mut self, requests: &[&[&str]], sink: &Sink<'_>) -> Result<(), String> {
        self.send(false, requests, sink)
    }

    fn send(&mut self, login: bool, requests: &[&[&str]], sink: &Sink<'_>) -> Result<(), String> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        if login {
            let words: Vec<&[u8]> =
                std::iter::once(self.command("AUTH")?).chain(self.auth.iter().map(Vec::as_slice)).collect();
            resp::request(&mut buffer, &words);
        }
        for request in requests {
            let mut words: Vec<&[u8]> = request.iter().map(|word| word.as_bytes()).collect();
            if let (Some(first), Some(name)) = (words.first_mut(), request.first()) {
                *first = self.command(name)?;
            }
            resp::request(&mut buffer, &words);
        }
        sink.send(&buffer);
        self.buffer = buffer;
        self.logging_in = login;
        self.awaited = requests.len();
        Ok(())
    }

    /// Those of `requests` whose commands the configuration left.
    pub(crate) fn callable<'r>(&self, requests: &[&'r [&'r str]]) -> Vec<&'r [&'r str]> {
        let left = |request: &&&[&str]| request.first().is_some_and(|name| self.command(name).is_ok());
        requests.iter().filter(left).copied().collect()
    }

    /// What the instance calls a command.
    fn command<'a>(&'a self, name: &'a str) -> Result<&'a [u8], String> {
        let renamed = self.renamed.iter().rev().find(|(from, _)| from.eq_ignore_ascii_case(name));
        match renamed {
            Some((_, to)) if to.is_empty() => Err(format!("the configuration took the command {name} away")),
            Some((_, to)) => Ok(to),
            None => Ok(name.as_bytes()),
        }
    }

    /// The answer in `bytes`; `Ok(None)` while it isn't whole.
    pub(crate) fn answer<'a>(&self, bytes: &'a [u8]) -> Result<Option<Answer<'a>>, String> {
        let count = self.awaited + usize::from(self.logging_in);
        let mut replies = match resp::replies(bytes, count) {
            Ok(replies) => replies,
            Err(Flaw::Short) => return Ok(None),
            Err(Flaw::Foreign(why)) => return Err(why),
        };
        let mut auth = None;
        // A server that closed at once answered our AUTH with an error that is meant for everything.
        if self.logging_in
            && replies.len() > 1
            && let Reply::Error(text) = replies.remove(0)
        {
            auth = Some(text);
        }
        Ok(Some(Answer { auth, replies }))
    }
}

/// The bytes of an event that carries an answer; the refusal of one that doesn't.
pub(crate) fn received(event: Event<'_>) -> Result<&[u8], String> {
    match event {
        Event::Bytes(bytes) => Ok(bytes),
        other => Err(other.refusal()),
    }
}
