"""A Kubernetes control plane on this machine: etcd, API server and, on request, controller manager and scheduler.

    with ControlPlane(folder, assets, crds=[path]) as plane:
        Kubectl.of(plane.kubeconfig("admin")).list("nodes")

All programs listen on free loopback ports and are killed when this process ends. RBAC is on. A user is a bearer token,
of a name in USERS or of a service account. Kubernetes 1.20 and newer work: tuning options that a program does not know
are omitted.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
import shutil
import ssl
import subprocess
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from kubectl import ApiError, Kubectl, wait
from processes import die_with_parent, free_ports, memory_folder, signing_key

USERS: Mapping[str, Sequence[str]] = {
    "admin": ("system:masters",),
    "kubelet": ("system:masters",),
    "operator": (),
    "alice": (),
}
"""Name -> groups. Users without a group have only the permissions of the tests' role bindings."""
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],  # has no authorization decision yet
    "rules": [{"level": "Metadata", "userGroups": ["system:serviceaccounts"]}, {"level": "None"}],
}
START_SECONDS = 60.0


class ControlPlane:
    """Started by `with`. `node_monitor_grace`: seconds without a heartbeat after which a node is NotReady.

    The controller manager evicts no pods while all nodes are lost, so keep at least one node alive.
    """

    def __init__(
        self,
        folder: Path,
        assets: Path,
        *,
        controller_manager: bool = True,
        scheduler: bool = True,
        node_monitor_grace: float = 4.0,
        crds: Sequence[Path] = (),
        users: Mapping[str, Sequence[str]] = USERS,
        audited: bool = False,
        address: str = "",
        options: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        """`audited`: the API server logs the requests of service accounts, for `requests`.

        `address`: of the API server, for nodes with a network of their own. Without it the cluster has no endpoints:
        its pods have loopback addresses, which are not allowed there, and each attempt would cause an event.

        `options`: more command line options, by program.
        """
        self._options = options or {}
        self.folder, self.assets = folder, assets
        self._address = address
        self._with_manager, self._with_scheduler = controller_manager, scheduler
        self._grace, self._crds, self._users, self._audited = node_monitor_grace, crds, users, audited
        self._tokens = {user: secrets.token_hex(16) for user in users}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._data: Path | None = None
        self._etcd_port, self._peer_port, self.port = free_ports(3)

    @property
    def url(self) -> str:
        return f"https://{self._address or '127.0.0.1'}:{self.port}"

    @property
    def etcd_url(self) -> str:
        return f"http://127.0.0.1:{self._etcd_port}"

    @property
    def ca(self) -> Path:
        """The API server's self-signed certificate, which it creates at its first start."""
        return self.folder / "tls" / "apiserver.crt"

    @property
    def admin_token(self) -> str:
        return self._tokens["admin"]

    @property
    def admin(self) -> Kubectl:
        return Kubectl(self.url, self.ca.read_text(), self.admin_token)

    @property
    def version(self) -> tuple[int, int]:
        """Major and minor version of Kubernetes."""
        version = self.admin.request("GET", "/version")
        return int(version["major"]), int(re.sub(r"\D", "", version["minor"]))

    @property
    def checks_rules(self) -> bool:
        """Whether the API server checks the CEL rules of CRDs."""
        return self.version >= (1, 25)

    def requests(self, user: str) -> list[dict[str, Any]]:
        """Return the audit events (audit.k8s.io/v1) of a service account's requests so far."""
        lines = self._audit_log.read_text().splitlines(keepends=True)
        events = [json.loads(line) for line in lines if line.endswith("\n")]
        return [event for event in events if event["user"]["username"] == user]

    @property
    def _audit_log(self) -> Path:
        return self.folder / "logs" / "audit.jsonl"

    def kubeconfig(self, user: str = "admin") -> Path:
        """Write the kubeconfig of a user in USERS or of an existing `system:serviceaccount:NAMESPACE:NAME`."""
        if user not in self._tokens:
            kind, _, account = user.removeprefix("system:").partition(":")
            if kind != "serviceaccount":
                raise ValueError(f"{user}: no such user; use a service account or one of {', '.join(self._tokens)}")
            namespace, _, name = account.partition(":")
            path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
            request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
            self._tokens[user] = self.admin.request("POST", path, request)["status"]["token"]
        path = self.folder / f"{user.replace(':', '-')}.kubeconfig"
        path.write_text(self._kubeconfig(self._tokens[user]))
        path.chmod(0o600)
        return path

    def _kubeconfig(self, token: str) -> str:
        authority = base64.b64encode(self.ca.read_bytes()).decode()
        cluster = {"server": self.url, "certificate-authority-data": authority}
        return yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "test", "cluster": cluster}],
                "users": [{"name": "user", "user": {"token": token}}],
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": "user"}}],
                "current-context": "test",
            }
        )

    # --- start and stop -------------------------------------------------------------------------------------

    def __enter__(self) -> ControlPlane:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        for name in ("tls", "logs"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "service-accounts.key").write_text(signing_key())
        rows = (f'{token},{user},{user},"{",".join(self._users[user])}"' for user, token in self._tokens.items())
        (self.folder / "tokens.csv").write_text("\n".join(rows) + "\n")
        self._start_etcd()
        self.start_apiserver()
        # Before the controller manager starts: its garbage collector looks for new kinds only every 30 seconds.
        for path in self._crds:
            self.install_crd(path)
        if self._with_manager:
            self.start_controller_manager()
            wait(lambda: self.admin.find("serviceaccounts", "default"), "the controller manager", START_SECONDS)
        if self._with_scheduler:
            self.start_scheduler()

    def install_crd(self, path: Path) -> None:
        """Create or replace a CRD, and wait until its kind is served. Server-side apply of 1.20 refuses CEL rules."""
        admin = self.admin
        crd = yaml.safe_load(path.read_text())
        admin.upsert(crd)
        group, names = crd["spec"]["group"], crd["spec"]["names"]
        for version in crd["spec"]["versions"]:
            url = f"/apis/{group}/{version['name']}/{names['plural']}"

            def served(url: str = url) -> bool:
                try:
                    return bool(admin.request("GET", url, query={"limit": "1"}))
                except ApiError as error:
                    if error.status != 404:
                        raise
                    return False

            wait(served, f"{url} to be served")

    def close(self) -> None:
        for name in reversed(list(self._processes)):
            self._kill(name)
        if self._data is not None:
            shutil.rmtree(self._data, ignore_errors=True)

    def pids(self) -> dict[str, int]:
        return {name: process.pid for name, process in self._processes.items()}

    # --- the programs ---------------------------------------------------------------------------------------

    def _start_etcd(self) -> None:
        self._data = memory_folder(self.folder)
        client, peer = self.etcd_url, f"http://127.0.0.1:{self._peer_port}"
        self._run(
            "etcd",
            {
                "--data-dir": str(self._data),
                "--listen-client-urls": client,
                "--advertise-client-urls": client,
                "--listen-peer-urls": peer,
                "--initial-advertise-peer-urls": peer,
                "--initial-cluster": f"default={peer}",
            },
            {"--unsafe-no-fsync": "true", "--snapshot-count": "10000"},
        )

    def start_apiserver(self) -> None:
        """Start the API server. After stop_apiserver it has the same address and the same objects."""
        key = str(self.folder / "service-accounts.key")
        options = {
            "--etcd-servers": self.etcd_url,
            "--bind-address": self._address or "127.0.0.1",
            "--advertise-address": self._address or "127.0.0.1",
            **({} if self._address else {"--endpoint-reconciler-type": "none"}),
            "--secure-port": str(self.port),
            "--cert-dir": str(self.folder / "tls"),
            "--service-cluster-ip-range": "10.96.0.0/16",
            "--kubelet-preferred-address-types": "InternalIP",  # the names of nodes do not resolve
            "--authorization-mode": "RBAC",
            "--token-auth-file": str(self.folder / "tokens.csv"),
            "--service-account-issuer": "https://kubernetes.default.svc",
            "--service-account-key-file": key,
            "--service-account-signing-key-file": key,
        }
        if not self._with_manager:  # without it nothing creates the service accounts that pods need
            options["--disable-admission-plugins"] = "ServiceAccount"
        if self._audited:
            policy = self.folder / "audit.yaml"
            policy.write_text(yaml.safe_dump(AUDIT_POLICY))
            options |= {"--audit-policy-file": str(policy), "--audit-log-path": str(self._audit_log)}
        tuning = {"--max-requests-inflight": "4000", "--max-mutating-requests-inflight": "2000", "--profiling": "false"}
        self._run("kube-apiserver", options, tuning)
        wait(self._ready, "the API server", START_SECONDS)

    def stop_apiserver(self) -> None:
        """Kill the API server, as in an outage."""
        self._kill("kube-apiserver")

    def start_controller_manager(self) -> None:
        config = self.kubeconfig("admin")
        self._run(
            "kube-controller-manager",
            {
                "--kubeconfig": str(config),
                "--leader-elect": "false",
                "--secure-port": "0",
                "--service-account-private-key-file": str(self.folder / "service-accounts.key"),
                "--root-ca-file": str(self.ca),
                "--node-monitor-period": "500ms",
                "--node-monitor-grace-period": f"{self._grace}s",
                "--node-startup-grace-period": f"{self._grace * 2}s",
                "--node-eviction-rate": "50",
                "--pvclaimbinder-sync-period": "1s",
                "--unhealthy-zone-threshold": "1",
                **({} if self._address else {"--controllers": "*,-endpoint,-endpointslice,-endpointslicemirroring"}),
            },
            {"--port": "0", "--controller-start-interval": "0s", "--kube-api-qps": "1000", "--kube-api-burst": "2000"},
        )

    def stop_controller_manager(self) -> None:
        self._kill("kube-controller-manager")

    def start_scheduler(self) -> None:
        config = self.kubeconfig("admin")
        self._run(
            "kube-scheduler",
            {"--kubeconfig": str(config), "--leader-elect": "false", "--secure-port": "0"},
            {"--port": "0", "--kube-api-qps": "1000", "--kube-api-burst": "2000"},
        )

    def _run(self, name: str, options: Mapping[str, str], tuning: Mapping[str, str]) -> None:
        program = self.assets / name
        if not program.exists():
            raise FileNotFoundError(f"{program} is missing; run hack/control-plane")
        known = subprocess.run([program, "--help"], capture_output=True, text=True)
        words = {word.partition("=")[0].strip("',") for word in (known.stdout + known.stderr).split()}
        chosen = {**options, **{key: value for key, value in tuning.items() if key in words}}
        chosen |= self._options.get(name, {})
        with open(self.folder / "logs" / f"{name}.log", "ab") as log:
            self._processes[name] = subprocess.Popen(
                [program, *(f"{key}={value}" for key, value in chosen.items())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # only pytest handles a Ctrl-C in the terminal
                preexec_fn=die_with_parent,
            )

    def _kill(self, name: str) -> None:
        """Kill a program, because a graceful stop would first serve open watches for a while."""
        process = self._processes.pop(name, None)
        if process is not None:
            process.kill()
            process.wait()

    def _ready(self) -> bool:
        for name, process in self._processes.items():
            if process.poll() is not None:
                log = (self.folder / "logs" / f"{name}.log").read_text(errors="replace")
                raise RuntimeError(f"{name} exited with code {process.returncode}:\n{log[-3000:]}")
        try:
            tls = ssl.create_default_context(cafile=self.ca)
            request = urllib.request.Request(
                f"{self.url}/readyz", headers={"Authorization": f"Bearer {self.admin_token}"}
            )
            with urllib.request.urlopen(request, timeout=2, context=tls) as answer:
                return answer.read() == b"ok"
        except OSError:
            return False
