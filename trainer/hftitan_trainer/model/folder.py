"""Fetches the model folder at one revision, reads its config, and checks it before any rank builds the model.

Imports transformers, but not torchtitan and no model class: it runs in every pod before the process group exists.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hftitan_trainer.process.errors import NetworkError, UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from hftitan_api.models import ModelSpec

TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template*",
    "*.jinja",
    "additional_chat_templates/*",
)
SMALL_FILES = (*TOKENIZER_FILES, "*.json", "LICENSE*", "README.md")  # the model card needs the licence
IGNORED_FILES = ("original/*", "consolidated*", "onnx/*", "*.onnx", "*.gguf", "runs/*")


@dataclass(frozen=True)
class ModelFolder:
    """One model on this machine's disk."""

    path: Path
    revision: str | None
    """Commit hash on the hub; None for a local folder."""
    config: PretrainedConfig
    """transformers' config with the spec's overrides. The export writes it."""
    pretrained: bool
    """Whether weights are loaded from `path`."""
    trust_remote_code: bool = False

    @property
    def tied(self) -> bool:
        """Whether input and output embedding are one weight."""
        return bool(getattr(self.config, "tie_word_embeddings", False))


def fetch_model(spec: ModelSpec) -> ModelFolder:
    """Download or find the model of `spec` and read its config.

    Hub downloads go to the Hugging Face cache. Several processes of a node may call this at once, since huggingface_hub
    locks each file. Raises UserError with the field if the model is missing, gated, without safetensors, of a type that
    cannot be trained, or needs code that is not trusted. Raises NetworkError if the hub does not answer.
    """
    local = spec.name.startswith("/")
    path = Path(spec.name) if local else _snapshot(spec)
    if not (path / "config.json").is_file():
        what = "has no config.json" if path.is_dir() else "is not a folder that this process can read"
        raise UserError("spec.model.name", f"{path} {what}; give a hub id or the folder of a transformers model")
    config = _read_config(path, spec)
    pretrained = spec.initialize == "pretrained"
    _check_trainable(config, spec)
    if pretrained:
        weight_files(path, spec.name)
    revision = None if local else path.name
    return ModelFolder(
        path=path, revision=revision, config=config, pretrained=pretrained, trust_remote_code=spec.trust_remote_code
    )


