"""Finds the model's config.json, for the checks of heads, layers and experts, in a folder, the hub's cache or the hub.

Only this file is downloaded. If it is not available, the checks that need it are skipped and the reason is printed.
huggingface_hub is imported only if the file is not in the cache.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hftitan_api.models import ModelSpec

HUB_TIMEOUT_SECONDS = 6.0
"""Maximum wait for the hub. Without a network its client retries for half a minute, too long for an optional check."""
FALSE_WORDS = frozenset({"", "0", "false", "no", "off"})


@dataclass(frozen=True, slots=True)
class Found:
    """The parsed config.json, or the reason why it is missing."""

    config: Mapping[str, Any] | None
    why_not: str = ""


def find(model: ModelSpec, environ: Mapping[str, str] | None = None) -> Found:
    """Return config.json of a job's model. Never raises."""
    environ = os.environ if environ is None else environ
    if model.name.startswith("/"):
        return _read(Path(model.name, "config.json"))
    cached = _cached(hub_cache(environ), model.name, model.revision or "main")
    if cached is not None:
        return _read(cached)
    if environ.get("HF_HUB_OFFLINE", "").lower() not in FALSE_WORDS:
        return Found(None, "not in the hub's cache, and HF_HUB_OFFLINE is set")
    return _download(model)


def hub_cache(environ: Mapping[str, str]) -> Path:
    """Return the folder of huggingface_hub's downloads."""
    if environ.get("HF_HUB_CACHE"):
        return Path(environ["HF_HUB_CACHE"]).expanduser()
    home = environ.get("HF_HOME") or os.path.join(environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(home).expanduser() / "hub"


def _cached(cache: Path, name: str, revision: str) -> Path | None:
    """Return config.json in the cache, whose layout is documented: refs/<revision> contains a commit, the files are in
    snapshots/<commit>/."""
    folder = cache / f"models--{name.replace('/', '--')}"
    commit = revision
    with contextlib.suppress(OSError, ValueError):  # A commit hash has no ref.
        commit = (folder / "refs" / revision).read_text(encoding="utf-8").strip()
    path = folder / "snapshots" / commit / "config.json"
    return path if path.is_file() else None


def _read(path: Path) -> Found:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        return Found(None, f"{path}: {error.strerror}")
    except ValueError as error:
        return Found(None, f"{path} is not JSON: {error}")
    return Found(config) if isinstance(config, dict) else Found(None, f"{path} is not a JSON object")


def _download(model: ModelSpec) -> Found:
    answers: list[Found] = []

    def ask() -> None:
        try:
            from huggingface_hub import hf_hub_download

            logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)  # it logs each of its retries
            answers.append(_read(Path(hf_hub_download(model.name, "config.json", revision=model.revision))))
        except ImportError:
            answers.append(Found(None, "huggingface_hub is not installed"))
        except Exception as error:  # errors of the hub, of httpx and of the operating system
            answers.append(Found(None, f"download from the hub failed: {type(error).__name__}"))

    asking = threading.Thread(target=ask, name="hftitan-hub", daemon=True)
    asking.start()
    asking.join(HUB_TIMEOUT_SECONDS)
    return answers[0] if answers else Found(None, f"the hub did not answer within {HUB_TIMEOUT_SECONDS:g} s")
