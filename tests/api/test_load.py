# ruff: noqa: E501
"""What a user reads when a job is wrong: the field as it is written in YAML, and what to write."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hftitan_api.load import Problem, load, review

GOOD = """\
apiVersion: hftitan.io/v1alpha1
kind: HFTitanJob
metadata:
  name: demo
spec:
  model: {name: HuggingFaceTB/SmolLM2-135M}
  dataset: {path: /data/corpus}
  mesh: {gpusPerNode: 8, tp: 2}
  training: {steps: 100}
  optimizer: {lr: 5e-5}
"""


def test_the_smallest_useful_job():
    loaded = load(GOOD)
    assert loaded.ok
    assert loaded.job.spec.mesh.gpus_per_node == 8
    assert loaded.job.spec.optimizer.lr == 5e-5
    assert loaded.job.metadata.namespace == "default"


def test_json_is_yaml_too(job_dict):
    import json

    assert load(json.dumps(job_dict())).ok


# changes to a valid spec -> every problem, word for word
MISTAKES = {
    "a misspelt field": ({"mesh": {"tpp": 2}}, ["spec.mesh.tpp: unknown field; did you mean tp?"]),
    "snake case": ({"mesh": {"gpus_per_node": 2}}, ["spec.mesh.gpus_per_node: unknown field; did you mean gpusPerNode?"]),
    "a field of another object": ({"training": {"lr": 1e-4}}, ["spec.training.lr: unknown field; lr is spec.optimizer.lr"]),
    "a field of another object, in snake case": (
        {"training": {"warmup_steps": 3}},
        ["spec.training.warmup_steps: unknown field; warmup_steps is spec.lrSchedule.warmupSteps"],
    ),
    "a field of two other objects": (
        {"training": {"interval": 3}},
        ["spec.training.interval: unknown field; interval is spec.checkpoint.interval or spec.validation.interval"],
    ),
    "British": ({"model": {"initialise": "random"}}, ["spec.model.initialise: unknown field; did you mean initialize?"]),
    "a field of nowhere": (
        {"lrSchedule": {"cycles": 3}},
        ["spec.lrSchedule.cycles: unknown field; the fields here are warmupSteps, decayRatio, decayType, minLrFactor"],
    ),
    "a host path": (
        {"pod": {"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}},
        [
            "spec.pod.volumes[0].hostPath: unknown field; the fields here are name, persistentVolumeClaim, configMap, "
            "secret, emptyDir"
        ],
    ),
    "text for a number": ({"mesh": {"tp": "3"}}, ["spec.mesh.tp: must be a whole number, not the text '3'"]),
    "half a step": ({"training": {"steps": 1.5}}, ["spec.training.steps: must be a whole number, not the number 1.5"]),
    "yes for a number": ({"mesh": {"tp": True}}, ["spec.mesh.tp: must be a whole number, not true"]),
    "text for a switch": ({"training": {"compile": "on"}}, ["spec.training.compile: must be true or false, not the text 'on'"]),
    "a number for text": (
        {"pod": {"env": [{"name": "A", "value": 3}]}},
        ['spec.pod.env[0].value: must be text, not the number 3; put it in quotes: "3"'],
    ),
    "a list for a mapping": ({"checkpoint": []}, ["spec.checkpoint: must be a mapping of fields, not a list"]),
    "a mapping for a list": ({"pod": {"env": {"A": "x"}}}, ["spec.pod.env: must be a list, not a mapping"]),
    "too small": ({"training": {"seqLen": 4}}, ["spec.training.seqLen: 4 is too small; use at least 8"]),
    "too large": ({"mesh": {"gpusPerNode": 65}}, ["spec.mesh.gpusPerNode: 65 is too large; use at most 64"]),
    "not above zero": ({"optimizer": {"lr": 0}}, ["spec.optimizer.lr: 0 is too small; it must be more than 0"]),
    "not below one": ({"optimizer": {"betas": [0.9, 1]}}, ["spec.optimizer.betas[1]: 1 is too large; it must be less than 1"]),
    "huge": ({"training": {"seed": 10**30}}, ["spec.training.seed: 1000000000000000000000000000000 is too large; use at most 2147483647"]),
    "huger": ({"training": {"seed": 10**5000}}, ["spec.training.seed: a number of more than 40 digits is too large; use at most 2147483647"]),
    "no choice": ({"mesh": {"device": "tpu"}}, ["spec.mesh.device: must be gpu or cpu, not the text 'tpu'; did you mean gpu?"]),
    "no choice of three": (
        {"training": {"activationCheckpoint": "maybe"}},
        ["spec.training.activationCheckpoint: must be none, selective or full, not the text 'maybe'"],
    ),
    "a relative path": (
        {"dataset": {"path": "data"}},
        ["spec.dataset.path: 'data' is not allowed here; write an absolute path, starting with '/'"],
    ),
    "a quantity": (
        {"pod": {"shmSize": "3X"}},
        ["spec.pod.shmSize: '3X' is not allowed here; write a Kubernetes quantity, for example 500m, 4 or 16Gi"],
    ),
    "out of the folder": (
        {"checkpoint": {"folder": "a/../b"}},
        ["spec.checkpoint.folder: 'a/../b' is not allowed here; write a relative path, with no '..' and no part that starts with '.'"],
    ),
    "a Unicode name": (
        {"model": {"name": "Qwén/x"}},
        [
            "spec.model.name: 'Qwén/x' is not allowed here; write a hub id, for example Qwen/Qwen2.5-7B, "
            "or the absolute path of a folder"
        ],
    ),
    "an empty name": ({"model": {"name": ""}}, ["spec.model.name: is empty"]),
    "one beta": ({"optimizer": {"betas": [0.9]}}, ["spec.optimizer.betas: 1 entries are too few; use at least 2"]),
    "an override that is no value": (
        {"model": {"overrides": {"rope.theta": [1]}}},
        ['spec.model.overrides["rope.theta"]: must be true, false, a number or text'],
    ),
    "a label that is no text": (
        {"pod": {"labels": {"team/a": 3}}},
        ['spec.pod.labels["team/a"]: must be text, not the number 3; put it in quotes: "3"'],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_mistake(job_dict, case):
    changes, said = MISTAKES[case]
    loaded = review(job_dict(**changes))
    assert loaded.job is None
    assert [str(problem) for problem in loaded.problems] == said


def test_every_mistake_of_a_file_at_once_with_its_line():
    text = GOOD.replace("tp: 2", "tp: x, foo: 1").replace("kind: HFTitanJob", "kind: Job").replace("{steps: 100}", "{}")
    loaded = load(text)
    assert loaded.problems == (
        Problem("kind", "must be HFTitanJob, not the text 'Job'", 2),
        Problem("spec.mesh.tp", "must be a whole number, not the text 'x'", 8),
        Problem("spec.mesh.foo", "unknown field; the fields here are nodes, gpusPerNode, dpReplicate, dpShard, tp, pp, cp, ep, device", 8),
        Problem("spec.training.steps", "is required", 9),
    )  # fmt: skip


def test_rules_beyond_the_schema_have_lines_too():
    loaded = load(GOOD.replace("tp: 2", "tp: 3"))
    assert loaded.job is not None
    assert not loaded.ok
    assert loaded.problems == (
        Problem("spec.mesh.tp", "3 does not divide the 8 ranks (1 node x 8 GPUs); use 1, 2, 4 or 8", 8),
        Problem("spec.training.seqLen", "2048 is no multiple of tp 3 x 2 x cp 1 = 6; use 2046 or 2052", 9),
    )


def test_the_models_config_counts_when_it_is_given():
    (problem,) = load(GOOD, {"num_attention_heads": 9}).problems
    assert problem.message == "2 does not divide the 9 attention heads of HuggingFaceTB/SmolLM2-135M; use 1"


NO_JOB = {
    "": "line 1: the file is empty",
    "- a\n": "line 1: this is no job; it starts with apiVersion, kind, metadata and spec",
    "just text": "line 1: this is no job; it starts with apiVersion, kind, metadata and spec",
    "a: 1\n\tb: 2": "line 2: a tab; YAML is indented with spaces",
}


@pytest.mark.parametrize("text", NO_JOB)
def test_no_job_at_all(text):
    loaded = load(text)
    assert loaded.job is None
    (problem,) = loaded.problems
    assert problem.path == ""
    assert f"line {problem.line or 1}: {problem.message}" == NO_JOB[text]


def test_api_version_and_kind_are_asked_for(job_dict):
    job = job_dict()
    del job["apiVersion"], job["kind"]
    assert [str(p) for p in review(job).problems] == [
        "apiVersion: is required: hftitan.io/v1alpha1",
        "kind: is required: HFTitanJob",
    ]


def test_an_empty_field_is_an_absent_one(job_dict):
    """As on an API server, which prunes nulls before it fills in defaults."""
    loaded = review(job_dict(mesh={"tp": None}, runPolicy=None, model={"overrides": None}))
    assert loaded.ok
    assert loaded.job.spec.mesh.tp == 1
    (problem,) = review(job_dict(training={"steps": None})).problems
    assert str(problem) == "spec.training.steps: is required"


def test_a_status_in_a_file_is_ignored_and_one_from_the_server_read(job_dict):
    job = {**job_dict(), "status": {"phase": "Running", "attempt": 2}}
    assert load(yaml.safe_dump(job)).job.status.phase is None
    assert review(job).job.status.attempt == 2
    (problem,) = review({**job, "status": {"phase": "Flying"}}).problems
    assert problem.path == "status.phase"


def test_metadata_of_others_is_no_problem(job_dict):
    job = job_dict()
    job["metadata"].update(managedFields=[{}], resourceVersion="7", finalizers=["x/y"], selfLink="/a")
    assert review(job).ok


def test_quantities_may_be_whole_numbers(job_dict):
    loaded = review(job_dict(pod={"resources": {"requests": {"cpu": 4, "memory": "8Gi"}}}))
    assert loaded.ok
    assert loaded.job.spec.pod.resources.requests == {"cpu": "4", "memory": "8Gi"}


def test_reviewing_changes_nothing(job_dict):
    import copy

    job = job_dict(mesh={"tp": None}, pod={"env": [{"name": "A", "value": "x"}]})
    before = copy.deepcopy(job)
    review(job)
    assert job == before


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["spec", "mesh", "tp", "pod", "env", "name", "metadata", "", "a b", "model", "overrides"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(["spec", "metadata", "kind", "apiVersion", "status", "x"]), _JSON))
def test_any_object_gets_an_answer_and_never_an_exception(obj):
    loaded = review(obj)
    assert loaded.ok or all(problem.message for problem in loaded.problems)
    assert loaded.ok or loaded.problems
