"""A new head source is one module and one line of a table, and a new rig is one line; generate, plan and repair take them."""

import sys

import pytest
from egg import egg_job

from datagen.config import SOURCES, GenerateConfig, RemakeConfig, SourceConfig
from datagen.estimate import estimate
from datagen.generate import generate
from datagen.repair import repair
from datagen.rigs import RIGS, Rig
from jobs.pool import PoolConfig
from manifests.errors import UserError
from manifests.verify import verify

INLINE = PoolConfig(inline=True)
MODULE = """
from datagen.config import SourceConfig
from egg import EggSource


def open_source(config, device):
    return EggSource({})


def recorded_config(recorded, weights):
    return SourceConfig("egg")
"""


@pytest.fixture
def egg_source(tmp_path, monkeypatch):
    (tmp_path / "source_of_eggs.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(SOURCES, "egg", "source_of_eggs")
    yield
    sys.modules.pop("source_of_eggs", None)


def test_a_source(egg_source, tmp_path):
    config = egg_job(str(tmp_path / "eggs"), INLINE, source=SourceConfig("egg"), identities=2)
    assert estimate(config, probes=2).plan.source["name"] == "egg"
    dataset = generate(config)
    assert list(verify(dataset, deep=True)) == []
    tar = tmp_path / "eggs" / "shards" / "heads-000000.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[:1000])
    assert [repaired.is_whole for repaired in repair(RemakeConfig(str(tmp_path / "eggs"), pool=INLINE))] == [True]
    assert tar.read_bytes() == whole


def test_a_source_that_is_not_there_is_refused_by_name(egg_source, tmp_path, monkeypatch):
    generate(egg_job(str(tmp_path / "eggs"), INLINE, source=SourceConfig("egg"), identities=1))
    monkeypatch.delitem(SOURCES, "egg")
    with pytest.raises(UserError, match=r"unknown source 'egg'; there are procedural, panohead, spherehead"):
        SourceConfig("egg")
    with pytest.raises(
        UserError, match=r"has the source egg, which this version lacks; there are procedural, panohead"
    ):
        repair(RemakeConfig(str(tmp_path / "eggs"), pool=INLINE))


def test_a_rig(tmp_path, monkeypatch):
    rig = Rig("cross", azimuth=(0.0, 90.0, 0.0), elevation=(0.0, 0.0, 45.0), radius=3.0)
    monkeypatch.setitem(RIGS, "cross", rig)
    dataset = generate(egg_job(str(tmp_path / "eggs"), INLINE, identities=1, rig="cross"))
    views = dataset.views(0).to_pydict()
    assert (views["azimuth"], views["elevation"]) == ([0, 90, 0], [0, 0, 45])
    assert [round(sum(x * x for x in c2w[3:12:4]) ** 0.5, 4) for c2w in views["c2w"]] == [3.0] * 3
    monkeypatch.delitem(RIGS, "cross")
    with pytest.raises(UserError, match="unknown rig 'cross'"):
        GenerateConfig(str(tmp_path / "other"), rig="cross")
