"""`hftitan logs`: the logs of a job's pods, by rank, across attempts.

One pod holds the ranks of one node, and they share its output. The trainer marks its lines (`[rank 3] INFO ...`), and
so does PyTorch a traceback (`[rank3]: ...`); a line without a mark goes with the marked line before it.
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
"""Logs read at once; of a larger job a rank or node must be named."""
RETRY_SECONDS = 1.0
GOING = frozenset({None, "Pending", "Starting", "Running"})
"""Phases in which a pod that is not there yet may still come."""

_MARK = re.compile(r"(?:\d\d:\d\d:\d\d )?\[rank ?(\d+)\]")
_AGENT = re.compile(r"[IWEF]\d{4} \d\d:\d\d:\d\d\.\d")
"""torchrun's own lines: of no rank."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which part of a job's output."""

    rank: int | None = None
    node: int | None = None
    attempt: int | None = None
    """None: the newest, and with `follow` those after it."""
    tail: int | None = None
    follow: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """One line, and whose it is."""

    time: str
    pod: str
    node: int
    attempt: int
    rank: int | None
    """None: of torchrun itself, or not to be told."""
    text: str


@dataclass(frozen=True, slots=True)
class Out:
    """Where lines go, and words about them."""

    line: Callable[[Line], None]
    note: Callable[[str], None]


class Ranks:
    """Says of each line of a pod, in order, which rank printed it."""

    def __init__(self, first: int, count: int) -> None:
        """The pod holds `count` ranks from `first`."""
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
    """A line of no rank is shown with every rank: torchrun tells there why it ended."""
    return wanted is None or rank is None or rank == wanted


def nodes_of(job: HFTitanJob, wanted: Wanted) -> list[int]:
    """The nodes whose pods print what is wanted. Raises Trouble, code 2, for what the mesh does not have."""
    mesh = job.spec.mesh
    ranks = mesh.nodes * mesh.gpus_per_node
    if wanted.rank is not None and wanted.rank >= ranks:
        raise Trouble(f"--rank {wanted.rank}: the job has ranks 0 to {ranks - 1}", code=2)
    if wanted.node is not None and wanted.node >= mesh.nodes:
        raise Trouble(f"--node {wanted.node}: the job has nodes 0 to {mesh.nodes - 1}", code=2)
    if wanted.rank is not None:
        node = wanted.rank // mesh.gpus_per_node
        if wanted.node not in (None, node):
            raise Trouble(f"--rank {wanted.rank} is on node {node}; leave --node {wanted.node} out", code=2)
        return [node]
    if wanted.node is not None:
        return [wanted.node]
    if mesh.nodes > MOST_PODS:
        raise Trouble(
            f"the job has {mesh.nodes} pods; choose with --rank or --node (at most {MOST_PODS} at once)", code=2
        )
    return list(range(mesh.nodes))


async def logs(cluster: Cluster, name: str, wanted: Wanted, out: Out) -> None:
    """Every line to `out`. With `follow` until the job is over, or the attempt that was asked for."""
    seen, waiting = 0, False
    async for obj in cluster.follow(name):
        if obj is None:
            out.note(f"job {name} was deleted")
            return
        job = job_view(obj).job
        status = job.status
        nodes = nodes_of(job, wanted)
        if wanted.attempt is not None and wanted.attempt > status.attempt and not wanted.follow:
            raise Trouble(f"--attempt {wanted.attempt}: the newest is {status.attempt}", code=2)
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
        elif not seen and wanted.follow:
            if not waiting:
                out.note(f"{name} has no pods yet ({status.phase or 'Pending'}: {status.message or 'not seen yet'})")
            waiting = True
        elif not wanted.follow:
            raise Trouble(
                f"job {name} has no pods yet ({status.phase or 'Pending'}: {status.message or 'not seen yet'})"
            )
        if status.phase in TERMINAL:
            return


class _Reader:
    """The pods of one attempt."""

    def __init__(self, cluster: Cluster, job: HFTitanJob, attempt: int, wanted: Wanted, out: Out) -> None:
        self._cluster, self._job, self._attempt, self._wanted, self._out = cluster, job, attempt, wanted, out

    async def read(self, node: int, *, tail: bool) -> bool:
        """One pod's log to its end; whether there was one. Broken connections go on where they broke."""
        mesh = self._job.spec.mesh
        pod = naming.pod_name(self._job.metadata.name, self._attempt, node, mesh.nodes)
        ranks = Ranks(node * mesh.gpus_per_node, mesh.gpus_per_node)
        newest, told, wanted = "", "", self._wanted
        while True:
            have, broke = newest, False
            params = {"container": TRAINER, "timestamps": "true"}
            if wanted.follow:
                params["follow"] = "true"
            if have:
                params["sinceTime"] = clock.rfc3339(clock.unix(have))  # whole seconds: some lines come twice
            elif wanted.tail is not None and tail:
                params["tailLines"] = str(wanted.tail)
            try:
                async for text in self._cluster.api.lines(f"{self._cluster.pod_path(pod)}/log", params):
                    newest, _, said = text.partition(" ")
                    if newest > have:
                        rank = ranks.of(said)
                        if shown(rank, wanted.rank):
                            self._out.line(Line(newest, pod, node, self._attempt, rank, said))
            except ApiError as error:
                if error.status not in (400, 404, 429) and error.status < 500:
                    where = self._cluster.namespace
                    raise explain(error, "get", "pods/log", pod, where, self._cluster.api.server) from error
                if str(error) != told:
                    told = str(error)
                    self._out.note(f"{pod}: {told}")
                if not wanted.follow:
                    return False
            except OSError as error:
                if isinstance(error, BrokenPipeError):
                    raise
                broke = True
                if not wanted.follow:
                    raise Trouble(f"the log of {pod} broke off: {error}") from error
            if not wanted.follow:
                return True
            if await self._over(pod) and not broke:  # of a connection that broke, the rest is fetched
                return bool(newest)
            await asyncio.sleep(RETRY_SECONDS)

    async def _over(self, pod: str) -> bool:
        """Whether nothing more will come of this pod."""
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
    """As `-o json` prints it."""
    return {
        "time": line.time,
        "pod": line.pod,
        "node": line.node,
        "attempt": line.attempt,
        "rank": line.rank,
        "line": line.text,
    }
