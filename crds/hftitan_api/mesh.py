"""From spec to mesh plan (being written)."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hftitan_api.models import JobSpec
from hftitan_api.wire import MeshDegrees


class SpecError(ValueError):
    """What the user asked for cannot be: `path` names the field (`spec.mesh.tp`), `message` the numbers and the fix."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path
        self.message = message


@dataclass(frozen=True, slots=True)
class MeshPlan:
    degrees: MeshDegrees

    @property
    def summary(self) -> str:
        raise NotImplementedError


def plan(spec: JobSpec, model_config: dict[str, Any] | None = None) -> MeshPlan:
    raise NotImplementedError
