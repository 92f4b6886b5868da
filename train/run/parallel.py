"""Several processes as one trainer: ranks, the distribution of the network, and the few values that all must agree on.

The contract is torchrun's: RANK, WORLD_SIZE and LOCAL_RANK in the environment; Ray Train, which initialises the process
group itself, keeps it too.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from jobs.devices import gpu_index, require_device
from manifests.errors import UserError
from manifests.order import check_ranks
from train.diffusion.config import Precision
from train.networks.model import precision_line, resolve_precision

TIMEOUT = timedelta(minutes=30)
"""Timeout of collectives: the first step compiles, and rank 0 writes pictures while the others wait."""


@dataclass(frozen=True)
class Ranks:
    """This process among all of them."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def described(self) -> str:
        """The number of ranks and the type of their device."""
        return f"{self.world} {'ranks' if self.world > 1 else 'rank'} on {self.device.type}"

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all ranks."""
        dist.all_reduce(values := values.clone())
        return values / self.world

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank; reduced on the CPU, for a GPU would have to finish its step first."""
        dist.all_reduce(found := torch.tensor(float(flag)), dist.ReduceOp.MAX)
        return bool(found)

    def wait(self) -> None:
        dist.barrier()


@contextmanager
def process_group(device: str) -> Iterator[Ranks]:
    """Join the other processes that torchrun or Ray started, if there are any.

    Raises:
        UserError: the device is a GPU and this rank has none of its own; nothing runs on the CPU instead.
    """
    rank, world, local = (int(os.environ.get(n, d)) for n, d in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
    if on_gpu := device != "cpu":
        if ":" in device and world > 1:
            raise UserError(
                f"--device is {device}, but each of {world} processes takes a GPU of its own; give --device cuda"
            )
        require_device(device)
        if ":" in device:
            local = gpu_index(device)
        check_devices(local, torch.cuda.device_count())
        torch.cuda.set_device(local)
    # gloo in addition to nccl, because checkpoints are written in the background from the CPU.
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    if own := not dist.is_initialized():
        # A single process is a group of one, so that other code needs no special case.
        store: Any = dist.HashStore  # pyright: ignore[reportPrivateImportUsage]
        alone: Any = {"store": store(), "rank": 0, "world_size": 1} if world == 1 else {}
        dist.init_process_group(backend, timeout=TIMEOUT, **alone)
    try:
        yield Ranks(rank, world, torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu"))
    finally:
        if own:
            dist.destroy_process_group()


def check_devices(local: int, devices: int) -> None:
    """Raise UserError if the rank `local` of this machine has no GPU of its own."""
    if local >= devices:
        raise UserError(
            f"rank {local} of this machine has no GPU, there are {devices}; start at most {devices} processes on it "
            f"(torchrun --nproc-per-node {devices})"
        )


def distribute(network: nn.Module, ranks: Ranks, sharded: bool, bf16: bool) -> Callable[..., Any]:
    """The network as all ranks run it: FSDP2's shards, DDP's copies, or itself if there is one rank.

    Blocks are compiled, and set to checkpoint their activations, before this: the wrapped modules are those that run.
    """
    if sharded:
        # Inputs stay in single precision: noise levels and ray maps need it.
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        mesh = dist.device_mesh.init_device_mesh(ranks.device.type, (ranks.world,))
        options: dict[str, Any] = {"mesh": mesh, **({"mp_policy": policy} if bf16 else {})}
        for block in blocks(network):
            fully_shard(block, **options)
        # A root would keep its weights gathered after validation, in which the averages took their place.
        fully_shard(network, reshard_after_forward=True, **options)
        return network
    if ranks.world == 1:
        return network
    on_gpu = ranks.device.type == "cuda"
    return DistributedDataParallel(network, device_ids=[ranks.device] if on_gpu else None, gradient_as_bucket_view=True)


def blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The blocks of a network that are sharded one by one: those of each UNet among its parts, other parts as a whole."""
    for part in network.children():
        unet: Any = part
        if hasattr(part, "down_blocks"):
            yield from (*unet.down_blocks, unet.mid_block, *unet.up_blocks)
        else:
            yield part


@contextmanager
def accumulating(network: Callable[..., Any], last: bool) -> Iterator[None]:
    """Gradients of several micro-batches are summed over the ranks once, with the last of them."""
    if isinstance(network, FSDPModule):
        network.set_requires_gradient_sync(last)
        yield
    elif isinstance(network, DistributedDataParallel) and not last:
        with network.no_sync():
            yield
    else:
        yield


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be spread over ranks, as a whole; all ranks must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def micro_batch(batch: int, most: int, world: int) -> int:
    """The size of every micro-batch: the largest divisor of a rank's share of the batch that is at most `most`.

    Raises:
        UserError: the batch does not divide among the ranks.
    """
    check_ranks(batch, 0, world)
    share = batch // world
    return max(size for size in range(1, min(most, share) + 1) if share % size == 0)


def common_precision(precision: Precision, ranks: Ranks) -> tuple[Precision, str]:
    """The precision of all ranks, and a line that states it; auto is bf16 only if every rank has bf16."""
    own, line = resolve_precision(precision, ranks.device), precision_line(precision, ranks.device)
    common = "fp32" if ranks.any(own == "fp32") else "bf16"
    if common != own:
        line = "precision: fp32 (the device of another rank has no bf16 instructions)"
    return common, line
