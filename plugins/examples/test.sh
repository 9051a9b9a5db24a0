#!/bin/sh
# Builds the plugin, checks it, and tries it on a live server. $YAGENT names the agent's program.
set -eu
cd "$(dirname "$0")"
yagent=${YAGENT:-yagent}

@BUILD@

"$yagent" plugin check "$plugin" --fixtures fixtures

mkfifo port.fifo
./server.py --port 0 >port.fifo &
server=$!
trap 'kill "$server"; rm -f port.fifo' EXIT
read -r port <port.fifo
"$yagent" plugin try "$plugin" --port "$port" --set program="$PWD/server.py"
