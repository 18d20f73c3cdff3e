"""Wraps a transformers model for torchtitan, and fixes the upstream defects that would train a wrong model in silence.

Upstream is torchtitan 0.3 experiments/transformers_modeling_backend (model.py, parallelize.py, state_dict_adapter.py).
tests/trainer/test_upstream.py shows each of these defects in the original; when one of those tests fails, upstream has
fixed it and the piece here can go.
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

# Upstream overwrites these in update_from_config: projections lose their biases (attention_bias, mlp_bias), rotary
# embeddings that depend on the trained length get another one (max_position_embeddings becomes seq_len).
_KEPT_KEYS = ("attention_bias", "mlp_bias", "max_position_embeddings", "initializer_range", "num_key_value_heads")


class HFTitanModel(HFTransformerModel):
    """A causal LM of transformers inside torchtitan: same weights, same logits, sharded."""

    @dataclass(kw_only=True, slots=True, init=False)
    class Config(HFTransformerModel.Config):
        """torchtitan's model config, filled from the folder's config instead of the hub's."""

        def __init__(self, folder: ModelFolder, seed: int) -> None:
            HFTransformerModel.Config.__init__(self, TitanModelConfig(attn_mask_type="block_causal"))
            self._folder = folder
            self._seed = seed

        def __getattr__(self, name: str) -> Any:
            """What a model's own config class computes (properties, methods): upstream copies its values alone."""
            folder = self.__dict__.get("_folder")
            if folder is None or name.startswith("__"):
                raise AttributeError(name)
            return getattr(folder.config, name)

        def update_from_config(self, *, config: Any = None, **kwargs: Any) -> Any:
            """Take over the folder's config; never the hub's, and never with remote code (upstream: both)."""
            hf_config = self._folder.config
            # Upstream adds the model's aliases to this dict, which is the class's: any config of the process has them.
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
            """All parameters, and a token's operations; upstream counts every expert for every token."""
            parameters, flops = HFTransformerModel.Config.get_nparams_and_flops(self, model, seq_len)
            return parameters, flops - 6 * experts.idle_parameters(model.layers)

        def to_dict(self) -> dict[str, Any]:
            """For loggers that record the job's configuration."""
            return self._folder.config.to_dict()

    def __init__(self, config: Config) -> None:
        attention.install()
        try:
            super().__init__(config)
            list(self.named_children())  # the parts that torchtitan will ask for
        except (AttributeError, ImportError, RecursionError, RuntimeError, TypeError) as error:
            kind = config._folder.config.model_type
            raise UserError("spec.model.name", f"torchtitan cannot build models of type {kind}: {error}") from error
        self._folder: ModelFolder = config._folder
        self._seed: int = config._seed
        self.tied = self._folder.tied
        self.sliding_window = ModelShape.from_config(self._folder.config.to_dict()).sliding_window

    def _patch_hf_llama_like(self, **_classes: Any) -> None:
        """Leave transformers' classes alone.

        Upstream replaces PreTrainedModel._init_weights for the whole process, by one that knows llama-like modules
        only: others keep uninitialised memory, and so do rotary buffers of any model loaded later in this process.
        Weights are initialised by transformers' own functions here (initialise.py).
        """

    def parallelize(self, parallel_dims: Any) -> None:
        """Shard by torchtitan's rules, then tie the embeddings again.

        Upstream: parallelize_hf_transformers un-ties them before this call, and Module.parallelize gives each its own
        parameter; apply_fsdp, which comes after, groups tied ones rightly when it finds them.
        """
        tensor_parallel.name_first_argument(self.tok_embeddings)
        super().parallelize(parallel_dims)
        self._tie()
        if parallel_dims.ep_enabled:
            for block in experts.mixtures(self.layers):
                experts.spread(block, parallel_dims.get_mesh("ep"))

    def init_states(self, *, buffer_device: torch.device | None = None) -> None:
        """Fill what materialisation left empty: buffers always, parameters unless they are loaded from the folder.

        Upstream recomputes rotary buffers through an attribute that transformers does not set, so they stay
        uninitialised memory. Raises UpstreamError when a buffer could not be restored.
        """
        initialise.initialise(self.model, self._seed, parameters=not self._folder.pretrained)
        self._tie()

    def _tie(self) -> None:
        embedding, head = self.tok_embeddings, self.lm_head
        if self.tied and not isinstance(embedding, nn.Identity) and not isinstance(head, nn.Identity):
            head.weight = embedding.weight

    def get_attention_masks(self, positions: torch.Tensor) -> Any:
        """Causal inside documents: a flex BlockMask, on CPUs a boolean mask (flex has no backward pass there).

        Where rows are longer than a sliding window, upstream's one mask would let every layer see all of a document:
        here a second one, and both by the kind of layer (a dict is what torchtitan shards under context parallelism).
        """
        if positions.device.type == "cpu":
            return attention.document_mask(positions, self.sliding_window)
        whole = super().get_attention_masks(positions)
        if self.sliding_window is None or positions.shape[1] <= self.sliding_window:
            return whole
        return {attention.WHOLE: whole, attention.WINDOWED: attention.block_mask(positions, self.sliding_window)}

    def forward(self, tokens: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Logits [batch, seq, vocab] of tokens [batch, seq], or the hidden states a later pipeline stage goes on from.

        Runs transformers' own forward of the whole model where the head is here. Upstream calls the body and the head
        itself and so loses what models do to logits (scaling in Granite and Cohere, soft caps in Gemma).
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
    """Names of torchtitan's state to names in safetensors files and back, tied embeddings included.

    Upstream keeps lm_head.weight where the embedding is not on the same rank (the last pipeline stage), and the file of
    a tied model has no such tensor. Experts are separate tensors in files: `to_hf` gives views of those on this rank,
    so that whoever fills them has filled the model.
    """

    def __init__(self, model_config: Any, _hf_assets_path: str | None) -> None:
        # The folder is only asked for the shards of an HF checkpoint, which checkpoint/export.py writes by itself.
        super().__init__(model_config, None)
        config = model_config._folder.config
        self.names = experts.FileNames(
            config.model_type, mixture=bool(ModelShape.from_config(config.to_dict()).experts)
        )
        self._stacked: dict[str, Any] = {}

    def whole(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Transformers' own names, of its classes: experts stacked, a tied head left out."""
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
    """torchtitan's parallelize_hf_transformers, and gradient reductions that gloo can do.

    Raises UserError for a model whose modules torchtitan has no sharding rules for.
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
    """Make the AutoConfig of upstream's model.py answer with `hf_config`.

    Upstream: update_from_config calls AutoConfig.from_pretrained(hf_model, trust_remote_code=True) for every model
    type but two, so a model folder could run its own code unasked; and it takes no revision and no overrides.
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
    """Put the model class that a trusted folder brings where upstream looks first: its module's globals."""
    reference = (getattr(folder.config, "auto_map", None) or {}).get("AutoModelForCausalLM")
    if reference is None:
        return
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    setattr(backend, folder.config.architectures[0], get_class_from_dynamic_module(reference, str(folder.path)))
