"""The control plane of the tests works as expected and accepts the CRD."""

import subprocess
import sys
import textwrap

import pytest
from kubectl import ApiError, Kubectl, wait
from paths import ROOT
from processes import alive

from hftitan_api.models import HFTitanJob

pytestmark = pytest.mark.oldest

TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"


def job(name="tiny", namespace="default", **spec):
    base = {
        "model": {"name": "org/model"},
        "dataset": {"name": "org/data"},
        "mesh": {"nodes": 2, "gpusPerNode": 8},
        "training": {"steps": 5},
        "checkpoint": {"volume": "runs"},
    }
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "hftitan.io/v1alpha1", "kind": "HFTitanJob", "metadata": metadata, "spec": base | spec}


def test_crd_is_established_and_served_with_its_columns(admin, namespace):
    crd = admin.get("customresourcedefinitions", "hftitanjobs.hftitan.io")
    conditions = {c["type"]: c["status"] for c in crd["status"]["conditions"]}
    assert conditions == {"NamesAccepted": "True", "Established": "True"}
    admin.create(job(namespace=namespace))
    table = admin.request("GET", f"/apis/hftitan.io/v1alpha1/namespaces/{namespace}/hftitanjobs", accept=TABLE)
    columns = [column["name"] for column in table["columnDefinitions"] if column["priority"] == 0]
    assert columns == ["Name", "PHASE", "MODEL", "MESH", "STEP", "LOSS", "TOK/S", "RESTARTS", "AGE"]
    [row] = table["rows"]
    assert row["cells"][0] == "tiny"
    assert row["cells"][2] == "org/model"


def test_created_job_has_the_defaults_of_the_models(admin, namespace):
    created = admin.create(job(namespace=namespace))
    stored = HFTitanJob.model_validate({key: created[key] for key in ("apiVersion", "kind", "metadata", "spec")})
    assert stored.spec == HFTitanJob.model_validate(job()).spec
    assert created["spec"]["runPolicy"]["maxRestarts"] == stored.spec.run_policy.max_restarts


def test_invalid_job_is_rejected_by_field(admin, namespace):
    with pytest.raises(ApiError, match=r"spec\.training\.steps") as caught:
        admin.create(job(namespace=namespace, training={"steps": "many"}))
    assert caught.value.status == 422


def test_status_is_a_subresource(admin, namespace):
    admin.create(job(namespace=namespace))
    body = {"status": {"phase": "Running"}, "spec": {"runPolicy": {"maxRestarts": 7}}}
    patched = admin.patch("hftitanjobs", "tiny", body, namespace, subresource="status")
    assert patched["status"]["phase"] == "Running"
    assert patched["spec"]["runPolicy"]["maxRestarts"] != 7
    assert patched["metadata"]["generation"] == 1
    assert admin.patch("hftitanjobs", "tiny", body, namespace)["metadata"]["generation"] == 2


def test_owned_objects_are_deleted_with_their_job(admin, namespace):
    owner = admin.create(job(namespace=namespace))
    reference = {"apiVersion": owner["apiVersion"], "kind": "HFTitanJob", "name": "tiny"}
    reference |= {"uid": owner["metadata"]["uid"], "controller": True}
    metadata = {"name": "child", "namespace": namespace, "ownerReferences": [reference]}
    admin.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata})
    admin.delete("hftitanjobs", "tiny", namespace)
    admin.wait_gone("configmaps", "child", namespace)


def test_users_have_the_permissions_of_their_role(control_plane, admin, namespace):
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "robot", "namespace": namespace}}
    admin.create(account)
    robot = f"system:serviceaccount:{namespace}:robot"
    metadata = {"name": "pods-only", "namespace": namespace}
    rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]
    rbac = "rbac.authorization.k8s.io"
    admin.create({"apiVersion": f"{rbac}/v1", "kind": "Role", "metadata": metadata, "rules": rules})
    subjects = [{"apiGroup": rbac, "kind": "User", "name": user} for user in ("operator", robot)]
    role = {"apiGroup": rbac, "kind": "Role", "name": "pods-only"}
    binding = {"apiVersion": f"{rbac}/v1", "kind": "RoleBinding", "metadata": metadata}
    admin.create({**binding, "subjects": subjects, "roleRef": role})
    for user in ("operator", robot):
        client = Kubectl.of(control_plane.kubeconfig(user))
        admin.wait(lambda client=client: may_list(client, "pods", namespace), f"the role to reach {user}")
        assert not may_list(client, "configmaps", namespace)
    assert not may_list(Kubectl.of(control_plane.kubeconfig("alice")), "pods", namespace)


def may_list(client, resource, namespace):
    try:
        client.list(resource, namespace)
    except ApiError as error:
        if error.status != 403:
            raise
        return False
    return True


def test_objects_survive_an_outage_of_the_api_server(control_plane, admin, namespace):
    admin.create(job(namespace=namespace))
    control_plane.stop_apiserver()
    with pytest.raises(OSError):
        control_plane.admin.get("hftitanjobs", "tiny", namespace)
    control_plane.start_apiserver()
    assert admin.get("hftitanjobs", "tiny", namespace)["spec"]["training"]["steps"] == 5


def test_killed_test_run_leaves_no_process(control_plane_assets, tmp_path):
    script = f"""
        import sys, time
        sys.path.insert(0, {str(ROOT / "tests/support/cluster")!r})
        from pathlib import Path
        from control_plane import ControlPlane
        plane = ControlPlane(Path({str(tmp_path)!r}), Path({str(control_plane_assets)!r}),
                             controller_manager=False, scheduler=False)
        plane.start()
        print(*plane.pids().values(), flush=True)
        time.sleep(600)
    """
    owner = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True)
    pids = [int(word) for word in owner.stdout.readline().split()]
    assert len(pids) == 2
    owner.kill()
    owner.communicate()
    wait(lambda: not any(map(alive, pids)), "the processes to end")
