"""Heads from PanoHead and SphereHead; everything that does not depend on the view is computed once per identity."""

import hashlib
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from datagen.config import PanoHeadConfig, SourceConfig
from datagen.heads import RenderedViews
from datagen.sources.panohead.checkpoint import LICENCE, Person, load
from datagen.sources.panohead.config import CROP, Family
from datagen.sources.panohead.generator import Generator
from datagen.sources.panohead.identity import Synthesis
from datagen.sources.panohead.official import ISO_LEVEL, MAX_SEED, frontal_label, latent
from datagen.sources.panohead.renderer import EVEN, Jitter
from datagen.sources.panohead.superresolution import resize
from geometry.cameras import Cameras
from geometry.rays import rays
from manifests.errors import UserError

VERSION = 1
"""Raised whenever the same seed would give another head."""

# How fast the density falls beyond the renderer's crop, per world unit: fast enough to cut at the plane itself.
CROP_SLOPE = 1000.0


class PanoHead:
    """One identity of a checkpoint: that of a seed, or the person that the checkpoint holds."""

    iso_level = ISO_LEVEL

    def __init__(self, generator: Generator, seed: int, config: PanoHeadConfig, person: Person | None = None):
        self.config, self.seed, self.person = config, seed, person
        self.device = generator.decoder.last.weight.device
        if person is None:
            z, label = latent(seed, generator.config.z_dim), frontal_label()
            self.latent_sha256 = hashlib.sha256(z.numpy().tobytes()).hexdigest()
            ws = generator.mapping(z.to(self.device), label.to(self.device), config.psi, config.cutoff)
            planes = None
        else:
            self.latent_sha256 = person.sha256
            ws, planes = person.ws.to(self.device), None if person.planes is None else person.planes.to(self.device)
        with self._convolutions():
            self.identity = generator.identity(ws, planes=planes)
        self.neural_resolution = config.neural_resolution or generator.config.neural_resolution
        if config.precision == "fast":
            self.identity.upscaler.to(torch.float16 if self.device.type == "cuda" else torch.bfloat16)

    @torch.no_grad()
    def density(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        """Raw density at world points, below the level wherever the renderer's crop hides it.

        So the surface is that of the pictures: the official field cut at |x| = 0.4 and |z| = 0.4, which is where the
        official renderer stops seeing it. The field alone is `Generator.density`.
        """
        points = points.to(self.device)
        return self.cropped(points, self.identity.renderer.sigma(points))

    def cropped(self, points: Float[Tensor, "n 3"], sigma: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Raw densities at points, lowered towards and beyond the crop so that the level is passed at its planes."""
        inside = self.identity.config.box_warp / 2 - CROP - points[:, ::2].abs().amax(dim=1)
        return torch.minimum(sigma, self.iso_level + CROP_SLOPE * inside)

    @torch.no_grad()
    def render(self, cameras: Cameras, resolution: int) -> RenderedViews:
        """Render square pictures, resized from the resolution of the network where it differs."""
        # A CPU gains nothing from more than one view of 512 px at once; a GPU is faster with many.
        pixels = 1 << (22 if self.device.type == "cuda" else 18)
        step = max(1, pixels // self.identity.config.resolution**2)
        with self._convolutions():
            parts = [
                self._views(cameras[i : i + step].to(self.device), resolution) for i in range(0, len(cameras), step)
            ]
        return RenderedViews(
            *(torch.cat([getattr(part, name) for part in parts]) for name in ("rgb", "alpha", "depth"))
        )

    def _convolutions(self) -> AbstractContextManager[None]:
        """The precision of convolutions: `exact` is single precision on a GPU too, where PyTorch uses TensorFloat-32."""
        return torch.backends.cudnn.flags(enabled=True, allow_tf32=self.config.precision == "fast")

    def _views(self, cameras: Cameras, resolution: int) -> RenderedViews:
        seen = self.identity.views(cameras, self.neural_resolution, self._jitter(cameras))
        alpha = resize(seen.image_mask.clamp(0, 1), resolution)
        rgb = resize((seen.image + 1) / 2, resolution).clamp(0, 1)
        if self.config.colour is not None:
            colour = torch.tensor(self.config.colour, device=self.device)[:, None, None]
            rgb = alpha * rgb + (1 - alpha) * colour
        depth = torch.where(alpha > 0, self._axial_depth(cameras, seen, resolution), 0)
        return RenderedViews(rgb.permute(0, 2, 3, 1).contiguous(), alpha[:, 0], depth[:, 0])

    def _axial_depth(self, cameras: Cameras, seen: Synthesis, resolution: int) -> Float[Tensor, "v 1 h w"]:
        """Depth along the optical axis from distance along the ray, averaged over the hit part only."""
        weight = seen.weights.view_as(seen.image_depth)
        towards = rays(cameras, self.neural_resolution)[1] @ cameras.c2w[:, None, :3, 2, None]
        met = torch.where(weight > 0, weight * seen.image_depth * towards.permute(0, 3, 1, 2), 0)
        return resize(met, resolution) / resize(weight, resolution)

    def _jitter(self, cameras: Cameras) -> Jitter:
        """The positions of samples: even, or drawn for each view from its camera, so that batch and order do not matter."""
        if self.config.jitter_seed is None:
            return EVEN
        rows, config = self.neural_resolution**2, self.identity.config
        coarse, fine = [], []
        for pose in cameras.c2w.cpu():
            key = f"{self.config.jitter_seed} {self.seed} ".encode() + pose.numpy().tobytes()
            generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(key).digest()[:7]))
            coarse.append(torch.rand(rows, config.depth_resolution, generator=generator))
            fine.append(torch.rand(rows, config.depth_resolution_importance, generator=generator))
        return Jitter(torch.cat(coarse).to(self.device), torch.cat(fine).to(self.device))

    def facts(self) -> dict[str, Any]:
        """The facts that, with the weights, determine this head."""
        if self.person is not None:
            return {"seed": self.seed, "latent_sha256": self.latent_sha256, "inverted": True}
        return {
            "seed": self.seed,
            "latent_sha256": self.latent_sha256,
            "psi": self.config.psi,
            "cutoff": self.config.cutoff,
        }


class PanoHeadSource:
    """Heads of a PanoHead checkpoint; the same seed gives the official scripts' person.

    A folder of `spinset invert` has one head, the person of the pictures, whose seed is 0.
    """

    name = "panohead"
    max_seed = MAX_SEED
    family: Family = "panohead"

    def __init__(self, config: PanoHeadConfig, device: str = "cpu"):
        if not config.weights:
            raise UserError(f"{self.name} needs --weights: the path of an official .pkl or of a converted folder")
        self.config = config
        self.checkpoint = load(config.weights)
        found = self.checkpoint.generator.config.family
        if found != self.family:
            raise UserError(f"{config.weights} is a checkpoint of {found}, not of {self.family}; use --source {found}")
        self.generator = self.checkpoint.generator.to(device)
        if self.checkpoint.person is not None:
            self.max_seed = 0

    def head(self, seed: int) -> PanoHead:
        """The head of a seed. Raises ValueError if there is none of it."""
        if not 0 <= seed <= self.max_seed:
            raise UserError(f"seed is {seed}; the seeds of this source are 0 to {self.max_seed}")
        return PanoHead(self.generator, seed, self.config, self.checkpoint.person)

    def lineage(self) -> dict[str, Any]:
        """The record in dataset.json: hash of the weights, name of the network, settings and licence."""
        settings = {name: value for name, value in asdict(self.config).items() if name != "weights"}
        return {
            "name": self.name,
            "version": VERSION,
            "weights_sha256": self.checkpoint.sha256,
            "architecture": self.checkpoint.official,
            "settings": settings,
            "licence": LICENCE,
            **({} if self.checkpoint.person is None else {"person_sha256": self.checkpoint.person.sha256}),
        }


class SphereHeadSource(PanoHeadSource):
    """Heads of a SphereHead checkpoint."""

    name = "spherehead"
    family: Family = "spherehead"


def open_source(config: SourceConfig, device: str) -> PanoHeadSource:
    """The source that the settings name, PanoHead or SphereHead."""
    source = SphereHeadSource if config.source == SphereHeadSource.name else PanoHeadSource
    return source(config.panohead, device)


def recorded_config(recorded: dict[str, Any], weights: str) -> SourceConfig:
    """The settings of a source from what a plan records of it, and the checkpoint to use.

    Raises:
        UserError: there is no checkpoint.
    """
    name = recorded["name"]
    if not weights:
        raise UserError(f"--weights is needed: the {name} checkpoint that the heads of this dataset came from")
    return SourceConfig(name, panohead=PanoHeadConfig(weights=weights, **recorded["settings"]))
