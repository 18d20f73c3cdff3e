"""The memory estimate: parameters compared with transformers' classes, the rest with sums calculated by hand."""

from __future__ import annotations

import pytest

from hftitan_api.memory import count, estimate, host_bytes
from hftitan_api.mesh import plan
from hftitan_api.shape import ModelShape


def _config(model_type, hidden, inner, layers, heads, kv_heads, vocab, *, tied, **more):
    return {
        "model_type": model_type,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        **more,
    }


SMOLLM2 = _config("llama", 576, 1536, 30, 9, 3, 49152, tied=True)
LLAMA_8B = _config("llama", 4096, 14336, 32, 32, 8, 128256, tied=False)
QWEN3_MOE = _config(
    "qwen3_moe", 2048, 6144, 48, 32, 4, 151936, tied=False, head_dim=128, moe_intermediate_size=768,
    num_experts=128, num_experts_per_tok=8, decoder_sparse_step=1, mlp_only_layers=[],
)  # fmt: skip

# sum(p.numel()) of the class of transformers 5.23 with the same config, on the meta device
COUNTED = [
    (SMOLLM2, 134_515_008),
    (LLAMA_8B, 8_030_261_248),
    (_config("mistral", 4096, 14336, 32, 32, 8, 32000, tied=False), 7_241_732_096),
    (_config("qwen2", 896, 4864, 24, 14, 2, 151936, tied=True), 494_032_768),
    (_config("qwen3", 1024, 3072, 28, 16, 8, 151936, tied=True, head_dim=128), 596_049_920),
    (_config("smollm3", 2048, 11008, 36, 16, 4, 128256, tied=True), 3_075_098_624),
    (_config("granite", 512, 1024, 3, 8, 4, 1000, tied=True), 7_593_472),
    (_config("gemma", 512, 1024, 3, 8, 4, 1000, tied=True, head_dim=64), 7_593_472),
    (_config("mixtral", 4096, 14336, 32, 32, 8, 32000, tied=False, num_local_experts=8), 46_702_792_704),
    (QWEN3_MOE, 30_532_122_624),
]


@pytest.mark.parametrize(("config", "total"), COUNTED, ids=[config["model_type"] for config, _ in COUNTED])
def test_parameter_count_is_exact(config, total):
    assert count(ModelShape.from_config(config)).total == total


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model_type": "olmo2", **{k: v for k, v in SMOLLM2.items() if k != "model_type"}},
        {k: v for k, v in SMOLLM2.items() if k != "vocab_size"},
        {**SMOLLM2, "attention_bias": True},
        {**QWEN3_MOE, "mlp_only_layers": [0]},
    ],
)
def test_unknown_parameters_give_no_estimate(spec, config):
    job = spec()
    assert count(ModelShape.from_config(config)) is None
    assert estimate(ModelShape.from_config(config), job, plan(job)) is None


def _estimate(spec, config, **changes):
    job = spec(**changes)
    return estimate(ModelShape.from_config(config), job, plan(job))


def test_estimate_of_one_cpu_process_equals_the_sum_by_hand(spec):
    e = _estimate(spec, SMOLLM2, mesh={"device": "cpu"}, training={"seqLen": 256})
    assert (e.parameters, e.gradients, e.optimizer) == (4 * 134_515_008, 4 * 134_515_008, 8 * 134_515_008)
    assert e.gathered == 0  # nothing is sharded, and the computing dtype equals the dtype of the weights
    block = 4 * 576 + 2 * (9 + 3) * 64 + 4 * 1536
    assert e.activations == 30 * block * 256 * 4
    assert e.logits == 256 * 49152 * (4 + 8)
    assert e.total == e.parameters + e.gradients + e.optimizer + e.activations + e.logits


ASYNC = {"asyncMode": "async", "interval": 10}


