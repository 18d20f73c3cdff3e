"""Which models are accepted, and the messages for the others."""

from __future__ import annotations

import json
from pathlib import Path

import harness
import pytest

from hftitan_api.models import ModelSpec
from hftitan_api.wire import TrainerSpec
from hftitan_trainer.model.checks import check_model_on_mesh
from hftitan_trainer.model.folder import fetch_model, weight_shapes
from hftitan_trainer.process.errors import NetworkError, UserError


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return harness.make_model(tmp_path_factory.mktemp("model") / "tiny", tied=True)


def with_config(folder: Path, **values) -> Path:
    """Create a folder with the tiny llama's config, changed by these values; None removes a key."""
    folder.mkdir(exist_ok=True)
    config = {**harness.TINY, "architectures": ["LlamaForCausalLM"], **values}
    (folder / "config.json").write_text(json.dumps({key: v for key, v in config.items() if v is not None}))
    return folder


def fetch(folder: Path | str, **spec):
    return fetch_model(ModelSpec(name=str(folder), **spec))


def test_a_local_folder_is_accepted(tiny):
    model = fetch(tiny)
    assert (model.path, model.revision, model.pretrained, model.tied) == (tiny, None, True, True)
    assert model.config.num_hidden_layers == 4


def test_overrides_change_the_config(tiny):
    model = fetch(tiny, initialize="random", overrides={"num_hidden_layers": 2, "tie_word_embeddings": False})
    assert (model.config.num_hidden_layers, model.tied, model.pretrained) == (2, False, False)


def test_derived_values_follow_an_override(tmp_path):
    folder = with_config(tmp_path / "m")
    assert fetch(folder, initialize="random", overrides={"hidden_size": 64}).config.head_dim == 16


REFUSED = {
    "no folder": (None, {}, "spec.model.name: /nowhere is not a folder that this process can read"),
    "no weights": ({}, {}, "spec.model.name: {0} has no safetensors weights (it has no weights); convert it"),
    "unknown override": (
        {},
        {"initialize": "random", "overrides": {"layers": 2}},
        "spec.model.overrides.layers: no such key in the config of {0}",
    ),
    "refused override": (
        {},
        {"initialize": "random", "overrides": {"num_attention_heads": 5}},
        "spec.model.overrides: transformers refuses the config: The hidden size (32) is not a multiple of",
    ),
    "unknown kind": (
        {"model_type": "nonesuch"},
        {},
        "spec.model.name: {0} has model_type 'nonesuch', which this version of transformers does not support",
    ),
    "remote code": (
        {"model_type": "nonesuch", "auto_map": {"AutoConfig": "configuration.C"}},
        {},
        "spec.model.trustRemoteCode: {0} (model_type 'nonesuch') needs its own Python code; review that code, then",
    ),
    "quantized": (
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {},
        "spec.model.name: {0} is quantized; train the original, unquantized weights instead",
    ),
    "no language model": (
        {"model_type": "vit", "architectures": None},
        {},
        "spec.model.name: {0} (model_type vit) is not a causal language model",
    ),
    "encoder and decoder": (
        {"model_type": "bart", "architectures": None, "is_encoder_decoder": True},
        {},
        "spec.model.name: {0} (model_type bart) is not a text-only decoder; use the text-only checkpoint of the family",
    ),
}


@pytest.mark.parametrize("named", [None, ["LlamaModel"], ["LlamaForSequenceClassification"], ["LlamaForCausalLM"]])
def test_the_causal_lm_class_is_built_for_any_class_in_the_config(tmp_path, named):
    folder = with_config(tmp_path / "m", architectures=named)
    spec = ModelSpec(name=str(folder), initialize="random")
    assert fetch_model(spec).config.architectures == ["LlamaForCausalLM"]


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_names_the_field_and_the_reason(tmp_path, name):
    config, spec, message = REFUSED[name]
    folder = Path("/nowhere") if config is None else with_config(tmp_path / "m", **config)
    with pytest.raises(UserError) as caught:
        fetch(folder, **spec)
    assert str(caught.value).startswith(message.format(folder))
    assert not caught.value.retryable


def test_a_model_with_only_pickled_weights_is_refused(tmp_path):
    folder = with_config(tmp_path / "m")
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"it has only pytorch_model\.bin"):
        fetch(folder)
    assert not fetch(folder, initialize="random").pretrained


def test_a_missing_file_of_the_index_is_named(tmp_path):
    folder = with_config(tmp_path / "m")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"lacks model-00001-of-00002\.safetensors, which is in its safetensors index"):
        fetch(folder)


