"""The cluster's defaults for fields that a job omits, and what the defaults never change."""

from __future__ import annotations

import re

import pytest
import yaml
from core_builders import T0, job, pod, progress, running, seen, settle
from paths import ROOT

from hftitan_api.load import load_defaults
from hftitan_api.mesh import plan
from hftitan_api.models import PodDefaults, PodSpec
from hftitan_api.pod import TRAINER_IMAGE
from hftitan_operator.core.lifecycle.decide import decide
from hftitan_operator.core.rendering.defaults import NO_DEFAULTS, with_defaults
from hftitan_operator.core.rendering.render import render

ALL = {
    "image": "registry.example/trainer:2",
    "imagePullPolicy": "Always",
    "imagePullSecrets": ["registry"],
    "nodeSelector": {"pool": "training"},
    "tolerations": [{"key": "training", "operator": "Exists"}],
    "runtimeClassName": "nvidia",
    "hfTokenSecret": {"name": "hf", "key": "token"},
    "cacheVolume": "models",
}
OTHERS = {
    "image": "mine:1",
    "imagePullPolicy": "Never",
    "imagePullSecrets": ["mine"],
    "nodeSelector": {"zone": "a"},
    "tolerations": [{"operator": "Exists"}],
    "runtimeClassName": "kata",
    "hfTokenSecret": {"name": "mine", "key": "key"},
    "cacheVolume": "mine",
}
DEFAULTS = PodDefaults.model_validate(ALL)


def objects(of, defaults=DEFAULTS):
    return render(with_defaults(of, defaults), plan(of.spec), 1)


def test_both_tables_have_every_default():
    fields = {field.alias for field in PodDefaults.model_fields.values()}
    assert ALL.keys() == OTHERS.keys() == fields


def test_omitted_fields_get_the_defaults():
    pod = objects(job()).pods[0]["spec"]
    (container,) = pod["containers"]
    assert (container["image"], container["imagePullPolicy"]) == ("registry.example/trainer:2", "Always")
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert pod["nodeSelector"] == {"pool": "training"}
    assert {"key": "training", "operator": "Exists"} in pod["tolerations"]
    assert pod["runtimeClassName"] == "nvidia"
    token = {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf", "key": "token"}}}
    assert token in container["env"]
    assert {"name": "cache", "persistentVolumeClaim": {"claimName": "models"}} in pod["volumes"]


@pytest.mark.parametrize("field", OTHERS)
def test_a_jobs_value_replaces_the_default_entirely(field):
    mine = job(pod={field: OTHERS[field]})
    filled = with_defaults(mine, DEFAULTS).spec.pod.to_dict()
    assert {key: filled[key] for key in ALL} == {**ALL, field: OTHERS[field]}


@pytest.mark.parametrize("pod_spec", [{"imagePullSecrets": []}, {"nodeSelector": {}}, {"tolerations": []}])
def test_an_empty_list_or_map_counts_as_unset(pod_spec):
    """The API server distinguishes empty and absent values, but kubectl does not show the difference."""
    assert with_defaults(job(pod=pod_spec), DEFAULTS).spec == with_defaults(job(), DEFAULTS).spec


def test_defaults_change_no_other_field_and_not_the_trainers_document():
    before, after = job(), with_defaults(job(), DEFAULTS)
    others = PodSpec.model_fields.keys() - PodDefaults.model_fields.keys()
    assert {name: getattr(after.spec.pod, name) for name in others} == {
        name: getattr(before.spec.pod, name) for name in others
    }
    assert after.model_copy(update={"spec": before.spec}) == before
    assert with_defaults(before, NO_DEFAULTS) is before
    # Every attempt reads this document, whatever the defaults were when its pods were created.
    assert objects(before).config == objects(before, NO_DEFAULTS).config


def test_changed_defaults_apply_only_to_the_next_attempt():
    of = running(job())
    alive = seen(pod(0), pod(1), progress=progress(10))
    before, after = (decide(with_defaults(of, defaults), alive, T0) for defaults in (NO_DEFAULTS, DEFAULTS))
    assert before == after
    assert before.actions == ()
    of, _ = settle(of, seen(pod(0), pod(1, phase="Failed", exit_code=137)), T0)
    gone = decide(with_defaults(of, DEFAULTS), seen(), T0)
    made = [action.manifest for action in gone.actions if action.manifest["kind"] == "Pod"]
    assert {p["metadata"]["labels"]["hftitan.io/attempt"] for p in made} == {"2"}
    assert {p["spec"]["containers"][0]["image"] for p in made} == {"registry.example/trainer:2"}


def test_without_defaults_pods_use_the_trainer_image_and_a_scratch_cache():
    pod = objects(job(), NO_DEFAULTS).pods[0]["spec"]
    assert pod["containers"][0]["image"] == TRAINER_IMAGE
    assert {"name": "cache", "emptyDir": {}} in pod["volumes"]


def test_a_token_in_the_jobs_env_replaces_the_default_token():
    source = {"secretKeyRef": {"name": "mine", "key": "x"}}
    pod = objects(job(pod={"env": [{"name": "HF_TOKEN", "valueFrom": source}]})).pods[0]
    tokens = [v for v in pod["spec"]["containers"][0]["env"] if v["name"] == "HF_TOKEN"]
    assert tokens == [{"name": "HF_TOKEN", "valueFrom": source}]


def test_load_a_file_of_defaults():
    assert load_defaults(yaml.safe_dump(ALL)) == (DEFAULTS, ())
    assert load_defaults("{}") == (NO_DEFAULTS, ())
    assert load_defaults("image:\ntolerations: null\n") == (NO_DEFAULTS, ())


def test_the_example_in_the_documentation_is_valid():
    text = (ROOT / "docs" / "operating.md").read_text()
    (block,) = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    defaults, problems = load_defaults(block)
    assert problems == ()
    assert defaults.cache_volume == "models"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("image: [", "line 1: "),
        ("- image: x", "line 1: must contain fields of spec.pod, for example `image: registry/trainer:1`"),
        ("", "the file is empty"),
        ("image: 3", 'image: must be text, not the number 3; put it in quotes: "3"'),
        ("pod: {image: x}", "pod: unknown field; valid fields are image, imagePullPolicy, "),
        ("nodeSelctor: {a: b}", "nodeSelctor: unknown field; did you mean nodeSelector?"),
        ("env: [{name: A, value: b}]", "env: unknown field; valid fields are image, "),
        ("nodeSelector: {a: b c}", "nodeSelector.a: 'b c' is not a label value; "),
        (
            "tolerations: [{operator: Exists, value: x}]",
            "tolerations[0].value: operator Exists takes no value; remove it, or use operator: Equal",
        ),
        ("cacheVolume: A Claim", "cacheVolume: 'A Claim' is not allowed; use lower-case letters, "),
    ],
)
def test_an_error_in_the_file_names_its_field(text, problem):
    defaults, problems = load_defaults(text)
    assert defaults is None
    (found,) = problems
    assert str(found).startswith(problem)
