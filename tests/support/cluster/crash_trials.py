"""Lives in which the operator is killed at chosen writes, several side by side, each with an operator of its own."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from audit import Object
from fault_proxy import Call, Fault, FaultProxy, kill
from kubectl import wait
from lives import Home, Life, Script, World
from operator_process import QuickOperator

QUIET_SECONDS = 0.3
"""Without a write after its lists are in, an operator has nothing more to do."""
LIFE_SECONDS = 120.0


class Killer:
    """Sees the calls of one life's operators, counts their writes, and says when to kill. Runs in the proxy's thread.

    This one never does.
    """

    events = False
    """Whether lines for humans count. The operator never reads any."""

    def __init__(self) -> None:
        self.operator: QuickOperator | None = None
        self.writes = self.kills = 0
        self._synced, self._busy_at = False, 0.0

    def started(self, operator: QuickOperator) -> None:
        self.operator, self._synced = operator, False

    @property
    def quiet(self) -> bool:
        return self._synced and time.monotonic() - self._busy_at > QUIET_SECONDS

    def __call__(self, call: Call) -> Fault | None:
        if call.is_watch and call.resource == "pods":  # which follows the lists
            self._synced, self._busy_at = True, call.at
        if not call.is_write:
            return None
        self._busy_at = call.at
        if call.is_event and not self.events:
            return None
        self.writes += 1
        forward = self.forward()
        if forward is None or self.operator is None:
            return None
        self.kills += 1
        return kill(self.operator.kill, forward=forward)

    def forward(self) -> bool | None:
        """Whether a kill at this write comes after it; None for no kill."""
        return None

    def __str__(self) -> str:
        return "undisturbed"


class KillAt(Killer):
    """At the n-th write, from 1."""

    def __init__(self, number: int, *, forward: bool) -> None:
        super().__init__()
        self._number, self._forward = number, forward

    def forward(self) -> bool | None:
        return self._forward if self.writes == self._number else None

    def __str__(self) -> str:
        return f"killed {'after' if self._forward else 'before'} write {self._number}"


class KillAlways(Killer):
    """Before a write, then after the next one, and so on: no operator gets more than one write done, and each of the
    writes that brought the job further was killed before."""

    events = True

    def forward(self) -> bool | None:
        return self.kills % 2 == 1

    def __str__(self) -> str:
        return "killed at every write"


@dataclass
class Outcome:
    script: Script
    killer: Killer
    seconds: float
    status: Object
    """Without times."""
    wrong: list[str]


class Bench:
    """Namespaces with two nodes each; in each of them one life is lived at a time."""

    def __init__(self, world: World, proxy: FaultProxy, folder: Path, nodes: Sequence[Sequence[str]]) -> None:
        self._world, self._proxy, self._folder = world, proxy, folder
        self._killers: dict[str, Killer] = {}
        self._kubeconfig = proxy.kubeconfig
        self.namespaces: list[str] = []
        self._free: queue.Queue[tuple[str, Home]] = queue.Queue()
        self._count = 0
        for number, names in enumerate(nodes):
            namespace = world.admin.make_namespace(f"bench-{proxy.port}-{number}")
            self.namespaces.append(namespace)
            self._free.put((namespace, Home(world.admin, namespace, names)))
        proxy.script = self._script

    def _script(self, call: Call) -> Fault | None:
        killer = self._killers.get(call.namespace)
        return killer(call) if killer else None

    def run(self, trials: Iterable[tuple[Script, Killer]]) -> list[Outcome]:
        with ThreadPoolExecutor(len(self.namespaces)) as pool:
            return list(pool.map(lambda trial: self._run(*trial), trials))

    def _run(self, script: Script, killer: Killer) -> Outcome:
        namespace, home = self._free.get()
        try:
            home.restore()
            return self._live(script, killer, namespace, home.name)
        finally:
            self._free.put((namespace, home))

    def _live(self, script: Script, killer: Killer, namespace: str, home: str) -> Outcome:
        self._count += 1
        self._killers[namespace] = killer
        life = Life(self._world, script, namespace, f"life-{self._count}", home)
        operator = QuickOperator(self._kubeconfig, self._folder / f"{life.name}.log", namespace)
        began = time.monotonic()

        def over() -> bool:
            if not operator.alive:
                killer.started(operator.start())
            return life.poll() and killer.quiet

        try:
            life.begin()
            wait(over, "the end of the life", LIFE_SECONDS)
            return Outcome(script, killer, time.monotonic() - began, life.timeless(), life.verdict())
        except AssertionError as error:
            wrong = [f"{life.name}: {error} (deeds done: {life.done})", *life.verdict()]
            return Outcome(script, killer, time.monotonic() - began, life.timeless(), wrong)
        finally:
            del self._killers[namespace]
            operator.kill()
            life.erase()
