"""What cameras see of meshes, against PyTorch3D's own rendering and against a sphere; every backend alike."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from geometry.cameras import Cameras, look_at, orbit
from geometry.embree import EmbreeCaster
from geometry.meshes import Mesh, VisibleSurface, look, unit
from geometry.rays import rays

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "geometry_pytorch3d.safetensors")
HEAD = Mesh(GOLDEN["vertices"], GOLDEN["faces"])
RADIUS = 0.33
AZIMUTHS = np.array([0.0, 14.4, 90.0, 180.0, -135.0])
ELEVATIONS = np.array([0.0, -23.0, 11.5, 0.0, 40.0])

without_pytorch3d = pytest.mark.skipif(find_spec("pytorch3d") is None, reason="pytorch3d is not installed")
backends = pytest.mark.parametrize("backend", ["embree", pytest.param("pytorch3d", marks=without_pytorch3d)])


def golden_cameras() -> Cameras:
    K = torch.tensor(GOLDEN["K_pixels"]) / torch.tensor([96.0, 96.0, 1.0])[:, None]
    return Cameras(torch.tensor(GOLDEN["c2w_opencv"]), K.repeat(6, 1, 1))


def icosphere(subdivisions: int, radius: float = RADIUS) -> Mesh:
    """A sphere of 20 x 4^subdivisions triangles: an icosahedron whose edges are halved."""
    g = (1 + 5**0.5) / 2
    corners = [(-1, g, 0), (1, g, 0), (-1, -g, 0), (1, -g, 0)]
    vertices = np.array(corners + [(z, x, y) for x, y, z in corners] + [(y, z, x) for x, y, z in corners], dtype=float)
    distances = np.linalg.norm(vertices[:, None] - vertices, axis=-1)
    edges = np.isclose(distances, 2)
    triples = [(a, b, c) for a in range(12) for b in range(a) for c in range(b) if edges[[a, a, b], [b, c, c]].all()]
    outward = [np.linalg.det(vertices[list(triple)]) > 0 for triple in triples]
    faces = np.array([t if out else t[::-1] for t, out in zip(triples, outward, strict=True)])
    for _ in range(subdivisions):
        sides = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=-1)
        unique, side = np.unique(sides, axis=0, return_inverse=True)
        ab, bc, ca = len(vertices) + side.reshape(3, -1)
        vertices = np.concatenate([vertices, unit(vertices)[unique].mean(axis=1)])
        a, b, c = faces.T
        faces = np.stack([a, ab, ca, ab, b, bc, ca, bc, c, ab, bc, ca], axis=-1).reshape(-1, 3)
    return Mesh((radius * unit(vertices)).astype(np.float32), faces.astype(np.int32))


def sphere_seen(cameras: Cameras, resolution: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mask, world normals and z depth of the exact sphere, by solving |origin + t direction| = RADIUS."""
    origins, directions = (x.double().numpy() for x in rays(cameras, resolution))
    origins = origins[:, None, None]
    along = -(origins * directions).sum(-1)
    root = along**2 - (origins**2).sum(-1) + RADIUS**2
    mask = root > 0
    t = np.where(mask, along - np.sqrt(np.where(mask, root, 0)), 0)
    forward = cameras.c2w[:, None, None, :3, 2].double().numpy()
    return mask, unit(origins + t[..., None] * directions), t * (directions * forward).sum(-1)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


def grown(mask: np.ndarray) -> np.ndarray:
    """The mask and all pixels that touch it, one pixel larger on each side."""
    padded = np.pad(mask, 2)
    size = len(mask) + 2
    return np.any([padded[y : y + size, x : x + size] for y in range(3) for x in range(3)], axis=0)


def test_vertex_normals_match_pytorch3d():
    np.testing.assert_allclose(HEAD.vertex_normals, GOLDEN["vertex_normals"], atol=1e-5)


