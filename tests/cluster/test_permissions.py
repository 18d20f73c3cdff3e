"""Compares the operator's permissions with the requests that the API server's audit log shows.

In these runs every permission is used and no request is denied: none is missing, and none is superfluous. The API
server streams no lists here, because a streamed list needs no permission to list.
"""

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import job_documents
import pytest
from audit import Audit
from control_plane import ControlPlane
from fault_proxy import Call, Fault, FaultProxy, refuse_streamed_lists
from gang_schemas import FOLDER
from kubectl import Kubectl, wait
from kubelets import KubeletProcess
from operator_process import OperatorProcess, QuickOperator
from paths import CRD
from scenarios import SCENARIOS, AuditedCluster, NodeGroup, ScenarioRun, poll_all

from hftitan_operator.core import naming
from hftitan_operator.core.rendering import access
from hftitan_operator.core.rendering.scheduling import KUBERNETES, KUEUE, KUEUE_WORKLOADS, SCHEDULERS

UNUSED = {
    (KUBERNETES.group, KUBERNETES.resource, "delete"),
    (KUEUE.group, KUEUE_WORKLOADS, "get"),
    (KUEUE.group, KUEUE_WORKLOADS, "delete"),
}
"""Used in test_kueue.py and test_kubernetes_gangs.py, where these schedulers run."""
RUN_SECONDS = 60.0


