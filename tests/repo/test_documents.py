"""Every YAML that a user may copy is a valid job, and every command that the README shows works."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hftitan_api.load import load
from hftitan_operator.core import admission

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)


JOBS = [(path.name, path.read_text()) for path in EXAMPLES] + [
    (f"{document.name}-{i}", block)
    for document in DOCUMENTS
    for i, block in enumerate(blocks(document, "yaml"))
    if (yaml.safe_load(block) or {}).get("kind") == "HFTitanJob"
]


@pytest.mark.parametrize(("name", "text"), JOBS, ids=[name for name, _ in JOBS])
def test_job_is_accepted(name: str, text: str) -> None:
    loaded = load(text)
    assert loaded.problems == ()
    assert loaded.job is not None
    assert list(admission.problems(loaded.job)) == []


# Shown in the README, run elsewhere: make demo and make test are what CI is for, hack/control-plane is part of it, and
# the rest needs a cluster, or minutes.
ELSEWHERE = ("make ", "git clone", "cd ", "kubectl ", "helm ", "hack/control-plane", ".venv/bin/python bench/")


ON_A_CLUSTER = ("submit", "list", "status", "logs", "describe", "events", "suspend", "resume", "delete")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_commands_work(document: Path) -> None:
    commands = [
        line.split(" #")[0].split(" | kubectl ")[0].strip()
        for block in blocks(document, "(?:bash|sh|console)")
        for line in block.splitlines()
        if line.strip() and not line.startswith(("#", *ELSEWHERE))
    ]
    for command in commands:
        words = shlex.split(command)
        assert words[0] == "hftitan", f"{document.name}: add {command!r} to this test"
        if words[1] == "run":
            # The run itself is `make demo`; here the job file must at least pass what `run` checks first.
            words = ["hftitan", "validate", words[2]]
        cluster = words[1] in ON_A_CLUSTER
        if cluster:
            # Their arguments, and the file of `submit`, must be right; the rest is tests/kube/test_cli_cluster.py's.
            words += ["--kubeconfig", "/none"]
        words[0] = str(Path(sys.executable).with_name("hftitan"))
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        if cluster:
            assert done.stderr.splitlines()[-1] == "--kubeconfig /none: no such file", f"{command}\n{done.stderr}"
        else:
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
