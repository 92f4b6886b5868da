"""The shape of a head out of its views, beside the truth."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from turns import AROUND, ball_turn, head_turn
from turntable import turntable

from geometry.cameras import orbit
from geometry.embree import EmbreeCaster
from infer.outputs.surface import coloured_mesh, hull_mesh, refine_by_normals, silhouettes

RING = [45.0 * i for i in range(8)]


@pytest.fixture(scope="module")
def head():
    return coloured_mesh(head_turn(), 64)


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


@pytest.mark.parametrize("azimuths", [AROUND, (15.0, 100.0)])
def test_a_head_fills_its_silhouettes(head, azimuths):
    """In the views it was made from, and between them."""
    _, masks, cameras = turntable(52, azimuths, 96)
    for seen, mask in zip(EmbreeCaster(head.mesh).cast(cameras, 96), masks.numpy(), strict=True):
        assert iou(seen.mask, mask) > 0.93


def test_a_head_has_its_colours(head):
    pictures, masks, cameras = turntable(52, (15.0, 100.0), 96)
    for surface_seen, picture, mask in zip(EmbreeCaster(head.mesh).cast(cameras, 96), pictures, masks, strict=True):
        corners = head.colours[head.mesh.faces[surface_seen.face.clip(0)]] / 255
        shown = np.einsum("chw,hwck->hwk", surface_seen.barycentric, corners)
        both = surface_seen.mask & mask.numpy()
        assert np.abs(shown - picture.permute(1, 2, 0).numpy())[both].mean() < 0.06


def test_the_file_is_read_by_others(head):
    loaded = trimesh.load_mesh(io.BytesIO(head.ply()), file_type="ply", process=False)
    assert np.allclose(loaded.vertices, head.mesh.vertices) and (loaded.faces == head.mesh.faces).all()
    assert (loaded.visual.vertex_colors[:, :3] == head.colours).all()
    assert loaded.is_watertight and loaded.volume > 0, "closed, and seen from outside"


def test_normals_round_what_eight_silhouettes_leave_square():
    turn = ball_turn(RING, [0] * 8, 64)
    assert turn.normal is not None
    square = hull_mesh(silhouettes(turn), turn.cameras, 48)
    cameras = orbit(np.array([22.5, 67.5]), np.array([10.0, -10.0]))
    truth = ball_turn([22.5, 67.5], [10, -10], 64)
    assert truth.normal is not None
    tilt = torch.tensor([0.1, -0.05, 0])[:, None, None] * (turn.normal.norm(dim=1, keepdim=True) > 0.5)
    noise = 0.2 * torch.from_numpy(np.random.default_rng(0).normal(size=turn.normal.shape)).float()
    angles = {}
    for name, mesh in {
        "hull": square,
        "relief": refine_by_normals(square, turn.normal, turn.cameras),
        "noisy": refine_by_normals(square, (turn.normal + tilt + noise).clamp(-1, 1), turn.cameras),
    }.items():
        normals = np.stack([seen.smooth_normals() for seen in EmbreeCaster(mesh).cast(cameras, 64)])
        cosine = (normals * truth.normal.permute(0, 2, 3, 1).numpy()).sum(-1)
        on = np.linalg.norm(normals, axis=-1) > 0
        angles[name] = np.degrees(np.arccos(cosine[on].clip(-1, 1))).mean()
        assert np.abs(np.linalg.norm(mesh.vertices[:, ::2], axis=1).max() - 0.2) < 0.03, "it stays where it was"
    assert angles["relief"] < 0.6 * angles["hull"] and angles["noisy"] < 0.8 * angles["hull"]


def test_silhouettes_of_pictures_and_of_normals():
    _, masks, _ = turntable(52, AROUND, 96)
    turn = head_turn()
    for noise in (0.0, 0.03):
        shaken = torch.from_numpy(np.random.default_rng(1).normal(size=turn.rgb.shape)).float() * noise
        found = silhouettes(replace(turn, rgb=(turn.rgb + shaken).clamp(-1, 1)))
        assert all(iou(one.numpy(), mask.numpy()) > 0.95 for one, mask in zip(found, masks, strict=True))


def test_a_white_head_is_known_by_its_normals_and_white_eyes_by_the_face_around_them():
    ball = ball_turn([0, 180], [0, 0])
    assert ball.normal is not None
    truth = ball.normal.norm(dim=1) > 0.5
    white = replace(ball, rgb=torch.ones_like(ball.rgb))
    assert torch.equal(silhouettes(white), truth)
    eyes = ball.rgb.clone()
    eyes[:, :, 22:26, 22:26] = 1
    eyes[:, :, 2:4, 2:4] = -1
    found = silhouettes(replace(ball, rgb=eyes, normal=None))
    assert found[:, 22:26, 22:26].all() and not found[:, 2:4, 2:4].any()


def test_what_no_shape_can_be_made_of_is_said_in_one_line():
    ball = replace(ball_turn([0, 90], [0, 0]), normal=None)
    blank = replace(ball, rgb=torch.stack([ball.rgb[0], torch.ones(3, 48, 48)]))
    with pytest.raises(ValueError, match=r"view 1 is white but for 0\.0%: it shows no head"):
        coloured_mesh(blank)
    apart = torch.zeros(2, 48, 48, dtype=torch.bool)
    apart[0, :10], apart[1, -10:] = True, True
    with pytest.raises(ValueError, match="have nothing in common"):
        hull_mesh(apart, ball.cameras, 24)


def test_a_solver_that_does_not_converge_is_an_error(monkeypatch):
    """The solver is scipy's own, with a single iteration."""
    from scipy.sparse import linalg

    ball = ball_turn(RING, [0] * 8, 32)
    assert ball.normal is not None
    mesh, solve = hull_mesh(silhouettes(ball), ball.cameras, 24), linalg.cg
    monkeypatch.setattr(linalg, "cg", lambda *args, **options: solve(*args, **{**options, "maxiter": 1}))
    with pytest.raises(ValueError, match=r"did not converge \(code 1\)"):
        refine_by_normals(mesh, ball.normal, ball.cameras)
