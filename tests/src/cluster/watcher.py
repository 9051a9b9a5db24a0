"""Tells every change of some ZooKeeper nodes, one JSON line each, with the time at which it was seen on the monotonic
clock: argv is the servers and the paths."""
import json
import logging
import sys
import threading
import time

from kazoo.client import KazooClient

logging.disable(logging.CRITICAL)
client = KazooClient(
    hosts=sys.argv[1],
    timeout=4,
    connection_retry={"max_tries": -1, "delay": 0.05, "backoff": 1, "max_delay": 0.2},
    command_retry={"max_tries": -1, "delay": 0.05, "backoff": 1, "max_delay": 0.2},
)
out = threading.Lock()


def watch(path):
    def seen(content, stat):
        line = {"at": time.monotonic(), "path": path, "content": None}
        if stat is not None:
            line.update(content=content.decode("utf-8", "replace"), owner=stat.ephemeralOwner)
        with out:
            print(json.dumps(line), flush=True)

    client.DataWatch(path, seen)


client.start(timeout=60)
for name in sys.argv[2:]:
    watch(name)
sys.stdin.read()
