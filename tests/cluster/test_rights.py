"""The rights of the operator, held against what it does: the API server's own audit log is the witness.

Every right of the table is used in these lives, and nothing is refused: so none is missing, and none could go.
"""

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import job_documents
import pytest
from audit import Audit
from control_plane import ControlPlane
from fault_proxy import Call, FaultProxy
from gang_schemas import FOLDER
from kubectl import Kubectl, wait
from kubelets import KubeletProcess
from lives import SCRIPTS, Home, Life, World, poll_all
from operator_process import OperatorProcess, QuickOperator
from paths import CRD

from hftitan_operator.core import access, naming
from hftitan_operator.core.scheduling import KUBERNETES, SCHEDULERS

UNSEEN = (KUBERNETES.group, KUBERNETES.resource, "delete")
"""Of Kubernetes' own gangs: the servers of the tests are older and have none to delete."""
LIFE_SECONDS = 60.0


@pytest.fixture(scope="module")
def plane(control_plane_assets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("audited")
    crds = [CRD, *sorted(FOLDER.glob("*.yaml"))]
    with ControlPlane(folder, control_plane_assets, crds=crds, audited=True) as plane:
        yield plane


@pytest.fixture(scope="module")
def homes(plane, tmp_path_factory):
    """Two nodes for each of the lives."""
    names = [f"life-{i}-{side}" for i in range(len(SCRIPTS)) for side in "ab"]
    kubelet = KubeletProcess(plane, ",".join([*names, "spare"]), tmp_path_factory.mktemp("nodes"), fake={})
    yield [Home(plane.admin, f"life-{i}", names[2 * i : 2 * i + 2]) for i in range(len(SCRIPTS))]
    kubelet.close()


@dataclass
class Tenancy:
    """An operator's account, what it may do, and the namespace with its jobs."""

    account: access.Account
    team: str
    manifests: tuple[dict, ...]
    options: list[str] = field(default_factory=list)

    @property
    def user(self) -> str:
        return f"system:serviceaccount:{self.account.namespace}:{self.account.name}"

    @property
    def granted(self) -> set[tuple[str, ...]]:
        """Role, group, resource and verb of each right."""
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
    """With three roles, so that the log tells where a right is used."""
    account, team = access.Account(namespace=admin.make_namespace("tenant")), admin.make_namespace("team")
    return Tenancy(account, team, access.namespaced(account, [team], nodes=True, gangs=True), ["--namespace", team])


def used(events):
    """What was asked for, each with the role that allowed it."""
    found = set()
    for event in events:
        about = event.get("objectRef", {})
        if "resource" not in about:
            continue  # /version and the like, which Kubernetes lets every account read
        resource = "/".join(filter(None, (about["resource"], about.get("subresource"))))
        (role,) = re.findall(r' of (?:Cluster)?Role "([^"]+)"', event["annotations"]["authorization.k8s.io/reason"])
        found.add((role, about.get("apiGroup", ""), resource, event["verb"]))
    return found


def refused(events):
    return [e["requestURI"] for e in events if e["annotations"]["authorization.k8s.io/decision"] != "allow"]


@pytest.mark.parametrize("tenancy", [whole_cluster, one_namespace])
def test_every_right_is_used_and_nothing_is_refused(tenancy, plane, homes, tmp_path, say):
    mine = tenancy(plane.admin)
    for manifest in mine.manifests:
        plane.admin.apply(manifest)
    with contextlib.ExitStack() as stack:
        world = World(plane, stack.enter_context(Audit(plane)))
        proxy = stack.enter_context(FaultProxy(plane, tmp_path, mine.user))
        options = [*mine.options, "--leader-elect", "--lease-namespace", mine.account.namespace]
        leader, follower = (OperatorProcess(proxy.kubeconfig, tmp_path / f"log-{i}", *options) for i in range(2))
        for replica in (leader, follower):
            stack.callback(replica.kill)
            replica.start()
            replica.wait_ready()
            wait(lambda: " leads (" in (tmp_path / "log-0").read_text(), "the first one to lead")
        proxy.script = edits_amid(plane.admin, "names-taken")
        names_are_taken(plane.admin, mine.team)
        gangs_come_and_go(plane.admin, mine.team)
        begun = enumerate(zip(SCRIPTS, homes, strict=True))
        lives = [Life(world, script, mine.team, f"life-{i}", home.name).begin() for i, (script, home) in begun]
        wait(lambda: poll_all(lives, 1), "the first deed of each life", LIFE_SECONDS)
        leader.terminate()  # and gives the lease back
        assert leader.ended(10) == 0
        wait(lambda: poll_all(lives), f"the lives to end, {[life.done for life in lives]} deeds done", LIFE_SECONDS)
        assert [problem for life in lives for problem in life.verdict()] == []
        for home in homes:
            home.restore()
    events = plane.requests(mine.user)
    assert refused(events) == []
    needed = {right for right in mine.granted if right[1:] != UNSEEN}
    assert used(events) == needed
    say(f"{tenancy.__name__}: {len(needed)} rights, each of them used in {len(events)} requests")


def names_are_taken(admin: Kubectl, team: str) -> None:
    """Jobs whose objects find somebody else's under their names: each is looked at before it is left alone."""
    occupy(admin, team)
    for name in ("names-taken", "pod-taken"):
        admin.create(document(name, team))
        refusal = admin.wait_for("hftitanjobs", name, lambda job: "message" in job.get("status", {}), team)
        assert "is there already and is not this job's" in refusal["status"]["message"]
        admin.delete("hftitanjobs", name, team)


def gangs_come_and_go(admin: Kubectl, team: str) -> None:
    """A job for each gang scheduler, suspended once its group is there; Kueue's finds no queue, Kubernetes' no kind."""
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
        wait(lambda at=groups: not admin.request("GET", at)["items"], f"the group of {gang} to go")


def occupy(admin: Kubectl, team: str) -> None:
    """The names that those jobs would have."""
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


def edits_amid(admin: Kubectl, name: str) -> Callable[[Call], None]:
    """A script of the proxy: the job changes under the first status that is written to it, which conflicts then."""
    edited = []

    def script(call: Call) -> None:
        if (call.name, call.subresource) == (name, "status") and not edited:
            edited.append(call)
            admin.patch("hftitanjobs", name, {"metadata": {"labels": {"edited": "yes"}}}, call.namespace)

    return script


# --- without one of them -----------------------------------------------------------------------------------------

RIGHTS = [(a.group, a.resource, verb) for a in access.TABLE if a.scope != "gangs" for verb in a.verbs]
"""Those of gangs are asked for only by jobs that want them, which tell (tests/cluster/test_gangs.py)."""


def test_a_right_that_is_missing_is_named(plane, tmp_path, say):
    """An operator for each right, without it: each says in its log what it may not do, and goes on."""
    with contextlib.ExitStack() as stack:
        logs = {}
        for number, right in enumerate(RIGHTS):
            logs[right] = log = tmp_path / f"log-{number}"
            log.touch()
            team = plane.admin.make_namespace(f"without-{number}")
            user = account_without(plane.admin, team, right)
            kubeconfig = plane.kubeconfig(user)
            if right[1:] == ("hftitanjobs", "get"):  # which takes a conflict
                proxy = stack.enter_context(FaultProxy(plane, tmp_path, user))
                proxy.script = edits_amid(plane.admin, "names-taken")
                kubeconfig = proxy.kubeconfig
            needs_lease = right[1] == "leases"
            stack.enter_context(QuickOperator(kubeconfig, log, team, leader_elect=needs_lease))
            occupy(plane.admin, team)
            mistake = {"pod": {"env": [{"name": "PET_NNODES", "value": "2"}]}}
            over = {"runPolicy": {"ttlSecondsAfterFinished": 0}}
            for job in (
                document("names-taken", team),
                document("pod-taken", team),
                document("wrong", team, **mistake, **over),
                document("stopped", team),
            ):
                plane.admin.create(job)

        def unsaid():
            return [right for right, log in logs.items() if complaint(right) not in log.read_text()]

        stopped = set()

        def stop_pods():
            """As soon as there are any."""
            pods = plane.admin.list("pods", None, labels="hftitan.io/job=stopped")
            for team in {pod["metadata"]["namespace"] for pod in pods} - stopped:
                stopped.add(team)
                plane.admin.patch("hftitanjobs", "stopped", {"spec": {"runPolicy": {"suspend": True}}}, team)

        with contextlib.suppress(AssertionError):
            wait(lambda: stop_pods() or not unsaid(), "every complaint", LIFE_SECONDS)
        assert unsaid() == []
    say(f"{len(RIGHTS)} rights, each of them missed by name")


def complaint(right):
    """The API server's words."""
    group, resource, verb = right
    return f'cannot {verb} resource "{resource}" in API group "{group}"'


def account_without(admin: Kubectl, team: str, right) -> str:
    """A user with all rights but this one."""
    account = access.Account(namespace=team)
    for manifest in access.namespaced(account, [team], nodes=True):
        if "rules" in manifest:
            rules = [
                {**rule, "verbs": [v for v in rule["verbs"] if (*rule["apiGroups"], *rule["resources"], v) != right]}
                for rule in manifest["rules"]
            ]
            manifest = {**manifest, "rules": [rule for rule in rules if rule["verbs"]]}
        admin.apply(manifest)
    return f"system:serviceaccount:{team}:{account.name}"
