"""The score job on a small dataset: whole parts, resumed, never touching the shards, the same inline and on Ray."""

import hashlib
import io
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from egg import egg_job
from PIL import Image
from small import members_of, small_plan, write_shard

from datagen.generate import generate
from filters.config import ArcFaceConfig, ClipConfig, RejectConfig, ScoreConfig, SelectConfig
from filters.early import EarlyRejection
from filters.rules import read_policy
from filters.score import open_scorers, score, score_shard
from filters.scorer import Scorer
from filters.scorers import SCORERS
from filters.scorers.duplicates import COLUMNS as DUPLICATES
from filters.select import select
from jobs import pool
from jobs.pool import PoolConfig
from jobs.units import Unit
from manifests.dataset import Dataset
from manifests.errors import UserError
from manifests.plan import write_plan
from manifests.scores import (
    IDENTITY,
    VIEW,
    WHOLE,
    Lineage,
    ScoresMismatch,
    column,
    open_scores,
    part_file,
    read_part,
    shard_hashes,
    tables,
)  # fmt: skip
from manifests.storage import Storage
from manifests.verify import verify
from spinset import main
from weights.embedded import CLIP, RECOGNISER

INLINE = PoolConfig(inline=True)


@pytest.fixture
def config(eggs, tiny_clip, tiny_arcface) -> ScoreConfig:
    clip, arcface = ClipConfig(f"local-dir:{tiny_clip}"), ArcFaceConfig(str(tiny_arcface))
    return ScoreConfig(eggs.storage.url, clip=clip, arcface=arcface, pool=INLINE)


@pytest.fixture
def scored(config, eggs) -> Dataset:
    score(config)
    return eggs


def files(folder: str) -> dict[str, str]:
    found = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def test_every_table_holds_every_view_and_identity(scored):
    assert tables(scored.storage) == ["arcface", "clip_janus", "duplicates", "image", "mesh"]
    for table in tables(scored.storage):
        rows = open_scores(scored, table, shard_hashes(scored)).rows
        assert rows["identity"].to_pylist() == [i for i in range(7) for _ in range(7)]
        assert rows["view"].to_pylist() == list(range(-1, 6)) * 7
        azimuths = rows["azimuth"].to_pylist()[:7]
        assert azimuths == [None, 0, 60, 120, -180, -120, -60]


def test_columns_are_null_where_nobody_looked(scored):
    clip = open_scores(scored, "clip_janus", shard_hashes(scored))
    front, asked = clip.numbers("front")
    assert asked.reshape(7, 6)[0].tolist() == [False, False, True, True, True, False]
    assert np.abs(front[asked]).max() <= 1
    embedded = read_part(scored, "arcface", 0).column("embedding")
    assert [v is not None for v in embedded.to_pylist()[:7]] == [False, True, True, False, False, False, True]
    assert open_scores(scored, "mesh", shard_hashes(scored)).numbers("holes")[0].tolist() == [0] * 7


def test_scoring_changes_no_shard_and_ends_where_it_ended(scored, config):
    before = files(scored.storage.url)
    score(config)
    assert files(scored.storage.url) == before
    assert not list(verify(scored, deep=True))


def test_a_job_resumes_where_it_was_killed(scored, config):
    """Only the parts that are missing are written, also of a shard that lacks the part of one table."""
    before = files(scored.storage.url)
    lost = [part_file("mesh", 1), part_file("image", 3)]
    for file in (*lost, "scores/mesh.parquet", "scores/arcface.parquet"):
        scored.storage.remove(file)
    parts = list(Path(scored.storage.path("scores")).glob("*/heads-*.parquet"))
    stamps = {path: path.stat().st_mtime_ns for path in parts}
    assert len(parts) == 4 * 4 - len(lost)
    score(config)
    assert files(scored.storage.url) == before
    assert {path: path.stat().st_mtime_ns for path in parts} == stamps


def test_other_weights_are_another_table_or_replace(scored, config, tmp_path):
    from tiny import write_recogniser

    other = write_recogniser(tmp_path / "other.onnx", dimensions=16)
    faces = replace(config, scorers=("arcface",), arcface=replace(config.arcface, model=str(other)))
    with pytest.raises(ScoresMismatch, match=r"scores/arcface/.* was made by weights_sha256"):
        score(faces)
    score(replace(faces, arcface=replace(faces.arcface, table="arcface-small")))
    assert "arcface-small" in tables(scored.storage)
    score(replace(faces, replace=True))
    assert read_part(scored, "arcface", 0).column("embedding").type.list_size == 16
    score(replace(config, replace=True))


