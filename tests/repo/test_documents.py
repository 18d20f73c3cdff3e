"""Nothing is shown in a document that no test runs or validates: here, or where the comments say."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml
from documents import DOCUMENTS, ROOT, blocks, commands, prose

from hftitan_api.load import load
from hftitan_operator.cli.main import app
from hftitan_operator.core import admission

EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
CHART = ROOT / "charts/hftitan/README.md"
CLUSTER = ("submit", "list", "status", "logs", "describe", "events", "suspend", "resume", "delete")
PROGRAM = str(Path(sys.executable).with_name("hftitan"))
OFFLINE = {**os.environ, "HF_HUB_OFFLINE": "1"}
"""Whether the hub answers is not what is tested."""


def yaml_blocks():
    """(id, the document, the text, the value) of each."""
    for document in DOCUMENTS:
        for number, block in enumerate(block for block in blocks(document) if block.language == "yaml"):
            yield f"{document.relative_to(ROOT)}-{number}", document, block.text, yaml.safe_load(block.text)


JOBS = [(path.name, path.read_text()) for path in EXAMPLES] + [
    (name, text) for name, _, text, value in yaml_blocks() if value.get("kind") == "HFTitanJob"
]
DEFAULTS = [
    (name, text) for name, _, text, value in yaml_blocks() if value.keys() <= {"image", "tolerations", "cacheVolume"}
]
SCRAPE = [(name, document) for name, document, _, value in yaml_blocks() if "scrape_configs" in value]


@pytest.mark.parametrize(("name", "text"), JOBS, ids=[name for name, _ in JOBS])
def test_job_is_accepted(name, text):
    loaded = load(text)
    assert loaded.problems == ()
    assert loaded.job is not None
    assert list(admission.problems(loaded.job)) == []


@pytest.mark.parametrize(("name", "text"), DEFAULTS, ids=[name for name, _ in DEFAULTS])
def test_defaults_for_jobs_are_accepted(name, text, tmp_path):
    (tmp_path / "defaults.yaml").write_text(text)
    run("hftitan", "validate", EXAMPLES[0], "--job-defaults", tmp_path / "defaults.yaml")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_block_is_of_a_kind_that_is_tested(document):
    assert {block.language for block in blocks(document)} <= {"bash", "yaml", "python", "mermaid"}
    tested = {name for name, _ in [*JOBS, *DEFAULTS, *SCRAPE]}
    for name, place, text, _ in yaml_blocks():
        # Values of the chart: tests/chart/test_chart_files.py. Scrape jobs: there and in tests/monitoring.
        assert name in tested or place == CHART, f"{name}: say here what tests it\n{text}"
    assert {place for _, place in SCRAPE} <= {CHART, ROOT / "docs/monitoring.md"}
    if document != ROOT / "README.md":  # whose Python is tests/trainer/test_api.py's
        assert all(block.language != "python" for block in blocks(document))


def run(*words):
    done = subprocess.run([PROGRAM, *map(str, words[1:])], cwd=ROOT, env=OFFLINE, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def works(words):
    """A command of `hftitan` as it is shown."""
    if words[1] in CLUSTER:
        # The arguments, and the file of `submit`, must be right; the rest is tests/cluster/test_cli_cluster.py's.
        done = subprocess.run([PROGRAM, *words[1:], "--kubeconfig", "/none"], cwd=ROOT, capture_output=True, text=True)
        return done.stderr.splitlines()[-1] == "--kubeconfig /none: no such file"
    if words[1] == "run":  # itself it takes minutes: `make demo`, and tests/local; here it must get as far as to start
        words = ["hftitan", "validate", *words[2:]]
    run(*words)
    return True


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_work(document):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for command in commands(document):
        words = shlex.split(command.split(" | kubectl ")[0])
        where = f"{document.name}: {command}"
        if words[0] == "hftitan":
            assert works(words), where
        elif words[0] == "make":
            assert set(words[1:]) <= set(targets), where
        elif words[0].startswith("hack/"):  # make test runs it
            assert os.access(ROOT / words[0], os.X_OK), where
        elif words[0] == ".venv/bin/python" and words[1].startswith("bench/"):  # minutes, by hand
            subprocess.run([sys.executable, *words[1:], "--help"], cwd=ROOT, capture_output=True, check=True)
        elif words[0] == ".venv/bin/python":
            compile((ROOT / words[1]).read_text(), words[1], "exec")
        else:
            # kubectl: tests/cluster/test_documents_kubectl.py; helm: tests/chart/test_chart_files.py.
            assert words[0] in ("kubectl", "helm"), f"{where}: add it here"


def inline():
    """`hftitan ...` within sentences and tables: (document, words)."""
    for document in DOCUMENTS:
        for code in prose(document):
            if re.match(r"hftitan \w", code):
                yield document, code.split(" | ")[0].split()


def test_commands_in_sentences_exist_with_their_options():
    root = typer.main.get_command(app)
    for document, words in inline():
        for name in words[1].split("|"):
            command = root.commands.get(name)
            assert command or name.startswith("-"), f"{document.name}: {' '.join(words)}"
            known = {option for param in (command or root).params for option in param.opts} | {"--help"}
            assert {word.split("=")[0] for word in words[2:] if word.startswith("-") and word != "-"} <= known, (
                f"{document.name}: {' '.join(words)}"
            )


def test_links_lead_somewhere():
    """Of documents to files of ours, and to headings in them."""
    for document in DOCUMENTS:
        text = document.read_text()
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            path, _, heading = target.partition("#")
            if "://" in path:
                continue
            found = (document.parent / path).resolve() if path else document
            assert found.exists(), f"{document.relative_to(ROOT)}: {target}"
            if heading:
                assert heading in headings(found), f"{document.relative_to(ROOT)}: {target}"


def headings(document):
    """As GitHub names them in links."""
    words = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in words}
