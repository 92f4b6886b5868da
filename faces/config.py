"""Settings of face models and of mattes."""

from dataclasses import dataclass

from manifests.errors import UserError


@dataclass(frozen=True)
class FaceConfig:
    """Where the face models are; an aligned picture needs none of them."""

    models: str = ""
    """Folder of an SCRFD detector (scrfd_10g_bnkps.onnx) and 1k3d68.onnx, such as insightface's antelopev2."""
    arcface: str = ""
    """The recogniser, Arc2Face's arcface.onnx; the arcface.onnx of the folder unless told."""
    min_detection: float = 0.5
    """What the detector must be sure of."""


@dataclass(frozen=True)
class MatteConfig:
    """How the background is found, of pictures without transparency."""

    parser: str = ""
    """Face-parsing weights: 79999_iter.pth of zllrunning's BiSeNet, or the same as safetensors."""
    uniform: bool = False
    """Take the background to be the one colour that the border of the picture has, instead of asking a parser."""

    def __post_init__(self) -> None:
        if self.parser and self.uniform:
            raise UserError("--matte.parser and --matte.uniform are two ways to find the background; give one")
