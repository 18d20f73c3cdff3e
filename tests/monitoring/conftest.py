"""Fixtures for this folder: prometheus and promtool."""

import subprocess
from pathlib import Path

import pytest
from paths import ROOT


@pytest.fixture(scope="session")
def prometheus_programs():
    """Return the folder with prometheus and promtool."""
    done = subprocess.run([ROOT / "hack" / "prometheus"], stdout=subprocess.PIPE, text=True, check=True)
    return Path(done.stdout.strip())


@pytest.fixture(scope="session")
def promtool(prometheus_programs):
    """Return a function that runs promtool and returns its output. AssertionError if promtool fails."""

    def run(*words, text=""):
        command = [prometheus_programs / "promtool", *map(str, words)]
        done = subprocess.run(command, input=text, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run
