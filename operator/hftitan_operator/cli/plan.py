"""Formats the output of `hftitan plan` (tables of the mesh, estimate of memory) and `hftitan render` (manifests)."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import yaml

from hftitan_api import memory
from hftitan_api.mesh import AXES, MeshPlan
from hftitan_api.models import HFTitanJob
from hftitan_api.shape import ModelShape
from hftitan_operator.core.rendering import quantity, sizing
from hftitan_operator.core.state import Manifest

WIDTH = 100
"""Columns of a plan. Only a name or path that is longer than a line exceeds it."""
LABEL = 9
"""Columns of the labels `job`, `mesh`, ... before their text."""
LEAST_ROOM = 24
"""Minimum columns of folded text beside other columns. With less room, the text starts on the next line."""
INDENT = 6
"""Indentation of text on the next line."""
SHOWN = 8
"""Maximum number of nodes, and of groups of an axis, before `...`."""
LISTED = 4
"""Maximum number of ranks of a group that are all listed."""
GPU_MEMORY_GIB = 80.0
"""Memory of a GPU if the user does not give it (A100, H100)."""
RUNTIME_BYTES = 2 * 2**30
"""CUDA context and allocator slack, which the estimate does not include (see hftitan_api.memory)."""


def ranks_text(ranks: Sequence[int]) -> str:
    """Return `0-3` for consecutive ranks, `0,8` or `0,8,16,...,504` for others."""
    if len(ranks) > 1 and ranks[-1] - ranks[0] == len(ranks) - 1:
        return f"{ranks[0]}-{ranks[-1]}"
    words = [str(rank) for rank in ranks]
    return ",".join(words if len(words) <= LISTED else [*words[:3], "...", words[-1]])


def plan_tables(
    job: HFTitanJob, plan: MeshPlan, config: Mapping[str, Any] | None = None, gpu_memory: float | None = None
) -> str:
    """Return what a job uses: sizes, groups of each axis, ranks of each node, memory.

    `config` is the model's config.json; None omits the memory. `gpu_memory` is the memory of a GPU in GiB; None
    assumes GPU_MEMORY_GIB.
    """
    spec, degrees = job.spec, plan.degrees
    accumulation = plan.gradient_accumulation_steps
    lines = [
        _line("job", f"{job.metadata.name}: {spec.model.name} on {spec.dataset.name or spec.dataset.path}"),
        _line(
            "mesh",
            f"{plan.summary}  ({_count(degrees.nodes, 'node')} x {_count(degrees.ranks_per_node, _device(plan))}, "
            f"world size {plan.world_size})",
        ),
        _line(
            "batch",
            f"{plan.global_batch_size} sequences x {spec.training.seq_len} tokens = {plan.tokens_per_step:,} "
            f"tokens per step; {spec.training.local_batch_size} per rank"
            + (f", {accumulation} passes accumulated" if accumulation > 1 else ""),
        ),
        _line("training", f"{spec.training.steps} steps, {spec.training.steps * plan.tokens_per_step:,} tokens"),
    ]
    text = "".join(lines) + "\n" + table(*_axes(plan)) + "\n" + table(*_nodes(plan))
    if config is not None:
        text += "\n" + _memory_text(job, plan, config, gpu_memory)
    return text


def _line(label: str, text: str) -> str:
    return f"{label:<{LABEL}}{folded(text, LABEL, WIDTH)}\n"


def _memory_text(job: HFTitanJob, plan: MeshPlan, config: Mapping[str, Any], gpu_memory: float | None) -> str:
    shape = ModelShape.from_config(config, job.spec.model.overrides)
    counted, estimated = memory.count(shape), memory.estimate(shape, job.spec, plan)
    if counted is None or estimated is None:
        unknown = f"not estimated: the number of parameters of model type {shape.model_type!r} is not known exactly"
        return _line("memory", unknown)
    named = [(part.name, getattr(estimated, part.name)) for part in fields(estimated)]
    parts = ", ".join(f"{name} {_gib(size)}" for name, size in named if size or name != "staged")
    each = "GPU" if plan.degrees.device == "gpu" else "process"
    return (
        _line("model", f"{counted.total:,} parameters")
        + _line(
            "memory",
            f"about {_gib(estimated.total)} GiB on the fullest {each} ({parts}), without the 1 to 2 GiB of the runtime",
        )
        + _host_text(job, plan, memory.host_bytes(estimated, job.spec, plan))
        + _verdict(job, plan, estimated.total, gpu_memory)
    )


def _host_text(job: HFTitanJob, plan: MeshPlan, needed: int) -> str:
    """Return the host memory that asynchronous checkpoints of GPUs need, compared with the request of the pods."""
    if not needed:
        return ""
    shm = sizing.shm(job.spec.pod, plan.degrees)
    requested = sizing.resources(job.spec.pod, plan.degrees, shm)["requests"]["memory"]
    more = ""
    if quantity.parse(requested) <= needed + shm:
        least = quantity.mebibytes(needed + shm)
        more = (
            f"; the pods request {requested}: raise spec.pod.resources.requests.memory well above {least} "
            "(with /dev/shm)"
        )
    return _line("host", f"about {_gib(needed)} GiB on each node for the copies that asyncMode saves from{more}")


def _verdict(job: HFTitanJob, plan: MeshPlan, needed: int, gpu_memory: float | None) -> str:
    """Return whether the job fits into the memory of its GPUs; nothing for a CPU mesh."""
    if plan.degrees.device != "gpu":
        return ""
    available = _gpu_bytes(gpu_memory)
    assumed = " (assumed; set it with --gpu-memory)" if gpu_memory is None else ""
    # Rounded up, so that the numbers never contradict the verdict.
    numbers = f"{math.ceil(needed / 2**30 * 10) / 10:g} GiB needed per device, {available / 2**30:g} GiB available"
    if needed > available:
        fixes = "raise dpShard, tp or pp"
        if job.spec.training.activation_checkpoint != "full":
            fixes += ", or set training.activationCheckpoint to full"
        return _line("verdict", f"does not fit: {numbers}{assumed}; {fixes}")
    tight = needed + RUNTIME_BYTES > available
    return _line("verdict", f"fits: {numbers}{assumed}" + (", but the runtime needs 1 to 2 GiB more" if tight else ""))


def _gpu_bytes(gpu_memory: float | None) -> int:
    return int((GPU_MEMORY_GIB if gpu_memory is None else gpu_memory) * 2**30)


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"


def _device(plan: MeshPlan) -> str:
    return "GPU" if plan.degrees.device == "gpu" else "CPU process"


def _count(number: int, what: str) -> str:
    """Return `1 node`, `8 GPUs`, `2 CPU processes`."""
    return f"{number} {what}" + ("" if number == 1 else "es" if what.endswith("s") else "s")


def _axes(plan: MeshPlan) -> tuple[list[str], list[list[str]]]:
    header = ["AXIS", "DEGREE", "GROUPS", "STRIDE", "RANKS OF EACH GROUP"]
    rows, groups = [], []
    for axis in (*AXES, "ep"):
        if plan.degree(axis) > 1:
            found = plan.groups(axis)
            groups.append(found)
            rows.append([axis, str(plan.degree(axis)), str(len(found)), str(found[0][1] - found[0][0])])
    if not rows:
        return header, [["-", "1", "1", "-", "one rank, no groups"]]
    before = sum(max(len(row[i]) for row in [header, *rows]) + 2 for i in range(len(header) - 1))
    return header, [[*row, _groups(found, WIDTH - before)] for row, found in zip(rows, groups, strict=True)]


def _groups(groups: Sequence[Sequence[int]], room: int) -> str:
    """Return the first groups that fit into `room` columns, then `...` if there are more. Shows at least one."""
    shown = ""
    for i, group in enumerate(groups[:SHOWN]):
        longer = f"{shown}  {ranks_text(group)}" if shown else ranks_text(group)
        if shown and len(longer) + (0 if i + 1 == len(groups) else len("  ...")) > room:
            return f"{shown}  ..."
        shown = longer
    return shown if len(groups) <= SHOWN else f"{shown}  ..."


def _nodes(plan: MeshPlan) -> tuple[list[str], list[list[str]]]:
    axes = [axis for axis in AXES if plan.degree(axis) > 1]
    rows = []
    for node in range(min(plan.degrees.nodes, SHOWN)):
        ranks = plan.ranks_of(node)
        places = [plan.coordinates(rank) for rank in ranks]
        spans = [_span([place[axis] for place in places]) for axis in axes]
        rows.append([str(node), ranks_text(list(ranks)), *spans])
    if plan.degrees.nodes > SHOWN:
        rows.append([f"... {plan.degrees.nodes - SHOWN} more"] + [""] * (1 + len(axes)))
    return ["NODE", "RANKS", *(axis.upper() for axis in axes)], rows


def _span(values: Iterable[int]) -> str:
    return ranks_text(sorted(set(values)))


def table(header: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None) -> str:
    """Return a table with columns as wide as their widest cell, two spaces apart.

    `width` is the width of the terminal; the last column is folded to fit. None: no folding.
    """
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    before = sum(widths[:-1]) + 2 * (len(widths) - 1)
    rows = [header, *([*row[:-1], folded(row[-1], before, width)] for row in rows)]
    lines = ["".join(f"{cell:<{room}}  " for cell, room in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in "\n".join(lines).splitlines()) + "\n"


def folded(text: str, start: int, width: int | None) -> str:
    """Fold a text that begins at column `start` to `width` columns.

    The next lines begin at the same column. If fewer than LEAST_ROOM columns remain, all lines go below, at INDENT.
    """
    if width is None or start + len(text) <= width:
        return text
    indent = start if width - start >= LEAST_ROOM else INDENT
    lines = textwrap.wrap(text, max(LEAST_ROOM, width - indent), break_long_words=False, break_on_hyphens=False)
    return f"\n{' ' * indent}".join(lines if indent == start else ["", *lines])


def plan_json(
    job: HFTitanJob, plan: MeshPlan, config: Mapping[str, Any] | None = None, gpu_memory: float | None = None
) -> dict[str, Any]:
    """Return the plan for programs. Arguments as for `plan_tables`; memory is in bytes."""
    found: dict[str, Any] = {
        "job": job.metadata.name,
        "mesh": plan.summary,
        "worldSize": plan.world_size,
        "degrees": plan.degrees.to_dict(),
        "globalBatchSize": plan.global_batch_size,
        "gradientAccumulationSteps": plan.gradient_accumulation_steps,
        "tokensPerStep": plan.tokens_per_step,
        "groups": {axis: plan.groups(axis) for axis in (*AXES, "ep") if plan.degree(axis) > 1},
        "nodes": [list(plan.ranks_of(node)) for node in range(plan.degrees.nodes)],
    }
    if config is not None:
        shape = ModelShape.from_config(config, job.spec.model.overrides)
        estimated = memory.estimate(shape, job.spec, plan)
        if estimated is not None:
            found["memory"] = {part.name: getattr(estimated, part.name) for part in fields(estimated)}
            found["memory"]["total"] = estimated.total
            found["memory"]["hostPerNode"] = memory.host_bytes(estimated, job.spec, plan)
            if plan.degrees.device == "gpu":
                available = _gpu_bytes(gpu_memory)
                found["memory"] |= {"available": available, "fits": estimated.total <= available}
    return found


NIL_UID = "00000000-0000-0000-0000-000000000000"
"""Replaces the uid from the API server, in owner references and in the rendezvous id."""


def with_uid(job: HFTitanJob) -> HFTitanJob:
    """Return the job with a uid, as if an API server had accepted it."""
    return job.model_copy(update={"metadata": job.metadata.model_copy(update={"uid": job.metadata.uid or NIL_UID})})


if TYPE_CHECKING:
    _SafeDumper = yaml.SafeDumper
else:
    # libyaml's emitter is four times faster. It may fold quoted strings of more than 120 columns at other places.
    _SafeDumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class _Dumper(_SafeDumper):
    """Writes multi-line text as a block, and no aliases, since some readers do not resolve them."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def objects_text(objects: Sequence[Manifest], output: str) -> str:
    """Return the manifests for `kubectl apply -f -`: YAML documents, or one JSON List."""
    if output == "json":
        return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}, indent=2) + "\n"
    return "".join("---\n" + yaml.dump(each, Dumper=_Dumper, sort_keys=False, width=120) for each in objects)
