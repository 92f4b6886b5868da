"""The network of SpinMeRound, its conditions, and how they are made.

Training and sampling make their conditions here, so that what is dropped in training is exactly what guidance leaves out.
Source: SpinMeRound, section 3.2 and its released sampling function.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from geometry.cameras import Cameras
from geometry.raymaps import ray_maps, relative_rotations
from train.diffusion.conditions import Conditions
from train.families.spinmeround.config import SpinMeRoundConfig
from train.networks.config import TEXT, RayMaps, Stem
from train.networks.identity import Arc2FaceTokens, IdentityToken
from train.networks.model import Model
from train.networks.unet import build_unet, expand_channels, run_unet

MASK = 1
"""Channels of the mask, which is 1 where a view is to be made and 0 where it is given."""


@dataclass(frozen=True, eq=False)
class NullCondition:
    """Replacements of a given view and an identity that are left out."""

    latents: Float[Tensor, "c h w"]
    """The autoencoder's latents of mid-grey for every member, which are not zeros."""
    context: Float[Tensor, "n d"]
    """Tokens of the empty prompt."""


@dataclass(frozen=True, eq=False)
class SpinMeRoundConditions(Conditions):
    """Conditions of b scenes of v views: some views given clean, the rays of all of them, and an identity."""

    droppable: ClassVar[tuple[str, ...]] = ("given views", "identity")

    clean: Float[Tensor, "b v c h w"]
    """Latents of the given views; those of the target views are not used."""
    is_condition: Bool[Tensor, "b v"]
    """Views that are given."""
    rays: Float[Tensor, "b v r h w"]
    """Ray maps."""
    context: Float[Tensor, "b n d"]
    """Tokens of the identity."""
    null_condition: NullCondition

    @property
    def is_target(self) -> Bool[Tensor, "b v"]:
        return ~self.is_condition

    @property
    def given(self) -> Bool[Tensor, "b v 1 1 1"]:
        """`is_condition`, ready to select latents."""
        return self.is_condition[..., None, None, None]

    @property
    def channels(self) -> Float[Tensor, "b v k h w"]:
        """Ray map and mask: 1 where a view is to be made, 0 where it is given."""
        mask = (~self.given).to(self.rays).expand_as(self.rays[:, :, :MASK])
        return torch.cat([self.rays, mask], 2)

    def dropped(self, drop: Bool[Tensor, "b k"]) -> "SpinMeRoundConditions":
        """Scenes without their given views or without their identity.

        A given view becomes mid-grey and its rays become zeros (its mask is 0 already); the rays of target views stay.
        """
        views, identity = drop.unbind(1)
        removed = self.given & views[:, None, None, None, None]
        null = self.null_condition
        return replace(
            self,
            clean=torch.where(removed, null.latents.to(self.clean), self.clean),
            rays=self.rays.masked_fill(removed, 0),
            context=torch.where(identity[:, None, None], null.context.to(self.context), self.context),
        )

    def with_given(self, x: Float[Tensor, "b v c h w"]) -> Float[Tensor, "b v c h w"]:
        """The latents, with those of given views replaced by the clean ones."""
        return torch.where(self.given, self.clean, x)


class SpinMeRoundNetwork(nn.Module):
    """A UNet over scaled latents, ray maps and mask, with the identity as its context; its only part is `unet`."""

    def __init__(self, config: SpinMeRoundConfig, latent_channels: int = 4):
        super().__init__()
        self.scale_given, self.latents = config.scale_given, latent_channels * len(config.members)
        self.condition = 0 if config.rays is None else config.rays.channels + MASK
        self.unet = build_unet(config.unet, self.latents + self.condition, self.latents)

    def forward(
        self, x: Float[Tensor, "b v c h w"], c_noise: Float[Tensor, " b"], conditions: SpinMeRoundConditions
    ) -> Float[Tensor, "b v c h w"]:
        """The raw output for scaled latents."""
        if not self.scale_given:
            x = conditions.with_given(x)
        channels = [x, conditions.channels] if self.condition else [x]
        return run_unet(self.unet, torch.cat(channels, dim=2), c_noise, conditions.context)


@dataclass(frozen=True, eq=False)
class SpinMeRound(Model):
    """A SpinMeRound model; its latents are the image's, then the normals'."""

    config: SpinMeRoundConfig
    tokens: Arc2FaceTokens | IdentityToken = field(kw_only=True)
    """Encoder of the identity."""
    _nulls: dict[int, NullCondition] = field(default_factory=dict, kw_only=True)

    @property
    def shared_noise(self) -> bool:
        """As the config states."""
        return self.config.shared_noise

    @property
    def encoders(self) -> dict[str, nn.Module]:
        """Arc2Face's text encoder, if the identity is encoded by it."""
        return {TEXT: self.tokens.text} if isinstance(self.tokens, Arc2FaceTokens) else {}

    def adapt(self, part: str, weights: dict[str, Tensor], stem: Stem, generator: torch.Generator) -> dict[str, Tensor]:
        """Weights of a UNet of 4 latent channels for the wider first and last convolution of this one."""
        return expand_channels(weights, self.parts[part], self.latent_channels, stem, generator)

    def null_condition(self, cells: int) -> NullCondition:
        """Replacements at a latent resolution of `cells`; computed once."""
        if cells not in self._nulls:
            size = cells * self.vae.factor
            # In single precision, whatever the precision of the first caller.
            with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                grey = torch.zeros(1, 1, 3, size, size, device=self.device)
                latents = self.encode(*[grey] * len(self.config.members))[0, 0]
                self._nulls[cells] = NullCondition(latents, self.tokens.null_tokens().to(self.device))
        return self._nulls[cells]

    def conditions(
        self,
        cameras: Cameras,
        is_condition: Bool[Tensor, "b v"],
        clean: Float[Tensor, "b v c h w"],
        embedding: Float[Tensor, "b d"] | None,
        control: Tensor | None = None,
    ) -> SpinMeRoundConditions:
        """Conditions of scenes; without embeddings they get the null identity."""
        null = self.null_condition(clean.shape[-1])
        context = null.context.expand(len(clean), -1, -1) if embedding is None else self.tokens(embedding)
        if self.config.rays is None:
            rays = clean.new_zeros(*clean.shape[:2], 0, *clean.shape[3:])
        else:
            rays = scene_rays(self.config.rays, cameras, is_condition, clean.shape[-1])
        return SpinMeRoundConditions(clean, is_condition, rays, context, null)


def scene_rays(
    shape: RayMaps, cameras: Cameras, is_condition: Bool[Tensor, "b v"], cells: int
) -> Float[Tensor, "b v r h w"]:
    """Ray maps of scenes, relative to the first given view of each (see geometry.raymaps.relative_rotations)."""
    # In single precision whatever the network runs in: high octaves amplify a rounded rotation.
    with torch.autocast(is_condition.device.type, enabled=False):
        rotation = relative_rotations(cameras.view_rotation, is_condition)
        return ray_maps(rotation, cells, shape.mode, shape.origin_octaves, shape.direction_octaves)
