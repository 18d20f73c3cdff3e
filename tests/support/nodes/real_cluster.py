"""A Kubernetes cluster on this machine with real nodes: containers run by containerd, Services by kube-proxy.

    with Cluster(folder, assets, path, store, nodes=2) as cluster:
        cluster.admin.list("nodes")

Needs root, and uses one bridge of the machine's network, so only one such cluster can run.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from control_plane import ControlPlane
from kubectl import Kubectl, wait
from node import Network, Node, ip
from node_store import Store
from processes import die_with_parent

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
        self.folder, self.network, self._store = folder, Network(), store
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
            self._store.link_into(node.folder / "containerd")
            node.start()
        for node in self.nodes.values():
            for other in self.nodes.values():
                if other is not node:
                    node.route_to(other)
            node.start_kubernetes()
        for number in range(VOLUMES):
            self._make_volume(number)
        for name in self.nodes:
            self.wait_ready(name)

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

        wait(lambda: self.admin.find("nodes", name), f"node {name}", READY_SECONDS)
        self.admin.wait_for("nodes", name, is_ready, timeout=READY_SECONDS)

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
        folder = self.folder / "volumes" / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o777)
        spec = {
            "accessModes": ["ReadWriteMany", "ReadWriteOnce"],
            "capacity": {"storage": "1Ti"},
            "hostPath": {"path": str(folder)},
            "persistentVolumeReclaimPolicy": "Retain",
        }
        self.admin.apply(
            {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": f"volume-{number}"}, "spec": spec}
        )

    def volume_of(self, claim: str, namespace: str) -> Path:
        """Return the folder of a bound claim."""
        found = self.admin.wait_for("persistentvolumeclaims", claim, lambda c: c["spec"].get("volumeName"), namespace)
        return self.folder / "volumes" / found["spec"]["volumeName"].removeprefix("volume-")
