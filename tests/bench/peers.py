"""Who is measured: the agent and, in the same run, the supervisors that are its peers.

Each brings up one memcached a port and keeps it alive in its own way. `stop` leaves nothing behind.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time

from procs import kill, listeners, memcached_argv, server_args, until_answered

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))


def program(name, package):
    """The path of a program; a missing one ends the run with the Debian package to install."""
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/bin:/usr/sbin")
    if not path:
        raise SystemExit(f"{name} is missing: install the Debian package {package}")
    return path


def agent_binary():
    """YAGENT_BIN, else the release build, else the debug build."""
    built = [os.path.join(ROOT, "target", profile, "yagent") for profile in ("release", "debug")]
    named = os.environ.get("YAGENT_BIN")
    for path in [named] if named else built:
        if os.path.isfile(path):
            return path
    raise SystemExit("yagent is not built: cargo build --release")


class Peer:
    """A supervisor with its fleet."""

    name = ""
    #: The longest time in which it may notice a dead instance by design, in seconds.
    cycle = 1.0

    def __init__(self, ports):
        self.ports = ports
        self.directory = tempfile.mkdtemp(prefix="yagent-bench-")
        # memcached writes its pid file as the user that it drops to.
        os.chmod(self.directory, 0o777)
        self.process = None

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_):
        self.stop()

    def start(self):
        """Starts the supervisor and waits until every instance answers."""
        self.launch()
        if until_answered(self.ports, time.monotonic(), 120) is None:
            raise SystemExit(f"{self.name}: not all of {len(self.ports)} instances answered within 120 s")

    def launch(self):
        """Starts the supervisor."""
        with open(self.path("out"), "ab") as out:
            self.process = subprocess.Popen(
                self.argv(), stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=self.directory
            )

    def argv(self):
        """The supervisor's command line; writes what it needs into the directory."""
        raise NotImplementedError

    def path(self, name):
        """A file in the peer's directory."""
        return os.path.join(self.directory, name)

    def write(self, name, text):
        """Writes a file that only its owner may read, as monit demands; returns its path."""
        with open(self.path(name), "w", encoding="utf-8") as out:
            out.write(text)
        os.chmod(self.path(name), 0o600)
        return self.path(name)

    def stop(self):
        """Ends the supervisor, then its instances."""
        if self.process:
            self.process.kill()
            self.process.wait()
        deadline = time.monotonic() + 10
        # A server that was just forked listens only a little later: look until nobody does, twice in a row.
        quiet = 0
        while quiet < 2 and time.monotonic() < deadline:
            left = listeners(self.ports)
            for pid in left.values():
                kill(pid)
            quiet = 0 if left else quiet + 1
            time.sleep(0.05)
        shutil.rmtree(self.directory, ignore_errors=True)


class Yagent(Peer):
    """The agent of this repository."""

    name = "yagent"

    def __init__(self, ports, zookeeper="none", name=None):
        super().__init__(ports)
        self.zookeeper = zookeeper
        self.name = name or self.name

    def argv(self):
        ini = f"""[global]
zoo_svr={self.zookeeper}
localip=127.0.0.1
CheckInterval=5
system_res_mem=64
statsEnable=1
statsIntervalNum=12
showStatIntervalSec=60,3600,86400
state_dir={self.path("state")}
log_file={self.path("log")}

[memcached]
mc_enabled=1
mc_maxmem=64
mc_meta_size=1
mc_count={len(self.ports)}
mc_args={' '.join(server_args())}
mc_port={self.ports[0]}
mc_port_step=1
mc_fpath=/usr/bin/memcached
mc_port_file={self.path("ports")}

[redis]
redis_enabled=0
"""
        return [agent_binary(), "run", "-c", self.write("yagent.ini", ini)]

    def start(self):
        super().start()
        self.wait_up()

    def wait_up(self, limit=60):
        """Waits until the agent itself says that every instance is up; returns its status."""
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                with open(self.path("out"), encoding="utf-8", errors="replace") as out:
                    raise SystemExit(f"yagent ended with {self.process.returncode}: {out.read()[-2000:]}")
            status = self.status()
            if status and sum(row["state"] == "up" for row in status["instances"]) == len(self.ports):
                return status
            time.sleep(0.002)
        raise SystemExit(f"yagent: not all instances up within {limit} s")

    def status(self):
        """What the agent says of itself; None when it does not answer."""
        try:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(5)
                sock.connect(self.path("state/yagent.sock"))
                sock.sendall(b'{"verb":"status"}\n')
                reply = b""
                while not reply.endswith(b"\n"):
                    piece = sock.recv(65536)
                    if not piece:
                        return None
                    reply += piece
                return json.loads(reply)
        except OSError:
            return None


class Supervisord(Peer):
    """supervisord with its defaults; it watches processes and asks servers nothing."""

    name = "supervisord"

    def argv(self):
        text = f"""[supervisord]
nodaemon=true
logfile={self.path("log")}
pidfile={self.path("supervisord.pid")}
childlogdir={self.directory}
minfds=1024
"""
        for port in self.ports:
            text += f"\n[program:mc_{port}]\ncommand={' '.join(memcached_argv(port))}\nautorestart=true\n"
            text += "stdout_logfile=NONE\nstderr_logfile=NONE\n"
        return [program("supervisord", "supervisor"), "-n", "-c", self.write("supervisord.conf", text)]


class Monit(Peer):
    """monit, with a protocol check of each instance every cycle."""

    def __init__(self, ports, cycle):
        super().__init__(ports)
        self.cycle, self.name = float(cycle), f"monit, {cycle} s cycles"
        self.daemon_cycle = cycle

    def argv(self):
        text = f"set daemon {self.daemon_cycle}\nset log {self.path('log')}\nset pidfile {self.path('monit.pid')}\n"
        text += f"set idfile {self.path('monit.id')}\nset statefile {self.path('monit.state')}\n"
        for port in self.ports:
            pid_file = self.path(f"{port}.pid")
            start = " ".join(memcached_argv(port) + ["-d", "-P", pid_file])
            # One program for both: between a stop and a start monit sometimes waits 30 s for the dead process, its own
            # child by then, to vanish.
            text += f"""check process mc_{port} with pidfile {pid_file}
  start program = "{start}"
  restart program = "/bin/sh -c 'kill -9 $(cat {pid_file}); exec {start}'"
  if failed host 127.0.0.1 port {port} protocol memcache with timeout 1 seconds then restart
"""
        return [program("monit", "monit"), "-I", "-c", self.write("monitrc", text)]


class Legacy(Peer):
    """The emulation of the Python agent in legacy.py."""

    name = "legacy emulation"
    cycle = 5.0

    def argv(self):
        program("nc", "netcat-openbsd")
        script = os.path.join(HERE, "legacy.py")
        return [sys.executable, script, self.directory, str(self.cycle)] + [str(port) for port in self.ports]
