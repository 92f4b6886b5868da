"""Shards: plain tars with the same bytes every time, whole or not there at all, readable by anyone."""

import gc
import hashlib
import io
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small import noise_sample, small_plan, write_shard

from manifests import schema
from manifests.dataset import Dataset
from manifests.plan import write_plan
from manifests.reader import read_members
from manifests.shards import FOLDER, ShardWriter
from manifests.storage import Storage


def test_two_writers_give_the_same_bytes(tmp_path):
    plan = small_plan()
    records = [write_shard(Storage(tmp_path / name), plan, 1) for name in "ab"]
    assert records[0]["files"] == records[1]["files"]
    for suffix, file in records[0]["files"].items():
        data = (tmp_path / "a" / FOLDER / f"heads-000001{suffix}").read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file["size"], file["sha256"])


def test_index_points_at_the_members(small_dataset):
    for shard in small_dataset.committed():
        rows = small_dataset.views(shard).to_pylist()
        names = [f"{row['key']}.{small_dataset.plan.members[m]}" for row in rows for m in schema.MEMBERS]
        with tarfile.open(small_dataset.storage.path(small_dataset.file(shard, ".tar"))) as tar:
            assert tar.getnames() == names
            contents = {name: tar.extractfile(name).read() for name in names}
        for member in schema.MEMBERS:
            for row, data in zip(
                rows, *read_members(small_dataset, shard, small_dataset.views(shard), member), strict=True
            ):
                assert data == contents[f"{row['key']}.{small_dataset.plan.members[member]}"]
                assert hashlib.sha256(data).digest() == row[member]["sha256"]


def test_leaving_without_commit_leaves_nothing(tmp_path):
    storage, plan = Storage(tmp_path), small_plan()

    def interrupted() -> None:
        with ShardWriter(storage, plan, 0) as writer:
            writer.add_view(*noise_sample(plan, 0, 0))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list((tmp_path / FOLDER).iterdir()) == []


def test_scratch_of_a_killed_writer_is_cleared_and_that_of_a_living_one_is_not(tmp_path):
    script = (
        "import sys, time; sys.path.insert(0, 'tests'); from small import small_plan;"
        "from manifests.shards import ShardWriter; from manifests.storage import Storage;"
        f"writer = ShardWriter(Storage({str(tmp_path)!r}), small_plan(), 0); print('open', flush=True); time.sleep(60)"
    )
    writer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    assert writer.stdout.readline() == b"open\n"
    storage = Storage(tmp_path)
    assert storage.clear_leftovers() == 0
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    assert len(list((tmp_path / FOLDER).iterdir())) == 1
    assert storage.clear_leftovers() == 1
    assert list((tmp_path / FOLDER).iterdir()) == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_them(small_dataset):
    """Its warning filter is for webdataset, which leaves the tars it has read to the garbage collector to close."""
    import webdataset

    url = f"{small_dataset.storage.root}/{FOLDER}/heads-00000{{0..2}}.tar"
    samples = list(webdataset.WebDataset(url, shardshuffle=False).decode("rgb8"))
    assert [s["__key__"] for s in samples] == [schema.sample_key(i, v) for i in range(5) for v in range(3)]
    assert samples[4]["rgb.jpg"].shape == (16, 16, 3)
    assert samples[4]["json"] == {"identity": 1, "view": 1}
    del samples
    gc.collect()


def test_hugging_face_datasets_reads_them(small_dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    import datasets

    files = f"{small_dataset.storage.root}/{FOLDER}/*.tar"
    loaded = datasets.load_dataset(
        "webdataset", data_files={"train": files}, split="train", cache_dir=tmp_path / "cache"
    )
    assert loaded["__key__"] == [schema.sample_key(i, v) for i in range(5) for v in range(3)]
    assert loaded[4]["normal.png"].size == (16, 16)
    assert loaded[4]["json"]["view"] == 1


def test_python_reads_them(small_dataset):
    with tarfile.open(small_dataset.storage.path(f"{FOLDER}/heads-000000.tar")) as tar:
        names = tar.getnames()
        assert names[:4] == [f"0000000_v000.{x}" for x in ("rgb.jpg", "alpha.png", "normal.png", "json")]
        assert Image.open(tar.extractfile(names[2])).size == (16, 16)
        assert {m.mtime for m in tar.getmembers()} == {0}


def test_other_storage_than_a_folder():
    storage, plan = Storage("memory://bucket/heads"), small_plan(identities=2)
    write_plan(storage, plan)
    done = write_shard(storage, plan, 0)
    dataset = Dataset(Storage("memory://bucket/heads"))
    assert dataset.committed() == [0]
    assert dataset.pending() == []
    assert hashlib.sha256(storage.read(dataset.file(0, ".tar"))).hexdigest() == done["files"][".tar"]["sha256"]
    ((data, *_),) = read_members(dataset, 0, dataset.views(0), "alpha")
    assert np.array(Image.open(io.BytesIO(data))).shape == (16, 16)


def test_committed_shards_are_those_with_a_record(small_dataset):
    small_dataset.storage.remove(small_dataset.file(1, ".done.json"))
    assert small_dataset.committed() == [0, 2]
    assert small_dataset.pending() == [1]


def test_import_is_light():
    """All modules of manifests and jobs together load none of the large libraries."""
    script = (
        "import sys, pkgutil, importlib\n"
        "for package in ('manifests', 'jobs'):\n"
        "    path = importlib.import_module(package).__path__\n"
        "    for module in pkgutil.walk_packages(path, f'{package}.'):\n"
        "        importlib.import_module(module.name)\n"
        "large = ('torch', 'ray', 'torchvision', 'diffusers', 'open_clip', 'cv2', 'scipy', 'pandas')\n"
        "print(len([m for m in sys.modules if m.startswith('manifests.')]), [m for m in large if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    count, loaded = out.stdout.split(" ", 1)
    assert loaded == "[]\n", out.stderr
    assert int(count) == len(list((Path(__file__).parents[2] / "manifests").glob("*.py"))) - 1


def test_a_shard_that_is_committed_stays(tmp_path):
    """A second writer of it, such as a slow one whose lease was taken over, changes nothing."""
    storage, plan = Storage(tmp_path), small_plan()
    done = write_shard(storage, plan, 0)
    before = {file.name: file.read_bytes() for file in (tmp_path / "shards").iterdir()}
    assert write_shard(storage, plan, 0, views=2) == done
    assert {file.name: file.read_bytes() for file in (tmp_path / "shards").iterdir()} == before
