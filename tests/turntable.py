"""Small turntables of procedural heads, rendered once for all tests that look at them."""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from datagen.sources.procedural import ProceduralSource
from geometry.cameras import Cameras, orbit


@cache
def turntable(seed: int, azimuths: tuple[float, ...], resolution: int) -> tuple[Tensor, Tensor, Cameras]:
    """Pictures in [0, 1] (v 3 h w), masks and the true cameras of a head seen at eye level."""
    cameras = orbit(np.array(azimuths), np.zeros(len(azimuths)))
    views = ProceduralSource().head(seed).render(cameras, resolution)
    return views.rgb.permute(0, 3, 1, 2).contiguous(), views.alpha > 0.5, cameras


def in_bytes(pictures: Tensor) -> np.ndarray:
    """Pictures as uint8 with channels last."""
    return (pictures * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
