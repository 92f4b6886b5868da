"""StyleGAN2's layers, split in two: parameters that a style modulates, and the plain CNN that results from a style.

`layer.at(w)` multiplies the style into the weights once; what it returns is an ordinary convolution that any number of
views share. One identity has one style, so nothing is modulated twice. Parameter names are those of the official
checkpoints. Source: Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN", section 2 and
appendix B; EG3D's networks_stylegan2.py for the constants.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Noise = Literal["const", "none"]

FIR = torch.outer(torch.tensor([1.0, 3.0, 3.0, 1.0]), torch.tensor([1.0, 3.0, 3.0, 1.0])) / 64


class FullyConnected(nn.Module):
    """A linear layer with equalised learning rate; "lrelu" adds a leaky ReLU of gain sqrt(2)."""

    def __init__(self, inputs: int, outputs: int, lr: float = 1.0, activation: Literal["linear", "lrelu"] = "linear"):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs))
        self.gain, self.lr, self.activation = lr / math.sqrt(inputs), lr, activation

    def forward(self, x: Float[Tensor, "b i"]) -> Float[Tensor, "b o"]:
        y = F.linear(x, self.weight * self.gain, self.bias * self.lr)
        return F.leaky_relu(y, 0.2) * math.sqrt(2) if self.activation == "lrelu" else y


class Mapping(nn.Module):
    """From a latent and a camera label to the style w, pulled towards the mean style."""

    w_avg: Tensor

    def __init__(
        self, z_dim: int, c_dim: int, w_dim: int, layers: int, lr: float = 0.01,
        last: Literal["linear", "lrelu"] = "lrelu",
    ):  # fmt: skip
        super().__init__()
        self.layers = layers
        self.embed = FullyConnected(c_dim, w_dim)
        for i in range(layers):
            activation = last if i == layers - 1 else "lrelu"
            setattr(self, f"fc{i}", FullyConnected(w_dim if i else z_dim + w_dim, w_dim, lr, activation))
        self.register_buffer("w_avg", torch.empty(w_dim))

    def forward(
        self,
        z: Float[Tensor, "b z"],
        c: Float[Tensor, "b 25"],
        num_ws: int,
        psi: float = 1.0,
        cutoff: int | None = None,
    ) -> Float[Tensor, "b l s"]:
        """Styles of `num_ws` layers, the first `cutoff` of them (None: all) truncated: w_avg + psi (w - w_avg)."""
        x = torch.cat([_normalise(z.float()), _normalise(self.embed(c.float()))], dim=1)
        for i in range(self.layers):
            x = getattr(self, f"fc{i}")(x)
        ws = x[:, None].repeat(1, num_ws, 1)
        if psi != 1:
            ws[:, :cutoff] = self.w_avg.lerp(ws[:, :cutoff], psi)
        return ws


def _normalise(x: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
    return x * (x.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()


def upsample(image: Float[Tensor, "v c h w"]) -> Float[Tensor, "v c H W"]:
    """Twice the resolution through the filter [1 3 3 1], zeros beyond the border.

    Between two pixels that filter is bilinear interpolation, so only the border needs care.
    """
    larger = F.interpolate(F.pad(image, (1, 1, 1, 1)), scale_factor=2, mode="bilinear", align_corners=False)
    return larger[..., 2:-2, 2:-2]


def with_filter(weight: Float[Tensor, "i o 3 3"]) -> Float[Tensor, "i o 6 6"]:
    """The kernel of a transposed convolution of stride 2 that filters its output with 4 FIR as well: both are linear."""
    flat = weight.reshape(-1, 1, 3, 3)
    # The filter is symmetric, so that correlation and convolution with it are the same.
    return F.conv2d(F.pad(flat, (3, 3, 3, 3)), (4 * FIR).to(weight)[None, None]).view(*weight.shape[:2], 6, 6)


class Conv(nn.Module):
    """A convolution whose style is fixed, with its noise, bias and activation: a layer of a plain CNN."""

    weight: Tensor
    bias: Tensor
    noise: Tensor | None
    fir: Tensor | None

    def __init__(
        self, weight: Float[Tensor, "o i k k"], bias: Float[Tensor, " o"], noise: Float[Tensor, "h w"] | None = None,
        up: bool = False, activate: bool = False, clamp: float | None = None,
    ):  # fmt: skip
        super().__init__()
        self.activate, self.clamp = activate, clamp
        # The filter as a convolution per channel takes two thirds of a view's time on a GPU, and is cheap on a CPU.
        folded = up and weight.is_cuda
        if up:
            weight = weight.transpose(0, 1)
        self.register_buffer("weight", with_filter(weight) if folded else weight)
        self.register_buffer("bias", bias)
        self.register_buffer("noise", noise)
        self.register_buffer("fir", (4 * FIR).to(weight).expand(len(bias), 1, 4, 4) if up and not folded else None)
        self.folded = folded

    def forward(self, x: Float[Tensor, "v i h w"]) -> Float[Tensor, "v o H W"]:
        if self.folded:
            x = F.conv_transpose2d(x, self.weight, self.bias, stride=2, padding=2)
        elif self.fir is not None:
            x = F.conv_transpose2d(x, self.weight, stride=2)
            x = F.conv2d(x, self.fir, self.bias, padding=1, groups=len(self.bias))
        else:
            x = F.conv2d(x, self.weight, self.bias, padding=self.weight.shape[-1] // 2)
        if self.noise is not None:
            x.add_(self.noise)
        if self.activate:
            # In place unless a gradient needs the result of each step.
            x = F.leaky_relu(x, 0.2) * math.sqrt(2) if x.requires_grad else F.leaky_relu_(x, 0.2).mul_(math.sqrt(2))
        return x if self.clamp is None else x.clamp_(-self.clamp, self.clamp)


class StyledConv(nn.Module):
    """A 3x3 convolution that a style modulates: weights modulated per input channel, demodulated per output channel."""

    noise_const: Tensor

    def __init__(self, inputs: int, outputs: int, w_dim: int, resolution: int, up: bool, clamp: float | None):
        super().__init__()
        self.up, self.clamp = up, clamp
        self.affine = FullyConnected(w_dim, inputs)
        self.weight = nn.Parameter(torch.empty(outputs, inputs, 3, 3))
        self.bias = nn.Parameter(torch.empty(outputs))
        self.noise_strength = nn.Parameter(torch.empty([]))
        self.register_buffer("noise_const", torch.empty(resolution, resolution))
        self.register_buffer("resample_filter", torch.empty(4, 4))

    def at(self, w: Float[Tensor, " s"], noise: Noise) -> Conv:
        weight = self.weight * self.affine(w[None])[0, :, None, None]
        weight = weight * (weight.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).rsqrt()
        constant = self.noise_const * self.noise_strength if noise == "const" else None
        return Conv(weight, self.bias, constant, self.up, activate=True, clamp=self.clamp)


class StyledRGB(nn.Module):
    """A 1x1 convolution that a style modulates, without demodulation, noise or activation."""

    def __init__(self, inputs: int, outputs: int, w_dim: int, clamp: float | None = None):
        super().__init__()
        self.clamp = clamp
        self.affine = FullyConnected(w_dim, inputs)
        self.weight = nn.Parameter(torch.empty(outputs, inputs, 1, 1))
        self.bias = nn.Parameter(torch.empty(outputs))

    def at(self, w: Float[Tensor, " s"]) -> Conv:
        style = self.affine(w[None])[0] / math.sqrt(self.weight.shape[1])
        return Conv(self.weight * style[:, None, None], self.bias, clamp=self.clamp)


class Block(nn.Module):
    """The convolutions of one resolution, and the image they add to: twice the size if the block goes up."""

    const: Tensor
    """The learned constant, which only the first block has."""

    def __init__(self, const: Float[Tensor, "c h w"] | None, convs: list[Conv], to_rgb: Conv, up: bool):
        super().__init__()
        self.register_buffer("const", const)
        self.convs, self.to_rgb, self.up = nn.Sequential(*convs), to_rgb, up

    def forward(
        self, x: Float[Tensor, "v i h w"] | None, image: Float[Tensor, "v c h w"] | None
    ) -> tuple[Float[Tensor, "v o H W"], Float[Tensor, "v c H W"]]:
        features = self.convs(self.const[None] if x is None else x)
        # The image is summed over the blocks in single precision, whatever the features are in.
        rgb = self.to_rgb(features).float()
        if image is not None:
            rgb += upsample(image) if self.up else image
        return features, rgb


class StyledBlock(nn.Module):
    """A block that styles modulate: one per convolution, and one for the RGB output."""

    def __init__(
        self, inputs: int, outputs: int, w_dim: int, resolution: int, image_channels: int, up: bool = True,
        clamp: float | None = None,
    ):  # fmt: skip
        super().__init__()
        self.up = up
        self.register_buffer("resample_filter", torch.empty(4, 4))
        if inputs:
            self.conv0 = StyledConv(inputs, outputs, w_dim, resolution, up, clamp)
        else:
            self.const = nn.Parameter(torch.empty(outputs, resolution, resolution))
        self.conv1 = StyledConv(outputs, outputs, w_dim, resolution, False, clamp)
        self.torgb = StyledRGB(outputs, image_channels, w_dim, clamp)
        self.num_convs = 2 if inputs else 1

    def at(self, ws: Float[Tensor, "l s"], noise: Noise) -> Block:
        convs = [self.conv0, self.conv1] if self.num_convs == 2 else [self.conv1]
        styled = [conv.at(w, noise) for conv, w in zip(convs, ws, strict=False)]
        return Block(getattr(self, "const", None), styled, self.torgb.at(ws[self.num_convs]), self.up)


class Network(nn.Module):
    """A whole synthesis network whose styles are fixed: it makes one image."""

    def __init__(self, blocks: list[Block]):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self) -> Float[Tensor, "1 c h w"]:
        x = image = None
        for block in self.blocks:
            x, image = block(x, image)
        assert image is not None
        return image


class StyledNetwork(nn.Module):
    """StyleGAN2's synthesis network with skip connections, from a learned 4x4 constant to `resolution`."""

    def __init__(
        self, w_dim: int, resolution: int, image_channels: int, channel_base: int, channel_max: int, clamp: float | None
    ):
        super().__init__()
        self.resolutions = [2**i for i in range(2, resolution.bit_length())]
        inputs = 0
        for size in self.resolutions:
            outputs = min(channel_base // size, channel_max)
            setattr(self, f"b{size}", StyledBlock(inputs, outputs, w_dim, size, image_channels, clamp=clamp))
            inputs = outputs
        self.num_ws = 2 * len(self.resolutions)

    def at(self, ws: Float[Tensor, "l s"], noise: Noise = "const") -> Network:
        blocks, first = [], 0
        for size in self.resolutions:
            block = getattr(self, f"b{size}")
            # The style of a block's RGB output is also that of the next block's first convolution.
            blocks.append(block.at(ws[first : first + block.num_convs + 1], noise))
            first += block.num_convs
        # Channels last: half the time of these convolutions on CPU, and what tensor cores read on GPU.
        return Network(blocks).to(memory_format=torch.channels_last)

    def forward(self, ws: Float[Tensor, "b l s"], noise: Noise = "const") -> Float[Tensor, "b c h w"]:
        """The images of several identities, each by its own plain CNN."""
        return torch.cat([self.at(identity, noise)() for identity in ws])
