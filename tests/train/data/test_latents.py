"""Cached latents: equal to what diffusers encodes, resumed to the same bytes, and served as the loader serves pixels."""

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small import members_of, small_plan, write_shard
from tiny_vae import write_vae

from jobs import pool
from jobs.pool import PoolConfig
from jobs.units import Unit
from manifests.dataset import Dataset
from manifests.index import open_index
from manifests.latents import FOLDER, identity_background, latents_file, read_record, record_file, short_name
from manifests.plan import write_plan
from manifests.storage import Storage
from spinset import main
from train.batch import Batch
from train.data.config import LatentsConfig, LoaderConfig
from train.data.latents import LatentsWorker, make_latents
from train.data.loader import Loader, open_loader
from train.data.sampling import RandomK
from train.data.sources import LatentSource, open_latents
from train.networks.model import load_vae, vae_sha256

INLINE = PoolConfig(inline=True)
KEYS = [(0, 0, 0), (0, 0, 1)]


@pytest.fixture(scope="module")
def vae(tmp_path_factory) -> str:
    return write_vae(tmp_path_factory.mktemp("vae"))


@pytest.fixture
def config(make, vae) -> LatentsConfig:
    return LatentsConfig(make(resolution=16).storage.url, vae, batch=2, pool=INLINE)


@pytest.fixture
def cached(config) -> Dataset:
    """6 identities of 3 views in 3 shards, encoded."""
    assert make_latents(config) == []
    return Dataset(config.out)


def open_source(dataset: Dataset, vae: str, **options) -> LatentSource:
    config = LoaderConfig(dataset.storage.url, **{k: v for k, v in options.items() if k != "sample"})
    config = replace(config, latents=str(vae))
    return open_latents(dataset, open_index(dataset).select(), config, options.get("sample", True))


def loader(dataset: Dataset, vae: str, rank: int = 0, world: int = 1, **options) -> Loader:
    defaults = {"recipe": RandomK(2), "batch": 2, "workers": 0, "epochs": 2}
    config = LoaderConfig(dataset.storage.url, **{**defaults, **options})
    return open_loader(replace(config, latents=str(vae)), rank, world)


def files(dataset: Dataset) -> dict[str, str]:
    found = sorted(path for path in (Path(dataset.storage.url) / FOLDER).rglob("*") if path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def stored(dataset: Dataset, vae: str, shard: int) -> np.ndarray:
    return np.load(dataset.storage.path(latents_file(vae_sha256(vae), shard)), mmap_mode="r")


def everything(dataset: Dataset, vae: str) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([stored(dataset, vae, shard) for shard in range(3)]).astype(np.float32))


def picture(dataset: Dataset, row: int, member: str) -> np.ndarray:
    """A member decoded by PIL, in [0, 1]."""
    index = open_index(dataset)
    shard, place = int(index.shard[row]), int(row - np.searchsorted(index.shard, index.shard[row]))
    data = members_of(dataset, shard, member)[place]
    path = Path(dataset.storage.url) / "picture"
    path.write_bytes(data)
    with Image.open(path) as image:
        return np.asarray(image.convert("L" if member == "alpha" else "RGB"), np.float64) / 255


def test_what_is_stored_is_what_diffusers_encodes(cached, vae):
    model = load_vae(vae).model
    for row in (0, 4, 17):
        index = open_index(cached)
        shard, place = int(index.shard[row]), row - int(np.searchsorted(index.shard, index.shard[row]))
        rgb, alpha, normal = (picture(cached, row, member) for member in ("rgb", "alpha", "normal"))
        colour = np.array(identity_background(cached.plan.seed, int(index.identity[row]))) / 255
        over = (rgb + (1 - alpha[..., None]) * (colour - 1)).clip(0, 1)
        images = torch.tensor(np.stack([rgb, over, normal]) * 2 - 1, dtype=torch.float32).permute(0, 3, 1, 2)
        with torch.no_grad():
            expected = model.encode(images).latent_dist
        ours = torch.from_numpy(stored(cached, vae, shard)[place].astype(np.float32))
        torch.testing.assert_close(ours[:, 0], expected.mean, atol=1e-4, rtol=2**-10)
        torch.testing.assert_close(ours[:, 1], expected.std, atol=1e-4, rtol=2**-10)
        assert not torch.equal(ours[0], ours[1])