def test_remote_code_does_not_run_without_permission(tmp_path):
    """If transformers supports the model type, it uses its own class, not the code in the folder."""
    marker = tmp_path / "ran"
    folder = with_config(tmp_path / "m", auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Config: pass\n")
    model = fetch(folder, initialize="random")
    assert type(model.config).__module__.startswith("transformers.models.llama")
    assert not marker.exists()


def test_weight_shapes_are_read_from_the_headers(tiny):
    shapes = weight_shapes(tiny, "tiny")
    assert shapes["model.embed_tokens.weight"] == (harness.VOCAB, 32)
    assert "lm_head.weight" not in shapes


# --- the hub ----------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch, tiny):
    """Replaces the hub by an answer that the test sets, and records the request."""
    import huggingface_hub

    asked: dict = {}

    def set_answer(answer):
        def snapshot_download(name, **kwargs):
            asked.update(kwargs, name=name)
            if isinstance(answer, Exception):
                raise answer
            return str(answer)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        return asked

    return set_answer


def test_a_hub_model_is_downloaded_at_its_revision_without_code(hub, tiny):
    asked = hub(tiny)
    model = fetch("org/name", revision="v1")
    assert (asked["name"], asked["revision"], model.revision) == ("org/name", "v1", tiny.name)
    assert "*.safetensors" in asked["allow_patterns"]
    assert "*.py" not in asked["allow_patterns"]
    assert not any(pattern.endswith(".bin") for pattern in asked["allow_patterns"])


def test_random_initialisation_downloads_no_weights(hub, tiny):
    asked = hub(tiny)
    fetch("org/name", initialize="random")
    assert "*.safetensors" not in asked["allow_patterns"]


def test_trusted_code_is_downloaded(hub, tiny):
    asked = hub(tiny)
    fetch("org/name", trust_remote_code=True)
    assert "*.py" in asked["allow_patterns"]


def http_error(kind: str) -> Exception:
    import httpx
    from huggingface_hub import errors

    response = httpx.Response(404, request=httpx.Request("GET", "https://hub.invalid"))
    return getattr(errors, kind)("no", response=response)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("GatedRepoError", "spec.model.name: org/name is gated: accept its terms on the hub"),
        ("RepositoryNotFoundError", "spec.model.name: the hub has no model org/name, or it is private"),
        ("RevisionNotFoundError", "spec.model.revision: org/name has no revision v1"),
    ],
)
def test_a_refusal_of_the_hub_is_a_user_error(hub, error, message):
    hub(http_error(error))
    with pytest.raises(UserError) as caught:
        fetch("org/name", revision="v1")
    assert str(caught.value).startswith(message)


def test_offline_mode_without_a_cache_is_a_user_error(tmp_path, monkeypatch):
    """Uses the real huggingface_hub, offline and with an empty cache."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="org/name is not in the Hugging Face cache and HF_HUB_OFFLINE is set"):
        fetch("org/name")


def test_an_unreachable_hub_is_retryable(hub, monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    hub(LocalEntryNotFoundError("no network"))
    with pytest.raises(NetworkError) as caught:
        fetch("org/name")
    assert caught.value.retryable


# --- model and mesh -----------------------------------------------------------------------------------------------

MISFITS = {
    "heads": (
        {},
        {"mesh": {"tp": 3}},
        "spec.mesh.tp: 3 does not divide the 4 attention heads of {0}; use",
    ),
    "kv heads": (
        {},
        {"mesh": {"tp": 4}},
        "spec.mesh.tp: 4 does not divide the 2 key/value heads of {0}; use",
    ),
    "pairs of heads": (
        {"model_type": "diffllama"},
        {"mesh": {"tp": 2}},
        "spec.mesh.tp: 2 does not work for {0}: models of type diffllama do not support tensor parallelism: ",
    ),
    "dropout": (
        {"attention_dropout": 0.1},
        {"mesh": {"device": "gpu"}},
        "spec.model.overrides.attention_dropout: {0} has 0.1, and FlexAttention does not support dropout; set it to "
        "0.0",
    ),
    "layers": (
        {},
        {"mesh": {"pp": 4}, "training": {"localBatchSize": 8}},
        "spec.mesh.pp: 4 pipeline stages are too many for the 4 layers of {0}; use at most 3",
    ),
    "batch": (
        {},
        {"mesh": {"pp": 2}, "training": {"localBatchSize": 1}},
        "spec.training.localBatchSize: 1 is less than the 2 pipeline stages; use at least 2",
    ),
    "family": (
        {"model_type": "nanochat"},
        {"mesh": {"pp": 2}},
        "spec.mesh.pp: 2 does not work for {0}: models of type nanochat do not support pipeline parallelism: its",
    ),
    "length": (
        {},
        {"training": {"seqLen": 1024}},
        "spec.training.seqLen: 1024 is more than the 512 positions of {0}; use at most 512",
    ),
    "window": (
        {"model_type": "olmoe", "sliding_window": 64},
        {"training": {"seqLen": 128}},
        "spec.training.seqLen: 128 is more than the sliding window 64 of {0}, and sliding windows of model type",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_a_model_that_does_not_fit_the_mesh_is_refused(tmp_path, name):
    changes, sections, message = MISFITS[name]
    folder = with_config(tmp_path / "m", architectures=None, **changes)
    spec = TrainerSpec.model_validate(harness.trainer_spec(folder, **sections))
    config = fetch(folder, initialize="random").config
    with pytest.raises(UserError) as caught:
        check_model_on_mesh(config, spec)
    assert str(caught.value).startswith(message.format(folder))


def test_a_disabled_sliding_window_is_ignored(tmp_path):
    folder = with_config(tmp_path / "m", model_type="qwen2", sliding_window=16, use_sliding_window=False)
    spec = TrainerSpec.model_validate(harness.trainer_spec(folder))
    check_model_on_mesh(fetch(folder, initialize="random").config, spec)
