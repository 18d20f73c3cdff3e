"""Parses a job from text or a dict, or returns all its errors in the user's terms.

`load` is for a file, `review` for an object that an API server sent; both end in the same checks, so that what
`hftitan validate` accepts the operator runs.
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
    """One thing to change: `str()` gives `spec.mesh.tp: 3 does not divide ...`."""

    path: str
    """The field, empty when the text as a whole is meant."""
    message: str
    line: int | None = None
    """In the file, counted from 1, where there is one."""

    def __str__(self) -> str:
        if self.path:
            return f"{self.path}: {self.message}"
        return self.message if self.line is None else f"line {self.line}: {self.message}"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A job, or the reasons why there is none; a job that may not run has both."""

    job: HFTitanJob | None
    problems: tuple[Problem, ...] = ()

    @property
    def ok(self) -> bool:
        return self.job is not None and not self.problems


def load(text: str | bytes, model_config: Mapping[str, Any] | None = None) -> Loaded:
    """Read the YAML (or JSON) of one job. Never raises for what the text holds.

    A `status` in the file is ignored, as the API server does. `model_config`: the model's config.json, if at hand.
    """
    try:
        document = parse(text)
    except YamlError as error:
        return Loaded(None, (Problem("", error.message, error.line),))
    if not isinstance(document.value, dict):
        return Loaded(None, (Problem("", "this is no job; it starts with apiVersion, kind, metadata and spec", 1),))
    value = {key: item for key, item in document.value.items() if key != "status"}
    return _review(value, model_config, document)


def review(obj: Mapping[str, Any], model_config: Mapping[str, Any] | None = None) -> Loaded:
    """The same for an object as the API server holds it, status included."""
    return _review(obj, model_config, None)


def _review(obj: Mapping[str, Any], model_config: Mapping[str, Any] | None, document: Document | None) -> Loaded:
    read = parse_object(obj, document)
    if read.job is None:
        return read
    lines = {path_text(path): line for path, line in document.lines.items()} if document else {}
    found = [Problem(e.path, e.message, _line(lines, e.path)) for e in admit(read.job, model_config)]
    return Loaded(read.job, (*read.problems, *found))


def parse_object(obj: Mapping[str, Any], document: Document | None = None) -> Loaded:
    """Only the schema: what each field may hold by itself. An object of any shape is answered."""

    def problem(path: FieldPath, message: str) -> Problem:
        return Problem(path_text(path), message, document.line_of(path) if document else None)

    problems = []
    for key, wanted in (("apiVersion", API_VERSION), ("kind", KIND)):
        if key not in obj:
            problems.append(problem((key,), f"is required: {wanted}"))
    try:
        # Strict: "3" is no number to an API server either. By alias: it would drop `gpus_per_node` in silence.
        job = HFTitanJob.model_validate(_without_nulls(obj), strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        problems += [problem(path, message) for path, message in schema_problems(error, HFTitanJob)]
        return Loaded(None, tuple(problems))
    return Loaded(job, tuple(problems))


def load_defaults(text: str | bytes) -> tuple[PodDefaults | None, tuple[Problem, ...]]:
    """Read the YAML of a cluster's defaults for jobs: some fields of spec.pod, at the top level; or the problems."""
    try:
        document = parse(text)
    except YamlError as error:
        return None, (Problem("", error.message, error.line),)
    value = document.value
    if not isinstance(value, dict):
        return None, (Problem("", "must hold fields of spec.pod, for example `image: registry/trainer:1`", 1),)
    try:
        defaults = PodDefaults.model_validate(_without_nulls(value), strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        found = schema_problems(error, PodDefaults)
        return None, tuple(Problem(path_text(path), message, document.line_of(path)) for path, message in found)
    # What holds beyond the schema is asked of a job that has them.
    job = HFTitanJob.model_validate({**_ANY_JOB, "spec": {**_ANY_JOB["spec"], "pod": defaults.to_dict()}})
    problems = [Problem(e.path.removeprefix("spec.pod").removeprefix("."), e.message) for e in admit(job)]
    return (None if problems else defaults), tuple(problems)


_ANY_JOB: dict[str, Any] = {
    "metadata": {"name": "any"},
    "spec": {"model": {"name": "any"}, "dataset": {"name": "any"}, "training": {"steps": 1}},
}


def _line(lines: Mapping[str, int], path: str) -> int | None:
    """Line of a field, or of the nearest one around it."""
    while path:
        if path in lines:
            return lines[path]
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
    return None


def _without_nulls(value: Any) -> Any:
    """A field without a value is an absent one: the API server prunes nulls before it fills in defaults."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
