"""One control plane for all tests of this folder, started once; its programs come from hack/control-plane."""

import subprocess
import sys
import uuid
from pathlib import Path

import pytest

# importlib import mode has no rootdir on sys.path: the modules beside the tests are imported by name.
sys.path.insert(0, str(Path(__file__).parent))

from control_plane import ControlPlane
from kubectl import Kubectl
from kubelets import KubeletProcess

ROOT = Path(__file__).parents[2]
CRD = ROOT / "crds" / "hftitanjobs.yaml"


@pytest.fixture(scope="session")
def control_plane_assets():
    """The folder with the programs; their first build takes minutes."""
    done = subprocess.run([ROOT / "hack" / "control-plane"], stdout=subprocess.PIPE, text=True, check=True)
    return Path(done.stdout.strip())


@pytest.fixture(scope="session")
def control_plane(control_plane_assets, tmp_path_factory):
    """All four programs, and the HFTitanJob CRD."""
    with ControlPlane(tmp_path_factory.mktemp("control-plane"), control_plane_assets, crds=[CRD]) as plane:
        yield plane


@pytest.fixture(scope="session")
def admin(control_plane) -> Kubectl:
    return control_plane.admin


@pytest.fixture
def namespace(admin):
    """A namespace of the test's own."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    admin.make_namespace(name)
    yield name
    admin.delete("namespaces", name)


@pytest.fixture
def kubelet(control_plane, tmp_path):
    """Function: KubeletProcess(nodes, **options), whose nodes go with the test."""
    started = []

    def start(nodes="node-a", **options):
        started.append(KubeletProcess(control_plane, nodes, tmp_path / "kubelet", **options))
        return started[-1]

    yield start
    for process in started:
        process.close()
