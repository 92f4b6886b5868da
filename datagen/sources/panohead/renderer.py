"""Volume rendering of a feature field: stratified samples, importance samples, one composite.

Source: EG3D's ray_marcher.py and renderer.py, with PanoHead's changes. What is done differently gives the same numbers:
cropped samples are never evaluated, samples keep their order (weights are sorted, features are not), and the decoder's
linear last layer is applied once per ray instead of once per sample.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from datagen.sources.panohead.config import CROP, GeneratorConfig
from datagen.sources.panohead.layers import FullyConnected
from datagen.sources.panohead.planes import FeaturePlanes
from geometry.directions import RADIUS

EMPTY = -1000.0
HIDDEN = 64


class Decoder(nn.Module):
    """From a mean plane feature to raw density and colour features."""

    def __init__(self, features: int, lr: float, activation: str):
        super().__init__()
        self.net = nn.Sequential(
            FullyConnected(features, HIDDEN, lr), nn.Softplus(), FullyConnected(HIDDEN, 1 + features, lr)
        )
        self.activation = activation

    @property
    def first(self) -> FullyConnected:
        layer = self.net[0]
        assert isinstance(layer, FullyConnected)
        return layer

    @property
    def last(self) -> FullyConnected:
        layer = self.net[2]
        assert isinstance(layer, FullyConnected)
        return layer

    def forward(self, features: Float[Tensor, "n c"]) -> tuple[Float[Tensor, " n"], Float[Tensor, "n c"]]:
        """Raw density, which a softplus turns into density (the surface is where it is 10), and colour features."""
        both = self.net(features)
        return both[:, 0], self._activate(both[:, 1:])

    def hidden(self, features: Float[Tensor, "n c"]) -> Float[Tensor, "n d"]:
        """The input of the last layer."""
        return _softplus(self.first(features))

    def sigma(self, hidden: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Raw density alone."""
        last = self.last
        return hidden @ (last.weight[0] * last.gain) + last.bias[0] * last.lr

    def composite(self, weights: Float[Tensor, "r n"], hidden: Float[Tensor, "r n d"]) -> Float[Tensor, "r c"]:
        """Weighted sum of the samples' colours."""
        last = self.last
        if self.activation != "none":
            colour = self._activate(last(hidden.flatten(0, 1))[:, 1:])
            return (weights[:, None] @ colour.unflatten(0, weights.shape))[:, 0]
        bias = weights.sum(dim=1, keepdim=True) * last.bias[1:] * last.lr
        return (weights[:, None] @ hidden)[:, 0] @ (last.weight[1:] * last.gain).T + bias

    def _activate(self, colour: Float[Tensor, "*n c"]) -> Float[Tensor, "*n c"]:
        if self.activation == "sigmoid":
            return colour.sigmoid() * (1 + 2 * 0.001) - 0.001
        return F.leaky_relu(colour, 0.2) * math.sqrt(2) if self.activation == "lrelu" else colour


