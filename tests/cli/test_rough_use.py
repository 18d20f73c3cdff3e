"""The command as a process, as people use it on a bad day: each time a line that says what to do, and no traceback."""

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
    """Function: a shell's command line in an empty home, with job.yaml there; `hftitan` is ours."""
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
    assert last == f"no access to a cluster: there is no {where}; give --kubeconfig FILE or set KUBECONFIG"
    assert b"Config not found" not in done.stderr, "the client's own words"
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("folder", "why"), [("/proc/nonsuch", "No such file or directory"), ("job.yaml", "File exists")]
)
def test_a_work_folder_that_cannot_be(shell, tmp_path, folder, why):
    done = shell(f"hftitan run job.yaml --workdir {folder}")
    place = folder if folder.startswith("/") else tmp_path / folder
    assert done.stderr.decode().splitlines()[-1] == (
        f"job.yaml: work folder {place}: {why}; give another with --workdir"
    )
    assert done.returncode == 2


@pytest.mark.parametrize("words", ["plan job.yaml", "render job.yaml", "crd", "rbac", "validate job.yaml", "--help"])
def test_a_reader_that_goes_away(shell, words):
    """`| head -1` of what is longer than a pipe holds, and of what is shorter."""
    done = shell(f"hftitan {words} | true")
    assert b"BrokenPipe" not in done.stderr
    assert done.returncode in (0, 1)


@pytest.mark.parametrize(
    "environ", [{"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "latin-1"}]
)
def test_words_that_the_terminal_has_no_letters_for(shell, tmp_path, environ):
    spec = JOB["spec"] | {"dataset": {"path": "/データ/a.txt"}}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({**JOB, "spec": spec}, allow_unicode=True))
    done = shell("hftitan plan job.yaml", **environ)
    assert done.returncode == 0, done.stderr
    assert b"job      tiny: org/model on /" in done.stdout


def test_one_node_is_no_nodes(shell):
    assert b"mesh     1x1  (1 node x 1 CPU process, world size 1)" in shell("hftitan plan job.yaml").stdout


def test_the_list_of_commands_is_not_cut(shell):
    """Of a help that is too long for a line, the library shows the beginning and dots."""
    listed = shell("hftitan --help", COLUMNS="80").stdout.decode().partition("Commands:")[2]
    assert listed.count("\n") > 15
    assert "..." not in listed
