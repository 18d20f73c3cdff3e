"""The contract of the cluster adapters: one suite for the fake, the local and the Kubernetes adapter."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from fake_cluster import FakeCluster
from paths import FAKE_TRAINER

from hftitan_api import mesh
from hftitan_api.models import HFTitanJob, JobStatus
from hftitan_operator.core.lifecycle.classify import finished
from hftitan_operator.core.rendering.render import render
from hftitan_operator.core.state import Apply, DeletePod, Event
from hftitan_operator.kube.api import KubeApi, load_configuration
from hftitan_operator.kube.cluster import KubeCluster
from hftitan_operator.local import prepare
from hftitan_operator.local.cluster import LocalCluster
from hftitan_operator.port import ClusterPort, Conflict

ADAPTERS = ("fake", "local", "kube")


def document(namespace="default"):
    return {
        "apiVersion": "hftitan.io/v1alpha1",
        "kind": "HFTitanJob",
        "metadata": {"name": "tiny", "namespace": namespace},
        "spec": {
            "model": {"name": "org/model"},
            "dataset": {"name": "org/data"},
            "mesh": {"nodes": 2, "device": "cpu"},
            "training": {"steps": 10_000, "seqLen": 64},
            "checkpoint": {"volume": "claim"},
        },
    }


@dataclass
class Subject:
    """An adapter with one job, and user operations outside the port."""

    port: ClusterPort
    namespace: str
    edit: Any
    """Changes the job's spec, as a user would."""

    async def seen(self):
        found = await self.port.observe(self.namespace, "tiny")
        assert found is not None
        return found

    async def objects(self):
        job = (await self.seen()).job
        return job, render(job, mesh.plan(job.spec), 1)

    async def pods(self):
        return {pod.name: pod for pod in (await self.seen()).observed.pods}

    async def create(self):
        """Create the gang of the first attempt; return the job."""
        job, rendered = await self.objects()
        for manifest in rendered.objects:
            await self.port.apply(job, Apply(manifest))
        return job

    async def until(self, condition, seconds=20.0):
        async with asyncio.timeout(seconds):
            while not (found := condition(await self.pods())):
                await asyncio.sleep(0.02)
            return found


@contextlib.asynccontextmanager
async def fake(request) -> AsyncIterator[Subject]:
    cluster = FakeCluster(HFTitanJob.model_validate(document()))
    yield Subject(cluster, "default", lambda: cluster.edit(cluster.job))


@contextlib.asynccontextmanager
async def local(request) -> AsyncIterator[Subject]:
    job = prepare.localize(HFTitanJob.model_validate(document()), {})
    folder = request.getfixturevalue("tmp_path")
    prepared, problems = prepare.prepare(
        job,
        mesh.plan(job.spec),
        folder / "run",
        environ={"PATH": os.environ["PATH"], "HOME": str(folder), "FAKE": ""},
        volumes={},
        programs={"hftitan-agent": (sys.executable, str(FAKE_TRAINER))},
    )
    assert problems == []
    async with LocalCluster(prepared.job, prepared.machine) as cluster:
        yield Subject(cluster, "default", cluster.suspend)


@contextlib.asynccontextmanager
async def kube(request) -> AsyncIterator[Subject]:
    plane, namespace = request.getfixturevalue("control_plane"), request.getfixturevalue("namespace")
    plane.admin.create(document(namespace))

    def edit():
        change = {"spec": {"runPolicy": {"maxRestarts": 7}}}
        plane.admin.patch("hftitanjobs", "tiny", change, namespace)

    async with (
        KubeApi(await load_configuration(str(plane.kubeconfig("admin")))) as api,
        KubeCluster(api, [namespace]) as cluster,
    ):
        await cluster.synced()
        yield Subject(cluster, namespace, edit)


@pytest.fixture(params=ADAPTERS)
def with_subject(request):
    """Function: run a coroutine function on a new subject of each adapter."""

    def run(scenario):
        async def main():
            async with {"fake": fake, "local": local, "kube": kube}[request.param](request) as subject:
                await asyncio.wait_for(scenario(subject), 60)

        asyncio.run(main())

    return run


