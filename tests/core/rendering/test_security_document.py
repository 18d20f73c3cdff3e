"""docs/security.md lists exactly the operator's permissions."""

from paths import ROOT

from hftitan_operator.core.rendering.access import TABLE

DOCUMENT = (ROOT / "docs" / "security.md").read_text()
WHERE = {"jobs": "jobs", "gangs": "jobs", "cluster": "the cluster", "own": "its own namespace"}


def row(access):
    resource = f"`{access.resource}`" + (f" of {access.group}" if access.group else "")
    return f"| {resource} | {', '.join(access.verbs)} | {WHERE[access.scope]} | {access.why} |"


def test_the_document_lists_the_permissions_of_the_table():
    table = DOCUMENT.split("\n## The operator\n")[1].strip().split("\n\n")[0].splitlines()
    assert table[2:] == [row(access) for access in TABLE]
