"""Part of bench/operate.py: JobSet on the same API server.

JobSet creates a Job of Kubernetes for each replicated job, and the controller manager's Job controller creates the
pods. Both run as processes, in a favourable configuration: client limits above any rate here, no other controller in
the controller manager, which is exempt from the API server's priority levels, only errors in JobSet's log, and webhooks
only on request.
"""

from __future__ import annotations

import asyncio
import base64
import shutil
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path

import yaml
from control_plane import ControlPlane
from kubectl import wait
from operate_client import cpu_seconds
from operate_objects import PODS, Object, path, rendered_pods
from processes import die_with_parent, free_ports

NAMESPACE, ACCOUNT = "jobset-system", "jobset-controller-manager"
LIMITS = {"--kube-api-qps": "10000", "--kube-api-burst": "20000", "--concurrent-job-syncs": "50"}
CONTROLLER_MANAGER = {**LIMITS, "--controllers": "job-controller"}
"""Runs the Job controller only."""
START_SECONDS = 60.0
IDLE_SHARE = 0.1
"""CPU use below which both processes count as idle."""


class JobSet:
    """JobSet's manager and the controller manager. `async with` starts both, and ends those that it started."""

    def __init__(self, plane: ControlPlane, programs: Path, webhooks: bool) -> None:
        """`programs`: the folder that hack/jobset prints. `webhooks`: register JobSet's four webhooks."""
        self._plane, self._programs, self._folder = plane, programs, plane.folder / "jobset"
        self._with_webhooks = webhooks
        (self._webhooks,) = free_ports(1)

    async def __aenter__(self) -> JobSet:
        await asyncio.to_thread(self._start)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        if self._started_manager:
            self._plane.stop_controller_manager()

    @property
    def pids(self) -> list[int]:
        return [self._process.pid, self._plane.pids()["kube-controller-manager"]]

    @staticmethod
    def path(namespace: str, name: str = "") -> str:
        return f"/apis/jobset.x-k8s.io/v1alpha2/{path(namespace, 'jobsets', name)}"

    @staticmethod
    def job(name: str, nodes: int = PODS) -> Object:
        """Return a JobSet of `nodes` pods like those of an HFTitanJob, with every default of JobSet's webhook."""
        pod = rendered_pods(name, "default", 1)[0]
        spec = {key: value for key, value in pod["spec"].items() if key not in ("hostname", "subdomain")}
        template = {"metadata": {"labels": pod["metadata"]["labels"]}, "spec": spec}
        job = {
            "parallelism": nodes, "completions": nodes, "completionMode": "Indexed", "backoffLimit": 0,
            "template": template,
        }  # fmt: skip
        return {
            "apiVersion": "jobset.x-k8s.io/v1alpha2",
            "kind": "JobSet",
            "metadata": {"name": name},
            "spec": {
                "replicatedJobs": [{"name": "trainer", "replicas": 1, "template": {"spec": job}}],
                "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
                "successPolicy": {"operator": "All"},
                "startupPolicy": {"startupPolicyOrder": "AnyOrder"},
            },
        }

    @classmethod
    def collections(cls, namespace: str) -> Iterable[str]:
        """Return the paths of its objects besides pods and services, owners first."""
        return cls.path(namespace), f"/apis/batch/v1/namespaces/{namespace}/jobs"

    async def quiet(self) -> None:
        """Wait until both processes are idle for 0.5 s."""
        async with asyncio.timeout(120):
            busy = True
            while busy:
                before = cpu_seconds(*self.pids)
                await asyncio.sleep(0.5)
                busy = cpu_seconds(*self.pids) - before > IDLE_SHARE * 0.5

    def _start(self) -> None:
        certificates = self._folder / "certificates"
        certificates.mkdir(parents=True, exist_ok=True)
        # The API server's certificate, for 127.0.0.1, serves the webhooks too.
        shutil.copy(self._plane.ca, certificates / "tls.crt")
        shutil.copy(self._plane.ca.with_suffix(".key"), certificates / "tls.key")
        configuration = {
            "apiVersion": "config.jobset.x-k8s.io/v1alpha1",
            "kind": "Configuration",
            "clientConnection": {"qps": 10000, "burst": 20000},
            "health": {"healthProbeBindAddress": "127.0.0.1:0"},
            "internalCertManagement": {"enable": False},
            "leaderElection": {"leaderElect": False},
            "metrics": {"bindAddress": "0"},
            "webhook": {"host": "127.0.0.1", "port": self._webhooks, "certDir": str(certificates)},
        }
        config = self._folder / "configuration.yaml"
        config.write_text(yaml.safe_dump(configuration))
        self._install()
        user = f"system:serviceaccount:{NAMESPACE}:{ACCOUNT}"
        self._started_manager = "kube-controller-manager" not in self._plane.pids()
        if self._started_manager:
            self._plane.start_controller_manager()
        self.log = self._plane.folder / "logs" / "jobset.log"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    self._programs / "jobset", f"--config={config}", f"--kubeconfig={self._plane.kubeconfig(user)}",
                    "--zap-devel=false", "--zap-log-level=error",
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, preexec_fn=die_with_parent,
            )  # fmt: skip
        wait(self._ready, f"JobSet to be ready (see {self.log})", START_SECONDS)

    def _ready(self) -> bool:
        assert self._process.poll() is None, self.log.read_text()[-3000:]
        # /readyz does not wait for the controllers and for the webhooks' handlers. This is the last one set up.
        last = f"https://127.0.0.1:{self._webhooks}/validate--v1-pod"
        tls = ssl.create_default_context(cafile=self._plane.ca)
        try:
            with urllib.request.urlopen(last, timeout=1, context=tls):
                return True
        except urllib.error.HTTPError as error:
            return error.code != 404
        except OSError:
            return False

    def _install(self) -> None:
        admin, manifests = self._plane.admin, self._programs / "config"
        if admin.find("namespaces", NAMESPACE) is None:
            admin.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        self._plane.install_crd(manifests / "crd" / "bases" / "jobset.x-k8s.io_jobsets.yaml")
        role = yaml.safe_load((manifests / "rbac" / "role.yaml").read_text())
        account = {"kind": "ServiceAccount", "name": ACCOUNT, "namespace": NAMESPACE}
        binding = {
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": "jobset"}, "subjects": [account],
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role["metadata"]["name"],
            },
        }  # fmt: skip
        metadata = {"name": ACCOUNT, "namespace": NAMESPACE}
        for thing in (role, {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}, binding):
            admin.upsert(thing)
        if self._with_webhooks:
            for document in yaml.safe_load_all((manifests / "webhook" / "manifests.yaml").read_text()):
                admin.upsert(self._reachable(document))

    def _reachable(self, document: Object) -> Object:
        """Direct the calls of webhooks to the process. The selector of pods is that of JobSet's kustomization."""
        authority = base64.b64encode(self._plane.ca.read_bytes()).decode()
        for hook in document["webhooks"]:
            url = f"https://127.0.0.1:{self._webhooks}{hook['clientConfig']['service']['path']}"
            hook["clientConfig"] = {"url": url, "caBundle": authority}
            if hook["rules"][0]["resources"] == ["pods"]:
                expression = {"key": "jobset.sigs.k8s.io/jobset-name", "operator": "Exists"}
                hook["objectSelector"] = {"matchExpressions": [expression]}
        return document
