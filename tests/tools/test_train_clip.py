"""The CLIP that comes with spinset: its captions, its loss, its format, and what the shipped one knows."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from small import small_plan

from filters.scorers.clip_janus import BACK, FRONT, load_clip
from manifests.dataset import Dataset
from manifests.plan import write_plan
from manifests.storage import Storage
from tools.examples import examples
from tools.train_clip import (
    CAPTIONS,
    SIZE,
    TrainClipConfig,
    captions_of,
    clip_loss,
    figures_of,
    read_pictures_and_truth,
    save,
    train,
    view_truths,
)
from weights.embedded import EMBEDDED


def test_captions_are_true_of_views(people):
    for example in examples(people):
        turn = np.abs((example.subject.azimuth + 180) % 360 - 180)
        for degrees, view in zip(turn, view_truths(example), strict=True):
            if "janus" in example.defects and 60 <= degrees < 110:
                assert view is None
                continue
            assert view is not None
            says = {caption for caption, is_true in CAPTIONS.items() if is_true(view)}
            assert (FRONT in says) == (degrees < 60 or ("janus" in example.defects and degrees >= 110))
            assert (BACK in says) == (degrees >= 110 and "janus" not in example.defects)
            assert not {FRONT, BACK} <= says
    assert {"janus"} <= set().union(*(example.defects for example in examples(people)))


def test_every_picture_has_a_caption(people):
    _, truth, _ = read_pictures_and_truth(people)
    captions, true = captions_of(truth)
    assert true.shape == (len(truth), len(captions)) and true.any(1).all()


def test_only_procedural_heads_are_learned_from(tmp_path):
    write_plan(Storage(tmp_path), small_plan())
    with pytest.raises(ValueError, match="noise heads; only procedural ones"):
        next(examples(Dataset(Storage(tmp_path))))


def test_the_loss_asks_for_an_even_share_of_every_true_pair():
    """One picture and two sentences, both true or one: cross-entropy of the shares, both ways."""
    pictures, texts = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    first = math.log(1 + math.exp(-5))
    both = clip_loss(pictures, texts, torch.tensor([[True, True]]), 5.0).item()
    assert both == pytest.approx((first + (first + 5)) / 2 / 2, rel=1e-5)
    one = clip_loss(pictures, texts, torch.tensor([[True, False]]), 5.0).item()
    assert one == pytest.approx(first / 2, rel=1e-4)


def test_it_learns_and_what_is_saved_is_open_clip_s(tmp_path):
    """Light and dark pictures with the captions of fronts and backs, a few steps."""
    light = np.arange(64) % 2 == 0
    noise = np.random.default_rng(0).integers(0, 60, (64, SIZE, SIZE, 3))
    pictures = (noise + np.where(light, 190, 0)[:, None, None, None]).astype(np.uint8)
    true = np.stack([light, ~light], 1)
    config = replace(TrainClipConfig(""), epochs=4, batch=16)
    save(train(config, pictures, [FRONT, BACK], true), tmp_path)
    clip = load_clip(f"local-dir:{tmp_path}")
    cosines = clip.pictures(clip.prepare(pictures)) @ clip.texts([FRONT, BACK]).T
    assert ((cosines[:, 0] > cosines[:, 1]).numpy() == light).mean() > 0.9


def test_the_shipped_model_is_small_and_knows_procedural_heads(people):
    folder = EMBEDDED / "clip"
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 8_000_000
    pictures, truth, _ = read_pictures_and_truth(people)
    figures = figures_of(folder, pictures, truth)
    assert figures["front_side_back_accuracy"] > 0.8
    assert figures["janus_view_auc"] > 0.9
