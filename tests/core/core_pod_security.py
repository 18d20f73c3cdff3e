"""The `restricted` level of the Pod Security Standards, as far as it speaks of a pod's own fields.

From kubernetes.io/docs/concepts/security/pod-security-standards, baseline included.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

VOLUME_TYPES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip
UNCONFINED = ("container.apparmor.security.beta.kubernetes.io/", "seccomp.security.alpha.kubernetes.io/")


def violations(pod: dict[str, Any]) -> Iterator[str]:
    spec, security = pod["spec"], pod["spec"].get("securityContext", {})
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield field
    for key in pod["metadata"].get("annotations", {}):
        if key.startswith(UNCONFINED):
            yield f"annotation {key}"
    for volume in spec.get("volumes", []):
        kinds = set(volume) - {"name"}
        if not kinds <= VOLUME_TYPES or len(kinds) != 1:
            yield f"volume {volume['name']}: {kinds}"
    if security.get("sysctls"):
        yield "sysctls"
    for container in spec["containers"] + spec.get("initContainers", []) + spec.get("ephemeralContainers", []):
        own = container.get("securityContext", {})
        both = {**security, **own}
        if own.get("privileged"):
            yield "privileged"
        if own.get("allowPrivilegeEscalation") is not False:
            yield "allowPrivilegeEscalation"
        capabilities = own.get("capabilities", {})
        if "ALL" not in capabilities.get("drop", []) or set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
            yield "capabilities"
        if both.get("runAsNonRoot") is not True:
            yield "runAsNonRoot"
        if both.get("runAsUser") == 0:
            yield "runAsUser"
        if both.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
            yield "seccompProfile"
        if own.get("procMount", "Default") != "Default":
            yield "procMount"
        if any(port.get("hostPort") for port in container.get("ports", [])):
            yield "hostPort"
