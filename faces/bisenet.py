"""The face parser that tells a head from its background: BiSeNet on a ResNet-18, 19 classes, for weights a person brings.

Parameters have the names and shapes of zllrunning's face-parsing weights (79999_iter.pth), which load as they are.
Source: Yu et al. 2018 (BiSeNet), where ResNet features of an eighth of the size stand for the spatial path.
"""

from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import interpolate, relu

from manifests.errors import MissingFile, UserError

CLASSES = 19
"""0 is the background; then skin, brows, eyes, glasses, ears, earring, nose, mouth, lips, neck, necklace, cloth, hair, hat."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ConvNorm(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return relu(self.bn(self.conv(x)))


class Block(nn.Module):
    """ResNet-18's residual block."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        if stride != 1:
            short = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(short, nn.BatchNorm2d(outputs))
        else:
            self.downsample = None

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        return relu(inner + (x if self.downsample is None else self.downsample(x)))


class Trunk(nn.Module):
    """ResNet-18 without its classifier: features at an eighth, a sixteenth and a 32nd of the size."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(Block(64, 64, 1), Block(64, 64, 1))
        self.layer2 = nn.Sequential(Block(64, 128, 2), Block(128, 128, 1))
        self.layer3 = nn.Sequential(Block(128, 256, 2), Block(256, 256, 1))
        self.layer4 = nn.Sequential(Block(256, 512, 2), Block(512, 512, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        eighth = self.layer2(self.layer1(self.maxpool(relu(self.bn1(self.conv1(x))))))
        sixteenth = self.layer3(eighth)
        return eighth, sixteenth, self.layer4(sixteenth)


class Refinement(nn.Module):
    """Channels weighed by what the whole picture holds."""

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
    """The trunk, and its coarse features brought up to an eighth of the size."""

    def __init__(self):
        super().__init__()
        self.resnet = Trunk()
        self.arm16, self.arm32 = Refinement(256, 128), Refinement(512, 128)
        self.conv_head32, self.conv_head16 = ConvNorm(128, 128), ConvNorm(128, 128)
        self.conv_avg = ConvNorm(512, 128, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        eighth, sixteenth, coarse = self.resnet(x)
        refined = self.arm32(coarse) + self.conv_avg(coarse.mean((2, 3), keepdim=True))
        refined = self.conv_head32(interpolate(refined, size=sixteenth.shape[2:]))
        refined = self.arm16(sixteenth) + refined
        return eighth, self.conv_head16(interpolate(refined, size=eighth.shape[2:]))


class Fusion(nn.Module):
    """Fine and coarse features together."""

    def __init__(self):
        super().__init__()
        self.convblk = ConvNorm(256, 256, 1)
        self.conv1 = nn.Conv2d(256, 64, 1, bias=False)
        self.conv2 = nn.Conv2d(64, 256, 1, bias=False)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        features = self.convblk(torch.cat([fine, coarse], 1))
        weights = self.conv2(relu(self.conv1(features.mean((2, 3), keepdim=True))))
        return features * (1 + weights.sigmoid())


class Head(nn.Module):
    """Class scores per cell."""

    def __init__(self, inputs: int, inner: int):
        super().__init__()
        self.conv = ConvNorm(inputs, inner)
        self.conv_out = nn.Conv2d(inner, CLASSES, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_out(self.conv(x))


class BiSeNet(nn.Module):
    """13.3 million parameters; the two heads that only served its training are kept so that official weights load whole."""

    def __init__(self):
        super().__init__()
        self.cp = ContextPath()
        self.ffm = Fusion()
        self.conv_out, self.conv_out16, self.conv_out32 = Head(256, 256), Head(128, 64), Head(128, 64)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 19 h w"]:
        scores = self.conv_out(self.ffm(*self.cp(x)))
        return interpolate(scores, size=x.shape[2:], mode="bilinear", align_corners=True)

    @torch.inference_mode()
    def classes(self, rgb: UInt8[Tensor, "h w 3"]) -> UInt8[Tensor, "h w"]:
        """The class of every pixel of a picture cut to a head, at 512 px as the weights were trained."""
        device = next(self.parameters()).device
        mean, std = torch.tensor(MEAN, device=device), torch.tensor(STD, device=device)
        x = (rgb.to(device).float() / 255 - mean) / std
        return self(x.permute(2, 0, 1)[None])[0].argmax(0).byte().cpu()


def load_bisenet(path: str | Path, device: str = "cpu") -> BiSeNet:
    """Load official weights, as their .pth or as safetensors; nothing in the file is executed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no file of weights, or not whole, or of another network.
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
    except Exception as error:  # its reader stumbles over anything
        raise UserError("it is no file of tensors alone") from error


def _why(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1 if lines[0].startswith("Error(s) in loading") else 0][:160]
