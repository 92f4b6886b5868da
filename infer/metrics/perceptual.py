"""Metrics of pictures against the true ones: L2, PSNR and SSIM, and the perceptual distances LPIPS and DISTS.

LPIPS and DISTS are torchmetrics' own: their heads are part of its wheel, the weights of their backbones are files.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from infer.metrics.metric_weights import ALEXNET, VGG16, read_tensors, read_weights
from infer.metrics.pixels import WINDOW, Measure, check_pictures, l2, psnr, ssim

SMALLEST = 32
"""Smallest side in pixels; the backbones halve pictures up to five times."""
SPLIT = 4
"""Pairs that are compared at once; the first layer of VGG alone takes 64 MB per picture of 512 pixels."""

Backbone = Literal["alex", "vgg"]


@dataclass(frozen=True, eq=False)
class PerceptualMetric:
    """A distance of pictures in [0, 1] by a network."""

    compare: Callable[[Tensor, Tensor], Tensor]
    device: str

    @torch.inference_mode()
    def __call__(self, generated: Float[Tensor, "n 3 h w"], target: Float[Tensor, "n 3 h w"]) -> Float[Tensor, " n"]:
        check_pictures(generated, target)
        pairs = zip(generated.split(SPLIT), target.split(SPLIT), strict=True)
        return torch.cat([self.compare(a.to(self.device), b.to(self.device)).reshape(-1) for a, b in pairs]).cpu()


def load_lpips(backbone: Backbone, folder: str = "", device: str = "cpu") -> PerceptualMetric:
    """LPIPS of version 0.1 on AlexNet or VGG-16; raises as `read_weights`."""
    return build_lpips(backbone, read_weights({"alex": ALEXNET, "vgg": VGG16}[backbone], folder), device)


def load_dists(folder: str = "", device: str = "cpu") -> PerceptualMetric:
    """DISTS; raises as `read_weights`."""
    return build_dists(read_weights(VGG16, folder), device)


def build_lpips(backbone: Backbone, state: Mapping[str, Tensor], device: str = "cpu") -> PerceptualMetric:
    """LPIPS on the weights of a torchvision network. Source: Zhang et al. 2018."""
    from torchmetrics.functional.image.lpips import _NoTrainLpips

    net = _NoTrainLpips(net=backbone, pnet_rand=True)
    # torchmetrics cuts torchvision's layers into slices, in which they keep their numbers.
    own = {name: state["features." + name.split(".", 1)[1]] for name in net.net.state_dict()}
    net.net.load_state_dict(own)
    return PerceptualMetric(partial(net.to(device), normalize=True), device)


def build_dists(state: Mapping[str, Tensor], device: str = "cpu") -> PerceptualMetric:
    """DISTS on the weights of torchvision's VGG-16, at the size of the pictures. Source: Ding et al. 2020."""
    from torch import nn
    from torchmetrics.functional.image import dists
    from torchvision.models import vgg16

    with torch.device("meta"):
        features: Any = vgg16(weights=None, init_weights=False).features
    features.load_state_dict(
        {n.removeprefix("features."): w for n, w in state.items() if n.startswith("features.")}, assign=True
    )

    class OwnBackbone(dists.DISTSNetwork):
        """torchmetrics' network with a given backbone; its own constructor would download one."""

        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.stage1 = features[:4]
            # The four max poolings give way to blurred ones, as wide as the layer before.
            cuts = ((4, 9, 64), (9, 16, 128), (16, 23, 256), (23, 30, 512))
            for stage, (first, last, width) in enumerate(cuts, 2):
                pooled = nn.Sequential(dists.L2pooling(channels=width), *features[first + 1 : last])
                setattr(self, f"stage{stage}", pooled)
            self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
            self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
            self.chns = [3, 64, 128, 256, 512, 512]
            heads = read_tensors(Path(dists.__file__).parent / "dists_models" / "weights.pt")
            for name in ("alpha", "beta"):
                self.register_buffer(name, heads[name].detach())

    return PerceptualMetric(OwnBackbone().eval().requires_grad_(False).to(device), device)


PERCEPTUAL: dict[str, Callable[[str, str], Measure]] = {
    "lpips_alex": partial(load_lpips, "alex"),
    "lpips_vgg": partial(load_lpips, "vgg"),
    "dists": load_dists,
}
"""The loaders of perceptual metrics by name; they take the folder of weights and the device."""


@dataclass(frozen=True, eq=False)
class PictureMetrics:
    """The picture metrics that can be measured, and the reasons why others cannot, by name."""

    measures: Mapping[str, Measure]
    missing: Mapping[str, str]

    def __call__(
        self, generated: Float[Tensor, "n 3 h w"], target: Float[Tensor, "n 3 h w"]
    ) -> dict[str, Float[np.ndarray, " n"]]:
        """One number per metric and picture; pictures are in [0, 1]."""
        return {name: measure(generated, target).cpu().numpy() for name, measure in self.measures.items()}


def picture_metrics(resolution: int, weights: str = "", device: str = "cpu") -> PictureMetrics:
    """L2, PSNR and SSIM, and LPIPS and DISTS if the files of their networks exist.

    The files are looked for in the folder `weights`, or without one where torch keeps its downloads; missing files are reasons.
    """
    measures: dict[str, Measure] = {"l2": l2, "psnr": psnr}
    missing: dict[str, str] = {}
    if resolution < WINDOW:
        missing["ssim"] = _too_small(resolution, WINDOW)
    else:
        measures["ssim"] = ssim
    for name, load in PERCEPTUAL.items():
        if resolution < SMALLEST:
            missing[name] = _too_small(resolution, SMALLEST)
            continue
        try:
            measures[name] = load(weights, device)
        except (FileNotFoundError, ValueError) as error:
            missing[name] = str(error)
    return PictureMetrics(measures, missing)


def _too_small(resolution: int, least: int) -> str:
    return f"pictures of {resolution} pixels are too small for it; it takes {least} or more"
