"""The operator's image: built from the Dockerfile, inspected, and run on a real API server."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from hostile_job import job as harmless
from images import ROOT, Buildah
from operator_process import OperatorProcess

from hftitan_operator.core.rendering import access

LOCKS = ROOT / "hack" / "locks"
PYTHON_PACKAGES_MB = 200


def pins(text):
    return dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))


@pytest.fixture(scope="module")
def buildah(tmp_path_factory):
    return Buildah(tmp_path_factory.mktemp("build"))


@pytest.fixture(scope="module")
def container(buildah):
    """A container of the operator's image that is not started."""
    name = buildah.run(["from", buildah.build("operator")]).strip()
    yield name
    buildah.run(["rm", name])


@pytest.fixture(scope="module")
def files(buildah, container):
    """The mounted file system of the container."""
    yield Path(buildah.run(["mount", container]).strip())
    buildah.run(["umount", container])


def test_locks_are_up_to_date(tmp_path):
    """Compares names and versions. Hashes are not compared, because wheels may be published later."""
    subprocess.run([ROOT / "hack" / "lock", tmp_path], check=True, timeout=300)
    for lock in sorted(LOCKS.iterdir()):
        assert pins(lock.read_text()) == pins((tmp_path / lock.name).read_text()), "run hack/lock"
        entries = re.split(r"^(?=\w)", lock.read_text(), flags=re.MULTILINE)[1:]
        assert [entry for entry in entries if "--hash=sha256:" not in entry] == []


def test_trainers_lock_is_complete_and_matches_the_test_environment(tmp_path):
    """The image would take gigabytes, so this only plans the install into an empty environment, with hashes."""
    lock = LOCKS / "trainer.txt"
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "--quiet", tmp_path / "venv"], check=True)
    options = ["--dry-run", "--require-hashes", "--only-binary", ":all:", "--python", tmp_path / "venv", "-r", lock]
    planned = subprocess.run([*uv, "pip", "install", *options], capture_output=True, text=True, timeout=300)
    assert planned.returncode == 0, planned.stderr
    found = re.findall(r"^ \+ ([\w.-]+)==(\S+)", planned.stderr, re.MULTILINE)
    assert dict(found) == {name: pin for name, pin in pins(lock.read_text()).items() if name in dict(found)}
    assert {"torch", "torchtitan", "transformers", "triton"} <= set(dict(found))
    assert {name: version(name) for name, _ in found} == dict(found)


def test_image_has_the_packages_of_its_lock_and_no_torch(files):
    packages = next((files / "opt/hftitan/lib").glob("python3.*/site-packages"))
    found = {}
    for folder in packages.glob("*.dist-info"):
        metadata = (folder / "METADATA").read_text()
        name = re.search(r"^Name: (.+)$", metadata, re.MULTILINE)[1].lower()
        found[re.sub(r"[-_.]+", "-", name)] = re.search(r"^Version: (.+)$", metadata, re.MULTILINE)[1]
    wanted = pins((LOCKS / "operator.txt").read_text())
    assert set(found) - set(wanted) == {"hftitan"}
    assert {name: found[name] for name in wanted} == wanted
    assert not (packages / "torch").exists()
    size = sum(path.stat().st_size for path in packages.rglob("*") if path.is_file()) / 1e6
    assert size < PYTHON_PACKAGES_MB


def test_image_contains_no_build_files_or_pip_settings(buildah, container, files):
    assert not (files / "run/secrets/pip").exists() or not (files / "run/secrets/pip").read_bytes()
    assert not (files / "build").exists()
    description = buildah.run(["inspect", container]).lower()
    assert "index-url" not in description
    assert "pip_" not in description
    left = [path for path in (files / "root").rglob("*") if path.is_file() and "pip" in path.name]
    assert left == []


def test_image_runs_as_an_unprivileged_user(buildah, container):
    done = subprocess.run(
        buildah.command(container, ["sh", "-c", "id -u; hftitan crd; touch /opt/hftitan/x"]),
        capture_output=True,
        text=True,
    )
    assert done.stdout.split("\n")[0] == "1000"
    assert "kind: CustomResourceDefinition" in done.stdout
    assert done.returncode != 0, "the user must not be able to change the installed program"


def test_operator_in_the_image_serves_jobs(buildah, container, control_plane, admin, namespace, kubelet, tmp_path):
    account = access.Account(namespace=namespace)
    for manifest in access.namespaced(account, [namespace]):
        admin.apply(manifest)
    kubeconfig = control_plane.kubeconfig(f"system:serviceaccount:{namespace}:{account.name}")
    kubeconfig.chmod(0o644)
    command = buildah.command(container, ["hftitan", "operator"], f"--volume={kubeconfig}:{kubeconfig}:ro")
    process = OperatorProcess(kubeconfig, tmp_path / "log", "--namespace", namespace, command=command)
    process.start()
    try:
        process.wait_ready()
        kubelet(fake={"endsAfter": 0.2})
        admin.make_claim("claim", namespace)
        admin.create(harmless("x", metadata={"namespace": namespace}))
        admin.wait_for("hftitanjobs", "x", lambda j: j.get("status", {}).get("phase") == "Succeeded", namespace)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
    assert "Traceback" not in process.log.read_text()
