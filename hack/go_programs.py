"""Builds programs of the Go modules in hack/go, which pin every version by go.mod and go.sum.

The modules of the programs come from GOPROXY. A newer Go than the installed one comes from there as well, if a module
needs it. Compiled packages stay in Go's own build cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from programs import Unavailable, cache, command, locked, made, missing, say

MODULES = Path(__file__).resolve().parent / "go"


def version_of(module: str, requirement: str) -> str:
    """Return the version that hack/go/MODULE/go.mod requires of another module, without the v."""
    found = re.search(
        rf"(?m)^(?:require)?\s+{re.escape(requirement)} v(\S+)$", (MODULES / module / "go.mod").read_text()
    )
    assert found is not None, requirement
    return found[1]


def folder_of(module: str, version: str) -> Path:
    """Return the folder of the built programs. Its name changes with the files of the module."""
    files = b"".join(path.read_bytes() for path in sorted((MODULES / module).glob("*.*")))
    return cache() / "go" / f"{module}-{version}-{hashlib.sha256(files).hexdigest()[:8]}"


def built(
    module: str,
    version: str,
    packages: Mapping[str, str],
    *,
    ldflags: str = "",
    tags: str = "",
    copies: Mapping[str, tuple[str, str]] | None = None,
) -> Path:
    """Return the folder with the programs of hack/go/MODULE, a mapping of program to package. The first call builds
    them.

    `copies`: more folders beside the programs, by name; each is a required module and a folder in it.
    Unavailable: there is no Go, or the build fails.
    """
    folder, contents = folder_of(module, version), (*packages, *(copies or {}))
    if not missing(folder, contents):
        return folder
    if not shutil.which("go"):
        raise Unavailable(f"building {module} {version} needs Go")
    with locked(f"go-{module}"):
        if missing(folder, contents):
            started = time.monotonic()
            say(f"building {module} {version} from its Go module (minutes, once)")
            with made(f"go-{module}", folder) as (_, result):
                _build(MODULES / module, packages, result, ldflags, tags)
                for name, (requirement, inside) in (copies or {}).items():
                    source = str(_source(MODULES / module, requirement) / inside)
                    command("cp", "-r", "--no-preserve=mode", source, str(result / name))  # modules are read-only
            say(f"built {module} {version} in {time.monotonic() - started:.0f} s")
    return folder


def _environ() -> dict[str, str]:
    go = {"GOWORK": "off", "GOFLAGS": "-mod=readonly -buildvcs=false", "GOTOOLCHAIN": "auto", "GO111MODULE": "on"}
    return {**os.environ, **go}


def _source(folder: Path, requirement: str) -> Path:
    """Return the folder of a required module in Go's module cache."""
    words = ["go", "mod", "download", "-json", requirement]
    done = subprocess.run(words, cwd=folder, env=_environ(), stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise Unavailable(f"`{' '.join(words)}` failed: {done.stdout[-500:]}")
    return Path(json.loads(done.stdout)["Dir"])


def _build(folder: Path, packages: Mapping[str, str], result: Path, ldflags: str, tags: str) -> None:
    environ = {**_environ(), "CGO_ENABLED": "0"}
    words = ["go", "build", "-trimpath", "-tags", tags, "-ldflags", f"-s -w {ldflags}"]
    # Packages named like their programs are built by one command, which uses all cores.
    alike = [package for name, package in packages.items() if package.endswith(f"/{name}")]
    if alike:
        command(*words, "-o", f"{result}/", *alike, cwd=folder, env=environ)
    for name, package in packages.items():
        if package not in alike:
            command(*words, "-o", str(result / name), package, cwd=folder, env=environ)
