import pytest
import torch
from safetensors.torch import load_file

from geometry.cameras import orbit, spinmeround_rotation
from geometry.raymaps import encode, ray_maps, relative_rotations, released_rays
from train.networks.config import RayMaps

SUBSET = (slice(3, 64, 8), slice(5, 64, 8))


@pytest.fixture(scope="module")
def released(golden):
    return load_file(golden / "spinmeround/raymaps/raymaps.safetensors")


def close(ours, theirs):
    """Within what single precision leaves: octave 14 makes 16384 times as much of a rounding of the origin."""
    octave = torch.arange(15).repeat_interleave(3).repeat(2)
    limits = torch.cat([torch.full((3,), 1e-6), torch.where(octave < 8, 2e-4, 1e-2)])
    direction = torch.cat([torch.full((3,), 1e-6), torch.full((48,), 2e-4)])
    return bool(((ours - theirs).abs() <= torch.cat([limits, direction])).all())


def test_released_maps_are_the_official_ones(released):
    rotation = spinmeround_rotation(*released["angles_deg_pitch_yaw_roll"].unbind(-1))
    maps = ray_maps(rotation, 64).permute(0, 2, 3, 1)
    assert maps.shape == (17, 64, 64, 144)
    assert close(maps[:, *SUBSET], released["emb_8x8x144_rows3step8_cols5step8"])
    assert close(maps[1], released["full_emb_cam01_64x64x144"])


def test_released_rays_are_the_official_ones(released):
    rotation = spinmeround_rotation(*released["angles_deg_pitch_yaw_roll"].unbind(-1))
    origins, directions = released_rays(rotation, 64)
    assert torch.allclose(origins, released["ray_origin"], atol=1e-6)
    assert torch.allclose(directions[0], released["ray_dirs_full_cam00"], atol=1e-6)
    assert torch.allclose(directions[16], released["ray_dirs_full_cam16"], atol=2e-6)


@pytest.mark.parametrize("octaves", [8, 15])
def test_the_encoding_is_the_official_one(released, octaves):
    ours = encode(released["posenc_x"], octaves)
    assert torch.allclose(ours, released[f"posenc_deg0_{octaves}"], atol=1e-4)


def geometric(rotation: torch.Tensor, cells: int) -> torch.Tensor:
    return ray_maps(rotation, cells, "geometric", 0, 0)


def test_geometric_rays_meet_the_head():
    maps = geometric(orbit(torch.tensor([0.0, 70.0]).numpy(), torch.tensor([0.0, 15.0]).numpy()).view_rotation, 8)
    origins, directions = maps[:, :3], maps[:, 3:]
    assert torch.allclose(directions.norm(dim=1), torch.ones(2, 8, 8), atol=1e-6)
    assert torch.allclose(origins.norm(dim=1), torch.full((2, 8, 8), 2.7), atol=1e-5)
    # The middle of the picture looks at the middle of the head.
    middle = (origins + 2.7 * directions)[:, :, 3:5, 3:5].mean((2, 3))
    assert middle.abs().max() < 0.05


def test_geometric_maps_turn_with_the_camera():
    azimuth = torch.tensor([20.0, 110.0]).numpy()
    rotation = orbit(azimuth, 0 * azimuth).view_rotation
    one, other = geometric(rotation, 4)
    turn = rotation[1].T @ rotation[0]
    assert torch.allclose(torch.einsum("ij,jhw->ihw", turn, one[3:]), other[3:], atol=1e-6)


def test_the_first_given_view_counts_as_the_front():
    azimuth = torch.tensor([30.0, 75.0, -60.0]).numpy()
    rotation = orbit(azimuth, 0 * azimuth).view_rotation[None].repeat(2, 1, 1, 1)
    relative = relative_rotations(rotation, torch.tensor([[True, False, False], [False, False, False]]))
    wanted = orbit(azimuth - 30, 0 * azimuth).view_rotation
    assert torch.allclose(relative[0], wanted, atol=1e-6)
    assert torch.equal(relative[1], rotation[1])


def test_maps_are_made_in_single_precision_under_autocast():
    rotation = orbit(torch.tensor([33.0]).numpy(), torch.tensor([5.0]).numpy()).view_rotation
    plain = ray_maps(rotation, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ray_maps(rotation, 8), plain)


def test_octaves_that_cannot_be():
    with pytest.raises(ValueError, match=r"--model.rays.origin-octaves is 20; it must be from 0 to 16"):
        RayMaps(origin_octaves=20)