def test_plain_files_and_a_record(cached, vae):
    sha256 = vae_sha256(vae)
    for shard in range(3):
        record = read_record(cached, sha256, shard)
        assert stored(cached, vae, shard).shape == record.shape == (6, 3, 2, 4, 2, 2)
        assert stored(cached, vae, shard).dtype == np.float16
        assert record.scaling_factor == 0.18215 and record.vae_sha256 == sha256
        assert record.backgrounds == {str(i): identity_background(0, i) for i in (2 * shard, 2 * shard + 1)}
    assert sorted(files(cached)) == sorted(f"heads-00000{s}.{kind}" for s in range(3) for kind in ("npy", "json"))


def test_a_job_resumes_to_the_same_bytes(cached, config, vae):
    before, sha256 = files(cached), vae_sha256(vae)
    whole = Path(cached.storage.path(latents_file(sha256, 0)))
    stamp = whole.stat().st_mtime_ns
    cached.storage.remove(record_file(sha256, 1))
    cached.storage.remove(latents_file(sha256, 2))
    lost = Path(cached.storage.path(latents_file(sha256, 1)))
    lost.write_bytes(lost.read_bytes()[:100])
    make_latents(config)
    assert files(cached) == before
    assert whole.stat().st_mtime_ns == stamp


def test_a_part_gives_the_same_bytes(cached, config, vae):
    before = files(cached)
    for shard in range(3):
        cached.storage.remove(record_file(vae_sha256(vae), shard))
    make_latents(replace(config, pool=PoolConfig(workers=1, part="1/2")))
    assert files(cached) == before


def test_shards_that_are_made_meanwhile_are_named(tmp_path, vae, monkeypatch, capsys):
    storage, plan = Storage(tmp_path / "heads"), small_plan()
    write_plan(storage, plan)
    command = ["latents", storage.url, "--vae", vae, "--inline"]
    assert main(command) == 3
    assert "no shard of the dataset is finished" in capsys.readouterr().out
    write_shard(storage, plan, 0)
    run = pool.run

    def run_beside_generate(*args):
        write_shard(storage, plan, 1)
        run(*args)

    monkeypatch.setattr(pool, "run", run_beside_generate)
    assert main(command) == 3
    assert "shards 1 were made since" in capsys.readouterr().out.splitlines()[-1]
    monkeypatch.undo()
    assert main(command) == 0


def test_a_worker_that_stops_in_the_middle_leaves_nothing(cached, config, vae):
    before = files(cached)
    shutil.rmtree(Path(config.out) / FOLDER)
    events = LatentsWorker(config).run(Unit(1))
    assert [(e.item, e.done, e.total) for e in (next(events) for _ in range(3))] == [(2, 0, 3), (2, 2, 3), (2, 2, 3)]
    events.close()
    assert files(cached) == {}
    make_latents(config)
    assert files(cached) == before


def test_a_shard_made_anew_is_encoded_anew(cached, config, vae):
    before, name = files(cached), cached.file(1, ".done.json")
    done = cached.done(1)
    done["files"][".tar"]["sha256"] = "0" * 64
    cached.storage.write(name, json.dumps(done).encode())
    with pytest.raises(ValueError, match=r"1 of 3 shards .first: those of heads-000001 are older than the shard.; run"):
        loader(cached, vae)
    make_latents(config)
    changed = {name for name, digest in files(cached).items() if digest != before[name]}
    assert changed == {"heads-000001.json"}
    assert len(loader(cached, vae)) == 6


def test_another_autoencoder_has_its_own_folder(cached, config, tmp_path, vae):
    other = write_vae(tmp_path / "other", seed=1)
    make_latents(replace(config, vae=other))
    folders = sorted(path.name for path in (Path(config.out) / FOLDER).iterdir())
    assert folders == sorted(short_name(vae_sha256(folder)) for folder in (vae, other))
    assert not np.array_equal(stored(cached, vae, 0), stored(cached, other, 0))


def test_the_mean_and_a_draw(cached, vae):
    rows, white = np.array([[0, 2], [7, 6]]), np.ones((2, 3), np.float32)
    found = open_source(cached, vae, sample=False).read(rows, white, ("rgb", "normal"), KEYS)
    there = everything(cached, vae)[rows]
    torch.testing.assert_close(found["rgb"], there[:, :, 0, 0] * 0.18215)
    torch.testing.assert_close(found["normal"], there[:, :, 2, 0] * 0.18215)
    source = open_source(cached, vae)
    draws = [source.read(rows, white, ("rgb",), [(0, epoch, 0), (0, epoch, 1)])["rgb"] for epoch in range(400)]
    z = (torch.stack(draws) / 0.18215 - there[:, :, 0, 0]) / there[:, :, 0, 1]
    assert abs(float(z.mean())) < 0.02 and abs(float(z.std()) - 1) < 0.02
    of_views = torch.corrcoef(z.flatten(3).permute(1, 2, 0, 3).reshape(4, -1))
    assert (of_views - torch.eye(4)).abs().max() < 0.1


