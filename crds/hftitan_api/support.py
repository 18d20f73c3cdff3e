"""Fields that are not implemented yet: rejected by name, never ignored. Delete a line when its field is built."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from hftitan_api.models import JobSpec
from hftitan_api.rules import SpecError
from hftitan_api.shape import ModelShape

_NOT_YET: tuple[tuple[str, Callable[[JobSpec], object], str], ...] = (
    # path, the value when it asks for something (None or False when it does not), what to write instead
    (
        "spec.checkpoint.asyncMode",
        # DCP stages it in /dev/shm, for a process of its own, by way of pinned memory: a GPU's, and not sized for yet.
        lambda s: s.checkpoint.async_mode if s.checkpoint.async_mode == "async_with_pinned_mem" else None,
        "use async (pinned copies need a GPU, and room in /dev/shm that is not reckoned with)",
    ),
    (
        "spec.training.lora",
        # torchtitan 0.3 components/lora.py: without a word it would find nothing to put adapters beside, and train all
        # weights.
        lambda s: s.training.lora is not None,
        "remove it (torchtitan's LoRA rewrites its own linear layers' configs, and models of transformers have none)",
    ),
    (
        "spec.optimizer.name",
        # torchtitan 0.3 distributed/flex_shard/dist_muon.py: matrices alone, each with the layout it is computed in,
        # and a second optimizer for the rest; no such table exists for transformers' models.
        lambda s: s.optimizer.name if s.optimizer.name == "DistMuon" else None,
        "use AdamW (torchtitan's DistMuon wants a layout for each matrix by name, which its own models alone have)",
    ),
)


_NO_SUCH_MODEL_YET: tuple[tuple[Callable[[ModelShape], object], str], ...] = (
    (
        lambda shape: shape.composite,
        "models of text and more are not supported yet; use the text-only checkpoint of the family",
    ),
)


def unsupported(spec: JobSpec, shape: ModelShape | None = None) -> Iterator[SpecError]:
    """Every field that asks for what this version does not do yet; with the model's shape, the model too."""
    for path, asked, instead in _NOT_YET:
        value = asked(spec)
        if value:
            subject = "this" if value is True else value
            yield SpecError(path, f"{subject} is not supported yet; {instead}")
    for applies, message in _NO_SUCH_MODEL_YET:
        if shape is not None and applies(shape):
            yield SpecError("spec.model.name", f"{spec.model.name}: {message}")
