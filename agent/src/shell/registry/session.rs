//! The session thread: the only one that touches the client. It keeps the registry as desired while there is a
//! connection, and tells the core what happens. Nobody waits for it.

use std::{
    panic::{self, AssertUnwindSafe},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    LOG, RegistryEvent,
    client::Client,
    gate::CLOSE_LIMIT,
    reconcile::{Fault, Tree},
    requests::{self, Behind},
    shared::{Link, News, Shared},
};

/// So many clients may be forgotten before the process is given up.
const MOST_FORGOTTEN: usize = 3;
/// Of the time for a close, how much may go into last writes.
const LAST_WRITES: Duration = Duration::from_millis(400);

/// The session thread's state.
pub(super) struct Session {
    shared: Arc<Shared>,
    tree: Tree,
    /// What is asked for harmlessly where nothing is desired.
    root: String,
    auth: Option<String>,
    client: Option<Client>,
    /// The last connection that had a client.
    used: u64,
    heartbeat: Instant,
    connected: bool,
    told_lost: bool,
    auth_refused: bool,
    /// When a close was asked for.
    closing: Option<Instant>,
}

impl Session {
    /// `root`: a path to ask for where nothing is desired; `auth`: credentials of the digest scheme.
    pub(super) fn new(shared: Arc<Shared>, tree: Tree, root: String, auth: Option<String>) -> Session {
        Session {
            shared,
            tree,
            root,
            auth,
            client: None,
            used: 0,
            heartbeat: Instant::now(),
            connected: false,
            told_lost: false,
            auth_refused: false,
            closing: None,
        }
    }

    /// Works until a close was asked for. Should it fail by a mistake of its own, the core learns that there is no
    /// registry, and goes on supervising.
    pub(super) fn run(self) {
        let shared = Arc::clone(&self.shared);
        if panic::catch_unwind(AssertUnwindSafe(|| self.keep())).is_err() {
            let why = "the registry's session thread failed; it comes back with the agent's next start";
            log::error!(target: LOG, "{why}");
            shared.figures(|status| status.state = "lost");
            shared.lost(RegistryEvent::Lost { why: why.into() });
        }
        shared.end();
    }

