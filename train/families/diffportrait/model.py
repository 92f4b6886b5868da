"""The models DiffPortrait3D and DiffPortrait360: Stable Diffusion's UNet and the three parts that steer it.

`reference` reads portraits of the person, `control` a stranger's picture from the wanted camera (or its rays), and `temporal`
joins the views of a window. Sources: the supplement of DiffPortrait3D, DiffPortrait360, and their released code.
"""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn

from geometry.cameras import Cameras
from geometry.raymaps import ray_maps
from train.diffusion.conditions import Conditions
from train.families.diffportrait.config import DiffPortraitConfig
from train.networks.config import TEXT, UNET, About, IdentityShape, Stem
from train.networks.identity import Arc2FaceTokens
from train.networks.model import Model, Vae
from train.networks.temporal import ViewTemporal
from train.networks.unet import build_unet, narrow_channels, recorded_tokens, run_unet

HINT_CHANNELS = (16, 32, 96, 256)
"""Channels of the encoder of control pictures; each after the first halves the resolution. Source: ControlNet."""


@dataclass(frozen=True, eq=False)
class DiffPortraitConditions(Conditions):
    """Conditions of b scenes of v views, of which the first r are the references and the others are generated."""

    droppable: ClassVar[tuple[str, ...]] = ()
    batched_guidance: ClassVar[bool] = False

    references: Float[Tensor, "b r c h w"]
    """Clean latents of the references; r may be 0."""
    control: Float[Tensor, "b n p x y"] | None
    """Pictures of a stranger from the cameras of the n generated views, in [-1, 1], or the rays of their pixels."""
    context: Float[Tensor, "b k d"]
    """Tokens of the empty prompt."""
    targets: Bool[Tensor, "b v"]
    """Views that are generated."""
    is_null: bool = False
    """Whether references and control pictures are left out, of all scenes; the context stays, as in the released samplers."""

    @property
    def is_target(self) -> Bool[Tensor, "b v"]:
        return self.targets

    def dropped(self, drop: Bool[Tensor, "b 0"]) -> "DiffPortraitConditions":
        """The same: training drops nothing, because the frozen UNet is what guidance compares with."""
        return self

    def null(self) -> "DiffPortraitConditions":
        """The conditions without references and control pictures."""
        return replace(self, is_null=True)


class DiffPortraitNetwork(nn.Module):
    """The UNet over the generated views; the output for references is zero.

    Each reference passes through its network once per noise level, and the tokens that its self-attention layers read become
    further keys and values of the same layers of the UNet, after the UNet's own projections. Queries never contain a reference.
    """

    def __init__(self, config: DiffPortraitConfig, channels: int, factor: int):
        super().__init__()
        self.config = config
        self.unet: Any = build_unet(config.unet, channels, channels)
        if config.references:
            self.reference = build_unet(config.unet, channels, channels)
            freeze_unread(self.reference)
        if config.control:
            from diffusers.models.controlnets.controlnet import ControlNetModel

            hint = HINT_CHANNELS[: factor.bit_length()]
            self.control = ControlNetModel.from_unet(
                self.unet,
                conditioning_embedding_out_channels=hint,
                conditioning_channels=3 if config.control == "pictures" else 6,
            )
        if config.temporal is not None:
            self.temporal = ViewTemporal(
                config.unet.channels, config.unet.blocks, config.temporal, config.unet.heads, config.unet.groups
            )
            self.temporal.attach(self.unet)

    def forward(
        self, x: Float[Tensor, "b v c h w"], c_noise: Float[Tensor, " b"], conditions: DiffPortraitConditions
    ) -> Float[Tensor, "b v c h w"]:
        """The raw output for scaled latents."""
        given, null, context = conditions.references.shape[1], conditions.is_null, conditions.context
        views = x[:, given:]
        if self.config.temporal is not None:
            # The released sampler of DiffPortrait3D runs the middle layer without conditions only. Its training is not
            # published; here conditions are never dropped in training, so the layer must run with them to learn.
            self.temporal.views = views.shape[1]
            self.temporal.middle = null or self.config.symmetric or torch.is_grad_enabled()
        banks = None if null else self.reference_tokens(conditions.references, c_noise, context)
        residuals = None if null or conditions.control is None else self.residuals(views, c_noise, conditions)
        out = run_unet(self.unet, views, c_noise, context, banks, residuals)
        return torch.cat([torch.zeros_like(x[:, :given]), out.to(x)], 1)

    def reference_tokens(
        self, references: Float[Tensor, "b r c h w"], c_noise: Float[Tensor, " b"], context: Float[Tensor, "b k d"]
    ) -> dict[str, Float[Tensor, "b _ _"]] | None:
        """The tokens of all references of each scene, by attention layer; None without references."""
        count = references.shape[1]
        if count == 0 or not self.config.references:
            return None
        with recorded_tokens(self.reference) as tokens:
            run_unet(self.reference, references, c_noise, context)
        return {name: rearrange(bank, "(b r) n d -> b (r n) d", r=count) for name, bank in tokens.items()}

    def residuals(
        self, x: Float[Tensor, "b n c h w"], c_noise: Float[Tensor, " b"], conditions: DiffPortraitConditions
    ) -> dict[str, Any]:
        """The residuals that control pictures add to the skip connections and the middle block of the UNet."""
        assert conditions.control is not None
        views = x.shape[1]
        down, mid = self.control(
            rearrange(x, "b n c h w -> (b n) c h w"),
            repeat(c_noise, "b -> (b n)", n=views),
            repeat(conditions.context, "b k d -> (b n) k d", n=views),
            rearrange(conditions.control, "b n c x y -> (b n) c x y"),
            return_dict=False,
        )
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}


