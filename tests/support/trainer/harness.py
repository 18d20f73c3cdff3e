"""What the trainer's tests share: tiny models, rows of packed documents for any mesh, and a runner of the engine.

Importing this module does not import torchtitan.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

VOCAB = 128
SEQ = 32
WINDOW = 5
"""Sliding window of the families that have one; most documents of `rows` are longer."""

TINY = {
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

ROPES = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "yarn": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "factor": 32.0,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0, 3.0, 4.0, 5.0],
        "original_max_position_embeddings": 16,
    },
    "dynamic": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
}

_HEADS = {"head_dim": 8, "pad_token_id": 0}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
_LATE_WINDOW = {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 1}
_GEMMA = {"tied": True, **_HEADS, "query_pre_attn_scalar": 8}
# How the tiny model of each family differs from TINY; the rows of docs/architectures.md.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"model_type": "mistral", "sliding_window": WINDOW},
    "qwen2": {"model_type": "qwen2", "tied": True, **_LATE_WINDOW},
    "qwen3": {"model_type": "qwen3", **_HEADS, **_LATE_WINDOW},
    "gemma2": {"model_type": "gemma2", **_GEMMA, "sliding_window": WINDOW},
    "gemma3_text": {
        "model_type": "gemma3_text",
        **_GEMMA,
        "sliding_window": WINDOW,
        "sliding_window_pattern": 3,
        "rope": None,
    },
    "phi3": {"model_type": "phi3", "pad_token_id": 0, "sliding_window": WINDOW},
    "olmo2": {"model_type": "olmo2"},
    "smollm3": {"model_type": "smollm3", "pad_token_id": VOCAB - 1, "no_rope_layer_interval": 2, **_LATE_WINDOW},
    "granite": {"model_type": "granite", "logits_scaling": 3.0, "embedding_multiplier": 2.0},
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        **_HEADS,
        **_EXPERTS,
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
        "mlp_only_layers": [1],
        "sliding_window": WINDOW,
        "use_sliding_window": True,
    },
    "mixtral": {"model_type": "mixtral", "sliding_window": WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2},
    "olmoe": {"model_type": "olmoe", **_EXPERTS},
}
_HALVES = {"layer_types": ["sliding_attention", "full_attention"] * 2}
_LOW_RANK = {"kv_lora_rank": 8, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
# The other families of hftitan_api.families, likewise.
OTHERS: dict[str, dict[str, Any]] = {
    family: {"model_type": family, "pad_token_id": 0, **how}
    for family, how in {
        "apertus": {},
        "arcee": {},
        "bitnet": {},
        "cohere": {"use_qk_norm": True},
        "cohere2": {"sliding_window": WINDOW},
        "cwm": {"sliding_window": WINDOW},
        "diffllama": {},
        "ernie4_5": {},
        "exaone4": {"sliding_window": WINDOW},
        "gemma": {},
        "gemma4_text": {
            "head_dim": 8,
            "global_head_dim": 8,
            "hidden_size_per_layer_input": 0,
            "num_kv_shared_layers": 0,
            "sliding_window": WINDOW,
            "rope": None,
            "tied": True,
            **_HALVES,
        },
        "glm": {"head_dim": 8},
        "glm4": {"head_dim": 8},
        "helium": {"head_dim": 8},
        "hunyuan_v1_dense": {"head_dim": 8},
        "hyperclovax": {},
        "internlm3": {},
        "iquestcoder": {},
        "jais2": {},
        "minicpm3": {"num_key_value_heads": 4, **_LOW_RANK},
        "ministral": {"head_dim": 8, "sliding_window": WINDOW},
        "ministral3": {"head_dim": 8, "sliding_window": WINDOW, "rope": None},
        "nanochat": {},
        "nemotron": {},
        "olmo": {},
        "olmo3": {"sliding_window": WINDOW},
        "persimmon": {},
        "phi": {},
        "seed_oss": {"head_dim": 8, "attention_dropout": 0.0, "residual_dropout": 0.0},
        "stablelm": {},
        "starcoder2": {"sliding_window": WINDOW},
        "vaultgemma": {"sliding_window": WINDOW},
    }.items()
}


def make_model(
    folder: Path, *, tied: bool = False, rope: str | None = "default", dtype: str = "float32", **changes: Any
) -> Path:
    """Write a tiny random model as transformers does. Its weights are large enough that every part changes the
    logits."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    ropes = {"rope_parameters": ROPES[rope]} if rope else {}
    values = {**TINY, "tie_word_embeddings": tied, **ropes, **changes}
    config = AutoConfig.for_model(**values)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 or name.endswith("bias"):
                parameter.normal_(0, 0.15)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


