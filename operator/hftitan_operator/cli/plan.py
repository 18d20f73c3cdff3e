"""`hftitan plan` and `hftitan render`: a job's mesh as tables, and its objects as text."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import yaml

from hftitan_api import memory
from hftitan_api.mesh import AXES, MeshPlan
from hftitan_api.models import HFTitanJob
from hftitan_api.shape import ModelShape
from hftitan_operator.core import quantity, sizing
from hftitan_operator.core.state import Manifest

LEAST_ROOM = 24
INDENT = 6
"""Columns for a text that is folded beside others, in fewer it would be hard to read; and before one below them."""
SHOWN = 8
"""Rows of nodes and groups of an axis before `...`."""


def ranks_text(ranks: Sequence[int]) -> str:
    """`0-3` for neighbours, `0,4,8,12` for a stride, the ends of a long one."""
    if len(ranks) > 1 and ranks[-1] - ranks[0] == len(ranks) - 1:
        return f"{ranks[0]}-{ranks[-1]}"
    words = [str(rank) for rank in ranks]
    return ",".join(words if len(words) <= SHOWN else [*words[:3], "..", words[-1]])


def plan_tables(job: HFTitanJob, plan: MeshPlan, config: Mapping[str, Any] | None = None) -> str:
    """What a job will occupy: sizes, the groups of each axis, the ranks of each node."""
    spec, degrees = job.spec, plan.degrees
    accumulation = plan.gradient_accumulation_steps
    lines = [
        f"job      {job.metadata.name}: {spec.model.name} on {spec.dataset.name or spec.dataset.path}",
        f"mesh     {plan.summary}  ({_count(degrees.nodes, 'node')} x {_count(degrees.ranks_per_node, _device(plan))}, "
        f"world size {plan.world_size})",
        f"batch    {plan.global_batch_size} sequences x {spec.training.seq_len} tokens = {plan.tokens_per_step:,} "
        f"tokens per step; {spec.training.local_batch_size} per rank"
        + (f", {accumulation} passes accumulated" if accumulation > 1 else ""),
        f"training {spec.training.steps} steps, {spec.training.steps * plan.tokens_per_step:,} tokens",
        "",
    ]
    text = "\n".join(lines) + "\n" + table(*_axes(plan)) + "\n" + table(*_nodes(plan))
    if config is not None:
        text += "\n" + _memory_text(job, plan, config)
    return text


def _memory_text(job: HFTitanJob, plan: MeshPlan, config: Mapping[str, Any]) -> str:
    shape = ModelShape.from_config(config, job.spec.model.overrides)
    counted, estimated = memory.count(shape), memory.estimate(shape, job.spec, plan)
    if counted is None or estimated is None:
        return f"memory   not estimated: the parameters of model type {shape.model_type!r} are not known exactly\n"
    named = [(part.name, getattr(estimated, part.name)) for part in fields(estimated)]
    parts = ", ".join(f"{name} {_gib(size)}" for name, size in named if size or name != "staged")
    each = "GPU" if plan.degrees.device == "gpu" else "process"
    return (
        f"model    {counted.total:,} parameters\n"
        f"memory   about {_gib(estimated.total)} GiB on the fullest {each} ({parts}), "
        "the runtime's own 1 to 2 GiB not counted\n"
        + _host_text(job, plan, memory.host_bytes(estimated, job.spec, plan))
    )


def _host_text(job: HFTitanJob, plan: MeshPlan, needed: int) -> str:
    """The nodes' own memory, where GPUs copy their state there, beside what the pods ask for."""
    if not needed:
        return ""
    shm = sizing.shm(job.spec.pod, plan.degrees)
    asked = sizing.resources(job.spec.pod, plan.degrees, shm)["requests"]["memory"]
    more = ""
    if quantity.parse(asked) <= needed + shm:
        least = quantity.mebibytes(needed + shm)
        more = (
            f"; the pods ask for {asked}: raise spec.pod.resources.requests.memory well above {least} (with /dev/shm)"
        )
    return f"host     about {_gib(needed)} GiB on each node for the copies that asyncMode saves from{more}\n"


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"


def _device(plan: MeshPlan) -> str:
    return "GPU" if plan.degrees.device == "gpu" else "CPU process"


def _count(number: int, what: str) -> str:
    """`1 node`, `8 GPUs`, `2 CPU processes`."""
    return f"{number} {what}" + ("" if number == 1 else "es" if what.endswith("s") else "s")


def _axes(plan: MeshPlan) -> tuple[list[str], list[list[str]]]:
    rows = []
    for axis in (*AXES, "ep"):
        if plan.degree(axis) == 1:
            continue
        groups = plan.groups(axis)
        shown = [ranks_text(group) for group in groups[:SHOWN]] + (["..."] if len(groups) > SHOWN else [])
        rows.append([axis, str(plan.degree(axis)), str(len(groups)), "  ".join(shown)])
    return ["AXIS", "DEGREE", "GROUPS", "RANKS OF EACH GROUP"], rows or [["-", "1", "1", "one rank, no groups"]]


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
    """Columns padded to their widest cell, two spaces between. In a terminal's `width` the last one is folded."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    before = sum(widths[:-1]) + 2 * (len(widths) - 1)
    rows = [header, *([*row[:-1], folded(row[-1], before, width)] for row in rows)]
    lines = ["".join(f"{cell:<{room}}  " for cell, room in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in "\n".join(lines).splitlines()) + "\n"


def folded(text: str, start: int, width: int | None) -> str:
    """A text that begins at a column, its further lines below it; where there is little room, all of it below."""
    if width is None or start + len(text) <= width:
        return text
    indent = start if width - start >= LEAST_ROOM else INDENT
    lines = textwrap.wrap(text, max(LEAST_ROOM, width - indent), break_long_words=False, break_on_hyphens=False)
    return f"\n{' ' * indent}".join(lines if indent == start else ["", *lines])


def plan_json(job: HFTitanJob, plan: MeshPlan, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
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
    return found


NIL_UID = "00000000-0000-0000-0000-000000000000"
"""In place of the uid that an API server gives: in the owner references and in the rendezvous id."""


def with_uid(job: HFTitanJob) -> HFTitanJob:
    """The job as if an API server had taken it."""
    return job.model_copy(update={"metadata": job.metadata.model_copy(update={"uid": job.metadata.uid or NIL_UID})})


class _Dumper(yaml.SafeDumper):
    """Multi-line text as a block, as people write it; no aliases, which a reader would have to resolve."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def objects_text(objects: Sequence[Manifest], output: str) -> str:
    """The manifests as `kubectl apply -f -` reads them: YAML documents, or one JSON List."""
    if output == "json":
        return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}, indent=2) + "\n"
    return "".join("---\n" + yaml.dump(each, Dumper=_Dumper, sort_keys=False, width=120) for each in objects)
