"""Training runs that take seconds, alone and on several processes."""

import multiprocessing
import os
import resource
import socket
import traceback
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from tiny_vae import write_vae

from manifests.dataset import Dataset
from train.data.config import LoaderConfig
from train.data.sampling import MultiView
from train.families.spinmeround.config import SpinMeRoundConfig
from train.networks.config import IdentityShape, RayMaps, UNetShape
from train.run.config import OptimizerConfig, TrainConfig, ValidationConfig

context = multiprocessing.get_context("forkserver")
# What takes seconds to import is imported once, by the process from which all others are forked.
context.set_forkserver_preload(["train.run.trainer", "diffusers.models.unets.unet_2d_condition"])

SHAPE = SpinMeRoundConfig(
    UNetShape(channels=(16, 16), attention=(True, True), blocks=1, heads=2, context=512, groups=4),
    RayMaps("geometric", 1, 1),
    IdentityShape("token", 512),
    sigma_max=80.0,
)


def tiny_config(dataset: Dataset, folder: Path, out: str = "run", **changes) -> TrainConfig:
    """Eight steps of four scenes of three views."""
    vae = folder / "vae"
    if not vae.exists():
        write_vae(vae)
    loader = LoaderConfig(dataset.storage.url, MultiView(views=3, conditions=(0, 1)), batch=4, tail="exact", workers=0)
    fields = {
        "model": SHAPE,
        "vae": str(vae),
        "optim": OptimizerConfig(lr=1e-2, warmup=8),
        "validation": ValidationConfig(),
        "samples": 32,
        "latents": False,
        "micro": 4,
        "precision": "fp32",
        "log_every": 1,
        "save_every": 16,
        "out": str(folder / out),
    }
    return replace(TrainConfig(loader, SHAPE), **{**fields, **changes})


def weights(config: TrainConfig) -> dict[str, torch.Tensor]:
    """Of the model that a run made."""
    return load_file(Path(config.out) / "model" / "unet" / "diffusion_pytorch_model.safetensors")


def logged(config: TrainConfig, name: str = "loss") -> dict[int, float]:
    """A number of the log by the samples seen; the last one counts if a step was done again."""
    import json

    lines = [json.loads(line) for line in (Path(config.out) / "log.jsonl").read_text().splitlines()]
    return {line["samples"]: line[name] for line in lines if name in line}


def on_ranks(config: TrainConfig, world: int, without_room: int | None = None) -> None:
    """Run on several processes, as torchrun would start them; raises what all of them raised.

    The rank `without_room` cannot write files of more than a few kilobytes, as if its disk were full.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    errors = context.Queue()
    ranks = [
        context.Process(target=_rank, args=(config, rank, world, port, errors, rank == without_room))
        for rank in range(world)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    if any(process.exitcode for process in ranks):
        raise RuntimeError("".join(errors.get(timeout=5) for process in ranks if process.exitcode))


def _rank(config: TrainConfig, rank: int, world: int, port: int, errors, without_room: bool) -> None:
    if without_room:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    try:
        alone(config)
    except BaseException:
        errors.put(traceback.format_exc())
        raise


def alone(config: TrainConfig) -> None:
    """Run in this process, with one thread."""
    from train.run.trainer import run

    torch.set_num_threads(1)
    run(config)
