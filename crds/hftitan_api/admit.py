"""Rules between fields that the schema cannot express: fields that exclude or require each other.

Conflicts with the names that rendered pods use (volumes, mounts, environment) are checked in the operator's podcheck.
Each rule yields SpecErrors. `admit` collects them, with those of the mesh and of unsupported fields.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

from hftitan_api import mesh
from hftitan_api.models import DatasetSpec, HFTitanJob, JobSpec, LRScheduleSpec
from hftitan_api.rules import SpecError
from hftitan_api.shape import IDENTITY_KEYS, SHAPE_KEYS, ModelShape
from hftitan_api.support import unsupported
from hftitan_api.words import path_text
from hftitan_api.yamltext import FieldPath

JOB_NAME_LIMIT = 50
"""Characters. Pods are named <job>-<attempt>-<index>, and a host name has at most 63 characters."""
JSON_LIMIT = 16 * 1024
"""Bytes of spec.pod.affinity and of spec.model.overrides as JSON."""
ENV_LIMIT = 256 * 1024
"""Bytes of names and values of all variables together."""

LABEL_LIMIT = 63
"""Characters of a label's value."""
QUEUE_KNOWN = ("kueue", "volcano", "kai")
QUEUE_NEEDED = ("kueue", "kai")
"""Volcano has a default queue."""

_JOB_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?\Z")
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\Z")
_LABEL_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?\Z")
_DNS_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\Z")
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories: control and format characters, surrogates, line and paragraph separators."""
_JOINERS = "\u200c\u200d"
"""Joiners of letters. Persian and Indic scripts need them."""
_RESOURCES = re.compile(r"(cpu|memory|ephemeral-storage|hugepages-[1-9][0-9]*[KMGT]i)\Z")
_SECRET_ENV = {
    "HF_TOKEN": "spec.pod.hfTokenSecret",
    "HUGGING_FACE_HUB_TOKEN": "spec.pod.hfTokenSecret",
    "WANDB_API_KEY": "spec.monitoring.wandbSecret",
}
TORCHRUN_ENV = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "GROUP_WORLD_SIZE",
    "ROLE_NAME",
    "ROLE_RANK",
    "ROLE_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)
"""torch/distributed/elastic/agent/server/local_elastic_agent.py: torchrun overrides these in every rank."""
TORCHRUN_ENV_PREFIX = "TORCHELASTIC_"
NOT_IN_A_REF = r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|/\.|\.lock(/|$)|[/.]$|^[/.-]|^@$"
"""What git does not allow in the name of a branch or tag: git-check-ref-format(1), and no '-' at the start."""
_NOT_IN_A_REF = re.compile(NOT_IN_A_REF)
_LOOKS_SECRET = re.compile(r"hf_[A-Za-z0-9]{20,}\Z")


def admit(job: HFTitanJob, model_config: Mapping[str, Any] | None = None) -> list[SpecError]:
    """Return every problem of a job beyond the schema. `model_config` is the model's config.json, if known."""
    spec = job.spec
    found = [*_metadata(job), *_model(spec, model_config), *_dataset(spec), *mesh.check(spec, model_config)]
    for rule in (_schedule, _push, _scheduling, _env, _labels, _tolerations, _resources, _sizes, _characters):
        found += rule(spec)
    shape = None if model_config is None else ModelShape.from_config(model_config, spec.model.overrides)
    return [*found, *unsupported(spec, shape)]


def _metadata(job: HFTitanJob) -> Iterator[SpecError]:
    name, namespace = job.metadata.name, job.metadata.namespace
    if len(name) > JOB_NAME_LIMIT:
        yield SpecError(
            "metadata.name",
            f"{len(name)} characters are too many, because pods are named <job>-<attempt>-<index>; use at most "
            f"{JOB_NAME_LIMIT}",
        )
    elif not _JOB_NAME.match(name):
        yield SpecError(
            "metadata.name",
            f"{_short(name)} is not a DNS label; use lower-case letters, digits and '-', starting with a letter and "
            "ending with a letter or digit",
        )
    if not _NAMESPACE.match(namespace):
        yield SpecError(
            "metadata.namespace", f"{_short(namespace)} is not a namespace; use lower-case letters, digits and '-'"
        )


def _model(spec: JobSpec, config: Mapping[str, Any] | None) -> Iterator[SpecError]:
    model = spec.model
    if model.name.startswith("/"):
        if model.revision is not None:
            yield SpecError("spec.model.revision", f"{model.name} is a folder and has no revisions; remove it")
        if ".." in model.name.split("/"):
            yield SpecError("spec.model.name", f"{model.name} contains '..'; use a plain absolute path")
    elif model.revision is not None and model.revision.isprintable():
        wrong = _NOT_IN_A_REF.search(model.revision)
        if wrong:
            yield SpecError(
                "spec.model.revision",
                f"{_short(model.revision)} is not a branch, tag or commit, because git does not allow {wrong[0]!r} at "
                f"character {wrong.start() + 1}; use a revision of the hub repository",
            )
    if config is not None and config.get("quantization_config"):
        yield SpecError(
            "spec.model.name", f"{model.name} is quantized; train the original, unquantized weights instead"
        )
    for key in model.overrides:
        path = path_text(("spec", "model", "overrides", key))
        if key in IDENTITY_KEYS:
            yield SpecError(path, "identifies the model and cannot be overridden; name another model instead")
        elif key in SHAPE_KEYS and model.initialize == "pretrained":
            yield SpecError(
                path, "changes the shape of weights, so pretrained weights do not fit; use initialize: random"
            )


