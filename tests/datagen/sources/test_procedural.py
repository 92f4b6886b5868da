import json

import numpy as np
import pytest
import torch
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from skimage.measure import label, marching_cubes

from datagen.config import DEFECT_KINDS, ProceduralConfig
from datagen.sources.procedural import ProceduralSource
from datagen.sources.procedural.field import BAND, ISO_LEVEL, SLOPE
from datagen.sources.procedural.model import union
from datagen.sources.procedural.person import draw_person
from datagen.sources.procedural.sdf import CM
from geometry.cameras import orbit

SEED = 52
AROUND = orbit(np.array([0.0, 90.0, 180.0]), np.zeros(3))


def planted(kind, seed=SEED):
    return ProceduralSource(ProceduralConfig(1.0, (kind,))).head(seed)


def grid_density(head, n):
    ticks = torch.arange(n) / n - 0.5
    slabs = [
        head.density(torch.stack(torch.meshgrid(x, ticks, ticks, indexing="ij"), -1).reshape(-1, 3))
        for x in ticks.split(16)
    ]
    return torch.cat(slabs).reshape(n, n, n).numpy()


def silhouette(density, cameras, resolution):
    """Masks of the marching-cubes mesh of a density grid over the unit cube."""
    n = density.shape[0]
    vertices, faces, _, _ = marching_cubes(density, ISO_LEVEL)
    scene = EmbreeScene()
    TriangleMesh(scene, (vertices / n - 0.5).astype(np.float32), faces.astype(np.int32))
    ticks = torch.arange(resolution) + 0.5
    pixels = torch.stack([*torch.meshgrid(ticks, ticks, indexing="xy"), torch.ones(resolution, resolution)], -1)
    masks = []
    for c2w, K in zip(cameras.c2w, cameras.pixel_K(resolution), strict=True):
        rays = (pixels @ torch.linalg.inv(K).T @ c2w[:3, :3].T).reshape(-1, 3).numpy()
        hits = scene.run(np.tile(c2w[:3, 3].numpy(), (len(rays), 1)), rays)
        masks.append((hits >= 0).reshape(resolution, resolution))
    return np.stack(masks)


@pytest.fixture(scope="module")
def head():
    return ProceduralSource().head(SEED)


@pytest.fixture(scope="module")
def views(head):
    return head.render(AROUND, 128)


@pytest.fixture(scope="module")
def density(head):
    return grid_density(head, 256)


def test_views_are_the_same_again_and_in_any_grouping(head, views):
    again = ProceduralSource().head(SEED)
    for i in (2, 0):
        alone = again.render(AROUND[[i]], 128)
        for name in ("rgb", "alpha", "depth"):
            assert torch.equal(getattr(alone, name)[0], getattr(views, name)[i])


def test_values_are_in_range_and_the_background_is_white(views):
    assert views.rgb.min() >= 0 and views.rgb.max() <= 1
    assert torch.all(views.rgb[views.alpha == 0] == 1)
    assert torch.all((views.depth > 0) == (views.alpha > 0))
    soft = ((views.alpha > 0) & (views.alpha < 1)).float().mean()
    assert 0 < soft < 0.06


def test_seeds_are_different_people(views):
    other = ProceduralSource().head(SEED + 1).render(AROUND, 128)
    assert ((other.alpha > 0.5) != (views.alpha > 0.5)).float().mean() > 0.005
    both = (other.alpha > 0.5) & (views.alpha > 0.5)
    assert (other.rgb - views.rgb)[both].abs().mean() > 0.05


def test_front_side_and_back_fill_the_frame_but_for_its_top(views):
    mask = views.alpha > 0.5
    assert not mask[:, :3].any()
    assert mask[:, -1].any(-1).all()
    assert 0.25 < mask.float().mean() < 0.65


def test_alpha_is_the_silhouette_of_the_iso_surface(density, views):
    mask = silhouette(density, AROUND, 128)
    alpha = (views.alpha > 0.5).numpy()
    iou = (mask & alpha).sum((1, 2)) / (mask | alpha).sum((1, 2))
    assert iou.min() > 0.985


def test_depth_is_where_the_density_crosses_the_iso_level(head, views):
    ticks = torch.arange(128) + 0.5
    pixels = torch.stack([*torch.meshgrid(ticks, ticks, indexing="xy"), torch.ones(128, 128)], -1)
    rays = pixels @ torch.linalg.inv(AROUND.pixel_K(128)[0]).T @ AROUND.c2w[0, :3, :3].T
    points = AROUND.positions[0] + rays * views.depth[0, ..., None]
    solid = views.alpha[0] == 1
    away = (head.density(points[solid]) - ISO_LEVEL).abs() / SLOPE
    assert away.quantile(0.98) < 0.002


def test_density_is_the_clipped_distance_to_the_union_of_the_layers(head):
    points = torch.from_numpy(np.random.default_rng(0).uniform(-0.5, 0.5, (20000, 3)).astype(np.float32))
    with torch.no_grad():
        distance = union(head._model, points / CM) * CM
    slow = ISO_LEVEL - SLOPE * distance.clamp(-BAND, BAND)
    assert torch.allclose(head.density(points), slow, atol=1e-3)


