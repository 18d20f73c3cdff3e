"""Reads the environment of a trainer process, once and typed."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from hftitan_api import wire
from hftitan_trainer.process.errors import UserError


@dataclass(frozen=True, slots=True)
class Environment:
    """The environment of a rank: spec file, folders, and position in the job."""

    config: Path
    output: Path
    termination_log: Path | None
    attempt: int
    node_index: int
    pod_ip: str | None
    rank: int
    local_rank: int
    world_size: int
    worker_restarts: int
    """In-place restarts by torchrun before this process."""

    @classmethod
    def read(cls, env: Mapping[str, str]) -> Environment:
        """Read the variables. Raises UserError if one of the two without a default is missing."""
        for name in (wire.ENV_CONFIG, wire.ENV_OUTPUT):
            if not env.get(name):
                raise UserError(name, "is not set; start the trainer with the operator or with `hftitan run`")
        log = env.get(wire.ENV_TERMINATION_LOG)
        return cls(
            config=Path(env[wire.ENV_CONFIG]).absolute(),
            output=Path(env[wire.ENV_OUTPUT]).absolute(),
            termination_log=Path(log) if log else None,
            attempt=int(env.get(wire.ENV_ATTEMPT) or 1),
            node_index=int(env.get(wire.ENV_NODE_INDEX) or env.get("GROUP_RANK") or 0),
            pod_ip=env.get(wire.ENV_POD_IP) or None,
            rank=int(env.get("RANK", "0")),
            local_rank=int(env.get("LOCAL_RANK", "0")),
            world_size=int(env.get("WORLD_SIZE", "1")),
            worker_restarts=int(env.get("TORCHELASTIC_RESTART_COUNT", "0")),
        )

    def spec(self) -> wire.TrainerSpec:
        """Read the spec. Raises UserError if it is unreadable or not for this number of processes."""
        try:
            spec = wire.TrainerSpec.model_validate_json(self.config.read_bytes())
        except OSError as error:
            raise UserError(wire.ENV_CONFIG, f"{self.config} cannot be read: {error.strerror}") from error
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            path = ".".join(map(str, first["loc"]))
            raise UserError(
                wire.ENV_CONFIG, f"{self.config} is not a valid TrainerSpec: {path}: {first['msg']}"
            ) from error
        if spec.mesh.world_size != self.world_size:
            raise UserError(
                "spec.mesh",
                f"{spec.mesh.nodes} nodes x {spec.mesh.ranks_per_node} ranks are {spec.mesh.world_size} processes, "
                f"but {self.world_size} were started; start them with torchrun --nnodes {spec.mesh.nodes} "
                f"--nproc-per-node {spec.mesh.ranks_per_node}",
            )
        return spec


def default_rendezvous(env: MutableMapping[str, str]) -> None:
    """Without torchrun, set the rendezvous variables for a single process."""
    if "RANK" in env:
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_WORLD_SIZE="1", MASTER_ADDR="127.0.0.1")
    env["MASTER_PORT"] = str(port)


def seconds_since_launch() -> float:
    """Return the age of torchrun's agent if it is the parent, else of this process. 0 if /proc cannot be read."""
    return process_age(os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else os.getpid())


def process_age(pid: int) -> float:
    """Return the seconds since the process started, to 10 ms. 0 if /proc cannot be read."""
    try:
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 0.0
    return max(0.0, uptime - ticks / os.sysconf("SC_CLK_TCK"))
