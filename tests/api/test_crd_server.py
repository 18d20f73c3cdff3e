"""The CRD and the models agree: an API server stores exactly the jobs that `hftitan validate` accepts."""

from __future__ import annotations

import copy
from typing import Any

import jsonschema
import pytest
from api_server import SCHEMA, SPEC, broken_rules, defaulted, draft4, spec_errors, without_nulls
from crd_tables import CHANGES, RULES, SCHEMAS
from hypothesis import given, settings
from hypothesis import strategies as st

from hftitan_api.load import review
from hftitan_api.models import HFTitanJob, JobSpec


def test_defaults_of_the_crd_equal_those_of_the_models(spec_dict):
    stored = defaulted(spec_dict(validation={"dataset": {"name": "a/b"}}, pod={"env": [{"name": "A"}]}), SPEC)
    model = JobSpec.model_validate(spec_dict(validation={"dataset": {"name": "a/b"}}, pod={"env": [{"name": "A"}]}))
    assert JobSpec.model_validate(stored) == model
    assert stored["mesh"] == {
        "nodes": 1, "gpusPerNode": 1, "dpReplicate": 1, "dpShard": -1, "tp": 1, "pp": 1, "cp": 1, "ep": 1,
        "device": "gpu",
    }  # fmt: skip
    filled = {name for name, field in JobSpec.model_fields.items() if field.default_factory or name == "validation"}
    assert {JobSpec.model_fields[name].alias for name in filled} <= set(stored)


@pytest.mark.parametrize("case", SCHEMAS)
def test_schema_and_models_accept_the_same(spec_dict, job_dict, case):
    changes, good = SCHEMAS[case]
    assert (spec_errors(spec_dict(**changes)) == []) == good
    assert (review(job_dict(**changes)).job is not None) == good


@pytest.mark.parametrize(("field", "required"), [("model", "name"), ("training", "steps")])
def test_required_fields(spec_dict, job_dict, field, required):
    spec, job = spec_dict(), job_dict()
    del spec[field][required], job["spec"][field][required]
    assert spec_errors(spec) == [f"'{required}' is a required property"]
    (problem,) = review(job).problems
    assert str(problem) == f"spec.{field}.{required}: is required"


def test_job_name_rules_agree(job_dict):
    name = SCHEMA["properties"]["metadata"]["properties"]["name"]
    for given_name in ("demo", "a" * 50, "a" * 51, "Demo", "1a", "a.b", "a-", ""):
        fits = jsonschema.Draft4Validator(name).is_valid(given_name)
        assert fits == (not any(p.path == "metadata.name" for p in review(job_dict(name=given_name)).problems))


# --- CEL ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", RULES)
def test_cel_and_python_reject_the_same_jobs(spec_dict, job_dict, case):
    changes, message = RULES[case]
    messages = spec_errors(without_nulls(spec_dict(**changes)))
    assert any(line.startswith(message) for line in messages) if message else messages == []
    assert review(job_dict(**changes)).ok == (message is None)


@st.composite
def _jobs(draw: st.DrawFn) -> dict[str, Any]:
    degree = st.sampled_from([1, 1, 1, 2, 3, 4])
    pp = draw(degree)
    training: dict[str, Any] = {
        "seqLen": draw(st.sampled_from([8, 96, 128, 384, 512, 1536])),
        "localBatchSize": draw(st.sampled_from([1, 2, 4, 5, 8])),
    }
    if draw(st.booleans()):
        training["globalBatchSize"] = draw(st.integers(1, 64))
    if draw(st.booleans()):
        training["pipelineSchedule"] = draw(st.sampled_from(["1F1B", "GPipe", "Interleaved1F1B"]))
    if draw(st.booleans()):
        training["float8"] = "rowwise"
    return {
        "mesh": {
            "nodes": draw(st.integers(1, 4)),
            "gpusPerNode": draw(st.sampled_from([1, 2, 4, 6, 8])),
            "dpReplicate": draw(degree),
            "dpShard": draw(st.sampled_from([-1, -1, 0, 1, 2, 4])),
            "tp": draw(degree),
            "cp": draw(degree),
            "pp": pp,
            "ep": draw(degree),
            "device": draw(st.sampled_from(["gpu", "cpu"])),
        },
        "training": training,
        "lrSchedule": {"warmupSteps": draw(st.sampled_from([0, 100, 101]))},
    }


@settings(max_examples=100, deadline=None)
@given(changes=_jobs())
def test_cel_and_python_agree_on_any_mesh(spec_dict, job_dict, changes):
    assert (spec_errors(spec_dict(**changes)) == []) == review(job_dict(**changes)).ok


def _update_messages(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    before, after = (defaulted(copy.deepcopy(spec), SPEC) for spec in (old, new))
    return list(broken_rules(after, SPEC, before))


def test_table_has_every_section_except_run_policy():
    aliases = {field.alias for field in JobSpec.model_fields.values()}
    assert set(CHANGES) == aliases - {"runPolicy"}


@pytest.mark.parametrize("field", CHANGES)
def test_section_cannot_change_while_the_job_exists(spec_dict, field):
    old, new = spec_dict(), spec_dict(**CHANGES[field])
    messages = [f"{field} cannot change while the job exists; create a new job"]
    assert _update_messages(old, new) == messages
    assert _update_messages(new, old) == messages
    assert _update_messages(new, copy.deepcopy(new)) == []


def test_run_policy_can_change(spec_dict):
    assert _update_messages(spec_dict(), spec_dict(runPolicy={"suspend": True, "maxRestarts": 9})) == []


def test_status_of_the_operator_fits_the_schema():
    status = HFTitanJob.model_validate(
        {
            "metadata": {"name": "a"},
            "spec": {"model": {"name": "a/b"}, "dataset": {"path": "/x"}, "training": {"steps": 1}},
            "status": {
                "phase": "Running",
                "conditions": [
                    {
                        "type": "Accepted",
                        "status": "True",
                        "lastTransitionTime": "2026-11-22T00:00:00Z",
                        "reason": "Valid",
                    }
                ],
                "attempt": 1,
                "mesh": "1x1",
                "pods": {"active": 1},
                "progress": {"step": 3, "steps": 10, "loss": 3.5},
                "checkpoint": {"step": 2},
            },
        }
    ).status.to_dict()
    jsonschema.Draft4Validator(draft4(SCHEMA["properties"]["status"])).validate(status)
