"""Examines torchtitan without workarounds, in a separate process (it patches transformers), and prints facts as JSON.

Each fact is a defect that hftitan_trainer works around; test_upstream.py names the workaround.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch

facts: dict[str, object] = {}


def attempt(action) -> str:
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def main(folder: Path) -> None:
    # --- device.py
    from torchtitan.tools.utils import device_type, get_peak_flops

    facts["device without an accelerator"] = device_type
    facts["an unknown device has the peak of"] = "A100" if get_peak_flops("x") == get_peak_flops("A100") else "itself"


def main_on_cpu(folder: Path) -> None:
    from hftitan_trainer.process.device import use_device

    use_device("cpu")

    import torch.distributed as dist
    from torch.nn.attention.flex_attention import create_block_mask
    from torchtitan.config import CompileConfig, ParallelismConfig, TrainingConfig
    from torchtitan.distributed import ParallelDims
    from torchtitan.experiments.transformers_modeling_backend import flavors
    from torchtitan.experiments.transformers_modeling_backend import model as backend
    from torchtitan.experiments.transformers_modeling_backend.parallelize import parallelize_hf_transformers
    from torchtitan.experiments.transformers_modeling_backend.state_dict_adapter import HFTransformerStateDictAdapter
    from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

    def built(name: str) -> torch.nn.Module:
        config = flavors["full"]._replace()
        job = SimpleNamespace(
            training=TrainingConfig(seq_len=8),
            parallelism=ParallelismConfig(),
            debug=SimpleNamespace(deterministic=False),
            hf_model=str(folder / name),
            loss=SimpleNamespace(),
        )
        config.update_from_config(config=job)
        with torch.device("meta"):
            return config.build()

    facts["default mask"] = flavors["full"].attn_mask_type

    # --- model/wrapper.py: Config
    real = backend.AutoConfig.from_pretrained
    with mock.patch.object(backend.AutoConfig, "from_pretrained", side_effect=real) as asked:
        model = built("biased")
    facts["remote code is trusted"] = asked.call_args.kwargs["trust_remote_code"]
    facts["attention biases"] = model.model.model.layers["0"].self_attn.q_proj.bias is not None
    facts["max_position_embeddings"] = model.model.config.max_position_embeddings
    facts["transformers' initialisation is replaced"] = "torchtitan" in PreTrainedModel._init_weights.__module__

    # --- initialise.py: buffers
    model = built("tied")
    model.to_empty(device="cpu")
    rotary = model.rotary_emb
    rotary.inv_freq.fill_(float("nan"))
    rotary.original_inv_freq.fill_(float("nan"))
    with torch.no_grad():
        model.init_states()
    facts["rotary frequencies are restored"] = not bool(torch.isnan(rotary.inv_freq).any())

    # --- model/wrapper.py: forward
    ids = torch.arange(3, 11)[None]
    ours = AutoModelForCausalLM.from_pretrained(folder / "scaled")
    body = ours.model(ids).last_hidden_state
    wrapped = built("scaled")
    wrapped.model.model.forward = lambda *_a, **_k: SimpleNamespace(last_hidden_state=body)
    wrapped.model.lm_head = ours.lm_head
    logits = backend.HFTransformerModel.forward(wrapped, ids, attention_masks=torch.ones(1, 1, 1, 1))
    facts["logits are scaled"] = bool(torch.allclose(logits, ours(ids).logits))

    # --- HFTitanStateDictAdapter: the last pipeline stage of a tied model
    adapter = HFTransformerStateDictAdapter(SimpleNamespace(tie_word_embeddings=True), None)
    facts["names on the last stage"] = list(adapter.to_hf({"model.lm_head.weight": torch.ones(1)}))

    # --- parallel/experts.py: the mixture that upstream would use
    from torchtitan.models.common.moe import GroupedExperts

    computed: list[torch.dtype] = []

    def product(_self, *, A, B_t, offs):
        computed.append(A.dtype)
        return A.new_zeros(A.shape[0], B_t.shape[-1])

    with mock.patch.object(GroupedExperts, "_grouped_mm", product):
        GroupedExperts.Config(dim=4, hidden_dim=4, num_experts=2).build()(torch.ones(2, 4), torch.ones(2))
    facts["float32 experts compute in"] = str(computed[0])

    from torchtitan.distributed.activation_checkpoint import SelectiveAC

    kept = SelectiveAC.Config().build(dump_folder="").get_save_ops()
    facts["what topk returns is saved for the backward pass"] = torch.ops.aten.topk.default in kept

    # --- parallel/whole.py
    from torchtitan.experiments.transformers_modeling_backend.hf_sharding import set_hf_sharding_configs

    facts["fused projections without tensor parallelism"] = attempt(
        lambda: set_hf_sharding_configs(built("fused"), enable_sp=False)
    )

    # --- engine.py
    from torchtitan.trainer import Trainer

    facts["tokens that one of two ranks saves"] = Trainer.state_dict(SimpleNamespace(step=1, ntokens_seen=5))[
        "ntokens_seen"
    ]

    # --- model/attention.py
    q = torch.randn(1, 2, 128, 16, requires_grad=True)
    mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, 128, 128, device="cpu")
    kernel = backend.HFFlexKernel.Config().build()
    facts["flex backward on CPU"] = attempt(
        lambda: kernel(q, q, q, module=torch.nn.Module(), block_mask=mask).sum().backward()
    )

    # --- model/wrapper.py: parallelize, in a group of one
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    dims = ParallelDims.from_config(ParallelismConfig(), 1)
    premul = dist._make_nccl_premul_sum(2.0)
    facts["gloo premul sum"] = attempt(lambda: dist.all_reduce(torch.ones(2), op=premul))
    model = built("tied")
    facts["tied as built"] = model.lm_head.weight is model.tok_embeddings.weight
    model = parallelize_hf_transformers(
        model,
        parallel_dims=dims,
        training=TrainingConfig(seq_len=8, mixed_precision_param="float32"),
        parallelism=ParallelismConfig(),
        compile_config=CompileConfig(),
        ac_config=None,
        dump_folder="",
    )
    facts["tied as parallelized"] = model.lm_head.weight is model.tok_embeddings.weight

    # --- support.py: what is refused
    from torchtitan.components.lora import LoRAConverter
    from torchtitan.components.optimizer import OptimizersContainer, ParamGroupConfig
    from torchtitan.models.common.linear import Linear

    facts["optimizers"] = [
        name
        for name in ("Adam", "AdamW", "DistMuon", "Muon", "SGD", "Lion")
        if not attempt(lambda name=name: OptimizersContainer._resolve_optimizer_factory(name))
    ]
    muon = ParamGroupConfig(pattern=".*", optimizer_name="DistMuon", optimizer_kwargs={"lr": 1e-3})
    facts["DistMuon with the settings of AdamW"] = attempt(
        lambda: OptimizersContainer(OptimizersContainer.Config(param_groups=[muon]), model_parts=[model])
    )
    config = flavors["full"]._replace()
    facts["linear layers in the backend's config"] = len(list(config.traverse(Linear.Config)))
    with torch.device("meta"):
        converted = LoRAConverter(LoRAConverter.Config(rank=4)).convert(config)
    facts["layers that LoRA converts"] = sorted(fqn for fqn, *_ in converted.traverse(Linear.Config))

    # --- model/wrapper.py: update_from_config; last, since every config of this process changes
    built("aliased")
    facts["aliases of one model apply to all"] = "num_experts" in PretrainedConfig.attribute_map


if __name__ == "__main__":
    (main_on_cpu if sys.argv[1] == "cpu" else main)(Path(sys.argv[2]))
    print("FACTS " + json.dumps(facts))
