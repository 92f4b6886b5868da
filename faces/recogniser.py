"""Face recognisers of insightface (ArcFace), as ONNX files."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from faces.landmarks import SIZE
from faces.onnx import onnx_session
from manifests.errors import UserError
from weights.files import existing, sha256

BATCH = 64
"""Crops per call of the network; 64 crops of 112 px are 9 MB of input."""


@dataclass(frozen=True, eq=False)
class ArcFace:
    """A loaded recogniser."""

    model: Any
    """insightface's ArcFaceONNX."""
    sha256: str
    """Hash of the file that was loaded."""
    dimensions: int
    """Length of an embedding."""

    def embed(self, crops: UInt8[np.ndarray, "v 112 112 3"]) -> Float32[np.ndarray, "v d"]:
        """Unit embeddings of aligned crops (sRGB)."""
        parts = [self.model.get_feat(list(crops[i : i + BATCH, ..., ::-1])) for i in range(0, len(crops), BATCH)]
        vectors = np.concatenate(parts) if parts else np.empty((0, self.dimensions), np.float32)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def load_arcface(path: str, device: str = "cpu") -> ArcFace:
    """Load a recogniser through insightface; raises MissingFile or UserError in one line."""
    from insightface.model_zoo.arcface_onnx import ArcFaceONNX

    file = existing(path, "arcface")
    session = onnx_session(str(file), device)
    shape, outputs = session.get_inputs()[0].shape, session.get_outputs()
    if len(session.get_inputs()) != 1 or len(shape) != 4 or shape[1:] != [3, SIZE, SIZE]:
        raise UserError(f"{file} reads {shape}; a recogniser reads [batch, 3, {SIZE}, {SIZE}]")
    if len(outputs) != 1 or len(outputs[0].shape) != 2 or not isinstance(outputs[0].shape[1], int):
        raise UserError(f"{file} writes {[o.shape for o in outputs]}; a recogniser writes [batch, dimensions]")
    if isinstance(shape[0], int) and shape[0] != 1:
        raise UserError(f"{file} reads batches of {shape[0]} only; export it with a batch of any size")
    return ArcFace(ArcFaceONNX(str(file), session), sha256(file), outputs[0].shape[1])
