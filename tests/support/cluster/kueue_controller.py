"""Kueue's controller as a process, installed from its Helm chart, and the queues of the tests.

    with Kueue(plane, folder, programs) as kueue: ...

`programs` is the folder that hack/kueue prints. Two things replace the cluster's network and its kubelet: the webhook's
Service is an ExternalName for the process's address, and the certificate that Kueue creates is copied from its Secret
to the folder that the chart mounts.
"""

from __future__ import annotations

import base64
import subprocess
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import helm_chart
import yaml
from control_plane import ControlPlane
from kubectl import Kubectl, wait
from processes import die_with_parent, free_ports

NAMESPACE = "kueue-system"
NOT_INSTALLED = ("Deployment", "APIService", "ConfigMap")
"""The process replaces the Deployment and its ConfigMap. The APIService's server would have to be reachable."""
START_SECONDS = 60.0
Object = dict[str, Any]


class Kueue:
    """Started by `with`. It stays installed: use a control plane of its own."""

    def __init__(
        self, plane: ControlPlane, folder: Path, programs: Path, configuration: Mapping[str, Any] | None = None
    ) -> None:
        """`configuration`: more of Kueue's Configuration, for example waitForPodsReady."""
        self._plane, self._folder, self._programs = plane, folder, programs
        self._webhooks, self._probes = free_ports(2)
        self.log = folder / "kueue.log"
        self._certificates = folder / "certificates"
        self._configuration: Object = {
            "apiVersion": "config.kueue.x-k8s.io/v1beta2",
            "kind": "Configuration",
            "namespace": NAMESPACE,
            "health": {"healthProbeBindAddress": f"127.0.0.1:{self._probes}"},
            "metrics": {"bindAddress": "0"},
            "webhook": {"host": "127.0.0.1", "port": self._webhooks, "certDir": str(self._certificates)},
            "leaderElection": {"leaderElect": False},
            "integrations": {"frameworks": ["pod"]},
            **(configuration or {}),
        }

    def __enter__(self) -> Kueue:
        self._certificates.mkdir(parents=True)
        self._install(self._plane.admin)
        config = self._folder / "configuration.yaml"
        config.write_text(yaml.safe_dump(self._configuration))
        account = f"system:serviceaccount:{NAMESPACE}:kueue-controller-manager"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    self._programs / "kueue", f"--config={config}", "--zap-log-level=2",
                    f"--kubeconfig={self._plane.kubeconfig(account)}",
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, preexec_fn=die_with_parent,
            )  # fmt: skip
        try:
            wait(self._certified, f"Kueue's certificate (see {self.log})", START_SECONDS)
            wait(self._ready, f"Kueue to be ready (see {self.log})", START_SECONDS)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def _install(self, admin: Kubectl) -> None:
        admin.make_namespace(NAMESPACE)
        values = {"controllerManagerConfigYaml": yaml.safe_dump(self._configuration)}
        objects = helm_chart.objects(self._programs / "chart", "kueue", NAMESPACE, managerConfig=values)
        crds = [thing for thing in objects if thing["kind"] == "CustomResourceDefinition"]
        for thing in (*crds, *(thing for thing in objects if thing not in crds)):
            if thing["kind"] not in NOT_INSTALLED:
                admin.apply(self._reachable(thing))

    def _reachable(self, thing: Object) -> Object:
        """Direct the API server's calls of Kueue's webhooks to the process."""
        if thing["kind"] == "Service" and thing["metadata"]["name"] == "kueue-webhook-service":
            thing["spec"] = {"type": "ExternalName", "externalName": "127.0.0.1"}
        hooks = thing.get("webhooks", [])
        if thing["kind"] == "CustomResourceDefinition" and "webhook" in thing["spec"].get("conversion", {}):
            hooks = [thing["spec"]["conversion"]["webhook"]]
        for hook in hooks:
            hook["clientConfig"]["service"]["port"] = self._webhooks
        return thing

    def _certified(self) -> bool:
        assert self._process.poll() is None, self.log.read_text()[-3000:]
        secret = self._plane.admin.get("secrets", "kueue-webhook-server-cert", NAMESPACE)
        for name, content in secret.get("data", {}).items():
            (self._certificates / name).write_bytes(base64.b64decode(content))
        return "tls.crt" in secret.get("data", {})

    def _ready(self) -> bool:
        assert self._process.poll() is None, self.log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._probes}/readyz", timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False
