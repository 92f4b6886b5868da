"""Generation end to end: the same bytes however it is run, whatever kills it, and three honest outcomes."""

import hashlib
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from egg import EggConfig, egg_job
from PIL import Image
from small import members_of

from datagen.config import MeshConfig, SourceConfig
from datagen.generate import generate, make_plan
from datagen.sources.panohead.head import PanoHeadSource
from datagen.sources.procedural import ProceduralSource
from exports.config import ExportConfig, PackConfig
from exports.export import export
from exports.pack import pack
from geometry.cameras import azimuth_elevation
from geometry.meshes import decode_normals
from jobs.pool import PoolConfig
from manifests.dataset import Dataset
from manifests.errors import UserError
from manifests.plan import PlanMismatch
from manifests.status import summarise
from manifests.storage import Storage
from manifests.verify import verify

INLINE = PoolConfig(inline=True)


@pytest.fixture(autouse=True)
def _eggs_travel_by_value():
    import egg
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(egg)


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Dataset:
    """Seven eggs made in this process, undisturbed."""
    return generate(egg_job(str(tmp_path_factory.mktemp("eggs") / "reference"), INLINE))


def hashes(dataset: Dataset) -> dict[str, str]:
    """Every file of a dataset but the records of how each shard was made, and of the workers that were lost with it."""
    root = Path(dataset.storage.root)
    files = sorted(
        f for f in root.rglob("*") if f.is_file() and not f.name.endswith(".done.json") and "losses" not in f.parts
    )
    return {str(f.relative_to(root)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_a_dataset_verifies_and_counts(reference):
    assert list(verify(reference, deep=True)) == []
    status = summarise(reference)
    assert (status.kept, status.failed, status.views, status.shards_done) == (7, 0, 42, 4)


def test_ray_workers_make_the_same_bytes(reference, tmp_path):
    made = generate(egg_job(str(tmp_path / "ray"), PoolConfig(workers=2)))
    assert hashes(made) == hashes(reference)


@pytest.mark.parametrize("point", [1, 2, 4, 5, 7, 12, 14, 27, 40, 51])
def test_killed_in_a_commit_and_resumed_it_ends_equal(reference, tmp_path, point):
    """The process dies by SIGKILL before a fsync or a rename: of dataset.json, tars, tables, records and the index."""
    out = tmp_path / "eggs"
    assert _job(out, workers=0, point=point).wait() == -signal.SIGKILL
    resumed = generate(egg_job(str(out), INLINE))
    assert hashes(resumed) == hashes(reference)
    assert list(verify(resumed, deep=True)) == []


@pytest.mark.parametrize("point", [1, 12])
def test_a_worker_killed_in_a_commit_is_replaced_and_it_ends_equal(reference, tmp_path, point):
    marker = tmp_path / "killed"
    source = EggConfig(kill_at=point, marker=str(marker), driver=os.getpid())
    made = generate(egg_job(str(tmp_path / "eggs"), PoolConfig(workers=1), source=source))
    assert marker.exists() and not made.pending()
    assert hashes(made) == hashes(reference)


def test_killed_with_its_workers_and_resumed_it_ends_equal(reference, tmp_path):
    """Driver, Ray and workers die by SIGKILL when the first shard is committed."""
    out = tmp_path / "eggs"
    job = _job(out, workers=2)
    while not list(out.glob("shards/*.done.json")):
        assert job.poll() is None
        time.sleep(0.01)
    family = [psutil.Process(job.pid), *psutil.Process(job.pid).children(recursive=True)]
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    assert job.wait() == -signal.SIGKILL
    psutil.wait_procs(family)
    assert hashes(generate(egg_job(str(out), INLINE))) == hashes(reference)


def _job(out: Path, workers: int, point: int = 0) -> subprocess.Popen[bytes]:
    script = f"import sys; sys.path.append('tests'); import egg; egg.main({str(out)!r}, {workers}, {point})"
    return subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL, cwd=Path(__file__).parents[2])


def test_meshes_are_kept_on_request(reference, tmp_path):
    import trimesh

    dataset = generate(egg_job(str(tmp_path / "eggs"), INLINE, identities=1, save_meshes=True))
    mesh = trimesh.load(f"{dataset.storage.root}/meshes/0000000.ply")
    assert mesh.is_watertight
    assert len(mesh.faces) == dataset.all_identities.column("mesh").to_pylist()[0]["faces"]


def test_seeds_beyond_those_of_the_source_are_refused_before_anything_is_made(tmp_path):
    """The last seed counts: eggs end at seed 1000, and 7 identities from 995 would reach 1001."""
    with pytest.raises(
        UserError, match=r"--seed 995 with --identities 7 needs seeds up to 1001, but the seeds of egg end at 1000"
    ):
        generate(egg_job(str(tmp_path / "eggs"), INLINE, seed=995))
    assert not (tmp_path / "eggs").exists()
    make_plan(job := egg_job(str(tmp_path / "eggs"), INLINE, seed=994), job.source.open("cpu"))
    assert (PanoHeadSource.max_seed, ProceduralSource.max_seed) == (2**32 - 1, 2**63 - 1)


def test_the_hashes_of_meshes_are_committed_and_packed(reference, tmp_path):
    dataset = generate(egg_job(str(tmp_path / "eggs"), INLINE, identities=2, save_meshes=True))
    record = dataset.done(0)
    assert "meshes" not in reference.done(0) and list(record["meshes"]) == ["meshes/0000000.ply", "meshes/0000001.ply"]
    for name, file in record["meshes"].items():
        data = dataset.storage.read(name)
        assert file == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    packed = pack(PackConfig(str(tmp_path / "eggs"), str(tmp_path / "pack")))
    assert packed.done(0)["meshes"] == record["meshes"] and list(verify(packed, deep=True)) == []
    export(ExportConfig(str(tmp_path / "eggs"), str(tmp_path / "copy"), "energon"))
    assert list(verify(Dataset(str(tmp_path / "copy")), deep=True)) == []


def files(dataset: Dataset, shard: int) -> list[tuple[int, int]]:
    """Inode and nanosecond of a shard's files: a file that is made anew has others."""
    found = [Path(dataset.storage.root, dataset.file(shard, suffix)).stat() for suffix in (".tar", ".done.json")]
    return [(file.st_ino, file.st_mtime_ns) for file in found]


def test_resume_makes_only_what_is_missing(reference, tmp_path):
    dataset = generate(egg_job(str(tmp_path / "eggs"), INLINE))
    dataset.storage.remove(dataset.file(2, ".done.json"))
    dataset.storage.remove(dataset.file(2, ".tar"))
    before = {s: files(dataset, s) for s in dataset.committed()}
    generate(egg_job(str(tmp_path / "eggs"), INLINE))
    assert {s: files(dataset, s) for s in before} == before
    assert hashes(dataset) == hashes(reference)


def test_another_plan_is_refused_and_nothing_is_touched(reference):
    before = hashes(reference)
    with pytest.raises(PlanMismatch, match="resolution is 32, asked for 64"):
        generate(egg_job(reference.storage.root, INLINE, resolution=64))
    assert hashes(reference) == before


def test_a_clock_that_jumps_changes_nothing(reference, tmp_path, monkeypatch):
    """It goes back by a day and forward by two, again and again, also while scratch files are looked at."""
    real, jumps = time.time, itertools.cycle((0, -86_400, 172_800))
    monkeypatch.setattr("time.time", lambda: real() + next(jumps))
    scratch = Storage(tmp_path / "eggs").scratch("shards/heads-000000.tar")
    scratch.write_bytes(b"of this process, which is alive")
    made = generate(egg_job(str(tmp_path / "eggs"), INLINE))
    assert scratch.exists()
    scratch.unlink()
    assert hashes(made) == hashes(reference) and summarise(made).identities_per_hour > 0


def test_a_head_that_fails_is_recorded_with_its_reason_and_the_rest_is_kept(tmp_path):
    faults = ((1, "raise"), (2, "raise-once"), (3, "empty"))
    dataset = generate(egg_job(str(tmp_path / "eggs"), INLINE, source=EggConfig(faults=faults)))
    rows = {row["identity"]: row for row in dataset.all_identities.to_pylist()}
    assert [rows[i]["outcome"] for i in range(7)] == ["kept", "failed", "kept", "failed", "kept", "kept", "kept"]
    assert (rows[1]["stage"], rows[1]["reason"]) == ("head", "RuntimeError: egg 1 is broken")
    assert rows[3]["stage"] == "mesh" and "no surface" in rows[3]["reason"]
    assert "egg 1 is broken" in dataset.done(0)["run"]["tracebacks"]["1"]
    assert list(verify(dataset, deep=True)) == []
    status = summarise(dataset)
    assert (status.kept, status.failed, status.views) == (5, 2, 30)
    assert "failed: identity 1 (seed 1) at stage head: RuntimeError: egg 1 is broken" in str(status)


def test_shards_of_failed_heads_verify_and_stay(tmp_path):
    """Seeds 0 and 1 fail, so the first shard holds no view; then their fault is gone."""
    job = egg_job(str(tmp_path / "eggs"), INLINE, source=EggConfig(faults=((0, "raise"), (1, "raise"))))
    dataset = generate(job)
    assert summarise(dataset).failed == 2
    assert list(verify(dataset, deep=True)) == []
    healed = egg_job(str(tmp_path / "eggs"), INLINE)
    assert summarise(generate(healed)).failed == 2


def test_a_head_that_kills_its_worker_is_recorded_and_the_rest_is_kept(reference, tmp_path):
    dying = egg_job(str(tmp_path / "eggs"), PoolConfig(workers=2), source=EggConfig(faults=((4, "die"),)))
    dataset = generate(dying)
    rows = {row["identity"]: row for row in dataset.all_identities.to_pylist()}
    assert [i for i, row in rows.items() if row["outcome"] == "failed"] == [4]
    assert (rows[4]["stage"], rows[4]["reason"]) == (
        "worker",
        "its worker died at stage head, the last of 3 that were lost to it",
    )
    assert dataset.done(0)["files"] == reference.done(0)["files"]


def test_a_head_that_takes_all_memory_is_given_up_and_the_rest_is_kept(reference, tmp_path):
    """In worker processes, without Ray; want of memory is not the head's fault before it ran alone."""
    eager = EggConfig(faults=((4, "memory"),))
    dataset = generate(egg_job(str(tmp_path / "eggs"), PoolConfig(workers=2, part="0/1"), source=eager))
    rows = {row["identity"]: row for row in dataset.all_identities.to_pylist()}
    assert [i for i, row in rows.items() if row["outcome"] == "failed"] == [4]
    assert rows[4]["reason"].startswith(
        "its worker broke (MemoryError at stage head: an egg is too large) at stage head"
    )
    assert {s: dataset.done(s)["files"] for s in (0, 1, 3)} == {s: reference.done(s)["files"] for s in (0, 1, 3)}


def test_every_view_says_what_its_row_says(reference):
    for shard in reference.committed():
        rows = reference.views(shard).to_pylist()
        for row, data in zip(rows, members_of(reference, shard, "json"), strict=True):
            view = json.loads(data)
            assert (view["identity"], view["seed"], view["view"]) == (row["identity"], row["identity"], row["view"])
            assert np.allclose(view["c2w"], row["c2w"], atol=1e-6) and np.allclose(view["K"], row["K"], atol=1e-6)
            azimuth, elevation = azimuth_elevation(torch.tensor(row["c2w"]).reshape(1, 4, 4))
            assert (azimuth - row["azimuth"] + 180).remainder(360) - 180 == pytest.approx(0, abs=1e-3)
            assert elevation == pytest.approx(row["elevation"], abs=1e-3)


@pytest.mark.parametrize("source", [EggConfig(), SourceConfig()], ids=["egg", "procedural"])
def test_colour_alpha_and_normals_of_a_view_align(tmp_path, source):
    """Their silhouettes, as stored, have an IoU above 0.98 in every view."""
    made = {"source": source, "identities": 1, "resolution": 128, "mesh": MeshConfig(256)}
    dataset = generate(egg_job(str(tmp_path / "heads"), INLINE, **made))
    members = [members_of(dataset, 0, name) for name in ("rgb", "alpha", "normal")]
    for rgb, alpha, normal in zip(*members, strict=True):
        seen = _pixels(alpha) > 127
        meshed = np.abs(decode_normals(_pixels(normal))).sum(-1) > 0
        # Over white: a pixel that is half covered is well below this, one that is barely covered is above.
        coloured = _pixels(rgb).min(-1) < 215
        assert _iou(seen, meshed) > 0.98
        assert _iou(seen, coloured) > 0.98


def _pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()
