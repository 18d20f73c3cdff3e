"""Rules between fields that the schema cannot express: fields that exclude or require each other.

Names that the rendered pods themselves use (their volumes, mounts, environment) are the renderer's to defend; here is
what holds whoever renders. Each rule yields SpecErrors; `admit` collects them together with the mesh's and with what
this version does not support.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

from hftitan_api import mesh
from hftitan_api.models import HFTitanJob, JobSpec
from hftitan_api.rules import SpecError
from hftitan_api.shape import IDENTITY_KEYS, SHAPE_KEYS, ModelShape
from hftitan_api.support import unsupported
from hftitan_api.words import path_text
from hftitan_api.yamltext import FieldPath

JOB_NAME_LIMIT = 50
"""Pods are named <job>-<attempt>-<index>, and a host name has 63 characters."""
JSON_LIMIT = 16 * 1024
"""Bytes as JSON of what may be nested or long: spec.pod.affinity, spec.model.overrides."""
ENV_LIMIT = 256 * 1024
"""Bytes of all variables together."""

LABEL_LIMIT = 63
"""Characters of a label's value."""
QUEUE_KNOWN = ("kueue", "volcano", "kai")
QUEUE_NEEDED = ("kueue", "kai")
"""Volcano has a queue for those who name none."""

_JOB_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?\Z")
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\Z")
_LABEL_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?\Z")
_DNS_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\Z")
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode's categories: control and format characters, halves of pairs, ends of lines and paragraphs."""
_JOINERS = "\u200c\u200d"
"""Of letters, in Persian and Indic scripts: part of the spelling."""
_RESOURCES = re.compile(r"(cpu|memory|ephemeral-storage|hugepages-[1-9][0-9]*[KMGT]i)\Z")
_SECRET_ENV = {
    "HF_TOKEN": "spec.pod.hfTokenSecret",
    "HUGGING_FACE_HUB_TOKEN": "spec.pod.hfTokenSecret",
    "WANDB_API_KEY": "spec.monitoring.wandbSecret",
}
_LOOKS_SECRET = re.compile(r"hf_[A-Za-z0-9]{20,}\Z")


def admit(job: HFTitanJob, model_config: Mapping[str, Any] | None = None) -> list[SpecError]:
    """Every reason, beyond its schema, not to run a job. `model_config` is the model's config.json, if at hand."""
    spec = job.spec
    found = [*_metadata(job), *_model(spec), *_dataset(spec), *mesh.check(spec, model_config)]
    for rule in (_push, _scheduling, _env, _labels, _tolerations, _resources, _sizes, _characters):
        found += rule(spec)
    shape = None if model_config is None else ModelShape.from_config(model_config, spec.model.overrides)
    return [*found, *unsupported(spec, shape)]


def _metadata(job: HFTitanJob) -> Iterator[SpecError]:
    name, namespace = job.metadata.name, job.metadata.namespace
    if len(name) > JOB_NAME_LIMIT:
        yield SpecError(
            "metadata.name",
            f"{len(name)} characters; pods are named <job>-<attempt>-<index>, so use at most {JOB_NAME_LIMIT}",
        )
    elif not _JOB_NAME.match(name):
        yield SpecError(
            "metadata.name",
            f"{_short(name)} is no DNS label; use lower-case letters, digits and '-', starting with a letter",
        )
    if not _NAMESPACE.match(namespace):
        yield SpecError(
            "metadata.namespace", f"{_short(namespace)} is no namespace; use lower-case letters, digits and '-'"
        )


def _model(spec: JobSpec) -> Iterator[SpecError]:
    model = spec.model
    if model.name.startswith("/"):
        if model.revision is not None:
            yield SpecError("spec.model.revision", f"{model.name} is a folder, which has no revisions; remove it")
        if ".." in model.name.split("/"):
            yield SpecError("spec.model.name", f"{model.name} has '..' in it; give a plain absolute path")
    for key in model.overrides:
        path = path_text(("spec", "model", "overrides", key))
        if key in IDENTITY_KEYS:
            yield SpecError(path, "says which model it is; name another model instead")
        elif key in SHAPE_KEYS and model.initialize == "pretrained":
            yield SpecError(
                path, "changes the shape of weights, and the pretrained ones would not fit; use initialize: random"
            )


