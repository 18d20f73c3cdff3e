"""Trials in which the operator is killed at chosen writes. Several run in parallel, each with its own operator."""

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
from operator_process import QuickOperator
from scenarios import AuditedCluster, NodeGroup, Scenario, ScenarioRun

QUIET_SECONDS = 0.3
"""An operator that has listed its objects and writes nothing for this long has nothing more to do."""
RUN_SECONDS = 120.0


class Killer:
    """Counts the writes of a run's operators and decides when to kill one. Called in the proxy's thread.

    This base class never kills.
    """

    events = False
    """Whether Events count as writes. The operator never reads them."""

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
        if call.is_watch and call.resource == "hftitanjobs" and not call.is_list:  # comes after the lists
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
        """Return True to kill after this write, False to kill before it, None for no kill."""
        return None

    def __str__(self) -> str:
        return "undisturbed"


class KillAt(Killer):
    """Kills at the n-th write, counted from 1."""

    def __init__(self, number: int, *, forward: bool) -> None:
        super().__init__()
        self._number, self._forward = number, forward

    def forward(self) -> bool | None:
        return self._forward if self.writes == self._number else None

    def __str__(self) -> str:
        return f"killed {'after' if self._forward else 'before'} write {self._number}"


class KillAlways(Killer):
    """Kills before one write, after the next, and so on. Each operator completes at most one write, and every write
    that moves the job forward was interrupted before."""

    events = True

    def forward(self) -> bool | None:
        return self.kills % 2 == 1

    def __str__(self) -> str:
        return "killed at every write"


@dataclass
class Outcome:
    scenario: Scenario
    killer: Killer
    seconds: float
    status: Object
    """Status without times."""
    problems: list[str]


class TrialRunner:
    """Runs trials in several namespaces, one at a time in each. Each namespace has two nodes."""

    def __init__(
        self, cluster: AuditedCluster, proxy: FaultProxy, folder: Path, nodes: Sequence[Sequence[str]]
    ) -> None:
        self._cluster, self._proxy, self._folder = cluster, proxy, folder
        self._killers: dict[str, Killer] = {}
        self._kubeconfig = proxy.kubeconfig
        self.namespaces: list[str] = []
        self._free: queue.Queue[tuple[str, NodeGroup]] = queue.Queue()
        self._count = 0
        for number, names in enumerate(nodes):
            namespace = cluster.admin.make_namespace(f"trials-{proxy.port}-{number}")
            self.namespaces.append(namespace)
            self._free.put((namespace, NodeGroup(cluster.admin, namespace, names)))
        proxy.script = self._script

    def _script(self, call: Call) -> Fault | None:
        killer = self._killers.get(call.namespace)
        return killer(call) if killer else None

    def run(self, trials: Iterable[tuple[Scenario, Killer]]) -> list[Outcome]:
        with ThreadPoolExecutor(len(self.namespaces)) as pool:
            return list(pool.map(lambda trial: self._run(*trial), trials))

    def _run(self, scenario: Scenario, killer: Killer) -> Outcome:
        namespace, group = self._free.get()
        try:
            group.restore()
            return self._run_scenario(scenario, killer, namespace, group.name)
        finally:
            self._free.put((namespace, group))

    def _run_scenario(self, scenario: Scenario, killer: Killer, namespace: str, group: str) -> Outcome:
        self._count += 1
        self._killers[namespace] = killer
        run = ScenarioRun(self._cluster, scenario, namespace, f"trial-{self._count}", group)
        operator = QuickOperator(self._kubeconfig, self._folder / f"{run.name}.log", namespace)
        began = time.monotonic()

        def over() -> bool:
            if not operator.alive:
                killer.started(operator.start())
            return run.poll() and killer.quiet

        try:
            run.create()
            wait(over, "the end of the run", RUN_SECONDS)
            return Outcome(scenario, killer, time.monotonic() - began, run.status_without_times(), run.problems())
        except AssertionError as error:
            problems = [f"{run.name}: {error} (steps done: {run.done})", *run.problems()]
            return Outcome(scenario, killer, time.monotonic() - began, run.status_without_times(), problems)
        finally:
            del self._killers[namespace]
            operator.kill()
            run.delete()
