"""Damaged shards are made anew and taken only if they are what was lost, byte for byte."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from egg import egg_job
from small import small_plan, write_shard

from datagen.config import GenerateConfig, ImageConfig, MeshConfig, RemakeConfig
from datagen.generate import GenerateWorker, generate, make_plan
from datagen.repair import STAGING, _fatal_to_workers, repair
from jobs.pool import PoolConfig
from jobs.units import Unit
from manifests.dataset import Dataset
from manifests.plan import write_plan
from manifests.storage import Storage
from manifests.verify import verify

INLINE = PoolConfig(inline=True)
WHOLE = "heads-000001: repaired; the new files have the hashes that were recorded"
TAR, RECORD = "shards/heads-000001.tar", "shards/heads-000001.done.json"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Three people in two shards, seen twice."""
    out = tmp_path_factory.mktemp("repair") / "heads"
    settings = {"identities": 3, "seed": 40, "rig": "orbit-2", "resolution": 32, "identities_per_shard": 2}
    generate(
        GenerateConfig(str(out), mesh=MeshConfig(64), image=ImageConfig(quality=90), grid=True, pool=INLINE, **settings)
    )
    return out


@pytest.fixture
def heads(made, tmp_path) -> Path:
    return shutil.copytree(made, tmp_path / "heads")


def bytes_of(folder: Path) -> dict[str, bytes]:
    """The files of all shards; records without how long it took."""
    files = {f.name: f.read_bytes() for f in sorted((folder / "shards").iterdir())}
    return {n: json.loads(b)["files"] if n.endswith(".done.json") else b for n, b in files.items()}


def mended(folder: Path, **how) -> list[str]:
    return [str(one) for one in repair(RemakeConfig(str(folder), pool=INLINE, **how))]


def test_what_is_whole_is_left_alone(made, heads):
    assert mended(heads) == []
    assert bytes_of(heads) == bytes_of(made) and not (heads / STAGING).exists()


@pytest.mark.parametrize("how", ["flipped", "cut", "lost"])
def test_a_damaged_shard_is_what_it_was_again(made, heads, how):
    tar = bytearray((heads / TAR).read_bytes())
    tar[5000] ^= 4
    if how == "lost":
        (heads / TAR).unlink()
        (heads / TAR.replace(".tar", ".views.parquet")).unlink()
    else:
        (heads / TAR).write_bytes(tar if how == "flipped" else tar[:9000])
    assert list(verify(Dataset(str(heads)), deep=True))
    assert mended(heads) == [WHOLE]
    assert bytes_of(heads) == bytes_of(made)
    assert not list(verify(Dataset(str(heads)), deep=True)) and not (heads / STAGING).exists()


def test_a_damaged_record_is_proven_by_the_files_beside_it(made, heads):
    (heads / RECORD).write_text("{")
    assert mended(heads) == [WHOLE]
    assert bytes_of(heads) == bytes_of(made)


def test_what_cannot_be_proven_is_not_taken(heads):
    (heads / RECORD).write_text("{")
    (heads / TAR).write_bytes(b"gone")
    (line,) = mended(heads)
    assert line.startswith(
        "heads-000001: not repaired; its commit record is damaged, so nothing proves that .tar came out"
    )
    assert (heads / TAR).read_bytes() == b"gone" and (heads / STAGING / TAR).exists()


def test_what_comes_out_otherwise_is_not_taken(heads):
    record = json.loads((heads / RECORD).read_text())
    record["files"][".tar"]["sha256"] = "0" * 64
    (heads / RECORD).write_text(json.dumps(record))
    before = bytes_of(heads)
    (line,) = mended(heads)
    assert "its .tar did not match the recorded hash" in line and line.endswith("The new shard is in repair/")
    assert bytes_of(heads) == before and (heads / STAGING / TAR).exists()


@pytest.fixture(scope="module")
def made_with_meshes(tmp_path_factory) -> Path:
    """One person with its mesh, seen once."""
    out = tmp_path_factory.mktemp("repair") / "heads"
    settings = {"identities": 1, "seed": 40, "rig": "orbit-1", "resolution": 32, "save_meshes": True}
    generate(GenerateConfig(str(out), mesh=MeshConfig(64), pool=INLINE, **settings))
    return out