@pytest.mark.parametrize("pool", [PoolConfig(workers=1), PoolConfig(workers=1, part="1/2")], ids=["ray", "part"])
def test_workers_give_the_same_bytes(scored, config, pool):
    before = files(scored.storage.url)
    for shard in range(4):
        scored.storage.remove(part_file("arcface", shard))
    score(replace(config, scorers=("arcface",), pool=pool))
    assert files(scored.storage.url) == before


def test_a_policy_runs_on_real_tables_and_a_preset_on_those_of_its_weights_only(scored, tmp_path):
    for preset in ("gen3d-face", "diffportrait360", "spinmeround"):
        document = read_policy(preset)[1] | {"requires": {}}
        (tmp_path / "policy.json").write_text(json.dumps(document))
        made = select(SelectConfig(scored.storage.url, policy=str(tmp_path / "policy.json")))
        assert made.summary["identities"]["judged"] == 7
        with pytest.raises(
            UserError, match=rf"limits of policy {preset} belong to clip_janus with weights_sha256 '1d0b"
        ):
            select(SelectConfig(scored.storage.url, policy=preset))


def test_an_identity_that_kills_its_workers_gets_nan(config, eggs, tmp_path):
    beside = ThreadPoolExecutor(1)
    scorers, _ = open_scorers(replace(config, scorers=("mesh", "arcface")), "egg")
    kept = eggs.storage.read(part_file("mesh", 0)), eggs.storage.read(part_file("arcface", 0))
    list(score_shard(eggs, Unit(0, {1: "it died"}), scorers, beside, ahead=2))
    mesh, arcface = read_part(eggs, "mesh", 0), read_part(eggs, "arcface", 0)
    eggs.storage.write(part_file("mesh", 0), kept[0])
    eggs.storage.write(part_file("arcface", 0), kept[1])
    assert np.isnan(mesh.column("iou").to_numpy()[8:]).all() and not np.isnan(mesh.column("iou").to_numpy()[1:7]).any()
    assert mesh.column("holes").to_pylist()[0] == 0 and np.isnan(mesh.column("holes").to_pylist()[7])
    assert arcface.column("embedding").to_pylist()[7:] == [None] * 7


def test_embedded_models_judge_procedural_heads_only(eggs, tmp_path, capsys):
    """Whether nothing or the path of the embedded model is given; the override is part of the table's lineage."""
    shutil.copytree(eggs.storage.url, tmp_path / "eggs", ignore=shutil.ignore_patterns("scores", "selections"))
    out = str(tmp_path / "eggs")
    for arguments, option in (
        (["--scorers", "image", "clip_janus"], "--clip.model"),
        (["--scorers", "clip_janus", "--clip.model", f"local-dir:{CLIP}"], "--clip.model"),
        (["--scorers", "arcface"], "--arcface.model"),
        (["--scorers", "arcface", "--arcface.model", str(RECOGNISER)], "--arcface.model"),
    ):
        assert main(["score", out, "--inline", *arguments]) == 2
        said = capsys.readouterr().err.strip()
        assert "trained on procedural heads only, and these are egg" in said
        assert f"{option}, or --allow-embedded" in said and "\n" not in said
    assert not (tmp_path / "eggs" / "scores").exists()
    assert main(["score", out, "--inline", "--scorers", "clip_janus", "arcface", "--allow-embedded"]) == 0
    dataset = Dataset(out)
    for table in ("clip_janus", "arcface"):
        assert open_scores(dataset, table, shard_hashes(dataset)).lineage.settings["allow_embedded"] is True
    # The same models without the override are another lineage, so its tables are never taken for sound ones.
    with pytest.raises(UserError, match="trained on procedural heads only"):
        score(ScoreConfig(out, scorers=("arcface",), pool=INLINE))