def test_landmarks_lie_on_the_visible_face():
    front = orbit(np.array([0.0]), np.array([0.0]))
    seeds = [s for s in range(60) if _bare(draw_person(s))][:2]
    for seed in seeds:
        head = ProceduralSource().head(seed)
        marks = head.facts()["landmarks"]
        assert marks["eye_left"][0] > 0 > marks["eye_right"][0] and marks["mouth_left"][0] > 0
        projected = front.project(torch.tensor(list(marks.values())), 256)[0]
        depth = head.render(front, 256).depth[0]
        x, y = projected[:, 0].long(), projected[:, 1].long()
        assert (depth[y, x] - projected[:, 2]).abs().max() < 0.008


def _bare(person):
    return person.looks.hat == "none" and person.looks.glasses == "none" and person.looks.beard in ("none", "stubble")


def test_facts_are_json_and_the_same_person_with_and_without_defects(head):
    facts = head.facts()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["defects"] == []
    everything = ProceduralSource(ProceduralConfig(1.0)).head(SEED).facts()
    assert [d["kind"] for d in everything["defects"]] == list(DEFECT_KINDS)
    assert json.loads(json.dumps(everything)) == everything
    assert {**everything, "defects": []} == facts


def test_defects_come_at_the_rate_that_was_asked_for():
    source = ProceduralSource(ProceduralConfig(0.3, ("haze", "truncated")))
    heads = [source.head(seed)._defects for seed in range(200)]
    kinds = [d["kind"] for defects in heads for d in defects]
    assert 40 <= kinds.count("haze") <= 80 and 40 <= kinds.count("truncated") <= 80
    assert set(kinds) == {"haze", "truncated"}


def test_janus_puts_a_face_behind(views):
    behind = planted("janus").render(AROUND[[2]], 128).rgb[0]
    front, clean = views.rgb[0, :96], views.rgb[2, :96]
    assert (behind[:96] - front).abs().mean() < 0.75 * (clean - front).abs().mean()


def test_identity_drift_shows_two_people(views):
    def asymmetry(rgb):
        return (rgb - rgb.flip(1)).abs().mean()

    drift = planted("identity_drift").render(AROUND[[0]], 128).rgb[0]
    assert asymmetry(drift) > 1.5 * asymmetry(views.rgb[0])


def test_floaters_are_loose_components(density):
    head = planted("floater")
    count = len(head.facts()["defects"][0]["blobs"])
    assert count >= 1
    before, after = (label(d > ISO_LEVEL).max() for d in (density[::2, ::2, ::2], grid_density(head, 128)))
    assert after == before + count


def test_a_hole_takes_solid_away_and_opens_the_surface():
    head = planted("hole")
    truth = head.facts()["defects"][0]
    centre, axis = torch.tensor(truth["centre"]), torch.tensor(truth["axis"])
    tunnel = centre + torch.linspace(-0.17, 0.17, 100)[:, None] * axis
    clean = ProceduralSource().head(SEED).density(tunnel.float())
    assert (clean > ISO_LEVEL).any() and (head.density(tunnel.float()) < ISO_LEVEL).all()


def test_haze_veils_the_picture_and_leaves_the_surface(head, views):
    foggy = planted("haze")
    seen = foggy.render(AROUND, 128)
    empty = views.alpha == 0
    assert ((seen.alpha[empty] > 0.05) & (seen.alpha[empty] < 0.95)).float().mean() > 0.5
    assert (seen.rgb - views.rgb).abs().mean() > 0.02
    points = torch.rand(5000, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    assert torch.equal(foggy.density(points), head.density(points))


def test_truncation_leaves_a_flat_cut():
    head = planted("truncated")
    truth = head.facts()["defects"][0]
    axis, sign = {"top": (1, 1), "left": (0, 1), "right": (0, -1), "back": (2, -1)}[truth["side"]]
    offset = sign * truth["offset"]
    points = torch.rand(20000, 3, generator=torch.Generator().manual_seed(0)) * 0.4 - torch.tensor([0.2, 0.1, 0.2])
    points[:, axis] = offset + sign * 0.004
    clean = ProceduralSource().head(SEED)
    assert (clean.density(points) > ISO_LEVEL).float().mean() > 0.01
    assert (head.density(points) <= ISO_LEVEL).all()
    points[:, axis] = offset - sign * 0.006
    assert (head.density(points) > ISO_LEVEL).float().mean() > 0.01


def test_user_mistakes_are_named():
    with pytest.raises(ValueError, match=r"--defect-rate is 1\.5; it must be from 0 to 1"):
        ProceduralConfig(defect_rate=1.5)
    with pytest.raises(ValueError, match="defects holds beard; the kinds are janus"):
        ProceduralConfig(defects=("beard",))
    with pytest.raises(ValueError, match="seed is -1"):
        ProceduralSource().head(-1)


def test_lineage_is_json():
    lineage = ProceduralSource(ProceduralConfig(0.1)).lineage()
    assert lineage["config"]["defect_rate"] == 0.1
    assert json.dumps(lineage)
