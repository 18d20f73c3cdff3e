"""Scripted pods without processes, for benchmarks and crash tests with hundreds of pods.

A script is one object, or a list of objects of which the first that matches the pod is used:

    attempt, index   the pods it matches; default: all
    runningAfter     seconds from the bind to Running (0)
    readyAfter       seconds from Running to ready (0)
    endsAfter        seconds from Running to the end (never)
    exitCode, reason, message
                     for that end (0, Completed or Error, no termination log)
    stopCode, stopMessage
                     for the end by deletion, which is immediate (143, no termination log)

The script is in the pod's annotation SCRIPT; the default is the kubelet's.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import aiohttp
from kubelet_api import Object
from kubelet_pod import address_of

from hftitan_operator.core.naming import LABEL_ATTEMPT

SCRIPT = "test.hftitan.io/script"


class FakePod:
    """A scripted pod with the interface of ProcessPod."""

    def __init__(self, pod: Object, default: Any) -> None:
        metadata = pod["metadata"]
        self.address, index, _ = address_of(pod)
        attempt = int(metadata.get("labels", {}).get(LABEL_ATTEMPT, 0))
        scripts = json.loads(metadata.get("annotations", {}).get(SCRIPT, "null")) or default
        scripts = scripts if isinstance(scripts, list) else [scripts]
        fits = (s for s in scripts if s.get("attempt", attempt) == attempt and s.get("index", index) == index)
        self._script: dict[str, Any] = next(fits, {})
        self.done = asyncio.Event()
        self.exit_code, self.message, self.reason = 0, "", ""
        self._running_at = 0.0
        self._end: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        await asyncio.sleep(self._script.get("runningAfter", 0))
        self._running_at = time.monotonic()
        if (seconds := self._script.get("endsAfter")) is not None:
            code, message = self._script.get("exitCode", 0), self._script.get("message", "")
            self._end = asyncio.get_running_loop().call_later(
                seconds, self._finish, code, message, self._script.get("reason", "")
            )

    async def ready(self, _: aiohttp.ClientSession) -> bool:
        return time.monotonic() - self._running_at >= self._script.get("readyAfter", 0)

    def stop(self, _: float) -> None:
        self._finish(self._script.get("stopCode", 143), self._script.get("stopMessage", ""), "")

    def release(self) -> None:
        if self._end is not None:
            self._end.cancel()

    def _finish(self, code: int, message: str, reason: str) -> None:
        if not self.done.is_set():
            self.exit_code, self.message, self.reason = code, message, reason
            self.done.set()
