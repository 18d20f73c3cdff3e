"""docs/spec.md is up to date and describes every field."""

import re

import pytest
from paths import ROOT

from hftitan_api import reference
from hftitan_api.crd import crd

COMMITTED = ROOT / "docs" / "spec.md"
SPEC = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]


def test_committed_file_is_up_to_date():
    assert COMMITTED.read_text() == reference.text(), "run `make generate`"


@pytest.mark.parametrize("section", SPEC["properties"])
def test_table_of_a_section_lists_every_field_with_a_description(section):
    schema = SPEC["properties"][section]
    part = reference.text().split(f"\n## spec.{section}\n")[1].split("\n## ")[0]
    table = part.split("\n### ")[0]
    rows = dict(re.findall(r"^\| \*{0,2}`(\w+)`\*{0,2} \| [^|]+ \| (.*) \|$", table, re.MULTILINE))
    assert list(rows) == list(schema["properties"])
    assert [name for name, description in rows.items() if not description] == []
