"""Linear layers that multiply in float8 (torchao). Weights, gradients and the export keep their types.

torchtitan's converter (components/quantization/float8.py) rewrites the configs of its own linear layers. transformers
models have none, so it would silently do nothing. Here the layers themselves are replaced.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torchtitan.tools.utils import device_type

from hftitan_trainer.process.errors import UserError

FIELD = "spec.training.float8"
_MULTIPLE = 16
"""Float8 tensor cores need both sizes of a matrix to be multiples of this."""
_CAPABILITY = (8, 9)


def with_float8(parallelize: Callable[..., nn.Module], recipe: str) -> Callable[..., nn.Module]:
    """Return `parallelize` with the layers converted first. Under pipeline parallelism, each part of the model is
    converted."""

    def converted(model: nn.Module, **kwargs: Any) -> nn.Module:
        convert(model, recipe, tp=kwargs["parallel_dims"].tp)
        return parallelize(model, **kwargs)

    return converted


def convert(model: nn.Module, recipe: str, *, tp: int) -> None:
    """Replace the linear layers of `model` by those of torchao's recipe.

    Skips the head, and layers whose shard on one of `tp` ranks has sizes that float8 does not support. On CPUs, where
    the rules refuse float8, torchao emulates a GPU's rounding for the tests. Raises UserError if the GPU has no float8,
    or if no layer of the model has suitable sizes.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    from torchao.float8.float8_linear import Float8Linear

    if device_type == "cuda" and torch.cuda.get_device_capability() < _CAPABILITY:
        raise UserError(
            FIELD,
            f"{recipe} needs GPUs with float8 (Ada, Hopper or newer), but this GPU is {torch.cuda.get_device_name()}; "
            "remove it",
        )
    config = Float8LinearConfig.from_recipe_name(recipe)
    if device_type == "cpu":
        config = dataclasses.replace(config, emulate=True)
    if recipe == "rowwise":
        # As torchtitan does: otherwise inductor omits roundings that the recipe relies on (pytorch issue 150859).
        torch._inductor.config.emulate_precision_casts = True  # type: ignore[attr-defined]
    multiple = _MULTIPLE * tp

    def fits(module: nn.Module, name: str) -> bool:
        sizes = (module.in_features, module.out_features) if isinstance(module, nn.Linear) else (1,)
        return not any(size % multiple for size in sizes) and name.rpartition(".")[2] != "lm_head"

    convert_to_float8_training(model, config=config, module_filter_fn=fits)
    if not any(isinstance(module, Float8Linear) for module in model.modules()):
        raise UserError(
            FIELD,
            f"{recipe} needs linear layers whose sizes are multiples of {_MULTIPLE} x tp {tp} = {multiple}, but the "
            "model has none; remove it",
        )
