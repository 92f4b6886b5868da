"""Exports are read by the tools they are for, wherever those are installed."""

import json
import shutil
import sqlite3
import warnings
from pathlib import Path

import numpy as np
import pytest

from manifests.dataset import Dataset

KEYS = [f"0000000_v{view:03d}" for view in range(5)] + [f"0000002_v{view:03d}" for view in (0, 1, 3, 4)]


@pytest.fixture
def noisy():
    """Other people's warnings are theirs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_colmap(exported, noisy):
    pycolmap = pytest.importorskip("pycolmap")
    folder = exported("colmap") / "0000002"
    model = pycolmap.Reconstruction(folder / "sparse/0")
    assert (model.num_cameras(), model.num_images(), model.num_points3D()) == (1, 4, 20_000)
    dataset = json.loads((exported("eg3d") / "images/dataset.json").read_text())["labels"]
    labels = {name.rpartition("_v")[2].removesuffix(".png"): label for name, label in dataset if "0000002/" in name}
    for image in model.images.values():
        assert (folder / "images" / image.name).exists()
        c2w, K = np.split(np.array(labels[image.name.removesuffix(".jpg")]), [16])
        point = np.array([0.1, -0.05, 0.2])
        in_image = K.reshape(3, 3) @ (np.linalg.inv(c2w.reshape(4, 4)) @ [*point, 1])[:3]
        assert np.abs(image.project_point(point) - 64 * in_image[:2] / in_image[2]).max() < 0.01


def test_nerfstudio(exported, noisy):
    parser = pytest.importorskip("nerfstudio.data.dataparsers.nerfstudio_dataparser")
    folder = exported("nerfstudio") / "0000002"
    config = parser.NerfstudioDataParserConfig(
        data=folder, orientation_method="none", center_method="none", auto_scale_poses=False, eval_mode="all",
        downscale_factor=1,
    )  # fmt: skip
    read = config.setup().get_dataparser_outputs("train")
    meta = json.loads((folder / "transforms.json").read_text())
    assert [path.name for path in read.image_filenames] == ["000.jpg", "001.jpg", "003.jpg", "004.jpg"]
    assert read.mask_filenames is not None and all(path.exists() for path in read.mask_filenames)
    assert np.allclose(read.dataparser_transform, meta["applied_transform"])
    # A ray of theirs through the pixel in the middle of the picture points at the head, which lies at the origin.
    rays = read.cameras.generate_rays(0, coords=np_tensor([[32.0, 32.0]]))
    origin, direction = rays.origins[0].numpy(), rays.directions[0].numpy()
    assert np.linalg.norm(np.cross(direction, origin)) < 1e-3 and direction @ origin < 0


def np_tensor(values):
    import torch

    return torch.tensor(values)


def test_hugging_face(exported, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    folder = str(exported("huggingface"))
    loaded = datasets.load_dataset(folder, split="train", cache_dir=tmp_path)
    assert loaded["__key__"] == KEYS
    assert loaded[6]["json"]["view"] == 1 and loaded[6]["rgb.jpg"].size == (64, 64)
    streamed = datasets.load_dataset(folder, split="train", streaming=True, cache_dir=tmp_path)
    assert [sample["__key__"] for sample in streamed] == KEYS


def test_the_card_is_yaml(exported):
    yaml = pytest.importorskip("yaml")
    head = yaml.safe_load((exported("huggingface") / "README.md").read_text().split("---\n")[1])
    assert head["license"] == "other" and head["size_categories"] == ["n<1K"]
    assert head["configs"][0]["data_files"] == [{"split": "train", "path": "shards/*.tar"}]


def test_croissant(exported, noisy):
    mlcroissant = pytest.importorskip("mlcroissant")
    folder = exported("croissant")
    dataset = mlcroissant.Dataset(jsonld=str(folder / "croissant.json"))
    assert not dataset.metadata.ctx.issues.errors
    records = list(dataset.records("views"))
    assert [record["views/key"].decode() for record in records] == KEYS
    assert {record["views/identity"] for record in records} == {0, 2}
    views = Dataset(str(folder)).views(0).to_pylist()
    for record, view in zip(records, views, strict=False):
        for name in ("c2w", "K"):
            assert np.allclose(record[f"views/{name}"], view[name])


def test_croissant_names_every_file_with_its_hash(exported):
    import hashlib

    folder = exported("croissant")
    document = json.loads((folder / "croissant.json").read_text())
    described = [item for item in document["distribution"] if item["@type"] == "cr:FileObject"]
    tables_and_tars = sorted(str(p.relative_to(folder)) for p in (folder / "shards").iterdir() if p.suffix != ".json")
    assert sorted(item["contentUrl"] for item in described) == tables_and_tars
    for item in described:
        assert hashlib.sha256((folder / item["contentUrl"]).read_bytes()).hexdigest() == item["sha256"]
    assert document["spinset:filters"][0].startswith("selection clean")
    assert document["spinset:fingerprint"] == Dataset(str(folder)).plan.fingerprint


def test_energon(exported, noisy):
    energon = pytest.importorskip("megatron.energon")

    @energon.stateless
    def cook(sample):
        return energon.TextSample(**energon.basic_sample_keys(sample), text=str(sample["json"]["view"]))

    class Encoder(energon.DefaultTaskEncoder):
        cookers = (energon.Cooker(cook),)

    read = energon.get_train_dataset(
        str(exported("energon")), batch_size=2, shuffle_buffer_size=None, max_samples_per_sequence=None, repeat=False,
        worker_config=energon.WorkerConfig(rank=0, world_size=1, num_workers=0), task_encoder=Encoder(),
    )  # fmt: skip
    assert sorted(key for batch in energon.get_loader(read) for key in batch.__key__) == KEYS


def test_energon_would_prepare_the_same(exported, tmp_path, noisy):
    prepare = pytest.importorskip("megatron.energon.flavors.webdataset.prepare")
    from megatron.energon.epathlib import EPath

    folder = exported("energon")
    (tmp_path / "shards").mkdir()
    tars = sorted(path.name for path in (folder / "shards").glob("*.tar"))
    for name in tars:
        shutil.copy(folder / "shards" / name, tmp_path / "shards")
    prepare.WebdatasetPreparator.prepare_dataset(
        EPath(tmp_path), [f"shards/{name}" for name in tars], split_parts_ratio=[("train", 1.0)], workers=1
    )
    for name in tars:
        index = f"shards/{name}.idx"
        assert (folder / index).read_bytes() == (tmp_path / index).read_bytes()
    for table in ("samples", "sample_parts", "sqlite_master"):
        ours, theirs = (rows(root / ".nv-meta/index.sqlite", table) for root in (folder, tmp_path))
        assert ours == theirs and ours
    ours, theirs = (json.loads((root / ".nv-meta/.info.json").read_text()) for root in (folder, tmp_path))
    assert ours["shard_counts"] == theirs["shard_counts"]


def rows(sqlite: Path, table: str) -> list[tuple]:
    columns = "type, name, tbl_name" if table == "sqlite_master" else "*"
    connection = sqlite3.connect(sqlite)
    try:
        return sorted(connection.execute(f"SELECT {columns} FROM {table}"), key=str)
    finally:
        connection.close()
