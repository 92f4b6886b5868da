"""A multiview model: its networks, its autoencoder, and the folder that they are saved to.

The folder holds `model.json`, one folder for each part of the network (such as `unet/`) and `vae/` as diffusers saves them, and
one for each text encoder as transformers does; everything is safetensors and JSON.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shutil import copyfile
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from geometry.cameras import Cameras
from manifests.errors import MissingFile, UserError
from train.batch import Batch
from train.diffusion.conditions import Conditions
from train.diffusion.process import NoiseProcess
from train.networks.config import CONFIG, UNET, VAE, WEIGHTS, About, ModelConfig, Stem, write_card
from train.networks.vae import Vae
from weights.tensors import save_tensors

TEXT_WEIGHTS = "model.safetensors"
"""File name of transformers' models."""


@dataclass(frozen=True, eq=False)
class Model(ABC):
    """Networks that turn pictures and an identity into views of a head; each family has a subclass.

    `network` is F(x, c_noise, conditions). Its children are the parts of the model, each with a folder of its own; those whose
    weights require gradients are trained.
    """

    config: ModelConfig
    network: nn.Module
    vae: Vae
    about: About = field(default_factory=About)

    @abstractmethod
    def conditions(
        self,
        cameras: Cameras,
        is_condition: Bool[Tensor, "b v"],
        clean: Float[Tensor, "b v c h w"],
        embedding: Float[Tensor, "b d"] | None,
    ) -> Conditions:
        """Conditions of scenes from their cameras (b v), which views are given, and an embedding of each person.

        Of `clean` only the latents of given views are used.
        """

    def conditions_of(self, batch: Batch, latents: Float[Tensor, "b v c h w"]) -> Conditions:
        """The conditions of training scenes, nothing dropped."""
        return self.conditions(Cameras(batch.c2w, batch.K), batch.is_condition, latents, batch.identity_embedding)

    @property
    def shared_noise(self) -> bool:
        """Whether all views of a scene are sampled from the same noise."""
        return False

    @property
    def encoders(self) -> dict[str, nn.Module]:
        """Frozen encoders of transformers that belong to the model, by the names of their folders."""
        return {}

    def adapt(self, part: str, weights: dict[str, Tensor], stem: Stem, generator: torch.Generator) -> dict[str, Tensor]:
        """Pretrained weights of a part, extended to the shape that this model has; raises ValueError if they do not fit."""
        return weights

    def begin(self, part: str) -> bool:
        """Give first weights to a part that the model to start from lacks; False if they can only come from there."""
        return False

    def to(self, device: torch.device | str) -> "Model":
        """The model itself, moved to a device in place."""
        for module in (self.network, *self.encoders.values()):
            module.to(device)
        return self

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The parts of the network by name."""
        return dict(self.network.named_children())

    @property
    def process(self) -> NoiseProcess:
        """The noise process that the model is sampled by."""
        return self.config.process()

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def latent_channels(self) -> int:
        """Channels of the latents of all members together."""
        return self.vae.channels * len(self.config.members)

    @torch.no_grad()
    def encode(
        self,
        *members: Float[Tensor, "b v 3 h w"],
        noise: Float[Tensor, "b v c i j"] | None = None,
    ) -> Float[Tensor, "b v c i j"]:
        """Scaled latents of views in [-1, 1], one tensor for each member; drawn with `noise`, or the means without it."""
        assert len(members) == len(self.config.members)
        posteriors = [self.vae.posterior(rearrange(one, "b v c h w -> (b v) c h w").float()) for one in members]
        mean, std = (torch.cat([p[:, i] for p in posteriors], 1) for i in (0, 1))
        mean, std = (rearrange(x, "(b v) c h w -> b v c h w", v=members[0].shape[1]) for x in (mean, std))
        return (mean if noise is None else mean + std * noise) * self.vae.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b v c i j"]) -> list[Float[Tensor, "b v 3 h w"]]:
        """Views in [-1, 1], one tensor for each member; view by view, to bound the memory."""
        flat = rearrange(latents / self.vae.scaling_factor, "b v (k c) h w -> k (b v) c h w", c=self.vae.channels)
        views = [torch.cat([self.vae.decode(one[None]) for one in part]).clamp(-1, 1) for part in flat]
        return [rearrange(part, "(b v) c h w -> b v c h w", v=latents.shape[1]) for part in views]


def save_model(model: Model, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write a model; `weights` are used instead of those of its network, such as an average."""
    tensors = {**model.network.state_dict(), **(weights or {})}
    for name, part in model.parts.items():
        config: Any = part
        config.save_config(folder / name)
        own = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
        save_tensors(own, folder / name / WEIGHTS)
    # The original files are copied, because their hash identifies the autoencoder of cached latents.
    (folder / VAE).mkdir(parents=True, exist_ok=True)
    for name in (CONFIG, WEIGHTS):
        if (source := Path(model.vae.folder) / name).resolve() != (folder / VAE / name).resolve():
            copyfile(source, folder / VAE / name)
    for name, encoder in model.encoders.items():
        config = encoder
        config.config.architectures = [type(encoder).__name__]
        config.config.save_pretrained(folder / name)
        save_tensors(encoder.state_dict(), folder / name / TEXT_WEIGHTS)
    write_card(model.config, model.about, folder)


def load_weights(model: Model, folder: Path) -> None:
    """Fill the parts and encoders of a model from its folder.

    Raises:
        MissingFile: a part is not there.
        UserError: a part is damaged, or its weights do not fit.
    """
    for name, part in model.parts.items():
        fill(part, folder / name / WEIGHTS)
    for name, encoder in model.encoders.items():
        fill(encoder, folder / name / TEXT_WEIGHTS)


def meta_network(model: Model) -> nn.Module:
    """The network of a model on the meta device, to count operations without computing them."""
    with torch.device("meta"):
        return model.config.build(model.vae).network


def full_name(weight: str, parts: Mapping[str, object]) -> str:
    """The full name of a weight of the network; names without a part are those of the UNet, as older snapshots have them."""
    return weight if weight.split(".")[0] in parts else f"{UNET}.{weight}"


def fill(module: nn.Module, file: Path) -> None:
    """Load safetensors into a module, all of them and nothing else.

    Raises:
        MissingFile: the file is not there.
        UserError: it is no safetensors file, or its weights are others.
    """
    weights = read_weights(module, file)
    if wrong := misfits(module, weights):
        raise UserError(f"{file} does not fit {type(module).__name__}: {wrong}")
    module.load_state_dict(weights)


def read_weights(module: nn.Module, file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file that belongs to a module; raises MissingFile or UserError."""
    if not file.is_file():
        raise MissingFile(f"{file} is not there; the weights of {type(module).__name__} belong there")
    try:
        return load_file(file)
    except SafetensorError as error:
        raise UserError(f"{file} is no safetensors file, or is cut short ({error})") from error


def misfits(module: nn.Module, weights: Mapping[str, Tensor]) -> str:
    """The number of weights that differ from a module's in name or shape, and the first; empty if none does."""
    expected = {name: tuple(weight.shape) for name, weight in module.state_dict().items()}
    given = {name: tuple(weight.shape) for name, weight in weights.items()}
    wrong = [name for name in sorted(expected | given) if expected.get(name) != given.get(name)]
    if not wrong:
        return ""
    there, here = (shapes.get(wrong[0], "not there") for shapes in (given, expected))
    return f"{len(wrong)} weights differ (first: {wrong[0]} is {there} in the file, {here} in the model)"
