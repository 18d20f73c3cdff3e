"""Measures speed and resource use of the operator on a real API server, and the limit of the machine.

    python bench/operate.py [--quick] [--only NAME...] [--controller-manager] [--jobset-webhooks]

Everything runs on loopback: etcd without fsync, kube-apiserver, `hftitan operator` as a process with the permissions of
`hftitan rbac`, and one client that creates jobs and watches pods. There is no scheduler, and a controller manager only
on request: on two cores, other components would distort the operator's figures. Each part has its own namespace and a
new operator that has already handled one job.

ceiling: pods/s of a client that only creates the same pods, 64 at once; measured before and after the other parts
latency: time from the POST of a job until a watch has seen its fourth pod; the operator is idle before each trial
burst:   many jobs created at full speed; pods/s from the first POST to the last pod seen
wide:    one job with many pods; seconds until the last pod is seen; the operator is idle before each trial
jobset:  latency, burst and wide of JobSet, with a controller manager that runs during this part only; needs Go
steady:  many jobs that wait for a scheduler; memory and writes of the idle operator, then its restart
gang:    time from the DELETE of one pod of a running job to a complete new gang; the kubelet ends pods immediately
idle:    many jobs that wait for a scheduler, beside many foreign pods; requests of the idle operator by verb and
         resource, from the audit log of a separate API server
"""

import sys

sys.path.append(sys.path.pop(0))  # the standard library has a module `operator`

import argparse
import asyncio
import contextlib
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "support" / "cluster"))

from control_plane import ControlPlane
from kubelets import KubeletProcess
from operate_client import Client, Operator, PodWatch, cpu_seconds, grant
from operate_jobset import CONTROLLER_MANAGER, LIMITS, JobSet
from operate_objects import PODS, Object, foreign_pod, job, jobs_path, pods_path, rendered_pods

System = Operator | JobSet
ROOT = Path(__file__).resolve().parents[1]
GANG = 8
PAUSE_SECONDS = 0.15
"""Pause before a trial, in which the operator writes the status and events of the previous one."""


@dataclass(frozen=True)
class Sizes:
    ceiling: int = 1000
    latency: int = 200
    burst: int = 200
    wide: int = 500
    wide_trials: int = 7
    steady: int = 1000
    idle_seconds: int = 120
    gang: int = 30
    foreign: int = 20_000
    audited_seconds: int = 300


