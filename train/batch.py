"""What the loader hands to a model: views of identities as tensors, from pixels or from cached latents alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from torch import Tensor

Key = tuple[int, int, int]
"""What the randomness of a sample is keyed by: the seed, the epoch and the number of the sample."""

Images = Float[Tensor, "b v c h w"] | UInt8[Tensor, "b v c h w"]


@dataclass(frozen=True, eq=False)
class Batch:
    """b samples of v views; images are in [-1, 1] (or 0 to 255 as uint8), K is normalised by the image size."""

    index: Int64[Tensor, " b"]
    """The number of each sample."""
    identity: Int64[Tensor, " b"]
    view: Int64[Tensor, "b v"]
    is_condition: Bool[Tensor, "b v"]
    """Views that are given clean; they come first."""
    azimuth: Float32[Tensor, "b v"]
    elevation: Float32[Tensor, "b v"]
    c2w: Float32[Tensor, "b v 4 4"]
    K: Float32[Tensor, "b v 3 3"]
    background: Float32[Tensor, "b 3"]
    """What rgb lies over, in [0, 1]; white unless it was drawn."""
    repeated: Bool[Tensor, " b"]
    """Samples that this epoch holds already: they fill up its last batch, or stand in for bad ones."""
    rgb: Images | None = None
    normal: Images | None = None
    alpha: Float[Tensor, "b v 1 h w"] | UInt8[Tensor, "b v 1 h w"] | None = None
    control: Images | None = None
    """rgb of another identity, seen from the same views."""
    identity_embedding: Float32[Tensor, "b d"] | None = None
    data: dict[str, list[bytes]] | None = None
    """The members as they are stored, sample after sample, if they are not decoded."""

    def __len__(self) -> int:
        return len(self.index)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The batch with its tensors on a device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def part(self, samples: slice) -> "Batch":
        """Some of the samples, without what is not decoded."""
        return replace(self._each(lambda tensor: tensor[samples]), data=None)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: change(v) for name, v in values.items() if isinstance(v, Tensor)})


@runtime_checkable
class Source(Protocol):
    """Where the contents of views come from; it travels to the workers, so it is picklable and opens files there."""

    @property
    def lineage(self) -> str:
        """What a resumed run must find again, such as the autoencoder of cached latents; empty for stored pictures."""
        ...

    def read(
        self,
        rows: Int64[np.ndarray, "b v"],
        background: Float32[np.ndarray, "b 3"],
        members: tuple[str, ...],
        keys: Sequence[Key],
    ) -> dict[str, Any]:
        """Fields of the batch, by name, for rows of the index; raises DamagedData for a sample that cannot be had."""
        ...
