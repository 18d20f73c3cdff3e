"""Random faults on the requests and watches of an operator, while jobs go through scenarios."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fault_proxy import Call, Fault, StreamFault, answer, hang, kill, reset
from scenarios import SCENARIOS, AuditedCluster, NodeGroup, ScenarioRun

BEFORE_WRITES: Sequence[Fault] = (
    answer(409), answer(410), answer(429), answer(429, retry_after=1), answer(500), answer(503), reset(),
)  # fmt: skip
AFTER_WRITES: Sequence[Fault] = (answer(500, forward=True), answer(503, forward=True), reset(forward=True))
READS: Sequence[Fault] = (answer(410), answer(429), answer(500), answer(503), reset())
STREAMS: Sequence[StreamFault] = ("duplicate", "late", "cut", "stall", "ERROR 410", "ERROR 500")
WRITE_FAULTS, READ_FAULTS, STREAM_FAULTS = 0.35, 0.12, 0.25
"""Probabilities of a fault."""


class RandomFaults:
    """The scripts of a FaultProxy. They inject faults between `begin` and `end`."""

    def __init__(self, seed: int, victim: Callable[[], None]) -> None:
        self._random, self._victim = random.Random(seed), victim
        self._active = False
        self._hangs: list[tuple[float, bool]] = []
        self._kills: list[tuple[float, bool]] = []

    def begin(self, seconds: float, *, hangs: int, kills: int) -> None:
        """Inject faults for `seconds`: hanging requests start in the first quarter, kills at any time."""
        now = time.monotonic()
        self._hangs = [(now + self._random.uniform(0, seconds / 4), number % 2 == 1) for number in range(hangs)]
        self._kills = [(now + self._random.uniform(0, seconds), number % 2 == 1) for number in range(kills)]
        self._active = True

    def end(self) -> None:
        self._active = False

    def script(self, call: Call) -> Fault | None:
        if not self._active or call.is_lease:
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
        return self._random.choice(STREAMS) if self._active and self._random.random() < STREAM_FAULTS else None

    def _due(self, planned: list[tuple[float, bool]], call: Call) -> bool:
        planned.sort(reverse=True)
        return bool(planned) and planned[-1][0] <= call.at


@dataclass
class ScenarioLoop:
    """Runs one scenario after the other in a node group. Each wave allows one more step, or starts the next run."""

    cluster: AuditedCluster
    namespace: str
    group: NodeGroup
    number: int
    runs: list[ScenarioRun] = field(default_factory=list)
    _steps: int = 0
    """Number of steps of the newest run that are allowed so far."""
    _due: float | None = None
    _last: bool = False

    def schedule(self, due: float, *, last: bool) -> None:
        """Allow the next step at time `due`. `last`: allow all remaining steps of this run."""
        self._due, self._last = due, last

    def poll(self) -> bool:
        """Return whether the allowed steps are done and the operator has reacted to them."""
        if self._due is not None:
            if time.monotonic() < self._due:
                return False
            self._due = None
            if self._last:
                self._steps = len(self.runs[-1].scenario.steps)
            elif self.runs and self._steps < len(self.runs[-1].scenario.steps):
                self._steps += 1
            else:
                self._begin()
        return self.runs[-1].poll(self._steps)

    @property
    def waits_for_operator(self) -> bool:
        """Whether the run has not settled and waits only for the operator."""
        return not self.poll() and not self.runs[-1].waits_for_pods

    def _begin(self) -> None:
        self.group.restore()
        scenario = SCENARIOS[(self.number + len(self.runs)) % len(SCENARIOS)]
        name = f"job-{self.number}-{len(self.runs)}"
        self.runs.append(ScenarioRun(self.cluster, scenario, self.namespace, name, self.group.name).create())
        self._steps = 0
