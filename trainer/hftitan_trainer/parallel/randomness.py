"""Saves the random state of each rank, so that dropout after a resume is the same as without the interruption.

torchtitan 0.3 does not save it. It also gives all ranks of a pipeline stage the same seed (distributed/utils.py
set_determinism), so every data-parallel rank would drop the same positions of its own batch. Here only the ranks of one
tensor-parallel group draw the same numbers, since tensors that each of them holds whole must stay equal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

KEY = "random"
"""Name of the random state in a checkpoint, and of its mesh in the manifest."""
_AXES = ("dpReplicate", "dpShard", "cp", "tp", "pp", "device")


def places(mesh: Mapping[str, Any]) -> dict[str, Any]:
    """Return the mesh axes that fix a rank's position. A random state is valid only for the same position. `mesh` is
    MeshDegrees."""
    return {axis: mesh.get(axis) for axis in _AXES}


class RandomState:
    """The random generators of this rank, as a state of torchtitan's checkpointer. `mesh` is MeshDegrees."""

    def __init__(self, seed: int, mesh: Mapping[str, Any], rank: int) -> None:
        self._name = f"rank{rank}"
        # tp is the innermost axis of the mesh.
        self._seed = f"{seed}:{rank // mesh.get('tp', 1)}"
        self._on_gpu = mesh.get("device") == "gpu"

    def restart(self, step: int) -> None:
        """Seed the generators for the steps after `step`, from the job's seed, the step and the position on the
        mesh."""
        digest = hashlib.sha256(f"{self._seed}:{step}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)

    def state_dict(self) -> dict[str, Any]:
        """Return the state under the rank's name, since a checkpoint has one value per name."""
        generators = {"cpu": torch.get_rng_state()}
        if self._on_gpu:
            generators["cuda"] = torch.cuda.get_rng_state()
        return {self._name: generators}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        generators = state[self._name]
        torch.set_rng_state(generators["cpu"])
        if self._on_gpu:
            torch.cuda.set_rng_state(generators["cuda"])
