"""A real ZooKeeper server of Debian's package in a temporary directory, and kazoo to read its tree."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time

from peers import program
from procs import free_ports

JAR = "/usr/share/java/zookeeper.jar"


class ZooKeeper:
    """One server on a free port."""

    def __init__(self):
        if not os.path.exists(JAR):
            raise SystemExit(f"{JAR} is missing: install the Debian package zookeeper")
        self.directory = tempfile.mkdtemp(prefix="yagent-bench-zk-")
        self.port = free_ports(1)[0]
        self.address = f"127.0.0.1:{self.port}"
        self.process = None

    def __enter__(self):
        config = os.path.join(self.directory, "zoo.cfg")
        with open(config, "w", encoding="ascii") as out:
            out.write(f"dataDir={self.directory}\nclientPort={self.port}\nclientPortAddress=127.0.0.1\n")
            out.write("tickTime=500\nadmin.enableServer=false\n4lw.commands.whitelist=ruok\n")
        log = open(os.path.join(self.directory, "log"), "wb")
        self.process = subprocess.Popen(
            [program("java", "default-jre-headless"), "-Xmx128m", "-XX:+UseSerialGC", "-cp", JAR]
            + ["org.apache.zookeeper.server.quorum.QuorumPeerMain", config],
            stdout=log, stderr=log, cwd=self.directory,
        )
        log.close()
        self._wait()
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def freeze(self):
        """Stops the server without ending it."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self):
        """Lets it go on."""
        self.process.send_signal(signal.SIGCONT)

    def client(self):
        """A connected kazoo client."""
        try:
            from kazoo.client import KazooClient
        except ImportError:
            raise SystemExit("kazoo is missing: install the Debian package python3-kazoo") from None
        client = KazooClient(hosts=self.address, timeout=10)
        client.start(timeout=30)
        return client

    def _wait(self):
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 2) as sock:
                    sock.sendall(b"ruok")
                    if sock.recv(4) == b"imok":
                        return
            except OSError:
                pass
            if self.process.poll() is not None:
                raise SystemExit("ZooKeeper did not start: " + open(f"{self.directory}/log", errors="replace").read()[-800:])
            time.sleep(0.05)
        raise SystemExit("ZooKeeper did not answer within 60 s")
