"""The parts of the cluster commands that need no cluster: error messages, ranks of log lines, tables, and a fake API
server without the CRD."""

import asyncio
import threading

import pytest
import yaml
from aiohttp import web
from rich.console import Console
from typer.testing import CliRunner

from hftitan_api.models import HFTitanJob, JobStatus
from hftitan_operator.cli import tables as text
from hftitan_operator.cli.client import NotFound, Trouble, explain, not_found
from hftitan_operator.cli.live import LiveReporter
from hftitan_operator.cli.logs import Ranks, Wanted, nodes_of, shown
from hftitan_operator.cli.main import app
from hftitan_operator.cli.watch import progress, record, seconds, summary
from hftitan_operator.core import clock, naming
from hftitan_operator.kube.api import ApiError

NOW = clock.unix("2026-11-25T10:00:00Z")


def job(status=None, **spec):
    body = {"model": {"name": "org/m"}, "dataset": {"name": "d"}, "training": {"steps": 40}, **spec}
    metadata = {"name": "x", "namespace": "ns", "uid": "u", "creationTimestamp": "2026-11-25T09:55:00Z"}
    return {"metadata": metadata, "spec": body, "status": status or {}}


RUNNING = {
    "phase": "Running",
    "attempt": 2,
    "restarts": 1,
    "mesh": "2x8: dp4 tp4",
    "worldSize": 16,
    "startTime": "2026-11-25T09:56:00Z",
    "pods": {"active": 2, "ready": 2, "succeeded": 0, "failed": 1},
    "progress": {
        "step": 12,
        "steps": 40,
        "loss": 4.125,
        "tokensPerSecond": 12345.6,
        "mfu": 0.41,
        "gradNorm": 1.7331,
        "eta": "3m20s",
        "updated": "2026-11-25T09:59:59Z",
    },
    "checkpoint": {"step": 10, "time": "2026-11-25T09:59:30Z"},
    "goodput": 0.913,
    "message": "training",
    "restartHistory": [
        {"time": "2026-11-25T09:58:00Z", "attempt": 1, "reason": "OOMKilled", "step": 7, "counted": True},
    ],
    "conditions": [
        {
            "type": "Accepted",
            "status": "True",
            "reason": "Valid",
            "message": "",
            "observedGeneration": 1,
            "lastTransitionTime": "2026-11-25T09:55:01Z",
        },
    ],
}


# --- errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "words", "code"),
    [
        (
            OSError("refused"),
            [
                "no answer from https://c: refused",
                "check that the cluster is running, and that --context is the right one",
            ],
            1,
        ),
        (ApiError(401, "Unauthorized", "Unauthorized"), ["https://c rejected your credentials (Unauthorized); "], 1),
        (
            ApiError(403, "Forbidden", 'hftitanjobs.hftitan.io is forbidden: User "eve" cannot create'),
            [
                "you do not have permission to create hftitanjobs.hftitan.io in namespace ns: hftitanjobs",
                "ask the cluster's administrator for the verb",
            ],
            1,
        ),
        (
            ApiError(403, "Forbidden", "exceeded quota: none"),
            ["create hftitanjobs.hftitan.io x: exceeded quota: none"],
            1,
        ),
        (
            ApiError(404, "Not Found", "404 page not found"),
            ["https://c has no hftitanjobs.hftitan.io: the HFTitanJob ", "install it with `hftitan crd | "],
            1,
        ),
        (ApiError(404, "NotFound", 'namespaces "ns" not found'), ["namespace ns does not exist; "], 1),
        (ApiError(409, "AlreadyExists", "exists"), ["job x already exists in namespace ns; "], 1),
        (ApiError(422, "Invalid", "spec.mesh: no"), ["create hftitanjobs.hftitan.io x: spec.mesh: no"], 2),
    ],
)
def test_error_messages_name_the_fix(error, words, code):
    trouble = explain(error, "create", "hftitanjobs.hftitan.io", "x", "ns", "https://c")
    assert len(trouble.lines) == len(words)
    assert all(line.startswith(start) for line, start in zip(trouble.lines, words, strict=True)), trouble.lines
    assert trouble.code == code


def test_missing_job_is_not_a_missing_crd():
    error = ApiError(404, "NotFound", 'hftitanjobs.hftitan.io "x" not found')
    assert isinstance(explain(error, "get", "hftitanjobs.hftitan.io", "x", "ns", "https://c"), NotFound)


