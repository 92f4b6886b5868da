"""Makes damaged shards anew, and puts them in the place of the old ones once their bytes are proven to be the same.

Seeds, settings and fixed orders make a shard a function of the plan, so what was lost is computed again. The hashes it was
committed with, which tables of scores, selections and latents stand on, are the proof.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional

from datagen.encode import ImageConfig
from datagen.generate import GenerateConfig, GenerateWorker, make_plan
from datagen.meshing import MeshConfig
from datagen.panohead.head import PanoHeadConfig
from datagen.preview import Rejection
from datagen.procedural import ProceduralConfig
from datagen.sources import SourceConfig
from jobs import pool
from jobs.devices import check_device, require_device
from jobs.pool import Event, PoolConfig
from jobs.progress import JobProgress
from manifests.dataset import Dataset
from manifests.errors import UserError
from manifests.plan import Plan, differences, write_plan
from manifests.shards import DONE, SUFFIXES
from manifests.storage import Storage
from manifests.verify import sha256_of, verify_shard

ASIDE = "repair"
"""Folder of the dataset in which shards are made anew."""


@dataclass(frozen=True)
class RepairConfig:
    """Make damaged shards anew, as the dataset's plan says, and prove them equal to what was lost."""

    out: Positional[str]
    """Folder or address of the dataset."""
    weights: str = ""
    """The generator's weights, if it has any, as `spinset generate` was given them."""
    device: str = "cpu"
    """Where the head source runs, the same kind as when the dataset was made: cpu, cuda, or cuda:N for the GPU of index N."""
    pool: Annotated[PoolConfig, OmitArgPrefixes] = field(default_factory=PoolConfig)

    def __post_init__(self) -> None:
        check_device(self.device, self.pool.gpus_per_worker)


@dataclass(frozen=True)
class Repaired:
    """What became of one damaged shard."""

    shard: str
    differs: tuple[str, ...] = ()
    """The files whose bytes are others than they were; if there are any, the old shard was left as it is."""
    unknown: tuple[str, ...] = ()
    """The files of which nobody knows what they were."""

    @property
    def is_whole(self) -> bool:
        return not self.differs and not self.unknown

    def __str__(self) -> str:
        if self.is_whole:
            return f"{self.shard}: made anew, and proven equal to what it was"
        if self.differs:
            why = f"made anew, its {' and '.join(self.differs)} are others than they were: another machine or version?"
        else:
            why = f"made anew, but its record is damaged, so nobody knows what its {' and '.join(self.unknown)} were"
        return f"{self.shard}: left as it was; {why} The new shard is in {ASIDE}/"


def repair(config: RepairConfig, rejection: Rejection | None = None) -> list[Repaired]:
    """Find the damaged shards by every byte, make them anew, and say of each what became of it.

    Shards that were never made are not damaged; `generate` makes them.

    Raises:
        FileNotFoundError: there is no dataset.
        ValueError: the device is not there; it was packed; or the plan that would be followed is not its own: another
            version or other weights.
    """
    if config.pool.ray == "local":
        require_device(config.device)
    dataset = Dataset(config.out)
    if dataset.plan.packed is not None:
        raise UserError(f"{config.out} was packed from another dataset; repair that one, and pack it again")
    asked = generation(config, dataset.plan)
    plan = make_plan(asked, asked.source.open("cpu"), rejection)
    if plan.fingerprint != dataset.plan.fingerprint:
        raise UserError(
            f"{config.out} would not be made the same: {differences(dataset.plan, plan)}; repair it with the version, the "
            "weights and the --reject settings that made it"
        )
    committed = dataset.committed()
    with JobProgress("verify", len(committed)) as progress:
        damaged = []
        for shard in committed:
            if next(verify_shard(dataset, shard, deep=True), None) is not None:
                damaged.append(shard)
            progress.update(Event(shard, shard, "verify", 1, 1))
    if not damaged:
        return []
    aside = Storage(f"{dataset.storage.url.rstrip('/')}/{ASIDE}")
    write_plan(aside, plan)
    work = replace(asked, out=aside.root if aside.is_local else aside.url, source=asked.source.absolute())
    with JobProgress("repair", sum(len(plan.identities_of(shard)) for shard in damaged)) as progress:
        pool.run(damaged, partial(GenerateWorker, work, plan, rejection), config.pool, progress.update)
    found = [_replace(dataset, Dataset(aside), shard) for shard in damaged]
    if all(one.is_whole for one in found):
        aside.remove_all()
    return found


def generation(config: RepairConfig, plan: Plan) -> GenerateConfig:
    """What `generate` was told, as far as the plan remembers; workers and device are the caller's."""
    name, settings = plan.source["name"], plan.settings
    if name == "procedural":
        own = plan.source["config"]
        source = SourceConfig(name, procedural=ProceduralConfig(**{**own, "defects": tuple(own["defects"])}))
    else:
        if not config.weights:
            raise UserError(f"--weights is needed: the {name} checkpoint that the heads of {config.out} came from")
        source = SourceConfig(name, panohead=PanoHeadConfig(weights=config.weights, **plan.source["settings"]))
    return GenerateConfig(
        config.out,
        source,
        identities=plan.identities,
        seed=plan.seed,
        rig=plan.rig["id"],
        grid=plan.rig["grid"],
        resolution=plan.resolution,
        identities_per_shard=plan.identities_per_shard,
        image=ImageConfig(**settings["image"]),
        mesh=MeshConfig(**settings["mesh"]),
        device=config.device,
        pool=config.pool,
    )


def _replace(dataset: Dataset, remade: Dataset, shard: int) -> Repaired:
    """Take a shard that was made anew if it is the old one again."""
    name = dataset.file(shard, "").rsplit("/", 1)[-1]
    new = {suffix: file["sha256"] for suffix, file in remade.done(shard)["files"].items()}
    try:
        old = {suffix: file["sha256"] for suffix, file in dataset.done(shard)["files"].items()}
    except ValueError:
        # The record is lost; files that are still what they would be now are their own proof.
        there = {s: dataset.file(shard, s) for s in SUFFIXES if dataset.storage.exists(dataset.file(shard, s))}
        old = {suffix: sha256_of(dataset, file) for suffix, file in there.items()}
        if unknown := tuple(s for s in SUFFIXES if old.get(s) != new[s]):
            return Repaired(name, unknown=unknown)
    if differs := tuple(s for s in SUFFIXES if old[s] != new[s]):
        return Repaired(name, differs)
    for suffix in (*SUFFIXES, DONE):
        dataset.storage.take(remade.storage, dataset.file(shard, suffix))
    return Repaired(name)
