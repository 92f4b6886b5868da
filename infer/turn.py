"""Views of one head, as they were made: what every output and every metric starts from."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32
from torch import Tensor

from geometry.cameras import Cameras, orbit


@dataclass(frozen=True, eq=False)
class Turn:
    """v views of a head, in the order they were asked for; pictures over white, normals over grey, both in [-1, 1]."""

    rgb: Float32[Tensor, "v 3 h w"]
    normal: Float32[Tensor, "v 3 h w"] | None
    """In camera space, (n + 1) / 2 scaled to [-1, 1], if the model makes them."""
    azimuth: Float32[np.ndarray, " v"]
    """In true degrees from the given picture, or from the front without one."""
    elevation: Float32[np.ndarray, " v"]
    is_given: Bool[np.ndarray, " v"]
    """Views that were not made."""

    def __len__(self) -> int:
        return len(self.azimuth)

    @property
    def resolution(self) -> int:
        return self.rgb.shape[-1]

    @property
    def cameras(self) -> Cameras:
        """On the orbit of the data the model was trained on."""
        return orbit(self.azimuth.astype(np.float64), self.elevation.astype(np.float64))
