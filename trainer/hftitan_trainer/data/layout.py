"""How a job's data is split across data-parallel ranks, and whether a checkpoint's data position fits. No torch.

The rows of a step depend only on the step and the global batch (streams.py), so a checkpoint can be resumed on any mesh
with the same global batch. A hub stream is split by rank instead.
"""

from __future__ import annotations

from pathlib import Path

from hftitan_api.wire import TrainerSpec
from hftitan_trainer.process.errors import UserError


def layout(spec: TrainerSpec) -> dict[str, int]:
    """Return how the data is split: {"sequences": n}, or {"ranks": n} for a stream. A saved position fits only the same
    split."""
    if spec.dataset.streaming:
        return {"ranks": spec.mesh.dp}
    return {"sequences": rows_of_a_step(spec)}


def rows_of_a_step(spec: TrainerSpec) -> int:
    """Return the rows of an optimizer step over all ranks."""
    return spec.training.global_batch_size or spec.training.local_batch_size * spec.mesh.dp


def check_layout(checkpoint: Path, before: dict[str, int] | None, now: dict[str, int]) -> None:
    """Raise UserError if this run cannot use the data position of the checkpoint."""
    if before == now:
        return
    otherwise = "or start a new run in another spec.checkpoint.folder"
    if before is None:
        raise UserError(
            "spec.checkpoint.folder",
            f"the checkpoint {checkpoint} is from an earlier version, which saved the data position differently; "
            f"finish the run with that version, {otherwise}",
        )
    if before.keys() != now.keys():
        was = "true" if "ranks" in before else "false"
        raise UserError(
            "spec.dataset.streaming",
            f"the checkpoint {checkpoint} was written with streaming: {was}; keep that value, {otherwise}",
        )
    if "ranks" in now:
        raise UserError(
            "spec.mesh",
            f"the checkpoint {checkpoint} was written with {before['ranks']} data-parallel ranks, now there are "
            f"{now['ranks']}, but a hub stream can only resume on the same number; keep dpReplicate x dpShard, "
            f"{otherwise} (a downloaded dataset, with streaming: false, can resume on any mesh)",
        )
    raise UserError(
        "spec.training.globalBatchSize",
        f"the checkpoint {checkpoint} was written with {before['sequences']} sequences per step, now there are "
        f"{now['sequences']}, but the data position is saved for each sequence; set {before['sequences']} (mesh and "
        f"localBatchSize may change), {otherwise}",
    )
