"""A multiview model: its networks, its autoencoder, the precision they compute in, and the folder that they are saved to.

The folder holds `model.json`, one folder for each part of the network (such as `unet/`) and `vae/` as diffusers saves them, and
one for each text encoder as transformers does; everything is safetensors and JSON. An autoencoder is a diffusers AutoencoderKL
folder that the user brings.
"""

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shutil import copyfile
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Float32
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from geometry.cameras import Cameras
from manifests.errors import MissingFile, UserError
from train.batch import Batch
from train.diffusion.conditions import Conditions
from train.diffusion.config import Precision
from train.diffusion.process import NoiseProcess, gaussian
from train.networks.config import CONFIG, VAE, WEIGHTS, About, ModelConfig, Stem, require_vae, write_card
from weights.files import save_tensors, sha256

TEXT_WEIGHTS = "model.safetensors"
"""File name of transformers' models."""


SHIFTS = ("shift_factor", "latents_mean", "latents_std")
"""Settings that normalise latents other than by a factor; no model family here supports them."""


@dataclass(frozen=True, eq=False)
class Vae:
    """A loaded autoencoder."""

    model: torch.nn.Module
    folder: str
    """Where it was loaded from."""
    sha256: str
    scaling_factor: float
    """Latents times this have about unit variance."""
    factor: int
    """Pixels of a side per latent cell."""
    channels: int
    patch: int = 1
    """Pixels of a side that the network reads and writes as channels of one place: an autoencoder of 3 p^2 channels in and out
    works on patches, which costs little and keeps every pixel in reach."""

    @torch.inference_mode()
    def posterior(self, images: Float32[Tensor, "n 3 h w"]) -> Float32[Tensor, "n 2 c _ _"]:
        """Mean and standard deviation of the latents of images in [-1, 1], not scaled."""
        images = images.to(next(self.model.parameters()).device)
        # Plain float32, the same at every run: these numbers are kept for years.
        exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
        with exact, torch.autocast(images.device.type, enabled=False):
            latents: Any = self.model.encode(pixel_unshuffle(images, self.patch)).latent_dist  # pyright: ignore[reportCallIssue]
        return torch.stack([latents.mean, latents.std], 1)

    def decode(self, latents: Float[Tensor, "n c i j"]) -> Float[Tensor, "n 3 h w"]:
        """Images of latents that are not scaled, about in [-1, 1]."""
        return pixel_shuffle(self.model.decode(latents).sample, self.patch)  # pyright: ignore[reportCallIssue]


def load_vae(folder: str, device: str = "cpu") -> Vae:
    """Load an autoencoder; nothing is downloaded and no pickle is opened.

    Raises:
        FileNotFoundError: the folder lacks its config or its safetensors.
        ValueError: the config is damaged.
        ValueError: the weights are not all there, or not this model's; its latents are shifted, not only scaled; or its
            channels are neither colours nor patches of them.
    """
    sha256 = vae_sha256(folder)
    # Importing diffusers takes seconds, which only encoding and decoding need.
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    try:
        loaded: Any = AutoencoderKL.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True, low_cpu_mem_usage=False
        )
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise UserError(f"{folder} does not load as an AutoencoderKL ({str(error).splitlines()[0]})") from error
    model, info = loaded
    if wrong := [*info["missing_keys"], *info["unexpected_keys"]]:
        raise UserError(f"{folder} is not whole: {len(wrong)} weights are missing or unknown (first: {wrong[0]})")
    if shifted := [name for name in SHIFTS if model.config.get(name) is not None]:
        raise UserError(f"{folder} has a {shifted[0]}; only autoencoders with a scaling_factor alone are supported")
    read, written = model.config.in_channels, model.config.out_channels
    patch = math.isqrt(read // 3)
    if not read == written == 3 * patch**2:
        raise UserError(
            f"{folder} has {read} channels in and {written} out; 3 are colours, 3 p^2 patches of p x p pixels"
        )
    factor = patch * 2 ** (len(model.config.block_out_channels) - 1)
    scaling = float(model.config.scaling_factor)
    return Vae(model.to(device).eval(), folder, sha256, scaling, factor, model.config.latent_channels, patch)


def vae_sha256(folder: str) -> str:
    """Hash of an autoencoder's weights and settings, without the version of the library that saved it.

    Raises:
        FileNotFoundError: the folder lacks its config or its safetensors.
    """
    require_vae(folder)
    try:
        config = json.loads((Path(folder) / CONFIG).read_bytes())
        settings = {name: value for name, value in config.items() if not name.startswith("_")}
    except (ValueError, AttributeError) as error:
        raise UserError(f"{folder}/{CONFIG} is not the config of an autoencoder ({error})") from error
    weights = sha256(Path(folder) / WEIGHTS)
    return hashlib.sha256(json.dumps([weights, settings], sort_keys=True).encode()).hexdigest()


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
        control: Float[Tensor, "b v 3 x y"] | None = None,
    ) -> Conditions:
        """Conditions of scenes from their cameras (b v), which views are given, and an embedding of each person.

        Of `clean` only the latents of given views are used. `control` are the pictures of a model with the input "control".
        """

    def conditions_of(self, batch: Batch, latents: Float[Tensor, "b v c h w"]) -> Conditions:
        """The conditions of training scenes, nothing dropped."""
        cameras, control = Cameras(batch.c2w, batch.K), batch.control
        assert control is None or control.is_floating_point()
        return self.conditions(cameras, batch.is_condition, latents, batch.identity_embedding, control)

    def latents_of(
        self, batch: Batch, cached: bool, seed: int, places: Sequence[int], check: bool = False
    ) -> Float[Tensor, "b v c i j"]:
        """The latents of a batch: cached ones as they come, or of its pictures, drawn from the posterior.

        Raises:
            UserError: `check` is set and latents are not finite; it waits for the device.
        """
        assert isinstance(batch.rgb, Tensor)
        members = [getattr(batch, name) for name in self.config.members]
        if cached:
            latents = torch.cat(members, 2).float()
        else:
            b, v, _, height, width = batch.rgb.shape
            size = height // self.vae.factor, width // self.vae.factor
            like = batch.rgb.new_empty(b, v, self.latent_channels, *size)
            latents = self.encode(*members, noise=gaussian(seed, "posterior", places, like))
        if check and (bad := ~torch.isfinite(latents).flatten(2).all(2)).any():
            scene, view = (int(i) for i in bad.nonzero()[0])
            raise UserError(
                f"identity {int(batch.identity[scene])}, view {int(batch.view[scene, view])} holds numbers that are not "
                "finite; check the data with spinset verify --deep, and make its latents again with spinset latents"
            )
        return latents

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
        """The device that computes; that of the autoencoder, because parts of the network may wait elsewhere."""
        return next(self.vae.model.parameters()).device

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
        views = [torch.stack([self.vae.decode(one[None])[0] for one in part]).clamp(-1, 1) for part in flat]
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


