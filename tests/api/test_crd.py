"""The generated CRD is up to date and structural, and has a bound on every value that its CEL rules read."""

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


def test_committed_file_is_up_to_date():
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
def test_schema_is_structural(path):
    """Checks the rules in "Specifying a structural schema" of the Kubernetes documentation."""
    node = NODES[path]
    assert set(node) <= ALLOWED
    untyped = node.get("x-kubernetes-int-or-string") or node.get("x-kubernetes-preserve-unknown-fields")
    assert ("type" in node) != bool(untyped)
    assert not ({"properties", "additionalProperties"} <= set(node))
    for exclusive in ("exclusiveMinimum", "exclusiveMaximum"):
        assert node.get(exclusive, True) is True  # a boolean in OpenAPI v3.0, in addition to the bound
    assert all(required in node["properties"] for required in node.get("required", ()))
    for key in node.get("x-kubernetes-list-map-keys", ()):
        assert key in node["items"]["required"]
        assert node["x-kubernetes-list-type"] == "map"
    for rule in node.get("x-kubernetes-validations", ()):
        assert "\n" not in rule["message"]


@pytest.mark.parametrize("path", [p for p in NODES if p.startswith(".spec")])
def test_every_list_map_and_text_has_a_bound(path):
    """Without bounds, the cost estimate of a CEL rule exceeds the API server's budget."""
    node = NODES[path]
    if node.get("x-kubernetes-preserve-unknown-fields"):
        return
    bound = {"string": "maxLength", "array": "maxItems"}.get(node.get("type", ""))
    if bound:
        assert bound in node or "enum" in node
    if "additionalProperties" in node:
        assert "maxProperties" in node


def test_nesting_depth_is_bounded():
    """Python's JSON parser fails after a thousand levels of nesting. The API server accepts ten thousand."""
    untyped = {path: node for path, node in NODES.items() if node.get("x-kubernetes-preserve-unknown-fields")}
    assert list(untyped) == [".spec.model.overrides.additionalProperties"]
    assert all((node["maxProperties"], node["maxItems"]) == (0, 0) for node in untyped.values())


def test_every_section_of_the_spec_has_a_description():
    missing = [p for p, n in NODES.items() if p.startswith(".spec.") and p.count(".") == 2 and not n.get("description")]
    assert missing == []
    tp = NODES[".spec.mesh.tp"]
    assert tp["description"] == "Tensor-parallel degree. A tensor-parallel group must not span nodes."


def test_default_of_an_object_satisfies_its_cel_rules():
    """API servers from 1.25 on evaluate the rules on the default without nested defaults. They rejected `default: {}`
    (no such key: nodes)."""
    defaults = {
        path: list(broken_rules(node["default"], {**node, "properties": {}}))
        for path, node in _nodes(SPEC, "spec")
        if "default" in node and "x-kubernetes-validations" in node
    }
    assert defaults == {"spec.mesh": []}