def test_asynchronous_checkpoint_needs_a_copy_of_parameters_and_optimizer(spec):
    e = _estimate(spec, SMOLLM2, mesh={"device": "cpu"}, checkpoint=ASYNC)
    assert e.staged == 12 * 134_515_008
    assert e.total == _estimate(spec, SMOLLM2, mesh={"device": "cpu"}).total + e.staged


def test_copy_of_gpu_state_counts_as_host_memory(spec):
    job = spec(mesh={"nodes": 2, "gpusPerNode": 8, "dpReplicate": 2}, checkpoint=ASYNC)
    e = estimate(ModelShape.from_config(LLAMA_8B), job, plan(job))
    assert e.staged == 0
    assert host_bytes(e, job, plan(job)) == 12 * 8_030_261_248  # each node has one replica


@pytest.mark.parametrize("checkpoint", [{}, {"asyncMode": "async", "interval": 0}], ids=["sync", "only the last step"])
def test_synchronous_checkpoint_needs_no_copy(spec, checkpoint):
    for device in ("gpu", "cpu"):
        job = spec(mesh={"device": device}, checkpoint=checkpoint)
        e = estimate(ModelShape.from_config(SMOLLM2), job, plan(job))
        assert (e.staged, host_bytes(e, job, plan(job))) == (0, 0)


def test_estimate_of_llama_8b_on_eight_gpus_equals_the_sum_by_hand(spec):
    e = _estimate(spec, LLAMA_8B, mesh={"gpusPerNode": 8}, training={"seqLen": 8192, "activationCheckpoint": "full"})
    assert e.parameters == 4 * 8_030_261_248 // 8
    block, head = 218_112_000, 128256 * 4096
    assert e.gathered == (2 * block + head) * 2 + block * 4
    kept = 4 * 4096 + 2 * 40 * 128 + 4 * 14336
    assert e.activations == (32 * 4096 + kept) * 8192 * 2


MORE_GPUS = {"dpShard": {"gpusPerNode": 8}, "tp": {"gpusPerNode": 8, "tp": 8}, "pp": {"gpusPerNode": 8, "pp": 8}}


@pytest.mark.parametrize("axis", MORE_GPUS)
def test_every_sharding_axis_reduces_memory(spec, axis):
    one = _estimate(spec, LLAMA_8B, training={"localBatchSize": 8})
    many = _estimate(spec, LLAMA_8B, mesh=MORE_GPUS[axis], training={"localBatchSize": 8})
    assert many.optimizer < one.optimizer / 4
    assert many.total < one.total / 2


def test_replication_does_not_reduce_memory(spec):
    one = _estimate(spec, SMOLLM2)
    assert _estimate(spec, SMOLLM2, mesh={"gpusPerNode": 4, "dpReplicate": 4}).optimizer == one.optimizer


def test_more_recomputation_needs_less_memory_for_activations(spec):
    by_mode = [
        _estimate(spec, LLAMA_8B, mesh={"gpusPerNode": 8}, training={"activationCheckpoint": mode}).activations
        for mode in ("full", "selective", "none")
    ]
    assert by_mode == sorted(by_mode)
    assert _estimate(spec, LLAMA_8B, mesh={"gpusPerNode": 8}).activations == by_mode[1]


def test_activations_of_a_pipeline_depend_on_the_schedule(spec):
    mesh = {"gpusPerNode": 4, "pp": 4}
    one_f = _estimate(spec, LLAMA_8B, mesh=mesh, training={"localBatchSize": 16})
    gpipe = _estimate(spec, LLAMA_8B, mesh=mesh, training={"localBatchSize": 16, "pipelineSchedule": "GPipe"})
    assert gpipe.activations > 3 * one_f.activations


def test_experts_are_sharded_like_other_parameters(spec):
    e = _estimate(spec, QWEN3_MOE, mesh={"gpusPerNode": 8, "ep": 8})
    assert e.parameters == 4 * 30_532_122_624 // 8
    assert e.gathered < _estimate(spec, QWEN3_MOE, mesh={"gpusPerNode": 8}).gathered
