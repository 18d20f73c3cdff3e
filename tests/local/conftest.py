"""Fixtures for local runs: a small job, a work folder, and a fake trainer instead of torchrun."""

import os
import signal
import subprocess
import sys
import time

import pytest
import yaml
from paths import FAKE_TRAINER

from hftitan_api.mesh import plan
from hftitan_api.models import HFTitanJob
from hftitan_operator.local import prepare as local_prepare
from hftitan_operator.local import store

PROGRAMS = {"hftitan-agent": (sys.executable, str(FAKE_TRAINER))}


def document(**spec):
    """Return a two-node CPU job as a plain document; keyword arguments replace sections of its spec."""
    base = {
        "model": {"name": "org/model"},
        "dataset": {"name": "org/data"},
        "mesh": {"nodes": 2, "device": "cpu"},
        "training": {"steps": 5, "seqLen": 64},
        "checkpoint": {"interval": 2},
    }
    return {
        "apiVersion": "hftitan.io/v1alpha1",
        "kind": "HFTitanJob",
        "metadata": {"name": "tiny"},
        "spec": base | spec,
    }


@pytest.fixture
def make_job():
    def make(**spec):
        return HFTitanJob.model_validate(document(**spec))

    return make


@pytest.fixture
def prepare(tmp_path, make_job):
    """Function: prepare a run of the fake trainer in tmp_path/run; `fake` lists its faults (fake_trainer.py)."""

    def make(fake="", environ=None, volumes=None, **spec):
        job = local_prepare.localize(make_job(**spec), volumes or {})
        environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "FAKE": fake, **(environ or {})}
        prepared, problems = local_prepare.prepare(
            job, plan(job.spec), tmp_path / "run", environ=environ, volumes=volumes or {}, programs=PROGRAMS
        )
        assert problems == []
        return prepared

    return make


@pytest.fixture
def pids_of():
    """Function: return the ids of all processes of a work folder."""
    return lambda workdir: store.tagged("HFTITAN_LOCAL_WORKDIR", str(workdir))


@pytest.fixture
def wait_for():
    """Function: wait for the first true value of `condition()` and return it."""

    def wait(condition, timeout=20.0):
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if value := condition():
                return value
            time.sleep(0.02)
        raise AssertionError(f"not true within {timeout:g} s")

    return wait


@pytest.fixture
def job_document():
    return document


@pytest.fixture
def hftitan(tmp_path):
    """Function: start `hftitan run` as a process, with the fake trainer; killed at the end of the test."""
    started = []

    def start(*arguments, fake="", job=None, workdir="run", env=None):
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump(job or document()))
        launcher = (
            "import sys; from hftitan_operator.local import prepare as p; "
            f"p.AGENT = {PROGRAMS['hftitan-agent']!r}; from hftitan_operator.cli.main import main; main()"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", launcher, "run", str(path), "--workdir", str(tmp_path / workdir), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "FAKE": fake, **(env or {})},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.communicate()
