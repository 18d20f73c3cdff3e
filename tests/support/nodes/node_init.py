"""Process 1 of a node, in namespaces of its own: starts and kills the node's programs on request, and reaps orphans.

Each line on stdin is a JSON request, each line on stdout its answer:

    {"run": [words]}                             run to the end -> {"code": 0, "output": "..."}
    {"start": "kubelet", "words": [], "log": path} -> {"pid": 17}
    {"kill": "kubelet", "signal": 9}             kill and wait -> {"code": -9}

It ends when stdin is closed. All processes of the node end with it, because it is process 1 of their PID namespace.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from typing import Any

pids: dict[str, int] = {}
ended: dict[int, int] = {}
"""Exit codes of processes that were reaped."""


def reap(block_for: int | None = None) -> int:
    """Reap all ended processes. With `block_for`, wait until that process has ended, and return its exit code."""
    while block_for not in ended:
        try:
            pid, status = os.waitpid(-1, 0 if block_for is not None else os.WNOHANG)
        except ChildProcessError:
            break
        if pid == 0:
            break
        ended[pid] = os.waitstatus_to_exitcode(status)
    return ended.pop(block_for, -1) if block_for is not None else 0


def answer(request: dict[str, Any]) -> dict[str, Any]:
    if "run" in request:
        read, write = os.pipe()
        process = subprocess.Popen(request["run"], stdin=subprocess.DEVNULL, stdout=write, stderr=write)
        os.close(write)
        with open(read, encoding="utf-8", errors="replace") as output:
            text = output.read()
        return {"code": reap(process.pid), "output": text}
    if "start" in request:
        with open(request["log"], "ab") as log:
            process = subprocess.Popen(
                request["words"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        process.returncode = 0  # this module waits for its processes, not subprocess
        pids[request["start"]] = process.pid
        return {"pid": process.pid}
    pid = pids.pop(request["kill"])
    if pid not in ended:
        os.kill(pid, request["signal"])
    return {"code": reap(pid)}


def main() -> None:
    while True:
        ready, _, _ = select.select([sys.stdin.buffer], [], [], 1.0)
        reap()
        if not ready:
            continue
        line = sys.stdin.buffer.readline()
        if not line:
            return
        try:
            reply = answer(json.loads(line))
        except (OSError, KeyError) as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
