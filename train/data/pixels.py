"""Turns stored members into tensors: decodes and resizes pictures, and composites them over a drawn background."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Float32, Int, Shaped, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from manifests.pictures import decode_picture
from manifests.reader import Reader
from train.batch import Key


@dataclass(frozen=True, eq=False)
class PixelSource:
    """Reads pictures of views at one resolution, as floats in [-1, 1] or as bytes, and arrays (.npy) as they are stored."""

    reader: Reader
    stored: int
    """Side of the stored pictures, in pixels."""
    resolution: int
    """Side of the pictures that are read, in pixels."""
    as_uint8: bool = False
    lineage = ""

    def read(
        self,
        rows: Int[np.ndarray, "b v"],
        background: Float32[np.ndarray, "b 3"],
        members: tuple[str, ...],
        keys: Sequence[Key] = (),
    ) -> dict[str, Shaped[Tensor, "b v *_"]]:
        """Read members by name; rgb is composited over the background in [0, 1], other members keep theirs.

        Raises:
            DamagedData: a member does not read or decode.
        """
        coloured = np.flatnonzero((background != 1).any(1)) if "rgb" in members else np.empty(0, np.int64)
        wants = dict.fromkeys(members, rows)
        if len(coloured):
            wants["alpha"] = rows if "alpha" in members else rows[coloured]
        data = self.reader.read({name: own.ravel() for name, own in wants.items()})
        arrays = {name for name in members if self.reader.extensions[name].endswith("npy")}
        pictures = {name: self._pictures(name, own, data[name]) for name, own in wants.items() if name not in arrays}
        if len(coloured):
            alpha = pictures["alpha"][coloured] if "alpha" in members else pictures["alpha"]
            rgb = over(pictures["rgb"][coloured].float(), alpha.float(), torch.from_numpy(background[coloured]))
            pictures["rgb"][coloured] = rgb if pictures["rgb"].is_floating_point() else rgb.round_().byte()
        return {
            name: self._arrays(name, rows, data[name]) if name in arrays else self._scaled(pictures[name])
            for name in members
        }

    def _arrays(self, member: str, rows: Int[np.ndarray, "b v"], data: Sequence[bytes]) -> Shaped[Tensor, "b v *d"]:
        arrays = []
        for row, encoded in zip(rows.ravel().tolist(), data, strict=True):
            try:
                arrays.append(np.load(io.BytesIO(encoded)))
            except (ValueError, EOFError):
                raise self.reader.bad(member, row, "does not decode") from None
            if arrays[-1].shape != arrays[0].shape:
                raise self.reader.bad(member, row, f"has the shape {arrays[-1].shape}, another {arrays[0].shape}")
        return torch.from_numpy(np.stack(arrays)).unflatten(0, rows.shape)

    def _pictures(
        self, member: str, rows: Int[np.ndarray, "b v"], data: Sequence[bytes]
    ) -> Float32[Tensor, "b v c h w"] | UInt8[Tensor, "b v c h w"]:
        """Decode pictures, in [0, 255]: as bytes if they stay bytes, otherwise as floats."""
        decoded = np.empty((rows.size, 1 if member == "alpha" else 3, self.stored, self.stored), np.uint8)
        for out, row, encoded in zip(decoded, rows.ravel().tolist(), data, strict=True):
            try:
                picture = decode_picture(encoded, grey=member == "alpha")
            except ValueError as error:
                raise self.reader.bad(member, row, str(error)) from None
            height, width = picture.shape[:2]
            if (height, width) != (self.stored, self.stored):
                raise self.reader.bad(member, row, f"is {width} x {height} px, the dataset has {self.stored}")
            cv2.split(picture, list(out))
        pictures = torch.from_numpy(decoded)
        if self.resolution != self.stored:
            # A triangle filter does not overshoot, so alpha and plain backgrounds stay exact.
            size = (self.resolution, self.resolution)
            pictures = interpolate(pictures.float(), size, mode="bilinear", antialias=True)
        elif not self.as_uint8:
            pictures = pictures.float()
        return pictures.unflatten(0, rows.shape)

    def _scaled(
        self, pictures: Float32[Tensor, "b v c h w"] | UInt8[Tensor, "b v c h w"]
    ) -> Float32[Tensor, "b v c h w"] | UInt8[Tensor, "b v c h w"]:
        if not self.as_uint8:
            return pictures.div_(127.5).sub_(1)
        return pictures.round_().byte() if pictures.is_floating_point() else pictures


def over(
    rgb: Float32[Tensor, "b v 3 h w"], alpha: Float32[Tensor, "b v 1 h w"], colour: Float32[Tensor, "b 3"]
) -> Float32[Tensor, "b v 3 h w"]:
    """Composite pictures that lie over white over another colour in [0, 1]; pictures and alpha are in [0, 255]."""
    return (rgb + (255 - alpha) * (colour[:, None, :, None, None] - 1)).clamp(0, 255)


@dataclass(frozen=True, eq=False)
class EncodedSource:
    """Reads members as they are stored, without decoding them."""

    reader: Reader
    lineage = ""

    def read(
        self,
        rows: Int[np.ndarray, "b v"],
        background: Float32[np.ndarray, "b 3"],
        members: tuple[str, ...],
        keys: Sequence[Key] = (),
    ) -> dict[str, dict[str, list[bytes]]]:
        return {"data": self.reader.read({name: rows.ravel() for name in members})}
