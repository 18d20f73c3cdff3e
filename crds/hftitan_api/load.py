"""Parses a job from text or a dict, or returns all its errors with field paths and lines.

`load` reads a file, `review` an object of the API server. Both apply the same checks, so that the operator runs every
job that `hftitan validate` accepts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from hftitan_api.admit import admit
from hftitan_api.models import API_VERSION, KIND, HFTitanJob, PodDefaults
from hftitan_api.words import path_text, schema_problems
from hftitan_api.yamltext import Document, FieldPath, YamlError, parse

__all__ = ["Loaded", "Problem", "admit", "load", "load_defaults", "parse_object", "review"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One error. Its `str()` is, for example, `spec.mesh.tp: 3 does not divide ...`."""

    path: str
    """Path of the field. Empty if the error concerns the whole text."""
    message: str
    line: int | None = None
    """Line in the file, from 1, if known."""

    def __str__(self) -> str:
        if self.path:
            return f"{self.path}: {self.message}"
        return self.message if self.line is None else f"line {self.line}: {self.message}"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A job and its problems. `job` is None if the schema rejects it."""

    job: HFTitanJob | None
    problems: tuple[Problem, ...] = ()

    @property
    def ok(self) -> bool:
        return self.job is not None and not self.problems


def load(text: str | bytes, model_config: Mapping[str, Any] | None = None) -> Loaded:
    """Parse the YAML or JSON of one job. Never raises for invalid text.

    A `status` in the file is ignored, as by the API server. `model_config` is the model's config.json, if known.
    """
    try:
        document = parse(text)
    except YamlError as error:
        return Loaded(None, (Problem("", error.message, error.line),))
    if not isinstance(document.value, dict):
        return Loaded(None, (Problem("", "this is not a job; write apiVersion, kind, metadata and spec", 1),))
    value = {key: item for key, item in document.value.items() if key != "status"}
    return _review(value, model_config, document)


def review(obj: Mapping[str, Any], model_config: Mapping[str, Any] | None = None) -> Loaded:
    """Check an object of the API server, including its status."""
    return _review(obj, model_config, None)


def _review(obj: Mapping[str, Any], model_config: Mapping[str, Any] | None, document: Document | None) -> Loaded:
    read = parse_object(obj, document)
    if read.job is None:
        return read
    lines = {path_text(path): line for path, line in document.lines.items()} if document else {}
    found = [Problem(e.path, e.message, _line(lines, e.path)) for e in admit(read.job, model_config)]
    return Loaded(read.job, (*read.problems, *found))


def parse_object(obj: Mapping[str, Any], document: Document | None = None) -> Loaded:
    """Apply only the schema. Never raises, whatever the object contains."""

    def problem(path: FieldPath, message: str) -> Problem:
        return Problem(path_text(path), message, document.line_of(path) if document else None)

    problems = []
    for key, wanted in (("apiVersion", API_VERSION), ("kind", KIND)):
        if key not in obj:
            problems.append(problem((key,), f"is required; set it to {wanted}"))
    try:
        # As the API server: "3" is not a number (strict), and `gpus_per_node` is an unknown field (by alias only).
        job = HFTitanJob.model_validate(_without_nulls(obj), strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        written = document.written if document else None
        problems += [problem(path, message) for path, message in schema_problems(error, HFTitanJob, written)]
        return Loaded(None, tuple(problems))
    return Loaded(job, tuple(problems))


def load_defaults(text: str | bytes) -> tuple[PodDefaults | None, tuple[Problem, ...]]:
    """Parse the YAML of a cluster's defaults for jobs: fields of spec.pod at the top level.

    Returns (defaults, ()) or (None, problems).
    """
    try:
        document = parse(text)
    except YamlError as error:
        return None, (Problem("", error.message, error.line),)
    value = document.value
    if not isinstance(value, dict):
        return None, (Problem("", "must contain fields of spec.pod, for example `image: registry/trainer:1`", 1),)
    try:
        defaults = PodDefaults.model_validate(_without_nulls(value), strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        found = schema_problems(error, PodDefaults, document.written)
        return None, tuple(Problem(path_text(path), message, document.line_of(path)) for path, message in found)
    # The rules beyond the schema need a whole job.
    job = HFTitanJob.model_validate({**_ANY_JOB, "spec": {**_ANY_JOB["spec"], "pod": defaults.to_dict()}})
    problems = [Problem(e.path.removeprefix("spec.pod").removeprefix("."), e.message) for e in admit(job)]
    return (None if problems else defaults), tuple(problems)


_ANY_JOB: dict[str, Any] = {
    "metadata": {"name": "any"},
    "spec": {"model": {"name": "any"}, "dataset": {"name": "any"}, "training": {"steps": 1}},
}


def _line(lines: Mapping[str, int], path: str) -> int | None:
    """Return the line of a field, or of its nearest parent."""
    while path:
        if path in lines:
            return lines[path]
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
    return None


def _without_nulls(value: Any) -> Any:
    """Drop fields that are null. The API server does this before it applies defaults."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