def test_the_override_leaves_no_trace_where_it_is_not_needed(config):
    scorers, _ = open_scorers(replace(config, allow_embedded=True), "egg")
    scorers += open_scorers(ScoreConfig("out", allow_embedded=True), "procedural")[0]
    assert len(scorers) == 8
    assert all("allow_embedded" not in scorer.lineage.settings for scorer in scorers)


def damage(dataset: Dataset, member: str) -> bytes:
    """Zeros in place of the picture of view 3 of the first identity; returns the tar as it was."""
    tar = Path(dataset.storage.path(dataset.file(0, ".tar")))
    sound = tar.read_bytes()
    at = dataset.views(0).column(member).to_pylist()[3]
    data = bytearray(sound)
    data[at["offset"] : at["offset"] + at["size"]] = bytes(at["size"])
    tar.write_bytes(data)
    return sound


def test_a_picture_that_does_not_decode_gives_nan_and_is_scored_once_repaired(tmp_path, capsys):
    dataset = generate(egg_job(str(tmp_path / "heads"), INLINE, identities=4))
    command = ["score", dataset.storage.url, "--inline", "--scorers", "image"]
    assert main(command) == 0
    sound = files(dataset.storage.url)
    whole = damage(dataset, "alpha")
    dataset.storage.remove(part_file("image", 0))
    for _ in range(2):  # the second time it is not forgotten
        capsys.readouterr()
        assert main(command) == 3
        assert (
            "identity 0 has no scores: 0000000_v003.alpha does not decode" in capsys.readouterr().out.splitlines()[-1]
        )
        scores = open_scores(dataset, "image", shard_hashes(dataset))
        fog = scores.numbers("fog")[0].reshape(4, 6)
        assert np.isnan(fog[0]).all() and not np.isnan(fog[1:]).any()
    metadata = pq.read_schema(dataset.storage.path("scores/image.parquet")).metadata
    assert list(json.loads(metadata[b"spinset.scores"])["unreadable"]) == ["0"]
    Path(dataset.storage.path(dataset.file(0, ".tar"))).write_bytes(whole)  # as spinset repair does
    assert main(command) == 0
    assert files(dataset.storage.url) == sound


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scorers": ("frog",)}, "--scorers holds 'frog'"),
        ({"scorers": ()}, "one scorer or more"),
        ({"scorers": ("mesh", "mesh")}, "each once"),
        ({"device": "tpu"}, "--device is 'tpu'"),
        ({"decoders": -1}, "--decoders is -1"),
    ],
)
def test_bad_configs(change, message):
    with pytest.raises(ValueError, match=message):
        ScoreConfig("out", **change)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_without_a_gpu_is_said(eggs):
    with pytest.raises(ValueError, match="this machine has no usable CUDA device"):
        score(ScoreConfig(eggs.storage.url, device="cuda"))


def test_duplicates_needs_arcface(tmp_path):
    dataset = generate(egg_job(str(tmp_path / "heads"), INLINE, identities=1))
    with pytest.raises(
        ValueError, match="duplicates compares the embeddings of arcface: there are no scores of 'arcface'"
    ):
        score(ScoreConfig(dataset.storage.url, scorers=("duplicates",), pool=INLINE))


def test_a_new_scorer_is_one_file_and_one_line(tmp_path, monkeypatch, capsys):
    """The line is enough for `score`, a policy of `select`, early rejection and the messages of the command line."""
    monkeypatch.setitem(SCORERS, "brightness", "brightness")
    policy = tmp_path / "bright.json"
    rule = {"name": "bright", "score": "brightness.mean", "min": 2}
    policy.write_text(json.dumps({"name": "bright", "rules": [rule]}))
    dataset = generate(egg_job(str(tmp_path / "heads"), INLINE, identities=2))
    assert main(["score", dataset.storage.url, "--inline", "--scorers", "brightness"]) == 0
    pictures = [np.asarray(Image.open(io.BytesIO(data))) for data in members_of(dataset, 0, "rgb")]
    found = open_scores(dataset, "brightness", shard_hashes(dataset)).numbers("brightness")[0]
    np.testing.assert_allclose(found[: len(pictures)], [p.mean() / 255 for p in pictures], rtol=1e-6)
    assert main(["select", dataset.storage.url, "--policy", str(policy)]) == 0
    assert "bright: brightness.mean below 2: 2 of 2 identities fail" in capsys.readouterr().out
    early = generate(egg_job(str(tmp_path / "early"), INLINE, identities=1), EarlyRejection(RejectConfig(str(policy))))
    assert early.all_identities.to_pylist()[0]["reason"] == "bright: brightness.mean below 2"
    assert main(["score", dataset.storage.url, "--scorers", "frog"]) == 2
    assert "brightness" in capsys.readouterr().err


