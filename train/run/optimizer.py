"""AdamW that skips a step whose gradients are not finite, over the weights of a network that are trained."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

from manifests.errors import UserError
from train.run.config import OptimizerConfig


def freeze(network: nn.Module, trained: Sequence[str]) -> None:
    """Let gradients be computed only for weights whose names match one of some patterns, and that the network does not freeze.

    Raises:
        UserError: a pattern matches no weight.
    """
    names = [name for name, _ in network.named_parameters()]
    for pattern in trained:
        if not any(fnmatchcase(name, pattern) for name in names):
            parts = ", ".join(f"{part}.*" for part, _ in network.named_children())
            raise UserError(
                f"--trained is {pattern!r}, which is the name of no weight; the parts of this model are {parts}"
            )
    for name, weight in network.named_parameters():
        trains = any(fnmatchcase(name, pattern) for pattern in trained)
        weight.requires_grad_(weight.requires_grad and trains)


def trained_weights(network: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that are trained, by name."""
    return {name: weight for name, weight in network.named_parameters() if weight.requires_grad}


class Optimizer:
    """Fused AdamW over the weights of a network that are trained, with its state under their names."""

    def __init__(self, network: nn.Module, config: OptimizerConfig):
        self.config = config
        self.weights = trained_weights(network)
        groups = list(self.weights.values())
        self.adam = torch.optim.AdamW(groups, config.lr, config.betas, weight_decay=config.weight_decay, fused=True)
        self._begin()
        device = groups[0].device
        self.skipped = torch.zeros((), device=device)
        """Number of skipped steps."""
        self.skipped_in_row = torch.zeros((), device=device)
        """Number of skipped steps since the last step that was not skipped."""

    def _begin(self) -> None:
        """Make the state as AdamW itself would at its first step, so that a checkpoint has a place to go."""
        for weight in self.weights.values():
            self.adam.state[weight] = {
                "step": torch.zeros((), dtype=torch.float32, device=weight.device),
                "exp_avg": torch.zeros_like(weight),
                "exp_avg_sq": torch.zeros_like(weight),
            }

    def step(self, norm: Tensor, rate: float) -> Tensor:
        """Follow the gradients, or do nothing if their norm is not finite; returns 1 if the step was skipped, else 0.

        The answer stays on the device, so that no rank waits for it.
        """
        bad = (~torch.isfinite(norm)).float().reshape(())
        self.skipped += bad
        self.skipped_in_row = (self.skipped_in_row + 1) * bad
        weight = next(iter(self.weights.values()))
        adam: Any = self.adam
        # torch's own protocol for its fused optimizers, which its gradient scaler uses.
        adam.found_inf = (
            DTensor.from_local(bad, weight.device_mesh, [Replicate()]) if isinstance(weight, DTensor) else bad
        )
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        return bad

    @property
    def moments(self) -> dict[str, Tensor]:
        """First and second moments by name, in place."""
        return {
            f"{name}.{moment}": self.adam.state[weight][moment]
            for name, weight in self.weights.items()
            for moment in ("exp_avg", "exp_avg_sq")
        }

    @property
    def steps(self) -> int:
        """Number of steps that were taken."""
        return int(self.adam.state[next(iter(self.weights.values()))]["step"])

    @steps.setter
    def steps(self, count: int) -> None:
        for state in self.adam.state.values():
            state["step"].fill_(count)