    fn keep(mut self) {
        loop {
            let news = self.shared.wait(self.deadline());
            self.take(news);
            self.work();
            self.report();
            if let Some(asked) = self.closing {
                return self.close(asked);
            }
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let idle = self.client.as_ref().map(|_| self.heartbeat);
        if self.client.is_some() && self.tree.busy() { Some(Instant::now()) } else { idle }
    }

    fn take(&mut self, news: News) {
        if !news.inbox.is_empty() {
            self.tree.absorb(news.inbox);
            // The first step may take long, as a removal of many nodes does.
            self.report();
        }
        for path in &news.touched {
            self.tree.touched(path);
        }
        let link = news.link.as_ref();
        if self.client.as_ref().is_some_and(|client| Some(client.link()) != link) {
            self.lose(&news.why);
        }
        self.closing = news.closing;
        if self.closing.is_some() {
            return;
        }
        match news.link {
            Some(link) if self.client.is_none() && link.epoch > self.used => self.connect(link),
            None if news.failed_rounds > 0 => self.tell_lost(&news.why),
            _ => {}
        }
    }

    fn connect(&mut self, link: Link) {
        self.used = link.epoch;
        match self.introduce(link.clone()) {
            Ok(()) => self.tell_connected(&link),
            Err(Fault::Lost(why) | Fault::Refused(why)) => {
                self.lose(&why);
                self.shared.hang_up(link.epoch, &why);
            }
        }
    }

    /// A client whose first request is answered.
    fn introduce(&mut self, link: Link) -> Result<(), Fault> {
        let client = self.client.insert(Client::connect(&self.shared, link, self.auth.is_some())?);
        if let Some(credentials) = &self.auth {
            let outcome = client.authenticate(credentials);
            note_auth(&mut self.auth_refused, &outcome, &mut self.tree.events);
            outcome?;
        }
        client.touch(&self.root)
    }

    fn tell_connected(&mut self, link: &Link) {
        self.connected = true;
        self.told_lost = false;
        self.tree.begin();
        self.heartbeat = Instant::now() + link.timeout / 3;
        let (server, session, timeout) = (link.server.clone(), link.session, link.timeout);
        log::info!(target: LOG, "connected to {server}, session {session:#x}, timeout {timeout:?}");
        self.shared.figures(|status| status.state = "connected");
        self.shared.connected(RegistryEvent::Connected { server, session, timeout });
    }

    fn tell_lost(&mut self, why: &str) {
        if self.told_lost {
            return;
        }
        self.told_lost = true;
        log::warn!(target: LOG, "no connection: {why}");
        let state = if self.connected { "lost" } else { "connecting" };
        self.shared.figures(|status| status.state = state);
        self.shared.lost(RegistryEvent::Lost { why: why.to_owned() });
    }

    /// Gives the client up with its connection.
    fn lose(&mut self, why: &str) {
        let Some(client) = self.client.take() else { return };
        let epoch = client.link().epoch;
        self.shared.hang_up(epoch, why);
        self.tell_lost(why);
        let limit = client.link().timeout + Duration::from_secs(4);
        if !client.retire(limit) {
            self.forget(limit);
        }
    }

    fn forget(&self, limit: Duration) {
        let count = self.shared.forget_client();
        log::error!(target: LOG, "a ZooKeeper client's threads did not end within {limit:?} (number {count})");
        if count >= MOST_FORGOTTEN {
            super::leave_to_supervisor("too many ZooKeeper clients do not end");
        }
    }

    /// All requests, and one thing of what else there is to do.
    fn work(&mut self) {
        let now = Instant::now();
        let Some(client) = &mut self.client else { return };
        let outcome = requests::serve(client, &self.shared).and_then(|()| {
            if now >= self.heartbeat {
                self.heartbeat = now + client.link().timeout / 3;
                let asks = self.tree.heartbeat();
                if asks { Ok(()) } else { client.touch(&self.root) }
            } else if self.tree.busy() {
                self.tree.step(&mut Behind::new(client, &self.shared), now).map_err(Fault::Lost)
            } else {
                Ok(())
            }
        });
        if let Err(Fault::Lost(why) | Fault::Refused(why)) = outcome {
            self.interrupted(&why);
        }
    }

    /// A call failed: the gate knows better why, if it was the gate that ended the connection.
    fn interrupted(&mut self, why: &str) {
        let news = self.shared.wait(Some(Instant::now()));
        let link = self.client.as_ref().map(|client| client.link().clone());
        let why = if news.link != link { news.why.clone() } else { why.to_owned() };
        self.lose(&why);
        self.take(news);
    }

    fn report(&mut self) {
        let (nodes, behind, writes) = (self.tree.nodes(), self.tree.behind(), self.tree.writes);
        self.shared.figures(|status| {
            status.nodes = nodes;
            status.behind = behind;
            status.writes = writes;
        });
        for event in self.tree.events.drain(..) {
            self.shared.tell(event);
        }
    }

    /// Last writes, then good-bye: the server drops our ephemerals at once, unless we leave the session to its timeout.
    /// The gate sees to the limit.
    fn close(mut self, asked: Instant) {
        while self.client.is_some() && self.tree.busy() && asked.elapsed() < LAST_WRITES {
            self.work();
        }
        self.report();
        if let Some(client) = self.client.take() {
            let limit = CLOSE_LIMIT.saturating_sub(asked.elapsed()) + CLOSE_LIMIT / 2;
            let ended = if self.shared.leaving() {
                self.shared.hang_up(client.link().epoch, "the agent leaves");
                client.retire(limit)
            } else {
                client.say_goodbye(limit)
            };
            if !ended {
                log::warn!(target: LOG, "the ZooKeeper client did not end in time for the close");
            }
        }
        log::info!(target: LOG, "closed");
    }
}

/// Tells once that the credentials are refused, and once that they no longer are.
fn note_auth(refused: &mut bool, outcome: &Result<(), Fault>, events: &mut Vec<RegistryEvent>) {
    match outcome {
        Err(Fault::Refused(why)) if !*refused => {
            *refused = true;
            events.push(RegistryEvent::Refused { path: "/".into(), why: format!("zoo_auth: {why}") });
        }
        Ok(()) if *refused => {
            *refused = false;
            events.push(RegistryEvent::RefusedOver { path: "/".into() });
        }
        _ => {}
    }
}
