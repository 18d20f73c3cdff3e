"""Checks the model against the mesh and the training settings before a process group exists."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hftitan_api import rules
from hftitan_api.models import JobSpec, MeshSpec
from hftitan_api.shape import ModelShape
from hftitan_api.support import unsupported
from hftitan_trainer.process.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from hftitan_api.wire import TrainerSpec


def check_model_on_mesh(config: PretrainedConfig, spec: TrainerSpec) -> None:
    """Raise UserError with field, numbers and fix if the model does not fit the mesh or the sequence length.

    These are the operator's rules. The operator cannot apply them if it does not have the model's config.
    """
    mesh = spec.mesh
    job = JobSpec(
        model=spec.model,
        dataset=spec.dataset,
        mesh=MeshSpec(
            nodes=mesh.nodes,
            gpus_per_node=mesh.ranks_per_node,
            dp_replicate=mesh.dp_replicate,
            dp_shard=mesh.dp_shard,
            tp=mesh.tp,
            pp=mesh.pp,
            cp=mesh.cp,
            ep=mesh.ep,
            device=mesh.device,
        ),
        training=spec.training,
        optimizer=spec.optimizer,
    )
    shape = ModelShape.from_config(config.to_dict())
    for problem in (
        *unsupported(job),
        *rules.model(job, shape),
        *rules.pipeline(job),
        *rules.sequence(job),
    ):
        raise UserError(problem.path, problem.message)
    # attention.py computes soft-capped scores without dropout. On GPUs the rules refuse all attention dropout.
    rate = getattr(config, "attention_dropout", None)
    if rate and getattr(config, "attn_logit_softcapping", None):
        raise UserError(
            "spec.model.overrides.attention_dropout",
            f"{spec.model.name} has {rate}, but soft-capped attention (attn_logit_softcapping) does not support "
            "dropout; set it to 0.0",
        )
