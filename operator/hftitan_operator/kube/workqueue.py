"""The queue of jobs to reconcile: each key is at most once in the queue, and never with two workers at the same time.

A key that is woken while a worker processes it, once or many times, is processed once more afterwards. A failed key is
retried after a pause that grows to two seconds.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from hftitan_operator.kube.retry import pause
from hftitan_operator.port import Conflict

log = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)

CONFLICTS_AT_ONCE = 2
LONGEST_SLEEP = 86_400.0
"""Longer timers are split: the event loop does not support timers of years."""


class WorkQueue(Generic[K]):
    """`work(key)` returns the seconds after which to look again, or None to wait for `wake`."""

    def __init__(self, work: Callable[[K], Awaitable[float | None]], workers: int) -> None:
        self._work, self._workers = work, workers
        self._ready: deque[K] = deque()
        self._waiting: set[K] = set()
        """The keys in `_ready`."""
        self._busy: set[K] = set()
        self._again: set[K] = set()
        """Keys that were woken while busy."""
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._failures: dict[K, int] = {}
        self._signal = asyncio.Semaphore(0)
        self._closed = False
        self.on_error: Callable[[K, Exception], None] = lambda key, error: None

    @property
    def depth(self) -> int:
        return len(self._ready)

    def wake(self, key: K) -> None:
        """Queue this key; a key that failed waits until its pause is over. Call from the event loop's thread only."""
        timer = self._timers.get(key)
        if timer is not None:
            if key in self._failures:
                return
            del self._timers[key]
            timer.cancel()
        if key in self._busy:
            self._again.add(key)
        elif key not in self._waiting:
            self._waiting.add(key)
            self._ready.append(key)
            self._signal.release()

    async def drain(self, seconds: float) -> None:
        """Start no more work, and wait up to `seconds` for running work."""
        self._closed = True
        deadline = asyncio.get_running_loop().time() + seconds
        while self._busy and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.01)

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._workers):
                tasks.create_task(self._worker())

    async def _worker(self) -> None:
        while True:
            await self._signal.acquire()
            if self._closed:
                return
            key = self._ready.popleft()
            self._waiting.discard(key)
            self._busy.add(key)
            delay: float | None
            try:
                delay = await self._work(key)
                self._failures.pop(key, None)
            except Exception as error:
                delay = self._pause(key, error)
            finally:
                self._busy.discard(key)
            if key in self._again:
                # The key changed: process it again at once, except after an error.
                self._again.discard(key)
                delay = delay if key in self._failures else 0.0
            if delay is not None:
                loop = asyncio.get_running_loop()
                self._timers[key] = loop.call_later(min(delay, LONGEST_SLEEP), self._due, key)

    def _pause(self, key: K, error: Exception) -> float:
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        if isinstance(error, Conflict) and failures <= CONFLICTS_AT_ONCE:
            return 0.0  # conflicts are normal
        self.on_error(key, error)
        return pause(error, failures)

    def _due(self, key: K) -> None:
        del self._timers[key]
        self.wake(key)
