"""torchtitan's metrics processor, reduced to producing StepReports.

Upstream (components/metrics.py) logs to the console, TensorBoard and W&B. Its throughput is per device, its MFU assumes
an A100 for unknown devices, and under pipeline parallelism its loss is -1 on all stages but the last.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torchtitan.components.metrics import MetricsProcessor
from torchtitan.tools.utils import device_type

from hftitan_trainer.process.errors import NonFiniteLossError
from hftitan_trainer.telemetry.observer import StepReport

_PEAK_OF_A100 = 312e12


class StepMetrics(MetricsProcessor):
    """Converts what `train_step` logs to a StepReport for `on_step`."""

    @dataclass(kw_only=True, slots=True)
    class Config(MetricsProcessor.Config):
        pass

    on_step: Callable[[StepReport], None]
    steps: int
    started: float = 0.0

    def begin_step(self) -> None:
        """Start the clock of a step."""
        self.started = time.perf_counter()
        self.ntokens_since_last_log = 0
        self.data_loading_times.clear()
        if device_type == "cuda":
            self.device_memory_monitor.reset_peak_stats()

    def log(
        self,
        step: int,
        global_avg_loss: float,
        global_max_loss: float,
        grad_norm: float,
        extra_metrics: dict[str, Any] | None = None,
    ) -> None:
        """Report a step. Every rank calls it at the end of `train_step`. Raises NonFiniteLossError on all ranks."""
        loss, max_loss = self.share_loss(global_avg_loss, global_max_loss)
        if not math.isfinite(loss):
            raise NonFiniteLossError(step, loss)
        extra = extra_metrics or {}
        seconds = time.perf_counter() - self.started
        dims = self.parallel_dims
        tokens = self.ntokens_since_last_log * dims.dp_replicate * dims.dp_shard
        per_second = tokens / seconds
        mfu = None
        if self._peak_known():
            mfu = self.num_flops_per_token * per_second / dims.world_size / self.gpu_peak_flops
        report = StepReport(
            step=step,
            steps=self.steps,
            loss=loss,
            max_loss=max_loss,
            grad_norm=grad_norm,
            lr=next((value for key, value in extra.items() if key.startswith("lr/")), 0.0),
            tokens_per_second=per_second,
            tokens_seen=int(extra.get("n_tokens_seen", 0)),
            step_seconds=seconds,
            data_seconds=sum(self.data_loading_times),
            mfu=mfu,
            memory_bytes=self._memory(),
        )
        self.on_step(report)

    def share_loss(self, loss: float, max_loss: float) -> tuple[float, float]:
        """Return the loss of the last pipeline stage on every stage. Collective over the stages of a pipeline."""
        mesh = self.parallel_dims.get_optional_mesh("pp")
        if mesh is None:
            return loss, max_loss
        group = mesh.get_group()
        values = torch.tensor([loss, max_loss], dtype=torch.float64, device=device_type)
        dist.broadcast(values, src=dist.get_global_rank(group, mesh.size() - 1), group=group)
        loss, max_loss = values.tolist()
        return loss, max_loss

    def _peak_known(self) -> bool:
        """Return whether the device's peak is known. Upstream (tools/utils.py get_peak_flops) uses the A100's for
        unknown devices."""
        name = self.device_memory_monitor.device_name
        return device_type == "cuda" and ("A100" in name or self.gpu_peak_flops != _PEAK_OF_A100)

    def _memory(self) -> int:
        gib = self.device_memory_monitor.get_peak_stats().max_reserved_gib
        return int(gib * 2**30)
