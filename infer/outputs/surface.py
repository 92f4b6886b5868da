"""The surface of a head from its views: the visual hull of their silhouettes, refined by their normals, with their colours."""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from torch import Tensor
from torch.nn import functional

from geometry.cameras import Cameras
from geometry.embree import EmbreeCaster
from geometry.meshes import Mesh, unit
from infer.metrics.hull import hull_depths
from infer.views import HeadViews
from manifests.errors import UserError
from manifests.ply import encode_mesh

# The numbers below without a source were chosen on procedural heads, whose true surfaces are known (tests/infer/outputs).
GRID = 128
"""Grid points along a side of the cube in which the hull is searched."""
HALF_SIDE = 0.36
"""Half the side of that cube in world units; cameras of an orbit see 0.317 (radius / 2 / focal) to each side of the centre."""
MIN_WHITE_DISTANCE, MAX_WHITE_DISTANCE = 0.04, 0.25
"""Range of the threshold that separates a head from its background, as a distance from white on a scale of 1."""
MIN_NORMAL_LENGTH = 0.5
"""Length below which a decoded normal is grey, and therefore background."""
MIN_HEAD_AREA = 0.02
"""Smallest share of a view that a head fills."""
MIN_FACING_COSINE = 0.2
"""Cosine between a surface normal and the direction of a camera below which the picture is too slanted to be used."""
DEPTH_TOLERANCE = 0.02
"""World units by which a vertex may lie behind the visible surface and still count as visible."""
COLOUR_FACING_POWER = 8
"""Power of that cosine in the weights of colours: high, so that the most frontal view decides and details stay sharp."""
NORMAL_FACING_POWER = 4
"""Power of that cosine in the weights of normals."""
REFINEMENTS = 2
"""How often normals are sampled at the moved vertices."""
STIFFNESS = 0.5
"""Weight of vertices staying in place against edges turning: normals shape what is a few edges wide, and nothing wider.

Normals do not determine the position of a surface, so wider parts would drift with their errors."""
UNSEEN_WEIGHT = 0.1
"""Weight of edges that no view sees, which turn towards the mesh's own normals."""


@dataclass(frozen=True, eq=False)
class ColouredMesh:
    """The surface of a head in the world of datasets (y up, the face to +z), with a colour for each vertex."""

    mesh: Mesh
    colours: UInt8[np.ndarray, "n 3"]

    def ply(self) -> bytes:
        """Binary PLY with vertex colours."""
        return encode_mesh(self.mesh.vertices, self.mesh.faces, self.colours)


def coloured_mesh(views: HeadViews, grid: int = GRID) -> ColouredMesh:
    """Reconstruct the head that views show.

    Raises:
        UserError: a view shows no head, or the silhouettes of the views have nothing in common.
    """
    masks, cameras = silhouettes(views), views.cameras
    mesh = hull_mesh(masks, cameras, grid)
    if views.normal is not None:
        mesh = refine_by_normals(mesh, views.normal, cameras)
    return ColouredMesh(mesh, _vertex_colours(mesh, views, masks))


def silhouettes(views: HeadViews) -> Bool[Tensor, "v h w"]:
    """Masks of the head by colours, and by normals where there are any.

    Each mask is one region without holes, which white eyes or shirts would leave.

    Raises:
        UserError: a view shows next to nothing.
    """
    masks = np.stack([_silhouette(views, view) for view in range(len(views))])
    shares = masks.mean((1, 2))
    if shares[smallest := shares.argmin()] < MIN_HEAD_AREA:
        raise UserError(
            f"view {smallest} is white but for {shares[smallest]:.1%}: it shows no head to take a shape from"
        )
    return torch.from_numpy(masks)


def _silhouette(views: HeadViews, view: int) -> Bool[np.ndarray, "h w"]:
    mask = _coloured(views.rgb[view].cpu().numpy())
    if views.normal is not None:
        mask |= views.normal[view].cpu().norm(dim=0).numpy() > MIN_NORMAL_LENGTH
    _, parts, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    if len(stats) == 1:
        return mask
    head = parts == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()
    _, around = cv2.connectedComponents((~head).astype(np.uint8), connectivity=8)
    # Not the lower border: what is white there is more likely a shirt.
    border = np.concatenate([around[0], around[:, 0], around[:, -1]])
    return head | ~np.isin(around, border[border > 0])


