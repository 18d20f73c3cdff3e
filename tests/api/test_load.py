# ruff: noqa: E501
"""Loading jobs: the exact message of each error, with the field as in YAML, the value and the fix."""

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


def test_small_job_is_valid():
    loaded = load(GOOD)
    assert loaded.ok
    assert loaded.job.spec.mesh.gpus_per_node == 8
    assert loaded.job.spec.optimizer.lr == 5e-5
    assert loaded.job.metadata.namespace == "default"


def test_json_is_accepted(job_dict):
    import json

    assert load(json.dumps(job_dict())).ok


# changes to a valid spec -> the exact message of every problem
INVALID = {
    "misspelt field": ({"mesh": {"tpp": 2}}, ["spec.mesh.tpp: unknown field; did you mean tp?"]),
    "snake case": ({"mesh": {"gpus_per_node": 2}}, ["spec.mesh.gpus_per_node: unknown field; did you mean gpusPerNode?"]),
    "field of another section": ({"training": {"lr": 1e-4}}, ["spec.training.lr: unknown field; did you mean spec.optimizer.lr?"]),
    "field of another section, in snake case": (
        {"training": {"warmup_steps": 3}},
        ["spec.training.warmup_steps: unknown field; did you mean spec.lrSchedule.warmupSteps?"],
    ),
    "field of two other sections": (
        {"training": {"interval": 3}},
        ["spec.training.interval: unknown field; did you mean spec.checkpoint.interval or spec.validation.interval?"],
    ),
    "British spelling": ({"model": {"initialise": "random"}}, ["spec.model.initialise: unknown field; did you mean initialize?"]),
    "field of no section": (
        {"lrSchedule": {"cycles": 3}},
        ["spec.lrSchedule.cycles: unknown field; valid fields are warmupSteps, decayRatio, decayType, minLrFactor"],
    ),
    "host path": (
        {"pod": {"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}},
        [
            "spec.pod.volumes[0].hostPath: unknown field; valid fields are name, persistentVolumeClaim, configMap, "
            "secret, emptyDir"
        ],
    ),
    "text for a number": ({"mesh": {"tp": "3"}}, ["spec.mesh.tp: must be a whole number, not the text '3'"]),
    "fraction for a whole number": ({"training": {"steps": 1.5}}, ["spec.training.steps: must be a whole number, not the number 1.5"]),
    "boolean for a number": ({"mesh": {"tp": True}}, ["spec.mesh.tp: must be a whole number, not true"]),
    "text for a boolean": ({"training": {"compile": "on"}}, ["spec.training.compile: must be true or false, not the text 'on'"]),
    "number for text": (
        {"pod": {"env": [{"name": "A", "value": 3}]}},
        ['spec.pod.env[0].value: must be text, not the number 3; put it in quotes: "3"'],
    ),
    "boolean for text": (
        {"pod": {"env": [{"name": "A", "value": True}]}},
        ['spec.pod.env[0].value: must be text, not true; put it in quotes: "true"'],
    ),
    "list for a mapping": ({"checkpoint": []}, ["spec.checkpoint: must be a mapping of fields, not a list"]),
    "mapping for a list": ({"pod": {"env": {"A": "x"}}}, ["spec.pod.env: must be a list, not a mapping"]),
    "too small": ({"training": {"seqLen": 4}}, ["spec.training.seqLen: 4 is too small; use at least 8"]),
    "too large": ({"mesh": {"gpusPerNode": 65}}, ["spec.mesh.gpusPerNode: 65 is too large; use at most 64"]),
    "not above zero": ({"optimizer": {"lr": 0}}, ["spec.optimizer.lr: 0 is too small; it must be more than 0"]),
    "not below one": ({"optimizer": {"betas": [0.9, 1]}}, ["spec.optimizer.betas[1]: 1 is too large; it must be less than 1"]),
    "huge": ({"training": {"seed": 10**30}}, ["spec.training.seed: 1000000000000000000000000000000 is too large; use at most 2147483647"]),
    "more than 40 digits": ({"training": {"seed": 10**5000}}, ["spec.training.seed: a number of more than 40 digits is too large; use at most 2147483647"]),
    "invalid choice": ({"mesh": {"device": "tpu"}}, ["spec.mesh.device: must be gpu or cpu, not the text 'tpu'; did you mean gpu?"]),
    "invalid choice of three": (
        {"training": {"activationCheckpoint": "maybe"}},
        ["spec.training.activationCheckpoint: must be none, selective or full, not the text 'maybe'"],
    ),
    "relative path": (
        {"dataset": {"path": "data"}},
        ["spec.dataset.path: 'data' is not allowed; use an absolute path, starting with '/'"],
    ),
    "invalid quantity": (
        {"pod": {"shmSize": "3X"}},
        ["spec.pod.shmSize: '3X' is not allowed; use a Kubernetes quantity, for example 500m, 4 or 16Gi"],
    ),
    "path outside the folder": (
        {"checkpoint": {"folder": "a/../b"}},
        ["spec.checkpoint.folder: 'a/../b' is not allowed; use a relative path, with no '..' and no part that starts with '.'"],
    ),
    "Unicode name": (
        {"model": {"name": "Qwén/x"}},
        [
            "spec.model.name: 'Qwén/x' is not allowed; use a hub id, for example Qwen/Qwen2.5-7B, "
            "or the absolute path of a folder"
        ],
    ),
    "empty name": ({"model": {"name": ""}}, ["spec.model.name: is empty"]),
    "one beta": ({"optimizer": {"betas": [0.9]}}, ["spec.optimizer.betas: 1 entries are too few; use at least 2"]),
    "override with a list": (
        {"model": {"overrides": {"rope.theta": [1]}}},
        ['spec.model.overrides["rope.theta"]: must be true, false, a number or text'],
    ),
    "number for a label value": (
        {"pod": {"labels": {"team/a": 3}}},
        ['spec.pod.labels["team/a"]: must be text, not the number 3; put it in quotes: "3"'],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", INVALID)
def test_exact_messages(job_dict, case):
    changes, messages = INVALID[case]
    loaded = review(job_dict(**changes))
    assert loaded.job is None
    assert [str(problem) for problem in loaded.problems] == messages


def test_all_errors_of_a_file_are_reported_with_their_lines():
    text = GOOD.replace("tp: 2", "tp: x, foo: 1").replace("kind: HFTitanJob", "kind: Job").replace("{steps: 100}", "{}")
    loaded = load(text)
    assert loaded.problems == (
        Problem("kind", "must be HFTitanJob, not the text 'Job'", 2),
        Problem("spec.mesh.tp", "must be a whole number, not the text 'x'", 8),
        Problem("spec.mesh.foo", "unknown field; valid fields are nodes, gpusPerNode, dpReplicate, dpShard, tp, pp, cp, ep, device", 8),
        Problem("spec.training.steps", "is required", 9),
    )  # fmt: skip


@pytest.mark.parametrize("text", ["0012345", "1.10", "1e3", "0x1F", "1_000", "true", "Yes", "off"])
def test_a_number_or_boolean_for_text_is_quoted_as_it_was_written(text):
    (problem,) = load(GOOD.replace("SmolLM2-135M}", f"SmolLM2-135M, revision: {text}}}")).problems
    assert problem.path == "spec.model.revision"
    assert problem.message.endswith(f'; put it in quotes: "{text}"')


def test_errors_beyond_the_schema_have_lines():
    loaded = load(GOOD.replace("tp: 2", "tp: 3"))
    assert loaded.job is not None
    assert not loaded.ok
    assert loaded.problems == (
        Problem("spec.mesh.tp", "3 does not divide the 8 ranks (1 node x 8 GPUs); use 1, 2, 4 or 8", 8),
        Problem("spec.training.seqLen", "2048 is not a multiple of tp 3 x 2 x cp 1 = 6; use 2046 or 2052", 9),
    )


def test_config_of_the_model_is_checked_if_given():
    (problem,) = load(GOOD, {"num_attention_heads": 9}).problems
    assert problem.message == "2 does not divide the 9 attention heads of HuggingFaceTB/SmolLM2-135M; use 1"


NOT_A_JOB = {
    "": "line 1: the file is empty",
    "- a\n": "line 1: this is not a job; write apiVersion, kind, metadata and spec",
    "just text": "line 1: this is not a job; write apiVersion, kind, metadata and spec",
    "a: 1\n\tb: 2": "line 2: tabs are not allowed; indent with spaces",
}


@pytest.mark.parametrize("text", NOT_A_JOB)
def test_text_that_is_not_a_job_is_rejected(text):
    loaded = load(text)
    assert loaded.job is None
    (problem,) = loaded.problems
    assert problem.path == ""
    assert f"line {problem.line or 1}: {problem.message}" == NOT_A_JOB[text]


def test_api_version_and_kind_are_required(job_dict):
    job = job_dict()
    del job["apiVersion"], job["kind"]
    assert [str(p) for p in review(job).problems] == [
        "apiVersion: is required; set it to hftitan.io/v1alpha1",
        "kind: is required; set it to HFTitanJob",
    ]


def test_null_counts_as_unset(job_dict):
    """The API server drops nulls before it applies defaults."""
    loaded = review(job_dict(mesh={"tp": None}, runPolicy=None, model={"overrides": None}))
    assert loaded.ok
    assert loaded.job.spec.mesh.tp == 1
    (problem,) = review(job_dict(training={"steps": None})).problems
    assert str(problem) == "spec.training.steps: is required"


def test_status_is_ignored_in_a_file_and_read_from_the_server(job_dict):
    job = {**job_dict(), "status": {"phase": "Running", "attempt": 2}}
    assert load(yaml.safe_dump(job)).job.status.phase is None
    assert review(job).job.status.attempt == 2
    (problem,) = review({**job, "status": {"phase": "Flying"}}).problems
    assert problem.path == "status.phase"


def test_unused_metadata_is_ignored(job_dict):
    job = job_dict()
    job["metadata"].update(managedFields=[{}], resourceVersion="7", finalizers=["x/y"], selfLink="/a")
    assert review(job).ok


def test_quantities_may_be_whole_numbers(job_dict):
    loaded = review(job_dict(pod={"resources": {"requests": {"cpu": 4, "memory": "8Gi"}}}))
    assert loaded.ok
    assert loaded.job.spec.pod.resources.requests == {"cpu": "4", "memory": "8Gi"}


def test_review_does_not_modify_its_input(job_dict):
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
def test_any_object_is_valid_or_has_problems_and_never_raises(obj):
    loaded = review(obj)
    assert loaded.ok or all(problem.message for problem in loaded.problems)
    assert loaded.ok or loaded.problems
