#!/usr/bin/python3
"""A small emulation of the Python agent's supervision, as a peer to measure against.

Every CheckInterval, one instance after another: a port check with nc, a key fetched, `kill -9` and a new start where
no answer came in time; with statistics on, each instance's counters are read and every sample is kept. It writes to no
ZooKeeper, which favours it.

usage: legacy.py DIRECTORY CHECK_INTERVAL PORT...
"""

import os
import signal
import socket
import subprocess
import sys
import time

from procs import kill, memcached_argv


class Instance:
    """One memcached on one port."""

    def __init__(self, directory, port):
        self.port, self.pid_file, self.samples = port, f"{directory}/{port}.pid", []

    def start(self):
        """Starts it as a daemon of its own."""
        subprocess.call(memcached_argv(self.port) + ["-d", "-P", self.pid_file])

    def check(self):
        """Probes it; restarts it where it does not answer."""
        if self.port_open() and self.fetch(b"get yagent\r\n"):
            text = self.fetch(b"stats\r\n")
            self.samples.append(dict(line.split(" ")[1:3] for line in text.splitlines() if line.startswith("STAT ")))
        else:
            self.restart()

    def port_open(self):
        """The port check, with nc as the original."""
        return subprocess.call(["nc", "-z", "-w", "1", "127.0.0.1", str(self.port)]) == 0

    def fetch(self, request):
        """One exchange on a new connection; empty when it failed."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as sock:
                sock.sendall(request)
                reply = b""
                while not reply.endswith(b"END\r\n"):
                    piece = sock.recv(65536)
                    if not piece:
                        return ""
                    reply += piece
                return reply.decode()
        except OSError:
            return ""

    def restart(self):
        """kill -9 and start."""
        try:
            with open(self.pid_file, encoding="ascii") as text:
                kill(int(text.read()), signal.SIGKILL)
            os.unlink(self.pid_file)
        except (OSError, ValueError):
            pass
        self.start()


def main():
    """Starts all instances and looks after them for ever."""
    directory, interval = sys.argv[1], float(sys.argv[2])
    instances = [Instance(directory, int(port)) for port in sys.argv[3:]]
    for instance in instances:
        instance.start()
    while True:
        time.sleep(interval)
        for instance in instances:
            instance.check()


if __name__ == "__main__":
    main()
