"""The surface of a head: where it should be, closed, and with true figures."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from egg import EggSource

from datagen.config import MeshConfig, ProceduralConfig
from datagen.identity import rig_cameras
from datagen.meshing import clean, density_grid, extract, marching_cubes
from datagen.rigs import RIGS, find_rig
from datagen.sources.procedural import ProceduralSource
from geometry.meshes import Mesh, look
from manifests.errors import UserError


@dataclass(frozen=True)
class Field:
    """A head that is only a density."""

    distance: object
    iso_level: float = 10.0
    device: torch.device = torch.device("cpu")

    def density(self, points):
        return 10 - 200 * self.distance(points)


def sphere(centre, radius):
    return lambda p: (p - torch.tensor(centre)).norm(dim=-1) - radius


def torus(p):
    ring = torch.stack([p[:, :2].norm(dim=-1) - 0.25, p[:, 2]], dim=-1)
    return ring.norm(dim=-1) - 0.08


def thin_wire(p):
    """A ring of 0.004 radius: thinner than a coarse cell is wide."""
    return torch.stack([p[:, :2].norm(dim=-1) - 0.3, p[:, 2] - 0.0017], dim=-1).norm(dim=-1) - 0.004


def both(*fields):
    return lambda p: torch.stack([f(p) for f in fields]).min(dim=0).values


def test_pymcubes_that_is_not_installed_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr("datagen.config.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs PyMCubes: pip install 'spinset\[pymcubes\]'.*or give lewiner"):
        MeshConfig(method="pymcubes")


@pytest.mark.parametrize("method", ["lewiner", "pymcubes"])
@pytest.mark.parametrize("resolution", [64, 128])
def test_sphere(method, resolution):
    if method == "pymcubes":
        pytest.importorskip("mcubes", reason="PyMCubes is an extra")
    mesh, figures = extract(Field(sphere([0.02, -0.05, 0.1], 0.3)), MeshConfig(resolution, method))
    distance = np.linalg.norm(mesh.vertices - [0.02, -0.05, 0.1], axis=1)
    assert np.abs(distance - 0.3).max() < 0.1 / resolution
    assert (figures.components, figures.holes, figures.watertight, figures.largest_share) == (1, 0, True, 1.0)
    a, b, c = (mesh.vertices[corner] for corner in mesh.faces.T)
    volume = np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6
    assert volume == pytest.approx(4 / 3 * np.pi * 0.3**3, rel=0.01), "counter-clockwise from outside: positive"


@pytest.mark.parametrize("distance", [sphere([0.0, 0.1, 0.0], 0.2), torus, thin_wire])
def test_coarse_to_fine_equals_the_full_grid(distance):
    """Every cell that the surface passes is exact, though only a few percent of the points are evaluated."""
    calls = []

    def counted(p):
        calls.append(len(p))
        return distance(p)

    grid = density_grid(Field(counted), 256)
    axis = torch.linspace(-0.5, 0.5, 257)
    full = np.stack(
        [(10 - 200 * distance(torch.cartesian_prod(x[None], axis, axis))).numpy().reshape(257, 257) for x in axis]
    )
    assert sum(calls) < 0.15 * full.size
    ours, theirs = marching_cubes(grid, 10.0), marching_cubes(full, 10.0)
    assert (ours.faces == theirs.faces).all()
    assert np.abs(ours.vertices - theirs.vertices).max() < 1e-6


def test_figures_tell_components_holes_and_dust():
    speck = sphere([0.45, 0.45, 0.45], 0.02)
    mesh, figures = extract(Field(both(torus, sphere([-0.4, -0.4, 0.3], 0.08), speck)), MeshConfig(128, dust=0.01))
    assert (figures.components, figures.holes, figures.watertight) == (2, 1, True)
    assert figures.largest_share == pytest.approx(1 - 0.08**2 / (np.pi * 0.25 * 0.08 + 0.08**2 + 0.02**2), abs=0.05)
    assert len(mesh.faces) < figures.faces
    assert mesh.vertices.max() < 0.4, "the dust is gone"


def test_tunnels_are_counted_and_thin_loops_are_not():
    """A bored ball has a tunnel; a wire loop is a hole of the mesh but no tunnel; an open hook is neither."""

    def bored(p):
        bore = (p[:, ::2] - torch.tensor([0.02, 0.01])).norm(dim=-1) - 0.04
        return torch.maximum(sphere([0.0, 0.1, 0.0], 0.25)(p), -bore)

    def with_loop(p):
        q = p - torch.tensor([0.0, 0.1, 0.26])
        loop = torch.stack([q[:, 1:].norm(dim=-1) - 0.015, q[:, 0]], dim=-1).norm(dim=-1) - 0.006
        return torch.minimum(sphere([0.0, 0.1, 0.0], 0.25)(p), loop)

    def with_hook(p):
        """A thick arm that starts on the ball and ends 1.5 cells of the tunnel grid before it would meet it again."""
        q = p - torch.tensor([0.0, 0.1, 0.25])
        ring = torch.stack([q[:, 1:].norm(dim=-1) - 0.08, q[:, 0]], dim=-1).norm(dim=-1) - 0.02
        above_ball = sphere([0.0, 0.1, 0.0], 0.25 + 1.5 / 128)(p)
        arm = torch.maximum(ring, torch.where(q[:, 1] > 0, -above_ball, torch.tensor(-1.0)))
        return torch.minimum(sphere([0.0, 0.1, 0.0], 0.25)(p), arm)

    found = {f.__name__: extract(Field(f), MeshConfig(128))[1] for f in (bored, with_loop, with_hook)}
    assert (found["bored"].holes, found["bored"].tunnels) == (1, 1)
    assert (found["with_loop"].holes, found["with_loop"].tunnels) == (1, 0)
    assert (found["with_hook"].holes, found["with_hook"].tunnels) == (0, 0), "growing it would close the arm to a ring"
    assert extract(Field(sphere([0.0, -0.3, 0.0], 0.1)), MeshConfig(64))[1].tunnels == 0


@pytest.mark.parametrize(("rate", "seed", "expected"), [(0.0, 5004, 0), (1.0, 60_000_009, 1)])
def test_a_planted_hole_is_a_tunnel_and_folds_of_a_sound_head_are_not(rate, seed, expected):
    """The nostrils of the first head, and its ears under the hat, close to rings when it grows."""
    head = ProceduralSource(ProceduralConfig(defect_rate=rate, defects=("hole",))).head(seed)
    assert extract(head, MeshConfig(128))[1].tunnels == expected


def test_open_mesh_is_not_watertight():
    triangle = Mesh(np.eye(3, dtype=np.float32), np.array([[0, 1, 2]], np.int32))
    assert not clean(triangle, 0.0, tunnels=0)[1].watertight


def test_a_surface_that_leaves_the_cube_is_closed_at_its_side():
    mesh, figures = extract(Field(sphere([0.0, -0.5, 0.0], 0.3)), MeshConfig(64))
    assert figures.watertight and figures.components == 1
    assert mesh.vertices[:, 1].min() == -0.5


def test_no_surface():
    with pytest.raises(ValueError, match=r"no surface: densities from .* never cross 10"):
        extract(Field(sphere([0.0, 0.0, 0.0], -1.0)), MeshConfig(64))


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("resolution", 100, "--mesh.resolution is 100"),
        ("method", "x", "--mesh.method is 'x'"),
        ("dust", 1.0, "--mesh.dust is 1.0"),
    ],
)
def test_bad_config(field, value, says):
    with pytest.raises(ValueError, match=says):
        MeshConfig(**{field: value})


@pytest.mark.parametrize("rig", [*RIGS, "orbit-8"])
def test_vertices_project_onto_the_alpha_mask(rig):
    """Within a pixel in every rig, and the silhouettes of mesh and picture are the same."""
    head, resolution = EggSource({}).head(3), 128
    mesh, _ = extract(head, MeshConfig(128))
    cameras = rig_cameras(find_rig(rig), 0, 0)[::7]
    alpha = head.render(cameras, resolution).alpha.numpy() > 0.5
    projected = cameras.project(torch.from_numpy(mesh.vertices), resolution)[..., :2].numpy()
    for mask, pixels, surface in zip(alpha, projected, look(mesh, cameras, resolution), strict=True):
        grown = np.pad(mask, 1)
        near = sum(np.roll(grown, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1)) > 0
        column, row = np.floor(pixels).astype(int).T
        assert near[row + 1, column + 1].all()
        assert (mask & surface.mask).sum() / (mask | surface.mask).sum() > 0.98
