"""The same numbers on whatever device is at hand: in bfloat16 on CPUs; where there are GPUs, in float32 and bfloat16 on
as many of them as there are.

float32 (without TF32) keeps to the bounds of the CPU's suite. bfloat16 has no bound of its own: ours may be as far from
float32 as transformers in bfloat16 is on the same device, where rounding falls otherwise, but not much farther.
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
"""How many times as far from float32 as transformers' bfloat16 ours may be."""
# Attention kernels for GPUs take no heads of eight numbers.
WIDE = {"hidden_size": 64, "intermediate_size": 128}
DENSE = ("llama", "gemma2", "phi3", "granite")
MIXTURES = ("qwen3_moe", "mixtral")
"""In float32 only: in bfloat16 the two best experts of a token are often equal, and a coin decides."""
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
    # Granite's class scales scores by 1 unless told otherwise: in bfloat16 its attention is a coin's.
    scale = {"attention_multiplier": 0.25} if family == "granite" else {}
    return {**how, **scale, **{key: 16 for key in ("head_dim", "query_pre_attn_scalar") if key in how}}


class Suite:
    """What was trained on one device in one precision, and transformers' numbers beside it."""

    def __init__(self, root: Path, tokenizer, device: str, dtype: str) -> None:
        self.device, self.dtype, self.root = device, dtype, root
        self.rows = harness.rows(4, seq=SEQ)
        self.folders = {family: harness.make_model(root / family, **wide(family)) for family in families(dtype)}
        drops = {"model_type": "phi", "pad_token_id": 0, "resid_pdrop": 0.2, "tied": False, **WIDE}
        self.text = harness.make_text_model(root / "text", tokenizer, **drops)
        one_step = {family: self.case(family, steps=1) for family in self.folders}
        # On CPUs test_meshes.py compiles, and test_float8.py rounds.
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
        """A run of a model that drops at random, with checkpoints."""
        spec = self.case("llama")["spec"]
        spec["model"]["name"] = str(self.text)
        spec |= {"dataset": {"path": str(self.text.with_suffix(".jsonl"))}, "checkpoint": {"interval": 100}}
        return {"spec": spec, "output": str(self.root / output), **more}

    def run(self, cases: dict, world: int) -> dict:
        results = harness.run_worker(list(cases.values()), self.root / str(world), world=world, device=self.device)
        return dict(zip(cases, results, strict=True))

    def numbers(self, name: str) -> list[float]:
        """Loss and gradient norm of each step."""
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
    """How far transformers' loss and gradient norm in this precision are from those in float32, at most."""
    if suite.dtype == "float32":
        return 0.0, 0.0
    pairs = [
        (suite.theirs(family, suite.dtype, attention), exact[family])
        for family in suite.folders
        for attention in ("eager", *(() if family == "gemma2" else ("sdpa",)))
    ]
    return tuple(max(abs(theirs[i] / true[i] - 1) for theirs, true in pairs) for i in (0, 1))


def close(found: list[float], wanted: list[float], rounding: tuple[float, float], least: float) -> bool:
    """Whether losses and gradient norms, in turns, are as near as MARGIN times the rounding, or as `least`."""
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


def test_bfloat16_rounds_and_the_bound_is_narrow(suite, exact, rounding):
    assert all(error < 0.02 for error in rounding)
    if suite.dtype == "bfloat16":
        assert all(suite.numbers(family)[0] != exact[family][0] for family in suite.folders)


def test_every_mesh_gives_the_losses_of_one_process(suite, rounding):
    names = [*(mesh for world in worlds(suite.device) for mesh in MESHES[world]), *suite.compiled]
    one = suite.numbers("one")
    assert one[0] > one[2] > one[4], "the same rows again and again"
    far = {name: suite.numbers(name) for name in names if not close(suite.numbers(name), one, rounding, least=1e-3)}
    assert not far, (one, rounding)


def test_float8_where_the_gpu_has_it_learns_what_it_learns_without(suite):
    one = suite.numbers("one")
    for name in suite.float8:
        assert suite.numbers(name)[::2] == pytest.approx(one[::2], rel=1e-2)


def test_a_run_broken_off_goes_on_as_if_it_had_not_been(suite):
    found, unbroken = suite.numbers("stopped") + suite.numbers("resumed"), suite.numbers("unbroken")
    # Some of a GPU's sums come in another order each time; other dropout would be a hundred times as far off.
    noise = {"cpu": 0.0, "gpu": 1e-3 if suite.dtype == "bfloat16" else 1e-5}[suite.device]
    assert found == pytest.approx(unbroken, rel=noise, abs=0.0)
