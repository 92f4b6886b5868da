"""Meshes the layers of a model, each in a narrow band, into one scene for ray casting."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from jaxtyping import Bool, Float, Float32, Int, Int32

from datagen.sources.procedural.model import Layer, Model, evaluate, evaluate_with_gradient

BLOCKS = (16, 4, 2)
"""Grid cells along the side of a block, from the coarsest level to the blocks that are sampled."""

SLACK = 1.1
"""Largest usual slope of a layer's distance, which is 1 for a true distance."""

REPAIRS = 2
"""Number of passes that add blocks where the surface leaves the kept ones."""

HALF_DIAGONAL = 0.87
"""Half the diagonal of a unit cube."""

_CORNERS = np.array(list(itertools.product((0, 1), repeat=3)))


@dataclass(frozen=True, eq=False)
class Surface:
    """Meshes of all layers in one ray-casting scene; vertices (cm), normals and faces are concatenated in layer order."""

    scene: EmbreeScene
    vertices: Float32[np.ndarray, "n 3"]
    normals: Float32[np.ndarray, "n 3"]
    faces: Int[np.ndarray, "m 3"]
    first_face: Int[np.ndarray, " l"]
    layers: tuple[Layer, ...]

    def cast(self, origins: Float[np.ndarray, "r 3"], directions: Float[np.ndarray, "r 3"]) -> dict[str, np.ndarray]:
        """First hits of rays: u, v, tfar, primID, geomID (-1 where a ray misses)."""
        return self.scene.run(
            np.ascontiguousarray(origins, np.float32), np.ascontiguousarray(directions, np.float32), output=True
        )

    def occluded(
        self, origins: Float[np.ndarray, "r 3"], directions: Float[np.ndarray, "r 3"]
    ) -> Bool[np.ndarray, " r"]:
        """Whether each ray hits anything."""
        hit = self.scene.run(
            np.ascontiguousarray(origins, np.float32), np.ascontiguousarray(directions, np.float32), query="OCCLUDED"
        )
        return hit != -1


def build_surface(model: Model) -> Surface:
    """The visible surface of a model."""
    meshes = [(layer, *mesh_layer(layer, tuple(other for other in model if other is not layer))) for layer in model]
    layers, vertices, normals, faces = zip(*(mesh for mesh in meshes if len(mesh[3])), strict=True)
    scene = EmbreeScene()
    for v, f in zip(vertices, faces, strict=True):
        TriangleMesh(scene, v, f)
    first_vertex, first_face = ([0, *itertools.accumulate(map(len, parts))][:-1] for parts in (vertices, faces))
    joined = np.concatenate([f + first for f, first in zip(faces, first_vertex, strict=True)])
    return Surface(scene, np.concatenate(vertices), np.concatenate(normals), joined, np.array(first_face), layers)


def mesh_layer(
    layer: Layer, others: Model
) -> tuple[Float32[np.ndarray, "n 3"], Float32[np.ndarray, "n 3"], Int32[np.ndarray, "m 3"]]:
    """Vertices on the surface (cm), unit normals and triangles of one layer where no other layer covers it."""
    vertices, faces = surface_nets(*_band(layer, others))
    points = vertices * np.float32(layer.spacing) + np.array(layer.low, np.float32)
    if layer.detail is not None:
        fine = replace(layer, low=layer.detail.low, high=layer.detail.high, spacing=layer.detail.spacing, detail=None)
        vertices, more = surface_nets(*_band(fine, others))
        faces = np.concatenate([faces, more + len(points)])
        points = np.concatenate([points, vertices * np.float32(fine.spacing) + np.array(fine.low, np.float32)])
    points = torch.from_numpy(points)
    distance, gradient = evaluate_with_gradient(layer, points)
    squared = (gradient * gradient).sum(-1, keepdim=True).clamp_min(1e-6)
    move = -distance[:, None] * gradient / squared
    points = points + move.clamp(-0.5 * layer.spacing, 0.5 * layer.spacing)
    normals = torch.nn.functional.normalize(gradient, dim=-1)
    return points.numpy(), normals.numpy(), faces


