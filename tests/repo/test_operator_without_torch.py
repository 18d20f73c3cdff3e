"""The operator and the command line install and run without torch, as in the operator's image."""

import os
import subprocess
import sys
from pathlib import Path

from paths import ROOT

IMPORT_ALL = """
import importlib, importlib.util, pkgutil
for absent in ("torch", "transformers", "torchtitan", "datasets"):
    assert importlib.util.find_spec(absent) is None, f"{absent} must not be installed in this environment"
names = []
for package in ("hftitan_api", "hftitan_operator"):
    root = importlib.import_module(package)
    names += [m.name for m in pkgutil.walk_packages(root.__path__, package + ".")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
print(len(names))
"""


def test_operator_extra_imports_and_validates_without_torch(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def run(*command: str | Path) -> str:
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    uv = [sys.executable, "-m", "uv"]
    run(*uv, "venv", "--quiet", "--python", sys.executable, venv)
    constraints = ROOT / "hack" / "constraints.txt"
    run(*uv, "pip", "install", "--quiet", "--python", venv / "bin/python", "-c", constraints, f"{ROOT}[operator]")

    modules = int(run(venv / "bin/python", "-c", IMPORT_ALL))
    assert modules > 10
    answer = run(venv / "bin/hftitan", "validate", ROOT / "examples" / "smollm2.yaml")
    assert "smollm2" in answer
