"""Settings of the noise process and the loss."""

from dataclasses import dataclass, field
from typing import Literal

from manifests.errors import UserError

Precision = Literal["auto", "bf16", "fp32"]


@dataclass(frozen=True)
class NoiseLevels:
    """The law of noise levels in training: ln sigma is normal, one level for all views of a scene."""

    mean: float = 0.7
    std: float = 1.6
    shift: Literal["sqrtN", "N", "none"] = "sqrtN"
    """More views tell more of each other, so levels rise with their number N: the log-SNR falls by ln N (sqrtN: the mean of ln
    sigma rises by ln(N) / 2, as in CAT3D), by twice as much (N), or not at all."""
    shift_views: int = 7
    """N; 0 counts the targets of each scene."""

    def __post_init__(self) -> None:
        if self.shift not in ("sqrtN", "N", "none"):
            raise UserError(f"noise.shift is {self.shift!r}; it must be sqrtN, N or none")
        if self.std <= 0 or self.shift_views < 0:
            raise UserError(f"noise.std is {self.std:g}, noise.shift-views {self.shift_views}; they are not negative")


@dataclass(frozen=True)
class Objective:
    """What is learned."""

    noise: NoiseLevels = field(default_factory=NoiseLevels)
    drop: float = 0.15
    """The share of scenes that lose their given pictures and their identity, so that guidance can leave them out."""
    drop_mode: Literal["joint", "independent"] = "joint"
    """Both are lost together, as guidance leaves them out together; or each for itself."""

    def __post_init__(self) -> None:
        if not 0 <= self.drop <= 1:
            raise UserError(f"objective.drop is {self.drop:g}; it is a share from 0 to 1")
        if self.drop_mode not in ("joint", "independent"):
            raise UserError(f"objective.drop-mode is {self.drop_mode!r}; it must be joint or independent")
