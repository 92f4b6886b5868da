"""Heads that fail a first look are recorded as filtered, and nothing more is made of them."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from egg import egg_job

from datagen.estimate import estimate
from datagen.generate import generate
from datagen.heads import Judge, Rejection
from filters.config import ArcFaceConfig, ClipConfig, RejectConfig
from filters.early import EarlyRejection, open_rejection
from filters.rules import read_policy
from jobs.pool import PoolConfig
from manifests.errors import UserError
from manifests.plan import PlanMismatch
from manifests.status import summarise
from manifests.verify import verify

INLINE = PoolConfig(inline=True)


def policy(folder: Path, *rules: dict) -> str:
    file = folder / "policy.json"
    file.write_text(json.dumps({"name": "mine", "rules": list(rules)}))
    return str(file)


def coverage(limit: float) -> dict:
    return {"name": "big", "score": "image.coverage", "max": limit, "drop": "identity"}


@pytest.fixture
def half(tmp_path) -> EarlyRejection:
    """Rejects the larger of the eggs."""
    return EarlyRejection(RejectConfig(policy(tmp_path, coverage(0.45)), resolution=64))


def test_what_fails_is_filtered_and_the_rest_is_the_same(tmp_path, half):
    whole = generate(egg_job(str(tmp_path / "whole"), INLINE))
    some = generate(egg_job(str(tmp_path / "some"), INLINE), half)
    assert list(verify(some, deep=True)) == []
    rows, all_rows = some.all_identities.to_pylist(), whole.all_identities.to_pylist()
    outcomes = [row["outcome"] for row in rows]
    assert {"kept", "filtered"} == set(outcomes)
    for row, other in zip(rows, all_rows, strict=True):
        assert row["latent_sha256"] == other["latent_sha256"]
        if row["outcome"] == "filtered":
            assert (row["stage"], row["views"], row["mesh"]) == ("preview", 0, None)
            assert row["reason"] == "big: image.coverage above 0.45"
        else:
            assert row == other
    status = summarise(some)
    assert (status.kept, status.filtered, status.views) == (
        outcomes.count("kept"),
        outcomes.count("filtered"),
        6 * outcomes.count("kept"),
    )


def test_ray_workers_reject_the_same(tmp_path, half):
    import egg
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(egg)
    here = generate(egg_job(str(tmp_path / "here"), INLINE), half)
    there = generate(egg_job(str(tmp_path / "there"), PoolConfig(workers=2)), half)
    for shard in here.committed():
        files = here.done(shard)["files"]
        assert files == there.done(shard)["files"]


def test_whom_it_rejects_belongs_to_the_plan(tmp_path, half):
    out = str(tmp_path / "heads")
    made = generate(egg_job(out, INLINE), half)
    assert made.plan.settings["rejection"]["policy"]["rules"] == [coverage(0.45)]
    with pytest.raises(PlanMismatch, match="rejection"):
        generate(egg_job(out, INLINE))


def test_models_judge_too(tmp_path, tiny_clip, tiny_arcface):
    config = RejectConfig(
        policy(
            tmp_path,
            {"name": "janus", "score": {"softmax": ["clip_janus.front", "clip_janus.back"]}, "max": 1.0,
             "where": {"azimuth": [120, 240]}, "drop": "identity"},
            {"name": "drift", "score": "arcface.mean_cosine", "min": 1.5},
        ),
        64, ClipConfig(f"local-dir:{tiny_clip}"), ArcFaceConfig(str(tiny_arcface)),
    )  # fmt: skip
    made = generate(egg_job(str(tmp_path / "heads"), INLINE), EarlyRejection(config))
    assert {row["reason"] for row in made.all_identities.to_pylist()} == {"drift: arcface.mean_cosine below 1.5"}
    weights = {name: made["weights_sha256"] for name, made in made.plan.settings["rejection"]["scorers"].items()}
    assert set(weights) == {"clip_janus", "arcface"} and all(weights.values())


def test_limits_that_belong_to_other_weights_are_refused(tmp_path):
    file = tmp_path / "policy.json"
    file.write_text(json.dumps({"name": "mine", "rules": [coverage(0.5)], "requires": {"image": {"version": 99}}}))
    with pytest.raises(ValueError, match="belong to image with version 99"):
        EarlyRejection(RejectConfig(str(file))).lineage("procedural")


def test_it_is_what_generate_asks_for(half):
    assert isinstance(half, Rejection) and isinstance(half.open("cpu", "egg"), Judge)
    assert read_policy("early")[0].name == "early"


def test_paths_hold_wherever_a_worker_runs(tmp_path, monkeypatch, tiny_clip):
    monkeypatch.chdir(tmp_path)
    Path("mine.json").write_text("{}")
    rejection = open_rejection(RejectConfig("mine.json", clip=ClipConfig(f"local-dir:{tiny_clip}")))
    moved = rejection.config
    assert moved.policy == str(tmp_path / "mine.json")
    assert asdict(moved.clip) == asdict(ClipConfig(f"local-dir:{tiny_clip}"))
    (tmp_path / "early").mkdir()
    assert open_rejection(RejectConfig("early")).config.policy == "early"


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ({"name": "x", "score": "mesh.islands", "max": 1.0, "drop": "view"}, "reads mesh; before a head is made only"),
        ({"name": "x", "score": "image.fog", "keep_top": 0.5, "drop": "view"}, "rule x ranks all heads"),
        ({"name": "x", "score": "image.nothing", "max": 1.0, "drop": "view"}, "nothing"),
        ({"name": "x", "score": "image.back_sharpness", "max": 1.0, "drop": "view"}, "is a score of identities"),
        ({"name": "x", "score": {"softmax": ["image.fog", "image.back_sharpness"]}, "max": 1.0}, "mixes scores"),
    ],
)  # fmt: skip
def test_policies_that_need_more_than_a_look_are_one_line(tmp_path, rule, says):
    with pytest.raises(ValueError, match=says):
        generate(egg_job(str(tmp_path / "heads"), INLINE), EarlyRejection(RejectConfig(policy(tmp_path, rule))))
    assert not (tmp_path / "heads" / "dataset.json").exists()


def test_embedded_models_reject_procedural_heads_only(tmp_path):
    job = egg_job(str(tmp_path / "heads"), INLINE)
    with pytest.raises(
        UserError, match=r"these are egg: give weights with --reject.clip.model, or --reject.allow-embed"
    ):
        generate(job, EarlyRejection(RejectConfig("early")))
    with pytest.raises(UserError, match=r"these are egg: give weights with --reject.clip.model"):
        estimate(job, 2, EarlyRejection(RejectConfig("early")))
    assert not (tmp_path / "heads").exists()
    plan = generate(replace(job, identities=1), EarlyRejection(RejectConfig("early", allow_embedded=True))).plan
    assert plan.settings["rejection"]["scorers"]["clip_janus"]["settings"]["allow_embedded"] is True
    assert (
        "allow_embedded"
        not in EarlyRejection(RejectConfig("early")).lineage("procedural")["scorers"]["clip_janus"]["settings"]
    )


def test_a_preset_s_limits_belong_to_weights(tiny_clip):
    config = RejectConfig("early", clip=ClipConfig(f"local-dir:{tiny_clip}"))
    with pytest.raises(UserError, match="limits of policy early belong to clip_janus with weights_sha256 '1d0b"):
        EarlyRejection(config).lineage("egg")


def test_a_preview_too_small_to_show_a_face_is_one_line():
    with pytest.raises(ValueError, match="resolution is 8"):
        RejectConfig("early", resolution=8)