def rows(
    count: int, *, seq: int = SEQ, vocab: int = VOCAB, seed: int = 7, documents: bool = True
) -> list[dict[str, list[int]]]:
    """Return packed rows: tokens, next-token labels (-100 at document ends), positions that restart with each
    document."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        tokens = [rng.randrange(3, vocab) for _ in range(seq + 1)]
        starts = {0, *(rng.sample(range(1, seq), 2) if documents else ())}
        position, positions, labels = 0, [], []
        for i in range(seq):
            position = 0 if i in starts else position + 1
            positions.append(position)
            labels.append(-100 if i + 1 in starts else tokens[i + 1])
        made.append({"input": tokens[:seq], "labels": labels, "positions": positions})
    return made


def trainer_spec(model: Path | str, /, **changes: Any) -> dict[str, Any]:
    """Return a TrainerSpec document for one CPU process; `changes` are merged into its sections."""
    spec: dict[str, Any] = {
        "jobName": "test",
        "jobNamespace": "default",
        "jobUid": "uid",
        "mesh": {
            "nodes": 1,
            "ranksPerNode": 1,
            "dpReplicate": 1,
            "dpShard": 1,
            "cp": 1,
            "tp": 1,
            "pp": 1,
            "ep": 1,
            "device": "cpu",
        },
        "model": {"name": str(model)},
        "dataset": {"path": "/nowhere"},
        "training": {"steps": 5, "seqLen": SEQ, "localBatchSize": 4, "globalBatchSize": 4, "maxNorm": 1.0},
        "optimizer": {"lr": 1e-2},
        "lrSchedule": {},
        "checkpoint": {"interval": 0},
        "monitoring": {},
    }
    for section, values in changes.items():
        spec[section] = {**spec.get(section, {}), **values}
    return spec


def mesh(steps: int = 5, **degrees: int) -> dict[str, Any]:
    """Return the mesh section and the batch per rank for a global batch of 4 rows."""
    full = {"dpReplicate": 1, "dpShard": 1, "cp": 1, "tp": 1, "pp": 1, "ep": 1, **degrees}
    world = full["dpReplicate"] * full["dpShard"] * full["cp"] * full["tp"] * full["pp"]
    dp = full["dpReplicate"] * full["dpShard"]
    return {
        "mesh": {**full, "ranksPerNode": world},
        "training": {"steps": steps, "seqLen": SEQ, "localBatchSize": 4 // dp, "globalBatchSize": 4},
    }


def make_text_model(folder: Path, tokenizer: Any, **changes: Any) -> Path:
    """Write a tiny model with its tokenizer, and beside it <folder>.jsonl with 40 different documents."""
    make_model(folder, vocab_size=260, **changes)
    tokenizer.save_pretrained(folder)
    rng = random.Random(3)
    lines = [{"text": f"{i} " + "".join(rng.choices("abc de", k=rng.randrange(5, 60)))} for i in range(40)]
    folder.with_suffix(".jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def run_worker(
    cases: list[dict[str, Any]],
    folder: Path,
    *,
    world: int,
    timeout: float = 600,
    env: dict[str, str] | None = None,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Run the cases one after the other in one group of `world` processes. Return rank 0's result of each. All cases
    are for `device`, "cpu" or "gpu"."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cases.json").write_text(json.dumps(cases))
    workers = []
    for rank in range(world):
        environment = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world),
            "OMP_NUM_THREADS": "1",
            "TEST_DEVICE": device,
            "HF_HUB_OFFLINE": "1",
            **({"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}),
            **(env or {}),
        }
        log = (folder / f"rank{rank}.log").open("w")
        command = [sys.executable, str(Path(__file__).with_name("worker.py")), str(folder)]
        workers.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
    deadline = time.monotonic() + timeout
    try:
        codes = [worker.poll() for worker in workers]
        while None in codes and not any(codes) and time.monotonic() < deadline:
            time.sleep(0.1)
            codes = [worker.poll() for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    if codes != [0] * world:
        # The rank that failed by itself comes last, where a reader of a long report looks; the others only lost it.
        order = sorted(range(world), key=lambda rank: codes[rank] not in (0, None))
        logs = "\n".join(f"--- rank {rank}\n" + (folder / f"rank{rank}.log").read_text()[-10_000:] for rank in order)
        raise AssertionError(f"{logs}\n--- workers exited with {codes}")
    return json.loads((folder / "results.json").read_text())
