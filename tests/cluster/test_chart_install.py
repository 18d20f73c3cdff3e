"""`helm install`, `upgrade` and `uninstall` of the chart on a real API server, with Helm's own code.

The pods of the Deployment run: the kubelet starts the rendered command with the permissions of the rendered account.
"""

import re
import shutil
import sys
import urllib.request

import helm_python as helm
import pytest
import yaml
from control_plane import ControlPlane
from kubectl import ApiError, Kubectl, wait
from paths import FAKE_TRAINER, ROOT

pytestmark = pytest.mark.oldest

CHART = ROOT / "charts" / "hftitan"
README = CHART / "README.md"
CRD_NAME = "hftitanjobs.hftitan.io"
BASE = {"crds": {"enabled": False}, "podDisruptionBudget": {"enabled": False}}
"""The control plane already has the CRD, and its Kubernetes version may not have PodDisruptionBudgets in policy/v1."""


class Release:
    """One Helm release in a namespace."""

    def __init__(self, kubeconfig, namespace, name="hftitan"):
        self.namespace, self.name = namespace, name
        self.config = helm.Config(kubeconfig_path=kubeconfig, namespace=namespace, qps=1000, burst_limit=2000)

    def install(self, chart=CHART, **values):
        return self.config.install(str(chart), self.name, {**BASE, **values}, namespace=self.namespace)

    def upgrade(self, chart=CHART, **values):
        return self.config.upgrade(str(chart), self.name, {**BASE, **values}, namespace=self.namespace)

    def uninstall(self):
        return self.config.uninstall(self.name, ignore_not_found=True)


@pytest.fixture
def release_as(control_plane, namespace):
    """Function: return a release in the test's namespace, managed as the given user."""
    made = []

    def make(user="admin", name="hftitan"):
        made.append(Release(control_plane.kubeconfig(user), namespace, name))
        return made[-1]

    yield make
    for release in made:
        release.uninstall()
        release.config.close()


@pytest.fixture
def deployed(control_plane, admin, namespace, kubelet, tmp_path):
    """Function: start nodes after a release was installed, and wait for the operator's replicas."""

    def start(replicas):
        # In a pod, the token has a fixed path and the address is the pod's own; these processes need options for both.
        kubeconfig = control_plane.kubeconfig(f"system:serviceaccount:{namespace}:hftitan-operator")
        # They have no mounts either: the kubelet writes a ConfigMap next to the folder in which they start.
        mounted = '"${@/"=/etc/hftitan/"/=../../.config/hftitan-operator-job-defaults/}"'
        operator = tmp_path / "hftitan"
        operator.write_text(
            f"exec {sys.executable} -m hftitan_operator.cli {mounted} --kubeconfig {kubeconfig} "
            '--host "$PET_LOCAL_ADDR"\n'
        )
        kubelet(
            "chart-a,chart-b",
            programs={"hftitan": ("bash", str(operator)), "hftitan-agent": (sys.executable, str(FAKE_TRAINER))},
            environ={"FAKE_STEP": "0.02", "NO_PROXY": "127.0.0.0/8,localhost"},
        )
        try:
            rolled_out(admin, namespace, replicas)
        except AssertionError as error:
            logs = (tmp_path / "kubelet" / "pods").glob("*/logs/hftitan-operator-*.log")
            raise AssertionError("\n".join([str(error), *(log.read_text()[-2000:] for log in logs)])) from None

    return start


def rolled_out(admin, namespace, replicas):
    def done(deployment):
        status = deployment.get("status", {})
        seen = status.get("observedGeneration") == deployment["metadata"]["generation"]
        counts = [status.get(f"{word}eplicas", 0) for word in ("r", "updatedR", "readyR")]
        return seen and counts == [replicas] * 3

    admin.wait_for("deployments", "hftitan-operator", done, namespace, timeout=60.0)


def document(name, namespace):
    return {
        "apiVersion": "hftitan.io/v1alpha1",
        "kind": "HFTitanJob",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "model": {"name": "org/model"},
            "dataset": {"name": "org/data"},
            "mesh": {"device": "cpu", "nodes": 2},
            "training": {"steps": 5, "seqLen": 64},
            "checkpoint": {"volume": "results"},
        },
    }


