"""The rules of mesh.py and admit.py that the API server can check itself, in CEL.

A server too old for CEL ignores them and the operator refuses the same jobs; tests/api hold both to one table. No rule
relies on another: integers are divided axis by axis (a | w, then b | w / a, ...), so that no product overflows and
nothing is divided by zero, and `x / 0` never comes up because every degree is at least 1.
"""

from __future__ import annotations

from typing import Final

from hftitan_api.models import JobSpec
from hftitan_api.rules import FLEX_BLOCK, FLOAT8_TOKENS

Rule = dict[str, str]

_WORLD = "(self.nodes * self.gpusPerNode)"
_LEFT = f"{_WORLD} / self.tp / self.cp / self.pp / self.dpReplicate"  # ranks that dpShard can have
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
        "set dpShard: -1 to give it all ranks that the other axes leave",
    },
    {
        "rule": "self.gpusPerNode % self.tp == 0",
        "message": "tp must divide gpusPerNode: tensor parallelism stays inside a node",
    },
    {
        "rule": "self.ep == 1 || (self.gpusPerNode % self.ep == 0"
        f" && {_WORLD} / self.pp / self.dpReplicate % self.ep == 0)",
        "message": "ep must divide gpusPerNode and dpShard x cp x tp: expert parallelism stays inside a node",
    },
)
DATASET_RULES: Final[tuple[Rule, ...]] = (
    {"rule": "has(self.name) != has(self.path)", "message": "give exactly one of name (a hub id) and path"},
    {"rule": "!(has(self.path) && has(self.config))", "message": "config belongs to a hub dataset, not to a path"},
    {"rule": "!(has(self.textField) && has(self.messagesField))", "message": "give one of textField and messagesField"},
)
SPEC_RULES: Final[tuple[Rule, ...]] = (
    {
        "rule": "self.training.seqLen % (2 * self.mesh.cp * self.mesh.tp) == 0",
        "message": "training.seqLen must be a multiple of tp x 2 x cp",
    },
    {
        "rule": "self.mesh.cp == 1 || self.mesh.device == 'cpu'"
        f" || self.training.seqLen % ({FLEX_BLOCK} * self.mesh.cp) == 0",
        "message": f"training.seqLen must be a multiple of {FLEX_BLOCK} x cp on GPUs",
    },
    {
        "rule": f"!has(self.training.globalBatchSize) || {_DP} == 0"
        f" || self.training.globalBatchSize % (self.training.localBatchSize * {_DP}) == 0",
        "message": "training.globalBatchSize must be a multiple of localBatchSize x dpReplicate x dpShard",
    },
    {
        "rule": "self.mesh.pp > 1 || !has(self.training.pipelineSchedule)",
        "message": "training.pipelineSchedule needs mesh.pp above 1",
    },
    {
        "rule": f"self.mesh.pp == 1 || self.training.localBatchSize >= self.mesh.pp * ({_INTERLEAVED} ? 2 : 1)",
        "message": "training.localBatchSize must be at least the number of pipeline stages "
        "(mesh.pp, twice that with Interleaved1F1B)",
    },
    {
        "rule": f"!({_INTERLEAVED}) || self.training.localBatchSize < self.mesh.pp"
        " || self.training.localBatchSize % (self.training.localBatchSize / self.mesh.pp) == 0",
        "message": "training.localBatchSize must spread evenly over localBatchSize / pp rounds with Interleaved1F1B",
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
        "message": "lrSchedule.warmupSteps must not be more than training.steps",
    },
    {
        "rule": "self.mesh.nodes == 1 || has(self.checkpoint.volume)"
        " || (self.checkpoint.interval == 0 && !self.checkpoint.exportHF)",
        "message": "several nodes save one checkpoint together: set checkpoint.volume to a ReadWriteMany claim, "
        "or interval: 0 and exportHF: false",
    },
    {
        "rule": "!has(self.checkpoint.pushToHub) || self.checkpoint.exportHF",
        "message": "checkpoint.pushToHub pushes the export: set checkpoint.exportHF: true",
    },
    {
        "rule": "!has(self.checkpoint.pushToHub) || has(self.pod.hfTokenSecret)",
        "message": "checkpoint.pushToHub needs pod.hfTokenSecret, with a token that may write to the repository",
    },
    {
        "rule": "!(self.scheduling.gang in ['kueue', 'kai']) || has(self.scheduling.queue)",
        "message": "scheduling.gang kueue and kai need scheduling.queue",
    },
    {
        "rule": "!has(self.scheduling.queue) || self.scheduling.gang in ['kueue', 'volcano', 'kai']",
        "message": "scheduling.queue needs scheduling.gang kueue, volcano or kai",
    },
)
MUTABLE: Final = frozenset({"runPolicy"})
"""Fields of spec that may change while the job exists."""


def immutability_rules() -> list[Rule]:
    """One transition rule for each other field of spec, so that the message names it."""
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
