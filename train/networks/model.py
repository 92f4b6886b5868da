"""A multiview model as a whole, and as a folder: the UNet, who encodes pictures, who encodes identities, and what it knows.

The folder holds `model.json`, `unet/` and `vae/` as diffusers saves them, and `text_encoder/` as transformers does if
there is one; everything is safetensors and JSON.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
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
from geometry.raymaps import ray_maps, relative_rotations
from manifests.errors import MissingFile, UserError
from train.diffusion.scene import Nothing, Scene
from train.networks.config import CONFIG, FILE, WEIGHTS, IdentityShape, ModelShape, RayMaps, UNetShape, model_file
from train.networks.identity import Arc2FaceTokens, IdentityToken, new_tokens
from train.networks.unet import MultiviewUNet, new_network
from train.networks.vae import Vae, load_vae
from weights.tensors import save_tensors

UNET, VAE, TEXT = "unet", "vae", "text_encoder"
FORMAT = 1


@dataclass(frozen=True)
class About:
    """What a model was made from, for whoever meets its folder."""

    knows: str = ""
    """What heads it has seen; pictures of others mean nothing to it."""
    resolution: int = 512
    """Pixels of a side of its views."""
    conditions: tuple[int, ...] = (0, 1, 3)
    """How many given views it was trained on."""
    identity: bool = True
    """Whether it was trained with identities."""
    samples_seen: int = 0
    scale: float = 3.0
    """Of the guidance that suits it; the paper's."""
    history: tuple[str, ...] = ()
    """What a plain run of its settings does not tell: the checkpoint it was branched from, changes of its length."""
    validation_loss: float | None = None
    """The validation loss of these weights, where the run kept them for being its lowest."""
    recogniser: str = ""
    """SHA-256 of the ArcFace weights whose embeddings it was trained with; empty if that is not known."""


@dataclass(frozen=True, eq=False)
class Model:
    """Everything that turns pictures and an identity into views of a head."""

    shape: ModelShape
    network: MultiviewUNet
    tokens: Arc2FaceTokens | IdentityToken
    vae: Vae
    about: About = field(default_factory=About)

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @torch.no_grad()
    def encode(
        self,
        rgb: Float[Tensor, "b v 3 h w"],
        normal: Float[Tensor, "b v 3 h w"] | None,
        noise: Float[Tensor, "b v c i j"] | None = None,
    ) -> Float[Tensor, "b v c i j"]:
        """Scaled latents of views in [-1, 1]: image, then normals; drawn with `noise`, or the means without it."""
        parts = [rgb, normal] if self.shape.normals and normal is not None else [rgb]
        assert len(parts) == 1 + self.shape.normals
        posteriors = [self.vae.posterior(rearrange(part, "b v c h w -> (b v) c h w").float()) for part in parts]
        mean, std = (torch.cat([p[:, i] for p in posteriors], 1) for i in (0, 1))
        mean, std = (rearrange(x, "(b v) c h w -> b v c h w", v=rgb.shape[1]) for x in (mean, std))
        return (mean if noise is None else mean + std * noise) * self.vae.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b v c i j"]) -> list[Float[Tensor, "b v 3 h w"]]:
        """Views in [-1, 1]: pictures, and normals if the model makes them; view by view, to bound the memory."""
        flat = rearrange(latents / self.vae.scaling_factor, "b v (k c) h w -> k (b v) c h w", c=self.vae.channels)
        views = [torch.cat([self.vae.decode(one[None]) for one in part]).clamp(-1, 1) for part in flat]
        return [rearrange(part, "(b v) c h w -> b v c h w", v=latents.shape[1]) for part in views]

    def nothing(self, resolution: int) -> Nothing:
        """What stands for a picture and an identity that are not there."""
        grey = torch.zeros(1, 1, 3, resolution, resolution, device=self.device)
        return Nothing(self.encode(grey, grey)[0, 0], self.tokens.nobody().to(self.device))

    def scene(
        self,
        cameras: Cameras,
        is_condition: Bool[Tensor, "b v"],
        clean: Float[Tensor, "b v c h w"],
        embedding: Float[Tensor, "b d"] | None,
        nothing: Nothing,
    ) -> Scene:
        """Scenes as the network meets them; `cameras` are those of all views, scene after scene."""
        context = nothing.context.expand(len(clean), -1, -1) if embedding is None else self.tokens(embedding)
        if self.shape.rays is None:
            nowhere = clean.new_zeros(*clean.shape[:2], 0, *clean.shape[3:])
            return Scene(clean, is_condition, nowhere, context, self.shape.scale_given)
        # In single precision whatever the network runs in: octaves make much of a rounded rotation.
        with torch.autocast(clean.device.type, enabled=False):
            rotation = rearrange(cameras.view_rotation, "(b v) i j -> b v i j", v=is_condition.shape[1])
            rotation = relative_rotations(rotation, is_condition)
            rays = ray_maps(rearrange(rotation, "b v i j -> (b v) i j"), clean.shape[-1], **asdict(self.shape.rays))
        rays = rearrange(rays, "(b v) c h w -> b v c h w", b=len(clean))
        return Scene(clean, is_condition, rays, context, self.shape.scale_given)


