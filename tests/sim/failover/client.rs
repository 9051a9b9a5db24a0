//! The agent's side of the registry: its gate and session thread.

use std::{collections::VecDeque, time::Instant};

use yagent::{
    core::failover::{Input, RequestId},
    shell::registry::{Answer, Request, SessionFacts},
};

use super::{
    world::{Happening, World},
    zookeeper::{Down, Up},
};
use crate::world::{MS, Micros, SECOND};

#[derive(Debug, Default)]
pub(super) struct Client {
    pub(super) conn: Option<u32>,
    /// A session stands on this connection.
    pub(super) ready: bool,
    pub(super) session: i64,
    acknowledged: Option<Instant>,
    outstanding: VecDeque<(RequestId, String)>,
    /// Events of nodes for which a request is under way: its answer goes first.
    late: Vec<String>,
    /// Since when nothing came although something was asked.
    mute_since: Option<Micros>,
    /// How many answers are awaited.
    awaited: u32,
    backoff: Micros,
    /// Not before then is something said again.
    next_beat: Micros,
    /// The node that is to be kept.
    pub(super) node: Option<(String, Vec<u8>)>,
}

impl World {
    fn client(&mut self, host: usize) -> Option<&mut Client> {
        self.hosts[host].agent.as_mut().map(|agent| &mut agent.client)
    }

    fn timeout(&self) -> Micros {
        u64::try_from(self.setting.timing.session.as_micros()).unwrap_or(SECOND)
    }

    pub(super) fn facts(&self, host: usize) -> Option<SessionFacts> {
        let client = &self.hosts[host].agent.as_ref()?.client;
        (client.session != 0).then_some(SessionFacts {
            session: client.session,
            timeout: self.setting.timing.session,
            read_only: false,
            acknowledged: client.acknowledged,
        })
    }

    // Sending

    pub(super) fn dial(&mut self, host: usize, life: u32) {
        if self.hosts[host].life != life || self.stopped(host) {
            return;
        }
        let open = self.hosts[host].to_registry == 0 && self.hosts[host].from_registry == 0 && self.zoo.up;
        let anew = self.dice.percent(10);
        let jitter = self.dice.within(50..150);
        let Some(client) = self.client(host).filter(|client| client.conn.is_none()) else { return };
        if !open {
            client.backoff = (client.backoff * 2).clamp(200 * MS, 2 * SECOND);
            let delay = client.backoff * jitter / 100;
            return self.later(delay, Happening::Dial { host, life });
        }
        client.backoff = 0;
        let session = if anew { 0 } else { client.session };
        let conn = self.connect(host);
        if let Some(client) = self.client(host) {
            client.conn = Some(conn);
            client.ready = false;
        }
        self.say_up(host, Up::Connect { session });
    }

    /// Sends something that is answered.
    fn say_up(&mut self, host: usize, message: Up) {
        let (t, timeout) = (self.t, self.timeout());
        let Some(client) = self.client(host) else { return };
        let Some(conn) = client.conn else { return };
        client.awaited += 1;
        if client.mute_since.is_none() {
            client.mute_since = Some(t);
            self.later(timeout / 3, Happening::Silence { host, conn });
        }
        self.send_up(conn, message);
    }

    pub(super) fn ask(&mut self, host: usize, id: RequestId, request: Request) {
        let sent = self.t;
        let Some(client) = self.client(host) else { return };
        if !client.ready {
            return self.tell(host, Input::Answered { request: id, answer: Answer::Lost });
        }
        client.outstanding.push_back((id, request.path().to_owned()));
        self.say_up(host, Up::Ask { id, request, sent });
    }

    /// The desired tree holds this node from now on.
    pub(super) fn keep_node(&mut self, host: usize, path: String, content: Vec<u8>) {
        let Some(client) = self.client(host) else { return };
        client.node = Some((path, content));
        self.send_node(host);
    }

    fn send_node(&mut self, host: usize) {
        let Some(client) = self.client(host) else { return };
        if let (true, Some(conn), Some((path, content))) = (client.ready, client.conn, client.node.clone()) {
            self.send_up(conn, Up::Keep { path, content });
        }
    }

    pub(super) fn heartbeat(&mut self, host: usize, conn: u32) {
        let (sent, every) = (self.t, self.timeout() / 6);
        if self.stopped(host) {
            return;
        }
        let Some(client) = self.client(host) else { return };
        if client.conn != Some(conn) || sent < client.next_beat {
            return;
        }
        let first = std::mem::replace(&mut client.next_beat, sent + every) == 0;
        let (session, node) = (client.session, client.node.clone());
        // What a former session's late request took away is put right, as the agent's session thread does.
        if !first && node.is_some_and(|(path, _)| self.zoo.owner(&path) != Some(session)) {
            self.send_node(host);
        }
        self.say_up(host, Up::Ping { sent });
        self.later(every, Happening::Heartbeat { host, conn });
    }