def _dataset(spec: JobSpec) -> Iterator[SpecError]:
    places = [("spec.dataset", spec.dataset)]
    if spec.validation is not None:
        places.append(("spec.validation.dataset", spec.validation.dataset))
    for path, dataset in places:
        if dataset.name is None and dataset.path is None:
            yield SpecError(path, "names no data; give name (a hub id) or path (a file or folder)")
        if dataset.name is not None and dataset.path is not None:
            yield SpecError(path, "has both name and path; keep one of them")
        if dataset.path is not None:
            if ".." in dataset.path.split("/"):
                yield SpecError(f"{path}.path", f"{dataset.path} has '..' in it; give a plain absolute path")
            if dataset.config is not None:
                yield SpecError(f"{path}.config", "belongs to a hub dataset, and this one is a path; remove it")
        if dataset.text_field is not None and dataset.messages_field is not None:
            yield SpecError(
                path, "has both textField and messagesField; keep textField for plain text or messagesField for chats"
            )
        if dataset.messages_field is not None and dataset.long_documents == "chunk":
            yield SpecError(
                f"{path}.longDocuments",
                "a chat cannot be cut into chunks, its answers need their questions; use truncate",
            )


def _push(spec: JobSpec) -> Iterator[SpecError]:
    push = spec.checkpoint.push_to_hub
    if push is None:
        return
    if not spec.checkpoint.export_hf:
        yield SpecError(
            "spec.checkpoint.pushToHub", f"pushes the export to {push.repo}, and exportHF is false; set it to true"
        )
    if spec.pod.hf_token_secret is None:
        yield SpecError(
            "spec.pod.hfTokenSecret",
            f"is needed for spec.checkpoint.pushToHub; name a Secret with a token that may write to {push.repo}",
        )


def _scheduling(spec: JobSpec) -> Iterator[SpecError]:
    gang, queue, key = spec.scheduling.gang, spec.scheduling.queue, spec.scheduling.topology_key
    path = "spec.scheduling.queue"
    if queue is None and gang in QUEUE_NEEDED:
        what = "a LocalQueue of the job's namespace" if gang == "kueue" else "a Queue"
        yield SpecError(path, f"is needed with gang: {gang}; name {what}")
    if queue is not None and gang not in QUEUE_KNOWN:
        yield SpecError(path, f"gang: {gang} knows no queues; remove it, or set gang: {', '.join(QUEUE_KNOWN)}")
    elif queue is not None and gang in QUEUE_NEEDED and len(queue) > LABEL_LIMIT:
        yield SpecError(path, f"{len(queue)} characters; it becomes a label of the pods, so use at most {LABEL_LIMIT}")
    if key is not None and not _qualified(key):
        yield SpecError(
            "spec.scheduling.topologyKey",
            f"{_short(key)} is no label of a node; write for example topology.kubernetes.io/zone",
        )


def _env(spec: JobSpec) -> Iterator[SpecError]:
    for i, var in enumerate(spec.pod.env):
        path = f"spec.pod.env[{i}]"
        if var.value is None and var.value_from is None:
            yield SpecError(path, f"{var.name} has no value; give value or valueFrom")
        field = _SECRET_ENV.get(var.name)
        if field is not None and var.value is not None:
            yield SpecError(f"{path}.value", f"{var.name} would stand in the job for all to read; use {field}")
        elif var.value is not None and _LOOKS_SECRET.match(var.value):
            yield SpecError(f"{path}.value", f"{var.name} looks like a Hugging Face token; use spec.pod.hfTokenSecret")


def _labels(spec: JobSpec) -> Iterator[SpecError]:
    maps = (
        ("labels", spec.pod.labels),
        ("nodeSelector", spec.pod.node_selector),
        ("annotations", spec.pod.annotations),
    )
    for field, entries in maps:
        for key, value in entries.items():
            path = path_text(("spec", "pod", field, key))
            if not _qualified(key):
                yield SpecError(path, f"{_short(key)} is no Kubernetes key; write name or example.com/name")
            if field != "annotations" and value and not _LABEL_NAME.match(value):
                yield SpecError(
                    path,
                    f"{_short(value)} is no label value; use at most 63 letters, digits, '-', '_' and '.', "
                    "with a letter or digit at both ends",
                )


