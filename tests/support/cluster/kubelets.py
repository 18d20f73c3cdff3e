"""Process kubelets as child processes of the tests: start, kill, freeze and clean up."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from control_plane import ControlPlane
from kubectl import wait
from processes import die_with_parent

PROGRAM = Path(__file__).with_name("process_kubelet.py")


class KubeletProcess:
    """A running process kubelet. The constructor starts it and waits until its nodes accept pods."""

    def __init__(
        self,
        plane: ControlPlane,
        nodes: str,
        workdir: Path,
        *,
        gpus: int = 8,
        programs: Mapping[str, Sequence[str]] | None = None,
        fake: Any = None,
        environ: Mapping[str, str] | None = None,
        renew: float = 1.0,
    ) -> None:
        """`nodes`: names separated by commas; `fake`: a script (kubelet_fake.py), {} for pods that never end;
        `environ`: added to this process's environment, which the pods inherit."""
        self.nodes, self.workdir, self._admin = nodes.split(","), workdir, plane.admin
        workdir.mkdir(parents=True, exist_ok=True)
        options: dict[str, object] = {
            "--kubeconfig": plane.kubeconfig("kubelet"),
            "--node": nodes,
            "--workdir": workdir,
            "--gpus": gpus,
            "--renew": renew,
            "--certificate": plane.ca,
        }
        words = [str(word) for option in options.items() for word in option]
        for name, program in (programs or {}).items():
            words += ["--program", f"{name}={shlex.join(program)}"]
        if fake is not None:
            words += ["--fake", json.dumps(fake)]
        self.log = workdir / f"kubelet-{self.nodes[0]}.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, PROGRAM, *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **(environ or {})},
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        wait(self._serving, f"{nodes} to accept pods (see {self.log})")

    def _serving(self) -> bool:
        if self.process.poll() is not None:
            raise RuntimeError(f"the kubelet of {self.nodes} exited:\n{self.log.read_text()[-3000:]}")
        return all(self._accepts_pods(node) for node in self.nodes)

    def _accepts_pods(self, name: str) -> bool:
        node = self._admin.find("nodes", name)
        return node is not None and is_ready(node) and not node["spec"].get("taints")

    def kill(self) -> None:
        """Lose the nodes and all processes of their pods."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def freeze(self) -> None:
        """Partition the nodes from the cluster; their pods keep running."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Stop the kubelet and delete its nodes and their pods from the cluster."""
        if self.process.poll() is None:
            self.kill()
        for pod in self._admin.list("pods", None):
            if pod["spec"].get("nodeName") in self.nodes:
                self._admin.delete_quietly("pods", pod["metadata"]["name"], pod["metadata"]["namespace"], grace=0)
        for node in self.nodes:
            self._admin.delete_quietly("nodes", node)


def is_ready(thing: Mapping[str, Any]) -> bool:
    """Whether a node or a pod is ready."""
    conditions = thing.get("status", {}).get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
