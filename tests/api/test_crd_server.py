"""The CRD and the models agree: an API server stores exactly the jobs that `hftitan validate` accepts."""

# ruff: noqa: E501

from __future__ import annotations

import copy
from typing import Any

import jsonschema
import pytest
from api_server import SCHEMA, SPEC, broken_rules, defaulted, draft4, spec_errors, without_nulls
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


REQUIRED, PREFERRED = (f"{kind}DuringSchedulingIgnoredDuringExecution" for kind in ("required", "preferred"))
NODES = {"matchExpressions": [{"key": "gpu", "operator": "In", "values": ["h100"]}, {"key": "x", "operator": "Exists"}]}
PODS = {"topologyKey": "rack", "labelSelector": {"matchLabels": {"a": "b"}}, "namespaceSelector": {}}
AFFINITY = {
    "nodeAffinity": {
        REQUIRED: {
            "nodeSelectorTerms": [NODES, {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["a"]}]}]
        },
        PREFERRED: [{"weight": 1, "preference": NODES}],
    },
    "podAffinity": {REQUIRED: [PODS]},
    "podAntiAffinity": {PREFERRED: [{"weight": 100, "podAffinityTerm": PODS}]},
}
SCHEMA_TABLE = {
    "smallest": ({}, True),
    "everything": (
        {
            "model": {"revision": "main", "initialize": "random", "overrides": {"a": 1, "b": "x", "c": True, "d": 0.5}},
            "mesh": {"nodes": 2, "gpusPerNode": 8, "tp": 2, "dpShard": 8, "device": "cpu"},
            "optimizer": {"lr": 1, "betas": [0, 0.5]},
            "pod": {
                "env": [{"name": "A", "value": ""}, {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s"}}}],
                "resources": {"limits": {"cpu": 4, "memory": "1.5Gi"}},
                "volumes": [{"name": "v", "emptyDir": {"medium": ""}}],
                "volumeMounts": [{"name": "v", "mountPath": "/v", "subPath": "a/b"}],
                "affinity": AFFINITY,
                "labels": {"a/b": "c"},
            },
        },
        True,
    ),
    "unknown field": ({"mesh": {"tpp": 1}}, False),
    "snake case": ({"mesh": {"gpus_per_node": 1}}, False),
    "text for a number": ({"mesh": {"tp": "1"}}, False),
    "fraction": ({"mesh": {"tp": 1.5}}, False),
    "boolean for a number": ({"mesh": {"tp": True}}, False),
    "number for text": ({"model": {"revision": 1}}, False),
    "choice": ({"mesh": {"device": "tpu"}}, False),
    "below": ({"mesh": {"tp": 0}}, False),
    "above": ({"mesh": {"gpusPerNode": 65}}, False),
    "lr zero": ({"optimizer": {"lr": 0}}, False),
    "lr just above": ({"optimizer": {"lr": 1e-12}}, True),
    "beta one": ({"optimizer": {"betas": [0.9, 1]}}, False),
    "beta zero": ({"optimizer": {"betas": [0, 0]}}, True),
    "three betas": ({"optimizer": {"betas": [0.9, 0.9, 0.9]}}, False),
    "relative path": ({"dataset": {"path": "x"}}, False),
    "control character": ({"dataset": {"path": "/x\n"}}, False),
    "name with newline": ({"model": {"name": "a/b\n"}}, False),
    "three parts": ({"model": {"name": "a/b/c"}}, False),
    "dots": ({"model": {"name": "../b"}}, False),
    "Unicode letter": ({"model": {"name": "é/b"}}, False),
    "quantity": ({"pod": {"shmSize": "1X"}}, False),
    "quantity number": ({"pod": {"shmSize": 1}}, True),
    "quantity fraction": ({"pod": {"shmSize": 0.5}}, False),
    "quantity negative": ({"pod": {"shmSize": "-1"}}, False),
    "folder out": ({"checkpoint": {"folder": "../x"}}, False),
    "volume name": ({"pod": {"volumes": [{"name": "A_b"}]}}, False),
    "host network": ({"pod": {"hostNetwork": True}}, False),
    "host network in the affinity": ({"pod": {"affinity": {"hostNetwork": True}}}, False),
    "affinity with a list": ({"pod": {"affinity": {"nodeAffinity": []}}}, False),
    "affinity without terms": ({"pod": {"affinity": {"nodeAffinity": {REQUIRED: {}}}}}, False),
    "affinity nested in itself": (
        {"pod": {"affinity": {"nodeAffinity": {"nodeAffinity": {"nodeAffinity": {}}}}}},
        False,
    ),
    "override of a mapping": ({"model": {"overrides": {"rope_scaling": {"factor": 2}}}}, False),
    "override of a list": ({"model": {"overrides": {"layer_types": ["a"]}}}, False),
    "override of a long text": ({"model": {"overrides": {"a": "x" * 4097}}}, False),
    "nodes": ({"mesh": {"nodes": 5000}}, True),
    "more nodes than a cluster has": ({"mesh": {"nodes": 5001}}, False),
    "space in the image": ({"pod": {"image": "a b"}}, False),
    "Unicode in the image": ({"pod": {"image": "a\u200bb"}}, False),
    "name with an empty part": ({"checkpoint": {"volume": "a..b"}}, False),
    "name with a part that ends with a dash": ({"checkpoint": {"volume": "a-.b"}}, False),
    "name of several parts": ({"checkpoint": {"volume": "a.b-c.0"}}, True),
    "too many": ({"pod": {"imagePullSecrets": ["s"] * 17}}, False),
    "too many labels": ({"pod": {"labels": {f"k{i}": "" for i in range(65)}}}, False),
    "long text": ({"model": {"revision": "x" * 256}}, False),
    "empty text": ({"model": {"revision": ""}}, False),
    "spaces in an image": ({"pod": {"image": "a b"}}, False),
    "list for mapping": ({"mesh": []}, False),
    "mapping for list": ({"pod": {"env": {}}}, False),
    "no steps": ({"training": {"steps": -1}}, False),
    "huge": ({"training": {"steps": 10**30}}, False),
}


@pytest.mark.parametrize("case", SCHEMA_TABLE)
def test_schema_and_models_accept_the_same(spec_dict, job_dict, case):
    changes, good = SCHEMA_TABLE[case]
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

RULE_TABLE = {
    "fills up": ({"mesh": {"nodes": 2, "gpusPerNode": 8, "tp": 4}}, None),
    "explicit": ({"mesh": {"nodes": 2, "gpusPerNode": 8, "tp": 4, "dpShard": 2, "dpReplicate": 2}}, None),
    "product is not the world size": ({"mesh": {"gpusPerNode": 8, "dpShard": 4}}, "nodes x gpusPerNode must equal"),
    "not a divisor": ({"mesh": {"gpusPerNode": 8, "cp": 3}, "training": {"seqLen": 768}}, "nodes x gpusPerNode must equal"),
    "zero shards": ({"mesh": {"dpShard": 0}}, "nodes x gpusPerNode must equal"),
    "more than the world": ({"mesh": {"dpReplicate": 2}}, "nodes x gpusPerNode must equal"),
    "overflow": (
        {
            "mesh": {"nodes": 5000, "tp": 100_000, "cp": 100_000, "pp": 100_000, "dpReplicate": 100_000},
            "training": {"localBatchSize": 100_000, "seqLen": 8, "globalBatchSize": 2**31 - 1},
        },
        "nodes x gpusPerNode must equal",
    ),
    "tp across nodes": ({"mesh": {"nodes": 4, "gpusPerNode": 2, "tp": 4}}, "tp must divide gpusPerNode"),
    "ep across nodes": ({"mesh": {"nodes": 4, "gpusPerNode": 2, "ep": 4}}, "ep must divide"),
    "ep beyond a replica": ({"mesh": {"gpusPerNode": 8, "dpReplicate": 4, "ep": 4}}, "ep must divide"),
    "ep": ({"mesh": {"gpusPerNode": 8, "dpReplicate": 2, "ep": 4}}, None),
    "odd sequence": ({"training": {"seqLen": 99}}, "training.seqLen must be a multiple of tp x 2 x cp"),
    "attention blocks": ({"mesh": {"gpusPerNode": 2, "cp": 2}, "training": {"seqLen": 132}}, "training.seqLen must be a multiple of 128 x cp on GPUs if cp"),
    "no attention blocks on CPUs": ({"mesh": {"gpusPerNode": 2, "cp": 2, "device": "cpu"}, "training": {"seqLen": 132}}, None),
    "global batch not a multiple": ({"mesh": {"gpusPerNode": 4}, "training": {"globalBatchSize": 6}}, "training.globalBatchSize must be"),
    "global batch": ({"mesh": {"gpusPerNode": 4, "tp": 2}, "training": {"globalBatchSize": 6}}, None),
    "schedule without a pipeline": ({"training": {"pipelineSchedule": "1F1B"}}, "training.pipelineSchedule needs"),
    "batch smaller than the pipeline": ({"mesh": {"gpusPerNode": 2, "pp": 2}}, "training.localBatchSize must be at least"),
    "batch as large as the pipeline": ({"mesh": {"gpusPerNode": 2, "pp": 2}, "training": {"localBatchSize": 2}}, None),
    "batch smaller than the interleaved pipeline": (
        {"mesh": {"gpusPerNode": 2, "pp": 2}, "training": {"localBatchSize": 2, "pipelineSchedule": "Interleaved1F1B"}},
        "training.localBatchSize must be at least",
    ),
    "uneven rounds": (
        {"mesh": {"gpusPerNode": 2, "pp": 2}, "training": {"localBatchSize": 5, "pipelineSchedule": "Interleaved1F1B"}},
        "training.localBatchSize must be a multiple of the number of rounds",
    ),
    "even rounds": (
        {"mesh": {"gpusPerNode": 2, "pp": 2}, "training": {"localBatchSize": 6, "pipelineSchedule": "Interleaved1F1B"}},
        None,
    ),
    "float8": ({"training": {"float8": "rowwise"}}, None),
    "float8 on CPUs": (
        {"training": {"float8": "rowwise"}, "mesh": {"device": "cpu"}}, "training.float8 needs mesh.device: gpu",
    ),
    "float8 with an odd sequence": (
        {"training": {"float8": "rowwise", "seqLen": 24}}, "training.seqLen must be a multiple of 16 x cp",
    ),
    "warm-up": ({"lrSchedule": {"warmupSteps": 101}}, "lrSchedule.warmupSteps must be at most"),
    "nodes without a volume": ({"mesh": {"nodes": 2}, "checkpoint": {"volume": None}}, "checkpoint.volume is required with several nodes"),
    "nodes that save nothing": (
        {"mesh": {"nodes": 2}, "checkpoint": {"volume": None, "interval": 0, "exportHF": False}},
        None,
    ),
    "push": ({"checkpoint": {"pushToHub": {"repo": "a/b"}}, "pod": {"hfTokenSecret": {"name": "hub"}}}, None),
    "push without export": (
        {"checkpoint": {"exportHF": False, "pushToHub": {"repo": "a/b"}}, "pod": {"hfTokenSecret": {"name": "hub"}}},
        "checkpoint.pushToHub needs checkpoint.exportHF: true",
    ),
    "push without token": ({"checkpoint": {"pushToHub": {"repo": "a/b"}}}, "checkpoint.pushToHub needs pod.hfTokenSecret"),
    "queue": ({"scheduling": {"gang": "volcano", "queue": "a.b"}}, None),
    "Volcano without queue": ({"scheduling": {"gang": "volcano"}}, None),
    "Coscheduling without queue": ({"scheduling": {"gang": "coscheduling", "topologyKey": "rack"}}, None),
    "Kueue without queue": ({"scheduling": {"gang": "kueue"}}, "scheduling.queue is required with scheduling.gang kueue or kai"),
    "KAI without queue": ({"scheduling": {"gang": "kai"}}, "scheduling.queue is required with scheduling.gang kueue or kai"),
    "queue without gang scheduler": ({"scheduling": {"queue": "a"}}, "scheduling.queue is only for scheduling.gang kueue, volcano or kai"),
    "two data sources": ({"dataset": {"name": "a/b"}}, "set either name (a hub id)"),
    "no data source": ({"dataset": {"path": None}}, "set either name (a hub id)"),
    "config with path": ({"dataset": {"config": "en"}}, "config is for hub datasets"),
    "text and chat field": ({"dataset": {"textField": "a", "messagesField": "b"}}, "set either textField"),
}  # fmt: skip


@pytest.mark.parametrize("case", RULE_TABLE)
def test_cel_and_python_reject_the_same_jobs(spec_dict, job_dict, case):
    changes, message = RULE_TABLE[case]
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


CHANGES = {
    "model": {"model": {"revision": "other"}},
    "dataset": {"dataset": {"split": "test"}},
    "mesh": {"mesh": {"gpusPerNode": 2}},
    "training": {"training": {"steps": 101}},
    "optimizer": {"optimizer": {"betas": [0.9, 0.99]}},
    "lrSchedule": {"lrSchedule": {"warmupSteps": 1}},
    "checkpoint": {"checkpoint": {"keep": 3}},
    "validation": {"validation": {"dataset": {"name": "a/b"}}},
    "scheduling": {"scheduling": {"priorityClass": "high"}},
    "monitoring": {"monitoring": {"port": 9401}},
    "pod": {"pod": {"affinity": {"nodeAffinity": {}}}},
}


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
