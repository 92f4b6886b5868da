"""Extracts the surface of a head from its density: grid, marching cubes, clean-up, and figures of its quality."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from scipy.ndimage import distance_transform_edt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from skimage.measure import euler_number, label
from skimage.measure import marching_cubes as lewiner
from torch import Tensor

from datagen.config import MeshConfig
from datagen.heads import DensityField
from geometry.meshes import Mesh
from manifests.errors import UserError

COARSE = 64
TUNNEL_CELLS = 128
"""Grid on which tunnels are counted; on half of it half of the planted holes are missed."""
GROWTHS = (0.0, 1.0, 2**0.5)
"""Distances, in cells of that grid, by which the solid is grown before its tunnels are counted. Growing closes the loops
of hair and glasses. It also joins the sides of narrow folds (a nostril, or an ear under a hat), which leaves handles that
the head does not have; these are absent at growth 0, and chance handles rarely remain at both other growths."""
CHIN = 0.4
"""Share of the cube's height below which garments and loose hair lie."""


@dataclass(frozen=True)
class MeshFigures:
    """Figures of a surface before clean-up; `components` counts those that clean-up keeps."""

    vertices: int
    faces: int
    components: int
    largest_share: float
    """Share of the faces in the largest component."""
    holes: int
    """Handles of the largest component (its genus), hair loops and glasses included."""
    tunnels: int
    """Tunnels through the head above the chin, without thin loops of hair or glasses; see `tunnels`."""
    watertight: bool
    """Every edge of the surface joins exactly two faces."""


def density_grid(head: DensityField, resolution: int, batch: int = 1 << 18) -> Float[np.ndarray, "n n n"]:
    """Density at the corners of resolution^3 cells of [-0.5, 0.5]^3, indexed [x, y, z], exact wherever a surface may be.

    The grid doubles from COARSE cells a side. Each time only the cells that the surface may cross are evaluated again, and the
    others are interpolated. The surface may cross a cell if the density can reach the level at the slope of its corners.
    """
    cells = COARSE
    # The grid lies where the head computes: on a GPU the refinement would otherwise wait for the CPU.
    everywhere = torch.ones((cells + 1,) * 3, dtype=torch.bool, device=head.device)
    grid = _evaluate(head, everywhere, batch, None)
    while cells < resolution:
        near = _near_surface(grid, head.iso_level)
        cells *= 2
        size = (cells + 1,) * 3
        fine = F.interpolate(grid[None, None], size=size, mode="trilinear", align_corners=True)[0, 0]
        grid = _evaluate(head, _corners(near), batch, fine)
    return grid.cpu().numpy()


def _evaluate(
    head: DensityField, where: Bool[Tensor, "n n n"], batch: int, grid: Tensor | None
) -> Float[Tensor, "n n n"]:
    """Write the head's density into `grid` at the marked corners."""
    axis = torch.linspace(-0.5, 0.5, len(where)).to(where.device)
    grid = torch.empty(where.shape, device=where.device) if grid is None else grid
    flat, marked = grid.view(-1), where.view(-1).nonzero()[:, 0]
    for part in marked.split(batch):
        x, y, z = torch.unravel_index(part, where.shape)
        flat[part] = head.density(torch.stack([axis[x], axis[y], axis[z]], dim=-1))
    return grid


def _near_surface(grid: Float[Tensor, "n n n"], level: float) -> Bool[Tensor, "m m m"]:
    """The cells that the level set may pass, with their neighbours."""
    low = -F.max_pool3d(-grid[None, None], 2, stride=1)
    high = F.max_pool3d(grid[None, None], 2, stride=1)
    # Half the diagonal of a cell, in cells, is sqrt(3)/2; the corner differences give the slope per cell.
    reach = (high - low) * 0.87
    near = (low - reach <= level) & (high + reach >= level)
    return F.max_pool3d(near.float(), 3, stride=1, padding=1)[0, 0] > 0


def _corners(cells: Bool[Tensor, "m m m"]) -> Bool[Tensor, "n n n"]:
    """Every corner of the next finer grid that lies in or on a marked cell."""
    fine = cells.repeat_interleave(2, 0).repeat_interleave(2, 1).repeat_interleave(2, 2)
    padded = F.pad(fine.float(), (1, 1, 1, 1, 1, 1))[None, None]
    return F.max_pool3d(padded, 2, stride=1)[0, 0] > 0


