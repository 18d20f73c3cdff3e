"""The same losses on every available device: bfloat16 on CPUs; float32 and bfloat16 on GPUs, on as many as there are.

float32 (without TF32) has the bounds of the CPU tests. bfloat16 has no fixed bound: its difference from float32 may be
at most MARGIN times that of transformers in bfloat16 on the same device.
"""

from __future__ import annotations

from pathlib import Path

import harness
import pytest
import torch
from comparison import reference

GPUS = torch.cuda.device_count()
KINDS = [("cpu", "bfloat16"), *([("gpu", "float32"), ("gpu", "bfloat16")] if GPUS else [])]
SEQ = 256
STEPS = 3
MARGIN = 2.0
"""Largest allowed difference from float32, as a multiple of that of transformers' bfloat16."""
# Attention kernels for GPUs do not support a head size of 8.
WIDE = {"hidden_size": 64, "intermediate_size": 128}
DENSE = ("llama", "gemma2", "phi3", "granite")
MIXTURES = ("qwen3_moe", "mixtral")
"""In float32 only: in bfloat16 the best experts of a token are often tied, and the choice is arbitrary."""
MESHES = {
    2: {
        "dp_shard": {"dpShard": 2},
        "dp_replicate": {"dpReplicate": 2},
        "tp": {"tp": 2},
        "pp": {"pp": 2},
        "cp": {"cp": 2},
    },
    4: {"dp_shard x tp": {"dpShard": 2, "tp": 2}, "dp_replicate x dp_shard": {"dpReplicate": 2, "dpShard": 2}},
}


def worlds(device: str) -> list[int]:
    return [2] if device == "cpu" else [world for world in MESHES if world <= GPUS]


def families(dtype: str) -> tuple[str, ...]:
    return DENSE if dtype == "bfloat16" else DENSE + MIXTURES


def wide(family: str) -> dict:
    how = {**harness.FAMILIES[family], **WIDE}
    # Granite's class scales scores by 1 by default, with which its attention in bfloat16 is unstable.
    scale = {"attention_multiplier": 0.25} if family == "granite" else {}
    return {**how, **scale, **{key: 16 for key in ("head_dim", "query_pre_attn_scalar") if key in how}}


class Suite:
    """Training runs on one device in one precision, and transformers' results for comparison."""

    def __init__(self, root: Path, tokenizer, device: str, dtype: str) -> None:
        self.device, self.dtype, self.root = device, dtype, root
        self.rows = harness.rows(4, seq=SEQ)
        self.folders = {family: harness.make_model(root / family, **wide(family)) for family in families(dtype)}
        drops = {"model_type": "phi", "pad_token_id": 0, "resid_pdrop": 0.2, "tied": False, **WIDE}
        self.text = harness.make_text_model(root / "text", tokenizer, **drops)
        one_step = {family: self.case(family, steps=1) for family in self.folders}
        # On CPUs, test_meshes.py tests compilation and test_float8.py tests float8.
        self.compiled = {"compiled": self.case("llama", compile=True)} if device == "gpu" else {}
        self.float8 = {}
        if device == "gpu" and torch.cuda.get_device_capability() >= (8, 9):
            self.float8["float8"] = self.case("llama", compile=True)
            self.float8["float8"]["spec"]["training"]["float8"] = "rowwise"
        alone = {
            **one_step,
            **self.compiled,
            **self.float8,
            "one": self.case("llama"),
            "unbroken": self.broken("unbroken"),
            "stopped": self.broken("stopped", stopAt=1),
            "resumed": self.broken("stopped"),
        }
        self.runs = self.run(alone, 1)
        for world in worlds(device):
            meshes = {name: self.case("llama", **degrees) for name, degrees in MESHES[world].items()}
            self.runs |= self.run(meshes, world)

    def case(self, family: str, *, steps: int = STEPS, compile: bool = False, **degrees: int) -> dict:
        sections = harness.mesh(steps, **degrees)
        sections["mesh"]["device"] = self.device
        sections["training"].update(seqLen=SEQ, mixedPrecision=self.dtype, compile=compile)
        spec = harness.trainer_spec(self.folders[family], **sections, optimizer={"lr": 1e-3})
        return {"spec": spec, "rows": self.rows}

    def broken(self, output: str, **more) -> dict:
        """Return a run of a model with dropout, with checkpoints."""
        spec = self.case("llama")["spec"]
        spec["model"]["name"] = str(self.text)
        spec |= {"dataset": {"path": str(self.text.with_suffix(".jsonl"))}, "checkpoint": {"interval": 100}}
        return {"spec": spec, "output": str(self.root / output), **more}

    def run(self, cases: dict, world: int) -> dict:
        results = harness.run_worker(list(cases.values()), self.root / str(world), world=world, device=self.device)
        return dict(zip(cases, results, strict=True))

    def numbers(self, name: str) -> list[float]:
        """Return loss and gradient norm of each step."""
        return [value for step in self.runs[name]["steps"] for value in (step["loss"], step["grad_norm"])]

    def theirs(self, family: str, dtype: str, attention: str = "eager") -> tuple[float, float]:
        device = "cuda" if self.device == "gpu" else "cpu"
        return reference(self.folders[family], self.rows, dtype=dtype, device=device, attention=attention)


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: "-".join(kind))
def suite(request, tmp_path_factory, tokenizer) -> Suite:
    return Suite(tmp_path_factory.mktemp("-".join(request.param)), tokenizer, *request.param)


