"""The trainer that runs in the pods: trains a Hugging Face causal LM with torchtitan.

api.py is a small Python API. Its names are imported on first use, so `import hftitan_trainer` loads neither torch nor
torchtitan.
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
