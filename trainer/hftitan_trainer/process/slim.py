"""Keeps unused modules out of torchtitan's import, which saves about four seconds.

Upstream: torchtitan.trainer imports components/validate.py, whose default data loader imports `datasets` with pandas
and pyarrow. data/loader.py replaces that loader, and imports `datasets` only for Parquet files and the hub.
"""

from __future__ import annotations

import sys
from types import ModuleType

TEXT_DATASETS = "torchtitan.hf_datasets.text_datasets"
_NAMES = (
    "HuggingFaceTextDataLoader",
    "InterleavedHuggingFaceTextDataLoader",
    "ChatDataLoader",
    "InterleavedChatDataLoader",
)


def install() -> None:
    """Put a stand-in for torchtitan's text datasets into sys.modules, unless the real module is loaded. Idempotent.

    Its loaders have a Config, which upstream's defaults need, but cannot be built.
    """
    if TEXT_DATASETS in sys.modules:
        return
    module = ModuleType(TEXT_DATASETS, "Stand-in: see hftitan_trainer.process.slim.")
    module.__getattr__ = _loader  # type: ignore[method-assign]
    sys.modules[TEXT_DATASETS] = module


def _loader(name: str) -> type:
    """Module-level __getattr__. Creates loaders on demand, since torchtitan must be imported after the stand-in is in
    place."""
    if name not in _NAMES:
        raise AttributeError(f"{TEXT_DATASETS} is replaced by hftitan_trainer.process.slim and has no {name}")
    from dataclasses import dataclass

    from torchtitan.components.dataloader import BaseDataLoader

    class Unused(BaseDataLoader):
        @dataclass(kw_only=True, slots=True)
        class Config(BaseDataLoader.Config):
            infinite: bool = True

        def __init__(self, config: Config, **_kwargs: object) -> None:
            raise NotImplementedError(f"{name} is replaced by hftitan_trainer.data.PackedDataLoader")

        def __iter__(self):  # type: ignore[no-untyped-def]
            raise NotImplementedError

        def state_dict(self) -> dict[str, object]:
            return {}

        def load_state_dict(self, state_dict: dict[str, object]) -> None:
            """Do nothing: there is no state."""

    setattr(sys.modules[TEXT_DATASETS], name, Unused)
    return Unused