@backends
def test_views_match_pytorch3d(backend: str):
    views = list(look(HEAD, golden_cameras(), 96, backend))
    assert len(views) == 6
    for view, surface in enumerate(views):
        face = GOLDEN["face_index"][view]
        both = surface.mask & (face >= 0)
        same = both & (surface.face == face)
        assert iou(surface.mask, face >= 0) >= 0.998
        assert same.sum() >= 0.995 * both.sum()
        np.testing.assert_allclose(surface.depth[same], GOLDEN["depth_z"][view][same], atol=1e-4)
        normals = surface.smooth_normals("world")[same]
        np.testing.assert_allclose(normals, GOLDEN["smooth_normal_world"][view][same].astype(np.float32), atol=1e-3)
        np.testing.assert_allclose(surface.face_normals("world")[same], HEAD.face_normals[face[same]], atol=1e-6)


@backends
def test_a_sphere_has_the_analytic_mask_depth_and_normals(backend: str):
    resolution = 48 if backend == "pytorch3d" else 128
    cameras = orbit(AZIMUTHS, ELEVATIONS)
    masks, normals, depths = sphere_seen(cameras, resolution)
    for view, surface in enumerate(look(icosphere(5), cameras, resolution, backend)):
        assert iou(surface.mask, masks[view]) > 0.98
        seen = surface.mask & masks[view]
        cosines = (surface.smooth_normals("world") * normals[view]).sum(-1)[seen]
        assert np.degrees(np.arccos(np.minimum(cosines, 1))).max() < 1
        in_camera = normals[view].astype(np.float32) @ cameras.view_rotation[view].numpy().T
        cosines = (surface.smooth_normals() * in_camera).sum(-1)[seen]
        assert np.degrees(np.arccos(np.minimum(cosines, 1))).max() < 1
        # A ray that grazes the sphere meets its polyhedron much later or not at all.
        facing = seen & (in_camera[..., 2] > 0.4)
        np.testing.assert_allclose(surface.depth[facing], depths[view][facing], atol=1e-3)


@backends
def test_vertices_project_into_the_mask(backend: str):
    resolution = 48 if backend == "pytorch3d" else 128
    cameras = orbit(AZIMUTHS, ELEVATIONS)
    pixels = cameras.project(torch.tensor(HEAD.vertices), resolution)[..., :2].floor().int().numpy()
    for (x, y), surface in zip(pixels.transpose(0, 2, 1), look(HEAD, cameras, resolution, backend), strict=True):
        inside = (x >= 0) & (x < resolution) & (y >= 0) & (y < resolution)
        assert inside.mean() > 0.5
        assert grown(surface.mask)[y[inside] + 1, x[inside] + 1].all()


@backends
def test_camera_normals_are_right_up_and_towards_the_viewer(backend: str):
    (surface,) = look(icosphere(3), orbit(np.array([70.0]), np.array([0.0])), 32, backend)
    normals = surface.smooth_normals()
    ys, xs = np.nonzero(surface.mask)
    np.testing.assert_allclose(normals[16, 16], [0, 0, 1], atol=0.1)
    assert normals[ys.min(), 16, 1] > 0.8
    assert normals[16, xs.max(), 0] > 0.8
    assert (normals[surface.mask][:, 2] > 0).all()


@backends
def test_nothing_is_seen_outside_the_mask(backend: str):
    (surface,) = look(HEAD, golden_cameras()[[1]], 96, backend)
    outside = ~surface.mask
    assert outside.any()
    assert (surface.face[outside] == -1).all()
    for image in (surface.depth, surface.smooth_normals(), surface.face_normals("world"), *surface.barycentric):
        assert not image[outside].any()
    np.testing.assert_allclose(surface.barycentric.sum(0)[surface.mask], 1, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(surface.smooth_normals(), axis=-1)[surface.mask], 1, atol=1e-6)


