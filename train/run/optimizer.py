"""AdamW that skips a step whose gradients are not finite, and a learning rate that is a function of the samples seen."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

from train.run.config import OptimizerConfig


class Optimizer:
    """Fused AdamW over a network's weights, with its state under their names."""

    def __init__(self, network: nn.Module, config: OptimizerConfig):
        self.config = config
        self.weights = dict(network.named_parameters())
        groups = list(self.weights.values())
        self.adam = torch.optim.AdamW(groups, config.lr, config.betas, weight_decay=config.weight_decay, fused=True)
        self._begin()
        device = groups[0].device
        self.skipped = torch.zeros((), device=device)
        """Steps that were skipped, all in all,"""
        self.skipped_in_row = torch.zeros((), device=device)
        """and since the last that was not."""

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
        """Steps that were taken."""
        return int(self.adam.state[next(iter(self.weights.values()))]["step"])

    @steps.setter
    def steps(self, count: int) -> None:
        for state in self.adam.state.values():
            state["step"].fill_(count)
