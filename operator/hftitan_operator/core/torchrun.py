"""Arguments and environment of a pod's container, which tell torchrun and the trainer their place in the gang."""

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
from hftitan_operator.core import naming, sizing
from hftitan_operator.core.podcheck import CACHE_DIR, CONFIG_DIR, OUTPUT_DIR, TERMINATION_LOG, TMP_DIR

RENDEZVOUS_SECONDS = 86_400
"""torchrun never gives up waiting for its peers: a pod may sit in a scheduler's queue for hours, and whether to wait
or to start anew is the operator's decision. A peer that dies breaks the connection at once."""
WORKER_RESTARTS = 3
"""In-place restarts by torchrun when a process dies: the pods, their images and caches stay. What no restart can mend
(the user's mistakes) the trainer ends itself, by stopping its own torchrun, so that it is not repeated."""
MONITOR_SECONDS = 0.5


def arguments(job: HFTitanJob, plan: MeshPlan, index: int) -> list[str]:
    """Of a node. Not as PET_* variables: the API server tracks the owner of each field of each variable, and a list of
    words is one field to it. A client that only creates such pods makes 7 % more a second (median of 14 runs in turns).
    """
    conf = {
        # Given, not guessed: torchrun's guess compares host names and misreads those of pods (pytorch#73380).
        "is_host": "true" if index == 0 else "false",
        "join_timeout": str(RENDEZVOUS_SECONDS),
        "read_timeout": str(RENDEZVOUS_SECONDS),
    }
    # After SIGTERM torchrun would kill its workers at 30 s, in the middle of their last checkpoint.
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
    """`name`: of the pod; `host`: of the pod with the rendezvous."""
    meta, spec = job.metadata, job.spec
    fixed = {
        # torchrun reads every option from PET_<OPTION> (torch/distributed/argparse_util.py): these three, since a local
        # run puts addresses of its own in their place.
        "PET_RDZV_ENDPOINT": f"{naming.host_fqdn(host, meta.name, meta.namespace)}:{naming.RENDEZVOUS_PORT}",
        "PET_RDZV_ID": naming.rendezvous_id(meta.uid, attempt),
        # A name, not the address: in its order as text torchrun numbers the nodes, so that rank and index agree (and
        # stages of a pipeline are where `hftitan plan` says). Resolved for node 0 alone, as the endpoint is.
        "PET_LOCAL_ADDR": naming.host_fqdn(name, meta.name, meta.namespace),
        # torch 2.15 keeps one store over restarts in place, with the addresses of dead peers under the same keys: more
        # than half of such restarts hang or fail. With this each round of the rendezvous has a store of its own.
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
        "HOME": TMP_DIR,  # the root file system is read-only, and compilers write below HOME
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
    """By reference: the value is in no object that the operator writes or reads."""
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": secret.name, "key": secret.key}}}
