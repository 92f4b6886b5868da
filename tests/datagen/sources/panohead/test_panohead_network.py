"""Every fast path against its slow, readable twin; no golden files needed."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from panohead_files import config, untrained

from datagen.sources.panohead.config import PLANE_AXES, GeneratorConfig
from datagen.sources.panohead.layers import FIR, Conv, StyledConv, upsample, with_filter
from datagen.sources.panohead.planes import DualSphere, TriGrid
from datagen.sources.panohead.renderer import Decoder, Jitter, Renderer
from geometry.cameras import orbit
from geometry.rays import rays


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def everywhere(n: int = 500) -> torch.Tensor:
    """Points in and around the box, on its faces, edges and corners, and at the centre."""
    inside = 1.3 * (torch.rand(n, 3, generator=torch.Generator().manual_seed(1)) - 0.5)
    edges = torch.cartesian_prod(*[torch.tensor([-0.5, 0.0, 0.2, 0.5])] * 3)
    return torch.cat([inside, edges])


@pytest.mark.parametrize("depth", [1, 3])
def test_trigrid_gather(depth):
    grid = TriGrid(random(3, 5, depth, 16, 16), PLANE_AXES, 1.0)
    torch.testing.assert_close(grid(everywhere()), grid.per_plane(everywhere()).mean(dim=0), atol=1e-5, rtol=0)


def test_spheres_gather():
    spheres = DualSphere(random(2, 3, 5, 16, 16), PLANE_AXES, 1.0)
    torch.testing.assert_close(spheres(everywhere()), spheres.per_plane(everywhere()).mean(dim=0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("up", [False, True])
def test_style_in_the_weights_is_style_on_the_features(up):
    layer = StyledConv(6, 4, 8, 16, up, clamp=3.0)
    for i, value in enumerate([*layer.parameters(), *layer.buffers()]):
        value.data = random(*value.shape, seed=i)
    w, x = random(8), random(2, 6, 8 if up else 16, 8 if up else 16)
    with torch.no_grad():
        style = layer.affine(w[None])[0]
        demodulate = ((layer.weight * style[:, None, None]).square().sum(dim=(1, 2, 3)) + 1e-8).rsqrt()
        y = x * style[:, None, None]
        if up:
            y = F.conv_transpose2d(y, layer.weight.transpose(0, 1), stride=2)
            y = F.conv2d(F.pad(y, (1, 1, 1, 1)), (4 * FIR).expand(4, 1, 4, 4), groups=4)
        else:
            y = F.conv2d(y, layer.weight, padding=1)
        y = y * demodulate[:, None, None] + layer.noise_const * layer.noise_strength + layer.bias[:, None, None]
        expected = (F.leaky_relu(y, 0.2) * 2**0.5).clamp(-3, 3)
        torch.testing.assert_close(layer.at(w, "const")(x), expected, atol=1e-5, rtol=1e-5)


def test_upsampling_is_zeros_between_pixels_and_the_filter():
    image = random(1, 2, 5, 5)
    spread = torch.zeros(1, 2, 10, 10)
    spread[..., ::2, ::2] = image
    expected = F.conv2d(F.pad(spread, (2, 1, 2, 1)), (4 * FIR).expand(2, 1, 4, 4), groups=2)
    torch.testing.assert_close(upsample(image), expected, atol=1e-6, rtol=0)


def test_a_convolution_leaves_its_input_alone():
    x = random(1, 2, 4, 4)
    before = x.clone()
    Conv(random(3, 2, 3, 3), random(3), activate=True, clamp=1.0)(x)
    assert torch.equal(x, before)


def slow_rays(config: GeneratorConfig, decoder: Decoder, field, origins, directions, jitter: Jitter):
    """The official procedure: every sample evaluated and decoded in full, then cropped, sorted and composited."""

    def samples(depths):
        points = origins[:, None] + depths[..., None] * directions[:, None]
        sigma, colour = decoder(field.per_plane(points.flatten(0, 1)).mean(dim=0))
        cropped = (points[..., 0].abs() > 0.4) | (points[..., 2].abs() > 0.4)
        return torch.where(cropped, -1000.0, sigma.view(depths.shape)), colour.view(*depths.shape, -1)

    def march(depths, sigma):
        density = F.softplus((sigma[:, 1:] + sigma[:, :-1]) / 2 - 1)
        alpha = 1 - torch.exp(-density * (depths[:, 1:] - depths[:, :-1]))
        return (
            alpha * torch.cumprod(torch.cat([torch.ones_like(alpha[:, :1]), 1 - alpha + 1e-10], dim=1), dim=1)[:, :-1]
        )

    n, m = config.depth_resolution, config.depth_resolution_importance
    step = (config.ray_end - config.ray_start) / (n - 1)
    depths = torch.linspace(config.ray_start, config.ray_end, n).expand(len(origins), n) + jitter.stratified * step
    sigma, colour = samples(depths)
    weights = march(depths, sigma)
    fine = torch.stack([
        slow_quantiles(d, w, (torch.arange(m) + 0.5) / m if jitter.importance is None else jitter.importance[i])
        for i, (d, w) in enumerate(zip(depths, weights, strict=True))
    ])  # fmt: skip
    fine_sigma, fine_colour = samples(fine)
    depths, order = torch.cat([depths, fine], dim=1).sort(dim=1)
    sigma = torch.cat([sigma, fine_sigma], dim=1).gather(1, order)
    colour = torch.cat([colour, fine_colour], dim=1)
    colour = colour.gather(1, order[..., None].expand_as(colour))
    weights = march(depths, sigma)
    features = (weights[..., None] * (colour[:, 1:] + colour[:, :-1]) / 2).sum(dim=1)
    return (
        features,
        weights.sum(dim=1),
        (weights * (depths[:, 1:] + depths[:, :-1]) / 2).sum(dim=1) / weights.sum(dim=1),
    )


def slow_quantiles(depths, weights, u):
    """One ray's inverse transform sampling, interval by interval."""
    padded = [float("-inf"), *weights.tolist(), float("-inf")]
    peaks = [max(a, b) for a, b in pairwise(padded)]
    smooth = [(a + b) / 2 + 0.01 + 1e-5 for a, b in pairwise(peaks)][1:-1]
    edges = ((depths[1:] + depths[:-1]) / 2).tolist()
    drawn, total = [], sum(smooth)
    for quantile in u.tolist():
        passed = 0.0
        for i, weight in enumerate(smooth):
            share = weight / total
            if quantile < passed + share:
                drawn.append(edges[i] + (quantile - passed) / share * (edges[i + 1] - edges[i]))
                break
            passed += share
    return torch.tensor(drawn)


