"""The smallest head source there is: coloured eggs, known in closed form, with faults on request.

`main` is a command that generates a small dataset of them, for tests that kill it.
"""

import itertools
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datagen.config import GenerateConfig, MeshConfig, SourceConfig
from datagen.generate import generate
from datagen.heads import RenderedViews
from geometry.cameras import Cameras
from geometry.rays import rays
from jobs.pool import PoolConfig


@dataclass(frozen=True)
class Egg:
    """An ellipsoid whose density falls linearly with the distance from it (to first order)."""

    radii: Tensor
    colour: Tensor
    facts_: dict[str, Any] = field(default_factory=dict)
    iso_level: float = 10.0
    device: torch.device = torch.device("cpu")

    def density(self, points: Tensor) -> Tensor:
        return 10 + 200 * (1 - (points / self.radii).norm(dim=-1)) * self.radii.min()

    def render(self, cameras: Cameras, resolution: int) -> RenderedViews:
        origins, directions = rays(cameras, resolution)
        o, d = origins[:, None, None] / self.radii, directions / self.radii
        a, b, c = (d * d).sum(-1), (o * d).sum(-1), (o * o).sum(-1) - 1
        under = b * b - a * c
        hit = under > 0
        along = (-b - under.clamp(min=0).sqrt()) / a
        forward = cameras.c2w[:, None, None, :3, 2]
        alpha = hit.float()
        rgb = alpha[..., None] * self.colour + (1 - alpha[..., None])
        return RenderedViews(rgb, alpha, along * (directions * forward).sum(-1) * alpha)

    def facts(self) -> dict[str, Any]:
        return self.facts_


@dataclass
class EggSource:
    """Eggs of seeds; `faults` maps a seed to what goes wrong with it: raise, raise-once, die, memory or empty."""

    faults: dict[int, str]
    slow: float = 0.0
    name: str = "egg"
    max_seed: int = 1000
    tried: set[int] = field(default_factory=set)

    def head(self, seed: int) -> Egg:
        time.sleep(self.slow)
        fault = self.faults.get(seed)
        if fault == "raise" or (fault == "raise-once" and seed not in self.tried):
            self.tried.add(seed)
            raise RuntimeError(f"egg {seed} is broken")
        if fault == "memory":
            raise MemoryError("an egg is too large")
        if fault == "die":
            os._exit(9)
        draw = torch.rand(6, generator=torch.Generator().manual_seed(seed))
        radii = 0.18 + 0.1 * draw[:3]
        facts = {"latent_sha256": f"{seed:064x}", "colour": draw[3:].tolist()}
        return Egg(radii * (1e-9 if fault == "empty" else 1), draw[3:], facts)

    def lineage(self) -> dict[str, Any]:
        return {"name": self.name, "version": 1, "licence": "none"}


@dataclass(frozen=True)
class EggConfig(SourceConfig):
    """Opens the egg source wherever a source is configured."""

    faults: tuple[tuple[int, str], ...] = ()
    slow: float = 0.0
    kill_at: int = 0
    """The point of `kill_at` at which one process other than `driver` kills itself; 0 for none."""
    marker: str = ""
    """The file that this process leaves, so that no other follows."""
    driver: int = 0

    def open(self, device: str) -> EggSource:
        if self.kill_at and os.getpid() != self.driver:
            try:
                Path(self.marker).touch(exist_ok=False)
                kill_at(self.kill_at)
            except FileExistsError:
                pass
        return EggSource(dict(self.faults), self.slow)


def kill_at(point: int) -> None:
    """Kill this process before its n-th fsync or rename from now on: in the middle of a commit."""
    calls = itertools.count(1)

    def fatal(original: Callable[..., None]) -> Callable[..., None]:
        def call(*args: Any) -> None:
            if next(calls) == point:
                os.kill(os.getpid(), signal.SIGKILL)
            original(*args)

        return call

    os.fsync, os.replace = fatal(os.fsync), fatal(os.replace)


def egg_job(out: str, pool: PoolConfig, slow: float = 0.0, **changes: Any) -> GenerateConfig:
    """A dataset of 7 eggs, 6 views each, in 4 shards."""
    fields = {
        "source": EggConfig(slow=slow),
        "identities": 7,
        "rig": "orbit-6",
        "resolution": 32,
        "identities_per_shard": 2,
        "mesh": MeshConfig(64),
        "pool": pool,
    }
    return GenerateConfig(out, **{**fields, **changes})


def main(out: str, workers: int, point: int = 0) -> None:
    """Generate eggs, with Ray workers or in this process (0), which kills itself at a point."""
    if point:
        kill_at(point)
    if workers:  # which do not have this module
        from ray import cloudpickle

        cloudpickle.register_pickle_by_value(sys.modules[__name__])
    generate(egg_job(out, PoolConfig(workers=workers, inline=not workers), slow=0.05))
