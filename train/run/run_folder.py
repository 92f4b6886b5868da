"""The files of a run beside its log and checkpoints: its config, snapshots of its averages, and the model it made."""

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from manifests.errors import MissingFile, UserError
from train.networks.config import FILE, UNET, WEIGHTS, read_card
from train.networks.model import Model, full_name, save_model
from train.run.config import EmaConfig, TrainConfig, power_name
from train.run.ema import Ema, Snapshot, mixture
from train.run.parallel import Ranks, whole
from weights.tensors import save_tensors

CONFIG, MODEL, BEST, SNAPSHOTS, LOCK = "config.json", "model", "best", "ema", "run.lock"


def write_config(config: TrainConfig, run: Path) -> None:
    """Every setting of the run, resolved."""
    run.mkdir(parents=True, exist_ok=True)
    (run / CONFIG).write_text(json.dumps(config.as_json(), indent=1) + "\n")


@contextmanager
def locked(run: Path, ranks: Ranks) -> Iterator[None]:
    """Hold the folder of a run: the first rank locks a file in it, which the kernel frees when this process ends.

    Raises:
        UserError: another trainer holds it; raised on every rank.
    """
    run.mkdir(parents=True, exist_ok=True)
    with (run / LOCK).open("w") as file:
        taken = False
        if ranks.is_first:
            try:
                # Of this process alone: forked workers, which may outlive it for seconds, do not inherit it.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                taken = True
        if ranks.any(taken):
            raise UserError(f"another process trains into {run}; wait for it, stop it, or give another --out")
        yield


def snapshot(ema: Ema, run: Path, seen: int, ranks: Ranks) -> None:
    """Keep the power-function averages as they stand, in half precision, so that others can be rebuilt."""
    for length in ema.config.sigma_rel:
        weights = gathered(ema.averages[power_name(length)])
        if ranks.is_first:
            # Weights of the UNet keep the bare names that diffusers gives them.
            weights = {name.removeprefix(f"{UNET}."): weight for name, weight in weights.items()}
            file = run / SNAPSHOTS / f"{seen:012d}-{length:g}.safetensors"
            file.parent.mkdir(exist_ok=True)
            save_tensors({k: w.half() for k, w in weights.items()}, scratch := file.with_name(f"{file.name}.part"))
            scratch.rename(file)


def export(model: Model, ema: Ema, folder: Path, ranks: Ranks) -> None:
    """Write the model with its first average, or with its weights if no average is kept; replaces what is there."""
    averages = next(iter(ema.averages.values()), {})
    weights = gathered({**dict(model.network.named_parameters()), **averages})
    if ranks.is_first:
        scratch = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(scratch, ignore_errors=True)
        save_model(model, scratch, weights)
        if folder.exists():
            shutil.rmtree(folder)
        scratch.rename(folder)
    ranks.wait()


def best_loss(run: Path) -> float:
    """The validation loss of the model in `run/best`; infinite if there is none."""
    if not (run / BEST / FILE).is_file():
        return float("inf")
    loss = read_card(run / BEST)[2].validation_loss
    return float("inf") if loss is None else loss


def gathered(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights that may be spread over ranks, as whole tensors on the CPU."""
    return {name: whole(weight.detach()).cpu() for name, weight in weights.items()}


def average(run: Path, dest: Path, sigma_rel: float) -> None:
    """Write the model whose weights are averaged over another length than was kept, rebuilt from all snapshots.

    Raises:
        FileNotFoundError: the run has no model or no snapshots.
        ValueError: no average has that length.
    """
    EmaConfig((sigma_rel,))
    read_card(run / MODEL)
    files = sorted((run / SNAPSHOTS).glob("*.safetensors"))
    if not files:
        raise MissingFile(f"{run} has no snapshots of averages; they come with its checkpoints")
    snapshots = [Snapshot(float(length), int(seen)) for seen, length in (file.stem.split("-", 1) for file in files)]
    shares = mixture(snapshots, sigma_rel, max(s.seen for s in snapshots))
    parts = {file.parent.name: load_file(file) for file in (run / MODEL).glob(f"*/{WEIGHTS}")}
    averaged: dict[str, Tensor] = {}
    for file, share in zip(files, shares.tolist(), strict=True):
        for name, weight in load_file(file).items():
            full = full_name(name, parts)
            averaged[full] = averaged.get(full, torch.zeros(())) + weight.float() * share
    for full, weight in averaged.items():
        part, name = full.split(".", 1)
        parts[part][name] = weight
    shutil.copytree(run / MODEL, dest, dirs_exist_ok=True)
    for part in {full.split(".", 1)[0] for full in averaged}:
        save_tensors(parts[part], dest / part / WEIGHTS)
