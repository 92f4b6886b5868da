"""One identity: a generator with fixed styles, which is rendered from any camera."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from datagen.sources.panohead.config import GeneratorConfig
from datagen.sources.panohead.layers import Conv
from datagen.sources.panohead.renderer import EVEN, Jitter, Renderer
from datagen.sources.panohead.superresolution import Upscaler, resize
from geometry.cameras import Cameras
from geometry.rays import rays


@dataclass(frozen=True, eq=False)
class Synthesis:
    """The result of the official `synthesis`, and its intermediate values."""

    image: Float[Tensor, "v 3 h w"]
    """The final image, nominally in [-1, 1]."""
    image_raw: Float[Tensor, "v 3 n n"]
    image_depth: Float[Tensor, "v 1 n n"]
    """Distance along the ray; infinite where nothing was hit, until `clamped`."""
    image_mask: Float[Tensor, "v 1 n n"]
    """Opacity in [-0.001, 1.001]."""
    features: Float[Tensor, "v r c"]
    """Rendered features without background, rays row by row."""
    weights: Float[Tensor, "v r"]
    """Opacity of each ray."""
    nearest: Float[Tensor, ""]
    farthest: Float[Tensor, ""]
    image_parsing: Float[Tensor, "v p n n"] | None = None
    """SphereHead's parsing probabilities, where the checkpoint has them."""


@dataclass(frozen=True, eq=False)
class Identity:
    """The values of one identity that do not depend on the view."""

    config: GeneratorConfig
    renderer: Renderer
    background: Float[Tensor, "1 c h w"] | None
    """The background in feature space."""
    to_rgb: Conv | None
    upscaler: Upscaler
    to_parsing: Conv | None

    def views(self, cameras: Cameras, neural_resolution: int | None = None, jitter: Jitter = EVEN) -> Synthesis:
        """Render the views of cameras; the tensors of the jitter have a row for every ray, view by view."""
        size = neural_resolution or self.config.neural_resolution
        origins, directions = rays(cameras, size)
        origins = origins.repeat_interleave(size * size, dim=0)
        seen = self.renderer(origins, directions.flatten(0, 2), jitter)

        def image(values: Float[Tensor, "r c"]) -> Float[Tensor, "v c h w"]:
            return values.view(len(cameras), size, size, -1).permute(0, 3, 1, 2)

        features, stopped = image(seen.features), image(seen.weight[:, None])
        if self.config.decoder_activation == "sigmoid":
            features = features * 2 - 1
        if self.background is not None:
            features = features + (1 - stopped) * resize(self.background, size, self.config.sr_antialias)
        raw = features[:, :3] if self.to_rgb is None else self.to_rgb(features)
        return Synthesis(
            image=self.upscaler(raw, features),
            image_raw=raw,
            image_depth=image(seen.depth[:, None]),
            image_mask=stopped * (1 + 2 * 0.001) - 0.001,
            features=seen.features.view(len(cameras), size * size, -1),
            weights=seen.weight.view(len(cameras), -1),
            nearest=seen.nearest,
            farthest=seen.farthest,
            image_parsing=None if self.to_parsing is None else F.softmax(self.to_parsing(features), dim=1),
        )


def join(parts: list[Synthesis]) -> Synthesis:
    """One batch of several, its depth clamped to the range of all its samples as the official depth is."""
    fields = ("image", "image_raw", "image_depth", "image_mask", "features", "weights")
    joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in fields}
    nearest = torch.stack([part.nearest for part in parts]).min()
    farthest = torch.stack([part.farthest for part in parts]).max()
    joined["image_depth"] = joined["image_depth"].clamp(nearest, farthest)
    if parts[0].image_parsing is not None:
        joined["image_parsing"] = torch.cat([part.image_parsing for part in parts if part.image_parsing is not None])
    return Synthesis(**joined, nearest=nearest, farthest=farthest)
