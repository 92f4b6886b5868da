"""`spinset export`: copies of a dataset in the formats of other tools.

An export is made in DEST.partial and renamed when it is whole, so DEST is never incomplete. The same command resumes:
export.json records what the folder will hold, and .done the identities that it holds.
"""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Protocol, runtime_checkable

from exports.columns import column_hashes
from exports.config import SHARDED, UNPACKED, WITH_COLUMNS, ExportConfig
from exports.pack import copy_shards
from jobs.progress import JobProgress
from jobs.units import Event
from manifests.dataset import Dataset
from manifests.errors import UserError
from manifests.index import Subset
from manifests.selection import Selection
from manifests.subset import KeptIdentity, kept_identities, open_subset

RECORD, DONE = "export.json", ".done"


@runtime_checkable
class Layout(Protocol):
    """A format with one file per picture; it is made of the dataset, the subset to export, and the folder of the export.

    A sharded format is a function of the `Dataset` that was copied: it yields the names and contents of the files to add.
    """

    def files(self, identity: KeptIdentity) -> Iterator[tuple[str, bytes]]:
        """The names and contents of the files of one identity."""
        ...

    def finish(self, root: Path) -> Iterator[tuple[str, Iterable[bytes]]]:
        """The names and contents of the files about all identities, in pieces; there are none by default."""
        return iter(())


def export(config: ExportConfig) -> str:
    """Make an export, and return a line that describes it.

    Raises:
        UserError: the dataset is not complete or does not suit the format, or DEST holds other files.
    """
    dataset, dest = Dataset(config.out), Path(config.dest).absolute()
    subset, selection = open_subset(dataset, config.selection, config.identities)
    layout = resolve_name(UNPACKED[config.format])(dataset, subset, dest) if config.format in UNPACKED else None
    record = _record(config, dataset, selection)
    partial = _claim(dest, record)
    if partial is None:
        return f"{dest}: is this export already"
    if layout is not None:
        _write_heads(dataset, subset, layout, partial)
    else:
        copy = copy_shards(dataset, subset, selection, partial)
        for name, data in resolve_name(SHARDED[config.format])(copy):
            _write(partial / name, [data])
    _write(partial / RECORD, [record])
    (partial / DONE).unlink(missing_ok=True)
    # Once for all: an fsync per picture costs more than the picture.
    os.sync()
    partial.replace(dest)
    return f"{dest}: {len(subset.identities)} identities for {config.format}"


def _record(config: ExportConfig, dataset: Dataset, selection: Selection | None) -> bytes:
    """The inputs of an export as JSON; equal records give equal exports."""
    fields: dict[str, Any] = {
        "format": config.format,
        "dataset": dataset.plan.fingerprint,
        "selection": selection and {"name": selection.name, "sha256": selection.fingerprint},
        "identities": config.identities,
    }
    if config.format in WITH_COLUMNS:
        fields["columns"] = column_hashes(dataset)
    return (json.dumps(fields, indent=2) + "\n").encode()


def _claim(dest: Path, record: bytes) -> Path | None:
    """The folder to make an export in, which may hold a part of it; None if the export is finished."""
    if dest.is_file() or (dest.is_dir() and any(dest.iterdir())):
        if (dest / RECORD).is_file() and (dest / RECORD).read_bytes() == record:
            return None
        raise UserError(f"{dest} holds other files; choose an empty or a new folder")
    partial = dest.with_name(f"{dest.name}.partial")
    file = partial / RECORD
    # The record is the first file of an export, so one that is cut stands alone.
    begun = file.read_bytes() if file.is_file() else b""
    others = partial.exists() and any(path != file for path in partial.iterdir())
    if not record.startswith(begun) or (others and begun != record):
        raise UserError(f"{partial} belongs to another export; finish that one, or remove the folder")
    _write(file, [record])
    return partial


def _write_heads(dataset: Dataset, subset: Subset, layout: Layout, root: Path) -> None:
    """Write the identities that are not written yet, one in memory at a time."""
    journal = root / DONE
    lines = journal.read_text() if journal.exists() else ""
    # A last line without its end was cut, so its identity may be incomplete.
    journal.write_text(whole := lines[: lines.rfind("\n") + 1])
    done = set(map(int, whole.split()))
    todo = [i for i in subset.identities.tolist() if i not in done]
    with JobProgress("export", len(subset.identities), len(done)) as progress, journal.open("a") as log:
        for identity in kept_identities(dataset, subset, todo):
            for name, data in layout.files(identity):
                _write(root / name, [data])
            log.write(f"{identity.number}\n")
            log.flush()
            progress.update(Event(identity.shard, identity.number, "export", 1, 1))
    for name, chunks in layout.finish(root):
        _write(root / name, chunks)


def _write(path: Path, chunks: Iterable[bytes]) -> None:
    """Write a file; names come from formats and numbers, never from text of the dataset."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.writelines(chunks)
