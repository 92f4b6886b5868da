"""The option --device of all commands, its syntax and the check that the device exists; and the cores of this process."""

import math
import os
import re
from pathlib import Path

from manifests.errors import UserError

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Where a container of Linux finds its share of processor time: microseconds, and the period in which it may take them."""


def usable_cores() -> int:
    """The number of cores that this process may use, which in a container may be fewer than the machine has."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if CPU_QUOTA.exists():
        quota, _, period = CPU_QUOTA.read_text().partition(" ")
        if quota != "max":
            cores = min(cores, math.ceil(int(quota) / int(period)))
    return max(cores, 1)


def check_device(device: str, gpus_per_worker: float = 0.0) -> None:
    """Check the text of --device, without looking for the device.

    Raises:
        UserError: it is not cpu, cuda or cuda:N, or it names one GPU while Ray gives each worker its own.
    """
    if not re.fullmatch(r"cpu|cuda(:[0-9]+)?", device):
        raise UserError(f"--device is {device!r}; it must be cpu, cuda, or cuda:N for the GPU of index N")
    if ":" in device and gpus_per_worker:
        raise UserError(
            f"--device is {device}, but with --gpus-per-worker every worker is given its GPUs; give --device cuda"
        )


def require_device(device: str) -> None:
    """Raise UserError unless torch can use the device in this process."""
    if device == "cpu":
        return
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        raise UserError(f"--device is {device}, but this machine has no usable CUDA device; use --device cpu")
    if gpu_index(device) >= count:
        raise UserError(f"--device is {device}, but this machine has {count} CUDA devices, from cuda:0 on")


def gpu_index(device: str) -> int:
    """The index of the GPU that `cuda` or `cuda:N` names."""
    return int(device.partition(":")[2] or 0)


def count_gpus() -> int:
    """The number of GPUs that this process can use."""
    import torch

    return torch.cuda.device_count()


def oom_kills() -> int:
    """How many processes the kernel has killed on this machine for want of memory; 0 where it does not count them."""
    counters = Path("/proc/vmstat")
    found = re.search(r"^oom_kill (\d+)$", counters.read_text(), re.MULTILINE) if counters.exists() else None
    return int(found[1]) if found else 0