def _softplus(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """log(1 + e^x), in place unless a gradient needs x."""
    if x.is_cuda or x.requires_grad:
        return F.softplus(x)
    # A third of the time of F.softplus on CPU: log is vectorised, log1p is not, and nothing is allocated.
    positive = x.clamp(min=0)
    return x.abs_().neg_().exp_().add_(1).log_().add_(positive)


@dataclass(frozen=True, eq=False)
class Jitter:
    """The positions of samples in their strata; the official code draws both at random on every call."""

    stratified: float | Float[Tensor, "r n"] = 0.5
    """Offset of each coarse sample in strata, in [0, 1)."""
    importance: Float[Tensor, "r m"] | None = None
    """Quantile of each fine sample, in [0, 1]; None spaces them evenly: (k + 0.5) / m."""

    def __getitem__(self, rays: slice) -> "Jitter":
        stratified = self.stratified[rays] if isinstance(self.stratified, Tensor) else self.stratified
        return Jitter(stratified, None if self.importance is None else self.importance[rays])


EVEN = Jitter()


@dataclass(frozen=True, eq=False)
class Rendered:
    """The rendered values of rays."""

    features: Float[Tensor, "r c"]
    depth: Float[Tensor, " r"]
    """Mean distance along the ray, infinite where nothing was hit."""
    weight: Float[Tensor, " r"]
    """Opacity of the ray."""
    nearest: Float[Tensor, ""]
    farthest: Float[Tensor, ""]


class Renderer:
    """Renders one identity's field along rays, with the constants of a config."""

    def __init__(self, config: GeneratorConfig, decoder: Decoder, field: FeaturePlanes):
        self.config, self.decoder, self.field = config, decoder, field
        # On CPU the intermediate values of a chunk should stay in cache; on GPU launches should be few.
        self.samples_per_chunk = 1 << (20 if field.table.is_cuda else 14)

    def __call__(
        self, origins: Float[Tensor, "r 3"], directions: Float[Tensor, "r 3"], jitter: Jitter = EVEN
    ) -> Rendered:
        """Features, depth and weight of every ray; directions are of unit length."""
        step = max(1, self.samples_per_chunk // self.config.depth_resolution)
        chunks = [slice(i, i + step) for i in range(0, len(origins), step)]
        parts = [self._rays(origins[chunk], directions[chunk], jitter[chunk]) for chunk in chunks]
        return Rendered(
            features=torch.cat([part.features for part in parts]),
            depth=torch.cat([part.depth for part in parts]),
            weight=torch.cat([part.weight for part in parts]),
            nearest=torch.stack([part.nearest for part in parts]).min(),
            farthest=torch.stack([part.farthest for part in parts]).max(),
        )

    def sigma(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        """Raw density at world points, without the crop."""
        parts = points.split(self.samples_per_chunk)
        return torch.cat([self.decoder.sigma(self.decoder.hidden(self.field(part))) for part in parts])

    def _rays(self, origins: Float[Tensor, "r 3"], directions: Float[Tensor, "r 3"], jitter: Jitter) -> Rendered:
        depths = coarse_depths(self.config, origins, jitter.stratified)
        sigma, seen = self._samples(origins, directions, depths)
        hidden = [seen]
        if self.config.depth_resolution_importance:
            fine = fine_depths(depths, interval_weights(depths, sigma), self._quantiles(origins, jitter))
            fine_sigma, seen = self._samples(origins, directions, fine)
            hidden.append(seen)
            depths, sigma = torch.cat([depths, fine], dim=1), torch.cat([sigma, fine_sigma], dim=1)
        order = depths.argsort(dim=1)
        in_order = depths.gather(1, order)
        intervals = interval_weights(in_order, sigma.gather(1, order))
        total = intervals.sum(dim=1)
        # A colour is the mean of an interval's two ends, so each end carries half the interval's weight.
        ends = (F.pad(intervals, (1, 0)) + F.pad(intervals, (0, 1))) / 2
        ends = torch.zeros_like(ends).scatter_(1, order, ends)
        parts = ends.split([values.shape[1] for values in hidden], dim=1)
        composites = [self.decoder.composite(part, values) for part, values in zip(parts, hidden, strict=True)]
        features = torch.stack(composites).sum(dim=0)
        if self.config.white_back:
            features = features + 1 - total[:, None]
        depth = (intervals * _middles(in_order)).sum(dim=1) / total
        return Rendered(features, depth.nan_to_num(torch.inf), total, in_order[:, 0].min(), in_order[:, -1].max())

    def _quantiles(self, origins: Float[Tensor, "r 3"], jitter: Jitter) -> Float[Tensor, "r m"]:
        if jitter.importance is not None:
            return jitter.importance
        count = self.config.depth_resolution_importance
        even = (torch.arange(count, dtype=origins.dtype, device=origins.device) + 0.5) / count
        return even.expand(len(origins), -1)

    def _samples(
        self, origins: Float[Tensor, "r 3"], directions: Float[Tensor, "r 3"], depths: Float[Tensor, "r n"]
    ) -> tuple[Float[Tensor, "r n"], Float[Tensor, "r n d"]]:
        """Raw density and hidden features of samples, the cropped ones left empty."""
        points = (origins[:, None] + depths[..., None] * directions[:, None]).flatten(0, 1)
        kept = within_crop(points, self.config.box_warp).nonzero()[:, 0]
        seen = self.decoder.hidden(self.field(points[kept]))
        sigma = points.new_full((len(points),), EMPTY)
        sigma[kept] = self.decoder.sigma(seen)
        hidden = points.new_zeros(len(points), HIDDEN)
        hidden[kept] = seen
        return sigma.view(depths.shape), hidden.view(*depths.shape, HIDDEN)


def within_crop(points: Float[Tensor, "n 3"], box_warp: float) -> Bool[Tensor, " n"]:
    """Whether density at points is rendered: it is cropped near the x and z faces of the box, never in y."""
    return (points[:, ::2].abs() <= box_warp / 2 - CROP).all(dim=1)


def coarse_depths(
    config: GeneratorConfig, origins: Float[Tensor, "r 3"], stratified: float | Float[Tensor, "r n"]
) -> Float[Tensor, "r n"]:
    """Distances along the rays, one in each stratum; the last stratum lies beyond the end, as in the official code.

    The near and far planes of a config hold for cameras at RADIUS; they move with cameras that are nearer or farther.
    """
    n = config.depth_resolution
    # Rounded, so that rounding errors of the usual distance move nothing.
    moved = torch.round(origins.norm(dim=1, keepdim=True) - RADIUS, decimals=3)
    start, end = (0.0, 1.0) if config.disparity else (config.ray_start, config.ray_end)
    depths = torch.linspace(start, end, n, dtype=origins.dtype, device=origins.device).repeat(len(origins), 1)
    depths = depths + stratified * ((end - start) / (n - 1))
    if config.disparity:
        return 1 / ((1 - depths) / (config.ray_start + moved) + depths / (config.ray_end + moved))
    return depths + moved


def interval_weights(depths: Float[Tensor, "r n"], sigma: Float[Tensor, "r n"]) -> Float[Tensor, "r m"]:
    """Weight of each ray between consecutive samples, by EG3D's mid-point ray marcher."""
    density = F.softplus(_middles(sigma) - 1)
    alpha = 1 - torch.exp(-density * depths.diff(dim=1))
    passed = torch.cumprod(1 - alpha + 1e-10, dim=1)
    return alpha * F.pad(passed[:, :-1], (1, 0), value=1.0)


def fine_depths(
    depths: Float[Tensor, "r n"], weights: Float[Tensor, "r k"], quantiles: Float[Tensor, "r m"]
) -> Float[Tensor, "r m"]:
    """Distances drawn where the coarse weights are large: quantiles of a piecewise constant density.

    As in EG3D, there is one more bin edge than the cumulative sum has entries, so the last bin is never used.
    """
    weights = F.avg_pool1d(F.max_pool1d(weights[:, None], 2, 1, padding=1), 2, 1)[:, 0] + 0.01
    edges, weights = _middles(depths), weights[:, 1:-1] + 1e-5
    cdf = F.pad(torch.cumsum(weights / weights.sum(dim=1, keepdim=True), dim=1), (1, 0))
    above = torch.searchsorted(cdf, quantiles.contiguous(), right=True)
    below, above = (above - 1).clamp(min=0), above.clamp(max=weights.shape[1])
    width = cdf.gather(1, above) - cdf.gather(1, below)
    width = torch.where(width < 1e-5, torch.ones_like(width), width)
    along = (quantiles - cdf.gather(1, below)) / width
    return edges.gather(1, below) + along * (edges.gather(1, above) - edges.gather(1, below))


def _middles(values: Float[Tensor, "r n"]) -> Float[Tensor, "r m"]:
    return (values[:, :-1] + values[:, 1:]) / 2
