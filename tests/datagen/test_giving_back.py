"""A shard that is given back goes on from its last finished head, with the bytes of one that was never interrupted."""

import os
import signal
from pathlib import Path

import pytest
from egg import EggConfig, egg_job

from datagen.generate import GenerateWorker, generate, make_plan
from jobs.pool import PoolConfig
from jobs.units import Unit
from manifests.plan import write_plan
from manifests.shards import PARKED
from manifests.storage import Storage
from manifests.verify import verify

INLINE = PoolConfig(inline=True)
ONE_SHARD = {"identities": 3, "identities_per_shard": 3, "save_meshes": True}


def hashes(folder: Path) -> dict[str, bytes]:
    """The bytes of every file but the record of how the shard was made."""
    files = (file for file in folder.rglob("*") if file.is_file() and not file.name.endswith(".done.json"))
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("eggs")
    generate(egg_job(str(folder), INLINE, **ONE_SHARD))
    return hashes(folder)


@pytest.fixture
def given_back(tmp_path) -> Path:
    """A dataset whose shard was given back after two of three heads, of which one failed at first."""
    job = egg_job(str(tmp_path), INLINE, **ONE_SHARD)
    plan = make_plan(job, job.source.open("cpu"))
    write_plan(Storage(tmp_path), plan)
    events = GenerateWorker(job, plan).run(Unit(0))
    for event in events:
        if event.ends_item and event.item == 1:
            break
    events.close()
    assert len(list((tmp_path / PARKED).iterdir())) == 4 and not list((tmp_path / "shards").glob("[!.]*"))
    return tmp_path


def test_it_goes_on_and_the_bytes_are_the_same(given_back, undisturbed):
    """The finished heads are not made again: they would fail now."""
    again = EggConfig(faults=((0, "raise"), (1, "raise")))
    dataset = generate(egg_job(str(given_back), INLINE, source=again, **ONE_SHARD))
    assert hashes(given_back) == undisturbed and list(verify(dataset, deep=True)) == []
    assert set(dataset.done(0)["run"]["identity_seconds"]) == {"0", "1", "2"}


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing"])
def test_damage_begins_it_anew(given_back, undisturbed, damage):
    (tar,) = (given_back / PARKED).glob("*.tar")
    data = tar.read_bytes()
    if damage == "missing":
        tar.unlink()
    else:
        tar.write_bytes(data[:-1] if damage == "cut" else data[:5000] + bytes([data[5000] ^ 1]) + data[5001:])
    generate(egg_job(str(given_back), INLINE, **ONE_SHARD))
    assert hashes(given_back) == undisturbed


def test_sigterm_to_a_command_inline(tmp_path, undisturbed, monkeypatch):
    """It ends after the head in hand, and the next command goes on after it."""
    original, made = GenerateWorker._add_identity, []

    def add(self, unit, identity, writer, run):
        made.append(identity)
        if len(made) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        yield from original(self, unit, identity, writer, run)

    monkeypatch.setattr(GenerateWorker, "_add_identity", add)
    job = egg_job(str(tmp_path), INLINE, **ONE_SHARD)
    with pytest.raises(KeyboardInterrupt):
        generate(job)
    assert made == [0, 1]
    generate(job)
    assert made == [0, 1, 2] and hashes(tmp_path) == undisturbed


def test_a_shard_of_another_plan_is_not_gone_on_with(given_back, undisturbed):
    """A folder whose dataset was removed by hand, but not what was begun of it."""
    (given_back / "dataset.json").unlink()
    other = egg_job(str(given_back), INLINE, **{**ONE_SHARD, "seed": 5})
    assert list(verify(generate(other), deep=True)) == []
    assert not list((given_back / PARKED).iterdir())
