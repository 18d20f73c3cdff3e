"""The operator's requests: none while nothing changes, and no new list after a watch that can resume."""

import asyncio
import time
import urllib.parse
from collections import Counter

import pytest
from fault_proxy import FaultProxy, answer, reset
from kubectl import wait
from operator_process import QuickOperator

from hftitan_operator.core.naming import LABEL_ATTEMPT, LABEL_JOB, LABEL_NODE_INDEX
from hftitan_operator.kube import handlers
from hftitan_operator.kube.api import KubeApi, load_configuration
from hftitan_operator.kube.cluster import KubeCluster
from hftitan_operator.kube.reflector import Timing

JOBS, NODES, FOREIGN = 30, 2, 300
IDLE_SECONDS, QUIET_SECONDS = 8.0, 2.0
KINDS = {"hftitanjobs", "pods", "services", "configmaps", "nodes"}
SELECTED = {"pods", "services", "configmaps"}


def job(name, namespace, **policy):
    spec = {
        "model": {"name": "org/model"},
        "dataset": {"name": "org/data"},
        "mesh": {"nodes": NODES, "device": "cpu"},
        "training": {"steps": 10, "seqLen": 64},
        "checkpoint": {"interval": 0, "exportHF": False},
        "runPolicy": policy,
    }
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "hftitan.io/v1alpha1", "kind": "HFTitanJob", "metadata": metadata, "spec": spec}


def pod(name, namespace, labels):
    containers = [{"name": "main", "image": "image"}]
    spec = {"schedulerName": "none", "automountServiceAccountToken": False, "containers": containers}
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def pod_of(owner):
    name, namespace, uid = (owner["metadata"][key] for key in ("name", "namespace", "uid"))
    manifest = pod(f"{name}-1-0", namespace, {LABEL_JOB: name, LABEL_ATTEMPT: "1", LABEL_NODE_INDEX: "0"})
    reference = {"apiVersion": "hftitan.io/v1alpha1", "kind": "HFTitanJob", "name": name, "uid": uid}
    manifest["metadata"]["ownerReferences"] = [{**reference, "controller": True}]
    return manifest


def watches_jobs(call):
    return call.resource == "hftitanjobs" and call.is_watch and not call.is_list


def query(call):
    return dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(call.path).query))


def test_idle_operator_makes_no_request(control_plane, namespace, tmp_path, say):
    admin = control_plane.admin
    for number in range(FOREIGN):
        admin.create(pod(f"foreign-{number}", namespace, {"app": "foreign"}))
    for number in range(JOBS):
        admin.create(job(f"job-{number}", namespace))
    with (
        FaultProxy(control_plane, tmp_path) as proxy,
        QuickOperator(proxy.kubeconfig, tmp_path / "operator.log", namespace),
    ):
        wait(lambda: len(admin.list("pods", namespace, labels=LABEL_JOB)) == JOBS * NODES, "the pods", 60)
        wait(lambda: time.monotonic() - proxy.calls[-1].at > QUIET_SECONDS, "the operator to be idle", 60)
        before = len(proxy.calls)
        for number in range(FOREIGN // 10):
            admin.patch("pods", f"foreign-{number}", {"metadata": {"labels": {"changed": "yes"}}}, namespace)
        time.sleep(IDLE_SECONDS)
        calls = list(proxy.calls)
    assert [str(call) for call in calls[before:]] == []
    reads = [call for call in calls if call.resource in KINDS and (call.is_list or call.is_watch)]
    say(f"lists of {JOBS} jobs and watches: {Counter(call.resource for call in reads)}")
    assert {call.resource for call in reads} == KINDS
    for call in reads:
        assert query(call).get("labelSelector") == (LABEL_JOB if call.resource in SELECTED else None), call.path


def cut(proxy):
    proxy.cut_connections()


def stall(proxy):
    proxy.stream_script = lambda call: "stall"


def gone(proxy):
    proxy.script = lambda call: answer(410) if call.is_watch and not call.is_list else None
    proxy.cut_connections()


def expired(proxy):
    proxy.stream_script = lambda call: "ERROR 410"


def broken_server(proxy):
    proxy.stream_script = lambda call: "ERROR 500"


def unreachable(proxy):
    proxy.script = lambda call: reset()
    proxy.cut_connections()


FAULTS = {cut: False, stall: False, unreachable: False, gone: True, expired: True, broken_server: True}
"""Whether the position is lost, so that a new list is needed."""


async def until(condition, what):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)
    assert condition(), what


@pytest.mark.parametrize("fault", FAULTS)
def test_watches_recover(control_plane, namespace, tmp_path, fault):
    """Meanwhile a job with a pod is replaced by another."""
    admin = control_plane.admin
    admin.create(pod_of(admin.create(job("one", namespace, suspend=True))))
    proxy = FaultProxy(control_plane, tmp_path, bookmark_seconds=0.2)

    def replace_job():
        admin.delete("hftitanjobs", "one", namespace)
        admin.delete_quietly("pods", "one-1-0", namespace, grace=0)
        admin.create(pod_of(admin.create(job("two", namespace, suspend=True))))

    def known(cluster):
        pods = {record.view.name for record in cluster.pods.all()}
        return {record.key[1] for record in cluster.jobs.all()}, pods

    async def run():
        timing = Timing(silence=1.0)
        async with (
            KubeApi(await load_configuration(str(proxy.kubeconfig))) as api,
            KubeCluster(api, [namespace], timing=timing) as cluster,
        ):
            await cluster.synced()
            kopf = asyncio.create_task(handlers.watch(api, cluster, [namespace]))
            await until(lambda: any(map(watches_jobs, proxy.calls)), "kopf's watch")
            await asyncio.sleep(1)
            before = len(proxy.calls)
            fault(proxy)
            await asyncio.to_thread(replace_job)
            await asyncio.sleep(0.5)
            proxy.quiet()
            await until(lambda: known(cluster) == ({"two"}, {"two-1-0"}), "the stores")
            kopf.cancel()
            await asyncio.gather(kopf, return_exceptions=True)
        return [call for call in proxy.calls[before:] if call.resource in ("pods", "hftitanjobs")]

    with proxy:
        calls = asyncio.run(run())
    listed = {call.resource for call in calls if call.is_list}
    assert listed == ({"pods", "hftitanjobs"} if FAULTS[fault] else set())
