"""The official PanoHead procedure, transcribed plainly onto our parameters: the baseline of `benchmarks/panohead.py`.

As in the official scripts, every view runs mapping, backbone, background, rendering and super-resolution anew; every
sample of every ray is evaluated and decoded in full; and every chunk of the shape grid runs mapping and backbone
again. Convolutions are modulated per call and grouped by batch, planes are read by `grid_sample`.
Source: SizheAn/PanoHead, gen_samples.py, triplane.py, renderer.py, networks_stylegan2.py, superresolution.py.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from datagen.sources.panohead.generator import Generator
from datagen.sources.panohead.layers import FIR, StyledBlock, StyledConv, StyledNetwork, StyledRGB
from datagen.sources.panohead.official import frontal_label
from geometry.cameras import from_eg3d_labels
from geometry.rays import rays

CHUNK = 1_000_000


def modulated(x: Tensor, weight: Tensor, style: Tensor, up: bool, demodulate: bool) -> Tensor:
    batch, inputs, height, width = x.shape
    w = weight[None] * style[:, None, :, None, None]
    if demodulate:
        w = w * (w.square().sum(dim=(2, 3, 4)) + 1e-8).rsqrt()[:, :, None, None, None]
    x = x.reshape(1, batch * inputs, height, width)
    if up:
        x = F.conv_transpose2d(x, w.transpose(1, 2).flatten(0, 1), stride=2, groups=batch)
        fir = (4 * FIR).to(x).expand(x.shape[1], 1, 4, 4)
        x = F.conv2d(F.pad(x, (1, 1, 1, 1)), fir, groups=x.shape[1])
    else:
        x = F.conv2d(x, w.flatten(0, 1), padding=w.shape[-1] // 2, groups=batch)
    return x.reshape(batch, -1, *x.shape[2:])


def layer(conv: StyledConv, x: Tensor, w: Tensor, const_noise: bool) -> Tensor:
    x = modulated(x, conv.weight, conv.affine(w), conv.up, demodulate=True)
    if const_noise:
        x = x + conv.noise_const * conv.noise_strength
    x = F.leaky_relu(x + conv.bias[:, None, None], 0.2) * math.sqrt(2)
    return x if conv.clamp is None else x.clamp(-conv.clamp, conv.clamp)


def to_rgb(rgb: StyledRGB, x: Tensor, w: Tensor) -> Tensor:
    style = rgb.affine(w) / math.sqrt(rgb.weight.shape[1])
    x = modulated(x, rgb.weight, style, up=False, demodulate=False) + rgb.bias[:, None, None]
    return x if rgb.clamp is None else x.clamp(-rgb.clamp, rgb.clamp)


def upsample(image: Tensor) -> Tensor:
    n, c, h, w = image.shape
    spread = F.pad(image.reshape(n, c, h, 1, w, 1), (0, 1, 0, 0, 0, 1)).reshape(n, c, 2 * h, 2 * w)
    return F.conv2d(F.pad(spread, (2, 1, 2, 1)), (4 * FIR).to(image).expand(c, 1, 4, 4), groups=c)


def block(
    styled: StyledBlock, x: Tensor | None, image: Tensor | None, ws: Tensor, noise: bool
) -> tuple[Tensor, Tensor]:
    if styled.num_convs == 1:
        x = layer(styled.conv1, styled.const.expand(len(ws), -1, -1, -1), ws[:, 0], noise)
    else:
        x = layer(styled.conv1, layer(styled.conv0, x, ws[:, 0], noise), ws[:, 1], noise)
    if image is not None and styled.up:
        image = upsample(image)
    rgb = to_rgb(styled.torgb, x, ws[:, styled.num_convs])
    return x, rgb if image is None else image + rgb


def network(styled: StyledNetwork, ws: Tensor) -> Tensor:
    x = image = None
    first = 0
    for size in styled.resolutions:
        at = getattr(styled, f"b{size}")
        x, image = block(at, x, image, ws[:, first : first + at.num_convs + 1], noise=True)
        first += at.num_convs
    return image


def run_model(g: Generator, planes: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Raw density and colour of points, all planes in one 3D grid_sample."""
    n, m, _ = points.shape
    axes = torch.stack([torch.eye(3)[list(plane)] for plane in g.config.plane_axes]).to(points)
    projected = torch.bmm(
        (points * (2 / g.config.box_warp))[:, None].expand(-1, 3, -1, -1).reshape(n * 3, m, 3),
        torch.linalg.inv(axes)[None].expand(n, -1, -1, -1).reshape(n * 3, 3, 3),
    )
    sampled = F.grid_sample(planes.flatten(0, 1), projected[:, None, None], align_corners=False)
    features = sampled.permute(0, 4, 3, 2, 1).reshape(n, 3, m, -1).mean(dim=1)
    both = g.decoder.net(features.view(n * m, -1)).view(n, m, -1)
    return both[..., :1], both[..., 1:]


