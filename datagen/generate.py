"""Generates a dataset: its plan, the worker that makes a shard, and the job over all shards."""

import hashlib
import json
import platform
import re
import socket
import time
import traceback
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from typing import Any

import torch

from datagen.config import GenerateConfig
from datagen.grow import grow, grows
from datagen.heads import HeadSource, Rejection
from datagen.identity import VIEWS_PER_BATCH, IdentitySettings, Made, Rejected, fact_columns, make_identity
from datagen.rigs import find_rig
from jobs import pool
from jobs.devices import require_device
from jobs.ledger import Ledger
from jobs.progress import JobProgress
from jobs.units import Event, OutOfMemory, Unit, WorkerIsBroken
from manifests import schema
from manifests.dataset import Dataset
from manifests.errors import UserError
from manifests.index import open_index
from manifests.plan import Plan, read_plan, write_plan
from manifests.ply import encode_mesh
from manifests.shards import ShardWriter, record_file
from manifests.status import Failure
from manifests.storage import Storage

IDENTITY_ATTEMPTS = 2
CONVENTIONS = {
    "cameras": "OpenCV camera-to-world; intrinsics normalised by the image size; pixel centres at +0.5",
    "world": "y up, face to +z, head at the origin; azimuth towards +x, elevation towards +y, true degrees",
    "normals": "camera space, OpenGL axes (x right, y up, z to the viewer), rgb = (n + 1) / 2, background 128",
}


def make_plan(config: GenerateConfig, source: HeadSource, rejection: Rejection | None = None) -> Plan:
    """The plan of a dataset of heads of this source; raises UserError if the source does not have all of their seeds."""
    if (last := config.seed + config.identities - 1) > source.max_seed:
        raise UserError(
            f"--seed {config.seed} with --identities {config.identities} needs seeds up to {last}, but the seeds of "
            f"{source.name} end at {source.max_seed}"
        )
    rejecting = {"rejection": rejection.lineage(source.name)} if rejection else {}
    return Plan(
        source={"name": source.name, **source.lineage()},
        rig={**find_rig(config.rig, config.grid).document(), "grid": config.grid},
        identities=config.identities,
        seed=config.seed,
        resolution=config.resolution,
        identities_per_shard=config.identities_per_shard,
        members=config.image.members,
        settings={
            "image": asdict(config.image),
            "mesh": asdict(config.mesh),
            "views_per_batch": VIEWS_PER_BATCH,
            "conventions": CONVENTIONS,
            **rejecting,
        },
    )


def generate(config: GenerateConfig, rejection: Rejection | None = None) -> Dataset:
    """Make the missing shards of a dataset and return it; heads that early rejection drops are recorded as filtered.

    Raises:
        PlanMismatch: the folder holds a dataset of another plan; nothing was written.
        OSError: the storage cannot be written; committed shards stay, and the same call resumes.
    """
    if config.pool.ray == "local":
        require_device(config.device)
    plan = make_plan(config, config.source.open("cpu"), rejection)
    storage = Storage(config.out)
    if not grows(storage, plan):
        plan = write_plan(storage, plan)
    ledger = Ledger(
        storage,
        "generate",
        lambda shard: storage.exists(record_file(shard)),
        lambda shard: storage.clear_leftovers(record_file(shard).removesuffix(schema.DONE)),
        remembers=True,
        all_done=lambda: Dataset(storage).committed(),
        note=str(plan.identities),
    )
    with ledger:
        grow(storage, plan, ledger)
        plan = write_plan(storage, plan)
        storage.clear_leftovers()
        dataset = Dataset(storage)
        pending = dataset.pending()
        # Workers of a running cluster have another working directory.
        config = replace(config, out=storage.address, source=config.source.absolute())
        already = plan.identities - sum(len(plan.identities_of(shard)) for shard in pending)
        with JobProgress(
            "generate", plan.identities, already, items_of=lambda shard: len(plan.identities_of(shard))
        ) as progress:
            pool.run(pending, partial(GenerateWorker, config, plan, rejection), config.pool, progress.update, ledger)
    storage.clear_leftovers()  # of workers that died on the way
    if any(record["views"] for record in dataset.records(dataset.committed())):
        open_index(dataset)  # made once here, so that no reader has to
    return dataset


