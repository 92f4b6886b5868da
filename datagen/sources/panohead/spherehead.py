"""SphereHead, which has two spheres of feature planes instead of PanoHead's tri-grid."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from datagen.sources.panohead.config import GeneratorConfig
from datagen.sources.panohead.generator import FEATURES, Generator
from datagen.sources.panohead.layers import Noise
from datagen.sources.panohead.planes import DualSphere

CHANNELS = (512, 256)


class LinearConv(nn.Module):
    """A 1x1 convolution with equalised learning rate, without bias or activation."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, 1, 1))
        self.register_buffer("resample_filter", torch.empty(4, 4))

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h w"]:
        return F.conv2d(x, self.weight / self.weight.shape[1] ** 0.5)


class SphereHeadGenerator(Generator):
    """SphereHead's generator: PanoHead's, but for the planes and how points read them."""

    def __init__(self, config: GeneratorConfig):
        super().__init__(config)
        wide, narrow = CHANNELS
        self.ConvA, self.ConvB = (
            nn.Sequential(LinearConv(wide, narrow), LinearConv(narrow, FEATURES * config.plane_depth)) for _ in range(2)
        )

    def backbone_channels(self) -> int:
        return CHANNELS[0]

    @property
    def plane_shape(self) -> tuple[int, ...]:
        size = self.config.plane_resolution
        return 2, self.config.plane_depth, FEATURES, size, size

    def planes(self, ws: Float[Tensor, "b l s"], noise: Noise = "const") -> Float[Tensor, "b 2 p c h w"]:
        """The feature planes: two spheres of p planes of c features."""
        shared = self.backbone.synthesis(ws, noise)
        spheres = [conv(shared).unflatten(1, (-1, FEATURES)) for conv in (self.ConvA, self.ConvB)]
        return torch.stack(spheres, dim=1)

    def field(self, planes: Float[Tensor, "2 p c h w"]) -> DualSphere:
        return DualSphere(planes, self.config.plane_axes, self.config.box_warp)
