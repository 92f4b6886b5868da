"""How much faster heads come out of PanoHead here than out of its official procedure, with equality checked first.

    python benchmarks/panohead.py --weights tiny.pkl      a small official checkpoint: 125 views and the shape, in full
    python benchmarks/panohead.py                         the released sizes with random weights: few views, scaled

Both procedures run in the same process on the same device and threads; `benchmarks/panohead_official.py` is the
official one. An identity is 125 views and the shape grid of 512^3 that is the official default. The lower bound of a
view is the floating point operations of its convolutions and matrix products over what this machine reaches in one
large convolution. Prints tables
and, last, one line of JSON.
"""

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from panohead_official import CHUNK, official_chunk, official_view, run_model
from scipy.spatial import cKDTree
from torch.utils.flop_counter import FlopCounterMode

from datagen.config import PanoHeadConfig
from datagen.identity import rig_cameras
from datagen.meshing import density_grid, marching_cubes
from datagen.rigs import find_rig
from datagen.sources.panohead.checkpoint import load
from datagen.sources.panohead.config import GeneratorConfig
from datagen.sources.panohead.generator import Generator
from datagen.sources.panohead.head import PanoHead
from datagen.sources.panohead.official import ISO_LEVEL, frontal_label, grid_points, latent
from geometry.cameras import Cameras, eg3d_labels
from geometry.meshes import Mesh

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from panohead_files import RELEASE, RELEASE_RENDERING, untrained

VIEWS, SHAPE = 125, 512
GRID = 256
"""Cells of the grid that is compared alone."""
SEED = 0


def release_sized(device: str) -> Generator:
    """Random weights of the released sizes, with a density that has a surface such as a head's.

    An untrained density is noise down to a cell of its planes, which no trained one is: the finest outputs are damped,
    and the level put where it encloses an eighth of the box.
    """
    generator = untrained(GeneratorConfig.from_official(RELEASE, RELEASE_RENDERING, 64), seed=0)
    for size in (64, 128, 256):
        getattr(generator.backbone.synthesis, f"b{size}").torgb.weight.mul_(0.02)
    renderer = PanoHead(generator, SEED, PanoHeadConfig()).identity.renderer
    sigma = renderer.sigma(torch.rand(20_000, 3, generator=torch.Generator().manual_seed(0)) - 0.5)
    last = generator.decoder.net[2]
    gain = 15 / sigma.std()
    last.bias[0] = ISO_LEVEL + gain * (last.bias[0] - sigma.quantile(0.875))
    last.weight[0] *= gain
    return generator.to(device)


