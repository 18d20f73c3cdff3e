"""Search for the model's config.json: sources, and that a missing file raises no error."""

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
    """Function: replace the hub client by one with the given download function."""

    def install(download):
        fake = types.ModuleType("huggingface_hub")
        fake.hf_hub_download = download
        monkeypatch.setitem(sys.modules, "huggingface_hub", fake)

    return install


@pytest.fixture
def environ(tmp_path):
    return {"HF_HOME": str(tmp_path / "hf")}


def test_model_folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert model_config.find(ModelSpec(name=str(tmp_path)), {}).config == CONFIG


@pytest.mark.parametrize(
    ("text", "why"), [(None, "No such file or directory"), ("{", "is not JSON"), ("[]", "is not a JSON object")]
)
def test_model_folder_without_a_valid_config(tmp_path, text, why):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    found = model_config.find(ModelSpec(name=str(tmp_path)), {})
    assert found.config is None
    assert why in found.why_not


def test_one_file_is_downloaded_at_the_revision_of_the_job(tmp_path, environ, hub):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    asked = []
    hub(lambda *args, **kwargs: asked.append((args, kwargs)) or str(tmp_path / "config.json"))
    assert model_config.find(ModelSpec(name="org/model", revision="v1"), environ).config == CONFIG
    assert asked == [(("org/model", "config.json"), {"revision": "v1"})]


@pytest.mark.parametrize("word", ["1", "true", "YES", "on"])
def test_offline_downloads_nothing(environ, hub, word):
    hub(lambda *_, **__: pytest.fail("downloads"))
    found = model_config.find(ModelSpec(name="org/model"), {**environ, "HF_HUB_OFFLINE": word})
    assert found == model_config.Found(None, "not in the hub's cache, and HF_HUB_OFFLINE is set")


def test_hub_that_rejects_the_request(environ, hub):
    def refuse(*_, **__):
        raise PermissionError("gated; token hf_secret")

    hub(refuse)
    found = model_config.find(ModelSpec(name="org/model"), environ)
    assert found == model_config.Found(None, "download from the hub failed: PermissionError")


def test_slow_hub(environ, hub, monkeypatch):
    monkeypatch.setattr(model_config, "HUB_TIMEOUT_SECONDS", 0.05)
    hub(lambda *_, **__: time.sleep(1))
    assert "the hub did not answer within 0.05 s" in model_config.find(ModelSpec(name="org/model"), environ).why_not


def test_hub_client_not_installed(environ, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert model_config.find(ModelSpec(name="org/model"), environ).why_not == "huggingface_hub is not installed"


def test_cache_from_its_variable_by_commit_and_branch(tmp_path):
    snapshot = tmp_path / "c" / "models--org--model" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(CONFIG))
    environ = {"HF_HUB_CACHE": str(tmp_path / "c"), "HF_HUB_OFFLINE": "1"}
    assert model_config.find(ModelSpec(name="org/model", revision="abc"), environ).config == CONFIG
    assert model_config.find(ModelSpec(name="org/model", revision="main"), environ).config is None
