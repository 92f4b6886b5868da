"""The folder of a run beside its log: its config, checkpoints, snapshots of its averages, and the model it made.

    RUN/checkpoints/000000128000/shard-*.safetensors   network, moments and averages, each rank its part
    RUN/checkpoints/000000128000/checkpoint.json       samples seen, loader state, config, lineage; written last

Checkpoints go through torch.distributed.checkpoint: any number of ranks, sharded or not, reads what any other wrote. No pickle
is written or read.
"""

import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from manifests.errors import MissingFile, UserError
from manifests.order import State
from manifests.plan import json_differences
from train.data.loader import AnyLoader, BlendState
from train.networks.config import FILE, UNET, WEIGHTS, read_card
from train.networks.model import Model, save_model
from train.run.config import EmaConfig, TrainConfig, fixed_settings, power_name
from train.run.optimizer import Ema, Optimizer, Snapshot, mixture
from train.run.parallel import Ranks, whole
from weights.files import save_tensors

FOLDER, DONE = "checkpoints", "checkpoint.json"
ABOUT = ("seen", "steps", "loader", "config")
"""Entries that a resumed run reads."""


class Checkpoints:
    """The checkpoints of a run; one is written in the background while training goes on."""

    def __init__(self, run: Path, ranks: Ranks, keep: int):
        self.folder, self.ranks, self.keep = run / FOLDER, ranks, keep
        # A group of its own: background writes must not meet the collectives of the run.
        self.group: Any = dist.new_group(backend="gloo")
        self._writing: tuple[Future[Any], Path, dict[str, Any]] | None = None

    def latest(self) -> Path | None:
        """The newest complete checkpoint, as the first rank sees it."""
        found = [str(max(whole_ones(self.folder), default=""))]
        dist.broadcast_object_list(found, device=torch.device("cpu"), group=self.group)
        return Path(found[0]) if found[0] else None

    def settle(self) -> None:
        """Mark the checkpoint in writing as complete if it is; called at every step, so that a crash loses little."""
        if self._writing is not None and not self.ranks.any(not self._writing[0].done()):
            self.finish()

    def save(self, tensors: dict[str, Tensor], seen: int, about: dict[str, Any]) -> None:
        """Copy the tensors and write them in the background; the run goes on when they are copied."""
        self.finish()
        place = self.folder / f"{seen:012d}"
        if self.ranks.is_first:
            for part in self.folder.glob("[0-9]*/"):
                # The run holds the lock on its folder: an incomplete checkpoint is left over from an interrupted save.
                if part == place or not (part / DONE).exists():
                    shutil.rmtree(part)
            place.mkdir(parents=True)
        self.ranks.wait()
        writer = HuggingFaceStorageWriter(str(place), save_distributed=True)
        writing: Any = async_save(tensors, storage_writer=writer, process_group=self.group)
        self._writing = writing, place, about

    def finish(self) -> None:
        """Wait for the checkpoint in writing, mark it as complete, and delete old ones."""
        if self._writing is None:
            return
        writing, place, about = self._writing
        self._writing = None
        error = writing.exception()
        # All ranks stop together: one that raised alone would leave the others waiting for it.
        if self.ranks.any(error is not None):
            # Not an Exception; it lists the ranks and their tracebacks.
            reason = str(error).splitlines()[-1].strip() if error is not None else "on another rank"
            raise OSError(f"{place} could not be written ({reason})") from error
        if self.ranks.is_first:
            scratch = place / f"{DONE}.part"
            with scratch.open("w") as file:
                file.write(json.dumps(about, indent=1))
                file.flush()
                os.fsync(file.fileno())
            scratch.rename(place / DONE)
            for old in sorted(whole_ones(self.folder))[: -self.keep]:
                # Incomplete from here on, whatever interrupts this.
                (old / DONE).unlink()
                shutil.rmtree(old)

    def load(self, place: Path, tensors: dict[str, Tensor]) -> None:
        """Fill the tensors in place.

        Raises:
            ValueError: the checkpoint holds others.
        """
        reader = HuggingFaceStorageReader(str(place))
        metadata: Any = reader.read_metadata().state_dict_metadata
        stored = {name: tuple(about.size) for name, about in metadata.items()}
        if wrong := [n for n, t in tensors.items() if stored.get(n) != tuple(t.shape)] or sorted(
            stored.keys() - tensors
        ):
            raise UserError(
                f"{place} is of another model: {wrong[0]} is {stored.get(wrong[0], 'not there')}; train into another folder"
            )
        load(tensors, storage_reader=reader, process_group=self.group)


def whole_ones(folder: Path) -> list[Path]:
    return [done.parent for done in folder.glob(f"*/{DONE}")]


