"""Exports the trained model as a folder that `from_pretrained` loads, with the same logits on every mesh.

torchtitan's own HF checkpoints contain only weights and index, leave a `sharded/` folder behind, and omit
lm_head.weight of a model that it untied (components/checkpointer/dcp.py). Here each weight is gathered in turn and only
rank 0 writes, so the export also works if the nodes share no volume. At any time a rank holds one whole weight on its
device, and rank 0 the weights of one file in memory.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from hftitan_trainer.model.folder import TOKENIZER_FILES, ModelFolder
from hftitan_trainer.process.errors import StorageError

if TYPE_CHECKING:
    from torchtitan.trainer import Trainer

    from hftitan_trainer.parallel.experts import FileNames

FILE_BYTES = 5 * 10**9
_COPIED = (*TOKENIZER_FILES, "generation_config.json", "LICENSE*")


@dataclass(frozen=True)
class Weight:
    """One tensor of the exported folder."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    stage: int
    """Pipeline stage (coordinate on the pp axis) that has the weight."""

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * torch.Size(self.shape).numel()


@torch.no_grad()
def export_model(
    trainer: Trainer, folder: Path, dtype: str, file_bytes: int = FILE_BYTES, card: str | None = None
) -> None:
    """Write the model, its config and its tokenizer to `folder`. Collective: all ranks must call it.

    `dtype` (float32, bfloat16, float16) is the type of the floating-point weights. `card` is the text of README.md;
    only rank 0's is used. The folder appears complete or not at all, and replaces an earlier one. Raises StorageError
    on all ranks if rank 0 cannot write.
    """
    tensors = _tensors(trainer)
    weights = _all_weights(trainer, tensors, getattr(torch, dtype))
    writer = _Writer(folder, weights, file_bytes, _adapter(trainer).names) if dist.get_rank() == 0 else None
    for weight in weights:
        value = _gathered(trainer, weight, tensors.get(weight.name))
        if writer is not None:
            writer.add(weight, value)
    if writer is not None:
        writer.finish(trainer.model._folder, dtype, card)
    outcome = [writer.error if writer is not None else None]
    dist.broadcast_object_list(outcome, src=0, device=trainer.device)
    if outcome[0] is not None:
        raise StorageError(f"the export to {folder} failed: {outcome[0]}")