def _band(layer: Layer, others: Model) -> tuple[Float32[np.ndarray, "x y z"], Int[np.ndarray, " k"]]:
    """The layer's grid of distances, NaN except in blocks along its visible surface, and the flat indices of those."""
    shape = np.ceil((np.array(layer.high) - layer.low) / (layer.spacing * BLOCKS[0])).astype(int)
    blocks = _lattice(np.zeros((1, 3), int), shape)
    for parent, cells in zip((BLOCKS[0], *BLOCKS[:-1]), BLOCKS, strict=True):
        blocks = _lattice(blocks * (parent // cells), (parent // cells,) * 3)
        blocks = _outside_detail(layer, _near(layer, blocks, cells * layer.spacing), cells * layer.spacing)
        if cells > BLOCKS[-1]:
            blocks = _visible(layer, others, blocks, cells * layer.spacing)
    grid = np.full(shape * BLOCKS[0], np.nan, np.float32)
    known = [np.zeros(0, int)]
    for _ in range(REPAIRS + 1):
        known.append(_sample(layer, grid, blocks))
        blocks = _outside_detail(layer, _unfinished(grid, known[-1]), BLOCKS[-1] * layer.spacing)
    return grid, np.concatenate(known)


def _sample(layer: Layer, grid: Float32[np.ndarray, "x y z"], blocks: Int[np.ndarray, "b 3"]) -> Int[np.ndarray, " k"]:
    """Write the distances of blocks into the grid, and return their flat indices."""
    points = _lattice(blocks * BLOCKS[-1], (BLOCKS[-1],) * 3)
    flat = np.asarray(np.ravel_multi_index(tuple(points.T), grid.shape))
    where = points.astype(np.float32) * np.float32(layer.spacing) + np.array(layer.low, np.float32)
    grid.ravel()[flat] = evaluate(layer, torch.from_numpy(where)).numpy()
    return flat


def _unfinished(grid: Float32[np.ndarray, "x y z"], known: Int[np.ndarray, " k"]) -> Int[np.ndarray, "b 3"]:
    """Blocks without distances that the surface enters; they are missed where distances grow too fast."""
    values = grid.ravel()
    strides = np.array([grid.shape[1] * grid.shape[2], grid.shape[2], 1])
    known = known[(known > strides.sum()) & (known < grid.size - 2 * strides.sum())]
    crossed = [known[np.abs(np.sign(values[known]) - np.sign(values[known + s])) > 1] for s in strides]
    ends = np.concatenate([c + e for c, s in zip(crossed, strides, strict=True) for e in (0, s)])
    offsets = (_lattice(np.zeros((1, 3), int), (3, 3, 3)) - 1) @ strides
    missing = np.concatenate([(ends + o)[np.isnan(values[ends + o])] for o in offsets])
    in_blocks = np.array(grid.shape) // BLOCKS[-1]
    block = tuple(c // BLOCKS[-1] for c in np.unravel_index(missing, grid.shape))
    return np.stack(np.unravel_index(np.unique(np.ravel_multi_index(block, in_blocks)), in_blocks), -1)


def _lattice(starts: Int[np.ndarray, "n 3"], shape: Sequence[int] | Int[np.ndarray, "3"]) -> Int[np.ndarray, "p 3"]:
    """All integer points of the boxes of one shape that begin at `starts`."""
    offsets = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1).reshape(1, -1, 3)
    return (starts[:, None] + offsets).reshape(-1, 3)


def _centres(layer: Layer, blocks: Int[np.ndarray, "b 3"], size: float) -> Float[torch.Tensor, "b 3"]:
    """The centres (cm) of blocks of a side of `size` cm."""
    return torch.from_numpy(((blocks + 0.5) * size + np.array(layer.low)).astype(np.float32))


def _near(layer: Layer, blocks: Int[np.ndarray, "b 3"], size: float) -> Int[np.ndarray, "c 3"]:
    """The blocks that the surface of the layer may cross."""
    near = evaluate(layer, _centres(layer, blocks, size)).abs() < SLACK * HALF_DIAGONAL * size + 0.1
    return blocks[near.numpy()]


def _outside_detail(layer: Layer, blocks: Int[np.ndarray, "b 3"], size: float) -> Int[np.ndarray, "c 3"]:
    """The blocks outside the box of the layer's finer detail."""
    if layer.detail is None:
        return blocks
    margin = 2.5 * layer.spacing
    low, high = blocks * size + np.array(layer.low), (blocks + 1) * size + np.array(layer.low)
    within = (low > np.array(layer.detail.low) + margin) & (high < np.array(layer.detail.high) - margin)
    return blocks[~within.all(1)]


def _visible(layer: Layer, others: Model, blocks: Int[np.ndarray, "b 3"], size: float) -> Int[np.ndarray, "c 3"]:
    """The blocks that are not deep within another layer."""
    for other in others:
        centres = _centres(layer, blocks, size)
        within = ((centres > torch.tensor(other.low)) & (centres < torch.tensor(other.high))).all(-1)
        buried = within.clone()
        buried[within] = evaluate(other, centres[within]) < -(1.6 * HALF_DIAGONAL * size + 0.2)
        blocks = blocks[~buried.numpy()]
    return blocks


def surface_nets(
    grid: Float[np.ndarray, "x y z"], known: Int[np.ndarray, " k"]
) -> tuple[Float32[np.ndarray, "n 3"], Int32[np.ndarray, "m 3"]]:
    """Vertices (in grid units) and triangles of the zero level of a grid, searched at the flat indices `known` only.

    Source: Gibson, "Constrained Elastic Surface Nets" (1998): one vertex per cell that the surface crosses, one quad per
    crossed edge.
    """
    strides = np.array([grid.shape[1] * grid.shape[2], grid.shape[2], 1])
    known = known[known + strides.sum() < grid.size]
    values = grid.ravel()
    steps = _CORNERS @ strides
    inside = [values[known + s] < 0 for s in steps]
    count = sum(side.astype(np.uint8) for side in inside)
    cell = known[(count > 0) & (count < 8)]
    samples = values[cell[:, None] + steps]
    corner = np.stack(np.unravel_index(cell, grid.shape), -1)
    # flat indices wrap around at the far border, where no cell starts
    complete = np.isfinite(samples).all(1) & (corner < np.array(grid.shape) - 1).all(1)
    cell, samples = cell[complete], samples[complete]
    vertices = corner[complete] + _crossings(samples)
    number = np.full(grid.size, -1, np.int32)
    number[cell] = np.arange(len(cell), dtype=np.int32)
    return vertices.astype(np.float32), np.concatenate(
        [_quads(axis, samples, cell, strides, number) for axis in range(3)]
    )


def _crossings(samples: Float[np.ndarray, "c 8"]) -> Float[np.ndarray, "c 3"]:
    """The mean of the points where the twelve edges of each cell cross zero."""
    total, count = np.zeros((len(samples), 3), np.float32), np.zeros(len(samples), np.float32)
    for a, b in itertools.combinations(range(8), 2):
        if abs(_CORNERS[a] - _CORNERS[b]).sum() != 1:
            continue
        crossed = (samples[:, a] < 0) != (samples[:, b] < 0)
        t = np.where(crossed, samples[:, a] / (samples[:, a] - samples[:, b] + ~crossed), 0)
        axis = int(np.argmax(_CORNERS[a] != _CORNERS[b]))
        total += crossed[:, None] * _CORNERS[a].astype(np.float32)
        total[:, axis] += t
        count += crossed
    return total / count[:, None]


def _quads(
    axis: int,
    samples: Float[np.ndarray, "c 8"],
    cell: Int[np.ndarray, " c"],
    strides: Int[np.ndarray, "3"],
    number: Int32[np.ndarray, " g"],
) -> Int32[np.ndarray, "m 3"]:
    """Two triangles around every crossed edge along an axis; each edge belongs to the cell it starts."""
    starts, ends = samples[:, 0] < 0, samples[:, 4 >> axis] < 0
    owner = np.flatnonzero(starts != ends)
    one, two = strides[(axis + 1) % 3], strides[(axis + 2) % 3]
    quad = np.stack([number[cell[owner] - s] for s in (0, one, one + two, two)], -1)
    whole = (quad >= 0).all(1)
    quad = quad[whole]
    flip = ~starts[owner][whole]
    quad[flip] = quad[flip][:, ::-1]
    return np.ascontiguousarray(quad[:, [0, 1, 2, 0, 2, 3]]).reshape(-1, 3)
