"""Settings of face models and of the separation of heads from their background."""

from dataclasses import dataclass

from manifests.errors import UserError, check_ranges


@dataclass(frozen=True)
class FaceConfig:
    """Face models for photos; an aligned picture needs none of them."""

    models: str = ""
    """Folder of an SCRFD detector (scrfd_10g_bnkps.onnx) and 1k3d68.onnx, such as insightface's antelopev2."""
    arcface: str = ""
    """Path of the recogniser, Arc2Face's arcface.onnx; by default the arcface.onnx in the folder of --face.models."""
    min_detection: float = 0.5
    """Lowest detection score that counts as a face, from 0 to 1."""

    def __post_init__(self) -> None:
        check_ranges(self, "--face.", min_detection=(0, 1))


@dataclass(frozen=True)
class MatteConfig:
    """Separation of the head from its background, for pictures without transparency."""

    parser: str = ""
    """Path of face-parsing weights: 79999_iter.pth of zllrunning's BiSeNet, or the same weights as safetensors."""
    uniform: bool = False
    """Treat the one colour along the border of the picture as the background, instead of parsing the face."""

    def __post_init__(self) -> None:
        if self.parser and self.uniform:
            raise UserError("--matte.parser and --matte.uniform are two ways to find the background; give one")
