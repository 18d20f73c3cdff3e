"""Computes the loss on held-out data: the same rows on every mesh, without side effects on the training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.fsdp import FSDPModule
from torchtitan.distributed import utils as dist_utils

from hftitan_api.wire import TrainerSpec
from hftitan_trainer.data.layout import rows_of_a_step
from hftitan_trainer.data.loader import Batch, dataloader_config
from hftitan_trainer.data.packing import IGNORE_INDEX
from hftitan_trainer.process.errors import UserError
from hftitan_trainer.telemetry.observer import Observer

if TYPE_CHECKING:
    from torchtitan.trainer import Trainer

FIELD = "spec.validation.dataset"


class Validation:
    """Validates `trainer` by spec.validation. Opens the data at once, so that errors in it show early."""

    def __init__(
        self, trainer: Trainer, spec: TrainerSpec, observer: Observer, agreed_to_stop: Callable[[], bool]
    ) -> None:
        assert spec.validation is not None
        self._trainer = trainer
        self._observer = observer
        self._agreed_to_stop = agreed_to_stop
        self._spec = spec.validation
        dims = trainer.parallel_dims
        self._batch_mesh = dims.get_mesh("batch") if dims.dp_enabled else None
        self._loader = dataloader_config(
            spec.validation.dataset,
            rows=rows_of_a_step(spec),
            seed=spec.training.seed,
            field=FIELD,
            infinite=False,
        ).build(
            dp_world_size=1 if self._batch_mesh is None else self._batch_mesh.size(),
            dp_rank=0 if self._batch_mesh is None else self._batch_mesh.get_local_rank(),
            tokenizer=trainer.tokenizer,
            seq_len=spec.training.seq_len,
            local_batch_size=1 if dims.pp_enabled else spec.training.local_batch_size,
        )

    def due(self, step: int, *, last: bool) -> bool:
        return last or step % self._spec.interval == 0

    def run(self) -> tuple[float, int] | None:
        """Return (mean loss, number of tokens), or None if a rank requests a stop. Collective: all ranks must call
        it."""
        trainer = self._trainer
        # Upstream counts the tokens of every batch it prepares as trained.
        seen = trainer.ntokens_seen
        for part in trainer.model_parts:
            part.eval()
        try:
            return self._run()
        finally:
            trainer.ntokens_seen = seen
            for part in trainer.model_parts:
                part.train()
                # Release the weights that the forward pass gathered: there is no backward pass that would.
                for module in part.modules():
                    if isinstance(module, FSDPModule):
                        module.reshard()

    @torch.no_grad()
    def _run(self) -> tuple[float, int] | None:
        trainer = self._trainer
        total = torch.zeros((), dtype=torch.float64, device=trainer.device)
        tokens = 0
        batches = iter(self._loader)
        try:
            for _ in range(self._spec.steps):
                self._observer.phase("validating")  # shows progress while the step number stays the same
                groups = [self._group(batches) for _ in range(trainer.gradient_accumulation_steps)]
                count = self._over_ranks(sum(int((y != IGNORE_INDEX).sum()) for group in groups for _, y in group))
                if count == 0:  # end of the data, on all ranks
                    break
                if self._agreed_to_stop():
                    return None
                for group in groups:
                    total += self._sum_of_losses(group)
                tokens += count
        finally:
            batches.close()  # type: ignore[attr-defined]
            self._loader.rewind()
        if tokens == 0:
            raise UserError(FIELD, "has nothing to learn: no document has at least two tokens")
        mesh = trainer.parallel_dims.get_optional_mesh("loss")
        loss = float(total) if mesh is None else dist_utils.dist_sum(total, mesh)
        return trainer.metrics_processor.share_loss(loss, loss)[0] / tokens, tokens

    def _group(self, batches: Iterator[Batch]) -> list[Batch]:
        """Return the microbatches of one pass."""
        device = self._trainer.device
        group = []
        for _ in range(self._trainer.num_pipeline_parallel_microbatches):
            inputs, labels = next(batches)
            group.append(({key: value.to(device) for key, value in inputs.items()}, labels.to(device)))
        return group

    def _over_ranks(self, tokens: int) -> int:
        if self._batch_mesh is None:
            return tokens
        count = torch.tensor(tokens, dtype=torch.int64, device=self._trainer.device)
        return int(dist_utils.dist_sum_tensor(count, self._batch_mesh))

    def _sum_of_losses(self, group: list[Batch]) -> torch.Tensor:
        """Return the sum over this rank's tokens. On a pipeline, only the last stage's result is valid."""
        trainer = self._trainer
        prepared: list[tuple[torch.Tensor, torch.Tensor, dict[str, Any]]] = [
            trainer.post_dataloading_process(inputs, labels) for inputs, labels in group
        ]
        with trainer.train_context():
            if not trainer.parallel_dims.pp_enabled:
                inputs, labels, extra = prepared[0]
                loss, _ = trainer.loss_fn(trainer.model_parts[0](inputs, **extra), labels)
                return loss
            losses: list[torch.Tensor] | None = [] if trainer.pp_has_last_stage else None
            trainer.pp_schedule.eval(
                arg_mbs=[(inputs,) for inputs, _, _ in prepared] if trainer.pp_has_first_stage else None,
                kwarg_mbs=[extra for _, _, extra in prepared],
                target_mbs=[labels for _, labels, _ in prepared] if trainer.pp_has_last_stage else None,
                losses=losses,
                return_outputs=False,
            )
        return torch.stack(losses).sum().to(trainer.device) if losses else torch.zeros((), device=trainer.device)
