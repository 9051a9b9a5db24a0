"""Processes, ports and first answers: what every measurement needs. Linux only, nothing beyond the standard library."""

import os
import selectors
import signal
import socket
import time

TICKS = os.sysconf("SC_CLK_TCK")
MEMCACHED = "/usr/bin/memcached"


def memcached_argv(port):
    """The same server for the floor and for every peer."""
    return [MEMCACHED, "-m", "64", "-p", str(port)] + server_args()


def server_args():
    """What goes into `mc_args`. Only root may, and must, name another user."""
    other_user = ["-u", "nobody"] if os.geteuid() == 0 else []
    return ["-U", "0", "-l", "127.0.0.1", "-t", "1", "-c", "256"] + other_user


def free_ports(count):
    """`count` consecutive free ports below the range of outgoing connections."""
    with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as text:
        end = int(text.read().split()[0])
    for base in range(13000 + os.getpid() % 7000, end - count, count):
        if all(is_free(port) for port in range(base, base + count)):
            return list(range(base, base + count))
    raise SystemExit(f"no {count} consecutive free ports")


def is_free(port):
    """Whether nobody listens on `port`."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return False
    return True


def listeners(ports):
    """Who listens: a dict of port to pid."""
    wanted, found = set(ports), {}
    sockets = {}
    with open("/proc/net/tcp", encoding="ascii") as table:
        for line in list(table)[1:]:
            fields = line.split()
            port = int(fields[1].rsplit(":", 1)[1], 16)
            if fields[3] == "0A" and port in wanted:
                sockets[f"socket:[{fields[9]}]"] = port
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            for fd in os.listdir(f"/proc/{pid}/fd"):
                port = sockets.get(os.readlink(f"/proc/{pid}/fd/{fd}"))
                if port:
                    found[port] = int(pid)
        except OSError:
            continue
    return found


def kill(pid, number=signal.SIGKILL):
    """Signals one process; one that is gone already is no error."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def cpu_seconds(pid):
    """CPU time of a process and of the children that it waited for."""
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as text:
        fields = text.read().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / TICKS


def resident_kib(pid):
    """Resident memory of a process."""
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as text:
        return next(int(line.split()[1]) for line in text if line.startswith("VmRSS:"))


class Asker:
    """Asks one port for a key, again and again on new connections, until an answer comes."""

    PATIENCE = 0.05

    def __init__(self, port):
        self.port, self.sock, self.begun = port, None, 0.0

    def step(self, now):
        """One non-blocking step; True once the server has answered."""
        if self.sock is None:
            return self._connect(now)
        try:
            if self.sock.send(b"get yagent-bench\r\n") and self._answered():
                return True
        except BlockingIOError:
            pass
        except OSError:
            self._drop()
            return False
        if now - self.begun > self.PATIENCE:
            self._drop()
        return False

    def _connect(self, now):
        self.sock, self.begun = socket.socket(), now
        self.sock.setblocking(False)
        code = self.sock.connect_ex(("127.0.0.1", self.port))
        if code not in (0, 115):
            self._drop()
        return False

    def _answered(self):
        with selectors.DefaultSelector() as selector:
            selector.register(self.sock, selectors.EVENT_READ)
            if not selector.select(0.002):
                return False
        if b"END" in self.sock.recv(64):
            self._drop()
            return True
        self._drop()
        return False

    def _drop(self):
        if self.sock is not None:
            self.sock.close()
            self.sock = None


def until_answered(ports, begun, limit):
    """Seconds from `begun` until every port has answered; None when `limit` passed first."""
    open_ports = [Asker(port) for port in ports]
    while open_ports:
        now = time.monotonic()
        if now - begun > limit:
            return None
        open_ports = [asker for asker in open_ports if not asker.step(now)]
        # Polling must not take the core that the server needs to start on.
        time.sleep(0.0003)
    return time.monotonic() - begun
