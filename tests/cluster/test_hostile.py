"""Posts every hostile job to a real API server. Each must get its message, and harmless jobs must still be served.

First with the CRD as it is, then with a permissive schema, as an old version of the CRD might have.
"""

import copy
import json
import time
from collections import defaultdict

import pytest
import yaml
from control_plane import ControlPlane
from hostile import NOBODY, SERVER, STATUS, TABLE
from hostile_job import job as harmless
from kubectl import ApiError
from operator_process import OperatorProcess
from paths import CRD
from pod_security import violations

POSTABLE = [h for h in TABLE if h.carrier == "json" and isinstance(h.document.get("metadata"), dict)]
MOST_PODS = 20
"""Largest harmless job that is posted here; tests/kube/test_hostile.py has larger ones."""
SERVED_SECONDS = 5.0
CHOKES_THE_SERVER = frozenset({"affinity-nested-200", "affinity-nested-inside", "ten-thousand-unknown-fields"})
"""Without a schema, Kubernetes 1.20 takes ten seconds to minutes to compute the managed fields of such an object."""
LARGE = 200_000
"""Characters. Larger objects are posted only with the schema as it is."""


def permissive():
    """Return a CRD that accepts any spec and any status."""
    crd = yaml.safe_load(CRD.read_text())
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    for version in crd["spec"]["versions"]:
        version["schema"] = {
            "openAPIV3Schema": {**anything, "properties": {"spec": {"x-kubernetes-preserve-unknown-fields": True}}}
        }
    return crd


def phase_of(job):
    """Return the phase; None also if the status is not a mapping."""
    status = job.get("status")
    return status.get("phase") if isinstance(status, dict) else None


class World:
    """The API server, the operator, and the hostile jobs that were posted."""

    def __init__(self, plane, operator):
        self.admin, self.operator = plane.admin, operator
        self.jobs = {}
        """Name -> hostile job, for jobs that the server accepted."""
        self.refused = {}
        """Id -> status code, for jobs that the server rejected."""
        self.slowest = 0.0

    def post(self, number, hostile):
        document = copy.deepcopy(hostile.document)
        metadata = document["metadata"]
        if metadata.get("name") == "hostile":
            metadata["name"] = f"h{number}"
        metadata.setdefault("namespace", "default")
        nodes = document.get("spec", {}).get("mesh", {}) if isinstance(document.get("spec"), dict) else {}
        nodes = nodes.get("nodes", 1) if isinstance(nodes, dict) else 1
        if hostile.stopped == NOBODY and isinstance(nodes, int) and nodes > MOST_PODS:
            return
        path = f"/apis/hftitan.io/v1alpha1/namespaces/{metadata['namespace']}/hftitanjobs"
        try:
            made = self.admin.request("POST", path, document, query={"fieldValidation": "Strict"})  # as kubectl does
        except ApiError as error:
            self.refused[hostile.id] = error.status
            return
        except TimeoutError:
            raise AssertionError(f"{hostile.id}: the API server does not answer") from None
        self.jobs[made["metadata"]["name"]] = hostile
        if hostile.stopped == STATUS:
            try:
                self.admin.patch("hftitanjobs", metadata["name"], {"status": document["status"]}, subresource="status")
            except ApiError as error:
                self.refused[f"{hostile.id} (status)"] = error.status

    def a_harmless_job_is_served(self, name):
        document = harmless(name)
        document["metadata"]["namespace"] = "default"
        began = time.monotonic()
        self.admin.create(document)
        self.admin.wait(lambda: self.pods(name), f"pods of {name}", SERVED_SECONDS)
        self.slowest = max(self.slowest, time.monotonic() - began)
        self.admin.delete("hftitanjobs", name)

    def pods(self, name):
        found = self.admin.list("pods")  # some names are not valid label values, so the server cannot select by them
        return [pod for pod in found if pod["metadata"].get("labels", {}).get("hftitan.io/job") == name]

    def settled(self):
        """Wait until each job has a phase; return the jobs by name, None for a deleted one."""

        def all_have_a_phase():
            found = {j["metadata"]["name"]: j for j in self.admin.list("hftitanjobs")}
            mine = {name: found.get(name) for name in self.jobs}
            waiting = [n for n, j in mine.items() if j is not None and not phase_of(j)]
            return None if waiting else mine

        try:
            return self.admin.wait(all_have_a_phase, "a phase for every job", 30)
        except AssertionError as error:
            there = {job["metadata"]["name"]: job for job in self.admin.list("hftitanjobs")}
            left = [hostile.id for name, hostile in self.jobs.items() if name in there and not phase_of(there[name])]
            raise AssertionError(f"{error}: {left}\n{self.operator.log.read_text()[-3000:]}") from None

    def clear(self):
        for name in self.jobs:
            self.admin.delete_quietly("hftitanjobs", name)
        self.admin.delete_all("pods")
        self.jobs = {}