@pytest.fixture(scope="module")
def exact(suite: Suite) -> dict[str, tuple[float, float]]:
    return {family: suite.theirs(family, "float32") for family in suite.folders}


@pytest.fixture(scope="module")
def rounding(suite: Suite, exact) -> tuple[float, float]:
    """Largest difference of transformers' loss and gradient norm in this precision from those in float32."""
    if suite.dtype == "float32":
        return 0.0, 0.0
    pairs = [
        (suite.theirs(family, suite.dtype, attention), exact[family])
        for family in suite.folders
        for attention in ("eager", *(() if family == "gemma2" else ("sdpa",)))
    ]
    return tuple(max(abs(theirs[i] / true[i] - 1) for theirs, true in pairs) for i in (0, 1))


def close(found: list[float], wanted: list[float], rounding: tuple[float, float], least: float) -> bool:
    """Return whether alternating losses and gradient norms differ by at most MARGIN times the rounding, or `least`."""
    bounds = [max(least, MARGIN * error) for error in rounding] * (len(wanted) // 2)
    pairs = zip(found, wanted, bounds, strict=True)
    return all(abs(ours / theirs - 1) <= bound for ours, theirs, bound in pairs)


def test_first_steps_equal_transformers_on_the_same_device(suite, exact, rounding):
    far = {
        family: (suite.numbers(family), exact[family])
        for family in suite.folders
        if not close(suite.numbers(family), exact[family], rounding, least=1e-4)
    }
    assert not far, rounding


def test_bfloat16_rounds_and_the_difference_is_small(suite, exact, rounding):
    assert all(error < 0.02 for error in rounding)
    if suite.dtype == "bfloat16":
        assert all(suite.numbers(family)[0] != exact[family][0] for family in suite.folders)


def test_every_mesh_gives_the_losses_of_one_process(suite, rounding):
    names = [*(mesh for world in worlds(suite.device) for mesh in MESHES[world]), *suite.compiled]
    one = suite.numbers("one")
    assert one[0] > one[2] > one[4], "every step has the same rows"
    far = {name: suite.numbers(name) for name in names if not close(suite.numbers(name), one, rounding, least=1e-3)}
    assert not far, (one, rounding)


def test_float8_has_the_losses_of_training_without(suite):
    one = suite.numbers("one")
    for name in suite.float8:
        assert suite.numbers(name)[::2] == pytest.approx(one[::2], rel=1e-2)


def test_an_interrupted_run_resumes_with_the_same_losses(suite):
    found, unbroken = suite.numbers("stopped") + suite.numbers("resumed"), suite.numbers("unbroken")
    # Some sums of a GPU have no fixed order. Other dropout would make a difference a hundred times as large.
    noise = {"cpu": 0.0, "gpu": 1e-3 if suite.dtype == "bfloat16" else 1e-5}[suite.device]
    assert found == pytest.approx(unbroken, rel=noise, abs=0.0)
