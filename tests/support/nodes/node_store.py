"""containerd's image store: imported once from buildah's storage, kept, and linked into the folder of each node."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from images import Buildah
from kubectl import wait
from processes import die_with_parent

IMPORT_SECONDS = 600


class Store:
    """`path`: PATH with containerd and ctr."""

    def __init__(self, buildah: Buildah, path: str) -> None:
        self._buildah, self._path = buildah, path
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self._folder = cache / "hftitan" / "node-store"

    def add(self, images: Mapping[str, str]) -> None:
        """Import images, a mapping of the name in the cluster to the name in buildah's storage."""
        record = self._folder / "images"
        known = dict(line.split() for line in record.read_text().splitlines()) if record.exists() else {}
        ids = {name: self._id(image) for name, image in images.items()}
        wanted = {name: image for name, image in images.items() if known.get(name) != ids[name]}
        if wanted:
            self._folder.mkdir(parents=True, exist_ok=True)
            record.unlink(missing_ok=True)
            self._import(wanted)
            record.write_text("".join(f"{name} {key}\n" for name, key in {**known, **ids}.items()))

    def link_into(self, folder: Path) -> None:
        """Create a node's containerd root. Files are hard links, except the databases, which the node changes."""
        if folder.exists():
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-al", self._folder / "root", folder], check=True)
        for database in folder.rglob("*.db"):
            copy = database.with_suffix(".copy")
            shutil.copy2(database, copy)
            copy.replace(database)

    def _id(self, image: str) -> str:
        return self._buildah.run(["inspect", "--type", "image", "--format", "{{.FromImageID}}", image]).strip()

    def _import(self, images: Mapping[str, str]) -> None:
        environ = {**os.environ, "PATH": f"{self._path}:{os.environ['PATH']}"}
        with tempfile.TemporaryDirectory(dir=self._folder) as scratch:
            socket, config = f"{scratch}/sock", Path(scratch, "containerd.toml")
            config.write_text(
                f'version = 3\nroot = "{self._folder / "root"}"\nstate = "{scratch}/state"\n'
                f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "{socket}"\n'
            )
            with open(f"{scratch}/log", "wb") as log:
                process = subprocess.Popen(
                    ["containerd", "--config", config], env=environ, stdout=log, stderr=log, preexec_fn=die_with_parent
                )
            try:
                wait(lambda: os.path.exists(socket), "containerd", 60)
                for name, image in images.items():
                    archive = f"{scratch}/image.tar"
                    self._buildah.run(["push", image, f"docker-archive:{archive}:{name}"])
                    ctr = ["ctr", "--address", socket, "--namespace", "k8s.io"]
                    words = [*ctr, "images", "import", "--local", "--discard-unpacked-layers", archive]
                    done = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=IMPORT_SECONDS)
                    assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}{Path(scratch, 'log').read_text()}"
                    os.unlink(archive)
            finally:
                process.terminate()
                process.wait()
