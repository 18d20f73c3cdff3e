"""Process kubelets as child processes of the tests: started, lost, cut off, and cleaned up after."""

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
    """Started by the constructor, which returns when the nodes take pods."""

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
        """`nodes`: names with commas between; `fake`: a script (kubelet_fake.py), {} for pods that never end;
        `environ`: added to this process's own, which the pods inherit."""
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
        wait(self._serving, f"{nodes} to take pods (see {self.log})")

    def _serving(self) -> bool:
        if self.process.poll() is not None:
            raise RuntimeError(f"the kubelet of {self.nodes} ended:\n{self.log.read_text()[-3000:]}")
        return all(self._takes_pods(node) for node in self.nodes)

    def _takes_pods(self, name: str) -> bool:
        node = self._admin.find("nodes", name)
        return node is not None and is_ready(node) and not node["spec"].get("taints")

    def kill(self) -> None:
        """The nodes are lost, with all that ran there."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def freeze(self) -> None:
        """The nodes are cut off; what runs there goes on."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Stop, and take the nodes out of the cluster, with the pods that nobody would report on any more."""
        if self.process.poll() is None:
            self.kill()
        for pod in self._admin.list("pods", None):
            if pod["spec"].get("nodeName") in self.nodes:
                self._admin.delete_quietly("pods", pod["metadata"]["name"], pod["metadata"]["namespace"], grace=0)
        for node in self.nodes:
            self._admin.delete_quietly("nodes", node)


def is_ready(thing: Mapping[str, Any]) -> bool:
    """Of a node or a pod."""
    conditions = thing.get("status", {}).get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
