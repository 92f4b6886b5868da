"""Failed heads are made again once their cause is mended; all others are copied, and nothing is ever half replaced."""

import json
import shutil
from pathlib import Path

import pytest

from datagen.config import GenerateConfig, MeshConfig, RemakeConfig, SourceConfig
from datagen.generate import generate
from datagen.identity import _mesh
from datagen.retry import STAGING, retry
from jobs.ledger import Ledger, Loss
from jobs.pool import PoolConfig
from manifests.dataset import Dataset
from manifests.errors import DamagedData, UserError
from manifests.status import summarise
from manifests.storage import Storage
from manifests.verify import verify
from spinset import main

INLINE = PoolConfig(inline=True)


def job(out: Path) -> GenerateConfig:
    """Four heads in two shards, seen twice, with their meshes."""
    settings = {"identities": 4, "seed": 40, "rig": "orbit-2", "resolution": 32, "identities_per_shard": 2}
    return GenerateConfig(str(out), mesh=MeshConfig(64), grid=True, save_meshes=True, pool=INLINE, **settings)


def files(folder: Path) -> dict[str, bytes]:
    """The bytes of every file of the shards and of the meshes; of the records only what does not tell of the run."""
    found = {
        str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.parent.name in ("shards", "meshes")
    }
    return {
        n: json.dumps({k: v for k, v in json.loads(b).items() if k != "run"}).encode()
        if n.endswith(".done.json")
        else b
        for n, b in found.items()
    }


def failing(*seeds: int):
    """A way of making meshes that fails for some heads."""
    source = SourceConfig().open("cpu")
    of = {source.head(seed).facts()["latent_sha256"] for seed in seeds}

    def mesh(head, config):
        if head.facts()["latent_sha256"] in of:
            raise ValueError("the surface is open")
        return _mesh(head, config)

    return mesh


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("retry") / "whole"
    generate(job(out))
    return out


@pytest.fixture(scope="module")
def faulty(tmp_path_factory) -> Path:
    """The same dataset, in which the second head failed."""
    out = tmp_path_factory.mktemp("retry") / "faulty"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datagen.identity._mesh", failing(41))
        assert summarise(generate(job(out))).failed == 1
    return out


@pytest.fixture
def heads(faulty, tmp_path) -> Path:
    return shutil.copytree(faulty, tmp_path / "heads")


def config(folder: Path) -> RemakeConfig:
    return RemakeConfig(str(folder), pool=INLINE)


def test_mended_causes_give_the_bytes_of_a_run_without_failures(whole, heads, monkeypatch):
    """The other heads are copied: making them would fail."""
    monkeypatch.setattr("datagen.identity._mesh", failing(40, 42, 43))
    assert list(map(str, retry(config(heads)))) == ["identity 1 (seed 41): kept"]
    assert files(heads) == files(whole) and list(verify(Dataset(str(heads)), deep=True)) == []
    assert not (heads / STAGING).exists()
    assert set(Dataset(str(heads)).done(0)["run"]["identity_seconds"]) == {"0", "1"}


def test_what_fails_again_is_recorded_again(heads, faulty, monkeypatch, capsys):
    monkeypatch.setattr("datagen.identity._mesh", failing(41))
    assert main(["retry", str(heads), "--inline"]) == 3
    said = "identity 1 (seed 41): failed again at stage mesh: ValueError: the surface is open"
    assert capsys.readouterr().out.strip() == said
    assert files(heads) == files(faulty)


def test_nothing_has_failed(whole, tmp_path, capsys):
    heads = shutil.copytree(whole, tmp_path / "heads")
    assert main(["retry", str(heads), "--inline"]) == 0
    assert "no head of a finished shard has failed" in capsys.readouterr().out
    assert files(heads) == files(whole) and not (heads / STAGING).exists()


@pytest.mark.parametrize("copies", [0, 3, 5])
def test_killed_while_it_replaces_it_goes_on(whole, heads, monkeypatch, copies):
    """After any number of copied files a reader sees the shard whole or not at all."""
    take, taken = Storage.take, []

    def dying(self, other, name):
        if len(taken) == copies:
            raise KeyboardInterrupt
        taken.append(name)
        take(self, other, name)

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "take", dying)
        with pytest.raises(KeyboardInterrupt):
            retry(config(heads))
    assert [fault.problem for fault in verify(Dataset(str(heads)), deep=True)] == ["not made yet"]
    retry(config(heads))
    assert files(heads) == files(whole) and not (heads / STAGING).exists()


def test_damage_is_not_copied(heads):
    tar = bytearray((heads / "shards/heads-000000.tar").read_bytes())
    tar[5000] ^= 4
    (heads / "shards/heads-000000.tar").write_bytes(tar)
    with pytest.raises(DamagedData, match="was changed; run spinset repair"):
        retry(config(heads))
    assert (heads / "shards/heads-000000.tar").read_bytes() == tar


def test_losses_are_forgotten(heads):
    ledger = Ledger(Storage(heads), "generate", lambda unit: False, remembers=True)
    ledger.record(1, [Loss(2, "head", "died", "a")])
    retry(config(heads))
    assert ledger.losses(1) == []


def test_other_commands_at_work_are_named(heads):
    other = Ledger(Storage(heads), "generate", lambda unit: False, note="4")
    with other, pytest.raises(UserError, match="other commands generate"):
        retry(config(heads))
    other = Ledger(Storage(heads / STAGING), "generate", lambda unit: False)
    with other, pytest.raises(UserError, match="another command is at work in"):
        retry(config(heads))
    other = Ledger(Storage(heads), "generate", lambda unit: False, note=STAGING)
    with other, pytest.raises(UserError, match="other commands are at work"):
        generate(job(heads))


def test_an_interrupted_command_whose_heads_still_failed_tries_them_again(whole, heads, monkeypatch):
    """It was interrupted before it replaced anything; then the cause was mended."""
    with monkeypatch.context() as patch:
        patch.setattr("datagen.identity._mesh", failing(41))
        patch.setattr("datagen.retry._replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            retry(config(heads))
    assert list(map(str, retry(config(heads)))) == ["identity 1 (seed 41): kept"]
    assert files(heads) == files(whole)


def test_killed_while_it_removes_its_folder_it_leaves_no_harm(whole, heads, monkeypatch):
    def half(self):
        (heads / STAGING / "dataset.json").unlink()
        (heads / STAGING / "shards/heads-000000.tar").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "remove_all", half)
        with pytest.raises(KeyboardInterrupt):
            retry(config(heads))
    assert list(verify(Dataset(str(heads)), deep=True)) == [] and retry(config(heads)) == []
    assert files(heads) == files(whole) and not (heads / STAGING).exists()


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt
