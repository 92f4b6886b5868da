"""Validation during training: the loss at fixed noise levels, and views beside the truth, of heads that are not trained on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from manifests.dataset import Dataset
from manifests.errors import UserError
from train.batch import Batch, framed, to_bytes
from train.data.config import LoaderConfig
from train.data.loader import open_loader
from train.data.stream import DatasetFacts
from train.diffusion.process import Network, NoiseProcess, gaussian, guided, losses, sample
from train.networks.model import Model
from train.run.config import ValidationConfig

QUANTILES = (-1.5, -0.75, 0.0, 0.75, 1.5)
"""Noise levels at which the loss is evaluated, as standard normal draws of the noise process."""
SEED = 20_000
"""Seed of the noise, which is the same at every validation of every run."""


@dataclass(frozen=True, eq=False)
class Validation:
    """Scenes that stay the same: their cameras and identities, their latents, and the pictures of those that are drawn."""

    batch: Batch
    latents: Float[Tensor, "b v c h w"]
    pictures: Float[Tensor, "k v 3 x y"]

    @property
    def places(self) -> Sequence[int]:
        return range(len(self.latents))


def open_validation(
    look: ValidationConfig, own: LoaderConfig, model: Model, training: Sequence[DatasetFacts], resolution: int
) -> Validation:
    """Read the scenes of the validation set, before the first step, at the resolution of the training.

    Raises:
        UserError: its heads are among those of `training`, its pictures are too small, or `open_loader` refuses it.
    """
    if (stored := Dataset(look.data).plan.resolution) < resolution:
        raise UserError(
            f"--validation.data {look.data} has {stored} px, this run trains at {resolution} px; give one of at least that"
        )
    plain = {"selection": "", "latents": "", "random_background": 0.0, "workers": 0, "pin_memory": False}
    plain |= {"blend": (), "blend_weights": (), "sequential": False}
    loader = open_loader(replace(own, data=look.data, batch=look.scenes, seed=SEED, resolution=resolution, **plain))
    check_held_out(training, loader.parts[0].facts)
    # A set of fewer scenes begins to repeat them.
    batch = next(iter(loader))
    batch = batch.part(slice(0, len(batch.index.unique())))
    assert isinstance(batch.rgb, Tensor)
    # Scene by scene: the autoencoder takes gigabytes for the views of each.
    latents = []
    for scene in range(len(batch)):
        own_part = batch.part(slice(scene, scene + 1)).to(model.device)
        latents.append(model.encode(*(getattr(own_part, name) for name in model.config.members)))
    cameras = replace(batch, rgb=None, normal=None).to(model.device)
    return Validation(cameras, torch.cat(latents), batch.rgb[: look.pictures].float())


def check_held_out(training: Sequence[DatasetFacts], held_out: DatasetFacts) -> None:
    """Raise UserError if heads of the validation set are trained on; a head is known by its source and its seed."""
    plan, theirs = held_out.plan, held_out.plan.seed + held_out.identities
    for one in training:
        ours = one.plan.seed + one.identities
        shared = np.intersect1d(ours, theirs)
        same_source = all(one.plan.source.get(name) == plan.source.get(name) for name in ("name", "weights_sha256"))
        if same_source and len(shared):
            count = f"{len(shared)} of the {len(theirs)} heads of --validation.data {held_out.url}"
            raise UserError(
                f"{count} are trained on (first: seed {shared[0]}); give heads of other seeds, such as of spinset generate "
                f"--seed {int(ours.max()) + 1}"
            )


@torch.no_grad()
def level_losses(
    model: Model, network: Network, process: NoiseProcess, validation: Validation, micro: int
) -> dict[str, float]:
    """The mean loss at each level, and over all of them; nothing is dropped."""
    found: dict[str, float] = {}
    noise = gaussian(SEED, "validation noise", validation.places, validation.latents)
    for quantile in QUANTILES:
        parts = []
        for begin in range(0, len(validation.latents), micro):
            part = slice(begin, begin + micro)
            conditions = model.conditions_of(validation.batch.part(part), validation.latents[part])
            targets = conditions.is_target.sum(1).float()
            sigma = process.sample_sigma(torch.full_like(targets, quantile), targets)
            parts.append(losses(network, process, conditions, validation.latents[part], noise[part], sigma))
        found[f"loss/{quantile:+.2f}"] = float(torch.cat(parts).mean())
    return {"validation/loss": float(np.mean(list(found.values()))), **{f"validation/{k}": v for k, v in found.items()}}


@torch.no_grad()
def sample_scenes(
    model: Model,
    network: Network,
    batch: Batch,
    latents: Float[Tensor, "b v c h w"],
    seed: int,
    steps: int,
    scale: float,
) -> Float[Tensor, "b v c h w"]:
    """Latents of all views of some scenes; those of given views are returned as they are."""
    conditions, process = model.conditions_of(batch, latents), model.process
    noise = gaussian(seed, "sample", range(len(latents)), latents)
    denoiser = guided(network, process, conditions, scale)
    return sample(denoiser, conditions, noise, process.sigmas(steps), shared_noise=model.shared_noise)


@torch.no_grad()
def draw_grid(
    model: Model, network: Network, validation: Validation, settings: ValidationConfig
) -> UInt8[np.ndarray, "h w 3"]:
    """For each scene a row of the truth and one of each member that the model makes; given views are framed."""
    rows: list[Tensor] = []
    for place in range(len(validation.pictures)):
        part = slice(place, place + 1)
        batch, latents = validation.batch.part(part), validation.latents[part]
        sampled = sample_scenes(model, network, batch, latents, SEED + place, settings.steps, settings.scale)
        made = model.decode(sampled)
        given = batch.is_condition[0].cpu()
        rows += [validation.pictures[place], *(framed(part[0].cpu(), given) for part in made)]
    return to_bytes(rearrange(rows, "row v c h w -> c (row h) (v w)"))


def save_picture(pixels: UInt8[np.ndarray, "h w 3"], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)