def test_missing_job_is_none(with_subject):
    async def scenario(subject):
        assert await subject.port.observe(subject.namespace, "other") is None
        assert await subject.port.observe("elsewhere", "tiny") is None

    with_subject(scenario)


def test_new_job_has_a_uid_and_no_objects(with_subject):
    async def scenario(subject):
        seen = await subject.seen()
        assert seen.job.metadata.uid
        assert seen.problems == ()
        assert seen.job.status == JobStatus()
        assert (seen.observed.pods, seen.observed.service, seen.observed.config) == ((), False, False)

    with_subject(scenario)


def test_applied_object_is_in_the_next_observation(with_subject):
    async def scenario(subject):
        job, rendered = await subject.objects()
        await subject.port.apply(job, Apply(rendered.service))
        assert (await subject.seen()).observed.service
        await subject.port.apply(job, Apply(rendered.config))
        assert (await subject.seen()).observed.config
        for i, manifest in enumerate(rendered.pods):
            await subject.port.apply(job, Apply(manifest))
            pod = (await subject.pods())[f"tiny-1-{i}"]
            assert (pod.attempt, pod.index, pod.deleting) == (1, i, False)
            assert pod.uid

    with_subject(scenario)


def test_applying_twice_changes_nothing(with_subject):
    async def scenario(subject):
        await subject.create()
        before = {name: pod.uid for name, pod in (await subject.pods()).items()}
        await subject.create()
        assert {name: pod.uid for name, pod in (await subject.pods()).items()} == before

    with_subject(scenario)


def test_concurrent_actions_create_each_object_once(with_subject):
    async def scenario(subject):
        job, rendered = await subject.objects()
        for manifest in (rendered.service, rendered.config):
            await subject.port.apply(job, Apply(manifest))
        await asyncio.gather(*(subject.port.apply(job, Apply(manifest)) for manifest in rendered.pods * 3))
        assert sorted(await subject.pods()) == ["tiny-1-0", "tiny-1-1"]

    with_subject(scenario)


def test_deletion_with_another_uid_is_ignored(with_subject):
    async def scenario(subject):
        job = await subject.create()
        await subject.port.apply(job, DeletePod("tiny-1-0", "another-uid", 0))
        await subject.port.apply(job, DeletePod("no-such-pod", "another-uid"))
        pods = await subject.pods()
        assert sorted(pods) == ["tiny-1-0", "tiny-1-1"]
        assert not any(pod.deleting for pod in pods.values())

    with_subject(scenario)


def test_deleted_pod_ends_and_the_other_keeps_running(with_subject):
    async def scenario(subject):
        job = await subject.create()
        pod = (await subject.pods())["tiny-1-0"]
        await subject.port.apply(job, DeletePod(pod.name, pod.uid, 0))
        await subject.port.apply(job, DeletePod(pod.name, pod.uid, 0))
        await subject.until(lambda pods: pod.name not in pods or finished(pods[pod.name]))
        other = (await subject.pods())["tiny-1-1"]
        assert not other.deleting
        assert not finished(other)

    with_subject(scenario)


def test_written_status_is_in_the_next_observation(with_subject):
    async def scenario(subject):
        for phase, attempt in (("Pending", 1), ("Running", 1), ("Restarting", 1), ("Running", 2)):
            job = (await subject.seen()).job
            status = JobStatus(phase=phase, attempt=attempt, message=None if attempt == 2 else phase, mesh="m")
            await subject.port.write_status(job, status)
            assert (await subject.seen()).job.status == status

    with_subject(scenario)


def test_status_for_an_older_spec_is_a_conflict(with_subject):
    async def scenario(subject):
        job = (await subject.seen()).job
        subject.edit()
        with pytest.raises(Conflict):
            await subject.port.write_status(job, JobStatus(phase="Running"))
        newer = (await subject.seen()).job
        assert newer.metadata.generation == job.metadata.generation + 1
        await subject.port.write_status(newer, JobStatus(phase="Pending"))
        assert (await subject.seen()).job.status.phase == "Pending"

    with_subject(scenario)


def test_many_events_do_not_block(with_subject):
    async def scenario(subject):
        job = (await subject.seen()).job
        for i in range(50):
            await subject.port.emit(job, Event("Warning", "Hung", f"no progress, {i}"))

    with_subject(scenario)