def _dataset(spec: JobSpec) -> Iterator[SpecError]:
    places = [("spec.dataset", spec.dataset)]
    if spec.validation is not None:
        places.append(("spec.validation.dataset", spec.validation.dataset))
    for path, dataset in places:
        if dataset.name is None and dataset.path is None:
            yield SpecError(path, "has neither name nor path; set name (a hub id) or path (a file or folder)")
        if dataset.name is not None and dataset.path is not None:
            yield SpecError(path, "has both name and path; keep one of them")
        if dataset.path is not None:
            if ".." in dataset.path.split("/"):
                yield SpecError(f"{path}.path", f"{dataset.path} contains '..'; use a plain absolute path")
            only_hub = {
                "config": dataset.config is not None,
                "split": dataset.split != DatasetSpec.model_fields["split"].default,
                "streaming": dataset.streaming,
            }
            for field, is_set in only_hub.items():
                if is_set:
                    yield SpecError(f"{path}.{field}", "is for hub datasets; remove it, or set name instead of path")
        if dataset.text_field is not None and dataset.messages_field is not None:
            yield SpecError(
                path, "has both textField and messagesField; keep textField for plain text or messagesField for chats"
            )
        if dataset.messages_field is not None and dataset.long_documents == "chunk":
            yield SpecError(
                f"{path}.longDocuments",
                "chunk is not supported for chats, because answers need their questions; use truncate or drop",
            )


def _schedule(spec: JobSpec) -> Iterator[SpecError]:
    schedule, unset = spec.lr_schedule, LRScheduleSpec()
    if schedule.decay_ratio > 0:
        return
    values = {
        "decayType": (schedule.decay_type, unset.decay_type),
        "minLrFactor": (schedule.min_lr_factor, unset.min_lr_factor),
    }
    for field, (value, default) in values.items():
        if value != default:
            yield SpecError(
                f"spec.lrSchedule.{field}",
                f"{value} has no effect, because decayRatio is 0 and the learning rate never decays; set decayRatio (1 "
                f"decays over all steps), or remove {field}",
            )


def _push(spec: JobSpec) -> Iterator[SpecError]:
    push = spec.checkpoint.push_to_hub
    if push is None:
        return
    if not spec.checkpoint.export_hf:
        yield SpecError(
            "spec.checkpoint.pushToHub",
            f"the push to {push.repo} needs the export, and exportHF is false; set exportHF: true",
        )
    if spec.pod.hf_token_secret is None:
        yield SpecError(
            "spec.pod.hfTokenSecret",
            f"is required for spec.checkpoint.pushToHub; name a Secret with a token that may write to {push.repo}",
        )


def _scheduling(spec: JobSpec) -> Iterator[SpecError]:
    gang, queue, key = spec.scheduling.gang, spec.scheduling.queue, spec.scheduling.topology_key
    path = "spec.scheduling.queue"
    if queue is None and gang in QUEUE_NEEDED:
        what = "a LocalQueue in the job's namespace" if gang == "kueue" else "a Queue"
        yield SpecError(path, f"is required with gang: {gang}; name {what}")
    if queue is not None and gang not in QUEUE_KNOWN:
        known = f"{', '.join(QUEUE_KNOWN[:-1])} or {QUEUE_KNOWN[-1]}"
        yield SpecError(path, f"gang: {gang} has no queues; remove it, or use gang: {known}")
    elif queue is not None and gang in QUEUE_NEEDED and len(queue) > LABEL_LIMIT:
        yield SpecError(
            path,
            f"{len(queue)} characters are too many, because the queue becomes a label of the pods; use at most "
            f"{LABEL_LIMIT}",
        )
    if key is not None and not _qualified(key):
        yield SpecError(
            "spec.scheduling.topologyKey",
            f"{_short(key)} is not a label key; use a label of the nodes, for example topology.kubernetes.io/zone",
        )