QUICK = Sizes(
    ceiling=200, latency=10, burst=20, wide=50, wide_trials=2, steady=50, idle_seconds=5, gang=3, foreign=500,
    audited_seconds=20,
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One result. `at_most`: the target is an upper bound, otherwise a lower bound. None: no target."""

    figure: str
    value: float
    unit: str
    target: float | None = None
    at_most: bool = True
    others: str = ""
    system: str = ""
    """Empty: the operator."""

    @property
    def met(self) -> str:
        if self.target is None:
            return ""
        return "yes" if (self.value <= self.target if self.at_most else self.value >= self.target) else "NO"

    def cells(self) -> tuple[str, ...]:
        bound = "" if self.target is None else f"{'<=' if self.at_most else '>='} {shown(self.target)} {self.unit}"
        figure = f"{self.system}: {self.figure}" if self.system else self.figure
        return figure, f"{shown(self.value)} {self.unit}", bound, self.met, self.others


def shown(value: float) -> str:
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def say(text: str) -> None:
    print(f"bench/operate: {text}", file=sys.stderr, flush=True)


@dataclass
class Bench:
    plane: ControlPlane
    client: Client
    kubeconfig: Path
    user: str
    """The operator's user."""
    sizes: Sizes
    jobset_webhooks: bool
    ceilings: list[float] = field(default_factory=list)
    system: Callable[[], System] = field(init=False)
    """Creates the measured system, by default the operator."""

    def __post_init__(self) -> None:
        self.system = self.operator

    def operator(self) -> Operator:
        return Operator(self.kubeconfig, self.plane.folder / "operator.log")

    @contextlib.asynccontextmanager
    async def namespace(self, name: str, collections: Iterable[str] = ()) -> AsyncIterator[PodWatch]:
        """Create a namespace and watch its pods. Delete its objects at the end, `collections` first."""
        self.plane.admin.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        async with PodWatch(self.client, self.plane.url, name) as watch:
            yield watch
        await self.client.empty(name, collections)

    @contextlib.asynccontextmanager
    async def part(self, name: str) -> AsyncIterator[tuple[System, PodWatch, str]]:
        """Start a system that handles one job before the measurement. The third value is the namespace."""
        system = self.system()
        name = f"{name}-{type(system).__name__.lower()}"
        async with self.namespace(name, system.collections(name)) as watch, system:
            await self.client.create(system.path(name), [system.job("warm-up")])
            await watch.until(lambda: watch.count("warm-up") == PODS)
            await system.quiet()
            yield system, watch, name


class Cpu:
    """CPU time since its creation: of the measured system, the cluster's other programs, and this client."""

    def __init__(self, bench: Bench, system: System) -> None:
        cluster = [pid for pid in bench.plane.pids().values() if pid not in system.pids]
        self._pids = {"operator": system.pids, "cluster": cluster, "client": [os.getpid()]}
        self._began = {name: cpu_seconds(*pids) for name, pids in self._pids.items()}

    def rows(self, part: str, count: int, what: str) -> list[Row]:
        """Return the CPU time divided by `count` created objects."""
        took = {name: 1000 * (cpu_seconds(*pids) - self._began[name]) / count for name, pids in self._pids.items()}
        return [Row(f"{part}: CPU time per {what}, {name}", value, "ms") for name, value in took.items()]


# --- the parts ----------------------------------------------------------------------------------------------


async def ceiling(bench: Bench) -> list[Row]:
    name = f"ceiling-{len(bench.ceilings) + 1}"
    pods = rendered_pods("ceiling", name, bench.sizes.ceiling)
    async with bench.namespace(name) as watch:
        await bench.client.warm_up()
        began = time.perf_counter()
        await bench.client.create(pods_path(name), pods)
        rate = len(pods) / (time.perf_counter() - began)
        await watch.until(lambda: watch.total == len(pods))
    bench.ceilings.append(rate)
    return [Row(f"{name}: {len(pods)} raw pod creates, 64 at once", rate, "pods/s")]


async def latency(bench: Bench) -> list[Row]:
    async with bench.part("latency") as (system, watch, namespace):
        took = []
        cpu = Cpu(bench, system)
        for trial in range(bench.sizes.latency):
            name = f"trial-{trial}"
            document = system.job(name)
            await asyncio.sleep(PAUSE_SECONDS)
            began = time.perf_counter()
            await bench.client.create(system.path(namespace), [document])
            await watch.until(lambda name=name: watch.count(name) == PODS)
            took.append((watch.last(name) - began) * 1000)
        used = cpu.rows("latency", len(took), "job")
    what = f"latency: idle job -> {PODS} pods, {len(took)} trials"
    return [
        Row(f"{what}, p50", percentile(took, 50), "ms", 25),
        Row(f"{what}, p99", percentile(took, 99), "ms", 70),
        Row(f"{what}, max", max(took), "ms"),
        *used,
    ]


async def burst(bench: Bench) -> list[Row]:
    count = bench.sizes.burst
    async with bench.part("burst") as (system, watch, namespace):
        await bench.client.warm_up()
        before = watch.total
        documents = [system.job(f"job-{i}") for i in range(count)]
        cpu, began = Cpu(bench, system), time.perf_counter()
        await bench.client.create(system.path(namespace), documents)
        posted = time.perf_counter() - began
        await watch.until(lambda: watch.total == before + PODS * count)
        took = max(watch.last(f"job-{i}") for i in range(count)) - began
        used = cpu.rows("burst", PODS * count, "pod")
        await system.quiet()
        settled = await settled_count(bench, namespace, watch)
    rate = PODS * count / took
    rows = [
        Row(f"burst: {count} jobs x {PODS} pods", rate, "pods/s", 300, False),
        Row("burst: time to create the jobs", posted, "s"),
        *used,
        Row("burst: surplus pods", settled - before - PODS * count, "pods", 0),
    ]
    if bench.ceilings:
        rows.insert(1, Row("burst: share of the ceiling", 100 * rate / statistics.fmean(bench.ceilings), "%"))
    return rows


async def wide(bench: Bench) -> list[Row]:
    count, trials = bench.sizes.wide, bench.sizes.wide_trials
    took = []
    async with bench.part("wide") as (system, watch, namespace):
        cpu, before = Cpu(bench, system), watch.total
        for trial in range(trials):
            name = f"wide-{trial}"
            document = system.job(name, count)
            began = time.perf_counter()
            await bench.client.create(system.path(namespace), [document])
            await watch.until(lambda name=name: watch.count(name) == count)
            took.append(watch.last(name) - began)
            await system.quiet()
        used = cpu.rows("wide", count * trials, "pod")
        settled = await settled_count(bench, namespace, watch)
    what = f"wide: one job of {count} pods, {trials} trials"
    return [
        Row(f"{what}, p50", percentile(took, 50), "s", 0.9),
        Row(f"{what}, min", min(took), "s"),
        Row(f"{what}, max", max(took), "s"),
        *used,
        Row("wide: surplus pods", settled - before - count * trials, "pods", 0),
    ]


async def jobset(bench: Bench) -> list[Row]:
    programs = await asyncio.to_thread(program_folder, "jobset")
    peer = replace(bench, ceilings=bench.ceilings)
    peer.system = lambda: JobSet(bench.plane, programs, bench.jobset_webhooks)
    rows = [row for part in (latency, burst, wide) for row in await part(peer)]
    return [replace(row, target=None, system="JobSet") for row in rows]


async def settled_count(bench: Bench, namespace: str, watch: PodWatch) -> int:
    """Return the number of pods that were ever created."""
    there = len((await bench.client.call("GET", pods_path(namespace)))["items"])
    return max(there, watch.total)


async def create_and_settle(bench: Bench, namespace: str, watch: PodWatch, process: Operator) -> float:
    """Create the jobs of `steady` and wait until the operator is idle. Return the seconds until the last pod."""
    count, began = bench.sizes.steady, time.perf_counter()
    await bench.client.create(jobs_path(namespace), [job(f"job-{i}") for i in range(count)])
    await watch.until(lambda: watch.total >= PODS * count)
    created = time.perf_counter() - began
    await process.quiet()
    return created


async def steady(bench: Bench) -> list[Row]:
    count, seconds = bench.sizes.steady, bench.sizes.idle_seconds
    async with bench.namespace("steady", [jobs_path("steady")]) as watch:
        async with bench.operator() as process:
            created = await create_and_settle(bench, "steady", watch, process)
            settled, peak = process.memory()
            say(f"steady: created after {created:.1f} s; {seconds} idle seconds")
            before, cpu = await process.metrics(), cpu_seconds(process.pid)
            await asyncio.sleep(seconds)
            after, cpu = await process.metrics(), cpu_seconds(process.pid) - cpu
            resident, idle_peak = process.memory()
        async with bench.operator() as process:
            ready = time.perf_counter() - process.started
            while (found := await process.metrics())["passes"] < count or found["depth"]:
                await asyncio.sleep(0.05)
            done = time.perf_counter() - process.started
            await process.quiet()
            restarted = await process.metrics()
            fresh, fresh_peak = process.memory()
    what = f"steady: {count} jobs, {PODS * count} pods"
    return [
        Row(f"{what}: all created after", created, "s"),
        Row(f"{what}: operator RSS just after", settled, "MiB"),
        Row(f"{what}: operator RSS after {seconds} idle s", resident, "MiB", 200, others="peers in Python ~300"),
        Row(f"{what}: its peak until then", max(peak, idle_peak), "MiB"),
        Row(f"{what}: writes in {seconds} idle s", after["writes"] - before["writes"], "requests", 0),
        Row(f"{what}: reads in {seconds} idle s", after["reads"] - before["reads"], "requests"),
        Row(f"{what}: CPU in {seconds} idle s", cpu, "s"),
        Row("steady: restart -> ready", ready, "s"),
        Row("steady: restart -> every job reconciled", done, "s", 10),
        Row("steady: writes of the restart", restarted["writes"], "requests", 0),
        Row("steady: RSS after the restart", fresh, "MiB", 200),
        Row("steady: peak of the restart", fresh_peak, "MiB"),
    ]


class Kubelets(KubeletProcess):
    def _takes_pods(self, name: str) -> bool:
        """Override the check: without a controller manager, nothing removes the taint of a new node."""
        return self._admin.find("nodes", name) is not None


async def gang(bench: Bench) -> list[Row]:
    took = []
    nodes = ",".join(f"node-{i}" for i in range(GANG))
    kubelets = Kubelets(bench.plane, nodes, bench.plane.folder / "kubelet", fake={}, renew=5.0)
    try:
        async with bench.part("gang") as (process, watch, namespace):
            watch.on_added = lambda pod: bind(bench.client, pod)
            for trial in range(bench.sizes.gang):
                name = f"trial-{trial}"
                await bench.client.create(jobs_path(namespace), [job(name, GANG)])
                await watch.until(lambda name=name: watch.count(name) == GANG)
                await runs(bench.client, jobs_path(namespace, name))
                await process.quiet()
                began = time.perf_counter()
                await bench.client.call("DELETE", pods_path(namespace, f"{name}-1-{trial % GANG}"))
                await watch.until(lambda name=name: watch.count(name, 2) == GANG)
                took.append(watch.last(name, 2) - began)
    finally:
        kubelets.close()
    what = f"gang: a pod deleted -> {GANG} new pods, {len(took)} trials"
    return [
        Row(f"{what}, p50", percentile(took, 50), "s", others="about a minute"),
        Row(f"{what}, p99", percentile(took, 99), "s", 1.0),
    ]


async def idle(bench: Bench) -> list[Row]:
    count, seconds = bench.sizes.steady, bench.sizes.audited_seconds
    async with bench.namespace("idle", [jobs_path("idle")]) as watch, bench.operator() as process:
        foreign = [foreign_pod(f"foreign-{i}") for i in range(bench.sizes.foreign)]
        await bench.client.create(pods_path("idle"), foreign)
        await create_and_settle(bench, "idle", watch, process)
        say(f"idle: {seconds} idle seconds")
        cpu, began = cpu_seconds(process.pid), datetime.now(UTC)
        await asyncio.sleep(seconds)
        ended, cpu = datetime.now(UTC), cpu_seconds(process.pid) - cpu
        resident, peak = process.memory()
    requests = audited(bench.plane.requests(bench.user), began, ended)
    reads = sum(number for (verb, _), number in requests.items() if verb in ("get", "list", "watch"))
    what = f"idle: {count} jobs, {PODS * count} pods, {len(foreign)} foreign pods, {seconds} s"
    return [
        Row(f"{what}: reads", reads, "requests", 10),
        Row(f"{what}: writes", sum(requests.values()) - reads, "requests", 0),
        *(Row(f"idle: {verb} {resource}", number, "requests") for (verb, resource), number in sorted(requests.items())),
        Row("idle: CPU", cpu, "s"),
        Row("idle: operator RSS", resident, "MiB", 200),
        Row("idle: its peak", peak, "MiB"),
    ]


def audited(events: Iterable[Object], began: datetime, ended: datetime) -> Counter[tuple[str, str]]:
    """Count the requests that the API server received in this time, by verb and resource."""
    found = {
        event["auditID"]: (event["verb"], event.get("objectRef", {}).get("resource", event["requestURI"]))
        for event in events
        if began <= datetime.fromisoformat(event["requestReceivedTimestamp"]) <= ended
    }
    return Counter(found.values())


async def bind(client: Client, pod: Object) -> None:
    """Bind a pod to the node of its index, like a scheduler."""
    if pod["labels"]["hftitan.io/job"] == "warm-up":
        return
    target = {"apiVersion": "v1", "kind": "Node", "name": f"node-{pod['labels']['hftitan.io/node-index']}"}
    binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod["name"]}, "target": target}
    await client.call("POST", f"{pods_path(pod['namespace'], pod['name'])}/binding", binding)


