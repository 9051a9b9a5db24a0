//! Whether the other end of a loopback connection is a socket of this very process. Reads `/proc`; owns nothing.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader},
    net::{SocketAddr, SocketAddrV4},
};

/// Whether the connection from `peer` to `local`, as our accepting side sees it, was made by this process.
///
/// # Errors
/// When `/proc` cannot be read.
pub(super) fn is_ours(peer: SocketAddr, local: SocketAddr) -> io::Result<bool> {
    let (SocketAddr::V4(peer), SocketAddr::V4(local)) = (peer, local) else { return Ok(false) };
    match inode_of(peer, local)? {
        Some(inode) => holds_socket(&inode),
        None => Ok(false),
    }
}

/// The inode of the socket bound to `from` and connected to `to`.
fn inode_of(from: SocketAddrV4, to: SocketAddrV4) -> io::Result<Option<String>> {
    let ends = (hex(from), hex(to));
    for line in BufReader::new(File::open("/proc/self/net/tcp")?).lines() {
        let line = line?;
        let mut fields = line.split_ascii_whitespace().skip(1);
        if (fields.next(), fields.next()) == (Some(&ends.0), Some(&ends.1)) {
            return Ok(fields.nth(6).filter(|inode| *inode != "0").map(str::to_owned));
        }
    }
    Ok(None)
}

/// An address as `/proc/net/tcp` prints it: the address in the machine's byte order.
fn hex(address: SocketAddrV4) -> String {
    format!("{:08X}:{:04X}", u32::from_ne_bytes(address.ip().octets()), address.port())
}

fn holds_socket(inode: &str) -> io::Result<bool> {
    let wanted = format!("socket:[{inode}]");
    for entry in fs::read_dir("/proc/self/fd")? {
        // A descriptor closed while the folder is read has no target any more.
        if fs::read_link(entry?.path()).is_ok_and(|target| target.as_os_str() == wanted.as_str()) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use std::{
        net::{TcpListener, TcpStream},
        process::{Command, Stdio},
    };

    use super::*;

    #[test]
    fn our_own_connection_is_known() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, peer) = listener.accept().unwrap();
        assert!(is_ours(peer, accepted.local_addr().unwrap()).unwrap());
        drop(ours);
        assert!(!is_ours(peer, accepted.local_addr().unwrap()).unwrap(), "closed, so nobody's");
    }

    #[test]
    fn another_process_is_not_us() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let local = listener.local_addr().unwrap();
        let script = format!("exec 3<>/dev/tcp/127.0.0.1/{}; read -r -u 3 line", local.port());
        let mut other =
            Command::new("bash").args(["-c", &script]).stdin(Stdio::null()).spawn().expect("bash");
        let (accepted, peer) = listener.accept().unwrap();
        assert!(!is_ours(peer, local).unwrap());
        drop(accepted);
        other.wait().unwrap();
    }
}
