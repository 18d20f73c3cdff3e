"""The in-pod trainer: a Hugging Face causal LM through torchtitan.

Also a small Python API (see api.py). Its names are imported on first use: `import hftitan_trainer` loads neither torch
nor torchtitan.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hftitan_trainer.api import HFTransformerModel, JobConfig, ModelArgs

__all__ = ["HFTransformerModel", "JobConfig", "ModelArgs"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from hftitan_trainer import api

    return getattr(api, name)