    pub(super) fn look_for_silence(&mut self, host: usize, conn: u32) {
        let (t, timeout) = (self.t, self.timeout());
        if self.stopped(host) {
            return;
        }
        let Some(client) = self.client(host).filter(|client| client.conn == Some(conn)) else { return };
        match client.mute_since {
            Some(since) if t >= since + timeout / 3 => self.hang_up(host, "it is mute"),
            Some(since) => self.later(since + timeout / 3 - t, Happening::Silence { host, conn }),
            None => {}
        }
    }

    // The end of a connection

    /// The client gives its connection up.
    pub(super) fn hang_up(&mut self, host: usize, why: &str) {
        self.log(|| format!("host {host} loses the registry: {why}"));
        let dropped = self.dice.percent(50);
        let answers_first = self.dice.percent(30);
        let life = self.hosts[host].life;
        let Some(client) = self.client(host) else { return };
        let Some(conn) = client.conn.take() else { return };
        let was_ready = std::mem::take(&mut client.ready);
        (client.mute_since, client.awaited) = (None, 0);
        let lost: Vec<RequestId> = client.outstanding.drain(..).map(|(id, _)| id).collect();
        client.late.clear();
        self.close_conn(conn, dropped);
        let answers = lost.into_iter().map(|request| Input::Answered { request, answer: Answer::Lost });
        if was_ready && !answers_first {
            self.tell(host, Input::Lost);
        }
        for answer in answers.collect::<Vec<_>>() {
            self.tell(host, answer);
        }
        if was_ready && answers_first {
            self.tell(host, Input::Lost);
        }
        let delay = self.dice.within(MS..300 * MS);
        self.later(delay, Happening::Dial { host, life });
    }

    /// What was sent may still arrive.
    pub(super) fn close_conn(&mut self, number: u32, dropped: bool) {
        let conn = &mut self.zoo.conns[number as usize];
        conn.client_open = false;
        if dropped {
            conn.up.queue.clear();
        }
        self.send_up(number, Up::End);
    }

    // Receiving

    pub(super) fn reaches_client(&mut self, number: u32) {
        let host = self.zoo.conns[number as usize].host;
        let stopped = self.stopped(host);
        let conn = &mut self.zoo.conns[number as usize];
        if self.hosts[host].from_registry > 0 || stopped {
            conn.down.stuck += 1;
            return;
        }
        let Some(message) = conn.down.queue.pop_front() else { return };
        if !conn.client_open {
            return;
        }
        let t = self.t;
        let Some(client) = self.client(host).filter(|client| client.conn == Some(number)) else { return };
        match &message {
            Down::Event { .. } | Down::End => {}
            _ => client.awaited = client.awaited.saturating_sub(1),
        }
        let had = client.mute_since;
        client.mute_since = (client.awaited > 0).then_some(t);
        if had.is_none() && client.awaited > 0 {
            let timeout = self.timeout();
            self.later(timeout / 3, Happening::Silence { host, conn: number });
        }
        self.take_message(host, number, message);
    }

    fn acknowledge(&mut self, host: usize, sent: Micros) {
        let sent = self.instant(host, sent);
        let Some(client) = self.client(host) else { return };
        client.acknowledged = Some(client.acknowledged.map_or(sent, |before| before.max(sent)));
    }

    fn take_message(&mut self, host: usize, number: u32, message: Down) {
        match message {
            Down::Connected { session } => {
                let Some(client) = self.client(host) else { return };
                client.ready = true;
                client.next_beat = 0;
                if client.session != session {
                    client.session = session;
                    client.acknowledged = None;
                }
                self.tell(host, Input::Connected);
                self.send_node(host);
                self.heartbeat(host, number);
            }
            Down::Expired => {
                if let Some(client) = self.client(host) {
                    client.session = 0;
                    client.acknowledged = None;
                }
                self.hang_up(host, "its session is over");
            }
            Down::Pong { sent } => self.acknowledge(host, sent),
            Down::Answer { id, answer, sent } => {
                self.acknowledge(host, sent);
                let Some(client) = self.client(host) else { return };
                client.outstanding.retain(|(other, _)| *other != id);
                let outstanding = &client.outstanding;
                let is_free = |path: &mut String| !outstanding.iter().any(|(_, under_way)| under_way == path);
                let late: Vec<String> = client.late.extract_if(.., is_free).collect();
                self.tell(host, Input::Answered { request: id, answer });
                late.into_iter().for_each(|path| self.tell(host, Input::Changed { path }));
            }
            Down::Event { path } => {
                let Some(client) = self.client(host) else { return };
                if client.outstanding.iter().any(|(_, under_way)| **under_way == *path) {
                    return client.late.push(path.to_string());
                }
                self.tell(host, Input::Changed { path: path.to_string() });
            }
            Down::End => self.hang_up(host, "its server closed"),
        }
    }
}
