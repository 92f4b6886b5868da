"""How many views of a 200k-face head the mesh backends see in a second, smooth camera-space normals included.

    python benchmarks/raycast.py

prints a table and, last, the same figures as one line of JSON.
"""

import argparse
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import numpy as np
import torch
from skimage.measure import marching_cubes

from geometry.cameras import Cameras, orbit
from geometry.embree import EmbreeCaster
from geometry.meshes import Mesh
from geometry.pytorch3d import PyTorch3DCaster


def bumpy_head(grid: int = 208) -> Mesh:
    """A head on shoulders with curls all over, from marching cubes, so that its faces lie in memory as a real one's."""
    axis = (np.arange(grid) + 0.5) / grid - 0.5
    x, y, z = np.meshgrid(axis, axis, axis, indexing="ij", sparse=True)
    skull = np.sqrt((x / 0.25) ** 2 + ((y - 0.05) / 0.31) ** 2 + (z / 0.28) ** 2) - 1
    shoulders = np.sqrt((x / 0.42) ** 2 + ((y + 0.43) / 0.2) ** 2 + (z / 0.25) ** 2) - 1
    curls = 0.06 * np.sin(43 * x) * np.sin(39 * y) * np.sin(49 * z)
    vertices, faces, _, _ = marching_cubes(-np.minimum(skull, shoulders) - curls, 0.0, gradient_direction="ascent")
    return Mesh(((vertices + 0.5) / grid - 0.5).astype(np.float32), faces.astype(np.int32))


def rate(
    caster: EmbreeCaster | PyTorch3DCaster, cameras: Cameras, resolution: int, threads: int, repeats: int
) -> float:
    """Views per second of the best run, every view with its mask, depth and smooth normals."""

    def share(thread: int) -> None:
        for surface in caster.cast(cameras[thread::threads], resolution):
            surface.smooth_normals()

    share(0)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(share, range(threads)))
        seconds.append(time.perf_counter() - start)
    return len(cameras) / min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=24)
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    mesh = bumpy_head()
    cameras = orbit(np.linspace(-180, 180, arguments.views, endpoint=False), np.linspace(-23, 23, arguments.views))
    start = time.perf_counter()
    embree = EmbreeCaster(mesh)
    build = time.perf_counter() - start
    coverage = np.mean([surface.mask.mean() for surface in embree.cast(cameras, arguments.resolution)])
    rates = {
        f"embree, {threads} thread{'s' * (threads > 1)}": rate(
            embree, cameras, arguments.resolution, threads, arguments.repeats
        )
        for threads in sorted({1, os.cpu_count() or 1})
    }
    if find_spec("pytorch3d"):
        # Minutes per view on a CPU, so it gets one.
        rates["pytorch3d, cpu"] = rate(PyTorch3DCaster(mesh), cameras[:1], arguments.resolution, 1, 1)

    print(f"{len(mesh.faces)} faces, {arguments.resolution} px, {coverage:.0%} of the pixels seen, BVH {build:.2f} s")
    for backend, figure in rates.items():
        print(f"{backend:20} {figure:8.3g} views/s")
    if not find_spec("pytorch3d"):
        print("pytorch3d            not installed")
    print(json.dumps({"faces": len(mesh.faces), **vars(arguments), "coverage": coverage, "views_per_second": rates}))


if __name__ == "__main__":
    main()
