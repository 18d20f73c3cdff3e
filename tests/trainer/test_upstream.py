"""Checks that torchtitan still has the defects that the trainer works around.

If a test fails, upstream has fixed the defect; remove the workaround that its docstring names.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import harness
import pytest
from paths import ROOT


def look(kind: str, folder: Path) -> dict:
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "tests/support/trainer/upstream_facts.py"), kind, str(folder)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    lines = [line for line in done.stdout.splitlines() if line.startswith("FACTS ")]
    assert lines, done.stderr[-4000:]
    return json.loads(lines[-1].removeprefix("FACTS "))


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    harness.make_model(folder / "tied", tied=True)
    harness.make_model(folder / "biased", attention_bias=True)
    harness.make_model(folder / "scaled", model_type="granite", logits_scaling=3.0)
    harness.make_model(folder / "fused", **harness.FAMILIES["phi3"])
    harness.make_model(folder / "aliased", **harness.FAMILIES["mixtral"])
    return look("cpu", folder) | look("bare", folder)


def test_a_machine_without_accelerator_counts_as_cuda(facts):
    """device.py: _import_for_cpu."""
    assert facts["device without an accelerator"] == "cuda"


def test_an_unknown_device_has_the_peak_of_an_a100(facts):
    """telemetry/processor.py: _peak_known."""
    assert facts["an unknown device has the peak of"] == "A100"


def test_rotary_frequencies_stay_uninitialised(facts):
    """initialise.py: initialise."""
    assert facts["rotary frequencies are restored"] is False


def test_attention_crosses_documents_by_default(facts):
    """model/wrapper.py: Config.__init__ (block_causal)."""
    assert facts["default mask"] == "causal"


def test_remote_code_is_trusted_by_default(facts):
    """model/wrapper.py: _auto_config_is."""
    assert facts["remote code is trusted"] is True


def test_biases_are_dropped(facts):
    """model/wrapper.py: _KEPT_KEYS."""
    assert facts["attention biases"] is False


def test_max_position_embeddings_becomes_the_sequence_length(facts):
    """model/wrapper.py: _KEPT_KEYS."""
    assert facts["max_position_embeddings"] == 8


def test_transformers_is_patched_for_the_whole_process(facts):
    """model/wrapper.py: _patch_hf_llama_like."""
    assert facts["transformers' initialisation is replaced"] is True


def test_the_scaling_of_logits_is_lost(facts):
    """model/wrapper.py: forward."""
    assert facts["logits are scaled"] is False


def test_tied_embeddings_are_untied(facts):
    """model/wrapper.py: parallelize, _tie."""
    assert facts["tied as built"] is True
    assert facts["tied as parallelized"] is False


def test_the_last_stage_needs_a_head_that_no_file_has(facts):
    """model/wrapper.py: HFTitanStateDictAdapter."""
    assert facts["names on the last stage"] == ["lm_head.weight"]


def test_the_saved_tokens_are_those_of_one_rank(facts):
    """engine.py: state_dict."""
    assert facts["tokens that one of two ranks saves"] == 5


def test_flex_attention_has_no_backward_on_cpus(facts):
    """model/attention.py: install."""
    assert facts["flex backward on CPU"]


def test_gloo_has_no_premul_sum(facts):
    """model/wrapper.py: parallelize (set_force_sum_reduction_for_comms)."""
    assert facts["gloo premul sum"]


def test_experts_always_compute_in_bfloat16(facts):
    """parallel/experts.py: uses transformers' experts instead."""
    assert facts["float32 experts compute in"] == "torch.bfloat16"


def test_selective_recomputation_saves_what_topk_returns(facts):
    """parallel/experts.py: SelectiveRecomputation."""
    assert facts["what topk returns is saved for the backward pass"] is True


def test_fused_projections_fail_without_tensor_parallelism(facts):
    """parallel/whole.py: modules_stay_whole."""
    assert "no recognized query projection" in facts["fused projections without tensor parallelism"]


def test_the_optimizers_are_adam_adamw_and_distmuon_which_needs_a_sharding_table(facts):
    """support.py: _NOT_YET (spec.optimizer.name)."""
    assert facts["optimizers"] == ["Adam", "AdamW", "DistMuon"]
    assert "compute_sharding_by_fqn" in facts["DistMuon with the settings of AdamW"]


def test_lora_finds_no_layer_in_a_transformers_model(facts):
    """support.py: _NOT_YET (spec.training.lora)."""
    assert facts["linear layers in the backend's config"] == 0
    assert facts["layers that LoRA converts"] == []


def test_aliases_of_one_model_apply_to_all_configs(facts):
    """model/wrapper.py: Config.update_from_config (attribute_map)."""
    assert facts["aliases of one model apply to all"] is True
