"""The kit of picture metrics: those that can be measured here, and why the others cannot."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from infer.metrics.figures import Figure, absent, mean_figure
from infer.metrics.perceptual import PERCEPTUAL, SMALLEST
from infer.metrics.pixels import WINDOW, Measure, l2, psnr, ssim


@dataclass(frozen=True, eq=False)
class PictureMetrics:
    """What can be said of pictures here, and for the rest why it cannot, both by the name of the metric."""

    measures: Mapping[str, Measure]
    missing: Mapping[str, str]

    def __call__(
        self, generated: Float[Tensor, "n 3 h w"], target: Float[Tensor, "n 3 h w"]
    ) -> dict[str, Float[np.ndarray, " n"]]:
        """A column per measure, of pictures in [0, 1]."""
        return {name: measure(generated, target).cpu().numpy() for name, measure in self.measures.items()}

    def figures(self, columns: Mapping[str, Float[np.ndarray, " _"]]) -> list[Figure]:
        """A row per metric of the kit, measured or not, from the columns of all pictures."""
        rows = [mean_figure(name, columns[name]) for name in self.measures]
        return rows + [row for name, reason in self.missing.items() for row in absent([name], reason)]


def picture_metrics(resolution: int, weights: str = "", device: str = "cpu") -> PictureMetrics:
    """L2, PSNR, SSIM, and LPIPS and DISTS if the files of their networks are in the folder `weights`.

    Without a folder they are looked for where torch keeps its own downloads. Raises nothing.
    """
    measures: dict[str, Measure] = {"l2": l2, "psnr": psnr}
    missing: dict[str, str] = {}
    if resolution < WINDOW:
        missing["ssim"] = _too_small(resolution, WINDOW)
    else:
        measures["ssim"] = ssim
    for name, load in PERCEPTUAL.items():
        if resolution < SMALLEST:
            missing[name] = _too_small(resolution, SMALLEST)
            continue
        try:
            measures[name] = load(weights, device)
        except (FileNotFoundError, ValueError) as error:
            missing[name] = str(error)
    return PictureMetrics(measures, missing)


def _too_small(resolution: int, least: int) -> str:
    return f"pictures of {resolution} pixels are too small for it; it takes {least} or more"