def save_model(model: Model, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
    """Write a model; `weights` are those of its UNet if they are others than the network holds, such as an average."""
    unet: Any = model.network.unet
    unet.save_config(folder / UNET)
    own: dict[str, Tensor] = unet.state_dict()
    save_tensors(weights or own, folder / UNET / WEIGHTS)
    # Its very files: saved anew they would be another autoencoder to whoever cached its latents.
    (folder / VAE).mkdir(parents=True, exist_ok=True)
    for name in (CONFIG, WEIGHTS):
        if (source := Path(model.vae.folder) / name).resolve() != (folder / VAE / name).resolve():
            copyfile(source, folder / VAE / name)
    if isinstance(model.tokens, Arc2FaceTokens):
        text = model.tokens.text
        text.config.architectures = [type(text).__name__]
        text.config.save_pretrained(folder / TEXT)
        save_tensors(text.state_dict(), folder / TEXT / "model.safetensors")
    write_about(model.shape, model.about, folder)


def write_about(shape: ModelShape, about: About, folder: Path) -> None:
    """Write what a model is; its weights lie beside it."""
    text = json.dumps({"format": FORMAT, "shape": asdict(shape), "about": asdict(about)}, indent=1)
    (folder / FILE).write_text(text + "\n")


def load_model(folder: str | Path, device: str = "cpu") -> Model:
    """Read a model from its folder, every weight in its place; nothing is downloaded.

    Raises:
        FileNotFoundError: the folder or a part of it is not there.
        ValueError: a part is damaged, or weights do not fit the shape.
    """
    folder = Path(folder)
    shape, about = read_about(folder)
    vae = load_vae(str(folder / VAE), device)
    network, tokens = new_network(shape, vae.channels), new_tokens(shape.identity)
    fill(network.unet, folder / UNET / WEIGHTS)
    if isinstance(tokens, Arc2FaceTokens):
        fill(tokens.text, folder / TEXT / "model.safetensors")
    return Model(shape, network.to(device).eval(), tokens.to(device), vae, about)


def read_about(folder: Path) -> tuple[ModelShape, About]:
    """Read a model's shape and description from its model.json.

    Raises:
        MissingFile: the folder has none.
        UserError: it is damaged, or of another format.
    """
    file = model_file(folder)
    try:
        found = json.loads(file.read_text())
        if found["format"] != FORMAT:
            raise UserError(f"its format is {found['format']}, this spinset reads {FORMAT}")
        shape, about = found["shape"], found["about"]
        unet: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in shape.pop("unet").items()}
        parts: dict[str, Any] = {
            "unet": UNetShape(**unet),
            "rays": RayMaps(**rays) if (rays := shape.pop("rays")) else None,
        }
        parts["identity"] = IdentityShape(**shape.pop("identity"))
        about["conditions"] = tuple(about["conditions"])
        about["history"] = tuple(about.get("history", ()))
        return ModelShape(**parts, **shape), About(**about)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / FILE} is damaged ({type(error).__name__}: {error})") from error


def fill(module: nn.Module, file: Path) -> None:
    """Load safetensors into a module, all of them and nothing else.

    Raises:
        FileNotFoundError, ValueError: the file is not there, is none, or its weights are others.
    """
    if not file.is_file():
        raise MissingFile(f"{file} is not there; the weights of {type(module).__name__} belong there")
    try:
        weights = load_file(file)
    except SafetensorError as error:
        raise UserError(f"{file} is no safetensors file, or is cut short ({error})") from error
    if wrong := misfits(module, weights):
        raise UserError(f"{file} does not fit {type(module).__name__}: {wrong}")
    module.load_state_dict(weights)


def misfits(module: nn.Module, weights: Mapping[str, Tensor]) -> str:
    """Which weights are not those of a module: how many, and the first; empty if all are."""
    own = {name: tuple(weight.shape) for name, weight in module.state_dict().items()}
    given = {name: tuple(weight.shape) for name, weight in weights.items()}
    wrong = [name for name in sorted(own | given) if own.get(name) != given.get(name)]
    if not wrong:
        return ""
    there, here = (shapes.get(wrong[0], "not there") for shapes in (given, own))
    return f"{len(wrong)} weights differ (first: {wrong[0]} is {there} in the file, {here} in the model)"
