"""A Kubernetes cluster on this machine with real nodes: containers run by containerd, Services by kube-proxy.

    with Cluster(folder, assets, path, store, nodes=2) as cluster:
        cluster.admin.list("nodes")

Needs root, and uses one bridge of the machine's network, so only one such cluster can run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import helm_python as helm
from control_plane import ControlPlane
from images import Buildah
from kubectl import Kubectl, wait
from node import PAUSE_IMAGE, Network, Node, ip
from node_store import Store
from paths import ROOT
from processes import die_with_parent

OPERATOR_IMAGE, TRAINER_IMAGE = (f"ghcr.io/hftitan/{name}:0.1.0" for name in ("operator", "trainer"))
NAMESPACE, CHART = "hftitan-system", ROOT / "charts" / "hftitan"
DEBIAN_IMAGE = "docker.io/library/debian:bookworm-slim"
"""The image of examples/cluster/files.yaml. The tests' base image stands in for it."""
CUDA = ("nvidia", "triton")
"""Packages that the tests' trainer image lacks (Dockerfile: CUDA=mounted). The nodes mount them from .venv."""
READY_SECONDS = 90
VOLUMES = 8


class Cluster:
    """`path`: PATH of hack/node. `store`: the images of the nodes."""

    def __init__(
        self,
        folder: Path,
        assets: Path,
        path: str,
        store: Store,
        *,
        nodes: int = 2,
        crds: Sequence[Path] = (),
        mounts: Sequence[tuple[Path, str]] = (),
    ) -> None:
        self.folder, self.assets, self.network, self._store = folder, assets, Network(), store
        self._path = f"{path}:{assets}:/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
        self.plane = ControlPlane(
            folder / "control-plane", assets, address=self.network.gateway, crds=crds, node_monitor_grace=8.0
        )
        self.nodes: dict[str, Node] = {}
        self._count, self._mounts, self._dns = nodes, mounts, None

    @property
    def admin(self) -> Kubectl:
        return self.plane.admin

    def __enter__(self) -> Cluster:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        self._make_bridge()
        self.plane.start()
        kubeconfig = self.plane.kubeconfig("admin")
        self._start_dns(kubeconfig)
        for number in range(1, self._count + 1):
            name = f"node-{number}"
            node = Node(
                name, number, self.folder / name, path=self._path, network=self.network, kubeconfig=kubeconfig,
                dns=self.network.gateway, mounts=self._mounts,
            )  # fmt: skip
            self.nodes[name] = node
            self._start(node)
        for node in self.nodes.values():
            self._join(node)
        for number in range(VOLUMES):
            self._make_volume(number)
        for name in self.nodes:
            self.wait_ready(name)

    def _start(self, node: Node) -> None:
        self._store.link_into(node.folder / "containerd")
        node.start()

    def _join(self, node: Node) -> None:
        for other in self.nodes.values():
            if other is not node:
                node.route_to(other)
        node.start_kubernetes()

    def close(self) -> None:
        for node in self.nodes.values():
            node.close()
        if self._dns is not None:
            self._dns.kill()
            self._dns.wait()
        self.plane.close()
        subprocess.run(["ip", "link", "delete", self.network.bridge], capture_output=True)

    def wait_ready(self, name: str, *, ready: bool = True) -> None:
        def is_ready(node: dict[str, Any]) -> bool:
            conditions = {c["type"]: c["status"] for c in node.get("status", {}).get("conditions", [])}
            return (conditions.get("Ready") == "True") == ready

        if ready:
            wait(lambda: self.admin.find("nodes", name), f"node {name}", READY_SECONDS)
        wait(lambda: is_ready(self.admin.find("nodes", name) or {}), f"node {name}: ready={ready}", READY_SECONDS)

    def _make_bridge(self) -> None:
        bridge = self.network.bridge
        subprocess.run(["ip", "link", "delete", bridge], capture_output=True)
        ip("link", "add", bridge, "type", "bridge")
        ip("address", "add", f"{self.network.gateway}/24", "dev", bridge)
        ip("link", "set", bridge, "up")

    def _start_dns(self, kubeconfig: Path) -> None:
        corefile = self.folder / "Corefile"
        corefile.write_text(
            f".:53 {{\n    bind {self.network.gateway}\n    errors\n"
            f"    kubernetes cluster.local {{\n        kubeconfig {kubeconfig}\n    }}\n}}\n"
        )
        with (self.folder / "coredns.log").open("ab") as log:
            words = ["env", f"PATH={self._path}", "coredns", "-conf", str(corefile)]
            self._dns = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=die_with_parent
            )

    def _make_volume(self, number: int) -> None:
        """Create a volume that both nodes can mount, because they share this machine's files."""
        self.make_volume(f"volume-{number}", self.folder / "volumes" / str(number))

    def make_volume(self, name: str, folder: Path, claim: tuple[str, str] | None = None) -> None:
        """Create a volume for any claim, or for the one with this namespace and name."""
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o777)
        spec: dict[str, Any] = {
            "accessModes": ["ReadWriteMany", "ReadWriteOnce"],
            "capacity": {"storage": "1Ti"},
            "hostPath": {"path": str(folder)},
            "persistentVolumeReclaimPolicy": "Retain",
        }
        if claim is not None:
            spec["claimRef"] = {"namespace": claim[0], "name": claim[1]}
        self.admin.apply({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec})

    def install_chart(self, **values: Any) -> None:
        """`helm install` the chart, and wait until its replicas are ready."""
        self.admin.make_namespace(NAMESPACE)
        self._helm().install(str(CHART), "hftitan", values, namespace=NAMESPACE)
        self._wait_for_operator()

    def upgrade_chart(self, **values: Any) -> None:
        """`helm upgrade`, and wait until the new replicas are ready and the old ones removed."""
        self._helm().upgrade(str(CHART), "hftitan", values, namespace=NAMESPACE)
        self._wait_for_operator()

    def _helm(self) -> helm.Config:
        return helm.Config(kubeconfig_path=self.plane.kubeconfig("admin"), namespace=NAMESPACE)

    def _wait_for_operator(self) -> None:
        def rolled_out(deployment: dict[str, Any]) -> bool:
            status, generation = deployment.get("status", {}), deployment["metadata"]["generation"]
            counts = [status.get(name, 0) for name in ("replicas", "updatedReplicas", "readyReplicas")]
            return status.get("observedGeneration") == generation and counts == [deployment["spec"]["replicas"]] * 3

        self.admin.wait_for("deployments", "hftitan-operator", rolled_out, NAMESPACE, timeout=READY_SECONDS)
        count = self.admin.get("deployments", "hftitan-operator", NAMESPACE)["spec"]["replicas"]
        wait(lambda: len(self.admin.list("pods", NAMESPACE)) == count, "the old replicas to end", READY_SECONDS)

    def heal(self) -> None:
        """Start lost nodes again, with an empty disk, and let all nodes accept pods."""
        for node in self.nodes.values():
            if not node.runs:
                self._revive(node)
            if self.admin.get("nodes", node.name)["spec"].get("unschedulable"):
                self.admin.patch("nodes", node.name, {"spec": {"unschedulable": None}})

    def _revive(self, node: Node) -> None:
        self.wait_ready(node.name, ready=False)
        self.admin.delete_quietly("nodes", node.name)
        shutil.rmtree(node.folder / "containerd")
        shutil.rmtree(node.folder / "kubelet")
        self._start(node)
        self._join(node)
        self.wait_ready(node.name)
        self._wait_for_operator()