def _tensors(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Return this rank's tensors, whole or shards, by their names in transformers."""
    state = {name: value for part in trainer.model_parts for name, value in part.state_dict().items()}
    return _adapter(trainer).whole(state)


def _adapter(trainer: Trainer) -> Any:
    return trainer.config.model_spec.state_dict_adapter(trainer.model_config, None)


def _all_weights(trainer: Trainer, tensors: dict[str, torch.Tensor], dtype: torch.dtype) -> list[Weight]:
    """Return all weights of the model, in the same order on all ranks. A tied weight is taken from the first of its
    stages."""
    own = [
        (name, tuple(value.shape), dtype if value.is_floating_point() else value.dtype)
        for name, value in tensors.items()
    ]
    mesh = trainer.parallel_dims.get_optional_mesh("pp")
    stages: list[Any] = [own]
    if mesh is not None:
        stages = [None] * mesh.size()
        dist.all_gather_object(stages, own, group=mesh.get_group())
    weights: dict[str, Weight] = {}
    for stage, listed in enumerate(stages):
        for name, shape, kind in listed:
            weights.setdefault(name, Weight(name, shape, kind, stage))
    return list(weights.values())


def _gathered(trainer: Trainer, weight: Weight, tensor: torch.Tensor | None) -> torch.Tensor | None:
    """Return the whole weight on rank 0's device; other results are unused. Collective over the weight's stage and rank
    0."""
    mesh = trainer.parallel_dims.get_optional_mesh("pp")
    stage = mesh.get_local_rank() if mesh is not None else 0
    value = None
    if stage == weight.stage:
        assert tensor is not None
        value = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        value = value.detach().to(weight.dtype)
    if mesh is None or weight.stage == 0:
        return value
    group = mesh.get_group()
    ranks = dist.get_process_group_ranks(group)
    if ranks[0] != 0:
        return value
    if dist.get_rank() == 0:
        value = torch.empty(weight.shape, dtype=weight.dtype, device=trainer.device)
        dist.recv(value, src=ranks[weight.stage], group=group)
    elif stage == weight.stage:
        assert value is not None
        dist.send(value.contiguous(), dst=0, group=group)
    return value


class _Writer:
    """Writes files of bounded size, on rank 0, to a hidden folder that gets the final name at the end.

    Keeps an OSError instead of raising it: the other ranks are in collectives, and learn of it at the end.
    """

    def __init__(self, folder: Path, weights: list[Weight], file_bytes: int, names: FileNames) -> None:
        self.folder = folder
        self.names = names
        self.index: dict[str, str] = {}
        self.partial = folder.with_name(f".{folder.name}.partial")
        self.error: str | None = None
        self.files = list(_files(weights, file_bytes))
        self.file_of = {name: file for file, names in self.files for name in names}
        self.left = {file: set(names) for file, names in self.files}
        self.held: dict[str, dict[str, torch.Tensor]] = {}
        self.total = sum(weight.nbytes for weight in weights)
        try:
            shutil.rmtree(self.partial, ignore_errors=True)
            self.partial.mkdir(parents=True)
        except OSError as error:
            self.error = str(error)

    def add(self, weight: Weight, value: torch.Tensor | None) -> None:
        """Add a weight. A file is written once all its weights are added."""
        assert value is not None
        assert tuple(value.shape) == weight.shape
        if self.error is not None:
            return
        file = self.file_of[weight.name]
        for name, piece in self.names.pieces(weight.name, value.cpu()).items():
            self.index[name] = file
            self.held.setdefault(file, {})[name] = piece.clone(memory_format=torch.contiguous_format)
        self.left[file].discard(weight.name)
        if not self.left[file]:
            self._write(file, self.held.pop(file))

    def _write(self, file: str, tensors: dict[str, torch.Tensor]) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        try:
            save_file(tensors, self.partial / file, metadata={"format": "pt"})
        except (OSError, SafetensorError) as error:
            self.error = str(error)

    def finish(self, model: ModelFolder, dtype: str, card: str | None) -> None:
        """Write the other files, then give the folder its final name."""
        if self.error is not None:
            return
        try:
            if len(self.files) > 1:
                index = {"metadata": {"total_size": self.total}, "weight_map": dict(sorted(self.index.items()))}
                (self.partial / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
            _write_config(self.partial, model, dtype)
            _copy_small_files(self.partial, model)
            if card is not None:
                (self.partial / "README.md").write_text(card, encoding="utf-8")
            _replace(self.partial, self.folder)
        except OSError as error:
            self.error = str(error)


def _files(weights: list[Weight], file_bytes: int) -> Iterator[tuple[str, list[str]]]:
    """Yield file names with their weights, in order. Each file has at most `file_bytes`, or one weight."""
    groups: list[list[str]] = [[]]
    size = 0
    for weight in weights:
        if groups[-1] and size + weight.nbytes > file_bytes:
            groups.append([])
            size = 0
        groups[-1].append(weight.name)
        size += weight.nbytes
    for number, names in enumerate(groups, start=1):
        whole = len(groups) == 1
        yield "model.safetensors" if whole else f"model-{number:05d}-of-{len(groups):05d}.safetensors", names


def _write_config(folder: Path, model: ModelFolder, dtype: str) -> None:
    config = copy.deepcopy(model.config)
    config.dtype = getattr(torch, dtype)
    config.save_pretrained(folder)


def _copy_small_files(folder: Path, model: ModelFolder) -> None:
    """Copy tokenizer, chat templates, generation config and licence, and the model's code if it is trusted."""
    patterns = [*_COPIED, *(["*.py"] if model.trust_remote_code else [])]
    for source in sorted({path for pattern in patterns for path in model.path.glob(pattern) if path.is_file()}):
        target = folder / source.relative_to(model.path)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, target)


def _replace(partial: Path, folder: Path) -> None:
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