def fill(module: nn.Module, file: Path) -> None:
    """Load safetensors into a module, all of them and nothing else.

    Raises:
        MissingFile: the file is not there.
        UserError: it is no safetensors file, or its weights are others.
    """
    weights = read_weights(module, file)
    if wrong := mismatch(module, weights):
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


def mismatch(module: nn.Module, weights: Mapping[str, Tensor]) -> str:
    """The number of weights that differ from a module's in name or shape, and the first; empty if none does."""
    expected = {name: tuple(weight.shape) for name, weight in module.state_dict().items()}
    given = {name: tuple(weight.shape) for name, weight in weights.items()}
    wrong = [name for name in sorted(expected | given) if expected.get(name) != given.get(name)]
    if not wrong:
        return ""
    there, here = (shapes.get(wrong[0], "not there") for shapes in (given, expected))
    return f"{len(wrong)} weights differ (first: {wrong[0]} is {there} in the file, {here} in the model)"


def native_bf16(device: torch.device | str) -> bool:
    """Whether the device computes in bf16 natively.

    A processor without these instructions emulates them: a convolution then takes 30 to 50 times as long as in fp32.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    has_instructions = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    # oneDNN, which computes convolutions and matrix products, also heeds ONEDNN_MAX_CPU_ISA.
    return has_instructions and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def resolve_precision(precision: Precision, device: torch.device | str) -> Literal["bf16", "fp32"]:
    """The precision itself, or for auto bf16 where the device computes in it natively and fp32 elsewhere."""
    if precision == "auto":
        return "bf16" if native_bf16(device) else "fp32"
    return precision


def precision_line(precision: Precision, device: torch.device | str) -> str:
    """One line that states the precision and why it was chosen."""
    kind = "GPU" if torch.device(device).type == "cuda" else "CPU"
    why = f"this {kind} {'has' if native_bf16(device) else 'has no'} bf16 instructions"
    if precision != "auto":
        why = f"set by --precision; {why}"
    return f"precision: {resolve_precision(precision, device)} ({why})"


def autocast(precision: Precision, device: torch.device | str) -> torch.autocast:
    """The context in which a network runs in this precision, over weights in fp32."""
    return torch.autocast(
        torch.device(device).type, torch.bfloat16, enabled=resolve_precision(precision, device) == "bf16"
    )


def load_pretrained(model: Model, folder: Path, stem: Stem, seed: int) -> None:
    """Fill the parts of a model from the folder of another, of which it may have wider convolutions.

    Raises:
        MissingFile: a part is not there.
        UserError: a part is damaged, or its weights do not fit.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, part in model.parts.items():
        file = folder / name / WEIGHTS
        if not file.is_file():
            if model.begin(name):
                continue
            raise MissingFile(
                f"--init is {folder}, which has no {name}/{WEIGHTS}; make it with spinset convert from the official file"
            )
        try:
            weights = model.adapt(name, read_weights(part, file), stem, generator)
        except ValueError as error:
            raise UserError(f"{file} does not fit: {error}") from error
        if wrong := mismatch(part, weights):
            raise UserError(f"{file} does not fit: {wrong}")
        part.load_state_dict(weights)
