"""Eggs with meshes, seen by the rigs that formats want; and a selection of them."""

from pathlib import Path

import pytest
from egg import egg_job
from small import choose

from datagen.generate import generate
from exports.config import ExportConfig
from exports.export import export
from jobs.pool import PoolConfig
from manifests.dataset import Dataset
from manifests.scores import WHOLE

INLINE = PoolConfig(inline=True)


def make(folder: Path, rig: str, **changes) -> Dataset:
    fields = {"identities": 3, "rig": rig, "resolution": 64, "save_meshes": True, **changes}
    return generate(egg_job(str(folder / rig), INLINE, **fields))


@pytest.fixture(scope="session")
def eggs(tmp_path_factory) -> Dataset:
    """3 eggs of 5 views from anywhere; the selection `clean` drops egg 1, and view 2 of egg 2."""
    dataset = make(tmp_path_factory.mktemp("eggs"), "scatter-5")
    choose(dataset, "clean", {(1, view): "bad" for view in range(WHOLE, 5)} | {(2, 2): "bad"}, views=5)
    return dataset


@pytest.fixture(scope="session")
def exported(eggs, tmp_path_factory):
    """The folder of the selected eggs in a format, made once."""
    root = tmp_path_factory.mktemp("exports")

    def folder(format: str) -> Path:
        if not (root / format).exists():
            export(ExportConfig(eggs.storage.root, str(root / format), format, selection="clean"))
        return root / format

    return folder
