"""What the mesh and image scorers measure, on drawings whose defects are known."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from filters.scorer import Subject
from filters.scorers.image import ImageScorer, measure_pictures
from filters.scorers.mesh import MeshScorer, measure_surface
from filters.scorers.silhouette import border, facet, fog, iou, islands, reduce, sharpness, top_chord
from geometry.cameras import orbit
from geometry.meshes import encode_normals

SIZE = 128


def disc(radius: float = 40, centre: tuple[float, float] = (64, 64), size: int = SIZE) -> np.ndarray:
    y, x = np.mgrid[:size, :size] + 0.5
    return np.hypot(x - centre[0], y - centre[1]) <= radius


def ball(radius: float = 40, size: int = SIZE) -> np.ndarray:
    """The normals of a ball in camera space, zero beside it."""
    y, x = (np.mgrid[:size, :size] + 0.5 - size / 2) / radius
    z = np.sqrt(np.clip(1 - x**2 - y**2, 0, None))
    return np.stack([x, -y, z], -1).astype(np.float32) * (z > 0)[..., None]


def test_islands_are_what_does_not_touch():
    head = disc()
    assert islands(head) == 0
    assert islands(head | disc(4, (12, 12))) == pytest.approx(disc(4, (12, 12)).sum() / head.sum())
    assert islands(head & False) == 0


def test_iou_of_shifted_discs():
    assert iou(disc(), disc()) == 1
    assert iou(disc(), disc(20)) == pytest.approx(disc(20).sum() / disc().sum())
    assert np.isnan(iou(disc() & False, disc() & False))


def test_a_cut_is_flat_and_a_ball_is_not():
    normals = ball()
    mask = np.linalg.norm(normals, axis=-1) > 0
    assert facet(normals, mask) < 0.01
    cut = disc(18, (84, 64))
    normals[cut] = (0.5, 0.0, 0.866)
    assert facet(normals, mask) == pytest.approx(cut.sum() / mask.sum(), rel=0.15)


@pytest.mark.parametrize("size", [128, 256, 512])
def test_facet_is_the_same_at_every_resolution(size):
    normals = ball(40 * size / 128, size)
    normals[disc(18 * size / 128, (84 * size / 128, 64 * size / 128), size)] = (0.5, 0.0, 0.866)
    alpha = (np.linalg.norm(normals, axis=-1, keepdims=False) > 0).astype(np.uint8) * 255
    found = measure_surface(encode_normals(normals)[None], alpha[None])
    assert found["facet"][0] == pytest.approx(0.19, abs=0.02)
    assert found["iou"][0] > 0.98
    assert found["islands"][0] == 0


@pytest.mark.parametrize("size", [64, 128, 200])
def test_a_cut_that_is_nearly_flat_is_flat_at_every_working_size(size):
    """Normals of a large ball in place of the cut differ by 0.01 per pixel at 128 pixels, and by 0.02 at 64."""
    scale = size / 128
    normals = ball(40 * scale, size)
    mask = np.linalg.norm(normals, axis=-1) > 0
    cut = disc(18 * scale, (84 * scale, 64 * scale), size)
    normals[cut] = ball(100 * scale, size)[cut]
    assert facet(normals, mask) == pytest.approx(cut.sum() / mask.sum(), rel=0.2)


def test_a_dome_is_narrow_at_its_top_and_a_cut_is_not():
    head = disc()
    assert top_chord(head) == pytest.approx(np.sqrt(1.92 / 11.52), abs=0.06)
    assert top_chord(head | disc(4, (64, 8))) == top_chord(head), "what floats above the head is not its top"
    head[:36] = False
    assert top_chord(head) > 0.8
    assert np.isnan(top_chord(head & False))


def test_fog_is_wide_and_contours_are_narrow():
    y, x = np.mgrid[:512, :512] + 0.5
    smooth = np.clip((160 - np.hypot(x - 256, y - 256)) + 0.5, 0, 1)
    clean = reduce((smooth[None] * 255).astype(np.uint8))[0]
    assert fog(clean) == 0
    haze = np.exp(-((x - 256) ** 2 + (y - 256) ** 2) / (2 * 150**2)) * 0.3
    hazy = reduce(((1 - (1 - smooth) * (1 - haze))[None] * 255).astype(np.uint8))[0]
    assert fog(hazy) > 0.5
    assert np.isnan(fog(clean * 0))


def test_a_head_that_leaves_the_picture():
    assert border(disc().astype(np.float32)) == 0
    assert border(disc(40, (64, 30)).astype(np.float32)) == pytest.approx(54 / 128, abs=0.02)
    for x in (20, SIZE - 20):
        assert border(disc(40, (x, 64)).astype(np.float32)) == pytest.approx(35 / 64, abs=0.02)
    shoulders = np.zeros((SIZE, SIZE), np.float32)
    shoulders[100:] = 1
    assert border(shoulders) == 0


def test_blur_lowers_sharpness_and_blank_has_no_contrast():
    noise = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE), np.uint8)
    blurred = np.asarray(Image.fromarray(noise).resize((32, 32)).resize((SIZE, SIZE)))
    assert sharpness(blurred, disc()) < 0.1 * sharpness(noise, disc())
    assert np.isnan(sharpness(noise, disc() & False))
    outline = np.where(disc() & ~disc(38.5), 255, 90).astype(np.uint8)
    assert sharpness(outline, disc()) == 0, "the contour of the head is not read"
    blank = np.full((1, SIZE, SIZE, 3), 90, np.uint8)
    found = measure_pictures(blank, disc()[None].astype(np.uint8) * 255)
    assert found["contrast"][0] == 0
    empty = measure_pictures(blank, np.zeros((1, SIZE, SIZE), np.uint8))
    assert empty["coverage"][0] == 0
    assert np.isnan([empty["contrast"][0], empty["fog"][0], empty["sharpness"][0]]).all()


def test_the_back_beside_the_front():
    azimuth = np.array([0, 30, 90, 150, 180], np.float32)
    picture = Image.new("RGB", (SIZE, SIZE))
    draw = ImageDraw.Draw(picture)
    for i in range(0, SIZE, 4):
        draw.line((i, 0, i, SIZE), (255, 255, 255))
    sharp = np.asarray(picture)
    blurred = np.asarray(picture.resize((16, 16)).resize((SIZE, SIZE)))
    alpha = disc().astype(np.uint8) * 255
    pictures = {"rgb": [sharp, sharp, sharp, blurred, blurred], "alpha": [alpha] * 5}
    cameras = orbit(azimuth.astype(float), np.zeros(5))
    subject = Subject({"mesh": None}, np.arange(5), azimuth, azimuth * 0, cameras, pictures)
    assert ImageScorer().prepare(subject)["back_sharpness"] < 0.2
    subject.pictures["rgb"][3:] = [sharp, sharp]
    assert ImageScorer().prepare(subject)["back_sharpness"] == pytest.approx(1)


def test_the_mesh_s_own_figures_pass_through_and_unknown_ones_are_nan():
    azimuth = np.zeros(1, np.float32)
    pictures = {"normal": [encode_normals(ball())], "alpha": [disc().astype(np.uint8) * 255]}
    figures = {
        "components": 3,
        "largest_share": 0.9,
        "holes": 2,
        "tunnels": 1,
        "watertight": True,
        "vertices": 1,
        "faces": 2,
    }
    for mesh, expected in ((figures, [3, 0.9, 2, 1]), (None, [np.nan] * 4)):
        subject = Subject({"mesh": mesh}, np.arange(1), azimuth, azimuth, orbit(np.zeros(1), np.zeros(1)), pictures)
        found = MeshScorer().prepare(subject)
        np.testing.assert_allclose([found[k] for k in ("components", "largest_share", "holes", "watertight")], expected)
