"""Renders a lit surface: one ray per pixel, nine where an outline passes, with the colour evaluated at each hit."""

from dataclasses import dataclass
from typing import NamedTuple

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


class _Hits(NamedTuple):
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
    views = (_View(surface, attributes, c2w[i], np.linalg.inv(K[i]), resolution) for i in range(len(cameras)))
    rgb, alpha, depth = (torch.from_numpy(np.stack(x)) for x in zip(*(view.render() for view in views), strict=True))
    return RenderedViews(rgb, alpha, depth)


@dataclass(frozen=True, eq=False)
class _View:
    """A lit surface as one camera sees it."""

    surface: Surface
    attributes: Float[np.ndarray, "n 8"]
    """Position (cm), normal and visibility of each vertex."""
    c2w: Float[np.ndarray, "4 4"]
    inverse_K: Float[np.ndarray, "3 3"]
    """From pixels to directions in the camera."""
    resolution: int

    def render(self) -> tuple[Float32[np.ndarray, "r r 3"], Float32[np.ndarray, "r r"], Float32[np.ndarray, "r r"]]:
        """Colour, alpha and depth."""
        resolution = self.resolution
        j, i = np.meshgrid(np.arange(resolution) + 0.5, np.arange(resolution) + 0.5)
        centres = np.stack([j.ravel(), i.ravel()], -1)
        hits = self._trace(centres)
        depth = np.zeros(resolution**2, np.float32)
        depth[hits.ray] = hits.depth * CM
        edge = _edges(hits, resolution)
        rgb = np.ones((resolution**2, 3), np.float32)
        alpha = np.zeros(resolution**2, np.float32)
        plain = _Hits(*(values[~edge[hits.ray]] for values in hits))
        rgb[plain.ray] = self._colours(plain)
        alpha[plain.ray] = 1
        pixels = np.flatnonzero(edge)
        if len(pixels):
            rgb[pixels], alpha[pixels], far = self._resolve(centres[pixels])
            depth[pixels] = np.where(depth[pixels] > 0, depth[pixels], far) * (alpha[pixels] > 0)
        shape = (resolution, resolution)
        return rgb.reshape(*shape, 3), alpha.reshape(shape), depth.reshape(shape)

    def _trace(self, pixels: Float[np.ndarray, "p 2"]) -> _Hits:
        """Cast a ray through each pixel position, and interpolate the attributes of the vertices where it hits."""
        in_camera = np.concatenate([pixels, np.ones((len(pixels), 1))], 1) @ self.inverse_K.T
        directions = in_camera @ self.c2w[:3, :3].T
        origins = np.broadcast_to(self.c2w[:3, 3] / CM, directions.shape)
        hit = self.surface.cast(origins, directions)
        ray = np.flatnonzero(hit["geomID"] >= 0)
        layer = hit["geomID"][ray]
        face = self.surface.faces[self.surface.first_face[layer] + hit["primID"][ray]]
        u, v = hit["u"][ray, None], hit["v"][ray, None]
        a, b, c = (self.attributes[face[:, k]] for k in range(3))
        values = a + u * (b - a) + v * (c - a)
        # directions have unit z in the camera, so that the ray parameter is the depth
        return _Hits(ray, layer, hit["tfar"][ray], values[:, :3], values[:, 3:6], values[:, 6:])

    def _resolve(
        self, pixels: Float[np.ndarray, "p 2"]
    ) -> tuple[Float[np.ndarray, "p 3"], Float[np.ndarray, " p"], Float[np.ndarray, " p"]]:
        """Colour over white, coverage and mean depth (world) of pixels, from a grid of rays in each."""
        offset = (np.arange(EDGE_GRID) + 0.5) / EDGE_GRID - 0.5
        grid = np.stack(np.meshgrid(offset, offset), -1).reshape(1, -1, 2)
        hits = self._trace((pixels[:, None] + grid).reshape(-1, 2))
        owner = hits.ray // EDGE_GRID**2
        count = np.bincount(owner, minlength=len(pixels))
        colours = self._colours(hits)
        total = np.stack([np.bincount(owner, colours[:, c], minlength=len(pixels)) for c in range(3)], -1)
        samples = EDGE_GRID**2
        far = np.bincount(owner, hits.depth * CM, minlength=len(pixels)) / np.maximum(count, 1)
        return (total + (samples - count)[:, None]) / samples, count / samples, far

    def _colours(self, hits: _Hits) -> Float32[np.ndarray, "h 3"]:
        """sRGB colours in [0, 1] of hits."""
        # The size of a pixel in cm at the centre of the head.
        pixel = float(np.linalg.norm(self.c2w[:3, 3]) * self.inverse_K[0, 0] / CM)
        rgb = np.zeros((len(hits.ray), 3), np.float32)
        eye = torch.from_numpy((self.c2w[:3, 3] / CM).astype(np.float32))
        for k, layer in enumerate(self.surface.layers):
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


def _edges(hits: _Hits, resolution: int) -> Bool[np.ndarray, " p"]:
    """A mask of the pixels with a neighbour of another layer, or of a very different depth or normal."""
    fields = np.zeros((resolution**2, 5), np.float32)
    fields[:, 0] = -1
    fields[hits.ray, 0] = hits.layer * 8
    fields[hits.ray, 1] = hits.depth * (resolution / 512) * 3
    fields[hits.ray, 2:] = hits.normals * 1.3
    fields = fields.reshape(resolution, resolution, 5)
    edge = np.zeros((resolution, resolution), bool)
    down = np.abs(fields[1:] - fields[:-1]).max(-1) > 1
    right = np.abs(fields[:, 1:] - fields[:, :-1]).max(-1) > 1
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= right
    edge[:, :-1] |= right
    return edge.ravel()
