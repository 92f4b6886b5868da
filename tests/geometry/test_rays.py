"""Rays against PanoHead's ray sampler and against the projection they invert."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from geometry.cameras import Cameras, from_eg3d_labels, orbit
from geometry.rays import pixel_directions, rays

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "geometry_cameras.safetensors")


@pytest.mark.parametrize("resolution", [8, 16])
def test_rays_match_the_official_sampler(resolution: int):
    expected = {name: GOLDEN[f"rays{resolution}.{name}"] for name in ("labels", "origins", "directions")}
    origins, directions = rays(from_eg3d_labels(expected["labels"]), resolution)
    torch.testing.assert_close(origins, expected["origins"], atol=1e-6, rtol=0)
    torch.testing.assert_close(directions, expected["directions"], atol=1e-6, rtol=0)


def skewed() -> Cameras:
    cameras = orbit(np.array([20.0, -160.0]), np.array([5.0, -20.0]))
    K = torch.tensor([[[4.0, 0.3, 0.4], [0.0, 3.0, 0.7], [0.0, 0.0, 1.0]]])
    return Cameras(cameras.c2w, K.repeat(2, 1, 1))


def test_points_along_a_ray_project_to_its_pixel_centre():
    cameras = skewed()
    origins, directions = rays(cameras, 12)
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(2, 12, 12))
    for view in range(2):
        points = (origins[view] + 1.7 * directions[view]).reshape(-1, 3)
        x, y, _ = cameras[[view]].project(points, 12)[0].reshape(12, 12, 3).unbind(-1)
        centres = torch.arange(12) + 0.5
        torch.testing.assert_close(x, centres.expand(12, 12), atol=1e-4, rtol=0)
        torch.testing.assert_close(y, centres[:, None].expand(12, 12), atol=1e-4, rtol=0)


def test_a_distance_along_a_pixel_direction_is_a_depth():
    cameras = skewed()
    camera_points = 2.5 * pixel_directions(cameras.K, 5)[0]
    world = camera_points.reshape(-1, 3) @ cameras.c2w[0, :3, :3].T + cameras.positions[0]
    depth = cameras[[0]].project(world, 5)[0, :, 2]
    torch.testing.assert_close(depth, torch.full((25,), 2.5), atol=1e-5, rtol=0)