async def runs(client: Client, path: str) -> None:
    """Wait until the job has the condition Running."""
    async with asyncio.timeout(30):
        while True:
            status = (await client.call("GET", path)).get("status", {})
            if any(c["type"] == "Running" and c["status"] == "True" for c in status.get("conditions", ())):
                return
            await asyncio.sleep(0.02)


def percentile(values: Sequence[float], share: int) -> float:
    """Return the percentile `share` (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * share // 100) - 1)]


PARTS: dict[str, Callable[[Bench], Awaitable[list[Row]]]] = {
    part.__name__: part for part in (ceiling, latency, burst, wide, jobset, steady, gang, idle)
}
AUDITED = ("idle",)
"""Parts that need the audit log."""

# --- one run --------------------------------------------------------------------------------------------------


async def run(plane: ControlPlane, sizes: Sizes, names: Sequence[str], jobset_webhooks: bool) -> list[Row]:
    client = Client(plane.url, plane.ca, plane.admin_token)
    bench = Bench(plane, client, *grant(plane), sizes, jobset_webhooks)
    rows = []
    again = ["ceiling"] if "ceiling" in names and len(names) > 1 else []
    try:
        for name in [*names, *again]:
            say(f"{name} ... (load {os.getloadavg()[0]:.1f})")
            found = await PARTS[name](bench)
            rows += found
            for row in found:
                say("  " + "  ".join(filter(None, row.cells()[:4])))
    finally:
        await client.close()
    return rows


def program_folder(name: str) -> Path:
    """Return the folder that hack/NAME prints."""
    done = subprocess.run([ROOT / "hack" / name], stdout=subprocess.PIPE, text=True, check=True)
    return Path(done.stdout.strip())


def compared(rows: Sequence[Row]) -> list[Row]:
    """Move a peer's results to the same figures of the operator, if it was measured, with the ratio to them."""
    ours = {row.figure for row in rows if not row.system}
    peers = {row.figure: row for row in rows if row.system and row.figure in ours}
    result = []
    for row in rows:
        if row.system and row.figure in ours:
            continue
        if peer := peers.get(row.figure):
            ratio = f", ratio {shown(row.value / peer.value)}" if row.value and peer.value else ""
            row = replace(row, others=f"{peer.system} {shown(peer.value)} {peer.unit}{ratio}")
        result.append(row)
    return result


