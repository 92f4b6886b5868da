"""Makes damaged shards again, and replaces the old ones once their bytes are proven to be equal.

Seeds, settings and fixed orders make a shard a function of the plan, so what was lost is computed again. The hashes it was
committed with, which tables of scores, selections and latents stand on, are the proof.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from datagen.config import RemakeConfig
from datagen.generate import GenerateWorker
from datagen.heads import Rejection
from datagen.remake import check_same, make_again, open_beside, open_generated
from jobs.devices import usable_cores
from jobs.progress import JobProgress
from jobs.units import Event, Unit
from manifests.dataset import Dataset
from manifests.errors import DamagedData
from manifests.schema import mesh_file
from manifests.shards import DONE, SUFFIXES
from manifests.verify import sha256_of, verify_shard

STAGING = "repair"
"""The folder of the dataset in which shards are made again."""


@dataclass(frozen=True)
class Repaired:
    """The result of repairing one damaged shard."""

    shard: str
    differs: tuple[str, ...] = ()
    """The files whose bytes differ from the recorded hash; if there are any, the old shard was left as it is."""
    unknown: tuple[str, ...] = ()
    """The files whose hash is lost with the commit record."""

    @property
    def is_whole(self) -> bool:
        return not self.differs and not self.unknown

    def __str__(self) -> str:
        if self.is_whole:
            return f"{self.shard}: repaired; the new files have the hashes that were recorded"
        if self.differs:
            why = (
                f"made again, its {' and '.join(self.differs)} did not match the recorded hash, which happens on another "
                "kind of machine or with other library versions"
            )
        else:
            why = f"its commit record is damaged, so nothing proves that {' and '.join(self.unknown)} came out the same"
        return f"{self.shard}: not repaired; {why}. The new shard is in {STAGING}/"


def repair(config: RemakeConfig, rejection: Rejection | None = None) -> list[Repaired]:
    """Find the damaged shards by reading every byte, make them again, and return the result for each.

    Shards that were never made are not damaged; `generate` makes them.

    Raises:
        MissingFile: there is no dataset.
        UserError: the device cannot be used, the dataset was packed, or this version, these weights or these settings would
            make other heads.
    """
    dataset, settings = open_generated(STAGING, config)
    check_same(STAGING, dataset, settings, rejection)
    damaged = _damaged(dataset)
    if not damaged:
        return []
    remade, settings = open_beside(STAGING, dataset, settings)
    found = {shard: _replace(dataset, remade, shard) for shard in damaged if _is_made(remade, shard)}
    again = [shard for shard in damaged if shard not in found or not found[shard].is_whole]
    for shard in set(again) & set(remade.committed()):
        remade.storage.remove(remade.file(shard, DONE))
    settings = replace(settings, save_meshes=any(_has_meshes(dataset, shard) for shard in again))
    units = [Unit(shard, _fatal_to_workers(dataset, shard)) for shard in again]
    make_again(STAGING, remade, units, settings, partial(GenerateWorker, settings, remade.plan, rejection))
    found |= {shard: _replace(dataset, remade, shard) for shard in again}
    if all(one.is_whole for one in found.values()):
        remade.storage.remove_all()
    return [found[shard] for shard in damaged]


def _damaged(dataset: Dataset) -> list[int]:
    """The committed shards that have a fault; hashes and pictures are checked by as many threads as there are cores."""

    def is_damaged(shard: int) -> bool:
        return next(verify_shard(dataset, shard, deep=True), None) is not None

    committed, damaged = dataset.committed(), []
    with JobProgress("verify", len(committed)) as progress, ThreadPoolExecutor(usable_cores()) as threads:
        for shard, found in zip(committed, threads.map(is_damaged, committed), strict=True):
            if found:
                damaged.append(shard)
            progress.update(Event(shard, shard, "verify", 1, 1))
    return damaged


def _is_made(remade: Dataset, shard: int) -> bool:
    """Whether an interrupted repair has already made a shard."""
    return shard in remade.committed() and next(verify_shard(remade, shard, deep=True), None) is None


def _has_meshes(dataset: Dataset, shard: int) -> bool:
    """Whether the meshes of a shard were saved; older records do not hold this, but the files exist."""
    try:
        if dataset.done(shard).get("meshes"):
            return True
    except DamagedData:
        pass  # The record is lost, so look for the files.
    return any(dataset.storage.exists(mesh_file(identity)) for identity in dataset.plan.identities_of(shard))


def _fatal_to_workers(dataset: Dataset, shard: int) -> dict[int, str]:
    """The heads of a shard that were fatal to workers, with the recorded reason; none if that table is damaged."""
    try:
        rows = dataset.identities(shard).select(["identity", "stage", "reason"]).to_pylist()
    except DamagedData:
        return {}
    return {row["identity"]: row["reason"] for row in rows if row["stage"] == "worker"}


def _replace(dataset: Dataset, remade: Dataset, shard: int) -> Repaired:
    """Take a shard that was made again if its files have the hashes of the old ones."""
    name = dataset.file(shard, "").rsplit("/", 1)[-1]
    new = _hashes(remade.done(shard))
    files = {key: dataset.file(shard, key) if key in SUFFIXES else key for key in new}
    try:
        old = _hashes(dataset.done(shard))
    except DamagedData:
        # The record is lost; files that equal the new ones are proof enough.
        old = {key: sha256_of(dataset, file) for key, file in files.items() if dataset.storage.exists(file)}
        if unknown := tuple(key for key in new if old.get(key) != new[key]):
            return Repaired(name, unknown=unknown)
    if differs := tuple(key for key in old if old[key] != new.get(key)):
        return Repaired(name, differs)
    for file in (*files.values(), dataset.file(shard, DONE)):
        dataset.storage.take(remade.storage, file)
    # First of all that is removed there, so that no shard ever counts as made again of which a part is gone.
    remade.storage.remove(remade.file(shard, DONE))
    return Repaired(name)


def _hashes(done: dict[str, Any]) -> dict[str, str]:
    """The hashes of a commit record: of the shard's files by their suffix, of its meshes by their name."""
    return {name: file["sha256"] for name, file in (done["files"] | done.get("meshes", {})).items()}
