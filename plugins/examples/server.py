#!/usr/bin/python3
"""minicache: a very small cache server, so that the example engines have something real to start and to speak to.

One request a line, one answer a line:
    get KEY          value VALUE | none
    set KEY VALUE    ok | full
    stats            NAME VALUE, a line each, then: end
"""
import argparse
import socketserver
import threading
import time

STARTED = time.monotonic()
LOCK = threading.Lock()
DATA = {}
COUNTS = {"gets": 0, "hits": 0, "sets": 0}


def size():
    return sum(len(key) + len(value) for key, value in DATA.items())


def stats(limit):
    figures = dict(COUNTS, keys=len(DATA), bytes=size(), limit_bytes=limit, uptime_s=int(time.monotonic() - STARTED))
    lines = ["%s %s" % pair for pair in figures.items()]
    return "\n".join(lines + ["version 1.0", "end"])


def answer(words, limit):
    with LOCK:
        if len(words) == 2 and words[0] == "get":
            COUNTS["gets"] += 1
            COUNTS["hits"] += words[1] in DATA
            return "value " + DATA[words[1]] if words[1] in DATA else "none"
        if len(words) == 3 and words[0] == "set":
            if size() + len(words[1]) + len(words[2]) > limit:
                return "full"
            COUNTS["sets"] += 1
            DATA[words[1]] = words[2]
            return "ok"
        if words == ["stats"]:
            return stats(limit)
    return "what?"


class Client(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            text = answer(line.decode("utf-8", "replace").split(), self.server.limit)
            self.wfile.write(text.encode() + b"\n")


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bind", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True, help="0: a free one; it is printed")
    parser.add_argument("--megabytes", type=int, default=64)
    options = parser.parse_args()
    server = Server((options.bind, options.port), Client)
    server.limit = options.megabytes * 1024 * 1024
    print(server.server_address[1], flush=True)
    server.serve_forever()


main()