def about_checkpoint(place: Path) -> dict[str, Any]:
    """The contents of checkpoint.json; raises UserError if it is damaged."""
    try:
        about = json.loads((place / DONE).read_text())
        # Older checkpoints have neither files nor a history.
        return {"files": {}, "history": [], **about, **{name: about[name] for name in ABOUT}}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{place / DONE} is damaged ({type(error).__name__}: {error}); remove {place}, an older one is used then"
        ) from error


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
            full = _full_name(name, parts)
            averaged[full] = averaged.get(full, torch.zeros(())) + weight.float() * share
    for full, weight in averaged.items():
        part, name = full.split(".", 1)
        parts[part][name] = weight
    shutil.copytree(run / MODEL, dest, dirs_exist_ok=True)
    for part in {full.split(".", 1)[0] for full in averaged}:
        save_tensors(parts[part], dest / part / WEIGHTS)


def named_tensors(network: nn.Module, optimizer: Optimizer, ema: Ema) -> dict[str, Tensor]:
    """Everything that a checkpoint holds; the tensors themselves, which loading fills."""
    return {
        **{f"network.{name}": weight.data for name, weight in network.named_parameters()},
        **{f"adam.{name}": moment for name, moment in optimizer.moments.items()},
        **{f"ema.{n}.{k}": weight for n, average in ema.averages.items() for k, weight in average.items()},
    }


def lineage(
    config: TrainConfig, state: State | BlendState, files: dict[str, str], history: tuple[str, ...]
) -> dict[str, Any]:
    """The entries of checkpoint.json that state how it came about."""
    return {
        "loader": state.to_json(),
        "config": config.as_json(),
        "files": files,
        "history": history,
        "dataset": state.dataset,
        "selection": state.selection,
        "commit": commit(),
        "torch": torch.__version__,
    }


@cache
def commit() -> str:
    """The git commit of this code, with a + if it was changed since; empty if it is no checkout, or git is not here."""
    command = ["git", "describe", "--always", "--dirty=+"]
    try:
        said = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return said.stdout.strip()


def _full_name(weight: str, parts: Mapping[str, object]) -> str:
    """The full name of a weight of the network; names without a part are those of the UNet, as older snapshots have them."""
    return weight if weight.split(".")[0] in parts else f"{UNET}.{weight}"


@dataclass(frozen=True)
class StartState:
    """State in which a run starts."""

    seen: int = 0
    """Samples that were trained on before."""
    checkpoint: Path | None = None
    """The checkpoint that was loaded."""
    history: tuple[str, ...] = ()
    """Events of the run before, as the model's description states them."""
    events: tuple[str, ...] = ()
    """Events that this start adds to the history."""


def resume(
    config: TrainConfig,
    checkpoints: Checkpoints,
    tensors: dict[str, Tensor],
    optimizer: Optimizer,
    loader: AnyLoader,
    files: dict[str, str],
) -> StartState:
    """Load the newest checkpoint of the run or, if it has none, the one it branches from.

    Raises:
        UserError: the checkpoint is of a run with other settings, files or data, which only a branch may have; or it has
            seen more samples than are asked for.
        FileNotFoundError: there is no checkpoint to branch from.
    """
    checkpoint = checkpoints.latest()
    branches = checkpoint is None and config.branch != ""
    if branches:
        checkpoint = Path(config.branch)
        if not (checkpoint / DONE).is_file():
            raise MissingFile(f"--branch is {checkpoint}, which has no {DONE}; give a checkpoint, RUN/checkpoints/N")
    if checkpoint is None:
        return StartState()
    about = about_checkpoint(checkpoint)
    seen, saved, here = about["seen"], about["config"], config.as_json()
    if seen >= config.samples + config.loader.batch:
        raise UserError(f"{checkpoint} has seen {seen} samples, --samples is {config.samples}; give more")
    old, new = fixed_settings(saved), fixed_settings(here)
    # What is not recorded, in checkpoints of older versions, cannot be compared.
    old_files = {**files, **about["files"]}
    events: list[str] = []
    if branches:
        differ = differences({**old, "files": old_files}, {**new, "files": files}, most=None)
        events.append(f"branched from {checkpoint} at {seen} samples{differ and ': '}{differ}")
    else:
        if old != new:
            other = old["precision"] != new["precision"]
            those = f"--precision {old['precision']}" if other else "those"
            raise UserError(
                f"{checkpoint} is of a run with other settings ({differences(old, new)}); give {those}, another --out, or "
                f"begin another run with --branch {checkpoint}"
            )
        if changed := [name for name in old_files if old_files[name] != files.get(name)]:
            option = changed[0].replace("_", "-")
            raise UserError(f"{checkpoint} was trained with other weights of --{option}; give those, or another --out")
        if saved["samples"] != config.samples:
            events.append(f"--samples {config.samples} instead of {saved['samples']} from {seen} samples on")
    try:
        if note := loader.resume(about["loader"]):
            events.append(note)
    except UserError:
        if not branches:
            raise
        events.append("the data differ from those of the branch's origin, their order begins at its start")
    checkpoints.load(checkpoint, tensors)
    optimizer.steps = about["steps"]
    return StartState(seen, checkpoint, (*about["history"], *events), tuple(events))


def differences(there: Any, here: Any, most: int | None = 3) -> str:
    """The settings that differ, at most so many, with the values of both."""
    return ", ".join(f"{at} was {a}, is {b}" for at, a, b in json_differences(there, here)[:most])
