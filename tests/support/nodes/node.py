"""A Kubernetes node on this machine: containerd, kubelet and kube-proxy in namespaces of their own. Needs root.

The node has its own network, mount, PID and UTS namespace. Killing its process 1 (`Node.lose`) ends every process of
the node at once, containers included, as if the machine had lost power.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from kubectl import wait
from processes import die_with_parent

INIT = Path(__file__).with_name("node_init.py")
PAUSE_IMAGE = "localhost/pause:1"
PRIVATE = {
    "kubelet": "/var/lib/kubelet",
    "containerd": "/var/lib/containerd",
    "pods": "/var/log/pods",
    "containers": "/var/log/containers",
    "run": "/run",
}
"""Folder of the node -> place in its mount namespace."""
SOCKET = "/run/containerd/containerd.sock"
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Network:
    """The addresses of a cluster. Nodes and control plane share a bridge in this machine's own network namespace."""

    bridge: str = "hftitan0"
    prefix: str = "10.88"
    """The bridge has PREFIX.0.1, node N has PREFIX.0.(10+N), and its pods have PREFIX.(100+N).0/24."""

    @property
    def gateway(self) -> str:
        return f"{self.prefix}.0.1"

    def node(self, number: int) -> str:
        return f"{self.prefix}.0.{10 + number}"

    def pods(self, number: int) -> str:
        return f"{self.prefix}.{100 + number}.0/24"


