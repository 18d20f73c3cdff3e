"""Validates jobs against the committed CRD as an API server would, with jsonschema and cel-python.

It fills in defaults, checks the schema, and evaluates the CEL rules.
"""

from __future__ import annotations

import copy
import functools
import json
import re
from collections.abc import Iterator
from typing import Any

import celpy
import jsonschema
import paths
import yaml

CRD = yaml.safe_load((paths.CRD).read_text())
SCHEMA = CRD["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
SPEC = SCHEMA["properties"]["spec"]

SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\Z")


def spec_errors(spec: dict[str, Any]) -> list[str]:
    """Return schema errors, else broken CEL rules. Empty if a server would accept the spec."""
    return schema_errors(spec) or rule_errors(spec)


def schema_errors(spec: Any, *, strict: bool = True) -> list[str]:
    """Return schema errors. `strict`: unknown fields are errors, as with kubectl's fieldValidation=Strict."""
    stored = defaulted(copy.deepcopy(spec), SPEC)
    found = [error.message for error in _validator(strict).iter_errors(stored)]
    return found or list(_duplicates(stored, SPEC))


def rule_errors(spec: dict[str, Any]) -> list[str]:
    return list(broken_rules(defaulted(copy.deepcopy(spec), SPEC), SPEC))


def metadata_errors(job: Any) -> list[str]:
    """Return the errors of apiVersion, kind and metadata, including the CRD's rules for the name."""
    found = [f"{key}: no match for the request" for key in ("apiVersion", "kind") if job.get(key) != _IDENTITY.get(key)]
    metadata = job.get("metadata")
    if not isinstance(metadata, dict):
        return [*found, "metadata: Required value"]
    name, named = metadata.get("name"), SCHEMA["properties"]["metadata"]["properties"]["name"]
    if not isinstance(name, str) or not SUBDOMAIN.match(name) or len(name) > 253:
        found.append("metadata.name: a lowercase RFC 1123 subdomain")
    elif len(name) > named["maxLength"] or not re.match(named["pattern"].removesuffix("$") + r"\Z", name):
        found.append("metadata.name: should match the CRD's")
    for field in ("labels", "annotations"):
        entries = metadata.get(field, {})
        if not isinstance(entries, dict) or not all(isinstance(value, str) for value in entries.values()):
            found.append(f"metadata.{field}: cannot unmarshal")
    return found


_IDENTITY = {"apiVersion": "hftitan.io/v1alpha1", "kind": "HFTitanJob"}


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return value


def defaulted(value: Any, node: dict[str, Any]) -> Any:
    """Fill in defaults as apiextensions does: on every existing level, the parent's default first."""
    if isinstance(value, dict):
        for name, child in node.get("properties", {}).items():
            if name not in value and "default" in child:
                value[name] = copy.deepcopy(child["default"])
            if name in value:
                value[name] = defaulted(value[name], child)
    elif isinstance(value, list):
        return [defaulted(item, node.get("items", {})) for item in value]
    return value


def draft4(node: dict[str, Any], *, strict: bool = True) -> dict[str, Any]:
    """Convert OpenAPI v3.0 to JSON Schema draft 4, which also has boolean exclusive bounds."""
    result = {k: v for k, v in node.items() if not k.startswith("x-") and k != "description"}
    if "pattern" in node:  # in Python, unlike in Go, $ also matches before a final newline
        result["pattern"] = node["pattern"].removesuffix("$") + r"\Z"
    if node.get("x-kubernetes-int-or-string"):
        result["type"] = ["integer", "string"]
    if "properties" in node:
        result["properties"] = {name: draft4(child, strict=strict) for name, child in node["properties"].items()}
        result["additionalProperties"] = not strict
    for key in ("items", "additionalProperties"):
        if key in node:
            result[key] = draft4(node[key], strict=strict)
    return result


@functools.cache
def _validator(strict: bool) -> jsonschema.Draft4Validator:
    return jsonschema.Draft4Validator(draft4(SPEC, strict=strict))


def _duplicates(value: Any, node: dict[str, Any]) -> Iterator[str]:
    """Yield duplicate keys in lists of type map."""
    keys = node.get("x-kubernetes-list-map-keys", ())
    if isinstance(value, list):
        seen = [json.dumps([item.get(key) for key in keys]) for item in value if keys]
        yield from (f"Duplicate value: {key}" for i, key in enumerate(seen) if key in seen[:i])
        for item in value:
            yield from _duplicates(item, node.get("items", {}))
    elif isinstance(value, dict):
        for name, child in node.get("properties", {}).items():
            if name in value:
                yield from _duplicates(value[name], child)


@functools.cache
def _program(rule: str) -> celpy.Runner:
    environment = celpy.Environment()
    return environment.program(environment.compile(rule))


def broken_rules(value: Any, node: dict[str, Any], old: Any = None) -> Iterator[str]:
    """Yield the messages of all broken CEL rules; with `old`, also of transition rules."""
    for rule in node.get("x-kubernetes-validations", ()):
        transition = "oldSelf" in rule["rule"]
        if transition and old is None:
            continue
        variables = {"self": celpy.json_to_cel(value)}
        if transition:
            variables["oldSelf"] = celpy.json_to_cel(old)
        if not _program(rule["rule"]).evaluate(variables):
            yield rule["message"]
    for name, child in node.get("properties", {}).items():
        if isinstance(value, dict) and name in value:
            yield from broken_rules(value[name], child, old.get(name) if isinstance(old, dict) else None)
