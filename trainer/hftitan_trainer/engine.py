"""The training loop: torchtitan's trainer, extended with what a job on a cluster needs."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import astuple, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torchtitan import trainer as titan
from torchtitan.components.dataloader import DataloaderExhaustedError
from torchtitan.distributed import utils as dist_utils
from torchtitan.experiments.transformers_modeling_backend.trainer import HFTransformerTrainer
from torchtitan.tools import utils as titan_utils
from torchtitan.trainer import Trainer

from hftitan_trainer.data.loader import PackedDataLoader
from hftitan_trainer.data.validation import Validation
from hftitan_trainer.model.attention import dense_mask
from hftitan_trainer.model.folder import weight_shapes
from hftitan_trainer.model.tied import TiedStages
from hftitan_trainer.model.wrapper import HFTitanModel
from hftitan_trainer.parallel.replicas import Replicas, holds_whole_model
from hftitan_trainer.process.errors import NonFiniteLossError, UserError
from hftitan_trainer.telemetry.observer import DataSeen, Observer, Outcome, StepReport


class HFTitanTrainer(HFTransformerTrainer):
    """Trains the model of `config`, reports to `observer`, and stops when any rank's observer requests it."""

    def __init__(self, config: Any, observer: Observer | None = None) -> None:
        self.observer = observer or Observer()
        with _upstream_startup():
            super().__init__(config)
        self.metrics_processor.on_step = self._keep_report
        self.metrics_processor.steps = config.training.steps
        self.validation: Validation | None = None
        self._passes_left = 0
        self._tied = TiedStages.of(self)
        self._replicas = self._find_replicas()

    @property
    def model(self) -> HFTitanModel:
        """The model, or this rank's first part of it under pipeline parallelism."""
        return self.model_parts[0]

    # --- the loop ---------------------------------------------------------------------------------------------------

    def train(self) -> Outcome:
        """Load the model, then train until all steps are done or a rank requests a stop. Saves the last step.

        Upstream's loop has no stop requests, and sleeps at its end. Raises NonFiniteLossError (on all ranks), UserError
        if the data ends early, and errors of torch.
        """
        self.observer.phase("loading")
        first = self._load() + 1
        self.observer.phase("training")
        batches = self.batch_generator(self.dataloader)
        while self.step < self.config.training.steps:
            self.step += 1
            self.gc_handler.run(self.step)
            self._step(batches)
            done = self.step == self.config.training.steps
            stop = self._finish_step() and not done
            if not stop:
                stop = not self._validate_if_due(last=done) and not done
            self._save_if_due(last=done or stop)
            if self.step == first:
                # After the first step nothing is slow any more, so shorter timeouts apply.
                timeout = timedelta(seconds=self.config.comm.train_timeout_seconds)
                dist_utils.set_pg_timeouts(timeout, self.parallel_dims)
            if stop:
                return Outcome("stopped", self.step)
        self.checkpointer.maybe_wait_for_saving()
        return Outcome("completed", self.step)

    def _step(self, batches: Iterator[Any]) -> None:
        self.metrics_processor.begin_step()
        self._passes_left = self.gradient_accumulation_steps
        try:
            self.train_step(batches)
        except DataloaderExhaustedError as error:
            raise UserError(
                "spec.dataset",
                f"the data ended in step {self.step} of {self.config.training.steps}; lower spec.training.steps",
            ) from error
        except RuntimeError as error:
            # Upstream: Trainer.train_step raises this only on the last pipeline stage; the other stages wait for its
            # loss.
            if not str(error).startswith("Loss is not finite"):
                raise
            self.metrics_processor.share_loss(math.nan, math.nan)
            raise NonFiniteLossError(self.step, math.nan) from error

    def _keep_report(self, report: StepReport) -> None:
        self._report = report

    def _finish_step(self) -> bool:
        """Report the step to the observer, with the data seen by all ranks. Return whether any rank requests a stop.

        One collective sums both, so all ranks get the same answer and save the same step.
        """
        seen = self.dataloader.seen() if isinstance(self.dataloader, PackedDataLoader) else DataSeen()
        if not self._counts_its_batch():
            seen = DataSeen()
        request = float(self.observer.stop_requested())
        sums = torch.tensor([request, *astuple(seen)], dtype=torch.float64, device=self.device)
        dist.all_reduce(sums)
        requests, *data = sums.tolist()
        self.observer.step(replace(self._report, data=DataSeen(*data)))
        return bool(requests)

    def _counts_its_batch(self) -> bool:
        """Return whether this rank counts the data: one of the ranks that read the same batches does."""
        meshes = (self.parallel_dims.get_optional_mesh(axis) for axis in ("pp", "cp", "tp"))
        return all(mesh is None or mesh.get_local_rank() == 0 for mesh in meshes)

    def _load(self) -> int:
        """Load the newest checkpoint or the pretrained weights. Return the step to resume after."""
        if self.model._folder.pretrained:
            self._check_weights()
        self.checkpointer.load(step=self.config.checkpoint.load_step)
        if self._tied is not None:
            self._tied.copy_to_last()
        if self.step:
            self.observer.resumed(self.step)
        return self.step

    def _check_weights(self) -> None:
        """Check names and shapes of the folder's tensors against the model's, with clearer errors than DCP's."""
        folder = self.model._folder
        found = weight_shapes(folder.path, str(folder.path))
        wanted = {name: value for part in self.model_parts for name, value in part.state_dict().items()}
        adapter = self.config.model_spec.state_dict_adapter(self.model_config, None)
        for name, value in adapter.to_hf(wanted).items():
            if name not in found:
                raise UserError(
                    "spec.model.name",
                    f"the safetensors files of {folder.path} lack {name}, which "
                    f"{type(self.model.model).__name__} needs; use a complete model folder",
                )
            if found[name] != tuple(value.shape):
                raise UserError(
                    "spec.model.overrides",
                    f"{name} is {list(found[name])} in the weights but {list(value.shape)} in the model; overrides "
                    "that change a weight's shape need spec.model.initialize: random",
                )

    def _save_if_due(self, *, last: bool) -> None:
        config = self.config.checkpoint
        if not config.enable or config.load_only:
            return
        if not last and self.step % config.interval:
            return
        self.observer.phase("checkpointing")
        begin = time.perf_counter()
        self.checkpointer.save(self.step, last_step=last)
        self.observer.saved(self.step, time.perf_counter() - begin)
        self.observer.phase("training")

    def _validate_if_due(self, *, last: bool) -> bool:
        """Validate if it is due. Return False if a stop request interrupted the validation."""
        if self.validation is None or not self.validation.due(self.step, last=last):
            return True
        begin = time.perf_counter()
        result = self.validation.run()
        if result is not None:
            loss, tokens = result
            self.observer.validated(self.step, loss, tokens, time.perf_counter() - begin)
        self.observer.phase("training")
        return result is not None

    def agreed_to_stop(self) -> bool:
        """Return whether any rank requests a stop: the same answer on all ranks. Collective."""
        request = torch.tensor(int(self.observer.stop_requested()), device=self.device)
        dist.all_reduce(request, op=dist.ReduceOp.MAX)
        return bool(request.item())

    # --- the state of the loop --------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the step and the tokens of all ranks. Upstream saves one rank's tokens, which are wrong on another
        mesh."""
        return {"step": self.step, "ntokens_seen": self.ntokens_seen * self._ranks_that_count()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.step = state_dict["step"]
        self.ntokens_seen = state_dict["ntokens_seen"] // self._ranks_that_count()

    def _ranks_that_count(self) -> int:
        """Return the number of ranks with different tokens: those that the loss is summed over."""
        mesh = self.parallel_dims.get_optional_mesh("loss")
        return 1 if mesh is None else mesh.size()

    # --- one pass ---------------------------------------------------------------------------------------------------

    def post_dataloading_process(
        self, input_dict: dict[str, torch.Tensor], labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
        """Split a batch and its document mask for context parallelism.

        On GPUs, upstream builds and shards a BlockMask. Its sharding supports no other mask. On CPUs, this method
        builds the whole mask and keeps this rank's rows: local queries, all keys (the kernel gathers k and v).
        """
        if self.device.type != "cpu" or not self.parallel_dims.cp_enabled:
            return super().post_dataloading_process(input_dict, labels)
        mask = dense_mask(input_dict["positions"], self.model.sliding_window)
        inputs, labels, extra = Trainer.post_dataloading_process(self, input_dict, labels)
        mesh = self.parallel_dims.get_mesh("cp")
        rows = mask.shape[2] // mesh.size()
        extra["attention_masks"] = mask.narrow(2, mesh.get_local_rank() * rows, rows)
        return inputs, labels, extra

    def forward_backward_step(self, **kwargs: Any) -> torch.Tensor:
        """Run upstream's passes. After the last pass of a step, sum the gradients that FSDP does not sum."""
        self._passes_left -= 1
        last = self._passes_left == 0
        if self._replicas is not None:
            self._replicas.begin_pass(last=last)
        loss = super().forward_backward_step(**kwargs)
        if self._replicas is not None:
            self._replicas.finish_step()
        if self._tied is not None and last:
            self._tied.gather_gradients()
        return loss

    def _find_replicas(self) -> Replicas | None:
        mesh = self.parallel_dims.get_optional_mesh("dp_replicate")
        if mesh is None or not holds_whole_model(self.parallel_dims, self.config.training):
            return None
        return Replicas(self.model, mesh.get_group())


@contextlib.contextmanager
def _upstream_startup() -> Iterator[None]:
    """Disable warnings and measurements of upstream's __init__ that are not needed here.

    Upstream: components/metrics.py ensure_pp_loss_visible warns that LOG_RANK hides the loss (here all stages share
    it). tools/utils.py get_peak_flops runs lspci to distinguish H100 models, and warns if lspci is missing.
    """
    visible, peak = titan.ensure_pp_loss_visible, titan_utils.get_peak_flops
    titan.ensure_pp_loss_visible = lambda **_kwargs: None
    if titan_utils.device_type == "cpu":
        titan_utils.get_peak_flops = lambda _name: math.inf
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="DTensor", category=UserWarning)
            yield
    finally:
        titan.ensure_pp_loss_visible, titan_utils.get_peak_flops = visible, peak
