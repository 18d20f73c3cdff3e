"""One pod of the process kubelet, run as a process with the same translation as `hftitan run`."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import copy
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from kubelet_api import Api, Object

from hftitan_api.wire import TERMINATION_LOG_LIMIT
from hftitan_operator.core.naming import LABEL_ATTEMPT, LABEL_NODE_INDEX
from hftitan_operator.local.machine import RANK_SCRIPT, Machine, Place, Refused
from hftitan_operator.local.pod import CACHE_VOLUME, OUTPUT_VOLUME, gpu_count, translate
from hftitan_operator.local.process import LocalPod
from hftitan_operator.net import free_port, loopback

SERVER_FIELDS = ("dnsPolicy", "nodeName", "preemptionPolicy", "priority", "serviceAccount", "serviceAccountName")
"""Fields that the API server adds to a pod and that do not matter for a process."""
TOKEN_FOLDER = "/var/run/secrets/kubernetes.io/serviceaccount"
WAIT_SECONDS = 0.2


@dataclass
class Node:
    """Settings that the pods of a node share."""

    name: str
    workdir: Path
    programs: Mapping[str, Sequence[str]]
    gpus: int
    threads: int | None
    taken: dict[str, range] = field(default_factory=dict)
    """Pod uid -> its devices."""

    def take_gpus(self, uid: str, count: int) -> int:
        """Reserve `count` consecutive free devices and return the first."""
        used = {gpu for devices in self.taken.values() for gpu in devices}
        for first in range(self.gpus - count + 1):
            if not used & set(range(first, first + count)):
                self.taken[uid] = range(first, first + count)
                return first
        raise Refused("resources.limits", f"{self.name} has no {count} consecutive free devices")


class ProcessPod:
    """A pod as a process. `start()` raises Refused for an unsupported pod; `done` is set at its end."""

    def __init__(self, pod: Object, node: Node, api: Api) -> None:
        self._pod, self._node, self._api = pod, node, api
        self.name, self.namespace, self.uid = (pod["metadata"][key] for key in ("name", "namespace", "uid"))
        self.done = asyncio.Event()
        self.address, self._index, self._gang = address_of(pod)
        self._process: LocalPod | None = None

    async def start(self) -> None:
        pod = self._manifest()
        environ = await self._environ(pod)
        machine = Machine(
            workdir=self._workdir(pod),
            environ=environ,
            programs=self._node.programs,
            gpus=[str(i) for i in range(self._node.gpus)],
            threads=self._node.threads,
            volumes=self._claims(pod),
        )
        configs = await self._configs(pod, machine)
        machine.rank_script.parent.mkdir(parents=True, exist_ok=True)
        machine.rank_script.write_text(RANK_SCRIPT.format(python=shlex.quote(sys.executable)))
        machine.rank_script.chmod(0o755)
        first_gpu = self._node.take_gpus(self.uid, gpu_count(pod, machine.gpu_resource))
        master = loopback(self._gang, 0)
        place = Place(self.uid, self.address, f"{master}:{self._port()}", first_gpu)
        launch = translate(pod, machine, place, frozenset(configs))
        labels = pod["metadata"].get("labels", {})
        attempt = int(labels.get(LABEL_ATTEMPT, 0))
        self._process = LocalPod(
            self.name, attempt, self._index, place, launch, machine.pod_log(self.name), self.done.set
        )

    @property
    def log(self) -> Path | None:
        return self._process.log if self._process is not None else None

    @property
    def started_at(self) -> float:
        assert self._process is not None
        return self._process.started_at

    @property
    def exit_code(self) -> int:
        assert self._process is not None
        assert self._process.ended is not None
        return self._process.ended.exit_code or 0

    @property
    def message(self) -> str:
        """The termination log, or its replacement by terminationMessagePolicy."""
        assert self._process is not None
        with contextlib.suppress(OSError):
            data = self._process.launch.termination_log.read_bytes()[:TERMINATION_LOG_LIMIT]
            if data:
                return data.decode(errors="replace")
        fallback = self._pod["spec"]["containers"][0].get("terminationMessagePolicy") == "FallbackToLogsOnError"
        return self._process.log.read_text(errors="replace")[-2048:] if fallback and self.exit_code else ""

    def stop(self, grace: float) -> None:
        if self._process is not None:
            self._process.stop(grace)

    def release(self) -> None:
        self._node.taken.pop(self.uid, None)

    async def ready(self, http: aiohttp.ClientSession) -> bool:
        """Run the readiness probe once."""
        container = self._pod["spec"]["containers"][0]
        probe = container.get("readinessProbe", {}).get("httpGet")
        if probe is None:
            return True
        ports = {port.get("name"): port["containerPort"] for port in container.get("ports", [])}
        url = f"http://{self.address}:{ports.get(probe['port'], probe['port'])}{probe.get('path', '/')}"
        try:
            async with http.get(url, timeout=aiohttp.ClientTimeout(total=2)) as answer:
                return 200 <= answer.status < 400
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False

    # --- the pod's manifest, folders and environment ------------------------------------------------------------

    def _manifest(self) -> Object:
        """Return the manifest without what the API server added."""
        pod = copy.deepcopy(self._pod)
        spec = pod["spec"]
        for key in SERVER_FIELDS:
            spec.pop(key, None)
        for container in spec["containers"]:
            mounts = container.get("volumeMounts", [])
            tokens = {mount["name"] for mount in mounts if mount["mountPath"] == TOKEN_FOLDER}
            container["volumeMounts"] = [mount for mount in mounts if mount["name"] not in tokens]
            spec["volumes"] = [volume for volume in spec.get("volumes", []) if volume["name"] not in tokens]
        return pod

    def _workdir(self, pod: Object) -> Path:
        """Return the folder behind the volume `output`: of its claim, which outlives the pod, or of the pod."""
        base = self._node.workdir
        for volume in pod["spec"].get("volumes", []):
            if volume["name"] == OUTPUT_VOLUME and (claim := volume.get("persistentVolumeClaim")):
                folder = base / "claims" / self.namespace / claim["claimName"]
                mounts = pod["spec"]["containers"][0]["volumeMounts"]
                return folder / next((m.get("subPath", "") for m in mounts if m["name"] == OUTPUT_VOLUME), "")
        return base / "pods" / self.uid

    def _claims(self, pod: Object) -> dict[str, Path]:
        """Return the folders behind the other claims, by volume name."""
        claims = {
            v["name"]: v["persistentVolumeClaim"]
            for v in pod["spec"].get("volumes", [])
            if "persistentVolumeClaim" in v
        }
        base = self._node.workdir / "claims" / self.namespace
        return {name: base / claim["claimName"] for name, claim in claims.items() if name != OUTPUT_VOLUME}

    def _relocated(self, text: str, pod: Object, machine: Machine) -> str:
        """Replace mount paths in a document by local paths, because processes have no mounts."""
        for mount in pod["spec"]["containers"][0]["volumeMounts"]:
            if mount["name"] in machine.volumes:
                text = text.replace(f'"{mount["mountPath"]}/', f'"{machine.volumes[mount["name"]]}/')
        return text

    async def _environ(self, pod: Object) -> dict[str, str]:
        """Return the caller's environment with the values from Secrets and ConfigMaps; wait until they exist."""
        environ = dict(os.environ)
        for entry in pod["spec"]["containers"][0].get("env", []):
            source = entry.get("valueFrom", {})
            for key, resource in (("secretKeyRef", "secrets"), ("configMapKeyRef", "configmaps")):
                if reference := source.get(key):
                    environ.pop(entry["name"], None)
                    found = await self._object(resource, reference["name"], bool(reference.get("optional")))
                    value = (found or {}).get("data", {}).get(reference["key"])
                    if value is not None:
                        environ[entry["name"]] = base64.b64decode(value).decode() if resource == "secrets" else value
        return environ

    async def _configs(self, pod: Object, machine: Machine) -> list[str]:
        """Write the ConfigMap volumes to the folders that the translation uses; return their names."""
        names = []
        for volume in pod["spec"].get("volumes", []):
            source = volume.get("configMap")
            if source is None or volume["name"] in (OUTPUT_VOLUME, CACHE_VOLUME):
                continue
            found = await self._object("configmaps", source["name"], bool(source.get("optional")))
            folder = machine.config_folder(source["name"])
            folder.mkdir(parents=True, exist_ok=True)
            for key, text in (found or {}).get("data", {}).items():
                (folder / key).write_text(self._relocated(text, pod, machine))
            names.append(source["name"])
        return names

    async def _object(self, resource: str, name: str, optional: bool) -> Object | None:
        """Wait for an object and return it, as a kubelet does; None for a missing optional one."""
        while True:
            found = await self._api.find(f"/api/v1/namespaces/{self.namespace}/{resource}/{name}")
            if found is not None or optional:
                return found
            await asyncio.sleep(WAIT_SECONDS)

    def _port(self) -> int:
        """Return the gang's rendezvous port. torchrun's store listens on all addresses, so each gang needs its own.
        The first kubelet that asks chooses it; the others read it from the shared work folder."""
        folder = self._node.workdir / "rendezvous"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / self._gang.replace("/", "-")
        offer = path.with_suffix(f".{os.getpid()}")
        offer.write_text(str(free_port()))
        with contextlib.suppress(FileExistsError):
            os.link(offer, path)
        offer.unlink()
        return int(path.read_text())


def address_of(pod: Object) -> tuple[str, int, str]:
    """Return a pod's loopback address, its index in its gang, and the gang's name. Equal on all nodes."""
    metadata = pod["metadata"]
    labels = metadata.get("labels", {})
    index = int(labels.get(LABEL_NODE_INDEX, 0))
    owner = next((ref["uid"] for ref in metadata.get("ownerReferences", [])), metadata["uid"])
    gang = f"{owner}/{labels[LABEL_ATTEMPT]}" if LABEL_ATTEMPT in labels else metadata["uid"]
    return loopback(gang, index), index, gang
