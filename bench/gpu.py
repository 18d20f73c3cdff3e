"""Measures tokens/s and MFU of an 8B-class Llama on one GPU, and compares it with torchtitan's own llama3.

The layers have the shapes of Llama 3 8B. The benchmark uses as many layers as fit: weights, gradients and AdamW's
moments in bfloat16, selective recomputation, one sequence. The peer is torchtitan's model of the same size in
torchtitan's loop, with the same batches, optimizer and weights, both in float32 with bfloat16 computation. Both losses
are printed. MFU is relative to the bfloat16 peak, for float8 too.

    python bench/gpu.py [--steps 20] [--seq-len 4096 8192] [--layers 32] [--peer-layers 8]
    python bench/gpu.py --quick      # smoke test with a small model on the CPU, without MFU (peak unknown)
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests/support/trainer"))
WARMUP = 3
FEWER = 4
"""Layers removed after each out-of-memory error."""
Steps = list[dict[str, Any]]


@dataclass(frozen=True)
class Scale:
    """Model size, sequence lengths and device of a run."""

    device: str
    flavor: str
    """Name of a configuration of torchtitan's llama3."""
    layers: int
    peer_layers: int
    seq_lens: tuple[int, ...]
    steps: int


def native_model(scale: Scale, layers: int) -> Any:
    """Return torchtitan's own model config with this number of layers."""
    from torchtitan.models.common.attention import ScaledDotProductAttention
    from torchtitan.models.llama3 import llama3_configs

    config = llama3_configs[scale.flavor](attn_backend="flex")
    config.layers = config.layers[:layers]
    if scale.device == "cpu":  # flex has no backward pass on CPUs; SDPA supports one document per row
        for layer in config.layers:
            layer.attention.inner_attention = ScaledDotProductAttention.Config()
    return config


def hugging_face_config(native: Any) -> Any:
    """Return the same model config for transformers."""
    from transformers import LlamaConfig

    attention, rope = native.layers[0].attention, native.layers[0].attention.rope
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=native.vocab_size,
        hidden_size=native.dim,
        intermediate_size=native.layers[0].feed_forward.w1.out_features,
        num_hidden_layers=len(native.layers),
        num_attention_heads=attention.n_heads,
        num_key_value_heads=attention.n_kv_heads or attention.n_heads,
        max_position_embeddings=rope.max_seq_len,
        rms_norm_eps=native.norm.eps,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": rope.theta,
            "factor": rope.scaling_factor,
            "low_freq_factor": rope.low_freq_factor,
            "high_freq_factor": rope.high_freq_factor,
            "original_max_position_embeddings": rope.original_max_position_embeddings,
        },
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )


def case(scale: Scale, model: Path, seq_len: int, *, random: bool, **training: Any) -> dict[str, Any]:
    """Return a case for tests/support/trainer/worker.py: one process, random tokens.

    On a GPU, a row has several documents.
    """
    import harness

    vocab = json.loads((model / "config.json").read_text())["vocab_size"]
    spec = harness.trainer_spec(
        model,
        mesh={"device": scale.device},
        model={"initialize": "random" if random else "pretrained"},
        training={
            "steps": scale.steps,
            "seqLen": seq_len,
            "localBatchSize": 1,
            "globalBatchSize": 1,
            "activationCheckpoint": "selective",
            "mixedPrecision": "bfloat16" if scale.device == "gpu" else "float32",
            **training,
        },
        optimizer={"lr": 1e-4},
    )
    rows = harness.rows(4, seq=seq_len, vocab=vocab, documents=scale.device == "gpu")
    return {"spec": spec, "rows": rows}


def fitting(scale: Scale, folder: Path, seq_len: int, **training: Any) -> tuple[int, Steps]:
    """Find the number of layers that fit. Return it and the training steps."""
    import harness

    for layers in range(scale.layers, 0, -FEWER):
        model = folder / f"{layers}-layers"
        hugging_face_config(native_model(scale, layers)).save_pretrained(model)
        wanted = case(scale, model, seq_len, random=True, **training)
        try:
            (result,) = harness.run_worker([wanted], folder / "work", world=1, timeout=3600, device=scale.device)
        except AssertionError as error:
            if "OutOfMemoryError" not in str(error):
                raise
            continue
        return layers, result["steps"]
    raise SystemExit(f"not even {FEWER} layers fit at {seq_len} tokens")


def beside_native(scale: Scale, folder: Path) -> tuple[Steps, Steps]:
    """Train with our trainer and with torchtitan's own model, from the same weights and rows. Return both steps."""
    import harness
    import torch
    from transformers import AutoModelForCausalLM

    model = folder / "model"
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(
        hugging_face_config(native_model(scale, scale.peer_layers)), dtype=torch.bfloat16
    ).save_pretrained(model)
    wanted = case(scale, model, scale.seq_lens[0], random=False)
    native = {**wanted, "by": __file__, "scale": asdict(scale)}
    results = [
        harness.run_worker([each], folder / name, world=1, timeout=3600, device=scale.device)[0]
        for name, each in (("ours", wanted), ("native", native))
    ]
    return results[0]["steps"], results[1]["steps"]


