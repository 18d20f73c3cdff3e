"""Initialises a model that was built on the meta device: by transformers' rules, and the same on every mesh.

A random weight depends only on the seed and the weight's name. Each rank draws the full weight and keeps its shard, so
a model starts with the same values on any number of processes. This needs memory for one full weight at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from hftitan_trainer.process.errors import UpstreamError

_WRAPPERS = ("_checkpoint_wrapped_module.", "_orig_mod.")


@torch.no_grad()
def initialise(model: nn.Module, seed: int, *, parameters: bool) -> None:
    """Run transformers' `_init_weights` on the modules of a materialised PreTrainedModel.

    Always restores buffers that are not in checkpoints (mainly rotary frequencies, which torchtitan 0.3 leaves
    uninitialised). Initialises parameters only if `parameters`, since loading overwrites them. Raises UpstreamError
    with the name of a buffer that transformers did not restore: training would use uninitialised memory.
    """
    _poison(model)
    done: set[int] = set()
    for name, module in sorted(model.named_modules(), key=lambda item: -item[0].count(".")):
        if isinstance(module, nn.Identity) or hasattr(module, "_checkpoint_wrapped_module"):
            continue
        has_buffers = any(True for _ in module.buffers(recurse=False))
        if parameters:
            _initialise_module(model, _canonical(name), module, seed, done)
        elif has_buffers:
            with _parameters_on_meta(module):
                model._init_weights(module)
    lost = [name for name, buffer in _unsaved_buffers(model) if _is_poisoned(buffer)]
    if lost:
        raise UpstreamError(
            f"{type(model).__name__}: transformers does not restore the buffer {lost[0]} after meta initialisation, "
            f"and no checkpoint contains it; training would use uninitialised memory ({len(lost)} such buffers)"
        )


def _initialise_module(model: nn.Module, name: str, module: nn.Module, seed: int, done: set[int]) -> None:
    """Draw the module's own parameters in full, then keep this rank's shard of those that are not in `done`."""
    owned = dict(module.named_parameters(recurse=False))
    full: dict[str, nn.Parameter] = {}
    for key, parameter in owned.items():
        device = parameter.to_local().device if isinstance(parameter, DTensor) else parameter.device
        full[key] = nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype, device=device))
    with _replaced(module, full), _seeded(seed, name, full):
        model._init_weights(module)
    for key, parameter in owned.items():
        if id(parameter) not in done:
            done.add(id(parameter))
            _keep_shard(parameter, full[key])


def _keep_shard(parameter: nn.Parameter, full: torch.Tensor) -> None:
    if not isinstance(parameter, DTensor):
        parameter.copy_(full)
        return
    shape, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    part = full[tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))]
    parameter.to_local().copy_(part)


@contextlib.contextmanager
def _replaced(module: nn.Module, parameters: dict[str, nn.Parameter]) -> Iterator[None]:
    original = {key: module._parameters[key] for key in parameters}
    module._parameters.update(parameters)
    try:
        yield
    finally:
        module._parameters.update(original)


@contextlib.contextmanager
def _parameters_on_meta(module: nn.Module) -> Iterator[None]:
    """Replace parameters by meta tensors, so that their initialisation costs nothing."""
    owned = dict(module.named_parameters(recurse=False))
    meta = {key: nn.Parameter(torch.empty(value.shape, device="meta")) for key, value in owned.items()}
    with _replaced(module, meta):
        yield


@contextlib.contextmanager
def _seeded(seed: int, name: str, parameters: dict[str, nn.Parameter]) -> Iterator[None]:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    devices = {parameter.device.index or 0 for parameter in parameters.values() if parameter.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices)):
        torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        yield


def _unsaved_buffers(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield name and value of buffers that are not in checkpoints."""
    for name, module in model.named_modules():
        for key in module._non_persistent_buffers_set:
            buffer = module._buffers.get(key)
            if buffer is not None and buffer.numel():
                yield f"{_canonical(name)}.{key}".lstrip("."), buffer


def _poison(model: nn.Module) -> None:
    for _, buffer in _unsaved_buffers(model):
        local = buffer.to_local() if isinstance(buffer, DTensor) else buffer
        local.fill_(_poison_of(local.dtype))


def _is_poisoned(buffer: torch.Tensor) -> bool:
    local = buffer.to_local() if isinstance(buffer, DTensor) else buffer
    if local.is_floating_point():
        return bool(torch.isnan(local).any())
    return bool((local == _poison_of(local.dtype)).all())


def _poison_of(dtype: torch.dtype) -> float | int:
    """Return a value that no restored buffer has: NaN or the smallest integer. For a boolean buffer this is True
    everywhere, so a restored one must contain a False."""
    if dtype.is_floating_point:
        return float("nan")
    return True if dtype == torch.bool else torch.iinfo(dtype).min


def _canonical(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name
