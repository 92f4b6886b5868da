"""Settings of the noise process and of the loss."""

from dataclasses import dataclass, field
from typing import Literal

from manifests.errors import UserError, check_ranges

Precision = Literal["auto", "bf16", "fp32"]


@dataclass(frozen=True)
class NoiseLevels:
    """Distribution of noise levels in training: ln sigma is normal, with one level for all views of a scene."""

    mean: float = 0.7
    """Mean of ln sigma for a single view (P_mean of EDM)."""
    std: float = 1.6
    """Standard deviation of ln sigma (P_std of EDM)."""
    shift: Literal["sqrtN", "N", "none"] = "sqrtN"
    """Shift of the mean with the number N of views: ln(N) / 2 for sqrtN (as in CAT3D), ln(N) for N, 0 for none."""
    shift_views: int = 7
    """The number N of views in the shift; 0 counts the target views of each scene."""

    def __post_init__(self) -> None:
        if self.shift not in ("sqrtN", "N", "none"):
            raise UserError(f"--objective.noise.shift is {self.shift!r}; it must be sqrtN, N or none")
        check_ranges(self, "--objective.noise.", mean=(-20, 20), std=(1e-3, 20), shift_views=(0, 1000))


@dataclass(frozen=True)
class Objective:
    """Training objective."""

    noise: NoiseLevels = field(default_factory=NoiseLevels)
    drop: float = 0.15
    """Probability with which a scene loses its conditions in training, which classifier-free guidance needs."""
    drop_mode: Literal["joint", "independent"] = "joint"
    """Mode of dropping: joint drops all conditions of a scene together, as guidance does; independent drops each by itself."""

    def __post_init__(self) -> None:
        check_ranges(self, "--objective.", drop=(0, 1))
        if self.drop_mode not in ("joint", "independent"):
            raise UserError(f"--objective.drop-mode is {self.drop_mode!r}; it must be joint or independent")
