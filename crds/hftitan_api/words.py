"""Converts schema errors of pydantic to messages for users: the field's path in YAML, the problem and the fix."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from hftitan_api import base
from hftitan_api.yamltext import FieldPath

ELSEWHERE = 2
"""If more fields than this have the name of an unknown field, the message does not list them."""

_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_FREE_FORM = ("spec", "model", "overrides")
PROBLEMS = 50
"""Maximum number of reported errors. The search for a similar field name takes about a millisecond per error."""


def _pattern_of(constrained: Any) -> str:
    fields = [meta for meta in constrained.__metadata__ if hasattr(meta, "metadata")]
    return str(next(rule.pattern for meta in fields for rule in meta.metadata if hasattr(rule, "pattern")))


_PATTERNS = {
    _pattern_of(base.Name): "lower-case letters, digits, '-' and '.', with a letter or digit at both ends and next to "
    "each '.'",
    _pattern_of(base.ImageName): "an image, for example ghcr.io/hftitan/trainer:0.1.0",
    _pattern_of(base.Time): "a time in UTC, for example 2026-11-05T14:03:22Z",
    _pattern_of(base.VolumeName): "lower-case letters, digits and '-', with a letter or digit at both ends",
    _pattern_of(base.Quantity): "a Kubernetes quantity, for example 500m, 4 or 16Gi",
    _pattern_of(base.EnvName): "letters, digits and '_', not starting with a digit",
    _pattern_of(base.AbsolutePath): "an absolute path, starting with '/'",
    _pattern_of(base.HubId): "a hub id, for example owner/name",
    _pattern_of(base.ModelName): "a hub id, for example Qwen/Qwen2.5-7B, or the absolute path of a folder",
    _pattern_of(base.Subpath): "a relative path, with no '..' and no part that starts with '.'",
}


def path_text(path: Sequence[str | int]) -> str:
    """Return a path as text: `spec.pod.env[2].name`, `spec.pod.labels["a.b/c"]`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif _PLAIN_KEY.match(part):
            text += f".{_shown(part)}" if text else _shown(part)
        else:
            text += f'["{_shown(part)}"]'
    return text


def schema_problems(
    error: ValidationError, model: type[BaseModel], written: Mapping[FieldPath, str] | None = None
) -> Iterator[tuple[FieldPath, str]]:
    """Yield (path, message) of the first PROBLEMS errors, one per path, in the order of the fields.

    `written` has the text of numbers and booleans in the file: `0012345` is the number 5349.
    """
    written = written or {}
    seen: set[FieldPath] = set()
    for item in error.errors(include_url=False):
        if len(seen) == PROBLEMS:
            return
        path: FieldPath = tuple(part for part in item["loc"] if part != "[key]")
        if path[:3] == _FREE_FORM and len(path) > 3 and "[key]" not in item["loc"]:
            # Each member of the union reports an error; they become one.
            path = path[:4]
            message = "must be true, false, a number or text"
        else:
            message = _message(item, path, model, written.get(path))
        if path not in seen:
            seen.add(path)
            yield path, message


def _message(item: Mapping[str, Any], path: FieldPath, model: type[BaseModel], written: str | None) -> str:
    kind, given, context = item["type"], item.get("input"), item.get("ctx", {})
    match kind:
        case "missing":
            return "is required"
        case "extra_forbidden":
            return _unknown_field(path, model)
        case "literal_error":
            return _not_a_choice(given, context["expected"])
        case "int_type" | "int_from_float":
            return f"must be a whole number, not {_what(given)}"
        case "int_parsing_size":
            return "the number is too large"
        case "float_type" | "finite_number":
            return f"must be a number, not {_what(given)}"
        case "bool_type":
            return f"must be true or false, not {_what(given)}"
        case "string_type":
            if not isinstance(given, int | float):
                return f"must be text, not {_what(given)}"
            text = written or (str(given).lower() if isinstance(given, bool) else given)
            return f'must be text, not {_what(given)}; put it in quotes: "{_shown(text)}"'
        case "list_type":
            return f"must be a list, not {_what(given)}"
        case "dict_type" | "model_type" | "model_attributes_type":
            return f"must be a mapping of fields, not {_what(given)}"
        case "greater_than_equal":
            return f"{_shown(given)} is too small; use at least {_bound(context['ge'])}"
        case "greater_than":
            return f"{_shown(given)} is too small; it must be more than {_bound(context['gt'])}"
        case "less_than_equal":
            return f"{_shown(given)} is too large; use at most {_bound(context['le'])}"
        case "less_than":
            return f"{_shown(given)} is too large; it must be less than {_bound(context['lt'])}"
        case "string_too_short":
            return "is empty"
        case "string_too_long":
            return f"{len(given or '')} characters are too many; use at most {context['max_length']}"
        case "too_long":
            return f"{context['actual_length']} entries are too many; use at most {context['max_length']}"
        case "too_short":
            return f"{context['actual_length']} entries are too few; use at least {context['min_length']}"
        case "string_pattern_mismatch":
            wanted = _PATTERNS.get(context["pattern"], f"text that matches {context['pattern']}")
            return f"{_shown(repr(given))} is not allowed; use {wanted}"
        case _:
            return str(item["msg"])


