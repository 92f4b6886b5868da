"""Picture metrics against scikit-image and torchmetrics, on real pictures."""

import numpy as np
import pytest
import torch
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import peak_signal_noise_ratio as torch_psnr
from torchmetrics.functional.image import structural_similarity_index_measure as torch_ssim

from infer.metrics.pixels import l2, normal_error, psnr, ssim


def pictures(side: int) -> torch.Tensor:
    """Astronaut, coffee and cameraman, cut to squares and reduced."""
    found = [data.astronaut(), data.coffee()[:400, 100:500], np.repeat(data.camera()[..., None], 3, 2)]
    tensors = [torch.from_numpy(p).permute(2, 0, 1)[None].float() / 255 for p in found]
    return torch.cat([torch.nn.functional.interpolate(t, (side, side), mode="area") for t in tensors])


def damaged(true: torch.Tensor) -> dict[str, torch.Tensor]:
    noise = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, true.shape)).float()
    blurred = torch.nn.functional.avg_pool2d(true, 5, stride=1, padding=2, count_include_pad=False)
    return {
        "noise": (true + noise).clamp(0, 1),
        "blur": blurred.clamp(0, 1),
        "shift": true.roll(3, -1),
        "dark": true / 2,
    }


@pytest.mark.parametrize("side", [64, 128])
@pytest.mark.parametrize("damage", ["noise", "blur", "shift", "dark"])
def test_ssim_and_psnr_are_those_of_the_libraries(side, damage):
    true = pictures(side)
    generated = damaged(true)[damage]
    _, map_ = torch_ssim(generated, true, sigma=1.5, data_range=1.0, return_full_image=True)
    for i, (own_ssim, own_psnr) in enumerate(zip(ssim(generated, true), psnr(generated, true), strict=True)):
        a, b = (p[i].permute(1, 2, 0).double().numpy() for p in (generated, true))
        expected = structural_similarity(
            a, b, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1
        )
        assert float(own_ssim) == pytest.approx(expected, abs=1e-4)
        assert float(own_ssim) == pytest.approx(float(map_[i, :, 5:-5, 5:-5].mean()), abs=1e-4)
        assert float(own_psnr) == pytest.approx(peak_signal_noise_ratio(b, a, data_range=1), abs=1e-4)
        alone = torch_psnr(generated[i : i + 1], true[i : i + 1], data_range=1.0)
        assert float(own_psnr) == pytest.approx(float(alone), abs=1e-4)


def test_pictures_are_measured_one_by_one_in_any_number():
    true = pictures(32).repeat(4, 1, 1, 1)
    generated = damaged(true)["noise"]
    for measure in (l2, psnr, ssim):
        alone = torch.cat([measure(generated[[i]], true[[i]]) for i in range(len(true))])
        torch.testing.assert_close(measure(generated, true), alone, atol=1e-6, rtol=1e-5)


def test_equal_pictures():
    true = pictures(32)
    assert l2(true, true).tolist() == [0, 0, 0]
    assert psnr(true, true).isinf().all()
    torch.testing.assert_close(ssim(true, true), torch.ones(3))


def test_l2_is_the_mean_over_pixels_and_channels():
    assert l2(torch.full((1, 3, 4, 4), 0.75), torch.full((1, 3, 4, 4), 0.25)).tolist() == [0.25]


def test_pictures_of_the_loader_are_refused_with_what_would_work():
    true = pictures(32)
    with pytest.raises(ValueError, match=r"generated pictures reach from -1 .*metrics read 0 to 1, as \(x \+ 1\) / 2"):
        l2(true * 2 - 1 - true.min() * 2, true)
    with pytest.raises(ValueError, match=r"true pictures reach from nan"):
        l2(true, true * torch.nan)
    with pytest.raises(ValueError, match=r"SSIM has a window of 11 pixels, and pictures are \(10, 10\)"):
        ssim(true[..., :10, :10], true[..., :10, :10])


def rotation(axis: list[float], degrees: float) -> torch.Tensor:
    x, y, z = torch.tensor(axis, dtype=torch.float64) / np.linalg.norm(axis)
    skew = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    return torch.linalg.matrix_exp(skew * np.radians(degrees))


@pytest.mark.parametrize("degrees", [0.0, 0.01, 1.0, 30.0, 90.0, 179.0, 180.0])
def test_the_angle_of_normals_is_that_of_a_known_rotation(degrees):
    axis = torch.tensor([1.0, 2.0, -0.5], dtype=torch.float64)
    # Vectors square to the axis turn by the whole angle.
    normals = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 8, 8)))
    normals -= (torch.einsum("nchw,c->nhw", normals, axis) / axis.square().sum())[:, None] * axis[:, None, None]
    normals = torch.nn.functional.normalize(normals, dim=1).float()
    turned = torch.einsum("ij,njhw->nihw", rotation(axis.tolist(), degrees).float(), normals)
    mask = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.5
    wrong_outside = torch.where(mask[:, None], turned, -normals)
    found = normal_error(wrong_outside * 0.9, normals, mask)
    torch.testing.assert_close(found, torch.full((2,), degrees), atol=2e-3, rtol=1e-4)


def test_grey_is_no_normal_and_an_empty_mask_no_number():
    normals = torch.zeros(2, 3, 4, 4)
    normals[:, 2] = 1
    mask = torch.tensor([True, False])[:, None, None].expand(2, 4, 4)
    found = normal_error(normals * 0.1, normals, mask)
    assert found[0] == 90 and found[1].isnan()
