"""Lighting that is fixed in the world: its baked visibility at each vertex, and the shading of surface points.

Colours and positions of the lights, and the factors of shading, are chosen by eye for a plain studio portrait.
"""

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from datagen.sources.procedural.model import Material
from datagen.sources.procedural.surface import Surface


def _unit(x: float, y: float, z: float) -> Float32[np.ndarray, "3"]:
    v = np.array([x, y, z])
    return (v / np.linalg.norm(v)).astype(np.float32)


# Direction towards the light and its linear colour: a warm key, a cool fill, two rims from behind.
KEY = (_unit(0.5, 0.85, 0.95), (2.25, 2.12, 1.95))
FILL = (_unit(-0.8, 0.2, 0.75), (0.46, 0.5, 0.58))
RIMS = ((_unit(-0.75, 0.5, -0.8), (0.85, 0.9, 1.0)), (_unit(0.8, 0.4, -0.75), (0.75, 0.74, 0.72)))
SKY, GROUND = (0.80, 0.83, 0.88), (0.30, 0.26, 0.23)


GOLDEN_ANGLE = 2.39996
"""The golden angle in radians, which spreads the rays of the dome evenly (Vogel 1979)."""


def bake_visibility(surface: Surface, rays: int = 6, smoothing: int = 4) -> Float32[np.ndarray, "n 2"]:
    """The share of the sky dome and of the key light's disc that is visible from each vertex."""
    start = surface.vertices + 0.06 * surface.normals
    rng = np.random.default_rng(0)
    turn = rng.random(len(start), dtype=np.float32) * 2 * np.pi
    tangent, bitangent = _frame(surface.normals)
    dome = np.zeros(len(start), np.float32)
    for i in range(rays):
        up = np.sqrt(1 - (i + 0.5) / rays)
        flat = np.sqrt(1 - up * up)
        angle = turn + i * GOLDEN_ANGLE
        direction = up * surface.normals + flat * (
            np.cos(angle)[:, None] * tangent + np.sin(angle)[:, None] * bitangent
        )
        dome += ~surface.occluded(start, direction)
    key = np.zeros(len(start), np.float32)
    facing = np.flatnonzero(surface.normals @ KEY[0] > -0.1)
    for _ in range(2):
        jitter = rng.standard_normal((len(facing), 3), dtype=np.float32) * 0.16
        key[facing] += ~surface.occluded(start[facing], KEY[0] + jitter)
    return _smooth(surface, np.stack([dome / rays, key / 2], -1), smoothing)


def _frame(normals: Float32[np.ndarray, "n 3"]) -> tuple[Float32[np.ndarray, "n 3"], Float32[np.ndarray, "n 3"]]:
    """A unit tangent and bitangent of each normal."""
    helper = np.where(np.abs(normals[:, 1:2]) > 0.9, [[1, 0, 0]], [[0, 1, 0]]).astype(np.float32)
    tangent = np.cross(normals, helper)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    return tangent, np.cross(normals, tangent)


def _smooth(surface: Surface, values: Float[np.ndarray, "n c"], times: int) -> Float32[np.ndarray, "n c"]:
    """Values averaged with those of neighbouring vertices."""
    a = surface.faces[:, [0, 1, 2]].ravel()
    b = surface.faces[:, [1, 2, 0]].ravel()
    count = np.bincount(a, minlength=len(values)) + 1.0
    for _ in range(times):
        values = np.stack(
            [
                (np.bincount(a, values[b, c], minlength=len(values)) + values[:, c]) / count
                for c in range(values.shape[1])
            ],
            -1,
        )
    return values.astype(np.float32)


def shade(material: Material, towards_eye: Float[Tensor, "n 3"], visible: Float[Tensor, "n 2"]) -> Float[Tensor, "n 3"]:
    """Linear colour of surface points, given unit directions to the camera and baked visibility."""
    n, albedo = material.normal, material.albedo
    dome, key = visible.unbind(-1)
    up = 0.5 + 0.5 * n[:, 1:2]
    sky = torch.tensor(GROUND) + (torch.tensor(SKY) - torch.tensor(GROUND)) * up
    # Light that bounces within a crevice takes on the surface's colour (Jimenez et al. 2016, multi-bounce occlusion).
    bounced = dome[:, None] / (1 - albedo.clamp(0, 0.9) * (1 - dome[:, None]) * 0.8)
    light = sky * bounced
    gloss = torch.zeros_like(light)
    # the fill is too broad a light to leave a highlight
    for (direction, colour), seen, sharp in zip(
        (KEY, FILL, *RIMS), (key, dome, dome**2, dome**2), (1, 0, 1, 1), strict=True
    ):
        toward, colour = torch.from_numpy(direction), torch.tensor(colour)
        cosine = n @ toward
        light = light + _diffuse(material, cosine) * (seen[:, None] * colour)
        if sharp:
            gloss = gloss + (_highlight(material, cosine, towards_eye, toward) * seen)[:, None] * colour
    grazing = (1 - (n * towards_eye).sum(-1).clamp(0, 1)) ** 4
    gloss = gloss + (material.specular * grazing * dome * 0.6)[:, None] * sky
    return albedo * light * 0.40 + gloss * 0.25


def _diffuse(material: Material, cosine: Float[Tensor, " n"]) -> Float[Tensor, "n 3"]:
    """Lambert's law, wrapped past the terminator, most for red, where light scatters below the surface."""
    wrap = material.softness[:, None] * torch.tensor([0.30, 0.14, 0.10])
    return ((cosine[:, None] + wrap) / (1 + wrap)).clamp_min(0)


def _highlight(
    material: Material, cosine: Float[Tensor, " n"], towards_eye: Float[Tensor, "n 3"], toward: Float[Tensor, "3"]
) -> Float[Tensor, " n"]:
    """Blinn's highlight, or Kajiya and Kay's (1989) along hairs."""
    half = torch.nn.functional.normalize(towards_eye + toward, dim=-1)
    peak = (material.normal * half).sum(-1).clamp(0, 1)
    along = (material.strand * half).sum(-1)
    hairs = (material.strand * material.strand).sum(-1)
    peak = peak + hairs * ((1 - along * along).clamp_min(0).sqrt() - peak)
    return material.specular * torch.exp(material.shininess * (peak - 1)) * (cosine + 0.15).clamp(0, 1).sqrt()


def encode(colour: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    """sRGB (IEC 61966-2-1) of linear light, with the highlights rolled off above 0.6."""
    colour = colour.clamp_min(0)
    colour = torch.where(colour > 0.6, 0.6 + 0.4 * (1 - torch.exp(-(colour - 0.6) / 0.4)), colour)
    return torch.where(colour <= 0.0031308, 12.92 * colour, 1.055 * colour.clamp_min(1e-6) ** (1 / 2.4) - 0.055)