def contents(surface: VisibleSurface) -> bytes:
    arrays = (surface.depth, surface.face, surface.barycentric, surface.smooth_normals(), surface.face_normals())
    return b"".join(array.tobytes() for array in arrays)


def test_a_view_has_the_same_bytes_in_any_batch_and_thread():
    cameras = orbit(AZIMUTHS, ELEVATIONS)
    caster = EmbreeCaster(HEAD)
    together = [contents(surface) for surface in caster.cast(cameras, 64)]
    alone = [contents(next(look(HEAD, cameras[[view]], 64))) for view in range(5)]
    with ThreadPoolExecutor(5) as threads:
        threaded = list(threads.map(lambda view: contents(next(caster.cast(cameras[[view]], 64))), range(5)))
    assert together == alone == threaded


def test_only_the_needed_rays_are_cast_and_none_is_missed():
    """A camera off to the side, whose window is a part of the image, sees what rays through every pixel meet."""
    c2w = look_at(torch.tensor([[0.3, 0.4, 2.6]]), torch.tensor([0.35, -0.2, 0.0]))
    cameras = Cameras(c2w, torch.tensor([[[3.0, 0.1, 0.5], [0.0, 2.5, 0.4], [0.0, 0.0, 1.0]]]))
    caster = EmbreeCaster(HEAD)
    rows, columns = caster._window(cameras, 64)
    assert 0 < (rows.stop - rows.start) * (columns.stop - columns.start) < 64 * 64
    (surface,) = caster.cast(cameras, 64)
    origins, directions = (x.numpy() for x in rays(cameras, 64))
    directions = directions.reshape(-1, 3)
    hits = caster._scene.run(np.repeat(origins, len(directions), axis=0), directions, output=True)
    met = hits["primID"].reshape(64, 64)
    assert (met == surface.face).mean() > 0.999
    forward = directions @ c2w[0, :3, 2].numpy()
    depth = (hits["tfar"] * forward).reshape(64, 64)
    same = surface.mask & (met == surface.face)
    np.testing.assert_allclose(surface.depth[same], depth[same], atol=1e-5)


def test_a_mesh_out_of_sight_leaves_an_empty_image():
    eye = torch.tensor([[0.0, 0.0, 2.7]])
    beside, behind = (look_at(eye, torch.tensor(target)) for target in ([2.7, 0.0, 2.0], [0.0, 0.0, 5.0]))
    K = golden_cameras().K[:2]
    for surface in look(HEAD, Cameras(torch.cat([beside, behind]), K), 32):
        assert not surface.mask.any()


def test_a_camera_inside_the_mesh_sees_it_everywhere():
    c2w = look_at(torch.tensor([[0.0, 0.0, 0.1]]), torch.zeros(3))
    (surface,) = look(icosphere(3), Cameras(c2w, golden_cameras().K[:1]), 32)
    assert surface.mask.all()


def test_no_ray_slips_between_triangles():
    for surface in look(icosphere(4), orbit(AZIMUTHS, ELEVATIONS, focal=12.0), 256):
        assert surface.mask.all()


@pytest.mark.parametrize("faces", [np.empty((0, 3)), np.array([[0, 1, 3]]), np.array([[0, 1, -1]])])
def test_faces_must_index_the_vertices(faces: np.ndarray):
    with pytest.raises(ValueError, match="a mesh of 3 vertices"):
        Mesh(np.eye(3, dtype=np.float32), faces.astype(np.int32))


def test_an_absent_backend_is_refused_in_words(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pytorch3d.structures", None)
    with pytest.raises(ValueError, match="needs the package pytorch3d"):
        look(HEAD, golden_cameras(), 8, "pytorch3d")


def test_geometry_loads_no_backend_and_no_heavy_library():
    heavy = {"ray", "diffusers", "open_clip", "torchvision", "embreex", "pytorch3d"}
    code = "import sys, geometry.cameras, geometry.meshes, geometry.rays; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "geometry.meshes" in loaded
    assert not heavy & loaded
