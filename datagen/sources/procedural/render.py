"""Renders a lit surface: one ray per pixel, nine where an outline passes, with the colour evaluated at each hit."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int

from datagen.heads import RenderedViews
from datagen.sources.procedural.lighting import encode, shade
from datagen.sources.procedural.model import CHUNK
from datagen.sources.procedural.sdf import CM, components
from datagen.sources.procedural.surface import Surface
from geometry.cameras import Cameras

EDGE_GRID = 3
"""Number of rays along the side of a pixel where an outline passes."""


@dataclass(frozen=True, eq=False)
class _Hits:
    """The rays that hit a surface: their indices, and the layer, depth (cm), point (cm), normal and baked visibility."""

    ray: Int[np.ndarray, " h"]
    layer: Int[np.ndarray, " h"]
    depth: Float[np.ndarray, " h"]
    points: Float[np.ndarray, "h 3"]
    normals: Float[np.ndarray, "h 3"]
    visible: Float[np.ndarray, "h 2"]


def render_views(
    surface: Surface, visible: Float[np.ndarray, "n 2"], cameras: Cameras, resolution: int
) -> RenderedViews:
    """Views of a lit surface over white; each view is computed alone, so its pixels do not depend on the batch."""
    attributes = np.concatenate([surface.vertices, surface.normals, visible], 1)
    c2w, K = cameras.c2w.double().numpy(), cameras.pixel_K(resolution).double().numpy()
    views = [_render(surface, attributes, c2w[i], np.linalg.inv(K[i]), resolution) for i in range(len(cameras))]
    rgb, alpha, depth = (torch.from_numpy(np.stack(x)) for x in zip(*views, strict=True))
    return RenderedViews(rgb, alpha, depth)


def _render(
    surface: Surface,
    attributes: Float[np.ndarray, "n a"],
    c2w: Float[np.ndarray, "4 4"],
    inverse_K: Float[np.ndarray, "3 3"],
    resolution: int,
) -> tuple[Float32[np.ndarray, "r r 3"], Float32[np.ndarray, "r r"], Float32[np.ndarray, "r r"]]:
    """Colour, alpha and depth of one view."""
    pixel = float(np.linalg.norm(c2w[:3, 3]) * inverse_K[0, 0] / CM)
    j, i = np.meshgrid(np.arange(resolution) + 0.5, np.arange(resolution) + 0.5)
    centres = np.stack([j.ravel(), i.ravel()], -1)
    hits = _trace(surface, attributes, c2w, inverse_K, centres)
    depth = np.zeros(resolution**2, np.float32)
    depth[hits.ray] = hits.depth * CM
    edge = _edges(hits, resolution)
    rgb = np.ones((resolution**2, 3), np.float32)
    alpha = np.zeros(resolution**2, np.float32)
    plain = ~edge[hits.ray]
    rgb[hits.ray[plain]] = _colours(surface, _take(hits, plain), c2w, pixel)
    alpha[hits.ray[plain]] = 1
    pixels = np.flatnonzero(edge)
    if len(pixels):
        rgb[pixels], alpha[pixels], far = _resolve(surface, attributes, c2w, inverse_K, centres[pixels], pixel)
        depth[pixels] = np.where(depth[pixels] > 0, depth[pixels], far) * (alpha[pixels] > 0)
    shape = (resolution, resolution)
    return rgb.reshape(*shape, 3), alpha.reshape(shape), depth.reshape(shape)


def _trace(
    surface: Surface,
    attributes: Float[np.ndarray, "n a"],
    c2w: Float[np.ndarray, "4 4"],
    inverse_K: Float[np.ndarray, "3 3"],
    pixels: Float[np.ndarray, "p 2"],
) -> _Hits:
    """Cast a ray through each pixel position, and interpolate the attributes of the vertices where it hits."""
    in_camera = np.concatenate([pixels, np.ones((len(pixels), 1))], 1) @ inverse_K.T
    directions = in_camera @ c2w[:3, :3].T
    origins = np.broadcast_to(c2w[:3, 3] / CM, directions.shape)
    hit = surface.cast(origins, directions)
    ray = np.flatnonzero(hit["geomID"] >= 0)
    layer = hit["geomID"][ray]
    face = surface.faces[surface.first_face[layer] + hit["primID"][ray]]
    u, v = hit["u"][ray, None], hit["v"][ray, None]
    a, b, c = (attributes[face[:, k]] for k in range(3))
    values = a + u * (b - a) + v * (c - a)
    # directions have unit z in the camera, so that the ray parameter is the depth
    return _Hits(ray, layer, hit["tfar"][ray], values[:, :3], values[:, 3:6], values[:, 6:])


def _take(hits: _Hits, which: Bool[np.ndarray, " h"]) -> _Hits:
    return _Hits(*(getattr(hits, name)[which] for name in ("ray", "layer", "depth", "points", "normals", "visible")))


def _edges(hits: _Hits, resolution: int) -> Bool[np.ndarray, " p"]:
    """A mask of the pixels with a neighbour of another layer, or of a very different depth or normal."""
    key = np.full(resolution**2, -1.0, np.float32)
    key[hits.ray] = hits.layer * 8
    depth = np.zeros(resolution**2, np.float32)
    depth[hits.ray] = hits.depth
    normal = np.zeros((resolution**2, 3), np.float32)
    normal[hits.ray] = hits.normals
    fields = np.concatenate([key[:, None], depth[:, None] * (resolution / 512) * 3, normal * 1.3], 1).reshape(
        resolution, resolution, 5
    )
    edge = np.zeros((resolution, resolution), bool)
    down = np.abs(fields[1:] - fields[:-1]).max(-1) > 1
    right = np.abs(fields[:, 1:] - fields[:, :-1]).max(-1) > 1
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= right
    edge[:, :-1] |= right
    return edge.ravel()


def _resolve(
    surface: Surface,
    attributes: Float[np.ndarray, "n a"],
    c2w: Float[np.ndarray, "4 4"],
    inverse_K: Float[np.ndarray, "3 3"],
    pixels: Float[np.ndarray, "p 2"],
    pixel: float,
) -> tuple[Float[np.ndarray, "p 3"], Float[np.ndarray, " p"], Float[np.ndarray, " p"]]:
    """Colour over white, coverage and mean depth (world) of pixels, from a grid of rays in each."""
    offset = (np.arange(EDGE_GRID) + 0.5) / EDGE_GRID - 0.5
    grid = np.stack(np.meshgrid(offset, offset), -1).reshape(1, -1, 2)
    hits = _trace(surface, attributes, c2w, inverse_K, (pixels[:, None] + grid).reshape(-1, 2))
    owner = hits.ray // EDGE_GRID**2
    count = np.bincount(owner, minlength=len(pixels))
    colours = _colours(surface, hits, c2w, pixel)
    total = np.stack([np.bincount(owner, colours[:, c], minlength=len(pixels)) for c in range(3)], -1)
    samples = EDGE_GRID**2
    far = np.bincount(owner, hits.depth * CM, minlength=len(pixels)) / np.maximum(count, 1)
    return (total + (samples - count)[:, None]) / samples, count / samples, far


def _colours(surface: Surface, hits: _Hits, c2w: Float[np.ndarray, "4 4"], pixel: float) -> Float32[np.ndarray, "h 3"]:
    """sRGB colours in [0, 1] of hits; `pixel` is the size of a pixel in cm at the centre of the head."""
    rgb = np.zeros((len(hits.ray), 3), np.float32)
    eye = torch.from_numpy((c2w[:3, 3] / CM).astype(np.float32))
    for k, layer in enumerate(surface.layers):
        index = np.flatnonzero(hits.layer == k)
        for chunk in np.split(index, range(CHUNK, len(index), CHUNK)):
            if len(chunk) == 0:
                continue
            points = torch.from_numpy(hits.points[chunk])
            normals = torch.nn.functional.normalize(torch.from_numpy(hits.normals[chunk]), dim=-1)
            material = layer.material(components(points), normals, pixel)
            towards_eye = torch.nn.functional.normalize(eye - points, dim=-1)
            colour = encode(shade(material, towards_eye, torch.from_numpy(hits.visible[chunk])))
            rgb[chunk] = colour.clamp(0, 1).numpy()
    return rgb