def _tolerations(spec: JobSpec) -> Iterator[SpecError]:
    for i, toleration in enumerate(spec.pod.tolerations):
        path = f"spec.pod.tolerations[{i}]"
        exists = toleration.operator == "Exists"
        if exists and toleration.value:
            yield SpecError(f"{path}.value", "operator Exists takes no value; remove it, or use operator: Equal")
        if not toleration.key and not exists:
            yield SpecError(f"{path}.key", "is empty; name the taint, or use operator: Exists to tolerate all of them")
        if toleration.key and not _qualified(toleration.key):
            yield SpecError(f"{path}.key", f"{_short(toleration.key)} is no Kubernetes key")
        if toleration.value and not _LABEL_NAME.match(toleration.value):
            yield SpecError(f"{path}.value", f"{_short(toleration.value)} is no label value")
        if toleration.toleration_seconds is not None and toleration.effect != "NoExecute":
            yield SpecError(f"{path}.tolerationSeconds", "works with effect: NoExecute alone; set it, or remove this")


def _resources(spec: JobSpec) -> Iterator[SpecError]:
    pod = spec.pod
    if not _extended(pod.gpu_resource):
        yield SpecError(
            "spec.pod.gpuResource",
            f"{_short(pod.gpu_resource)} is no device; write what its plugin calls it, for example nvidia.com/gpu",
        )
    for field in ("requests", "limits"):
        for key in getattr(pod.resources, field):
            path = path_text(("spec", "pod", "resources", field, key))
            if key == pod.gpu_resource:
                yield SpecError(path, "comes from spec.mesh.gpusPerNode; remove it")
            elif not (_RESOURCES.match(key) or _extended(key)):
                yield SpecError(path, f"{_short(key)} is no resource; write for example cpu, memory or example.com/nic")


def _extended(key: str) -> bool:
    """A resource that a device plugin brings: `example.com/nic`."""
    domain = key.rpartition("/")[0]
    native = f".{domain}".endswith(".kubernetes.io") or domain.startswith("requests.")
    return bool(domain) and _qualified(key) and not native


def _sizes(spec: JobSpec) -> Iterator[SpecError]:
    """Of what no single field bounds: every pod carries it, and an API object has 1.5 MiB in all."""
    env = sum(len(f"{var.name}{var.value or ''}".encode()) for var in spec.pod.env)
    if env > ENV_LIMIT:
        yield SpecError(
            "spec.pod.env", f"{env} bytes are too many; use at most {ENV_LIMIT}, and a ConfigMap for what is larger"
        )
    overrides = len(json.dumps(spec.model.overrides))
    affinity = len(json.dumps(spec.pod.affinity.to_dict())) if spec.pod.affinity else 0
    for path, size in (("spec.model.overrides", overrides), ("spec.pod.affinity", affinity)):
        if size > JSON_LIMIT:
            yield SpecError(path, f"{size} bytes are too many; use at most {JSON_LIMIT}")


def _characters(spec: JobSpec) -> Iterator[SpecError]:
    """What nobody sees in a text: it gets there by copying, and makes a name that looks right another one.

    Values of variables and annotations are the user's own and may have several lines; only NUL ends them early.
    """
    for path, text in _texts(spec.to_dict(), ("spec",)):
        if text.isprintable():
            continue
        free = path[:3] in (("spec", "pod", "env"), ("spec", "pod", "annotations"))
        at = next((i for i, c in enumerate(text) if (c == "\0" if free else _invisible(c))), None)
        if at is not None:
            yield SpecError(path_text(path), f"character {at + 1} is the invisible U+{ord(text[at]):04X}; remove it")


def _invisible(character: str) -> bool:
    return unicodedata.category(character) in _INVISIBLE and character not in _JOINERS


def _texts(value: Any, path: FieldPath) -> Iterator[tuple[FieldPath, str]]:
    """Every text of a spec with its path; the keys of its mappings too."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield (*path, key), key
            yield from _texts(item, (*path, key))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _texts(item, (*path, i))


def _qualified(key: str) -> bool:
    """A Kubernetes qualified name: `name` or `dns.sub.domain/name`."""
    prefix, slash, name = key.rpartition("/")
    if slash and not (len(prefix) <= 253 and _DNS_SUBDOMAIN.match(prefix)):
        return False
    return bool(_LABEL_NAME.match(name))


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
