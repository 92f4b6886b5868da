"""Conditions of a network, in a form that can be concatenated, sliced and left out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

C = TypeVar("C", bound="Conditions")


@dataclass(frozen=True, eq=False)
class Conditions(ABC):
    """Conditions of b scenes: a dataclass whose tensors, and tensors in mappings, have the scene as their first axis.

    A family declares its conditions as fields of a subclass; fields of other types are shared by all scenes.
    """

    droppable: ClassVar[tuple[str, ...]]
    """Names of what training drops at random and classifier-free guidance leaves out."""

    batched_guidance: ClassVar[bool] = True
    """Whether guidance evaluates its two branches in one batch; False if they run through different layers."""

    @abstractmethod
    def dropped(self: C, drop: Bool[Tensor, "b k"]) -> C:
        """The conditions without those that `drop` marks, in the order of `droppable`."""

    @property
    @abstractmethod
    def is_target(self) -> Bool[Tensor, "b v"]:
        """Views that are to be generated; the others are given."""

    def with_given(self, x: Float[Tensor, "b v c h w"]) -> Float[Tensor, "b v c h w"]:
        """The latents, with those of given views replaced by the clean ones."""
        return x

    def null(self: C) -> C:
        """The conditions without everything that is droppable."""
        b = len(self)
        return self.dropped(torch.ones(b, len(self.droppable), dtype=torch.bool, device=self.is_target.device))

    def __len__(self) -> int:
        return len(self.is_target)

    def __getitem__(self: C, scenes: slice) -> C:
        return self._map(lambda tensor: tensor[scenes])

    def to(self: C, device: torch.device | str) -> C:
        """The conditions on a device."""
        return self._map(lambda tensor: tensor.to(device))

    def cat(self: C, *others: C) -> C:
        """The scenes of these conditions, followed by those of others of the same kind."""
        parts = [self, *others]
        joined = {f.name: _cat([getattr(part, f.name) for part in parts]) for f in fields(self)}
        return replace(self, **joined)

    def _map(self: C, change: Callable[[Tensor], Tensor]) -> C:
        return replace(self, **{f.name: _map(change, getattr(self, f.name)) for f in fields(self)})


def _map(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {name: _map(change, one) for name, one in value.items()}
    return value


def _cat(values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(values)
    if isinstance(first, Mapping):
        return {name: _cat([value[name] for value in values]) for name in first}
    return first
