"""The chart's files match their sources, each other, and the rest of the repository."""

import importlib.util
import itertools
import json
import re
import shlex
import tomllib

import helm_python as helm
import pytest
import yaml
from helm_chart import CHART, ROOT

from hftitan_api.load import load
from hftitan_api.pod import TRAINER_IMAGE, PodDefaults
from hftitan_operator.core import naming
from hftitan_operator.core.rendering import admission

_SPEC = importlib.util.spec_from_file_location("hack_chart", ROOT / "hack" / "chart.py")
generator = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(generator)

META = yaml.safe_load((CHART / "Chart.yaml").read_text())
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ARTIFACTHUB = {key.removeprefix("artifacthub.io/"): text for key, text in META["annotations"].items()}


@pytest.mark.parametrize("path", generator.generated(), ids=lambda p: p.name)
def test_generated_files_are_up_to_date(path):
    assert path.read_text() == generator.generated()[path], "run `make generate`"


def test_a_value_without_a_comment_raises():
    with pytest.raises(ValueError, match=r"a\.c needs a comment"):
        list(generator.documented("# A comment.\nb:\n  x: 1\na:\n  c: 2\n"))


def test_readme_table_has_every_value():
    paths = [path for path, _, _ in generator.documented((CHART / "values.yaml").read_text())]
    for path in leaves(VALUES):
        assert any(path == p or path.startswith(f"{p}.") for p in paths), path


def test_braces_in_the_crd_are_escaped():
    assert generator._escaped("a: '{{ x }}'") == "a: '{{ \"{{\" }} x }}'"


def leaves(value, path=""):
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}".removeprefix("."))
    else:
        yield path


def schemas(schema, path="$"):
    """Yield every nested schema with its path."""
    yield path, schema
    for place in ("properties", "definitions"):
        for key, inner in schema.get(place, {}).items():
            yield from schemas(inner, f"{path}.{key}")
    for place in ("items", "additionalProperties"):
        if isinstance(schema.get(place), dict):
            yield from schemas(schema[place], f"{path}.{place}")


def test_schema_rejects_unknown_keys():
    objects = [(path, schema) for path, schema in schemas(SCHEMA) if schema.get("type") == "object"]
    assert len(objects) > 15
    for path, schema in objects:
        # Known keys only, or a map of strings. `global` belongs to the parent chart.
        others = schema.get("additionalProperties", {})
        assert others is False or others.get("type") == "string" or path == "$.global", path


def test_schema_and_values_have_the_same_keys():
    def keys(schema, path=""):
        if "$ref" in schema:
            schema = SCHEMA["definitions"][schema["$ref"].rpartition("/")[2]]
        for key, inner in schema.get("properties", {}).items():
            yield from keys(inner, f"{path}.{key}".removeprefix("."))
        if not schema.get("properties"):
            yield path

    def optional(path):
        """Maps with optional keys, which need no default."""
        return path.startswith(("resources.", "jobDefaults.hfTokenSecret"))

    wanted = {path for path in keys(SCHEMA) if not optional(path)} - {"global", "enabled"}
    assert wanted == {path for path in leaves(VALUES) if not optional(path)}


def test_job_defaults_have_exactly_the_fields_of_the_operator():
    fields = {field.alias for field in PodDefaults.model_fields.values()}
    assert VALUES["jobDefaults"].keys() == SCHEMA["properties"]["jobDefaults"]["properties"].keys() == fields


def test_version_and_license_match_the_project():
    assert META["version"] == META["appVersion"] == PROJECT["version"]
    assert META["annotations"]["artifacthub.io/license"] == PROJECT["license"]


def test_artifacthub_images_match_the_chart_and_dockerfile():
    images = {entry["name"]: entry["image"] for entry in yaml.safe_load(ARTIFACTHUB["images"])}
    operator = f"{VALUES['image']['repository']}:{META['appVersion']}"
    assert images == {"operator": operator, "trainer": TRAINER_IMAGE}
    for image in images.values():
        assert image in (ROOT / "Dockerfile").read_text()


