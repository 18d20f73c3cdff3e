"""Faults at random on all that an operator says and hears, while jobs go through their lives."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fault_proxy import Call, Fault, StreamFault, answer, hang, kill, reset
from lives import SCRIPTS, Home, Life, World

BEFORE_WRITES: Sequence[Fault] = (
    answer(409), answer(410), answer(429), answer(429, retry_after=1), answer(500), answer(503), reset(),
)  # fmt: skip
AFTER_WRITES: Sequence[Fault] = (answer(500, forward=True), answer(503, forward=True), reset(forward=True))
READS: Sequence[Fault] = (answer(410), answer(429), answer(500), answer(503), reset())
STREAMS: Sequence[StreamFault] = ("drop", "drop", "drop", "duplicate", "late", "cut", "ERROR 410", "ERROR 500")
"""What is lost without a word is the worst: nothing but the next list tells."""
WRITE_FAULTS, READ_FAULTS, STREAM_FAULTS = 0.35, 0.12, 0.25
"""The shares that something happens to."""


class Storm:
    """The scripts of a FaultProxy; calm until `begin`."""

    def __init__(self, seed: int, victim: Callable[[], None]) -> None:
        self._random, self._victim = random.Random(seed), victim
        self._blows = False
        self._hangs: list[tuple[float, bool]] = []
        self._kills: list[tuple[float, bool]] = []

    def begin(self, seconds: float, *, hangs: int, kills: int) -> None:
        """So many requests hang, from early in the wave on; kills come all over it."""
        now = time.monotonic()
        self._hangs = [(now + self._random.uniform(0, seconds / 4), number % 2 == 1) for number in range(hangs)]
        self._kills = [(now + self._random.uniform(0, seconds), number % 2 == 1) for number in range(kills)]
        self._blows = True

    def end(self) -> None:
        self._blows = False

    def script(self, call: Call) -> Fault | None:
        if not self._blows or call.is_lease:
            return None
        if call.is_write:
            if self._due(self._kills, call):
                return kill(self._victim, forward=self._kills.pop()[1])
            if self._due(self._hangs, call):
                return hang(forward=self._hangs.pop()[1])
            kinds = self._random.choice((BEFORE_WRITES, AFTER_WRITES))
            return self._random.choice(kinds) if self._random.random() < WRITE_FAULTS else None
        return self._random.choice(READS) if self._random.random() < READ_FAULTS else None

    def stream_script(self, call: Call) -> StreamFault | None:
        return self._random.choice(STREAMS) if self._blows and self._random.random() < STREAM_FAULTS else None

    def _due(self, planned: list[tuple[float, bool]], call: Call) -> bool:
        planned.sort(reverse=True)
        return bool(planned) and planned[-1][0] <= call.at


@dataclass
class Tenant:
    """Lives one life after the other in a home; each wave brings a deed of it, or the next life."""

    world: World
    namespace: str
    home: Home
    number: int
    lives: list[Life] = field(default_factory=list)
    _deeds: int = 0
    """Of the newest life, that may be done by now."""
    _due: float | None = None
    _last: bool = False

    def move_on(self, due: float, *, last: bool) -> None:
        """`last`: all that is left of this life."""
        self._due, self._last = due, last

    def poll(self) -> bool:
        """Whether what was due is done, and the operator did its part."""
        if self._due is not None:
            if time.monotonic() < self._due:
                return False
            self._due = None
            if self._last:
                self._deeds = len(self.lives[-1].script.deeds)
            elif self.lives and self._deeds < len(self.lives[-1].script.deeds):
                self._deeds += 1
            else:
                self._begin()
        return self.lives[-1].poll(self._deeds)

    @property
    def owed(self) -> bool:
        """It has not settled, and that is up to the operator."""
        return not self.poll() and not self.lives[-1].in_motion

    def _begin(self) -> None:
        self.home.restore()
        script = SCRIPTS[(self.number + len(self.lives)) % len(SCRIPTS)]
        name = f"job-{self.number}-{len(self.lives)}"
        self.lives.append(Life(self.world, script, self.namespace, name, self.home.name).begin())
        self._deeds = 0
