"""Checkpoints of a run: every tensor through torch.distributed.checkpoint as safetensors, everything else as JSON.

    RUN/checkpoints/000000128000/shard-*.safetensors   network, moments and averages, each rank its part
    RUN/checkpoints/000000128000/checkpoint.json       samples seen, loader state, config, lineage; written last

Any number of ranks, sharded or not, reads what any other wrote. No pickle is written or read.
"""

import json
import os
import shutil
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from manifests.errors import UserError
from train.run.parallel import Ranks

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
