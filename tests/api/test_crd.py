"""The generated CRD: up to date, structural, with bounds on all that its rules read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from api_server import broken_rules
from paths import ROOT

from hftitan_api.crd import to_yaml

COMMITTED = ROOT / "crds" / "hftitanjobs.yaml"
CRD = yaml.safe_load(COMMITTED.read_text())
(VERSION,) = CRD["spec"]["versions"]
SCHEMA = VERSION["schema"]["openAPIV3Schema"]
SPEC = SCHEMA["properties"]["spec"]


def test_the_committed_file_is_what_the_models_say():
    assert COMMITTED.read_text() == to_yaml(), "run `make generate`"


def test_names_and_columns():
    assert CRD["spec"]["names"] == {
        "kind": "HFTitanJob",
        "listKind": "HFTitanJobList",
        "plural": "hftitanjobs",
        "singular": "hftitanjob",
        "shortNames": ["htj"],
        "categories": ["all", "ml"],
    }
    assert VERSION["subresources"] == {"status": {}}
    columns = VERSION["additionalPrinterColumns"]
    assert [c["name"] for c in columns] == ["PHASE", "MODEL", "MESH", "STEP", "LOSS", "TOK/S", "RESTARTS", "AGE"]
    for column in columns[:-1]:
        node = SCHEMA
        for part in column["jsonPath"].strip(".").split("."):
            node = node["properties"][part]
        assert node["type"] == column["type"], column


# --- structural schema ------------------------------------------------------------------------------------------

ALLOWED = {
    "type", "description", "properties", "required", "items", "additionalProperties", "default", "enum", "pattern",
    "minLength", "maxLength", "minItems", "maxItems", "maxProperties", "minimum", "maximum", "exclusiveMinimum",
    "exclusiveMaximum", "x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-int-or-string",
    "x-kubernetes-preserve-unknown-fields", "x-kubernetes-validations",
}  # fmt: skip


def _nodes(node: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, node
    for name, child in node.get("properties", {}).items():
        yield from _nodes(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in node:
            yield from _nodes(node[key], f"{path}.{key}")


NODES = dict(_nodes(SCHEMA, ""))


@pytest.mark.parametrize("path", NODES)
def test_structural(path):
    """The rules of apiextensions v1: see "Specifying a structural schema" in the Kubernetes documentation."""
    node = NODES[path]
    assert set(node) <= ALLOWED
    untyped = node.get("x-kubernetes-int-or-string") or node.get("x-kubernetes-preserve-unknown-fields")
    assert ("type" in node) != bool(untyped)
    assert not ({"properties", "additionalProperties"} <= set(node))
    for exclusive in ("exclusiveMinimum", "exclusiveMaximum"):
        assert node.get(exclusive, True) is True  # a boolean in OpenAPI v3.0, beside its bound
    assert all(required in node["properties"] for required in node.get("required", ()))
    for key in node.get("x-kubernetes-list-map-keys", ()):
        assert key in node["items"]["required"]
        assert node["x-kubernetes-list-type"] == "map"
    for rule in node.get("x-kubernetes-validations", ()):
        assert "\n" not in rule["message"]


@pytest.mark.parametrize("path", [p for p in NODES if p.startswith(".spec")])
def test_whatever_a_rule_reads_has_a_bound(path):
    """Or the API server's estimate of a rule's cost, taken from the largest possible object, is over its budget."""
    node = NODES[path]
    if node.get("x-kubernetes-preserve-unknown-fields"):
        return
    bound = {"string": "maxLength", "array": "maxItems"}.get(node.get("type", ""))
    if bound:
        assert bound in node or "enum" in node
    if "additionalProperties" in node:
        assert "maxProperties" in node


def test_nothing_can_be_nested_without_end():
    """A reader of JSON that recurses, as Python's does, is at its end after a thousand levels; the API server takes
    ten thousand."""
    free = {path: node for path, node in NODES.items() if node.get("x-kubernetes-preserve-unknown-fields")}
    assert list(free) == [".spec.model.overrides.additionalProperties"]
    assert all((node["maxProperties"], node["maxItems"]) == (0, 0) for node in free.values())


def test_every_section_of_the_spec_has_words():
    silent = [p for p, n in NODES.items() if p.startswith(".spec.") and p.count(".") == 2 and not n.get("description")]
    assert silent == []
    assert NODES[".spec.mesh.tp"]["description"] == "Tensor parallelism, inside a node."


def test_a_default_keeps_the_rules_of_its_object_as_it_stands():
    """A server of 1.25 or later tries them before it takes a CRD, without nested defaults: `default: {}` was refused
    (no such key: nodes)."""
    defaults = {
        path: list(broken_rules(node["default"], {**node, "properties": {}}))
        for path, node in _nodes(SPEC, "spec")
        if "default" in node and "x-kubernetes-validations" in node
    }
    assert defaults == {"spec.mesh": []}