@pytest.mark.parametrize(
    ("names", "end"),
    [
        ([], "; no job is visible there; `hftitan list -A` lists the jobs of all namespaces"),
        (["smollm2", "qwen"], "; did you mean smollm2?"),
        (["b", "a"], "; existing jobs: a, b"),
        ([f"j{i:02}" for i in range(20)], "; existing jobs: j00, j01, j02, j03, j04, j05, j06, j07 and 12 more"),
    ],
)
def test_missing_job_suggests_similar_or_existing_names(names, end):
    assert not_found("smolm2", "ns", names) == f"no job smolm2 in namespace ns{end}"


class Server:
    """An API server that gives the same answer to every request."""

    def __init__(self, status, body, kind):
        self._answer, self.paths, self._ready = (status, body, kind), [], threading.Event()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._serve, daemon=True).start()
        assert self._ready.wait(10)

    def _serve(self):
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._start())
        self._ready.set()
        self._loop.run_forever()

    async def _start(self):
        async def answer(request):
            self.paths.append(request.path)
            status, body, kind = self._answer
            return web.Response(status=status, text=body, content_type=kind)

        server = web.AppRunner(web.Application(middlewares=[]))
        server.app.router.add_route("*", "/{rest:.*}", answer)
        await server.setup()
        await web.TCPSite(server, "127.0.0.1", 0).start()
        self.port = server.addresses[0][1]

    def close(self):
        self._loop.call_soon_threadsafe(self._loop.stop)


@pytest.fixture
def kubeconfig(tmp_path):
    """Function: write a kubeconfig for a server at this port and return its path."""

    def write(port, namespace=None, current="c"):
        context = {"cluster": "c", "user": "u"} | ({"namespace": namespace} if namespace else {})
        document = {
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
            "contexts": [{"name": "c", "context": context}],
            "current-context": current,
        }
        path = tmp_path / "kubeconfig"
        path.write_text(yaml.safe_dump(document))
        return str(path)

    return write


def hftitan(*words):
    return CliRunner().invoke(app, list(words))


def test_cluster_without_the_crd(kubeconfig):
    server = Server(404, "404 page not found\n", "text/plain")
    try:
        done = hftitan("list", "--kubeconfig", kubeconfig(server.port, "team"))
    finally:
        server.close()
    assert server.paths == ["/apis/hftitan.io/v1alpha1/namespaces/team/hftitanjobs"]
    assert done.exit_code == 1
    assert done.stderr.splitlines() == [
        f"http://127.0.0.1:{server.port} has no hftitanjobs.hftitan.io: the HFTitanJob CRD is not installed",
        "install it with `hftitan crd | kubectl apply -f -`",
    ]


def test_invalid_kubeconfigs(kubeconfig, tmp_path):
    path = kubeconfig(1)
    assert hftitan("list", "--kubeconfig", path, "--context", "prod").stderr == (
        "context 'prod' is not in the kubeconfig; choose one with --context (available: c)\n"
    )
    assert hftitan("list", "--kubeconfig", kubeconfig(1, current="")).stderr == (
        "the kubeconfig has no current-context; choose one with --context (available: c)\n"
    )
    assert hftitan("list", "--kubeconfig", str(tmp_path / "none")).stderr == (
        f"--kubeconfig {tmp_path / 'none'}: no such file\n"
    )
    (tmp_path / "text").write_text("just words\n")
    done = hftitan("list", "--kubeconfig", str(tmp_path / "text"))
    assert (done.exit_code, done.stderr.split(":")[1]) == (1, " is not a kubeconfig (TypeError")


# --- logs -----------------------------------------------------------------------------------------------------


def test_ranks_of_lines_from_a_pod_with_several_ranks():
    ranks = Ranks(8, 8)
    lines = [
        ("W1125 01:17:19.000000 12 torch/distributed/run.py:851] starting", None),
        ("10:00:00 [rank 8] INFO model built", 8),
        ("10:00:00 [rank 11] WARNING slow", 11),
        ("  continued", 11),
        ("[rank9]: Traceback (most recent call last):", 9),
        ('  File "x.py"', 9),
        ("E1125 01:17:20.000000 12 torch/distributed/elastic/multiprocessing/api.py:1000] failed", None),
        ("unmarked line after torchrun's", None),
    ]
    assert [(line, ranks.of(line)) for line, _ in lines] == lines


