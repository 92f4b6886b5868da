"""Conditions of a family of the tests: every field takes part in concatenation and slicing, none by name."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from train.diffusion.conditions import Conditions
from train.diffusion.process import DDPM, guided


@dataclass(frozen=True, eq=False)
class Hinted(Conditions):
    droppable: ClassVar[tuple[str, ...]] = ("hint",)

    hint: Tensor
    banks: dict[str, Tensor]
    strength: float = 1.0

    @property
    def is_target(self) -> Tensor:
        return torch.ones(self.hint.shape[:2], dtype=torch.bool, device=self.hint.device)

    def dropped(self, drop: Tensor) -> "Hinted":
        return replace(self, hint=self.hint.masked_fill(drop[:, 0, None, None, None, None], 0))


def some(b: int = 3) -> Hinted:
    g = torch.Generator().manual_seed(0)
    return Hinted(torch.randn(b, 2, 3, 4, 4, generator=g), {"mid": torch.randn(b, 5, 6, generator=g)}, 0.5)


def test_they_are_concatenated_and_sliced_field_by_field():
    one = some()
    both = one.cat(one.null())
    assert len(both) == 6
    assert torch.equal(both.hint[:3], one.hint) and not both.hint[3:].any()
    assert torch.equal(both.banks["mid"], torch.cat([one.banks["mid"]] * 2))
    assert both.strength == 0.5
    back = both[0:3]
    assert torch.equal(back.hint, one.hint) and torch.equal(back.banks["mid"], one.banks["mid"])


def test_they_move_between_devices():
    moved = some().to("meta")
    assert moved.hint.device.type == moved.banks["mid"].device.type == "meta"


def test_guidance_batches_every_condition():
    """A condition that were not doubled for the two branches would have the wrong number of scenes."""
    seen = []

    def network(x, c_noise, conditions):
        seen.append(conditions)
        return x + conditions.hint.mean((2, 3, 4), keepdim=True) + conditions.banks["mid"].mean()

    x, sigma = torch.randn(3, 2, 4, 4, 4), torch.full((3,), 2.0)
    guided(network, DDPM(), some(), 3.0)(x, sigma)
    assert len(seen[0]) == len(seen[0].banks["mid"]) == 6
