"""Where the model's config.json comes from, and that nothing fails when it does not."""

import json
import sys
import time
import types

import pytest

from hftitan_api.models import ModelSpec
from hftitan_operator.cli import model_config

CONFIG = {"num_attention_heads": 9}


@pytest.fixture
def hub(monkeypatch):
    """Function: put a hub client in place whose download does this."""

    def install(download):
        fake = types.ModuleType("huggingface_hub")
        fake.hf_hub_download = download
        monkeypatch.setitem(sys.modules, "huggingface_hub", fake)

    return install


@pytest.fixture
def environ(tmp_path):
    return {"HF_HOME": str(tmp_path / "hf")}


def test_a_folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert model_config.find(ModelSpec(name=str(tmp_path)), {}).config == CONFIG


@pytest.mark.parametrize(
    ("text", "why"), [(None, "No such file or directory"), ("{", "is no JSON"), ("[]", "holds no object")]
)
def test_a_folder_without_a_usable_config(tmp_path, text, why):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    found = model_config.find(ModelSpec(name=str(tmp_path)), {})
    assert found.config is None
    assert why in found.why_not


def test_the_hub_is_asked_for_one_file_at_the_jobs_revision(tmp_path, environ, hub):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    asked = []
    hub(lambda *args, **kwargs: asked.append((args, kwargs)) or str(tmp_path / "config.json"))
    assert model_config.find(ModelSpec(name="org/model", revision="v1"), environ).config == CONFIG
    assert asked == [(("org/model", "config.json"), {"revision": "v1"})]


@pytest.mark.parametrize("word", ["1", "true", "YES", "on"])
def test_offline_asks_nobody(environ, hub, word):
    hub(lambda *_, **__: pytest.fail("asked"))
    found = model_config.find(ModelSpec(name="org/model"), {**environ, "HF_HUB_OFFLINE": word})
    assert found == model_config.Found(None, "not in the hub's cache, and HF_HUB_OFFLINE is set")


def test_a_hub_that_refuses(environ, hub):
    def refuse(*_, **__):
        raise PermissionError("gated; token hf_secret")

    hub(refuse)
    found = model_config.find(ModelSpec(name="org/model"), environ)
    assert found == model_config.Found(None, "the hub did not give it (PermissionError)")


def test_a_hub_that_is_slow(environ, hub, monkeypatch):
    monkeypatch.setattr(model_config, "HUB_PATIENCE_SECONDS", 0.05)
    hub(lambda *_, **__: time.sleep(1))
    assert "no answer from the hub within 0.05 s" in model_config.find(ModelSpec(name="org/model"), environ).why_not


def test_no_hub_client(environ, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert model_config.find(ModelSpec(name="org/model"), environ).why_not == "huggingface_hub is not installed"


def test_the_cache_by_commit_and_by_its_own_variable(tmp_path):
    snapshot = tmp_path / "c" / "models--org--model" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(CONFIG))
    environ = {"HF_HUB_CACHE": str(tmp_path / "c"), "HF_HUB_OFFLINE": "1"}
    assert model_config.find(ModelSpec(name="org/model", revision="abc"), environ).config == CONFIG
    assert model_config.find(ModelSpec(name="org/model", revision="main"), environ).config is None