def march(colours: Tensor, densities: Tensor, depths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    deltas = depths[:, :, 1:] - depths[:, :, :-1]
    colour_mid = (colours[:, :, :-1] + colours[:, :, 1:]) / 2
    density_mid = (densities[:, :, :-1] + densities[:, :, 1:]) / 2
    depth_mid = (depths[:, :, :-1] + depths[:, :, 1:]) / 2
    alpha = 1 - torch.exp(-F.softplus(density_mid - 1) * deltas)
    shifted = torch.cat([torch.ones_like(alpha[:, :, :1]), 1 - alpha + 1e-10], dim=-2)
    weights = alpha * torch.cumprod(shifted, dim=-2)[:, :, :-1]
    total = weights.sum(dim=2)
    depth = torch.nan_to_num((weights * depth_mid).sum(dim=-2) / total, float("inf"))
    return (weights * colour_mid).sum(dim=-2), depth.clamp(depths.min(), depths.max()), weights


def sample_pdf(bins: Tensor, weights: Tensor, u: Tensor) -> Tensor:
    count = weights.shape[1]
    weights = weights + 1e-5
    cdf = torch.cumsum(weights / weights.sum(dim=-1, keepdim=True), dim=-1)
    cdf = torch.cat([torch.zeros_like(cdf[:, :1]), cdf], dim=-1)
    found = torch.searchsorted(cdf, u.contiguous(), right=True)
    below, above = torch.clamp_min(found - 1, 0), torch.clamp_max(found, count)
    pairs = torch.stack([below, above], dim=-1).view(len(u), -1)
    cdf_g, bins_g = cdf.gather(1, pairs).view(*u.shape, 2), bins.gather(1, pairs).view(*u.shape, 2)
    width = cdf_g[..., 1] - cdf_g[..., 0]
    width[width < 1e-5] = 1
    return bins_g[..., 0] + (u - cdf_g[..., 0]) / width * (bins_g[..., 1] - bins_g[..., 0])


def render(g: Generator, planes: Tensor, labels: Tensor, resolution: int, even: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Rendered features, depth and weight sums; `even` places samples as our default does, else at random."""
    cfg = g.config
    origins, directions = rays(from_eg3d_labels(labels), resolution)
    directions = directions.flatten(1, 2)
    origins = origins[:, None].expand_as(directions)
    n, m, _ = directions.shape
    coarse, fine = cfg.depth_resolution, cfg.depth_resolution_importance
    depths = torch.linspace(cfg.ray_start, cfg.ray_end, coarse, device=planes.device).reshape(1, 1, coarse, 1)
    depths = depths.repeat(n, m, 1, 1)
    jitter = torch.full_like(depths, 0.5) if even else torch.rand_like(depths)
    depths = depths + jitter * ((cfg.ray_end - cfg.ray_start) / (coarse - 1))

    def evaluate(at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        points = (origins[:, :, None] + at * directions[:, :, None]).reshape(n, -1, 3)
        sigma, colour = run_model(g, planes, points)
        sigma[~(points[:, :, [0, 2]].abs() <= cfg.box_warp / 2 - 0.1).all(dim=-1, keepdim=True)] = -1e3
        shape = (n, m, at.shape[2], -1)
        return sigma.reshape(shape), colour.reshape(shape), points.reshape(shape)

    sigma, colour, xyz = evaluate(depths)
    _, _, weights = march(colour, sigma, depths)
    smooth = F.max_pool1d(weights.reshape(n * m, 1, -1), 2, 1, padding=1)
    smooth = F.avg_pool1d(smooth, 2, 1)[:, 0] + 0.01
    flat = depths.reshape(n * m, -1)
    u = torch.rand(n * m, fine, device=planes.device)
    if even:
        u = ((torch.arange(fine, device=planes.device) + 0.5) / fine).expand(n * m, -1)
    depths_fine = sample_pdf((flat[:, :-1] + flat[:, 1:]) / 2, smooth[:, 1:-1], u).reshape(n, m, fine, 1)
    sigma_fine, colour_fine, xyz_fine = evaluate(depths_fine)
    depths, colour, sigma, xyz = (
        torch.cat(pair, dim=-2)
        for pair in ((depths, depths_fine), (colour, colour_fine), (sigma, sigma_fine), (xyz, xyz_fine))
    )
    order = torch.sort(depths, dim=-2).indices
    depths, colour, sigma, xyz = (
        values.gather(-2, order.expand(-1, -1, -1, values.shape[-1])) for values in (depths, colour, sigma, xyz)
    )
    composite, depth, weights = march(torch.cat([colour, xyz], dim=-1), sigma, depths)
    return composite[..., :-3], depth, weights.sum(dim=2)


@torch.no_grad()
def official_view(g: Generator, z: Tensor, label: Tensor, psi: float = 0.7, even: bool = False) -> Tensor:
    """One picture as gen_samples makes it: conditioned on the front camera, everything else from scratch."""
    cfg, size = g.config, g.config.neural_resolution
    ws = g.mapping(z, frontal_label().to(label), psi, 14)
    planes = network(g.backbone.synthesis, ws).unflatten(1, (3, 32, cfg.plane_depth))
    features, _, weights = render(g, planes, label, size, even)
    features = features.permute(0, 2, 1).reshape(len(ws), -1, size, size)
    weights = weights.permute(0, 2, 1).reshape(len(ws), 1, size, size)
    background = network(g.bcg_synthesis, ws[:, : g.bcg_synthesis.num_ws])
    background = F.interpolate(background, (size, size), mode="bilinear", align_corners=False, antialias=True)
    features = features + (1 - weights) * background
    rgb = to_rgb(g.torgb, features, ws[:, -1])
    sr, last = g.superresolution, ws[:, -1:].repeat(1, 3, 1)
    if features.shape[-1] != sr.input_resolution:
        to = (sr.input_resolution, sr.input_resolution)
        features = F.interpolate(features, to, mode="bilinear", align_corners=False, antialias=sr.antialias)
        rgb = F.interpolate(rgb, to, mode="bilinear", align_corners=False, antialias=sr.antialias)
    for styled in (sr.block0, sr.block1):
        features, rgb = block(styled, features, rgb, last, noise=False)
    return rgb


@torch.no_grad()
def official_chunk(g: Generator, z: Tensor, points: Tensor, psi: float = 0.7) -> Tensor:
    """Raw densities of one chunk of the shape grid, as gen_samples' `G.sample`: mapping and backbone included."""
    ws = g.mapping(z, frontal_label().to(points), psi, 14)
    planes = network(g.backbone.synthesis, ws).unflatten(1, (3, 32, g.config.plane_depth))
    return run_model(g, planes, points[None])[0][0, :, 0]
