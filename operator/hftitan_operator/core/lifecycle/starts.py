"""Decides whether the job or the node is at fault when a container cannot start."""

from __future__ import annotations

import re

_OF_THE_NODE = re.compile(r"hook|start shim|containerd-shim|nvidia|unable to retrieve OCI runtime error", re.IGNORECASE)
"""A missing program of the runtime is also "executable file not found"."""
_OF_THE_JOB = (
    # messages of runc (libcontainer/standard_init_linux.go, process_linux.go, rootfs_linux.go) and crun; the field
    (re.compile(r"executable file|exec: |exec format error|chdir to cwd"), "spec.pod.image"),
    (re.compile(r"memory limit too low"), "spec.pod.resources.limits.memory"),
    (re.compile(r"not a directory"), "spec.pod.volumeMounts"),
)


def field_at_fault(message: str | None) -> str | None:
    """Return the field of the job that causes the runtime's error, or None for a device, a driver or the runtime."""
    if not message or _OF_THE_NODE.search(message):
        return None
    return next((field for pattern, field in _OF_THE_JOB if pattern.search(message)), None)
