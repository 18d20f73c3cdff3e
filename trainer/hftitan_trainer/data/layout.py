"""How a job's data is split across data-parallel ranks, and whether a checkpoint's data position fits. No torch.

Rows are a function of the step and of the global batch alone (streams.py), so a checkpoint may be resumed on any mesh
that makes the same global batch. A stream of the hub is dealt out by rank instead.
"""

from __future__ import annotations

from pathlib import Path

from hftitan_api.wire import TrainerSpec
from hftitan_trainer.process.errors import UserError


def layout(spec: TrainerSpec) -> dict[str, int]:
    """How the data is dealt out: {"sequences": n}, or {"ranks": n} for a stream. A state fits the same layout only."""
    if spec.dataset.streaming:
        return {"ranks": spec.mesh.dp}
    return {"sequences": rows_of_a_step(spec)}


def rows_of_a_step(spec: TrainerSpec) -> int:
    """Rows of an optimizer step over all ranks."""
    return spec.training.global_batch_size or spec.training.local_batch_size * spec.mesh.dp


def check_layout(checkpoint: Path, before: dict[str, int] | None, now: dict[str, int]) -> None:
    """Raises UserError when the place in the data that the checkpoint holds means nothing to this run."""
    if before == now:
        return
    afresh = "or start afresh in another spec.checkpoint.folder"
    if before is None:
        raise UserError(
            "spec.checkpoint.folder",
            f"the checkpoint {checkpoint} is of an earlier version, which kept the place in the data in another "
            f"way; finish the run with that version, {afresh}",
        )
    if before.keys() != now.keys():
        was = "streaming" if "ranks" in before else "not streaming"
        raise UserError(
            "spec.dataset.streaming", f"the checkpoint {checkpoint} was written {was}; keep it so, {afresh}"
        )
    if "ranks" in now:
        raise UserError(
            "spec.mesh",
            f"the checkpoint {checkpoint} was written with {before['ranks']} data-parallel ranks, now there are "
            f"{now['ranks']}, and a stream of the hub cannot be dealt out anew; keep dpReplicate x dpShard, {afresh} "
            "(a dataset that is downloaded, with streaming: false, can go on upon any mesh)",
        )
    raise UserError(
        "spec.training.globalBatchSize",
        f"the checkpoint {checkpoint} was written with {before['sequences']} sequences in a step, now there are "
        f"{now['sequences']}, and the place in the data is kept for each; set {before['sequences']} (mesh and "
        f"localBatchSize may change), {afresh}",
    )
