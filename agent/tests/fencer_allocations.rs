//! A fencer allocates nothing after its start, so that no want of memory keeps it from its work.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    io::{Read, Write},
    net::TcpListener,
    thread,
    time::Duration,
};

use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use yagent::fencer::{
    self, Fencer,
    message::{self, Message, PACKET_AT_MOST},
};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: everything is handed to the system's allocator as it came.
#[expect(unsafe_code, reason = "an allocator that counts is the only way to see allocations")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[expect(clippy::unwrap_used, reason = "a test's helper may fail loudly")]
fn say(socket: &rustix::fd::OwnedFd, message: &Message<'_>) {
    let mut packet = [0; PACKET_AT_MOST];
    let packet = message::encode(message, &mut packet).unwrap();
    rustix::net::send(socket, packet, SendFlags::empty()).unwrap();
}

#[test]
fn after_its_start_it_allocates_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut fencer = Fencer::new(dir.path()).unwrap().unwrap();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap();
    let answered = thread::spawn(move || {
        let (mut client, _) = server.accept().unwrap();
        let mut order = [0; 5];
        client.read_exact(&mut order).unwrap();
        client.write_all(b"+OK\r\n").unwrap();
        client.read(&mut order).unwrap()
    });
    let flags = SocketFlags::CLOEXEC;
    let agent = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    let path = SocketAddrUnix::new(dir.path().join(fencer::SOCKET)).unwrap();
    rustix::net::connect(&agent, &path).unwrap();
    let pid = std::process::id();
    let start = fencer::start_of(pid).unwrap();
    let within = Duration::from_secs(60);
    say(&agent, &Message::Arm { key: 1, pid, start, address, within, send: b"pause", expect: b"+OK\r\n" });
    say(&agent, &Message::Lease { key: 1, until: fencer::monotonic() + 1_000_000 });
    let before = ALLOCATIONS.get();
    while !answered.is_finished() {
        assert!(fencer.turn().unwrap());
        if fencer.is_fenced(1) {
            break;
        }
    }
    say(&agent, &Message::Lease { key: 1, until: fencer::monotonic() + 60_000_000_000 });
    say(&agent, &Message::Disarm { key: 1 });
    fencer.turn().unwrap();
    assert_eq!(ALLOCATIONS.get(), before, "allocations by the fencer's thread");
    drop(fencer);
    assert_eq!(answered.join().unwrap(), 0, "the connection ends with the fence");
}
