"""Translates a TrainerSpec to torchtitan's configuration. The only file that names torchtitan's config fields.

torchtitan's command line is frozen upstream, so the configuration is built as Python objects. Call `use_device` before
you import this module.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torchtitan.components.loss import CrossEntropyLoss
from torchtitan.components.optimizer import LRSchedulersContainer, OptimizersContainer, ParamGroupConfig
from torchtitan.config import CommConfig, CompileConfig, DebugConfig, ParallelismConfig, TrainingConfig
from torchtitan.distributed.activation_checkpoint import FullAC
from torchtitan.experiments.transformers_modeling_backend.configs import TransformersBackendConfig
from torchtitan.experiments.transformers_modeling_backend.pipeline import pipeline_hf_transformers
from torchtitan.protocols.model_spec import ModelSpec as TitanModelSpec

from hftitan_api.models import TrainingSpec
from hftitan_api.wire import MeshDegrees, TrainerSpec
from hftitan_trainer.model.attention import WHOLE
from hftitan_trainer.model.checks import check_model_on_mesh
from hftitan_trainer.model.folder import ModelFolder
from hftitan_trainer.model.wrapper import HFTitanModel, HFTitanStateDictAdapter, parallelize
from hftitan_trainer.parallel.experts import SelectiveRecomputation
from hftitan_trainer.parallel.float8 import with_float8
from hftitan_trainer.telemetry.processor import StepMetrics

NEVER = 2**31 - 1
"""Means no checkpoints during training, for which torchtitan has no setting."""


def build_config(
    spec: TrainerSpec,
    model: ModelFolder,
    output: Path,
    *,
    dataloader: Any,
    tokenizer: Any,
    checkpoint: Any,
) -> TransformersBackendConfig:
    """Return torchtitan's configuration for the job.

    `output` is the folder that all ranks share. `dataloader`, `tokenizer` and `checkpoint` are configs of torchtitan
    components (from data/loader.py, data/tokenizer.py and checkpoint/manager.py). Raises UserError if the spec cannot
    be trained.
    """
    check_model_on_mesh(model.config, spec)
    return TransformersBackendConfig(
        hf_model=str(model.path),
        hf_assets_path=str(model.path),
        model_spec=model_spec(model, spec.training.seed, spec.training.float8),
        dump_folder=str(output),
        training=_training(spec),
        parallelism=_parallelism(spec.mesh, spec.training),
        optimizer=_optimizer(spec),
        lr_scheduler=LRSchedulersContainer.Config(
            warmup_steps=spec.lr_schedule.warmup_steps,
            decay_ratio=spec.lr_schedule.decay_ratio,
            decay_type=spec.lr_schedule.decay_type,
            min_lr_factor=spec.lr_schedule.min_lr_factor,
        ),
        loss=CrossEntropyLoss.Config(),
        activation_checkpoint=_activation_checkpoint(spec),
        compile=CompileConfig(enable=spec.training.compile),
        comm=_comm(spec),
        debug=DebugConfig(
            seed=spec.training.seed, deterministic=spec.training.deterministic, enable_structured_logging=False
        ),
        dataloader=dataloader,
        tokenizer=tokenizer,
        checkpoint=checkpoint,
        metrics=StepMetrics.Config(log_freq=1, disable_color_printing=True),
    )


def model_spec(model: ModelFolder, seed: int, float8: str | None = None) -> TitanModelSpec:
    """Return torchtitan's ModelSpec: how to build, shard, split and load the model.

    Documents packed into one row do not attend to each other (attn_mask_type block_causal). Upstream's default lets
    attention cross documents although positions restart, which raises the first loss of SmolLM2 by a full nat.
    """
    return TitanModelSpec(
        name="hftitan",
        flavor=model.config.model_type,
        model=HFTitanModel.Config(model, seed),
        parallelize_fn=with_float8(parallelize, float8) if float8 else parallelize,
        pipelining_fn=pipeline_hf_transformers,
        post_optimizer_build_fn=None,
        state_dict_adapter=HFTitanStateDictAdapter,
    )


def _training(spec: TrainerSpec) -> TrainingConfig:
    training, on_cpu = spec.training, spec.mesh.device == "cpu"
    return TrainingConfig(
        local_batch_size=training.local_batch_size,
        global_batch_size=training.global_batch_size or -1,
        seq_len=training.seq_len,
        max_norm=training.max_norm,
        steps=training.steps,
        dtype=training.dtype,
        mixed_precision_param=training.mixed_precision or ("float32" if on_cpu else "bfloat16"),
        # A captured step would replay one document mask; each step must build the mask from its batch.
        disable_cuda_graphs=True,
    )


def _parallelism(mesh: MeshDegrees, training: TrainingSpec) -> ParallelismConfig:
    on_cpu = mesh.device == "cpu"
    return ParallelismConfig(
        data_parallel_replicate_degree=mesh.dp_replicate,
        data_parallel_shard_degree=mesh.dp_shard,
        tensor_parallel_degree=mesh.tp,
        pipeline_parallel_degree=mesh.pp,
        pipeline_parallel_schedule=training.pipeline_schedule or "1F1B",
        context_parallel_degree=mesh.cp,
        expert_parallel_degree=mesh.ep,
        # "headtail" cannot shard a flex mask; on CPUs the mask is dense and every rank keeps its contiguous part.
        context_parallel_load_balancer=None if on_cpu else "ptrr",
        context_parallel_ptrr_mask_key=WHOLE,  # a model with sliding windows has two masks
        # On CPUs a second gather costs more time than it saves memory, since all ranks share the machine's memory.
        fsdp_reshard_after_forward="never" if on_cpu else "default",
    )


def _optimizer(spec: TrainerSpec) -> OptimizersContainer.Config:
    optimizer = spec.optimizer
    return OptimizersContainer.Config(
        implementation="fused",
        param_groups=[
            ParamGroupConfig(
                pattern=r".*",
                optimizer_name=optimizer.name,
                optimizer_kwargs={
                    "lr": optimizer.lr,
                    "betas": tuple(optimizer.betas),
                    "eps": optimizer.eps,
                    "weight_decay": optimizer.weight_decay,
                },
            )
        ],
    )


def _activation_checkpoint(spec: TrainerSpec) -> Any:
    kind = spec.training.activation_checkpoint or ("none" if spec.mesh.device == "cpu" else "selective")
    return {"none": None, "selective": SelectiveRecomputation.Config(), "full": FullAC.Config()}[kind]


def _comm(spec: TrainerSpec) -> CommConfig:
    """Use the job's time limits for collectives. The flight recorder exists for NCCL only."""
    return CommConfig(
        init_timeout_seconds=spec.startup_timeout_seconds,
        train_timeout_seconds=spec.hang_timeout_seconds,
        trace_buf_size=0 if spec.mesh.device == "cpu" else 20000,
    )