def obstacle() -> str | None:
    """Return why this machine cannot run the cluster, or None."""
    if os.geteuid() != 0:
        return "real nodes need root"
    if shutil.which("go") is None:
        return "real nodes need Go, to build Kubernetes and containerd"
    words = ["unshare", "--mount", "--net", "--uts", "--pid", "--fork", "--mount-proc", "ip", "link", "set", "lo", "up"]
    if subprocess.run(words, capture_output=True).returncode:
        return "real nodes need a machine on which root may create namespaces"
    return None


def built(folder: Path, nodes: int = 2) -> Cluster:
    """Return a cluster with everything that it needs: programs, the project's images, the CUDA libraries."""
    build = folder / "build"
    build.mkdir(parents=True)
    buildah = Buildah(build)
    pause = buildah.run(["from", buildah.base]).strip()
    buildah.run(["config", "--entrypoint", '["/bin/sleep","infinity"]', pause])
    buildah.run(["commit", "--timestamp", "0", "--rm", pause, "localhost/hftitan-pause"])
    path = _script("node")
    store = Store(buildah, path)
    store.add(
        {
            PAUSE_IMAGE: "localhost/hftitan-pause",
            DEBIAN_IMAGE: buildah.base,
            OPERATOR_IMAGE: buildah.build("operator"),
            TRAINER_IMAGE: buildah.build("trainer", "--build-arg", "CUDA=mounted"),
        }
    )
    packages = Path(helm.__file__).parents[1]
    site = f"/opt/hftitan/lib/python3.{sys.version_info.minor}/site-packages"
    mounts = [(packages / name, f"{site}/{name}") for name in CUDA]
    return Cluster(folder, Path(_script("control-plane")), path, store, nodes=nodes, mounts=mounts)


def _script(name: str) -> str:
    return subprocess.run([ROOT / "hack" / name], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