def test_the_noise_of_a_view_depends_on_its_sample_alone(cached, vae):
    source, white = open_source(cached, vae), np.ones((2, 3), np.float32)
    both = source.read(np.array([[0, 2], [7, 6]]), white, ("rgb", "normal"), KEYS)
    alone = source.read(np.array([[7, 6]]), white[:1], ("normal",), KEYS[1:])
    assert torch.equal(both["normal"][1], alone["normal"][0])
    for other in ((1, 0, 1), (0, 1, 1), (0, 0, 2)):
        assert not torch.equal(
            source.read(np.array([[7, 6]]), white[:1], ("normal",), [other])["normal"], alone["normal"]
        )


def test_coloured_views_lie_over_the_colour_of_their_identity(cached, vae):
    rows, background = np.array([[0, 2], [7, 6]]), np.ones((2, 3), np.float32)
    background[1] = 0.25
    found = open_source(cached, vae, sample=False).read(rows, background, ("rgb",), KEYS)
    there = everything(cached, vae)
    expected = torch.stack([there[rows[0], 0, 0], there[rows[1], 1, 0]]) * 0.18215
    torch.testing.assert_close(found["rgb"], expected)
    assert found["background"][0].tolist() == [1, 1, 1]
    torch.testing.assert_close(found["background"][1], torch.tensor(identity_background(0, 2)) / 255)


def same(a: Batch, b: Batch) -> bool:
    names = ("index", "view", "background", "rgb", "normal")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)


def test_the_loader_serves_latents_as_it_serves_pixels(cached, vae):
    ours = list(loader(cached, vae))
    pixels = list(open_loader(LoaderConfig(cached.storage.url, RandomK(2), batch=2, workers=0, epochs=2)))
    for batch, of_pixels in zip(ours, pixels, strict=True):
        assert torch.equal(batch.index, of_pixels.index) and torch.equal(batch.view, of_pixels.view)
        assert batch.rgb.shape == batch.normal.shape == (2, 2, 4, 2, 2) and batch.rgb.dtype == torch.float32
        coloured = (of_pixels.background != 1).any(1)
        assert torch.equal((batch.background != 1).any(1), coloured)
        own = torch.tensor([identity_background(0, int(i)) for i in batch.identity]) / 255
        assert torch.equal(batch.background[coloured], own[coloured])
    assert 0 < sum(int((batch.background != 1).any(1).sum()) for batch in ours) < 12


def test_workers_ranks_and_resumes_change_nothing(cached, vae):
    plain = list(loader(cached, vae))
    for one, other in zip(plain, list(loader(cached, vae, workers=2)), strict=True):
        assert same(one, other)
    ranks = [list(loader(cached, vae, rank, 2)) for rank in range(2)]
    for one, *parts in zip(plain, *ranks, strict=True):
        for rank, part in enumerate(parts):
            assert torch.equal(one.rgb[rank::2], part.rgb) and torch.equal(one.normal[rank::2], part.normal)
    begun = loader(cached, vae)
    steps = iter(begun)
    for _ in range(2):
        next(steps)
    resumed = loader(cached, vae)
    resumed.resume(begun.state().to_json())
    assert all(same(one, other) for one, other in zip(plain[2:], resumed, strict=True))


def test_control_pictures_beside_latents_are_the_stored_ones_over_white(cached, vae):
    batch = next(iter(loader(cached, vae, control=True, random_background=1.0)))
    assert (batch.background != 1).any(1).all()
    config = LoaderConfig(cached.storage.url, RandomK(3), batch=6, members=("rgb",), workers=0, random_background=0.0)
    everyone = next(iter(open_loader(config)))
    for identity, views, pictures in zip(batch.identity, batch.view, batch.control, strict=True):
        for view, picture in zip(views, pictures, strict=True):
            is_same = (everyone.rgb == picture).flatten(2).all(2) & (everyone.view == view)
            assert is_same.sum() == 1 and int(everyone.identity[is_same.any(1)]) != identity


def test_exactly_the_parts_that_are_needed_are_read(cached, vae, monkeypatch):
    lengths, preadv = [], os.preadv

    def counted(*args):
        lengths.append(preadv(*args))
        return lengths[-1]

    monkeypatch.setattr(os, "preadv", counted)
    rows, white = np.array([[0, 2], [7, 6]]), np.ones((2, 3), np.float32)
    open_source(cached, vae).read(rows, white, ("rgb", "normal"), KEYS)
    assert sum(lengths) == 4 * 2 * (2 * 4 * 2 * 2) * 2
    lengths.clear()
    open_source(cached, vae, sample=False).read(rows, white, ("rgb",), KEYS)
    assert sum(lengths) == 4 * 1 * (4 * 2 * 2) * 2


