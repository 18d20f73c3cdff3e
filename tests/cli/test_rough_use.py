"""The command as a process, in bad environments: it prints one line with the fix and no traceback."""

import os
import subprocess
import sys

import pytest
import yaml
from job_documents import ON_CPU, document

JOB = document("tiny", ON_CPU, training={"seqLen": 64})
COMMAND = f"{sys.executable} -c 'from hftitan_operator.cli.main import main; main()'"


@pytest.fixture
def shell(tmp_path):
    """Function: run a shell command line in an empty home that contains job.yaml."""
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(JOB))

    def run(line, **environ):
        known = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", **environ}
        script = f'set -o pipefail; hftitan() {{ {COMMAND} "$@"; }}; {line}'
        done = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, env=known, capture_output=True, timeout=60
        )  # fmt: skip
        assert b"Traceback" not in done.stderr, done.stderr.decode()
        return done

    return run


@pytest.mark.parametrize("words", ["list", "status tiny", "submit job.yaml", "list --context there", "operator"])
def test_no_kubeconfig(shell, tmp_path, words):
    done = shell(f"hftitan {words}")
    last = done.stderr.decode().splitlines()[-1].removeprefix("hftitan operator: ")
    where = f"{tmp_path}/.kube/config"
    assert last == f"no access to a cluster: {where} does not exist; set --kubeconfig FILE or KUBECONFIG"
    assert b"Config not found" not in done.stderr, "message of the Kubernetes client"
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("folder", "why"), [("/proc/nonsuch", "No such file or directory"), ("job.yaml", "File exists")]
)
def test_work_folder_that_cannot_be_created(shell, tmp_path, folder, why):
    done = shell(f"hftitan run job.yaml --workdir {folder}")
    place = folder if folder.startswith("/") else tmp_path / folder
    assert done.stderr.decode().splitlines()[-1] == (
        f"job.yaml: work folder {place}: {why}; give another with --workdir"
    )
    assert done.returncode == 2


@pytest.mark.parametrize("words", ["plan job.yaml", "render job.yaml", "crd", "rbac", "validate job.yaml", "--help"])
def test_closed_pipe(shell, words):
    """For output that is longer, and output that is shorter, than the buffer of the pipe."""
    done = shell(f"hftitan {words} | true")
    assert b"BrokenPipe" not in done.stderr
    assert done.returncode in (0, 1)


@pytest.mark.parametrize(
    "environ", [{"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "latin-1"}]
)
def test_characters_that_the_terminal_cannot_show(shell, tmp_path, environ):
    spec = JOB["spec"] | {"dataset": {"path": "/データ/a.txt"}}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({**JOB, "spec": spec}, allow_unicode=True))
    done = shell("hftitan plan job.yaml", **environ)
    assert done.returncode == 0, done.stderr
    assert b"job      tiny: org/model on /" in done.stdout


def test_singular_of_one_node(shell):
    assert b"mesh     1x1  (1 node x 1 CPU process, world size 1)" in shell("hftitan plan job.yaml").stdout


def test_list_of_commands_is_not_cut(shell):
    """typer cuts help texts that are too long for a line."""
    listed = shell("hftitan --help", COLUMNS="80").stdout.decode().partition("Commands:")[2]
    assert listed.count("\n") > 15
    assert "..." not in listed
