"""`hftitan operator --namespace NS` with the permissions of `hftitan rbac --namespace NS`: one tenant's operator."""

import urllib.error
import urllib.request

import pytest
from control_plane import ControlPlane
from kubectl import ApiError, Kubectl, wait
from operator_process import OperatorProcess
from paths import CRD

from hftitan_operator.core.rendering import access


def document(namespace):
    return {
        "apiVersion": "hftitan.io/v1alpha1",
        "kind": "HFTitanJob",
        "metadata": {"name": "x", "namespace": namespace},
        "spec": {
            "model": {"name": "org/model"},
            "dataset": {"name": "org/data"},
            "mesh": {"device": "cpu"},
            "training": {"steps": 3},
        },
    }


@pytest.fixture
def tenant(control_plane, tmp_path, namespace):
    """An operator in the namespace that it serves, without permissions elsewhere."""
    account = access.Account(namespace=namespace)
    for manifest in access.namespaced(account, [namespace]):
        control_plane.admin.apply(manifest)
    kubeconfig = control_plane.kubeconfig(f"system:serviceaccount:{namespace}:{account.name}")
    process = OperatorProcess(kubeconfig, tmp_path / "log", "--namespace", namespace, "--leader-elect",
                              "--lease-namespace", namespace)  # fmt: skip
    process.start().wait_ready()
    yield process
    process.kill()


def test_operator_serves_only_its_namespace(control_plane, admin, namespace, tenant, kubelet):
    other = admin.make_namespace(f"{namespace}-other")
    try:
        kubelet(fake={"endsAfter": 0.2})
        for place in (other, namespace):
            admin.create(document(place))
        admin.wait_for("hftitanjobs", "x", lambda j: j.get("status", {}).get("phase") == "Succeeded", namespace)
        assert "status" not in admin.get("hftitanjobs", "x", other)
        assert admin.list("pods", other) == []
    finally:
        admin.delete("namespaces", other)
    log = tenant.log.read_text()
    assert "nodes" in log, "the log says that the operator runs without access to nodes"
    assert "Traceback" not in log


def test_account_has_no_permissions_elsewhere(control_plane, admin, namespace, tenant):
    account = Kubectl.of(tenant.kubeconfig)
    for resource, where in (("pods", "default"), ("hftitanjobs", "default"), ("secrets", namespace), ("nodes", None)):
        with pytest.raises(ApiError, match="forbidden"):
            account.list(resource, where)


def test_missing_lease_permission_is_logged(control_plane, admin, namespace, tmp_path):
    """Without permissions for the Lease, the operator waits, logs the reason, and serves no job."""
    account = access.Account(namespace=namespace)
    for manifest in access.namespaced(account, [namespace]):
        if not manifest["metadata"]["name"].endswith("-lease"):
            control_plane.admin.apply(manifest)
    kubeconfig = control_plane.kubeconfig(f"system:serviceaccount:{namespace}:{account.name}")
    process = OperatorProcess(kubeconfig, tmp_path / "log", "--namespace", namespace, "--leader-elect",
                              "--lease-namespace", namespace)  # fmt: skip
    process.start()
    try:
        wait(lambda: "leases" in process.log.read_text(), "the reason in the log")
        admin.create(document(namespace))
        assert "status" not in admin.get("hftitanjobs", "x", namespace)
        assert process.alive
    finally:
        process.kill()


def test_operator_waits_until_the_crd_is_installed(control_plane_assets, tmp_path):
    """Without the CRD, the operator logs the fix. After the installation it serves jobs without a restart."""
    with ControlPlane(tmp_path / "plane", control_plane_assets, controller_manager=False, scheduler=False) as plane:
        process = OperatorProcess(plane.kubeconfig("admin"), tmp_path / "log").start()
        try:
            wait(lambda: "hftitan crd | kubectl apply -f -" in process.log.read_text(), "the hint")
            with pytest.raises(urllib.error.HTTPError) as unready:
                urllib.request.urlopen(f"http://127.0.0.1:{process.port}/readyz")
            assert "hftitanjobs.hftitan.io is not installed" in unready.value.read().decode()
            plane.install_crd(CRD)
            process.wait_ready()
            plane.admin.create(document("default"))
            plane.admin.wait_for("hftitanjobs", "x", lambda job: job.get("status", {}).get("phase"))
        finally:
            process.kill()
