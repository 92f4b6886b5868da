"""Datasets whose plan declares further members: written, verified, packed and loaded by name."""

import io
from itertools import islice

import numpy as np
import pytest
import torch
from small import members_of, noise_array

from exports.config import PackConfig
from exports.pack import pack
from manifests import schema
from manifests.dataset import Dataset
from manifests.errors import DamagedData
from manifests.index import open_index
from manifests.verify import verify
from train.data.config import LoaderConfig
from train.data.loader import open_loader
from train.data.sampling import RandomK

FURTHER = {"landmarks": "landmarks.npy", "albedo": "albedo.png"}
NAMES = (*schema.MEMBERS, "albedo", "landmarks")


@pytest.fixture
def dataset(make) -> Dataset:
    known = {"rgb": "rgb.jpg", "alpha": "alpha.png", "normal": "normal.png", "json": "json"}
    return make(members={**known, **FURTHER})


def config_of(dataset: Dataset, **changes) -> LoaderConfig:
    plain = {"recipe": RandomK(2), "batch": 2, "members": ("rgb", "albedo", "landmarks"), "workers": 0}
    return LoaderConfig(dataset.storage.url, **{**plain, **changes})


def test_tables_and_tars_hold_them_in_one_order(dataset):
    assert dataset.plan.member_names == NAMES
    assert dataset.views(0).schema == schema.views_schema(NAMES)
    assert dataset.all_views.schema == schema.all_views_schema(NAMES)
    assert tuple(open_index(dataset).offset) == NAMES
    assert members_of(dataset, 0, "landmarks")[1] == noise_array(0, 1)
    assert not list(verify(dataset, deep=True))


def test_tables_of_the_usual_members_are_as_they_were(make):
    usual = make()
    assert usual.plan.member_names == schema.MEMBERS
    assert usual.views(0).schema == schema.VIEWS


@pytest.mark.parametrize("changes", [{}, {"workers": 2}, {"sequential": True, "buffer": 0}, {"resolution": 8}])
def test_they_are_loaded_by_name(dataset, changes):
    for batch in islice(open_loader(config_of(dataset, **changes)), 3):
        side = changes.get("resolution", 16)
        assert batch.members["albedo"].shape == (2, 2, 3, side, side)
        assert batch.members["albedo"].min() >= -1 and batch.members["albedo"].max() <= 1
        for sample in range(2):
            for k, view in enumerate(batch.view[sample].tolist()):
                stored = np.load(io.BytesIO(noise_array(int(batch.identity[sample]), view)))
                assert torch.equal(batch.members["landmarks"][sample, k], torch.from_numpy(stored))
        part = batch.part(slice(1, 2)).to("cpu")
        assert torch.equal(part.members["landmarks"], batch.members["landmarks"][1:])


def test_they_come_undecoded_too(dataset):
    batch = next(iter(open_loader(config_of(dataset, decode=False, members=("landmarks", "json")))))
    identity, view = int(batch.identity[0]), int(batch.view[0, 0])
    assert batch.data["landmarks"][0] == noise_array(identity, view)
    assert batch.members is None


def test_a_pack_keeps_them(dataset, tmp_path):
    packed = pack(PackConfig(dataset.storage.url, str(tmp_path / "packed")))
    assert packed.plan.member_names == NAMES
    assert not list(verify(packed, deep=True))
    batch = next(iter(open_loader(config_of(packed))))
    assert batch.members.keys() == {"albedo", "landmarks"}


def test_members_that_are_not_declared_are_refused(make, dataset):
    with pytest.raises(ValueError, match=r"--loader.members hold landmarks; the dataset has rgb, alpha, normal$"):
        open_loader(config_of(make(name="usual"), members=("rgb", "landmarks")))
    with pytest.raises(ValueError, match=r"hold depth; the dataset has rgb, alpha, normal, albedo, landmarks$"):
        open_loader(config_of(dataset, members=("depth",)))


def test_an_array_that_does_not_parse_is_named(dataset):
    index = open_index(dataset)
    with open(dataset.storage.path(dataset.file(0, ".tar")), "r+b") as file:
        file.seek(int(index.offset["landmarks"][1]))
        file.write(b"broken")
    says = r"heads-000000\.tar, 0000000_v001\.landmarks\.npy does not decode; run spinset repair"
    with pytest.raises(DamagedData, match=says):
        list(open_loader(config_of(dataset, recipe=RandomK(3), epochs=1)))
    (fault,) = verify(dataset, deep=True)
    assert fault.member == "0000000_v001.landmarks.npy"


def test_arrays_that_were_written_wrong_are_found(make, monkeypatch):
    monkeypatch.setattr("small.noise_array", lambda *_: b"broken")
    dataset = make(
        2, members={"rgb": "rgb.jpg", "alpha": "alpha.png", "normal": "normal.png", "json": "json", **FURTHER}
    )
    faults = list(verify(dataset, deep=True))
    assert len(faults) == 6
    assert all(fault.problem.startswith("is no array") for fault in faults)
