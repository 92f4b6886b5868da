"""Alphas of photos: from BiSeNet, a face parser with weights that the user brings, or from a background of one colour.

The parser tells 19 classes per pixel. Its parameters have the names and shapes of zllrunning's face-parsing weights
(79999_iter.pth), which load as they are. Source: Yu et al. 2018 (BiSeNet), where ResNet features of an eighth of the size stand
for the spatial path.
"""

from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import interpolate, relu
from torchvision.models.resnet import BasicBlock, ResNet

from manifests.errors import MissingFile, UserError

CLASSES = 19
"""0 is the background; then skin, brows, eyes, glasses, ears, earring, nose, mouth, lips, neck, necklace, cloth, hair, hat."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's pictures (sRGB, 0 to 1), with which the weights were trained."""


class ConvNorm(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return relu(self.bn(self.conv(x)))


class ResNetTrunk(ResNet):
    """ResNet-18 without its classifier."""

    def __init__(self):
        super().__init__(BasicBlock, [2, 2, 2, 2])
        del self.fc

    def features(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features at 1/8, 1/16 and 1/32 of the size."""
        eighth = self.layer2(self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(x))))))
        sixteenth = self.layer3(eighth)
        return eighth, sixteenth, self.layer4(sixteenth)


class AttentionRefinement(nn.Module):
    """The attention refinement module: channels weighted by their mean over the picture."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = ConvNorm(inputs, outputs)
        self.conv_atten = nn.Conv2d(outputs, outputs, 1, bias=False)
        self.bn_atten = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        features = self.conv(x)
        weights = self.bn_atten(self.conv_atten(features.mean((2, 3), keepdim=True)))
        return features * weights.sigmoid()


class ContextPath(nn.Module):
    """The trunk, and its coarse features upsampled to 1/8 of the size."""

    def __init__(self):
        super().__init__()
        self.resnet = ResNetTrunk()
        self.arm16, self.arm32 = AttentionRefinement(256, 128), AttentionRefinement(512, 128)
        self.conv_head32, self.conv_head16 = ConvNorm(128, 128), ConvNorm(128, 128)
        self.conv_avg = ConvNorm(512, 128, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        eighth, sixteenth, coarse = self.resnet.features(x)
        refined = self.arm32(coarse) + self.conv_avg(coarse.mean((2, 3), keepdim=True))
        refined = self.conv_head32(interpolate(refined, size=sixteenth.shape[2:]))
        refined = self.arm16(sixteenth) + refined
        return eighth, self.conv_head16(interpolate(refined, size=eighth.shape[2:]))


class FeatureFusion(nn.Module):
    """The feature fusion module: fine and coarse features together, with weighted channels."""

    def __init__(self):
        super().__init__()
        self.convblk = ConvNorm(256, 256, 1)
        self.conv1 = nn.Conv2d(256, 64, 1, bias=False)
        self.conv2 = nn.Conv2d(64, 256, 1, bias=False)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        features = self.convblk(torch.cat([fine, coarse], 1))
        weights = self.conv2(relu(self.conv1(features.mean((2, 3), keepdim=True))))
        return features * (1 + weights.sigmoid())


class ClassHead(nn.Module):
    """Scores of the 19 classes per cell."""

    def __init__(self, inputs: int, inner: int):
        super().__init__()
        self.conv = ConvNorm(inputs, inner)
        self.conv_out = nn.Conv2d(inner, CLASSES, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_out(self.conv(x))


class BiSeNet(nn.Module):
    """13.3 million parameters; the two heads that only its training used are kept so that official weights load whole."""

    def __init__(self):
        super().__init__()
        self.cp = ContextPath()
        self.ffm = FeatureFusion()
        self.conv_out, self.conv_out16, self.conv_out32 = ClassHead(256, 256), ClassHead(128, 64), ClassHead(128, 64)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 19 h w"]:
        """Class scores per pixel of pictures that are normalised by MEAN and STD."""
        scores = self.conv_out(self.ffm(*self.cp(x)))
        return interpolate(scores, size=x.shape[2:], mode="bilinear", align_corners=True)

    @torch.inference_mode()
    def classes(self, rgb: UInt8[Tensor, "h w 3"]) -> UInt8[Tensor, "h w"]:
        """The class of every pixel of a picture (sRGB) cropped to a head; the weights were trained at 512 px."""
        device = next(self.parameters()).device
        mean, std = torch.tensor(MEAN, device=device), torch.tensor(STD, device=device)
        x = (rgb.to(device).float() / 255 - mean) / std
        return self(x.permute(2, 0, 1)[None])[0].argmax(0).byte().cpu()


def load_bisenet(path: str | Path, device: str = "cpu") -> BiSeNet:
    """Load official weights, as their .pth or as safetensors; nothing in the file is executed.

    Raises:
        MissingFile: there is no such file.
        UserError: it is no file of weights, or not whole, or of another network.
    """
    file = Path(path)
    if not file.is_file():
        raise MissingFile(f"matte.parser: there is no file {path}; give the face-parsing weights 79999_iter.pth")
    try:
        weights = load_file(file) if file.suffix == ".safetensors" else _unpickled(file)
        model = BiSeNet()
        model.load_state_dict(weights)
    except (OSError, RuntimeError, TypeError, ValueError, SafetensorError) as error:
        raise UserError(f"{path} does not hold the weights of the face parser ({_why(error)})") from error
    return model.to(device).eval()


def _unpickled(file: Path) -> dict[str, Tensor]:
    # The official file is a pickle; with weights_only torch reads tensors and refuses to call anything.
    try:
        return torch.load(file, map_location="cpu", weights_only=True)  # noqa: TID251
    except Exception as error:  # its reader raises errors of many classes
        raise UserError("it is no file of tensors alone") from error


def _why(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1 if lines[0].startswith("Error(s) in loading") else 0][:160]


TOLERANCE = 12
"""Largest difference of a pixel of a uniform background from the colour of the border, in any channel of 255: JPEG's noise."""
UNIFORM = 0.5
"""Smallest share of the upper and side borders that has that colour."""
MIN_SHARE = 0.02
"""Smallest share of a picture that a head fills."""


def parsed_alpha(parser: BiSeNet, rgb: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w"]:
    """Opaque where the parser sees a person, clothes and hats included; with a hard edge, as in the official cropping."""
    return np.where(parser.classes(torch.from_numpy(rgb)).numpy() > 0, 255, 0).astype(np.uint8)


def uniform_alpha(rgb: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w"]:
    """Transparent where the colour of the border is connected to the border; equal colours inside the head stay opaque.

    Raises:
        ValueError: the border has no one colour.
    """
    border = np.concatenate([rgb[0], rgb[:, 0], rgb[:, -1]]).astype(int)
    colour = np.median(border, 0)
    if (np.abs(border - colour).max(1) <= TOLERANCE).mean() < UNIFORM:
        raise UserError("its background is not of one colour; give face-parsing weights (--matte.parser) instead")
    near = (np.abs(rgb - colour).max(2) <= TOLERANCE).astype(np.uint8)
    _, parts = cv2.connectedComponents(near, connectivity=4)
    outer = np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])
    return np.where(np.isin(parts, outer[outer > 0]), 0, 255).astype(np.uint8)


def emptiness(alpha: UInt8[np.ndarray, "h w"]) -> str:
    """The reason why an alpha cannot be that of a head, or an empty text."""
    share = (alpha > 127).mean()
    return "" if share >= MIN_SHARE else f"only {share:.1%} of it is left once its background is taken away"
