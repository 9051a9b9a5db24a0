"""The cost of one step of a probe through the plugin contract: wall-clock by `probe_step`, instructions by callgrind.

Instructions are the difference of a long and a short run by their difference in steps, so that the start of the
process and the loading of the plugin fall out.
"""

import os
import re
import shutil
import statistics
import subprocess
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def binary():
    """`probe_step` with both plugins beside it: the release build, else the debug build."""
    needed = ("probe_step", "libyagent_memcached.so", "libyagent_redis.so")
    for profile in ("release", "debug"):
        folder = os.path.join(ROOT, "target", profile)
        if all(os.path.isfile(os.path.join(folder, name)) for name in needed):
            return os.path.join(folder, needed[0])
    raise SystemExit("probe_step or a plugin is not built: cargo build --release --workspace")


def run(*words):
    """The standard output of a command that must go well, and its standard error."""
    # Only the plugins beside the program are meant, whatever the caller's surroundings name.
    env = {name: value for name, value in os.environ.items() if name != "YAGENT_PLUGIN_DIR"}
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(words)} failed: {done.stderr.strip()[-2000:]}")
    return done.stdout, done.stderr


def nanoseconds(engine, kind, rounds, steps):
    """Median and smallest of the rounds."""
    took = [float(run(binary(), engine, kind, str(steps))[0]) for _ in range(rounds)]
    return f"{statistics.median(took):9.1f} ns median  {min(took):9.1f} min  {rounds} x {steps} steps"


def instructions(engine, kind):
    """Instructions a step, or why they are not known."""
    if not shutil.which("valgrind"):
        return "not counted: valgrind is not installed"
    few, many = 1000, 11000
    return f"{(counted(engine, kind, many) - counted(engine, kind, few)) / (many - few):9.1f} instructions (callgrind)"


def counted(engine, kind, steps):
    """Instructions of a whole run."""
    with tempfile.TemporaryDirectory() as folder:
        out = f"--callgrind-out-file={folder}/out"
        _, told = run("valgrind", "--tool=callgrind", out, binary(), engine, kind, str(steps))
    collected = re.search(r"Collected : (\d+)", told)
    if not collected:
        raise SystemExit(f"callgrind told no count: {told.strip()[-2000:]}")
    return int(collected.group(1))
