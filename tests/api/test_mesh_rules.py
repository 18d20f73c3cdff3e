"""Rules of the mesh: the exact message of each error, with the field, the numbers and the fix."""

from __future__ import annotations

import pytest

from hftitan_api.mesh import check, plan

SMOLLM2 = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
LONG_PHI = {
    "model_type": "phi3",
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096,
    "rope_scaling": {"type": "longrope", "long_factor": [1.0], "short_factor": [1.0]},
}
GEMMA4 = {"model_type": "gemma4_text", "enable_moe_block": False}
MIXTRAL = {
    **SMOLLM2,
    "model_type": "mixtral",
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "num_local_experts": 6,
}
NAME = "HuggingFaceTB/SmolLM2-135M"

# changes to a valid spec -> the exact message of every problem
INVALID = {
    "tp does not divide the world": (
        {"mesh": {"nodes": 2, "gpusPerNode": 8, "tp": 3}, "training": {"seqLen": 1536}},
        ["spec.mesh.tp: 3 does not divide the 16 ranks (2 nodes x 8 GPUs); use 1, 2, 4 or 8"],
    ),
    "tp across nodes": (
        {"mesh": {"nodes": 2, "gpusPerNode": 8, "tp": 16}},
        [
            "spec.mesh.tp: 16 does not divide the 8 GPUs of a node (a tensor-parallel group must not span nodes); "
            "use 1, 2, 4 or 8"
        ],
    ),
    "cp on top of tp": (
        {"mesh": {"gpusPerNode": 8, "tp": 2, "cp": 3}, "training": {"seqLen": 768}},
        ["spec.mesh.cp: 3 x 2 (tp) = 6 does not divide the 8 ranks (1 node x 8 GPUs); use 1, 2 or 4"],
    ),
    "more replicas than ranks": (
        {"mesh": {"gpusPerNode": 4, "dpReplicate": 8}},
        ["spec.mesh.dpReplicate: 8 does not divide the 4 ranks (1 node x 4 GPUs); use 1, 2 or 4"],
    ),
    "processes on CPUs": (
        {"mesh": {"gpusPerNode": 2, "device": "cpu", "pp": 4}, "training": {"localBatchSize": 4}},
        ["spec.mesh.pp: 4 does not divide the 2 ranks (1 node x 2 processes); use 1 or 2"],
    ),
    "dpShard too small": (
        {"mesh": {"gpusPerNode": 8, "tp": 2, "dpShard": 3}},
        [
            "spec.mesh.dpShard: dpReplicate 1 x dpShard 3 x cp 1 x tp 2 x pp 1 = 6, "
            "but the mesh has 8 ranks (1 node x 8 GPUs); use 4 or -1"
        ],
    ),
    "dpShard 0": (
        {"mesh": {"dpShard": 0}},
        ["spec.mesh.dpShard: 0 is not a number of shards; use -1 for all ranks that the other axes do not use, or 1"],
    ),
    "ep does not divide": (
        {"mesh": {"nodes": 1, "gpusPerNode": 8, "pp": 2, "ep": 8}, "training": {"localBatchSize": 2}},
        [
            "spec.mesh.ep: 8 does not divide dpShard 4 x cp 1 x tp 1 = 4, the ranks over which the experts can be "
            "split; use 1, 2 or 4"
        ],
    ),
    "ep across nodes": (
        {"mesh": {"nodes": 2, "gpusPerNode": 8, "ep": 16}},
        [
            "spec.mesh.ep: 16 does not divide the 8 GPUs of a node (an expert-parallel group must not span nodes); "
            "use 1, 2, 4 or 8"
        ],
    ),
    "batch": (
        {"mesh": {"gpusPerNode": 4}, "training": {"localBatchSize": 2, "globalBatchSize": 20}},
        [
            "spec.training.globalBatchSize: 20 is not a multiple of localBatchSize 2 x 4 data-parallel ranks = 8; "
            "use 16 or 24"
        ],
    ),
    "batch below one pass": (
        {"mesh": {"gpusPerNode": 4}, "training": {"globalBatchSize": 2}},
        ["spec.training.globalBatchSize: 2 is not a multiple of localBatchSize 1 x 4 data-parallel ranks = 4; use 4"],
    ),
    "odd sequence": (
        {"training": {"seqLen": 1023}},
        ["spec.training.seqLen: 1023 is not a multiple of tp 1 x 2 x cp 1 = 2; use 1022 or 1024"],
    ),
    "sequence with cp on GPUs": (
        {"mesh": {"gpusPerNode": 4, "cp": 4}, "training": {"seqLen": 640}},
        ["spec.training.seqLen: 640 is not a multiple of attention block 128 x cp 4 = 512; use 512 or 1024"],
    ),
    "sequence with cp and a large tp": (
        {"mesh": {"gpusPerNode": 48, "cp": 2, "tp": 24}, "training": {"seqLen": 384}},
        [
            "spec.training.seqLen: 384 is not a multiple of 768 (a multiple of tp 24 x 2 x cp 2 and of attention "
            "block 128 x cp 2); use 768"
        ],
    ),
    "batch smaller than the pipeline": (
        {"mesh": {"gpusPerNode": 4, "pp": 4}, "training": {"localBatchSize": 2}},
        ["spec.training.localBatchSize: 2 is less than the 4 pipeline stages; use at least 4"],
    ),
    "interleaved rounds": (
        {"mesh": {"gpusPerNode": 4, "pp": 4}, "training": {"localBatchSize": 9, "pipelineSchedule": "Interleaved1F1B"}},
        [
            "spec.training.localBatchSize: 9 is not a multiple of the 2 rounds (localBatchSize / pp 4, rounded down) "
            "of Interleaved1F1B; use 8 or 12"
        ],
    ),
    "schedule without a pipeline": (
        {"training": {"pipelineSchedule": "GPipe"}},
        [
            "spec.training.pipelineSchedule: GPipe needs mesh.pp of at least 2, and mesh.pp is 1; raise mesh.pp, or "
            "remove pipelineSchedule"
        ],
    ),
    "warm-up": (
        {"lrSchedule": {"warmupSteps": 101}},
        ["spec.lrSchedule.warmupSteps: 101 is more than the 100 training steps; use at most 100"],
    ),
    "nodes without a volume": (
        {"mesh": {"nodes": 2}, "checkpoint": {"volume": None}},
        [
            "spec.checkpoint.volume: is required with 2 nodes, because they save one checkpoint together; name a "
            "ReadWriteMany claim, or save nothing (interval: 0 and exportHF: false)"
        ],
    ),
    "three errors at once": (
        {"mesh": {"gpusPerNode": 8, "tp": 16}, "training": {"seqLen": 9, "steps": 1}, "lrSchedule": {"warmupSteps": 2}},
        [
            "spec.mesh.tp: 16 does not divide the 8 ranks (1 node x 8 GPUs); use 1, 2, 4 or 8",
            "spec.training.seqLen: 9 is not a multiple of tp 16 x 2 x cp 1 = 32; use 32",
            "spec.lrSchedule.warmupSteps: 2 is more than the 1 training step; use at most 1",
        ],
    ),
}