def marching_cubes(grid: Float[np.ndarray, "n n n"], level: float, method: str = "lewiner") -> Mesh:
    """The level set of a grid over [-0.5, 0.5]^3, closed where it leaves the cube, faces counter-clockwise from outside.

    Raises:
        ValueError: the grid does not cross the level, so there is no surface.
    Source: Lorensen and Cline 1987; Lewiner et al. 2003 for the topologically correct table.
    """
    if not grid.min() < level < grid.max():
        raise UserError(f"no surface: densities from {grid.min():.3g} to {grid.max():.3g} never cross {level:g}")
    padded = np.pad(grid, 1, constant_values=min(float(grid.min()), level - 1))
    if method == "pymcubes":
        import mcubes

        vertices, faces = mcubes.marching_cubes(padded, level)
    else:
        vertices, faces, _, _ = lewiner(padded, level, gradient_direction="ascent")
    # A surface that leaves the cube is closed between its last corner and the padding; keep it inside the cube.
    cells = len(grid) - 1
    vertices = (vertices - 1).clip(0, cells) / cells - 0.5
    return Mesh(vertices.astype(np.float32), faces.astype(np.int32))


def extract(head: DensityField, config: MeshConfig) -> tuple[Mesh, MeshFigures]:
    """The cleaned surface of a head, and figures of the surface before clean-up."""
    grid = density_grid(head, config.resolution)
    mesh = marching_cubes(grid, head.iso_level, config.method)
    step = max(1, config.resolution // TUNNEL_CELLS)
    return clean(mesh, config.dust, tunnels(grid[::step, ::step, ::step] > head.iso_level))


def tunnels(inside: Bool[np.ndarray, "n n n"]) -> int:
    """The lowest number of tunnels through the largest part of a solid above the chin, over the growths in GROWTHS.

    The tunnels of a solid follow from its Euler number, which is parts + cavities - tunnels.
    """
    cells = len(inside) - 1
    above = inside[:, round(CHIN * cells) :]
    if not above.any():
        return 0
    parts = np.asarray(label(above, connectivity=1))
    width = [growth * cells / TUNNEL_CELLS for growth in GROWTHS]
    head = np.pad(parts == np.bincount(parts.ravel())[1:].argmax() + 1, 1 + math.ceil(max(width)))
    away = np.asarray(distance_transform_edt(~head))
    return min(_handles(away <= w + 1e-6) for w in width)


def _handles(solid: Bool[np.ndarray, "x y z"]) -> int:
    cavities = np.asarray(label(~solid, connectivity=1)).max() - 1
    return int(np.asarray(label(solid)).max() + cavities - euler_number(solid, connectivity=3))


def clean(mesh: Mesh, dust: float, tunnels: int) -> tuple[Mesh, MeshFigures]:
    """Remove components with at most the share `dust` of all faces, and compute the figures of the surface before."""
    component = _components(mesh)[mesh.faces[:, 0]]
    count = np.bincount(component)
    kept = count > dust * len(mesh.faces)
    largest = int(count.argmax())
    figures = MeshFigures(
        vertices=len(mesh.vertices),
        faces=len(mesh.faces),
        components=int(kept.sum()),
        largest_share=float(count[largest] / len(mesh.faces)),
        holes=_genus(mesh.faces[component == largest]),
        tunnels=tunnels,
        watertight=_is_watertight(mesh.faces),
    )
    return _compact(mesh, kept[component]), figures


def _components(mesh: Mesh) -> np.ndarray:
    """The connected component of every vertex."""
    a, b, c = mesh.faces.T
    edges = coo_array((np.ones(2 * len(a), np.int8), (np.r_[a, b], np.r_[b, c])), shape=(len(mesh.vertices),) * 2)
    return connected_components(edges, directed=False)[1]


def _edges(faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unique undirected edges as single integers, and how many faces meet at each."""
    pairs = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).astype(np.int64), axis=1)
    return np.unique(pairs[:, 0] << 32 | pairs[:, 1], return_counts=True)


def _genus(faces: np.ndarray) -> int:
    """Handles of a connected closed surface, from Euler's formula V - E + F = 2 - 2g."""
    euler = len(np.unique(faces)) - len(_edges(faces)[0]) + len(faces)
    return max(0, (2 - euler) // 2)


def _is_watertight(faces: np.ndarray) -> bool:
    return bool((_edges(faces)[1] == 2).all())


def _compact(mesh: Mesh, keep: np.ndarray) -> Mesh:
    """The mesh of some faces, without unused vertices."""
    used, faces = np.unique(mesh.faces[keep], return_inverse=True)
    return Mesh(mesh.vertices[used], faces.reshape(-1, 3).astype(np.int32))