def table(rows: Sequence[Row]) -> str:
    cells = [("figure", "here", "target", "met", "others"), *(row.cells() for row in compared(rows))]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in cells]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes; not for published figures")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="NAME", help=", ".join(PARTS))
    parser.add_argument("--controller-manager", action="store_true", help="run a controller manager as well")
    parser.add_argument("--jobset-webhooks", action="store_true", help="register JobSet's webhooks, as in a cluster")
    args = parser.parse_args()
    sizes = QUICK if args.quick else Sizes()
    load = os.getloadavg()[0]
    programs = program_folder("control-plane")
    names = args.only or [name for name in PARTS if name != "jobset" or shutil.which("go")]
    options = {"kube-controller-manager": LIMITS if args.controller_manager else CONTROLLER_MANAGER}
    if not args.controller_manager:  # which creates service accounts and removes the taint of new nodes
        options["kube-apiserver"] = {"--disable-admission-plugins": "ServiceAccount,TaintNodesByCondition"}
    if "jobset" in names:
        program_folder("jobset")  # builds it, before anything is measured
    rows, version = [], ""
    for audit in (False, True):
        chosen = [name for name in names if (name in AUDITED) == audit]
        if not chosen:
            continue
        with (
            tempfile.TemporaryDirectory() as folder,
            ControlPlane(
                Path(folder),
                programs,
                controller_manager=args.controller_manager,
                scheduler=False,
                crds=[ROOT / "crds" / "hftitanjobs.yaml"],
                audited=audit,
                options=options,
            ) as plane,
        ):
            version = plane.admin.request("GET", "/version")["gitVersion"]
            say(f"Kubernetes {version}, logs in {folder}")
            try:
                rows += asyncio.run(run(plane, sizes, chosen, args.jobset_webhooks))
            except BaseException:
                for log in (plane.folder / "operator.log", plane.folder / "logs" / "jobset.log"):
                    if log.exists():
                        say(f"failed; end of {log.name}:\n{log.read_text()[-3000:]}")
                raise
    print(table(rows))
    manager = "with" if args.controller_manager else "without"
    machine = f"{os.cpu_count()} cores, Kubernetes {version}, {manager} controller manager, no scheduler"
    print(f"\n{machine}; load average before {load:.1f}")
    if "jobset" in names:
        webhooks = "with" if args.jobset_webhooks else "without"
        controllers = "all controllers" if args.controller_manager else "only the Job controller"
        print(f"JobSet: same run, client limits lifted, {webhooks} its webhooks, {controllers}; ratio: here / JobSet")


if __name__ == "__main__":
    main()