def test_the_guide_lists_every_column_of_every_scorer(config):
    """The tables of docs/filters.md name what `score` writes; columns that an option adds are named too."""
    text = (Path(__file__).parents[2] / "docs" / "filters.md").read_text()
    scorers, _ = open_scorers(replace(config, scorers=tuple(SCORERS)), "egg")
    written = {scorer.table: scorer.columns for scorer in scorers} | {"duplicates": DUPLICATES}
    assert written.keys() == SCORERS.keys()
    listed, table = {}, ""
    for line in text.splitlines():
        if match := re.match(r"\| *(?:`(\w+)`)? *\| (`\w+`(?:, `\w+`)*) \| (view|identity) \|", line):
            table = match[1] or table
            listed |= {(table, name): match[3] for name in re.findall(r"`(\w+)`", match[2])}
    for name, columns in written.items():
        for field in columns:
            if field.name != "embedding":  # a vector, of which the text below the table tells
                assert listed.pop((name, field.name)) == field.metadata[b"level"].decode()
    assert listed.keys() == {("clip_janus", "front_templates"), ("clip_janus", "back_templates")}


class MeetingScorer(Scorer):
    """Scoring an identity waits until the next one is being prepared, so it fails if the two do not overlap."""

    table, members = "slow", ("rgb",)
    columns = (column("mean", VIEW, "mean colour"), column("order", IDENTITY, "when it was scored"))
    lineage = Lineage("slow", 1, None)

    def __init__(self, identities: int):
        self.begun = [Event() for _ in range(identities)]
        self.prepared = self.scored = 0

    def prepare(self, subject):
        self.begun[self.prepared].set()
        self.prepared += 1
        return subject.member("rgb").mean((1, 2, 3))

    def score(self, prepared):
        self.scored += 1
        if self.scored < len(self.begun):
            # Without overlap the next one is prepared only after this has returned, so the wait would never end.
            assert self.begun[self.scored].wait(60), "nothing is prepared while an identity is scored"
        return {"mean": prepared, "order": self.scored}


def test_preparing_and_scoring_overlap_and_keep_their_order(tmp_path):
    dataset = generate(egg_job(str(tmp_path / "heads"), INLINE, identities=6, identities_per_shard=6))
    scorer = MeetingScorer(6)
    events = list(score_shard(dataset, Unit(0), [scorer], ThreadPoolExecutor(1), ahead=2))
    assert [e.item for e in events if e.stage == "done"] == list(range(6))
    rows = read_part(dataset, "slow", 0)
    assert rows.column("order").to_pylist()[::7] == [1, 2, 3, 4, 5, 6]
    pictures = [np.asarray(Image.open(io.BytesIO(data))) for data in members_of(dataset, 0, "rgb")]
    is_view = rows.column("view").to_numpy() != WHOLE
    np.testing.assert_allclose(rows.column("mean").to_numpy()[is_view], [p.mean() for p in pictures], rtol=1e-6)


def test_nothing_to_score_is_no_success(tmp_path, capsys):
    storage = Storage(tmp_path / "heads")
    write_plan(storage, small_plan())
    assert main(["score", storage.url, "--scorers", "image", "--inline"]) == 3
    assert "no shard of the dataset is finished" in capsys.readouterr().out


def test_shards_that_are_made_meanwhile_are_named(tmp_path, monkeypatch):
    storage, plan = Storage(tmp_path / "heads"), small_plan()
    write_plan(storage, plan)
    write_shard(storage, plan, 0)
    run = pool.run

    def run_beside_generate(*args):
        write_shard(storage, plan, 1)
        run(*args)

    monkeypatch.setattr(pool, "run", run_beside_generate)
    config = ScoreConfig(storage.url, scorers=("image",), pool=INLINE)
    assert score(config) == ["image: shards 1 were made since"]
    assert tables(storage) == []
    monkeypatch.undo()
    assert score(config) == [] and tables(storage) == ["image"]
