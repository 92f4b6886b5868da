"""Gaussians of a head: where they start, how they are written, and that they come to look like the views.

gsplat draws on a GPU only, so the fit is tried with a slow twin of its `rasterization`.
"""

import importlib.util

import numpy as np
import pytest
import torch
from turns import ball_turn

from infer.outputs.splat import SH0, check_splat, fit, initial_splats
from infer.outputs.surface import coloured_mesh

SIZE, GRID = 24, 20
RING = [60.0 * i for i in range(6)]


@pytest.fixture(scope="module")
def turn():
    return ball_turn(RING, [0] * 6, SIZE)


@pytest.fixture(scope="module")
def shape(turn):
    return coloured_mesh(turn, GRID)


def rasterize(means, quats, scales, opacities, colors, viewmats, Ks, width, height, backgrounds):
    """Every Gaussian on every pixel, from front to back. Source: Zwicker et al. 2001; Kerbl et al. 2023."""
    (pose,), (K,) = viewmats, Ks
    x, y, z = (means @ pose[:3, :3].T + pose[:3, 3]).unbind(-1)
    w, i, j, k = torch.nn.functional.normalize(quats).unbind(-1)
    rows = [
        *(1 - 2 * (j * j + k * k), 2 * (i * j - w * k), 2 * (i * k + w * j)),
        *(2 * (i * j + w * k), 1 - 2 * (i * i + k * k), 2 * (j * k - w * i)),
        *(2 * (i * k - w * j), 2 * (j * k + w * i), 1 - 2 * (i * i + j * j)),
    ]
    axes = pose[:3, :3] @ torch.stack(rows, -1).reshape(-1, 3, 3) * scales[:, None]
    nought = torch.zeros_like(z)
    slope = torch.stack([K[0, 0] / z, nought, -K[0, 0] * x / z**2, nought, K[1, 1] / z, -K[1, 1] * y / z**2], -1)
    spread = slope.reshape(-1, 2, 3) @ axes
    covariance = spread @ spread.transpose(1, 2) + 0.3 * torch.eye(2)
    at = torch.stack([K[0, 0] * x / z + K[0, 2], K[1, 1] * y / z + K[1, 2]], -1)
    row, column = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    away = torch.stack([column, row], -1).reshape(-1, 1, 2) - at
    power = (away * (away[:, :, None] @ covariance.inverse())[:, :, 0]).sum(-1)
    order = z.argsort()
    alpha = (opacities * (-0.5 * power).exp()).clamp(max=0.99)[:, order]
    left = torch.cat([torch.ones(len(alpha), 1), (1 - alpha).cumprod(1)], 1)
    picture = (left[:, :-1, None] * alpha[..., None] * colors[order]).sum(1) + left[:, -1:] * backgrounds
    return picture.reshape(1, height, width, 3), (1 - left[:, -1]).reshape(1, height, width, 1), {}


def loss(turn, splats) -> float:
    """Mean absolute difference over all views, of a scale of 1."""
    lenses = turn.cameras.pixel_K(turn.resolution)
    total = 0.0
    for view, pose in enumerate(turn.cameras.w2c):
        picture, _, _ = rasterize(
            *(splats.means, splats.quaternions, splats.log_scales.exp(), splats.logit_opacities.sigmoid()),
            *(splats.colours, pose[None], lenses[view][None], SIZE, SIZE, torch.ones(1, 3)),
        )
        total += float((picture[0].permute(2, 0, 1) - (turn.rgb[view] + 1) / 2).abs().mean())
    return total / len(turn)


def test_they_start_on_the_surface(turn, shape):
    start = initial_splats(shape)
    assert torch.equal(start.means, torch.from_numpy(shape.mesh.vertices))
    width = 0.72 / GRID
    assert (start.log_scales.exp() < 2 * width).all() and (start.log_scales.exp() > 0.05 * width).all()
    assert loss(turn, start) < 0.1


def test_a_fit_brings_them_nearer_and_is_repeated(turn, shape):
    start = initial_splats(shape)
    fitted = fit(turn, start, rasterize, 20, "cpu")
    assert loss(turn, fitted) < 0.93 * loss(turn, start)
    once, again = (fit(turn, start, rasterize, 3, "cpu") for _ in range(2))
    assert torch.equal(once.means, again.means) and torch.equal(start.means, initial_splats(shape).means)


def test_the_file_holds_what_viewers_read(turn, shape):
    """By the paper's reader: SH of degree 3, opacity before the sigmoid, scale before exp, quaternion w first."""
    splats = initial_splats(shape)
    header, _, data = splats.ply().partition(b"end_header\n")
    lines = header.decode().splitlines()
    assert lines[:3] == ["ply", "format binary_little_endian 1.0", f"element vertex {len(splats.means)}"]
    names = [line.split()[2] for line in lines[3:]]
    assert all(line.startswith("property float ") for line in lines[3:])
    rest = [f"f_rest_{i}" for i in range(45)]
    assert names == [
        *("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", *rest),
        *("opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
    ]
    read = np.frombuffer(data, [(name, "<f4") for name in names])
    column = lambda *wanted: np.stack([read[name] for name in wanted], -1)  # noqa: E731
    assert np.allclose(column("x", "y", "z"), splats.means)
    assert np.allclose(0.5 + SH0 * column("f_dc_0", "f_dc_1", "f_dc_2"), shape.colours / 255, atol=1e-6)
    assert np.allclose(1 / (1 + np.exp(-read["opacity"])), 0.8)
    assert np.allclose(column("scale_0", "scale_1", "scale_2"), splats.log_scales)
    assert np.allclose(column("rot_0", "rot_1", "rot_2", "rot_3"), [1, 0, 0, 0])


def test_what_is_missing_is_said_in_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="needs an NVIDIA GPU") as error:
        check_splat()
    assert str(error.value).isprintable()
    if importlib.util.find_spec("gsplat") is None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        with pytest.raises(ValueError, match="gsplat is not installed; pip install gsplat"):
            check_splat()
