"""What a cluster sets for jobs that leave it out, and what it never touches."""

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
from hftitan_operator.core.decide import decide
from hftitan_operator.core.defaults import NO_DEFAULTS, with_defaults
from hftitan_operator.core.render import render

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


def test_the_tables_here_have_every_field():
    fields = {field.alias for field in PodDefaults.model_fields.values()}
    assert ALL.keys() == OTHERS.keys() == fields


def test_what_a_job_leaves_out_is_filled_in():
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
def test_what_a_job_says_is_its_own_as_a_whole(field):
    mine = job(pod={field: OTHERS[field]})
    filled = with_defaults(mine, DEFAULTS).spec.pod.to_dict()
    assert {key: filled[key] for key in ALL} == {**ALL, field: OTHERS[field]}


@pytest.mark.parametrize("said", [{"imagePullSecrets": []}, {"nodeSelector": {}}, {"tolerations": []}])
def test_an_empty_list_or_map_says_nothing(said):
    """The API server keeps them apart from absent ones, and kubectl does not show which it was."""
    assert with_defaults(job(pod=said), DEFAULTS).spec == with_defaults(job(), DEFAULTS).spec


def test_nothing_else_of_a_job_changes():
    before, after = job(), with_defaults(job(), DEFAULTS)
    others = PodSpec.model_fields.keys() - PodDefaults.model_fields.keys()
    assert {name: getattr(after.spec.pod, name) for name in others} == {
        name: getattr(before.spec.pod, name) for name in others
    }
    assert after.model_copy(update={"spec": before.spec}) == before
    assert with_defaults(before, NO_DEFAULTS) is before
    # Every attempt reads this document, whatever the defaults were when its pods were made.
    assert objects(before).config == objects(before, NO_DEFAULTS).config


def test_others_are_for_the_next_attempt_and_nothing_else():
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


def test_without_any_default_it_is_the_operators_own_image_and_scratch_space():
    pod = objects(job(), NO_DEFAULTS).pods[0]["spec"]
    assert pod["containers"][0]["image"] == TRAINER_IMAGE
    assert {"name": "cache", "emptyDir": {}} in pod["volumes"]


def test_a_token_that_a_job_has_in_its_own_way_stays_the_only_one():
    source = {"secretKeyRef": {"name": "mine", "key": "x"}}
    pod = objects(job(pod={"env": [{"name": "HF_TOKEN", "valueFrom": source}]})).pods[0]
    tokens = [v for v in pod["spec"]["containers"][0]["env"] if v["name"] == "HF_TOKEN"]
    assert tokens == [{"name": "HF_TOKEN", "valueFrom": source}]


def test_a_file_of_them_is_read():
    assert load_defaults(yaml.safe_dump(ALL)) == (DEFAULTS, ())
    assert load_defaults("{}") == (NO_DEFAULTS, ())
    assert load_defaults("image:\ntolerations: null\n") == (NO_DEFAULTS, ())


def test_the_file_that_the_documents_show_is_one():
    text = (ROOT / "docs" / "operating.md").read_text()
    (block,) = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    defaults, problems = load_defaults(block)
    assert problems == ()
    assert defaults.cache_volume == "models"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("image: [", "line 1: "),
        ("- image: x", "line 1: must hold fields of spec.pod, for example `image: registry/trainer:1`"),
        ("", "the file is empty"),
        ("image: 3", 'image: must be text, not the number 3; put it in quotes: "3"'),
        ("pod: {image: x}", "pod: unknown field; the fields here are image, imagePullPolicy, "),
        ("nodeSelctor: {a: b}", "nodeSelctor: unknown field; did you mean nodeSelector?"),
        ("env: [{name: A, value: b}]", "env: unknown field; the fields here are image, "),
        ("nodeSelector: {a: b c}", "nodeSelector.a: 'b c' is no label value; "),
        (
            "tolerations: [{operator: Exists, value: x}]",
            "tolerations[0].value: operator Exists takes no value; remove it, or use operator: Equal",
        ),
        ("cacheVolume: A Claim", "cacheVolume: 'A Claim' is not allowed here; write lower-case letters, "),
    ],
)
def test_a_mistake_in_the_file_names_its_field(text, problem):
    defaults, problems = load_defaults(text)
    assert defaults is None
    (found,) = problems
    assert str(found).startswith(problem)
