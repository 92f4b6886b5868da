"""The smallest head source there is: coloured eggs, known in closed form, with faults on request.

`main` is a command that generates a small dataset of them, for tests that kill it.
"""

import os
import time
from dataclasses import dataclass, field
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
    """Eggs of seeds; `faults` maps a seed to what goes wrong with it: raise, raise-once, die or empty."""

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

    def open(self, device: str) -> EggSource:
        return EggSource(dict(self.faults), self.slow)


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


def main(out: str, how: str) -> None:
    """Generate eggs slowly, `inline` or with a number of Ray workers, after saying "go"."""
    pool = PoolConfig(inline=True) if how == "inline" else PoolConfig(workers=int(how))
    print("go", flush=True)
    generate(egg_job(out, pool, slow=0.05))
