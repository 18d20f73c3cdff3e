"""The random numbers of each rank, which dropout draws: saved with a checkpoint, so that a resumed run drops what the
unbroken one would have.

torchtitan 0.3 saves none of them. It also gives all ranks but those of different pipeline stages one seed
(distributed/utils.py set_determinism), so that every data-parallel rank would drop the same places of its own batch.
Here only the ranks of one tensor-parallel group draw alike: what they hold whole must stay the same on all of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

KEY = "random"
"""Of the state in a checkpoint, and of the mesh in its manifest whose ranks the numbers are for."""
_AXES = ("dpReplicate", "dpShard", "cp", "tp", "pp", "device")


def places(mesh: Mapping[str, Any]) -> dict[str, Any]:
    """What says where on the mesh a rank is: its random numbers fit the same place only. `mesh` is MeshDegrees."""
    return {axis: mesh.get(axis) for axis in _AXES}


class RandomState:
    """The generators of this rank, as a state of torchtitan's checkpointer. `mesh` is MeshDegrees."""

    def __init__(self, seed: int, mesh: Mapping[str, Any], rank: int) -> None:
        self._name = f"rank{rank}"
        # tp is the innermost axis of the mesh.
        self._seed = f"{seed}:{rank // mesh.get('tp', 1)}"
        self._on_gpu = mesh.get("device") == "gpu"

    def restart(self, step: int) -> None:
        """Numbers for the steps after `step`, which follow from the job's seed, the step and the place on the mesh."""
        digest = hashlib.sha256(f"{self._seed}:{step}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)

    def state_dict(self) -> dict[str, Any]:
        """By rank, since a checkpoint holds one value of a name."""
        generators = {"cpu": torch.get_rng_state()}
        if self._on_gpu:
            generators["cuda"] = torch.cuda.get_rng_state()
        return {self._name: generators}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        generators = state[self._name]
        torch.set_rng_state(generators["cpu"])
        if self._on_gpu:
            torch.cuda.set_rng_state(generators["cuda"])
