"""Generates docs/spec.md, the reference of the job file, from the schema.

python -m hftitan_api.reference > docs/spec.md
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from hftitan_api.crd import crd

Schema = dict[str, Any]

HEAD = """\
# The job file

<!-- Generated from crds/hftitan_api by `make generate`; do not edit. -->

A job has `apiVersion: hftitan.io/v1alpha1`, `kind: HFTitanJob`, `metadata.name` and `spec`. This page lists the fields
of `spec`. Required fields are **bold**. The default follows the type.

`hftitan validate job.yaml` lists all errors at once, each with its field and the fix. Only fields in `spec.runPolicy`
can change while a job exists.
"""
STATUS = """\
## status

Only the operator writes the status. To see it: `kubectl get htj NAME -o yaml`.
"""
KUBERNETES = frozenset({"affinity"})
"""Fields whose content the Kubernetes documentation describes."""


def text() -> str:
    """Return the page as Markdown."""
    version = crd()["spec"]["versions"][0]
    top = version["schema"]["openAPIV3Schema"]["properties"]
    parts = [HEAD]
    for name, section in top["spec"]["properties"].items():
        parts += list(_section(f"spec.{name}", section, level=2))
    rules = [rule["message"] for rule in top["spec"]["x-kubernetes-validations"] if "oldSelf" not in rule["rule"]]
    parts += ["## Rules between sections\n", _list(rules)]
    parts += [STATUS, *_rows("status", top["status"])]
    return "\n".join(parts)


def _section(path: str, schema: Schema, level: int) -> Iterator[str]:
    yield f"{'#' * level} {path}\n"
    if description := schema.get("description"):
        yield description + "\n"
    yield from _rows(path, schema)
    if rules := schema.get("x-kubernetes-validations"):
        yield _list(rule["message"] for rule in rules)
    for name, field in schema["properties"].items():
        nested = _nested(name, field)
        if nested is not None:
            suffix = "[]" if field["type"] == "array" else ""
            yield from _section(f"{path}.{name}{suffix}", nested, level=3)


def _rows(path: str, schema: Schema) -> Iterator[str]:
    required = schema.get("required", ())
    lines = ["| field | type | description |", "| --- | --- | --- |"]
    for name, field in schema["properties"].items():
        shown = f"**`{name}`**" if name in required else f"`{name}`"
        lines.append(f"| {shown} | {_type(field)} | {_cell(_description(path, name, field))} |")
    yield "\n".join(lines) + "\n"


def _list(lines: Iterable[str]) -> str:
    return "".join(f"- {line}.\n" for line in lines)


def _description(path: str, name: str, field: Schema) -> str:
    description = str(field.get("description", ""))
    if path != "status" and _nested(name, field) is not None:
        return f"{description} See below.".strip()
    return description


def _nested(name: str, field: Schema) -> Schema | None:
    """Return the schema of a field that has fields, or None."""
    if name in KUBERNETES:
        return None
    inner = field.get("items", {}) if field.get("type") == "array" else field
    return inner if inner.get("properties") else None


def _type(field: Schema) -> str:
    if field.get("x-kubernetes-int-or-string"):
        kind = "number or text"
    elif "enum" in field:
        kind = ", ".join(f"`{value}`" for value in field["enum"])
    elif field.get("type") == "array":
        kind = f"list of {field['items'].get('type', 'anything')}"
    elif field.get("type") == "object" and "additionalProperties" in field:
        kind = "map"
    else:
        kind = str(field.get("type", "anything"))
    bounds = [f"{sign} {field[key]}" for key, sign in (("minimum", "≥"), ("maximum", "≤")) if key in field]
    if bounds:
        kind += f" {', '.join(bounds)}"
    if field.get("default") not in (None, {}, [], ""):
        default = field["default"]
        kind += f" = `{str(default).lower() if isinstance(default, bool) else default}`"
    return kind


def _cell(text: str) -> str:
    return text.replace("\n", " ").replace("|", "\\|")


if __name__ == "__main__":
    print(text(), end="")
