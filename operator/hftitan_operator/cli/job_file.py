"""Loads the job file of a command, or reports what is wrong with it."""

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
from hftitan_operator.core import admission

STDIN = "-"


class BadInput(Exception):
    """What the user gave cannot be used; one line for each problem."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = tuple(lines)


@dataclass(frozen=True, slots=True)
class JobFile:
    """A job that may run."""

    source: str
    job: HFTitanJob
    config: Mapping[str, Any] | None
    """The model's config.json, where it was found."""
    notes: tuple[str, ...]
    """Checks that were not made, and why."""


def read(source: str) -> str:
    """The text of a job file; `-` is standard input. Raises BadInput."""
    try:
        if source == STDIN:
            return sys.stdin.read()
        return Path(source).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadInput([f"{source}: is no text in UTF-8 (byte {error.start})"]) from error
    except OSError as error:
        raise BadInput([f"{source}: {error.strerror}"]) from error


def parse(source: str, settings: Sequence[str] = ()) -> loading.Loaded:
    """The job of a file with `--set` applied, and the problems with it. Raises BadInput for unreadable input."""
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
    """`spec.training.steps=5` into a job document; the value is YAML. Raises BadInput."""
    path, equals, text = setting.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise BadInput([f"--set {setting}: write a field and a value, such as spec.training.steps=5"])
    try:
        value = yamltext.parse(text).value if text else ""
    except yamltext.YamlError as error:
        raise BadInput([f"--set {path}: {error.message}"]) from error
    target = document
    for depth, key in enumerate(keys[:-1], 1):
        inner = target.setdefault(key, {})
        if not isinstance(inner, dict):
            raise BadInput([f"--set {path}: {'.'.join(keys[:depth])} is no mapping of fields"])
        target = inner
    target[keys[-1]] = value


def accept(source: str, job: HFTitanJob, *, look_for_config: bool = True) -> JobFile:
    """The checks of API and operator on a job that its schema allows. Raises BadInput with every problem."""
    found = model_config.find(job.spec.model) if look_for_config else model_config.Found(None, "not looked for")
    problems = [*loading.admit(job, found.config), *admission.problems(job)]
    if problems:
        raise BadInput(lines(source, problems))
    notes: tuple[str, ...] = ()
    if found.config is None:
        missing = f"config.json of {job.spec.model.name} not available ({found.why_not})"
        notes = (f"{missing}: its heads, layers and experts are not checked",)
    return JobFile(source, job, found.config, notes)


def load(source: str, settings: Sequence[str] = ()) -> JobFile:
    """A job file that passes every check. Raises BadInput."""
    loaded = parse(source, settings)
    if loaded.job is None:
        raise BadInput(lines(source, loaded.problems))
    return accept(source, loaded.job)


def load_defaults(source: str) -> PodDefaults:
    """A file of defaults for jobs. Raises BadInput with every problem."""
    defaults, problems = loading.load_defaults(read(source))
    if defaults is None:
        raise BadInput(lines(source, problems))
    return defaults


def lines(source: str, problems: Sequence[SpecError | loading.Problem]) -> list[str]:
    """`job.yaml: spec.mesh.tp: ...`, each problem once, in the order found."""
    return list(dict.fromkeys(f"{source}: {problem}" for problem in problems))
