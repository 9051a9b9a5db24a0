//! Messages to systemd: ready, status, watchdog, reloading, stopping.
//!
//! The `sd-notify` crate sends on a blocking socket and would stop the loop when systemd does not read; here a
//! message that does not fit is kept and goes out with the next one.

use std::{
    env,
    ffi::OsString,
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};

/// Variables by which a supervisor speaks to this process alone; nothing that the agent starts may inherit them.
pub const SCRUBBED: [&str; 11] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "LISTEN_PIDFDID",
    "JOURNAL_STREAM",
    "INVOCATION_ID",
    "MANAGERPID",
    "SYSTEMD_EXEC_PID",
];

/// What is kept for a systemd that does not read, in bytes.
const KEPT_AT_MOST: usize = 4096;

/// The way to systemd. Without one, every method does nothing.
#[derive(Debug, Default)]
pub struct Notifier {
    socket: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
    /// Lines that could not be sent yet.
    kept: String,
}

impl Notifier {
    /// As the environment says.
    ///
    /// # Errors
    /// When `NOTIFY_SOCKET` names a socket that cannot be used.
    pub fn from_env() -> io::Result<Notifier> {
        let Some(name) = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Ok(Notifier::default());
        };
        let watchdog = watchdog_limit(env::var("WATCHDOG_USEC").ok(), env::var("WATCHDOG_PID").ok());
        Notifier::new(name, watchdog)
    }

    fn new(name: OsString, watchdog: Option<Duration>) -> io::Result<Notifier> {
        let told = |e| io::Error::other(format!("cannot use NOTIFY_SOCKET {}: {e}", name.display()));
        let address = match name.as_bytes() {
            [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest),
            _ => SocketAddr::from_pathname(&name),
        };
        let address = address.map_err(told)?;
        let socket = UnixDatagram::unbound().map_err(told)?;
        socket.set_nonblocking(true).map_err(told)?;
        Ok(Notifier { socket: Some((socket, address)), watchdog, kept: String::new() })
    }

    /// How often [`watchdog`](Self::watchdog) should be called, if systemd watches: half of its limit.
    pub fn watchdog_interval(&self) -> Option<Duration> {
        self.watchdog.map(|limit| limit / 2)
    }

    /// The agent has started, or has reloaded.
    pub fn ready(&mut self) {
        self.send("READY=1\n", true);
    }

    /// One line for `systemctl status`.
    pub fn status(&mut self, text: &str) {
        let text: String = text.chars().filter(|c| !c.is_control()).take(500).collect();
        self.send(&format!("STATUS={text}\n"), true);
    }

    /// The loop is alive.
    pub fn watchdog(&mut self) {
        self.send(if self.watchdog.is_some() { "WATCHDOG=1\n" } else { "" }, false);
    }

    /// A reload begins; [`ready`](Self::ready) ends it.
    pub fn reloading(&mut self) {
        let now = clock_gettime(ClockId::Monotonic);
        let micros = now.tv_sec * 1_000_000 + now.tv_nsec / 1000;
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={micros}\n"), true);
    }

    /// The agent is about to end.
    pub fn stopping(&mut self) {
        self.send("STOPPING=1\n", true);
    }

    fn send(&mut self, lines: &str, keep: bool) {
        let Some((socket, address)) = &self.socket else { return };
        if lines.is_empty() && self.kept.is_empty() {
            return;
        }
        let message = format!("{}{lines}", self.kept);
        match socket.send_to_addr(message.as_bytes(), address) {
            Ok(_) => self.kept.clear(),
            Err(_) if keep && message.len() <= KEPT_AT_MOST => self.kept = message,
            // What was kept stays; a sign of life of this moment is worth nothing later.
            Err(_) => {}
        }
    }
}

/// systemd's limit, where it watches this process and not its parent.
fn watchdog_limit(usec: Option<String>, pid: Option<String>) -> Option<Duration> {
    let limit = usec?.parse().ok().filter(|usec| *usec > 0).map(Duration::from_micros)?;
    match pid {
        Some(pid) if pid.parse() != Ok(std::process::id()) => None,
        _ => Some(limit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 8192];
        let size = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..size].to_vec()).unwrap()
    }

    #[test]
    fn messages_reach_a_socket_in_the_file_system() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let systemd = UnixDatagram::bind(&path).unwrap();
        let mut notifier = Notifier::new(path.into(), Some(Duration::from_secs(10))).unwrap();
        assert_eq!(notifier.watchdog_interval(), Some(Duration::from_secs(5)));
        notifier.ready();
        notifier.status("7 of 7 instances are up\nREADY=1");
        notifier.watchdog();
        notifier.stopping();
        assert_eq!(received(&systemd), "READY=1\n");
        assert_eq!(received(&systemd), "STATUS=7 of 7 instances are upREADY=1\n");
        assert_eq!(received(&systemd), "WATCHDOG=1\n");
        assert_eq!(received(&systemd), "STOPPING=1\n");
    }

    #[test]
    fn a_reload_tells_the_time_of_the_monotonic_clock() {
        let name = format!("yagent-test-{}", std::process::id());
        let systemd = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let mut notifier = Notifier::new(format!("@{name}").into(), None).unwrap();
        notifier.reloading();
        let text = received(&systemd);
        let micros = text.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap().trim_end();
        let now = clock_gettime(ClockId::Monotonic);
        let age = now.tv_sec * 1_000_000 + now.tv_nsec / 1000 - micros.parse::<i64>().unwrap();
        assert!((0..60_000_000).contains(&age), "{age}");
    }

    #[test]
    fn a_systemd_that_does_not_read_blocks_nobody_and_loses_nothing_that_matters() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let systemd = UnixDatagram::bind(&path).unwrap();
        let mut notifier = Notifier::new(path.into(), Some(Duration::from_secs(10))).unwrap();
        for _ in 0..10_000 {
            notifier.watchdog();
        }
        notifier.ready();
        notifier.watchdog();
        systemd.set_nonblocking(true).unwrap();
        while systemd.recv(&mut [0; 100]).is_ok() {}
        notifier.watchdog();
        assert_eq!(received(&systemd), "READY=1\nWATCHDOG=1\n");
    }

    #[test]
    fn without_systemd_nothing_is_sent_or_kept() {
        let mut notifier = Notifier::default();
        notifier.ready();
        assert_eq!((notifier.watchdog_interval(), notifier.kept.as_str()), (None, ""));
    }

    #[test]
    fn the_watchdog_of_another_process_is_not_ours() {
        let some = |text: &str| Some(text.to_owned());
        let own = std::process::id().to_string();
        assert_eq!(watchdog_limit(some("30000000"), Some(own)), Some(Duration::from_secs(30)));
        assert_eq!(watchdog_limit(some("30000000"), None), Some(Duration::from_secs(30)));
        assert_eq!(watchdog_limit(some("30000000"), some("1")), None);
        assert_eq!(watchdog_limit(some("0"), None), None);
        assert_eq!(watchdog_limit(some("soon"), None), None);
        assert_eq!(watchdog_limit(None, None), None);
    }
}
