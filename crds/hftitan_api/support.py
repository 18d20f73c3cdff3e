"""Fields that are not supported yet. They are rejected by name, never ignored. Delete a field's entry when it works."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from hftitan_api.models import JobSpec
from hftitan_api.rules import SpecError
from hftitan_api.shape import ModelShape

_NOT_YET: tuple[tuple[str, Callable[[JobSpec], object], str], ...] = (
    # path, a function that returns the requested value (None or False: not requested), the fix
    (
        "spec.checkpoint.asyncMode",
        # DCP copies the state through pinned memory to /dev/shm for a separate process. sizing.shm does not include it.
        lambda s: s.checkpoint.async_mode if s.checkpoint.async_mode == "async_with_pinned_mem" else None,
        "use async (pinned copies need a GPU, and space in /dev/shm that the operator does not request)",
    ),
    (
        "spec.training.lora",
        # torchtitan 0.3 components/lora.py: it would silently find no layer for adapters and train all weights.
        lambda s: s.training.lora is not None,
        "remove it (torchtitan's LoRA needs torchtitan's linear layers, which transformers models do not have)",
    ),
    (
        "spec.optimizer.name",
        # torchtitan 0.3 distributed/flex_shard/dist_muon.py: it needs a table with the layout of each matrix, and a
        # second optimizer for the other parameters. No such table exists for transformers models.
        lambda s: s.optimizer.name if s.optimizer.name == "DistMuon" else None,
        "use AdamW (torchtitan's DistMuon needs a layout for each matrix, which only torchtitan's models define)",
    ),
)


_NO_SUCH_MODEL_YET: tuple[tuple[Callable[[ModelShape], object], str], ...] = (
    (
        lambda shape: shape.composite,
        "multimodal models are not supported yet; use the text-only checkpoint of the family",
    ),
)


def unsupported(spec: JobSpec, shape: ModelShape | None = None) -> Iterator[SpecError]:
    """Yield an error for each field that is not supported yet; for the model too, if its shape is known."""
    for path, asked, instead in _NOT_YET:
        value = asked(spec)
        if value:
            subject = path.rpartition(".")[2] if value is True else value
            yield SpecError(path, f"{subject} is not supported yet; {instead}")
    for applies, message in _NO_SUCH_MODEL_YET:
        if shape is not None and applies(shape):
            yield SpecError("spec.model.name", f"{spec.model.name}: {message}")