@pytest.fixture(scope="module")
def plane(control_plane_assets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("audited")
    crds = [CRD, *sorted(FOLDER.glob("*.yaml"))]
    with ControlPlane(folder, control_plane_assets, crds=crds, audited=True) as plane:
        yield plane


@pytest.fixture(scope="module")
def groups(plane, tmp_path_factory):
    """Two nodes for each run."""
    names = [f"run-{i}-{side}" for i in range(len(SCENARIOS)) for side in "ab"]
    kubelet = KubeletProcess(plane, ",".join([*names, "spare"]), tmp_path_factory.mktemp("nodes"), fake={})
    yield [NodeGroup(plane.admin, f"run-{i}", names[2 * i : 2 * i + 2]) for i in range(len(SCENARIOS))]
    kubelet.close()


@dataclass
class Tenancy:
    """An operator's account, its permissions, and the namespace with its jobs."""

    account: access.Account
    team: str
    manifests: tuple[dict, ...]
    options: list[str] = field(default_factory=list)

    @property
    def user(self) -> str:
        return f"system:serviceaccount:{self.account.namespace}:{self.account.name}"

    @property
    def granted(self) -> set[tuple[str, ...]]:
        """Role, group, resource and verb of each permission."""
        return {
            (role["metadata"]["name"], group, resource, verb)
            for role in self.manifests
            for rule in role.get("rules", ())
            for group in rule["apiGroups"]
            for resource in rule["resources"]
            for verb in rule["verbs"]
        }


def whole_cluster(admin: Kubectl) -> Tenancy:
    account, team = access.Account(namespace=admin.make_namespace("everywhere")), admin.make_namespace("any-team")
    return Tenancy(account, team, access.cluster_wide(account))


def one_namespace(admin: Kubectl) -> Tenancy:
    """With three roles, so that the log shows which role allowed a request."""
    account, team = access.Account(namespace=admin.make_namespace("tenant")), admin.make_namespace("team")
    return Tenancy(account, team, access.namespaced(account, [team], nodes=True, gangs=True), ["--namespace", team])


def used(events):
    """Return role, group, resource and verb of each request; the role is the one that allowed it."""
    found = set()
    for event in events:
        about = event.get("objectRef", {})
        if "resource" not in about:
            continue  # /version and others, which every account may read
        resource = "/".join(filter(None, (about["resource"], about.get("subresource"))))
        (role,) = re.findall(r' of (?:Cluster)?Role "([^"]+)"', event["annotations"]["authorization.k8s.io/reason"])
        found.add((role, about.get("apiGroup", ""), resource, event["verb"]))
    return found


def denied(events):
    return [e["requestURI"] for e in events if e["annotations"]["authorization.k8s.io/decision"] != "allow"]


@pytest.mark.parametrize("tenancy", [whole_cluster, one_namespace])
def test_every_permission_is_used_and_no_request_is_denied(tenancy, plane, groups, tmp_path, say):
    mine = tenancy(plane.admin)
    for manifest in mine.manifests:
        plane.admin.apply(manifest)
    with contextlib.ExitStack() as stack:
        cluster = AuditedCluster(plane, stack.enter_context(Audit(plane)))
        proxy = stack.enter_context(FaultProxy(plane, tmp_path, mine.user))
        proxy.script = refuse_streamed_lists
        options = [*mine.options, "--leader-elect", "--lease-namespace", mine.account.namespace]
        leader, follower = (OperatorProcess(proxy.kubeconfig, tmp_path / f"log-{i}", *options) for i in range(2))
        for replica in (leader, follower):
            stack.callback(replica.kill)
            replica.start()
            replica.wait_ready()
            wait(lambda: " is the leader (" in (tmp_path / "log-0").read_text(), "the first replica to lead")
        proxy.script = edit_before_status_write(plane.admin, "names-taken")
        create_jobs_with_names_in_use(plane.admin, mine.team)
        create_and_suspend_gangs(plane.admin, mine.team)
        numbered = enumerate(zip(SCENARIOS, groups, strict=True))
        runs = [
            ScenarioRun(cluster, scenario, mine.team, f"run-{i}", group.name).create()
            for i, (scenario, group) in numbered
        ]
        wait(lambda: poll_all(runs, 1), "the first step of each run", RUN_SECONDS)
        leader.terminate()  # also releases the lease
        assert leader.ended(10) == 0
        wait(lambda: poll_all(runs), f"the runs to end, {[run.done for run in runs]} steps done", RUN_SECONDS)
        assert [problem for run in runs for problem in run.problems()] == []
        for group in groups:
            group.restore()
    events = plane.requests(mine.user)
    assert denied(events) == []
    needed = {permission for permission in mine.granted if permission[1:] not in UNUSED}
    assert used(events) == needed
    say(f"{tenancy.__name__}: {len(needed)} permissions, all used in {len(events)} requests")


def create_jobs_with_names_in_use(admin: Kubectl, team: str) -> None:
    """Create jobs whose object names are in use. The operator must read the existing objects and not change them."""
    occupy(admin, team)
    for name in ("names-taken", "pod-taken"):
        admin.create(document(name, team))
        rejected = admin.wait_for("hftitanjobs", name, lambda job: "message" in job.get("status", {}), team)
        assert "already exists and does not belong to this job" in rejected["status"]["message"]
        admin.delete("hftitanjobs", name, team)


def create_and_suspend_gangs(admin: Kubectl, team: str) -> None:
    """Create a job per gang scheduler; suspend it once its group exists. Kueue has no queue, Kubernetes no gangs."""
    queue = {"kueue": {"queue": "none"}, "kai": {"queue": "any"}}
    for gang in SCHEDULERS:
        admin.create(document(f"gang-{gang}", team, scheduling={"gang": gang, **queue.get(gang, {})}))
    for gang, scheduler in SCHEDULERS.items():
        if gang in ("kueue", "kubernetes"):
            admin.wait_for("hftitanjobs", f"gang-{gang}", lambda job: "message" in job.get("status", {}), team)
            continue
        groups = f"/apis/{scheduler.api_version}/namespaces/{team}/{scheduler.resource}"
        wait(lambda at=groups: admin.request("GET", at)["items"], f"the group of {gang}")
        admin.patch("hftitanjobs", f"gang-{gang}", {"spec": {"runPolicy": {"suspend": True}}}, team)
        wait(lambda at=groups: not admin.request("GET", at)["items"], f"the group of {gang} to be deleted")


def occupy(admin: Kubectl, team: str) -> None:
    """Create objects with the names that those jobs need."""
    pod = {"containers": [{"name": "x", "image": "x"}], "nodeSelector": {"no": "where"}}
    things = (
        ("Service", "names-taken", {"spec": {"clusterIP": "None"}}),
        ("ConfigMap", naming.config_name("names-taken"), {}),
        ("Pod", "pod-taken-1-0", {"spec": pod}),
    )
    for kind, name, content in things:
        admin.create({"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "namespace": team}, **content})


def document(name: str, team: str, **spec):
    return job_documents.document(name, job_documents.ON_CPU, namespace=team, **spec)


def edit_before_status_write(admin: Kubectl, name: str) -> Callable[[Call], Fault | None]:
    """Return a proxy script that changes the job just before its first status write, which then conflicts."""
    edited = []

    def script(call: Call) -> Fault | None:
        if (call.name, call.subresource) == (name, "status") and not edited:
            edited.append(call)
            admin.patch("hftitanjobs", name, {"metadata": {"labels": {"edited": "yes"}}}, call.namespace)
        return refuse_streamed_lists(call)

    return script


# --- one permission missing --------------------------------------------------------------------------------------

PERMISSIONS = [(a.group, a.resource, verb) for a in access.TABLE if a.scope != "gangs" for verb in a.verbs]
"""Without those for gang schedulers, which only some jobs need; their job reports them (test_gangs.py)."""


def test_missing_permission_is_logged(plane, tmp_path, say):
    """Run one operator without each permission. Each must log the denied request and keep running."""
    with contextlib.ExitStack() as stack:
        logs = {}
        for number, permission in enumerate(PERMISSIONS):
            logs[permission] = log = tmp_path / f"log-{number}"
            log.touch()
            team = plane.admin.make_namespace(f"without-{number}")
            user = account_without(plane.admin, team, permission)
            proxy = stack.enter_context(FaultProxy(plane, tmp_path, user))
            conflict = permission[1:] == ("hftitanjobs", "get")  # used only after a conflict
            proxy.script = edit_before_status_write(plane.admin, "names-taken") if conflict else refuse_streamed_lists
            needs_lease = permission[1] == "leases"
            stack.enter_context(QuickOperator(proxy.kubeconfig, log, team, leader_elect=needs_lease))
            occupy(plane.admin, team)
            invalid = {"pod": {"env": [{"name": "PET_NNODES", "value": "2"}]}}
            expired = {"runPolicy": {"ttlSecondsAfterFinished": 0}}
            for job in (
                document("names-taken", team),
                document("pod-taken", team),
                document("wrong", team, **invalid, **expired),
                document("stopped", team),
            ):
                plane.admin.create(job)

        def not_logged():
            return [permission for permission, log in logs.items() if denial(permission) not in log.read_text()]

        stopped = set()

        def stop_pods():
            """Suspend each job as soon as it has pods."""
            pods = plane.admin.list("pods", None, labels="hftitan.io/job=stopped")
            for team in {pod["metadata"]["namespace"] for pod in pods} - stopped:
                stopped.add(team)
                plane.admin.patch("hftitanjobs", "stopped", {"spec": {"runPolicy": {"suspend": True}}}, team)

        with contextlib.suppress(AssertionError):
            wait(lambda: stop_pods() or not not_logged(), "every log message", RUN_SECONDS)
        assert not_logged() == []
    say(f"{len(PERMISSIONS)} permissions: each was logged when it was missing")


def denial(permission):
    """Return the API server's message for a missing permission."""
    group, resource, verb = permission
    return f'cannot {verb} resource "{resource}" in API group "{group}"'


def account_without(admin: Kubectl, team: str, permission) -> str:
    """Create an account with all permissions except one; return its user name."""
    account = access.Account(namespace=team)
    for manifest in access.namespaced(account, [team], nodes=True):
        if "rules" in manifest:
            rules = [
                {
                    **rule,
                    "verbs": [v for v in rule["verbs"] if (*rule["apiGroups"], *rule["resources"], v) != permission],
                }
                for rule in manifest["rules"]
            ]
            manifest = {**manifest, "rules": [rule for rule in rules if rule["verbs"]]}
        admin.apply(manifest)
    return f"system:serviceaccount:{team}:{account.name}"
