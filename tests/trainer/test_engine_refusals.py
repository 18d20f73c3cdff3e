"""Models that the engine refuses when it has their weights, and initialisation without uninitialised memory."""

from __future__ import annotations

from pathlib import Path

import harness
import pytest

from hftitan_api.families import UNBUILDABLE


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    root = tmp_path_factory.mktemp("refused")
    tiny = harness.make_model(root / "tiny")
    missing = harness.make_model(root / "missing")
    drop_weight(missing / "model.safetensors", "model.layers.1.mlp.up_proj.weight")
    gpt2 = harness.make_model(root / "gpt2", model_type="gpt2", n_positions=512)
    failing = {name: harness.make_model(root / name, model_type=name, pad_token_id=0) for name in UNBUILDABLE}
    specs = {
        "shape": harness.trainer_spec(tiny, model={"overrides": {"intermediate_size": 48}}),
        "missing": harness.trainer_spec(missing),
        "layout": harness.trainer_spec(gpt2),
        "unlisted layout": harness.trainer_spec(gpt2),
        **{name: harness.trainer_spec(folder) for name, folder in failing.items()},
        **{f"unlisted {name}": harness.trainer_spec(folder) for name, folder in failing.items()},
    }
    cases = [
        {"spec": spec, "rows": harness.rows(4), "fails": True, "unchecked": name.startswith("unlisted")}
        for name, spec in specs.items()
    ]
    return root, dict(zip(specs, harness.run_worker(cases, root / "work", world=1), strict=True))


def drop_weight(file: Path, name: str) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    del tensors[name]
    save_file(tensors, file, metadata={"format": "pt"})


MESSAGES = {
    "shape": "spec.model.overrides: model.layers.0.mlp.gate_proj.weight is [64, 32] in the weights "
    "but [48, 32] in the model; ",
    "missing": "spec.model.name: the safetensors files of {0}/missing lack model.layers.1.mlp.up_proj.weight, which ",
    "layout": "spec.model.name: {0}/gpt2 cannot be trained: models of type gpt2 are not tested against "
    "transformers, or their results differ; use a Llama-like model",
    "unlisted layout": "spec.model.name: torchtitan cannot build models of type gpt2: ",
    **{
        name: f"spec.model.name: {{0}}/{name} cannot be trained: torchtitan's transformers backend fails on model type "
        f"{name}: {reason}; use a Llama-like model"
        for name, reason in UNBUILDABLE.items()
    },
}


@pytest.mark.parametrize("name", MESSAGES)
def test_a_refusal_names_the_field_and_the_reason(refused, name):
    root, found = refused
    assert found[name]["error"] == "UserError", found[name]
    assert found[name]["message"].startswith(MESSAGES[name].format(root))


@pytest.mark.parametrize(
    ("name", "error"),
    [("granite_swa", "RuntimeError"), ("xlm", "RecursionError")],
)
def test_upstream_still_fails_on_the_unbuildable_families(refused, name, error):
    """If this fails, upstream has fixed it; remove the line in families.UNBUILDABLE."""
    _, found = refused
    assert found[f"unlisted {name}"].get("error") == error, found[f"unlisted {name}"]


# --- initialise.py ----------------------------------------------------------------------------------------------


def tiny_llama(**changes):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    values = {key: value for key, value in harness.TINY.items() if key != "model_type"}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**values, **changes))
    return model.to_empty(device="cpu")


def test_a_buffer_that_is_not_restored_is_an_error():
    import torch

    from hftitan_trainer.model.initialise import initialise
    from hftitan_trainer.process.errors import UpstreamError

    for value in (torch.zeros(3), torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.bool)):
        model = tiny_llama()
        model.model.register_buffer("lost", value, persistent=False)
        with pytest.raises(UpstreamError, match=r"does not restore the buffer model\.lost") as caught:
            initialise(model, 0, parameters=False)
        assert not caught.value.retryable


@pytest.mark.parametrize("rope", harness.ROPES)
def test_rotary_frequencies_equal_those_of_a_model_built_on_the_cpu(rope):
    import torch
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    from hftitan_trainer.model.initialise import initialise

    model = tiny_llama(rope_parameters=harness.ROPES[rope])
    initialise(model, 0, parameters=False)
    values = {key: value for key, value in harness.TINY.items() if key != "model_type"}
    built = LlamaRotaryEmbedding(LlamaConfig(**values, rope_parameters=harness.ROPES[rope]))
    torch.testing.assert_close(model.model.rotary_emb.inv_freq, built.inv_freq, rtol=0, atol=0)
    torch.testing.assert_close(model.model.rotary_emb.original_inv_freq, built.inv_freq, rtol=0, atol=0)
    assert model.model.rotary_emb.attention_scaling == built.attention_scaling


def test_random_weights_depend_on_the_seed_and_have_transformers_spread():
    from hftitan_trainer.model.initialise import initialise

    first, again, other = (tiny_llama() for _ in range(3))
    for model, seed in ((first, 1), (again, 1), (other, 2)):
        initialise(model, seed, parameters=True)
    states = [model.state_dict() for model in (first, again, other)]
    for name, value in states[0].items():
        assert value.equal(states[1][name])
        if name.endswith("norm.weight"):
            assert (value == 1).all()
        else:
            assert not value.equal(states[2][name])
            assert 0.015 < value.std().item() < 0.025, name
    assert not first.lm_head.weight.equal(first.model.embed_tokens.weight), "each name has its own random numbers"


def test_initialisation_does_not_change_the_callers_random_state():
    import torch

    from hftitan_trainer.model.initialise import initialise

    before = torch.get_rng_state()
    initialise(tiny_llama(), 0, parameters=True)
    assert torch.get_rng_state().equal(before)
