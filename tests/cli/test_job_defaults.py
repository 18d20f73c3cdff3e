"""`--job-defaults FILE` of render, validate and operator."""

import pytest
import yaml
from job_documents import ON_CPU, document
from typer.testing import CliRunner

from hftitan_operator.cli.main import app
from hftitan_operator.kube import operator

JOB = document("tiny", ON_CPU)


@pytest.fixture
def hftitan(tmp_path, monkeypatch):
    """Function: run a command in a folder with job.yaml, good.yaml and bad.yaml."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(JOB))
    (tmp_path / "good.yaml").write_text("image: registry.example/trainer:2\n")
    (tmp_path / "bad.yaml").write_text("imgae: x\n")
    return lambda *arguments: CliRunner().invoke(app, arguments)


def test_render_applies_them_to_the_pods(hftitan):
    done = hftitan("render", "job.yaml", "--job-defaults", "good.yaml")
    (pod,) = (thing for thing in yaml.safe_load_all(done.stdout) if thing["kind"] == "Pod")
    assert pod["spec"]["containers"][0]["image"] == "registry.example/trainer:2"


@pytest.mark.parametrize("command", [("render", "job.yaml"), ("validate", "job.yaml"), ("operator",)])
def test_error_names_the_file_and_the_field(hftitan, command):
    done = hftitan(*command, "--job-defaults", "bad.yaml")
    assert done.exit_code == 2
    assert done.stderr == "bad.yaml: imgae: unknown field; did you mean image?\n"


def test_missing_file(hftitan):
    done = hftitan("operator", "--job-defaults", "none.yaml")
    assert (done.exit_code, done.stderr) == (2, "none.yaml: No such file or directory\n")


def test_validate_accepts_a_valid_file(hftitan):
    assert hftitan("validate", "job.yaml", "--job-defaults", "good.yaml").exit_code == 0


def test_operator_uses_them(hftitan, monkeypatch):
    given = []
    monkeypatch.setattr(operator, "main", lambda options, level: given.append(options))
    assert hftitan("operator", "--job-defaults", "good.yaml").exit_code == 0
    assert given[0].defaults.image == "registry.example/trainer:2"