def test_unmarked_lines_of_a_pod_with_one_rank_have_that_rank():
    ranks = Ranks(3, 1)
    assert [ranks.of("hello"), ranks.of("I1125 01:17:19.0 x"), ranks.of("again")] == [3, None, 3]


@pytest.mark.parametrize(
    ("rank", "wanted", "is_shown"), [(1, None, True), (1, 1, True), (1, 2, False), (None, 2, True)]
)
def test_torchruns_own_lines_are_shown_for_every_rank(rank, wanted, is_shown):
    assert shown(rank, wanted) is is_shown


def parsed(**spec):
    return HFTitanJob.model_validate({k: v for k, v in job(**spec).items() if k != "status"})


def test_nodes_of_a_rank():
    big = parsed(mesh={"nodes": 2, "gpusPerNode": 8})
    assert nodes_of(big, Wanted()) == [0, 1]
    assert nodes_of(big, Wanted(rank=7)) == [0]
    assert nodes_of(big, Wanted(rank=8)) == [1]
    assert nodes_of(big, Wanted(node=1)) == [1]
    with pytest.raises(Trouble, match="--rank 16: the job has ranks 0 to 15"):
        nodes_of(big, Wanted(rank=16))
    huge = parsed(mesh={"nodes": 51, "gpusPerNode": 8})
    with pytest.raises(Trouble, match="the job has 51 pods; select one with --rank or --node"):
        nodes_of(huge, Wanted())
    assert nodes_of(huge, Wanted(rank=400)) == [50]


@pytest.mark.parametrize(
    ("pod", "of", "is_one"),
    [("x-1-0", "x", True), ("x-1-1-0", "x", False), ("x-1-1-0", "x-1", True), ("x", "x", False)],
)
def test_pod_name_belongs_to_a_job(pod, of, is_one):
    assert naming.is_pod_of(pod, of) is is_one


# --- tables ---------------------------------------------------------------------------------------------------


def test_jobs_table():
    fresh = job()
    fresh["metadata"] = {**fresh["metadata"], "name": "new"}
    assert text.jobs_table([job(RUNNING), fresh], NOW, namespaces=True).splitlines() == [
        "NAMESPACE  NAME  PHASE    MODEL  MESH          STEP   LOSS    TOK/S   RESTARTS  AGE",
        "ns         x     Running  org/m  2x8: dp4 tp4  12/40  4.1250  12,346  1         5m",
        "ns         new   Pending  org/m                0/40                   0         5m",
    ]


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (None, "/models/team/folder/of/a-model-of-mine"), (200, "/models/team/folder/of/a-model-of-mine"),
        (100, "…er/of/a-model-of-mine"), (80, "…a-model-of-mine"), (40, "…a-model-of-mine"),
    ],
)  # fmt: skip
def test_models_are_cut_at_the_start_on_a_narrow_terminal(width, shown):
    """Wrapped lines make a table unreadable. Job names are never cut."""
    found = job(RUNNING)
    found["spec"] = {**found["spec"], "model": {"name": "/models/team/folder/of/a-model-of-mine"}}
    lines = text.jobs_table([found, job()], NOW, namespaces=True, width=width).splitlines()
    assert shown in lines[1].split()
    assert "org/m" in lines[2].split()
    if width and width >= 90:
        assert max(map(len, lines)) <= width


def test_summary():
    assert text.summary(job(RUNNING), NOW).splitlines() == [
        "job       ns/x",
        "phase     Running  (attempt 2, restarts 1, 5m old)",
        "message   training",
        "model     org/m",
        "mesh      2x8: dp4 tp4, world size 16",
        "step      12/40  loss 4.1250  grad 1.733  12,346 tok/s  mfu 41.0%  eta 3m20s",
        "saved     step 10, 30s ago",
        "pods      2 active, 2 ready, 0 succeeded, 1 failed",
        "goodput   91.3%",
    ]
    assert text.summary(job(), NOW).splitlines()[1:] == [
        "phase     Pending  (attempt 0, restarts 0, 5m old)",
        "model     org/m",
    ]