@pytest.mark.parametrize("activation", ["none", "lrelu", "sigmoid"])
@pytest.mark.parametrize("random_jitter", [False, True])
def test_rendering_skips_nothing_that_counts(activation, random_jitter):
    settings = config(rendering={"decoder_activation": activation})
    generator = untrained(settings, seed=3)
    field = TriGrid(random(3, 32, 3, 16, 16), PLANE_AXES, 1.0)
    # Half of the space is filled, so that rays meet something, and miss something.
    generator.decoder.net[2].bias[0] -= generator.decoder(field(everywhere()))[0].median()
    generator.decoder.net[2].weight[0] *= 3
    origins, directions = rays(orbit(np.array([20.0]), np.array([20.0])), 8)
    origins, directions = origins.expand(64, 3), directions.flatten(0, 2)
    draw = torch.Generator().manual_seed(4)
    jitter = (
        Jitter(torch.rand(64, 12, generator=draw), torch.rand(64, 12, generator=draw)) if random_jitter else Jitter()
    )
    renderer = Renderer(settings, generator.decoder, field)
    renderer.samples_per_chunk = 100
    seen = renderer(origins, directions, jitter)
    features, weight, depth = slow_rays(settings, generator.decoder, field, origins, directions, jitter)
    torch.testing.assert_close(seen.weight, weight, atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.features, features, atol=1e-4, rtol=1e-4)
    met = weight > 1e-2
    assert met.any()
    torch.testing.assert_close(seen.depth[met], depth[met], atol=1e-4, rtol=0)


def test_empty_rays_have_no_depth():
    settings = config()
    generator = untrained(settings, seed=0)
    generator.decoder.net[2].bias[0] = -200
    renderer = Renderer(settings, generator.decoder, TriGrid(random(3, 32, 3, 16, 16), PLANE_AXES, 1.0))
    seen = renderer(torch.tensor([[0.0, 0.0, 2.7]]), torch.tensor([[0.0, 0.0, -1.0]]))
    assert seen.weight.item() == 0
    assert torch.isinf(seen.depth).all()
    assert not seen.features.any()


@pytest.mark.parametrize(
    ("variant", "resolution", "raw"),
    [("8XDC", 32, 8), ("8X", 32, 8), ("4X", 32, 16), ("4X", 32, 8), ("2X", 32, 16), ("2X", 32, 64)],
)
def test_superresolution_variants(variant, resolution, raw):
    module = {"superresolution_module": f"training.superresolution.SuperresolutionHybrid{variant}"}
    generator = untrained(config(rendering=module, resolution=raw), seed=0)
    cameras = orbit(np.zeros(2), np.zeros(2))
    seen = generator.identity(random(1, generator.num_ws, 8)).views(cameras)
    assert seen.image.shape == (2, 3, resolution, resolution)
    assert seen.image_raw.shape == (2, 3, raw, raw)
    assert torch.isfinite(seen.image).all()
    own = "superresolution.resample_filter" in generator.state_dict()
    assert own == (variant != "8XDC")


