//! Orders of a failover to a server that answers late: what was decided under a lease is not carried out after it.
//!
//! The test is the server, so that it knows each command that comes.

use std::{
    io::{ErrorKind, Read, Write},
    net::{TcpListener, TcpStream},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;
use yagent::{
    core::{
        EngineId, Event, InstanceId, Pid,
        failover::{Order, Ordered},
    },
    plugin::{Backend, loader},
    shell::{
        exchange::Line,
        fencer::Fencer,
        orders::Orders,
        poll::{Poll, Source},
    },
};
use yagent_tests::{
    programs,
    wait::{self, DEADLINE},
};

const ID: InstanceId = InstanceId { engine: EngineId(0), port: 16379 };
/// How long a lease still lasts that ends before an order was answered.
const LEFT: Duration = Duration::from_secs(3);

const WITHIN: Duration = Duration::from_secs(2);

/// An order that opens a server to writes in its second command.
struct Opening {
    order: Order,
    first: &'static str,
    second: &'static str,
    answer: &'static [u8],
}

const PROMOTION: Opening = Opening {
    order: Order::Promote,
    first: "WRITE",
    second: "SLAVEOF",
    answer: b"+OK\r\n*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n",
};
const RELEASE: Opening = Opening {
    order: Order::Unfence { min_replicas: 1 },
    first: "min-slaves-to-write",
    second: "UNPAUSE",
    answer: b"+OK\r\n",
};

fn redis(port: u16, state_dir: &TempDir) -> Backend {
    let built = programs::yagent();
    let dir = state_dir.path().to_str().unwrap();
    let settings = [
        ("program", "redis-server".to_owned()),
        ("port", port.to_string()),
        ("maxmem_mb", "64".to_owned()),
        ("state_dir", dir.to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value.into_bytes()));
    let plugin = loader::load("redis", &[built.parent().unwrap().to_owned()]).unwrap();
    plugin.create(&settings).unwrap()
}

struct Agent {
    poll: Poll,
    orders: Orders,
}

impl Agent {
    /// Takes in what is ready, or comes within `limit`.
    fn turn(&mut self, limit: Duration) {
        let mut ready = Vec::new();
        self.poll.wait(limit, &mut ready).unwrap();
        for ready in ready {
            match ready.source {
                Source::Fencer => self.orders.fencer_ready(&mut self.poll, ready),
                _ => self.orders.ready(&mut self.poll, ID, ready),
            }
        }
    }

    /// Goes on until the agent has connected to its server.
    fn connects(&mut self, listener: &TcpListener) -> TcpStream {
        listener.set_nonblocking(true).unwrap();
        let (server, _) = wait::until("the agent connects", || {
            self.turn(Duration::ZERO);
            listener.accept()
        });
        server.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        server
    }

    /// Sends what it has to send until the server has a command with that word.
    fn says(&mut self, server: &mut TcpStream, word: &str) -> String {
        let (begun, mut all, mut bytes) = (Instant::now(), String::new(), [0; 1024]);
        while !(all.contains(word) && all.ends_with("\r\n")) {
            assert!(begun.elapsed() < DEADLINE, "only {all:?}");
            self.turn(Duration::ZERO);
            match server.read(&mut bytes) {
                Ok(0) => panic!("closed after {all:?}"),
                Ok(n) => all.push_str(std::str::from_utf8(&bytes[..n]).unwrap()),
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
            }
        }
        all
    }

    fn outcome(&mut self) -> Option<Ordered> {
        self.orders.event().map(|event| match event {
            Event::Ordered { ordered, .. } => ordered,
            other => panic!("{other:?}"),
        })
    }
}

/// The listener that stands for the server of a process, and the agent's desk for it.
fn desk(dir: &TempDir, pid: u32) -> (TcpListener, Agent) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let fencer = Fencer::new(dir.path().to_owned(), programs::yagent());
    let mut agent = Agent { poll: Poll::new().unwrap(), orders: Orders::new(fencer) };
    let line = Line::new(Source::OrderLink(ID), address, redis(address.port(), dir));
    agent.orders.open(&mut agent.poll, ID, "redis:16379".to_owned(), line, address, WITHIN);
    agent.orders.process(&mut agent.poll, ID, Some(Pid(pid)));
    (listener, agent)
}

/// Gives the order, and takes the answer to its first command in before the lease has ended or when it has.
fn is_carried_out(opening: &Opening, in_time: bool) {
    let dir = tempfile::tempdir().unwrap();
    let (listener, mut agent) = desk(&dir, std::process::id());
    let until = Instant::now() + if in_time { DEADLINE } else { LEFT };
    agent.orders.order(&mut agent.poll, ID, opening.order.clone(), until);
    let mut server = agent.connects(&listener);
    let first = agent.says(&mut server, opening.first);
    assert!(!first.contains(opening.second), "{first}");
    server.write_all(b"+OK\r\n").unwrap();

    if in_time {
        agent.says(&mut server, opening.second);
        server.write_all(opening.answer).unwrap();
        agent.turn(DEADLINE);
        assert_eq!(agent.outcome(), Some(Ordered::Done(None)));
    } else {
        wait::lasts(until.saturating_duration_since(Instant::now()));
        agent.turn(DEADLINE);
        let outcome = agent.outcome();
        assert!(matches!(&outcome, Some(Ordered::Failed(why)) if why.contains("in time")), "{outcome:?}");
        // It hangs up on the answer that it did not read, which resets the connection.
        let mut rest = Vec::new();
        server.set_read_timeout(Some(DEADLINE)).unwrap();
        let ended = server.read_to_end(&mut rest).map_err(|error| error.kind());
        assert!(matches!(ended, Ok(_) | Err(ErrorKind::ConnectionReset)), "{ended:?}");
        assert!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
    }
}

#[test]
fn an_order_that_is_answered_in_time_is_carried_out() {
    is_carried_out(&PROMOTION, true);
    is_carried_out(&RELEASE, true);
}

#[test]
fn an_answer_that_is_taken_in_after_the_lease_opens_no_server() {
    is_carried_out(&PROMOTION, false);
    is_carried_out(&RELEASE, false);
}

/// A fence is ordered and then rehearsed, on a connection of its own.
fn is_rehearsed(agent: &mut Agent, listener: &TcpListener, server: Option<TcpStream>) -> TcpStream {
    agent.orders.order(&mut agent.poll, ID, Order::Fence { long: WITHIN }, Instant::now() + DEADLINE);
    let mut server = server.unwrap_or_else(|| agent.connects(listener));
    agent.says(&mut server, "PAUSE");
    server.write_all(b"+OK\r\n").unwrap();
    let mut rehearsal = agent.connects(listener);
    let said = agent.says(&mut rehearsal, "PAUSE");
    assert!(said.contains("$1\r\n1\r\n"), "{said}");
    rehearsal.write_all(b"+OK\r\n").unwrap();
    agent.turn(DEADLINE);
    server
}

#[test]
fn a_fence_is_rehearsed_again_when_the_time_for_it_has_changed() {
    let (dir, mut process) =
        (tempfile::tempdir().unwrap(), Command::new("cat").stdin(Stdio::piped()).spawn().unwrap());
    let (listener, mut agent) = desk(&dir, process.id());
    let server = is_rehearsed(&mut agent, &listener, None);
    agent.orders.fence_within(ID, WITHIN / 2);
    is_rehearsed(&mut agent, &listener, Some(server));
    drop(agent);
    process.kill().unwrap();
    process.wait().unwrap();
}
