"""Every kubectl command of the documents: a real kubectl, a real API server, the operator, real pods."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from documents import DOCUMENTS, ROOT, kubectl
from kubectl import wait
from kubelets import KubeletProcess
from paths import FAKE_TRAINER

from hftitan_api.load import load

ELSEWHERE = {
    "kubectl describe workload": "a resource of Kueue, which does not run here",
    "kubectl describe podgroup": "a resource of Volcano and others, which do not run here",
}
"""Commands that are not run, and why."""
JOB = "claims"
COLUMNS = ["NAME", "PHASE", "MODEL", "MESH", "STEP", "LOSS", "TOK/S", "RESTARTS", "AGE"]
ASKED = {str(document.relative_to(ROOT)): list(kubectl(document)) for document in DOCUMENTS}


@pytest.fixture(scope="module")
def nodes(control_plane, tmp_path_factory):
    """One with eight GPUs; its pods train without end."""
    process = KubeletProcess(
        control_plane, "documents", tmp_path_factory.mktemp("nodes"),
        programs={"torchrun": (sys.executable, str(FAKE_TRAINER))}, environ={"FAKE_STEP": "0.05"},
    )  # fmt: skip
    yield process
    process.close()


@pytest.fixture(scope="module")
def program():
    done = subprocess.run([ROOT / "hack" / "kubectl"], stdout=subprocess.PIPE, text=True, check=True)
    return Path(done.stdout.strip())


@pytest.fixture
def shell(admin, namespace, control_plane, nodes, operator, program, tmp_path):
    """Function: a line as a user types it in a clone, with a kubeconfig whose context has the namespace."""
    config = yaml.safe_load(control_plane.kubeconfig("admin").read_text())
    config["contexts"][0]["context"]["namespace"] = namespace
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    for name in ("examples", "charts"):
        (tmp_path / name).symlink_to(ROOT / name)
    made = {claim: admin.make_claim(claim, namespace) for claim in ("inputs", "results", "checkpoints")}
    assert made
    environ = {
        "PATH": f"{program}:{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(tmp_path), "HF_TOKEN": "hf_test",
        "KUBECONFIG": str(tmp_path / "kubeconfig"), "HF_HUB_OFFLINE": "1",
    }  # fmt: skip

    def run(line):
        command = ["bash", "-euo", "pipefail", "-c", line]
        return subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60)

    return run


def filled(line):
    """With a job's and a pod's name; what follows something without end does so for a second."""
    words = re.sub(r"\bNAME-ATTEMPT-NODE\b", f"{JOB}-1-0", line)
    words = re.sub(r"\bNAME\b", JOB, words)
    if re.match(r"kubectl (get|logs) .*(-w|--watch|-f)\b", words):
        return f"timeout 1 {words} || test $? = 124"
    if words.startswith("hftitan crd |"):  # Kubernetes before 1.23 has no CEL rules
        return f"{words} --validate=false"
    if "meta.helm.sh" in words:  # charts' own tests take it over in earnest; here it belongs to no release
        return f"{words} --dry-run=server"
    return words


def order(line):
    """What makes comes first, what deletes last."""
    return ["dry-run", "create", "apply", "", "patch", "delete"].index(
        next((word for word in ("dry-run", "create", "apply", "patch", "delete") if word in line), "")
    )


def pod_is_up(admin, namespace, pod):
    found = admin.find("pods", pod, namespace)
    return found and any(each.get("ready") for each in found["status"].get("containerStatuses", ()))


@pytest.mark.parametrize("name", [name for name, lines in ASKED.items() if lines])
def test_kubectl(shell, admin, namespace, tmp_path, name):
    lines = [line for line in ASKED[name] if line not in ELSEWHERE]
    example = yaml.safe_load((ROOT / "examples/claims-cpu.yaml").read_text())
    example["spec"]["training"]["steps"] = 100_000
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(example))
    if not any("examples/" in line or "job.yaml" in line for line in lines):
        assert shell("kubectl create -f job.yaml").returncode == 0
    for line in sorted(dict.fromkeys(lines), key=order):
        for pod in re.findall(r"\blogs(?: -f)? ([a-z0-9][a-z0-9-]*-\d+-\d+)\b", filled(line)):
            wait(lambda pod=pod: pod_is_up(admin, namespace, pod), f"pod {pod} of {line!r}", 60)
        if "logs -f -l" in line:
            wait(lambda: pod_is_up(admin, namespace, f"{JOB}-1-0"), f"a pod of {JOB}", 60)
        done = shell(("hftitan rbac | " if line == "kubectl apply -f -" else "") + filled(line))
        exists = line.startswith("kubectl create namespace") and "AlreadyExists" in done.stderr
        assert done.returncode == 0 or exists, f"{name}: {line}\n{done.stdout}{done.stderr}"
        if re.search(r"\bget htj( -w)?$", line):
            assert done.stdout.splitlines()[0].split() == COLUMNS
        elif "describe htj" in line:
            assert "Accepted" in done.stdout
        elif "logs" in line:
            assert done.stdout


def test_what_is_not_run_is_still_there():
    assert ELSEWHERE.keys() <= {line for lines in ASKED.values() for line in lines}


def test_the_secret_is_the_one_that_a_job_names(shell, admin, namespace):
    """first-job.md makes it; spec.pod.hfTokenSecret reads the key `token`."""
    [line] = [line for line in ASKED["docs/first-job.md"] if "create secret" in line]
    assert shell(line).returncode == 0
    name = shlex.split(line)[4]
    assert list(admin.request("GET", f"/api/v1/namespaces/{namespace}/secrets/{name}")["data"]) == ["token"]
    examples = [load(path.read_text()).job for path in sorted((ROOT / "examples").glob("*.yaml"))]
    secrets = [job.spec.pod.hf_token_secret for job in examples if job and job.spec.pod.hf_token_secret]
    assert all((secret.name, secret.key) == (name, "token") for secret in secrets)