@pytest.mark.parametrize("case", INVALID)
def test_exact_messages(spec, case):
    changes, messages = INVALID[case]
    assert [str(e) for e in check(spec(**changes))] == messages


WITH_A_MODEL = {
    "heads": (
        {"mesh": {"gpusPerNode": 8, "tp": 2}},
        {"num_attention_heads": 9},
        [f"spec.mesh.tp: 2 does not divide the 9 attention heads of {NAME}; use 1"],
    ),
    "heads with another divisor": (
        {"mesh": {"gpusPerNode": 18, "tp": 2}},
        SMOLLM2,
        [f"spec.mesh.tp: 2 does not divide the 9 attention heads of {NAME}; use 1 or 3"],
    ),
    "key/value heads": (
        {"mesh": {"gpusPerNode": 8, "tp": 4}},
        {"num_attention_heads": 32, "num_key_value_heads": 2},
        [f"spec.mesh.tp: 4 does not divide the 2 key/value heads of {NAME}; use 1 or 2"],
    ),
    "feed-forward columns": (
        {"mesh": {"gpusPerNode": 8, "tp": 4}},
        {"num_attention_heads": 8, "num_key_value_heads": 8, "intermediate_size": 1022},
        [
            "spec.mesh.tp: 4 does not divide the 1022 columns of the feed-forward layer (intermediate_size) of "
            f"{NAME}; use 1 or 2"
        ],
    ),
    "vocabulary": (
        {"mesh": {"gpusPerNode": 2, "tp": 2}},
        {"num_attention_heads": 8, "vocab_size": 32001},
        [f"spec.mesh.tp: 2 does not divide the 32001 entries of the vocabulary of {NAME}; use 1"],
    ),
    "layers": (
        {"mesh": {"nodes": 4, "gpusPerNode": 8, "pp": 32}, "training": {"localBatchSize": 32}},
        SMOLLM2,
        [f"spec.mesh.pp: 32 pipeline stages are too many for the 30 layers of {NAME}; use at most 16"],
    ),
    "layers, two stages per rank": (
        {
            "mesh": {"gpusPerNode": 16, "pp": 16},
            "training": {"localBatchSize": 32, "pipelineSchedule": "Interleaved1F1B"},
        },
        SMOLLM2,
        [
            "spec.mesh.pp: 32 pipeline stages (2 per rank with Interleaved1F1B) are too many for the 30 layers "
            f"of {NAME}; use at most 8"
        ],
    ),
    "ep on a dense model": (
        {"mesh": {"gpusPerNode": 8, "ep": 2}},
        SMOLLM2,
        [f"spec.mesh.ep: 2 needs a mixture of experts, and {NAME} is a dense model; use 1"],
    ),
    "experts": (
        {"mesh": {"gpusPerNode": 8, "ep": 4}},
        MIXTRAL,
        [f"spec.mesh.ep: 4 does not divide the 6 experts of {NAME}; use 1 or 2"],
    ),
    "more ranks than experts": (
        {"mesh": {"gpusPerNode": 8, "ep": 2}},
        MIXTRAL,
        [
            f"spec.mesh.dpShard: 8 ranks (dpShard x cp x tp) are more than the 6 experts of {NAME}, and with ep "
            "each rank needs at least one; use a smaller dpShard with dpReplicate, or ep: 1"
        ],
    ),
    "tensor parallelism of experts": (
        {"mesh": {"gpusPerNode": 2, "tp": 2}},
        MIXTRAL,
        [
            f"spec.mesh.tp: 2 does not work for {NAME}: tensor parallelism does not split experts (use dpShard and ep "
            "instead); use 1"
        ],
    ),
    "untested mixture of experts": (
        {},
        {"model_type": "deepseek_v3", "n_routed_experts": 64},
        [
            f"spec.model.name: {NAME} cannot be trained: mixture-of-experts models of type deepseek_v3 are not "
            "tested against transformers; use one of type mixtral, olmoe, qwen3_moe"
        ],
    ),
    "layers with a state": (
        {},
        {"model_type": "qwen3_5_text", "layer_types": ["linear_attention", "full_attention"]},
        [
            f"spec.model.name: {NAME} cannot be trained: it has layers of type linear_attention, which would carry "
            "their state into the next document of a row; use a model with attention layers only"
        ],
    ),
    "bidirectional attention": (
        {},
        {"model_type": "gemma3_text", "use_bidirectional_attention": True},
        [
            f"spec.model.name: {NAME} cannot be trained: it attends to later tokens (use_bidirectional_attention), "
            "and training masks them; use a causal model"
        ],
    ),
    "load-balancing loss": (
        {},
        {**MIXTRAL, "output_router_logits": True},
        [
            f"spec.model.name: {NAME} cannot be trained: its config sets output_router_logits, and the trainer does "
            "not compute the load-balancing loss that transformers adds; set output_router_logits: false in "
            "model.overrides"
        ],
    ),
    "pipeline of experts": (
        {"mesh": {"gpusPerNode": 2, "pp": 2}, "training": {"localBatchSize": 2}},
        MIXTRAL,
        [
            f"spec.mesh.pp: 2 does not work for {NAME}: the backend does not support pipeline parallelism for mixtures "
            "of experts; use 1"
        ],
    ),
    "pipeline of a family without pipeline parallelism": (
        {"mesh": {"gpusPerNode": 2, "pp": 2}, "training": {"localBatchSize": 2}},
        {"model_type": "nanochat", "num_hidden_layers": 26},
        [
            f"spec.mesh.pp: 2 does not work for {NAME}: models of type nanochat do not support pipeline parallelism: "
            "its forward pass normalizes the embeddings, and every stage would repeat this; use 1"
        ],
    ),
    "tensor parallelism of a family without it": (
        {"mesh": {"gpusPerNode": 2, "tp": 2}},
        {"model_type": "diffllama", "num_attention_heads": 4},
        [
            f"spec.mesh.tp: 2 does not work for {NAME}: models of type diffllama do not support tensor parallelism: "
            "its heads work in pairs, which ranks would separate (use dpShard instead); use 1"
        ],
    ),
    "dropout on a GPU": (
        {},
        {"model_type": "llama", "attention_dropout": 0.1},
        [
            f"spec.model.overrides.attention_dropout: {NAME} has 0.1, and FlexAttention does not support dropout; set "
            "it to 0.0"
        ],
    ),
    "GLM-5": (
        {"mesh": {"gpusPerNode": 2, "tp": 2}},
        {"model_type": "glm_moe_dsa", "index_topk": 2048, "n_routed_experts": 256},
        [
            f"spec.model.name: {NAME} cannot be trained: mixture-of-experts models of type glm_moe_dsa are not "
            "tested against transformers; use one of type mixtral, olmoe, qwen3_moe",
            f"spec.mesh.tp: 2 does not work for {NAME}: the backend supports only dp and ep for models with a "
            "sparse-attention indexer; use 1",
        ],
    ),
    "Gemma 4": (
        {"mesh": {"gpusPerNode": 2, "cp": 2}},
        {"model_type": "gemma4", "text_config": {**GEMMA4, "hidden_size_per_layer_input": 0}},
        [f"spec.mesh.cp: 2 does not work for {NAME}: the backend supports only dp and ep for Gemma 4; use 1"],
    ),
    "Gemma 4 with per-layer inputs": (
        {},
        GEMMA4,
        [
            f"spec.model.name: {NAME} cannot be trained: the backend does not support Gemma 4 with per-layer "
            "inputs (hidden_size_per_layer_input) or with keys and values shared between layers "
            "(num_kv_shared_layers); use a Gemma 4 without them"
        ],
    ),
    "Gemma 4 with experts": (
        {},
        {"model_type": "gemma4_text", "num_experts": 128},
        [
            f"spec.model.name: {NAME} cannot be trained: the backend computes wrong results for Gemma 4 with "
            "experts; use a dense Gemma 4"
        ],
    ),
    "positions": (
        {"training": {"seqLen": 16384}},
        SMOLLM2,
        [
            f"spec.training.seqLen: 16384 is more than the 8192 positions of {NAME}; "
            "use at most 8192, or raise max_position_embeddings in model.overrides"
        ],
    ),
    "longrope with cp": (
        {"mesh": {"gpusPerNode": 2, "cp": 2}, "training": {"seqLen": 8192}},
        LONG_PHI,
        [
            f"spec.mesh.cp: 2 does not work for {NAME} with seqLen 8192: its rotary embedding (longrope) changes after "
            "4096 positions, and ranks could use different ones; use 1, or seqLen of at most 4096"
        ],
    ),
    "sliding window": (
        {"training": {"seqLen": 8192}},
        {"model_type": "llama", "sliding_window": 4096, "max_position_embeddings": 32768},
        [
            f"spec.training.seqLen: 8192 is more than the sliding window 4096 of {NAME}, and sliding windows of "
            "model type llama are not tested against transformers; use at most 4096"
        ],
    ),
    "GPT-2": (
        {},
        {"model_type": "gpt2", "n_head": 12, "n_layer": 12},
        [
            f"spec.model.name: {NAME} cannot be trained: models of type gpt2 are not tested against transformers, or "
            "their results differ; use a Llama-like model (llama, mistral, qwen2, qwen3, smollm3, olmo2, ...)"
        ],
    ),
}


