"""Writes the exported folder's README.md: a model card for the hub, from the job's spec and results.

The same job and training give the same text, byte for byte (no time of day), so a second push changes nothing. Of local
folders only the last part of the path appears, since the card may be published.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from hftitan_trainer.process.report import redact

if TYPE_CHECKING:
    from hftitan_api.models import DatasetSpec
    from hftitan_api.wire import MeshDegrees, TrainerSpec
    from hftitan_trainer.model.folder import ModelFolder

_LIBRARIES = ("hftitan", "torchtitan", "torch", "transformers", "tokenizers", "datasets", "safetensors")
_LICENSE_KEYS = ("license", "license_name", "license_link", "language")
_HUB = "https://huggingface.co"


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """The results of the training; None if unknown."""

    step: int
    loss: float | None = None
    tokens: int | None = None
    validation_loss: float | None = None

    @classmethod
    def of_journal(cls, journal: Path, step: int) -> TrainingResult:
        """Read the result from metrics.jsonl, which survives restarts: the last line of each kind for `step`."""
        found: dict[str, dict[str, Any]] = {}
        try:
            with journal.open(encoding="utf-8") as lines:
                for line in lines:
                    entry = json.loads(line)
                    if entry.get("step") == step:
                        found[entry.get("kind", "")] = entry
        except (OSError, ValueError, AttributeError):
            pass
        last, validation = found.get("step", {}), found.get("validation", {})
        return cls(step, last.get("loss"), last.get("tokensSeen"), validation.get("loss"))


def model_card(spec: TrainerSpec, model: ModelFolder, result: TrainingResult) -> str:
    """Return the text of README.md, with YAML front matter."""
    sections = [
        f"# {spec.job_name}",
        _origin(spec, model),
        "## Data",
        " ".join(_datasets(spec)),
        "## Result",
        _table(_outcome(result)),
        "## Hyper-parameters",
        _table(_hyper_parameters(spec)),
        "## Versions",
        _table({**_versions(), "Python": platform.python_version()}),
    ]
    return redact(f"---\n{_front_matter(spec, model)}\n---\n\n" + "\n\n".join(sections) + "\n")


def _front_matter(spec: TrainerSpec, model: ModelFolder) -> str:
    from huggingface_hub import ModelCardData

    values: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["torchtitan", "hftitan"],
    }
    if model.pretrained:
        values |= _licence(model.path)
        if not spec.model.name.startswith("/"):
            values |= {"base_model": spec.model.name, "base_model_relation": "finetune"}
    if spec.dataset.name is not None:
        values["datasets"] = [spec.dataset.name]
    return ModelCardData(**values).to_yaml().strip()


def _licence(folder: Path) -> dict[str, Any]:
    """Return the licence from the base model's card: it also applies to models trained from its weights."""
    from huggingface_hub import ModelCard

    try:
        theirs = ModelCard.load(folder / "README.md", ignore_metadata_errors=True).data.to_dict()
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return {key: theirs[key] for key in _LICENSE_KEYS if theirs.get(key)}


def _origin(spec: TrainerSpec, model: ModelFolder) -> str:
    name = spec.model.name
    base = _folder(name) if name.startswith("/") else f"[{name}]({_HUB}/{name})"
    revision = f" at revision `{model.revision}`" if model.revision else ""
    changed = ", ".join(f"{key} = {value}" for key, value in sorted(spec.model.overrides.items()))
    with_changes = f", with {_code(changed)} in its config" if changed else ""
    if model.pretrained:
        return f"A fine-tuned version of {base}{revision}{with_changes}."
    return f"Trained from random weights with the config and tokenizer of {base}{revision}{with_changes}."


def _datasets(spec: TrainerSpec) -> Iterator[str]:
    yield _data(spec.dataset, "Trained on")
    if spec.validation is not None:
        yield _data(spec.validation.dataset, "Validated on")


def _data(dataset: DatasetSpec, done: str) -> str:
    name = dataset.name
    parts = [f"[{name}]({_HUB}/datasets/{name})" if name else _folder(dataset.path or "")]
    if name:
        parts += [f"config {_code(dataset.config)}"] if dataset.config else []
        parts.append(f"split {_code(dataset.split)}")
    if dataset.messages_field:
        parts.append(f"chats in {_code(dataset.messages_field)}, loss on assistant turns")
    elif dataset.text_field:
        parts.append(f"text in {_code(dataset.text_field)}")
    return f"{done} {', '.join(parts)}."


def _outcome(result: TrainingResult) -> dict[str, Any]:
    return {
        "Steps": result.step,
        "Tokens": None if result.tokens is None else f"{result.tokens:,}",
        "Loss of the last step": None if result.loss is None else f"{result.loss:.5f}",
        "Validation loss": None if result.validation_loss is None else f"{result.validation_loss:.5f}",
    }


def _hyper_parameters(spec: TrainerSpec) -> dict[str, Any]:
    training, optimizer, schedule = spec.training, spec.optimizer, spec.lr_schedule
    on_cpu = spec.mesh.device == "cpu"
    steps = f"the last {schedule.decay_ratio:g} of the steps"
    decay = f"{schedule.decay_type} over {steps}, to a factor of {schedule.min_lr_factor:g}"
    return {
        "Sequence length": training.seq_len,
        "Sequences per step": training.global_batch_size or training.local_batch_size * spec.mesh.dp,
        "Optimizer": optimizer.name,
        "Learning rate": f"{optimizer.lr:g}",
        "Betas": ", ".join(f"{beta:g}" for beta in optimizer.betas),
        "Epsilon": f"{optimizer.eps:g}",
        "Weight decay": f"{optimizer.weight_decay:g}",
        "Warm-up steps": schedule.warmup_steps,
        "Decay": decay if schedule.decay_ratio else "none",
        "Maximum gradient norm": f"{training.max_norm:g}",
        "Dtype of weights and optimizer": training.dtype,
        "Dtype of computation": training.mixed_precision or ("float32" if on_cpu else "bfloat16"),
        "Dtype of exported weights": spec.checkpoint.export_dtype,
        "Seed": training.seed,
        "Mesh": _mesh(spec.mesh),
    }


def _mesh(mesh: MeshDegrees) -> str:
    axes = ("dp_replicate", "dp_shard", "cp", "tp", "pp", "ep")
    used = [f"{axis} {getattr(mesh, axis)}" for axis in axes if getattr(mesh, axis) > 1]
    each = "GPUs" if mesh.device == "gpu" else "CPU processes"
    return f"{mesh.nodes} x {mesh.ranks_per_node} {each}" + (f": {', '.join(used)}" if used else "")


def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # not installed as a package
            continue
    return found


def _table(rows: dict[str, Any]) -> str:
    return "\n".join(
        ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items() if value is not None)]
    )


def _folder(path: str) -> str:
    return f"local files {_code(Path(path).name)}"


def _code(text: str) -> str:
    return "`" + text.replace("`", "'").replace("|", "/").replace("\n", " ") + "`"
