"""Heads drawn from a checkpoint keep the contract of every head source."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from panohead_files import KWARGS, config, generator, untrained, write

from datagen.config import PanoHeadConfig
from datagen.heads import Head, HeadSource
from datagen.identity import rig_cameras
from datagen.meshing import density_grid, marching_cubes
from datagen.rigs import find_rig
from datagen.sources.panohead.head import PanoHead, PanoHeadSource, SphereHeadSource
from datagen.sources.panohead.official import frontal_label, latent, vertices_to_world
from geometry.cameras import eg3d_labels, orbit
from geometry.embree import EmbreeCaster
from geometry.rays import rays


@pytest.fixture(scope="module")
def source(tiny_pickle) -> PanoHeadSource:
    return PanoHeadSource(PanoHeadConfig(str(tiny_pickle)))


def head(source: PanoHeadSource, seed: int = 0, **changes) -> PanoHead:
    return PanoHead(source.generator, seed, replace(source.config, **changes))


def ring(*azimuths: float):
    return orbit(np.array(azimuths), np.linspace(-20, 20, len(azimuths)))


def test_contract(source):
    assert isinstance(source, HeadSource)
    assert isinstance(source.head(0), Head)


def test_seeds_are_the_official_ones(source):
    z = np.random.RandomState(7).randn(1, 64)
    np.testing.assert_array_equal(latent(7, 64).numpy(), z)
    facts = source.head(7).facts()
    assert facts == {"seed": 7, "latent_sha256": hashlib.sha256(z.tobytes()).hexdigest(), "psi": 0.7, "cutoff": 14}
    json.dumps(facts)
    with pytest.raises(ValueError, match="seed is -1"):
        source.head(-1)


def test_identity_background_is_the_official_picture(source):
    cameras = ring(0.0, 100.0)
    views = head(source, 3, background="own").render(cameras, 128)
    ws = source.generator.mapping(latent(3, 64), frontal_label(), 0.7, 14)
    official = source.generator.synthesis(ws.expand(2, -1, -1), eg3d_labels(cameras))
    expected = ((official.image + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(views.rgb, expected, atol=1e-5, rtol=0)


def test_other_backgrounds_lie_behind_alpha(source):
    cameras = ring(30.0)
    own, white, red = (head(source, background=name).render(cameras, 64) for name in ("own", "white", "#ff0000"))
    assert torch.equal(own.alpha, white.alpha)
    alpha = own.alpha[..., None]
    assert alpha.min() < 0.05
    assert alpha.max() > 0.95
    torch.testing.assert_close(white.rgb, alpha * own.rgb + 1 - alpha, atol=1e-6, rtol=0)
    torch.testing.assert_close(red.rgb, alpha * own.rgb + (1 - alpha) * torch.tensor([1.0, 0, 0]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("resolution", [32, 128, 200])
def test_any_resolution(source, resolution):
    views = source.head(0).render(ring(0.0, 90.0, 180.0), resolution)
    assert views.rgb.shape == (3, resolution, resolution, 3)
    for value in (views.rgb, views.alpha):
        assert 0 <= value.min() <= value.max() <= 1
    assert not views.depth[views.alpha == 0].any()
    met = views.depth[views.alpha > 0.5]
    # The crop leaves nothing outside of a cylinder of radius 0.4 sqrt(2) around the axis, 2.7 away.
    assert 2 < met.min() <= met.max() < 3.4


def test_depth_is_along_the_optical_axis(source):
    cameras = ring(40.0)
    head_ = head(source)
    seen = head_.identity.views(cameras, 16)
    directions = rays(cameras, 16)[1][0]
    cosine = directions @ cameras.c2w[0, :3, 2]
    views = head_.render(cameras, 16)
    met = views.alpha[0] > 0.5
    torch.testing.assert_close(views.depth[0][met], (seen.image_depth[0, 0] * cosine)[met], atol=1e-4, rtol=0)


def test_views_do_not_depend_on_their_batch(source):
    cameras = ring(*np.linspace(0, 350, 40))
    for jitter_seed in (None, 5):
        head_ = head(source, jitter_seed=jitter_seed)
        together = head_.render(cameras, 32)
        apart = head_.render(cameras[37:38], 32)
        torch.testing.assert_close(together.rgb[37:38], apart.rgb, atol=1e-5, rtol=0)


def test_jitter_is_drawn_from_its_seed(source):
    cameras = ring(0.0)
    first, again, other = (head(source, jitter_seed=seed).render(cameras, 32).rgb for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_fast_is_close_to_exact(source):
    cameras = ring(0.0, 120.0)
    exact, fast = (head(source, precision=name, background="own").render(cameras, 128) for name in ("exact", "fast"))
    psnr = -10 * (exact.rgb - fast.rgb).square().mean().log10()
    assert psnr > 40
    assert torch.equal(exact.alpha, fast.alpha)


def test_density_is_the_official_one_within_the_crop(source):
    points = torch.rand(2000, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    head_ = head(source)
    ws = source.generator.mapping(latent(0, 64), frontal_label(), 0.7, 14)
    official = source.generator.density(source.generator.planes(ws), points[None])[0]
    ours = head_.density(points)
    kept = (points[:, ::2].abs() < 0.4).all(dim=1)
    # Beside the crop the field is lowered, but never across the level.
    far = (points[:, ::2].abs() < 0.3).all(dim=1)
    torch.testing.assert_close(ours[far], official[far], atol=2e-4, rtol=0)
    assert torch.equal((ours > 10)[kept], (official > 10)[kept])
    assert (ours[~kept] < 10).all()


@pytest.mark.parametrize("rig", ["orbit-8", "facelift-6"])
def test_mesh_lies_in_the_frame_of_the_pictures(source, rig):
    """A sharp surface, drawn by the renderer and as a mesh, covers the same pixels at the same depth, with either lens."""
    sharp = untrained(source.generator.config, 0)
    sharp.load_state_dict(source.generator.state_dict())
    sharp.config = replace(sharp.config, depth_resolution=64, depth_resolution_importance=64)
    last = sharp.decoder.net[2]
    last.weight[0] *= 400
    last.bias[0] = 10 + 400 * (last.bias[0] - 10)
    head_ = PanoHead(sharp, 1, PanoHeadConfig("-", neural_resolution=64))
    mesh = marching_cubes(density_grid(head_, 64), head_.iso_level)
    cameras = ring(0.0, 70.0, 200.0) if rig == "orbit-8" else rig_cameras(find_rig(rig), 0, 0)[[0, 1, 3]]
    views = head_.render(cameras, 64)
    for view, surface in enumerate(EmbreeCaster(mesh).cast(cameras, 64)):
        drawn, met = views.alpha[view].numpy() > 0.5, surface.mask
        assert (drawn & met).sum() / (drawn | met).sum() > 0.93
        mirrored = met[:, ::-1]
        assert (drawn & mirrored).sum() / (drawn | mirrored).sum() < 0.9
        difference = np.abs(views.depth[view].numpy() - surface.depth)[drawn & met]
        assert np.median(difference) < 0.02


def test_official_vertices_come_back_to_the_world():
    n = 9
    # Voxel (z, y, flipped x) of the world point at grid index (x, y, z) = (1, 4, 8).
    vertex = np.array([[8.0, 4.0, n - 1 - 1.0]])
    np.testing.assert_allclose(vertices_to_world(vertex, n), [[1 / 8 - 0.5, 0.0, 0.5]], atol=1e-12)


def test_lineage(source, tiny_pickle):
    lineage = source.lineage()
    json.dumps(lineage)
    assert lineage["weights_sha256"] == hashlib.sha256(tiny_pickle.read_bytes()).hexdigest()
    assert lineage["settings"]["psi"] == 0.7
    assert "weights" not in lineage["settings"]
    assert "non-commercial" in lineage["licence"]


def test_spherehead_source(tmp_path):
    path = write(tmp_path / "s.pkl", G_ema=generator(untrained(config("spherehead"), 0).state_dict(), KWARGS))
    settings = PanoHeadConfig(str(path), neural_resolution=8)
    views = SphereHeadSource(settings).head(0).render(ring(0.0), 32)
    assert views.rgb.shape == (1, 32, 32, 3)
    with pytest.raises(ValueError, match="is a checkpoint of spherehead, not of panohead; use --source spherehead"):
        PanoHeadSource(settings)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"psi": 3.0}, "--psi is 3.0"),
        ({"cutoff": -1}, "cutoff is -1"),
        ({"precision": "half"}, "precision is 'half'"),
        ({"background": "transparent"}, "background is 'transparent'"),
        ({"background": "#12345"}, "background is '#12345'"),
        ({"neural_resolution": 7}, "--neural-resolution is 7"),
        ({"jitter_seed": -1}, "--jitter-seed is -1"),
    ],
)
def test_bad_settings(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        PanoHeadConfig("x", **changes)


def test_weights_must_be_given():
    with pytest.raises(ValueError, match="panohead needs --weights"):
        PanoHeadSource(PanoHeadConfig())
