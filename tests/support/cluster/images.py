"""Builds the Dockerfile without an image registry, with buildah and a base image from hack/image-base."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from paths import ROOT

BUILD_SECONDS = 600


class Buildah:
    """Images and containers in a separate storage, kept between runs; `folder` is for the build's secrets."""

    def __init__(self, folder: Path) -> None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        driver = _driver(cache)
        self._folder, self._storage = folder, cache / "hftitan" / f"images-{driver}"
        made = self._call([str(ROOT / "hack" / "image-base"), str(self._storage), driver])
        self.base = made.split()[-1]
        self._words = ["buildah", "--root", str(self._storage), "--runroot", str(self._storage / "run")]
        self._words += ["--storage-driver", driver]

    def build(self, target: str, *options: str) -> str:
        """Build a target and return the name of its image."""
        name = f"localhost/hftitan-{target}"
        base = f"{target.upper()}_BASE={self.base}"
        words = [
            "bud",
            "--layers",
            "--isolation",
            "chroot",
            "--target",
            target,
            "--build-arg",
            base,
            *self._index(),
            *options,
        ]
        self.run([*words, "--tag", name, str(ROOT)])
        return name

    def run(self, words: Sequence[str]) -> str:
        return self._call([*self._words, *words])

    def command(self, container: str, words: Sequence[str], *options: str) -> list[str]:
        """Return the command that runs `words` in a container, as the image's user, on the host's network."""
        return [*self._words, "run", "--isolation", "chroot", *options, container, "--", *words]

    def _index(self) -> list[str]:
        """Return options: the machine's pip settings as a build secret, and mounts for the files that they name."""
        listed = self._call([sys.executable, "-m", "pip", "config", "list"])
        settings = configparser.ConfigParser(interpolation=None)
        settings["global"] = {}
        for key, value in re.findall(r"^(?:global|:env:)\.([\w-]+)='(.*)'$", listed, re.MULTILINE):
            settings["global"][key] = value.replace("\\n", "\n").replace(" ", "\n")
        file = self._folder / "pip.conf"
        with file.open("w") as out:
            settings.write(out)
        file.chmod(0o600)
        named = re.findall(r"(?:file://)?(/[\w./-]+)", " ".join(settings["global"].values()))
        folders = {path if path.is_dir() else path.parent for path in map(Path, named) if path.exists()}
        # An index may contain links to files elsewhere, so mount its whole top-level folder.
        tops = {Path(*folder.parts[:3]) for folder in folders}
        mounts = [f"--volume={top}:{top}:ro" for top in sorted(tops)]
        return [f"--secret=id=pip,src={file}", *mounts]

    @staticmethod
    def _call(words: Sequence[str]) -> str:
        done = subprocess.run(words, capture_output=True, text=True, timeout=BUILD_SECONDS, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, f"{shlex.join(words)}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout


def _driver(folder: Path) -> str:
    """Return buildah's storage driver for a folder: vfs, which copies every layer, where overlay cannot work."""
    folder.mkdir(parents=True, exist_ok=True)
    kind = subprocess.run(["stat", "-f", "-c", "%T", folder], capture_output=True, text=True, check=True).stdout
    return "vfs" if kind.strip() == "overlayfs" else "overlay"
