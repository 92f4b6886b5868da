"""The recogniser that comes with spinset: how it learns, what is exported, and what the shipped one knows."""

import math

import numpy as np
import pytest
import torch

from faces.models import load_arcface
from tools.train_arcface import (
    Recogniser,
    TrainArcFaceConfig,
    arcface_loss,
    area_under_curve,
    augment,
    export,
    read_faces,
    train,
    verification,
)
from weights.embedded import EMBEDDED


def test_the_margin_widens_the_angle_to_the_own_class_only():
    """Two classes at right angles: an embedding 0.5 rad from its own has logits s cos(0.5 + m) and s sin(0.5)."""
    embeddings = torch.tensor([[math.cos(0.5), math.sin(0.5)]]) * 3
    loss = arcface_loss(embeddings, torch.eye(2) * 7, torch.tensor([0]), scale=8.0, margin=0.25)
    own, other = 8 * math.cos(0.75), 8 * math.sin(0.5)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(other - own)), rel=1e-5)


def test_the_export_is_the_network_in_insightface_s_contract(tmp_path):
    torch.manual_seed(0)
    model = Recogniser(32)
    model(torch.rand(8, 3, 112, 112))  # moves the batch statistics away from their defaults
    export(model.eval(), tmp_path / "small.onnx")
    faces = np.random.default_rng(0).integers(0, 256, (5, 112, 112, 3), np.uint8)
    with torch.no_grad():
        expected = torch.nn.functional.normalize(model(torch.from_numpy(faces).permute(0, 3, 1, 2) / 127.5 - 1))
    np.testing.assert_allclose(load_arcface(str(tmp_path / "small.onnx")).embed(faces), expected, atol=1e-5)


def test_it_learns_to_tell_people_apart_and_repeats_itself():
    """Four flat colours with noise, a few steps."""
    rng = np.random.default_rng(0)
    people = np.repeat(np.arange(4), 16)
    colours = rng.integers(60, 200, (4, 1, 1, 3))
    faces = (colours[people] + rng.integers(-20, 20, (64, 112, 112, 3))).clip(0, 255).astype(np.uint8)
    config = TrainArcFaceConfig("", epochs=4, batch=16, dimensions=16, margin=0.1)
    model, again = train(config, faces, people), train(config, faces, people)
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    with torch.no_grad():
        embedded = torch.nn.functional.normalize(model(torch.from_numpy(faces).permute(0, 3, 1, 2) / 127.5 - 1))
    assert verification(embedded.numpy(), people)["auc"] > 0.95


def test_augmented_faces_keep_their_range_and_differ():
    faces = torch.full((6, 112, 112, 3), 128, dtype=torch.uint8)
    seen = augment(faces, torch.Generator().manual_seed(0))
    assert seen.shape == (6, 3, 112, 112) and seen.abs().max() <= 1
    assert len({round(x.mean().item(), 4) for x in seen}) == 6


def test_area_under_the_curve_counts_ties_half():
    score = np.array([0.1, 0.5, 0.5, 0.9])
    assert area_under_curve(score, np.array([False, False, True, True])) == 0.875


def test_faces_are_of_the_cone_and_of_heads_that_do_not_drift(people):
    faces, whose = read_faces(people)
    assert faces.shape[1:] == (112, 112, 3)
    rows = people.all_identities.to_pylist()
    sound = {row["identity"] for row in rows if "identity_drift" not in {d["kind"] for d in row["defects"]}}
    assert set(whose.tolist()) == sound < {row["identity"] for row in rows}


def test_the_shipped_recogniser_is_small_and_knows_procedural_heads(people):
    file = EMBEDDED / "arcface.onnx"
    assert file.stat().st_size <= 8_000_000
    faces, whose = read_faces(people)
    figures = verification(load_arcface(str(file)).embed(faces), whose)
    assert figures["mean_cosine_same"] > figures["mean_cosine_different"] + 0.4
