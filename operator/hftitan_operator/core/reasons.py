"""Every reason that the operator writes to conditions, the restart history and events. CamelCase, as the API requires.

The reasons in the trainer's exit reports (hftitan_api.wire.ExitReason) are used unchanged.
"""

from __future__ import annotations

from typing import Final

# --- condition types
ACCEPTED: Final = "Accepted"
PODS_CREATED: Final = "PodsCreated"
RUNNING: Final = "Running"
SUSPENDED: Final = "Suspended"
SUCCEEDED: Final = "Succeeded"
FAILED: Final = "Failed"
CONDITION_TYPES: Final = (ACCEPTED, PODS_CREATED, RUNNING, SUSPENDED, SUCCEEDED, FAILED)

# --- reasons of conditions
VALID: Final = "Valid"
INVALID_SPEC: Final = "InvalidSpec"
MESH_CHANGED: Final = "MeshChanged"
NO_GANG_SCHEDULER: Final = "NoGangScheduler"
CREATING: Final = "Creating"
CREATED: Final = "Created"
DENIED: Final = "Denied"
NOT_STARTED: Final = "NotStarted"
PODS_RUNNING: Final = "PodsRunning"
NOT_SUSPENDED: Final = "NotSuspended"
BY_USER: Final = "ByUser"
RESUMED: Final = "Resumed"
NOT_FINISHED: Final = "NotFinished"
COMPLETED: Final = "Completed"

# --- why an attempt ended, in addition to the trainer's reasons
EVICTED: Final = "Evicted"
NODE_LOST: Final = "NodeLost"
PREEMPTED: Final = "Preempted"
POD_DELETED: Final = "PodDeleted"
OOM_KILLED: Final = "OOMKilled"
KILLED: Final = "Killed"
NO_REPORT: Final = "ExitedWithoutReport"
NODE_ERROR: Final = "NodeError"
START_ERROR: Final = "StartError"
HUNG: Final = "Hung"
STARTUP_TIMEOUT: Final = "StartupTimeout"
ATTEMPT_ENDS: Final = (
    EVICTED, NODE_LOST, NODE_ERROR, PREEMPTED, POD_DELETED, OOM_KILLED, KILLED, NO_REPORT, START_ERROR, HUNG,
    STARTUP_TIMEOUT,
)  # fmt: skip

# --- why a job ended
DEADLINE_EXCEEDED: Final = "DeadlineExceeded"
RESTARTS_EXHAUSTED: Final = "RestartsExhausted"
NO_PROGRESS: Final = "NoProgress"
INVALID_IMAGE: Final = "InvalidImage"
POD_CANNOT_START: Final = "PodCannotStart"

# --- events only
ATTEMPT_CREATED: Final = "AttemptCreated"
NOT_QUEUED: Final = "NotQueued"
TRAINING: Final = "Training"
CHECKPOINT_SAVED: Final = "CheckpointSaved"

# --- Kubernetes' reasons for a container that does not start
NEVER_STARTS: Final = frozenset({"InvalidImageName", "ErrImageNeverPull"})
"""Waiting does not fix these."""
MAY_START: Final = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "ImageInspectError",
        "RegistryUnavailable",
        "CreateContainerConfigError",
        "CreateContainerError",
        "PreCreateHookError",
        "PreStartHookError",
        "RunContainerError",
    }
)
"""May pass (a registry that is down, a Secret that is not created yet): the operator waits for a limited time."""
RUNTIME_ERRORS: Final = frozenset(
    {"CreateContainerError", "PreCreateHookError", "PreStartHookError", "RunContainerError"}
)
"""Those of MAY_START that come from the node's runtime or device plugins."""

# --- Kubernetes' reasons for a pod that ended (pkg/kubelet of Kubernetes 1.37)
START_ERRORS: Final = frozenset({"StartError", "ContainerCannotRun"})
"""The runtime (containerd, Docker) could not start the container."""
CONTAINER_LOST: Final = frozenset({"ContainerStatusUnknown", "Unknown"})
"""After a reboot, the kubelet or containerd does not know how the container ended."""
UNSUPPORTED: Final = frozenset(
    {
        "AppArmor",
        "EmptyPodSharedPoolError",
        "InitContainerRestartPolicyForbidden",
        "PodFeatureUnsupported",
        "PodLevelResourcesNotSupported",
        "PodOSNotSupported",
        "PodOSSelectorNodeLabelDoesNotMatch",
        "SMTAlignmentError",
        "SupplementalGroupsPolicyNotSupported",
        "SysctlForbidden",
    }
)
"""The kubelet rejects a setting of the pod, so every node with the same configuration does. All other rejections depend
on the state of the node: UnexpectedAdmissionError, OutOfcpu, NodeAffinity, TopologyAffinityError, ..."""
