"""Files for GitHub and contributors: workflows, templates, hooks, CONTRIBUTING.md and docs/architecture.md."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from documents import ROOT, commands, prose

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
TEMPLATES = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
GUIDES = [ROOT / "CONTRIBUTING.md", ROOT / "docs/architecture.md"]
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
FOLDERS = (".ci", ".github", "bench", "charts", "crds", "docs", "examples", "hack", "operator", "tests", "trainer")
FILES = ("CHANGELOG.md", "Dockerfile", "LICENSE", "Makefile", "README.md", "pyproject.toml")
PATH = re.compile(
    rf"(?<![\w./-])(?:(?:{'|'.join(map(re.escape, FOLDERS))})/[\w.*/-]*[\w*/]|(?:{'|'.join(map(re.escape, FILES))})\b)"
)
IMAGES = {"operator", "trainer"}


def load(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def triggers(workflow: dict[Any, Any]) -> dict[str, Any]:
    return workflow[True]  # YAML 1.1 reads the key `on` as a boolean


def steps(workflow: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for job in workflow["jobs"].values():
        yield from job["steps"]


def texts(value: Any) -> Iterator[str]:
    """Yield every string in a YAML value, without keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from texts(each)


def missing(text: str) -> list[str]:
    """Return the paths in a text that match no file of the repository."""
    return [path for path in PATH.findall(text) if not any(ROOT.glob(path.rstrip("/")))]


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def test_helpers_find_paths_and_targets():
    assert missing("run: hack/none --to docs/spec.md, ghcr.io/hftitan/operator and charts/**") == ["hack/none"]
    assert {"demo", "test", "check", "generate"} <= TARGETS
    assert all((ROOT / name).exists() for name in (*FOLDERS, *FILES))
    assert names(WORKFLOWS) == ["chart.yml", "ci.yml", "images.yml"]
    assert names(TEMPLATES) == ["bug_report.yml", "feature_request.yml"]


# --- workflows ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", WORKFLOWS, ids=names(WORKFLOWS))
def test_workflow_has_the_required_keys(path):
    workflow = load(path)
    assert {"name", True, "permissions", "jobs"} <= workflow.keys()
    assert triggers(workflow)
    for job in workflow["jobs"].values():
        assert {"runs-on", "timeout-minutes", "steps"} <= job.keys()
    for step in steps(workflow):
        assert ("uses" in step) != ("run" in step), step
        assert "uses" not in step or re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step["uses"]), step


@pytest.mark.parametrize("path", WORKFLOWS, ids=names(WORKFLOWS))
def test_workflow_uses_existing_targets_programs_and_paths(path):
    workflow = load(path)
    for step in steps(workflow):
        for line in step.get("run", "").splitlines():
            if match := re.match(r"make\s+(.*)", line.strip()):
                assert set(match[1].split()) <= TARGETS, line
            elif line.startswith(FOLDERS):
                assert os.access(ROOT / line.split()[0], os.X_OK), line
    for text in texts(workflow):
        assert missing(text) == []


def test_ci_runs_the_test_command_of_the_readme():
    workflow = load(ROOT / ".github/workflows/ci.yml")
    assert {"push", "pull_request"} <= triggers(workflow).keys()
    job = workflow["jobs"]["test"]
    assert (job["container"]["image"], job["timeout-minutes"]) == ("debian:bookworm", 90)
    assert steps_run(job)[-1] == ".ci/run"
    assert "make test" in (ROOT / ".ci/run").read_text()


def steps_run(job: dict[str, Any]) -> list[str]:
    return [step["run"] for step in job["steps"] if "run" in step]


