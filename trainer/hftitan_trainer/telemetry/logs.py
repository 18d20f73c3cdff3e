"""Log format: one short line per message. Rank 0 logs progress, every rank logs warnings, and secrets are removed."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import MutableMapping

from hftitan_trainer.process.report import redact

ENV_LEVEL = "HFTITAN_LOG_LEVEL"
"""Environment variable; `debug` also shows the messages of torchtitan and the libraries."""

_QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


class _Formatter(logging.Formatter):
    def __init__(self, rank: int) -> None:
        super().__init__(f"%(asctime)s [rank {rank}] %(levelname)s %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


class _Ours(logging.Filter):
    """Below errors, only messages of this package: torchtitan logs its many lines through the root logger."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR or record.name.startswith("hftitan_trainer")


def configure(rank: int, env: MutableMapping[str, str] | None = None) -> None:
    """Set up logging for this process, before the libraries are imported. Idempotent."""
    env = os.environ if env is None else env
    debug = env.get(ENV_LEVEL, "").lower() == "debug"
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_Formatter(rank))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if debug else logging.INFO)
    if debug:
        return
    handler.addFilter(_Ours())
    handler.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    warnings.simplefilter("ignore")
    # Has its own handler, and warns in every process about torchao, which transformers imports.
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    for name, value in _QUIET.items():
        env.setdefault(name, value)
