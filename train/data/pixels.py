"""Turns stored pictures into tensors: decoding, resizing, and another background where one was drawn."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Float, Float32, Int, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from manifests.pictures import decode_picture
from manifests.reader import Reader
from train.batch import Key


@dataclass(frozen=True, eq=False)
class Pixels:
    """The pictures of views at one resolution, as floats in [-1, 1] or as bytes."""

    reader: Reader
    stored: int
    """Pixels of a side on disk,"""
    resolution: int
    """and of what is handed out."""
    as_uint8: bool = False
    lineage = ""

    def read(
        self,
        rows: Int[np.ndarray, "b v"],
        background: Float32[np.ndarray, "b 3"],
        members: tuple[str, ...],
        keys: Sequence[Key] = (),
    ) -> dict[str, Float[Tensor, "b v _ _ _"] | UInt8[Tensor, "b v _ _ _"]]:
        """The members by name; rgb lies over the background, normals keep theirs.

        Raises:
            DamagedData: a member does not read or decode.
        """
        coloured = np.flatnonzero((background != 1).any(1)) if "rgb" in members else np.empty(0, np.int64)
        wants = dict.fromkeys(members, rows)
        if len(coloured):
            wants["alpha"] = rows if "alpha" in members else rows[coloured]
        data = self.reader.read({name: own.ravel() for name, own in wants.items()})
        found = {name: self._pictures(name, own, data[name]) for name, own in wants.items()}
        if len(coloured):
            alpha = found["alpha"][coloured] if "alpha" in members else found["alpha"]
            over_colour = over(found["rgb"][coloured].float(), alpha.float(), torch.from_numpy(background[coloured]))
            found["rgb"][coloured] = over_colour if found["rgb"].is_floating_point() else over_colour.round_().byte()
        return {name: self._finished(found[name]) for name in members}

    def _pictures(
        self, member: str, rows: Int[np.ndarray, "b v"], data: Sequence[bytes]
    ) -> Float32[Tensor, "b v c h w"] | UInt8[Tensor, "b v c h w"]:
        """Decoded pictures from 0 to 255: as bytes while nothing asks for more."""
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
            # A triangle filter: it never leaves the range of the pixels, so alpha and backgrounds stay exact.
            size = (self.resolution, self.resolution)
            pictures = interpolate(pictures.float(), size, mode="bilinear", antialias=True)
        elif not self.as_uint8:
            pictures = pictures.float()
        return pictures.unflatten(0, rows.shape)

    def _finished(
        self, pictures: Float32[Tensor, "b v c h w"] | UInt8[Tensor, "b v c h w"]
    ) -> Float32[Tensor, "b v c h w"] | UInt8[Tensor, "b v c h w"]:
        if not self.as_uint8:
            return pictures.div_(127.5).sub_(1)
        return pictures.round_().byte() if pictures.is_floating_point() else pictures


def over(
    rgb: Float32[Tensor, "b v 3 h w"], alpha: Float32[Tensor, "b v 1 h w"], colour: Float32[Tensor, "b 3"]
) -> Float32[Tensor, "b v 3 h w"]:
    """Put pictures that lie over white over another colour (in [0, 1]); pictures and alpha in [0, 255]."""
    return (rgb + (255 - alpha) * (colour[:, None, :, None, None] - 1)).clamp(0, 255)


@dataclass(frozen=True, eq=False)
class Encoded:
    """The members as they are stored, for whoever decodes them elsewhere, and for measuring."""

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