class GenerateWorker:
    """Makes shards, one identity at a time."""

    def __init__(self, config: GenerateConfig, plan: Plan, rejection: Rejection | None = None):
        # Set here and in the threads of the executor, because torch keeps this number per thread.
        torch.set_num_threads(config.pool.threads)
        # Two at least, so that encoding goes on beside meshing; more if the worker has more cores.
        count = max(2, config.pool.threads)
        self.executor = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(config.pool.threads,))
        self.config, self.plan, self.storage = config, plan, Storage(config.out)
        self.source = config.source.open(config.device)
        # As JSON, for a plan may come from a dataset.
        here, asked = (
            json.dumps(x, sort_keys=True) for x in ({"name": self.source.name, **self.source.lineage()}, plan.source)
        )
        if here != asked:
            raise UserError(
                f"{socket.gethostname()} has another head source than the plan of the dataset: {here}, not {asked}"
            )
        self.judge = rejection.open(config.device, self.source.name) if rejection else None
        tag = {"source": plan.source["name"], "plan": plan.fingerprint}
        rig = find_rig(config.rig, config.grid)
        self.settings = IdentitySettings(rig, plan.seed, plan.resolution, config.image, config.mesh, tag)

    def run(self, unit: Unit) -> Generator[Event, None, None]:
        """Make one shard and commit it; what is closed before is kept for the next run of the unit."""
        started = time.monotonic()
        with ShardWriter(self.storage, self.plan, unit.index) as writer:
            writer.resume()
            run = {**self._first_notes(unit), **writer.run}
            before = run["seconds"]
            try:
                for identity in self.plan.identities_of(unit.index):
                    if identity not in writer.identities:
                        yield from self._add_identity(unit, identity, writer, run)
                    yield Event(unit.index, identity, "done", 1, 1)
            except GeneratorExit:
                writer.park({**run, "seconds": before + round(time.monotonic() - started, 3)})
                raise
            yield Event(unit.index, None, "commit", 0, 1)
            if read_plan(self.storage).identities != self.plan.identities:
                raise UserError(f"{self.storage.url} has grown since this command began; give it again")
            run["seconds"] = round(before + time.monotonic() - started, 3)
            writer.commit({**run, **_environment(self.config)})

    def _first_notes(self, unit: Unit) -> dict[str, Any]:
        """The notes of a shard that was not begun before."""
        return {"seconds": 0.0, "identity_seconds": {}, "stage_seconds": {}, "failures": [], "tracebacks": {}}

    def _add_identity(
        self, unit: Unit, identity: int, writer: ShardWriter, run: dict[str, Any]
    ) -> Generator[Event, None, None]:
        """Make one identity, and note the seconds that it took."""
        begun = time.monotonic()
        if identity in unit.skipped:
            self._add(writer, identity, schema.FAILED, stage="worker", reason=unit.skipped[identity])
            run["failures"].append(asdict(self._lost(unit, identity)))
        else:
            yield from self._make(unit, identity, writer, run)
        run["identity_seconds"][str(identity)] = round(time.monotonic() - begun, 3)

    def _lost(self, unit: Unit, identity: int) -> Failure:
        """The failure of an identity that workers were lost to, from the files of the driver."""
        seed, reason = self.plan.seed + identity, unit.skipped[identity]
        losses = Ledger(self.storage, "generate", lambda unit: False).losses(unit.index)
        own = [loss for loss in losses if loss.item == identity and loss.blamed]
        if not own:  # as in a repair, where the reason is all that is known
            return Failure(identity, seed, "worker", reason)
        last = own[-1]
        signal = re.search(r"\bSIG[A-Z]+\b", last.cause)
        return Failure(
            identity, seed, last.stage, f"worker {last.cause}", signal and signal[0], None, last.host, len(own)
        )

    def _make(self, unit: Unit, identity: int, writer: ShardWriter, run: dict[str, Any]) -> Iterator[Event]:
        """Make one identity, or record why IDENTITY_ATTEMPTS attempts failed."""
        for attempt in range(1, IDENTITY_ATTEMPTS + 1):
            stage, made, begun = "head", None, time.monotonic()
            try:
                for step in make_identity(self.source, self.settings, identity, self.executor, self.judge):
                    now = time.monotonic()
                    run["stage_seconds"][stage] = round(run["stage_seconds"].get(stage, 0.0) + now - begun, 3)
                    begun = now
                    if isinstance(step, Made | Rejected):
                        made = step
                    else:
                        stage, views = step
                        yield Event(unit.index, identity, stage, views, len(self.settings.rig) + 1)
            except Exception as error:
                # Not errors of this head: its neighbours take memory too, and the device may be lost to this process.
                if _is_out_of_memory(error):
                    raise OutOfMemory(f"{type(error).__name__} at stage {stage}: {error}") from error
                if isinstance(error, torch.AcceleratorError):
                    raise WorkerIsBroken(f"{type(error).__name__} at stage {stage}: {error}") from error
                # An exception fails this head alone: it becomes a row with its stage and reason.
                run["tracebacks"][str(identity)] = text = traceback.format_exc()
                if attempt == IDENTITY_ATTEMPTS:
                    reason = f"{type(error).__name__}: {error}"
                    self._add(writer, identity, schema.FAILED, stage=stage, reason=reason)
                    sha256, host = hashlib.sha256(text.encode()).hexdigest(), socket.gethostname()
                    failure = Failure(identity, self.plan.seed + identity, stage, reason, None, sha256, host, attempt)
                    run["failures"].append(asdict(failure))
            else:
                assert made is not None
                self._add_made(writer, identity, made)
                return

    def _add_made(self, writer: ShardWriter, identity: int, made: Made | Rejected) -> None:
        facts = fact_columns(made.facts)
        if isinstance(made, Rejected):
            self._add(writer, identity, schema.FILTERED, stage="preview", reason=made.reason, **facts)
            return
        if self.config.save_meshes:
            writer.add_mesh(identity, encode_mesh(made.mesh.vertices, made.mesh.faces))
        for row, members in made.samples:
            writer.add_view(row, members)
        self._add(writer, identity, schema.KEPT, views=len(made.samples), mesh=asdict(made.figures), **facts)

    def _add(self, writer: ShardWriter, identity: int, outcome: str, views: int = 0, **columns: Any) -> None:
        """Append the row of an identity, with the columns of schema.IDENTITIES."""
        row = {"identity": identity, "seed": self.plan.seed + identity, "outcome": outcome, "views": views}
        writer.add_identity({**row, **columns})


def _is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed, on the device or on the machine; of the latter torch tells by its text alone."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _environment(config: GenerateConfig) -> dict[str, Any]:
    """The machine and the versions that made a shard, which may differ between two runs."""
    return {
        "host": socket.gethostname(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "device": platform.machine() if config.device == "cpu" else torch.cuda.get_device_name(config.device),
        "threads": config.pool.threads,
        "python": platform.python_version(),
        "versions": {
            name: version(name) for name in ("spinset", "torch", "numpy", "pillow", "scikit-image", "embreex")
        },
    }