def _coloured(rgb: Float32[np.ndarray, "3 h w"]) -> Bool[np.ndarray, "h w"]:
    """Pixels farther from white than three times the noise of the background, which the upper border shows."""
    distance = (1 - rgb.min(0)) / 2
    upper = slice(None, len(distance) // 2)
    border = np.concatenate([distance[0], distance[upper, 0], distance[upper, -1]])
    return distance > np.clip(3 * np.median(border), MIN_WHITE_DISTANCE, MAX_WHITE_DISTANCE)


def hull_mesh(masks: Bool[Tensor, "v h w"], cameras: Cameras, grid: int = GRID) -> Mesh:
    """The largest part of the visual hull of masks, which ends where no view looks.

    Raises:
        UserError: the masks have nothing in common.
    Source: Lewiner et al. 2003, marching cubes.
    """
    from skimage.measure import label, marching_cubes

    depth = hull_depths(masks, cameras, torch.linspace(-HALF_SIDE, HALF_SIDE, grid))
    parts = np.asarray(label(depth > 0, connectivity=1))
    sizes = np.bincount(parts.ravel())[1:]
    if not len(sizes):
        raise UserError("the silhouettes of the views have nothing in common: they are not of one head")
    outside = -HALF_SIDE / grid
    depth[(parts > 0) & (parts != 1 + sizes.argmax())] = outside
    vertices, faces, _, _ = marching_cubes(np.pad(depth, 1, constant_values=outside), 0, gradient_direction="ascent")
    return Mesh(((2 * (vertices - 1) / (grid - 1) - 1) * HALF_SIDE).astype(np.float32), faces.astype(np.int32))


@dataclass(frozen=True, eq=False)
class VertexVisibility:
    """Where v views see the n vertices of a mesh."""

    cosine: Float32[np.ndarray, "v n"]
    """Cosine between the normal of a vertex and the direction of the camera; 0 where the vertex is not visible."""
    uv: Float32[Tensor, "v n 2"]
    """Coordinates of the vertex in the picture, which reaches from -1 to 1."""

    def sample(self, view: int, picture: Float[Tensor, "c h w"]) -> Float32[np.ndarray, "n c"]:
        """The values of a view's picture at each vertex, interpolated bilinearly."""
        values = functional.grid_sample(
            picture[None].float(), self.uv[view][None, :, None], padding_mode="border", align_corners=False
        )
        return values[0, :, :, 0].T.numpy()


def vertex_visibility(mesh: Mesh, cameras: Cameras, resolution: int) -> VertexVisibility:
    """Find which vertices each camera sees, by casting a ray through every pixel on the CPU."""
    pixels = cameras.project(torch.from_numpy(np.ascontiguousarray(mesh.vertices)), resolution)
    cosines = np.zeros(pixels.shape[:2], np.float32)
    for view, surface in enumerate(EmbreeCaster(mesh).cast(cameras, resolution)):
        x, y, depth = pixels[view].numpy().T
        inside = np.flatnonzero((x >= 0) & (x < resolution) & (y >= 0) & (y < resolution))
        nearest = surface.depth[y[inside].astype(int), x[inside].astype(int)]
        visible = inside[(nearest > 0) & (depth[inside] < nearest + DEPTH_TOLERANCE)]
        towards = unit(cameras.positions[view].numpy() - mesh.vertices[visible])
        cosine = np.einsum("ni,ni->n", towards, mesh.vertex_normals[visible])
        cosines[view, visible] = np.where(cosine > MIN_FACING_COSINE, cosine, 0)
    return VertexVisibility(cosines, 2 * pixels[..., :2] / resolution - 1)


def refine_by_normals(mesh: Mesh, normals: Float32[Tensor, "v 3 h w"], cameras: Cameras) -> Mesh:
    """The mesh with the detail of normal maps (camera space, in [-1, 1], grey where there is no head).

    Vertices move along their normals so that edges become perpendicular to the sampled normals at their ends, by least squares.

    Raises:
        ValueError: the solver does not converge.
    Source: Nehab et al. 2005, "Efficiently combining positions and normals", with one unknown per vertex.
    """
    from scipy.sparse import coo_array, diags_array
    from scipy.sparse.linalg import cg

    i, j = _edges(mesh.faces)
    for _ in range(REFINEMENTS):
        targets, known = _target_normals(mesh, normals, cameras)
        edge, directions = mesh.vertices[i] - mesh.vertices[j], mesh.vertex_normals
        length = np.linalg.norm(edge, axis=1)
        # The error of an edge is an angle and not a height; very short edges would have any angle.
        across = unit(targets[i] + targets[j]) / np.maximum(length, 0.1 * length.mean())[:, None]
        weight = np.where(known[i] & known[j], 1, UNSEEN_WEIGHT)
        values = np.concatenate([(across * directions[i]).sum(1), -(across * directions[j]).sum(1)])
        rows = np.tile(np.arange(len(i)), 2)
        slope = coo_array((values, (rows, np.concatenate([i, j]))), (len(i), len(directions))).tocsr()
        stay = diags_array(np.full(len(directions), (STIFFNESS / length.mean()) ** 2))
        system = slope.T @ diags_array(weight) @ slope + stay
        right_side = -(slope.T @ (weight * (across * edge).sum(1)))
        moved, info = cg(system, right_side, rtol=1e-3, maxiter=1000, M=diags_array(1 / system.diagonal()))
        if info != 0:
            raise ValueError(f"the least squares of the normals did not converge (code {info})")
        mesh = Mesh((mesh.vertices + moved[:, None] * directions).astype(np.float32), mesh.faces)
    return mesh


def _target_normals(
    mesh: Mesh, normals: Float32[Tensor, "v 3 h w"], cameras: Cameras
) -> tuple[Float32[np.ndarray, "n 3"], Bool[np.ndarray, " n"]]:
    """World normals of the vertices by the views, and which vertices have one; the others keep the mesh's own."""
    visibility = vertex_visibility(mesh, cameras, normals.shape[-1])
    total = np.zeros_like(mesh.vertices)
    for view, cosine in enumerate(visibility.cosine):
        sampled = visibility.sample(view, normals[view].cpu())
        weight = np.where(np.linalg.norm(sampled, axis=1) > MIN_NORMAL_LENGTH, cosine**NORMAL_FACING_POWER, 0)
        total += weight[:, None] * (unit(sampled) @ cameras.view_rotation[view].numpy())
    known = np.linalg.norm(total, axis=1) > 0
    return np.where(known[:, None], unit(total), mesh.vertex_normals), known


def _edges(faces: np.ndarray) -> Int64[np.ndarray, "2 e"]:
    """The vertices at both ends of each edge."""
    pairs = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).astype(np.int64), axis=1)
    edges = np.unique(pairs[:, 0] << 32 | pairs[:, 1])
    return np.stack([edges >> 32, edges & 0xFFFFFFFF])


def _vertex_colours(mesh: Mesh, views: HeadViews, masks: Bool[Tensor, "v h w"]) -> UInt8[np.ndarray, "n 3"]:
    """Vertex colours, mostly of the view that faces a vertex; vertices that no view sees take their neighbours' colours."""
    from scipy.spatial import KDTree

    visibility = vertex_visibility(mesh, views.cameras, views.resolution)
    total, weights = np.zeros_like(mesh.vertices), np.zeros((len(mesh.vertices), 1), np.float32)
    for view, cosine in enumerate(visibility.cosine):
        # Interpolation between pixels of the head and of the background gives colours of neither.
        sampled = visibility.sample(view, torch.cat([views.rgb[view].cpu(), masks[view : view + 1]]))
        weight = np.where(sampled[:, 3] > 0.99, cosine**COLOUR_FACING_POWER, 0)[:, None]
        total, weights = total + weight * sampled[:, :3], weights + weight
    known = np.flatnonzero(weights)
    if not len(known):
        return np.full(total.shape, 128, np.uint8)
    nearest = known[KDTree(mesh.vertices[known]).query(mesh.vertices)[1]]
    return ((total[nearest] / weights[nearest]).clip(-1, 1) * 127.5 + 128).astype(np.uint8)