def _env(spec: JobSpec) -> Iterator[SpecError]:
    for i, var in enumerate(spec.pod.env):
        path = f"spec.pod.env[{i}]"
        if var.value is None and var.value_from is None:
            yield SpecError(path, f"{var.name} has no value; set value or valueFrom")
        if var.name in TORCHRUN_ENV or var.name.startswith(TORCHRUN_ENV_PREFIX):
            yield SpecError(f"{path}.name", f"{var.name} is set by torchrun; remove it")
        field = _SECRET_ENV.get(var.name)
        if field is not None and var.value is not None:
            yield SpecError(f"{path}.value", f"{var.name} would be readable in the job; use {field}")
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
                yield SpecError(path, f"{_short(key)} is not a Kubernetes key; use name or example.com/name")
            if field != "annotations" and value and not _LABEL_NAME.match(value):
                yield SpecError(
                    path,
                    f"{_short(value)} is not a label value; use at most 63 letters, digits, '-', '_' and '.', "
                    "with a letter or digit at both ends",
                )


def _tolerations(spec: JobSpec) -> Iterator[SpecError]:
    for i, toleration in enumerate(spec.pod.tolerations):
        path = f"spec.pod.tolerations[{i}]"
        exists = toleration.operator == "Exists"
        if exists and toleration.value:
            yield SpecError(f"{path}.value", "operator Exists takes no value; remove it, or use operator: Equal")
        if not toleration.key and not exists:
            yield SpecError(
                f"{path}.key", "is empty; set the key of a taint, or use operator: Exists to tolerate all taints"
            )
        if toleration.key and not _qualified(toleration.key):
            yield SpecError(
                f"{path}.key", f"{_short(toleration.key)} is not a Kubernetes key; use name or example.com/name"
            )
        if toleration.value and not _LABEL_NAME.match(toleration.value):
            yield SpecError(
                f"{path}.value", f"{_short(toleration.value)} is not a label value; use the value of the taint"
            )
        if toleration.toleration_seconds is not None and toleration.effect != "NoExecute":
            yield SpecError(f"{path}.tolerationSeconds", "needs effect: NoExecute; set it, or remove tolerationSeconds")


def _resources(spec: JobSpec) -> Iterator[SpecError]:
    pod = spec.pod
    if not _extended(pod.gpu_resource):
        yield SpecError(
            "spec.pod.gpuResource",
            f"{_short(pod.gpu_resource)} is not a device; use the name from its device plugin, for example "
            "nvidia.com/gpu",
        )
    for field in ("requests", "limits"):
        for key in getattr(pod.resources, field):
            path = path_text(("spec", "pod", "resources", field, key))
            if key == pod.gpu_resource:
                yield SpecError(path, "comes from spec.mesh.gpusPerNode; remove it")
            elif not (_RESOURCES.match(key) or _extended(key)):
                yield SpecError(
                    path, f"{_short(key)} is not a resource; use for example cpu, memory or example.com/nic"
                )


def _extended(key: str) -> bool:
    """Return whether it is the name of an extended resource (device plugins), such as `example.com/nic`."""
    domain = key.rpartition("/")[0]
    native = f".{domain}".endswith(".kubernetes.io") or domain.startswith("requests.")
    return bool(domain) and _qualified(key) and not native


def _sizes(spec: JobSpec) -> Iterator[SpecError]:
    """Limit sizes that no single field bounds. Every pod contains this data, and etcd limits objects to 1.5 MiB."""
    env = sum(len(f"{var.name}{var.value or ''}".encode()) for var in spec.pod.env)
    if env > ENV_LIMIT:
        yield SpecError(
            "spec.pod.env", f"{env} bytes are too many; use at most {ENV_LIMIT}, and a ConfigMap for larger data"
        )
    overrides = len(json.dumps(spec.model.overrides))
    affinity = len(json.dumps(spec.pod.affinity.to_dict())) if spec.pod.affinity else 0
    for path, size in (("spec.model.overrides", overrides), ("spec.pod.affinity", affinity)):
        if size > JSON_LIMIT:
            yield SpecError(path, f"{size} bytes are too many; use at most {JSON_LIMIT}")


def _characters(spec: JobSpec) -> Iterator[SpecError]:
    """Reject invisible characters. Copied text can contain them, and a name with one looks correct but is another name.

    Values of variables and annotations may have several lines; only NUL is rejected there.
    """
    for path, text in _texts(spec.to_dict(), ("spec",)):
        if text.isprintable():
            continue
        any_text = path[:3] in (("spec", "pod", "env"), ("spec", "pod", "annotations"))
        at = next((i for i, c in enumerate(text) if (c == "\0" if any_text else _invisible(c))), None)
        if at is not None:
            yield SpecError(path_text(path), f"character {at + 1} (U+{ord(text[at]):04X}) is invisible; remove it")


def _invisible(character: str) -> bool:
    return unicodedata.category(character) in _INVISIBLE and character not in _JOINERS


def _texts(value: Any, path: FieldPath) -> Iterator[tuple[FieldPath, str]]:
    """Yield every text of a spec with its path, including the keys of mappings."""
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
    """Return whether it is a Kubernetes qualified name: `name` or `dns.sub.domain/name`."""
    prefix, slash, name = key.rpartition("/")
    if slash and not (len(prefix) <= 253 and _DNS_SUBDOMAIN.match(prefix)):
        return False
    return bool(_LABEL_NAME.match(name))


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
