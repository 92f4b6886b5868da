"""Damaged shards are made anew and taken only if they are what was lost, byte for byte."""

import json
import shutil
from pathlib import Path

import pytest
from small import small_plan, write_shard

from datagen.encode import ImageConfig
from datagen.generate import GenerateConfig, generate
from datagen.meshing import MeshConfig
from datagen.repair import ASIDE, RepairConfig, repair
from jobs.pool import PoolConfig
from manifests.dataset import Dataset
from manifests.plan import write_plan
from manifests.storage import Storage
from manifests.verify import verify

INLINE = PoolConfig(inline=True)
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
    return [str(one) for one in repair(RepairConfig(str(folder), pool=INLINE, **how))]


def test_what_is_whole_is_left_alone(made, heads):
    assert mended(heads) == []
    assert bytes_of(heads) == bytes_of(made) and not (heads / ASIDE).exists()


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
    assert mended(heads) == ["heads-000001: made anew, and proven equal to what it was"]
    assert bytes_of(heads) == bytes_of(made)
    assert not list(verify(Dataset(str(heads)), deep=True)) and not (heads / ASIDE).exists()


def test_a_damaged_record_is_proven_by_the_files_beside_it(made, heads):
    (heads / RECORD).write_text("{")
    assert mended(heads) == ["heads-000001: made anew, and proven equal to what it was"]
    assert bytes_of(heads) == bytes_of(made)


def test_what_cannot_be_proven_is_not_taken(heads):
    (heads / RECORD).write_text("{")
    (heads / TAR).write_bytes(b"gone")
    (line,) = mended(heads)
    assert line.startswith("heads-000001: left as it was") and "nobody knows what its .tar were" in line
    assert (heads / TAR).read_bytes() == b"gone" and (heads / ASIDE / TAR).exists()


def test_what_comes_out_otherwise_is_not_taken(heads):
    record = json.loads((heads / RECORD).read_text())
    record["files"][".tar"]["sha256"] = "0" * 64
    (heads / RECORD).write_text(json.dumps(record))
    before = bytes_of(heads)
    (line,) = mended(heads)
    assert "its .tar are others than they were: another machine or version? The new shard is in repair/" in line
    assert bytes_of(heads) == before and (heads / ASIDE / TAR).exists()


def test_shards_that_were_never_made_are_not_damaged(heads):
    for file in (heads / "shards").glob("heads-000000.*"):
        file.unlink()
    assert mended(heads) == []


def test_other_plans_are_refused(heads, tmp_path, monkeypatch):
    monkeypatch.setattr("datagen.procedural.source.VERSION", 99)
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
        repair(RepairConfig(str(tmp_path / "nowhere"), device="cuda"))