def weight_files(path: Path, name: str) -> list[Path]:
    """Return the safetensors files of a model folder, from its index if it has one.

    Raises UserError if there are none, or if a file in the index is missing.
    """
    index = path / "model.safetensors.index.json"
    if index.is_file():
        files = sorted({path / file for file in json.loads(index.read_text())["weight_map"].values()})
        missing = [file.name for file in files if not file.exists()]
        if missing:
            raise UserError(
                "spec.model.name", f"{name} lacks {missing[0]}, which is in its safetensors index; add the missing file"
            )
        return files
    files = sorted(path.glob("model*.safetensors")) or sorted(path.glob("*.safetensors"))
    if files:
        return files
    other = [file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.h5", "*.gguf") for file in path.glob(pattern)]
    has = f"it has only {', '.join(sorted(other)[:3])}" if other else "it has no weights"
    raise UserError(
        "spec.model.name",
        f"{name} has no safetensors weights ({has}); convert it with save_pretrained, choose a revision that has them, "
        "or set spec.model.initialize: random",
    )


def weight_shapes(path: Path, name: str) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor in the folder's safetensors files, from their headers."""
    from safetensors import safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for file in weight_files(path, name):
        with safe_open(file, framework="pt") as tensors:
            shapes.update({key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()})  # noqa: SIM118
    return shapes


def _snapshot(spec: ModelSpec) -> Path:
    """Download the files that training needs at one revision. Return the snapshot folder."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    wanted = list(SMALL_FILES)
    if spec.trust_remote_code:
        wanted.append("*.py")
    if spec.initialize == "pretrained":
        wanted.append("*.safetensors")
    at = f" at revision {spec.revision}" if spec.revision else ""
    try:
        folder = snapshot_download(
            spec.name, revision=spec.revision, allow_patterns=wanted, ignore_patterns=list(IGNORED_FILES)
        )
    except GatedRepoError as error:
        raise UserError(
            "spec.model.name",
            f"{spec.name} is gated: accept its terms on the hub, and set spec.pod.hfTokenSecret (HF_TOKEN) to a token "
            "of that account",
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(
            "spec.model.revision",
            f"{spec.name} has no revision {spec.revision}; set an existing branch, tag or commit",
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            "spec.model.name",
            f"the hub has no model {spec.name}, or it is private and the token (spec.pod.hfTokenSecret) cannot read it",
        ) from error
    except LocalEntryNotFoundError as error:
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
            raise UserError(
                "spec.model.name",
                f"{spec.name}{at} is not in the Hugging Face cache and HF_HUB_OFFLINE is set; download it first, or "
                "set a local folder",
            ) from error
        raise NetworkError(f"the hub cannot be reached, and {spec.name}{at} is not in the cache: {error}") from error
    except HfHubHTTPError as error:
        raise NetworkError(f"the hub refused {spec.name}{at}: {error}") from error
    return Path(folder)


def _read_config(path: Path, spec: ModelSpec) -> PretrainedConfig:
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    try:
        raw: dict[str, Any] = json.loads((path / "config.json").read_text())
    except ValueError as error:
        raise UserError("spec.model.name", f"{path / 'config.json'} is not valid JSON: {error}") from error
    kind = raw.get("model_type", "")
    if kind not in CONFIG_MAPPING and not spec.trust_remote_code:
        if raw.get("auto_map"):
            raise UserError(
                "spec.model.trustRemoteCode",
                f"{spec.name} (model_type {kind!r}) needs its own Python code; review that code, then set true to "
                "run it",
            )
        raise UserError(
            "spec.model.name",
            f"{spec.name} has model_type {kind!r}, which this version of transformers does not support",
        )
    if raw.get("quantization_config"):
        raise UserError("spec.model.name", f"{spec.name} is quantized; train the original, unquantized weights instead")
    unknown = sorted(set(spec.overrides) - set(raw))
    # transformers adds keys that a config.json omits (head_dim, rope_theta), so check the class, not the file.
    with _refusals("spec.model.name", f"transformers refuses the config of {spec.name}"):
        config = AutoConfig.from_pretrained(path, trust_remote_code=spec.trust_remote_code)
    for key in unknown:
        if not hasattr(config, key):
            raise UserError(f"spec.model.overrides.{key}", f"no such key in the config of {spec.name}")
    if spec.overrides:
        config = _overridden(config, raw, dict(spec.overrides))
    return config


def _overridden(config: PretrainedConfig, raw: dict[str, Any], overrides: dict[str, Any]) -> PretrainedConfig:
    """Rebuild the config with `overrides`, so that values derived from them (head_dim, layer_types) change too."""
    derived = {"layer_types", "head_dim"} - set(raw) - set(overrides)
    merged = {key: value for key, value in {**raw, **overrides}.items() if key not in derived}
    if "num_hidden_layers" in overrides and "layer_types" in merged and "layer_types" not in overrides:
        merged["layer_types"] = merged["layer_types"][: overrides["num_hidden_layers"]]
    with _refusals("spec.model.overrides", "transformers refuses the config"):
        return type(config).from_dict(merged)


@contextlib.contextmanager
def _refusals(path: str, what: str) -> Iterator[None]:
    """Convert errors of transformers' config validation to UserError."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (StrictDataclassError, ValueError, TypeError, KeyError) as error:
        cause = error.__cause__ or error
        raise UserError(path, f"{what}: {cause}") from error


def _check_trainable(config: PretrainedConfig, spec: ModelSpec) -> None:
    """Refuse model types that the backend cannot build correctly. For the others, set the class to build."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = config.model_type
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
    remote = spec.trust_remote_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if known is None and not remote:
        raise UserError("spec.model.name", f"{spec.name} (model_type {kind}) is not a causal language model")
    if getattr(config, "text_config", None) is not None or getattr(config, "is_encoder_decoder", False):
        raise UserError(
            "spec.model.name",
            f"{spec.name} (model_type {kind}) is not a text-only decoder; use the text-only checkpoint of the family",
        )
    if not remote and isinstance(known, str):
        # Upstream builds architectures[0] (model.py). A config may have no entry, or the base or classification class
        # that it was saved from.
        config.architectures = [known]
