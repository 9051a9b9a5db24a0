//! Once it runs the fencer allocates nothing, whatever happens; it would else die of the very lack of memory that
//! stopped the agent.

#![allow(unsafe_code, reason = "an allocator is unsafe")]
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test reports by panicking")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    os::fd::OwnedFd,
    process::{Child, Command},
    thread,
};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};
use yagent::fencer::{
    monotonic,
    server::Server,
    wire::{Answer, Arm, FRAME_AT_MOST, Fencing, Lease, Message, ProcessId, Refusal},
};

struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is the system allocator's; the counter of this thread needs no allocation.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

struct Victim(Child);

impl Victim {
    fn start() -> Victim {
        Victim(Command::new("sleep").arg("600").spawn().unwrap())
    }

    fn process(&self) -> ProcessId {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
        let after_name = &stat[stat.rfind(')').unwrap() + 2..];
        let start_ticks = after_name.split(' ').nth(19).unwrap().parse().unwrap();
        ProcessId { pid: self.0.id(), start_ticks }
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server that takes the fence.
fn obedient() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut asked = [0; 5];
            if stream.read_exact(&mut asked).is_ok() {
                let _ = stream.write_all(b"+OK");
            }
        }
    });
    address
}

struct Agent(OwnedFd);

impl Agent {
    fn say(&self, message: &Message<'_>) {
        send(&self.0, message.encode().bytes(), SendFlags::DONTWAIT).unwrap();
    }

    /// Turns the fencer until it says this.
    fn expect(&self, server: &mut Server, wanted: &Answer<'_>) {
        let mut frame = [0u8; FRAME_AT_MOST];
        loop {
            while let Ok((_, len)) = recv(&self.0, &mut frame[..], RecvFlags::DONTWAIT) {
                if Answer::decode(&frame[..len]).as_ref() == Some(wanted) {
                    return;
                }
            }
            assert!(server.turn().unwrap());
        }
    }
}

#[test]
fn a_fencer_that_runs_allocates_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let kind = (AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC);
    let (ours, theirs) = socketpair(kind.0, kind.1, kind.2, None).unwrap();
    let (agent, victims) = (Agent(ours), [Victim::start(), Victim::start(), Victim::start()]);
    let obedient = obedient();
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut server = Server::new(dir.path(), Some(theirs)).unwrap();
    let [first, second, third] = victims.each_ref().map(Victim::process);
    let arm = |key: &'static [u8], process, address, send| {
        let (expect, within, lease) = (b"+OK", 1_000_000_000, Lease::Until(monotonic() + 20_000_000));
        Message::Arm(Arm { key, process, address, send, expect, within, lease })
    };

    let before = COUNT.get();
    agent.say(&arm(b"fenced", first, obedient, b"PAUSE"));
    agent.expect(&mut server, &Answer::Armed(b"fenced", first));
    agent.expect(&mut server, &Answer::Fencing(b"fenced", Fencing::Fenced));
    agent.say(&arm(b"refused", second, nobody, b"PAUSE"));
    agent.expect(&mut server, &Answer::Fencing(b"refused", Fencing::Killed));
    agent.expect(&mut server, &Answer::Gone(b"refused", second));
    agent.say(&arm(b"killed", third, nobody, b""));
    agent.expect(&mut server, &Answer::Fencing(b"killed", Fencing::Killed));
    agent.say(&arm(b"gone", ProcessId { start_ticks: 1, ..first }, nobody, b""));
    agent.expect(&mut server, &Answer::Refused(b"gone", Refusal::Gone));
    agent.say(&Message::Lease(b"fenced", Lease::None));
    agent.say(&Message::Disarm(b"fenced"));
    agent.say(&Message::Ping);
    agent.expect(&mut server, &Answer::Pong);
    assert_eq!(COUNT.get() - before, 0, "allocations");

    agent.say(&Message::Retire);
    while server.turn().unwrap() {}
}
