"""docs/spec.md: up to date, and it says something of every field."""

import re

import pytest
from paths import ROOT

from hftitan_api import reference
from hftitan_api.crd import crd

COMMITTED = ROOT / "docs" / "spec.md"
SPEC = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]


def test_it_is_up_to_date():
    assert COMMITTED.read_text() == reference.text(), "run `make generate`"


@pytest.mark.parametrize("section", SPEC["properties"])
def test_every_field_of_a_section_stands_in_its_table_with_its_meaning(section):
    schema = SPEC["properties"][section]
    part = reference.text().split(f"\n## spec.{section}\n")[1].split("\n## ")[0]
    table = part.split("\n### ")[0]
    rows = dict(re.findall(r"^\| \*{0,2}`(\w+)`\*{0,2} \| [^|]+ \| (.*) \|$", table, re.MULTILINE))
    assert list(rows) == list(schema["properties"])
    assert [name for name, said in rows.items() if not said] == []
