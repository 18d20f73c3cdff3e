"""The public Python API: the example of transformers' torchtitan page, on the meta device."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
from paths import ROOT

QWEN = {  # Qwen/Qwen2.5-7B's config.json
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 131072,
    "max_window_layers": 28,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 152064,
}


def example() -> str:
    """Return the code block of api.py's docstring."""
    text = (ROOT / "trainer" / "hftitan_trainer" / "api.py").read_text()
    block = re.search(r"\n\n((?:    .*\n|\n)+)", text)
    assert block is not None
    return "\n".join(line.removeprefix("    ") for line in block[1].splitlines())


def python(code: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **env},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.strip().splitlines()[-1]


def test_the_documented_example_builds_the_model_on_the_meta_device(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(QWEN))
    code = example()
    assert '"Qwen/Qwen2.5-7B"' in code
    assert f"```python\n{code.strip()}\n```" in (ROOT / "README.md").read_text()
    code = code.replace('"Qwen/Qwen2.5-7B"', repr(str(tmp_path))) + (
        "\nimport json, transformers"
        "\nprint(json.dumps({'kind': type(model.model).__name__,"
        " 'devices': sorted({p.device.type for p in model.parameters()}),"
        " 'size': sum(p.numel() for p in model.parameters()),"
        " 'biased': model.layers['0'].self_attn.q_proj.bias is not None,"
        " 'job': type(job_config).__name__, 'vocab': model_args.vocab_size}))"
    )
    assert json.loads(python(code)) == {
        "kind": "Qwen2ForCausalLM",
        "devices": ["meta"],
        "size": 7_615_616_512,
        "biased": True,
        "job": "TransformersBackendConfig",
        "vocab": 152064,
    }


def test_importing_the_package_loads_neither_torch_nor_torchtitan():
    code = (
        "import sys, hftitan_trainer; print([m for m in ('torch', 'torchtitan', 'transformers') if m in sys.modules])"
    )
    assert python(code) == "[]"


def test_unknown_names_raise_attribute_error():
    import hftitan_trainer

    with pytest.raises(AttributeError, match="nonesuch"):
        _ = hftitan_trainer.nonesuch


def test_gpu_without_a_cuda_device_is_a_user_error(monkeypatch):
    import torch

    from hftitan_trainer.process.device import use_device
    from hftitan_trainer.process.errors import UserError

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"spec\.mesh\.device: gpu, but torch finds no CUDA device"):
        use_device("gpu")
