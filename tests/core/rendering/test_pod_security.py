"""The test evaluator of Pod Security `restricted` detects each violation, alone in an otherwise rendered pod."""

from __future__ import annotations

import copy

import pytest
from core_builders import job
from pod_security import violations

from hftitan_api.mesh import plan
from hftitan_operator.core.rendering.render import render

PATH = "spec.containers[trainer]"
APPARMOR, SECCOMP = "container.apparmor.security.beta.kubernetes.io", "seccomp.security.alpha.kubernetes.io"

# Changes of the pod's spec, expected violations.
SPEC = [
    ({"hostNetwork": True}, ["spec.hostNetwork"]),
    ({"hostPID": True}, ["spec.hostPID"]),
    ({"hostIPC": True}, ["spec.hostIPC"]),
    ({"volumes": [{"name": "ib", "hostPath": {"path": "/dev/infiniband"}}]}, ["spec.volumes[ib]: hostPath"]),
    ({"volumes": [{"name": "x", "nfs": {"server": "a", "path": "/"}}]}, ["spec.volumes[x]: nfs"]),
    ({"volumes": [{"name": "x", "gitRepo": {"repository": "a"}}]}, ["spec.volumes[x]: gitRepo"]),
    ({"volumes": [{"name": "x"}]}, ["spec.volumes[x]: no source"]),
    (
        {"securityContext": {"windowsOptions": {"hostProcess": True}}},
        ["spec.securityContext.windowsOptions.hostProcess"],
    ),
    ({"securityContext": {"appArmorProfile": {"type": "Unconfined"}}}, ["spec.securityContext.appArmorProfile.type"]),
    ({"securityContext": {"appArmorProfile": {"type": "Localhost"}}}, []),
    ({"securityContext": {"seLinuxOptions": {"type": "spc_t"}}}, ["spec.securityContext.seLinuxOptions.type"]),
    ({"securityContext": {"seLinuxOptions": {"type": "container_t", "level": "s0:c1"}}}, []),
    (
        {"securityContext": {"seLinuxOptions": {"user": "u", "role": "r"}}},
        ["spec.securityContext.seLinuxOptions.user", "spec.securityContext.seLinuxOptions.role"],
    ),
    ({"securityContext": {"sysctls": [{"name": "kernel.msgmax"}]}}, ["spec.securityContext.sysctls: kernel.msgmax"]),
    ({"securityContext": {"sysctls": [{"name": "net.ipv4.tcp_rmem"}]}}, []),
    ({"securityContext": {"runAsUser": 0}}, ["spec.securityContext.runAsUser"]),
    ({"securityContext": {"runAsNonRoot": False}}, ["spec.securityContext.runAsNonRoot"]),
    ({"securityContext": {"runAsNonRoot": None}}, [f"{PATH}.securityContext.runAsNonRoot: unset"]),
    ({"securityContext": {"seccompProfile": {"type": "Unconfined"}}}, ["spec.securityContext.seccompProfile.type"]),
    ({"securityContext": {"seccompProfile": {"type": "Localhost"}}}, []),
    ({"securityContext": {"seccompProfile": None}}, [f"{PATH}.securityContext.seccompProfile: unset"]),
    (
        {"initContainers": [{"name": "i"}]},
        [
            "spec.initContainers[i].securityContext.allowPrivilegeEscalation",
            "spec.initContainers[i].securityContext.capabilities.drop",
        ],
    ),
    (
        {"ephemeralContainers": [{"name": "e", "securityContext": {"privileged": True}}]},
        [
            "spec.ephemeralContainers[e].securityContext.privileged",
            "spec.ephemeralContainers[e].securityContext.allowPrivilegeEscalation",
            "spec.ephemeralContainers[e].securityContext.capabilities.drop",
        ],
    ),
]
CONTAINER = [
    ({"securityContext": {"windowsOptions": {"hostProcess": True}}}, ["securityContext.windowsOptions.hostProcess"]),
    ({"securityContext": {"appArmorProfile": {"type": "Unconfined"}}}, ["securityContext.appArmorProfile.type"]),
    ({"securityContext": {"seLinuxOptions": {"type": "spc_t"}}}, ["securityContext.seLinuxOptions.type"]),
    ({"securityContext": {"seLinuxOptions": {"user": "u"}}}, ["securityContext.seLinuxOptions.user"]),
    ({"securityContext": {"privileged": True}}, ["securityContext.privileged"]),
    ({"securityContext": {"allowPrivilegeEscalation": True}}, ["securityContext.allowPrivilegeEscalation"]),
    ({"securityContext": {"allowPrivilegeEscalation": None}}, ["securityContext.allowPrivilegeEscalation"]),
    ({"securityContext": {"capabilities": {"drop": ["NET_RAW"]}}}, ["securityContext.capabilities.drop"]),
    (
        {"securityContext": {"capabilities": {"drop": ["ALL"], "add": ["IPC_LOCK"]}}},
        ["securityContext.capabilities.add"],
    ),
    ({"securityContext": {"capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}}}, []),
    ({"securityContext": {"procMount": "Unmasked"}}, ["securityContext.procMount"]),
    ({"securityContext": {"procMount": "Default"}}, []),
    ({"securityContext": {"runAsUser": 0}}, ["securityContext.runAsUser"]),
    ({"securityContext": {"runAsNonRoot": False}}, ["securityContext.runAsNonRoot"]),
    ({"securityContext": {"seccompProfile": {"type": "Unconfined"}}}, ["securityContext.seccompProfile.type"]),
    ({"ports": [{"containerPort": 80, "hostPort": 80}]}, ["ports.hostPort"]),
    ({"ports": [{"containerPort": 80, "hostPort": 0}]}, []),
    ({"readinessProbe": {"httpGet": {"port": 1, "host": "10.0.0.1"}}}, ["readinessProbe.httpGet.host"]),
    ({"livenessProbe": {"tcpSocket": {"port": 1, "host": "10.0.0.1"}}}, ["livenessProbe.tcpSocket.host"]),
    ({"startupProbe": {"httpGet": {"port": 1, "host": ""}}}, []),
    ({"lifecycle": {"preStop": {"httpGet": {"port": 1, "host": "a"}}}}, ["lifecycle.preStop.httpGet.host"]),
    ({"lifecycle": {"postStart": {"tcpSocket": {"port": 1, "host": "a"}}}}, ["lifecycle.postStart.tcpSocket.host"]),
]
ANNOTATIONS = [
    ({f"{APPARMOR}/trainer": "unconfined"}, [f"metadata.annotations[{APPARMOR}/trainer]: unconfined"]),
    ({f"{APPARMOR}/trainer": "localhost/mine"}, []),
    ({f"{SECCOMP}/pod": "unconfined"}, [f"metadata.annotations[{SECCOMP}/pod]: unconfined"]),
    (
        {f"container.{SECCOMP}/trainer": "unconfined"},
        [f"metadata.annotations[container.{SECCOMP}/trainer]: unconfined"],
    ),
    ({"example.com/x": "unconfined"}, []),
]


def merged(into, changes):
    """Merge mappings; replace everything else."""
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict) and key != "capabilities":
            merged(into[key], value)
        else:
            into[key] = value
    return into


def rendered_pod():
    of = job(nodes=1)
    return copy.deepcopy(render(of, plan(of.spec), 1).pods[0])


def test_a_rendered_pod_is_restricted():
    assert list(violations(rendered_pod())) == []


@pytest.mark.parametrize(("changes", "expected"), SPEC)
def test_violations_of_the_pod(changes, expected):
    pod = rendered_pod()
    merged(pod["spec"], changes)
    assert list(violations(pod)) == expected


@pytest.mark.parametrize(("changes", "expected"), CONTAINER)
def test_violations_of_the_container(changes, expected):
    pod = rendered_pod()
    merged(pod["spec"]["containers"][0], changes)
    assert list(violations(pod)) == [f"{PATH}.{field}" for field in expected]


@pytest.mark.parametrize(("annotations", "expected"), ANNOTATIONS)
def test_violations_of_annotations(annotations, expected):
    pod = rendered_pod()
    pod["metadata"]["annotations"] = annotations
    assert list(violations(pod)) == expected
