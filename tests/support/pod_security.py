"""Checks pods against the `restricted` level of the Pod Security Standards, which includes `baseline`.

It follows the checks of kubernetes/pod-security-admission for 1.36 (policy/check_*.go), without the exceptions for
Windows and for user namespaces, which the operator's pods do not use. Fields are named as there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]

APPARMOR_ANNOTATION = "container.apparmor.security.beta.kubernetes.io/"
SECCOMP_ANNOTATIONS = ("seccomp.security.alpha.kubernetes.io/", "container.seccomp.security.alpha.kubernetes.io/")
SYSCTLS = {
    "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start", "net.ipv4.ip_local_reserved_ports", "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem", "net.ipv4.tcp_slow_start_after_idle", "net.ipv4.tcp_notsent_lowat",
}  # fmt: skip
SELINUX_TYPES = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
VOLUME_TYPES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip


def violations(pod: Json) -> Iterator[str]:
    """Yield the violations of a pod."""
    spec = pod["spec"]
    yield from _annotations(pod["metadata"].get("annotations") or {})
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield f"spec.{field}"
    for volume in spec.get("volumes") or ():
        kinds = set(volume) - {"name"}
        if len(kinds) != 1 or not kinds <= VOLUME_TYPES:
            yield f"spec.volumes[{volume['name']}]: {', '.join(sorted(kinds)) or 'no source'}"
    security = spec.get("securityContext") or {}
    yield from _either_level("spec", security)
    for sysctl in security.get("sysctls") or ():
        if sysctl.get("name") not in SYSCTLS:
            yield f"spec.securityContext.sysctls: {sysctl.get('name')}"
    for kind in ("initContainers", "containers", "ephemeralContainers"):
        for container in spec.get(kind) or ():
            yield from _container(f"spec.{kind}[{container['name']}]", container, security)


def _annotations(annotations: Json) -> Iterator[str]:
    for key, value in annotations.items():
        if key.startswith(APPARMOR_ANNOTATION) and not (
            value in ("", "runtime/default") or value.startswith("localhost/")
        ):
            yield f"metadata.annotations[{key}]: {value}"
        if key.startswith(SECCOMP_ANNOTATIONS) and value not in ("runtime/default", "docker/default"):
            yield f"metadata.annotations[{key}]: {value}"


def _either_level(path: str, security: Json) -> Iterator[str]:
    """Yield violations in fields that both pods and containers have."""
    path += ".securityContext"
    if (security.get("windowsOptions") or {}).get("hostProcess"):
        yield f"{path}.windowsOptions.hostProcess"
    if (security.get("appArmorProfile") or {}).get("type", "RuntimeDefault") not in ("RuntimeDefault", "Localhost"):
        yield f"{path}.appArmorProfile.type"
    selinux = security.get("seLinuxOptions") or {}
    if selinux.get("type", "") not in SELINUX_TYPES:
        yield f"{path}.seLinuxOptions.type"
    yield from (f"{path}.seLinuxOptions.{field}" for field in ("user", "role") if selinux.get(field))
    if security.get("runAsUser") == 0:
        yield f"{path}.runAsUser"
    if security.get("runAsNonRoot") is False:
        yield f"{path}.runAsNonRoot"
    if (security.get("seccompProfile") or {}).get("type", "RuntimeDefault") not in ("RuntimeDefault", "Localhost"):
        yield f"{path}.seccompProfile.type"


def _container(path: str, container: Json, of_pod: Json) -> Iterator[str]:
    security = container.get("securityContext") or {}
    yield from _either_level(path, security)
    if security.get("runAsNonRoot") is None and of_pod.get("runAsNonRoot") is None:
        yield f"{path}.securityContext.runAsNonRoot: unset"
    if not security.get("seccompProfile") and not of_pod.get("seccompProfile"):
        yield f"{path}.securityContext.seccompProfile: unset"
    if security.get("privileged"):
        yield f"{path}.securityContext.privileged"
    if security.get("allowPrivilegeEscalation") is not False:
        yield f"{path}.securityContext.allowPrivilegeEscalation"
    capabilities = security.get("capabilities") or {}
    if "ALL" not in (capabilities.get("drop") or ()):
        yield f"{path}.securityContext.capabilities.drop"
    if set(capabilities.get("add") or ()) - {"NET_BIND_SERVICE"}:
        yield f"{path}.securityContext.capabilities.add"
    if security.get("procMount", "Default") != "Default":
        yield f"{path}.securityContext.procMount"
    if any(port.get("hostPort") for port in container.get("ports") or ()):
        yield f"{path}.ports.hostPort"
    handlers = {probe: container.get(probe) for probe in ("livenessProbe", "readinessProbe", "startupProbe")}
    handlers |= {f"lifecycle.{hook}": action for hook, action in (container.get("lifecycle") or {}).items()}
    for handler, actions in handlers.items():
        for kind in ("httpGet", "tcpSocket"):
            if ((actions or {}).get(kind) or {}).get("host"):
                yield f"{path}.{handler}.{kind}.host"
