"""Linear layers that multiply in float8 (torchao). Weights, gradients and the export keep their types.

torchtitan's converter (components/quantization/float8.py) rewrites the configs of its own linear layers. Models of
transformers have none, so it would find nothing and say nothing; here the layers themselves are exchanged.
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
"""Of both sizes of a matrix: what tensor cores take in float8."""
_CAPABILITY = (8, 9)


def with_float8(parallelize: Callable[..., nn.Module], recipe: str) -> Callable[..., nn.Module]:
    """`parallelize` of a model whose layers are exchanged first; of each part of it, under pipeline parallelism."""

    def converted(model: nn.Module, **kwargs: Any) -> nn.Module:
        convert(model, recipe, tp=kwargs["parallel_dims"].tp)
        return parallelize(model, **kwargs)

    return converted


def convert(model: nn.Module, recipe: str, *, tp: int) -> None:
    """Exchange the linear layers of `model`, but for its head, for those of torchao's recipe, where the part of each on
    one of `tp` ranks has sizes for it.

    On CPUs, where the rules refuse it, torchao rounds as a GPU would: what the tests compare. Raises UserError when the
    GPU has no float8 or no layer of the model has sizes for it.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    from torchao.float8.float8_linear import Float8Linear

    if device_type == "cuda" and torch.cuda.get_device_capability() < _CAPABILITY:
        raise UserError(
            FIELD,
            f"{recipe} needs GPUs that multiply in float8 (Ada, Hopper or newer); {torch.cuda.get_device_name()} does "
            "not; remove it",
        )
    config = Float8LinearConfig.from_recipe_name(recipe)
    if device_type == "cpu":
        config = dataclasses.replace(config, emulate=True)
    if recipe == "rowwise":
        # As torchtitan does: inductor would leave out roundings that the recipe counts on (pytorch issue 150859).
        torch._inductor.config.emulate_precision_casts = True  # type: ignore[attr-defined]
    multiple = _MULTIPLE * tp

    def fits(module: nn.Module, name: str) -> bool:
        sizes = (module.in_features, module.out_features) if isinstance(module, nn.Linear) else (1,)
        return not any(size % multiple for size in sizes) and name.rpartition(".")[2] != "lm_head"

    convert_to_float8_training(model, config=config, module_filter_fn=fits)
    if not any(isinstance(module, Float8Linear) for module in model.modules()):
        raise UserError(
            FIELD,
            f"{recipe} needs linear layers with sizes that {_MULTIPLE} x tp {tp} = {multiple} divides, and the model "
            "has none; remove it",
        )
