"""Loads the job file of a command, or reports its errors."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hftitan_api import load as loading
from hftitan_api import yamltext
from hftitan_api.models import HFTitanJob, PodDefaults
from hftitan_api.rules import SpecError
from hftitan_operator.cli import model_config
from hftitan_operator.core.rendering import admission

STDIN = "-"


class BadInput(Exception):
    """Invalid input from the user; one line per problem."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = tuple(lines)


@dataclass(frozen=True, slots=True)
class JobFile:
    """A job that passed every check."""

    source: str
    job: HFTitanJob
    config: Mapping[str, Any] | None
    """The model's config.json; None if it is not available."""
    notes: tuple[str, ...]
    """Checks that were skipped, and why."""


def read(source: str) -> str:
    """Return the text of a job file; `-` is standard input. Raises BadInput."""
    try:
        if source == STDIN:
            return sys.stdin.read()
        return Path(source).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadInput([f"{source}: is not UTF-8 text (byte {error.start})"]) from error
    except OSError as error:
        raise BadInput([f"{source}: {error.strerror}"]) from error


def parse(source: str, settings: Sequence[str] = ()) -> loading.Loaded:
    """Return the job of a file with `--set` applied, and its problems. Raises BadInput for unreadable input."""
    text = read(source)
    if not settings:
        return loading.load(text)
    try:
        value = yamltext.parse(text).value
    except yamltext.YamlError as error:
        raise BadInput([f"{source}: {error}"]) from error
    if not isinstance(value, dict):
        return loading.load(text)
    for setting in settings:
        apply_setting(value, setting)
    return loading.review({key: item for key, item in value.items() if key != "status"})


def apply_setting(document: dict[str, Any], setting: str) -> None:
    """Apply a `--set` such as `spec.training.steps=5` to a job document; the value is YAML. Raises BadInput."""
    path, equals, text = setting.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise BadInput([f"--set {setting}: use FIELD=VALUE, such as spec.training.steps=5"])
    try:
        value = yamltext.parse(text).value if text else ""
    except yamltext.YamlError as error:
        raise BadInput([f"--set {path}: {error.message}"]) from error
    target = document
    for depth, key in enumerate(keys[:-1], 1):
        inner = target.setdefault(key, {})
        if not isinstance(inner, dict):
            raise BadInput([f"--set {path}: {'.'.join(keys[:depth])} is not a mapping"])
        target = inner
    target[keys[-1]] = value


def accept(source: str, job: HFTitanJob, *, look_for_config: bool = True) -> JobFile:
    """Run the checks of the API and the operator on a job with a valid schema. Raises BadInput with every problem."""
    found = model_config.find(job.spec.model) if look_for_config else model_config.Found(None, "not requested")
    problems = [*loading.admit(job, found.config), *admission.problems(job)]
    if problems:
        raise BadInput(lines(source, problems))
    notes: tuple[str, ...] = ()
    if found.config is None:
        missing = f"config.json of {job.spec.model.name} not available ({found.why_not})"
        notes = (f"{missing}: heads, layers and experts of the model are not checked",)
    return JobFile(source, job, found.config, notes)


def load(source: str, settings: Sequence[str] = ()) -> JobFile:
    """Load a job file and run every check. Raises BadInput."""
    loaded = parse(source, settings)
    if loaded.job is None:
        raise BadInput(lines(source, loaded.problems))
    return accept(source, loaded.job)


def load_defaults(source: str) -> PodDefaults:
    """Load a file of job defaults. Raises BadInput with every problem."""
    defaults, problems = loading.load_defaults(read(source))
    if defaults is None:
        raise BadInput(lines(source, problems))
    return defaults


def lines(source: str, problems: Sequence[SpecError | loading.Problem]) -> list[str]:
    """Return lines such as `job.yaml: spec.mesh.tp: ...`, without duplicates, in the order found."""
    return list(dict.fromkeys(f"{source}: {problem}" for problem in problems))
