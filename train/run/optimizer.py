"""AdamW that skips a step whose gradients are not finite, and a learning rate that is a function of the samples seen."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

from manifests.errors import UserError


@dataclass(frozen=True)
class OptimizerConfig:
    """How weights follow gradients."""

    lr: float = 1e-5
    """The peak; 5e-5 suits batches of 64 and more."""
    warmup: int = 8_000
    """Samples over which the rate rises to it."""
    cooldown: float = 0.0
    """The last share of the run, over which it falls to zero."""
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    clip: float = 1.0
    """Largest norm of the gradients."""
    max_skipped: int = 20
    """Steps in a row whose gradients are not finite, after which the run stops."""

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.clip <= 0:
            raise UserError(f"optim.lr is {self.lr:g} and optim.clip {self.clip:g}; both must be positive")
        if self.warmup < 0 or not 0 <= self.cooldown <= 1 or self.max_skipped < 1:
            raise UserError(
                f"optim.warmup is {self.warmup} (samples, not negative), optim.cooldown {self.cooldown:g} (a share from 0 "
                f"to 1), optim.max-skipped {self.max_skipped} (1 or more)"
            )

    def rate(self, seen: int, total: int) -> float:
        """The learning rate after so many samples of a run."""
        rise = min(1.0, seen / self.warmup) if self.warmup else 1.0
        fall = min(1.0, (total - seen) / (self.cooldown * total)) if self.cooldown else 1.0
        return self.lr * min(rise, max(fall, 0.0))


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