def succeeds(admin, job):
    name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
    admin.create(job)
    job = admin.wait_for(
        "hftitanjobs", name, lambda j: j.get("status", {}).get("phase") in ("Succeeded", "Failed"), namespace, 60.0
    )
    assert job["status"]["phase"] == "Succeeded", job["status"]
    nodes = job["spec"]["mesh"].get("nodes", 1)
    pods = admin.list("pods", namespace, labels=f"hftitan.io/job={name}")
    assert len(pods) == nodes
    return pods


def operators(admin, namespace):
    """Return the operator's pods that are not being deleted, by name."""
    pods = admin.list("pods", namespace, labels="app.kubernetes.io/component=operator")
    return {p["metadata"]["name"]: p for p in pods if "deletionTimestamp" not in p["metadata"]}


def served(pod, path):
    """Return the response of a scrape or probe at the annotated port."""
    port = pod["metadata"]["annotations"]["prometheus.io/port"]
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{pod['status']['podIP']}:{port}{path}", timeout=5) as answer:
        return answer.read().decode()


def test_install_upgrade_and_uninstall_with_training_jobs(admin, control_plane, namespace, release_as, deployed):
    release = release_as()
    installed = release.install()
    assert f"kubectl -n {namespace} rollout status deployment/hftitan-operator" in installed["notes"]
    team = admin.make_namespace(f"{namespace}-team")
    try:
        admin.make_claim("results", team)
        deployed(2)
        pods = operators(admin, namespace)
        lease = wait(lambda: admin.find("leases", "hftitan-operator", namespace), "the lease")
        leader = lease["spec"]["holderIdentity"].partition("_")[0]
        assert leader in pods, "the Lease holder is named after the pod"
        (first,) = re.findall(r"<<'JOB'\n(.*?)\n *JOB\n", installed["notes"], re.DOTALL)
        succeeds(admin, {**(job := yaml.safe_load(first)), "metadata": {**job["metadata"], "namespace": team}})
        succeeds(admin, document("before", team))
        for name, pod in pods.items():
            container = pod["spec"]["containers"][0]
            assert served(pod, container["livenessProbe"]["httpGet"]["path"]) == "ok\n"
            metrics = served(pod, pod["metadata"]["annotations"]["prometheus.io/path"])
            assert f"\nhftitan_operator_leader {float(name == leader)}\n" in metrics
            spread = {"topologySpreadConstraints", "affinity"} & pod["spec"].keys()
            assert spread == {"topologySpreadConstraints" if control_plane.version >= (1, 27) else "affinity"}
        resource = admin.get("customresourcedefinitions", CRD_NAME)

        place = {"kubernetes.io/hostname": "chart-b"}
        release.upgrade(replicas=1, logLevel="debug", jobDefaults={"nodeSelector": place})
        rolled_out(admin, namespace, 1)
        (pod,) = wait(lambda: len(found := operators(admin, namespace)) == 1 and found, "one replica").values()
        assert "--log-level=debug" in pod["spec"]["containers"][0]["args"]
        after = succeeds(admin, document("after", team))
        assert [pod["spec"]["nodeSelector"] for pod in after] == [place] * 2, "the job default applies"
        assert admin.get("customresourcedefinitions", CRD_NAME)["spec"] == resource["spec"]

        release.uninstall()
        assert admin.find("deployments", "hftitan-operator", namespace) is None
        ours = f"app.kubernetes.io/instance=hftitan,helm.sh/chart=hftitan-{installed['chart_version']}"
        for kind in ("clusterroles", "clusterrolebindings", "roles", "rolebindings", "configmaps", "services"):
            assert admin.list(kind, namespace, labels=ours) == []
        assert {job["metadata"]["name"] for job in admin.list("hftitanjobs", team)} == {"first", "before", "after"}
    finally:
        admin.delete("namespaces", team)


