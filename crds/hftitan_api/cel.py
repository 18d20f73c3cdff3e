"""The rules of rules.py and admit.py that the API server can check, in CEL.

An API server without CEL (before 1.25) ignores them, and the operator rejects the same jobs. tests/api compares both.
The server evaluates every rule even if another one fails. So the degrees are divided one by one (a | w, then b | w / a,
...): no product overflows, and no divisor is zero, because every degree is at least 1.
"""

from __future__ import annotations

from typing import Final

from hftitan_api.admit import NOT_IN_A_REF, TORCHRUN_ENV, TORCHRUN_ENV_PREFIX
from hftitan_api.models import JobSpec
from hftitan_api.rules import FLEX_BLOCK, FLOAT8_TOKENS

Rule = dict[str, str]

_WORLD = "(self.nodes * self.gpusPerNode)"
_LEFT = f"{_WORLD} / self.tp / self.cp / self.pp / self.dpReplicate"  # the ranks that dpShard can use
_DIVIDES = (
    f"{_WORLD} % self.tp == 0 && {_WORLD} / self.tp % self.cp == 0 && {_WORLD} / self.tp / self.cp % self.pp == 0"
    f" && {_WORLD} / self.tp / self.cp / self.pp % self.dpReplicate == 0"
)
_DP = "(self.mesh.nodes * self.mesh.gpusPerNode / self.mesh.tp / self.mesh.cp / self.mesh.pp)"
_INTERLEAVED = "has(self.training.pipelineSchedule) && self.training.pipelineSchedule == 'Interleaved1F1B'"