def train(wanted: dict[str, Any], output: Path) -> dict[str, Any]:
    """Train torchtitan's own model in its own loop, for tests/support/trainer/worker.py. Return its steps."""
    import worker
    from torch.distributed.fsdp import FSDPModule
    from torchtitan.models.llama3 import model_registry
    from torchtitan.trainer import Trainer

    scale = Scale(**wanted["scale"])
    ours = worker.configure(wanted, output)
    fields = {field.name: getattr(ours, field.name) for field in dataclasses.fields(Trainer.Config)}
    spec = dataclasses.replace(model_registry(scale.flavor), model=native_model(scale, scale.peer_layers))
    steps: Steps = []

    class Native(Trainer):  # type: ignore[misc]
        def train_step(self, batches: Any) -> None:
            self.metrics_processor.begin_step()
            super().train_step(batches)

    trainer = Native(Trainer.Config(**{**fields, "model_spec": spec}))
    trainer.metrics_processor.on_step = lambda report: steps.append(asdict(report))
    trainer.metrics_processor.steps = scale.steps
    if scale.device == "cpu":  # as model/wrapper.py does
        for module in trainer.model_parts[0].modules():
            if isinstance(module, FSDPModule):
                module.set_force_sum_reduction_for_comms(True)
    trainer.train()
    trainer.close()
    return {"steps": steps}


def median(steps: Steps, name: str) -> float | None:
    values = [step[name] for step in steps[WARMUP:]]
    return None if None in values else statistics.median(values)


def line(steps: Steps) -> str:
    mfu, memory = median(steps, "mfu"), median(steps, "memory_bytes")
    share = "MFU      -" if mfu is None else f"MFU {mfu:6.1%}"
    return f"{median(steps, 'tokens_per_second'):10.1f} tokens/s  {share}  {(memory or 0) / 2**30:6.1f} GiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seq-len", type=int, nargs="+", default=[4096, 8192])
    parser.add_argument("--layers", type=int, default=32, help="maximum number of layers")
    parser.add_argument(
        "--peer-layers", type=int, default=8, help="layers in the comparison with torchtitan's own model"
    )
    parser.add_argument("--quick", action="store_true", help="smoke test with a small model on the CPU")
    args = parser.parse_args()
    import torch
    import transformers

    from hftitan_trainer.process.device import use_device

    if args.quick:
        scale = Scale("cpu", "debugmodel", layers=2, peer_layers=2, seq_lens=(64,), steps=WARMUP + 2)
    elif torch.cuda.is_available():
        scale = Scale("gpu", "8B", args.layers, args.peer_layers, tuple(args.seq_len), args.steps)
    else:
        print("no GPU found, nothing measured; --quick runs a small model on the CPU")
        return
    use_device(scale.device)
    transformers.utils.logging.disable_progress_bar()
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if scale.device == 'gpu' else 'CPU'}")
    with tempfile.TemporaryDirectory() as folder:
        ways: dict[str, dict[str, Any]] = {"compiled": {"compile": True}}
        if scale.device == "gpu":
            ways["eager"] = {}
        if scale.device == "gpu" and torch.cuda.get_device_capability() >= (8, 9):
            ways["compiled, float8"] = {"compile": True, "float8": "rowwise"}
        for seq_len, (way, training) in itertools.product(scale.seq_lens, ways.items()):
            master = "bfloat16" if scale.device == "gpu" else "float32"
            layers, steps = fitting(scale, Path(folder) / f"{seq_len} {way}", seq_len, dtype=master, **training)
            name = f"{layers} layers, {seq_len} tokens, {way}"
            print(f"{name:46}{line(steps)}", flush=True)
        ours, theirs = beside_native(scale, Path(folder) / "peer")
    for name, steps in (("ours", ours), ("torchtitan's own llama3", theirs)):
        print(f"{f'{scale.peer_layers} layers, {scale.seq_lens[0]} tokens, {name}':46}{line(steps)}")
    rates = [median(steps, "tokens_per_second") or 0.0 for steps in (ours, theirs)]
    print(f"ratio ours / torchtitan's own: {rates[0] / rates[1]:.2f}")
    for mine, other in zip(ours, theirs, strict=True):
        difference = mine["loss"] / other["loss"] - 1
        print(f"step {mine['step']:4}  loss {mine['loss']:.5f}  {other['loss']:.5f}  {difference:+.1e}")


if __name__ == "__main__":
    main()
