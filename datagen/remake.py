"""Makes shards of a dataset again in a folder beside them, for the commands that replace shards."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module

from datagen.config import SOURCES, GenerateConfig, ImageConfig, MeshConfig, RemakeConfig
from datagen.generate import make_plan
from datagen.grow import grow
from datagen.heads import Rejection
from jobs import pool
from jobs.devices import require_device
from jobs.ledger import Ledger
from jobs.progress import JobProgress
from jobs.units import Unit, Worker
from manifests.dataset import Dataset
from manifests.errors import UserError
from manifests.plan import differences, write_plan
from manifests.shards import DONE
from manifests.storage import Storage


def open_generated(command: str, config: RemakeConfig) -> tuple[Dataset, GenerateConfig]:
    """A dataset, and the settings of `generate` from its plan; workers and device are those of the command.

    Raises:
        MissingFile: there is no dataset.
        UserError: the device cannot be used, the dataset was packed, or this version lacks its source.
    """
    if config.pool.ray == "local":
        require_device(config.device)
    dataset = Dataset(config.out)
    plan = dataset.plan
    name, settings = plan.source["name"], plan.settings
    if plan.packed is not None:
        raise UserError(f"{config.out} was packed from another dataset; {command} that one, and pack it again")
    if name not in SOURCES:
        raise UserError(f"{config.out} has the source {name}, which this version lacks; there are {', '.join(SOURCES)}")
    source = import_module(SOURCES[name]).recorded_config(plan.source, config.weights)
    generation = GenerateConfig(
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
    return dataset, generation


def check_same(command: str, dataset: Dataset, settings: GenerateConfig, rejection: Rejection | None = None) -> None:
    """Raise UserError if this version, these weights or these settings would make other heads."""
    plan = replace(make_plan(settings, settings.source.open("cpu"), rejection), version=dataset.plan.version)
    if plan.fingerprint != dataset.plan.fingerprint:
        raise UserError(
            f"{settings.out} would not be made the same: {differences(dataset.plan, plan)}; {command} it with the version, "
            "the weights and the --reject settings that made it"
        )


def open_beside(command: str, dataset: Dataset, settings: GenerateConfig) -> tuple[Dataset, GenerateConfig]:
    """The dataset beside, in the folder `command`, perhaps with shards of an interrupted run, and settings to make more.

    Raises:
        UserError: another command is at work in this folder.
    """
    storage = Storage(f"{dataset.storage.address.rstrip('/')}/{command}")
    with Ledger(storage, "generate", lambda unit: False, note=str(dataset.plan.identities)) as ledger:
        if ledger.certain_others():
            raise UserError(f"another command is at work in {storage.url}; give this one again when it has ended")
        grow(storage, dataset.plan, ledger)
        write_plan(storage, dataset.plan)
    return Dataset(storage), replace(settings, out=storage.address, source=settings.source.absolute())


def make_again(
    command: str, beside: Dataset, units: Sequence[Unit], settings: GenerateConfig, make_worker: Callable[[], Worker]
) -> None:
    """Make shards in the dataset beside."""
    ledger = Ledger(beside.storage, "generate", lambda shard: beside.storage.exists(beside.file(shard, DONE)))
    with JobProgress(command, sum(len(beside.plan.identities_of(unit.index)) for unit in units)) as progress:
        pool.run(units, make_worker, settings.pool, progress.update, ledger)
