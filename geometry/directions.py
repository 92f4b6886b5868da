"""Directions from the head to its cameras, in true degrees, and the usual lens, without tensors.

Azimuth grows from the front (0) towards +x, the subject's own left; elevation grows upwards.
"""

import numpy as np
from jaxtyping import Float

RADIUS = 2.7
"""Distance of the cameras from the centre of the head, in world units (PanoHead)."""
FOCAL = 4.2647
"""Focal length in image widths (PanoHead)."""


def turned(azimuth: Float[np.ndarray, " v"]) -> Float[np.ndarray, " v"]:
    """How far views are turned from the front: 0 to 180 degrees."""
    return np.abs((azimuth + 180) % 360 - 180)
