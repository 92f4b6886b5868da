"""Perceptual distances, LPIPS and DISTS, through torchmetrics: their heads are in its wheel, the backbones are files."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from infer.metrics.metric_weights import ALEXNET, VGG16, read_tensors, read_weights
from infer.metrics.pixels import Measure, check_pictures

SMALLEST = 32
"""Pixels of a side below which nothing is left after the pooling of the backbones."""
SPLIT = 4
"""Pairs that a network sees at once: the first layer of VGG alone takes 64 MB per picture of 512 pixels."""

Backbone = Literal["alex", "vgg"]


@dataclass(frozen=True, eq=False)
class Network:
    """A distance of pictures in [0, 1] that a network measures."""

    compare: Callable[[Tensor, Tensor], Tensor]
    device: str

    @torch.inference_mode()
    def __call__(self, generated: Float[Tensor, "n 3 h w"], target: Float[Tensor, "n 3 h w"]) -> Float[Tensor, " n"]:
        check_pictures(generated, target)
        pairs = zip(generated.split(SPLIT), target.split(SPLIT), strict=True)
        return torch.cat([self.compare(a.to(self.device), b.to(self.device)).reshape(-1) for a, b in pairs]).cpu()


def load_lpips(backbone: Backbone, folder: str = "", device: str = "cpu") -> Network:
    """LPIPS of version 0.1 on AlexNet or VGG-16; raises as `read_weights`."""
    return build_lpips(backbone, read_weights({"alex": ALEXNET, "vgg": VGG16}[backbone], folder), device)


def load_dists(folder: str = "", device: str = "cpu") -> Network:
    """DISTS; raises as `read_weights`."""
    return build_dists(read_weights(VGG16, folder), device)


def build_lpips(backbone: Backbone, state: Mapping[str, Tensor], device: str = "cpu") -> Network:
    """LPIPS on the weights of a torchvision network. Source: Zhang et al. 2018."""
    from torchmetrics.functional.image.lpips import _NoTrainLpips

    net = _NoTrainLpips(net=backbone, pnet_rand=True)
    # torchmetrics cuts torchvision's layers into slices, in which they keep their numbers.
    own = {name: state["features." + name.split(".", 1)[1]] for name in net.net.state_dict()}
    net.net.load_state_dict(own)
    return Network(partial(net.to(device), normalize=True), device)


def build_dists(state: Mapping[str, Tensor], device: str = "cpu") -> Network:
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
        """torchmetrics' network, whose own constructor would fetch its backbone."""

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

    return Network(OwnBackbone().eval().requires_grad_(False).to(device), device)


PERCEPTUAL: dict[str, Callable[[str, str], Measure]] = {
    "lpips_alex": partial(load_lpips, "alex"),
    "lpips_vgg": partial(load_lpips, "vgg"),
    "dists": load_dists,
}
"""Loaders by the name of the metric; they take the folder of weights and the device."""
