"""Batches of views as the loader delivers them, from pixels or from cached latents, and views as 8-bit pixels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64, Shaped, UInt8
from torch import Tensor

Key = tuple[int, int, int]
"""Key of the random draws of a sample: the seed, the epoch and the number of the sample."""

Images = Float[Tensor, "b v c h w"] | UInt8[Tensor, "b v c h w"]


@dataclass(frozen=True, eq=False)
class Batch:
    """b samples of v views. Pictures are in [-1, 1], or in 0 to 255 as uint8; latents are scaled by the autoencoder's factor.

    Cameras are OpenCV camera-to-world matrices; K is normalised by the image size; angles are in degrees.
    """

    index: Int64[Tensor, " b"]
    """The number of each sample."""
    identity: Int64[Tensor, " b"]
    view: Int64[Tensor, "b v"]
    is_condition: Bool[Tensor, "b v"]
    """Views that are given clean, as conditions; they come first."""
    azimuth: Float32[Tensor, "b v"]
    elevation: Float32[Tensor, "b v"]
    c2w: Float32[Tensor, "b v 4 4"]
    K: Float32[Tensor, "b v 3 3"]
    background: Float32[Tensor, "b 3"]
    """Colour behind the pictures, in [0, 1]; white where none was drawn."""
    repeated: Bool[Tensor, " b"]
    """Samples that come again in the same epoch: they fill its last batch, or replace damaged ones."""
    rgb: Images | None = None
    normal: Images | None = None
    alpha: Float[Tensor, "b v 1 h w"] | UInt8[Tensor, "b v 1 h w"] | None = None
    control: Float[Tensor, "b v 3 x y"] | UInt8[Tensor, "b v 3 x y"] | None = None
    """Pictures of another identity from the same views, also where the views themselves are latents."""
    identity_embedding: Float32[Tensor, "b d"] | None = None
    members: dict[str, Shaped[Tensor, "b v *d"]] | None = None
    """Further members that the dataset's plan declares: pictures as rgb, arrays (.npy) as they are stored."""
    data: dict[str, list[bytes]] | None = None
    """The stored bytes of each member, sample after sample, where they are not decoded."""

    def __len__(self) -> int:
        return len(self.index)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The batch with its tensors on a device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def part(self, samples: slice) -> "Batch":
        """Some of the samples, without the bytes that are not decoded."""
        return replace(self._each(lambda tensor: tensor[samples]), data=None)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        changed = {name: change(v) for name, v in values.items() if isinstance(v, Tensor)}
        members = self.members and {name: change(member) for name, member in self.members.items()}
        return replace(self, **changed, members=members)


@runtime_checkable
class Source(Protocol):
    """Reads the contents of views; it is pickled to worker processes, which open its files."""

    @property
    def lineage(self) -> str:
        """Text that must be equal when a run is resumed, such as the hash of an autoencoder; empty for stored pictures."""
        ...

    def read(
        self,
        rows: Int64[np.ndarray, "b v"],
        background: Float32[np.ndarray, "b 3"],
        members: tuple[str, ...],
        keys: Sequence[Key],
    ) -> dict[str, Any]:
        """Read fields of a batch by name, for rows of the index; raises DamagedData for a member that cannot be read."""
        ...


def to_bytes(pictures: Float32[Tensor, "*v 3 h w"]) -> UInt8[np.ndarray, "*v h w 3"]:
    """Pictures in [-1, 1] as 8-bit pixels with channels last."""
    return ((pictures.clamp(-1, 1) + 1) * 127.5).round().byte().movedim(-3, -1).cpu().numpy()


def from_bytes(pixels: UInt8[np.ndarray, "*v h w 3"]) -> Float32[Tensor, "*v 3 h w"]:
    """8-bit pixels with channels last as pictures in [-1, 1]."""
    return torch.from_numpy(pixels).movedim(-1, -3).float() / 127.5 - 1


def framed(views: Float32[Tensor, "v 3 h w"], is_condition: Bool[Tensor, " v"]) -> Float32[Tensor, "v 3 h w"]:
    """Views in [-1, 1], the given ones with a dark frame of one pixel in 32."""
    out, width = views.clone(), max(1, views.shape[-1] // 32)
    for side in (slice(None, width), slice(-width, None)):
        out[is_condition, :, side, :] = -1
        out[is_condition, :, :, side] = -1
    return out