def test_remote_latents_are_read_as_local_ones(cached, vae):
    remote = Storage("memory://latents-test")
    for path in Path(cached.storage.url).rglob("*"):
        if path.is_file():
            remote.write(path.relative_to(cached.storage.url).as_posix(), path.read_bytes())
    for one, other in zip(list(loader(cached, vae)), list(loader(Dataset(remote), vae)), strict=True):
        assert same(one, other)


def test_files_that_vanish_or_end_early_are_one_line(cached, vae):
    cut, gone = loader(cached, vae), loader(cached, vae)
    file = Path(cached.storage.path(latents_file(vae_sha256(vae), 1)))
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"heads-000001.npy, 000000[23]_v00\d is cut: the file ends before it"):
        list(cut)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"heads-000001.npy of .* is gone, .* run spinset latents again"):
        list(gone)


def test_latents_that_do_not_fit_are_refused_before_the_first_step(cached, make, config, vae, tmp_path):
    other, sha256 = write_vae(tmp_path / "other", seed=1), vae_sha256(vae)
    says = (
        rf"{other} has no latents, .* \(but of {short_name(sha256)}\); run spinset latents {config.out} --vae {other}"
    )
    with pytest.raises(ValueError, match=says):
        loader(cached, other)
    cached.storage.remove(record_file(sha256, 2))
    with pytest.raises(
        ValueError, match=r"1 of 3 shards .first: those of heads-000002 are missing.; run spinset latents"
    ):
        loader(cached, vae)
    elsewhere = make(resolution=16, seed=7, name="elsewhere")
    with pytest.raises(ValueError, match="has no latents"):
        loader(elsewhere, vae)
    shutil.copytree(Path(config.out) / FOLDER, Path(elsewhere.storage.url) / FOLDER)
    with pytest.raises(ValueError, match=r"3 of 3 shards .first: those of heads-000000 are of another dataset"):
        loader(elsewhere, vae)
    file = Path(cached.storage.path(latents_file(sha256, 0)))
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(ValueError, match=r"2 of 3 shards .first: those of heads-000000 are cut short"):
        loader(cached, vae)
    cached.storage.write(record_file(sha256, 0), b"{}")
    with pytest.raises(ValueError, match="those of heads-000000 are damaged"):
        loader(cached, vae)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"members": ("rgb", "alpha")}, "--loader.members hold alpha; there are latents of rgb and normal"),
        ({"resolution": 8}, "--loader.resolution is 8; these are the latents of 16 px"),
        ({"as_uint8": True}, "--loader.as-uint8 is for pixels"),
        ({"decode": False}, "--loader.no-decode is for pixels"),
    ],
)
def test_what_only_pixels_give_is_refused(cached, vae, options, says):
    with pytest.raises(ValueError, match=says):
        loader(cached, vae, **options)


def test_bad_jobs_are_one_line(make, vae, tmp_path):
    with pytest.raises(ValueError, match="--batch is 0"):
        LatentsConfig("out", vae, batch=0)
    with pytest.raises(ValueError, match="--device is 'tpu'"):
        LatentsConfig("out", vae, device="tpu")
    odd = make(resolution=12, name="odd")
    with pytest.raises(ValueError, match="one latent of 8 x 8 px; the dataset has 12 px, which is no multiple of it"):
        make_latents(LatentsConfig(odd.storage.url, vae, pool=INLINE))
    with pytest.raises(FileNotFoundError, match="is not an autoencoder: it has no"):
        make_latents(LatentsConfig(odd.storage.url, str(tmp_path), pool=INLINE))


def test_a_broken_picture_is_named(config):
    dataset = Dataset(config.out)
    tar, at = Path(dataset.storage.path(dataset.file(1, ".tar"))), dataset.views(1).column("normal").to_pylist()[4]
    data = bytearray(tar.read_bytes())
    data[at["offset"] : at["offset"] + at["size"]] = bytes(at["size"])
    tar.write_bytes(data)
    with pytest.raises(
        ValueError, match=r"heads-000001.tar, 0000003_v001.normal.png does not decode; run spinset repair "
    ):
        make_latents(config)


def test_an_identity_that_kills_its_workers_stops_the_job(config):
    with pytest.raises(ValueError, match="identity 3 cannot be encoded: it died"):
        next(LatentsWorker(config).run(Unit(1, {3: "it died"})))