@pytest.mark.parametrize("case", WITH_A_MODEL)
def test_exact_messages_with_a_model(spec, case):
    changes, config, messages = WITH_A_MODEL[case]
    assert [str(e) for e in check(spec(**changes), config)] == messages


VALID = {
    "unknown sizes": ({"mesh": {"gpusPerNode": 8, "tp": 8, "ep": 8}}, {}),
    "invalid sizes": (
        {"mesh": {"gpusPerNode": 8, "tp": 8}},
        {"num_attention_heads": "nine", "vocab_size": True},
    ),
    "tp 3 of 9 heads": ({"mesh": {"gpusPerNode": 3, "tp": 3}, "training": {"seqLen": 1536}}, SMOLLM2),
    "sequence up to the window": ({"training": {"seqLen": 4096}}, {"sliding_window": 4096}),
    "longrope": ({"training": {"seqLen": 8192}}, LONG_PHI),
    "longrope with cp and short sequences": (
        {"mesh": {"gpusPerNode": 2, "cp": 2}, "training": {"seqLen": 4096}},
        LONG_PHI,
    ),
    "tested window": ({"training": {"seqLen": 8192}}, {"model_type": "mistral", "sliding_window": 4096}),
    "window disabled": ({"training": {"seqLen": 8192}}, {"sliding_window": 4096, "use_sliding_window": False}),
    "window of no layer": (
        {"training": {"seqLen": 8192}},
        {"sliding_window": 4096, "layer_types": ["full_attention", "full_attention"]},
    ),
    "override of the config": (
        {"model": {"overrides": {"max_position_embeddings": 16384}}, "training": {"seqLen": 16384}},
        SMOLLM2,
    ),
    "experts on several ranks": ({"mesh": {"gpusPerNode": 4, "ep": 2}}, MIXTRAL),
    "experts with replicas": ({"mesh": {"gpusPerNode": 8, "dpReplicate": 2, "ep": 2}}, MIXTRAL),
    "cp on CPUs without attention blocks": (
        {"mesh": {"gpusPerNode": 2, "cp": 2, "device": "cpu"}, "training": {"seqLen": 132}},
        {},
    ),
    "pipeline": ({"mesh": {"gpusPerNode": 16, "pp": 16}, "training": {"localBatchSize": 16}}, SMOLLM2),
    "interleaved pipeline": (
        {
            "mesh": {"gpusPerNode": 8, "pp": 8},
            "training": {"localBatchSize": 16, "pipelineSchedule": "Interleaved1F1B"},
        },
        SMOLLM2,
    ),
    "nodes that save nothing": (
        {"mesh": {"nodes": 2}, "checkpoint": {"volume": None, "interval": 0, "exportHF": False}},
        SMOLLM2,
    ),
}


@pytest.mark.parametrize("case", VALID)
def test_valid_meshes_have_no_problems(spec, case):
    changes, config = VALID[case]
    assert [str(e) for e in check(spec(**changes), config)] == []
    plan(spec(**changes), config)


def test_override_of_the_config_can_violate_a_rule(spec):
    changed = spec(
        mesh={"gpusPerNode": 3, "tp": 3}, training={"seqLen": 1536}, model={"overrides": {"vocab_size": 100}}
    )
    assert [str(e) for e in check(changed, SMOLLM2)] == [
        f"spec.mesh.tp: 3 does not divide the 100 entries of the vocabulary of {NAME}; use 1"
    ]


def test_long_list_of_choices_is_shortened(spec):
    (error,) = check(spec(mesh={"nodes": 5000, "gpusPerNode": 64, "pp": 7}, training={"localBatchSize": 7}))
    assert error.message.endswith("use 1, 2, 4, 5, 8, 10, ... or 320000")
