"""The cluster commands on a real API server, with the operator, running pods and their logs."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from control_plane import free_ports
from kubectl import wait
from kubelets import KubeletProcess
from paths import FAKE_TRAINER
from processes import die_with_parent
from typer.testing import CliRunner

from hftitan_operator.cli.main import app

HFTITAN = Path(sys.executable).with_name("hftitan")
SPEC = {
    "model": {"name": "org/model"},
    "dataset": {"name": "org/data"},
    "mesh": {"nodes": 2, "device": "cpu"},
    "training": {"steps": 30, "seqLen": 64},
    "checkpoint": {"volume": "claim", "interval": 5},
}
ENDLESS = {"steps": 100_000, "seqLen": 64}


@pytest.fixture(scope="module")
def nodes(control_plane, tmp_path_factory):
    process = KubeletProcess(
        control_plane,
        "cli-a,cli-b",
        tmp_path_factory.mktemp("nodes"),
        programs={"hftitan-agent": (sys.executable, str(FAKE_TRAINER))},
        environ={"FAKE_STEP": "0.05", "FAKE_TALK": "1"},
    )
    yield process
    process.close()


class User:
    """A user whose kubeconfig context sets a namespace."""

    def __init__(self, folder, kubeconfig, namespace):
        config = yaml.safe_load(kubeconfig.read_text())
        config["contexts"][0]["context"]["namespace"] = namespace
        config["contexts"].append({"name": "elsewhere", "context": {"cluster": "test", "user": "user"}})
        self.kubeconfig, self.folder, self.namespace = folder / "kubeconfig", folder, namespace
        self.kubeconfig.write_text(yaml.safe_dump(config))

    def __call__(self, *words, code=0):
        """Run a command in this process; its exit code must be `code`."""
        done = CliRunner().invoke(app, [*map(str, words), "--kubeconfig", str(self.kubeconfig)])
        assert done.exit_code == code, f"{done.exit_code}: {done.output} {done.exception!r}"
        return done

    def start(self, *words):
        """Start a command as a process, with the kubeconfig in KUBECONFIG."""
        return subprocess.Popen(
            [HFTITAN, *map(str, words)],
            env={**os.environ, "KUBECONFIG": str(self.kubeconfig), "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=die_with_parent,
        )

    def file(self, name="x", fake="", **spec):
        """Write a job file and return its path; `fake`: the faults of its trainer."""
        body = {**SPEC, **spec, "pod": {"env": [{"name": "FAKE", "value": fake}]}}
        document = {"apiVersion": "hftitan.io/v1alpha1", "kind": "HFTitanJob", "metadata": {"name": name}, "spec": body}
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(document))
        return path


@pytest.fixture
def user(admin, namespace, control_plane, tmp_path, monkeypatch, nodes, operator):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    admin.make_claim("claim", namespace)
    return User(tmp_path, control_plane.kubeconfig("admin"), namespace)


@pytest.fixture
def until(admin, namespace):
    """Function: wait until the status of a job fulfils a condition, and return it."""

    def reached(condition, name="x"):
        seen = {}

        def there():
            seen.update(status=admin.get("hftitanjobs", name, namespace).get("status", {}))
            return condition(seen["status"])

        try:
            wait(there, f"the status of {name}", 60)
        except AssertionError as error:
            raise AssertionError(f"{error}: {json.dumps(seen, indent=1)}") from None
        return seen["status"]

    return reached


def training(status):
    return status.get("phase") == "Running" and status.get("progress", {}).get("step", 0) > 0


# --- submit ---------------------------------------------------------------------------------------------------


def test_submit_creates_the_job_of_the_file(user, admin):
    done = user("submit", user.file(training=ENDLESS), "--set", "metadata.labels.team=nlp")
    assert done.stdout == f"created x in namespace {user.namespace}\n"
    made = admin.get("hftitanjobs", "x", user.namespace)
    assert made["metadata"]["labels"] == {"team": "nlp"}
    assert made["spec"]["training"]["steps"] == 100_000
    again = user("submit", user.folder / "x.yaml", code=1)
    assert again.stderr.splitlines()[-1].startswith(f"job x already exists in namespace {user.namespace}; ")
    assert user("list", "-l", "team=nlp").stdout.count("\n") == 2
    assert user("list", "-l", "team=vision").stderr == f"no jobs in namespace {user.namespace}\n"


def test_submit_of_an_invalid_job_prints_the_errors_of_validate_and_creates_nothing(user, admin):
    path = user.file(mesh={"nodes": 2, "gpusPerNode": 4, "tp": 3}, dataset={})
    submitted = user("submit", path, code=2)
    validated = CliRunner().invoke(app, ["validate", str(path)])
    assert submitted.stderr == validated.stderr != ""
    assert admin.list("hftitanjobs", user.namespace) == []


def test_dry_run_creates_nothing_and_prints_the_object_with_defaults(user, admin):
    assert "dry run: would create x in namespace" in user("submit", user.file(), "--dry-run").stdout
    answer = json.loads(user("submit", user.file(), "--dry-run", "-o", "json").stdout)
    assert answer["metadata"]["uid"]
    assert answer["spec"]["runPolicy"]["maxRestarts"] == 3, "the server's defaults"
    assert admin.list("hftitanjobs", user.namespace) == []
    assert user("submit", user.file(), "--dry-run", "--wait", code=2).stderr == (
        "--wait: --dry-run creates no job to wait for\n"
    )


def test_namespace_comes_from_the_file_the_option_or_the_context(user):
    path = user.file()
    assert "in namespace default\n" in user("submit", path, "--dry-run", "-n", "default").stdout
    assert "in namespace default\n" in user("submit", path, "--dry-run", "--context", "elsewhere").stdout
    setting = ("--set", "metadata.namespace=default")
    assert "in namespace default\n" in user("submit", path, "--dry-run", *setting).stdout
    differ = user("submit", path, "--dry-run", *setting, "-n", "other", code=2).stderr
    assert "metadata.namespace: is default, but --namespace is other; remove one of them" in differ
    assert user("submit", path, "-n", "no-such", code=1).stderr.splitlines()[-1] == (
        "namespace no-such does not exist; create it with `kubectl create namespace no-such`"
    )


@pytest.mark.parametrize(
    ("fake", "code", "words"),
    [("", 0, "Succeeded: step 30 of 30 in "), ("user:1:3", 1, "Failed (UserError) at step 2 of 30, in ")],
)
def test_submit_wait_returns_the_exit_code_of_the_job(user, fake, code, words):
    process = user.start("submit", "--wait", user.file(fake=fake))
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, out + err
    lines = out.splitlines()
    assert lines[0] == f"created x in namespace {user.namespace}"
    assert any(" Accepted: " in line for line in lines)
    assert words in lines[-1]


# --- reading --------------------------------------------------------------------------------------------------


def test_list_status_describe_and_events_of_a_running_job(user, until):
    user("submit", user.file(training=ENDLESS))
    until(training)

    header, row = user("list").stdout.splitlines()
    assert header.split() == ["NAME", "PHASE", "MODEL", "MESH", "STEP", "LOSS", "TOK/S", "RESTARTS", "AGE"]
    assert re.match(r"x +Running +org/model +2x1: dp2 +\d+/100000 +-?\d+\.\d{4} +1,000 +0 +\d+s$", row)
    everywhere = user("list", "-A").stdout.splitlines()
    assert everywhere[0].startswith("NAMESPACE")
    assert any(line.split()[:2] == [user.namespace, "x"] for line in everywhere)
    assert [job["metadata"]["name"] for job in json.loads(user("list", "-o", "json").stdout)["items"]] == ["x"]

    text = user("status", "x").stdout
    assert re.search(r"^phase +Running  \(attempt 1, restarts 0, \d+s old\)$", text, re.M)
    assert re.search(r"^step +\d+/100000  loss -?\d+\.\d{4}  1,000 tok/s$", text, re.M)
    assert re.search(r"^pods +2 active, 2 ready, 0 succeeded, 0 failed$", text, re.M)
    assert json.loads(user("status", "x", "-o", "json").stdout)["status"]["phase"] == "Running"

    text = user("describe", "x").stdout
    assert re.search(r"^  Accepted +True +Valid ", text, re.M)
    assert re.search(r"^  x-1-0 +Running +yes +cli-[ab] ", text, re.M)
    assert re.search(r"^  \d+s +Normal +job/x +AttemptCreated +attempt 1: created 2 pods$", text, re.M)
    assert re.search(r"^  \d+s +Normal +pod/x-1-1 +Scheduled ", text, re.M)
    found = json.loads(user("describe", "x", "-o", "json").stdout)
    assert (found["job"]["metadata"]["name"], len(found["pods"])) == ("x", 2)

    assert "AttemptCreated" in user("events", "x").stdout
    assert "Accepted" in {event["reason"] for event in json.loads(user("events", "x", "-o", "json").stdout)}


def test_status_watch_follows_the_job_to_its_end(user, until):
    user("submit", user.file(fake="crash:1:12"))
    watching = user.start("status", "x", "--watch", "-o", "json")
    out, err = watching.communicate(timeout=60)
    assert watching.returncode == 0, err
    lines = [json.loads(line) for line in out.splitlines()]
    phases = [(line["phase"], line["attempt"]) for line in lines if line["type"] == "phase"]
    assert phases[-1] == ("Succeeded", 2)
    steps = [(line["attempt"], line["step"]) for line in lines if line["type"] == "step"]
    assert steps == sorted(set(steps))
    assert steps[-1] == (2, 30)
    end = lines[-1]
    assert (end["type"], end["phase"], end["exitCode"], end["restarts"]) == ("end", "Succeeded", 0, 1)
    assert "Succeeded" in [line["reason"] for line in lines if line["type"] == "event"]


def test_status_watch_of_a_deleted_job_fails(user, until):
    user("submit", user.file(training=ENDLESS))
    until(training)
    watching = user.start("status", "x", "-w")
    assert "step" in watching.stdout.readline()
    assert user("delete", "x").stdout == "deleted x\n"
    out, err = watching.communicate(timeout=30)
    assert (watching.returncode, err) == (1, "job x was deleted\n"), out


# --- logs -----------------------------------------------------------------------------------------------------


def test_logs_of_a_rank_follow_new_attempts(user, until):
    user("submit", user.file(fake="crash:1:12", runPolicy={"suspend": True}))
    following = user.start("logs", "x", "-f", "--rank", "0", "-o", "json")
    assert following.stderr.readline().startswith("--- x has no pods yet (")
    user("resume", "x")
    out, err = following.communicate(timeout=60)
    assert following.returncode == 0, err
    lines = [json.loads(line) for line in out.splitlines()]
    assert {(line["pod"], line["rank"]) for line in lines} == {("x-1-0", 0), ("x-2-0", 0)}
    steps = [(line["attempt"], int(m[1])) for line in lines if (m := re.search(r"INFO step (\d+)/", line["line"]))]
    assert steps == [(1, n) for n in range(1, 12)] + [(2, n) for n in range(11, 31)], "each line once"
    assert "--- attempt 2 (pods of attempt 1 ended)" in err.splitlines()

    # Afterwards: all pods of the newest attempt, an older one, the last lines only.
    lines = user("logs", "x").stdout.splitlines()
    assert sum("INFO attempt 2 from step 10" in line for line in lines) == 2
    assert {line.split()[0] for line in lines} == {"[x-2-0]", "[x-2-1]"}
    assert "from step 0" in user("logs", "x", "--rank", "0", "--attempt", "1").stdout
    assert re.fullmatch(r"\S+ \[rank 0\] INFO step 30/30\n", user("logs", "x", "--node", "0", "--tail", "1").stdout)


def test_followed_log_resumes_after_an_outage_of_the_api_server(user, until, control_plane):
    user("submit", user.file(training={"steps": 200, "seqLen": 64}))
    until(training)
    following = user.start("logs", "x", "-f", "--rank", "0")
    first = following.stdout.readline()
    control_plane.stop_apiserver()
    control_plane.start_apiserver()
    out = following.stdout.read()  # not communicate(), which skips what readline() has buffered
    assert following.wait(60) == 0, following.stderr.read()
    steps = [int(number) for number in re.findall(r"INFO step (\d+)/", first + out)]
    assert steps == list(range(1, 201))


def test_logs_of_a_missing_pod_rank_or_node_fail(user, until):
    user("submit", user.file(training=ENDLESS, runPolicy={"suspend": True}))
    until(lambda s: s.get("phase") == "Suspended")
    assert user("logs", "x", code=1).stderr.startswith("job x has no pods yet (Suspended: ")
    assert user("logs", "x", "--rank", "2", code=2).stderr == "--rank 2: the job has ranks 0 to 1\n"
    assert user("logs", "x", "--node", "2", code=2).stderr == "--node 2: the job has nodes 0 to 1\n"
    assert "--rank 1 is on node 1" in user("logs", "x", "--rank", "1", "--node", "0", code=2).stderr


# --- changing -------------------------------------------------------------------------------------------------


def test_suspend_resume_delete(user, until, admin):
    user("submit", user.file(training=ENDLESS))
    until(training)
    assert user("suspend", "x").stdout == "suspended x\n"
    until(lambda s: s["phase"] == "Suspended" and s["pods"]["active"] == 0)
    assert user("suspend", "x").stdout == "x is already suspended\n"
    assert json.loads(user("resume", "x", "-o", "json").stdout)["spec"]["runPolicy"]["suspend"] is False
    assert until(lambda s: training(s) and s["attempt"] == 2)["restarts"] <= 1
    assert user("resume", "x").stdout == "x is not suspended\n"
    done = user("delete", "x", "y", code=1)
    assert done.stdout == "deleted x\n"
    assert done.stderr.startswith(f"no job y in namespace {user.namespace}")
    admin.wait_gone("hftitanjobs", "x", user.namespace)


def test_finished_job_cannot_be_suspended_or_resumed(user, until):
    user("submit", user.file(training={"steps": 2, "seqLen": 64}))
    until(lambda s: s.get("phase") == "Succeeded")
    for command in ("suspend", "resume"):
        assert user(command, "x", code=1).stderr == (
            "job x has finished (Succeeded); it cannot be suspended or resumed\n"
        )


# --- errors ---------------------------------------------------------------------------------------------------


def test_error_for_a_missing_job_lists_existing_names(user):
    assert "no job is visible there; `hftitan list -A`" in user("status", "smollm2", code=1).stderr
    user("submit", user.file("smollm2", training=ENDLESS))
    for command in ("status", "logs", "describe", "events", "suspend", "resume", "delete"):
        assert user(command, "smolm2", code=1).stderr == (
            f"no job smolm2 in namespace {user.namespace}; did you mean smollm2?\n"
        )
    assert "; existing jobs: smollm2\n" in user("status", "qwen", code=1).stderr


def test_missing_permission_is_named_by_its_verb(user, admin, control_plane, tmp_path):
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "eve", "namespace": user.namespace}}
    admin.create(account)
    stranger = User(tmp_path, control_plane.kubeconfig(f"system:serviceaccount:{user.namespace}:eve"), user.namespace)
    for words, verb in (
        (["list"], "list"),
        (["status", "x"], "get"),
        (["submit", user.file()], "create"),
        (["delete", "x"], "delete"),
    ):
        errors = stranger(*words, code=1).stderr
        assert f"you do not have permission to {verb} hftitanjobs.hftitan.io in namespace {user.namespace}: " in errors
        assert f"ask the cluster's administrator for the verb '{verb}' on hftitanjobs.hftitan.io" in errors
    assert (
        "you do not have permission to list hftitanjobs.hftitan.io in all namespaces: "
        in stranger("list", "-A", code=1).stderr
    )


def test_unreachable_cluster(user):
    config = yaml.safe_load(user.kubeconfig.read_text())
    config["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{free_ports(1)[0]}"
    user.kubeconfig.write_text(yaml.safe_dump(config))
    errors = user("list", code=1).stderr.splitlines()
    assert errors[0].startswith(f"no answer from {config['clusters'][0]['cluster']['server']}: ")
    assert errors[1] == "check that the cluster is running, and that --context is the right one"


def test_shell_completion_of_job_names(user):
    user("submit", user.file("smollm2", training=ENDLESS))
    line = f"hftitan status --kubeconfig {user.kubeconfig} smol"
    asked = {"_HFTITAN_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
    environ = {**os.environ, **asked}
    done = subprocess.run([HFTITAN], env=environ, capture_output=True, text=True, timeout=30)
    assert done.stdout.split() == ["smollm2"], done.stderr


def test_kubectl_and_hftitan_work_on_the_same_jobs(user, admin, until):
    user("submit", user.file(training=ENDLESS))
    until(training)
    admin.patch("hftitanjobs", "x", {"spec": {"runPolicy": {"suspend": True}}}, user.namespace)
    until(lambda s: s.get("phase") == "Suspended")
    user("resume", "x")
    until(training)
    started = time.monotonic()
    admin.delete("hftitanjobs", "x", user.namespace)
    wait(lambda: "no job x" in CliRunner().invoke(
        app, ["status", "x", "--kubeconfig", str(user.kubeconfig)]).stderr, "its deletion")  # fmt: skip
    assert time.monotonic() - started < 30
