"""PanoHead at its released size with random weights: stages of an identity, share of the peak, and workers on one card."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import torch
from panohead import flops, peak_flops, release_sized
from safetensors.torch import load_file

from datagen.config import ImageConfig, MeshConfig, PanoHeadConfig
from datagen.identity import IdentitySettings, Made, make_identity, rig_cameras
from datagen.meshing import density_grid, extract
from datagen.rigs import find_rig
from datagen.sources.panohead.build import build
from datagen.sources.panohead.config import GeneratorConfig
from datagen.sources.panohead.generator import Generator
from datagen.sources.panohead.head import PanoHead
from datagen.sources.panohead.official import MAX_SEED
from geometry.embree import EmbreeCaster
from gpu_parts.common import Budget, Table, hottest, percent, seconds

SEED = 0
GOLDEN = Path(__file__).parents[2] / "tests" / "golden" / "panohead"


@dataclass(frozen=True)
class Sizes:
    """How much of an identity is made."""

    rig: str = "spinmeround-125"
    resolution: int = 512
    mesh: int = 512
    workers: tuple[int, ...] = (8, 4, 1)
    identities: int = 2
    """Identities of each worker that are timed, after one that is not."""


TOY = Sizes("orbit-2", 64, 64, (1,), 1)


class RandomSource:
    """Heads of a generator with random weights of the released size."""

    name, max_seed = "panohead", MAX_SEED

    def __init__(self, generator: Generator, precision: str):
        self.generator, self.config = generator, PanoHeadConfig(precision=precision)

    def head(self, seed: int) -> PanoHead:
        return PanoHead(self.generator, seed, self.config)

    def lineage(self) -> dict[str, Any]:
        return {}


def panohead(budget: Budget) -> Iterator[Table]:
    """PanoHead at full size: seconds per identity, exact and fast."""
    sizes, device = TOY if budget.toy else Sizes(), budget.device
    generator = tiny(device) if budget.toy else release_sized(device)
    cameras = rig_cameras(find_rig(sizes.rig, grid=True), SEED, 0)
    table = Table(
        f"Seconds of one identity on the device, {len(cameras)} views at {sizes.resolution} px, {sizes.mesh}^3 cells",
        ("precision", "head", "views", "views/s", "of peak", "density grid", "GB"),
    )
    for precision in ("exact", "fast"):
        source = RandomSource(generator, precision)
        head = source.head(SEED)
        dtype = torch.float16 if precision == "fast" and device == "cuda" else torch.float32
        peak = peak_flops(device, dtype)
        per_view = flops(lambda head=head: head.render(cameras[:1], sizes.resolution))
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        making = seconds(lambda source=source: source.head(SEED), device, warmup=1)
        views = seconds(lambda head=head: head.render(cameras, sizes.resolution), device, warmup=1)
        grid = seconds(lambda head=head: density_grid(head, sizes.mesh), device, warmup=1)
        memory = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else float("nan")
        share = len(cameras) * per_view / peak / views
        yield table.add(precision, making, views, len(cameras) / views, percent(share), grid, memory)
    profile = Table("Where the time of the views goes (fast)", ("kernel", "ms", "share"))
    if device == "cuda":
        head = RandomSource(generator, "fast").head(SEED)
        for name, spent, share in hottest(lambda: head.render(cameras, sizes.resolution)):
            yield profile.add(name, spent, percent(share))
    stages = Table(
        "Seconds of the stages of one identity on one CPU core",
        ("mesh and figures", "normals of a view", "encoding of a view"),
    )
    mesh_seconds, normals, encoding = cpu_stages(generator, sizes)
    yield stages.add(mesh_seconds, normals, encoding)
    pipeline = Table(
        "Whole identities: views, mesh, normals and encoding, several workers on one card",
        ("workers", "precision", "seconds per identity", "device idle", "identities"),
        note="Idle is the mean of NVML's utilisation, sampled ten times a second.",
    )
    for workers in sizes.workers:
        if not budget.toy and budget.left() < 25:
            break
        wall, idle = shared(workers, sizes, device, budget.toy)
        yield pipeline.add(workers, "fast", wall, percent(idle), workers * sizes.identities)


def tiny(device: str) -> Generator:
    """The small official generator of the golden files."""
    kwargs = json.loads((GOLDEN / "tiny.json").read_text())["init_kwargs"]
    state = load_file(GOLDEN / "tiny.safetensors")
    for block, side in ((0, 64), (1, 128)):
        for layer in (0, 1):  # the files leave out noise that is not added
            state[f"superresolution.block{block}.conv{layer}.noise_const"] = torch.zeros(side, side)
    return build(GeneratorConfig.from_official(kwargs, kwargs["rendering_kwargs"], 16), state).to(device)


def cpu_stages(generator: Generator, sizes: Sizes) -> tuple[float, float, float]:
    """Seconds of one core for the mesh with its figures, and for the normals and the encoding of a view."""
    from datagen.identity import encode_view

    torch.set_num_threads(1)
    head = RandomSource(generator, "fast").head(SEED)
    camera = rig_cameras(find_rig(sizes.rig, grid=True), SEED, 0)[:1]
    begun = time.perf_counter()
    density_grid(head, sizes.mesh)
    between = time.perf_counter()
    mesh, _ = extract(head, MeshConfig(sizes.mesh))
    meshing = time.perf_counter() - between - (between - begun)
    caster = EmbreeCaster(mesh)
    normals = seconds(lambda: next(caster.cast(camera, sizes.resolution)).smooth_normals(), "cpu", 2)
    views = head.render(camera, sizes.resolution)
    rgb, alpha = ((x * 255).to(torch.uint8).cpu().numpy()[0] for x in (views.rgb, views.alpha))
    normal = next(caster.cast(camera, sizes.resolution)).smooth_normals()
    encoding = seconds(lambda: encode_view(rgb, alpha, normal, {}, ImageConfig()), "cpu", 2)
    return meshing, normals, encoding


def shared(workers: int, sizes: Sizes, device: str, toy: bool) -> tuple[float, float]:
    """Seconds per identity of several worker processes on one device, and the share of the time that it idles."""
    context = get_context("spawn")
    ready, go, done = context.SimpleQueue(), context.Event(), context.SimpleQueue()
    processes = [
        context.Process(target=_work, args=(number, sizes, device, toy, ready, go, done)) for number in range(workers)
    ]
    for process in processes:
        process.start()
    try:
        for _ in processes:
            ready.get()
        begun, busy = time.perf_counter(), []
        go.set()
        finished = 0
        while finished < workers:
            if not done.empty():
                if error := done.get():
                    raise RuntimeError(error)
                finished += 1
            busy.append(torch.cuda.utilization() / 100 if device == "cuda" else 0.0)
            time.sleep(0.1)
        wall = time.perf_counter() - begun
    finally:
        for process in processes:
            process.join(5) if not process.exitcode and process.is_alive() else None
            process.kill()
    return wall / (workers * sizes.identities), 1 - sum(busy) / len(busy)


def _work(number: int, sizes: Sizes, device: str, toy: bool, ready: SimpleQueue, go: Any, done: SimpleQueue) -> None:
    """One worker: an identity to warm up, and those that count."""
    try:
        torch.set_num_threads(1)
        generator = tiny(device) if toy else release_sized(device)
        source = RandomSource(generator, "fast")
        recipe = IdentitySettings(
            find_rig(sizes.rig), SEED, sizes.resolution, ImageConfig(), MeshConfig(sizes.mesh), {}
        )
        with ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as beside:
            few = replace(recipe, rig=find_rig("orbit-5"), mesh=MeshConfig(64))
            _make(source, few, 0, beside)
            ready.put(number)
            go.wait()
            for identity in range(sizes.identities):
                _make(source, recipe, number * sizes.identities + identity, beside)
        done.put("")
    except Exception as error:
        ready.put(number)
        done.put(f"{type(error).__name__}: {error}")


def _make(source: RandomSource, recipe: IdentitySettings, identity: int, beside: ThreadPoolExecutor) -> None:
    made = list(make_identity(source, recipe, identity, beside))[-1]
    assert isinstance(made, Made), made
