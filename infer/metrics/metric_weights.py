"""Weight files of the networks in metrics: published files that the user provides; each is hashed, none is downloaded."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from manifests.errors import MissingFile, UserError
from weights.files import sha256


@dataclass(frozen=True)
class WeightsFile:
    """One published file of weights."""

    name: str
    sha256: str
    origin: str


ALEXNET = WeightsFile(
    "alexnet-owt-7be5be79.pth",
    "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
    "torchvision's AlexNet_Weights.IMAGENET1K_V1",
)
VGG16 = WeightsFile(
    "vgg16-397923af.pth",
    "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    "torchvision's VGG16_Weights.IMAGENET1K_V1",
)
INCEPTION = WeightsFile(
    "weights-inception-2015-12-05-6726825d.pth",
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    "torch-fidelity's release v0.2.0 on GitHub",
)


def weights_folder(folder: str = "") -> Path:
    """The folder of these files: the one given, or where torch keeps its own downloads."""
    return Path(folder) if folder else Path(torch.hub.get_dir()) / "checkpoints"


def read_weights(file: WeightsFile, folder: str = "") -> dict[str, Tensor]:
    """The tensors of a file, on the CPU.

    Raises:
        MissingFile: the file does not exist.
        UserError: it is another file than the published one.
    """
    path = weights_folder(folder) / file.name
    if not path.is_file():
        raise MissingFile(
            f"there is no {path}; weights are never downloaded, put {file.origin} there (sha256 {file.sha256})"
        )
    if (found := sha256(path)) != file.sha256:
        raise UserError(f"{path} has sha256 {found}; that of {file.origin} is {file.sha256}: get it again")
    return read_tensors(path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .pth file."""
    # These come as .pth only. Nothing but tensors is let in, and of users' files only the one whose hash is known.
    return torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251