def seconds(work: Callable[[], Any], device: str, repeats: int = 1) -> float:
    """Wall seconds of the best of some runs."""
    taken = []
    for _ in range(repeats):
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        taken.append(time.perf_counter() - start)
    return min(taken)


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def flops(work: Callable[[], Any]) -> int:
    """Operations in convolutions and matrix products; reading planes and element-wise work count nothing."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def peak_flops(device: str, dtype: torch.dtype) -> float:
    """Operations per second of the best of several large convolutions, the kind that views are made of."""
    count, side = (16, 256) if device.startswith("cuda") else (1, 128)
    x = torch.randn(count, 256, side, side).to(device, dtype, memory_format=torch.channels_last)
    weight = torch.randn(256, 256, 3, 3).to(device, dtype, memory_format=torch.channels_last)
    work = 2 * 9 * 256 * 256 * count * side * side
    return work / seconds(lambda: F.conv2d(x, weight, padding=1), device, repeats=8)


def rig(device: str) -> Cameras:
    return rig_cameras(find_rig("spinmeround-125", grid=True), 0, 0).to(device)


def compare_views(
    generator: Generator, device: str, official_views: int, our_views: int, repeats: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Seconds per view of both procedures, and how far apart their pictures are."""
    cameras, z, resolution = rig(device), latent(SEED, generator.config.z_dim).to(device), generator.config.resolution
    labels = eg3d_labels(cameras)
    settings = PanoHeadConfig(background="own")
    exact, fast = (PanoHead(generator, SEED, replace(settings, precision=name)) for name in ("exact", "fast"))
    pictures = exact.render(cameras[:2], resolution).rgb
    theirs = torch.cat([official_view(generator, z, labels[i : i + 1], even=True) for i in range(2)])
    theirs = ((theirs + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1)
    apart = (pictures - theirs).abs().max().item()
    assert apart < 1e-3, f"our pictures are not the official ones: {apart}"
    rounded = (fast.render(cameras[:2], resolution).rgb - pictures).abs()

    psnr = -10 * rounded.square().mean().log10().item()
    accuracy = {
        "exact_vs_official_max": apart,
        "fast_vs_exact": {"max": rounded.max().item(), "mean": rounded.mean().item(), "psnr": psnr},
    }
    figures: dict[str, Any] = {}

    def official() -> None:
        for i in range(official_views):
            official_view(generator, z, labels[i : i + 1])

    figures["official"] = {"view": seconds(official, device, repeats) / official_views, "head": 0.0}
    figures["official"]["gflop"] = flops(lambda: official_view(generator, z, labels[:1])) / 1e9
    for name, head in (("exact", exact), ("fast", fast)):
        start = seconds(lambda name=name: PanoHead(generator, SEED, replace(settings, precision=name)), device, repeats)
        views = seconds(lambda head=head: head.render(cameras[:our_views], resolution), device, repeats) / our_views
        count = flops(lambda head=head: head.render(cameras[:1], resolution)) / 1e9
        figures[name] = {"view": views, "head": start, "gflop": count}
    return figures, accuracy


def compare_shapes(generator: Generator, device: str, official_chunks: int | None, repeats: int) -> dict[str, Any]:
    """Seconds of the density grids by both procedures, and the distance between the two surfaces in voxels."""
    z, head = latent(SEED, generator.config.z_dim).to(device), PanoHead(generator, SEED, PanoHeadConfig())
    points = grid_points(GRID)
    chunks = points.split(CHUNK)[:official_chunks]
    official = seconds(lambda: [official_chunk(generator, z, part.to(device)) for part in chunks], device, repeats)
    official *= len(points) / sum(map(len, chunks))
    figures = {
        "official_256": official,
        "ours_256": seconds(lambda: density_grid(head, GRID), device, repeats),
        "official_512": official * (SHAPE / GRID) ** 3,
        "ours_512": seconds(lambda: density_grid(head, SHAPE), device, repeats),
    }
    surfaces = (marching_cubes(grid, ISO_LEVEL) for grid in (density_grid(head, GRID), dense_grid(generator, head)))
    figures["voxels_apart"] = hausdorff(*surfaces)
    return figures


@torch.no_grad()
def dense_grid(generator: Generator, head: PanoHead) -> np.ndarray:
    """The field that `density_grid` samples, at every corner and by the official means of reading planes."""
    axis = torch.linspace(-0.5, 0.5, GRID + 1)
    z, label = latent(SEED, generator.config.z_dim).to(head.device), frontal_label().to(head.device)
    planes, slabs = generator.planes(generator.mapping(z, label, 0.7, 14)), []
    for x in axis:
        points = torch.cartesian_prod(x[None], axis, axis).to(head.device)
        sigma = run_model(generator, planes, points[None])[0][0, :, 0]
        slabs.append(head.cropped(points, sigma).view(GRID + 1, GRID + 1).cpu())
    return torch.stack(slabs).numpy()


def hausdorff(a: Mesh, b: Mesh) -> float:
    """The largest distance from a vertex of one surface to the nearest of the other, in voxels."""
    trees = cKDTree(a.vertices), cKDTree(b.vertices)
    return float(max(trees[1].query(a.vertices)[0].max(), trees[0].query(b.vertices)[0].max()) * GRID)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", help="an official .pkl or a converted folder; without it, random release sizes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--official-views", type=int, help="views of the official procedure, scaled to 125")
    parser.add_argument("--views", type=int, help="our views, scaled to 125")
    parser.add_argument("--official-chunks", type=int, help="chunks of the official shape grid, scaled to all")
    parser.add_argument("--repeats", type=int, default=2, help="each time is the best of so many")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    small, device = arguments.weights is not None, arguments.device
    generator = load(arguments.weights).generator.to(device) if small else release_sized(device)
    parameters = sum(p.numel() for p in generator.parameters()) / 1e6
    print(f"{len(generator.state_dict())} keys, {parameters:.2f} M parameters, {device}, {arguments.threads} threads")

    figures, accuracy = compare_views(
        generator,
        device,
        arguments.official_views or (VIEWS if small else 1),
        arguments.views or (VIEWS if small else 2),
        arguments.repeats,
    )
    shapes = compare_shapes(generator, device, arguments.official_chunks or (None if small else 1), arguments.repeats)
    half = torch.float16 if device.startswith("cuda") else torch.bfloat16
    peaks = {"official": peak_flops(device, torch.float32), "fast": peak_flops(device, half)}
    peaks["exact"] = peaks["official"]
    for name in ("official", "exact", "fast"):
        row = figures[name]
        row["bound"] = row["gflop"] * 1e9 / peaks[name]
        row["views"] = row["head"] + VIEWS * row["view"]
        for size in ("256", "512"):
            row[f"with_{size}"] = row["views"] + shapes[f"{'official' if name == 'official' else 'ours'}_{size}"]
    gigabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    report(figures, accuracy, shapes, gigabytes)
    result = {"benchmark": "panohead", **vars(arguments), "peak_flops": peaks, "procedures": figures}
    result.update(accuracy=accuracy, shapes=shapes, gigabytes=gigabytes)
    print(json.dumps(result))


def report(figures: dict[str, Any], accuracy: dict[str, Any], shapes: dict[str, float], gigabytes: float) -> None:
    official = figures["official"]
    print(f"\n{'':9}{'s/view':>8}{'GFLOP':>8}{'bound':>8}{'of peak':>8}", end="")
    print("".join(f"{title:>18}" for title in (f"{VIEWS} views", f"+ {GRID}^3 shape", f"+ {SHAPE}^3 shape")))
    for name, row in figures.items():
        share = row["bound"] / row["view"]
        print(f"{name:9}{row['view']:8.3f}{row['gflop']:8.2f}{row['bound']:8.3f}{share:8.0%}", end="")
        totals = ((row[key], official[key] / row[key]) for key in ("views", "with_256", "with_512"))
        print("".join(f"{total:8.1f} s{speed:7.1f}x" for total, speed in totals))
    rounding = accuracy["fast_vs_exact"]
    print(f"\nexact against official: {accuracy['exact_vs_official_max']:.1e} at most")
    print(f"fast against exact: {rounding['max']:.3f} at most, {rounding['mean']:.1e} mean, {rounding['psnr']:.1f} dB")
    for size in ("256", "512"):
        theirs, ours = shapes[f"official_{size}"], shapes[f"ours_{size}"]
        print(f"density grid of {size}^3: {theirs:.1f} s official, {ours:.1f} s ours, {theirs / ours:.1f}x")
    print(f"surfaces from the {GRID}^3 grid, ours and dense: {shapes['voxels_apart']:.3f} voxels apart (Hausdorff)")
    print(f"peak memory {gigabytes:.1f} GB, the official procedure included")


if __name__ == "__main__":
    main()