def _unknown_field(path: FieldPath, model: type[BaseModel]) -> str:
    """Suggest the first of: the same name in other spelling, the same name elsewhere, a similar name, all names."""
    name, known = str(path[-1]), _fields_at(model, path[:-1])
    lowered = {field.lower(): field for field in known}
    close = lowered.get(_plain(name))
    if close is None:
        elsewhere = _paths_named(name, model)
        if 0 < len(elsewhere) <= ELSEWHERE:
            return f"unknown field; did you mean {' or '.join(elsewhere)}?"
        found = difflib.get_close_matches(name.lower(), list(lowered), n=1, cutoff=0.6)
        close = lowered[found[0]] if found else None
    if close is not None:
        return f"unknown field; did you mean {close}?"
    return f"unknown field; valid fields are {', '.join(known)}" if known else "unknown field"


def _plain(name: str) -> str:
    """Return a field's name in lower case, without '_' and '-'."""
    return name.replace("_", "").replace("-", "").lower()


def _paths_named(name: str, model: type[BaseModel], path: str = "") -> list[str]:
    """Return the paths of all fields with this name, for example ["spec.optimizer.lr"] for lr.

    Fields of the status are left out, because users do not write them.
    """
    found = []
    for field_name, field in model.model_fields.items():
        alias = field.alias or field_name
        here = f"{path}.{alias}" if path else alias
        if path and _plain(alias) == _plain(name):
            found.append(here)
        inner = _model_in(field.annotation)
        if inner is not None and here != "status":
            found.extend(_paths_named(name, inner, f"{here}[]" if _is_list(field.annotation) else here))
    return found


def _is_list(annotation: Any) -> bool:
    """Return whether the annotation is `list[X]` or `list[X] | None`."""
    origin = getattr(annotation, "__origin__", None)
    return origin is list or any(_is_list(argument) for argument in getattr(annotation, "__args__", ()))


def _not_a_choice(given: Any, expected: str) -> str:
    choices = re.findall(r"'([^']*)'", expected)
    if len(choices) == 1:
        return f"must be {choices[0]}, not {_what(given)}"
    lowered = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(str(given).lower(), list(lowered), n=1, cutoff=0.6)
    hint = f"; did you mean {lowered[close[0]]}?" if close else ""
    words = [choice or '""' for choice in choices]
    return f"must be {', '.join(words[:-1])} or {words[-1]}, not {_what(given)}{hint}"


def _fields_at(model: type[BaseModel], path: FieldPath) -> list[str]:
    """Return the camelCase field names of the object at a path of the model."""
    current: Any = model
    for part in path:
        if isinstance(part, int):
            continue
        field = next((f for f in current.model_fields.values() if f.alias == part), None)
        current = _model_in(field.annotation) if field is not None else None
        if current is None:
            return []
    return [field.alias or name for name, field in current.model_fields.items()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the model in `X`, `X | None` or `list[X]`, or None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _model_in(argument)
        if found is not None:
            return found
    return None


def _what(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return f"the number {_shown(value)}"
        case str():
            return f"the text {_shown(repr(value))}"
        case Mapping():
            return "a mapping"
        case Sequence():
            return "a list"
        case _:
            return type(value).__name__


def _bound(value: Any) -> str:
    return str(int(value)) if float(value).is_integer() else str(value)


def _shown(value: Any) -> str:
    if isinstance(value, int) and abs(value) >= 10**40:
        return "a number of more than 40 digits"
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