@pytest.mark.parametrize("how", ["flipped", "cut", "lost"])
def test_a_damaged_mesh_is_found_and_made_again(made_with_meshes, tmp_path, how):
    heads = shutil.copytree(made_with_meshes, tmp_path / "heads")
    mesh = heads / "meshes/0000000.ply"
    whole = mesh.read_bytes()
    flipped = bytearray(whole)
    flipped[-1] ^= 1
    mesh.unlink()
    if how != "lost":
        mesh.write_bytes(flipped if how == "flipped" else whole[:-1])
    else:
        mesh.parent.rmdir()
    problem = {"flipped": "its bytes were changed", "cut": f"has {len(whole) - 1} bytes", "lost": "missing"}[how]
    (fault,) = verify(Dataset(str(heads)), deep=True)
    assert fault.file == "meshes/0000000.ply" and fault.problem.startswith(problem)
    assert mended(heads) == [WHOLE.replace("000001", "000000")]
    assert mesh.read_bytes() == whole and list(verify(Dataset(str(heads)), deep=True)) == []


def test_records_without_meshes_are_as_they_were(made):
    assert "meshes" not in json.loads((made / RECORD).read_text())


def test_what_an_interrupted_repair_has_made_is_not_made_again(made, heads, monkeypatch):
    shutil.copytree(made, heads / STAGING)
    (heads / TAR).unlink()
    monkeypatch.setattr("datagen.repair.GenerateWorker._make", None)
    assert mended(heads) == [WHOLE]
    assert bytes_of(heads) == bytes_of(made) and not (heads / STAGING).exists()


def test_what_another_version_has_left_is_made_again(made, heads):
    """The shard beside is whole by its own record but has other bytes, as an old attempt on another machine leaves it."""
    shutil.copytree(made, heads / STAGING)
    for suffix in (".tar", ".views.parquet", ".identities.parquet", ".done.json"):
        shutil.copy(made / f"shards/heads-000000{suffix}", heads / STAGING / f"shards/heads-000001{suffix}")
    (heads / TAR).unlink()
    assert mended(heads) == [WHOLE]
    assert bytes_of(heads) == bytes_of(made)


def test_a_shard_with_a_head_that_killed_its_workers_is_proven(tmp_path):
    """The reason is recorded as it was, instead of making the head again."""
    job = egg_job(str(tmp_path / "eggs"), INLINE)
    plan = make_plan(job, job.source.open("cpu"))
    write_plan(Storage(job.out), plan)
    worker = GenerateWorker(job, plan)
    list(worker.run(Unit(1, skipped={3: "its worker died at stage head, the last of 3 that were lost to it"})))
    before = bytes_of(tmp_path / "eggs")
    skipped = _fatal_to_workers(Dataset(job.out), 1)
    assert skipped == {3: "its worker died at stage head, the last of 3 that were lost to it"}
    write_plan(Storage(tmp_path / "again"), plan)
    again = GenerateWorker(replace(job, out=str(tmp_path / "again")), plan)
    list(again.run(Unit(1, skipped)))
    assert bytes_of(tmp_path / "again") == before


def test_shards_that_were_never_made_are_not_damaged(heads):
    for file in (heads / "shards").glob("heads-000000.*"):
        file.unlink()
    assert mended(heads) == []


def test_other_plans_are_refused(heads, tmp_path, monkeypatch):
    monkeypatch.setattr("datagen.sources.procedural.source.VERSION", 99)
    with pytest.raises(
        ValueError, match=r"would not be made the same: source.version is 1, asked for 99; repair it with"
    ):
        mended(heads)
    storage, plan = Storage(tmp_path / "packed"), small_plan(packed={"shards": [[0, 1]]})
    write_plan(storage, plan)
    with pytest.raises(ValueError, match="was packed from another dataset; repair that one, and pack it again"):
        mended(tmp_path / "packed")
    storage, plan = Storage(tmp_path / "real"), small_plan(source={"name": "panohead", "settings": {}})
    write_plan(storage, plan)
    write_shard(storage, plan, 0)
    with pytest.raises(ValueError, match="--weights is needed: the panohead checkpoint that the heads of"):
        mended(tmp_path / "real")


def test_a_device_that_is_not_there_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match="--device is cuda, but this machine has no usable CUDA device"):
        repair(RemakeConfig(str(tmp_path / "nowhere"), device="cuda"))