MESH_RULES: Final[tuple[Rule, ...]] = (
    {
        "rule": f"{_DIVIDES} && (self.dpShard == -1 || {_LEFT} == self.dpShard)",
        "message": "nodes x gpusPerNode must equal dpReplicate x dpShard x cp x tp x pp; "
        "set dpShard: -1 to use all ranks that the other axes do not use",
    },
    {
        "rule": "self.gpusPerNode % self.tp == 0",
        "message": "tp must divide gpusPerNode (a tensor-parallel group must not span nodes)",
    },
    {
        "rule": "self.ep == 1 || (self.gpusPerNode % self.ep == 0"
        f" && {_WORLD} / self.pp / self.dpReplicate % self.ep == 0)",
        "message": "ep must divide dpShard x cp x tp and gpusPerNode (an expert-parallel group must not span nodes)",
    },
)
DATASET_RULES: Final[tuple[Rule, ...]] = (
    {
        "rule": "has(self.name) != has(self.path)",
        "message": "set either name (a hub id) or path (a file or folder)",
    },
    {
        "rule": "!(has(self.path) && has(self.config))",
        "message": "config is for hub datasets; remove it, or set name instead of path",
    },
    {
        "rule": "!has(self.path) || self.split == 'train'",
        "message": "split is for hub datasets; remove it, or set name instead of path",
    },
    {
        "rule": "!(has(self.path) && self.streaming)",
        "message": "streaming is for hub datasets; remove it, or set name instead of path",
    },
    {
        "rule": "!(has(self.textField) && has(self.messagesField))",
        "message": "set either textField (plain text) or messagesField (chats)",
    },
)
SPEC_RULES: Final[tuple[Rule, ...]] = (
    {
        "rule": "self.training.seqLen % (2 * self.mesh.cp * self.mesh.tp) == 0",
        "message": "training.seqLen must be a multiple of tp x 2 x cp",
    },
    {
        "rule": "self.mesh.cp == 1 || self.mesh.device == 'cpu'"
        f" || self.training.seqLen % ({FLEX_BLOCK} * self.mesh.cp) == 0",
        "message": f"training.seqLen must be a multiple of {FLEX_BLOCK} x cp on GPUs if cp is more than 1",
    },
    {
        "rule": f"!has(self.training.globalBatchSize) || {_DP} == 0"
        f" || self.training.globalBatchSize % (self.training.localBatchSize * {_DP}) == 0",
        "message": "training.globalBatchSize must be a multiple of localBatchSize x dpReplicate x dpShard",
    },
    {
        "rule": "self.mesh.pp > 1 || !has(self.training.pipelineSchedule)",
        "message": "training.pipelineSchedule needs mesh.pp of at least 2",
    },
    {
        "rule": f"self.mesh.pp == 1 || self.training.localBatchSize >= self.mesh.pp * ({_INTERLEAVED} ? 2 : 1)",
        "message": "training.localBatchSize must be at least the number of pipeline stages "
        "(mesh.pp, or 2 x mesh.pp with Interleaved1F1B)",
    },
    {
        "rule": f"!({_INTERLEAVED}) || self.training.localBatchSize < self.mesh.pp"
        " || self.training.localBatchSize % (self.training.localBatchSize / self.mesh.pp) == 0",
        "message": "training.localBatchSize must be a multiple of the number of rounds "
        "(localBatchSize / pp, rounded down) with Interleaved1F1B",
    },
    {
        "rule": "!has(self.training.float8) || self.mesh.device == 'gpu'",
        "message": "training.float8 needs mesh.device: gpu",
    },
    {
        "rule": f"!has(self.training.float8) || self.training.seqLen % ({FLOAT8_TOKENS} * self.mesh.cp) == 0",
        "message": f"training.seqLen must be a multiple of {FLOAT8_TOKENS} x cp with training.float8",
    },
    {
        "rule": "self.lrSchedule.warmupSteps <= self.training.steps",
        "message": "lrSchedule.warmupSteps must be at most training.steps",
    },
    {
        "rule": "double(self.lrSchedule.decayRatio) > 0.0"
        " || (self.lrSchedule.decayType == 'linear' && double(self.lrSchedule.minLrFactor) == 0.0)",
        "message": "lrSchedule.decayType and minLrFactor have no effect with decayRatio 0; set decayRatio (1 decays "
        "over all steps), or remove them",
    },
    {
        "rule": f"!has(self.model.revision) || !self.model.revision.matches(r'{NOT_IN_A_REF}')",
        "message": "model.revision must be a branch, tag or commit: it contains what git does not allow in a name",
    },
    {
        "rule": f"!has(self.pod.env) || self.pod.env.all(v, !(v.name in {list(TORCHRUN_ENV)})"
        f" && !v.name.startsWith('{TORCHRUN_ENV_PREFIX}'))",
        "message": f"pod.env must not set variables of torchrun: {', '.join(TORCHRUN_ENV)}, {TORCHRUN_ENV_PREFIX}*",
    },
    {
        "rule": "self.mesh.nodes == 1 || has(self.checkpoint.volume)"
        " || (self.checkpoint.interval == 0 && !self.checkpoint.exportHF)",
        "message": "checkpoint.volume is required with several nodes, because they save one checkpoint together; name "
        "a ReadWriteMany claim, or save nothing (interval: 0 and exportHF: false)",
    },
    {
        "rule": "!has(self.checkpoint.pushToHub) || self.checkpoint.exportHF",
        "message": "checkpoint.pushToHub needs checkpoint.exportHF: true",
    },
    {
        "rule": "!has(self.checkpoint.pushToHub) || has(self.pod.hfTokenSecret)",
        "message": "checkpoint.pushToHub needs pod.hfTokenSecret; name a Secret with a token that may write to the "
        "repository",
    },
    {
        "rule": "!(self.scheduling.gang in ['kueue', 'kai']) || has(self.scheduling.queue)",
        "message": "scheduling.queue is required with scheduling.gang kueue or kai",
    },
    {
        "rule": "!has(self.scheduling.queue) || self.scheduling.gang in ['kueue', 'volcano', 'kai']",
        "message": "scheduling.queue is only for scheduling.gang kueue, volcano or kai",
    },
)
MUTABLE: Final = frozenset({"runPolicy"})
"""Sections of spec that may change while the job exists."""


def immutability_rules() -> list[Rule]:
    """Return one transition rule per other section of spec, so that the message names the section."""
    rules = []
    for name, field in JobSpec.model_fields.items():
        alias = field.alias or name
        if alias in MUTABLE:
            continue
        same = f"self.{alias} == oldSelf.{alias}"
        if field.default is None:
            same = f"has(self.{alias}) == has(oldSelf.{alias}) && (!has(self.{alias}) || {same})"
        rules.append({"rule": same, "message": f"{alias} cannot change while the job exists; create a new job"})
    return rules
