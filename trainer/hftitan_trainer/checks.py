"""What a model asks of the mesh and the training settings, checked before a process group exists."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hftitan_trainer.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from hftitan_api.wire import TrainerSpec

PIPELINED = frozenset({"llama", "ministral", "mistral", "olmo", "olmo2", "olmo3", "qwen2", "qwen3", "smollm3"})
"""Families whose forward pass is: embed, layers, norm, head. Stages run the body's forward with the missing parts
replaced by identities, so a model that does more to its input there (Gemma and Granite scale the embeddings) would do
it again in every stage."""

TENSOR_PARALLEL = frozenset(
    {
        "cohere",
        "cohere2",
        "ernie4_5",
        "exaone4",
        "granite",
        "helium",
        "llama",
        "ministral",
        "mistral",
        "olmo",
        "qwen2",
        "qwen3",
        "smollm3",
    }
)
"""Families whose gradients under torchtitan's tensor parallelism were compared with transformers' and found equal.
Others fail, or worse: Phi's loss is right and its gradient wrong."""


def check_model_on_mesh(config: PretrainedConfig, spec: TrainerSpec) -> None:
    """Raise UserError, naming field, numbers and remedy, where the model does not fit the mesh or the sequence
    length."""
    mesh, training = spec.mesh, spec.training
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    layers = config.num_hidden_layers
    if mesh.tp > 1 and config.model_type not in TENSOR_PARALLEL:
        raise UserError(
            "spec.mesh.tp",
            f"{mesh.tp}, but tensor parallelism does not work for models of type {config.model_type}; set 1, and "
            "dpShard to split the weights",
        )
    for key in ("attention_bias", "mlp_bias"):
        if mesh.tp > 1 and getattr(config, key, False):
            # Upstream (models/common/decoder_sharding.py rowwise_config): each rank adds the whole bias of an output
            # projection to its partial sum.
            raise UserError(
                "spec.mesh.tp",
                f"{mesh.tp}, but {spec.model.name} has {key}, which tensor parallelism would add {mesh.tp} times; set "
                "1, and dpShard to split the weights",
            )
    if heads % mesh.tp or kv_heads % mesh.tp:
        fits = [d for d in range(1, kv_heads + 1) if heads % d == 0 and kv_heads % d == 0]
        raise UserError(
            "spec.mesh.tp",
            f"{mesh.tp} does not divide the {heads} attention heads and {kv_heads} KV heads of {spec.model.name}; use "
            f"{_either(fits)}",
        )
    if mesh.pp > 1:
        if config.model_type not in PIPELINED:
            raise UserError(
                "spec.mesh.pp",
                f"{mesh.pp}, but models of type {config.model_type} cannot be split into pipeline stages; set 1",
            )
        stages = mesh.pp * (2 if training.pipeline_schedule == "Interleaved1F1B" else 1)
        if layers + 2 < 2 * stages:
            raise UserError(
                "spec.mesh.pp",
                f"{stages} pipeline stages, but {spec.model.name} has {layers} layers; use at most "
                f"{(layers + 2) // 2} stages",
            )
        if training.local_batch_size < stages:
            raise UserError(
                "spec.training.localBatchSize",
                f"{training.local_batch_size} sequences cannot keep {stages} pipeline stages busy; set at least "
                f"{stages}",
            )
    if mesh.device == "gpu" and (getattr(config, "attention_dropout", None) or 0.0) > 0.0:
        raise UserError(
            "spec.model.overrides.attention_dropout",
            f"is {config.attention_dropout} in the config of {spec.model.name}, and FlexAttention has no dropout; set "
            "0.0",
        )
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and training.seq_len > longest:
        raise UserError(
            "spec.training.seqLen",
            f"{training.seq_len} is longer than the {longest} positions {spec.model.name} knows; use at most "
            f"{longest}, or extend its rope with spec.model.overrides.max_position_embeddings",
        )
    window = _sliding_window(config)
    if window is not None and training.seq_len > window:
        raise UserError(
            "spec.training.seqLen",
            f"{training.seq_len} is longer than the attention window of {spec.model.name} ({window}), and sliding "
            f"windows are not supported yet: attention would reach too far; use at most {window}",
        )


def _sliding_window(config: PretrainedConfig) -> int | None:
    window = getattr(config, "sliding_window", None)
    if window is None or getattr(config, "use_sliding_window", True) is False:
        return None
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and "sliding_attention" not in kinds:
        return None
    return int(window)


def _either(values: list[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{', '.join(map(str, values[:-1]))} or {values[-1]}"
