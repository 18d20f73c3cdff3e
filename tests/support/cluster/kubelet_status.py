"""Pod statuses as a kubelet writes them, as plain dicts."""

from __future__ import annotations

import datetime
from typing import Any

Object = dict[str, Any]
HOST_IP = "127.0.0.1"


def now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def now_micro() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def is_ready(state: Object) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in state.get("conditions", []))


def conditions(*, ready: bool, reason: str | None = None) -> list[Object]:
    states = {"Initialized": True, "ContainersReady": ready, "Ready": ready}
    return [
        {"type": name, "status": str(state), "reason": None if state else reason, "lastTransitionTime": now()}
        for name, state in states.items()
    ]


def container(pod: Object, state: Object, *, ready: bool) -> Object:
    first = pod["spec"]["containers"][0]
    return {
        "name": first["name"],
        "image": first.get("image", ""),
        "imageID": "",
        "containerID": f"process://{pod['metadata']['uid']}",
        "restartCount": 0,
        "ready": ready,
        "started": "running" in state,
        "state": state,
    }


def waiting(pod: Object, reason: str, message: str = "") -> Object:
    state = {"waiting": {"reason": reason, "message": message}}
    return {
        "phase": "Pending",
        "hostIP": HOST_IP,
        "conditions": conditions(ready=False, reason="ContainersNotReady"),
        "containerStatuses": [container(pod, state, ready=False)],
    }


def running(pod: Object, address: str, started: str, *, ready: bool) -> Object:
    return {
        "phase": "Running",
        "hostIP": HOST_IP,
        "podIP": address,
        "podIPs": [{"ip": address}],
        "startTime": started,
        "conditions": conditions(ready=ready, reason="ContainersNotReady"),
        "containerStatuses": [container(pod, {"running": {"startedAt": started}}, ready=ready)],
    }


def ended(pod: Object, started: str, code: int, message: str = "", reason: str = "") -> Object:
    end = {
        "exitCode": code,
        "reason": reason or ("Completed" if code == 0 else "Error"),
        "message": message,
        "startedAt": started,
        "finishedAt": now(),
        "containerID": f"process://{pod['metadata']['uid']}",
    }
    return {
        "phase": "Succeeded" if code == 0 else "Failed",
        "startTime": started,
        "conditions": conditions(ready=False, reason="PodCompleted" if code == 0 else "PodFailed"),
        "containerStatuses": [container(pod, {"terminated": end}, ready=False)],
    }


def rejected(pod: Object, reason: str, message: str) -> Object:
    """Return the status of a pod that the kubelet rejected before it started a container."""
    return {
        "phase": "Failed",
        "reason": reason,
        "message": message,
        "conditions": conditions(ready=False, reason="PodFailed"),
    }
