"""`hftitan logs`: prints the logs of a job's pods, by rank, across attempts.

One pod runs the ranks of one node, and they share its output. The trainer marks its lines (`[rank 3] INFO ...`) and
PyTorch marks tracebacks (`[rank3]: ...`). An unmarked line belongs to the marked line before it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hftitan_api.models import TERMINAL, HFTitanJob
from hftitan_operator.cli.client import Cluster, Trouble, explain
from hftitan_operator.core import clock, naming
from hftitan_operator.kube.api import ApiError
from hftitan_operator.kube.views import TRAINER, job_view

MOST_PODS = 50
"""Most logs read at once. For a larger job, the user must select a rank or node."""
RETRY_SECONDS = 1.0
GOING = frozenset({None, "Pending", "Starting", "Running"})
"""Phases in which a missing pod may still be created."""

_MARK = re.compile(r"(?:\d\d:\d\d:\d\d )?\[rank ?(\d+)\]")
_AGENT = re.compile(r"[IWEF]\d{4} \d\d:\d\d:\d\d\.\d")
"""torchrun's own lines, which belong to no rank."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which part of a job's output to print."""

    rank: int | None = None
    node: int | None = None
    attempt: int | None = None
    """None: the newest, and with `follow` also later ones."""
    tail: int | None = None
    follow: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a log, and its origin."""

    time: str
    pod: str
    node: int
    attempt: int
    rank: int | None
    """None: torchrun itself, or unknown."""
    text: str


@dataclass(frozen=True, slots=True)
class Out:
    """Callbacks for log lines, and for notes about them."""

    line: Callable[[Line], None]
    note: Callable[[str], None]


class Ranks:
    """Finds the rank of each line of a pod. Lines must come in order."""

    def __init__(self, first: int, count: int) -> None:
        """The pod runs `count` ranks, starting with rank `first`."""
        self._only = first if count == 1 else None
        self._last: int | None = None

    def of(self, text: str) -> int | None:
        if _AGENT.match(text):
            self._last = None
        elif mark := _MARK.match(text):
            self._last = int(mark[1])
        elif self._only is not None:
            self._last = self._only
        return self._last


def shown(rank: int | None, wanted: int | None) -> bool:
    """Whether to show a line. Lines of no rank are always shown: torchrun prints there why it ended."""
    return wanted is None or rank is None or rank == wanted


def nodes_of(job: HFTitanJob, wanted: Wanted) -> list[int]:
    """Return the nodes whose logs are needed. Raises Trouble, code 2, for a rank or node that does not exist."""
    mesh = job.spec.mesh
    ranks = mesh.nodes * mesh.gpus_per_node
    if wanted.rank is not None and wanted.rank >= ranks:
        raise Trouble(f"--rank {wanted.rank}: the job has ranks 0 to {ranks - 1}", code=2)
    if wanted.node is not None and wanted.node >= mesh.nodes:
        raise Trouble(f"--node {wanted.node}: the job has nodes 0 to {mesh.nodes - 1}", code=2)
    if wanted.rank is not None:
        node = wanted.rank // mesh.gpus_per_node
        if wanted.node not in (None, node):
            raise Trouble(f"--rank {wanted.rank} is on node {node}; remove --node {wanted.node}", code=2)
        return [node]
    if wanted.node is not None:
        return [wanted.node]
    if mesh.nodes > MOST_PODS:
        raise Trouble(
            f"the job has {mesh.nodes} pods; select one with --rank or --node (at most {MOST_PODS} at once)", code=2
        )
    return list(range(mesh.nodes))


