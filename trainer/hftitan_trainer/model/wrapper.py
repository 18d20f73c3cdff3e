"""Wraps a transformers model for torchtitan, and fixes the upstream defects that would silently train a wrong model.

Upstream is torchtitan 0.3 experiments/transformers_modeling_backend (model.py, parallelize.py, state_dict_adapter.py).
tests/trainer/test_upstream.py shows each defect in the original. If one of those tests fails, upstream has fixed the
defect and the workaround here can be removed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torchtitan.experiments.transformers_modeling_backend import TitanModelConfig
from torchtitan.experiments.transformers_modeling_backend import model as backend
from torchtitan.experiments.transformers_modeling_backend.model import HFTransformerModel
from torchtitan.experiments.transformers_modeling_backend.parallelize import parallelize_hf_transformers
from torchtitan.experiments.transformers_modeling_backend.state_dict_adapter import HFTransformerStateDictAdapter
from torchtitan.tools.utils import device_type

from hftitan_api.shape import ModelShape
from hftitan_trainer.model import attention, initialise
from hftitan_trainer.model.folder import ModelFolder
from hftitan_trainer.parallel import experts, replicas, stages, tensor_parallel, whole
from hftitan_trainer.process.errors import UserError

# Upstream overwrites these in update_from_config. Projections would lose their biases (attention_bias, mlp_bias), and
# rotary embeddings that depend on the trained length would change (max_position_embeddings becomes seq_len).
_KEPT_KEYS = ("attention_bias", "mlp_bias", "max_position_embeddings", "initializer_range", "num_key_value_heads")


class HFTitanModel(HFTransformerModel):
    """A transformers causal LM as a torchtitan model: same weights, same logits, sharded."""

    @dataclass(kw_only=True, slots=True, init=False)
    class Config(HFTransformerModel.Config):
        """torchtitan's model config, filled from the folder's config instead of the hub's."""

        def __init__(self, folder: ModelFolder, seed: int) -> None:
            HFTransformerModel.Config.__init__(self, TitanModelConfig(attn_mask_type="block_causal"))
            self._folder = folder
            self._seed = seed

        def __getattr__(self, name: str) -> Any:
            """Return properties and methods of the model's own config class: upstream copies only its values."""
            folder = self.__dict__.get("_folder")
            if folder is None or name.startswith("__"):
                raise AttributeError(name)
            return getattr(folder.config, name)

        def update_from_config(self, *, config: Any = None, **kwargs: Any) -> Any:
            """Use the folder's config. Upstream would use the hub's, with remote code allowed."""
            hf_config = self._folder.config
            # Upstream adds the model's aliases to this dict. It belongs to the class, so every config of the process
            # would have them.
            self.attribute_map: dict[str, str] = {}
            with _auto_config_is(hf_config):
                HFTransformerModel.Config.update_from_config(self, config=config, **kwargs)
            for key in _KEPT_KEYS:
                if hasattr(hf_config, key):
                    setattr(self, key, getattr(hf_config, key))
                elif key in self.__dict__:
                    delattr(self, key)
            if self._folder.trust_remote_code:
                _use_remote_class(self._folder)
            return self

        def get_nparams_and_flops(self, model: nn.Module, seq_len: int) -> tuple[int, int]:
            """Return the number of parameters and the FLOPs per token. Upstream counts every expert for every token."""
            parameters, flops = HFTransformerModel.Config.get_nparams_and_flops(self, model, seq_len)
            return parameters, flops - 6 * experts.idle_parameters(model.layers)

        def to_dict(self) -> dict[str, Any]:
            """Return the config, for loggers that record it."""
            return self._folder.config.to_dict()

    def __init__(self, config: Config) -> None:
        attention.install()
        try:
            super().__init__(config)
            list(self.named_children())  # the modules that torchtitan accesses
        except (AttributeError, ImportError, RecursionError, RuntimeError, TypeError) as error:
            kind = config._folder.config.model_type
            raise UserError("spec.model.name", f"torchtitan cannot build models of type {kind}: {error}") from error
        self._folder: ModelFolder = config._folder
        self._seed: int = config._seed
        self.tied = self._folder.tied
        self.sliding_window = ModelShape.from_config(self._folder.config.to_dict()).sliding_window

    def _patch_hf_llama_like(self, **_classes: Any) -> None:
        """Do nothing, so that transformers' classes stay unchanged.

        Upstream replaces PreTrainedModel._init_weights for the whole process by a version for Llama-like modules. Other
        modules, and rotary buffers of models loaded later in this process, would stay uninitialised. Here initialise.py
        runs transformers' own functions.
        """

    def parallelize(self, parallel_dims: Any) -> None:
        """Shard by torchtitan's rules, then tie the embeddings again.

        Upstream: parallelize_hf_transformers unties them before this call, and Module.parallelize gives each its own
        parameter. apply_fsdp runs afterwards and groups tied embeddings correctly.
        """
        tensor_parallel.name_first_argument(self.tok_embeddings)
        super().parallelize(parallel_dims)
        self._tie()
        if parallel_dims.ep_enabled:
            for block in experts.mixtures(self.layers):
                experts.spread(block, parallel_dims.get_mesh("ep"))

    def init_states(self, *, buffer_device: torch.device | None = None) -> None:
        """Initialise the materialised model: buffers always, parameters unless they are loaded from the folder.

        Upstream recomputes rotary buffers through an attribute that transformers does not set, so they stay
        uninitialised. Raises UpstreamError if a buffer could not be restored.
        """
        initialise.initialise(self.model, self._seed, parameters=not self._folder.pretrained)
        self._tie()

    def _tie(self) -> None:
        embedding, head = self.tok_embeddings, self.lm_head
        if self.tied and not isinstance(embedding, nn.Identity) and not isinstance(head, nn.Identity):
            head.weight = embedding.weight

    def get_attention_masks(self, positions: torch.Tensor) -> Any:
        """Return the causal document mask: a flex BlockMask; on CPUs a boolean mask (flex has no backward pass there).

        If rows are longer than a sliding window, the result is a dict of two masks by layer type. Upstream's single
        mask would let every layer attend to the whole document. torchtitan can shard a dict under context parallelism.
        """
        if positions.device.type == "cpu":
            return attention.document_mask(positions, self.sliding_window)
        whole = super().get_attention_masks(positions)
        if self.sliding_window is None or positions.shape[1] <= self.sliding_window:
            return whole
        return {attention.WHOLE: whole, attention.WINDOWED: attention.block_mask(positions, self.sliding_window)}

    def forward(self, tokens: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Return logits [batch, seq, vocab] of tokens [batch, seq], or the hidden states for the next pipeline stage.

        Runs transformers' own forward of the whole model if this stage has the head. Upstream calls body and head
        itself, and so loses what models do to logits (scaling in Granite and Cohere, soft caps in Gemma).
        """
        positions = kwargs.pop("positions")
        mask = kwargs.pop("attention_masks", None)
        if mask is None:
            mask = self.get_attention_masks(positions)
        if isinstance(mask, dict):
            mask = attention.LayeredMask(mask)
        inputs = {"position_ids": positions, "attention_mask": mask, "use_cache": False, **kwargs}
        if self._skip_lm_head or isinstance(self.lm_head, nn.Identity):
            return self.model.model(tokens, **inputs).last_hidden_state
        return self.model(tokens, **inputs).logits


class HFTitanStateDictAdapter(HFTransformerStateDictAdapter):
    """Maps names of torchtitan's state to names in safetensors files and back, including tied embeddings.

    Upstream keeps lm_head.weight on a rank without the embedding (the last pipeline stage), but the file of a tied
    model has no such tensor. In files each expert is a separate tensor: `to_hf` returns views of this rank's experts,
    so that filling the views fills the model.
    """

    def __init__(self, model_config: Any, _hf_assets_path: str | None) -> None:
        # Upstream uses the folder only to split an HF checkpoint into files, which checkpoint/export.py does here.
        super().__init__(model_config, None)
        config = model_config._folder.config
        self.names = experts.FileNames(
            config.model_type, mixture=bool(ModelShape.from_config(config.to_dict()).experts)
        )
        self._stacked: dict[str, Any] = {}

    def whole(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Return the state with the names of transformers' classes: experts stacked, without a tied head."""
        state = {key.removeprefix("model."): value for key, value in state_dict.items()}
        if self._tie_word_embeddings and "lm_head.weight" in state:
            head = state.pop("lm_head.weight")
            state.setdefault("model.embed_tokens.weight", head)
        return state

    def to_hf(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        state = self.whole(state_dict)
        self._stacked = {name: value for name, value in state.items() if self.names.is_stacked(name)}
        return {name: piece for key, value in state.items() for name, piece in self.names.pieces(key, value).items()}

    def from_hf(self, hf_state_dict: dict[str, Any]) -> dict[str, Any]:
        single = {name: value for name, value in hf_state_dict.items() if not self.names.is_one_expert(name)}
        state = {self.names.back(name): value for name, value in single.items()} | self._stacked
        if self._tie_word_embeddings:
            state["lm_head.weight"] = state["model.embed_tokens.weight"]
        return {f"model.{key}": value for key, value in state.items()}


def parallelize(model: nn.Module, *, parallel_dims: Any, training: Any, **kwargs: Any) -> nn.Module:
    """Run torchtitan's parallelize_hf_transformers, with gradient reductions that gloo supports.

    Raises UserError if torchtitan has no sharding rules for a module of the model.
    """
    if replicas.holds_whole_model(parallel_dims, training):
        return replicas.prepare(
            model, parallel_dims, kwargs["compile_config"], kwargs["ac_config"], kwargs["dump_folder"]
        )
    if parallel_dims.pp_enabled:
        stages.fit(model)
    layout = (
        tensor_parallel.layers_cut(parallel_dims.get_mesh("tp").get_group())
        if parallel_dims.tp_enabled
        else whole.modules_stay_whole(ep=parallel_dims.ep_enabled)
    )
    try:
        with layout:
            model = parallelize_hf_transformers(model, parallel_dims=parallel_dims, training=training, **kwargs)
    except (ValueError, NotImplementedError, AttributeError, AssertionError) as error:
        kind = model._folder.config.model_type  # type: ignore[union-attr]
        raise UserError("spec.model.name", f"torchtitan cannot shard models of type {kind}: {error}") from error
    if device_type == "cpu":
        for module in model.modules():
            if isinstance(module, FSDPModule):
                # gloo has no PREMUL_SUM, which FSDP uses for its (here trivial) division of gradients.
                module.set_force_sum_reduction_for_comms(True)
    return model


@contextlib.contextmanager
def _auto_config_is(hf_config: Any) -> Iterator[None]:
    """Make AutoConfig in upstream's model.py return `hf_config`.

    Upstream: update_from_config calls AutoConfig.from_pretrained(hf_model, trust_remote_code=True) for every model type
    but two, so a model folder could run its own code without permission. It also ignores revision and overrides.
    """

    class Given:
        @staticmethod
        def from_pretrained(_name: str, **_kwargs: Any) -> Any:
            return hf_config

    original = backend.AutoConfig
    backend.AutoConfig = Given
    try:
        yield
    finally:
        backend.AutoConfig = original


def _use_remote_class(folder: ModelFolder) -> None:
    """Store the model class of a trusted folder in upstream's module globals, where upstream looks first."""
    reference = (getattr(folder.config, "auto_map", None) or {}).get("AutoModelForCausalLM")
    if reference is None:
        return
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    setattr(backend, folder.config.architectures[0], get_class_from_dynamic_module(reference, str(folder.path)))