def test_description_omits_empty_sections():
    shown = text.description(job(RUNNING), [], [], NOW)
    assert "restarts\n  ATTEMPT  REASON     STEP  COUNTED  AGE\n  1        OOMKilled  7     yes      2m\n" in shown
    assert "conditions\n" in shown
    assert "events\n" not in shown


LONG = "0/16 nodes are available: 12 Insufficient nvidia.com/gpu, 4 node(s) had untolerated taints"


@pytest.mark.parametrize("width", [40, 80, 120])
def test_long_messages_are_folded_into_their_column(width):
    """Below the row, if its other columns leave no room."""
    event = {
        "metadata": {}, "involvedObject": {"kind": "Pod", "name": "x-1-0"}, "type": "Warning",
        "reason": "FailedScheduling", "message": LONG, "lastTimestamp": "2026-11-25T09:59:00Z",
    }  # fmt: skip
    header, row, *more = text.events_table([event], NOW, width).splitlines()
    column = header.index("MESSAGE")
    assert all(len(line) <= width for line in more)
    assert len({len(line) - len(line.lstrip()) for line in more}) == 1
    assert more[0].startswith(" " * column) == (width >= column + 24)
    assert " ".join([row[column:], *more]).split() == LONG.split()
    assert LONG in text.events_table([event], NOW)


def test_long_job_message_is_folded():
    found = job(RUNNING)
    found["status"] = {**found["status"], "message": LONG}
    assert f"message   {LONG}\n" in text.summary(found, NOW)
    first, rest = LONG.split(" had ")
    assert f"message   {first}\n          had {rest}\n" in text.summary(found, NOW, 80)
    described = text.description(found, [], [], NOW, 80)
    assert all(len(line) <= 80 for line in described.splitlines())


def test_repeated_event_has_its_count():
    event = {
        "metadata": {}, "involvedObject": {"kind": "Pod", "name": "x-1-0"}, "type": "Warning", "count": 3,
        "reason": "FailedScheduling", "message": "0/3 nodes\nare available", "lastTimestamp": "2026-11-25T09:59:00Z",
    }  # fmt: skip
    assert text.events_table([event], NOW).splitlines()[1] == (
        "1m (x3)  Warning  pod/x-1-0  FailedScheduling  0/3 nodes are available"
    )


# --- watching -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "count"), [("45s", 45), ("1h12m", 4320), ("2d3h", 183_600), ("", None), (None, None)]
)
def test_duration_is_parsed_to_seconds(words, count):
    assert seconds(words) == count


def test_status_is_converted_to_a_step_record_and_progress():
    status = JobStatus.model_validate(RUNNING)
    assert status.progress is not None
    assert record(2, status.progress) == {
        "kind": "step", "attempt": 2, "step": 12, "steps": 40, "loss": 4.125, "tokensPerSecond": 12345.6, "mfu": 0.41,
        "gradNorm": 1.7331, "etaSeconds": 200.0, "time": clock.unix("2026-11-25T09:59:59Z"),
    }  # fmt: skip
    seen = parsed().model_copy(update={"status": status})
    found = progress(seen)
    assert found is not None
    assert (found.step, found.eta_seconds, found.checkpoint_step) == (12, 200.0, 10)
    assert summary(seen).exit_code == 1


def test_live_view_of_a_cluster_job():
    console = Console(file=open("/dev/null", "w"), force_terminal=True, width=100)  # noqa: SIM115
    seen = parsed().model_copy(
        update={"status": JobStatus(phase="Pending", message="waiting for 2 of 2 pods to start")}
    )
    live = LiveReporter(seen, None, console, age=61)
    try:
        with console.capture() as capture:
            console.print(live.render())
        shown_text = capture.get()
        assert "waiting for 2 of 2 pods to start" in shown_text
        assert "1m01s" in shown_text
        seen = parsed().model_copy(update={"status": JobStatus.model_validate(RUNNING)})
        live.phase(seen)
        live.record(record(2, seen.status.progress))
        live.progress(seen, progress(seen))
        with console.capture() as capture:
            console.print(live.render())
        shown_text = capture.get()
        assert "step 12/40" in shown_text
        assert "4.1250" in shown_text
        assert "attempt 2, restarts 1" in shown_text
    finally:
        live.close()
        console.file.close()