@pytest.fixture(scope="module")
def plane(control_plane_assets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    with ControlPlane(folder, control_plane_assets, scheduler=False, crds=[CRD]) as plane:
        yield plane


@pytest.fixture(scope="module")
def world(plane, tmp_path_factory):
    process = OperatorProcess(plane.kubeconfig("admin"), tmp_path_factory.mktemp("operator") / "log").start()
    process.wait_ready()
    yield World(plane, process)
    process.kill()


def post_all(world, kind):
    for number, hostile in enumerate(POSTABLE):
        if kind == "now" or (hostile.id not in CHOKES_THE_SERVER and len(json.dumps(hostile.document)) < LARGE):
            world.post(number, hostile)
        if number % 60 == 30:
            world.a_harmless_job_is_served(f"well-{kind}-{number}")
    found = world.settled()
    world.a_harmless_job_is_served(f"well-{kind}-last")
    assert world.operator.alive
    assert "Traceback" not in world.operator.log.read_text()
    return found


def judge(world, found):
    """Check that each job failed with its message, or that its pods conform to Pod Security `restricted`."""
    wrong, by_job = [], defaultdict(list)
    for pod in world.admin.list("pods"):
        by_job[pod["metadata"]["labels"]["hftitan.io/job"]].append(pod)
    for name, hostile in world.jobs.items():
        if found[name] is None:  # deleted, because its forged status is past the TTL
            assert hostile.stopped == STATUS, hostile.id
            continue
        status, pods = found[name]["status"], by_job[name]
        pruned = "strict" in hostile.needs and found[name]["spec"] != hostile.document["spec"]
        expected = hostile.says and hostile.stopped != STATUS and not pruned
        if expected and (status["phase"] != "Failed" or hostile.says not in status.get("message", "") or pods):
            wrong.append((hostile.id, hostile.says, status["phase"], status.get("message"), len(pods)))
        if hostile.stopped == NOBODY and status["phase"] == "Failed":
            wrong.append((hostile.id, "harmless", status["phase"], status.get("message"), len(pods)))
        wrong += [(hostile.id, breach) for pod in pods for breach in violations(pod)]
    assert wrong == []


def test_hostile_jobs_with_the_current_schema(plane, world):
    found = post_all(world, "now")
    # An old server has neither CEL nor strict validation. Then the operator must stop the jobs that need them.
    stopped = {h.id for h in POSTABLE if h.stopped == SERVER and (plane.checks_rules or not h.needs)}
    refused = world.refused.keys() & {h.id for h in POSTABLE if h.stopped != STATUS}
    assert stopped - refused == set()
    assert not plane.checks_rules or refused - stopped == set()
    judge(world, found)
    print(f"\n{len(POSTABLE)} hostile jobs: {len(world.refused)} refused by the server, {len(world.jobs)} served; "
          f"a harmless job among them had its pods within {world.slowest:.2f} s")  # fmt: skip


def test_hostile_jobs_with_a_permissive_schema(plane, world):
    world.clear()
    # A watch that was open before the schema changed still drops unknown fields for a while, so restart the operator.
    world.operator.kill()
    plane.admin.upsert(permissive())
    world.refused, world.slowest = {}, 0.0

    def takes_anything():
        probe = harmless("probe")
        probe["metadata"]["namespace"] = "default"
        probe["spec"]["mesh"]["mehs"] = 1
        plane.admin.create(probe)
        stored = plane.admin.get("hftitanjobs", "probe")
        plane.admin.delete("hftitanjobs", "probe")
        return stored["spec"]["mesh"].get("mehs")

    plane.admin.wait(takes_anything, "the permissive schema")
    world.operator.start().wait_ready()
    found = post_all(world, "old")
    judge(world, found)
    print(f"\npermissive schema: {len(world.refused)} refused by the server, {len(world.jobs)} served; "
          f"a harmless job among them had its pods within {world.slowest:.2f} s")  # fmt: skip
    assert len(world.jobs) >= 200
