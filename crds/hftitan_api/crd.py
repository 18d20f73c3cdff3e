"""Generates the CustomResourceDefinition from the models: `python -m hftitan_api.crd` prints it.

Kubernetes needs a "structural" OpenAPI v3.0 schema, which differs from pydantic's: no $ref, no anyOf for optional
fields, exclusive bounds as booleans, and a default on every parent of a field with a default. Every list, map and text
that a CEL rule reads needs a bound, or the cost estimate of the rule exceeds the API server's budget.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from hftitan_api.admit import JOB_NAME_LIMIT
from hftitan_api.base import ApiModel
from hftitan_api.cel import DATASET_RULES, MESH_RULES, SPEC_RULES, immutability_rules
from hftitan_api.models import GROUP, KIND, PLURAL, VERSION, HFTitanJob, JobSpec, JobStatus

Schema = dict[str, Any]

COLUMNS = (
    ("PHASE", "string", ".status.phase"),
    ("MODEL", "string", ".spec.model.name"),
    ("MESH", "string", ".status.mesh"),
    ("STEP", "integer", ".status.progress.step"),
    ("LOSS", "number", ".status.progress.loss"),
    ("TOK/S", "number", ".status.progress.tokensPerSecond"),
    ("RESTARTS", "integer", ".status.restarts"),
    ("AGE", "date", ".metadata.creationTimestamp"),
)
_MAP_LISTS = {
    "conditions": "type",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
}
"""Lists that are maps with this key: the API server rejects duplicate keys and merges entries by key."""
_KEPT = (
    "type",
    "enum",
    "pattern",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "maxProperties",
    "minimum",
    "maximum",
)
_RULES = {"MeshSpec": MESH_RULES, "DatasetSpec": DATASET_RULES}


def crd() -> dict[str, Any]:
    """Return the CustomResourceDefinition object."""
    schema = {
        "type": "object",
        "description": _doc(HFTitanJob),
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "maxLength": JOB_NAME_LIMIT, "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$"}
                },
            },
            "spec": {
                **_Converter(JobSpec, defaults=True).root(),
                "x-kubernetes-validations": [*map(dict, SPEC_RULES), *immutability_rules()],
            },
            "status": _Converter(JobStatus, defaults=False).root(),
        },
    }
    columns = [{"name": name, "type": kind, "jsonPath": path} for name, kind, path in COLUMNS]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["htj"],
                "categories": ["all", "ml"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema},
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": columns,
                }
            ],
        },
    }


def to_yaml() -> str:
    """Return the text of crds/hftitanjobs.yaml."""
    header = "# Generated from crds/hftitan_api by `make generate`; do not edit.\n"
    return header + yaml.dump(crd(), Dumper=_Dumper, sort_keys=False, width=118, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Writes no YAML anchors, which make a CRD hard to read."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


class _Converter:
    """Converts pydantic's JSON schema of a model to a structural schema, optionally with the defaults of the models."""

    def __init__(self, model: type[BaseModel], *, defaults: bool) -> None:
        self.model = model
        self.defaults = defaults
        self.definitions: Mapping[str, Schema] = model.model_json_schema(by_alias=True).get("$defs", {})
        self.models = {found.__name__: found for found in _models_of(model)}

    def root(self) -> Schema:
        return self._object(self.model)

    def _object(self, model: type[BaseModel]) -> Schema:
        source = model.model_json_schema(by_alias=True)
        if "$ref" in source:
            source = self.definitions[model.__name__]
        docs = _field_docs(model)
        properties: Schema = {}
        for name, field in model.model_fields.items():
            alias = field.alias or name
            converted = self._value(source["properties"][alias], alias)
            if name in docs:
                converted = {**converted, "description": docs[name]}
            if self.defaults:
                default = _default(field.get_default(call_default_factory=True))
                if default is not None:
                    converted = {**converted, "default": default}
            properties[alias] = converted
        result: Schema = {"type": "object", "description": _doc(model)}
        if source.get("required"):
            result["required"] = list(source["required"])
        result["properties"] = properties
        if model.__name__ in _RULES:
            result["x-kubernetes-validations"] = [dict(rule) for rule in _RULES[model.__name__]]
        return {key: value for key, value in result.items() if value not in ("", None)}

    def _value(self, node: Schema, name: str = "") -> Schema:
        if "$ref" in node:
            return self._object(self.models[node["$ref"].rpartition("/")[2]])
        if "x-kubernetes-int-or-string" in node:
            return dict(node)
        if "anyOf" in node:
            members = [member for member in node["anyOf"] if member.get("type") != "null"]
            if (
                len(members) > 1
            ):  # a structural schema has no type for "any scalar"; these bounds reject mappings and lists
                bounds = {"maxProperties": 0, "maxItems": 0, "maxLength": max(m.get("maxLength", 0) for m in members)}
                return {"x-kubernetes-preserve-unknown-fields": True, **bounds}
            return self._value(members[0], name)
        result = {key: node[key] for key in _KEPT if key in node}
        if "const" in node:
            result["enum"] = [node["const"]]
        for exclusive, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
            if exclusive in node:
                result[bound], result[exclusive] = node[exclusive], True
        if result["type"] == "array":
            result["items"] = self._value(node["items"])
            key = _MAP_LISTS.get(name)
            result["x-kubernetes-list-type"] = "map" if key else "atomic"
            if key:
                result["x-kubernetes-list-map-keys"] = [key]
        elif result["type"] == "object":
            if node.get("additionalProperties") in (True, None):
                result["x-kubernetes-preserve-unknown-fields"] = True
            else:
                result["additionalProperties"] = self._value(node["additionalProperties"])
        return result


def _default(value: Any) -> Any:
    """Return the default for the schema: None for an empty value, {} for an object whose fields have defaults."""
    if isinstance(value, ApiModel):
        # The server validates the default of an object against its CEL rules without filling in nested defaults.
        return value.to_dict() if type(value).__name__ in _RULES else {}
    return None if value is PydanticUndefined or value in (None, [], {}) else value


def _models_of(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Yield the model and every model in its fields."""

    def inside(annotation: Any) -> Iterator[type[BaseModel]]:
        if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
            yield from _models_of(annotation)
        for argument in getattr(annotation, "__args__", ()):
            yield from inside(argument)

    yield model
    for field in model.model_fields.values():
        yield from inside(field.annotation)


def _doc(model: type[BaseModel]) -> str:
    return _one_line(model.__dict__.get("__doc__") or "")


def _field_docs(model: type[BaseModel]) -> dict[str, str]:
    """Return the docstring of each field, including inherited fields. They are only in the source."""
    found: dict[str, str] = {}
    for owner in reversed(model.__mro__):
        if not issubclass(owner, BaseModel) or owner.__module__.startswith("pydantic."):
            continue
        tree = ast.parse(inspect.getsource(importlib.import_module(owner.__module__)))
        body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == owner.__name__)
        for field, text in pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
                value = text.value
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    found[field.target.id] = _one_line(value.value)
    return found


def _one_line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    sys.stdout.write(to_yaml())
