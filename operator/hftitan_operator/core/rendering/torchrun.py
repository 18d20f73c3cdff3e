"""Arguments and environment of a pod's container: the place of torchrun and the trainer in the gang."""

from __future__ import annotations

from typing import Any

from hftitan_api.mesh import MeshPlan
from hftitan_api.models import HFTitanJob, SecretKey
from hftitan_api.wire import (
    ENV_ATTEMPT,
    ENV_CONFIG,
    ENV_NODE_INDEX,
    ENV_OUTPUT,
    ENV_POD_IP,
    ENV_TERMINATION_LOG,
)
from hftitan_operator.core import naming
from hftitan_operator.core.rendering import sizing
from hftitan_operator.core.rendering.podcheck import CACHE_DIR, CONFIG_DIR, OUTPUT_DIR, TERMINATION_LOG, TMP_DIR

AGENT = "hftitan-agent"
"""Program of the trainer's image: torchrun, which also ends on SIGTERM while it waits for the rendezvous."""
RENDEZVOUS_SECONDS = 86_400
"""One day: pods may wait in a scheduler's queue for hours, and the operator decides when to restart, not torchrun. If
a peer dies, the connection breaks at once."""
WORKER_RESTARTS = 3
"""In-place restarts by torchrun when a process dies; pods, images and caches stay. On an error that a restart cannot
fix (a user error), the trainer stops its own torchrun, so that torchrun does not restart it."""
MONITOR_SECONDS = 0.5


def arguments(job: HFTitanJob, plan: MeshPlan, index: int) -> list[str]:
    """Return torchrun's arguments for node `index`.

    Arguments instead of PET_* variables: the API server tracks the owner of every field of every variable, but an
    argument list is one field. A client that only creates such pods creates 7 % more per second (median of 14
    alternating runs).
    """
    conf = {
        # Explicit, because torchrun's detection compares host names and fails for those of pods (pytorch#73380).
        "is_host": "true" if index == 0 else "false",
        "join_timeout": str(RENDEZVOUS_SECONDS),
        "read_timeout": str(RENDEZVOUS_SECONDS),
    }
    # By default torchrun kills its workers 30 s after SIGTERM, while they save their last checkpoint.
    shutdown = sizing.grace_seconds(job.spec.checkpoint) - sizing.SHUTDOWN_MARGIN_SECONDS
    return [
        f"--nnodes={plan.degrees.nodes}",
        f"--nproc-per-node={plan.degrees.ranks_per_node}",
        "--rdzv-backend=c10d",
        f"--rdzv-conf={','.join(f'{key}={value}' for key, value in conf.items())}",
        f"--max-restarts={WORKER_RESTARTS}",
        f"--monitor-interval={MONITOR_SECONDS}",
        f"--shutdown-timeout={shutdown}",
        "-m",
        "hftitan_trainer",
    ]


def environment(job: HFTitanJob, name: str, host: str, attempt: int, index: int, threads: int) -> list[dict[str, Any]]:
    """Return the container's environment. `name` is the pod's name, `host` the name of the pod with the rendezvous."""
    meta, spec = job.metadata, job.spec
    fixed = {
        # torchrun reads every option from PET_<OPTION> (torch/distributed/argparse_util.py). These three are variables
        # because a local run replaces their values.
        "PET_RDZV_ENDPOINT": f"{naming.host_fqdn(host, meta.name, meta.namespace)}:{naming.RENDEZVOUS_PORT}",
        "PET_RDZV_ID": naming.rendezvous_id(meta.uid, attempt),
        # The name instead of the IP address: torchrun sorts the nodes by this text, so ranks follow the pod index (and
        # pipeline stages are where `hftitan plan` shows them). Only the name of node 0 is resolved, as the endpoint.
        "PET_LOCAL_ADDR": naming.host_fqdn(name, meta.name, meta.namespace),
        # torch 2.15 reuses one store after in-place restarts, and its keys hold the addresses of dead peers: more than
        # half of these restarts hang or fail. With this variable each rendezvous round has its own store.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        ENV_CONFIG: f"{CONFIG_DIR}/{naming.CONFIG_KEY}",
        ENV_OUTPUT: OUTPUT_DIR,
        ENV_TERMINATION_LOG: TERMINATION_LOG,
        ENV_ATTEMPT: str(attempt),
        ENV_NODE_INDEX: str(index),
    }
    theirs = {var.name for var in spec.pod.env}
    defaults = {
        "HF_HOME": CACHE_DIR,
        "HOME": TMP_DIR,  # the root filesystem is read-only, and compilers write below HOME
        "OMP_NUM_THREADS": str(threads),
        "PYTHONUNBUFFERED": "1",
    }
    env: list[dict[str, Any]] = [{"name": key, "value": value} for key, value in fixed.items()]
    env.append({"name": ENV_POD_IP, "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}})
    env += [{"name": key, "value": value} for key, value in defaults.items() if key not in theirs]
    if spec.pod.hf_token_secret:
        env.append(_from_secret("HF_TOKEN", spec.pod.hf_token_secret))
    if spec.monitoring.wandb_secret:
        env.append(_from_secret("WANDB_API_KEY", spec.monitoring.wandb_secret))
    return env + [var.to_dict() for var in spec.pod.env]


def _from_secret(name: str, secret: SecretKey) -> dict[str, Any]:
    """Reference a Secret: no object that the operator reads or writes contains the value."""
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": secret.name, "key": secret.key}}}
