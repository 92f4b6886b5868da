"""Training presets of all families, with SpinMeRound's stages, its ablations and two small models; each is a complete config.

Source: SpinMeRound, sections 3 and 4.1 and its released config; where the paper is silent, docs/training.md says what was
chosen.
"""

from dataclasses import dataclass, field, replace
from typing import Annotated

from tyro.conf import Suppress, arg

from train.data.config import LoaderConfig
from train.data.sampling import MultiView, SingleView
from train.diffusion.config import NoiseLevels, Objective
from train.families.diffportrait import presets as diffportrait
from train.families.spinmeround.config import SpinMeRoundConfig
from train.networks.config import IdentityShape, RayMaps, UNetShape
from train.run.config import OptimizerConfig, RayConfig, TrainConfig, ValidationConfig
from weights.embedded import HEADS64

DATA = ""
"""Placeholder for the dataset, which every run must name."""


@dataclass(frozen=True)
class Train:
    """Train a multiview model; the same command resumes it."""

    config: Annotated[TrainConfig, arg(name="")]
    ray: RayConfig = field(default_factory=RayConfig)
    stages: Annotated[tuple[str, ...], Suppress] = ()
    """Presets that are trained one after the other, instead of one run."""


EDM = TrainConfig(
    LoaderConfig(DATA, SingleView(), batch=32, tail="exact", embeddings="arcface", members=("rgb",)),
    model=SpinMeRoundConfig(rays=None, normals=False),
    objective=Objective(NoiseLevels(shift="none")),
    samples=31_000 * 32,
    micro=4,
    device="cuda",
)
"""Phase A: Arc2Face's UNet is fine-tuned to EDM's process on single pictures."""

ONE_VIEW = replace(
    EDM,
    loader=LoaderConfig(DATA, MultiView(conditions=(1,)), batch=8, tail="exact", embeddings="arcface"),
    model=SpinMeRoundConfig(),
    objective=Objective(),
    samples=600_000 * 8,
    micro=1,
)
"""Phase B: seven views, and the normals of all eight, from one given view."""

SPINMEROUND = replace(
    ONE_VIEW,
    loader=replace(ONE_VIEW.loader, recipe=MultiView(conditions=(0, 1, 3))),
    samples=1_000_000 * 8,
)
"""Phase C: views and normals from no, one or three given views."""

HEADS64_RUN = TrainConfig(
    LoaderConfig(
        DATA, MultiView(), batch=8, tail="exact", embeddings="arcface", resolution=64, workers=1, random_background=0.0
    ),
    model=SpinMeRoundConfig(
        UNetShape(channels=(64, 96, 160), attention=(False, True, True), blocks=1, heads=2, context=512, groups=16),
        RayMaps("geometric", origin_octaves=3, direction_octaves=5),
        IdentityShape("token", 512),
        scale_given=False,
        shared_noise=False,
        sigma_max=80.0,
    ),
    vae=str(HEADS64 / "vae"),
    # On 16 x 16 latent cells, a quarter of the noise level removes as much of the image as on 64 x 64.
    objective=Objective(NoiseLevels(mean=-0.4, std=1.4)),
    optim=OptimizerConfig(lr=1e-3, warmup=800, cooldown=0.7, weight_decay=0.0),
    validation=ValidationConfig(every=16_000, scale=2.0),
    samples=96_000,
    micro=8,
    save_every=8_000,
    snapshot_every=24_000,
)
"""A model of procedural heads at 64 px, trained in one to six hours on two cores (see docs/training.md)."""

SMALL = replace(
    HEADS64_RUN,
    loader=replace(HEADS64_RUN.loader, batch=4),
    model=replace(
        HEADS64_RUN.model,
        unet=UNetShape(channels=(32, 64), attention=(False, True), blocks=1, heads=4, context=512, groups=16),
    ),
    optim=replace(HEADS64_RUN.optim, warmup=40),
    samples=240,
    micro=4,
    save_every=240,
    snapshot_every=240,
    log_every=10,
)
"""A tiny model for tests and the demo: too few steps for usable views."""

SUMMARIES = {
    "spinmeround-edm": "First stage: Arc2Face's UNet learns the EDM process on single pictures.",
    "spinmeround-1view": "Second stage: seven views and all normals from one given view.",
    "spinmeround": "Third stage, the released model: views and normals from 0, 1 or 3 given views.",
    "spinmeround-no-input": "Ablation of spinmeround without given views.",
    "spinmeround-no-identity": "Ablation of spinmeround without identity embeddings.",
    "spinmeround-no-normals": "Ablation of spinmeround that makes pictures without normals.",
    "small": "A few dozen steps of a tiny model, for tests and the demo.",
    "heads64": "A model of procedural heads at 64 px, trained in one to six hours on two cores.",
    "heads64-no-input": "Ablation of heads64 without given views.",
    "heads64-no-identity": "Ablation of heads64 without identity embeddings.",
    "heads64-no-normals": "Ablation of heads64 that makes pictures without normals.",
    **diffportrait.SUMMARIES,
}
"""One sentence on each preset, for `spinset train --help`."""

PRESETS = {
    name: Train(config)
    for name, config in {
        "spinmeround-edm": EDM,
        "spinmeround-1view": ONE_VIEW,
        "spinmeround": SPINMEROUND,
        "spinmeround-no-input": replace(
            SPINMEROUND, loader=replace(SPINMEROUND.loader, recipe=MultiView(conditions=(0,)))
        ),
        "spinmeround-no-identity": replace(SPINMEROUND, loader=replace(SPINMEROUND.loader, embeddings="")),
        "spinmeround-no-normals": replace(
            SPINMEROUND,
            model=replace(SPINMEROUND.model, normals=False),
            loader=replace(SPINMEROUND.loader, members=("rgb",)),
        ),
        "small": SMALL,
        "heads64": HEADS64_RUN,
        "heads64-no-input": replace(HEADS64_RUN, loader=replace(HEADS64_RUN.loader, recipe=MultiView(conditions=(0,)))),
        "heads64-no-identity": replace(HEADS64_RUN, loader=replace(HEADS64_RUN.loader, embeddings="")),
        "heads64-no-normals": replace(
            HEADS64_RUN,
            model=replace(HEADS64_RUN.model, normals=False),
            loader=replace(HEADS64_RUN.loader, members=("rgb",)),
        ),
        **diffportrait.CONFIGS,
    }.items()
} | {name: Train(diffportrait.CONFIGS[stages[0]], stages=stages) for name, stages in diffportrait.STAGED.items()}