def test_artifacthub_entry_matches_the_crd():
    crd = yaml.safe_load((ROOT / "crds" / "hftitanjobs.yaml").read_text())
    (entry,) = yaml.safe_load(ARTIFACTHUB["crds"])
    version = crd["spec"]["versions"][0]
    assert (entry["kind"], entry["version"], entry["name"]) == (
        crd["spec"]["names"]["kind"], version["name"], crd["metadata"]["name"],
    )  # fmt: skip
    assert entry["description"] + "." == version["schema"]["openAPIV3Schema"]["description"]


def assert_valid_job(document):
    loaded = load(document)
    assert loaded.problems == ()
    assert list(admission.problems(loaded.job)) == []


def test_artifacthub_example_is_a_valid_job():
    for document in yaml.safe_load(ARTIFACTHUB["crdsExamples"]):
        assert_valid_job(yaml.safe_dump(document))


@pytest.mark.parametrize("namespaces", [[], ["team-a", "team-b"]])
def test_notes_contain_a_valid_job_and_the_right_namespaces(namespaces):
    with helm.Chart.load(CHART) as chart:
        notes = chart.render({"namespaces": namespaces}, name="x", namespace="here")["hftitan/templates/NOTES.txt"]
    (job,) = re.findall(r"<<'JOB'\n(.*?)\n   JOB\n", notes, re.DOTALL)
    assert_valid_job(job)
    assert "kubectl -n here rollout status deployment/x-operator" in notes
    assert f"kubectl apply -n {(namespaces or ['default'])[0]} -f -" in notes


README = (CHART / "README.md").read_text()
BLOCKS = [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", README, re.MULTILINE | re.DOTALL)]


def test_values_in_the_readme_match_the_schema():
    shown = [values for values in BLOCKS if "scrape_configs" not in values]
    assert shown
    with helm.Chart.load(CHART) as chart:
        for values in shown:
            chart.validate_schema(values)


def test_helm_commands_in_the_documents_are_valid_for_this_chart():
    documents = [CHART / "README.md", ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    lines = [line for document in documents for line in document.read_text().splitlines()]
    commands = [shlex.split(line.partition(" #")[0])[1:] for line in lines if line.startswith("helm ")]
    assert len(commands) > 4
    for verb, release, *words in commands:
        helm.validate_release_name(release)
        if verb in ("install", "upgrade"):
            sets = [helm.parse_set_string(words[i + 1]) for i, word in enumerate(words) if word == "--set"]
            assert (ROOT / words[0]) == CHART
            with helm.Chart.load(ROOT / words[0]) as chart:
                for values in sets:
                    chart.validate_schema(values)


def test_readme_scrape_config_selects_only_running_pods_of_jobs():
    (config,) = (c for block in BLOCKS for c in block.get("scrape_configs", []))
    labels = {"trainer": naming.pod_labels("x", 1, 0)}
    labels["operator"] = {**labels["trainer"], "app.kubernetes.io/component": "operator"}
    targets = itertools.product(labels, ("metrics", "rendezvous"), ("Running", "Failed"))
    rules = config["relabel_configs"]
    kept = [(who, port, phase) for who, port, phase in targets if scraped(rules, labels[who], port, phase)]
    assert kept == [("trainer", "metrics", "Running")]


def scraped(rules, labels, port, phase):
    """Return whether Prometheus keeps the target, according to the rules `keep` and `drop`."""
    meta = {f"pod_label_{re.sub('[^a-zA-Z0-9]', '_', key)}": value for key, value in labels.items()}
    meta |= {"pod_container_port_name": port, "pod_phase": phase}
    for rule in rules:
        text = ";".join(meta.get(name.removeprefix("__meta_kubernetes_"), "") for name in rule["source_labels"])
        matches = re.fullmatch(rule.get("regex", "(.*)"), text) is not None
        if (rule.get("action") == "keep" and not matches) or (rule.get("action") == "drop" and matches):
            return False
    return True