class Node:
    def __init__(
        self,
        name: str,
        number: int,
        folder: Path,
        *,
        path: str,
        network: Network,
        kubeconfig: Path,
        dns: str,
        mounts: Sequence[tuple[Path, str]] = (),
    ) -> None:
        """`path`: PATH with the node's programs. `mounts`: (host path, path in every container), read-only."""
        self.name, self.number, self.folder, self.network = name, number, folder, network
        self._path, self._kubeconfig, self._dns, self._mounts = path, kubeconfig, dns, mounts
        self._init: subprocess.Popen[bytes] | None = None

    @property
    def runs(self) -> bool:
        return self._init is not None

    @property
    def address(self) -> str:
        return self.network.node(self.number)

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    def program(self, name: str) -> str:
        found = shutil.which(name, path=self._path)
        assert found is not None, name
        return found

    # --- start and stop -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the node. After `lose` it comes back with its disk."""
        for part in (*PRIVATE, "logs", "cni"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.folder / "run")
        (self.folder / "run").mkdir()
        for place in PRIVATE.values():
            Path(place).mkdir(parents=True, exist_ok=True)
        self._init = subprocess.Popen(
            ["unshare", "--mount", "--net", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc",
             sys.executable, str(INIT)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PATH": self._path},
            preexec_fn=die_with_parent, start_new_session=True,
        )  # fmt: skip
        self.run("hostname", self.name)
        self.run("mount", "--make-rshared", "/")
        for part, place in PRIVATE.items():
            self.run("mount", "--bind", str(self.folder / part), place)
        self._connect()
        self._make_cgroups()
        self._configure()
        self.start_program("containerd", "--config", str(self.folder / "containerd.toml"))
        wait(lambda: (self.folder / "run/containerd/containerd.sock").exists(), f"containerd of {self.name}", 60)

    def start_kubernetes(self) -> None:
        self.start_kubelet()
        self.start_program("kube-proxy", "--config", str(self.folder / "kube-proxy.yaml"))

    def start_kubelet(self) -> None:
        config, kubeconfig = str(self.folder / "kubelet.yaml"), str(self._kubeconfig)
        names = ["--hostname-override", self.name, "--node-ip", self.address]
        self.start_program("kubelet", "--config", config, "--kubeconfig", kubeconfig, *names)

    def lose(self) -> None:
        """Kill all processes of the node at once."""
        if self._init is not None:
            self._init.kill()  # --kill-child: process 1 of the namespace dies with it
            self._init.wait()
            self._init = None
            wait(lambda: not self._left(), f"the processes of {self.name} to end", 30)

    def processes_of(self, pod: dict[str, Any]) -> list[int]:
        """Return the processes of a pod's containers, with the pause container's. The ids are this machine's."""
        found = []
        for tasks in (CGROUPS / "memory" / f"hftitan-{self.name}").rglob("cgroup.procs"):
            if f"pod{pod['metadata']['uid']}" in str(tasks):
                found += [int(pid) for pid in tasks.read_text().split()]
        return found

    def close(self) -> None:
        self.lose()
        # A cgroup stays busy for a moment after its last process has ended.
        wait(self._remove_cgroups, f"the cgroups of {self.name} to be removed", 30)

    def _remove_cgroups(self) -> bool:
        with contextlib.suppress(OSError):
            for root in self._cgroups():
                for folder, _, _ in os.walk(root, topdown=False):
                    Path(folder).rmdir()
        return not self._cgroups()

    def _left(self) -> list[int]:
        """Return the processes in the node's cgroups."""
        found = []
        for root in self._cgroups():
            for tasks in root.rglob("cgroup.procs"):
                found += [int(pid) for pid in tasks.read_text().split() if pid != "0"]
        return found

    # --- programs -------------------------------------------------------------------------------------------

    def run(self, *words: str) -> str:
        """Run a command in the node and return its output."""
        done = self._ask({"run": words})
        assert done["code"] == 0, f"{self.name}: {' '.join(words)}: {done['output']}"
        return str(done["output"])

    def start_program(self, name: str, *options: str) -> None:
        self._ask({"start": name, "words": [self.program(name), *options], "log": str(self.logs / f"{name}.log")})

    def kill_program(self, name: str) -> None:
        self._ask({"kill": name, "signal": int(signal.SIGKILL)})

    def ctr(self, *words: str) -> str:
        return self.run("ctr", "--address", SOCKET, "--namespace", "k8s.io", *words)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        init = self._init
        assert init is not None, f"{self.name} does not run"
        assert init.stdin is not None
        assert init.stdout is not None
        init.stdin.write(json.dumps(request).encode() + b"\n")
        init.stdin.flush()
        reply: dict[str, Any] = json.loads(init.stdout.readline())
        assert "error" not in reply, f"{self.name}: {request}: {reply}"
        return reply

    # --- network, cgroups, configuration --------------------------------------------------------------------

    def _connect(self) -> None:
        assert self._init is not None
        children = Path(f"/proc/{self._init.pid}/task/{self._init.pid}/children").read_text().split()
        port = f"{self.network.bridge}n{self.number}"
        subprocess.run(["ip", "link", "delete", port], capture_output=True)
        ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", children[0])
        ip("link", "set", port, "master", self.network.bridge, "up")
        self.run("ip", "link", "set", "lo", "up")
        self.run("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        self.run("ip", "link", "set", "eth0", "up")
        self.run("ip", "route", "add", "default", "via", self.network.gateway)
        self.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        ip("route", "replace", self.network.pods(self.number), "via", self.address)

    def route_to(self, other: Node) -> None:
        self.run("ip", "route", "replace", self.network.pods(other.number), "via", other.address)

    def _cgroups(self) -> list[Path]:
        return [folder for folder in CGROUPS.glob(f"*/hftitan-{self.name}") if folder.is_dir()]

    def _make_cgroups(self) -> None:
        for controller in filter(Path.is_dir, CGROUPS.iterdir()):
            if not controller.is_symlink() and (controller / "cgroup.procs").exists():
                folder = controller / f"hftitan-{self.name}"
                folder.mkdir(exist_ok=True)
                for name in ("cpuset.cpus", "cpuset.mems"):
                    if (folder / name).exists():
                        (folder / name).write_text((controller / name).read_text())

    def _configure(self) -> None:
        spec = json.loads(self.run(self.program("ctr"), "oci", "spec"))
        for source, place in self._mounts:
            spec["mounts"].append(
                {"destination": place, "source": str(source), "type": "bind", "options": ["rbind", "ro"]}
            )
        (self.folder / "base.json").write_text(json.dumps(spec))
        (self.folder / "cni/10-bridge.conflist").write_text(json.dumps(self._cni()))
        (self.folder / "containerd.toml").write_text(self._containerd())
        (self.folder / "kubelet.yaml").write_text(yaml.safe_dump(self._kubelet()))
        (self.folder / "kube-proxy.yaml").write_text(yaml.safe_dump(self._kube_proxy()))

    def _cni(self) -> dict[str, Any]:
        ranges = [[{"subnet": self.network.pods(self.number)}]]
        ipam = {"type": "host-local", "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}], "dataDir": "/run/cni"}
        bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "hairpinMode": True, "ipam": ipam}
        return {"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge]}

    def _containerd(self) -> str:
        plugins = Path(self.program("bridge")).parent
        return f"""\
version = 3
disabled_plugins = ["io.containerd.nri.v1.nri"]
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "{PAUSE_IMAGE}"
[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["{plugins}"]
conf_dir = "{self.folder / "cni"}"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
base_runtime_spec = "{self.folder / "base.json"}"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = "{self.program("runc")}"
SystemdCgroup = false
"""

    def _kubelet(self) -> dict[str, Any]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "containerRuntimeEndpoint": f"unix://{SOCKET}",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/hftitan-{self.name}",
            "failCgroupV1": False,
            "failSwapOn": False,
            "clusterDNS": [self._dns],
            "clusterDomain": "cluster.local",
            "enforceNodeAllocatable": [],
            "evictionHard": {"nodefs.available": "0%", "imagefs.available": "0%", "memory.available": "100Mi"},
            "imageGCHighThresholdPercent": 100,
            "nodeStatusUpdateFrequency": "1s",
            "nodeStatusReportFrequency": "1s",
            "nodeLeaseDurationSeconds": 4,
            "resolvConf": "",
            "registerNode": True,
        }

    def _kube_proxy(self) -> dict[str, Any]:
        return {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": str(self._kubeconfig)},
            "clusterCIDR": f"{self.network.prefix}.0.0/16",
            "hostnameOverride": self.name,
            "mode": "iptables",
            "conntrack": {"maxPerCore": 0, "min": 0},
        }


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