def freeze_unread(reference: Any) -> None:
    """Freeze the layers of a reference network behind its last self-attention, whose results nothing reads."""
    last = reference.up_blocks[-1].attentions[-1]
    block = last.transformer_blocks[-1]
    for layer in (block.attn1, block.attn2, block.norm2, block.norm3, block.ff, last.proj_out):
        layer.requires_grad_(False)
    for layer in (reference.conv_norm_out, reference.conv_out):
        layer.requires_grad_(False)


@dataclass(frozen=True, eq=False)
class DiffPortrait(Model):
    """A DiffPortrait model; the given views of a scene are its references."""

    config: DiffPortraitConfig
    text: Arc2FaceTokens | None = field(kw_only=True)
    """CLIP's text model, of which only the tokens of the empty prompt are used; None for a model without it."""
    _empty: list[Tensor] = field(default_factory=list, kw_only=True)

    @property
    def encoders(self) -> dict[str, nn.Module]:
        """The text model."""
        return {TEXT: self.text.text} if self.text is not None else {}

    def adapt(self, part: str, weights: dict[str, Tensor], stem: Stem, generator: torch.Generator) -> dict[str, Tensor]:
        """Weights of a UNet of another family, which has further channels, for this one."""
        return narrow_channels(weights, self.parts[part]) if part == UNET else weights

    def begin(self, part: str) -> bool:
        """The reference network and the encoder of the control part begin as copies of the UNet, `temporal` as it is built."""
        unet: Any = self.parts[UNET]
        if part == "control":
            for name in ("conv_in", "time_embedding", "down_blocks", "mid_block"):
                self.parts[part].get_submodule(name).load_state_dict(unet.get_submodule(name).state_dict())
        elif part == "reference":
            self.parts[part].load_state_dict(unet.state_dict())
        return part != UNET

    def empty_prompt(self) -> Float[Tensor, "k d"]:
        """The context of every scene; computed once."""
        if not self._empty:
            zeros = torch.zeros(1, self.config.unet.context)
            self._empty.append((self.text.null_tokens() if self.text is not None else zeros).to(self.device))
        return self._empty[0]

    def conditions(
        self,
        cameras: Cameras,
        is_condition: Bool[Tensor, "b v"],
        clean: Float[Tensor, "b v c h w"],
        embedding: Float[Tensor, "b d"] | None,
        control: Float[Tensor, "b v 3 x y"] | None = None,
    ) -> DiffPortraitConditions:
        """Conditions of scenes whose references come first; identities are not used."""
        references = int(is_condition[0].sum())
        assert is_condition[:, :references].all() and not is_condition[:, references:].any()
        assert (control is not None) == (self.config.control == "pictures")
        context = self.empty_prompt().expand(len(clean), -1, -1)
        if self.config.control == "rays":
            control = ray_maps(cameras.view_rotation, clean.shape[-1] * self.vae.factor, "geometric", 0, 0)
        hints = None if control is None else control[:, references:].float()
        return DiffPortraitConditions(clean[:, :references], hints, context, ~is_condition)


def build(config: DiffPortraitConfig, vae: Vae, about: About) -> DiffPortrait:
    """A model with random weights over an autoencoder."""
    text = Arc2FaceTokens(IdentityShape(width=config.unet.context)) if config.prompt else None
    return DiffPortrait(config, DiffPortraitNetwork(config, vae.channels, vae.factor), vae, about, text=text)
