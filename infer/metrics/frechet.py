"""FID of generated pictures against true ones, over all views and over front and back views alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from geometry.directions import turned
from infer.metrics.figures import Figure
from infer.metrics.metric_weights import INCEPTION, read_weights
from infer.metrics.pixels import check_range

SIDE, FEATURES, SPLIT = 299, 2048, 16
FID = ("fid", "fid_front", "fid_back")


@dataclass(frozen=True, eq=False)
class Inception:
    """The Inception network of FID, which gives 2,048 features of a picture."""

    net: nn.Module
    device: str

    @torch.inference_mode()
    def __call__(self, pictures: Float[Tensor, "n 3 h w"]) -> Float[np.ndarray, "n 2048"]:
        """Features of pictures in [0, 1], rounded to 8 bits and resized bilinearly with antialiasing to 299 pixels."""
        check_range(pictures, "these")
        parts = []
        for part in pictures.to(self.device).split(SPLIT):
            part = (part * 255).round()
            part = nn.functional.interpolate(part, (SIDE, SIDE), mode="bilinear", antialias=True)
            parts.append(self.net((part - 128) / 128))
        return torch.cat(parts).cpu().numpy()


def load_inception(folder: str = "", device: str = "cpu") -> Inception:
    """The Inception network of FID from its file; raises as `read_weights`."""
    return build_inception(read_weights(INCEPTION, folder), device)


def build_inception(state: Mapping[str, Tensor], device: str = "cpu") -> Inception:
    """torchvision's Inception with the pooling of the TensorFlow graph that FID was defined with.

    Source: Heusel et al. 2017; the weights are those of that graph, of 2015-12-05.
    """
    from torchvision.models import inception_v3

    with torch.device("meta"):
        net: Any = inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False)
    net.load_state_dict(state, assign=True)
    for name in ("5b", "5c", "5d", "6b", "6c", "6d", "6e", "7b"):
        block = net.get_submodule(f"Mixed_{name}")
        block.branch_pool = nn.Sequential(_InsideMean(), block.branch_pool)
    net.Mixed_7c, net.fc = _MaxPooled(net.Mixed_7c), nn.Identity()
    return Inception(net.eval().requires_grad_(False).to(device), device)


class _InsideMean(nn.Module):
    """Corrects 3 x 3 means that counted the zeros of the padding."""

    def forward(self, x: Tensor) -> Tensor:
        return x / nn.functional.avg_pool2d(torch.ones_like(x[:1, :1]), 3, stride=1, padding=1)


class _MaxPooled(nn.Module):
    """A block whose pooling branch takes the maximum where torchvision's takes the mean."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block: Any = block

    def forward(self, x: Tensor) -> Tensor:
        *branches, _ = self.block._forward(x)
        return torch.cat([*branches, self.block.branch_pool(nn.functional.max_pool2d(x, 3, stride=1, padding=1))], 1)


def frechet(generated: Float[np.ndarray, "n d"], target: Float[np.ndarray, "m d"]) -> float:
    """Frechet distance of Gaussians fitted to two sets of features, two or more of each."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Given(nn.Identity):
        num_features = generated.shape[1]

    distance = FrechetInceptionDistance(feature=Given())
    for features, real in ((generated, False), (target, True)):
        distance.update(torch.from_numpy(features).double(), real=real)
    return float(distance.compute())


def fid_figures(
    generated: Float[np.ndarray, "n d"],
    target: Float[np.ndarray, "m d"],
    generated_azimuth: Float[np.ndarray, " n"],
    target_azimuth: Float[np.ndarray, " m"],
    split: float = 90.0,
) -> list[Figure]:
    """FID over all views, over front views (`split` degrees or less from the front) and over back views.

    Features may be of any network. Parts with fewer views than features have a reason instead of a value. DiffPortrait360
    reports fronts and backs and does not state the angle between them.
    """
    turns = turned(generated_azimuth), turned(target_azimuth)
    parts = [[np.ones(len(t), bool) for t in turns], [t <= split for t in turns], [t > split for t in turns]]
    rows = []
    for name, (a, b) in zip(FID, parts, strict=True):
        count = int(a.sum())
        # With fewer views than features the covariances are singular and the distance is biased by tens of points.
        least = max(2, generated.shape[1])
        few = min(count, int(b.sum())) < least
        reason = f"it needs {least} views of each kind, and there are {count} generated and {int(b.sum())} true views"
        rows.append(Figure(name, None, count, reason) if few else Figure(name, frechet(generated[a], target[b]), count))
    return rows
