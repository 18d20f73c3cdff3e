"""Parts of bench/operate.py: the jobs and pods that it creates."""

from __future__ import annotations

from typing import Any

from hftitan_api import mesh
from hftitan_api.models import API_VERSION, GROUP, KIND, PLURAL, VERSION, HFTitanJob
from hftitan_operator.core.rendering.render import render

Object = dict[str, Any]

PODS = 4
"""Pods per job in latency, burst and steady."""


def path(namespace: str, kind: str, name: str) -> str:
    return f"namespaces/{namespace}/{kind}" + (f"/{name}" if name else "")


def pods_path(namespace: str, name: str = "") -> str:
    return f"/api/v1/{path(namespace, 'pods', name)}"


def jobs_path(namespace: str, name: str = "") -> str:
    return f"/apis/{GROUP}/{VERSION}/{path(namespace, PLURAL, name)}"


def job(name: str, nodes: int = PODS) -> Object:
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name},
        "spec": {
            "model": {"name": "meta-llama/Llama-3.1-8B"},
            "dataset": {"name": "allenai/c4", "config": "en", "streaming": True},
            "mesh": {"nodes": nodes, "gpusPerNode": 8, "tp": 2},
            "training": {"steps": 1000, "seqLen": 4096},
            "checkpoint": {"volume": "checkpoints", "interval": 100},
        },
    }


def rendered_pods(name: str, namespace: str, count: int) -> list[Object]:
    """Return the pods of the first attempt of `job(name, count)`."""
    document = job(name, count)
    document["metadata"] |= {"namespace": namespace, "uid": "00000000-0000-4000-8000-000000000000"}
    read = HFTitanJob.model_validate(document)
    return list(render(read, mesh.plan(read.spec), 1).pods)


def foreign_pod(name: str) -> Object:
    containers = [{"name": "main", "image": "image"}]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"containers": containers}}
