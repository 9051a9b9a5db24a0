"""Reads and changes ZooKeeper for the tests, with a client that is not ours. One JSON request a line on standard
input, one JSON answer a line on standard output; a connection of its own for each request."""
import json
import logging
import sys

from kazoo.client import KazooClient
from kazoo.exceptions import NoNodeError
from kazoo.security import make_acl

logging.disable(logging.CRITICAL)


def tree(client, path, found):
    try:
        content, stat = client.get(path)
        acl = sorted("%s:%s:%d" % (a.id.scheme, a.id.id, a.perms) for a in client.get_acls(path)[0])
        found[path] = {
            "content": content.decode("utf-8", "replace"),
            "owner": stat.ephemeralOwner,
            "version": stat.version,
            "acl": acl,
        }
        for name in client.get_children(path):
            tree(client, path.rstrip("/") + "/" + name, found)
    except NoNodeError:
        pass  # gone since its parent was read
    return found


def answer(request):
    client = KazooClient(hosts=request["servers"], timeout=10)
    client.start(timeout=request.get("patience", 10))
    try:
        what, path = request["do"], request["path"]
        if what == "tree":
            return tree(client, path, {})
        if what == "set":
            return client.set(path, request["content"].encode()).version
        if what == "create":
            return client.create(path, request["content"].encode(), makepath=True)
        if what == "rights":
            rights = {right: True for right in request["rights"]}
            return client.set_acls(path, [make_acl("world", "anyone", **rights)]).version
        if what == "delete":
            return client.delete(path, recursive=True)
        raise ValueError(what)
    finally:
        client.stop()
        client.close()


for line in sys.stdin:
    try:
        reply = {"ok": answer(json.loads(line))}
    except Exception as e:
        reply = {"error": "%s: %s" % (type(e).__name__, e)}
    print(json.dumps(reply), flush=True)
