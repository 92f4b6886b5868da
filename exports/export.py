"""`spinset export`: copies of a dataset in the formats of other people's tools.

An export is made in DEST.partial and renamed when it is whole, so whoever finds DEST finds all of it. The same command
resumes: export.json says what the folder is going to be, and .done which identities are in it.
"""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Protocol, runtime_checkable

from exports.config import SHARDED, UNPACKED, ExportConfig
from exports.pack import copy_shards
from jobs.pool import Event
from jobs.progress import JobProgress
from manifests.dataset import Dataset
from manifests.errors import UserError
from manifests.keep import Keep, KeptIdentity, choose, kept_identities

RECORD, DONE = "export.json", ".done"


@runtime_checkable
class Layout(Protocol):
    """A format with one file per picture; it is made of the dataset, what is kept of it, and the folder of the export.

    A sharded format is a function of the `Dataset` that was copied: it yields the names and contents of the files to add.
    """

    def files(self, identity: KeptIdentity) -> Iterator[tuple[str, bytes]]:
        """The names and contents of the files of one identity."""
        ...

    def finish(self, root: Path) -> Iterator[tuple[str, Iterable[bytes]]]:
        """The names and contents of the files about all identities, in pieces."""
        ...


def export(config: ExportConfig) -> str:
    """Make an export, and say in a line what it holds.

    Raises:
        ValueError: the dataset is not complete or does not suit the format, or DEST holds something else.
    """
    dataset, dest = Dataset(config.out), Path(config.dest).absolute()
    keep = choose(dataset, config.selection, config.identities)
    layout = resolve_name(UNPACKED[config.format])(dataset, keep, dest) if config.format in UNPACKED else None
    record = _record(config, dataset, keep)
    partial = _claim(dest, record)
    if partial is None:
        return f"{dest}: is this export already"
    if layout is not None:
        _write_heads(dataset, keep, layout, partial)
    else:
        copy = copy_shards(dataset, keep, partial)
        for name, data in resolve_name(SHARDED[config.format])(copy):
            _write(partial / name, [data])
    _write(partial / RECORD, [record])
    (partial / DONE).unlink(missing_ok=True)
    # Once for all: an fsync per picture costs more than the picture.
    os.sync()
    partial.replace(dest)
    return f"{dest}: {len(keep.identities)} identities for {config.format}"


def _record(config: ExportConfig, dataset: Dataset, keep: Keep) -> bytes:
    """What an export is made of; equal records, equal exports."""
    selection = keep.selection and {"name": keep.selection.name, "sha256": keep.selection.fingerprint}
    fields: dict[str, Any] = {
        "format": config.format,
        "dataset": dataset.plan.fingerprint,
        "selection": selection,
        "identities": config.identities,
    }
    return (json.dumps(fields, indent=2) + "\n").encode()


def _claim(dest: Path, record: bytes) -> Path | None:
    """The folder to make an export in, new or begun before; None if it is finished."""
    if dest.is_file() or (dest.is_dir() and any(dest.iterdir())):
        if (dest / RECORD).is_file() and (dest / RECORD).read_bytes() == record:
            return None
        raise UserError(f"{dest} holds something else; choose a folder that is empty or not there")
    partial = dest.with_name(f"{dest.name}.partial")
    there = partial / RECORD
    # The record is the first file of an export, so one that is cut stands alone.
    begun = there.read_bytes() if there.is_file() else b""
    others = partial.exists() and any(path != there for path in partial.iterdir())
    if not record.startswith(begun) or (others and begun != record):
        raise UserError(f"{partial} was begun by another export; finish that one, or remove the folder")
    _write(there, [record])
    return partial


def _write_heads(dataset: Dataset, keep: Keep, layout: Layout, root: Path) -> None:
    """Unpack what is not unpacked yet, one identity in memory at a time."""
    journal = root / DONE
    lines = journal.read_text() if journal.exists() else ""
    # A last line without its end was cut: that identity is not known to be whole.
    journal.write_text(whole := lines[: lines.rfind("\n") + 1])
    done = set(map(int, whole.split()))
    todo = [i for i in keep.identities.tolist() if i not in done]
    with JobProgress("export", len(keep.identities), len(done)) as progress, journal.open("a") as log:
        for identity in kept_identities(dataset, keep, todo):
            for name, data in layout.files(identity):
                _write(root / name, [data])
            log.write(f"{identity.number}\n")
            log.flush()
            progress.update(Event(identity.shard, identity.number, "export", 1, 1))
    for name, chunks in layout.finish(root):
        _write(root / name, chunks)


def _write(path: Path, chunks: Iterable[bytes]) -> None:
    """Write a file; names come from formats and numbers, never from the dataset's own text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.writelines(chunks)
