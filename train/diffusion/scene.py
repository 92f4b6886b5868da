"""A scene as the network meets it: views of one head, some given clean, from known directions, of a known identity.

Training and sampling build their inputs here, so what is dropped in training is exactly what guidance leaves out.
Source: SpinMeRound, section 3.2 and its released sampling function.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from train.diffusion.edm import Denoiser, like, scalings

Network = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""F(scaled latents, condition channels, c_noise, context), such as a MultiviewUNet."""


@dataclass(frozen=True, eq=False)
class Scene:
    """b scenes of v views."""

    clean: Float[Tensor, "b v c h w"]
    """Latents of the given views; those of views to be made are not looked at."""
    is_condition: Bool[Tensor, "b v"]
    rays: Float[Tensor, "b v r h w"]
    context: Float[Tensor, "b n d"]
    """Tokens of the identity."""
    scale_given: bool = True
    """Whether given views are scaled by c_in like noisy ones (as released: at high noise little of them is left) or enter as
    they are."""

    @property
    def given(self) -> Bool[Tensor, "b v 1 1 1"]:
        return self.is_condition[..., None, None, None]

    @property
    def channels(self) -> Float[Tensor, "b v k h w"]:
        """Ray map and mask: 1 where a view is to be made, 0 where it is given."""
        mask = (~self.given).to(self.rays).expand_as(self.rays[:, :, :1])
        return torch.cat([self.rays, mask], 2)


@dataclass(frozen=True, eq=False)
class Nothing:
    """What stands for a picture and an identity that are not there."""

    latents: Float[Tensor, "c h w"]
    """The autoencoder's code of mid-grey, as image and as normals; not zeros."""
    context: Float[Tensor, "n d"]
    """Tokens of the empty prompt."""

    def to(self, device: torch.device | str) -> "Nothing":
        return Nothing(self.latents.to(device), self.context.to(device))


def without(scene: Scene, images: Bool[Tensor, " b"], identity: Bool[Tensor, " b"], nothing: Nothing) -> Scene:
    """Scenes without their given pictures and without their identities, where told.

    A given view becomes mid-grey from nowhere: its rays are zeroed (its mask is 0 already), those of the targets stay.
    """
    gone = scene.given & images[:, None, None, None, None]
    return replace(
        scene,
        clean=torch.where(gone, nothing.latents.to(scene.clean), scene.clean),
        rays=scene.rays.masked_fill(gone, 0),
        context=torch.where(identity[:, None, None], nothing.context.to(scene.context), scene.context),
    )


def given_in(scene: Scene, x: Float[Tensor, "b v c h w"]) -> Float[Tensor, "b v c h w"]:
    """The latents, with those of the given views clean."""
    return torch.where(scene.given, scene.clean, x)


def predict(
    network: Network, scene: Scene, x: Float[Tensor, "b v c h w"], sigma: Float[Tensor, " b"]
) -> Float[Tensor, "b v c h w"]:
    """The network's raw output F for noisy targets; given views are clean."""
    c_in, c_noise = scalings(sigma)[2:]
    scaled = given_in(scene, x) * like(c_in, x)
    return network(scaled if scene.scale_given else given_in(scene, scaled), scene.channels, c_noise, scene.context)


def denoise(
    network: Network, scene: Scene, x: Float[Tensor, "b v c h w"], sigma: Float[Tensor, " b"]
) -> Float[Tensor, "b v c h w"]:
    """D(x; sigma) of scenes; what it says of given views is not to be used."""
    c_skip, c_out = scalings(sigma)[:2]
    return like(c_skip, x) * given_in(scene, x) + like(c_out, x) * predict(network, scene, x, sigma)


def guided(network: Network, scene: Scene, scale: float, nothing: Nothing) -> Denoiser:
    """Classifier-free guidance D_u + scale (D_c - D_u), both branches in one batch; 1 asks for the second alone."""
    if scale == 1:
        return lambda x, sigma: denoise(network, scene, x, sigma)
    everywhere = torch.ones(len(scene.clean), dtype=torch.bool, device=scene.clean.device)
    bare = without(scene, everywhere, everywhere, nothing)
    names = ("clean", "is_condition", "rays", "context")
    both = replace(scene, **{name: torch.cat([getattr(s, name) for s in (bare, scene)]) for name in names})

    def branches(x: Tensor, sigma: Tensor) -> Tensor:
        without_it, with_it = denoise(network, both, x.repeat(2, 1, 1, 1, 1), sigma.repeat(2)).chunk(2)
        return without_it + scale * (with_it - without_it)

    return branches


def start(noise: Float[Tensor, "b v c h w"], most: float, shared: bool) -> Float[Tensor, "b v c h w"]:
    """Where sampling starts: at the level `most` over unit data, all views of a scene from the first one's noise if shared."""
    return (noise[:, :1].expand_as(noise) if shared else noise) * (1 + most**2) ** 0.5