async def logs(cluster: Cluster, name: str, wanted: Wanted, out: Out) -> None:
    """Send every line to `out`. With `follow`, return when the job or the requested attempt has ended."""
    seen, waiting = 0, False
    async for obj in cluster.follow(name):
        if obj is None:
            out.note(f"job {name} was deleted")
            return
        job = job_view(obj).job
        status = job.status
        nodes = nodes_of(job, wanted)
        if wanted.attempt is not None and wanted.attempt > status.attempt and not wanted.follow:
            raise Trouble(f"--attempt {wanted.attempt}: the newest attempt is {status.attempt}", code=2)
        attempt = status.attempt if wanted.attempt is None else wanted.attempt
        if seen < attempt <= status.attempt:
            if seen:
                out.note(f"attempt {attempt} (pods of attempt {seen} ended)")
            reader = _Reader(cluster, job, attempt, wanted, out)
            found = await asyncio.gather(*(reader.read(node, tail=not seen) for node in nodes))
            seen = attempt
            if not wanted.follow:
                if not any(found):
                    raise Trouble(
                        f"no pod of attempt {attempt} has a log (the job is {status.phase}: {status.message})"
                    )
                return
            if wanted.attempt is not None:
                return
        elif not seen:
            reason = f"{status.phase or 'Pending'}: {status.message or 'not seen by the operator yet'}"
            if not wanted.follow:
                raise Trouble(f"job {name} has no pods yet ({reason})")
            if not waiting:
                out.note(f"{name} has no pods yet ({reason})")
            waiting = True
        if status.phase in TERMINAL:
            return


class _Reader:
    """Reads the logs of the pods of one attempt."""

    def __init__(self, cluster: Cluster, job: HFTitanJob, attempt: int, wanted: Wanted, out: Out) -> None:
        self._cluster, self._job, self._attempt, self._wanted, self._out = cluster, job, attempt, wanted, out

    async def read(self, node: int, *, tail: bool) -> bool:
        """Read one pod's log to its end; return whether it has one. A lost connection resumes where it stopped."""
        mesh = self._job.spec.mesh
        pod = naming.pod_name(self._job.metadata.name, self._attempt, node, mesh.nodes)
        ranks = Ranks(node * mesh.gpus_per_node, mesh.gpus_per_node)
        newest, noted, wanted = "", "", self._wanted
        while True:
            have, broke = newest, False
            params = {"container": TRAINER, "timestamps": "true"}
            if wanted.follow:
                params["follow"] = "true"
            if have:
                params["sinceTime"] = clock.rfc3339(clock.unix(have))  # in whole seconds, so some lines are repeated
            elif wanted.tail is not None and tail:
                params["tailLines"] = str(wanted.tail)
            try:
                async for text in self._cluster.api.lines(f"{self._cluster.pod_path(pod)}/log", params):
                    newest, _, rest = text.partition(" ")
                    if newest > have:
                        rank = ranks.of(rest)
                        if shown(rank, wanted.rank):
                            self._out.line(Line(newest, pod, node, self._attempt, rank, rest))
            except ApiError as error:
                if error.status not in (400, 404, 429) and error.status < 500:
                    where = self._cluster.namespace
                    raise explain(error, "get", "pods/log", pod, where, self._cluster.api.server) from error
                if str(error) != noted:
                    noted = str(error)
                    self._out.note(f"{pod}: {noted}")
                if not wanted.follow:
                    return False
            except OSError as error:
                if isinstance(error, BrokenPipeError):
                    raise
                broke = True
                if not wanted.follow:
                    raise Trouble(f"lost the connection to the log of {pod}: {error}") from error
            if not wanted.follow:
                return True
            if await self._over(pod) and not broke:  # after a lost connection, fetch the rest first
                return bool(newest)
            await asyncio.sleep(RETRY_SECONDS)

    async def _over(self, pod: str) -> bool:
        """Whether this pod will print nothing more."""
        try:
            found = await self._cluster.api.request("GET", self._cluster.pod_path(pod))
            return bool(found.get("status", {}).get("phase") in ("Succeeded", "Failed"))
        except ApiError as error:
            if error.status != 404:
                return False
        except OSError:
            return False
        job = job_view(await self._cluster.job(self._job.metadata.name)).job
        return job.status.attempt != self._attempt or job.status.phase not in GOING


def line_dict(line: Line) -> Mapping[str, object]:
    """Return the object that `-o json` prints."""
    return {
        "time": line.time,
        "pod": line.pod,
        "node": line.node,
        "attempt": line.attempt,
        "rank": line.rank,
        "line": line.text,
    }
