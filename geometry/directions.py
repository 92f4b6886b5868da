"""Directions from the head to its cameras, in true degrees, and the usual lens, without tensors.

Azimuth grows from the front (0) towards +x, the subject's own left; elevation grows upwards.
"""

from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float

RADIUS = 2.7
"""Distance of the cameras from the centre of the head, in world units (PanoHead)."""
FOCAL = 4.2647
"""Focal length in image widths (PanoHead)."""

Angle = TypeVar("Angle", bound=Any)
"""A number, an array or a tensor."""


def wrapped(degrees: Angle) -> Angle:
    """The same angles in [-180, 180)."""
    return (degrees + 180) % 360 - 180


def turned(azimuth: Float[np.ndarray, " v"]) -> Float[np.ndarray, " v"]:
    """Degrees by which views are turned from the front, 0 to 180."""
    return np.abs(wrapped(azimuth))


def angular_distance(
    azimuth: Float[np.ndarray, " v"], elevation: Float[np.ndarray, " v"], to_azimuth: float, to_elevation: float
) -> Float[np.ndarray, " v"]:
    """The angle between viewing directions, in degrees as are its arguments (spherical law of cosines)."""
    e, f = np.radians(elevation), np.radians(to_elevation)
    cosine = np.sin(e) * np.sin(f) + np.cos(e) * np.cos(f) * np.cos(np.radians(azimuth - to_azimuth))
    return np.degrees(np.arccos(cosine.clip(-1, 1)))
