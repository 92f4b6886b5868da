"""Training stages of DiffPortrait3D and DiffPortrait360, at the released size and as small twins of procedural heads.

Each stage trains one part and starts from the model of the stage before (`--init`): references, then cameras, then views.
Sources: DiffPortrait360, appendix A (60,000 iterations a stage on six GPUs, one sample each; learning rate 1e-5) and the
defaults of its released training code. DiffPortrait3D's own numbers are not published; its stages have the same.
"""

from dataclasses import replace
from typing import Literal

from train.data.config import LoaderConfig
from train.data.sampling import Portraits, SingleView
from train.diffusion.config import NoiseLevels, Objective
from train.families.diffportrait.config import DiffPortraitConfig
from train.networks.config import UNetShape
from train.run.config import OptimizerConfig, TrainConfig, ValidationConfig
from weights.embedded import HEADS64

DATA = ""
"""Placeholder for the dataset, which every run must name."""

FULL = TrainConfig(
    LoaderConfig(
        DATA, Portraits(count=1, targets="random"), batch=6, tail="exact", members=("rgb",), random_background=0.0
    ),
    model=DiffPortraitConfig(control=None, temporal=None),
    # Stable Diffusion is frozen and text is empty, so nothing has to be dropped: guidance compares with the plain UNet.
    objective=Objective(drop=0.0),
    optim=OptimizerConfig(lr=1e-5, warmup=0, weight_decay=0.0, clip=0.5),
    trained=("reference.*",),
    samples=60_000 * 6,
    micro=1,
    checkpoint_activations=True,
    device="cuda",
)
"""The first stage: the reference network."""

SMALL = replace(
    FULL,
    loader=replace(FULL.loader, batch=8, resolution=64, workers=1),
    model=replace(
        FULL.model,
        unet=UNetShape((64, 96, 160), (True, True, True), blocks=1, heads=2, context=512, joint_from=3, groups=16),
        noise="edm",
        prompt=False,
    ),
    vae=str(HEADS64 / "vae"),
    # The noise levels of heads64, whose UNet the stages start from.
    objective=Objective(NoiseLevels(mean=-0.4, std=1.4), drop=0.0),
    optim=OptimizerConfig(lr=5e-4, warmup=400, cooldown=0.5, weight_decay=0.0),
    validation=ValidationConfig(every=5_000),
    samples=5_000,
    micro=8,
    checkpoint_activations=False,
    save_every=2_500,
    snapshot_every=5_000,
    device="cpu",
)
"""The same at 64 px, on a processor."""


SMALL_BASE = replace(
    SMALL,
    loader=replace(SMALL.loader, recipe=SingleView()),
    model=replace(SMALL.model, references=0),
    trained=("unet.*",),
    init=str(HEADS64),
    samples=8_000,
)
"""The counterpart of Stable Diffusion in the small twins: heads64's UNet, tuned to single heads without an identity, which is
frozen from then on."""


def stages(full: TrainConfig, layout: Literal["diffportrait3d", "diffportrait360"]) -> dict[str, TrainConfig]:
    """The three stages of a system by name."""
    back, order = layout == "diffportrait360", "arc" if layout == "diffportrait360" else "random"
    recipe = Portraits(count=1, targets="random", back=back)
    first = replace(full, loader=replace(full.loader, recipe=recipe), model=replace(full.model, references=1 + back))
    second = with_control(first, ("control.*",))
    third = replace(
        second,
        loader=replace(second.loader, recipe=replace(recipe, count=8, targets=order)),
        model=replace(second.model, temporal=layout),
        trained=("temporal.*",),
    )
    if full is SMALL:  # a scene is eight views, so that each stage takes about as long
        third = replace(third, samples=full.samples // 8)
    return {"references": first, "cameras": second, "views": third}


def back_generator(full: TrainConfig) -> TrainConfig:
    """The generator of the back view: the front and a control picture from behind give the back."""
    recipe = Portraits(count=1, targets="back", back=False, min_turn=150.0)
    one = replace(full, loader=replace(full.loader, recipe=recipe), model=replace(full.model, references=1))
    return with_control(one, ("reference.*", "control.*"))


def with_control(config: TrainConfig, trained: tuple[str, ...]) -> TrainConfig:
    """The same with control pictures."""
    return replace(
        config,
        loader=replace(config.loader, control=True),
        model=replace(config.model, control="pictures"),
        trained=trained,
    )


CONFIGS: dict[str, TrainConfig] = {
    **{f"diffportrait3d-{stage}": config for stage, config in stages(FULL, "diffportrait3d").items()},
    **{f"diffportrait360-{stage}": config for stage, config in stages(FULL, "diffportrait360").items()},
    "diffportrait360-back": back_generator(FULL),
    "portraits64-base": SMALL_BASE,
    **{f"portraits64-3d-{stage}": config for stage, config in stages(SMALL, "diffportrait3d").items()},
    **{f"portraits64-360-{stage}": config for stage, config in stages(SMALL, "diffportrait360").items()},
    "portraits64-back": back_generator(SMALL),
}

STAGED: dict[str, tuple[str, ...]] = {
    "diffportrait3d": tuple(f"diffportrait3d-{stage}" for stage in ("references", "cameras", "views")),
    "diffportrait360": tuple(f"diffportrait360-{stage}" for stage in ("references", "cameras", "views")),
    "portraits64-3d": (
        "portraits64-base",
        *(f"portraits64-3d-{stage}" for stage in ("references", "cameras", "views")),
    ),
    "portraits64-360": (
        "portraits64-base",
        *(f"portraits64-360-{stage}" for stage in ("references", "cameras", "views")),
    ),
}
"""Presets that train several stages one after the other, each from the model of the one before."""

_STAGES = {
    "references": "First stage: the reference network learns to carry the person over.",
    "cameras": "Second stage: control pictures of a stranger say where the cameras are.",
    "views": "Third stage: layers between the views of a window make them agree.",
}
SUMMARIES: dict[str, str] = {
    **{f"diffportrait3d-{stage}": f"DiffPortrait3D. {text}" for stage, text in _STAGES.items()},
    **{f"diffportrait360-{stage}": f"DiffPortrait360. {text}" for stage, text in _STAGES.items()},
    "diffportrait360-back": "DiffPortrait360's generator of the back view from the front.",
    "portraits64-base": "A UNet of single procedural heads at 64 px, which the stages of portraits64 start from.",
    **{f"portraits64-3d-{stage}": f"DiffPortrait3D at 64 px. {text}" for stage, text in _STAGES.items()},
    **{f"portraits64-360-{stage}": f"DiffPortrait360 at 64 px. {text}" for stage, text in _STAGES.items()},
    "portraits64-back": "The generator of the back view at 64 px.",
    "diffportrait3d": "DiffPortrait3D: all three stages, one after the other.",
    "diffportrait360": "DiffPortrait360: all three stages, one after the other.",
    "portraits64-3d": "A small DiffPortrait3D of procedural heads at 64 px: its UNet and all stages.",
    "portraits64-360": "A small DiffPortrait360 of procedural heads at 64 px: its UNet and all stages.",
}
