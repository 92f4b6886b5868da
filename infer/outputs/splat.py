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
from infer.outputs.surface import ColouredMesh
from infer.views import HeadViews
from manifests.draws import generator
from manifests.errors import UserError
from manifests.ply import encode_points

STEPS = 3000
"""Steps of the fit, a tenth of the paper's: the surface is known beforehand."""
SSIM = 0.2
"""The share of the structural part of the loss. Source: Kerbl et al. 2023."""
SH0 = 0.28209479177387814
"""The constant spherical harmonic, 1 / (2 sqrt(pi)), in which colours are written."""
SH_REST = 45
"""Coefficients of view-dependent colours (degree 3), which readers of the file expect; they are zero here."""
RATES = {"means": 4e-5, "log_scales": 5e-3, "quaternions": 1e-3, "logit_opacities": 5e-2, "colours": 2.5e-3}
"""Learning rates, that of the means for heads, which are a quarter as large as the scenes of the paper's units."""

Rasterize = Callable[..., tuple[Tensor, Tensor, dict]]
"""gsplat's `rasterization`, or a function of the same arguments and results."""


@dataclass(frozen=True, eq=False)
class Splats:
    """n Gaussians as they are optimised, before their activations."""

    means: Float[Tensor, "n 3"]
    log_scales: Float[Tensor, "n 3"]
    quaternions: Float[Tensor, "n 4"]
    """w x y z, of any length."""
    logit_opacities: Float[Tensor, " n"]
    colours: Float[Tensor, "n 3"]
    """Colours in [0, 1], which the fit may exceed."""

    def ply(self) -> bytes:
        """Binary PLY with the fields, units and order of the paper's own files."""
        columns = {axis: self.means[:, i] for i, axis in enumerate("xyz")}
        zeros = torch.zeros_like(self.logit_opacities)
        columns |= {f"n{axis}": zeros for axis in "xyz"}
        columns |= {f"f_dc_{i}": (self.colours[:, i] - 0.5) / SH0 for i in range(3)}
        columns |= {f"f_rest_{i}": zeros for i in range(SH_REST)}
        columns |= {"opacity": self.logit_opacities}
        columns |= {f"scale_{i}": self.log_scales[:, i] for i in range(3)}
        columns |= {f"rot_{i}": torch.nn.functional.normalize(self.quaternions)[:, i] for i in range(4)}
        table = np.empty(len(self.means), [(name, "<f4") for name in columns])
        for name, values in columns.items():
            table[name] = values.detach().cpu().numpy()
        return encode_points(table)


def check_splat() -> None:
    """Raise UserError unless splats can be fitted on this machine."""
    if not torch.cuda.is_available():
        raise UserError(
            "splat: fitting Gaussians needs an NVIDIA GPU, and there is none; leave splat out, or ask for mesh"
        )
    try:
        import gsplat  # noqa: F401
    except ImportError as error:
        raise UserError("splat: gsplat is not installed; pip install gsplat") from error


def splats(views: HeadViews, mesh: ColouredMesh, steps: int = STEPS) -> Splats:
    """Fit Gaussians to views on the GPU; raises UserError where `check_splat` does."""
    check_splat()
    from gsplat import rasterization

    return fit(views, initial_splats(mesh), rasterization, steps, "cuda")


def initial_splats(mesh: ColouredMesh) -> Splats:
    """A Gaussian at each vertex of a surface, of the vertex's colour, as wide as half the distance to its neighbours."""
    from scipy.spatial import KDTree

    vertices = mesh.mesh.vertices
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
        torch.from_numpy(mesh.colours).float() / 255,
    )


def fit(views: HeadViews, start: Splats, rasterize: Rasterize, steps: int, device: str, seed: int = 0) -> Splats:
    """Minimise the L1 and structural difference to one view at a time, over white; the seed determines the order of views."""
    values = {f.name: getattr(start, f.name).to(device).clone().requires_grad_() for f in fields(Splats)}
    optimizer = torch.optim.Adam([{"params": [values[name]], "lr": rate} for name, rate in RATES.items()], eps=1e-15)
    resolution, cameras = views.resolution, views.cameras.to(device)
    pictures, poses, lenses = (views.rgb.to(device) + 1) / 2, cameras.w2c, cameras.pixel_K(resolution)
    white = torch.ones(1, 3, device=device)
    for view in generator(seed, "splat").integers(len(views), size=steps):
        one = slice(view, view + 1)
        rendered, _, _ = rasterize(
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
        picture, truth = rendered.permute(0, 3, 1, 2).clamp(0, 1), pictures[one].clamp(0, 1)
        loss = (1 - SSIM) * (picture - truth).abs().mean()
        if resolution >= WINDOW:
            loss = loss + SSIM * (1 - ssim(picture, truth).mean())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return Splats(**{name: value.detach().cpu() for name, value in values.items()})
