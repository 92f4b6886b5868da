"""3D Gaussians fitted to views on a GPU, and the .ply that splat viewers read.

Source: Kerbl et al. 2023, "3D Gaussian Splatting" (activations, learning rates, loss, and the fields of the file). The
surface is known beforehand, so no Gaussian is split or dropped, and colours do not depend on the direction.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from infer.metrics.pixels import WINDOW, ssim
from infer.outputs.mesh import Body
from infer.outputs.ply import encode_ply
from infer.turn import Turn
from manifests.draws import generator
from manifests.errors import UserError

STEPS = 3000
SSIM = 0.2
"""Share of the structural part of the loss."""
SH0 = 0.28209479177387814
"""Of the constant spherical harmonic, which colours are written in."""
SH_REST = 45
"""Coefficients of the directions that readers of the file expect, here zero."""
RATES = {"means": 4e-5, "log_scales": 5e-3, "quaternions": 1e-3, "logit_opacities": 5e-2, "colours": 2.5e-3}
"""Learning rates, that of the means for heads, which are a quarter as large as the scenes of the paper's units."""

Rasterize = Callable[..., tuple[Tensor, Tensor, dict]]
"""gsplat's `rasterization`, or what takes and gives the same."""


@dataclass(frozen=True, eq=False)
class Splats:
    """n Gaussians as they are optimised, before their activations."""

    means: Float[Tensor, "n 3"]
    log_scales: Float[Tensor, "n 3"]
    quaternions: Float[Tensor, "n 4"]
    """w x y z, of any length."""
    logit_opacities: Float[Tensor, " n"]
    colours: Float[Tensor, "n 3"]
    """In [0, 1] but for what the fit overshoots."""

    def ply(self) -> bytes:
        """In the fields, units and order of the paper's own files."""
        columns = {axis: self.means[:, i] for i, axis in enumerate("xyz")}
        nothing = torch.zeros_like(self.logit_opacities)
        columns |= {f"n{axis}": nothing for axis in "xyz"}
        columns |= {f"f_dc_{i}": (self.colours[:, i] - 0.5) / SH0 for i in range(3)}
        columns |= {f"f_rest_{i}": nothing for i in range(SH_REST)}
        columns |= {"opacity": self.logit_opacities}
        columns |= {f"scale_{i}": self.log_scales[:, i] for i in range(3)}
        columns |= {f"rot_{i}": torch.nn.functional.normalize(self.quaternions)[:, i] for i in range(4)}
        table = np.empty(len(self.means), [(name, "<f4") for name in columns])
        for name, values in columns.items():
            table[name] = values.detach().cpu().numpy()
        return encode_ply(table)


def check_splat() -> None:
    """Raise ValueError in one line unless splats can be fitted here."""
    if not torch.cuda.is_available():
        raise UserError(
            "splat: fitting Gaussians needs an NVIDIA GPU, and there is none; leave splat out, or ask for mesh"
        )
    try:
        import gsplat  # noqa: F401
    except ImportError as error:
        raise UserError("splat: gsplat is not installed; pip install gsplat") from error


def splats(turn: Turn, body: Body, steps: int = STEPS) -> Splats:
    """Gaussians that look like the views, on the GPU; raises ValueError where `check_splat` does."""
    check_splat()
    from gsplat import rasterization

    return fit(turn, first_splats(body), rasterization, steps, "cuda")


def first_splats(body: Body) -> Splats:
    """A Gaussian at each vertex of a surface, which reaches half the way to its neighbours, in its colour."""
    from scipy.spatial import KDTree

    vertices = body.mesh.vertices
    near, _ = KDTree(vertices).query(vertices, k=min(4, len(vertices)))
    # Marching cubes may put two vertices almost on one spot.
    width = np.maximum(near[:, 1:].mean(1), 0.1 * near[:, 1:].mean()) / 2
    means = torch.from_numpy(np.ascontiguousarray(vertices))
    n = len(means)
    return Splats(
        means,
        torch.from_numpy(width).float().log()[:, None].repeat(1, 3),
        torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(n, 1),
        torch.full((n,), 0.8).logit(),
        torch.from_numpy(body.colours).float() / 255,
    )


def fit(turn: Turn, start: Splats, rasterize: Rasterize, steps: int, device: str, seed: int = 0) -> Splats:
    """Minimise L1 and structural difference to one view at a time, over white; the same seed takes the same views."""
    values = {f.name: getattr(start, f.name).to(device).clone().requires_grad_() for f in fields(Splats)}
    optimizer = torch.optim.Adam([{"params": [values[name]], "lr": rate} for name, rate in RATES.items()], eps=1e-15)
    resolution, cameras = turn.resolution, turn.cameras.to(device)
    views, poses, lenses = (turn.rgb.to(device) + 1) / 2, cameras.w2c, cameras.pixel_K(resolution)
    white = torch.ones(1, 3, device=device)
    for view in generator(seed, "splat").integers(len(turn), size=steps):
        one = slice(view, view + 1)
        shown, _, _ = rasterize(
            means=values["means"],
            quats=values["quaternions"],
            scales=values["log_scales"].exp(),
            opacities=values["logit_opacities"].sigmoid(),
            colors=values["colours"],
            viewmats=poses[one],
            Ks=lenses[one],
            width=resolution,
            height=resolution,
            backgrounds=white,
        )
        picture, truth = shown.permute(0, 3, 1, 2).clamp(0, 1), views[one].clamp(0, 1)
        loss = (1 - SSIM) * (picture - truth).abs().mean()
        if resolution >= WINDOW:
            loss = loss + SSIM * (1 - ssim(picture, truth).mean())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return Splats(**{name: value.detach().cpu() for name, value in values.items()})
