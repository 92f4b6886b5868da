"""Rigs see what their papers say they see."""

import numpy as np
import pytest

from datagen.identity import rig_cameras
from datagen.rigs import RIGS, find_rig
from geometry.cameras import azimuth_elevation
from geometry.directions import FOCAL, RADIUS


@pytest.mark.parametrize(
    ("name", "views", "elevations"),
    [
        ("spinmeround-125", 125, {-23, -11.5, 0, 11.5, 23}),
        ("gen3dface-48", 48, {-30, 0, 30}),
        ("gen3dface-48-el40", 48, {-40, 0, 40}),
        ("diffportrait360-72", 72, {0}),
        ("diffportrait3d-24", 24, {-18.75, -6.25, 6.25, 18.75}),
        ("facelift-6", 6, {0}),
        ("facelift-32", 32, {20}),
        ("orbit-7", 7, {0}),
    ],
)
def test_grid(name, views, elevations):
    rig = find_rig(name, grid=True)
    azimuth, elevation = rig.directions(seed=1, identity=2)
    assert len(rig) == len(azimuth) == views
    assert set(elevation) == elevations
    assert len(set(zip(azimuth, elevation, strict=True))) == views
    assert azimuth.min() >= -180 and azimuth.max() < 180
    assert (azimuth == find_rig(name, grid=True).directions(seed=8, identity=9)[0]).all()


def test_jitter_stays_in_its_cell_and_is_the_identitys_own():
    rig, grid = find_rig("spinmeround-125"), find_rig("spinmeround-125", grid=True)
    azimuth, elevation = rig.directions(seed=0, identity=3)
    middle_azimuth, middle_elevation = grid.directions(seed=0, identity=3)
    turned = (azimuth - middle_azimuth + 180) % 360 - 180
    assert np.abs(turned).max() <= 7.2 and np.abs(elevation - middle_elevation).max() <= 5.75
    assert np.abs(elevation).max() <= 23
    assert np.abs(turned).mean() == pytest.approx(3.6, abs=0.5)
    again, other = rig.directions(0, 3)[0], rig.directions(0, 4)[0]
    assert (azimuth == again).all() and not np.isclose(azimuth, other).any(where=middle_azimuth != 0)
    frontal = (middle_azimuth == 0) & (middle_elevation == 0)
    assert frontal.sum() == 1 and azimuth[frontal] == 0 and elevation[frontal] == 0


@pytest.mark.parametrize("name", [*RIGS, "orbit-5"])
def test_cameras_stand_where_the_directions_say(name):
    rig = find_rig(name)
    azimuth, elevation = rig.directions(0, 0)
    cameras = rig_cameras(rig, 0, 0)
    seen_azimuth, seen_elevation = azimuth_elevation(cameras.c2w)
    assert np.abs((seen_azimuth.numpy() - azimuth + 180) % 360 - 180).max() < 1e-3
    assert np.abs(seen_elevation.numpy() - elevation).max() < 1e-3
    assert np.allclose(cameras.positions.norm(dim=-1), rig.radius)


def test_facelift_sees_with_its_own_lens_and_the_plan_records_it():
    """50 degrees, and a head of 0.41 units (crown to chin) takes about half of the image, as in FaceLift's samples."""
    for name in ("facelift-6", "facelift-32"):
        for rig in (find_rig(name), find_rig(name, grid=True)):
            cameras = rig_cameras(rig, 0, 0)
            assert cameras.pixel_K(512)[:, 0, 0].numpy() == pytest.approx(548.99377, abs=1e-3)
            assert rig.document()["radius"] == rig.radius == pytest.approx(0.81)
            assert 0.41 * rig.focal / rig.radius == pytest.approx(0.54, abs=0.02)


@pytest.mark.parametrize("name", [name for name in (*RIGS, "orbit-5", "scatter-3") if "facelift" not in name])
def test_other_rigs_keep_the_usual_lens_which_no_plan_names(name):
    rig = find_rig(name)
    assert (rig.radius, rig.focal) == (RADIUS, FOCAL)
    assert rig.document().keys() == {
        "id", "azimuth", "elevation", "azimuth_jitter", "elevation_jitter", "elevation_limit",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["spinmeround", "orbit-", "orbit-0", "orbit-x", "orbit-1000", ""])
def test_unknown_rig(name):
    with pytest.raises(ValueError, match=r"unknown rig .* there are spinmeround-125, .* orbit-N"):
        find_rig(name)