def test_tenant_installs_with_permissions_in_one_namespace(admin, control_plane, namespace, release_as, deployed):
    """alice has all permissions in one namespace and none elsewhere. Her operator serves only that namespace."""
    admin.create(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "alice", "namespace": namespace},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "alice"}],
        }
    )
    tenant = {"namespaces": [namespace], "rbac": {"aggregate": False}}
    with pytest.raises(helm.HelmError, match="forbidden"):
        release_as("alice", "whole-cluster").install()
    release_as("alice", "whole-cluster").uninstall()
    release_as("alice").install(**tenant)
    with pytest.raises(helm.HelmError, match=r"release .*hftitan.* already runs an operator in namespace"):
        release_as("alice", "second").install(**tenant)
    deployed(2)
    admin.make_claim("results", namespace)
    succeeds(admin, document("x", namespace))
    account = Kubectl.of(control_plane.kubeconfig(f"system:serviceaccount:{namespace}:hftitan-operator"))
    with pytest.raises(ApiError, match="forbidden"):
        account.list("pods", None)


# --- the CRD -----------------------------------------------------------------------------------------------------


@pytest.fixture
def plane(control_plane_assets, tmp_path):
    """An API server without the CRD."""
    options = {"controller_manager": False, "scheduler": False}
    with ControlPlane(tmp_path / "plane", control_plane_assets, **options) as plane:
        yield plane


@pytest.fixture
def charts(tmp_path):
    """Function: copy the chart with one more field in the CRD's spec, and without CEL, which old servers refuse."""

    def make(field):
        copy = tmp_path / field / "hftitan"
        shutil.copytree(CHART, copy)
        template = copy / "templates" / "crd.yaml"
        head, body = template.read_text().split("\nspec:\n")
        spec = without_cel(yaml.safe_load(body.replace("{{- end }}", "")))
        properties(spec)[field] = {"type": "string"}
        template.write_text(f"{head}\nspec: {yaml.safe_dump(spec, default_flow_style=True, width=1e9)}{{{{- end }}}}\n")
        return copy

    return make


def without_cel(node):
    if isinstance(node, dict):
        return {k: without_cel(v) for k, v in node.items() if k != "x-kubernetes-validations"}
    return [without_cel(item) for item in node] if isinstance(node, list) else node


def properties(spec):
    return spec["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]


def test_crd_is_upgraded_and_kept(plane, charts):
    admin = plane.admin
    admin.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "hftitan-system"}})
    release = Release(plane.kubeconfig("admin"), "hftitan-system")
    other = Release(plane.kubeconfig("admin"), "hftitan-system", "other")
    with_crd = {"crds": {"enabled": True}, "replicas": 0}

    def fields():
        return properties(admin.get("customresourcedefinitions", CRD_NAME)["spec"])

    release.install(charts("one"), **with_crd)
    admin.wait(lambda: can_create(admin, document("mine", "default")), "the CRD to be served")
    release.upgrade(charts("two"), **with_crd)
    assert "two" in fields()
    assert "one" not in fields()

    release.uninstall()
    assert "two" in fields()
    assert admin.find("hftitanjobs", "mine") is not None
    third = charts("three")
    with pytest.raises(helm.HelmError, match="invalid ownership metadata"):
        other.install(third, **with_crd)
    release.install(third, **with_crd)
    assert "three" in fields(), "a new release of the same name adopts the CRD"
    release.uninstall()

    owned = dict(re.findall(r"(meta\.helm\.sh/[a-z-]+)=(\S+)", README.read_text()))
    assert owned == {"meta.helm.sh/release-name": "hftitan", "meta.helm.sh/release-namespace": "hftitan-system"}
    metadata = {"annotations": {**owned, "meta.helm.sh/release-name": "other"}}
    admin.patch("customresourcedefinitions", CRD_NAME, {"metadata": metadata})
    other.install(charts("four"), **{**with_crd, "crds": {"enabled": True, "keep": False}})
    assert "four" in fields()
    assert admin.find("hftitanjobs", "mine") is not None
    other.uninstall()
    wait(lambda: admin.find("customresourcedefinitions", CRD_NAME) is None, "the CRD to be deleted")
    release.config.close()
    other.config.close()


def can_create(admin, thing):
    try:
        return admin.create(thing)
    except ApiError as error:
        if error.status != 404:
            raise
        return None
