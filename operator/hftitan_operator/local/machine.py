"""Values that describe this machine, and the addresses and devices of each pod of a local run."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

RANK_SCRIPT = """\
#!/bin/sh
# torchrun runs this instead of python (PYTHON_EXEC): one log per rank, stdout and stderr in order.
log="$HFTITAN_LOCAL_LOGS/rank$RANK.log"
# Pod names are never reused, so an existing log means that the worker was restarted in place.
[ ! -s "$log" ] || echo "--- restarted in place ---" >>"$log"
exec {python} "$@" >>"$log" 2>&1
"""


class Refused(ValueError):
    """The manifest needs something that a local run does not support; `path` names the field."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path
        self.message = message


@dataclass(frozen=True, slots=True)
class Machine:
    """Properties of this machine and run that the translation needs."""

    workdir: Path
    environ: Mapping[str, str]
    programs: Mapping[str, Sequence[str]]
    """First word of a command -> the words that replace it."""
    python: str = sys.executable
    """Interpreter of the ranks."""
    volumes: Mapping[str, Path] = field(default_factory=dict)
    gpu_resource: str = "nvidia.com/gpu"
    gpus: Sequence[str] = ()
    """Devices, in the format of CUDA_VISIBLE_DEVICES."""
    threads: int | None = None
    """OMP_NUM_THREADS of each rank; None keeps the manifest's value, which follows from the CPU request."""

    @property
    def cache(self) -> Path:
        home = self.environ.get("HF_HOME")
        if home:
            return Path(home).expanduser()
        base = self.environ.get("XDG_CACHE_HOME") or os.path.join(self.environ.get("HOME", "~"), ".cache")
        return Path(base).expanduser() / "huggingface"

    def pod_folder(self, pod: str) -> Path:
        return self.workdir / ".pods" / pod

    def config_folder(self, name: str) -> Path:
        return self.workdir / ".config" / name

    @property
    def rank_script(self) -> Path:
        """The script that torchrun runs instead of python, see RANK_SCRIPT."""
        return self.workdir / ".pods" / "rank"

    def pod_log(self, pod: str) -> Path:
        return self.workdir / "logs" / f"{pod}.log"

    def rank_logs(self, pod: str) -> Path:
        return self.workdir / "logs" / pod


@dataclass(frozen=True, slots=True)
class Place:
    """Addresses and first device of one pod on this machine."""

    uid: str
    address: str
    rendezvous: str
    """host:port of the gang's rendezvous."""
    first_gpu: int = 0
    """Index of the pod's first device in Machine.gpus."""
