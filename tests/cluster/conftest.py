"""Fixtures for tests on a real API server. One control plane is shared by all tests of this folder."""

import subprocess
import uuid
from pathlib import Path

import pytest
from control_plane import ControlPlane
from kubectl import Kubectl
from kubelets import KubeletProcess
from operator_process import OperatorProcess
from paths import CRD, ROOT

from hftitan_operator.core.rendering import access

ACCOUNT = access.Account()


@pytest.fixture(scope="session")
def control_plane_assets():
    """The folder with the control plane's programs, from hack/control-plane. The first build takes minutes."""
    done = subprocess.run([ROOT / "hack" / "control-plane"], stdout=subprocess.PIPE, text=True, check=True)
    return Path(done.stdout.strip())


@pytest.fixture(scope="session")
def prometheus_programs():
    """The folder with prometheus and promtool."""
    done = subprocess.run([ROOT / "hack" / "prometheus"], stdout=subprocess.PIPE, text=True, check=True)
    return Path(done.stdout.strip())


@pytest.fixture(scope="session")
def control_plane(control_plane_assets, tmp_path_factory, say):
    """A control plane with all four programs and the HFTitanJob CRD."""
    with ControlPlane(tmp_path_factory.mktemp("control-plane"), control_plane_assets, crds=[CRD]) as plane:
        say(plane.admin.request("GET", "/version")["gitVersion"])
        yield plane


@pytest.fixture(scope="session")
def admin(control_plane) -> Kubectl:
    return control_plane.admin


@pytest.fixture
def namespace(admin):
    """A new namespace for the test."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    admin.make_namespace(name)
    yield name
    admin.delete("namespaces", name)


@pytest.fixture
def kubelet(control_plane, tmp_path):
    """Function: start a KubeletProcess(nodes, **options). Its nodes are removed after the test."""
    started = []

    def start(nodes="node-a", **options):
        started.append(KubeletProcess(control_plane, nodes, tmp_path / "kubelet", **options))
        return started[-1]

    yield start
    for process in started:
        process.close()


@pytest.fixture(scope="module")
def operator(control_plane, tmp_path_factory):
    """The operator as a process that serves the whole cluster, with exactly the permissions of `hftitan rbac`."""
    admin = control_plane.admin
    if admin.find("namespaces", ACCOUNT.namespace) is None:
        admin.make_namespace(ACCOUNT.namespace)
    for manifest in access.cluster_wide(ACCOUNT):
        admin.apply(manifest)
    user = f"system:serviceaccount:{ACCOUNT.namespace}:{ACCOUNT.name}"
    process = OperatorProcess(control_plane.kubeconfig(user), tmp_path_factory.mktemp("operator") / "log").start()
    process.wait_ready()
    yield process
    process.kill()
    assert "Traceback" not in process.log.read_text()