def test_images_workflow_builds_dockerfile_targets_and_pushes_only_tags():
    workflow = load(ROOT / ".github/workflows/images.yml")
    assert triggers(workflow)["push"] == {"tags": ["v*"]}
    job = workflow["jobs"]["image"]
    assert set(job["strategy"]["matrix"]["target"]) == IMAGES
    stages = re.findall(r"^FROM \S+ AS (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert set(stages) >= IMAGES
    build = job["steps"][-1]["with"]
    assert build["push"] == "${{ github.ref_type == 'tag' }}"
    assert build["tags"].startswith("ghcr.io/hftitan/${{ matrix.target }}:")


def test_chart_workflow_pushes_only_tags():
    workflow = load(ROOT / ".github/workflows/chart.yml")
    assert triggers(workflow)["push"] == {"tags": ["v*"]}
    pushes = [step for step in steps(workflow) if "helm push" in step.get("run", "")]
    assert [step["if"] for step in pushes] == ["github.ref_type == 'tag'"]
    assert load(ROOT / "charts/hftitan/Chart.yaml")["name"] == "hftitan"  # part of the package's file name


# --- templates and hooks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", TEMPLATES, ids=names(TEMPLATES))
def test_issue_template_has_the_required_keys(path):
    template = load(path)
    assert {"name", "description", "body"} <= template.keys()
    fields = [field for field in template["body"] if field["type"] != "markdown"]
    ids = [field["id"] for field in fields]
    assert len(set(ids)) == len(ids) > 0
    for field in template["body"]:
        assert field["type"] in {"markdown", "textarea", "input", "dropdown", "checkboxes"}
        assert "value" in field["attributes"] if field["type"] == "markdown" else field["attributes"]["label"]
        assert field["type"] != "dropdown" or field["attributes"]["options"]
    assert any(field["validations"]["required"] for field in fields)
    for text in texts(template):
        assert missing(text) == []


def test_pull_request_template_names_existing_targets():
    text = (ROOT / ".github/pull_request_template.md").read_text()
    assert set(re.findall(r"`make ([\w-]+)`", text)) <= TARGETS
    assert missing(text) == []


def test_pre_commit_hooks_run_the_same_ruff_as_make_check():
    (repository,) = load(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    hooks = {hook["id"]: hook for hook in repository["hooks"]}
    assert {name: hook["entry"] for name, hook in hooks.items()} == {
        "ruff-check": ".venv/bin/ruff check .",
        "ruff-format": ".venv/bin/ruff format .",
    }
    for hook in hooks.values():
        assert {"id", "name", "entry", "language"} <= hook.keys()


# --- guides ---------------------------------------------------------------------------------------------------


def code(document: Path) -> list[str]:
    """Return the inline code and the commands of shell blocks."""
    return [*prose(document), *commands(document)]


@pytest.mark.parametrize("document", GUIDES, ids=names(GUIDES))
def test_guide_names_existing_paths_and_targets(document):
    for each in code(document):
        assert missing(each) == [], each
        if match := re.match(r"make ([\w-]+)", each):
            assert match[1] in TARGETS, each


def test_tests_named_in_guides_exist():
    for each in (text for document in GUIDES for text in code(document)):
        for path, name in re.findall(r"(\S+\.py)::(\w+)", each):
            assert f"def {name}(" in (ROOT / path).read_text(), each


@pytest.mark.parametrize("package", ["operator/hftitan_operator", "trainer/hftitan_trainer"])
def test_guide_lists_every_package(package):
    found = {f"{folder.parent.relative_to(ROOT)}/" for folder in (ROOT / package).glob("*/__init__.py")}
    assert found <= set(code(GUIDES[0]))


def test_guide_lists_every_api_module():
    section = GUIDES[0].read_text().split("\n### API\n")[1].split("\n### ")[0]
    modules = {path.stem for path in (ROOT / "crds/hftitan_api").glob("*.py")} - {"__init__"}
    assert modules <= set(re.findall(r"`(\w+)`", section))


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "SECURITY.md"])
def test_links_to_files_exist(name):
    """test_documents.py checks docs/architecture.md. Links that leave the repository go to GitHub pages."""
    for target in re.findall(r"\]\(([^)\s#]+)", (ROOT / name).read_text()):
        if "://" not in target and not target.startswith("../../"):
            assert (ROOT / target).exists(), target
