"""AdamW that skips a step whose gradients are not finite, and averages of the weights over training.

A power-function average (Karras et al. 2024, EDM2) weighs the past as t^gamma, so its length is a share of the run whatever its
length; from snapshots of two of them the average of any other length is rebuilt afterwards. The classic one has a fixed
half-life. All count samples, so none depends on the batch size; they are kept in single precision, on the weights' own shards.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

from manifests.errors import UserError
from train.run.config import EmaConfig, OptimizerConfig, power_name


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


def learning_rate(config: OptimizerConfig, seen: int, total: int) -> float:
    """The learning rate after so many samples of a run."""
    rise = min(1.0, seen / config.warmup) if config.warmup else 1.0
    fall = min(1.0, (total - seen) / (config.cooldown * total)) if config.cooldown else 1.0
    return config.lr * min(rise, max(fall, 0.0))


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
    def rate(self) -> float:
        """The learning rate of the last step."""
        return self.adam.param_groups[0]["lr"]

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


def gamma_of(sigma_rel: float) -> float:
    """The exponent whose average has a relative standard deviation sigma_rel: a root of the cubic of EDM2's equation 126."""
    inverse = sigma_rel**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def power_beta(sigma_rel: float, seen: int, batch: int) -> float:
    """Weight of the previous average after `seen` samples, the last `batch` of them new (EDM2, equation 127)."""
    return (1 - batch / seen) ** (gamma_of(sigma_rel) + 1)


class Ema:
    """Averages of the trained weights of a network; how far a step moves them is a function of the samples seen."""

    def __init__(self, network: nn.Module, config: EmaConfig):
        self.config = config
        self._weights: dict[str, Tensor] = dict(trained_weights(network))
        self.averages = {n: {k: w.detach().clone() for k, w in self._weights.items()} for n in config.names}
        self._lengths = {power_name(length): length for length in config.sigma_rel}

    @torch.no_grad()
    def update(self, seen: int, batch: int, skipped: Float[Tensor, ""] | None = None) -> None:
        """Move the averages towards the weights after a step; `skipped` is 1 on its device if the step was skipped, else 0.

        A skipped step leaves the averages as they are, as it does the weights.
        """
        weights = _local(self._weights)
        taken = weights[0].new_ones(()) if skipped is None else 1 - skipped
        for name, average in self.averages.items():
            if name in self._lengths:
                kept = power_beta(self._lengths[name], seen, batch)
            else:
                kept = 0.5 ** (batch / self.config.half_life)
            share = (1 - kept) * taken
            # A tensor, because reading `skipped` would wait for the device.
            torch._foreach_lerp_(_local(average), weights, [share] * len(weights))  # pyright: ignore[reportPrivateImportUsage]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Exchange the first average with the weights, and exchange them back bit for bit; nothing if there is none.

        Tensors are exchanged one by one, so that no second copy of the network is held.
        """
        if not self.averages:
            yield
            return
        average = next(iter(self.averages.values()))
        _exchange(self._weights, average)
        try:
            yield
        finally:
            _exchange(self._weights, average)


@torch.no_grad()
def _exchange(some: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> None:
    for one, other in zip(_local(some), _local(others), strict=True):
        kept = one.clone()
        one.copy_(other)
        other.copy_(kept)


def _local(tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """The shards of some tensors that this rank holds, as plain tensors, in place."""
    return [t.to_local() if isinstance(t, DTensor) else t.detach() for t in tensors.values()]


@dataclass(frozen=True)
class Snapshot:
    """An average as it stood at some time."""

    sigma_rel: float
    seen: int


def mixture(snapshots: Sequence[Snapshot], sigma_rel: float, seen: int) -> Float64[np.ndarray, " n"]:
    """How much of each snapshot makes the average of another length at some time (EDM2, section 3.2).

    It is the least-squares fit of that average's profile by theirs, among those whose weights add up to one: others would
    scale a network whose weights are not normalised.
    """
    stored = [(gamma_of(s.sigma_rel), float(s.seen)) for s in snapshots]
    wanted = (gamma_of(sigma_rel), float(seen))
    n = len(stored)
    system, aim = np.ones((n + 1, n + 1)), np.ones(n + 1)
    # Profiles are of the order of 1 / seen, and the last row and column, of the constraint, are to be of the same size.
    system[:n, :n] = [[_overlap(a, b) * seen for b in stored] for a in stored]
    aim[:n] = [_overlap(a, wanted) * seen for a in stored]
    system[n, n] = 0
    return np.linalg.lstsq(system, aim, rcond=None)[0][:n]


def _overlap(a: tuple[float, float], b: tuple[float, float]) -> float:
    """The integral of the product of two profiles (gamma + 1) / T^(gamma + 1) t^gamma on [0, T], in logarithms."""
    (g, s), (h, t) = a, b
    least = min(s, t)
    log = (g + h + 1) * np.log(least) - (g + 1) * np.log(s) - (h + 1) * np.log(t)
    return (g + 1) * (h + 1) / (g + h + 1) * float(np.exp(log))


def clip(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Clip the gradients to a norm over all of them, which is returned; the same number on every rank."""
    norm = nn.utils.clip_grad_norm_(parameters, max_norm)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
