"""A real API server accepts and rejects the same jobs as the models, by the schema and the CEL rules of the CRD.

tests/api/test_crd_server.py compares the same tables with a simulated server. Requests are dry runs.
"""

import pytest
from api_server import without_nulls
from crd_tables import CHANGES, RULES, SCHEMAS
from job_documents import document, merged
from kubectl import ApiError, path_of
from paths import ROOT

from hftitan_api import yamltext

JOBS = path_of("hftitanjobs")
DRY_RUN = {"dryRun": "All", "fieldValidation": "Strict"}


def refusal(admin, method, path, body, content_type="application/json", **query):
    """Return the server's message, or None if it accepts the request."""
    try:
        admin.request(method, path, body, content_type, DRY_RUN | query)
    except ApiError as error:
        return error.message
    return None


def test_schemas(admin):
    wrong = []
    for name, (changes, good) in SCHEMAS.items():
        message = refusal(admin, "POST", JOBS, document("schema", **changes))
        if (message is None) != good:
            wrong.append((name, message))
    assert wrong == []


def test_rules(admin):
    wrong = []
    for name, (changes, expected) in RULES.items():
        message = refusal(admin, "POST", JOBS, without_nulls(document("rule", **changes)))
        if (message is None) != (expected is None) or (expected or "") not in (message or ""):
            wrong.append((name, message))
    assert wrong == []


def test_spec_cannot_change_except_the_run_policy(admin):
    name = "unchanged"
    stored = admin.create(document(name))
    try:
        for section, changes in CHANGES.items():
            body = {**stored, "spec": merged(stored["spec"], changes)}
            message = refusal(admin, "PUT", f"{JOBS}/{name}", body)
            assert f"{section} cannot change while the job exists" in (message or "")
        patch = {"spec": {"runPolicy": {"suspend": True}}}
        assert refusal(admin, "PATCH", f"{JOBS}/{name}", patch, "application/merge-patch+json") is None
    finally:
        admin.delete("hftitanjobs", name)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_examples_by_server_side_apply(admin, path):
    example = yamltext.parse(path.read_text()).value
    target = f"{JOBS}/{example['metadata']['name']}"
    content_type = "application/apply-patch+yaml"
    assert refusal(admin, "PATCH", target, example, content_type, fieldManager="kubectl") is None
