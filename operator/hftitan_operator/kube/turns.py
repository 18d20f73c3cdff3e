"""A semaphore that grants slots in deadline order, so that no caller starves."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
from collections.abc import AsyncIterator


class Turns:
    """Use as `async with turns.take(patience)`: at most `at_once` holders at a time. For one event loop only."""

    def __init__(self, at_once: int) -> None:
        self._free = at_once
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        """A heap ordered by deadline; it is empty while a slot is free."""
        self._tickets = itertools.count()

    @contextlib.asynccontextmanager
    async def take(self, patience: float = 0.0) -> AsyncIterator[None]:
        """Hold a slot. The deadline is `patience` seconds from now; later callers with an earlier deadline go first."""
        if self._free:
            self._free -= 1
        else:
            await self._wait(patience)
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, patience: float) -> None:
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        heapq.heappush(self._waiting, (loop.time() + patience, next(self._tickets), turn))
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # the slot was granted at the same moment
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        while self._waiting:
            turn = heapq.heappop(self._waiting)[2]
            if not turn.done():  # else cancelled
                turn.set_result(None)
                return
        self._free += 1
