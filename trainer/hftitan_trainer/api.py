"""The model bridge as a library. This is the example of transformers' torchtitan page, for torchtitan 0.3:

    import torch
    from hftitan_trainer import HFTransformerModel, JobConfig, ModelArgs

    job_config = JobConfig("Qwen/Qwen2.5-7B")
    model_args = ModelArgs(job_config).update_from_config(config=job_config)
    with torch.device("meta"):
        model = HFTransformerModel(model_args)

`job_config` is torchtitan's own configuration object, for its Trainer. `model` wraps the transformers model in
torchtitan's model protocol, without the upstream defects that model/wrapper.py lists.
"""

# The functions have the class names of that page.

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from hftitan_api.models import (
    CheckpointSpec,
    DatasetSpec,
    LRScheduleSpec,
    ModelSpec,
    MonitoringSpec,
    OptimizerSpec,
    TrainingSpec,
)
from hftitan_api.wire import MeshDegrees, TrainerSpec
from hftitan_trainer.model.folder import fetch_model
from hftitan_trainer.process.device import use_device

if TYPE_CHECKING:
    from torchtitan.experiments.transformers_modeling_backend.configs import TransformersBackendConfig

    from hftitan_trainer.model.wrapper import HFTitanModel


def JobConfig(
    model: str,
    *,
    revision: str | None = None,
    initialize: Literal["pretrained", "random"] = "random",
    overrides: dict[str, Any] | None = None,
    trust_remote_code: bool = False,
    device: Literal["gpu", "cpu"] | None = None,
    seq_len: int = 2048,
    output: str = "outputs",
    **training: Any,
) -> TransformersBackendConfig:
    """Return torchtitan's configuration for one process that trains `model` (a hub id or an absolute folder).

    Only the config and the tokenizer are downloaded, unless `initialize` is "pretrained". `device` defaults to the GPU
    if there is one. `training` takes the other fields of `spec.training` in snake case (steps, local_batch_size,
    compile, ...). The caller sets the data loader. Raises UserError if the model is missing or cannot be trained.
    """
    from pathlib import Path

    import torch

    device = device or ("gpu" if torch.cuda.is_available() else "cpu")
    spec = TrainerSpec(
        job_name="job",
        job_namespace="default",
        job_uid="",
        mesh=MeshDegrees(nodes=1, ranks_per_node=1, dp_replicate=1, dp_shard=1, cp=1, tp=1, pp=1, ep=1, device=device),
        model=ModelSpec(
            name=model,
            revision=revision,
            initialize=initialize,
            overrides=overrides or {},
            trust_remote_code=trust_remote_code,
        ),
        dataset=DatasetSpec(),
        training=TrainingSpec(seq_len=seq_len, **{"steps": 1, **training}),
        optimizer=OptimizerSpec(),
        lr_schedule=LRScheduleSpec(),
        checkpoint=CheckpointSpec(),
        monitoring=MonitoringSpec(),
    )
    folder = fetch_model(spec.model)
    use_device(device)

    from torchtitan.components.dataloader import BaseDataLoader

    from hftitan_trainer.bridge import build_config
    from hftitan_trainer.checkpoint.manager import checkpoint_config
    from hftitan_trainer.data.tokenizer import tokenizer_config

    return build_config(
        spec,
        folder,
        Path(output),
        dataloader=BaseDataLoader.Config(),
        tokenizer=tokenizer_config(trust_remote_code),
        checkpoint=checkpoint_config(spec, initial_load_path=str(folder.path) if folder.pretrained else None),
    )


def ModelArgs(job_config: TransformersBackendConfig) -> HFTitanModel.Config:
    """Return the model config of a job config; `update_from_config(config=job_config)` fills it."""
    assert job_config.model_spec is not None
    return job_config.model_spec.model


def HFTransformerModel(model_args: HFTitanModel.Config) -> HFTitanModel:
    """Build the model; under `torch.device("meta")` it uses no memory."""
    return model_args.build()
