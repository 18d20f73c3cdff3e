"""Runs every kubectl command of the documents with kubectl, on a real API server with the operator and running pods."""

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
    "kubectl describe podgroup": "Volcano is not installed here",
    "kubectl -n hftitan-system rollout status deployment/hftitan-operator": "test_chart_install.py installs the chart",
    "kubectl cp inputs/model files:/inputs/model": "there is no container runtime that could run tar",
    "kubectl cp inputs/text.jsonl files:/inputs/text.jsonl": "the same",
    "kubectl cp files:/results/claims/export export": "the same",
}
"""Commands that are not run, with the reason."""
JOB = "claims"
COLUMNS = ["NAME", "PHASE", "MODEL", "MESH", "STEP", "LOSS", "TOK/S", "RESTARTS", "AGE"]
CLAIMS = [ROOT / "examples/cluster/claims.yaml", ROOT / "examples/cluster/checkpoints.yaml"]
ASKED = {str(document.relative_to(ROOT)): list(kubectl(document)) for document in DOCUMENTS}


@pytest.fixture(scope="module")
def nodes(control_plane, tmp_path_factory):
    """One node with eight GPUs, whose pods run the fake trainer."""
    process = KubeletProcess(
        control_plane, "documents", tmp_path_factory.mktemp("nodes"),
        programs={"hftitan-agent": (sys.executable, str(FAKE_TRAINER))}, environ={"FAKE_STEP": "0.05"},
    )  # fmt: skip
    yield process
    process.close()


@pytest.fixture(scope="module")
def program():
    done = subprocess.run([ROOT / "hack" / "kubectl"], stdout=subprocess.PIPE, text=True, check=True)
    return Path(done.stdout.strip())


@pytest.fixture
def shell(admin, namespace, control_plane, nodes, operator, program, tmp_path):
    """Function: run a command line as in a clone, with a kubeconfig whose context sets the test's namespace."""
    config = yaml.safe_load(control_plane.kubeconfig("admin").read_text())
    config["contexts"][0]["context"]["namespace"] = namespace
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    for name in ("examples", "charts"):
        (tmp_path / name).symlink_to(ROOT / name)
    environ = {
        "PATH": f"{program}:{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(tmp_path), "HF_TOKEN": "hf_test",
        "KUBECONFIG": str(tmp_path / "kubeconfig"), "HF_HUB_OFFLINE": "1",
    }  # fmt: skip

    def run(line):
        command = ["bash", "-euo", "pipefail", "-c", line]
        return subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60)

    for path in CLAIMS:
        for claim in yaml.safe_load_all(path.read_text()):
            make_volume(admin, namespace, claim)
        assert run(f"kubectl apply -f {path.relative_to(ROOT)}").returncode == 0
    return run


def make_volume(admin, namespace, claim):
    """Create the volume that a provisioner would create for a claim."""
    name, spec = claim["metadata"]["name"], claim["spec"]
    of = {"kind": "PersistentVolumeClaim", "apiVersion": "v1", "name": name, "namespace": namespace}
    volume = {"capacity": spec["resources"]["requests"], "accessModes": spec["accessModes"], "claimRef": of}
    volume |= {"hostPath": {"path": "/nowhere"}, "persistentVolumeReclaimPolicy": "Retain"}
    metadata = {"name": f"{namespace}-{name}"}
    admin.create({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": metadata, "spec": volume})


def filled(line):
    """Fill in a job's and a pod's name, and stop a command that follows something after a second."""
    words = re.sub(r"\bNAME-ATTEMPT-NODE\b", f"{JOB}-1-0", line)
    words = re.sub(r"\bNAME\b", JOB, words)
    if re.match(r"kubectl (get|logs) .*(-w|--watch|-f)\b", words):
        return f"timeout 1 {words} || test $? = 124"
    if words.startswith("hftitan crd |"):  # Kubernetes before 1.23 does not know CEL rules
        return f"{words} --validate=false"
    if "meta.helm.sh" in words:  # test_chart_install.py tests it; here the CRD belongs to no release
        return f"{words} --dry-run=server"
    return words


def order(line):
    """Sort key: commands that create come first, commands that delete come last."""
    return ["dry-run", "create", "apply", "", "patch", "delete"].index(
        next((word for word in ("dry-run", "create", "apply", "patch", "delete") if word in line), "")
    )


def pod_is_up(admin, namespace, pod):
    found = admin.find("pods", pod, namespace)
    if found and found["status"].get("phase") == "Succeeded":  # a short job
        return True
    return found and any(each.get("ready") for each in found["status"].get("containerStatuses", ()))


@pytest.mark.parametrize("name", [name for name, lines in ASKED.items() if lines])
def test_kubectl_commands_of_a_document(shell, admin, namespace, tmp_path, name):
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


def test_claims_of_the_examples_are_bound(shell, admin, namespace):
    for name in ("inputs", "results", "checkpoints"):
        admin.wait_for("persistentvolumeclaims", name, lambda c: c["status"].get("phase") == "Bound", namespace)


def test_skipped_commands_are_in_the_documents():
    assert ELSEWHERE.keys() <= {line for lines in ASKED.values() for line in lines}


def test_documented_secret_is_the_one_that_the_examples_use(shell, admin, namespace):
    """docs/first-job.md creates it; spec.pod.hfTokenSecret reads the key `token`."""
    [line] = [line for line in ASKED["docs/first-job.md"] if "create secret" in line]
    assert shell(line).returncode == 0
    name = shlex.split(line)[4]
    assert list(admin.request("GET", f"/api/v1/namespaces/{namespace}/secrets/{name}")["data"]) == ["token"]
    examples = [load(path.read_text()).job for path in sorted((ROOT / "examples").glob("*.yaml"))]
    secrets = [job.spec.pod.hf_token_secret for job in examples if job and job.spec.pod.hf_token_secret]
    assert all((secret.name, secret.key) == (name, "token") for secret in secrets)