@pytest.mark.parametrize(
    ("rendering", "changes"),
    [
        ({"use_background": False}, {}),
        ({"use_torgb_raw": False}, {}),
        ({"depth_resolution_importance": 0}, {}),
        ({"disparity_space_sampling": True}, {}),
        ({"white_back": True}, {}),
        ({"triplane_depth": 1}, {}),
        ({"superresolution_noise_mode": "const"}, {}),
        ({"c_gen_conditioning_zero": True}, {}),
        ({}, {"conv_clamp": 256, "sr_num_fp16_res": 0}),
    ],
)
def test_declared_configurations_render(rendering, changes):
    generator = untrained(config(rendering=rendering, **changes), seed=0)
    seen = generator(random(1, 8), torch.cat([torch.eye(4).flatten(), torch.eye(3).flatten()])[None])
    assert torch.isfinite(seen.image).all()


def test_parsing_of_spherehead():
    generator = untrained(config("spherehead", parsing_flag=True), seed=0)
    seen = generator.identity(random(1, generator.num_ws, 8)).views(orbit(np.zeros(1), np.zeros(1)))
    torch.testing.assert_close(seen.image_parsing.sum(dim=1), torch.ones(1, 8, 8))


def test_views_of_one_identity_are_its_single_views():
    generator = untrained(config(), seed=0)
    ws = random(1, generator.num_ws, 8)
    cameras = orbit(np.array([0.0, 70.0, 180.0]), np.array([0.0, 20.0, -5.0]))
    together = generator.identity(ws).views(cameras)
    for view in range(3):
        alone = generator.identity(ws).views(cameras[view : view + 1])
        torch.testing.assert_close(together.image[view], alone.image[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(together.image_depth[view], alone.image_depth[0], atol=1e-5, rtol=0)


def test_short_background_styles_are_extended():
    generator = untrained(config(), seed=0)
    ws = random(1, 3, 8)
    longer = torch.cat([ws, ws[:, -1:].expand(-1, 5, -1)], dim=1)
    assert generator.bcg_synthesis.num_ws <= 8
    assert torch.equal(generator.background(ws), generator.background(longer))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"z_dim": None}, "does not say z_dim"),
        ({"z_dim": True}, "z_dim is True; it must be an integer"),
        ({"z_dim": 10**9}, "z_dim is 1000000000; it must be from 1 to 4096"),
        ({"img_resolution": 100}, "resolution is 100; it must be one of"),
        ({"architecture": "resnet"}, "architecture is 'resnet'"),
        ({"surprise": 1}, "unknown constructor argument 'surprise'"),
        ({"mapping_kwargs": 3}, "mapping arguments are a int"),
        ({"sr_kwargs": {"w_dim": 8}}, "needs sr_channels"),
    ],
)
def test_bad_arguments(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        config(**changes)


@pytest.mark.parametrize(
    ("rendering", "complaint"),
    [
        ({"superresolution_module": "os.system"}, "superresolution_module is 'system'"),
        ({"ray_start": "auto"}, "ray_start is 'auto'; it must be a number"),
        ({"ray_start": 5.0}, "rays go from 5.0 to 3.3"),
        ({"box_warp": float("nan")}, "box_warp is nan"),
        ({"cull_clouds": 0.5}, "cull_clouds is 0.5"),
        ({"superresolution_noise_mode": "random"}, "superresolution_noise_mode is 'random'"),
        ({"depth_resolution": 10**6}, "depth_resolution is 1000000"),
    ],
)
def test_bad_rendering_options(rendering, complaint):
    with pytest.raises(ValueError, match=complaint):
        config(rendering=rendering)


def test_spherehead_has_three_planes():
    with pytest.raises(ValueError, match="triplane_depth is 1"):
        dataclasses.replace(config("spherehead"), plane_depth=1)


def test_upsampling_and_its_filter_are_one_kernel():
    """What a GPU computes: the filter folded into the transposed convolution."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((2, 5, 8, 8), (7, 5, 3, 3), (7,)))
    apart = Conv(weight, bias, up=True)
    folded = F.conv_transpose2d(x, with_filter(weight.transpose(0, 1)), bias, stride=2, padding=2)
    torch.testing.assert_close(folded, apart(x), atol=1e-5, rtol=1e-5)
