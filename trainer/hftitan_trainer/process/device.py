"""Sets the device that torchtitan trains on: CUDA or the CPU.

torchtitan 0.3 looks for an accelerator once, when `torchtitan.tools.utils` is imported, and uses "cuda" if it finds
none. Every other module copies the result. So `use_device` must run before anything imports torchtitan.
"""

from __future__ import annotations

import functools
import os
import sys
from types import ModuleType, SimpleNamespace
from typing import Any, Literal

from hftitan_trainer.process import slim
from hftitan_trainer.process.errors import UserError

DEVICE_MODULE = "torchtitan.tools.utils"
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Parameters of mallopt(3)."""


def use_device(device: Literal["gpu", "cpu"]) -> str:
    """Make torchtitan train on `device`. Return torch's name for it ("cuda" or "cpu").

    Raises UserError if `device` is "gpu" and torch finds no GPU, RuntimeError if torchtitan is already imported for
    another device.
    """
    import torch

    wanted = "cuda" if device == "gpu" else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "spec.mesh.device",
            "gpu, but torch finds no CUDA device in this container; check the driver and spec.pod.gpuResource, or set "
            "device: cpu",
        )
    slim.install()
    loaded = sys.modules.get(DEVICE_MODULE)
    if loaded is not None:
        if loaded.device_type != wanted:
            raise RuntimeError(f"torchtitan was already imported for {loaded.device_type}, not for {wanted}")
        return wanted
    if wanted == "cpu":
        keep_freed_memory()
        _import_for_cpu()
    return wanted


def _import_for_cpu() -> None:
    """Import torchtitan's device discovery while torch is patched to report "cpu".

    Upstream: torchtitan/tools/utils.py get_device_info falls back to "cuda" when there is no accelerator.
    """
    import torch._utils as torch_utils

    found, module_of = torch_utils._get_available_device_type, torch_utils._get_device_module
    torch_utils._get_available_device_type = lambda: "cpu"
    torch_utils._get_device_module = lambda _device_type: cpu_device_module()
    try:
        __import__(DEVICE_MODULE)
    finally:
        torch_utils._get_available_device_type, torch_utils._get_device_module = found, module_of


def keep_freed_memory() -> None:
    """Make glibc keep large freed blocks instead of unmapping them.

    Every step frees and allocates gigabytes of activations and gradients, and the kernel zeroes each page again: half
    of all page faults and 3% of a step's time (SmolLM2-135M, 256 tokens).
    """
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # only glibc has it
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


@functools.cache
def cpu_device_module() -> ModuleType:
    """Return torch.cpu with the functions that torchtitan expects of an accelerator's module.

    Upstream: components/metrics.py DeviceMemoryMonitor (name, capacity, peak statistics) and tools/utils.py
    get_local_device (device_count: one device that all ranks of the machine share).
    """
    import torch

    module = ModuleType("hftitan_cpu_device")
    module.__dict__.update({name: value for name, value in vars(torch.cpu).items() if not name.startswith("__")})
    additions: dict[str, Any] = {
        "get_device_name": lambda _device=None: "cpu",
        "get_device_properties": lambda _device=None: SimpleNamespace(name="cpu", total_memory=memory_bytes()),
        "memory_stats": lambda _device=None: {
            "active_bytes.all.peak": peak_rss_bytes(),
            "reserved_bytes.all.peak": peak_rss_bytes(),
        },
        "reset_peak_memory_stats": lambda _device=None: None,
        "empty_cache": lambda: None,
        "set_device": lambda _device: None,
        "device_count": lambda: 1,
        # torch.cpu returns "cpu", but distributed/utils.py set_pg_timeouts passes it to barrier(device_ids=...) as a
        # number.
        "current_device": lambda: 0,
    }
    module.__dict__.update(additions)
    return module


def memory_bytes() -> int:
    """Return the physical memory of this machine, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def peak_rss_bytes() -> int:
    """Return the largest resident set size of this process so far, in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1024 if sys.platform != "darwin" else 1)
